"""Networks that memorize random labels: a population in which every replica has data of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from theorylab.core.seeds import derived_seed
from theorylab.data.synthetic import random_labels
from theorylab.learning.optimizers.base import Optimizer
from theorylab.learning.population import Population


def memorizing_population(
    make_model: Callable[[], nn.Module],
    *,
    rows: int,
    inputs: int,
    optimizer: Optimizer,
    seeds: Sequence[int],
    batch_size: int | None,
    dtype: torch.dtype = torch.float64,
    device: str | torch.device = "cpu",
    trainable: Callable[[str], bool] | None = None,
) -> Population:
    """Replicas that learn `random_labels` of their own seed by binary cross-entropy.

    A replica's data, initial network and order of minibatches all come from its seed, so that replicas with one seed differ in their
    hyper-parameters only. Labels without information leave nothing to learn but the rows, and gradients that stay noisy.

    Args:
        make_model: Builds one network, from (n, inputs) to logits (n,).
        rows: Of data, for each replica.
        inputs: Their dimension.
        optimizer: From `theorylab.learning.optimizers`.
        seeds: One a replica.
        batch_size: Rows of a minibatch; None for full batches.
        dtype: Of parameters and data.
        device: Where to train.
        trainable: Which parameters are trained, by name; by default those that require a gradient.

    Raises:
        ValueError: as `Population` does.

    Example:
        >>> from theorylab.learning.optimizers.sgd import sgd
        >>> net = lambda: nn.Sequential(nn.Linear(5, 1), nn.Flatten(0))
        >>> same, other = 3, 4
        >>> p = memorizing_population(net, rows=8, inputs=5, optimizer=sgd(0.1), seeds=[same, same, other], batch_size=None)
        >>> bool(p.losses()[0] == p.losses()[1]), bool(p.losses()[0] == p.losses()[2])
        (True, False)
    """
    data = {s: random_labels(rows, inputs, seed=derived_seed(s, "data"), dtype=dtype) for s in seeds}
    return Population(
        make_model,
        binary_cross_entropy_with_logits,
        (torch.stack([data[s].x for s in seeds]), torch.stack([data[s].y for s in seeds])),
        optimizer=optimizer,
        seeds=seeds,
        batch_size=batch_size,
        data_per_replica=True,
        dtype=dtype,
        device=device,
        mode="vmap",
        trainable=trainable,
    )
