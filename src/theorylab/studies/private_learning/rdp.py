"""The Rényi divergence of a sampled Gaussian step has a closed form at whole orders.

A sampled step is a mixture: with chance q the row is in, and the mean is moved. At whole order α the α-th power of the likelihood ratio is
a binomial sum whose terms are Gaussian integrals. It is compared with the definition, both densities on a fine even grid, at orders from 2
to 64. Such divergences add over steps, and the best order gives ε. Nothing is random, so seeds play no part.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from theorylab.core.claim import Claim, Equals, Finding
from theorylab.core.config import Config, setting
from theorylab.core.series import Series, Stage
from theorylab.core.source import Source
from theorylab.core.study import study
from theorylab.theory.renyi_privacy import integer_order_rdp, sampled_rdp

INTEGER_ORDER = Claim(
    "private_learning/rdp/integer_order",
    "The Rényi divergence of order α of (1 − q)N(0, σ²) + qN(1, σ²) from N(0, σ²) is, at whole α, a binomial sum.",
    formula=r"D_\alpha = \frac{1}{\alpha-1}\ln\sum_{k=0}^{\alpha}\binom{\alpha}{k}(1-q)^{\alpha-k} q^k\, e^{(k^2-k)/2\sigma^2}",
    source=Source("Mironov, Talwar and Zhang 2019", "Section 3.3 (the moment at whole orders)", "arXiv:1908.10530"),
    kind="identity",
    relation=Equals(rtol=1e-8),
    control="the divergence without sampling, α/2σ²",
    reading="This sum is what most private training has been accounted with. At low orders it is about αq²(e^{1/σ²} − 1)/2, a gain of q "
    "squared; beyond a certain order the last term takes over, and the divergence is as if there were no sampling. Orders between the "
    "whole ones are as valid: without them ε is a hundredth too large where it is moderate, and several times too large where it is huge.",
)


@dataclass(frozen=True, kw_only=True)
class RdpConfig(Config):
    """Every pair of a rate and a noise multiplier, at every order."""

    rates: tuple[float, ...] = setting((0.01, 0.1, 0.5), "sampling rates q, below 1", low=1e-3, high=0.99)
    sigmas: tuple[float, ...] = setting((0.8, 2.0, 4.0), "noise multipliers σ", low=0.3)
    orders: tuple[int, ...] = setting((2, 3, 4, 8, 16, 32, 64), "orders α", low=2, high=512)


def divergence_on_grid(q: float, sigma: float, order: float) -> float:
    """The divergence by its definition: the logarithm of ∫ P^α Q^(1−α) dx, summed on an even grid of a sixteenth of σ or less."""
    x = np.arange(-15 * sigma, order + 15 * sigma, min(sigma / 16, sigma**2 / 8))
    log_q = -(x**2) / (2 * sigma**2) - math.log(sigma * math.sqrt(2 * math.pi))
    log_moved = -((x - 1) ** 2) / (2 * sigma**2) - math.log(sigma * math.sqrt(2 * math.pi))
    log_p = np.logaddexp(math.log1p(-q) + log_q, math.log(q) + log_moved)
    terms = order * log_p + (1 - order) * log_q
    top = terms.max()
    return float(top + math.log(np.exp(terms - top).sum() * (x[1] - x[0]))) / (order - 1)


@study(
    "private_learning/rdp",
    claims=[INTEGER_ORDER],
    tiny=RdpConfig(rates=(0.1,), sigmas=(2.0,), orders=(2, 3, 16)),
    small=RdpConfig(),
    large=RdpConfig(rates=(0.01, 0.03, 0.1, 0.3, 0.5, 0.9), sigmas=(0.5, 0.8, 1.0, 2.0, 4.0, 8.0), orders=tuple(range(2, 257))),
)
def rdp(config: RdpConfig) -> Iterator[Finding | Series | Stage]:
    """Compare the binomial sum with the divergence on a grid."""
    yield Stage("divergences")
    cells = list(itertools.product(config.rates, config.sigmas, config.orders))
    predicted = [integer_order_rdp(*cell) for cell in cells]
    measured = [divergence_on_grid(*cell) for cell in cells]
    unmixed = [order / (2 * sigma**2) for _, sigma, order in cells]
    yield INTEGER_ORDER.check(predicted=predicted, measured=measured, setting="divergence on a grid")
    yield INTEGER_ORDER.control_check(predicted=predicted, measured=unmixed, setting="without sampling")

    q, sigma = config.rates[0], config.sigmas[len(config.sigmas) // 2]
    chosen = [k for k, cell in enumerate(cells) if cell[:2] == (q, sigma)]
    title = f"The divergence by order, q = {q:g}, σ = {sigma:g}"
    figure = Series("orders", title, x="order α", y="D_α [nats]", claim=INTEGER_ORDER.key, x_scale="log", y_scale="log")
    fine = np.geomspace(1.1, config.orders[-1], 60)
    figure.line("all orders", fine, [sampled_rdp(q, sigma, a) for a in fine], role="predicted")
    figure.line("on a grid, whole orders", [cells[k][2] for k in chosen], [measured[k] for k in chosen], mark="points")
    figure.line("second order in q", fine, fine / 2 * q**2 * math.expm1(sigma**-2), role="predicted")
    yield figure.line("without sampling", fine, fine / (2 * sigma**2), role="control")
