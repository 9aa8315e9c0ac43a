"""A task that convolutions learn from a handful of rows, and no learner that is blind to rotations learns from fewer than d² of them.

Which half of a normal vector of 2d entries is longer? The answer is the sign of a quadratic form xᵀAx with A = diag(1, …, 1, −1, …, −1). A
learner that treats all orthogonal bases alike, such as gradient descent on a fully connected network or regression with a kernel of xᵀx',
would as readily learn any UAUᵀ, and there are so many of these, of about d² free parameters, that as many rows are needed to say which.
Weights that are shared along each half leave only the two halves to be told apart, whatever d is.

Of kernel regression with (xᵀx')², which is regression on all products of two entries, the rows needed for 80 % test accuracy are found by
bisection; those of a network of squares with shared weights by training on more and more. The ridge is the number of products, which is
near the best: without one, accuracy dips where rows are as many as products, and has no single crossing. At large, fully connected networks
of squares are trained too.

Step sizes, the grid of rows and the number of training sets behind one sample were chosen on other seeds; the ridge was not tuned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from theorylab.core.claim import Claim, Finding, Scales
from theorylab.core.config import Config, setting
from theorylab.core.seeds import derived_seed
from theorylab.core.series import Series, Stage
from theorylab.core.source import Source
from theorylab.core.study import study
from theorylab.data.synthetic import quadratic_sign
from theorylab.learning.optimizers.adam import adam
from theorylab.learning.optimizers.base import Optimizer
from theorylab.learning.optimizers.sgd import sgd
from theorylab.learning.population import Population
from theorylab.models.quadratic import quadratic_cnn, quadratic_mlp
from theorylab.stats.fits import power_law

FC_QUADRATIC = Claim(
    "convolution/separation/fc_quadratic",
    "To say which half of a normal vector of 2d entries is longer, a learner that is equivariant under rotations needs of order d² rows; "
    "a convolutional network needs a number that does not depend on d.",
    formula=r"y = \mathrm{sign}\Big(\sum_{i \le d} x_i^2 - \sum_{i > d} x_i^2\Big): \qquad n_{80\,\%} \propto d^2",
    source=Source("Li et al. 2021", "Section 1 and the theorem on a single distribution (Ω(d²) against O(1))", "arXiv:2010.08515"),
    kind="statistical",
    relation=Scales(exponent=2.0, tol=0.4),
    control="a network of squares with weights shared along the input",
    reading="The fully connected network can represent the answer as well as the convolutional one; what it lacks is a reason to prefer "
    "it to its rotations. Architecture is worth a factor d² in data here, and nothing on a task that is itself invariant under rotations.",
)


@dataclass(frozen=True, kw_only=True)
class SeparationConfig(Config):
    """A seed is one stream of training rows, one test set, and one network at random weights for each d."""

    dimensions: tuple[int, ...] = setting(
        (4, 6, 8, 12, 16), "half of the inputs d, of kernel regression, in rising order", low=2, rising=True
    )
    shared: tuple[int, ...] = setting((4, 16, 32), "the same for the network with shared weights", low=2)
    connected: tuple[int, ...] = setting((), "the same for trained fully connected networks; none by default", low=2)
    sets: int = setting(512, "training sets of a seed for kernel regression, times d²: many where d is small", low=1)
    draws: int = setting(4, "training sets of a seed for networks", low=1)
    test_rows: int = setting(2000, "rows on which accuracy is measured", low=100)
    steps: int = setting(100, "full-batch steps of a network", low=1)
    width: int = setting(256, "hidden units of a fully connected network", low=1)


ENOUGH = 0.8  # accuracy that counts as learned
GRID = (2, 4, 8, 16, 32)  # rows of the network with shared weights
RATIOS = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)  # rows of a fully connected network, over d²


def drawn(config: SeparationConfig, d: int, rows: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training and test inputs and targets of one seed."""
    x, y = quadratic_sign(rows, d, seed=derived_seed(seed, "rows"), dtype=config.torch_dtype)
    test = quadratic_sign(config.test_rows, d, seed=derived_seed(seed, "test rows"), dtype=config.torch_dtype)
    return x.to(config.device), y.to(config.device), test.x.to(config.device), test.y.to(config.device)


def products(x: Tensor) -> Tensor:
    """All products of two entries, (n, p), scaled so that their inner products are the kernel (xᵀx')²."""
    i, j = torch.triu_indices(x.shape[1], x.shape[1])
    return x[:, i] * x[:, j] * torch.where(i == j, 1.0, 2.0).to(x).sqrt()


def ridge_accuracy(features: Tensor, y: Tensor, test: Tensor, truth: Tensor) -> float:
    """Test accuracy of ridge regression on products of entries, which is that of the kernel; by whichever system is the smaller."""
    n, p = features.shape
    if n < p:
        K = features @ features.T
        w = features.T @ torch.cholesky_solve(y[:, None], torch.linalg.cholesky(K + p * torch.eye(n).to(K)))
    else:
        C = features.T @ features
        w = torch.cholesky_solve(features.T @ y[:, None], torch.linalg.cholesky(C + p * torch.eye(p).to(C)))
    return float(((test @ w)[:, 0] * truth > 0).double().mean())


def rows_by_bisection(accuracy: Callable[[int], float], low: int, high: int) -> float:
    """Rows at which accuracy reaches `ENOUGH`, to three percent, by bisection of their logarithm."""
    if accuracy(high) < ENOUGH:
        raise ValueError(f"{high} rows do not suffice for an accuracy of {ENOUGH}.")
    while high > 1.03 * low + 1:
        middle = round((low * high) ** 0.5)
        low, high = (low, middle) if accuracy(middle) >= ENOUGH else (middle, high)
    return (low * high) ** 0.5


def rows_of_kernel(config: SeparationConfig, d: int) -> list[float]:
    """Rows that kernel regression needs, one number a seed: where the mean accuracy over several training sets reaches `ENOUGH`.

    There are more sets for small d, where accuracy depends much on which rows were drawn.
    """
    found, most = [], 12 * d * d
    for seed in config.replica_seeds:
        count = max(1, config.sets // d**2)
        sets = [drawn(config, d, most, seed * count + k) for k in range(count)]
        ready = [(products(x), y, products(test), truth) for x, y, test, truth in sets]

        def accuracy(n: int) -> float:
            return sum(ridge_accuracy(f[:n], y[:n], g, truth) for f, y, g, truth in ready) / len(ready)  # noqa: B023

        found.append(rows_by_bisection(accuracy, d, most))
    return found


def logistic(outputs: Tensor, targets: Tensor) -> Tensor:
    """Of scores (n, 1) and signs (n, 1), one number a row."""
    return nn.functional.softplus(-outputs * targets)[:, 0]


def rows_of_networks(
    config: SeparationConfig, d: int, make: Callable[[], nn.Module], method: Optimizer, grid: tuple[int, ...]
) -> list[float]:
    """Rows that trained networks need, one number a seed: where their mean accuracy over several training sets reaches `ENOUGH`.

    A network is trained for every set and number of rows in ``grid``, those of one number all at once.
    """
    seeds = [seed * config.draws + k for seed in config.replica_seeds for k in range(config.draws)]
    data = [drawn(config, d, grid[-1], seed) for seed in seeds]
    x, y = (torch.stack([part[i] for part in data]) for i in (0, 1))
    accuracies = torch.empty(len(seeds), len(grid))
    for i, rows in enumerate(grid):
        population = Population(
            make,
            logistic,
            (x[:, :rows], y[:, :rows, None]),
            optimizer=method,
            seeds=seeds,
            data_per_replica=True,
            dtype=config.torch_dtype,
            device=config.device,
            mode="vmap",
        )
        population.train(config.steps)
        for k, (_, _, test, truth) in enumerate(data):
            with torch.no_grad():
                accuracies[k, i] = (population.replica(k)[0](test)[:, 0] * truth > 0).double().mean()
    return [crossing(grid, one.tolist()) for one in accuracies.unflatten(0, (config.seeds, config.draws)).mean(1)]


def crossing(grid: tuple[int, ...], accuracies: list[float]) -> float:
    """Where the accuracy first reaches `ENOUGH`, interpolated in the logarithm of the rows."""
    i = next((i for i, a in enumerate(accuracies) if a >= ENOUGH), None)
    if i is None:
        raise ValueError(f"{grid[-1]} rows do not suffice for an accuracy of {ENOUGH}: it is {max(accuracies)}.")
    if i == 0:
        return float(grid[0])
    share = (ENOUGH - accuracies[i - 1]) / (accuracies[i] - accuracies[i - 1])
    return grid[i - 1] ** (1 - share) * grid[i] ** share


@study(
    "convolution/separation",
    claims=[FC_QUADRATIC],
    tiny=SeparationConfig(seeds=8, dimensions=(4, 8), shared=(4, 32), sets=128, draws=3, test_rows=500, steps=80),
    small=SeparationConfig(seeds=8),
    large=SeparationConfig(
        seeds=16, dimensions=(4, 8, 16, 24, 32), shared=(4, 16, 64, 256), connected=(4, 8, 16), test_rows=10000, steps=1000
    ),
)
def separation(config: SeparationConfig) -> Iterator[Finding | Series | Stage]:
    """Fit the exponent of the rows needed for 80 % accuracy, of learners with and without a notion of place."""
    figure = Series(
        "rows",
        "Rows needed to say which half of the input is longer",
        x="half of the inputs d",
        y="rows for 80 % test accuracy",
        claim=FC_QUADRATIC.key,
        x_scale="log",
        y_scale="log",
    )

    def slopes(dimensions: tuple[int, ...], rows: np.ndarray) -> np.ndarray:
        return np.array([power_law(dimensions, one) for one in rows.T])

    yield Stage("kernel regression")
    rows = np.array([rows_of_kernel(config, d) for d in config.dimensions])  # (dimension, replica)
    yield FC_QUADRATIC.check(measured=slopes(config.dimensions, rows), setting="regression with the kernel (xᵀx')²")
    middle = np.exp(np.log(rows).mean(1))
    figure.line("kernel regression", config.dimensions, middle, mark="points")
    guide = middle[0] * (np.array(config.dimensions) / config.dimensions[0]) ** 2.0
    figure.line("d²", config.dimensions, guide, role="predicted")

    if config.connected:
        yield Stage("fully connected networks")
        found = []
        for d in config.connected:
            grid = tuple(round(ratio * d * d) for ratio in RATIOS)
            found.append(rows_of_networks(config, d, lambda d=d: quadratic_mlp(2 * d, config.width), sgd(0.02, momentum=0.9), grid))
        rows = np.array(found)
        yield FC_QUADRATIC.check(measured=slopes(config.connected, rows), setting="trained fully connected networks")
        figure.line("fully connected networks", config.connected, np.exp(np.log(rows).mean(1)), mark="points")

    yield Stage("shared weights")
    rows = np.array([rows_of_networks(config, d, lambda d=d: quadratic_cnn(2 * d), adam(0.05), GRID) for d in config.shared])
    yield FC_QUADRATIC.control_check(measured=slopes(config.shared, rows), setting="network with shared weights")
    figure.line("shared weights", config.shared, np.exp(np.log(rows).mean(1)), role="control", mark="points")
    yield figure
