"""Datamodels: linear predictions of retraining from membership, fitted to retrainings."""

from __future__ import annotations

import torch
from torch import Tensor

GRID = torch.logspace(-4, 4, 33, dtype=torch.float64)
"""Ridges that are tried, relative to the mean squared singular value of the masks."""


def datamodels(masks: Tensor, outputs: Tensor, *, ridge: float | None = None) -> Tensor:
    r"""Regress the outcomes of retraining on membership: scores (n, target), one least-squares fit for each target.

    .. math:: \min_{\tau_j, b_j} \sum_S \Bigl(f_j(S) - b_j - \sum_{i \in S} \tau_{ij}\Bigr)^2 + \alpha \|\tau_j\|^2

    A score is the mean effect of adding the row to a random subset, with no approximation but the number of subsets: with fewer than rows
    most of it is noise, which the ridge holds down.

    Args:
        masks: Subsets (subset, n), booleans or weights.
        outputs: (subset, target), or (subset, seed, target) as of `retrain`, averaged over seeds.
        ridge: α, at least 0. None chooses it by generalized cross-validation, the same for all targets.

    Raises:
        ValueError: shapes that do not fit, fewer than three subsets, numbers that are not finite, or a ridge of zero where subsets do not
            determine the fit.

    Example:
        >>> masks = torch.tensor([[1, 0], [0, 1], [1, 1], [0, 0]])
        >>> datamodels(masks, torch.tensor([[2.0], [5.0], [6.0], [1.0]]), ridge=0.0).round(decimals=6).flatten().tolist()
        [1.0, 4.0]

    Source: Ilyas et al. 2022, arXiv:2202.00622, Section 2, there with an ℓ1 penalty; generalized cross-validation: Golub, Heath and Wahba
    1979, doi:10.1080/00401706.1979.10489751.
    """
    M, F = masks.double(), outputs.double()
    F = F.mean(1) if F.ndim == 3 else F
    if M.ndim != 2 or F.ndim != 2 or len(M) != len(F):
        raise ValueError(f"masks must be (subset, n) and outputs (subset, target), got {tuple(masks.shape)} and {tuple(outputs.shape)}.")
    if len(M) < 3:
        raise ValueError(f"masks must hold at least 3 subsets, got {len(M)}.")
    if not bool(F.isfinite().all()):
        raise ValueError("outputs must be finite: a retraining that diverged has no value.")
    M, F = M - M.mean(0), F - F.mean(0)
    U, s, Vt = torch.linalg.svd(M, full_matrices=False)
    if ridge is None:
        rotated, scale = U.T @ F, float(s.square().mean())
        rest = float(F.square().sum() - rotated.square().sum())

        def validation(alpha: float) -> float:
            kept = s.square() / (s.square() + alpha)
            left = len(M) - 1 - float(kept.sum())  # one for the intercept
            return (rest + float(((1 - kept)[:, None] * rotated).square().sum())) / left**2

        ridge = min((float(a) * scale for a in GRID), key=validation)
    if not ridge >= 0:
        raise ValueError(f"ridge must be at least 0, got {ridge}.")
    if ridge == 0 and (len(s) < M.shape[1] or float(s[-1]) <= 1e-10 * float(s[0])):
        raise ValueError(f"ridge must be positive: {len(M)} subsets do not determine the effects of {M.shape[1]} rows.")
    return Vt.T @ ((s / (s.square() + ridge))[:, None] * (U.T @ F))
