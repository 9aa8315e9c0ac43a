"""Some labels of a data set replaced by wrong ones: the rows that a network can only know by heart."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Mislabelled(NamedTuple):
    """Labels of which some are wrong, and which: ``y`` and ``wrong``, both (n,)."""

    y: Tensor
    wrong: Tensor


def mislabelled(y: Tensor, count: int, classes: int, *, seed: int) -> Mislabelled:
    """Give ``count`` rows, drawn without replacement, another label, evenly drawn from the wrong ones.

    Args:
        y: Labels in 0 ... classes − 1, (n,).
        count: How many, in 0 ... n.
        classes: At least two.
        seed: Of the draws.

    Raises:
        ValueError: an argument out of its range.

    Example:
        >>> y, wrong = mislabelled(torch.zeros(6, dtype=torch.int64), 2, 3, seed=0)
        >>> int(wrong.sum()), bool((y[wrong] != 0).all()), y[~wrong].tolist()
        (2, True, [0, 0, 0, 0])
    """
    if not 0 <= count <= len(y):
        raise ValueError(f"count must be in 0..{len(y)} (the number of rows), got {count}.")
    if classes < 2 or not 0 <= int(y.min()) <= int(y.max()) < classes:
        raise ValueError(f"classes must be at least 2 and y in 0..classes − 1, got {classes} and {int(y.min())}..{int(y.max())}.")
    generator = torch.Generator().manual_seed(seed)
    wrong = torch.zeros(len(y), dtype=torch.bool)
    wrong[torch.randperm(len(y), generator=generator)[:count]] = True
    shift = torch.randint(1, classes, (len(y),), generator=generator)
    return Mislabelled(torch.where(wrong, (y + shift) % classes, y), wrong)
