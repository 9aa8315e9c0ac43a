"""The optimized gradient method: the first-order method with the best worst case on smooth convex functions."""

from __future__ import annotations

from typing import Any

import torch

from theorylab.core.ranges import nonnegative, whole
from theorylab.learning.optimizers.base import Hyper, Optimizer, Params, replica_ones, selectable, spread


@selectable
def ogm(lr: Hyper, *, steps: int) -> Optimizer:
    r"""Optimized gradient method for a number of steps that is fixed in advance.

    .. math:: x_{t+1} = y_t - \eta\nabla f(y_t), \qquad
        y_{t+1} = x_{t+1} + \frac{\theta_t - 1}{\theta_{t+1}}(x_{t+1} - x_t) + \frac{\theta_t}{\theta_{t+1}}(x_{t+1} - y_t)

    with θ₀ = 1, θ_{t+1} = (1 + √(1 + 4θ_t²))/2, and 8 in place of 4 in step ``steps``. The parameters are the points y, where gradients
    are taken and to which the guarantee applies; x lives in the state. Steps beyond ``steps`` go on with the 4, without a guarantee.

    Args:
        lr: Step size η = 1/L.
        steps: The step whose result is to be optimal, at least 1.

    Raises:
        ValueError: ``steps`` is no whole number of at least 1, or ``lr`` negative or not finite.

    Example:
        >>> method = ogm(lr=1.0, steps=1)
        >>> y = {"y": torch.ones(1)}
        >>> y, _ = method.update({"y": torch.full((1,), 0.25)}, method.init(y), y)  # θ₁ = 2: the gradient counts 1 + 1/2 times
        >>> y["y"].item()
        0.625

    Source: Kim and Fessler 2016, arXiv:1406.5468, Algorithm OGM1.
    """
    whole(1, steps=steps)  # a fraction would never be reached, and the last factor never come
    nonnegative(lr=lr)

    def init(params: Params) -> Any:
        # one θ and one counter a parameter, so that every state tensor has the parameter's replica axis
        one = {k: replica_ones(p) for k, p in params.items()}
        return {"x": dict(params), "theta": one, "count": dict(one)}

    def update(grads: Params, state: Any, params: Params) -> tuple[Params, Any]:
        new: Params = {}
        out: dict[str, Params] = {"x": {}, "theta": {}, "count": {}}
        for k, y in params.items():
            theta, count = state["theta"][k], state["count"][k]
            factor = torch.where(count == steps, 8.0, 4.0).to(theta)
            after = (1 + (1 + factor * theta**2).sqrt()) / 2
            x = y - spread(lr, y) * grads[k]
            ahead, over = ((theta - 1) / after).to(y.dtype), (theta / after).to(y.dtype)
            new[k] = x + ahead * (x - state["x"][k]) + over * (x - y)
            out["x"][k], out["theta"][k], out["count"][k] = x, after, count + 1
        return new, out

    return Optimizer("ogm", init, update)
