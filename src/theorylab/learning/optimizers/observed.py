"""An optimizer that also keeps, in its state, how its last step moved each tensor: norms and the angle between before and after."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from theorylab.learning.optimizers.base import Optimizer, Params


def observed(optimizer: Optimizer) -> Optimizer:
    r"""The same steps as ``optimizer``, whose state moves to ``state["optimizer"]`` to make place for observations of the last step.

    ``state["norm"]``, ``state["gradient"]``, ``state["after"]`` and ``state["angle"]`` hold for each tensor, by its name and with shape
    (replica,), the norm :math:`\|\theta_t\|`, the gradient's :math:`\|g_t\|` on the batch of that step, :math:`\|\theta_{t+1}\|`, and the
    angle [radians] from θ_t to θ_{t+1}. They are NaN before the first step.

    Args:
        optimizer: Any; every tensor must have the leading replica axis.

    Example:
        >>> from theorylab.learning.optimizers.sgd import sgd
        >>> gd, x = observed(sgd(lr=1.0)), {"x": torch.tensor([[1.0, 0.0]])}
        >>> x, state = gd.update({"x": torch.tensor([[0.0, 1.0]])}, gd.init(x), x)
        >>> [round(float(state[k]["x"]), 4) for k in ("norm", "gradient", "after", "angle")]
        [1.0, 1.0, 1.4142, 0.7854]
    """

    def init(params: Params) -> Any:
        unknown = {k: p.new_full(p.shape[:1], torch.nan) for k, p in params.items()}
        return {"optimizer": optimizer.init(params), "norm": unknown, "gradient": unknown, "after": unknown, "angle": unknown}

    def update(grads: Params, state: Any, params: Params) -> tuple[Params, Any]:
        new, inner = optimizer.update(grads, state["optimizer"], params)
        norm, after = _norms(params), _norms(new)
        angle = {k: _angle(p, norm[k], new[k], after[k]) for k, p in params.items()}
        return new, {"optimizer": inner, "norm": norm, "gradient": _norms(grads), "after": after, "angle": angle}

    return Optimizer(f"observed({optimizer.name})", init, update)


def _norms(tensors: Params) -> Params:
    return {k: torch.linalg.vector_norm(t.flatten(1), dim=1) for k, t in tensors.items()}


def _angle(a: Tensor, norm_a: Tensor, b: Tensor, norm_b: Tensor) -> Tensor:
    # From the chord of the unit vectors: the cosine of a small angle is 1 up to rounding.
    chord = a.flatten(1) / norm_a[:, None] - b.flatten(1) / norm_b[:, None]
    return 2 * torch.asin((torch.linalg.vector_norm(chord, dim=1) / 2).clamp(max=1))
