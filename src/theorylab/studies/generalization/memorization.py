"""The same network, the same training: labels without any information are fitted as perfectly as true ones.

A network of ordinary size trained by an ordinary optimizer fits labels drawn at random to the last row, and on new rows it is then right
by chance. Nothing about the architecture, the optimizer or the training error tells it from the network that learned the digits. So a
bound that depends on these alone, which would have to hold for both, can promise nothing for either.

That it can be done at all is no surprise: n points of any labels are fitted exactly by n hidden units with one common direction, whose
biases put one break of a broken line before each point. That it is *found* by gradient descent is what was new.

Step size and number of steps were chosen on base seeds from 5000 on. The number of seeds was raised once, from 8 to 20, after a first look
in which the interval of the accuracy on new rows was wider than the claimed region: by chance, a few hundred random labels do say a little
about the classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from theorylab.core.claim import AtLeast, Claim, Equals, Finding
from theorylab.core.config import Config, setting
from theorylab.core.series import Series, Stage
from theorylab.core.source import Source
from theorylab.core.study import study
from theorylab.data.digits import digits
from theorylab.data.labels import corrupt
from theorylab.learning.optimizers.adam import adam
from theorylab.learning.population import Population
from theorylab.learning.trajectory import Trajectory
from theorylab.models.mlp import mlp
from theorylab.theory.generalization import memorizing_weights

RANDOM_LABELS = Claim(
    "generalization/memorization/random_labels",
    "A network that learns true labels fits random ones as perfectly, by the same training.",
    formula=r"\frac1n\sum_i \mathbf 1[\hat f(x_i) = \tilde y_i] \ge 0.999,\quad \tilde y_i \sim \mathrm{uniform}",
    source=Source("Zhang et al. 2017", "Section 2.1 (fitting random labels)", "arXiv:1611.03530"),
    kind="statistical",
    relation=AtLeast(),
    control="a network of 3 hidden units a layer, in five times as many steps",
    reading="Capacity that is counted on the architecture alone, and any bound made of it, must allow for this network and is therefore "
    "vacuous. It takes more steps than true labels do; with fewer parameters than rows training no longer gets there.",
)
CHANCE = Claim(
    "generalization/memorization/chance",
    "A network fitted to random labels is right on new rows as often as a guess.",
    formula=r"P(\hat f(x) = y) = 1/10",
    source=Source("Zhang et al. 2017", "Section 2.1 (fitting random labels)", "arXiv:1611.03530"),
    kind="statistical",
    relation=Equals(atol=0.03),
    control="the same networks on true labels",
    reading="Training error says nothing about test error, here by as much as it can: the two networks fit equally well and one knows "
    "nothing. What differs is the data, so an explanation of generalization must look at them. Partly random labels lie in between.",
)
EXPRESSIVITY = Claim(
    "generalization/memorization/expressivity",
    "A ReLU network of one hidden layer with 2n + d parameters represents any labels of n distinct rows.",
    formula=r"\exists\, a, b, w:\quad \sum_{j=1}^n w_j\,(a^\top x_i - b_j)_+ = y_i,\quad i = 1\dots n",
    source=Source("Zhang et al. 2017", "Theorem 1", "arXiv:1611.03530"),
    kind="identity",
    relation=Equals(atol=1e-8),
    control="one hidden unit fewer at the same biases, with the best output weights",
    reading="Being able to fit anything is cheap: it takes about two parameters a row, whatever the labels. It says nothing of new rows, "
    "and the weights grow as the projections of two rows with different labels come near each other.",
)
CHANCE_LEVEL, PERFECT = 0.1, 0.999
NARROW, PATIENCE = 3, 5  # hidden units of the control, and how many times as many steps it is given
TRUE, HALF, RANDOM = 0.0, 0.5, 1.0


@dataclass(frozen=True, kw_only=True)
class MemorizationConfig(Config):
    """A seed is a split of the digits, one draw of labels, and one initial network."""

    rows: int = setting(300, "digits to train on; the rest is for testing", low=20, high=1700)
    width: int = setting(64, "units of each of two hidden layers", low=4)
    steps: int = setting(100, "full-batch steps of Adam", low=10)
    lr: float = setting(0.005, "Adam's step size", low=1e-5, high=0.1)
    points: int = setting(50, "rows of the explicit network", low=2)


def train(config: MemorizationConfig, width: int, fractions: tuple[float, ...], steps: int) -> Trajectory:
    """Accuracies on training and new rows of networks whose labels are random at each fraction, fraction by fraction (step, replica)."""
    x, y, new_x, new_y = [], [], [], []
    seeds = config.replica_seeds * len(fractions)
    for fraction in fractions:
        for seed in config.replica_seeds:
            rows, labels = digits(seed=seed, dtype=torch.float32)
            x.append(rows[: config.rows])
            y.append(corrupt(labels[: config.rows], fraction, classes=10, seed=seed))
            new_x.append(rows[config.rows :])
            new_y.append(labels[config.rows :])
    seen, unseen = ((torch.stack(a).to(config.device), torch.stack(b).to(config.device)) for a, b in ((x, y), (new_x, new_y)))

    def network() -> nn.Sequential:
        return mlp([64, width, width, 10], activation="relu")

    def accuracy(population: Population, rows: tuple[Tensor, Tensor]) -> Tensor:
        return (population.outputs(rows[0], per_replica=True).argmax(2) == rows[1]).double().mean(1)

    population = Population(
        network,
        cross_entropy,
        seen,
        optimizer=adam(config.lr),
        seeds=seeds,
        data_per_replica=True,
        dtype=torch.float32,  # nothing exact is claimed of trained networks
        device=config.device,
    )
    return population.train(steps, every=max(1, steps // 20), measure=lambda p: {"training": accuracy(p, seen), "new": accuracy(p, unseen)})


def explicit_networks(config: MemorizationConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Labels (replica, n), outputs of the explicit network on its rows, and those of the best network with its last unit left out."""
    targets, outputs, without = [], [], []
    for seed in config.replica_seeds:
        x, _ = digits(config.points, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        y = torch.randn(len(x), generator=generator, dtype=torch.float64)
        directions = torch.randn(64, 30, generator=generator, dtype=torch.float64)
        # any of them would do; the one whose projections are furthest apart loses least to rounding
        direction = directions[:, (x @ directions).sort(0).values.diff(dim=0).amin(0).argmax()]
        b, w = (torch.as_tensor(v) for v in memorizing_weights(x, y, direction))
        hidden = torch.relu((x @ direction)[:, None] - b)  # (row, unit)
        targets.append(y)
        outputs.append(hidden @ w)
        basis = torch.linalg.qr(hidden[:, :-1]).Q
        without.append(basis @ (basis.T @ y))
    return torch.stack(targets), torch.stack(outputs), torch.stack(without)


@study(
    "generalization/memorization",
    claims=[RANDOM_LABELS, CHANCE, EXPRESSIVITY],
    tiny=MemorizationConfig(seeds=6, rows=150, width=32, steps=80, lr=0.01, points=30),
    small=MemorizationConfig(seeds=20),
    large=MemorizationConfig(seeds=32, rows=1400, width=512, steps=2000, lr=0.001),
)
def memorization(config: MemorizationConfig) -> Iterator[Finding | Series | Stage]:
    """Train on true, half random and random labels; build the network that fits anything."""
    yield Stage("training")
    fractions = (TRUE, HALF, RANDOM)
    run = train(config, config.width, fractions, config.steps)
    ends = {name: dict(zip(fractions, run[name].view(len(run.steps), len(fractions), -1)[-1], strict=True)) for name in ("training", "new")}
    yield RANDOM_LABELS.check(predicted=PERFECT, measured=ends["training"][RANDOM], setting="random labels")
    yield RANDOM_LABELS.check(predicted=PERFECT, measured=ends["training"][TRUE], setting="true labels")
    yield CHANCE.check(predicted=CHANCE_LEVEL, measured=ends["new"][RANDOM], setting="random labels")
    yield CHANCE.control_check(predicted=CHANCE_LEVEL, measured=ends["new"][TRUE], setting="true labels")
    yield Stage("a narrow network")
    narrow = train(config, NARROW, (RANDOM,), PATIENCE * config.steps)
    yield RANDOM_LABELS.control_check(predicted=PERFECT, measured=narrow["training"][-1], setting=f"{NARROW} units a layer")

    steps = run.steps[1:]
    for key, name, claim in (("fit", "training", RANDOM_LABELS), ("generalization", "new", CHANCE)):
        title = {"training": "Random labels are fitted, a little later than true ones", "new": "What was fitted decides about new rows"}[
            name
        ]
        figure = Series(key, title, x="step", y=f"accuracy on {name} rows", claim=claim.key, x_scale="log")
        curves = run[name].view(len(run.steps), len(fractions), -1)[1:]
        for i, label in enumerate(("true labels", "half random", "random labels")):
            values = curves[:, i]
            role = "control" if (label, name) == ("true labels", "new") else "measured"
            figure.line(label, steps, values.mean(1), low=values.amin(1), high=values.amax(1), role=role)
        if name == "training":
            figure.line(f"random labels, {NARROW} units a layer", narrow.steps[1:], narrow[name][1:].mean(1), role="control")
        else:
            figure.line("chance", [steps[0], steps[-1]], [CHANCE_LEVEL] * 2, role="predicted")
        yield figure

    yield Stage("an explicit network")
    targets, outputs, without = explicit_networks(config)
    yield EXPRESSIVITY.check(predicted=0.0, measured=(outputs - targets).flatten(), setting=f"residuals, n = {config.points}")
    left = without - targets
    yield EXPRESSIVITY.control_check(predicted=0.0, measured=left.flatten(), setting=f"residuals of {config.points - 1} units")
