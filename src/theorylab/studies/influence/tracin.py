r"""Gradient products along the whole path of training add up to what training did; along a few checkpoints of it they do not.

A step of gradient descent lowers a test loss by the product of the training and the test gradient, times the step size, up to an error of
second order. Summed over all steps the products telescope to the total decrease, up to a relative error proportional to the step size: this
is what makes a gradient product at a step the share of a row in the result. In practice a few checkpoints stand for all steps. The product
falls steeply in early training, so that a sum over evenly spaced checkpoints from the first on overstates the decrease, and no smaller
step size repairs that.

At the end of training most of the decrease is over. The time and the step sizes were chosen in a pilot on other seeds, where a time twice
as long gave the same exponent.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from theorylab.core.claim import Claim, Finding, Scales
from theorylab.core.config import Config, setting
from theorylab.core.problem import Params, Problem
from theorylab.core.series import Series, Stage
from theorylab.core.source import Source
from theorylab.core.study import study
from theorylab.data.digits import digits
from theorylab.instruments.tracin import tracin
from theorylab.learning.optimizers.base import take
from theorylab.learning.optimizers.sgd import sgd
from theorylab.stats.fits import power_law

TELESCOPING = Claim(
    "influence/tracin/telescoping",
    "Over all steps of gradient descent, TracIn's scores sum to the decrease of the test loss, up to a relative gap of first order in the "
    "step size.",
    formula=r"\sum_{t<T} \eta\,\langle \nabla L(\theta_t), \nabla \ell_{\mathrm{test}}(\theta_t)\rangle "
    r"= \bigl(\ell_{\mathrm{test}}(\theta_0) - \ell_{\mathrm{test}}(\theta_T)\bigr)\,(1 + O(\eta))",
    source=Source("Pruthi et al. 2020", "Section 3 (first-order approximation and checkpoints)", "arXiv:2002.08484"),
    kind="asymptotic",
    relation=Scales(1.0, 0.1),
    control="ten evenly spaced checkpoints, each of the weight of the steps up to the next",
    reading="TracIn attributes what this run of training did, row by row, and its books balance if every step is kept. With a few "
    "checkpoints they do not: the sum is then dominated by the first, when gradients are large. The scores say nothing about what training "
    "without the row would have done.",
)


@dataclass(frozen=True, kw_only=True)
class TracinConfig(Config):
    """Logistic regression from zero by full-batch gradient descent, odd digits against even."""

    n: int = setting(100, "training rows", low=10)
    tests: int = setting(50, "test rows", low=1)
    time: float = setting(4.0, "training time, step size times steps", low=0.1)
    rates: tuple[float, ...] = setting((0.1, 0.05, 0.025), "step sizes η, each of which divides a tenth of the time", low=1e-4, high=1.0)


CHECKPOINTS = 10
"""Of the control."""


def descent(problem: Problem, rate: float, count: int) -> list[Params]:
    """The points from which ``count`` steps of gradient descent are taken, and the one where they end."""
    method, params = sgd(lr=rate), problem.params
    state, path = method.init(params), [params]
    for _ in range(count):
        params, state = take(method, lambda p: problem.unflatten(problem.gradient(p)), state, params)
        path.append(params)
    return path


def gaps(config: TracinConfig, seed: int) -> tuple[list[float], list[float]]:
    """Relative surplus of the scores' sum over the decrease, with every step and with a few checkpoints, for each step size."""
    x, label = digits(config.n + config.tests, seed=seed)
    x, y = x.to(config.device), (label % 2).double()[:, None].to(config.device)
    loss, n = nn.functional.binary_cross_entropy_with_logits, config.n
    model = nn.utils.skip_init(nn.Linear, x.shape[1], 1, bias=False, dtype=x.dtype)
    problem = Problem(model, loss, (x[:n], y[:n]), device=config.device).at({"weight": torch.zeros_like(x[:1])})
    test = Problem(model, loss, (x[n:], y[n:]), device=config.device)

    def surplus(checkpoints: list[Params], rate: float, path: list[Params]) -> float:
        before, after = (float(test.loss(p).detach()) for p in (path[0], path[-1]))
        moved: Tensor = tracin(problem, checkpoints, rate, (x[n:], y[n:]))
        return float(moved.sum(0).mean()) / (after - before) - 1

    every, few = [], []
    for rate in config.rates:
        count = round(config.time / rate)
        path, stride = descent(problem, rate, count), count // CHECKPOINTS
        every.append(surplus(path[:-1], rate, path))
        few.append(surplus(path[:-1:stride], rate * stride, path))
    return every, few


@study(
    "influence/tracin",
    claims=[TELESCOPING],
    tiny=TracinConfig(seeds=4, n=40, tests=20, time=2.0, rates=(0.1, 0.05)),
    small=TracinConfig(),
    large=TracinConfig(seeds=16, n=1000, tests=500, time=16.0, rates=(0.1, 0.05, 0.025, 0.0125, 0.00625)),
)
def telescoping(config: TracinConfig) -> Iterator[Finding | Series | Stage]:
    """The gap against the step size, with all steps and with a few of them."""
    yield Stage("paths of gradient descent")
    found = np.array([gaps(config, seed) for seed in config.replica_seeds])  # (replica, all or few, step size)
    every, few = found[:, 0], found[:, 1]
    note = "gaps " + ", ".join(f"{v:.3f} at η = {r:g}" for r, v in zip(config.rates, every.mean(0), strict=True))
    yield TELESCOPING.check(measured=np.array([power_law(config.rates, np.abs(g)) for g in every]), setting="every step", note=note)
    slopes = np.array([power_law(config.rates, np.abs(g)) for g in few])
    note = "gaps " + ", ".join(f"{v:.3f} at η = {r:g}" for r, v in zip(config.rates, few.mean(0), strict=True))
    yield TELESCOPING.control_check(measured=slopes, setting=f"{CHECKPOINTS} checkpoints", note=note)
    figure = Series("gap", "How far TracIn is from what training did", x="step size η", y="relative gap", claim=TELESCOPING.key)
    figure.x_scale = figure.y_scale = "log"
    rates = np.array(config.rates)
    every, few = np.abs(every), np.abs(few)
    figure.line("every step", rates, every.mean(0), low=every.min(0), high=every.max(0), mark="points")
    figure.line("∝ η", rates, every.mean(0)[-1] * rates / rates[-1], role="predicted")
    yield figure.line(f"{CHECKPOINTS} checkpoints", rates, few.mean(0), low=few.min(0), high=few.max(0), role="control", mark="points")
