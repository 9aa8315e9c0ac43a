"""Confidence bounds on a probability, or on the mean of numbers in [0, 1], that hold at every sample size."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from theorylab.core.estimate import LEVEL, Interval

ROUNDING = 8 * np.finfo(np.float64).eps
"""More than the rounding error of `bernoulli_kl`; an inverse must not profit from it."""


def _unit(value: Any, name: str) -> np.ndarray:
    x = np.asarray(value, dtype=np.float64)
    if not bool(((x >= 0) & (x <= 1)).all()):  # false for NaN as well
        raise ValueError(f"{name} must lie in [0, 1], got {x[~((x >= 0) & (x <= 1))].flat[0] if x.ndim else float(x)}.")
    return x


def _chance(delta: float) -> float:
    if not 0 < delta < 1:
        raise ValueError(f"delta must lie in (0, 1), got {delta}.")
    return delta


def bernoulli_kl(q: Any, p: Any) -> Any:
    r"""Relative entropy of coins, :math:`\mathrm{kl}(q\|p) = q\ln\frac qp + (1-q)\ln\frac{1-q}{1-p}`, in nats.

    Args:
        q: In [0, 1]; an array broadcasts with ``p``.
        p: In [0, 1].

    Returns:
        A float for floats, else an array; infinite where p excludes what q allows.

    Raises:
        ValueError: a value outside [0, 1].

    Example:
        >>> round(bernoulli_kl(0.5, 0.25), 6), bernoulli_kl(0.5, 1.0)
        (0.143841, inf)
    """
    from scipy.special import rel_entr

    q, p = _unit(q, "q"), _unit(p, "p")
    value = rel_entr(q, p) + rel_entr(1 - q, 1 - p)
    return float(value) if value.ndim == 0 else value


def kl_inverse(q: Any, c: Any) -> Any:
    r"""The largest p with kl(q‖p) ≤ c: how large a mean may be of which q was observed.

    Bisection to neighbouring floating-point numbers, of which the *upper* is returned: a bound built on it never reports too little.

    Args:
        q: Observed mean, in [0, 1]; an array broadcasts with ``c``.
        c: Not negative; infinity gives 1.

    Returns:
        A float for floats, else an array; in [q, 1].

    Raises:
        ValueError: q outside [0, 1], or c negative or NaN.

    Example:
        >>> kl_inverse(0.0, 0.1)  # 1 − exp(−c)
        0.09516258196404...
        >>> kl_inverse(0.1, 0.0) - 0.1 < 1e-7, kl_inverse(0.3, float("inf"))
        (True, 1.0)

    Source: Langford 2005, "Tutorial on Practical Prediction Theory for Classification", Journal of Machine Learning Research 6, 273-306,
    Section 3 (the inverted relative entropy); the rounding is ours.
    """
    q, c = np.broadcast_arrays(_unit(q, "q"), np.asarray(c, dtype=np.float64))
    if not bool((c >= 0).all()):
        raise ValueError(f"c must not be negative, got {c[~(c >= 0)].flat[0] if c.ndim else float(c)}.")
    if q.ndim == 0:
        return _upper_root(float(q), float(c))
    return np.array([_upper_root(*pair) for pair in zip(q.flat, c.flat, strict=True)]).reshape(q.shape)


def _upper_root(q: float, c: float) -> float:
    low, high = q, 1.0
    while low < (middle := low + (high - low) / 2) < high:
        beyond = (q * math.log(q / middle) if q > 0 else 0.0) + ((1 - q) * math.log((1 - q) / (1 - middle)) if q < 1 else 0.0)
        low, high = (low, middle) if beyond > c + ROUNDING else (middle, high)
    return high


def clopper_pearson(errors: int, n: int, delta: float) -> float:
    r"""Exact one-sided upper bound on a probability of which ``errors`` of ``n`` independent trials were seen.

    The p at which so few errors have probability δ, :math:`P(\mathrm{Bin}(n, p) \le k) = \delta`; it is exceeded with probability at most
    δ, for every n.

    Args:
        errors: k, in 0 ... n.
        n: Trials, at least 1.
        delta: Probability of failure, in (0, 1).

    Raises:
        ValueError: an argument out of its range.

    Example:
        >>> round(clopper_pearson(0, 100, 0.05), 6), clopper_pearson(100, 100, 0.05)  # 1 − δ^(1/n)
        (0.029513, 1.0)

    Source: Clopper and Pearson 1934, doi:10.1093/biomet/26.4.404.
    """
    from scipy.special import betaincinv

    if n < 1 or not 0 <= errors <= n or errors != int(errors):
        raise ValueError(f"errors must be a whole number in 0 ... n with n at least 1, got errors={errors}, n={n}.")
    _chance(delta)
    return 1.0 if errors == n else float(betaincinv(errors + 1, n - errors, 1 - delta))


def proportion(count: int, n: int, level: float = LEVEL) -> Interval:
    r"""Share of ``n`` independent trials with its exact two-sided interval: where all agree, their spread tells nothing of the error.

    Args:
        count: Of the trials in which it was seen, in 0 ... n.
        n: Trials, at least 1.
        level: Two-sided confidence, in (0, 1).

    Raises:
        ValueError: an argument out of its range.

    Example:
        >>> found = proportion(12, 12)  # twelve of twelve may still be two of three
        >>> round(found.low, 3), found.high
        (0.643, 1.0)

    Source: Clopper and Pearson 1934, doi:10.1093/biomet/26.4.404.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1), got {level}.")
    side = (1 - level) / 2
    low, high = 1 - clopper_pearson(n - count, n, side), clopper_pearson(count, n, side)
    return Interval(count / n, low, high, n)


def mean_upper_bound(mean: float, n: int, delta: float) -> float:
    r"""Upper bound on the mean of numbers in [0, 1], given the average of n independent ones.

    It is :math:`\mathrm{kl}^{-1}(\bar x, \ln(1/\delta)/n)`, exceeded with probability at most δ. Needs no more than the range: by
    convexity, coins have the heaviest exponential moments of all such numbers.

    Raises:
        ValueError: an argument out of its range.

    Example:
        >>> round(mean_upper_bound(0.0, 100, 0.05), 6)
        0.029513

    Source: Hoeffding 1963, doi:10.1080/01621459.1963.10500830, Theorem 1 (its first, sharpest form).
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}.")
    return kl_inverse(mean, math.log(1 / _chance(delta)) / n)
