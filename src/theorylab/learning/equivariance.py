"""Is a learning algorithm blind to a transformation of its inputs? Train on data and on transformed data, and compare along the way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from theorylab.core.arguments import kind_of
from theorylab.learning.optimizers.base import Optimizer, Params
from theorylab.learning.population import Population
from theorylab.learning.replicas import check_arguments
from theorylab.learning.risk import Loss

APART = 1e-6
"""Relative difference from which two networks no longer count as one."""


@dataclass(frozen=True)
class LearnerEquivariance:
    """How far networks trained on x and on Tx are apart, f_T(Tx) from f(x).

    Attributes:
        steps: At which they were compared, (t,).
        gap: Largest difference over rows and outputs, relative to the largest output of f, (t, replica).
        apart_from: The first of these steps with a gap above `APART` in some replica; None where there is none. An algorithm that is
            equivariant gets there by rounding, which training amplifies, and late; one that is not, in a few steps.
    """

    steps: Tensor
    gap: Tensor
    apart_from: int | None


def learner_equivariance(
    make_model: Callable[[], nn.Module],
    loss: Loss,
    data: tuple[Tensor, Tensor],
    transform: Tensor | Callable[[Tensor], Tensor],
    *,
    optimizer: Optimizer,
    steps: int,
    seeds: Sequence[int],
    carry: Callable[[Params], Params] | None = None,
    times: int = 30,
    batch_size: int | None = None,
    data_per_replica: bool = False,
    device: str | torch.device = "cpu",
    mode: Literal["auto", "vmap", "loop"] = "auto",
) -> LearnerEquivariance:
    r"""Train pairs of networks, one on x and one on Tx, alike in everything else, and compare :math:`f_T(Tx)` with :math:`f(x)`.

    An algorithm is equivariant under T if the two agree at every step, given that the initial parameters are transformed along: then it
    cannot learn anything from x that it would not learn from Tx. For parameters drawn from a law that T leaves alone, transforming them
    makes no difference in distribution. Both networks of a pair draw the same minibatches. In float64.

    Args:
        make_model: Builds one network; called once a seed.
        loss: As of `Population`.
        data: Inputs and targets (n, ...), or (replica, n, ...) where ``data_per_replica``.
        transform: T: an orthogonal matrix (d, d), or one a replica (replica, d, d), applied to the last axis of the inputs; or a map of
            inputs, of the shape of ``data[0]``, to inputs of the same shape.
        optimizer: From `theorylab.learning.optimizers`.
        steps: At least 1.
        seeds: One a pair.
        carry: Initial parameters (replica, ...) of f by name → those of f_T. Default: of a matrix T, W → W Tᵀ for the first parameter,
            a matrix, where its last axis is that of the inputs; otherwise none is changed, as for a symmetry that the architecture has.
        times: Comparisons along the way, at most one a step, and one before.
        batch_size: Rows of a minibatch; None for full batches.
        data_per_replica: Whether ``data`` have a leading replica axis.
        device: Where to train.
        mode: As of `Population`.

    Raises:
        ValueError: a matrix that is not orthogonal or of the wrong size, a map that changes the shape, an argument out of range, or no
            ``carry`` for a first parameter that has the inputs' size and is no matrix, as of a LayerNorm.

    Example:
        >>> from theorylab.learning.optimizers.adam import adam
        >>> from theorylab.learning.optimizers.sgd import sgd
        >>> x = torch.randn(20, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> R = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64))[0]
        >>> net = lambda: nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        >>> problem = (net, nn.functional.mse_loss, (x, x[:, :1] * x[:, 1:2]), R)
        >>> learner_equivariance(*problem, optimizer=sgd(0.1, momentum=0.9), steps=50, seeds=[0]).apart_from
        >>> learner_equivariance(*problem, optimizer=adam(0.01), steps=50, seeds=[0]).apart_from
        2

    Source: Li et al. 2021, arXiv:2010.08515, Section 3 (equivariant algorithms).
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}.")
    if times < 1:
        raise ValueError(f"times must be at least 1, got {times}.")
    if not (isinstance(transform, Tensor) or callable(transform)):
        raise TypeError(f"transform must be a matrix or a function of the inputs, got {kind_of(transform)}.")
    seeds = check_arguments(make_model, loss, data, optimizer, seeds, torch.float64)
    x, y = data[0].to(device, torch.float64), data[1]
    moved = _moved(x, transform, len(seeds), data_per_replica)
    own = data_per_replica or (isinstance(transform, Tensor) and transform.ndim == 3)
    if own and not data_per_replica:
        x, y = x.expand(len(seeds), *x.shape), y.expand(len(seeds), *y.shape)
    options = {"optimizer": optimizer, "seeds": seeds, "batch_size": batch_size, "data_per_replica": own, "device": device, "mode": mode}
    pair = [Population(make_model, loss, (inputs, y), **options) for inputs in (x, moved)]  # type: ignore[arg-type]
    if carry is not None:
        pair[1].params = carry(pair[1].params)
    elif isinstance(transform, Tensor):
        name, first = next(iter(pair[1].params.items()))
        if first.shape[-1] == x.shape[-1]:
            if first.ndim != 3:
                raise ValueError(
                    f"carry must say how the initial parameters change with the inputs: the first, {name} {tuple(first.shape[1:])}, is no "
                    "matrix that multiplies them. Where none is to change, pass carry=lambda params: params."
                )
            matrices = transform.to(first).expand(len(seeds), *transform.shape[-2:])
            pair[1].params = {**pair[1].params, name: first @ matrices.mT}
    seen = [_outputs_along(population, inputs, own, steps, -(-steps // times)) for population, inputs in zip(pair, (x, moved), strict=True)]
    size = seen[0][1].abs().amax(2)
    gap = (seen[1][1] - seen[0][1]).abs().amax(2) / torch.where(size > 0, size, 1.0)
    late = (gap > APART).any(1).nonzero().flatten()
    return LearnerEquivariance(seen[0][0], gap, int(seen[0][0][late[0]]) if len(late) else None)


def _moved(x: Tensor, transform: Tensor | Callable[[Tensor], Tensor], replicas: int, data_per_replica: bool) -> Tensor:
    if not isinstance(transform, Tensor):
        moved = transform(x)
        if moved.shape != x.shape:
            raise ValueError(f"transform must keep the shape of the inputs, {tuple(x.shape)}, got {tuple(moved.shape)}.")
        return moved
    d = x.shape[-1]
    if transform.shape not in ((d, d), (replicas, d, d)):
        raise ValueError(f"transform must be ({d}, {d}) or ({replicas}, {d}, {d}), got {tuple(transform.shape)}.")
    R = transform.to(x)
    if float((R @ R.mT - torch.eye(d, device="cpu").to(R)).abs().max()) > 1e-10:
        raise ValueError("transform must be orthogonal: of other matrices, pass the map x → x @ T.T, and carry=.")
    if R.ndim == 3:
        R = R.reshape(replicas, *(1,) * (x.ndim - (3 if data_per_replica else 2)), d, d)
    return x @ R.mT


def _outputs_along(population: Population, x: Tensor, own: bool, steps: int, every: int) -> tuple[Tensor, Tensor]:
    """Steps (t,), and outputs of every replica on the inputs that it trains on, (t, replica, entries)."""
    at, seen = [0], [population.outputs(x, per_replica=own).flatten(1)]
    while at[-1] < steps:
        population.train(min(every, steps - at[-1]))
        at.append(population.step_count)
        seen.append(population.outputs(x, per_replica=own).flatten(1))
    return torch.tensor(at, device="cpu"), torch.stack(seen)
