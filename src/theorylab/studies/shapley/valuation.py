"""Values of training rows on real data: they find wrong labels and good rows, and noise of training moves them.

Three uses, on data that ship with a dependency. Rows whose label was flipped get low values, from nearest neighbours or from bootstrap
samples that leave them out. Rows of the highest Shapley value, estimated from random orders of refitted logistic regressions, are those
whose removal hurts on test rows that the values have not seen. And where the worth is the accuracy of a network whose initial weights are
drawn anew for every coalition, two estimates of one value disagree: by how much, and whether Banzhaf's value agrees better with itself
than Shapley's, is measured by enumeration of all coalitions of eight rows.

The network is trained for ten steps only. That was chosen on other seeds: with sixty steps, or five rows a player, both values agreed with
themselves to a rank correlation above 0.9 and the difference, of either sign, was within the spread over tasks. Of the removal, the
part of the rows that is removed, the number of seeds and that of random orders were chosen on other seeds: how much is lost differs by a
factor of ten between draws of fifty rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from theorylab.core.claim import AtLeast, Claim, Finding, Orders
from theorylab.core.config import Config, setting
from theorylab.core.seeds import derived_seed
from theorylab.core.series import Series, Stage
from theorylab.core.source import Source
from theorylab.core.study import study
from theorylab.data.digits import digits
from theorylab.data.labels import flip_labels
from theorylab.data.tabular import breast_cancer
from theorylab.instruments.data_values import data_oob, knn_shapley
from theorylab.instruments.games import Game, from_table, table
from theorylab.instruments.mislabels import mislabel_detection
from theorylab.instruments.model_games import linear_game, retraining_game
from theorylab.instruments.valuation import banzhaf, shapley
from theorylab.instruments.value_curves import removal_curve
from theorylab.learning.optimizers.sgd import sgd
from theorylab.models.mlp import mlp
from theorylab.stats.lds import spearman

MISLABELS = Claim(
    "shapley/valuation/mislabels",
    "Rows whose label was flipped have the lowest values, by nearest neighbours and by bootstrap samples that leave them out.",
    formula=r"\Pr\bigl(\phi_{\text{flipped}} < \phi_{\text{clean}}\bigr) \ge 0.95",
    source=Source(
        "Jia et al. 2019; Kwon and Zou 2023",
        "Kwon and Zou: the section on detecting mislabeled data",
        "arXiv:1908.08619, arXiv:2304.07718",
    ),
    kind="statistical",
    relation=AtLeast(),
    control="values for test rows whose labels were permuted",
    reading="A wrong label contradicts its neighbours, so it lowers the worth of most coalitions that it joins. The digits are easy for a "
    "nearest-neighbour classifier; where classes overlap, or errors are systematic, honest rows near the border get low values as well.",
)

REMOVAL = Claim(
    "shapley/valuation/removal",
    "Removing the rows of the highest Shapley value first lowers the accuracy on fresh test rows more than removing rows at random.",
    formula=r"\int \bigl(\mathrm{acc}_{\text{random}}(r) - \mathrm{acc}_{\text{highest first}}(r)\bigr)\, dr > 0.01",
    source=Source("Ghorbani and Zou 2019", "the experiments on removing data by value", "arXiv:1904.02868"),
    kind="statistical",
    relation=Orders(0.01),
    control="the same values, permuted among the rows",
    reading="Values found on one set of rows say something of others. The claim is on the order of removal and not on any single row, "
    "whose value is known to a wide interval after some dozens of random orders.",
)

RANK_ROBUST = Claim(
    "shapley/valuation/rank_robust",
    "Where training is noisy, the ranks of Banzhaf values agree better between two runs than those of Shapley values.",
    formula=r"\rho\bigl(\beta^{(1)}, \beta^{(2)}\bigr) - \rho\bigl(\phi^{(1)}, \phi^{(2)}\bigr) > 0",
    source=Source("Wang and Jia 2023", "the experiments on rank stability between runs", "arXiv:2205.15466"),
    kind="statistical",
    relation=Orders(),
    control="the same initial weights for all coalitions: the worth is a function, and both values agree with themselves",
    reading="Shapley gives the few smallest and largest coalitions as much weight as all the others, and a network trained on a handful "
    "of rows depends most on its initial weights. With other noise, or differences that only small coalitions show, the order may turn.",
)


@dataclass(frozen=True, kw_only=True)
class ValuationConfig(Config):
    """Digits and the breast-cancer table; a seed is a draw of rows, of flipped labels, of orders and of initial weights."""

    seeds: int = setting(6, "draws of digits and flipped labels", low=2)
    rows: int = setting(1000, "digits among which labels are flipped", low=50, high=1400)
    test: int = setting(300, "test digits", low=20)
    flipped: float = setting(0.1, "fraction of labels flipped", low=0.01, high=0.4)
    bags: int = setting(200, "bootstrap samples of Data-OOB", low=20)
    draws: int = setting(18, "draws of the rows that are valued by refitting", low=2)
    players: int = setting(50, "rows valued by refitting", low=10, high=250)
    orders: int = setting(20, "random orders of the rows", low=2)
    tasks: int = setting(12, "tasks of the network, each with two runs", low=2)
    groups: int = setting(8, "groups of rows, the players of the network's game", low=3, high=12)
    size: int = setting(1, "rows of a group", low=1)
    steps: int = setting(10, "training steps of the network", low=1)


def agreement_of(a: Tensor, b: Tensor) -> float:
    """Rank correlation without the rounding in it, so that equal rankings agree exactly and a difference of two such is zero."""
    return round(float(spearman(a, b)), 12)


@study(
    "shapley/valuation",
    claims=[MISLABELS, REMOVAL, RANK_ROBUST],
    tiny=ValuationConfig(seeds=5, rows=200, test=100, bags=60, draws=24, players=30, orders=6, tasks=5, groups=6),
    small=ValuationConfig(),
    large=ValuationConfig(seeds=30, draws=60, players=100, orders=1000, bags=2000, tasks=60, groups=10, size=20, steps=300),
)
def valuation(config: ValuationConfig) -> Iterator[Finding | Series | Stage]:
    """Find flipped labels, remove rows by value, and value groups of rows twice."""
    yield from check_mislabels(config)
    yield from check_removal(config)
    yield from check_ranks(config)


def check_mislabels(config: ValuationConfig) -> Iterator[Finding | Series | Stage]:
    """How well low values find flipped labels."""
    yield Stage("flipped labels")
    near, bags, permuted, shown = [], [], [], []
    for seed in config.replica_seeds:
        x, y = digits(config.rows + config.test, seed=seed)
        train, test = slice(0, config.rows), slice(config.rows, None)
        flipped = flip_labels(y[train], config.flipped, seed=seed)
        labels, wrong = flipped.y, flipped.wrong
        shuffled = y[test][torch.randperm(config.test, generator=torch.Generator().manual_seed(seed))]
        detection = mislabel_detection(knn_shapley(x[train], labels, x[test], y[test], k=5), wrong)
        shown = shown or [detection]
        near.append(detection.auc.value)
        permuted.append(mislabel_detection(knn_shapley(x[train], labels, x[test], shuffled, k=5), wrong).auc.value)
        bags.append(mislabel_detection(data_oob(x[train], labels, replicas=config.bags, seed=seed), wrong).auc.value)
    yield MISLABELS.check(predicted=0.95, measured=near, setting="KNN-Shapley, area under the curve")
    yield MISLABELS.check(predicted=0.95, measured=bags, setting="Data-OOB, area under the curve")
    yield MISLABELS.control_check(predicted=0.95, measured=permuted, setting="KNN-Shapley, test labels permuted")
    figure = Series("found", "Wrong labels, found from the lowest value up", x="part of the rows looked at", y="part of the flipped found")
    figure.claim = MISLABELS.key
    figure.line("KNN-Shapley", shown[0].inspected, shown[0].found)
    yield figure.line("at random", [0.0, 1.0], [0.0, 1.0], role="control")


def check_removal(config: ValuationConfig) -> Iterator[Finding | Series | Stage]:
    """Accuracy on fresh rows as rows are removed, by value and otherwise."""
    yield Stage("removal")
    gains, controls, curves = [], [], []
    n, every = config.players, max(1, config.players // 20)
    most = int(0.8 * n)  # the last few rows, often of one class, would decide the area by chance
    for seed in range(config.seed, config.seed + config.draws):
        x, y = breast_cancer(seed=seed)
        half = n + (len(y) - n) // 2
        fresh = Game(linear_game(x[:n], y[:n], x[half:], y[half:]), n)
        values = shapley(
            linear_game(x[:n], y[:n], x[n:half], y[n:half]), n, method="permutation", budget=2 + config.orders * (n - 1), seed=seed
        ).values
        highest = removal_curve(values, fresh, every=every, most=most, baseline=20, seed=derived_seed(seed, "baseline"))
        lowest = removal_curve(values, fresh, order="lowest", every=every, most=most, baseline=0)
        gains.append(-highest.excess.value)
        generator = torch.Generator().manual_seed(seed)
        permuted = [values[torch.randperm(n, generator=generator)] for _ in range(20)]
        shuffled = [removal_curve(v, fresh, every=every, most=most, baseline=0).area for v in permuted]
        controls.append(float(highest.random_areas.mean()) - float(np.mean(shuffled)))
        curves.append((highest.worths, highest.random.mean(0), lowest.worths))
    yield REMOVAL.check(measured=gains, setting="mean accuracy lost along the curve")
    yield REMOVAL.control_check(measured=controls, setting="values permuted, mean of twenty permutations")
    high, mid, low = (torch.stack([c[k] for c in curves]).mean(0) for k in range(3))
    figure = Series("removal", "Rows of high value are missed", x="rows removed", y="accuracy on fresh rows", claim=REMOVAL.key)
    figure.line("highest value first", highest.moved, high).line("at random", highest.moved, mid, role="control")
    yield figure.line("lowest value first", highest.moved, low, mark="points")


def check_ranks(config: ValuationConfig) -> Iterator[Finding | Series | Stage]:
    """Two runs of all coalitions of groups of rows, with initial weights of their own and with common ones."""
    n, count = config.groups, config.groups * config.size
    gains, still, agreement = [], [], []
    for k in range(config.tasks):
        yield Stage(f"network, task {k + 1} of {config.tasks}")
        seed = config.seed + k
        x, y = digits(count + config.test, seed=seed)
        data, test = (x[:count], y[:count]), (x[count:], y[count:])

        def runs(noise: str, seed=seed, data=data, test=test) -> list[Tensor]:
            def value(masks: Tensor, start: int) -> Tensor:
                game = retraining_game(
                    lambda: mlp([64, 8, 10]),
                    nn.functional.cross_entropy,
                    data,
                    test,
                    optimizer=sgd(0.2),
                    steps=config.steps,
                    seed=start,
                    noise=noise,  # type: ignore[arg-type]
                    progress=False,
                )
                return game(masks.repeat_interleave(config.size, 1))

            return [table(lambda masks, s=s: value(masks, s), n) for s in (seed, seed + (100_000 if noise == "fresh" else 0))]

        noisy = runs("fresh")
        agree = [agreement_of(*(f(from_table(w), n).values for w in noisy)) for f in (banzhaf, shapley)]
        agreement.append(agree)
        gains.append(agree[0] - agree[1])
        if k < 2:  # nothing is random in these, so that two tasks tell as much as all
            same = runs("none")
            fixed = [agreement_of(*(f(from_table(w), n).values for w in same)) for f in (banzhaf, shapley)]
            still.append(fixed[0] - fixed[1])
    yield RANK_ROBUST.check(measured=gains, setting="rank correlation between runs, Banzhaf's less Shapley's")
    yield RANK_ROBUST.control_check(measured=still, setting="common initial weights")
    order = np.argsort([a[1] for a in agreement])
    task = np.arange(1, config.tasks + 1)
    figure = Series("ranks", "Agreement of two runs", x="task, by Shapley's agreement", y="rank correlation", claim=RANK_ROBUST.key)
    figure.line("Banzhaf", task, np.array(agreement)[order, 0], mark="points")
    yield figure.line("Shapley", task, np.array(agreement)[order, 1], role="control", mark="points")
