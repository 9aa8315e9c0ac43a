"""Wrong labels on purpose: what the search for mislabelled rows is tested on."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class FlippedLabels(NamedTuple):
    """Labels ``y`` (n,), some of them wrong, and the sorted ``rows`` (m,) that are; unpacks as a pair."""

    y: Tensor
    rows: Tensor


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
    rows = torch.randperm(len(y), generator=generator)[: round(fraction * len(y))].sort().values.to(y.device)
    shift = torch.randint(1, len(present), (len(rows),), generator=generator).to(y.device)
    flipped = y.clone()
    flipped[rows] = present[(index[rows] + shift) % len(present)]
    return FlippedLabels(flipped, rows)
