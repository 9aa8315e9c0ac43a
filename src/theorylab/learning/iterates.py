"""The path of an optimizer on an objective with a known gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from theorylab.learning.optimizers.base import Optimizer, take
from theorylab.models.objectives import Objective


def iterates(method: Optimizer, f: Objective, start: Tensor, steps: int) -> Tensor:
    """The points from which ``method`` steps on ``f``, from the start on.

    Args:
        method: From `theorylab.learning.optimizers`.
        f: From `theorylab.models.objectives`.
        start: (..., d), any number of starts at once.
        steps: At least 0.

    Returns:
        (steps + 1, ..., d).

    Example:
        >>> from theorylab.learning.optimizers.sgd import sgd
        >>> from theorylab.models.objectives import quadratic
        >>> one = torch.ones(1, dtype=torch.float64)
        >>> iterates(sgd(lr=0.5), quadratic(one), one, 2)[:, 0].tolist()
        [1.0, 0.5, 0.25]
    """
    params, points = {"x": start}, [start]
    state = method.init(params)
    for _ in range(steps):
        params, state = take(method, lambda p: {"x": f.gradient(p["x"])}, state, params)
        points.append(params["x"])
    return torch.stack(points)
