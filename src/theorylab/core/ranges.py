"""Checks of numbers that every layer shares: each names the argument, what it must be, and what came."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from numbers import Real
from typing import Any

import numpy as np
from torch import Tensor

Number = float | Tensor | np.ndarray
"""What is checked: one number, or several of which each must pass."""
_checked: ContextVar[bool] = ContextVar("checked", default=True)


def positive(**values: Number) -> None:
    """Refuse what is not a positive, finite number; the argument's name is the keyword.

    Raises:
        ValueError: naming the first that is not.
        TypeError: naming the first that is no number.

    Example:
        >>> positive(lr=0.0)
        Traceback (most recent call last):
        ValueError: lr must be positive and finite, got 0.
    """
    _check(values, "be positive and finite", lambda v: 0 < v < math.inf)


def nonnegative(**values: Number) -> None:
    """Refuse what is not a finite number of at least 0; the argument's name is the keyword.

    Raises:
        ValueError: naming the first that is not.
        TypeError: naming the first that is no number.
    """
    _check(values, "be at least 0 and finite", lambda v: 0 <= v < math.inf)


def below_one(**values: Number) -> None:
    """Refuse what does not lie in [0, 1), as a coefficient of momentum must; the argument's name is the keyword.

    Raises:
        ValueError: naming the first that does not.
        TypeError: naming the first that is no number.
    """
    _check(values, "lie in [0, 1)", lambda v: 0 <= v < 1)


def chance(**values: Number) -> None:
    """Refuse what does not lie in [0, 1], as a probability must; the argument's name is the keyword.

    Raises:
        ValueError: naming the first that does not.
        TypeError: naming the first that is no number.
    """
    _check(values, "lie in [0, 1]", lambda v: 0 <= v <= 1)


def whole(least: int, /, **values: Number) -> None:
    """Refuse what is not a whole number of at least ``least``, as a count must be; the argument's name is the keyword.

    Raises:
        ValueError: naming the first that is not.
        TypeError: naming the first that is no number.

    Example:
        >>> whole(1, steps=2.5)
        Traceback (most recent call last):
        ValueError: steps must be at least 1 and whole, got 2.5.
    """
    what = f"be at least {least} and whole"
    _check(values, what, lambda v: least <= v < math.inf and v == int(v))
    if not _checked.get():
        return
    for name, value in values.items():
        # between the least and the largest
        if isinstance(value, Tensor | np.ndarray) and len(broken := value[value != value // 1]):
            raise ValueError(f"{name} must {what}, got {float(broken[0]):g}.")


def _check(values: dict[str, Number], what: str, holds: Callable[[float], bool]) -> None:
    if not _checked.get():
        return
    for name, value in values.items():
        for v in _ends(name, value):
            if not holds(v):
                raise ValueError(f"{name} must {what}, got {v:g}.")


def _ends(name: str, value: Any) -> tuple[float, ...]:
    """A number, or the least and the largest of an array, which are NaN where any of its numbers is."""
    if isinstance(value, Tensor | np.ndarray):
        if not math.prod(value.shape):
            raise ValueError(f"{name} must hold at least one number, got shape {tuple(value.shape)}.")
        return (float(value.min()), float(value.max()))
    if not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, or a tensor with one a replica where that is allowed, got {value!r}.")
    return (float(value),)


@contextmanager
def unchecked() -> Iterator[None]:
    """Numbers are taken as they are here: the hyper-parameters of a schedule, made anew at every step, were checked before."""
    token = _checked.set(False)
    try:
        yield
    finally:
        _checked.reset(token)
