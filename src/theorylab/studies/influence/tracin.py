"""TracIn adds up: over every step of gradient descent, products of gradients sum to the change of the loss that they claim to explain.

One step of size η changes the loss at a test point by −η⟨∇L, ∇ℓ⟩, up to a term of order η². Over a fixed time ηT the errors sum to order
η: halving the step halves the relative gap between TracIn's sum and the decrease that happened. The claim is the exponent.

TracIn is used with a few checkpoints, each standing for the many steps around it. Then the sum is a coarse quadrature of training, most
of whose change happens early, and no smaller step repairs it: with five checkpoints the gap stays where it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from theorylab.core.claim import Claim, Finding, Scales
from theorylab.core.config import Config, setting
from theorylab.core.problem import Problem
from theorylab.core.series import Series, Stage
from theorylab.core.source import Source
from theorylab.core.study import study
from theorylab.instruments.tracin import tracin as measure
from theorylab.models.seeded import seeded

TELESCOPING = Claim(
    "influence/tracin/telescoping",
    "TracIn's scores, summed over rows and all steps, are the change of the test loss, up to a relative gap proportional to the step size.",
    formula=r"\frac{\sum_t \eta\,\langle \nabla L(\theta_t), \nabla\ell(\theta_t)\rangle}{\ell(\theta_0) - \ell(\theta_T)} - 1 = O(\eta)",
    source=Source("Pruthi et al. 2020", "Section 3.1 (the idealized notion of influence and its completeness)", "arXiv:2002.08484"),
    kind="asymptotic",
    relation=Scales(exponent=1.0, tol=0.1),
    control="five checkpoints of the run, each scaled up to the steps for which it stands",
    reading="With all steps, TracIn is an exact account of training in the limit of small steps: nothing is left unexplained. With a few "
    "checkpoints it is not an account but a sample, and where one takes them decides what it says.",
)


@dataclass(frozen=True, kw_only=True)
class TracinConfig(Config):
    """A seed is a data set for logistic regression."""

    seeds: int = setting(4, "replicas, each with its own random numbers", low=1)
    rows: int = setting(60, "rows n", low=4)
    targets: int = setting(30, "test rows, whose mean loss is explained", low=1)
    inputs: int = setting(10, "inputs d", low=1)
    time: float = setting(6.0, "time ηT of training", low=0.1)
    divisions: tuple[int, ...] = setting((60, 120, 240, 480), "steps T into which it is divided, in rising order, multiples of 5", low=10)


CHECKPOINTS = 5
SIZE = 1.5
"""Of the inputs: the larger, the earlier in training most of the change happens."""


def setup(config: TracinConfig, seed: int) -> tuple[Problem, tuple[Tensor, Tensor]]:
    """Logistic regression at zero on the training rows, and test rows."""
    generator = torch.Generator().manual_seed(seed)
    n = config.rows + config.targets
    x = SIZE * torch.randn(n, config.inputs, generator=generator, dtype=torch.float64)
    signal = torch.randn(config.inputs, 1, generator=generator, dtype=torch.float64)
    y = (torch.rand(n, 1, generator=generator, dtype=torch.float64) < torch.sigmoid(x @ signal)).double()
    x, y = x.to(config.device), y.to(config.device)
    net = seeded(partial(nn.Linear, config.inputs, 1, bias=False), seed).to(config.device)
    train = Problem(net, binary_cross_entropy_with_logits, (x[: config.rows], y[: config.rows]))
    return train.at({"weight": torch.zeros(1, config.inputs)}), (x[config.rows :], y[config.rows :])


def gaps(config: TracinConfig, seed: int) -> np.ndarray:
    """Relative gap of the sum over all steps, and of that over few checkpoints, for each number of steps, (division, 2)."""
    start, test = setup(config, seed)
    found = []
    for steps in config.divisions:
        eta, point, path = config.time / steps, start, []
        for _ in range(steps):
            path.append(point.params)
            point = point.at(point.unflatten(point.flatten(point.params) - eta * point.gradient()))
        first, last = (float(Problem(p.model, p.criterion, test).at(p.params).loss()) for p in (start, point))
        every = steps // CHECKPOINTS
        sums = [float(measure(start, c, rate, test).sum(0).mean()) for c, rate in ((path, eta), (path[::every], eta * every))]
        found.append([abs(total / (last - first) - 1) for total in sums])
    return np.array(found)


@study(
    "influence/tracin",
    claims=[TELESCOPING],
    tiny=TracinConfig(seeds=3, rows=20, targets=10, inputs=5, divisions=(60, 120)),
    small=TracinConfig(),
    large=TracinConfig(seeds=32, rows=1000, targets=1000, inputs=50, divisions=(60, 120, 240, 480, 960, 1920)),
)
def tracin(config: TracinConfig) -> Iterator[Finding | Series | Stage]:
    """Train for a fixed time by ever smaller steps and add up."""
    steps = np.array(config.time / np.array(config.divisions))
    found = []
    for k, seed in enumerate(config.replica_seeds):
        yield Stage(f"data set {k + 1} of {config.seeds}")
        found.append(gaps(config, seed))
    every = np.array(found)  # (replica, division, 2)
    slopes = [[np.polyfit(np.log(steps), np.log(one[:, c]), 1)[0] for one in every] for c in (0, 1)]
    yield TELESCOPING.check(measured=slopes[0], setting="gap of all steps against η")
    yield TELESCOPING.control_check(measured=slopes[1], setting=f"{CHECKPOINTS} checkpoints")

    axes = {"x": "step size η", "y": "relative gap", "x_scale": "log", "y_scale": "log"}
    figure = Series("gap", "Every step accounts for itself; a few checkpoints do not", claim=TELESCOPING.key, **axes)
    mean = every.mean(0)
    figure.line("all steps", steps, mean[:, 0], low=every[..., 0].min(0), high=every[..., 0].max(0))
    figure.line("∝ η", steps, mean[-1, 0] * steps / steps[-1], role="predicted")
    yield figure.line(f"{CHECKPOINTS} checkpoints", steps, mean[:, 1], role="control")
