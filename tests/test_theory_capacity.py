"""Rademacher complexities of linear classes against searches over the ball, and their bounds at both extremes."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from theorylab.theory.capacity import linear_rademacher, linear_rademacher_bound, linear_supremum, sign_vectors


def rows(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_all_signs_appear_once_and_come_in_opposite_pairs() -> None:
    signs = sign_vectors(5)
    assert set(map(tuple, signs.tolist())) == set(itertools.product((-1.0, 1.0), repeat=5))
    assert torch.equal(signs, -signs.flip(0))


def test_the_supremum_is_that_of_a_search_over_the_circle() -> None:
    x, radius = rows(6, 2), 1.7
    angle = torch.linspace(0, 2 * math.pi, 20_001, dtype=torch.float64)
    circle = radius * torch.stack([angle.cos(), angle.sin()])  # (2, angle)
    signs = sign_vectors(6)
    searched = (signs @ (x @ circle) / len(x)).amax(1)
    found = linear_supremum(x, signs, radius)
    assert bool((found >= searched).all())
    torch.testing.assert_close(found, searched, rtol=(math.pi / 20_000) ** 2, atol=0)  # the nearest angle loses half of its square


def test_the_complexity_is_the_mean_over_signs_one_at_a_time() -> None:
    x, radius = rows(7, 3, seed=1), 0.4
    sums = [math.sqrt(sum(sum(s * float(v) for s, v in zip(sigma, x[:, j], strict=True)) ** 2 for j in range(3))) for sigma in
            itertools.product((-1, 1), repeat=7)]  # fmt: skip
    assert linear_rademacher(x, radius) == pytest.approx(radius / 7 * sum(sums) / len(sums), rel=1e-12)


@pytest.mark.parametrize(("n", "d"), [(1, 3), (2, 1), (9, 1), (9, 4), (9, 30)])
def test_the_bound_is_above_and_at_most_root_two_above(n: int, d: int) -> None:
    x = rows(n, d, seed=n + d)
    ratio = linear_rademacher(x, 2.0) / linear_rademacher_bound(x, 2.0)
    assert math.sqrt(0.5) <= ratio <= 1 + 1e-12


def test_both_extremes_are_attained() -> None:
    orthogonal = torch.diag(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    assert linear_rademacher(orthogonal, 1.0) == pytest.approx(linear_rademacher_bound(orthogonal, 1.0), rel=1e-14)
    twice = torch.ones(2, 1, dtype=torch.float64)
    assert linear_rademacher(twice, 1.0) == pytest.approx(linear_rademacher_bound(twice, 1.0) / math.sqrt(2), rel=1e-14)


@pytest.mark.parametrize("radius", [-1.0, math.nan, math.inf])
def test_a_ball_without_a_radius_is_refused(radius: float) -> None:
    x = torch.ones(2, 1)
    for call in (lambda: linear_supremum(x, x.T, radius), lambda: linear_rademacher(x, radius), lambda: linear_rademacher_bound(x, radius)):
        with pytest.raises(ValueError, match="radius must be at least 0"):
            call()


def test_too_many_rows_are_refused() -> None:
    for n in (0, 23):
        with pytest.raises(ValueError, match="n must be in 1"):
            sign_vectors(n)
