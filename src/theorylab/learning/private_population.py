"""Many small networks trained privately at once, each on its own rows, with its own sampling, noise and clipping norm."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from theorylab.core.arguments import given
from theorylab.core.privacy_ledger import PrivacyLedger
from theorylab.core.safe import BATCH_COUPLED
from theorylab.learning.optimizers.base import Hyper, Optimizer, Params
from theorylab.learning.private import check_mechanism, gaussian, noise_generator
from theorylab.learning.private_batches import poisson_batches
from theorylab.learning.replicas import initialize
from theorylab.learning.risk import Loss, StackedGradient, row_risk

AT_ONCE = 2**24
"""Numbers that the gradients of rows may hold at once; where more replicas are trained they are taken in turn."""


@dataclass(frozen=True)
class PrivateReplicas:
    """Networks that `dp_sgd_population` trained.

    Attributes:
        params: By name, (replica, ...); those that require no gradient are as they were made.
        ledgers: One a replica.
        outputs: Inputs (n, ...) → outputs of every replica (replica, n, ...).
    """

    params: Params
    ledgers: tuple[PrivacyLedger, ...]
    outputs: Callable[[Tensor], Tensor]


def _each(hyper: Hyper, name: str, size: int) -> list[float]:
    values = given(hyper, torch.float64)
    if values.shape not in ((), (size,)):
        raise ValueError(f"{name} must be a number or one a replica ({size},), got shape {tuple(values.shape)}.")
    return values.expand(size).tolist()


def dp_sgd_population(
    make_model: Callable[[], nn.Module],
    loss: Loss,
    data: tuple[Tensor, Tensor],
    *,
    optimizer: Optimizer,
    seeds: Sequence[int],
    q: float,
    clip: Hyper,
    sigma: Hyper,
    steps: int,
    members: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> PrivateReplicas:
    r"""DP-SGD with Poisson sampling for many replicas; replica k ends where `dp_sgd` with its seed ends, up to rounding.

    Gradients of rows are formed, by vmap over replicas and rows, which pays for small networks only: for a large one run `dp_sgd`.

    Args:
        make_model: Builds one network, as for `theorylab.learning.population.Population`.
        loss: Of outputs and targets, a mean over rows or one number a row.
        data: Inputs and targets, (n, ...).
        optimizer: From `theorylab.learning.optimizers`.
        seeds: One a replica: of its initial network, its batches, and its noise.
        q: Chance of a row to be in a batch.
        clip: Clipping norm; a number or one a replica.
        sigma: Noise multiplier; a number or one a replica.
        steps: Noisy sums to release.
        members: Which rows a replica trains on, boolean (replica, n); all by default. Sums are divided by q times the mean number of
            members over replicas, so that the step tells nothing about one replica's number.
        dtype: Of parameters and floating-point data.

    Raises:
        ValueError: an argument out of its range, batch normalization in training mode, dropout, a network with nothing to train, buffers
            that change in the forward pass, or plain attributes that differ between seeds, as of `Population`.

    Example:
        >>> from theorylab.learning.optimizers.sgd import sgd
        >>> x = torch.linspace(-1, 1, 50)[:, None]
        >>> found = dp_sgd_population(
        ...     lambda: nn.Linear(1, 1), nn.functional.mse_loss, (x, 2 * x), optimizer=sgd(0.5), seeds=[0, 1, 2], q=0.2,
        ...     clip=1.0, sigma=torch.tensor([0.0, 0.0, 50.0]), steps=100,
        ... )
        >>> error = (found.outputs(x) - 2 * x).square().mean((1, 2))
        >>> (error < 0.1).tolist(), found.ledgers[2].sigma
        ([True, True, False], 50.0)

    Source: Abadi et al. 2016, arXiv:1607.00133, Algorithm 1.
    """
    size = len(seeds)
    clips, sigmas = _each(clip, "clip", size), _each(sigma, "sigma", size)
    for c, s in zip(clips, sigmas, strict=True):
        check_mechanism(c, s, steps, optimizer)
    device = data[0].device
    x = data[0].to(dtype) if data[0].is_floating_point() else data[0]
    y = data[1].to(dtype) if data[1].is_floating_point() else data[1]
    n = len(x)
    members = torch.ones(size, n, dtype=torch.bool, device="cpu") if members is None else members.bool().cpu()
    if members.shape != (size, n) or not bool(members.any(1).all()):
        raise ValueError(f"members must be boolean ({size}, {n}) with a member in every replica, got shape {tuple(members.shape)}.")
    template, every, buffers, _ = initialize(make_model, seeds, dtype, device)
    module = template.module
    _refuse_coupled(module)
    params = {k: every[k] for k, p in module.named_parameters() if p.requires_grad}
    if not params:
        raise ValueError(f"make_model must leave a parameter that requires a gradient, all of {sorted(every)} are frozen.")
    frozen = {k: p for k, p in every.items() if k not in params}  # neither trained nor in a row's norm
    with torch.no_grad():
        template(x[:1])
    replicas = StackedGradient(module, row_risk(loss))

    def row_loss(p: Params, f: Params, b: Params, x: Tensor, y: Tensor) -> Tensor:
        value, new = replicas.one({**p, **f}, b, x[None], y[None], None)
        if new:
            raise ValueError(f"buffer {next(iter(new))} must not change while a model is trained privately: it would tell of rows.")
        return value

    rows_of_all = vmap(vmap(grad(row_loss), (None, None, None, 0, 0)), (0, 0, 0, 0, 0))
    batches, noises = [poisson_batches(n, q, seed) for seed in seeds], [noise_generator(seed) for seed in seeds]
    expected = q * float(members.double().sum(1).mean())
    lengths = [p[0].numel() for p in params.values()]
    scale = torch.tensor([s * c for s, c in zip(sigmas, clips, strict=True)], dtype=dtype, device=device)
    norm = torch.tensor(clips, dtype=dtype, device=device)
    state = optimizer.init(params)
    for _ in range(steps):
        drawn = [rows[own[rows]] for rows, own in zip((next(b) for b in batches), members, strict=True)]
        longest = max(1, *map(len, drawn))
        index = torch.zeros(size, longest, dtype=torch.int64, device="cpu")  # padded by row 0, which then weighs nothing
        weight = torch.zeros(size, longest, dtype=dtype, device="cpu")
        for k, rows in enumerate(drawn):
            index[k, : len(rows)], weight[k, : len(rows)] = rows, 1.0
        index, weight = index.to(device), weight.to(device)
        total, chunk = [], max(1, AT_ONCE // (longest * sum(lengths)))
        for low in range(0, size, chunk):
            cut = slice(low, low + chunk)
            p, f, b = ({k: t[cut] for k, t in tree.items()} for tree in (params, frozen, buffers))
            g = rows_of_all(p, f, b, x[index[cut]], y[index[cut]])
            flat = torch.cat([g[k].flatten(2) for k in params], 2)  # (replica, row, p)
            lengths_of_rows = torch.linalg.vector_norm(flat, dim=2)
            factor = (norm[cut, None] / lengths_of_rows.clamp(min=torch.finfo(dtype).tiny)).clamp(max=1.0) * weight[cut]
            total.append((factor[:, None] @ flat)[:, 0])
        noise = torch.stack([gaussian(sum(lengths), generator, norm) for generator in noises])
        noisy = ((torch.cat(total) + scale[:, None] * noise) / expected).split(lengths, dim=1)
        if not all(bool(t.isfinite().all()) for t in noisy):
            raise FloatingPointError("a gradient is not finite: lower the step size, or the scale of the data.")
        params, state = optimizer.update({k: t.reshape(p.shape) for (k, p), t in zip(params.items(), noisy, strict=True)}, state, params)

    def outputs(inputs: Tensor) -> Tensor:
        with torch.no_grad():
            inputs = inputs.to(dtype) if inputs.is_floating_point() else inputs
            return replicas.outputs(params, frozen, buffers, inputs, shared=True)

    ledgers = tuple(b.ledger(s, steps) for b, s in zip(batches, sigmas, strict=True))
    return PrivateReplicas({k: params.get(k, p) for k, p in every.items()}, ledgers, outputs)


def _refuse_coupled(module: nn.Module) -> None:
    if any(isinstance(m, BATCH_COUPLED) and (m.training or m.running_mean is None) for m in module.modules()):
        raise ValueError("batch normalization in training mode couples the rows, so that clipping them bounds nothing: use another norm.")
    if any(isinstance(m, nn.modules.dropout._DropoutNd) and m.training and m.p > 0 for m in module.modules()):
        raise ValueError("dropout draws random numbers that vmap would share between replicas: use dp_sgd, or eval().")
