"""Training finds a tensor of low rank, where no norm at hand would.

A tensor written as a sum of many outer products, far more than it needs, can fit a third of its entries in countless ways. Started small,
gradient descent takes one that is nearly a single outer product, which is what the entries came from: the components grow at a speed
proportional to the power 2 − 2/N of their size, N the number of axes, so that one leaves the others behind, explains what it can, and
leaves them nothing to grow for. Larger starts give every component a share, and the unobserved entries come out wrong although the
observed ones are fitted as well. Finding the best tensor of low rank is NP-hard in general, and unfolding the tensor into a matrix, whose
nuclear norm is easy to minimise, loses what makes the rank low: the figure shows what that gives from the same entries.

The smaller the start, the nearer most tensors are completed, and the heavier the tail: about one in thirty ends at zero loss in a wrong
tensor of rank two, at an error near one, because the component that grows first fits the observed entries and not the others. Such a tail
rules an arithmetic mean, which is below 0.1 here with an interval that reaches as far as the worst run; errors of a run span three
decades, and the claim is made of their geometric mean. How many runs end above the limit is said with the result. The number of replicas
and of steps was chosen on other seeds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from theorylab.core.claim import AtMost, Claim, Finding
from theorylab.core.config import Config, setting
from theorylab.core.estimate import Estimate
from theorylab.core.series import Series, Stage
from theorylab.core.source import Source
from theorylab.core.study import study
from theorylab.data.synthetic import tensor_completion
from theorylab.learning.optimizers.sgd import sgd
from theorylab.learning.population import Population
from theorylab.linalg.nuclear import complete
from theorylab.models.tensor_factorization import CPFactorization, component_norms, cp_tensor

LOW_CP_RANK = Claim(
    "implicit_bias/tensor/low_cp_rank",
    "Gradient descent on an overparametrized CP factorization, started small, completes tensors of rank one from a third of their entries "
    "to a relative error of at most 0.2 in the geometric mean.",
    formula=r"\mathbb{E}\,\ln\frac{\|\sum_{r=1}^R w_r^1 \otimes w_r^2 \otimes w_r^3 - W^\star\|_F}{\|W^\star\|_F} \le \ln 0.2, "
    r"\qquad \operatorname{rank} W^\star = 1 \ll R",
    source=Source("Razin et al. 2021", "Theorem 1 (growth of the components) and the experiments on tensor completion", "arXiv:2102.09972"),
    kind="statistical",
    relation=AtMost(),
    control="larger starts",
    reading="Nothing in the loss asks for low rank, and the model could have any: the order in which components grow from a small start "
    "chooses. The start must be small against the tensor, at the price of a longer plateau; a tensor of high rank, or too few entries for "
    "its rank, is not recovered by any start.",
)

LIMIT = 0.2
"""Of the relative error; zeros in place of all unobserved entries would have about 0.8."""


@dataclass(frozen=True, kw_only=True)
class TensorConfig(Config):
    """Gradient descent on the observed entries of a random tensor, scaled to entries of mean square one."""

    seeds: int = setting(64, "replicas, each with its own random numbers", low=1)
    size: int = setting(8, "length of each axis", low=2)
    order: int = setting(3, "axes", low=2, high=5)
    rank: int = setting(1, "outer products of which the tensor is made", low=1)
    components: int = setting(32, "outer products of the model", low=1)
    fraction: float = setting(0.35, "share of observed entries", low=0.01, high=1.0)
    start: float = setting(0.1, "standard deviation of the entries of the initial vectors for which the claim is made", low=1e-3, high=1.0)
    smaller: tuple[float, ...] = setting((0.03,), "smaller starts, for the figure", low=1e-3, high=1.0)
    larger: tuple[float, ...] = setting((0.3, 0.6), "larger starts, the control", low=1e-3, high=2.0)
    lr: float = setting(1.0, "step size η on the mean of the squared residuals", low=1e-3, high=3.0)
    steps: int = setting(1000, "steps", low=10)


def factorizations(config: TensorConfig, starts: list[float], truth: Tensor, mask: Tensor) -> Population:
    """Factorizations of every start and seed, start by start, with the observed entries as data."""
    places = torch.stack([seen.nonzero() for seen in mask])  # (replica, n, axis)
    entries = torch.stack([whole[seen] for whole, seen in zip(truth, mask, strict=True)])  # (replica, n)
    population = Population(
        lambda: CPFactorization([config.size] * config.order, config.components),
        nn.functional.mse_loss,
        (places.repeat(len(starts), 1, 1), entries.repeat(len(starts), 1)),
        optimizer=sgd(lr=config.lr),
        seeds=[10**6 + seed for seed in config.replica_seeds] * len(starts),  # other numbers than those of the tensor
        data_per_replica=True,
        dtype=config.torch_dtype,
        device=config.device,
    )
    scales = torch.tensor(starts).repeat_interleave(config.seeds)[:, None, None]
    population.params = {k: w * scales.to(w) for k, w in population.params.items()}
    return population


def largest_components(population: Population) -> dict[str, Tensor]:
    """Norms of the three largest components, (replica,) each."""
    norms = component_norms(list(population.params.values())).topk(3, dim=1).values
    return dict(zip(("largest", "second", "third"), norms.T, strict=True))


def relative_error(completed: Tensor, truth: Tensor) -> Tensor:
    """Frobenius norm of the difference over that of the truth (replica, ...); (..., replica)."""
    axes = tuple(range(1 - truth.ndim, 0))
    return (completed - truth).square().sum(axes).sqrt() / truth.square().sum(axes).sqrt()


@study(
    "implicit_bias/tensor",
    claims=[LOW_CP_RANK],
    tiny=TensorConfig(seeds=8, steps=500, smaller=(), larger=(0.6,)),
    small=TensorConfig(),
    large=TensorConfig(seeds=64, size=10, order=4, components=1000, fraction=0.2, smaller=(0.01, 0.02), steps=100_000),
)
def tensor(config: TensorConfig) -> Iterator[Finding | Series | Stage]:
    """Complete the same tensors from several starts, and by the nuclear norm of an unfolding."""
    shape = (config.size,) * config.order
    tasks = [tensor_completion(shape, rank=config.rank, fraction=config.fraction, seed=seed) for seed in config.replica_seeds]
    truth, mask = (torch.stack(part).to(config.device) for part in zip(*tasks, strict=True))
    starts = sorted({config.start, *config.smaller, *config.larger})

    yield Stage(f"{config.steps} steps from {len(starts)} starts")
    population = factorizations(config, starts, truth, mask)
    path = population.train(config.steps, every=max(1, config.steps // 50), measure=largest_components)
    completed = cp_tensor(list(population.params.values())).unflatten(0, (len(starts), config.seeds))
    errors = relative_error(completed, truth)  # (start, replica)
    norms = component_norms(list(population.params.values())).unflatten(0, (len(starts), config.seeds))

    for start, each, sizes in zip(starts, errors, norms, strict=True):
        if start != config.start and start not in config.larger:
            continue
        check = LOW_CP_RANK.check if start == config.start else LOW_CP_RANK.control_check
        share = (sizes.amax(1) / sizes.sum(1)).mean()
        note = (
            f"error {float(each.log().mean().exp()):.3g} in the geometric mean, {float(each.mean()):.3g} in the arithmetic, above {LIMIT} "
            f"in {int((each > LIMIT).sum())} of {config.seeds}; the largest component has {float(share):.0%} of the sum of their norms"
        )
        yield check(predicted=math.log(LIMIT), measured=each.log(), setting=f"ln of the error, start {start:g}", note=note)

    yield Stage("nuclear norm of an unfolding")
    convex = complete(truth.flatten(2), mask.flatten(2), tol=1e-4)
    unfolded = relative_error(convex.matrix.reshape(truth.shape), truth)
    title, x = "Error of the completed tensor, by the size of the start", "standard deviation of initial entries"
    figure = Series("completion", title, x=x, y="relative error (geometric mean)", claim=LOW_CP_RANK.key)
    figure.x_scale = figure.y_scale = "log"
    rows: tuple[tuple[str, Tensor, Literal["measured", "control"]], ...] = (
        ("gradient descent", errors, "measured"),
        ("nuclear norm of an unfolding", unfolded.expand(len(starts), -1), "control"),
    )
    for name, each, role in rows:
        intervals = [Estimate.over(row.log()).interval() for row in each]
        low, high = (np.exp(end) for end in zip(*intervals, strict=True))
        figure.line(name, starts, each.log().mean(1).exp(), low=low, high=high, role=role)
    yield figure.line("claimed at most", starts, [LIMIT] * len(starts), role="predicted")

    title = "From a small start one component outgrows the others (first replica)"
    growth = Series("components", title, x="step", y="norm of a component", claim=LOW_CP_RANK.key, y_scale="log")
    shown: tuple[tuple[float, Literal["measured", "control"]], ...] = ((config.start, "measured"), (starts[-1], "control"))
    for start, role in shown:
        for name, norms in path.values.items():
            growth.line(f"{name}, start {start:g}", path.steps, norms[:, starts.index(start) * config.seeds], role=role)
    yield growth
