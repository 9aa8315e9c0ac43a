"""Every objective against finite differences and against what it says of itself: gradient, smoothness, minimum, minimizer."""

from __future__ import annotations

import math

import pytest
import torch

from theorylab.models import objectives

FUNCTIONS = {
    "huber": (objectives.huber(0.7, 3.0), 1),
    "quadratic": (objectives.quadratic(torch.tensor([0.5, 2.0, 3.0], dtype=torch.float64)), 3),
    "resisting_maximum": (objectives.resisting_maximum(4, radius=2.0, lipschitz=3.0), 4),
    "tridiagonal": (objectives.tridiagonal(5, 2.0), 5),
    "lessard": (objectives.lessard(), 1),
    "pl_least_squares": (objectives.pl_least_squares(4, 7, seed=3), 7),
    "quartic": (objectives.quartic(), 3),
    "cosine_sum": (objectives.cosine_sum(), 3),
    "strict_saddle": (objectives.strict_saddle(-2.5), 2),
    "saturating_sum": (objectives.saturating_sum(), 3),
    "scalar_factorization": (objectives.scalar_factorization(), 2),
}
every = pytest.mark.parametrize("name", FUNCTIONS)


def points(d: int, n: int = 40, scale: float = 2.0) -> torch.Tensor:
    return scale * torch.randn(n, d, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@every
def test_gradient_equals_central_differences(name):
    f, d = FUNCTIONS[name]
    x, h = points(d), 1e-6
    steps = h * torch.eye(d, dtype=torch.float64)
    numeric = (f.value(x[:, None] + steps) - f.value(x[:, None] - steps)) / (2 * h)
    # of 40 random points none lies within h of a kink; the error is h²f'''/6 plus rounding of f over h
    torch.testing.assert_close(f.gradient(x), numeric, rtol=1e-5, atol=1e-6)


@every
def test_minimum_is_attained_at_the_minimizer_and_nowhere_undercut(name):
    f, d = FUNCTIONS[name]
    assert float(f.value(f.minimizer)) == pytest.approx(f.minimum, abs=1e-12)
    near = f.minimizer + points(d, 2000, 0.3)
    assert float(f.gap(torch.cat([near, points(d, 2000)])).min()) >= -1e-12


@every
def test_smoothness_bounds_the_gradients_slope(name):
    f, d = FUNCTIONS[name]
    if not math.isfinite(f.smoothness):
        pytest.skip("no Lipschitz gradient is claimed")
    x = points(d, 2000)
    y = x + points(d, 2000, 1.0).flip(0) * 0.2
    slope = (f.gradient(x) - f.gradient(y)).norm(dim=-1) / (x - y).norm(dim=-1)
    assert float(slope.max()) <= f.smoothness * (1 + 1e-9)
    # and it is not an empty claim: near the minimizer, where these functions are steepest, a good part of it is seen
    assert float(slope.max()) >= 0.5 * f.smoothness


@every
def test_polyak_lojasiewicz_constant(name):
    f, d = FUNCTIONS[name]
    if f.curvature == 0:
        pytest.skip("no constant is claimed")
    x = points(d, 500)
    assert bool(((f.gradient(x) ** 2).sum(-1) / 2 >= f.curvature * f.gap(x) * (1 - 1e-9)).all())


def test_resisting_maximum_is_lipschitz_and_answers_with_the_first_coordinate():
    f, d = FUNCTIONS["resisting_maximum"]
    assert float(f.gradient(points(d, 500, 5.0)).norm(dim=-1).max()) <= 3.0 + 1e-12
    assert f.gradient(torch.zeros(d, dtype=torch.float64)).tolist() == [3.0, 0.0, 0.0, 0.0]
    assert float(f.minimizer.norm()) == pytest.approx(2.0)


def test_tridiagonal_gradients_from_zero_open_one_coordinate_a_step():
    f, x = objectives.tridiagonal(6), torch.zeros(6, dtype=torch.float64)
    for k in range(1, 6):
        x = x - f.gradient(x)
        assert int((x != 0).sum()) == k


def test_flat_function_has_no_constant():
    f = objectives.quartic()
    x = torch.tensor([[1e-1], [1e-3]], dtype=torch.float64)
    ratio = (f.gradient(x) ** 2).sum(-1) / f.gap(x)
    assert float(ratio[1] / ratio[0]) == pytest.approx(1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: objectives.huber(0.0), "threshold"),
        (lambda: objectives.quadratic(torch.tensor([1.0, -1.0])), "eigenvalues"),
        (lambda: objectives.resisting_maximum(0), "dimension"),
        (lambda: objectives.tridiagonal(3, -1.0), "smoothness"),
        (lambda: objectives.pl_least_squares(5, 3), "rows"),
        (lambda: objectives.pl_least_squares(3, 5, condition=1.0), "condition"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
