"""Exponentiated gradient moves within the row space of the data too, but in the logarithms of its weights.

A gradient of any loss of the predictions is a combination of the rows of X. Gradient descent adds it to the weights, mirror descent to
their image under a mirror map: with the entropy as potential, to their logarithms. So ln(w_t/w_0) lies in the row space of X at every step,
exactly and for any step size. One interpolant alone has such a logarithm, the one of least Kullback-Leibler divergence from the start, and
there training ends. Gradient descent from the same start, whose weights are positive too for a while, keeps neither: its own law holds for
the weights themselves, and it ends at the interpolant nearest in the Euclidean norm.

How long that takes depends on the weights at the end, for a small one hardly moves any more: with few planted entries or a small start some
problems keep fewer sizeable weights than they have rows, and are not fitted within tens of thousands of steps. So the start is as large as
the planted entries, these are a third of all, and the rows are orthogonal, which changes neither the row space nor the interpolants. These
settings were chosen on other seeds, from the rate of convergence at the projection, after one of eight problems with normal rows had been
left unfitted at the base seed of the report.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from theorylab.core.claim import Claim, Equals, Finding
from theorylab.core.config import Config, setting
from theorylab.core.series import Series, Stage
from theorylab.core.source import Source
from theorylab.core.study import study
from theorylab.instruments.row_space import row_space_residual
from theorylab.learning.optimizers.base import Optimizer
from theorylab.learning.optimizers.mirror import exponentiated_gradient
from theorylab.learning.optimizers.sgd import sgd
from theorylab.learning.population import Population
from theorylab.theory.mirror import bregman_projection, entropy

ROW_SPACE = Claim(
    "implicit_bias/mirror/row_space",
    "At every step of exponentiated gradient on a linear model, ln(w_t/w_0) lies in the row space of the data.",
    formula=r"\ln w_t - \ln w_0 \in \mathrm{row}(X) \quad\text{for all } t",
    source=Source("Gunasekar et al. 2018", "Theorem 1 and its proof (dual iterates move in the span of the data)", "arXiv:1802.08246"),
    kind="identity",
    relation=Equals(atol=1e-10),
    control="gradient descent from the same start, as long as its weights are positive",
    reading="What an optimizer conserves shows its geometry: multiplicative updates leave the part of ln w outside the row space as it "
    "was, additive ones that of w. The law needs a model linear in w and no momentum, weight decay or clipping in other coordinates.",
)

LEAST_DIVERGENCE = Claim(
    "implicit_bias/mirror/least_divergence",
    "Exponentiated gradient converges to the positive interpolant of least Kullback-Leibler divergence from its start.",
    formula=r"\lim_{t\to\infty} w_t = \arg\min_{Xw = y} \sum_i w_i \ln\frac{w_i}{w_{0,i}} - w_i + w_{0,i}",
    source=Source("Gunasekar et al. 2018", "Theorem 1 (mirror descent)", "arXiv:1802.08246"),
    kind="identity",
    relation=Equals(atol=1e-8),
    control="gradient descent from the same start",
    reading="The optimizer picks among interpolants by a divergence that no one wrote down; from a small start this one favours sparse "
    "weights. It needs an interpolant with all weights positive: without one the loss does not vanish and some logarithms diverge.",
)


@dataclass(frozen=True, kw_only=True)
class MirrorConfig(Config):
    """Orthogonal rows that span a uniformly drawn space, targets of a sparse positive vector, a constant start."""

    n: int = setting(10, "rows", low=1)
    d: int = setting(30, "inputs, more than rows", low=2)
    nonzero: int = setting(10, "entries of the planted vector that are not zero, uniform in [0.5, 1.5]", low=1)
    start: float = setting(1.0, "initial value of every weight", low=1e-3, high=10.0)
    step: float = setting(0.5, "step size times the largest curvature, 2 max(w) d/n, w from the start or planted", low=0.01, high=1.0)
    steps: int = setting(10_000, "steps of each optimizer", low=100)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n >= self.d:
            raise ValueError(f"n must be less than d for an underdetermined problem, got n = {self.n} and d = {self.d}.")
        if self.nonzero > self.d:
            raise ValueError(f"nonzero must be at most d = {self.d}, got {self.nonzero}.")


def problems(config: MirrorConfig) -> tuple[Tensor, Tensor]:
    """Orthogonal rows (replica, n, d) of length √d, and targets (replica, n) of planted vectors whose first entries are not zero."""
    rows, targets = [], []
    for seed in config.replica_seeds:
        generator = torch.Generator().manual_seed(seed)
        x = config.d**0.5 * torch.linalg.qr(torch.randn(config.d, config.n, generator=generator, dtype=torch.float64)).Q.T
        planted = 0.5 + torch.rand(config.nonzero, generator=generator, dtype=torch.float64)
        rows.append(x)
        targets.append(x[:, : config.nonzero] @ planted)
    return tuple(torch.stack(part).to(config.device, config.torch_dtype) for part in (rows, targets))  # pyright: ignore[reportReturnType]


def path(optimizer: Optimizer, x: Tensor, y: Tensor, config: MirrorConfig, record: list[int]) -> Tensor:
    """Weights (time, replica, d) at the start and after each number of steps in ``record``, on the mean squared error."""
    population = Population(
        lambda: nn.Linear(config.d, 1, bias=False),
        nn.functional.mse_loss,
        (x, y.unsqueeze(2)),
        optimizer=optimizer,
        seeds=config.replica_seeds,
        data_per_replica=True,
        dtype=config.torch_dtype,
        device=config.device,
    )
    population.params = {"weight": torch.full_like(population.params["weight"], config.start)}
    kept = [population.params["weight"].squeeze(1)]
    for step in record:
        population.train(step - population.step_count)
        kept.append(population.params["weight"].squeeze(1))
    return torch.stack(kept)


def positive_records(w: Tensor) -> Tensor:
    """How many records (replica,) a path (time, replica, d) has before a weight is no longer positive."""
    return (w > 0).all(2).long().cumprod(0).sum(0)


@study(
    "implicit_bias/mirror",
    claims=[ROW_SPACE, LEAST_DIVERGENCE],
    tiny=MirrorConfig(seeds=3, n=3, d=12, nonzero=4, steps=2000),
    small=MirrorConfig(),
    large=MirrorConfig(seeds=32, n=50, d=150, nonzero=50, steps=100_000),
)
def mirror(config: MirrorConfig) -> Iterator[Finding | Series | Stage]:
    """Follow the logarithms of the weights through training, and compare its end with the projection."""
    x, y = problems(config)
    start = torch.full((config.d,), config.start, dtype=x.dtype, device=x.device)
    potential = entropy()
    target = torch.stack([bregman_projection(potential, *problem, start) for problem in zip(x, y, strict=True)])
    # the curvature is that of the loss, 2XᵀX/n, times w, which is planted up to 1.5
    lr = config.step * config.n / (2 * max(1.5, config.start) * config.d)
    record = sorted({round(t) for t in np.geomspace(1, config.steps, 60)})

    residuals = Series("row_space", "How far ln w leaves the row space", x="step", y="‖(I − P) ln(w/w₀)‖ / ‖ln(w/w₀)‖", claim=ROW_SPACE.key)
    distances = Series("distance", "Distance from the projection", x="step", y="‖w − w*‖ / ‖w*‖", claim=LEAST_DIVERGENCE.key)
    for figure in (residuals, distances):
        figure.x_scale = figure.y_scale = "log"

    yield Stage("exponentiated gradient")
    weights = path(exponentiated_gradient(lr), x, y, config, record)
    residual = row_space_residual(potential.mirror, weights[1:], x, weights[:1].expand_as(weights[1:]))  # (time, replica)
    yield ROW_SPACE.check(predicted=0.0, measured=residual.flatten(), setting="at every record of a run")
    distance = (weights[1:] - target).norm(dim=2) / target.norm(dim=1)
    yield LEAST_DIVERGENCE.check(predicted=0.0, measured=distance[-1], note=fit(weights[-1], x, y))
    shown = residual.clamp(min=torch.finfo(x.dtype).eps / 10)  # a residual of 0 has no logarithm
    residuals.line("exponentiated gradient", record, shown.mean(1), low=shown.amin(1), high=shown.amax(1))
    distances.line("exponentiated gradient", record, distance.mean(1), low=distance.amin(1), high=distance.amax(1))

    yield Stage("gradient descent")
    weights = path(sgd(lr / 10), x, y, config, record)  # small enough for the first steps to leave all weights positive
    alive = positive_records(weights)
    ends = torch.stack([weights[int(k) - 1, replica] for replica, k in enumerate(alive)])
    residual = row_space_residual(potential.mirror, ends, x, weights[0])
    at = [0, *record]
    note = f"measured at step {min(at[int(k) - 1] for k in alive)} to {max(at[int(k) - 1] for k in alive)}"
    yield ROW_SPACE.control_check(predicted=0.0, measured=residual, setting="gradient descent", note=note)
    distance = (weights[1:] - target).norm(dim=2) / target.norm(dim=1)
    yield LEAST_DIVERGENCE.control_check(predicted=0.0, measured=distance[-1], setting="gradient descent", note=fit(weights[-1], x, y))
    together = int(alive.min())  # records at which all replicas are positive
    residual = row_space_residual(potential.mirror, weights[1:together], x, weights[:1].expand_as(weights[1:together]))
    low, high = residual.amin(1), residual.amax(1)
    residuals.line("gradient descent", record[: together - 1], residual.mean(1), low=low, high=high, role="control")
    distances.line("gradient descent", record, distance.mean(1), low=distance.amin(1), high=distance.amax(1), role="control")
    yield residuals
    yield distances


def fit(w: Tensor, x: Tensor, y: Tensor) -> str:
    """A remark on how well the final weights fit."""
    residual = ((x @ w.unsqueeze(2)).squeeze(2) - y).norm(dim=1) / y.norm(dim=1)
    return f"largest relative residual of the fit {float(residual.amax()):.1e}"
