"""Networks as they are when they first reach a common training loss: the point at which capacities and measures are compared."""

from __future__ import annotations

import torch
from torch import Tensor

from theorylab.learning.population import Population


def train_to_loss(population: Population, loss: float, *, every: int, limit: int) -> Tensor:
    """Train until each replica's risk has been at most ``loss``, and set its parameters to those of that moment.

    Networks that are compared at one number of steps differ in how well they fit, and measures of capacity then mostly say that. Replicas
    that arrive early are trained along with the others, and put back at the end; the optimizer's state is not.

    Args:
        population: Trained in place; of networks without buffers.
        loss: Risk over all rows at which a replica counts as arrived.
        every: Steps between looks, at least 1. Parameters are those of the first look at or below ``loss``, so up to ``every`` − 1 steps
            later than possible.
        limit: Steps after which replicas that have not arrived are left as they are.

    Returns:
        Steps at which each replica arrived, (replica,); −1 where it did not.

    Raises:
        ValueError: ``every`` or ``limit`` below 1, or a network with buffers, whose past is not kept.
        FloatingPointError: a replica diverged.

    Example:
        >>> from theorylab.learning.optimizers.sgd import sgd
        >>> net = lambda: torch.nn.Linear(1, 1, bias=False)
        >>> data = torch.ones(4, 1), torch.zeros(4, 1)
        >>> fast_and_slow = sgd(torch.tensor([0.4, 0.04]))
        >>> population = Population(net, torch.nn.functional.mse_loss, data, optimizer=fast_and_slow, seeds=[0, 0])
        >>> steps = train_to_loss(population, 1e-6, every=1, limit=1000)
        >>> bool(steps[0] < steps[1]), bool((population.losses() <= 1e-6).all())
        (True, True)

    Source: Jiang et al. 2020, arXiv:1912.02178, Section 4 (networks are compared at one value of the cross-entropy).
    """
    if every < 1 or limit < 1:
        raise ValueError(f"every and limit must be at least 1, got {every} and {limit}.")
    if population.buffers:
        raise ValueError(f"the network must have no buffers, got {sorted(population.buffers)}: their past values are not kept.")
    kept = population.params
    steps = torch.full((population.size,), -1, dtype=torch.int64, device=population.device)
    done = 0
    while True:
        waiting = steps < 0
        kept = {name: torch.where(waiting.reshape(-1, *[1] * (p.ndim - 1)), p, kept[name]) for name, p in population.params.items()}
        steps = torch.where(waiting & (population.losses() <= loss), done, steps)
        if done >= limit or not bool((steps < 0).any()):
            break
        count = min(every, limit - done)
        population.train(count)
        done += count
    population.params = kept
    return steps
