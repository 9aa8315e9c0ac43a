"""Step sizes that decay with time, around any optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from theorylab.learning.optimizers.base import Hyper, Optimizer, Params


def decayed(make: Callable[[Hyper], Optimizer], lr: Hyper, *, power: Hyper = 0.5) -> Optimizer:
    r"""The optimizer that ``make`` builds, with step size :math:`\eta_t = \eta\, t^{-a}` in step t = 1, 2, ...

    Args:
        make: Step size → optimizer; its state must not depend on the step size.
        lr: η, the first step.
        power: a ≥ 0; 1/2 is the schedule of the margin studies, 0 leaves the step as it is.

    Returns:
        An optimizer over tensors with a leading replica axis, whose state holds the time and the inner state.

    Example:
        >>> import torch
        >>> from theorylab.learning.optimizers.sgd import sgd
        >>> optimizer = decayed(sgd, lr=1.0)
        >>> x = {"x": torch.zeros(1, 1)}
        >>> state = optimizer.init(x)
        >>> for _ in range(4):
        ...     x, state = optimizer.update({"x": torch.ones(1, 1)}, state, x)
        >>> round(-x["x"].item(), 4)  # 1 + 1/√2 + 1/√3 + 1/√4
        2.7845
    """

    def init(params: Params) -> Any:
        first = next(iter(params.values()))
        return {"time": first.new_zeros(first.shape[:1]), "inner": make(lr).init(params)}

    def update(grads: Params, state: Any, params: Params) -> tuple[Params, Any]:
        time = state["time"] + 1
        params, inner = make(lr * time**-power).update(grads, state["inner"], params)
        return params, {"time": time, "inner": inner}

    return Optimizer(f"decayed {make(lr).name}", init, update)
