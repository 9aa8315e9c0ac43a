"""An optimizer that also keeps, in its state, what its steps did: the last observation of every quantity, and its sum over all steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from theorylab.learning.optimizers.base import Optimizer, Params

Observe = Callable[[Params, Params, Params], dict[str, Tensor]]
"""``observe(grads, before, after)``: gradients on the batch of a step, parameters before and after it → one number a replica (replica,)."""


def step_geometry(grads: Params, before: Params, after: Params) -> dict[str, Tensor]:
    r"""How a step moved each tensor: its norms and the angle it turned by.

    For a tensor called ``name``: ``"norm name"`` :math:`\|\theta_t\|`, ``"gradient name"`` :math:`\|g_t\|`, ``"after name"``
    :math:`\|\theta_{t+1}\|`, and ``"angle name"`` from θ_t to θ_{t+1} [radians].
    """
    out = {}
    for name, p in before.items():
        norm, after_norm = _norm(p), _norm(after[name])
        # From the chord between the unit vectors: the cosine of a small angle is 1 up to rounding.
        chord = _norm(_rows(p) / norm[:, None] - _rows(after[name]) / after_norm[:, None])
        angle = 2 * torch.asin((chord / 2).clamp(max=1))
        out |= {f"norm {name}": norm, f"gradient {name}": _norm(grads[name]), f"after {name}": after_norm, f"angle {name}": angle}
    return out


def observed(optimizer: Optimizer, observe: Observe = step_geometry) -> Optimizer:
    """The same steps as ``optimizer``, with ``observe`` called at each.

    The state is ``{"optimizer": the inner state, "last": of the last step, "total": summed over all steps}``; before the first step
    ``last`` is NaN and ``total`` 0. A mean over some steps is a difference of totals, without a halt at each of them.

    Args:
        optimizer: Any; every tensor must have the leading replica axis, as in a `Population`.
        observe: From gradients, parameters before and parameters after the step to numbers (replica,) by name.

    Example:
        >>> from theorylab.learning.optimizers.sgd import sgd
        >>> gd, x = observed(sgd(lr=1.0)), {"x": torch.tensor([[1.0, 0.0]])}
        >>> x, state = gd.update({"x": torch.tensor([[0.0, 1.0]])}, gd.init(x), x)
        >>> {name: round(float(value), 4) for name, value in state["last"].items()}
        {'norm x': 1.0, 'gradient x': 1.0, 'after x': 1.4142, 'angle x': 0.7854}
    """

    def init(params: Params) -> Any:
        names = observe(params, params, params)
        last = {k: torch.full_like(v, torch.nan) for k, v in names.items()}
        return {"optimizer": optimizer.init(params), "last": last, "total": {k: torch.zeros_like(v) for k, v in names.items()}}

    def update(grads: Params, state: Any, params: Params) -> tuple[Params, Any]:
        new, inner = optimizer.update(grads, state["optimizer"], params)
        last = observe(grads, params, new)
        return new, {"optimizer": inner, "last": last, "total": {k: state["total"][k] + v for k, v in last.items()}}

    select, inner_probe = optimizer.select, optimizer.probe
    return Optimizer(
        f"observed({optimizer.name})",
        init,
        update,
        select=None if select is None else lambda index: observed(select(index), observe),
        probe=None if inner_probe is None else lambda grads, state, params: inner_probe(grads, state["optimizer"], params),
    )


def _norm(tensor: Tensor) -> Tensor:
    return torch.linalg.vector_norm(_rows(tensor), dim=1)


def _rows(tensor: Tensor) -> Tensor:
    return tensor.reshape(len(tensor), -1)  # a scalar parameter is (replica,), which `flatten(1)` refuses
