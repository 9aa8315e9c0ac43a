"""What the Gauss-Newton influence of a network answers: the derivative of a proximal problem, wherever training stopped.

A network is seldom at a minimum, and its Hessian has negative eigenvalues, so that the classical derivation of influence does not apply.
Bae et al. found the question to which the formula with the Gauss-Newton matrix is the exact answer: keep the predictions close to
what they are, in the Bregman divergence of the loss, keep the parameters close to where they are, and add a little of row i's loss. The
minimizer moves with that little as the damped Gauss-Newton formula says, at any parameters.

Here the proximal problem is solved for every row at ε = ±1e-5, by Newton's method with its own Hessian, at random parameters and during
training, and the central difference is compared with the formula. With the Hessian in place of the Gauss-Newton matrix the formula is wrong
by more than its own length.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from theorylab.core.claim import Claim, Equals, Finding
from theorylab.core.config import Config, setting
from theorylab.core.problem import Problem
from theorylab.core.series import Series, Stage
from theorylab.core.source import Source
from theorylab.core.study import study
from theorylab.instruments.curvature import ggn, hessian
from theorylab.instruments.rows import per_example_grads
from theorylab.learning.optimizers.sgd import sgd
from theorylab.learning.population import Population
from theorylab.linalg.distance import relative_distance
from theorylab.models.mlp import mlp

PROXIMAL_BREGMAN = Claim(
    "influence/network/proximal_bregman",
    "At any parameters, the damped Gauss-Newton influence of a row is the derivative of the solution of a proximal Bregman problem.",
    formula=r"-(G+\lambda I)^{-1}\nabla\ell_i = \frac{d}{d\varepsilon}\arg\min_\theta \frac1n\sum_j D_{\ell_j}(f_j(\theta), f_j(\theta_0)) "
    r"+ \frac\lambda2\lVert\theta-\theta_0\rVert^2 + \varepsilon\,\ell_i(\theta)",
    source=Source("Bae et al. 2022", "the proximal Bregman response function, linearized", "arXiv:2209.05364"),
    kind="identity",
    relation=Equals(atol=1e-4),
    control="the Hessian in place of the Gauss-Newton matrix",
    reading="Influence in networks is often judged by leave-one-out retraining and found wanting, but that is not the question it answers. "
    "It says how the network moves if a row is unlearnt while all other predictions are kept, from the parameters at hand. Where "
    "training without the row ends up elsewhere, no formula at this point can know.",
)

EPSILON = 1e-5
"""Weight of the row's loss. The central difference errs by its square, rounding by 1e-15 / ε."""


@dataclass(frozen=True, kw_only=True)
class NetworkConfig(Config):
    """A seed is a network and its data: normal inputs with random labels."""

    seeds: int = setting(4, "replicas, each with its own random numbers", low=1)
    rows: int = setting(40, "rows n", low=2)
    hidden: int = setting(5, "hidden units", low=1)
    decay: float = setting(0.01, "damping λ", low=1e-6)
    steps: tuple[int, ...] = setting((0, 100), "steps of gradient descent after which the network is looked at", low=0)


def proximal(problem: Problem) -> Problem:
    """The Bregman part at the problem's own outputs; targets are (label, weight n·ε, outputs, their loss, its slope)."""
    x, y = problem.batches[0].content
    with problem.safe():
        outputs = problem.outputs(0).detach().requires_grad_()
        losses = cross_entropy(outputs, y, reduction="none")
        (slope,) = torch.autograd.grad(losses.sum(), outputs)
    kept = {"y": y, "weight": torch.zeros_like(losses), "outputs": outputs.detach(), "losses": losses.detach(), "slope": slope}

    def bregman(f: Tensor, t: dict[str, Tensor]) -> Tensor:
        own = cross_entropy(f, t["y"], reduction="none")
        return own - t["losses"] - (t["slope"] * (f - t["outputs"])).sum(1) + t["weight"] * own

    return Problem(problem.model, bregman, (x, kept)).at(problem.params)


def response(start: Problem, curvature: Tensor, row: int, epsilon: float, decay: float) -> Tensor:
    """θ − θ₀ at the minimum of the proximal problem, by steps with the problem's own Hessian at θ₀, each of which gains a factor ε."""
    x, kept = start.batches[0].content
    weight = torch.zeros_like(kept["weight"])
    weight[row] = epsilon * start.n
    problem = Problem(start.model, start.criterion, (x, {**kept, "weight": weight})).at(start.params)
    theta = start.flatten(start.params)
    moved, factor = torch.zeros_like(theta), torch.linalg.cholesky(curvature)
    for _ in range(4):
        slope = problem.at(problem.unflatten(theta + moved)).gradient() + decay * moved
        moved = moved - torch.cholesky_solve(slope[:, None], factor)[:, 0]
    return moved


def responses(problem: Problem, decay: float) -> Tensor:
    """Derivatives in ε of the proximal solution, one a row, (n, p)."""
    start = proximal(problem)
    curvature = hessian(start).to_dense() + decay * torch.eye(problem.P).to(problem.flatten(problem.params))
    each = [response(start, curvature, i, EPSILON, decay) - response(start, curvature, i, -EPSILON, decay) for i in range(problem.n)]
    return torch.stack(each) / (2 * EPSILON)


def formula(problem: Problem, matrix: Tensor, decay: float) -> Tensor:
    """−(C + λI)⁻¹∇ℓᵢ of each row, (n, p), for a symmetric C that need not be positive."""
    values, vectors = torch.linalg.eigh(matrix)
    return -(per_example_grads(problem) @ vectors / (values + decay)) @ vectors.T


@study(
    "influence/network",
    claims=[PROXIMAL_BREGMAN],
    tiny=NetworkConfig(seeds=2, rows=10, hidden=3),
    small=NetworkConfig(),
    large=NetworkConfig(seeds=16, rows=200, hidden=20, steps=(0, 100, 1000, 10000)),
)
def network(config: NetworkConfig) -> Iterator[Finding | Series | Stage]:
    """Solve the proximal problem of every row, at several times of training."""

    def make() -> nn.Module:
        return mlp([4, config.hidden, 3], init_scale=2.0)

    data = []
    for seed in config.replica_seeds:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(config.rows, 4, generator=generator, dtype=torch.float64)
        data.append((x, torch.randint(0, 3, (config.rows,), generator=generator)))
    stacked = torch.stack([x for x, _ in data]), torch.stack([y for _, y in data])
    options = {"optimizer": sgd(0.2), "seeds": config.replica_seeds, "data_per_replica": True, "device": config.device}
    population = Population(make, cross_entropy, stacked, mode="loop", **options)
    done, shown = 0, None
    for steps in sorted(set(config.steps)):
        yield Stage(f"after {steps} steps")
        population.train(steps - done)
        done = steps
        right, wrong, least = [], [], []
        for k in range(config.seeds):
            problem = population.problem(k)
            G, H = ggn(problem).to_dense(), hessian(problem).to_dense()
            truth, found, other = responses(problem, config.decay), formula(problem, G, config.decay), formula(problem, H, config.decay)
            right.append(relative_distance(found, truth))
            wrong.append(relative_distance(other, truth))
            least.append(float(torch.linalg.eigvalsh(H)[0]))
            shown = shown or (truth, found, other)
        note = f"least eigenvalue of the Hessians {min(least):.3g}"
        yield PROXIMAL_BREGMAN.check(predicted=0.0, measured=right, setting=f"after {steps} steps", note=note)
        yield PROXIMAL_BREGMAN.control_check(predicted=0.0, measured=wrong, setting=f"Hessian, after {steps} steps", note=note)
    assert shown is not None
    truth, found, other = (t.flatten() for t in shown)
    some = truth.argsort()[:: max(1, len(truth) // 400)]  # of thousands of coordinates, enough for the eye
    axes: dict[str, Any] = {"x": "dθ/dε of the proximal solution", "y": "by formula"}
    figure = Series("proximal", "Gauss-Newton influence is the response of a proximal problem", claim=PROXIMAL_BREGMAN.key, **axes)
    figure.line("Gauss-Newton", truth[some], found[some], role="predicted")
    yield figure.line("Hessian", truth[some], other[some], role="control", mark="points")
