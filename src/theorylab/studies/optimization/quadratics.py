"""Momentum takes the square root of the condition number on quadratics, and may cycle elsewhere.

On a quadratic every eigenvalue evolves by itself, and the heavy ball in Polyak's tuning contracts all of them at one rate, √κ steps for
what costs gradient descent κ. The tuning owes this to constant curvature: on a function whose curvature only stays between the same μ and
L it can cycle for ever. What gradient descent needs for a linear rate is less than convexity, the Polyak-Łojasiewicz inequality ½‖∇f‖² ≥
μ(f − f*), which overparametrized least squares satisfies although its minimizers fill a subspace. On that example the guaranteed rate 1 −
μ/L is not the true one: the loss is a square, and contracts at (1 − μ/L)².

That true rate is one of the long run, which rounding ends. Of the 64 starts at large, three have hardly any of the slowest mode: after 250
steps their contraction is off by 10⁻⁵, as faster modes are left, and after 350 as well, as their residuals are rounding. After 300 it is
off by 1.4·10⁻⁶ in the worst of them, where 10⁻⁶ is claimed, and that leaves the claim open at that scale and base seed 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from theorylab.core.claim import AtMost, Claim, Equals, Finding
from theorylab.core.config import Config, setting
from theorylab.core.seeds import derived_seed
from theorylab.core.series import Series, Stage
from theorylab.core.source import Source
from theorylab.core.study import study
from theorylab.learning.iterates import iterates
from theorylab.learning.optimizers.sgd import sgd
from theorylab.models.objectives import lessard, pl_least_squares, quadratic, quartic
from theorylab.theory.optimization import gd_rate, least_squares_rate, lessard_cycle, pl_rate, polyak_rate, polyak_tuning

POLYAK_RATE = Claim(
    "optimization/quadratics/polyak_rate",
    "The heavy ball in Polyak's tuning contracts a quadratic by (√κ−1)/(√κ+1) a step; gradient descent with η = 2/(L+μ) by (κ−1)/(κ+1).",
    formula=r"-\ln\rho,\quad \rho = \frac{\sqrt{\kappa} - 1}{\sqrt{\kappa} + 1}, \qquad \eta = \frac{4}{(\sqrt{L} + \sqrt{\mu})^2}, "
    r"\quad \beta = \rho^2",
    source=Source("Polyak 1964", "the two-step method with optimal parameters, quadratic case", "doi:10.1016/0041-5553(64)90137-5"),
    kind="asymptotic",
    relation=Equals(rtol=0.03),
    control="no momentum (β = 0, η = 2/(L + μ)) against the heavy ball's rate",
    reading="Ten times fewer steps at κ = 100: this is what momentum is for. The rate is reached late, after a polynomial factor has "
    "died away, and only where the curvature does not change. Compared are the −ln ρ: beside 1 every slow rate is like any other.",
)

HEAVY_BALL_CYCLE = Claim(
    "optimization/quadratics/heavy_ball_cycle",
    "On a smooth, strongly convex function with L = 25 and μ = 1 the heavy ball in Polyak's tuning ends in a cycle of three points.",
    formula=r"x_{t+3} = x_t \in \left\{\tfrac{2592}{1225},\; \tfrac{792}{1225},\; -\tfrac{2208}{1225}\right\}",
    source=Source("Lessard et al. 2016", "Section 4.6 (heavy-ball method)", "arXiv:1408.3595"),
    kind="identity",
    relation=Equals(atol=1e-10),
    control="gradient descent on the same function, which converges to 0",
    reading="A rate proved for quadratics need not survive the step to convex functions: the curvature that the ball sees alternates "
    "in time with its momentum. Slower tunings (Nesterov's) are safe for the whole class.",
)

PL_RATE = Claim(
    "optimization/quadratics/pl_rate",
    "Under the Polyak-Łojasiewicz inequality gradient descent with η = 1/L has (f_k − f*)/(f₀ − f*) ≤ (1 − μ/L)^k at every step.",
    formula=r"\tfrac12\lVert\nabla f\rVert^2 \ge \mu\,(f - f^*) \;\Rightarrow\; f(x_k) - f^* \le (1 - \mu/L)^k\,(f(x_0) - f^*)",
    source=Source("Karimi et al. 2016", "Theorem 1", "arXiv:1608.04636"),
    kind="inequality",
    relation=AtMost(atol=1e-20),
    control="x⁴ from 1 with μ and L as they are at the start: no μ > 0 serves all the way to 0",
    reading="A linear rate needs neither convexity nor a unique minimizer, only gradients that do not vanish before the loss does: "
    "this is how overparametrized models can be trained fast. Where the loss flattens towards its minimum the inequality "
    "fails, and so does the rate.",
)

LEAST_SQUARES_RATE = Claim(
    "optimization/quadratics/least_squares_rate",
    "On overparametrized least squares gradient descent with η = 1/L contracts the loss by (1 − μ/L)² a step in the long run.",
    formula=r"\lim_{k\to\infty} \frac{f(x_{k+1})}{f(x_k)} = \left(1 - \frac{\mu}{L}\right)^2",
    source=Source("Karimi et al. 2016", "Theorem 1 and Section 2.3, sharpened for least squares", "arXiv:1608.04636"),
    kind="asymptotic",
    relation=Equals(rtol=1e-6),
    control="x⁴, whose contraction tends to 1",
    reading="The guarantee is not tight here: the slowest mode of the residual shrinks by 1 − μ/L and the loss is its square, so "
    "training takes half the steps that the bound allows. The limit is reached once the faster modes are gone.",
)


@dataclass(frozen=True, kw_only=True)
class QuadraticsConfig(Config):
    """Sizes of the problems; a seed draws a start and a least-squares problem. Always float64."""

    conditions: tuple[int, ...] = setting((10, 100), "condition numbers κ of the quadratics", low=10, high=1000)
    dimension: int = setting(50, "variables d of the quadratics and of least squares", low=21)
    rows: int = setting(20, "rows n of least squares, fewer than d", low=2, high=20)
    steps: int = setting(600, "steps of momentum; rates are read off the last hundred", low=600, high=1000)
    descent_steps: int = setting(300, "steps on least squares, before the loss reaches rounding", low=250, high=320)


def starts(config: QuadraticsConfig, dimension: int) -> Tensor:
    """A standard normal start for each seed, (replica, dimension)."""
    generators = [torch.Generator().manual_seed(derived_seed(s, "start")) for s in config.replica_seeds]
    return torch.stack([torch.randn(dimension, generator=generator, dtype=torch.float64) for generator in generators])


def rate(values: Tensor) -> Tensor:
    """Geometric mean of the contraction in the last hundred of (step, ...) values."""
    return (values[-1] / values[-101]) ** 0.01


def momentum(config: QuadraticsConfig) -> Iterator[Finding | Series | Stage]:
    """Polyak's tuning on quadratics, and on Lessard's function."""
    yield Stage("rates on quadratics")
    start = starts(config, config.dimension)
    for kappa in config.conditions:
        f = quadratic(torch.linspace(1 / kappa, 1.0, config.dimension, dtype=torch.float64))
        step, beta = polyak_tuning(f.smoothness, f.curvature)
        # the largest coordinate's distance from the minimizer 0: squares would underflow
        ball = iterates(sgd(lr=step, momentum=beta), f, start, config.steps).abs().amax(-1)  # (step, replica)
        plain = iterates(sgd(lr=2 / (f.smoothness + f.curvature)), f, start, config.steps).abs().amax(-1)
        fast, slow = -math.log(polyak_rate(kappa)), -math.log(gd_rate(kappa))
        yield POLYAK_RATE.check(predicted=fast, measured=-rate(ball).log(), setting=f"heavy ball, κ = {kappa}")
        yield POLYAK_RATE.check(predicted=slow, measured=-rate(plain).log(), setting=f"gradient descent, κ = {kappa}")
        yield POLYAK_RATE.control_check(predicted=fast, measured=-rate(plain).log(), setting=f"β = 0, κ = {kappa}")
    figure = Series("rates", f"Distance from the minimizer, κ = {kappa}", x="step", y="max |x − x*| / max |x₀ − x*|", claim=POLYAK_RATE.key)
    figure.y_scale = "log"
    t = torch.arange(config.steps + 1)
    figure.line("heavy ball", t, ball[:, 0] / ball[0, 0]).line("gradient descent", t, plain[:, 0] / plain[0, 0], role="control")
    yield figure.line("((√κ−1)/(√κ+1))^t", t, polyak_rate(kappa) ** t.double(), role="predicted")

    yield Stage("cycle of the heavy ball")
    f, start = lessard(), torch.tensor([3.3], dtype=torch.float64)
    step, beta = polyak_tuning(f.smoothness, f.curvature)
    ball = iterates(sgd(lr=step, momentum=beta), f, start, config.steps)[:, 0]
    plain = iterates(sgd(lr=2 / (f.smoothness + f.curvature)), f, start, config.steps)[:, 0]

    def last_periods(x: Tensor) -> Tensor:
        """The last nine iterates, from the largest of the first three on: three periods of a 3-cycle."""
        first = len(x) - 12 + int(x[-12:-9].argmax())
        return x[first : first + 9]

    yield HEAVY_BALL_CYCLE.check(predicted=lessard_cycle() * 3, measured=last_periods(ball), setting="three periods")
    yield HEAVY_BALL_CYCLE.control_check(predicted=lessard_cycle() * 3, measured=last_periods(plain), setting="gradient descent")
    figure = Series("cycle", "A heavy ball that never comes to rest", x="step", y="x", claim=HEAVY_BALL_CYCLE.key)
    figure.line("heavy ball", t[:60], ball[:60], mark="points").line("gradient descent", t[:60], plain[:60], role="control")
    for i, point in enumerate(lessard_cycle()):
        figure.line(f"cycle, point {i + 1}", t[:60], torch.full((60,), point), role="predicted")
    yield figure


def least_squares(config: QuadraticsConfig) -> Iterator[Finding | Series | Stage]:
    """The Polyak-Łojasiewicz rate: as a bound at every step, and the true one in the long run."""
    yield Stage("Polyak-Łojasiewicz inequality")
    steps = config.descent_steps
    t = torch.arange(steps + 1)
    ratios = []
    for seed, start in zip(config.replica_seeds, starts(config, config.dimension), strict=True):
        f = pl_least_squares(config.rows, config.dimension, seed=seed)
        ratios.append(f.gap(iterates(sgd(lr=1 / f.smoothness), f, start, steps)))
    gaps = torch.stack(ratios, 1)
    gaps = gaps / gaps[0]  # (step, replica)
    bound = pl_rate(f.smoothness, f.curvature) ** t.double()
    flat, one = quartic(), torch.ones(1, dtype=torch.float64)
    # at the start f'' = 12 and f'²/(2f) = 8
    smoothness, curvature = 12.0, float((flat.gradient(one) ** 2 / (2 * flat.gap(one))).item())
    quartic_gap = flat.gap(iterates(sgd(lr=1 / smoothness), flat, one, steps))
    quartic_bound = pl_rate(smoothness, curvature) ** t.double()
    yield PL_RATE.check(predicted=bound[1:, None].expand_as(gaps[1:]), measured=gaps[1:], setting="every step, all seeds")
    yield PL_RATE.control_check(predicted=quartic_bound[1:], measured=quartic_gap[1:], setting="f = x⁴")
    predicted = least_squares_rate(f.smoothness, f.curvature)
    yield LEAST_SQUARES_RATE.check(predicted=predicted, measured=rate(gaps))
    yield LEAST_SQUARES_RATE.control_check(predicted=predicted, measured=rate(quartic_gap), setting="f = x⁴")
    figure = Series("pl", "Loss of overparametrized least squares", x="step", y="f / f₀", claim=PL_RATE.key, y_scale="log")
    figure.line("gradient descent", t, gaps[:, 0]).line("bound (1 − μ/L)^k", t, bound, role="predicted")
    yield figure.line("x⁴", t, quartic_gap, role="control")


@study(
    "optimization/quadratics",
    claims=[POLYAK_RATE, HEAVY_BALL_CYCLE, PL_RATE, LEAST_SQUARES_RATE],
    tiny=QuadraticsConfig(seeds=2, conditions=(10,)),
    small=QuadraticsConfig(),
    large=QuadraticsConfig(seeds=64, conditions=(10, 100, 1000), dimension=200, steps=1000),
)
def quadratics(config: QuadraticsConfig) -> Iterator[Finding | Series | Stage]:
    """Rates on quadratics, where they end, and what they need."""
    yield from momentum(config)
    yield from least_squares(config)
