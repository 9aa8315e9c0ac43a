"""Labels made wrong on purpose: replaced at random, in part or all, or flipped in known rows."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


def corrupt(labels: Tensor, fraction: float, *, classes: int, seed: int) -> Tensor:
    """Each label replaced, independently with probability ``fraction``, by a class drawn uniformly from all, its own included.

    The rows replaced at a smaller fraction are among those replaced at a larger one, by the same classes.

    Args:
        labels: Integers in 0 ... classes − 1, (n,).
        fraction: In [0, 1]; at 1 the labels say nothing about the rows.
        classes: At least 2.
        seed: Of which rows and which classes.

    Returns:
        New labels (n,); the given ones are left as they are.

    Raises:
        ValueError: an argument out of its range.

    Example:
        >>> y = torch.arange(1000) % 10
        >>> int((corrupt(y, 0.5, classes=10, seed=0) != y).sum())  # about 0.5 · 0.9 · 1000
        444

    Source: Zhang et al. 2017, arXiv:1611.03530, Section 2 (partially corrupted and random labels).
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction must lie in [0, 1], got {fraction}.")
    if classes < 2:
        raise ValueError(f"classes must be at least 2, got {classes}.")
    if labels.ndim != 1 or labels.is_floating_point() or not bool(((labels >= 0) & (labels < classes)).all()):
        raise ValueError(f"labels must be integers in 0 ... {classes - 1}, (n,), got {labels.dtype} of shape {tuple(labels.shape)}.")
    generator = torch.Generator().manual_seed(seed)
    replaced = torch.rand(labels.shape, generator=generator, dtype=torch.float64, device="cpu") < fraction
    drawn = torch.randint(classes, labels.shape, generator=generator, device="cpu")
    return torch.where(replaced.to(labels.device), drawn.to(labels), labels)


class FlippedLabels(NamedTuple):
    """Labels ``y`` (n,), some of them wrong, and the sorted ``rows`` (m,) that are; unpacks as a pair."""

    y: Tensor
    rows: Tensor

    @property
    def wrong(self) -> Tensor:
        """Which rows are wrong, (n,) of bool."""
        return torch.zeros(len(self.y), dtype=torch.bool, device=self.y.device).index_fill(0, self.rows, True)


def flip_labels(y: Tensor, fraction: float, *, seed: int = 0) -> FlippedLabels:
    """Give a random part of the rows another label, drawn evenly from the other classes that occur in ``y``.

    Args:
        y: Integer classes (n,), at least two of them. Not changed.
        fraction: Of the rows, in [0, 1]; round(fraction · n) rows are flipped.
        seed: Of the draw.

    Raises:
        ValueError: ``fraction`` out of range, labels that are no integers, or a single class, which has no other label.

    Example:
        >>> y, rows = flip_labels(torch.tensor([0, 1, 0, 1, 0, 1, 0, 1]), 0.25, seed=1)
        >>> int((y != torch.tensor([0, 1, 0, 1, 0, 1, 0, 1])).sum()), len(rows)
        (2, 2)
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction must lie in [0, 1], got {fraction}.")
    if y.ndim != 1 or y.is_floating_point() or y.is_complex():
        raise ValueError(f"y must hold integer classes (n,), got {y.dtype} of shape {tuple(y.shape)}.")
    present, index = y.unique(return_inverse=True)
    if len(present) < 2:
        raise ValueError(f"y must hold at least two classes, for one has no other to flip to, got {present.tolist()}.")
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(y), generator=generator, device="cpu")[: round(fraction * len(y))].sort().values.to(y.device)
    shift = torch.randint(1, len(present), (len(rows),), generator=generator, device="cpu").to(y.device)
    flipped = y.clone()
    flipped[rows] = present[(index[rows] + shift) % len(present)]
    return FlippedLabels(flipped, rows)
