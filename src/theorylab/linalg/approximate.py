"""Inverses that are approximated and not solved for: the largest eigenvalues alone, and a random Neumann series."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from theorylab.core.operator import Operator
from theorylab.linalg.lanczos import check_symmetric, eigs


def _check(A: Operator, b: Tensor, damping: float) -> Tensor:
    check_symmetric(A)
    if b.ndim not in (1, 2) or b.shape[0] != A.shape[0]:
        raise ValueError(f"b must have shape ({A.shape[0]},) or ({A.shape[0]}, k), got {tuple(b.shape)}.")
    if not damping >= 0:
        raise ValueError(f"damping must be at least 0, got {damping}.")
    return b[:, None] if b.ndim == 1 else b


def truncated_solve(A: Operator, b: Tensor, rank: int, damping: float = 0.0, *, tol: float = 1e-6, seed: int = 0) -> Tensor:
    r"""The inverse on the eigenvectors of largest magnitude, :math:`V(\Lambda + \lambda I)^{-1}V^\top b`; the rest of b is dropped.

    Args:
        A: Symmetric map on R^p.
        b: (p,) or (p, k).
        rank: Eigenvectors kept, in 1..p; they are held, and found by Lanczos.
        damping: λ, at least 0.
        tol: Relative residual of the eigenvectors.
        seed: Of the starting vector.

    Raises:
        ValueError: an eigenvalue among those kept that damping does not make positive, or an argument out of range.
        ArithmeticError: Lanczos did not converge.

    Example:
        >>> A = Operator((3, 3), lambda v: torch.tensor([9.0, 3.0, 0.1]).double() * v, symmetric=True)
        >>> truncated_solve(A, torch.ones(3).double(), rank=2, damping=1.0).round(decimals=6).tolist()
        [0.1, 0.25, 0.0]

    Source: Schioppa et al. 2022, arXiv:2112.03052 (there by Arnoldi's iteration, which for a symmetric map is Lanczos's).
    """
    columns = _check(A, b, damping)
    found = eigs(A, k=rank, which="LM", tol=tol, seed=seed)
    if not found.converged:
        raise ArithmeticError(
            f"the {rank} largest eigenpairs of {A.name} have residuals up to {float(found.residuals.max()):.1e}: lower rank."
        )
    damped = found.values + damping
    if not bool((damped > 0).all()):
        raise ValueError(
            f"{A.name} + {damping:g}·I must be positive definite, found the eigenvalue {float(damped.min()):.3g}: raise damping."
        )
    return (found.vectors @ ((found.vectors.T @ columns) / damped[:, None])).reshape(b.shape)


def neumann_solve(parts: Sequence[Operator], b: Tensor, depth: int, damping: float = 0.0, *, seed: int = 0) -> Tensor:
    r"""A random Neumann series for the inverse of a mean of operators plus λI (LiSSA).

    .. math:: x_{t+1} = b + x_t - \tfrac1\sigma (A_{i_t} + \lambda I)\,x_t, \qquad (\bar A + \lambda I)^{-1} b \approx x_T / \sigma

    with :math:`i_t` drawn evenly and σ above the largest eigenvalue of every part, which Lanczos finds. The expectation errs by a factor
    :math:`(1 - \lambda/\sigma)^T` at most, so that the depth must be several σ/λ; around it the draws add noise, none for a single part.

    Args:
        parts: Symmetric positive semidefinite maps on R^p, of which the mean is meant.
        b: (p,) or (p, k).
        depth: T, at least 1.
        damping: λ > 0.
        seed: Of the draws.

    Raises:
        ValueError: no part, no damping, or an argument out of range.

    Example:
        >>> A = Operator((2, 2), lambda v: torch.tensor([3.0, 1.0]).double() * v, symmetric=True)
        >>> neumann_solve([A], torch.ones(2).double(), depth=100, damping=1.0).round(decimals=6).tolist()
        [0.25, 0.5]

    Source: Agarwal, Bullins and Hazan 2017, arXiv:1602.03943 (LiSSA); for influence Koh and Liang 2017, arXiv:1703.04730,
    Section 3.
    """
    if not parts:
        raise ValueError("parts must hold at least one operator.")
    if depth < 1:
        raise ValueError(f"depth must be at least 1, got {depth}.")
    if not damping > 0:
        raise ValueError(f"damping must be positive, or the series need not converge, got {damping}.")
    columns = _check(parts[0], b, damping)
    scale = 1.05 * max(float(eigs(A, k=1, which="LA", tol=1e-2, seed=seed).values[0]) for A in parts) + damping
    generator, x = torch.Generator().manual_seed(seed), columns
    for i in torch.randint(len(parts), (depth,), generator=generator, device="cpu").tolist():
        x = columns + x - (parts[i] @ x + damping * x) / scale
    return (x / scale).reshape(b.shape)
