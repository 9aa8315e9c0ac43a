"""What an optimizer is: a pair of pure functions over a dictionary of parameters, with per-replica hyper-parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any, ParamSpec

import torch
from torch import Tensor

Params = dict[str, Tensor]
Hyper = float | Tensor
"""A hyper-parameter: one number for all replicas, or a tensor (replica,) with one each."""
Arguments = ParamSpec("Arguments")


@dataclass(frozen=True)
class Optimizer:
    """``init(params) -> state`` and ``update(grads, state, params) -> (params, state)``.

    Both are pure: they return new tensors, and the state is a nested dictionary of tensors. Every tensor has a leading replica axis, or
    none has; hyper-parameters of shape (replica,) need the former.

    ``select(index)`` is the same optimizer for some of the replicas only, its (replica,) hyper-parameters indexed; `selectable` adds it.
    Without it a population can only update all replicas together, which a loop over replicas pays for.
    """

    name: str
    init: Callable[[Params], Any]
    update: Callable[[Params, Any, Params], tuple[Params, Any]]
    select: Callable[[slice], Optimizer] | None = None


def selectable(factory: Callable[Arguments, Optimizer]) -> Callable[Arguments, Optimizer]:
    """Give the optimizers of a factory their `Optimizer.select`: the factory again, its (replica,) arguments indexed."""

    @wraps(factory)
    def make(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Optimizer:
        def select(index: slice) -> Optimizer:
            return make(*(pick(a, index) for a in args), **{k: pick(v, index) for k, v in kwargs.items()})  # type: ignore[arg-type]

        return replace(factory(*args, **kwargs), select=select)

    return make


def pick(argument: Any, index: slice) -> Any:
    """A (replica,) argument, alone or in a tuple, for some of the replicas; anything else as it is."""
    if isinstance(argument, tuple):
        return tuple(pick(a, index) for a in argument)
    return argument[index] if isinstance(argument, Tensor) and argument.ndim == 1 else argument


def spread(hyper: Hyper, like: Tensor) -> Hyper:
    """A (replica,) hyper-parameter shaped to multiply a tensor (replica, ...); a number stays as it is.

    Raises:
        ValueError: the hyper-parameter is not (replica,) for this tensor.
    """
    if not isinstance(hyper, Tensor) or hyper.ndim == 0:
        return hyper
    if hyper.ndim != 1 or like.ndim == 0 or hyper.shape[0] != like.shape[0]:
        raise ValueError(f"a hyper-parameter must be a number or one a replica, got shape {tuple(hyper.shape)} for {tuple(like.shape)}.")
    return hyper.to(like).reshape(-1, *[1] * (like.ndim - 1))


def add_scaled(tensor: Tensor, hyper: Hyper, other: Tensor) -> Tensor:
    """``tensor + hyper·other`` in one pass, ``hyper`` a number or (replica,).

    Raises:
        ValueError: the hyper-parameter is not (replica,) for these tensors.
    """
    if isinstance(hyper, Tensor):
        return torch.addcmul(tensor, spread(hyper, other).to(other), other)  # type: ignore[union-attr]
    return torch.add(tensor, other, alpha=hyper)
