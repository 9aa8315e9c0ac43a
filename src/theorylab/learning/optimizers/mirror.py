"""Mirror descent with the entropy as its potential: multiplicative steps instead of additive ones."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from theorylab.core.ranges import nonnegative
from theorylab.learning.optimizers.base import Hyper, Optimizer, Params, selectable, spread


@selectable
def exponentiated_gradient(lr: Hyper, *, normalize: bool = False) -> Optimizer:
    r"""Exponentiated gradient: :math:`\theta \leftarrow \theta\, e^{-\eta g}`, entry by entry.

    It is mirror descent with the potential Σ θ ln θ − θ. No entry changes its sign, and one that is zero stays zero. With ``normalize``
    the last axis is divided by its sum after every step: mirror descent on the probability simplex, which with linear losses is Hedge.

    Args:
        lr: Step size η.
        normalize: Keep the last axis of every tensor a probability vector; it must start as one.

    Raises:
        ValueError: ``lr`` is negative or not finite.

    Example:
        >>> import torch
        >>> hedge, half = exponentiated_gradient(lr=1.0, normalize=True), {"w": torch.tensor([0.5, 0.5])}
        >>> w, _ = hedge.update({"w": torch.tensor([0.0, 1.0])}, {}, half)
        >>> bool(torch.isclose(w["w"][0] / w["w"][1], torch.tensor(1.0).exp()))
        True

    Source: Kivinen and Warmuth 1997, doi:10.1006/inco.1996.2612, Section 3 (the algorithms EGU, and EG where normalized).
    """
    nonnegative(lr=lr)

    def step(p: Tensor, g: Tensor) -> Tensor:
        exponent = -spread(lr, g) * g
        return (p.log() + exponent).softmax(-1) if normalize else p * exponent.exp()  # in logarithms no step is too large

    def update(grads: Params, state: Any, params: Params) -> tuple[Params, Any]:
        return {k: step(p, grads[k]) for k, p in params.items()}, state

    return Optimizer("exponentiated_gradient", lambda params: {}, update)
