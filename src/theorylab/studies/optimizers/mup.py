"""In the maximal-update parametrization features change alike at every width, and the step size of a narrow network serves a wide one.

Make a network wider in the usual parametrization, with the same step size, and Adam changes hidden activations by an amount that grows with
the width m, and the outputs by one that grows faster still: the best step size falls as networks grow, and must be searched for anew. For
small steps and large widths the changes are as m and m^{3/2}; at the widths and the steps of this study the exponents are lower. In the
maximal-update parametrization (muP) steps of hidden and output weights are divided by the width, and output weights begin smaller. Then
every activation changes by an amount that does not depend on width, the network keeps learning features in the limit, and curves of loss
against step size lie on top of each other.

The slopes are read at finite width after a few steps; at small widths the output of a muP network still shrinks with width, hence the wider
region for it. Transfer is tested away from the optimum, by the step that reaches a given loss: near the optimum the curve is so flat that
the position of its minimum is mostly noise.

A first version had four seeds and widths up to 512; at base seed 0 one of the four moved by 1.1 octaves, which left the transfer open. So
there are eight seeds, and the widest network has 256 units for the sake of time.

Measured on real data: a ReLU network on the handwritten digits of scikit-learn, cross-entropy, Adam.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from theorylab.core.claim import Claim, Equals, Finding, Scales
from theorylab.core.config import Config, setting
from theorylab.core.series import Series, Stage
from theorylab.core.source import Source
from theorylab.core.study import study
from theorylab.data.digits import digits
from theorylab.learning.coordinate_check import CoordinateCheck, coordinate_check
from theorylab.learning.optimizers.adam import adam
from theorylab.learning.parametrization import MakeModel, mup
from theorylab.learning.population import Population
from theorylab.models.mlp import mlp
from theorylab.models.seeded import seeded

COORDINATES = Claim(
    "optimizers/mup/coordinate_check",
    "In muP with Adam the change of every hidden activation in a few steps does not depend on the width.",
    formula=r"\|\Delta h_l\|_{\mathrm{rms}} \propto m^{0}",
    source=Source("Yang et al. 2022", "Table 3 and Appendix D.1 (coordinate checks)", "arXiv:2203.03466"),
    kind="asymptotic",
    relation=Scales(0.0, 0.1),
    control="the standard parametrization",
    reading="This is the test of an implementation of muP: if one activation's slope differs from zero, some parameter has the wrong "
    "multiplier. It says nothing after many steps, when the loss is fitted and changes stop by themselves.",
)

LOGITS = Claim(
    "optimizers/mup/logits",
    "In muP with Adam the change of the outputs in a few steps does not depend on the width.",
    formula=r"\|\Delta f\|_{\mathrm{rms}} \propto m^{0}",
    source=Source("Yang et al. 2022", "Table 3 and Appendix D.1 (coordinate checks)", "arXiv:2203.03466"),
    kind="asymptotic",
    relation=Scales(0.0, 0.25),
    control="the standard parametrization",
    reading="Outputs of wide networks that blow up are what makes large step sizes unstable in the standard parametrization. In muP their "
    "initial values shrink with width, and only the part that is learned remains: at finite width a slope a little below zero is seen.",
)

TRANSFER = Claim(
    "optimizers/mup/transfer",
    "In muP the step size that reaches a given loss in a given number of steps is the same at all widths.",
    formula=r"\log_2 \eta^*(m_{\max}) - \log_2 \eta^*(m_{\min}) \approx 0",
    source=Source("Yang et al. 2022", "Section 4 and Figure 1 (transfer across width)", "arXiv:2203.03466"),
    kind="statistical",
    relation=Equals(atol=1.0),
    control="the standard parametrization",
    reading="Tune a narrow network, train a wide one: within one octave the step size carries over. It does so for a fixed number of steps "
    "and the same data; over training time, depth and batch size nothing of the kind is claimed.",
)


@dataclass(frozen=True, kw_only=True)
class MupConfig(Config):
    """A seed is an initial network, and an order of the data."""

    seeds: int = setting(8, "replicas, each with an initial network and an order of the data", low=2)
    rows: int = setting(512, "digits to train on", low=16, high=1797)
    base: int = setting(32, "width at which both parametrizations agree", low=2)
    check_widths: tuple[int, ...] = setting((32, 64, 128, 256, 512), "widths of the coordinate check", low=2)
    check_steps: int = setting(5, "steps of the coordinate check", low=1)
    check_lr: float = setting(2e-3, "Adam's step size in the coordinate check", low=1e-6)
    widths: tuple[int, ...] = setting((32, 128, 256), "widths of the transfer", low=2)
    steps: int = setting(60, "training steps of the transfer", low=5)
    batch: int = setting(64, "rows of a minibatch", low=1)
    loss: float = setting(0.3, "the loss that must be reached", low=0.01)
    octaves: tuple[int, ...] = setting((-10, -9, -8, -7), "step sizes in muP, as powers of two", high=0)
    standard_octaves: tuple[int, ...] = setting((-12, -11, -10, -9, -8, -7), "step sizes in the standard parametrization", high=0)


def network(width: int) -> nn.Module:
    """64 inputs, two hidden layers of ``width`` ReLU units, 10 outputs."""
    return mlp([64, width, width, 10], activation="relu")


PARAMETERS = 2**27
"""Of all replicas that are trained at once; with Adam's moments and gradients they take four times as much memory."""
LINEAR = ("1", "3", "5")
"""Names of its linear layers, in the order of the pass."""


def reached(losses: Tensor, octaves: tuple[int, ...], goal: float) -> list[float]:
    """Per seed, the logarithm to base 2 of the smallest step size that reaches ``goal``, between grid points by interpolation.

    Args:
        losses: (octave, seed), the step sizes in increasing order.
        octaves: Their logarithms.
        goal: A loss.

    Raises:
        ValueError: no step size of the grid reaches it, or the first one does already.
    """
    found = []
    for column in losses.T.tolist():
        first = next((i for i, value in enumerate(column) if value <= goal), None)
        if first is None or first == 0:
            raise ValueError(f"octaves must enclose the step size that reaches loss {goal}; losses were {column}.")
        above, below = column[first - 1], column[first]
        share = (np.log(above) - np.log(goal)) / (np.log(above) - np.log(below))
        found.append(octaves[first - 1] + float(share) * (octaves[first] - octaves[first - 1]))
    return found


@study(
    "optimizers/mup",
    claims=[COORDINATES, LOGITS, TRANSFER],
    tiny=MupConfig(
        seeds=4,
        rows=128,
        check_widths=(32, 128, 512),
        widths=(32, 256),
        steps=30,
        loss=0.6,
        octaves=(-10, -9, -8, -7),
        standard_octaves=(-12, -11, -10, -9, -8, -7),
        dtype="float32",
    ),
    small=MupConfig(seeds=8, dtype="float32"),
    large=MupConfig(
        seeds=32,
        rows=1797,
        check_widths=(64, 256, 1024, 4096),
        widths=(64, 256, 1024, 4096),
        octaves=tuple(range(-12, -6)),
        standard_octaves=tuple(range(-16, -6)),
        dtype="float32",
    ),
)
def mup_study(config: MupConfig) -> Iterator[Finding | Series | Stage]:
    """Check coordinates at several widths, then find the step size that reaches a loss at each, in both parametrizations."""
    x, y = digits(config.rows, dtype=config.torch_dtype)
    maximal = mup(network, config.base)
    kinds: tuple[tuple[str, MakeModel], ...] = (("muP", maximal), ("standard", network))

    yield Stage("coordinate check")
    checks: dict[str, CoordinateCheck] = {}
    for name, make in kinds:
        checks[name] = coordinate_check(
            make,
            config.check_widths,
            nn.functional.cross_entropy,
            (x, y),
            optimizer=lambda p: torch.optim.Adam(p, lr=config.check_lr),
            steps=config.check_steps,
            seeds=config.replica_seeds,
            dtype=config.torch_dtype,
            device=config.device,
        )
    labels = ("hidden layer 1", "hidden layer 2", "outputs")
    for label, key in zip(labels, LINEAR, strict=True):
        claim = LOGITS if label == "outputs" else COORDINATES
        note = "its step depends on the width in neither parametrization" if label == labels[0] else ""
        yield claim.check(measured=checks["muP"].each_slope(f"model.{key}"), setting=label, note=note)
    yield COORDINATES.control_check(measured=checks["standard"].each_slope(LINEAR[1]), setting="hidden layer 2")
    yield LOGITS.control_check(measured=checks["standard"].each_slope(LINEAR[2]), setting="outputs")
    figure = Series(
        "coordinates",
        "Changes of activations in a few steps",
        x="width",
        y="root mean square change",
        claim=COORDINATES.key,
        x_scale="log",
        y_scale="log",
    )
    for name, _ in kinds:
        for label, key in zip(labels[1:], LINEAR[1:], strict=True):
            change = checks[name].changes[key if name == "standard" else f"model.{key}"]
            role = "measured" if name == "muP" else "control"
            figure.line(f"{label}, {name}", torch.tensor(config.check_widths), change.log().mean(1).exp(), role=role)
    yield figure

    best: dict[str, list[list[float]]] = {name: [] for name, _ in kinds}
    curves = Series(
        "transfer",
        f"Loss after {config.steps} steps against the step size",
        x="step size",
        y="loss",
        claim=TRANSFER.key,
        x_scale="log",
        y_scale="log",
    )
    for name, make in kinds:
        octaves = config.octaves if name == "muP" else config.standard_octaves
        steps = torch.tensor([2.0**k for k in octaves], dtype=config.torch_dtype)
        for width in config.widths:
            yield Stage(f"{name}, width {width}")
            losses = trained(config, lambda make=make, width=width: make(width), steps, (x, y))
            best[name].append(reached(losses, octaves, config.loss))
            role = "measured" if name == "muP" else "control"
            curves.line(f"{name}, width {width}", steps, losses.log().mean(1).exp(), role=role)
    for name, check in (("muP", TRANSFER.check), ("standard", TRANSFER.control_check)):
        shift = np.array(best[name][-1]) - np.array(best[name][0])
        yield check(predicted=0.0, measured=shift, setting=f"octaves from width {config.widths[0]} to {config.widths[-1]}, {name}")
    yield curves


def trained(config: MupConfig, make: Callable[[], nn.Module], steps: Tensor, data: tuple[Tensor, Tensor]) -> Tensor:
    """Losses after training with every step size and seed, (step size, seed)."""
    rates, seeds = steps.repeat_interleave(config.seeds), config.replica_seeds * len(steps)
    together = max(1, PARAMETERS // sum(p.numel() for p in seeded(make, 0).parameters()))
    losses = []
    for lr, own in zip(rates.split(together), torch.tensor(seeds).split(together), strict=True):
        population = Population(
            make,
            nn.functional.cross_entropy,
            data,
            optimizer=adam(lr),
            seeds=own.tolist(),
            batch_size=min(config.batch, config.rows),
            dtype=config.torch_dtype,
            device=config.device,
        )
        population.train(config.steps)
        losses.append(population.losses())
    return torch.cat(losses).reshape(len(steps), config.seeds).double().cpu()
