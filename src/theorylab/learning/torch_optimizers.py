"""An optimizer of torch that a caller makes for the parameters of a network that is trained for a measurement."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch

MakeOptimizer = Callable[[Iterable[torch.nn.Parameter]], torch.optim.Optimizer]


def check_make_optimizer(optimizer: Any) -> None:
    """Refuse what makes no optimizer, such as one that is made already.

    Raises:
        TypeError: it cannot be called.
    """
    if not callable(optimizer):
        raise TypeError(
            f"optimizer must be a function of parameters, as lambda p: torch.optim.SGD(p, lr=0.1), got {type(optimizer).__name__}: a copy "
            "of the model is trained, whose parameters the optimizer must hold."
        )


def made_optimizer(optimizer: MakeOptimizer, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """What ``optimizer`` makes for ``parameters``: it must step by itself, once it has a gradient.

    Raises:
        TypeError: no optimizer of torch.
        ValueError: one that evaluates the loss itself (LBFGS).
    """
    made = optimizer(list(parameters))
    if not isinstance(made, torch.optim.Optimizer):
        raise TypeError(f"optimizer(parameters) must return a torch.optim.Optimizer, got {type(made).__name__}.")
    closure = inspect.signature(made.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ValueError(
            f"optimizer must step from a gradient alone, got {type(made).__name__}, which evaluates the loss at points of its own "
            "(step(closure)): what is measured depends on the size of a step."
        )
    return made
