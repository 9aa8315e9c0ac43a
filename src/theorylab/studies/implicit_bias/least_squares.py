"""Gradient descent on an underdetermined least-squares problem finds the interpolant nearest to its start.

Every gradient is a combination of the rows of X, so the iterate never leaves the affine space start + row(X), in which only one point
interpolates. From 0 that point is the solution of minimum Euclidean norm, X⁺y, although nothing in the loss asks for a small norm. A
start with a part outside the row space keeps that part for ever, and Adam, whose coordinate-wise scaling leaves the row space, fits the
data as well and ends elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from theorylab.core.claim import Claim, Equals, Finding
from theorylab.core.config import Config, setting
from theorylab.core.series import Series, Stage
from theorylab.core.source import Source
from theorylab.core.study import study
from theorylab.learning.optimizers.adam import adam
from theorylab.learning.optimizers.base import Optimizer
from theorylab.learning.optimizers.sgd import sgd
from theorylab.theory.implicit_bias import minimum_norm_solution

MIN_NORM = Claim(
    "implicit_bias/least_squares/min_norm",
    "Gradient descent from 0 on an underdetermined least-squares problem converges to the interpolant of minimum norm.",
    formula=r"w_0 = 0 \;\Rightarrow\; \lim_{t\to\infty} w_t = X^+ y = X^\top (X X^\top)^{-1} y",
    source=Source("Gunasekar et al. 2018", "Theorem 1 (mirror descent) with the Euclidean potential", "arXiv:1802.08246"),
    kind="identity",
    relation=Equals(atol=1e-8),
    control="a start with a part outside the row space; Adam from 0",
    reading="The algorithm is the regularizer: of infinitely many solutions of zero loss it picks one, and the step size has no say. "
    "Change the start or the geometry of the optimizer and the solution changes with it, at the same zero loss.",
)


@dataclass(frozen=True, kw_only=True)
class LeastSquaresConfig(Config):
    """Standard normal rows and targets."""

    n: int = setting(20, "rows", low=1)
    d: int = setting(50, "inputs, more than rows", low=2)
    steps: int = setting(2000, "steps of each optimizer", low=100)
    adam_lr: float = setting(0.01, "Adam's step size", low=1e-5, high=0.1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n >= self.d:
            raise ValueError(f"n must be less than d for an underdetermined problem, got n = {self.n} and d = {self.d}.")


def problems(config: LeastSquaresConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Rows (replica, n, d), targets (replica, n), and starts (replica, d) that do not lie in the row space."""
    drawn = []
    for seed in config.replica_seeds:
        generator = torch.Generator().manual_seed(seed)
        drawn.append(
            [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((config.n, config.d), (config.n,), (config.d,))]
        )
    x, y, start = (torch.stack(part).to(device=config.device, dtype=config.torch_dtype) for part in zip(*drawn, strict=True))
    return x, y, start


def descend(optimizer: Optimizer, x: Tensor, y: Tensor, start: Tensor, record: list[int]) -> list[Tensor]:
    """Weights (replica, d) after each number of steps in ``record``, on half the sum of squared errors."""
    params, state, kept = {"w": start}, optimizer.init({"w": start}), []
    for t in range(1, record[-1] + 1):
        error = torch.einsum("rnd,rd->rn", x, params["w"]) - y
        params, state = optimizer.update({"w": torch.einsum("rnd,rn->rd", x, error)}, state, params)
        if t in record:
            kept.append(params["w"])
    return kept


@study(
    "implicit_bias/least_squares",
    claims=[MIN_NORM],
    tiny=LeastSquaresConfig(seeds=3, n=5, d=20, steps=600),
    small=LeastSquaresConfig(),
    large=LeastSquaresConfig(seeds=32, n=200, d=500, steps=5000),
)
def least_squares(config: LeastSquaresConfig) -> Iterator[Finding | Series | Stage]:
    """Distance from the minimum-norm solution, for gradient descent from 0, from elsewhere, and for Adam from 0."""
    x, y, start = problems(config)
    target = minimum_norm_solution(x, y)
    gd = sgd(lr=1 / torch.linalg.matrix_norm(x, 2).square())  # one over the largest curvature of each problem
    record = sorted({round(t) for t in np.geomspace(1, config.steps, 60)})
    runs = (
        ("gradient descent from 0", gd, torch.zeros_like(start), MIN_NORM.check),
        ("gradient descent from a random start", gd, start, MIN_NORM.control_check),
        ("Adam from 0", adam(lr=config.adam_lr), torch.zeros_like(start), MIN_NORM.control_check),
    )
    figure = Series("distance", "Distance from the minimum-norm solution", x="step", y="‖w − X⁺y‖ / ‖X⁺y‖", claim=MIN_NORM.key)
    figure.x_scale = figure.y_scale = "log"
    for name, optimizer, begin, check in runs:
        yield Stage(name)
        path = torch.stack(descend(optimizer, x, y, begin, record))  # (time, replica, d)
        distance = (path - target).norm(dim=2) / target.norm(dim=1)
        fit = float((torch.einsum("rnd,rd->rn", x, path[-1]) - y).norm(dim=1).amax() / y.norm(dim=1).amax())
        yield check(predicted=0.0, measured=distance[-1], setting=name, note=f"largest relative residual of the fit {fit:.1e}")
        role = "measured" if check == MIN_NORM.check else "control"
        figure.line(name, record, distance.mean(1), low=distance.amin(1), high=distance.amax(1), role=role)
    yield figure
