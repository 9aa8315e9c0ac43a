"""Gradient descent, with heavy-ball or Nesterov momentum and coupled weight decay."""

from __future__ import annotations

from typing import Any

from theorylab.learning.optimizers.base import Hyper, Optimizer, Params, add_scaled, selectable


@selectable
def sgd(lr: Hyper, *, momentum: Hyper = 0.0, nesterov: bool = False, weight_decay: Hyper = 0.0) -> Optimizer:
    r"""Stochastic gradient descent; equal to `torch.optim.SGD` with the same arguments.

    .. math:: v \leftarrow \gamma v + (g + \lambda\theta), \qquad \theta \leftarrow \theta - \eta v
        \quad\text{(Nesterov: } \theta \leftarrow \theta - \eta\,(g + \lambda\theta + \gamma v)\text{)}

    Args:
        lr: Step size η.
        momentum: γ in [0, 1); the buffer starts at zero.
        nesterov: Step along the look-ahead direction.
        weight_decay: λ, added to the gradient (coupled).

    Example:
        >>> import torch
        >>> gd = sgd(lr=torch.tensor([0.1, 0.5]))
        >>> x = {"x": torch.ones(2, 3)}
        >>> new, _ = gd.update({"x": torch.ones(2, 3)}, gd.init(x), x)
        >>> [round(v, 1) for v in new["x"][:, 0].tolist()]
        [0.9, 0.5]

    Source: Polyak 1964, doi:10.1016/0041-5553(64)90137-5; Sutskever et al. 2013, Section 2, for this form of Nesterov's method.
    """
    plain = not hasattr(momentum, "shape") and momentum == 0

    def init(params: Params) -> Any:
        return {} if plain else {k: p.new_zeros(p.shape) for k, p in params.items()}

    def update(grads: Params, state: Any, params: Params) -> tuple[Params, Any]:
        new, buffers = {}, {}
        for k, p in params.items():
            g = grads[k]
            if not (isinstance(weight_decay, float | int) and weight_decay == 0):
                g = add_scaled(g, weight_decay, p)
            if not plain:
                buffers[k] = v = add_scaled(g, momentum, state[k])
                g = add_scaled(g, momentum, v) if nesterov else v
            new[k] = add_scaled(p, -lr, g)
        return new, buffers

    return Optimizer("sgd", init, update)
