"""Privacy of Gaussian noise in closed form: the exact curve of ε and δ, and what the central limit theorem makes of sampled steps."""

from __future__ import annotations

import math

from scipy.optimize import brentq
from scipy.special import log_ndtr, ndtr

from theorylab.core.ranges import positive, whole


def gaussian_delta(mu: float, epsilon: float) -> float:
    r"""The least δ at which two unit normals μ apart are (ε, δ)-indistinguishable.

    .. math:: \delta(\varepsilon) = \Phi\Bigl(\frac\mu2 - \frac\varepsilon\mu\Bigr)
        - e^\varepsilon\,\Phi\Bigl(-\frac\mu2 - \frac\varepsilon\mu\Bigr)

    It is that of T Gaussian steps of noise multiplier σ with μ = √T/σ, and with 2√T/σ where a row may be replaced.

    Args:
        mu: μ ≥ 0.
        epsilon: Of any sign; infinite too.

    Raises:
        ValueError: negative or infinite ``mu``, or NaN.

    Example:
        >>> round(gaussian_delta(1.0, 1.0), 6), gaussian_delta(0.0, 0.5)
        (0.126937, 0.0)

    Source: Balle and Wang 2018, arXiv:1805.06530, Theorem 8; Dong, Roth and Su 2019, arXiv:1905.02383, Corollary 2.13.
    """
    if not 0 <= mu < math.inf:
        raise ValueError(f"mu must be finite and not negative, got {mu}.")
    if math.isnan(epsilon):
        raise ValueError("epsilon must be a number, of any sign or infinite, got nan.")
    if mu == 0:
        return max(0.0, -math.expm1(min(epsilon, 0.0)))
    first = log_ndtr(mu / 2 - epsilon / mu)
    if first == -math.inf:
        return 0.0
    second = epsilon + log_ndtr(-mu / 2 - epsilon / mu)
    return float(math.exp(first) * -math.expm1(min(second - first, 0.0)))  # in logarithms: e^ε overflows before the product does


def gaussian_epsilon(mu: float, delta: float) -> float:
    """The least ε ≥ 0 of `gaussian_delta` at most ``delta``.

    Args:
        mu: μ ≥ 0.
        delta: In (0, 1).

    Raises:
        ValueError: an argument out of its range.

    Example:
        >>> round(gaussian_epsilon(1000**0.5 / 50, 1e-5), 4)
        2.5944
    """
    if not 0 < delta < 1:
        raise ValueError(f"delta must lie in (0, 1), got {delta}.")
    if gaussian_delta(mu, 0.0) <= delta:
        return 0.0

    def excess(epsilon: float) -> float:
        value = gaussian_delta(mu, epsilon)
        return (math.log(value) if value > 0 else -800.0) - math.log(delta)

    high = 1.0
    while excess(high) > 0:
        high *= 2
    root = float(brentq(excess, 0.0, high, xtol=1e-13, rtol=1e-13))  # pyright: ignore[reportArgumentType]
    return root if excess(root) <= 0 else math.nextafter(root * (1 + 2e-13), math.inf)


def clt_mu(q: float, sigma: float, steps: int) -> float:
    r"""The μ that many sampled Gaussian steps tend to: **an approximation, and no bound**.

    .. math:: \mu = q\sqrt{T\bigl(e^{1/\sigma^2} - 1\bigr)}

    The limit has q√T fixed and T to infinity; at finite T the true ε is larger, by tens of percent in ordinary settings. It is here so that
    a study can measure by how much, and no accountant uses it.

    Args:
        q: Sampling rate, in (0, 1].
        sigma: Noise multiplier, above 0.
        steps: T ≥ 0.

    Raises:
        ValueError: an argument out of its range.

    Example:
        >>> round(gaussian_epsilon(clt_mu(0.1, 1.0, 100), 1e-5), 3)  # privacy-loss distributions give 7.047
        6.007

    Source: Bu et al. 2019, arXiv:1911.11607, Section 3 (the central limit theorem under Poisson sampling).
    """
    if not 0 < q <= 1:
        raise ValueError(f"q must lie in (0, 1], got {q}.")
    positive(sigma=sigma)
    whole(0, steps=steps)
    return q * math.sqrt(steps * math.expm1(sigma**-2))


def gaussian_trade_off(mu: float, false_positive_rate: float) -> float:
    r"""The highest true-positive rate of a test between two unit normals μ apart: :math:`\Phi(\Phi^{-1}(\alpha) + \mu)`.

    Args:
        mu: μ ≥ 0.
        false_positive_rate: α in [0, 1].

    Raises:
        ValueError: an argument out of its range.

    Example:
        >>> round(gaussian_trade_off(1.0, 0.05), 4), round(gaussian_trade_off(0.0, 0.05), 4)
        (0.2595, 0.05)

    Source: Dong, Roth and Su 2019, arXiv:1905.02383, Definition 2.6 and Equation 6 (their trade-off function is one minus this).
    """
    from scipy.special import ndtri

    if not mu >= 0 or not 0 <= false_positive_rate <= 1:
        raise ValueError(f"mu must not be negative and the rate lie in [0, 1], got mu={mu}, false_positive_rate={false_positive_rate}.")
    return float(ndtr(ndtri(false_positive_rate) + mu))
