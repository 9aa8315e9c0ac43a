r"""Toss a coin for every other player: semivalues are means over the coin's bias.

Let each of the others take part with chance t, independently; a player's expected marginal contribution is then the partial derivative of
the game's multilinear extension at (t, ..., t). The mean over a uniform t is the Shapley value, t = ½ gives Banzhaf's, and t from a Beta
law gives Beta-Shapley. Along the diagonal the derivative is a polynomial of degree n − 1, so that ⌈n/2⌉ Gauss nodes give the Shapley value
exactly and fewer do not. Small biases of the coin are small coalitions: Beta(16, 1) sees almost nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import roots_jacobi

from theorylab.core.claim import Claim, Equals, Finding
from theorylab.core.config import Config, setting
from theorylab.core.series import Series, Stage
from theorylab.core.source import Source
from theorylab.core.study import study
from theorylab.instruments.games import from_table
from theorylab.instruments.valuation import banzhaf, beta_shapley, shapley
from theorylab.theory.games import banzhaf_of_dividends, from_dividends

COIN = Claim(
    "shapley/semivalues/coin",
    "A semivalue is the mean marginal contribution when the others take part by a coin whose bias is drawn from its law; along the "
    "diagonal that is a polynomial, which half as many Gauss nodes as players integrate exactly.",
    formula=r"\phi_i = \int_0^1 \partial_i f(t, \dots, t)\, d\xi(t), \qquad p_s = \int_0^1 t^s (1-t)^{n-1-s}\, d\xi(t)",
    source=Source(
        "Owen 1972; Dubey, Neyman and Weber 1981; Kwon and Zou 2022",
        "Owen: the integral of the multilinear extension; Dubey et al.: the law of a semivalue; Kwon and Zou: Section 3, Beta(α, β)",
        "doi:10.1287/mnsc.18.5.64, doi:10.1287/moor.6.1.122, arXiv:2110.14049",
    ),
    kind="identity",
    relation=Equals(atol=1e-12),
    control="one Gauss node fewer; and the law of Beta(16, 1) against the Shapley value",
    reading="Shapley weighs all sizes of coalitions alike, Banzhaf looks at those of about half the players, and Beta-Shapley at those "
    "that its law prefers. The law is a choice about which company matters. With sampled coalitions the equality holds in the mean only.",
)


@dataclass(frozen=True, kw_only=True)
class SemivaluesConfig(Config):
    """Games with independent normal dividends; a seed is a game."""

    players: int = setting(10, "players", low=4, high=16)


def integral(dividends: np.ndarray, nodes: int, alpha: float = 1.0, beta: float = 1.0) -> np.ndarray:
    """Mean of ∂f(t, ..., t) over t from Beta(β, α), by Gauss and Jacobi's nodes for that law, (n,)."""
    x, weights = roots_jacobi(nodes, alpha - 1, beta - 1)  # the powers at 1 and at −1
    total = sum(w * banzhaf_of_dividends(dividends, (1 + u) / 2) for u, w in zip(x, weights, strict=True))
    return np.asarray(total / weights.sum())


@study(
    "shapley/semivalues",
    claims=[COIN],
    tiny=SemivaluesConfig(seeds=2, players=6),
    small=SemivaluesConfig(),
    large=SemivaluesConfig(seeds=32, players=14),
)
def semivalues(config: SemivaluesConfig) -> Iterator[Finding | Series | Stage]:
    """Integrate the closed form of the coin's value and compare with values by enumeration."""
    n = config.players
    enough = math.ceil(n / 2)
    dividends = [np.random.default_rng(seed).standard_normal(2**n) / n for seed in config.replica_seeds]
    games = [from_table(torch.as_tensor(from_dividends(a))) for a in dividends]
    yield Stage("enumeration")

    def stacked(measure) -> np.ndarray:
        return np.concatenate([measure(game).values.numpy() for game in games])

    def closed(nodes: int, alpha: float = 1.0, beta: float = 1.0) -> np.ndarray:
        return np.concatenate([integral(a, nodes, alpha, beta) for a in dividends])

    exact = stacked(lambda game: shapley(game, n, method="exact"))
    yield COIN.check(predicted=closed(enough), measured=exact, setting=f"Shapley, {enough} nodes")
    half = np.concatenate([banzhaf_of_dividends(a) for a in dividends])
    yield COIN.check(predicted=half, measured=stacked(lambda game: banzhaf(game, n, method="exact")), setting="Banzhaf, a fair coin")
    for alpha, beta in ((4.0, 1.0), (16.0, 1.0), (1.0, 4.0)):
        found = stacked(lambda game, a=alpha, b=beta: beta_shapley(game, n, alpha=a, beta=b, method="exact"))
        yield COIN.check(predicted=closed(enough, alpha, beta), measured=found, setting=f"Beta({alpha:g}, {beta:g})")
    yield COIN.control_check(predicted=closed(enough - 1), measured=exact, setting=f"{enough - 1} nodes")
    yield COIN.control_check(predicted=closed(enough, 16.0, 1.0), measured=exact, setting="Beta(16, 1) against Shapley")

    t = np.linspace(0, 1, 101)
    curves = np.array([banzhaf_of_dividends(dividends[0], u) for u in t])
    figure = Series("coin", "The value by the coin's bias: its mean is Shapley's", x="bias t of the coin", y="value", claim=COIN.key)
    figure.line("first player", t, curves[:, 0]).line("its mean: Shapley", [0.0, 1.0], [exact[0]] * 2, role="predicted")
    figure.line("at a fair coin: Banzhaf", [0.5], half[:1], role="control", mark="points")
    yield figure
    errors = [float(np.abs(closed(k) - exact).max()) for k in range(1, enough + 2)]
    figure = Series("nodes", "Gauss nodes until the integral is exact", x="nodes", y="largest error", y_scale="log", claim=COIN.key)
    yield figure.line("Gauss-Legendre", range(1, enough + 2), np.maximum(errors, 1e-17))
