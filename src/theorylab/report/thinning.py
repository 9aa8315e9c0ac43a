"""Which points of a long curve are kept? Its extremes in a figure, even steps in a table."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from theorylab.core.series import Line

POINTS = 500
"""Points of a curve that are drawn; of a longer one, the extremes of equal stretches of its axis, so that no spike is lost."""


def thin(line: Line, points: int = POINTS, *, log: bool = False) -> Line:
    """At most ``points`` points of a curve: the first, last, lowest and highest of equal stretches of its axis.

    Example:
        >>> spike = np.zeros(10_000)
        >>> spike[1234] = 1.0
        >>> kept = thin(Line("spike", np.arange(10_000.0), spike))
        >>> kept.y.max(), kept.y.size <= POINTS
        (np.float64(1.0), True)
    """
    n = line.x.size
    if n <= points:
        return line
    ascending = bool(np.all(np.diff(line.x) >= 0)) and line.x[0] < line.x[-1]
    along = (np.log(line.x) if log and line.x[0] > 0 else line.x) if ascending else np.arange(n, dtype=float)
    stretches = np.minimum(((along - along[0]) / (along[-1] - along[0]) * (points // 4)).astype(int), points // 4 - 1)
    starts = np.flatnonzero(np.diff(stretches, prepend=-1))
    keep = set()
    for start, end in zip(starts, [*starts[1:], n], strict=True):
        y = line.y[start:end]
        keep |= {int(start), int(end) - 1, int(start + y.argmin()), int(start + y.argmax())}
    return select(line, np.array(sorted(keep)))


def select(line: Line, index: np.ndarray) -> Line:
    """The points of a curve at ``index``."""
    low, high = (None if v is None else v[index] for v in (line.low, line.high))
    return replace(line, x=line.x[index], y=line.y[index], low=low, high=high)


def evenly(n: int, most: int) -> np.ndarray:
    """At most ``most`` of the indices 0 … n − 1, evenly spaced, first and last among them.

    Example:
        >>> evenly(5, 3).tolist(), evenly(2, 3).tolist()
        ([0, 2, 4], [0, 1])
    """
    return np.arange(n) if n <= most else np.unique(np.linspace(0, n - 1, most).round().astype(int))
