"""Linear systems with a positive definite operator: conjugate gradients."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from theorylab.core.operator import Operator
from theorylab.linalg.lanczos import check_symmetric


@dataclass(frozen=True)
class Solution:
    """``x`` (p,) with its true relative residual ‖b − (A + damping·I)x‖ / ‖b‖, computed anew at the end."""

    x: Tensor
    residual: float
    converged: bool
    n_matvecs: int


def solve(A: Operator, b: Tensor, damping: float = 0.0, tol: float = 1e-6, max_matvecs: int | None = None) -> Solution:
    r"""Solve (A + damping·I) x = b by conjugate gradients from x = 0.

    Stops when the relative residual is at most ``tol``, or says that it did not get there.

    Args:
        A: Symmetric map on R^p; A + damping·I must be positive definite on what b reaches.
        b: Right-hand side (p,).
        damping: At least 0.
        tol: Relative residual at which to stop, above 0.
        max_matvecs: Products allowed, the last of which checks the residual; default 10p + 1, for rounding may delay the p steps of theory.

    Raises:
        ValueError: an asymmetric operator, a direction of curvature that is not positive, or an argument out of range.

    Example:
        >>> A = Operator((2, 2), lambda v: torch.tensor([2.0, 4.0]).double() * v, symmetric=True)
        >>> [round(v, 6) for v in solve(A, torch.ones(2).double()).x.tolist()]
        [0.5, 0.25]

    Source: Hestenes and Stiefel 1952, doi:10.6028/jres.049.044, Section 3.
    """
    check_symmetric(A)
    p = A.shape[0]
    if b.shape != (p,):
        raise ValueError(f"b must have shape ({p},), got {tuple(b.shape)}.")
    if not damping >= 0:
        raise ValueError(f"damping must be at least 0, got {damping}.")
    if not tol > 0:
        raise ValueError(f"tol must be positive, got {tol}.")
    limit = 10 * p + 1 if max_matvecs is None else max_matvecs
    if limit < 2:
        raise ValueError(f"max_matvecs must be at least 2, got {max_matvecs}.")
    x, norm = torch.zeros_like(b), float(b.norm())
    if norm == 0:
        return Solution(x, 0.0, True, 0)
    r, direction, square, products = b.clone(), b.clone(), float(b @ b), 0
    while products < limit - 1 and square**0.5 > tol * norm:
        image = A @ direction + damping * direction
        products += 1
        curvature = float(direction @ image)
        if not curvature > 0:
            raise ValueError(
                f"{A.name} + {damping:g}·I must be positive definite, found curvature {curvature / float(direction @ direction):.3g} "
                "along a direction: raise damping."
            )
        step = square / curvature
        x = x + step * direction
        r = r - step * image
        square, before = float(r @ r), square
        direction = r + square / before * direction
    residual = float((b - (A @ x + damping * x)).norm()) / norm
    slack = 10 * torch.finfo(b.dtype).eps  # the recursive residual may pass where the true one misses by rounding
    return Solution(x, residual, residual <= tol * (1 + 1e-3) + slack, products + 1)
