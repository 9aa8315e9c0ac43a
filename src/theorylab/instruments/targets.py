"""The targets of a Problem as numbers, one vector a row: what regression and alignment with the labels need."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from theorylab.core.problem import Problem


def no_target_a_row(problem: Problem) -> str | None:
    """Targets that are neither one class a row nor one vector of numbers a row."""
    for batch in problem.batches:
        y = batch.content[1] if batch.is_pair else None
        if not isinstance(y, Tensor) or y.ndim == 0 or len(y) != batch.rows:
            return "targets must be one tensor with a row for each of the data. Give batches as pairs (x, y)."
        if y.ndim > 1 and not y.is_floating_point():
            return f"integer targets must be one class a row, got shape {tuple(y.shape)}. Give one label a row, or numbers."
    return None


def numeric_targets(problem: Problem, outputs: int | None = None) -> Tensor:
    """Targets of all rows (n, k): classes as unit vectors, numbers as they are.

    Args:
        problem: One that `no_target_a_row` does not refuse.
        outputs: How many numbers a row are wanted; integers that meet a single output are numbers, not classes. Default: as many as there
            are classes.

    Raises:
        ValueError: the targets do not have ``outputs`` numbers a row, or a class is negative or not below it.
    """
    y = torch.cat([batch.content[1] for batch in problem.batches])
    if not y.is_floating_point() and outputs != 1:
        classes = int(y.max()) + 1 if outputs is None else outputs
        if int(y.min()) < 0 or int(y.max()) >= classes:
            raise ValueError(f"classes must lie in 0 ... {classes - 1}, got {int(y.min())} ... {int(y.max())}: remove ignored rows.")
        return F.one_hot(y.long(), classes).to(problem.dtype)
    y = y.reshape(len(y), -1).to(problem.dtype)
    if outputs not in (None, y.shape[1]):
        raise ValueError(f"targets must have {outputs} numbers a row, as the outputs do, got {y.shape[1]}.")
    return y
