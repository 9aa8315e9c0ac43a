"""Weighted least squares finds the Shapley value, if the weights are Shapley's and the sum is imposed.

Fit a game by a sum over players: the worth of each coalition is to be near the sum of its members' values. With the weight
(n − 1)/(C(n, s) s (n − s)) on coalitions of size s, and the values made to add up, the best fit is the Shapley value; with even weights it
is something else. This is what KernelSHAP samples. Imposing the sum by a large weight on the two ends, as is often done, costs digits: the
figure shows how many.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from theorylab.core.claim import Claim, Equals, Finding
from theorylab.core.config import Config, setting
from theorylab.core.series import Series, Stage
from theorylab.core.source import Source
from theorylab.core.study import study
from theorylab.instruments.games import coalitions, from_table
from theorylab.instruments.valuation import shapley
from theorylab.instruments.value_sampling import constrained_least_squares, kernel_weights
from theorylab.theory.games import from_dividends, shapley_of_dividends

REGRESSION = Claim(
    "shapley/kernel/regression",
    "The least-squares fit of a game by a sum over players, with Shapley's kernel as weights and the sum of all values imposed, is the "
    "Shapley value.",
    formula=r"\phi = \arg\min_{\sum_i \phi_i = v(N)} \sum_{S} \frac{n-1}{\binom ns\, s\,(n-s)} \Bigl(v(S) - \sum_{i\in S}\phi_i\Bigr)^2",
    source=Source("Charnes et al. 1988; Lundberg and Lee 2017", "Lundberg and Lee: Theorem 2 (Shapley kernel)", "arXiv:1705.07874"),
    kind="identity",
    relation=Equals(atol=1e-10),
    control="the same regression with even weights",
    reading="Values are the coefficients of the best additive picture of the game, where coalitions of one player or all but one count "
    "most. With sampled coalitions the equality holds in the limit only, and any regularization or selection of players breaks it.",
)


@dataclass(frozen=True, kw_only=True)
class KernelConfig(Config):
    """Games with independent normal dividends; a seed is a game."""

    players: int = setting(10, "players", low=4, high=16)


def with_heavy_ends(worths: Tensor, n: int, weight: float) -> Tensor:
    """The regression with an intercept and a large weight on nobody and on all, in place of the constraint; (n,)."""
    inside = coalitions(n)
    weights = kernel_weights(n)[inside.sum(1)]
    weights[0] = weights[-1] = weight
    design = torch.cat([torch.ones(2**n, 1), inside], 1).double()
    factor = torch.linalg.cholesky(design.T @ (weights[:, None] * design))
    return torch.cholesky_solve((design.T @ (weights * worths))[:, None], factor)[1:, 0]


@study(
    "shapley/kernel",
    claims=[REGRESSION],
    tiny=KernelConfig(seeds=2, players=6),
    small=KernelConfig(),
    large=KernelConfig(seeds=32, players=14),
)
def kernel(config: KernelConfig) -> Iterator[Finding | Series | Stage]:
    """Regress random games on membership, with Shapley's weights and with even ones."""
    n = config.players
    yield Stage("regression over all coalitions")
    dividends = [np.random.default_rng(seed).standard_normal(2**n) / n for seed in config.replica_seeds]
    worths = [torch.as_tensor(from_dividends(a)) for a in dividends]
    predicted = np.concatenate([shapley_of_dividends(a) for a in dividends])
    measured = np.concatenate([shapley(from_table(w), n, method="kernel", budget=2**n).values.numpy() for w in worths])
    inner = coalitions(n)[1:-1].double()
    even = [constrained_least_squares(inner, w[1:-1] - w[0], torch.ones(2**n - 2).double(), float(w[-1] - w[0]))[0].numpy() for w in worths]
    yield REGRESSION.check(predicted=predicted, measured=measured, setting="every player of every game")
    yield REGRESSION.control_check(predicted=predicted, measured=np.concatenate(even), setting="even weights")

    ends = 10.0 ** np.arange(0, 13)
    errors = [float(np.abs(with_heavy_ends(worths[0], n, w).numpy() - predicted[:n]).max()) for w in ends]
    exact = float(np.abs(measured[:n] - predicted[:n]).max())
    figure = Series("ends", "A constraint keeps the digits that a large weight costs", x="weight of the two ends", y="largest error")
    figure.claim, figure.x_scale, figure.y_scale = REGRESSION.key, "log", "log"
    figure.line("large weight on nobody and on all", ends, np.maximum(errors, 1e-17), role="control")
    yield figure.line("constrained", ends[[0, -1]], [max(exact, 1e-17)] * 2)
