"""Networks trained on random halves of the rows: what attacks on membership compare a network with."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from theorylab.core.seeds import derived_seed
from theorylab.learning.members import CHUNK, Found, Progress, Training, train_members
from theorylab.learning.optimizers.base import Optimizer
from theorylab.learning.population import Population
from theorylab.learning.risk import Loss


@dataclass(frozen=True)
class ShadowModels:
    """What `shadow_models` trained.

    Attributes:
        membership: Which rows each model was trained on, boolean (model, row).
        population: The trained replicas. Their optimizer would begin anew.
    """

    membership: Tensor
    population: Population

    def outputs(self, x: Tensor) -> Tensor:
        """Outputs of every model, (model, n, ...)."""
        return self.population.outputs(x)


def random_halves(models: int, rows: int, seed: int) -> Tensor:
    """Boolean (model, row): every row in a random half of the models, independently of the other rows.

    Raises:
        ValueError: an odd number of models, or fewer than two.
    """
    if models < 2 or models % 2:
        raise ValueError(f"models must be even and at least 2, so that every row is in half of them, got {models}.")
    generator = torch.Generator().manual_seed(derived_seed(seed, "halves"))
    return torch.rand(models, rows, generator=generator, dtype=torch.float64, device="cpu").argsort(0) < models // 2


def shadow_models(
    make_model: Callable[[], nn.Module],
    loss: Loss,
    data: tuple[Tensor, Tensor],
    *,
    optimizer: Optimizer,
    models: int,
    steps: int,
    seed: int,
    batch_size: int | None = None,
    chunk: int = CHUNK,
    jobs: int = 1,
    folder: str | os.PathLike[str] | None = None,
    progress: Progress = True,
    dtype: torch.dtype = torch.float64,
) -> ShadowModels:
    """Train a population in which every row is in the training set of a random half of the models.

    Args:
        make_model: Builds one network; model k starts from a seed of its own, derived from ``seed``.
        loss: As for `Population`.
        data: Inputs and targets, (n, ...).
        optimizer: From `theorylab.learning.optimizers`.
        models: How many, even.
        steps: Optimizer steps.
        seed: Of the halves and of the networks.
        batch_size: Rows of a minibatch; None for full batches.
        chunk: Models that are trained together.
        jobs: Processes, as of `retrain`.
        folder: Where trained models are kept, to continue from, as of `retrain`.
        progress: As of `retrain`.
        dtype: Of parameters and floating-point data.

    Raises:
        ValueError: an argument out of its range.

    Example:
        >>> from theorylab.learning.optimizers.sgd import sgd
        >>> x = torch.randn(10, 3, generator=torch.Generator().manual_seed(0))
        >>> shadows = shadow_models(
        ...     lambda: nn.Linear(3, 1), nn.functional.mse_loss, (x, x[:, :1]), optimizer=sgd(0.1), models=4, steps=5, seed=0
        ... )
        >>> shadows.membership.sum(0).tolist(), shadows.outputs(x).shape
        ([2, 2, 2, 2, 2, 2, 2, 2, 2, 2], torch.Size([4, 10, 1]))

    Source: Carlini et al. 2022, arXiv:2112.03570, the set-up of the evaluation (every row in half of the models).
    """
    membership, seeds = random_halves(models, len(data[0]), seed), tuple(derived_seed(seed, "model", k) for k in range(models))
    training = Training(make_model, loss, data, optimizer, steps, _parameters, batch_size, dtype, "cpu", "auto")
    members = membership.to(dtype), seeds
    found = train_members(training, members, chunk=chunk, jobs=jobs, folder=folder, progress=progress)
    population = training.population(members)
    population.params, population.buffers = ({k: found[f"{kind} {k}"] for k in getattr(population, kind)} for kind in ("params", "buffers"))
    return ShadowModels(membership, population)


def _parameters(population: Population) -> Found:
    """All that training moves."""
    return {f"{kind} {name}": t for kind in ("params", "buffers") for name, t in getattr(population, kind).items()}
