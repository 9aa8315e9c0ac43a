"""An audit of measures: which of them say how well a network generalizes, and in which settings they stop saying so.

Dozens of quantities that can be had without a test set are said to predict the generalization gap. Here a grid of widths, depths, step
sizes and batch sizes (and decays, at the large scale) is trained to one loss, on digits a fifth of whose labels were redrawn. Each measure
is asked, setting by setting, whether it orders networks that differ in this setting alone as their gaps do: 1 if always, 0 for a coin, −1
if always the wrong way round. The mean over settings is the granulated τ of Jiang et al. (2020); the least of them is what Dziugaite et al.
(2020) hold against it, as an explanation that fails under one intervention explains nothing.

A worst setting found on the same networks would look worse than it is, and a best measure better. So both are chosen on a third of the
seeds, and read off at the others. To leave out one seed at a time and choose on the rest would make more of the networks, but numbers that
share their choice are no independent replicas: resampling whole seeds showed intervals half as wide as they should be.

The gap on other rows, taken as a measure of the gap on these, shows what could be reached: where a setting has no effect that these rows
can tell from chance, no measure can be right, and to find none that is says nothing of measures. So this gap is the control of both
statements. Weight decay is such a setting on networks of this size, and is therefore left to the large scale, where gaps on other rows
order three decays as these do, with τ = .6 (pilot of 8 seeds, base seed 5000). The steps there are the largest with which deep, narrow
networks train stably, and the decays the largest with which all arrive at the common loss; a first grid, with up to twice the decay, to
half the loss, left a third of its networks short of it, and most of its time went into them.

The grid was chosen in pilots with other seeds, so that training is stable and arrives at the common loss; the statements were put into
their form after those pilots. Versions with six and twelve seeds were seen at seed 0; their number is now what the resampling said would
decide the second statement in nine runs of ten and the third in six.

The literature's stronger statement, that *no* measure is better than a coin in all settings, does not hold on this grid. The distance from
the start, the product of spectral norms or the spectral complexity, whichever is the most robust on the other seeds, is right more often
than wrong even in its worst setting; at some base seeds by more than chance, at others the question stays open. Four settings of two values
on one small data set are easier to survive than the literature's family of environments, in which each measure was refuted by at least one.

At large, with five settings of three values and 4374 networks that all arrived (base seed 0), it fails for certain: the most robust of
them, the product of spectral norms, has τ = 0.15 in its worst setting, weight decay, and more than 0.03 at 99 %. The other two statements
hold there by wide margins, τ = 0.25 ± 0.04 on average for sharpness in proportion to the weights, and −0.51 ± 0.07 for the worst settings.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from theorylab.core.checkpoints import once
from theorylab.core.claim import AtLeast, AtMost, Claim, Finding
from theorylab.core.config import Config, setting
from theorylab.core.estimate import mean_interval
from theorylab.core.problem import Params, Problem
from theorylab.core.series import Series, Stage
from theorylab.core.source import Source
from theorylab.core.study import study
from theorylab.data.digits import digits
from theorylab.instruments.flatness import flatness
from theorylab.instruments.norms import norms
from theorylab.learning.optimizers.sgd import sgd
from theorylab.learning.population import Population
from theorylab.learning.stopping import train_to_loss
from theorylab.models.mlp import mlp
from theorylab.stats.rank_correlation import granulated_tau

RANKING = Claim(
    "generalization/measures/ranking",
    "Sharpness under perturbations in proportion to the weights orders networks by their generalization gap, on average over settings.",
    formula=r"\Psi = \frac1{|\Theta|}\sum_i \psi_i(-\ln\sigma_{\mathrm{magnitude}},\ \mathrm{gap}) \ge 0.1",
    source=Source(
        "Jiang et al. 2020", "Section 3 (granulated Kendall's coefficient); the comparison of sharpness-based measures", "arXiv:1912.02178"
    ),
    kind="statistical",
    relation=AtLeast(),
    control="the gaps of a seed's networks permuted, averaged over permutations",
    reading="A granulated τ of 0.1 is right in 55 of 100 pairs that differ in one setting, where a coin is right in 50. It is the kind "
    "of measure that did best in the literature, and no rescaling of units can fool it. The average hides the settings where it fails.",
)
TYPICAL = Claim(
    "generalization/measures/worst_environment",
    "In its worst setting, the average measure orders networks no better than a coin.",
    formula=r"\frac1{|M|}\sum_{m} \min_i \psi_i(m, \mathrm{gap}) \le 0",
    source=Source("Dziugaite et al. 2020", "Section 1 (summary: robust sign-error of existing measures)", "arXiv:2010.11924"),
    kind="statistical",
    relation=AtMost(),
    control="the gap on other test rows as the measure",
    reading="Most measures have a setting that moves them one way and the gap the other: many grow with what widens a network, while its "
    "gap shrinks. A τ over all pairs does not show it. Measures are given the sign of their bounds: larger should mean worse.",
)
BEST = Claim(
    "generalization/measures/no_robust_measure",
    "Even the most robust of the measures has a setting in which it orders networks no better than a coin.",
    formula=r"\max_{m} \min_i \psi_i(m, \mathrm{gap}) \le 0",
    source=Source("Dziugaite et al. 2020", "Section 1 (no measure has a better robust sign-error than a coin)", "arXiv:2010.11924"),
    kind="statistical",
    relation=AtMost(),
    control="the gap on other test rows as the measure",
    reading="This is the literature's statement, of some forty measures and many more settings than here, and on a small grid it need not "
    "hold: few settings are easy to survive. Further ones can only lower a measure's worst, so one that survives is not yet robust.",
)

JIANG = "sharpness, magnitude"
THRESHOLD = 0.1
"""Granulated τ from which a measure counts as ordering networks: right in 55 of 100 pairs."""
MARGIN = 0.1
"""Quantile of the margin."""
CLASSES = 10


@dataclass(frozen=True, kw_only=True)
class MeasuresConfig(Config):
    """A seed is a choice of training rows and initial networks, on which the whole grid of settings is trained."""

    seeds: int = setting(36, "replicas, each of the whole grid; a third of them chooses worst settings and the best measure", low=3)
    dtype: Literal["float64", "float32"] = setting("float32", "floating-point type; these laws are not exact identities")
    widths: tuple[int, ...] = setting((16, 48), "units of a hidden layer", low=2)
    depths: tuple[int, ...] = setting((1, 3), "hidden layers", low=1)
    lrs: tuple[float, ...] = setting((0.02, 0.04), "step sizes, with momentum 0.9", low=1e-5, high=1.0)
    batches: tuple[int, ...] = setting((16, 53), "rows of a minibatch", low=1)
    decays: tuple[float, ...] = setting((0.0,), "weight decay, added to the gradient; one value alone is no setting to compare", low=0.0)
    rows: int = setting(160, "training rows", low=20, high=1000)
    noise: float = setting(0.2, "share of labels drawn at random", low=0.0, high=0.9)
    loss: float = setting(0.2, "training loss at which all networks are compared", low=1e-4, high=1.0)
    epochs: int = setting(200, "within which it should be reached", low=2)
    draws: int = setting(2, "pairs of perturbations behind a sharpness", low=2)
    permutations: int = setting(200, "of the gaps, for the control", low=10)


@dataclass(frozen=True)
class Trained:
    """One network: how it came about, what the measures say, and how it generalizes to two disjoint sets of rows."""

    seed: int
    settings: dict[str, Hashable]
    measures: dict[str, float]
    gap: float
    other_gap: float
    arrived: bool


def measures(problem: Problem, start: Params, steps: int, config: MeasuresConfig) -> dict[str, float]:
    """Every measure, turned so that larger should mean a larger gap."""
    found = norms(problem, init=start)
    assert found.margins is not None
    assert found.log_path_norm is not None
    margin = max(found.margins[MARGIN], 1e-3)  # a tenth of the rows may be wrong: then the margin is as good as none

    def sharpness(kind: Literal["isotropic", "magnitude"]) -> float:
        return -math.log(flatness(problem, kind=kind, draws=config.draws, tol=0.05, seed=config.seed).value)

    return {
        "parameters": math.log(problem.P),
        "distance from zero": float(problem.flatten(problem.params).norm()),
        "distance from start": found.distance,
        "spectral product": found.log_spectral,
        "Frobenius product": found.log_frobenius,
        "spectral complexity": found.log_spectral_complexity,
        "spectral complexity / margin": found.log_spectral_complexity - math.log(margin),
        "path norm": found.log_path_norm,
        "path norm / margin": found.log_path_norm - math.log(margin),
        "minus margin": -found.margins[MARGIN],
        "sharpness, isotropic": sharpness("isotropic"),
        "sharpness, magnitude": sharpness("magnitude"),
        "steps to the loss": math.log(max(steps, 1)),
    }


def redrawn(labels: Tensor, share: float, seed: int) -> Tensor:
    """Labels (n,) of which a share is drawn at random, right ones among them."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(labels), generator=generator)[: round(share * len(labels))].to(labels.device)
    drawn = torch.randint(CLASSES, chosen.shape, generator=generator).to(labels.device)
    return labels.index_put((chosen,), drawn)


def train_grid(config: MeasuresConfig) -> Iterator[Trained]:
    """One population for each width, depth and batch size, over seeds, step sizes and decays."""
    x, y = digits(dtype=config.torch_dtype)
    orders = {s: torch.randperm(len(x), generator=torch.Generator().manual_seed(s)) for s in config.replica_seeds}
    cut = config.rows + (len(x) - config.rows) // 2
    replicas = list(product(config.replica_seeds, config.lrs, config.decays))
    seeds = [s for s, _, _ in replicas]

    def rows(part: slice) -> tuple[Tensor, Tensor]:
        places = torch.stack([orders[s][part] for s in seeds])
        return x[places].to(config.device), y[places].to(config.device)

    data, unseen, unseen_too = rows(slice(config.rows)), rows(slice(config.rows, cut)), rows(slice(cut, None))
    data = data[0], torch.stack([redrawn(labels, config.noise, s) for labels, s in zip(data[1], seeds, strict=True)])

    def cell(width: int, depth: int, batch: int) -> list[dict[str, Any]]:
        """What there is to know of every network of one population."""
        population = Population(
            lambda: mlp([64, *[width] * depth, 10], activation="relu").eval(),
            cross_entropy,
            data,
            optimizer=sgd(
                torch.tensor([lr for _, lr, _ in replicas]), momentum=0.9, weight_decay=torch.tensor([d for _, _, d in replicas])
            ),
            seeds=seeds,
            batch_size=batch,
            data_per_replica=True,
            dtype=config.torch_dtype,
            device=config.device,
            mode="vmap",
        )
        start = population.params
        epoch = config.rows // batch
        limit = config.epochs * epoch
        arrived = train_to_loss(population, config.loss, every=2 * epoch, limit=limit).tolist()

        def errors(part: tuple[Tensor, Tensor]) -> Tensor:
            return (population.outputs(part[0], per_replica=True).argmax(2) != part[1]).double().mean(1)

        fitted, others = errors(data), [errors(part) for part in (unseen, unseen_too)]
        # what new rows would show with labels redrawn like those of training, in expectation
        gaps = [(1 - config.noise) * wrong + config.noise * (1 - 1 / CLASSES) - fitted for wrong in others]
        nets = []
        for k, (seed, lr, decay) in enumerate(replicas):
            settings: dict[str, Hashable] = {"width": width, "depth": depth, "step size": lr, "batch": batch, "decay": decay}
            late, steps = arrived[k] < 0, arrived[k] if arrived[k] >= 0 else limit
            found = measures(population.problem(k), {name: p[k] for name, p in start.items()}, steps, config)
            nets.append(Trained(seed, settings, found, float(gaps[0][k]), float(gaps[1][k]), not late))
        return [asdict(net) for net in nets]

    for width, depth, batch in product(config.widths, config.depths, config.batches):
        yield from (Trained(**net) for net in once(partial(cell, width, depth, batch)))


# ---- what the measures are worth ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Agreement:
    """Granulated τ of measures with the gap, (measure, seed, setting)."""

    names: tuple[str, ...]
    settings: tuple[str, ...]
    psi: np.ndarray

    def average(self) -> np.ndarray:
        """Over settings, (measure, seed)."""
        return self.psi.mean(2)

    def halves(self) -> tuple[np.ndarray, np.ndarray]:
        """Means over the seeds that choose, (measure, setting), and τ at those that are judged, (measure, seed, setting)."""
        choosing = max(1, self.psi.shape[1] // 3)
        return self.psi[:, :choosing].mean(1), self.psi[:, choosing:]

    def worst(self) -> np.ndarray:
        """At the judged seeds, in the setting that is each measure's worst on the others, (measure, seed)."""
        chosen, judged = self.halves()
        return np.take_along_axis(judged, chosen.argmin(1)[:, None, None], axis=2)[..., 0]

    def best_worst(self) -> np.ndarray:
        """At the judged seeds, of the measure that is the most robust on the others, in its worst setting there, (seed,)."""
        chosen, _ = self.halves()
        return self.worst()[chosen.min(1).argmax()]


def agreement(groups: list[list[Trained]], values: dict[str, list[list[float]]], gaps: list[list[float]]) -> Agreement:
    """Of values, name → (seed, network), with gaps (seed, network)."""
    tables = {
        name: [granulated_tau(v, g, [n.settings for n in group]) for v, g, group in zip(each, gaps, groups, strict=True)]
        for name, each in values.items()
    }
    settings = tuple(next(iter(tables.values()))[0])
    return Agreement(tuple(tables), settings, np.array([[list(table.values()) for table in each] for each in tables.values()]))


def permuted(groups: list[list[Trained]], config: MeasuresConfig) -> np.ndarray:
    """Granulated τ of Jiang's measure with gaps that are not its networks', the mean over permutations, (seed,)."""
    rng = np.random.default_rng(config.seed)
    values = [[n.measures[JIANG] for n in group] for group in groups]
    draws = []
    for _ in range(config.permutations):
        gaps = [rng.permutation([n.gap for n in group]).tolist() for group in groups]
        draws.append(agreement(groups, {JIANG: values}, gaps).average()[0])
    return np.mean(draws, axis=0)


@study(
    "generalization/measures",
    claims=[RANKING, TYPICAL, BEST],
    tiny=MeasuresConfig(
        seeds=4, widths=(8, 16, 32, 64), depths=(2,), lrs=(0.02, 0.04, 0.06), batches=(15,), rows=60, loss=0.5, epochs=100, permutations=300
    ),
    small=MeasuresConfig(),
    large=MeasuresConfig(
        seeds=18,
        widths=(32, 96, 256),
        depths=(1, 2, 4),
        lrs=(0.006, 0.01, 0.016),
        batches=(20, 40, 80),
        decays=(0.0, 0.001, 0.003),
        rows=400,
        epochs=1000,
        draws=8,
    ),
)
def measure_study(config: MeasuresConfig) -> Iterator[Finding | Series | Stage]:
    """Train the grid, measure every network, and compare orders setting by setting."""
    yield Stage("training and measuring the grid")
    nets = list(train_grid(config))
    groups = [[n for n in nets if n.seed == seed] for seed in config.replica_seeds]
    gaps = [[n.gap for n in group] for group in groups]
    found = agreement(groups, {name: [[n.measures[name] for n in group] for group in groups] for name in nets[0].measures}, gaps)
    ceiling = agreement(groups, {"gap on other rows": [[n.other_gap for n in group] for group in groups]}, gaps)

    yield Stage("comparing orders")
    late = sum(not n.arrived for n in nets)
    note = f"{late} of {len(nets)} networks did not reach the loss, and were measured where they were" if late else ""
    yield RANKING.check(predicted=THRESHOLD, measured=found.average()[found.names.index(JIANG)], setting=JIANG, note=note)
    yield RANKING.control_check(predicted=THRESHOLD, measured=permuted(groups, config), setting="gaps permuted")
    overall = found.psi.mean(1)
    best = int(overall.min(1).argmax())
    said = f"over all seeds: {found.names[best]}, at its worst under {found.settings[int(overall[best].argmin())]}"
    yield TYPICAL.check(predicted=0.0, measured=found.worst().mean(0), setting=f"mean over {len(found.names)} measures")
    yield BEST.check(predicted=0.0, measured=found.best_worst(), setting="the most robust measure", note=said)
    for claim in (TYPICAL, BEST):
        yield claim.control_check(predicted=0.0, measured=ceiling.worst()[0], setting="the gap on other rows")
    yield from figures(found, ceiling)


def figures(found: Agreement, ceiling: Agreement) -> Iterator[Series]:
    """Average and worst agreement of every measure with intervals, and the settings one by one."""
    for key, title, label, claim, pick in (
        ("average", "Measures ranked by granulated τ, with 99 % intervals", "τ, mean over settings", RANKING, Agreement.average),
        ("worst", "The same in each measure's worst setting", "τ in the worst setting", BEST, Agreement.worst),
    ):
        each = pick(found)
        order = each.mean(1).argsort()[::-1]
        figure = Series(key, title, x=label, y="measures, in the order of the legend", claim=claim.key)
        for place, m in enumerate(order):
            low, high = mean_interval(each[m])
            figure.line(found.names[m], [low, each[m].mean(), high], [-place - 1] * 3)
        low, high = mean_interval(pick(ceiling)[0])
        figure.line("gap on other rows", [low, pick(ceiling)[0].mean(), high], [0] * 3, role="control")
        yield figure.line("a coin", [0, 0], [0, -len(order)], role="predicted")

    order = found.average().mean(1).argsort()[::-1]
    by_setting = Series("settings", "Each setting by itself", x="measure, in the order of the first figure", y="τ", claim=TYPICAL.key)
    for i, name in enumerate(found.settings):
        by_setting.line(name, np.arange(1, len(order) + 1), found.psi[order, :, i].mean(1), mark="points")
    yield by_setting.line("a coin", [1, len(order)], [0, 0], role="predicted")
