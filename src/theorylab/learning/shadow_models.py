"""Networks trained on random halves of the rows: what attacks on membership compare a network with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from theorylab.learning.optimizers.base import Optimizer
from theorylab.learning.population import Population
from theorylab.learning.risk import Loss


@dataclass(frozen=True)
class ShadowModels:
    """What `shadow_models` trained.

    Attributes:
        membership: Which rows each model was trained on, boolean (model, row).
        population: The trained replicas.
    """

    membership: Tensor
    population: Population

    def outputs(self, x: Tensor) -> Tensor:
        """Outputs of every model, (model, n, ...)."""
        replicas = self.population
        module, _, _ = replicas.replica(0)
        tensors = {**replicas.params, **replicas.frozen, **replicas.buffers}
        dtype = next(iter(replicas.params.values())).dtype
        inputs = x.to(dtype) if x.is_floating_point() else x
        with torch.no_grad():
            return vmap(lambda t: functional_call(module.eval(), t, (inputs,)))(tensors)


def random_halves(models: int, rows: int, seed: int) -> Tensor:
    """Boolean (model, row): every row in a random half of the models, independently of the other rows.

    Raises:
        ValueError: an odd number of models, or fewer than two.
    """
    if models < 2 or models % 2:
        raise ValueError(f"models must be even and at least 2, so that every row is in half of them, got {models}.")
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(models, rows, generator=generator, dtype=torch.float64).argsort(0) < models // 2


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
    dtype: torch.dtype = torch.float64,
) -> ShadowModels:
    """Train a population in which every row is in the training set of a random half of the models.

    Args:
        make_model: Builds one network; model k starts from seed + k.
        loss: As for `Population`.
        data: Inputs and targets, (n, ...).
        optimizer: From `theorylab.learning.optimizers`.
        models: How many, even.
        steps: Optimizer steps.
        seed: Of the halves and of the networks.
        batch_size: Rows of a minibatch; None for full batches.
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
    membership = random_halves(models, len(data[0]), seed)
    population = Population(
        make_model,
        loss,
        data,
        optimizer=optimizer,
        seeds=range(seed, seed + models),
        batch_size=batch_size,
        row_weights=membership.to(dtype),
        dtype=dtype,
    )
    population.train(steps)
    return ShadowModels(membership, population)
