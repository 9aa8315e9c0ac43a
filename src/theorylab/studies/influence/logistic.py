"""Logistic regression, where the optimum is unique: influence is the exact derivative in a row's weight, and a removal is more than that.

The derivative of the optimum in the weight of row i is −H⁻¹∇ℓᵢ/n, by the implicit function theorem. It is compared with refits at weights
1 ± h. It holds at the optimum, and with the Hessian of the objective that was minimized: two Newton steps short of the optimum, or
with twice the damping, it is the derivative of nothing.

Removing a row is a step of size one, not an infinitesimal one. Influence extrapolates along the tangent; one Newton step on the objective
without the row also knows that the row's own curvature is gone, and divides by 1 − hᵢ. It is nearer to the real refit, row by row, and
both improve as the share of one row falls. With a penalty so large that no row has leverage there is nothing to correct.

The control of the second claim compares the two errors at λ = 300: they differ by a two-thousandth of the change, and the improvement
that the claim asks for is absent. The ordering of the claim is that of the mean relative errors over the rows that are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from theorylab.core.claim import Claim, Equals, Finding, Orders
from theorylab.core.config import Config, setting
from theorylab.core.series import Series, Stage
from theorylab.core.source import Source
from theorylab.core.study import study
from theorylab.learning.linear import logistic as fit
from theorylab.theory.influence import logistic_derivative, newton_leave_one_out

DERIVATIVE = Claim(
    "influence/logistic/derivative",
    "At the optimum, the derivative of the parameters in a row's weight is minus the inverse Hessian times the row's gradient, over n.",
    formula=r"\frac{d\hat\theta}{dw_i} = -\frac1n H^{-1}\,\nabla\ell_i(\hat\theta)",
    source=Source("Koh and Liang 2017", "Section 2.1 and Appendix A", "arXiv:1703.04730"),
    kind="identity",
    relation=Equals(atol=1e-5),
    control="two Newton steps from zero instead of the optimum; and twice the damping",
    reading="One Hessian solve answers for all rows at once what refitting with a slightly heavier row would do. It is a statement about "
    "a stationary point of the objective that was minimized: an early stop or another damping answers another question.",
)

NEWTON_STEP = Claim(
    "influence/logistic/newton_step",
    "One Newton step without the row is nearer to the real leave-one-out change than influence, and influence errs less as n grows.",
    formula=r"\Bigl\lVert \Delta_i - \tfrac{H^{-1}\nabla\ell_i}{n\,(1-h_i)} \Bigr\rVert < "
    r"\Bigl\lVert \Delta_i - \tfrac1n H^{-1}\nabla\ell_i \Bigr\rVert,\quad \Delta_i = \hat\theta_{-i} - \hat\theta",
    source=Source(
        "Koh and Liang 2017",
        "Section 2.1 (removal as a step of −1/n); the step is Pregibon 1981, doi:10.1214/aos/1176345513",
        "arXiv:1703.04730",
    ),
    kind="statistical",
    relation=Orders(gap=0.01),
    control="λ = 300, where no row has leverage",
    reading="Influence understates what a row does, by the row's own share of the curvature: an outlier with leverage one half moves the "
    "fit about twice as far as its influence says. Where every row is a small share of the curvature, many rows or a strong penalty, "
    "the two agree.",
)

STEP = 1e-4
"""Of the weight in the central difference, whose own error is of order step² and rounding of order 1e-12 / step."""
HEAVY = 300.0


@dataclass(frozen=True, kw_only=True)
class LogisticConfig(Config):
    """A seed is a data set: normal inputs, of which the labels are drawn from a logistic model."""

    rows: int = setting(100, "rows n of the derivative", low=4)
    inputs: int = setting(31, "inputs d", low=1)
    decay: float = setting(0.01, "λ of the mean objective", low=1e-6)
    sizes: tuple[int, ...] = setting((50, 100, 200, 400), "rows n at which one is left out, in rising order", low=4, rising=True)
    left_out: int = setting(40, "rows that are left out in turn, the first ones", low=1)


def classification(n: int, config: LogisticConfig, seed: int) -> tuple[Tensor, Tensor]:
    """Inputs (n, d) and labels (n,), from one stream, so that larger n extend smaller ones only in law."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, config.inputs, generator=generator, dtype=torch.float64)
    signal = torch.randn(config.inputs, generator=generator, dtype=torch.float64)
    y = torch.rand(n, generator=generator, dtype=torch.float64) < torch.sigmoid(x @ signal)
    return x.to(config.device), y.long().to(config.device)


def optima(x: Tensor, y: Tensor, weights: Tensor, decay: float) -> Tensor:
    """Minimizers (P, d) of (1/n) Σ wᵢℓᵢ + λ/2 ‖θ‖²: the fit takes n times the objective."""
    return fit(x, y, weights, l2=decay * len(x), intercept=False, tol=1e-10).weights[..., 0]


def newton(x: Tensor, y: Tensor, decay: float, steps: int) -> Tensor:
    """Parameters after some plain Newton steps from zero."""
    theta = torch.zeros_like(x[0])
    for _ in range(steps):
        p = torch.sigmoid(x @ theta)
        hessian = (x.T * (p * (1 - p))) @ x / len(x) + decay * torch.eye(len(theta)).to(x)
        theta = theta - torch.cholesky_solve((x.T @ (p - y) / len(x) + decay * theta)[:, None], torch.linalg.cholesky(hessian))[:, 0]
    return theta


def gap(found: np.ndarray, truth: np.ndarray) -> float:
    """Distance of all rows' vectors from the true ones, relative: row by row, rounding would rule where a row hardly matters."""
    return float(np.linalg.norm(found - truth) / np.linalg.norm(truth))


def leave_one_out_errors(n: int, decay: float, config: LogisticConfig, seed: int) -> tuple[float, float]:
    """Mean relative errors of influence and of the Newton step, over the rows left out."""
    x, y = classification(n, config, seed)
    count = min(config.left_out, n)
    weights = torch.ones(1 + count, n).to(x)
    weights[1 + torch.arange(count), torch.arange(count)] = 0.0
    theta = optima(x, y, weights, decay).cpu().numpy()
    truth = theta[1:] - theta[0]
    X, Y = x.cpu().numpy(), y.cpu().numpy().astype(float)
    changes = -logistic_derivative(theta[0], X, Y, decay)[:count], newton_leave_one_out(theta[0], X, Y, decay)[:count]
    first, second = (float((np.linalg.norm(c - truth, axis=1) / np.linalg.norm(truth, axis=1)).mean()) for c in changes)
    return first, second


@study(
    "influence/logistic",
    claims=[DERIVATIVE, NEWTON_STEP],
    tiny=LogisticConfig(seeds=6, rows=40, inputs=8, sizes=(30, 120), left_out=20),
    small=LogisticConfig(),
    large=LogisticConfig(seeds=32, rows=400, sizes=(50, 100, 200, 400, 800, 1600, 3200), left_out=50),
)
def logistic(config: LogisticConfig) -> Iterator[Finding | Series | Stage]:
    """Refit with rows that weigh a little more and a little less, and without them."""
    yield Stage("derivatives in the weights")
    yield from check_derivative(config)
    yield Stage("leaving rows out")
    yield from check_removal(config)


def check_derivative(config: LogisticConfig) -> Iterator[Finding | Series]:
    """Central differences of refits against the formula at the optimum, off it, and with a wrong damping."""
    right, early, damped, shown = [], [], [], []
    for seed in config.replica_seeds:
        x, y = classification(config.rows, config, seed)
        eye = torch.eye(config.rows).to(x)
        theta = optima(x, y, torch.cat([torch.ones_like(eye[:1]), 1 + STEP * eye, 1 - STEP * eye]), config.decay).cpu().numpy()
        truth = (theta[1 : 1 + config.rows] - theta[1 + config.rows :]) / (2 * STEP)
        X, Y = x.cpu().numpy(), y.cpu().numpy().astype(float)
        formulas = [
            logistic_derivative(theta[0], X, Y, config.decay),
            logistic_derivative(newton(x, y, config.decay, 2).cpu().numpy(), X, Y, config.decay),
            logistic_derivative(theta[0], X, Y, config.decay, damping=2 * config.decay),
        ]
        for found, kept in zip(formulas, (right, early, damped), strict=True):
            kept.append(gap(found, truth))
        shown = shown or [np.linalg.norm(v, axis=1) for v in (truth, *formulas)]
    yield DERIVATIVE.check(predicted=0.0, measured=right, setting="relative distance of all rows' derivatives")
    yield DERIVATIVE.control_check(predicted=0.0, measured=early, setting="two Newton steps from zero")
    yield DERIVATIVE.control_check(predicted=0.0, measured=damped, setting="damping 2λ")

    truth, found, at_two, twice = shown
    order = truth.argsort()
    axes: dict[str, Any] = {"x": "‖dθ/dw‖ of refits", "y": "‖dθ/dw‖ by formula", "x_scale": "log", "y_scale": "log"}
    figure = Series("derivative", "The derivative in a row's weight, at the optimum and not", claim=DERIVATIVE.key, **axes)
    figure.line("at the optimum", truth[order], found[order], role="predicted")
    figure.line("after two Newton steps", truth[order], at_two[order], role="control", mark="points")
    yield figure.line("damping 2λ", truth[order], twice[order], role="control", mark="points")


def check_removal(config: LogisticConfig) -> Iterator[Finding | Series]:
    """Errors of influence and of the Newton step at each n, in pairs, and where no row has leverage."""
    errors = np.array([[leave_one_out_errors(n, config.decay, config, seed) for n in config.sizes] for seed in config.replica_seeds])
    influence, step = errors[..., 0], errors[..., 1]  # (replica, size)
    for k, n in enumerate(config.sizes):
        yield NEWTON_STEP.check(measured=influence[:, k] - step[:, k], setting=f"n = {n}, error of influence less that of the step")
    for k, (small, large) in enumerate(zip(config.sizes[:-1], config.sizes[1:], strict=True)):
        yield NEWTON_STEP.check(
            measured=influence[:, k] - influence[:, k + 1], setting=f"error of influence at n = {small} less at {large}"
        )
    heavy = [np.subtract(*leave_one_out_errors(config.sizes[0], HEAVY, config, seed)) for seed in config.replica_seeds]
    yield NEWTON_STEP.control_check(measured=heavy, setting=f"λ = {HEAVY:g}, n = {config.sizes[0]}")

    axes: dict[str, Any] = {"x": "rows n", "y": "relative error of the change", "x_scale": "log", "y_scale": "log"}
    figure = Series("removal", "A removed row moves the fit further than its influence says", claim=NEWTON_STEP.key, **axes)
    figure.line("influence", config.sizes, influence.mean(0), low=influence.min(0), high=influence.max(0), role="control")
    yield figure.line("Newton step", config.sizes, step.mean(0), low=step.min(0), high=step.max(0))
