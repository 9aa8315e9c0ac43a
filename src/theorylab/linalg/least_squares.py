"""Least squares for stacks of problems at once: the solution of smallest norm, and ridge regression at many penalties."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def minimum_norm(x: Tensor, y: Tensor) -> Tensor:
    """Least squares of smallest norm, X⁺Y, by a Cholesky factor of the smaller Gram matrix.

    Fast, and with the condition number squared: for well-conditioned rows of full rank. Batched LU is avoided on purpose, for with several
    threads it returns garbage on large stacks.

    Args:
        x: Rows (..., n, p), of full rank min(n, p).
        y: Targets (..., n, k).

    Returns:
        Coefficients (..., p, k).

    Raises:
        ValueError: shapes that do not fit.
        torch.linalg.LinAlgError: rows that are not of full rank.

    Example:
        >>> minimum_norm(torch.tensor([[3.0, 4.0]]), torch.tensor([[25.0]])).flatten().tolist()
        [3.0, 4.0]
    """
    _check(x, y)
    if x.shape[-2] < x.shape[-1]:
        return x.mT @ torch.cholesky_solve(y, torch.linalg.cholesky(x @ x.mT))
    return torch.cholesky_solve(x.mT @ y, torch.linalg.cholesky(x.mT @ x))


def ridge_path(x: Tensor, y: Tensor, penalties: Sequence[float]) -> Tensor:
    r"""Ridge regression at many penalties from one eigendecomposition of the smaller Gram matrix.

    .. math:: \hat\beta_\mu = \arg\min_\beta \|X\beta - y\|^2 + \mu\|\beta\|^2

    Args:
        x: Rows (..., n, p).
        y: Targets (..., n, k).
        penalties: μ, each at least 0; at 0 it is least squares of smallest norm, for rows of full rank.

    Returns:
        Coefficients (penalty, ..., p, k).

    Raises:
        ValueError: shapes that do not fit, a negative penalty, or none.

    Example:
        >>> ridge_path(torch.tensor([[2.0], [1.0]]), torch.tensor([[2.0], [1.0]]), [0.0, 5.0]).flatten().tolist()
        [1.0, 0.5]
    """
    _check(x, y)
    if len(penalties) == 0:
        raise ValueError("penalties must hold at least one μ, got none.")
    if min(penalties) < 0:
        raise ValueError(f"penalties must be at least 0, got {min(penalties)}.")
    wide = x.shape[-2] < x.shape[-1]
    # V (s + μ)⁻¹ Vᵀ Xᵀ y, or in the other order Xᵀ U (s + μ)⁻¹ Uᵀ y
    s, vectors = torch.linalg.eigh(x @ x.mT if wide else x.mT @ x)
    right = vectors.mT @ (y if wide else x.mT @ y)
    left = x.mT @ vectors if wide else vectors
    return torch.stack([left @ (right / (s.unsqueeze(-1) + mu)) for mu in penalties])


def _check(x: Tensor, y: Tensor) -> None:
    if x.ndim < 2 or y.ndim != x.ndim or x.shape[:-1] != y.shape[:-1]:
        raise ValueError(f"x must be (..., n, p) and y (..., n, k) of the same leading sizes, got {tuple(x.shape)} and {tuple(y.shape)}.")
