"""Gradient descent whose step size grows or shrinks by a constant factor a step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from theorylab.core.ranges import below_one, nonnegative
from theorylab.learning.optimizers.base import Hyper, Optimizer, Params, counting_type, selectable, spread


@selectable
def exponential_sgd(lr: Hyper, *, growth: Hyper, momentum: Hyper = 0.0, buffer: Hyper = 0.0) -> Optimizer:
    r"""Heavy-ball gradient descent with step size :math:`\eta_t = \eta\,\rho^t`, and a momentum buffer that starts parallel to the weights.

    .. math:: v_{t+1} = \gamma v_t + g_t, \qquad \theta_{t+1} = \theta_t - \eta\,\rho^t v_{t+1}, \qquad v_0 = b\,\theta_0

    Without a buffer these are the steps of ``scheduled(lambda rate: sgd(rate, momentum=γ), lr, exponential_decay(ρ))`` of
    `theorylab.learning.schedule`, which cannot start one parallel to the weights.

    Args:
        lr: Step size η of the first step.
        growth: ρ ≥ 0, the factor from one step to the next; at 1 this is `sgd`.
        momentum: γ in [0, 1).
        buffer: b, the initial buffer in units of the initial parameters.

    Raises:
        ValueError: a hyper-parameter out of its range.

    Example:
        >>> import torch
        >>> gd, x = exponential_sgd(lr=1.0, growth=2.0), {"x": torch.zeros(1)}
        >>> state = gd.init(x)
        >>> for _ in range(3):
        ...     x, state = gd.update({"x": -torch.ones(1)}, state, x)
        >>> x["x"]
        tensor([7.])

    Source: Li and Arora 2020, arXiv:1910.07454, Section 2, where this schedule replaces weight decay.
    """
    nonnegative(lr=lr, growth=growth)
    below_one(momentum=momentum)

    def init(params: Params) -> Any:
        like = next(iter(params.values()))
        rate = _as(lr, like) * torch.ones_like(_as(growth, like))  # () or (replica,)
        return {"rate": rate, "buffer": {k: spread(buffer, p) * p for k, p in params.items()}}

    def update(grads: Params, state: Any, params: Params) -> tuple[Params, Any]:
        buffers = {k: spread(momentum, p) * state["buffer"][k] + grads[k] for k, p in params.items()}
        new = {k: p - spread(state["rate"], p) * buffers[k] for k, p in params.items()}
        return new, {"rate": state["rate"] * _as(growth, state["rate"]), "buffer": buffers}

    return Optimizer("exponential_sgd", init, update)


def _as(hyper: Hyper, like: Tensor) -> Tensor:
    return torch.as_tensor(hyper, dtype=counting_type(like), device=like.device)  # at once: a number would pass through float32
