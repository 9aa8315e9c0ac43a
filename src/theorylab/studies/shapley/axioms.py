"""The Shapley value adds up, treats equals equally, gives nothing for nothing, and is linear in the game.

Random games of a few players are enumerated in double precision. Every order of arrival by itself hands out the whole worth, so that even
the mean over two random orders adds up; what it lacks until many orders are drawn is the equal treatment of equals. A runway shared by
planes of different length is the textbook's example: every stretch is shared evenly by those who need it. Banzhaf's value, which weighs all
coalitions alike, treats equals equally too, but it does not add up.
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
from theorylab.instruments.valuation import banzhaf, shapley
from theorylab.theory.games import airport

EFFICIENCY = Claim(
    "shapley/axioms/efficiency",
    "The Shapley values add up to what all players are worth together, equal players have equal values, a player who adds nothing has "
    "none, and the values of a combination of games are the combination of the values.",
    formula=r"\sum_i \phi_i(v) = v(N) - v(\emptyset)",
    source=Source("Shapley 1953", "Axioms 1-3 and the uniqueness theorem", "doi:10.1515/9781400881970-018"),
    kind="identity",
    relation=Equals(atol=1e-12),
    control="the Banzhaf value of the same games, which does not add up",
    reading="The four properties determine the division: whoever accepts them has no choice left. They say nothing of whether the worths "
    "were the right ones, and a value that gives up the first, such as Banzhaf's, may keep the other three.",
)

AIRPORT = Claim(
    "shapley/axioms/airport",
    "Where a coalition is worth its largest cost, each stretch of cost is shared evenly by the players who need it.",
    formula=r"\phi_i = \sum_{j \le i} \frac{c_j - c_{j-1}}{n - j + 1}",
    source=Source("Littlechild and Owen 1973", "the airport game and its Shapley value", "doi:10.1287/mnsc.20.3.370"),
    kind="identity",
    relation=Equals(atol=1e-12),
    control="the Banzhaf value of the same game",
    reading="An exponential sum over coalitions becomes a sum over planes, since the game is made of one unanimity game a stretch. Large "
    "players pay for what they alone need; with another game for the same runway, say tolls by traffic, the shares change.",
)


@dataclass(frozen=True, kw_only=True)
class AxiomsConfig(Config):
    """Games with independent standard normal worths; a seed is a game."""

    players: int = setting(10, "players", low=4, high=16)


def equal_pair(worths: Tensor) -> Tensor:
    """The game made symmetric in players 0 and 1."""
    swapped = coalitions(len(worths).bit_length() - 1)[:, [1, 0, *range(2, len(worths).bit_length() - 1)]]
    return (worths + from_table(worths)(swapped)) / 2


@study(
    "shapley/axioms",
    claims=[EFFICIENCY, AIRPORT],
    tiny=AxiomsConfig(seeds=2, players=6),
    small=AxiomsConfig(),
    large=AxiomsConfig(seeds=32, players=14),
)
def axioms(config: AxiomsConfig) -> Iterator[Finding | Series | Stage]:
    """Check the four properties on random games, and the runway on random costs."""
    n, gaps = config.players, {"sum": [], "two orders": [], "equals": [], "nothing": [], "linear": []}
    control, shown = [], []
    yield Stage("random games")
    for seed in config.replica_seeds:
        worths, other = torch.randn(2, 2**n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        total = float(worths[-1] - worths[0])
        values = shapley(from_table(worths), n, method="exact").values
        gaps["sum"].append(float(values.sum()) - total)
        two = shapley(from_table(worths), n, method="permutation", budget=2 * n, seed=seed)
        gaps["two orders"].append(float(two.values.sum()) - total)
        pair = shapley(from_table(equal_pair(worths)), n, method="exact").values
        gaps["equals"].append(float(pair[0] - pair[1]))
        joined = shapley(from_table(torch.cat([worths, worths])), n + 1, method="exact").values  # the last player changes nothing
        gaps["nothing"].append(float(joined[n]))
        apart = 2 * values - 3 * shapley(from_table(other), n, method="exact").values
        gaps["linear"].append(float((shapley(from_table(2 * worths - 3 * other), n, method="exact").values - apart).abs().max()))
        unfair = banzhaf(from_table(worths), n, method="exact").values
        control.append(float(unfair.sum()) - total)
        shown.append((total, float(values.sum()), float(unfair.sum())))
    names = {
        "sum": "sum less v(N) − v(∅)",
        "two orders": "the same, of the mean over two random orders",
        "equals": "difference of two equal players",
        "nothing": "value of a player who adds nothing",
        "linear": "largest gap of φ(2v − 3w) to 2φ(v) − 3φ(w)",
    }
    for key, name in names.items():
        yield EFFICIENCY.check(predicted=0.0, measured=gaps[key], setting=name)
    yield EFFICIENCY.control_check(predicted=0.0, measured=control, setting="Banzhaf: sum less v(N) − v(∅)")
    totals, fair, unfair = np.array(sorted(shown)).T
    figure = Series("sums", "Shapley values add up, Banzhaf values do not", x="v(N) − v(∅)", y="sum of the values", claim=EFFICIENCY.key)
    figure.line("efficiency", totals, totals, role="predicted").line("Shapley", totals, fair, mark="points")
    yield figure.line("Banzhaf", totals, unfair, role="control", mark="points")

    yield Stage("runway")
    costs = [np.random.default_rng(seed).exponential(size=n) for seed in config.replica_seeds]
    predicted = [airport(c) for c in costs]
    games = [lambda masks, c=c: (masks * torch.as_tensor(c)).amax(1) for c in costs]
    measured = [shapley(game, n, method="exact").values.numpy() for game in games]
    others = [banzhaf(game, n, method="exact").values.numpy() for game in games]
    yield AIRPORT.check(predicted=np.concatenate(predicted), measured=np.concatenate(measured), setting="exponential costs")
    yield AIRPORT.control_check(predicted=np.concatenate(predicted), measured=np.concatenate(others), setting="Banzhaf")
    order = np.argsort(costs[0])
    figure = Series("airport", "Who pays for the runway", x="cost of the player alone", y="share", claim=AIRPORT.key)
    figure.line("closed form", costs[0][order], predicted[0][order], role="predicted")
    figure.line("Shapley, by enumeration", costs[0][order], measured[0][order], mark="points")
    yield figure.line("Banzhaf", costs[0][order], others[0][order], role="control", mark="points")
