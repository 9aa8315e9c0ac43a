"""Least squares over all subsets gives the Banzhaf value: a datamodel is a Banzhaf value of the training rows.

A datamodel predicts what a model will do from which rows it was trained on, by linear regression on their membership in random training
sets. If each row is in with chance ½, the coefficients that it estimates are the Banzhaf values of the rows; at another chance they are the
biased Banzhaf values of that chance, which are different numbers. The figure shows the regression on sampled coalitions, and the plain
difference of means that reuses every coalition for every player, approach the same values.
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
from theorylab.instruments.valuation import banzhaf
from theorylab.learning.linear import ridge
from theorylab.theory.games import banzhaf_of_dividends, from_dividends

REGRESSION = Claim(
    "shapley/banzhaf/regression",
    "The coefficients of the least-squares fit of the worth by membership, over subsets that each player joins with chance p, are the "
    "Banzhaf values of that chance.",
    formula=r"\arg\min_{\phi, c} \mathbb{E}_{S\sim p} \Bigl(v(S) - c - \sum_{i\in S} \phi_i\Bigr)^2 "
    r"= \mathbb{E}_{S\sim p}\,\Delta_i v(S)",
    source=Source(
        "Hammer and Holzman 1992; Wang and Jia 2023",
        "Hammer and Holzman: the best linear approximation of a game (p = 1/2); Wang and Jia: the relation to datamodels",
        "Zeitschrift für Operations Research 36:3-21; arXiv:2205.15466",
    ),
    kind="identity",
    relation=Equals(atol=1e-10),
    control="the regression at p = 0.2 against the values at p = 1/2",
    reading="Regression on membership and a mean marginal contribution are the same thing, because under independent membership the "
    "players are uncorrelated. A lasso penalty, or training sets of a fixed size, breaks that; and the chance p is part of the answer.",
)


@dataclass(frozen=True, kw_only=True)
class BanzhafConfig(Config):
    """Games with independent normal dividends; a seed is a game."""

    players: int = setting(10, "players", low=4, high=16)
    p: float = setting(0.2, "the other chance of membership", low=0.05, high=0.45)


def datamodel(worths: Tensor, n: int, p: float) -> np.ndarray:
    """Coefficients (n,) of the regression over all subsets, weighted by their probability."""
    inside = coalitions(n)
    size = inside.sum(1).double()
    chance = p**size * (1 - p) ** (n - size)
    return ridge(inside.double(), worths, chance[None], l2=0.0).weights[0, :, 0].numpy()


@study(
    "shapley/banzhaf",
    claims=[REGRESSION],
    tiny=BanzhafConfig(seeds=2, players=6),
    small=BanzhafConfig(),
    large=BanzhafConfig(seeds=32, players=14),
)
def banzhaf_regression(config: BanzhafConfig) -> Iterator[Finding | Series | Stage]:
    """Regress random games on membership at two chances, and sample the fair one."""
    n = config.players
    yield Stage("regression over all subsets")
    dividends = [np.random.default_rng(seed).standard_normal(2**n) / n for seed in config.replica_seeds]
    worths = [torch.as_tensor(from_dividends(a)) for a in dividends]
    fair, biased = (np.concatenate([banzhaf_of_dividends(a, p) for a in dividends]) for p in (0.5, config.p))
    for p, predicted in ((0.5, fair), (config.p, biased)):
        measured = np.concatenate([datamodel(w, n, p) for w in worths])
        yield REGRESSION.check(predicted=predicted, measured=measured, setting=f"p = {p:g}")
    yield REGRESSION.control_check(predicted=fair, measured=measured, setting=f"regression at p = {config.p:g}, values at p = 0.5")

    yield Stage("sampled")
    budgets, game = [2**k for k in range(5, 13)], from_table(worths[0])
    errors: dict[str, list[float]] = {"regression": [], "difference of means": []}
    for m in budgets:
        found = {name: [] for name in errors}
        for seed in config.replica_seeds:
            masks = torch.rand(m, n, generator=torch.Generator().manual_seed(seed)) < 0.5
            fit = ridge(masks.double(), game(masks), torch.ones(1, m), l2=1e-9).weights[0, :, 0].numpy()
            means = banzhaf(game, n, method="msr", budget=m, seed=seed).values.numpy()
            for name, values in zip(found, (fit, means), strict=True):
                found[name].append(np.sqrt(np.mean((values - fair[:n]) ** 2)))
        for name, each in found.items():
            errors[name].append(float(np.mean(each)))
    figure = Series("sampled", "Two estimators of one value", x="coalitions", y="root mean squared error", x_scale="log", y_scale="log")
    figure.claim = REGRESSION.key
    yield figure.line("regression on membership", budgets, errors["regression"]).line(
        "difference of means", budgets, errors["difference of means"], role="control"
    )
