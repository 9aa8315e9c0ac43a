"""Gradient descent follows a gradient flow, but of a slightly different loss, which penalizes steep gradients.

Backward error analysis asks which flow the finite steps solve exactly. To first order in η it is the flow of L + (η/4)‖∇L‖²: the step size
itself is a regularizer that prefers flat places. Measured here on the smallest model with a curve of minima, ½(w₁w₂ − 1)²: halving η
quarters the distance from the modified flow, but only halves the distance from the flow of the loss itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from theorylab.core.claim import Claim, Equals, Finding
from theorylab.core.config import Config, setting
from theorylab.core.series import Role, Series, Stage
from theorylab.core.source import Source
from theorylab.core.study import study
from theorylab.learning.flow import gradient_flow
from theorylab.learning.optimizers.sgd import sgd
from theorylab.models.objectives import scalar_factorization
from theorylab.stats.fits import power_law
from theorylab.theory.dynamics import REGULARIZATION, flow_error_order

IMPLICIT_REGULARIZATION = Claim(
    "optimization/backward_error/implicit_regularization",
    "After a fixed time gradient descent is O(η²) away from the flow of L + (η/4)‖∇L‖², and O(η) away from the flow of L.",
    formula=r"\tilde L = L + \tfrac{\eta}{4}\lVert\nabla L\rVert^2, \qquad \lVert\theta_{t/\eta} - \tilde\theta(t)\rVert = O(\eta^2)",
    source=Source("Barrett and Dherin 2021", "Theorem 3.1", "arXiv:2009.11162"),
    kind="asymptotic",
    relation=Equals(atol=0.1),
    control="the coefficient η/2 in place of η/4, with which the order falls back to 1",
    reading="A finite step is not merely an error: it biases training towards flat regions, in a way that can be written as a "
    "penalty. The expansion is one in ηλ: near the edge of stability, ηλ = 2, its terms do not shrink and the modified flow says nothing.",
)


@dataclass(frozen=True, kw_only=True)
class BackwardErrorConfig(Config):
    """Step sizes are time/2^k; a seed draws a start. Always float64, as the errors reach 1e-7."""

    time: float = setting(1.0, "time of the flow, in units where a step lasts η; steps grow with it", low=0.1, high=2)
    coarsest: int = setting(4, "the largest step is time / 2^coarsest", low=3, high=8)
    halvings: int = setting(4, "how often it is halved", low=2, high=8)


def flow_errors(config: BackwardErrorConfig, start: Tensor, steps: list[float], coefficient: float) -> Tensor:
    """Distance after ``time`` between gradient descent and the flow of L + cη‖∇L‖², (step size, replica)."""
    f = scalar_factorization()
    ends = []
    for step in steps:
        method, params, state = sgd(lr=step), {"w": start}, {}
        for _ in range(round(config.time / step)):
            params, state = method.update({"w": f.gradient(params["w"])}, state, params)
        ends.append(params["w"])
    weights = coefficient * torch.tensor(steps, dtype=start.dtype)[:, None]  # (step size, 1)

    def modified_gradient(w: Tensor) -> Tensor:
        w = w.requires_grad_()
        loss = f.value(w) + weights * (f.gradient(w) ** 2).sum(-1)  # (step size, replica)
        return torch.autograd.grad(loss.sum(), w)[0]

    flowed = gradient_flow(modified_gradient, start.expand(len(steps), -1, -1), config.time, steps=math.ceil(100 * config.time))
    return (torch.stack(ends) - flowed).detach().norm(dim=-1)


@study(
    "optimization/backward_error",
    claims=[IMPLICIT_REGULARIZATION],
    tiny=BackwardErrorConfig(seeds=4, coarsest=5, halvings=2),
    small=BackwardErrorConfig(seeds=16),
    large=BackwardErrorConfig(seeds=256, halvings=8),
)
def backward_error(config: BackwardErrorConfig) -> Iterator[Finding | Series | Stage]:
    """Fit the order of the distance from three flows."""
    # starts between the axes and above the curve of minima, at gradients of order 1
    draws = [torch.rand(2, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in config.replica_seeds]
    start = 1 + torch.stack(draws)  # (replica, 2)
    steps = [config.time / 2**k for k in range(config.coarsest, config.coarsest + config.halvings + 1)]
    figure = Series("orders", "Gradient descent against three flows", x="step size η", y="distance", claim=IMPLICIT_REGULARIZATION.key)
    figure.x_scale = figure.y_scale = "log"

    def orders(coefficient: float, label: str, role: Role) -> list[float]:
        errors = flow_errors(config, start, steps, coefficient)
        means = errors.log().mean(1).exp()
        figure.line(label, steps, means, role=role)
        if role == "measured":
            order = flow_error_order(coefficient)
            guide = [float(means[0]) * (step / steps[0]) ** order for step in steps]
            figure.line(f"slope {order:g}", steps, guide, role="predicted")
        return [power_law(steps, column) for column in errors.T]

    check, control = IMPLICIT_REGULARIZATION.check, IMPLICIT_REGULARIZATION.control_check
    for coefficient, label in ((REGULARIZATION, "flow of L + (η/4)‖∇L‖²"), (0.0, "flow of L")):
        yield Stage(label)
        measured = orders(coefficient, label, "measured")
        yield check(predicted=flow_error_order(coefficient), measured=measured, setting=label)
    yield Stage("control")
    wrong = orders(2 * REGULARIZATION, "flow of L + (η/2)‖∇L‖²", "control")
    yield control(predicted=flow_error_order(REGULARIZATION), measured=wrong, setting="coefficient η/2")
    yield figure
