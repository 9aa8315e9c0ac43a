"""Normalized steepest descent: a step of fixed length, downhill as fast as a norm allows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from theorylab.core.ranges import nonnegative
from theorylab.learning.optimizers.base import Hyper, Optimizer, Params, selectable, spread, unit


@selectable
def normalized_gd(lr: Hyper) -> Optimizer:
    r"""Steepest descent in the ℓ2 norm: θ ← θ − η g/‖g‖₂, the norm taken over all parameters of a replica.

    Args:
        lr: Length η of the step. A replica whose gradient is zero stays where it is.

    Example:
        >>> gd = normalized_gd(lr=1.0)
        >>> gd.update({"x": torch.tensor([[3.0, 4.0]])}, {}, {"x": torch.zeros(1, 2)})[0]["x"].tolist()
        [[-0.6000000238418579, -0.800000011920929]]

    Source: Gunasekar et al. 2018, Section 2 (steepest descent), arXiv:1802.08246, normalized as in Nacson et al. 2019, arXiv:1803.01905.
    """

    return _steepest("normalized_gd", lr, unit)


@selectable
def sign_descent(lr: Hyper) -> Optimizer:
    r"""Steepest descent in the ℓ∞ norm: θ ← θ − η sign(g); the limit of Adam without memory and without ε.

    Args:
        lr: Length η of the step, in every coordinate.

    Example:
        >>> sign_descent(lr=0.5).update({"x": torch.tensor([[3.0, -4.0]])}, {}, {"x": torch.zeros(1, 2)})[0]["x"].tolist()
        [[-0.5, 0.5]]

    Source: Gunasekar et al. 2018, Section 2 (steepest descent), arXiv:1802.08246.
    """
    return _steepest("sign_descent", lr, lambda grads: {k: g.sign() for k, g in grads.items()})


@selectable
def greedy_coordinate(lr: Hyper) -> Optimizer:
    r"""Steepest descent in the ℓ1 norm: a step η in the one coordinate whose gradient is largest, over all parameters of a replica.

    Args:
        lr: Length η of the step. Of equal coordinates the first moves.

    Example:
        >>> greedy_coordinate(lr=0.5).update({"x": torch.tensor([[3.0, -4.0]])}, {}, {"x": torch.zeros(1, 2)})[0]["x"].tolist()
        [[0.0, 0.5]]

    Source: Gunasekar et al. 2018, Section 2 (steepest descent; coordinate descent), arXiv:1802.08246.
    """

    def direction(grads: Params) -> Params:
        flat = torch.cat([g.reshape(len(g), -1) for g in grads.values()], dim=1)  # (replica, p)
        largest = flat.abs().argmax(1, keepdim=True)
        chosen = torch.zeros_like(flat).scatter_(1, largest, flat.gather(1, largest).sign())
        parts = chosen.split([g[0].numel() for g in grads.values()], dim=1)
        return {k: part.view_as(g) for (k, g), part in zip(grads.items(), parts, strict=True)}

    return _steepest("greedy_coordinate", lr, direction)


def _steepest(name: str, lr: Hyper, direction: Callable[[Params], Params]) -> Optimizer:
    """The step along a direction of unit norm; the norm is a replica's, so every tensor needs the leading replica axis, even of one."""
    nonnegative(lr=lr)

    def update(grads: Params, state: Any, params: Params) -> tuple[Params, Any]:
        unit: dict[str, Tensor] = direction(grads)
        return {k: p - spread(lr, p) * unit[k] for k, p in params.items()}, state

    return Optimizer(name, lambda params: {}, update)
