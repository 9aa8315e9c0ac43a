"""Pairs of distributions that are hardest to tell apart in one private step: mixtures of normals on a line, and their privacy loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

from theorylab.core.privacy_ledger import PrivacyLedger

TAIL = 9.5
"""Standard deviations beyond which a normal's mass, 1e-21, is below all that is asked of a distribution."""

Mixture = tuple[tuple[float, float], ...]
"""(weight, mean) of normals of one standard deviation."""


@dataclass(frozen=True)
class Pair:
    r"""P and Q, mixtures of normals, with a privacy loss :math:`\ln(dP/dQ)` that increases along the line.

    Args:
        upper: P.
        lower: Q.
        sigma: Standard deviation of every part.
        loss: :math:`\ln(dP/dQ)` at x, vectorized.
        inverse: Where the loss is ε, vectorized; −∞ below all losses and ∞ above them.
        symmetrized: Only losses above 0 are those of the pair; the others mirror them, and what is left of the mass has loss 0.
    """

    upper: Mixture
    lower: Mixture
    sigma: float
    loss: Callable[[np.ndarray], np.ndarray]
    inverse: Callable[[np.ndarray], np.ndarray]
    symmetrized: bool = False

    def span(self) -> tuple[float, float]:
        """The losses between which all but a negligible part of P lies."""
        means = [mean for _, mean in (*self.upper, *self.lower)]
        ends = self.loss(np.array([min(means) - TAIL * self.sigma, max(means) + TAIL * self.sigma]))
        return (-float(ends[1]), float(ends[1])) if self.symmetrized else (float(ends[0]), float(ends[1]))

    def moments(self) -> tuple[float, float]:
        """Mean and variance of the loss under P."""
        means = [mean for _, mean in self.upper]
        x = np.arange(min(means) - TAIL * self.sigma, max(means) + TAIL * self.sigma, self.sigma / 16)
        density = np.sum([w * np.exp(-(((x - m) / self.sigma) ** 2) / 2) for w, m in self.upper], axis=0)
        density, loss = density / density.sum(), self.loss(x)
        mean = float(density @ loss)
        return mean, float(density @ (loss - mean) ** 2)

    def masses(self, epsilons: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """P's and Q's masses between successive losses, with those below the first and above the last: one more than there are losses."""
        x = self.inverse(epsilons)
        edges = np.concatenate([[-np.inf], x, [np.inf]])
        return _between(self.upper, edges, self.sigma), _between(self.lower, edges, self.sigma)

    def divergence(self, epsilon: float) -> float:
        r"""The hockey-stick divergence :math:`\delta(\varepsilon) = P(\ell > \varepsilon) - e^\varepsilon Q(\ell > \varepsilon)`, ε ≥ 0."""
        p, q = self.masses(np.array([epsilon]))
        return max(0.0, float(p[-1] - math.exp(epsilon) * q[-1]))


def _between(mixture: Mixture, edges: np.ndarray, sigma: float) -> np.ndarray:
    """Masses between successive edges, each from the side on which its normal's tail is small, so that small masses keep their digits."""
    total = np.zeros(len(edges) - 1)
    for weight, mean in mixture:
        z = (edges - mean) / sigma
        cut = int(np.searchsorted(z, 0.0))
        below, above = ndtr(z[:cut]), ndtr(-z[cut:])
        total[: max(0, cut - 1)] += weight * np.diff(below)
        total[cut:] -= weight * np.diff(above)
        if 0 < cut < len(z):
            total[cut - 1] += weight * (1 - below[-1] - above[0])
    return total


def step_pairs(ledger: PrivacyLedger) -> tuple[Pair, ...]:
    r"""The pairs that dominate one step of a run, one a direction; a guarantee is the larger of what each gives over the whole run.

    Poisson sampling with add/remove: :math:`(1-q)N(0)+qN(1)` against :math:`N(0)`, and the reverse. With replacement:
    :math:`(1-q)N(0)+qN(1)` against :math:`(1-q)N(0)+qN(-1)`, which is its own reverse. Batches of fixed size with replacement:
    :math:`(1-q)N(0)+qN(2)` against :math:`N(0)` for losses above 0, mirrored below. All of variance σ².

    Raises:
        ValueError: a run without noise.

    Source: Zhu, Dong and Wang 2022, arXiv:2106.08567, Section 4 (dominating pairs under sampling); Lebeda et al. 2024, arXiv:2405.20769
    (replacement, and why the two kinds of sampling differ).
    """
    sigma, q = float(ledger.sigma), ledger.rate
    if not sigma > 0:
        raise ValueError("sigma must be positive for a guarantee, got 0: without noise no epsilon is large enough.")
    if q == 1 or ledger.sampling == "fixed_size":
        shift = float(ledger.sensitivity)
        removed = _removed(q, sigma, shift)
        return (Pair(((1 - q, 0.0), (q, shift)), ((1.0, 0.0),), sigma, *removed, symmetrized=q < 1),)
    present: Mixture = ((1 - q, 0.0), (q, 1.0))
    if ledger.adjacency == "replace_one":
        mirrored: Mixture = ((1 - q, 0.0), (q, -1.0))
        return (Pair(present, mirrored, sigma, *_replaced(q, sigma)),)
    loss, inverse = _removed(q, sigma, 1.0)
    # the reverse is reflected, so that its loss, too, increases along the line
    return (
        Pair(present, ((1.0, 0.0),), sigma, loss, inverse),
        Pair(((1.0, 0.0),), ((1 - q, 0.0), (q, -1.0)), sigma, lambda x: -loss(-x), lambda e: -inverse(-e)),
    )


Maps = tuple[Callable[[np.ndarray], np.ndarray], Callable[[np.ndarray], np.ndarray]]


def _log1m(q: float) -> float:
    return math.log1p(-q) if q < 1 else -math.inf


def _removed(q: float, sigma: float, shift: float) -> Maps:
    """Loss of (1 − q)N(0) + qN(shift) against N(0), and its inverse."""
    absent, present, scale = _log1m(q), math.log(q), shift / sigma**2

    def loss(x: np.ndarray) -> np.ndarray:
        return np.logaddexp(absent, present + scale * (x - shift / 2))

    def inverse(epsilon: np.ndarray) -> np.ndarray:
        inside = epsilon > absent
        # ln(e^ε − 1 + q), in a form that neither overflows nor cancels
        log = epsilon[inside] + np.log(-np.expm1(absent - epsilon[inside]))
        x = np.full(len(epsilon), -np.inf)
        x[inside] = (log - present) / scale + shift / 2
        return x

    return loss, inverse


def _replaced(q: float, sigma: float) -> Maps:
    """Loss of (1 − q)N(0) + qN(1) against (1 − q)N(0) + qN(−1), and its inverse."""
    absent, present = math.log1p(-q), math.log(q)

    def loss(x: np.ndarray) -> np.ndarray:
        z, middle = x / sigma**2, 1 / (2 * sigma**2)
        return np.logaddexp(absent, present + z - middle) - np.logaddexp(absent, present - z - middle)

    def inverse(epsilon: np.ndarray) -> np.ndarray:
        # e^ε = (a + bt)/(a + b/t) is a quadratic in t = exp(x/σ²), whose root is exp(ε/2 + arsinh((a/b) sinh(ε/2)))
        half = np.abs(epsilon) / 2
        with np.errstate(divide="ignore"):
            log_sinh = half + np.log(-np.expm1(-2 * half)) - math.log(2)
        y = absent - present + 1 / (2 * sigma**2) + log_sinh  # arsinh(exp y), in a form that does not overflow
        arsinh = np.where(y > 0, y + np.log1p(np.sqrt(1 + np.exp(-2 * np.maximum(y, 0)))), np.arcsinh(np.exp(np.minimum(y, 0))))
        return np.sign(epsilon) * sigma**2 * (half + arsinh)

    return loss, inverse
