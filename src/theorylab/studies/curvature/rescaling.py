"""The Hessian of a ReLU network is not a property of the function that it computes.

Multiply a layer's weights by c and divide the next layer's by c: a ReLU network computes the same function, with the same loss on any
data, at a point where the largest eigenvalue of the Hessian and its trace can be as large as one likes. So no threshold on either tells
how well a network generalizes, unless the parametrization is fixed or the measure does not change with it. With another nonlinearity the
same move changes the function, and there is nothing to compare.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from theorylab.core.claim import AtLeast, Claim, Finding
from theorylab.core.config import Config, setting
from theorylab.core.problem import Problem
from theorylab.core.series import Series, Stage
from theorylab.core.source import Source
from theorylab.core.study import study
from theorylab.data.digits import digits
from theorylab.instruments.curvature import hessian, sharpness
from theorylab.linalg.trace import trace
from theorylab.models.mlp import mlp
from theorylab.models.seeded import seeded

NOT_INVARIANT = Claim(
    "curvature/rescaling/not_invariant",
    "In a two-layer ReLU network (cW₁, W₂/c) computes the same function, while the Hessian's largest eigenvalue is at least c² times that "
    "of the second layer's block at c = 1: at c = 10 more than ten times the whole Hessian's.",
    formula=r"f(cW_1, W_2/c) = f(W_1, W_2), \qquad \lambda_1(\nabla^2 L)\big|_{c} \ge c^2\,\lambda_1(\nabla^2_{W_2} L)\big|_{1}",
    source=Source("Dinh et al. 2017", "Theorem 4 (the Hessian's spectral norm under rescaling)", "arXiv:1703.04933"),
    kind="inequality",
    relation=AtLeast(atol=1e-12),
    control="tanh between the layers: the loss changes too",
    reading="Sharp minima can generalize, since every minimum of a ReLU network has sharp copies that compute the same. Sharpness compares "
    "networks only where training has fixed the scales, or after it is made invariant, by normalizing each layer's weights.",
)


@dataclass(frozen=True, kw_only=True)
class RescalingConfig(Config):
    """A seed is an initial network without biases; the digits are the same for all."""

    seeds: int = setting(8, "replicas, each with its own random numbers", low=1)
    rows: int = setting(200, "digits", low=4, high=1797)
    width: int = setting(20, "hidden units", low=2)
    products: int = setting(100, "products that the trace in the figure is estimated from", low=4)


SCALES = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0, 10.0)


def rescaled(problem: Problem, c: float) -> Problem:
    """The problem at (cW₁, W₂/c)."""
    (first, W1), (second, W2) = problem.params.items()
    return problem.at({first: c * W1, second: W2 / c})


def loss_change(problem: Problem, c: float) -> float:
    """|L(cW₁, W₂/c) − L| / L."""
    before = float(problem.loss())
    return abs(float(rescaled(problem, c).loss()) - before) / before


def layer_blocks(problem: Problem, data: tuple[Tensor, Tensor]) -> list[Tensor]:
    """The Hessian's block of each layer."""
    return [hessian(Problem(problem.model, problem.criterion, data, params=name)).to_dense() for name in problem.params]


@study(
    "curvature/rescaling",
    claims=[NOT_INVARIANT],
    tiny=RescalingConfig(seeds=2, rows=100),
    small=RescalingConfig(),
    large=RescalingConfig(seeds=64, rows=1797, width=200, products=300),
)
def rescaling(config: RescalingConfig) -> Iterator[Finding | Series | Stage]:
    """Move networks along the rescaling and measure loss and curvature."""
    x, y = digits(config.rows, dtype=config.torch_dtype)
    data = x.to(config.device), y.to(config.device)

    def problems(activation: str) -> list[Problem]:
        make = partial(mlp, [64, config.width, 10], activation=activation, bias=False)
        nets = [seeded(make, seed, dtype=config.torch_dtype).to(config.device) for seed in config.replica_seeds]
        return [Problem(net, nn.functional.cross_entropy, data) for net in nets]

    yield Stage("loss")
    relu, tanh, largest = problems("relu"), problems("tanh"), SCALES[-1]
    change = torch.tensor([[loss_change(problem, c) for c in SCALES] for problem in relu], dtype=torch.float64)  # (replica, scale)
    other = torch.tensor([[loss_change(problem, c) for c in SCALES] for problem in tanh], dtype=torch.float64)
    yield NOT_INVARIANT.check(predicted=0.0, measured=-change.amax(1), setting="minus the largest relative change of the loss, c ≤ 10")
    yield NOT_INVARIANT.control_check(predicted=0.0, measured=-other[:, -1], setting="the same with tanh")

    yield Stage("largest eigenvalue")
    # the last digits count: at c = 10 the eigenvalue is hardly larger than its bound
    top = torch.tensor([[sharpness(rescaled(problem, c), tol=1e-8).value for c in SCALES] for problem in relu], dtype=torch.float64)
    block = torch.tensor(
        [sharpness(Problem(p.model, p.criterion, data, params=list(p.params)[1]), tol=1e-8).value for p in relu], dtype=torch.float64
    )
    bound = torch.tensor(SCALES, dtype=torch.float64).square() * block[:, None]  # (replica, scale)
    yield NOT_INVARIANT.check(
        predicted=bound.flatten(), measured=top.flatten(), setting="λ₁ at c, against c² λ₁ of the second layer's block"
    )
    yield NOT_INVARIANT.check(predicted=largest, measured=top[:, -1] / top[:, 0], setting="λ₁ at c = 10 over λ₁ at c = 1")

    yield Stage("figures")
    title = "The same function, ever sharper"
    axes: dict[str, Any] = {"x": "c", "y": "λ₁", "x_scale": "log", "y_scale": "log"}
    figure = Series("sharpness", title, claim=NOT_INVARIANT.key, **axes)
    figure.line("ReLU", SCALES, top.mean(0), low=top.amin(0), high=top.amax(0))
    yield figure.line("c² λ₁ of the second layer's block", SCALES, bound.mean(0), role="predicted")

    # Each layer's block scales by the square of the other's factor, so that the traces at every c follow from those at c = 1.
    first, second = (float(matrix.diagonal().sum()) for matrix in layer_blocks(relu[0], data))
    axes = {"x": "c", "y": "tr ∇²L", "x_scale": "log", "y_scale": "log"}
    figure = Series("trace", "The trace grows with the second layer's share", claim=NOT_INVARIANT.key, **axes)
    estimates = [trace(hessian(rescaled(relu[0], c)), n=config.products, seed=config.seed) for c in SCALES]
    value, slack = (torch.tensor(v, dtype=torch.float64) for v in ([e.value for e in estimates], [2.6 * e.stderr for e in estimates]))
    figure.line("estimate by XTrace", SCALES, value, low=value - slack, high=value + slack, mark="points", band="99 % interval")
    yield figure.line("tr H₁/c² + c² tr H₂", SCALES, [first / c**2 + c**2 * second for c in SCALES], role="predicted")

    figure = Series("loss", "The loss stays, or not", x="c", y="relative change of the loss", claim=NOT_INVARIANT.key, y_scale="log")
    figure.x_scale = "log"
    floor = 1e-18  # no change at all has no place on a logarithmic axis
    figure.line("ReLU", SCALES, change.mean(0).clamp(min=floor))
    yield figure.line("tanh", SCALES, other.mean(0).clamp(min=floor), role="control")
