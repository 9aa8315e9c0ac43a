r"""Interactions are shared dividends: an index of a coalition is a weighted sum of Möbius coefficients above it.

The Möbius coefficient of a coalition is what it is worth beyond its parts. The Shapley interaction index of a coalition S collects those of
all larger coalitions T, divided by the number of players, S counted as one, among whom they are shared: :math:`t - s + 1`. For single
players that is the Shapley value. The games here are built from their coefficients, so that the prediction needs no transform; the
instrument goes the other way, from the table of worths. Banzhaf's index divides by powers of two instead.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from theorylab.core.claim import Claim, Equals, Finding
from theorylab.core.config import Config, setting
from theorylab.core.series import Series, Stage
from theorylab.core.source import Source
from theorylab.core.study import study
from theorylab.instruments.interactions import interactions
from theorylab.theory.games import from_dividends, interaction_of_dividends

MOBIUS = Claim(
    "shapley/interactions/mobius",
    "The Shapley interaction index of a coalition is the sum of the Möbius coefficients of its supersets, each divided by the number of "
    "players that share it.",
    formula=r"\mathrm{SII}(S) = \sum_{T\supseteq S} \frac{a_T}{t-s+1}",
    source=Source("Grabisch and Roubens 1999", "the interaction index in terms of the Möbius transform", "doi:10.1007/s001820050125"),
    kind="identity",
    relation=Equals(atol=1e-10),
    control="Banzhaf's interaction index, with the weight 2^(s−t)",
    reading="One pass over the table of worths gives every interaction of every order, since all are linear in the same coefficients. A "
    "positive index means that the players are worth more together; it says nothing of whether a third party is what brings them together.",
)


@dataclass(frozen=True, kw_only=True)
class InteractionsConfig(Config):
    """Games with independent normal dividends; a seed is a game."""

    players: int = setting(10, "players", low=4, high=16)
    order: int = setting(3, "largest coalition whose index is compared", low=2, high=4)
    seeds: int = setting(4, "replicas, each with its own random numbers", low=1)


@study(
    "shapley/interactions",
    claims=[MOBIUS],
    tiny=InteractionsConfig(seeds=2, players=6),
    small=InteractionsConfig(),
    large=InteractionsConfig(seeds=16, players=14),
)
def interaction_indices(config: InteractionsConfig) -> Iterator[Finding | Series | Stage]:
    """Compare indices from the table of worths with sums over the coefficients that made it."""
    n = config.players
    dividends = [np.random.default_rng(seed).standard_normal(2**n) / n for seed in config.replica_seeds]
    tables = [torch.as_tensor(from_dividends(a)) for a in dividends]
    predicted: dict[int, np.ndarray] = {}
    for s in range(1, config.order + 1):
        yield Stage(f"coalitions of {s}")
        coalitions = list(itertools.combinations(range(n), s))
        predicted[s] = np.array([interaction_of_dividends(a, S) for a in dividends for S in coalitions])
        found = {index: [interactions(table, config.order, index) for table in tables] for index in ("sii", "banzhaf")}
        measured, other = (np.array([one[S] for one in found[index] for S in coalitions]) for index in ("sii", "banzhaf"))
        yield MOBIUS.check(predicted=predicted[s], measured=measured, setting=f"coalitions of {s}")
        yield MOBIUS.control_check(predicted=predicted[s], measured=other, setting=f"Banzhaf's index, coalitions of {s}")
        if s == 2:
            first = len(coalitions)
            order = np.argsort(predicted[2][:first])
            figure = Series("pairs", "Interactions of pairs", x="sum over dividends", y="from the table of worths", claim=MOBIUS.key)
            figure.line("equal", predicted[2][:first][order], predicted[2][:first][order], role="predicted")
            figure.line("Shapley interaction index", predicted[2][:first][order], measured[:first][order], mark="points")
            yield figure.line("Banzhaf interaction index", predicted[2][:first][order], other[:first][order], role="control", mark="points")
