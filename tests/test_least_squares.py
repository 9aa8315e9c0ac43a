"""Stacked least squares against pseudoinverses, dense solves and optimality conditions."""

from __future__ import annotations

import pytest
import torch

from theorylab.linalg.least_squares import minimum_norm, ridge_path

SHAPES = pytest.mark.parametrize(("n", "p"), [(7, 20), (20, 7), (1, 3), (3, 1)])


def problem(n: int, p: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(10 * n + p)
    return tuple(torch.randn(2, 3, n, k, generator=generator, dtype=torch.float64) for k in (p, 2))  # type: ignore[return-value]


@SHAPES
def test_the_smallest_norm_is_the_pseudoinverse(n: int, p: int) -> None:
    x, y = problem(n, p)
    torch.testing.assert_close(minimum_norm(x, y), torch.linalg.pinv(x) @ y)
    torch.testing.assert_close(ridge_path(x, y, [0.0])[0], torch.linalg.pinv(x) @ y)


@SHAPES
def test_a_ridge_solution_is_where_the_gradient_vanishes(n: int, p: int) -> None:
    x, y = problem(n, p)
    penalties = [1e-3, 1.0, 50.0]
    for mu, beta in zip(penalties, ridge_path(x, y, penalties), strict=True):
        gradient = x.mT @ (x @ beta - y) + mu * beta
        assert float(gradient.abs().max()) < 1e-11 * (1 + mu)


def test_a_hundred_problems_of_two_hundred_rows_are_all_solved() -> None:
    """The size at which batched LU goes wrong with several threads."""
    x = torch.randn(100, 200, 300, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = x[:, :, :1]
    assert float((x @ minimum_norm(x, y) - y).abs().max()) < 1e-8


def test_what_does_not_fit_is_refused() -> None:
    x, y = problem(7, 20)
    with pytest.raises(ValueError, match=r"x must be \(\.\.\., n, p\)"):
        minimum_norm(x, y[:, :, :-1])
    with pytest.raises(ValueError, match=r"x must be \(\.\.\., n, p\)"):
        ridge_path(x, y[..., 0], [1.0])
    with pytest.raises(ValueError, match="penalties must be at least 0, got -1"):
        ridge_path(x, y, [0.0, -1.0])
    with pytest.raises(ValueError, match="penalties must hold at least one"):
        ridge_path(x, y, [])
    with pytest.raises(RuntimeError, match="not positive-definite"):
        minimum_norm(torch.zeros(3, 3).double(), torch.zeros(3, 1).double())
