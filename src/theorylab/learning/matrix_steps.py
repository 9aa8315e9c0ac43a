"""What optimizers for matrices share: which parameters are matrices, and Adam for those that are not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from theorylab.learning.optimizers.adam import adam
from theorylab.learning.optimizers.base import Hyper, Optimizer, Params

Step = Callable[[Tensor, Any, Tensor], tuple[Tensor, Any]]
"""(gradient, state, parameter), the tensors (replica, m, n) → (new parameter, new state) of one parameter."""


def for_matrices(name: str, lr: Hyper, start: Callable[[Tensor], Any], step: Step) -> Optimizer:
    """An optimizer that takes ``step`` on matrices, and Adam's with the same ``lr`` on vectors and scalars, which have no spectrum.

    A parameter (replica, m, ...) with at least two axes of its own is a matrix, its axes after the first taken together; so every tensor
    needs the leading replica axis, even of one. ``start`` makes the state of a matrix (replica, m, n).
    """
    other = adam(lr)

    def split(params: Params) -> tuple[Params, Params]:
        matrices = {k: p.flatten(2) for k, p in params.items() if p.ndim > 2}
        return matrices, {k: p for k, p in params.items() if p.ndim <= 2}

    def init(params: Params) -> Any:
        matrices, vectors = split(params)
        return {"matrices": {k: start(p) for k, p in matrices.items()}, "vectors": other.init(vectors)}

    def update(grads: Params, state: Any, params: Params) -> tuple[Params, Any]:
        matrices, vectors = split(params)
        new, rest = other.update({k: grads[k] for k in vectors}, state["vectors"], vectors)
        moved, states = {}, {}
        for k, p in matrices.items():
            moved[k], states[k] = step(grads[k].flatten(2), state["matrices"][k], p)
        every = new | {k: p.view_as(params[k]) for k, p in moved.items()}
        return {k: every[k] for k in params}, {"matrices": states, "vectors": rest}

    return Optimizer(name, init, update)
