"""Stochastic variance amplified gradient: small steps whose noise is that of SGD with larger ones."""

from __future__ import annotations

from typing import Any

import torch

from theorylab.core.arguments import given
from theorylab.core.ranges import nonnegative
from theorylab.learning.optimizers.base import Hyper, Optimizer, Params, selectable, spread


@selectable
def svag(lr: Hyper, *, amplification: Hyper = 1.0) -> Optimizer:
    r"""SVAG: steps η/l along a combination of two minibatch gradients at one point, whose variance is l times that of either.

    .. math:: \theta \leftarrow \theta - \frac{\eta}{l}\Bigl(\frac{1 + \sqrt{2l-1}}2\, g_1 + \frac{1 - \sqrt{2l-1}}2\, g_2\Bigr)

    The weights sum to one and their squares to l. So l steps move by η times the gradient, as one step of SGD does, with the same variance:
    as l grows the steps approach the stochastic differential equation that is put in the place of SGD, and whether training changes
    on the way tells whether the equation describes it. At l = 1 this is SGD on every other minibatch.

    The two gradients come one after the other: the first update after a step only holds its gradient, the second takes the step. A run of
    T steps of SGD corresponds to 2lT updates.

    Args:
        lr: Step size η of the SGD that is imitated.
        amplification: l ≥ 1, a number or one a replica.

    Raises:
        ValueError: ``amplification`` below 1, ``lr`` negative, or either not finite.

    Example:
        >>> method, x = svag(lr=1.0, amplification=5.0), {"x": torch.zeros(1)}
        >>> x, state = method.update({"x": torch.tensor([1.0])}, method.init(x), x)
        >>> held = x["x"].item()
        >>> x, state = method.update({"x": torch.tensor([3.0])}, state, x)  # weights 2 and −1, step 1/5
        >>> held, round(x["x"].item(), 4)
        (0.0, 0.2)

    Source: Li, Malladi and Arora 2021, arXiv:2102.12470, Equation 5 (the algorithm) and Theorem 4.3 (its limit).
    """
    least = given(amplification).min()
    if not least >= 1:
        raise ValueError(f"amplification must be at least 1, where SVAG is SGD, got {float(least):g}.")
    nonnegative(lr=lr, amplification=amplification)
    root = (2 * amplification - 1) ** 0.5

    def init(params: Params) -> Any:
        # which of the two gradients comes next, one a parameter, so that every state tensor has the parameter's replica axis
        second = {k: p.new_zeros(p.shape[:1] + (1,) * (p.ndim - 1), dtype=torch.bool) for k, p in params.items()}
        return {"held": {k: torch.zeros_like(p) for k, p in params.items()}, "second": second}

    def update(grads: Params, state: Any, params: Params) -> tuple[Params, Any]:
        new = {}
        for k, p in params.items():
            amplified = (1 + spread(root, p)) / 2 * state["held"][k] + (1 - spread(root, p)) / 2 * grads[k]
            new[k] = torch.where(state["second"][k], p - spread(lr, p) / spread(amplification, p) * amplified, p)
        return new, {"held": dict(grads), "second": {k: ~s for k, s in state["second"].items()}}

    return Optimizer("svag", init, update)
