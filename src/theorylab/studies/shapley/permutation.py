"""Random orders estimate the Shapley value with an error that falls as the root of their number.

Each random order gives every player one marginal contribution, whose mean over orders is the value. The orders are independent, so the
error of a mean over M of them falls as one over √M, at a constant that depends on how much contributions vary with company. Repeating the
same orders adds evaluations and no information. A hundred times more orders buy one digit: this is why exact algorithms, where there are
any, matter.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from theorylab.core.claim import Claim, Finding, Scales
from theorylab.core.config import Config, setting
from theorylab.core.series import Series, Stage
from theorylab.core.source import Source
from theorylab.core.study import study
from theorylab.instruments.games import from_table
from theorylab.instruments.valuation import shapley
from theorylab.stats.fits import power_law
from theorylab.theory.games import from_dividends, shapley_of_dividends

RATE = Claim(
    "shapley/permutation/rate",
    "The error of the Shapley value estimated from M random orders falls as the inverse root of M.",
    formula=r"\|\hat\phi_M - \phi\| \propto M^{-1/2}",
    source=Source(
        "Castro, Gómez and Tejada 2009",
        "the sampling estimator and its error by the central limit theorem",
        "doi:10.1016/j.cor.2008.04.004",
    ),
    kind="asymptotic",
    relation=Scales(-0.5, 0.1),
    control="ten orders, repeated as often as needed",
    reading="Twice the accuracy costs four times the evaluations, whatever the game. The constant is the game's: players whose "
    "contribution depends little on company are estimated at once, and stratified or paired orders lower it without changing the rate.",
)


@dataclass(frozen=True, kw_only=True)
class PermutationConfig(Config):
    """A game of independent normal dividends; a seed is a game and the orders drawn for it."""

    seeds: int = setting(50, "replicas, each with its own random numbers", low=1)
    players: int = setting(10, "players", low=4, high=16)
    least: int = setting(5, "log₂ of the fewest orders", low=3)
    most: int = setting(12, "log₂ of the most orders", low=6)
    repeated: int = setting(10, "orders of the control", low=2)


@study(
    "shapley/permutation",
    claims=[RATE],
    tiny=PermutationConfig(seeds=24, players=6, most=9),
    small=PermutationConfig(),
    large=PermutationConfig(seeds=200, most=15),
)
def permutation(config: PermutationConfig) -> Iterator[Finding | Series | Stage]:
    """Estimate random games from more and more orders, and from the same ten."""
    n, counts = config.players, [2**k for k in range(config.least, config.most + 1)]
    errors, repeated = [], []
    yield Stage("random orders")
    for seed in config.replica_seeds:
        dividends = np.random.default_rng(seed).standard_normal(2**n) / n
        game, exact = from_table(torch.as_tensor(from_dividends(dividends))), shapley_of_dividends(dividends)

        def error(orders: int, game=game, exact=exact, seed=seed) -> float:
            found = shapley(game, n, method="permutation", budget=2 + orders * (n - 1), seed=seed).values.numpy()
            return float(np.sqrt(np.mean((found - exact) ** 2)))

        errors.append([error(m) for m in counts])
        repeated.append([error(config.repeated)] * len(counts))  # the mean over copies of ten orders is that over the ten
    yield RATE.check(measured=[power_law(counts, e) for e in errors], setting=f"{counts[0]} to {counts[-1]} orders")
    yield RATE.control_check(measured=[power_law(counts, e) for e in repeated], setting=f"the same {config.repeated} orders")

    mean, same = np.mean(errors, 0), np.mean(repeated, 0)
    figure = Series("rate", "Four times the orders, half the error", x="orders", y="root mean squared error", claim=RATE.key)
    figure.x_scale = figure.y_scale = "log"
    figure.line("inverse root", counts, mean[0] * (np.array(counts) / counts[0]) ** -0.5, role="predicted")
    low, high = np.quantile(errors, [0.1, 0.9], axis=0)
    figure.line("random orders", counts, mean, low=low, high=high, band="middle 80 % of games")
    yield figure.line("the same ten orders", counts, same, role="control")
