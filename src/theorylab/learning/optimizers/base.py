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

    ``probe(grads, state, params) -> params`` says where the gradient of a step is taken instead: from the gradient at the parameters, the
    point at which it is taken again, on the same rows. ``update`` then sees that gradient, and the parameters themselves.
    """

    name: str
    init: Callable[[Params], Any]
    update: Callable[[Params, Any, Params], tuple[Params, Any]]
    select: Callable[[slice], Optimizer] | None = None
    probe: Callable[[Params, Any, Params], Params] | None = None


def take(optimizer: Optimizer, gradient: Callable[[Params], Params], state: Any, params: Params) -> tuple[Params, Any]:
    """One step on a function that is known by its gradient: new parameters and state."""
    grads = gradient(params)
    if optimizer.probe is not None:
        grads = gradient(optimizer.probe(grads, state, params))
    return optimizer.update(grads, state, params)


def selectable(factory: Callable[Arguments, Optimizer]) -> Callable[Arguments, Optimizer]:
    """Give the optimizers of a factory their `Optimizer.select`: the factory again, its (replica,) arguments indexed.

    One that is made of another optimizer which has none gets none.
    """

    @wraps(factory)
    def make(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Optimizer:
        named = sorted(kwargs.items())  # written in another order they make the same optimizer, and one fingerprint

        def select(index: slice) -> Optimizer:
            return make(*(pick(a, index) for a in args), **{k: pick(v, index) for k, v in named})  # type: ignore[arg-type]

        parts = [a for a in (*args, *kwargs.values()) if isinstance(a, Optimizer)]
        return replace(factory(*args, **kwargs), select=None if any(a.select is None for a in parts) else select)

    return make


def pick(argument: Any, index: slice) -> Any:
    """A (replica,) argument, alone or in a tuple, for some of the replicas; anything else as it is."""
    if isinstance(argument, tuple):
        return tuple(pick(a, index) for a in argument)
    if isinstance(argument, Optimizer) and argument.select is not None:
        return argument.select(index)
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


def counting_type(p: Tensor) -> torch.dtype:
    """Of powers and counts beside a parameter: at least single precision, for in half of it 0.999 is one, and 256 + 1 is 256."""
    return torch.promote_types(p.dtype, torch.float32)


def replica_ones(p: Tensor) -> Tensor:
    """A one for each replica of a tensor (replica, ...), to multiply it by: where powers and counts begin. Of the `counting_type`."""
    return p.new_ones(p.shape[:1] + (1,) * (p.ndim - 1), dtype=counting_type(p))


def unit(grads: Params) -> Params:
    """Each replica's gradient over its ℓ2 norm, taken over all its parameters; zero where the gradient is. Tensors (replica, ...)."""
    largest = torch.stack([g.abs().reshape(len(g), -1).amax(1) for g in grads.values() if g.numel()]).amax(0)
    # over the largest entry first: the squares of tiny ones are zero, and of huge ones infinite
    scale = torch.where(largest > 0, largest, torch.ones_like(largest))
    scaled = {k: g / spread(scale, g) for k, g in grads.items()}
    norm = torch.stack([g.square().reshape(len(g), -1).sum(1) for g in scaled.values()]).sum(0).sqrt()
    norm = torch.where(norm > 0, norm, torch.ones_like(norm))
    return {k: g / spread(norm, g) for k, g in scaled.items()}
