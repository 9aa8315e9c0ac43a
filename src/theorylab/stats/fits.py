"""Fits of simple laws to measured curves."""

from __future__ import annotations

from typing import Any

import numpy as np

from theorylab.core.estimate import as_samples


def power_law(x: Any, y: Any) -> float:
    r"""Exponent a of y = c·x^a by least squares on log-log axes.

    Args:
        x: Positive values, at least two distinct ones.
        y: Positive values, as many.

    Raises:
        ValueError: a value that is not positive and finite, unequal lengths, or a single distinct x.

    Example:
        >>> round(power_law([1, 2, 4], [3, 12, 48]), 12)
        2.0
    """
    x, y = as_samples(x, name="x"), as_samples(y, name="y")
    if x.size != y.size:
        raise ValueError(f"x and y must have one length, got {x.size} and {y.size}.")
    for name, v in (("x", x), ("y", y)):
        if (v <= 0).any():
            raise ValueError(f"{name} must be positive for a power law, got {v.min():g}.")
    if np.unique(x).size < 2:
        raise ValueError("x must hold at least two distinct values.")
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])
