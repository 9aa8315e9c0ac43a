"""The guarantees of first-order methods are exact: a function attains each of them.

A worst-case bound says what no convex function can exceed, and a *witness*, a function on which the method does no better, says that the
bound cannot be improved. For gradient descent and for the optimized gradient method the witness is a Huber function whose slope lasts just
as long as the method walks; for the subgradient method a maximum of coordinates, which shows one of them to each step; for all methods
that combine gradients, Nesterov's tridiagonal quadratic. For nonconvex functions gradients, not values, are guaranteed to become small.

All functions are scaled to L = M = R = 1, and everything is computed in float64: an identity must hold to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from theorylab.core.claim import AtLeast, AtMost, Claim, Equals, Finding
from theorylab.core.config import Config, setting
from theorylab.core.series import Series, Stage
from theorylab.core.source import Source
from theorylab.core.study import study
from theorylab.learning.iterates import iterates
from theorylab.learning.optimizers.accelerated import accelerated
from theorylab.learning.optimizers.base import Optimizer
from theorylab.learning.optimizers.ogm import ogm
from theorylab.learning.optimizers.sgd import sgd
from theorylab.models.objectives import Objective, cosine_sum, huber, quadratic, resisting_maximum, saturating_sum, tridiagonal
from theorylab.theory.optimization import (
    gd_worst_case,
    gd_worst_threshold,
    nonconvex_gradient_bound,
    ogm_theta,
    ogm_worst_case,
    span_lower_bound,
    subgradient_worst_case,
)

GD_TIGHT = Claim(
    "optimization/worst_case/gd_tight",
    "n steps of gradient descent with η = 1/L leave f − f* at LR²/(4n+2) on a Huber function: the bound for all convex L-smooth functions.",
    formula=r"\max_f \; f(x_n) - f^* = \frac{L R^2}{4n + 2}",
    source=Source("Drori and Teboulle 2014", "Theorems 3.1 and 3.2", "arXiv:1206.3209"),
    kind="identity",
    relation=Equals(rtol=1e-12),
    control="η = 1.9/L on the parabola Lx²/2, which then oscillates and misses the value",
    reading="The guarantee of gradient descent is no artefact of its proof: the Huber function with the right threshold meets it exactly. "
    "The worst function depends on n, so that on any one function the decay is faster in the end. Longer steps have Huber functions "
    "for worst cases too, and better guarantees, until a parabola, from side to side of which they jump, takes over: at 1.5/L for one "
    "step, nearer to 2/L the more there are.",
)

SUBGRADIENT = Claim(
    "optimization/worst_case/subgradient",
    "n steps of the subgradient method with η = R/(M√(n+1)) leave the best f − f* at MR/√(n+1) on a function of n + 1 variables.",
    formula=r"\max_f \min_{t \le n} f(x_t) - f^* = \frac{M R}{\sqrt{n + 1}}",
    source=Source("Drori and Teboulle 2016", "Appendix A", "arXiv:1409.2636"),
    kind="identity",
    relation=Equals(rtol=1e-12),
    control="the same function in n/2 dimensions, where the steps run out of coordinates to be surprised by",
    reading="Without smoothness a gradient says little: each one reveals a single coordinate, and the value does not move before all "
    "are seen. The slow rate 1/√n is therefore a matter of dimension, and is beaten where there are fewer dimensions than steps.",
)

OGM_TIGHT = Claim(
    "optimization/worst_case/ogm_tight",
    "n steps of the optimized gradient method leave f − f* at LR²/(2θ_n²) on a Huber function: the bound for all convex "
    "L-smooth functions.",
    formula=r"\max_f \; f(x_n) - f^* = \frac{L R^2}{2\theta_n^2}",
    source=Source("Kim and Fessler 2016", "Theorem 2", "arXiv:1406.5468"),
    kind="identity",
    relation=Equals(rtol=1e-10),
    control="gradient descent on the same function",
    reading="The best worst case that a first-order method can have is attained, with θ_n growing as n/√2: twice as good as "
    "Nesterov's guarantee. It is a statement about worst functions: on an easy one, plain or conjugate gradients may well be faster.",
)

NONCONVEX_GD = Claim(
    "optimization/worst_case/nonconvex_gd",
    "Gradient descent with η = 1/L on an L-smooth function, convex or not, meets a gradient with ‖∇f‖² ≤ 4L(f₀ − f*)/(3n) within n steps.",
    formula=r"\min_{t \le n} \lVert\nabla f(x_t)\rVert^2 \le \frac{4 L\,(f(x_0) - f^*)}{3 n}",
    source=Source("Taylor 2017", "page 190 (gradient method, nonconvex case)", "PhD thesis, UCLouvain"),
    kind="inequality",
    relation=AtMost(atol=1e-14),
    control="η = 2.1/L on Lx²/2, beyond the edge of stability",
    reading="Smoothness alone makes gradients small, at the rate 1/n for their square; nothing is said of the value, which may be a "
    "poor local minimum's. Beyond η = 2/L even a parabola diverges and there is no such bound.",
)

SPAN_LOWER_BOUND = Claim(
    "optimization/worst_case/span_lower_bound",
    "No method that stays in the span of its gradients gets below 3LR²/(32(k+1)²) in k steps on Nesterov's tridiagonal quadratic of "
    "2k + 1 variables.",
    formula=r"f(x_k) - f^* \ge \frac{3 L R^2}{32\,(k + 1)^2}",
    source=Source("Nesterov 2004", "Theorem 2.1.7", "Introductory Lectures on Convex Optimization"),
    kind="inequality",
    relation=AtLeast(),
    control="one Newton step, which multiplies the gradient by a matrix and so leaves the span",
    reading="After k steps only k coordinates have been touched, and no cleverness in combining them helps: the rate 1/k² is the limit of "
    "first-order methods in high dimension. Second-order steps, or more steps than dimensions, are not bound by it.",
)


@dataclass(frozen=True, kw_only=True)
class WorstCaseConfig(Config):
    """Numbers of steps; a seed is a set of random starts of the nonconvex functions, the rest is not random. Always float64."""

    steps: tuple[int, ...] = setting((1, 5, 20, 100), "steps n of gradient descent and the optimized method", low=1)
    nonsmooth_steps: tuple[int, ...] = setting((5, 10, 50), "steps n of the subgradient method", low=2)
    span_steps: tuple[int, ...] = setting((5, 20, 50), "steps k of methods in the span of their gradients, in dimension 2k + 1", low=2)
    starts: int = setting(64, "starts of each nonconvex function and seed", low=1)


def last_gap(method: Optimizer, f: Objective, start: Tensor, steps: int) -> float:
    """Suboptimality at the last of the iterates."""
    return float(f.gap(iterates(method, f, start, steps)[-1]))


def smooth(config: WorstCaseConfig) -> Iterator[Finding | Series | Stage]:
    """Gradient descent and the optimized gradient method on their Huber functions."""
    yield Stage("smooth convex functions")
    start, gd = torch.ones(1, dtype=torch.float64), sgd(lr=1.0)
    for n in config.steps:
        worst = huber(gd_worst_threshold(n))
        yield GD_TIGHT.check(predicted=gd_worst_case(n), measured=last_gap(gd, worst, start, n), setting=f"n = {n}")
    half = huber(gd_worst_threshold(10, step_ratio=0.5))
    value = last_gap(sgd(lr=0.5), half, start, 10)
    yield GD_TIGHT.check(predicted=gd_worst_case(10, step_ratio=0.5), measured=value, setting="η = 1/(2L), n = 10")
    parabola = last_gap(sgd(lr=1.9), quadratic(start), start, 5)
    yield GD_TIGHT.control_check(predicted=gd_worst_case(5), measured=parabola, setting="η = 1.9/L, n = 5")

    n = max(config.steps)
    thresholds = np.geomspace(0.1, 10, 41) * gd_worst_threshold(n)
    figure = Series(
        "huber", f"Gradient descent after {n} steps on Huber functions", x="threshold τ / R", y="f − f* [LR²]", claim=GD_TIGHT.key
    )
    figure.x_scale = "log"
    figure.line("measured", thresholds, [last_gap(gd, huber(t), start, n) for t in thresholds], mark="points")
    yield figure.line("bound LR²/(4n+2)", thresholds, np.full(41, gd_worst_case(n)), role="predicted")

    gaps, plain = [], []
    for n in config.steps:
        worst = huber(1 / ogm_theta(n) ** 2)
        gaps.append(last_gap(ogm(lr=1.0, steps=n), worst, start, n))
        plain.append(last_gap(gd, worst, start, n))
        yield OGM_TIGHT.check(predicted=ogm_worst_case(n), measured=gaps[-1], setting=f"n = {n}")
    predicted = [ogm_worst_case(n) for n in config.steps]
    yield OGM_TIGHT.control_check(predicted=predicted, measured=plain, setting="gradient descent")
    figure = Series("ogm", "The worst function of the optimized gradient method", x="steps n", y="f − f* [LR²]", claim=OGM_TIGHT.key)
    figure.x_scale = figure.y_scale = "log"
    figure.line("optimized gradient method", config.steps, gaps, mark="points").line("LR²/(2θ²)", config.steps, predicted, role="predicted")
    yield figure.line("gradient descent, same function", config.steps, plain, role="control", mark="points")


def nonsmooth(config: WorstCaseConfig) -> Iterator[Finding | Series | Stage]:
    """The subgradient method against the resisting maximum, in full and in too low dimension."""
    yield Stage("nonsmooth convex functions")

    def best_gap(n: int, dimension: int) -> float:
        f, step = resisting_maximum(dimension), subgradient_worst_case(n)  # η = R/(M√(n+1)) is the bound itself where M = R = 1
        return float(f.gap(iterates(sgd(lr=step), f, torch.zeros(dimension, dtype=torch.float64), n)).min())

    ns, predicted = config.nonsmooth_steps, [subgradient_worst_case(n) for n in config.nonsmooth_steps]
    full, low = [best_gap(n, n + 1) for n in ns], [best_gap(n, n // 2) for n in ns]
    for n, p, measured in zip(ns, predicted, full, strict=True):
        yield SUBGRADIENT.check(predicted=p, measured=measured, setting=f"n = {n}")
    yield SUBGRADIENT.control_check(predicted=predicted, measured=low, setting="dimension n/2")
    figure = Series("subgradient", "The best value of the subgradient method", x="steps n", y="best f − f* [MR]", claim=SUBGRADIENT.key)
    figure.x_scale = figure.y_scale = "log"
    figure.line("dimension n + 1", ns, full, mark="points").line("MR/√(n+1)", ns, predicted, role="predicted")
    yield figure.line("dimension n/2", ns, low, role="control", mark="points")


def nonconvex(config: WorstCaseConfig) -> Iterator[Finding | Series | Stage]:
    """The smallest gradient of gradient descent from random starts, after every number of steps."""
    yield Stage("nonconvex functions")
    n, dimension = max(config.steps), 3
    starts = []
    for seed in config.replica_seeds:
        generator = torch.Generator().manual_seed(seed)
        starts.append(4 * torch.randn(config.starts, dimension, generator=generator, dtype=torch.float64))
    start = torch.cat(starts)  # (start, dimension)
    steps = torch.arange(1, n + 1)

    def smallest(f: Objective, start: Tensor, step: float) -> tuple[Tensor, Tensor]:
        squared = (f.gradient(iterates(sgd(lr=step), f, start, n)) ** 2).sum(-1)  # (step, start)
        bound = torch.stack([f.gap(start) * nonconvex_gradient_bound(k, 1.0, smoothness=f.smoothness) for k in range(1, n + 1)])
        return squared.cummin(0).values[1:], bound

    foot = 1e-4  # the cosine converges at once when it is near, and its last rounding errors would leave no room for the rest
    title = f"The smallest squared gradient, worst start, until it is below {foot:g}"
    figure = Series("nonconvex", title, x="steps n", y="min ‖∇f‖² / (L(f₀ − f*))", claim=NONCONVEX_GD.key, x_scale="log", y_scale="log")
    for f in (cosine_sum(), saturating_sum()):
        measured, bound = smallest(f, start, 1 / f.smoothness)
        yield NONCONVEX_GD.check(predicted=bound, measured=measured, setting=f.name)
        worst = (measured / (f.smoothness * f.gap(start))).amax(1)
        figure.line(f.name, steps[worst > foot], worst[worst > foot])
    one = torch.ones(1, 1, dtype=torch.float64)
    measured, bound = smallest(quadratic(one[0]), one, 2.1)
    yield NONCONVEX_GD.control_check(predicted=bound, measured=measured, setting="η = 2.1/L on a parabola")
    figure.line("4/(3n)", steps, [nonconvex_gradient_bound(k, 1.0) for k in range(1, n + 1)], role="predicted")
    yield figure.line("η = 2.1/L on a parabola", steps, 2 * measured[:, 0], role="control")  # L(f₀ − f*) = 1/2


def best_in_span(dimension: int, steps: int) -> Tensor:
    """The minimizer of the tridiagonal quadratic over the first ``steps`` coordinates, the span of as many gradients from 0."""
    x = torch.zeros(dimension, dtype=torch.float64)
    x[:steps] = tridiagonal(steps).minimizer  # the restricted problem is the same quadratic in fewer variables
    return x


def span(config: WorstCaseConfig) -> Iterator[Finding | Series | Stage]:
    """Plain, accelerated and the best of all methods against the lower bound."""
    yield Stage("lower bound")
    ks, bounds, newton = config.span_steps, [], []
    gaps: dict[str, list[float]] = {"gradient descent": [], "accelerated": [], "optimized": [], "best in the span": []}
    for k in ks:
        f = tridiagonal(2 * k + 1)
        start = torch.zeros(2 * k + 1, dtype=torch.float64)
        bounds.append(span_lower_bound(k, radius=float(f.minimizer.norm())))
        methods = {"gradient descent": sgd(lr=1.0), "accelerated": accelerated(lr=1.0), "optimized": ogm(lr=1.0, steps=k)}
        for name, method in methods.items():
            gaps[name].append(last_gap(method, f, start, k))
        gaps["best in the span"].append(float(f.gap(best_in_span(2 * k + 1, k))))
        hessian = torch.stack([f.gradient(e) - f.gradient(start) for e in torch.eye(2 * k + 1, dtype=torch.float64)])
        newton.append(float(f.gap(start - torch.cholesky_solve(f.gradient(start)[:, None], torch.linalg.cholesky(hessian))[:, 0])))
    for name, values in gaps.items():
        yield SPAN_LOWER_BOUND.check(predicted=bounds, measured=values, setting=name)
    yield SPAN_LOWER_BOUND.control_check(predicted=bounds, measured=newton, setting="one Newton step")
    figure = Series("span", "Methods on Nesterov's quadratic in dimension 2k + 1", x="steps k", y="f − f* [L]", claim=SPAN_LOWER_BOUND.key)
    figure.x_scale = figure.y_scale = "log"
    for name, values in gaps.items():
        figure.line(name, ks, values, mark="points")
    yield figure.line("3LR²/(32(k+1)²)", ks, bounds, role="predicted")


@study(
    "optimization/worst_case",
    claims=[GD_TIGHT, SUBGRADIENT, OGM_TIGHT, NONCONVEX_GD, SPAN_LOWER_BOUND],
    tiny=WorstCaseConfig(seeds=1, steps=(1, 5), nonsmooth_steps=(4,), span_steps=(3,), starts=16),
    small=WorstCaseConfig(),
    large=WorstCaseConfig(seeds=32, steps=(1, 5, 20, 100, 1000), nonsmooth_steps=(5, 50, 500), span_steps=(5, 20, 100), starts=256),
)
def worst_case(config: WorstCaseConfig) -> Iterator[Finding | Series | Stage]:
    """Run every method on its witness."""
    yield from smooth(config)
    yield from nonsmooth(config)
    yield from nonconvex(config)
    yield from span(config)
