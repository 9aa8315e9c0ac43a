"""Fits of simple laws to measured curves."""

from __future__ import annotations

from typing import Any

import numpy as np

from theorylab.core.estimate import Estimate, as_samples


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


def growth_rate(y: Any) -> Estimate:
    r"""Rate r of growth y ∝ e^{rt} of a sequence, one unit of t an entry: the mean change of ln y, with its standard error.

    For a sequence whose ln y is a random walk with a drift, as of products of independent factors, the mean of its changes is the best
    estimate of the drift, and its error is that of independent samples; that of a line's slope by least squares is not.

    Args:
        y: At least three positive values.

    Raises:
        ValueError: fewer than three values, or one that is not positive and finite.

    Example:
        >>> round(growth_rate([1.0, 2.0, 8.0]).value / float(np.log(2.0)), 12)
        1.5
    """
    y = as_samples(y, name="y")
    if y.size < 3:
        raise ValueError(f"y must hold at least three values to give a rate with an error, got {y.size}.")
    if (y <= 0).any():
        raise ValueError(f"y must be positive to grow by a factor, got {y.min():g}.")
    return Estimate.over(np.diff(np.log(y)))


def growth_factors(rows: Any) -> np.ndarray:
    r"""Factor :math:`e^r` an entry by which each of several sequences grows, r its `growth_rate`; (row,).

    Args:
        rows: Sequences (row, t) of at least three positive values.

    Raises:
        ValueError: as `growth_rate`.

    Example:
        >>> growth_factors([[1.0, 2.0, 4.0], [9.0, 3.0, 1.0]]).round(12).tolist()
        [2.0, 0.333333333333]
    """
    return np.exp([growth_rate(row).value for row in rows])
