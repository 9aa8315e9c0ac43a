"""Whether two quantities order the same things alike: Kendall's τ with a bootstrap interval."""

from __future__ import annotations

from typing import Any

import numpy as np

from theorylab.core.estimate import LEVEL, as_samples


def kendall_tau(x: Any, y: Any, *, resamples: int = 1000, level: float = LEVEL, seed: int = 0) -> tuple[float, float, float]:
    r"""Kendall's :math:`\tau_b` of paired values, and the ends of its percentile bootstrap interval over pairs.

    Args:
        x: At least three numbers, not all equal.
        y: As many, not all equal.
        resamples: Of the pairs, with replacement; those in which x or y is constant are left out.
        level: Two-sided confidence.
        seed: Of the resampling.

    Returns:
        (τ, low, high), all in [−1, 1].

    Raises:
        ValueError: unequal lengths, fewer than three pairs, a constant, a number that is not finite, or an option out of range.

    Example:
        >>> tau, low, high = kendall_tau([1, 2, 3, 4, 5, 6], [1, 2, 4, 3, 5, 6])
        >>> round(tau, 4), low <= tau <= high
        (0.8667, True)

    Source: Kendall 1945, doi:10.1093/biomet/33.3.239 (τ_b, ties in both); Efron 1979, doi:10.1214/aos/1176344552 (bootstrap).
    """
    x, y = as_samples(x, name="x"), as_samples(y, name="y")
    if x.size != y.size or x.size < 3:
        raise ValueError(f"x and y must be pairs, at least three, got {x.size} and {y.size} numbers.")
    for name, v in (("x", x), ("y", y)):
        if np.ptp(v) == 0:
            raise ValueError(f"{name} must not be constant: it orders nothing.")
    if resamples < 1 or not 0 < level < 1:
        raise ValueError(f"resamples must be at least 1 and level lie in (0, 1), got {resamples} and {level}.")
    dx, dy = np.sign(x[:, None] - x), np.sign(y[:, None] - y)
    rng = np.random.default_rng(seed)
    taus = []
    for _ in range(resamples):
        rows = rng.integers(x.size, size=x.size)
        tau = _tau(dx[np.ix_(rows, rows)], dy[np.ix_(rows, rows)])
        if tau is not None:
            taus.append(tau)
    whole = _tau(dx, dy)
    assert whole is not None
    low, high = (float(v) for v in np.quantile(taus or [whole], [(1 - level) / 2, (1 + level) / 2]))
    return whole, min(low, whole), max(high, whole)


def _tau(dx: np.ndarray, dy: np.ndarray) -> float | None:
    size = float(np.sqrt((dx != 0).sum() * (dy != 0).sum()))
    return float((dx * dy).sum()) / size if size else None
