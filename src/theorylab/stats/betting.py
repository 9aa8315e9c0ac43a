"""An upper bound on a mean that profits from a small variance, by how rich a gambler would have become against a larger mean."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from theorylab.core.estimate import as_samples

BETS = ((0.99, 0.5), (0.9, 0.2), (0.7, 0.1), (0.5, 0.1), (0.3, 0.1))
"""(Fraction of the largest safe bet, share of the capital). Half goes on samples that hardly vary, as averages over many rows do."""


def log_capital(samples: np.ndarray, m: float) -> float:
    """Logarithm of the wealth of a gambler who starts with one and bets that the mean is below ``m``, in (0, 1)."""
    gains = (m - samples) / (1 - m)  # at least −1, so that no bet below one ruins
    return float(np.logaddexp.reduce([math.log(share) + np.log1p(bet * gains).sum() for bet, share in BETS]))


def betting_upper_bound(samples: Any, delta: float) -> float:
    r"""Upper bound on the mean of independent numbers in [0, 1], exceeded with probability at most δ for every sample size.

    If the mean is at least m, the wealth :math:`\sum_g w_g\prod_i\left(1 + g\,\frac{m - x_i}{1-m}\right)` of fixed bets g does not grow on
    average, so that it reaches 1/δ with probability at most δ (Ville). The bound is the smallest m at which it has. For samples of small
    variance it is far below the inverse relative entropy, whose worst case is a coin: for n equal samples x, x + O(ln(1/δ)/n).

    Args:
        samples: At least one number in [0, 1].
        delta: Probability of failure, in (0, 1).

    Returns:
        A number in [mean, 1], the upper end of its bracket.

    Raises:
        ValueError: a sample outside [0, 1] or not finite, or delta outside (0, 1).

    Example:
        >>> from theorylab.stats.binomial import mean_upper_bound
        >>> x = [0.05] * 400
        >>> round(betting_upper_bound(x, 0.01), 3), round(mean_upper_bound(0.05, 400, 0.01), 3)
        (0.062, 0.09)

    Source: Waudby-Smith and Ramdas 2024, arXiv:2010.09686, Section 4 (the capital process); the mixture of fixed bets is ours.
    """
    x = as_samples(samples)
    if not ((x >= 0) & (x <= 1)).all():
        raise ValueError(f"samples must lie in [0, 1], got {x[(x < 0) | (x > 1)][0]}.")
    if not 0 < delta < 1:
        raise ValueError(f"delta must lie in (0, 1), got {delta}.")
    low, high, target = float(x.mean()), 1.0, math.log(1 / delta) + 1e-9  # more than rounding could add
    for _ in range(64):
        middle = low + (high - low) / 2
        if not low < middle < high:
            break
        low, high = (low, middle) if log_capital(x, middle) > target else (middle, high)
    return high
