"""Checks of arguments that several closed forms share: each names the argument, what it must be, and what came."""

from __future__ import annotations

import math


def positive(**values: float) -> None:
    """Refuse what is not a positive, finite number; the argument's name is the keyword.

    Raises:
        ValueError: naming the first that is not.
    """
    for name, value in values.items():
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name} must be positive and finite, got {value}.")


def nonnegative(**values: float) -> None:
    """Refuse what is not a finite number of at least 0; the argument's name is the keyword.

    Raises:
        ValueError: naming the first that is not.
    """
    for name, value in values.items():
        if not (value >= 0 and math.isfinite(value)):
            raise ValueError(f"{name} must be at least 0 and finite, got {value}.")


def below_one(**values: float) -> None:
    """Refuse what does not lie in [0, 1), as a coefficient of momentum must; the argument's name is the keyword.

    Raises:
        ValueError: naming the first that does not.
    """
    for name, value in values.items():
        if not 0 <= value < 1:
            raise ValueError(f"{name} must lie in [0, 1), got {value}.")
