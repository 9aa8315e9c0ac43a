"""Nesterov's accelerated gradient method with its growing momentum, for smooth convex functions."""

from __future__ import annotations

from typing import Any

from theorylab.core.ranges import nonnegative
from theorylab.learning.optimizers.base import Hyper, Optimizer, Params, replica_ones, selectable, spread


@selectable
def accelerated(lr: Hyper) -> Optimizer:
    r"""Accelerated gradient method for convex functions: the momentum grows towards 1 and needs no tuning.

    .. math:: x_{t+1} = y_t - \eta\nabla f(y_t), \qquad y_{t+1} = x_{t+1} + \frac{\theta_t - 1}{\theta_{t+1}}(x_{t+1} - x_t)

    with θ₀ = 1, θ_{t+1} = (1 + √(1 + 4θ_t²))/2. The parameters are the points y, where gradients are taken; x lives in the state. For
    fixed momentum use `sgd` with ``nesterov=True``.

    Args:
        lr: Step size η = 1/L.

    Raises:
        ValueError: ``lr`` is negative or not finite.

    Example:
        >>> import torch
        >>> method = accelerated(lr=0.5)
        >>> y = {"y": torch.ones(1)}
        >>> y, _ = method.update(y, method.init(y), y)  # the first step is gradient descent's
        >>> y["y"].item()
        0.5

    Source: Nesterov 1983 (Soviet Mathematics Doklady 27); in this form Kim and Fessler 2016, arXiv:1406.5468, Algorithm FGM1.
    """

    nonnegative(lr=lr)

    def init(params: Params) -> Any:
        # one θ a parameter, so that every state tensor has the parameter's replica axis
        return {"x": dict(params), "theta": {k: replica_ones(p) for k, p in params.items()}}

    def update(grads: Params, state: Any, params: Params) -> tuple[Params, Any]:
        new: Params = {}
        out: dict[str, Params] = {"x": {}, "theta": {}}
        for k, y in params.items():
            theta = state["theta"][k]
            out["theta"][k] = after = (1 + (1 + 4 * theta**2).sqrt()) / 2
            out["x"][k] = x = y - spread(lr, y) * grads[k]
            new[k] = x + ((theta - 1) / after).to(y.dtype) * (x - state["x"][k])
        return new, out

    return Optimizer("accelerated", init, update)
