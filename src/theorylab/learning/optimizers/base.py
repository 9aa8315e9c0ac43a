"""What an optimizer is: a pair of pure functions over a dictionary of parameters, with per-replica hyper-parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Params = dict[str, Tensor]
Hyper = float | Tensor
"""A hyper-parameter: one number for all replicas, or a tensor (replica,) with one each."""


@dataclass(frozen=True)
class Optimizer:
    """``init(params) -> state`` and ``update(grads, state, params) -> (params, state)``.

    Both are pure: they return new tensors, and the state is a nested dictionary of tensors. Every tensor has a leading replica axis, or
    none has; hyper-parameters of shape (replica,) need the former.
    """

    name: str
    init: Callable[[Params], Any]
    update: Callable[[Params, Any, Params], tuple[Params, Any]]


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
