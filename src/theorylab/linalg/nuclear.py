"""Matrix completion of minimum nuclear norm, with a bound from the dual problem that certifies the answer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

CHECK_EVERY = 10
"""Iterations between looks at the duality gap, which costs a decomposition."""
RELAXATION = 1.6
"""Of the alternating steps, within (0, 2): Boyd et al. 2011, Section 3.4.3."""
SHARE = 0.02
"""Of the threshold, at first, in the largest singular value that the completion is likely to have."""
BALANCE, FACTOR = 1.5, 1.2
"""Where one residual exceeds the other by more than the first, the threshold changes by the second: Boyd et al. 2011, Section 3.4.1."""


@dataclass(frozen=True)
class Completed:
    """Completions of a batch of matrices; the minimum of the nuclear norm lies in [``bound``, ``norm``].

    Attributes:
        matrix: (..., m, n), equal to the observations wherever there are any.
        norm: Its nuclear norm, (...).
        bound: Lower bound on the nuclear norm of every completion, (...).
        converged: Whether the relative gap between the two is within the tolerance, (...).
        iterations: Taken by all matrices together.
    """

    matrix: Tensor
    norm: Tensor
    bound: Tensor
    converged: Tensor
    iterations: int


def shrink_singular_values(matrix: Tensor, threshold: Tensor) -> Tensor:
    r"""The proximal operator of :math:`\tau\|\cdot\|_*`: every singular value lowered by τ, and none below zero.

    Args:
        matrix: (..., m, n).
        threshold: τ ≥ 0, broadcasts against (...).

    Example:
        >>> shrink_singular_values(torch.diag(torch.tensor([3.0, 1.0])), torch.tensor(2.0)).tolist()
        [[1.0, 0.0], [0.0, 0.0]]

    Source: Cai, Candès and Shen 2010, Theorem 2.1, arXiv:0810.3286.
    """
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return (u * (s - threshold[..., None]).clamp_min(0)[..., None, :]) @ vh


def complete(observed: Tensor, mask: Tensor, *, tol: float = 1e-6, max_iterations: int = 5000) -> Completed:
    r"""The matrix of least nuclear norm among those that agree with the observed entries.

    .. math:: \min_X \|X\|_* \ \text{ subject to } X_{ij} = M_{ij},\ (i, j) \in \Omega
        \qquad = \qquad \max_Y \langle Y, M\rangle \ \text{ subject to } \|Y\|_2 \le 1,\ Y = 0 \text{ off } \Omega

    Alternating direction method of multipliers on X = Z, X with the norm and Z with the observations: singular values are shrunk by τ,
    observations put back, and the multiplier, which lives on Ω, is U ← U + X − Z. Scaled to spectral norm one, −U is a point of the dual
    problem, so that its value bounds the minimum from below: the gap to the completion at hand says how far it can be from the
    minimum, whatever the iteration did. A matrix stays where it is once its gap is within the tolerance.

    Args:
        observed: M, (..., m, n), float64 advised; entries off the mask are ignored.
        mask: Ω, boolean or 0 and 1, of the shape of M.
        tol: Relative gap (norm − bound)/norm at which a matrix is done, positive.
        max_iterations: At least 1, each one batched singular value decomposition.

    Raises:
        ValueError: shapes that differ, an observed entry that is not finite, a matrix that is unobserved, or an option out of range.

    Example:
        >>> M, mask = torch.tensor([[3.0, 4.0, 9.0]]).double(), torch.tensor([[1, 1, 0]])
        >>> found = complete(M, mask, tol=1e-10)  # of a row it is the Euclidean norm
        >>> found.matrix.abs().round(decimals=4).tolist(), round(found.norm.item(), 6), round(found.bound.item(), 6)
        ([[3.0, 4.0, 0.0]], 5.0, 5.0)

    Source: Boyd et al. 2011, Sections 3.1 and 5 (the method with an indicator function), doi:10.1561/2200000016; Recht, Fazel and
    Parrilo 2010, Section 2 (the dual problem), arXiv:0706.4138.
    """
    if observed.shape != mask.shape or observed.ndim < 2:
        raise ValueError(f"observed and mask must be (..., m, n) of one shape, got {tuple(observed.shape)} and {tuple(mask.shape)}.")
    if tol <= 0 or max_iterations < 1:
        raise ValueError(f"tol must be positive and max_iterations at least 1, got {tol} and {max_iterations}.")
    known = mask.bool()
    if not bool(known.flatten(-2).any(-1).all()):
        raise ValueError("mask must show at least one entry of every matrix, got one without.")
    m = torch.where(known, observed, 0.0)
    if not bool(m.isfinite().all()):
        raise ValueError("observed must be finite wherever mask is set.")

    batch, shape = m.shape[:-2], m.shape[-2:]
    m, known = m.reshape(-1, *shape), known.reshape(-1, *shape)
    # the threshold is in the units of M; it decides how fast the iteration converges, not where to
    tau = torch.linalg.matrix_norm(m, 2) / known.to(m.dtype).mean((1, 2)) * SHARE
    tau = tau.clamp_min(torch.finfo(m.dtype).tiny)  # observations that are all zero
    best, bound = m.clone(), m.new_zeros(len(m))
    norm = torch.linalg.matrix_norm(m, "nuc")
    open_ = torch.arange(len(m), device=m.device)  # matrices whose gap is not closed yet
    z, u = m.clone(), torch.zeros_like(m)
    done = 0
    while len(open_) and done < max_iterations:
        M, seen, x, previous = m[open_], known[open_], z, z
        for _ in range(min(CHECK_EVERY, max_iterations - done)):
            x = shrink_singular_values(z - u, tau[open_])
            relaxed = RELAXATION * x + (1 - RELAXATION) * z
            previous, z = z, torch.where(seen, M, relaxed + u)
            u = u + relaxed - z
            done += 1
        # −U/τ lies in the subdifferential of the norm at X; off the mask it vanishes, as Z takes up X + U there
        y = -u / torch.linalg.matrix_norm(u, 2).clamp_min(torch.finfo(m.dtype).tiny)[:, None, None]
        values, norms = (y * M).sum((1, 2)), torch.linalg.matrix_norm(z, "nuc")
        bound[open_] = torch.maximum(bound[open_], values)
        better = norms <= norm[open_]
        best[open_[better]], norm[open_[better]] = z[better], norms[better]
        left = norm[open_] - bound[open_] > tol * norm[open_]
        # balance what is left of the two residuals; the multiplier in units of τ changes with it
        apart, moved = (x - z).norm(dim=(1, 2)), (z - previous).norm(dim=(1, 2))
        factor = torch.where(apart > BALANCE * moved, 1 / FACTOR, torch.where(moved > BALANCE * apart, FACTOR, 1.0)).to(tau)
        tau[open_], u = tau[open_] * factor, u * factor[:, None, None]
        open_, z, u = open_[left], z[left], u[left]
    converged = norm - bound <= tol * norm
    return Completed(best.reshape(*batch, *shape), norm.reshape(batch), bound.reshape(batch), converged.reshape(batch), done)
