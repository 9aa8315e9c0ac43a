"""Linear systems with a positive definite operator: conjugate gradients."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from theorylab.core.operator import Operator
from theorylab.linalg.lanczos import check_symmetric


@dataclass(frozen=True)
class Solution:
    """``x`` (p,) or (p, k) with its true relative residual ‖b − (A + damping·I)x‖ / ‖b‖, computed at the end; of columns the largest."""

    x: Tensor
    residual: float
    converged: bool
    n_matvecs: int


def solve(A: Operator, b: Tensor, damping: float = 0.0, tol: float = 1e-6, max_matvecs: int | None = None) -> Solution:
    r"""Solve (A + damping·I) x = b by conjugate gradients from x = 0.

    Stops when the relative residual is at most ``tol``, or says that it did not get there. Columns of b are solved side by side, each with
    its own steps, but share the products of A with blocks; those that are done leave.

    Args:
        A: Symmetric map on R^p; A + damping·I must be positive definite on what b reaches.
        b: Right-hand side (p,), or several (p, k).
        damping: At least 0.
        tol: Relative residual at which to stop, above 0.
        max_matvecs: Products allowed for each column, the last of which checks the residual; default 10p + 1, for rounding may delay the p
            steps of theory.

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
    if b.ndim not in (1, 2) or b.shape[0] != p:
        raise ValueError(f"b must have shape ({p},) or ({p}, k), got {tuple(b.shape)}.")
    if not damping >= 0:
        raise ValueError(f"damping must be at least 0, got {damping}.")
    if not tol > 0:
        raise ValueError(f"tol must be positive, got {tol}.")
    limit = 10 * p + 1 if max_matvecs is None else max_matvecs
    if limit < 2:
        raise ValueError(f"max_matvecs must be at least 2, got {max_matvecs}.")
    columns = b[:, None] if b.ndim == 1 else b

    def apply(V: Tensor) -> Tensor:
        return A @ V if V.shape[1] > 1 else (A @ V[:, 0])[:, None]

    x, norm = torch.zeros_like(columns), columns.norm(dim=0)
    live = (norm > 0).nonzero()[:, 0]
    r, direction, square, products, rounds = columns[:, live], columns[:, live], norm[live].square(), 0, 0
    while len(live) and rounds < limit - 1:
        image = apply(direction) + damping * direction
        rounds, products = rounds + 1, products + len(live)
        curvature = (direction * image).sum(0)
        if not bool((curvature > 0).all()):
            worst = int(curvature.argmin()) if bool(curvature.isfinite().all()) else int((~curvature.isfinite()).nonzero()[0])
            raise ValueError(
                f"{A.name} + {damping:g}·I must be positive definite, found curvature "
                f"{float(curvature[worst] / direction[:, worst].square().sum()):.3g} along a direction: raise damping."
            )
        step = square / curvature
        x[:, live] += step * direction
        r = r - step * image
        square, before = r.square().sum(0), square
        direction = r + square / before * direction
        going = square.sqrt() > tol * norm[live]
        if not bool(going.all()):
            live, r, direction, square = live[going], r[:, going], direction[:, going], square[going]
    wanted = (norm > 0).nonzero()[:, 0]
    if not len(wanted):
        return Solution(x.reshape(b.shape), 0.0, True, products)
    left = columns[:, wanted] - apply(x[:, wanted]) - damping * x[:, wanted]
    residual = float((left.norm(dim=0) / norm[wanted]).max())
    slack = 10 * torch.finfo(b.dtype).eps  # the recursive residual may pass where the true one misses by rounding
    return Solution(x.reshape(b.shape), residual, residual <= tol * (1 + 1e-3) + slack, products + len(wanted))
