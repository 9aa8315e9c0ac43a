"""RMSProp: the gradient divided by a running root mean square of itself."""

from __future__ import annotations

from typing import Any

import torch

from theorylab.core.ranges import below_one, nonnegative
from theorylab.learning.optimizers.base import Hyper, Optimizer, Params, add_scaled, selectable, spread


@selectable
def rmsprop(
    lr: Hyper, *, alpha: Hyper = 0.99, eps: Hyper = 1e-8, weight_decay: Hyper = 0.0, momentum: Hyper = 0.0, centered: bool = False
) -> Optimizer:
    r"""RMSProp without bias correction; equal to `torch.optim.RMSprop` with the same arguments.

    .. math:: v \leftarrow \alpha v + (1-\alpha) g^2, \qquad b \leftarrow \mu b + \frac{g}{\sqrt v + \epsilon}, \qquad
        \theta \leftarrow \theta - \eta b

    Args:
        lr: Step size η.
        alpha: α in [0, 1). The average starts at zero and is not corrected, so that first steps have length η/√(1−α).
        eps: ε, added outside the root.
        weight_decay: λ; λθ is added to the gradient (coupled).
        momentum: μ in [0, 1), of the steps, not of the gradients.
        centered: Divide by the standard deviation instead: from v subtract the square of a running mean of the gradient.

    Raises:
        ValueError: a hyper-parameter out of its range.

    Example:
        >>> optimizer = rmsprop(lr=torch.tensor([0.1, 0.5]), alpha=0.75)
        >>> x = {"x": torch.ones(2, 3)}
        >>> new, _ = optimizer.update({"x": torch.full((2, 3), 7.0)}, optimizer.init(x), x)
        >>> [round(v, 4) for v in new["x"][:, 0].tolist()]  # η/√(1 − α) = 2η
        [0.8, 0.0]

    Source: Tieleman and Hinton 2012, Lecture 6.5 of Neural Networks for Machine Learning; centered: Graves 2013, arXiv:1308.0850,
    Equations 38-45.
    """
    nonnegative(lr=lr, eps=eps, weight_decay=weight_decay)
    below_one(alpha=alpha, momentum=momentum)
    decays = not (isinstance(weight_decay, float | int) and weight_decay == 0)
    plain = not isinstance(momentum, torch.Tensor) and momentum == 0

    def init(params: Params) -> Any:
        names = ["square", *(["mean"] if centered else []), *([] if plain else ["buffer"])]
        return {name: {k: torch.zeros_like(p) for k, p in params.items()} for name in names}

    def update(grads: Params, state: Any, params: Params) -> tuple[Params, Any]:
        new: Params = {}
        out: dict[str, Params] = {name: {} for name in state}
        for k, p in params.items():
            g, a = grads[k], spread(alpha, p)
            if decays:
                g = add_scaled(g, weight_decay, p)
            out["square"][k] = v = a * state["square"][k] + (1 - a) * g.square()
            if centered:
                out["mean"][k] = mean = a * state["mean"][k] + (1 - a) * g
                v = v - mean.square()
            move = g / (v.sqrt() + spread(eps, p))
            if not plain:
                out["buffer"][k] = move = add_scaled(move, momentum, state["buffer"][k])
            new[k] = add_scaled(p, -lr, move)
        return new, out

    return Optimizer("rmsprop", init, update)
