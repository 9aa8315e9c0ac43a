"""Gradient descent leaves a strict saddle in a time logarithmic in its distance from it.

Near a strict saddle the escaping coordinate grows geometrically, by 1 + η|λ| a step, so a start ten times closer costs a constant number of
further steps, not ten times as many. The function here bends away from its quadratic part on the way down, so that the law is one of the
limit δ → 0, to which the fit over the distances comes within a per cent. Where the negative curvature vanishes at the saddle (a degenerate
one), growth is no longer geometric and the time is a power of the distance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from theorylab.core.claim import Claim, Equals, Finding
from theorylab.core.config import Config, setting
from theorylab.core.series import Series, Stage
from theorylab.core.source import Source
from theorylab.core.study import study
from theorylab.learning.optimizers.sgd import sgd
from theorylab.models.objectives import strict_saddle
from theorylab.theory.dynamics import saddle_escape_slope

ESCAPE_TIME = Claim(
    "optimization/saddle/escape_time",
    "From distance δ of a strict saddle with negative curvature λ, gradient descent with step η escapes in ln(1/δ)/ln(1+η|λ|) steps.",
    formula=r"T(\delta) = \frac{\ln(1/\delta)}{\ln(1 + \eta\,|\lambda|)}",
    source=Source("Lee et al. 2016", "Section 3 (linearization at a strict saddle)", "arXiv:1602.04915"),
    kind="asymptotic",
    relation=Equals(rtol=0.01),
    control="the degenerate saddle −x⁴/4, where the time grows as δ⁻²",
    reading="Strict saddles do not trap gradient descent: halving the distance adds a constant number of steps. "
    "The law stops where the curvature itself vanishes at the saddle, or where noise, not the start, sets the distance.",
)


@dataclass(frozen=True, kw_only=True)
class SaddleConfig(Config):
    """Distances on a grid of powers of ten; nothing is random, so seeds play no part."""

    lr: float = setting(0.05, "step size η", low=1e-4, high=0.5)
    curvature: float = setting(-1.0, "negative eigenvalue λ at the saddle", high=-1e-3)
    decades: int = setting(12, "distances 10⁻² … 10^−decades", low=4, high=15)


def escape_steps(gradient: Callable[[Tensor], Tensor], starts: Tensor, lr: float, limit: int) -> Tensor:
    """Steps of gradient descent from each start (k, d) until its first coordinate reaches 1, interpolated in the last one, (k,).

    ``limit`` where it does not arrive.
    """
    gd = sgd(lr=lr)
    x, state = {"x": starts.clone()}, {}
    steps = torch.full_like(starts[:, 0], float(limit))
    for t in range(1, limit + 1):
        before = x["x"][:, 0]
        x, state = gd.update({"x": gradient(x["x"])}, state, x)
        after = x["x"][:, 0]
        crossed = (before < 1) & (after >= 1)
        steps[crossed] = (t - 1 + torch.log(1 / before) / torch.log(after / before))[crossed]
        if bool((steps < limit).all()):
            break
    return steps


@study(
    "optimization/saddle",
    claims=[ESCAPE_TIME],
    tiny=SaddleConfig(decades=6),
    small=SaddleConfig(),
    large=SaddleConfig(decades=15),
)
def saddle(config: SaddleConfig) -> Iterator[Finding | Series | Stage]:
    """Fit the slope of escape time against ln(1/δ)."""
    exponents = np.arange(2, config.decades + 1)
    distances = torch.tensor(10.0**-exponents, dtype=config.torch_dtype, device=config.device)
    log_inverse = -distances.log()
    predicted = saddle_escape_slope(config.lr, config.curvature)

    yield Stage("strict saddle")
    limit = math.ceil(2 * predicted * float(log_inverse.max()))
    starts = torch.stack([distances, torch.ones_like(distances)], 1)
    strict = escape_steps(strict_saddle(config.curvature).gradient, starts, config.lr, limit)
    yield ESCAPE_TIME.check(predicted=predicted, measured=np.polyfit(log_inverse.cpu(), strict.cpu(), 1)[0])

    yield Stage("degenerate saddle")
    near = distances.new_tensor([0.3, 0.1, 0.03])  # the time grows as δ⁻²: a start at 10⁻⁶ would take 10¹³ steps
    limit = math.ceil(2 / (2 * config.lr * float(near.min()) ** 2))
    degenerate = escape_steps(lambda x: -(x**3).clamp(max=1.0), near[:, None], config.lr, limit)  # no further than 1
    slope = np.polyfit(-near.log().cpu(), degenerate.cpu(), 1)[0]
    yield ESCAPE_TIME.control_check(predicted=predicted, measured=slope, setting="f = −x⁴/4")

    figure = Series("escape", "Steps to leave the saddle", x="1/δ", y="steps", claim=ESCAPE_TIME.key, x_scale="log", y_scale="log")
    figure.line("strict saddle", 1 / distances, strict, mark="points")
    figure.line("ln(1/δ)/ln(1+η|λ|)", 1 / distances, predicted * log_inverse, role="predicted")
    yield figure.line("degenerate saddle", 1 / near, degenerate, role="control", mark="points")
