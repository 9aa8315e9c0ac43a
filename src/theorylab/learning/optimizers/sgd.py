"""Gradient descent, with heavy-ball or Nesterov momentum and weight decay, coupled or not."""

from __future__ import annotations

from typing import Any

from theorylab.core.ranges import below_one, nonnegative
from theorylab.learning.optimizers.base import Hyper, Optimizer, Params, add_scaled, selectable, spread


@selectable
def sgd(lr: Hyper, *, momentum: Hyper = 0.0, nesterov: bool = False, weight_decay: Hyper = 0.0, decoupled: bool = False) -> Optimizer:
    r"""Stochastic gradient descent; equal to `torch.optim.SGD` with the same arguments, but for ``decoupled``, which that does not have.

    .. math:: v \leftarrow \gamma v + (g + \lambda\theta), \qquad \theta \leftarrow \theta - \eta v
        \quad\text{(Nesterov: } \theta \leftarrow \theta - \eta\,(g + \lambda\theta + \gamma v)\text{)}

    Args:
        lr: Step size η.
        momentum: γ in [0, 1); the buffer starts at zero.
        nesterov: Step along the look-ahead direction, with momentum alone.
        weight_decay: λ; λθ is added to the gradient (coupled), as written, or the parameter is θ ← (1 − ηλ)θ before the step (decoupled).
        decoupled: Which of the two. Without momentum both are the same step.

    Raises:
        ValueError: a hyper-parameter out of its range, or ``nesterov`` without momentum.

    Example:
        >>> import torch
        >>> gd = sgd(lr=torch.tensor([0.1, 0.5]))
        >>> x = {"x": torch.ones(2, 3)}
        >>> new, _ = gd.update({"x": torch.ones(2, 3)}, gd.init(x), x)
        >>> [round(v, 1) for v in new["x"][:, 0].tolist()]
        [0.9, 0.5]

    Source: Polyak 1964, doi:10.1016/0041-5553(64)90137-5; Sutskever et al. 2013, Section 2, for this form of Nesterov's method; decoupled:
    Loshchilov and Hutter 2019, Algorithm 1 (SGDW), arXiv:1711.05101, with the schedule multiplier absorbed: the decay of a step is ηλ.
    """
    nonnegative(lr=lr, weight_decay=weight_decay)
    below_one(momentum=momentum)
    plain = not hasattr(momentum, "shape") and momentum == 0
    if nesterov and plain:
        raise ValueError(f"nesterov needs momentum, got momentum={momentum}: without it there is nothing to look ahead by.")
    decays = not (isinstance(weight_decay, float | int) and weight_decay == 0)

    def init(params: Params) -> Any:
        return {} if plain else {k: p.new_zeros(p.shape) for k, p in params.items()}

    def update(grads: Params, state: Any, params: Params) -> tuple[Params, Any]:
        new, buffers = {}, {}
        for k, p in params.items():
            g = grads[k]
            if decays and not decoupled:
                g = add_scaled(g, weight_decay, p)
            if not plain:
                buffers[k] = v = add_scaled(g, momentum, state[k])
                g = add_scaled(g, momentum, v) if nesterov else v
            base = p * (1 - spread(lr, p) * spread(weight_decay, p)) if decays and decoupled else p
            new[k] = add_scaled(base, -lr, g)
        return new, buffers

    return Optimizer("sgd", init, update)
