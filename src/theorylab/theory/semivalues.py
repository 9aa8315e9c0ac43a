r"""Weights of semivalues, :math:`\phi_i = \sum_{S\not\ni i} p_{|S|}\,[v(S\cup i) - v(S)]`, and what noise in the worths does to them."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import betaln, gammaln, logsumexp

from theorylab.core.ranges import chance, nonnegative, positive, whole


def shapley_weights(n: int) -> np.ndarray:
    r""":math:`p_s = s!\,(n-1-s)!/n!`, s = 0 ... n − 1: the players join in an order drawn evenly.

    Source: Shapley 1953, doi:10.1515/9781400881970-018, equation 12.
    """
    whole(1, n=n)
    s = np.arange(n)
    return np.exp(gammaln(s + 1) + gammaln(n - s) - gammaln(n + 1))


def banzhaf_weights(n: int, p: float = 0.5) -> np.ndarray:
    """p^s (1 − p)^{n−1−s}: each of the others takes part with chance p, independently.

    Raises:
        ValueError: ``p`` is no chance, or there is no player.
    """
    whole(1, n=n)
    chance(p=p)
    s = np.arange(n)
    return p**s * (1 - p) ** (n - 1 - s)


def beta_weights(n: int, alpha: float, beta: float) -> np.ndarray:
    r"""Beta(α, β)-Shapley, :math:`p_s = B(s+\beta, n-1-s+\alpha)/B(\alpha, \beta)`.

    The others take part with a chance t drawn from Beta(β, α). Beta(1, 1) is Shapley; α > β favours small coalitions,
    and α = β → ∞ tends to Banzhaf.

    Raises:
        ValueError: α or β is not positive, or there is no player.

    Example:
        >>> bool(np.allclose(beta_weights(7, 1, 1), shapley_weights(7)))
        True

    Source: Kwon and Zou 2022, arXiv:2110.14049, equation 5.
    """
    whole(1, n=n)
    positive(alpha=alpha, beta=beta)
    s = np.arange(n)
    return np.exp(betaln(s + beta, n - 1 - s + alpha) - betaln(alpha, beta))


def noise_variance(weights: np.ndarray, variance: float = 1.0) -> float:
    r"""Variance :math:`2\sigma^2\sum_s\binom{n-1}{s}p_s^2` of each value where every worth carries independent noise of variance σ².

    Args:
        weights: p, (n,).
        variance: σ².

    Example:
        >>> round(noise_variance(banzhaf_weights(10)), 12) == 2 / 2**9
        True

    Source: Wang and Jia 2023, arXiv:2205.15466, Section 4 (safety margin and noise); the sum is elementary.
    """
    nonnegative(variance=variance)
    return _sum(2 * variance, _logarithms(weights))


def least_noise_variance(n: int, variance: float = 1.0) -> float:
    r"""The least of `noise_variance` among all semivalues, :math:`2\sigma^2/2^{n-1}`, reached by Banzhaf only (Cauchy and Schwarz).

    Raises:
        ValueError: a negative variance, or there is no player.

    Example:
        >>> least_noise_variance(10)
        0.00390625
    """
    whole(1, n=n)
    nonnegative(variance=variance)
    return math.ldexp(2 * variance, 1 - int(n))


def noise_variance_at_size(weights: np.ndarray, size: int, variance: float = 1.0) -> float:
    r"""Mean over players of the variance of their values where only coalitions of one size carry noise.

    A player is in :math:`\binom{n-1}{k-1}` coalitions of size k, with weight :math:`p_{k-1}`, and out of :math:`\binom{n-1}{k}`, with
    weight :math:`p_k`.

    Args:
        weights: p, (n,).
        size: k, in 1 ... n − 1.
        variance: σ².

    Raises:
        ValueError: an argument out of its range.

    Example:
        >>> round(noise_variance_at_size(banzhaf_weights(3), 1), 12)
        0.1875
    """
    nonnegative(variance=variance)
    n = len(weights)
    if size not in range(1, n):
        raise ValueError(f"size must be one of 1 ... {n - 1}, got {size}: only there are players within and without.")
    return _sum(variance, _logarithms(weights)[size - 1 : size + 1])


def _logarithms(weights: np.ndarray) -> np.ndarray:
    """Of C(n−1, s) p_s²: with a thousand players the binomial overflows, and the square underflows.

    As the weights of all coalitions sum to one, no term exceeds its p_s: a weight that has itself become zero costs less than any number.
    """
    n, s = len(weights), np.arange(len(weights))
    with np.errstate(divide="ignore"):  # of a weight of zero −∞
        return gammaln(n) - gammaln(s + 1) - gammaln(n - s) + 2 * np.log(np.abs(weights))


def _sum(factor: float, logarithms: np.ndarray) -> float:
    with np.errstate(divide="ignore"):
        return float(np.exp(logsumexp(logarithms) + np.log(factor)))
