"""Which scores predict retraining: hundreds of networks trained on halves of the digits, and what each curvature says of them beforehand.

For random halves of the rows, networks are really trained, two seeds each, and measured by the margin of the right class on other digits.
The linear datamodeling score is the rank correlation of these outcomes with sums of scores that were computed from networks trained on all
rows. Two seeds tell how much of an outcome is the noise of training, and so how high any score can come: the noise ceiling.

Influence with the Gauss-Newton matrix predicts best, its Kronecker approximation nearly as well and at a fraction of the cost, and
products of gradients, without any curvature, worst. With a damping of a thousand every curvature is gone, and so is the order. Averaging
over checkpoints predicts better than any of them; copies of one checkpoint add nothing.

The order is one of networks near the optimum of their objective, wide enough to have about the same one from every seed. The weight decay
was chosen for that, on other seeds: at λ = 1e-3 and as many steps the networks are still under way, and there EK-FAC was as good as the
Gauss-Newton matrix (.64 and .63 over four checkpoints, products of gradients .58). With 8 hidden units and 200 digits, EK-FAC was the
better by .03 for two base seeds: networks as narrow as that end in different minima, of which the exact curvature of one knows too much. So
the first inequality is no law, and the second is. Rows and subsets were set by the time of a laptop. The interval is over checkpoints,
for the subsets at hand.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from theorylab.core.claim import Claim, Equals, Finding, Orders
from theorylab.core.config import Config, setting
from theorylab.core.problem import Problem
from theorylab.core.seeds import derived_seed
from theorylab.core.series import Series, Stage
from theorylab.core.source import Source
from theorylab.core.study import study
from theorylab.data.digits import digits
from theorylab.instruments.attribution import influence
from theorylab.instruments.trak import margin
from theorylab.learning.optimizers.base import Optimizer
from theorylab.learning.optimizers.sgd import sgd
from theorylab.learning.population import Population
from theorylab.learning.retraining import half_subsets, retrain
from theorylab.models.mlp import mlp
from theorylab.stats.lds import lds as score
from theorylab.stats.lds import noise_ceiling, spearman

LINEAR_UTILITY = Claim(
    "influence/lds/linear_utility",
    "The true coefficients of an outcome that is linear in membership have a linear datamodeling score of one.",
    formula=r"f(S) = \sum_{i\in S} c_i \;\Rightarrow\; \mathrm{LDS}(c) = 1",
    source=Source("Ilyas et al. 2022", "Section 2 (datamodels: linear functions of membership)", "arXiv:2202.00622"),
    kind="identity",
    relation=Equals(atol=1e-12),
    control="the coefficients in another order",
    reading="The score asks one thing of an attribution: that its sums over a subset put the subsets in the right order. It is blind to a "
    "constant factor, and an outcome that is not additive over rows caps it below one even without noise.",
)

CURVATURE_ORDER = Claim(
    "influence/lds/curvature_order",
    "The better the curvature, the better the prediction of retraining: Gauss-Newton above EK-FAC above products of gradients.",
    formula=r"\mathrm{LDS}_{\mathrm{GGN}} > \mathrm{LDS}_{\mathrm{EKFAC}} > \mathrm{LDS}_{\nabla\cdot\nabla}",
    source=Source(
        "Bae et al. 2024", "the experiments, where EK-FAC influence is compared with gradient products by LDS", "arXiv:2405.12186"
    ),
    kind="statistical",
    relation=Orders(gap=0.005),
    control="damping 1000, where every curvature is the identity",
    reading="Two rows with alike gradients share their influence, and it takes the curvature to know how many such rows there are. The "
    "order is that of networks close to a minimum with the damping of their training; far from it, the finer matrix need not be better.",
)

ENSEMBLES_HELP = Claim(
    "influence/lds/ensembles_help",
    "Averaging scores over checkpoints of several seeds predicts retraining better than a single checkpoint.",
    formula=r"\mathrm{LDS}\Bigl(\tfrac1M \sum_m \tau^{(m)}\Bigr) > \tfrac1M \sum_m \mathrm{LDS}\bigl(\tau^{(m)}\bigr)",
    source=Source("Park et al. 2023", "Section 3 (Step 4 of TRAK: ensembling over independently trained models)", "arXiv:2303.14186"),
    kind="statistical",
    relation=Orders(gap=0.005),
    control="copies of one checkpoint",
    reading="A retrained network is another draw of initialization and order, so that scores of one checkpoint carry the accidents of its "
    "own. Averages lose them. The gain ends where what is left is the nonlinearity of retraining itself.",
)

CURVATURES = {"Gauss-Newton": "ggn", "EK-FAC": "ekfac", "products of gradients": "identity"}
HEAVY = 1000.0
MEMBERS = 4
"""Checkpoints in an ensemble."""


@dataclass(frozen=True, kw_only=True)
class LdsConfig(Config):
    """A seed is a network trained on all rows; the digits, the subsets and their networks are the same for all."""

    seeds: int = setting(16, "checkpoints, a multiple of 4 that are at least 8", low=8)
    rows: int = setting(300, "digits n to train on", low=20, high=1500)
    targets: int = setting(60, "digits that are predicted", low=2, high=297)
    width: int = setting(16, "hidden units", low=2)
    subsets: int = setting(128, "halves of the rows that are retrained on", low=16)
    retrainings: int = setting(2, "networks on each half", low=2)
    decay: float = setting(1e-2, "weight decay and damping λ", low=1e-6)
    steps: int = setting(300, "steps of training", low=1)
    batch: int = setting(50, "rows of a minibatch", low=1)
    step_size: float = setting(0.1, "step size, with momentum 0.9", low=1e-4)


@study(
    "influence/lds",
    claims=[LINEAR_UTILITY, CURVATURE_ORDER, ENSEMBLES_HELP],
    tiny=LdsConfig(seeds=8, rows=100, targets=40, width=24, subsets=32, steps=200),
    small=LdsConfig(),
    large=LdsConfig(seeds=32, rows=1000, targets=250, width=32, subsets=512, retrainings=8, steps=2000),
)
def lds(config: LdsConfig) -> Iterator[Finding | Series | Stage]:
    """Retrain on halves, score by each curvature at each checkpoint, and compare."""
    yield Stage("a linear outcome")
    yield from check_linear(config)

    x, y = (t.to(config.device) for t in digits(config.rows + config.targets, dtype=config.torch_dtype, seed=config.seed))
    train, test = (x[: config.rows], y[: config.rows]), (x[config.rows :], y[config.rows :])
    masks = half_subsets(config.rows, config.subsets, seed=config.seed)
    make = partial(mlp, [64, config.width, 10])
    options = {"steps": config.steps, "batch_size": config.batch, "device": config.device, "progress": False}
    yield Stage(f"retraining {config.subsets * config.retrainings} networks")
    others = [derived_seed(config.seed, "retraining", k) for k in range(config.retrainings)]
    outputs = retrain(make, cross_entropy, train, masks, others, optimizer=method(config), targets=test, target=margin, **options)

    yield Stage("scoring")
    population = Population(
        make, cross_entropy, train, optimizer=method(config), seeds=config.replica_seeds, batch_size=config.batch, device=config.device
    )
    population.train(config.steps)
    problems = [population.problem(k) for k in range(config.seeds)]

    def scores(problem: Problem, curvature: str, damping: float) -> Tensor:
        return influence(problem, test, target=margin, curvature=curvature, damping=damping)  # pyright: ignore[reportArgumentType]

    every = {name: torch.stack([scores(p, kind, config.decay) for p in problems]) for name, kind in CURVATURES.items()}
    heavy = {name: torch.stack([scores(p, kind, HEAVY) for p in problems[:MEMBERS]]) for name, kind in CURVATURES.items()}
    ceiling = noise_ceiling(outputs)
    yield from check_order(every, heavy, masks, outputs, ceiling.value)
    yield from check_ensembles(every["Gauss-Newton"], masks, outputs)


def method(config: LdsConfig) -> Optimizer:
    """Gradient descent on the objective with weight decay."""
    return sgd(config.step_size, momentum=0.9, weight_decay=config.decay)


def alone(scores: Tensor, masks: Tensor, outputs: Tensor) -> float:
    """The score without its interval, whose jackknife costs twenty times as much."""
    return float(spearman(masks.to(scores) @ scores, outputs.mean(1)).mean())


def check_linear(config: LdsConfig) -> Iterator[Finding | Series]:
    """Random coefficients, right and in another order."""
    right, wrong, shown = [], [], None
    for seed in config.replica_seeds:
        generator = torch.Generator().manual_seed(seed)
        masks = half_subsets(config.rows, 2 * config.subsets, seed=seed).double()
        effects = torch.randn(config.rows, 1, generator=generator, dtype=torch.float64)
        mixed = effects[torch.randperm(config.rows, generator=generator)]
        outcome = masks @ effects
        right.append(alone(effects, masks, outcome[:, None]))
        wrong.append(alone(mixed, masks, outcome[:, None]))
        shown = shown or (outcome[:, 0], (masks @ mixed)[:, 0])
    yield LINEAR_UTILITY.check(predicted=1.0, measured=right)
    yield LINEAR_UTILITY.control_check(predicted=1.0, measured=wrong, setting="coefficients permuted")
    assert shown is not None
    outcome, mixed = shown
    order = outcome.argsort()
    title = "Sums of the true coefficients order the outcomes"
    figure = Series("linear", title, x="outcome of a subset", y="sum of scores over it", claim=LINEAR_UTILITY.key)
    figure.line("true coefficients", outcome[order], outcome[order])
    yield figure.line("permuted", outcome[order], mixed[order], role="control", mark="points")


def check_order(
    every: dict[str, Tensor], heavy: dict[str, Tensor], masks: Tensor, outputs: Tensor, ceiling: float
) -> Iterator[Finding | Series]:
    """Scores of each curvature, in pairs at each checkpoint."""
    found = {name: np.array([alone(s, masks, outputs) for s in each]) for name, each in every.items()}
    gone = {name: np.array([alone(s, masks, outputs) for s in each]) for name, each in heavy.items()}
    names = list(CURVATURES)
    note = f"noise ceiling {ceiling:.3f}; interval over checkpoints"
    for better, worse in pairwise(names):
        setting = f"{better} less {worse}"
        yield CURVATURE_ORDER.check(measured=found[better] - found[worse], setting=setting, note=note)
        yield CURVATURE_ORDER.control_check(measured=gone[better] - gone[worse], setting=f"{setting}, damping {HEAVY:g}")
    places = np.arange(1, len(found[names[0]]) + 1)
    title = "The better the curvature, the better retraining is predicted"
    figure = Series("order", title, x="checkpoint", y="linear datamodeling score", claim=CURVATURE_ORDER.key)
    figure.line("noise ceiling", places, np.full(len(places), ceiling), role="predicted")
    for name in names:
        figure.line(name, places, found[name], mark="points")
    yield figure.line(f"Gauss-Newton, damping {HEAVY:g}", places[:MEMBERS], gone[names[0]], role="control", mark="points")


def check_ensembles(scores: Tensor, masks: Tensor, outputs: Tensor) -> Iterator[Finding | Series]:
    """Ensembles of disjoint checkpoints against the mean of their members; and the score as an ensemble grows."""
    groups = scores.split(MEMBERS)
    groups = [g for g in groups if len(g) == MEMBERS]

    def gain(group: Tensor) -> float:
        return alone(group.mean(0), masks, outputs) - float(np.mean([alone(s, masks, outputs) for s in group]))

    yield ENSEMBLES_HELP.check(measured=[gain(g) for g in groups], setting=f"ensembles of {MEMBERS}, Gauss-Newton")
    copies = [gain(g[:1].expand_as(g)) for g in groups]
    yield ENSEMBLES_HELP.control_check(measured=copies, setting="copies of one checkpoint")

    sizes = [k for k in (1, 2, 4, 8, 16, 32) if k <= len(scores)]
    whole = [score(scores[:k].mean(0), masks, outputs) for k in sizes]
    title = "Averaging over checkpoints predicts better than any of them"
    figure = Series("ensembles", title, x="checkpoints", y="linear datamodeling score", claim=ENSEMBLES_HELP.key, x_scale="log")
    intervals = [e.interval() for e in whole]
    figure.line(
        "ensemble", sizes, [e.value for e in whole], low=[a for a, _ in intervals], high=[b for _, b in intervals], band="99 % interval"
    )
    yield figure.line("copies of the first", sizes, [whole[0].value] * len(sizes), role="control")
