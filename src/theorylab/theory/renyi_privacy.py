"""Rényi differential privacy of the sampled Gaussian mechanism: divergences of any order, and the ε that follows from them."""

from __future__ import annotations

import functools
import math
from typing import get_args

import numpy as np
from scipy.special import gammaln

from theorylab.core.privacy_ledger import Adjacency
from theorylab.core.ranges import nonnegative

ORDERS = tuple(np.concatenate([1 + np.geomspace(0.01, 1, 24)[:-1], np.geomspace(2, 1024, 120)]).tolist())
"""Orders over which ε is minimized: fine enough to lose less than a thousandth of it.

Whole orders alone lose a hundredth where ε is below 8, and more than double it where ε is in the hundreds and the best order is below 2.
"""


def integer_order_rdp(q: float, sigma: float, order: int) -> float:
    r"""Rényi divergence of whole order α of :math:`(1-q)N(0,\sigma^2) + qN(1,\sigma^2)` from :math:`N(0,\sigma^2)`, in closed form.

    .. math:: \frac1{\alpha-1}\ln\sum_{k=0}^\alpha\binom\alpha k(1-q)^{\alpha-k}q^k e^{(k^2-k)/2\sigma^2}

    Args:
        q: Sampling rate, in (0, 1].
        sigma: Noise multiplier, above 0.
        order: α, a whole number of at least 2.

    Raises:
        ValueError: an argument out of its range.

    Example:
        >>> round(integer_order_rdp(0.1, 1.0, 2), 6)  # ln(1 + q²(e − 1))
        0.017037

    Source: Mironov, Talwar and Zhang 2019, arXiv:1908.10530, Section 3.3 (computing A_α for integer α).
    """
    _check(q, sigma, "add_remove")
    if not (2 <= order < math.inf and order == int(order)):
        raise ValueError(f"order must be a whole number of at least 2, got {order}; `sampled_rdp` takes any order above 1.")
    if q == 1:
        return _unsampled(sigma, order, "add_remove")
    k = np.arange(int(order) + 1)
    log_binomial = gammaln(order + 1) - gammaln(k + 1) - gammaln(order - k + 1)
    terms = log_binomial + (order - k) * math.log1p(-q) + k * math.log(q) + (k * k - k) / (2 * sigma**2)
    return max(0.0, float(np.logaddexp.reduce(terms)) / (order - 1))


def sampled_rdp(q: float, sigma: float, order: float, adjacency: Adjacency = "add_remove") -> float:
    r"""Rényi divergence of any order above 1 of one Poisson-sampled Gaussian step from its neighbour.

    Under add/remove it is that of the mixture from the normal, the larger of the two directions; under replacement that of
    :math:`(1-q)N(0,\sigma^2)+qN(1,\sigma^2)` from its mirror image. The integral is summed on an even grid, which for an analytic
    integrand that decays like a normal density is exact to rounding once the grid is finer than the nearest singularity is far, πσ² here.

    Args:
        q: Sampling rate, in (0, 1].
        sigma: Noise multiplier, above 0.
        order: α > 1, of any size.
        adjacency: Which data sets are neighbours.

    Returns:
        The divergence in nats, never negative.

    Raises:
        ValueError: an argument out of its range.

    Example:
        >>> round(sampled_rdp(0.1, 1.0, 2.0), 6), round(sampled_rdp(1.0, 2.0, 1.5), 6)
        (0.017037, 0.1875)

    Source: Mironov, Talwar and Zhang 2019, arXiv:1908.10530, Theorems 4 and 5 (which direction is larger); for replacement, the pair of
    Lebeda et al. 2024, arXiv:2405.20769.
    """
    _check(q, sigma, adjacency)
    if not 1 < order < math.inf:
        raise ValueError(f"order must be above 1 and finite, got {order}.")
    if q == 1:
        return _unsampled(sigma, order, adjacency)
    return _divergence(q, sigma, (float(order),), adjacency)[0]


def _unsampled(sigma: float, order: float, adjacency: Adjacency) -> float:
    """Of two normals, which lie one clipping norm apart, or two where a row is replaced."""
    return order * (2 if adjacency == "replace_one" else 1) ** 2 / (2 * sigma**2)


MOST_POINTS = 100_000
"""Of an integral in `rdp_curve`."""


@functools.lru_cache(64)
def _divergence(q: float, sigma: float, orders: tuple[float, ...], adjacency: Adjacency) -> tuple[float, ...]:
    step = _grid_step(sigma)
    found = []
    for order in orders:
        # the integrand is a sum of bumps of width σ between 0 and α
        x = np.arange(-1 - 12 * sigma, order + 1 + 12 * sigma, step)
        log_ratio = np.logaddexp(math.log1p(-q), math.log(q) + (2 * x - 1) / (2 * sigma**2))
        log_base = -(x**2) / (2 * sigma**2) - math.log(sigma * math.sqrt(2 * math.pi))
        if adjacency == "replace_one":
            mirrored = np.logaddexp(math.log1p(-q), math.log(q) - (2 * x + 1) / (2 * sigma**2))
            terms = log_base + order * log_ratio + (1 - order) * mirrored
        else:
            terms = log_base + order * log_ratio
        found.append(max(0.0, (float(np.logaddexp.reduce(terms)) + math.log(step)) / (order - 1)))
    return tuple(found)


def rdp_curve(q: float, sigma: float, adjacency: Adjacency = "add_remove") -> np.ndarray:
    """`sampled_rdp` of one step at all of ``ORDERS``; infinite, which is no claim, at high orders under little noise.

    Those would need the longest grids, and under little noise the best order is near 1.

    Raises:
        ValueError: an argument out of its range.
    """
    _check(q, sigma, adjacency)
    orders = np.array(ORDERS)
    if q == 1:
        return np.array([_unsampled(sigma, order, adjacency) for order in ORDERS])
    within = orders <= 2 + MOST_POINTS * _grid_step(sigma)
    return np.concatenate([_divergence(q, sigma, tuple(orders[within].tolist()), adjacency), np.full((~within).sum(), math.inf)])


def rdp_to_epsilon(divergences: np.ndarray, delta: float, orders: np.ndarray | None = None) -> float:
    r"""The best ε that Rényi divergences of several orders imply at δ, never below 0.

    .. math:: \varepsilon = \min_\alpha\; D_\alpha + \ln\frac{\alpha-1}\alpha - \frac{\ln\delta + \ln\alpha}{\alpha-1}

    and 0 where already the total variation is at most δ, :math:`\sqrt{1-e^{-D}}\le\delta`.

    Args:
        divergences: D ≥ 0 of the whole run, one an order; infinite where an order claims nothing.
        delta: In (0, 1).
        orders: α > 1; ``ORDERS`` by default.

    Raises:
        ValueError: an argument out of its range.

    Example:
        >>> round(rdp_to_epsilon(1000 * rdp_curve(1.0, 50.0), 1e-5), 3)  # the exact value is 2.594
        2.814

    Source: Canonne, Kamath and Steinke 2020, arXiv:2004.00010, Proposition 12 (the conversion).
    """
    divergences, alpha = _curve(divergences, orders)
    if not 0 < delta < 1:
        raise ValueError(f"delta must lie in (0, 1), got {delta}.")
    if math.sqrt(-math.expm1(-float(np.min(divergences)))) <= delta:  # Bretagnolle and Huber; orders above 1 bound order 1
        return 0.0
    epsilons = divergences + np.log1p(-1 / alpha) - (math.log(delta) + np.log(alpha)) / (alpha - 1)
    return max(0.0, float(epsilons.min()))


def rdp_to_delta(divergences: np.ndarray, epsilon: float, orders: np.ndarray | None = None) -> float:
    r"""The best δ that Rényi divergences imply at ε, at most 1.

    .. math:: \delta = \min_\alpha\; \frac{e^{(\alpha-1)(D_\alpha-\varepsilon)}}{\alpha-1}\Bigl(1-\frac1\alpha\Bigr)^\alpha

    Args:
        divergences: D ≥ 0 of the whole run, one an order; infinite where an order claims nothing.
        epsilon: At least 0.
        orders: α > 1; ``ORDERS`` by default.

    Raises:
        ValueError: an argument out of its range.

    Example:
        >>> curve = 1000 * rdp_curve(1.0, 50.0)
        >>> round(rdp_to_delta(curve, rdp_to_epsilon(curve, 1e-5)) / 1e-5, 9)
        1.0

    Source: Canonne, Kamath and Steinke 2020, arXiv:2004.00010, Proposition 12.
    """
    divergences, alpha = _curve(divergences, orders)
    nonnegative(epsilon=epsilon)
    logs = (alpha - 1) * (divergences - epsilon + np.log1p(-1 / alpha)) - np.log(alpha)
    return min(1.0, math.exp(min(0.0, float(logs.min()))), math.sqrt(-math.expm1(-float(np.min(divergences)))))


def _grid_step(sigma: float) -> float:
    """Fine against the densities' width, and against the distance of the integrand's singularities from the line."""
    return min(sigma / 8, sigma**2 / 4)


def _curve(divergences: np.ndarray, orders: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Divergences and their orders, both (order,)."""
    found, alpha = np.asarray(divergences, dtype=float), np.asarray(ORDERS if orders is None else orders, dtype=float)
    if found.shape != alpha.shape or alpha.size == 0 or not ((alpha > 1) & (alpha < math.inf)).all():
        raise ValueError(f"divergences must be one for each finite order above 1, got shapes {found.shape} and {alpha.shape}.")
    if not (found >= 0).all():
        raise ValueError(
            f"divergences must not be negative or NaN, got {found[~(found >= 0)][0]}: an order that claims nothing is infinite."
        )
    return found, alpha


def _check(q: float, sigma: float, adjacency: Adjacency) -> None:
    if adjacency not in get_args(Adjacency):
        raise ValueError(f"adjacency must be one of {', '.join(get_args(Adjacency))}, got {adjacency!r}.")
    if not 0 < q <= 1:
        raise ValueError(f"q must lie in (0, 1], got {q}.")
    if not 0 < sigma < math.inf:
        raise ValueError(f"sigma must be positive and finite, got {sigma}: without noise no order's divergence is finite.")
