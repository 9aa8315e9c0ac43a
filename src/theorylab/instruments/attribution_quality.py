"""Whether attribution scores are right: real retraining against what they predict of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from theorylab.core.arguments import given
from theorylab.core.estimate import Estimate
from theorylab.learning.retraining import half_subsets
from theorylab.stats.lds import jackknife, lds, noise_ceiling, spearman

Train = Callable[[Tensor], Tensor]
"""Masks (subset, n) → outcomes (subset, seed, target)."""


@dataclass(frozen=True)
class AttributionQuality:
    """How well scores predict retraining.

    Attributes:
        lds: The linear datamodeling score over random subsets, with its error over subsets.
        ceiling: What a predictor without noise would score there.
        leave_one_out: Rank correlation, over rows left out one at a time, of what their scores predict with what retraining did; the mean
            over targets. A row moves a network less than the noise of training does, so that it is low even for good scores.
        fractions: Of the rows that were removed, (fraction,).
        removed: How far a target fell when the rows of its largest scores were removed, (fraction,): the mean over targets.
        at_random: The same for as many rows at random.
    """

    lds: Estimate
    ceiling: Estimate
    leave_one_out: Estimate
    fractions: Tensor
    removed: Tensor
    at_random: Tensor

    def __str__(self) -> str:
        falls = ", ".join(
            f"{100 * float(q):.3g} %: {float(a):.3g} (at random {float(b):.3g})"
            for q, a, b in zip(self.fractions, self.removed, self.at_random, strict=True)
        )
        return (
            f"LDS {self.lds} of at most {self.ceiling}; leave-one-out {self.leave_one_out}; fall of the targets without their top {falls}"
        )


def evaluate_attribution(
    scores: Tensor,
    train: Train,
    *,
    subsets: int = 64,
    fraction: float = 0.5,
    left_out: int = 16,
    removals: Sequence[float] = (0.05, 0.1, 0.2),
    removal_targets: int = 8,
    seed: int = 0,
) -> AttributionQuality:
    r"""Compare scores with retraining: on random subsets, without single rows, and without the rows that matter most.

    All that is trained is what ``train`` trains: ``lambda masks: retrain(make_model, loss, data, masks, seeds, ...)`` of networks like the
    one that was attributed, measured by the target that was attributed. It is called once, for
    ``subsets + left_out + len(removals) · (removal_targets + 1) + 1`` subsets.

    Args:
        scores: (n, target), positive where adding the row raises the target.
        train: Masks (subset, n) to outcomes (subset, seed, target), with at least two seeds.
        subsets: For the linear datamodeling score, at least 8.
        fraction: Of the rows, in each subset.
        left_out: Rows left out one at a time, drawn at random, at least 8.
        removals: Fractions of the rows that are removed.
        removal_targets: For how many targets, the first ones, the rows of largest score are removed; each is a retraining of its own.
        seed: Of all that is drawn.

    Raises:
        ValueError: scores that are not (n, target) or finite, an argument out of range, or outcomes of the wrong shape or of a single seed.

    Example:
        >>> effects = torch.tensor([[3.0], [-1.0], [2.0], [0.5], [1.0], [-2.0], [0.1], [0.2], [4.0], [1.5]])
        >>> additive = lambda masks: (masks.float() @ effects)[:, None].expand(-1, 2, -1)
        >>> quality = evaluate_attribution(effects, additive, left_out=8, removals=[0.2])
        >>> round(quality.lds.value, 3), round(quality.ceiling.value, 3), round(float(quality.removed), 3)
        (1.0, 1.0, 7.0)

    Source: Park et al. 2023, arXiv:2303.14186, Section 2 (linear datamodeling score); Koh and Liang 2017, arXiv:1703.04730, Section 4.1
    (leave-one-out retraining); Ilyas et al. 2022, arXiv:2202.00622 (removing the rows of largest scores).
    """
    if scores.ndim != 2 or not bool(scores.isfinite().all()):
        raise ValueError(f"scores must be finite, (n, target), got shape {tuple(scores.shape)}.")
    n, m = scores.shape
    if subsets < 8:
        raise ValueError(f"subsets must be at least 8, got {subsets}.")
    if not 8 <= left_out <= n:
        raise ValueError(f"left_out must lie in 8..{n}, got {left_out}.")
    counts = [round(q * n) for q in removals]
    if not all(0 < count < n for count in counts):
        raise ValueError(f"removals must each leave between 1 and {n - 1} of the {n} rows, got {list(removals)}.")
    if removal_targets < 1:
        raise ValueError(f"removal_targets must be at least 1, got {removal_targets}.")
    shown = min(removal_targets, m)
    scores = scores.detach().cpu().double()
    generator = torch.Generator().manual_seed(seed)
    halves = half_subsets(n, subsets, fraction=fraction, seed=seed)
    alone = torch.randperm(n, generator=generator, device="cpu")[:left_out]
    single = torch.ones(left_out, n, dtype=torch.bool, device="cpu")
    single[torch.arange(left_out, device="cpu"), alone] = False
    cut = torch.ones(len(counts), shown + 1, n, dtype=torch.bool, device="cpu")  # the last of each is at random
    for row, count in zip(cut, counts, strict=True):
        for j in range(shown):
            row[j, scores[:, j].argsort(descending=True, stable=True)[:count]] = False
        row[shown, torch.randperm(n, generator=generator, device="cpu")[:count]] = False
    masks = torch.cat([halves, single, cut.flatten(0, 1), torch.ones(1, n, dtype=torch.bool, device="cpu")])
    outcomes = train(masks)
    if outcomes.ndim != 3 or outcomes.shape[0] != len(masks) or outcomes.shape[2] != m or outcomes.shape[1] < 2:
        raise ValueError(f"train must return ({len(masks)}, seeds, {m}) with at least 2 seeds, got {tuple(outcomes.shape)}.")
    outcomes = outcomes.detach().cpu().double()
    on_halves, without, removed, whole = outcomes.split([subsets, left_out, len(counts) * (shown + 1), 1])
    change = (without - whole).mean(1)  # (row, target)
    predicted = -scores[alone]

    def correlation(kept: object) -> float:
        return float(spearman(predicted[given(kept)], change[given(kept)]).mean())

    fall = (whole - removed).mean(1).view(len(counts), shown + 1, m)
    return AttributionQuality(
        lds(scores, halves, on_halves),
        noise_ceiling(on_halves),
        jackknife(left_out, correlation),
        torch.tensor([count / n for count in counts], device="cpu"),
        fall[:, range(shown), range(shown)].mean(1),
        fall[:, shown, :shown].mean(1),
    )
