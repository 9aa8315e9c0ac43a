"""A private mechanism that sees each row only with chance q is more private by about that factor.

A row that was not drawn leaves no trace, so the two laws to be told apart share all but a part q. The bound is attained: here every data
set of a few bits, every neighbour with a bit more, and every sample are enumerated for randomized response to whether the sample holds a
one. The largest log-ratio of an answer's probabilities is the formula's ε to rounding. Nothing is random, so seeds play no part.
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
from theorylab.theory.amplification import amplified_epsilon

PURE = Claim(
    "private_learning/subsampling/pure",
    "Poisson sampling at rate q turns a mechanism's ε into ln(1 + q(e^ε − 1)), and for randomized response no better is true.",
    formula=r"\varepsilon' = \ln\bigl(1 + q\,(e^{\varepsilon} - 1)\bigr)",
    source=Source(
        "Balle, Barthe and Gaboardi 2018", "Theorem 8 (Poisson sampling) and Section 5 (that it is attained)", "arXiv:1807.01647"
    ),
    kind="identity",
    relation=Equals(atol=1e-12),
    control="the same mechanism on all rows, as if every row were drawn: ε itself",
    reading="Small batches are what makes private training affordable: at small ε, a hundredth of the rows costs a hundredth of the "
    "privacy. For large ε almost nothing is gained, since ε' ≥ ε − ln(1/q). The chance must be real: a loader that shuffles once and "
    "walks through the data, or weighted rows, does not earn it.",
)


@dataclass(frozen=True, kw_only=True)
class SubsamplingConfig(Config):
    """Data sets of up to ``rows`` bits, all of them."""

    rows: int = setting(5, "bits of the smaller data set, at most", low=1, high=8)
    epsilons: tuple[float, ...] = setting((0.1, 1.0, 3.0), "ε of the mechanism without sampling", low=1e-3, high=20.0)
    rates: tuple[float, ...] = setting((0.01, 0.1, 0.5, 0.9), "sampling rates q, below 1", low=1e-6, high=0.999)


def chance_of_yes(data: tuple[int, ...], epsilon: float, q: float) -> float:
    """Probability that the mechanism answers yes: randomized response to "is there a one in the sample?", over all samples."""
    honest = math.exp(epsilon) / (1 + math.exp(epsilon))
    total = 0.0
    for drawn in itertools.product((False, True), repeat=len(data)):
        chance = math.prod(q if d else 1 - q for d in drawn)
        yes = any(bit for bit, d in zip(data, drawn, strict=True) if d)
        total += chance * (honest if yes else 1 - honest)
    return total


def enumerated_epsilon(epsilon: float, q: float, rows: int) -> float:
    """The largest |log-ratio| of an answer's probabilities over all data sets of at most ``rows`` bits and all that have a bit more."""
    worst = 0.0
    for size in range(rows + 1):
        for ones in range(size + 1):  # the mechanism does not see order, so a data set is its number of ones
            data = (1,) * ones + (0,) * (size - ones)
            p = chance_of_yes(data, epsilon, q)
            for bit in (0, 1):
                other = chance_of_yes((*data, bit), epsilon, q)
                worst = max(worst, abs(math.log(other / p)), abs(math.log((1 - other) / (1 - p))))
    return worst


@study(
    "private_learning/subsampling",
    claims=[PURE],
    tiny=SubsamplingConfig(rows=2, epsilons=(1.0,), rates=(0.1, 0.5)),
    small=SubsamplingConfig(),
    large=SubsamplingConfig(rows=8, epsilons=(0.01, 0.1, 1.0, 3.0, 10.0), rates=(0.001, 0.01, 0.1, 0.5, 0.9)),
)
def subsampling(config: SubsamplingConfig) -> Iterator[Finding | Series | Stage]:
    """Enumerate the sampled mechanism's worst log-ratio and compare it with the formula, with sampling and without."""
    yield Stage("enumeration")
    cells = list(itertools.product(config.epsilons, config.rates))
    predicted = [amplified_epsilon(e, q) for e, q in cells]
    measured = [enumerated_epsilon(e, q, config.rows) for e, q in cells]
    always = {e: enumerated_epsilon(e, 1.0, config.rows) for e in config.epsilons}
    yield PURE.check(predicted=predicted, measured=measured, setting="worst log-ratio of randomized response")
    yield PURE.control_check(predicted=predicted, measured=[always[e] for e, _ in cells], setting="every row present")

    figure = Series("amplification", "What sampling makes of ε", x="sampling rate q", y="ε'", claim=PURE.key, x_scale="log", y_scale="log")
    grid = np.geomspace(min(config.rates), 1, 40)
    for e in config.epsilons:
        figure.line(f"formula, ε = {e:g}", grid, [amplified_epsilon(e, q) for q in grid], role="predicted")
        points = [m for (other, _), m in zip(cells, measured, strict=True) if other == e]
        figure.line(f"enumerated, ε = {e:g}", config.rates, points, mark="points")
    yield figure.line("every row present", config.rates, [always[config.epsilons[-1]]] * len(config.rates), role="control")
