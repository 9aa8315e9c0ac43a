"""The loss of a replica on its rows, and its gradient: for many replicas under one vmap, or for one after another."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import vmap

from theorylab.core.batches import Batch
from theorylab.core.loss_form import reduction_of, refuse_sum, without_broadcast
from theorylab.core.safe import math_attention
from theorylab.core.substitution import places_of, substituted
from theorylab.learning.buffers import BufferSlots, write
from theorylab.learning.optimizers.base import Params

Loss = Callable[[Tensor, Tensor], Tensor]
Risk = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def squared_distance(outputs: Tensor, targets: Tensor) -> Tensor:
    """Squared distance from the target, Σ over outputs, one a row (rows,); `nn.functional.mse_loss` divides it by the outputs."""
    return ((outputs - targets) ** 2).sum(-1)


def half_squared_distance(outputs: Tensor, targets: Tensor) -> Tensor:
    """Half of it: its Hessian in the outputs is the identity."""
    return squared_distance(outputs, targets) / 2


def row_risk(loss: Loss) -> Risk:
    """``(outputs, targets, weights) -> scalar``: the mean over rows of the loss, times ``weights`` (rows,) where given.

    A loss that is already a mean is evaluated row by row where weights ask for it.
    """

    def risk(outputs: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        if weights is None:
            value = loss(outputs, targets)
            return value if value.ndim == 0 else value.mean()
        value = loss(outputs, targets)
        if value.ndim == 0:
            value = vmap(lambda o, t: loss(o[None], t[None]))(outputs, targets)
        return (weights * value).mean()

    return risk


def check_loss(loss: Loss, outputs: Tensor, targets: Tensor, weighted: bool) -> None:
    """Check once that the loss is a scalar mean over rows, or one number a row.

    Raises:
        TypeError: it is not a tensor.
        ValueError: it has another shape, is a sum over rows, or broadcasts outputs and targets of different shapes; or row weights are
            asked of a scalar that is not a mean over rows.
    """
    value = without_broadcast(loss, outputs, targets)
    refuse_sum(loss, outputs, Batch((None, targets), len(targets)), value)
    reduction_of(value, len(targets))
    if weighted and value.ndim == 0:
        single = vmap(lambda o, t: loss(o[None], t[None]))(outputs, targets).mean()
        if not torch.allclose(value, single, rtol=1e-4, atol=1e-6):
            raise ValueError("row_weights need a loss that is a mean over rows, or one number a row; got a scalar that is neither.")


class StackedGradient:
    """Losses (replica,) and gradients of stacked parameters: the forward pass under vmap, the losses summed, one backward.

    Buffers are updated by modules that do so (batch norm in training).

    Args:
        module: Whose forward pass it is; only its structure is used.
        risk: From `row_risk`.
    """

    def __init__(self, module: nn.Module, risk: Risk):
        places, slots = places_of(module), BufferSlots(module)

        def one(params: Params, buffers: Params, x: Tensor, y: Tensor, weights: Tensor | None) -> tuple[Tensor, Params]:
            outputs, new = forward(params, buffers, x)
            return risk(outputs, y, weights), new

        def forward(params: Params, buffers: Params, x: Tensor) -> tuple[Tensor, Params]:
            with substituted(module, {**params, **buffers}, places):
                return module(x), slots.reassigned(buffers)

        self.one, self.forward = one, forward

    def outputs(self, params: Params, frozen: Params, buffers: Params, x: Tensor, shared: bool) -> Tensor:
        """Outputs (replica, n, ...); ``x`` has a leading replica axis unless ``shared``."""
        with math_attention():
            return vmap(self.forward, in_dims=(0, 0, None if shared else 0), randomness="error")({**params, **frozen}, buffers, x)[0]

    def losses(self, params: Params, frozen: Params, buffers: Params, x: Tensor, y: Tensor, weights: Tensor | None, shared: bool) -> Tensor:
        """Losses (replica,); ``x``, ``y`` have a leading replica axis unless ``shared``."""
        return self._losses(params, frozen, buffers, x, y, weights, shared)[0]

    def _losses(
        self, params: Params, frozen: Params, buffers: Params, x: Tensor, y: Tensor, weights: Tensor | None, shared: bool
    ) -> tuple[Tensor, Params]:
        """Losses, and buffers put in place of others, (replica, ...)."""
        axis = None if shared else 0
        batched = vmap(self.one, in_dims=(0, 0, axis, axis, None if weights is None else 0), randomness="error")
        with math_attention():  # vmap has no rule for the fused attention kernels
            return batched({**params, **frozen}, buffers, x, y, weights)

    def __call__(
        self, params: Params, frozen: Params, buffers: Params, x: Tensor, y: Tensor, weights: Tensor | None, shared: bool
    ) -> tuple[Tensor, Params]:
        """Losses (replica,) and the gradients of ``params``."""
        leaves = {k: p.detach().requires_grad_() for k, p in params.items()}
        losses, new = self._losses(leaves, frozen, buffers, x, y, weights, shared)
        # of the sum, not with a vector of ones: checking the shape of that would import sympy, a second in every process
        grads = torch.autograd.grad(losses.sum(), list(leaves.values()), materialize_grads=True)
        write(buffers, new)
        return losses.detach(), dict(zip(leaves, grads, strict=True))


class LoopGradient:
    """The same losses and gradients, one replica after another through the module itself, without vmap.

    Args:
        module: A private copy: its parameters and buffers are pointed at those of the replica at hand.
        risk: From `row_risk`.
    """

    def __init__(self, module: nn.Module, risk: Risk):
        self.module, self.risk = module, risk
        self.slots = dict(module.named_parameters())
        self.buffer_slots = BufferSlots(module)

    def _load(self, params: Params, frozen: Params, buffers: Params, k: int) -> Params:
        """Let the module be replica ``k``; returns its buffers, which are views."""
        for source in (params, frozen):
            for name, value in source.items():
                self.slots[name].data = value[k]
        own = {name: b[k] for name, b in buffers.items()}
        self.buffer_slots.put(own)
        return own

    def outputs(self, params: Params, frozen: Params, buffers: Params, x: Tensor, shared: bool) -> Tensor:
        """Outputs (replica, n, ...); ``x`` has a leading replica axis unless ``shared``."""
        each = []
        for k in range(len(next(iter({**params, **frozen}.values())))):
            self._load(params, frozen, buffers, k)
            each.append(self.module(x if shared else x[k]))
        return torch.stack(each)

    def losses(self, params: Params, frozen: Params, buffers: Params, x: Tensor, y: Tensor, weights: Tensor | None, shared: bool) -> Tensor:
        """Losses (replica,); ``x``, ``y`` have a leading replica axis unless ``shared``."""
        values = []
        for k in range(len(next(iter({**params, **frozen}.values())))):
            self._load(params, frozen, buffers, k)
            values.append(self.risk(self.module(x if shared else x[k]), y if shared else y[k], None if weights is None else weights[k]))
        return torch.stack(values)

    def one(
        self, params: Params, frozen: Params, buffers: Params, k: int, x: Tensor, y: Tensor, weights: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Loss and gradients of replica ``k`` on its own rows ``x``, ``y``."""
        own = self._load(params, frozen, buffers, k)
        loss = self.risk(self.module(x), y, weights)
        new = self.buffer_slots.reassigned(own)
        grads = torch.autograd.grad(loss, [self.slots[name] for name in params], materialize_grads=True)
        write(own, new)
        return loss.detach(), grads

    def __call__(
        self, params: Params, frozen: Params, buffers: Params, x: Tensor, y: Tensor, weights: Tensor | None, shared: bool
    ) -> tuple[Tensor, Params]:
        """Losses (replica,) and the gradients of ``params``."""
        size = len(next(iter(params.values())))
        each = [
            self.one(params, frozen, buffers, k, x if shared else x[k], y if shared else y[k], None if weights is None else weights[k])
            for k in range(size)
        ]
        if size == 1:  # no copy
            return each[0][0][None], {name: g[None] for name, g in zip(params, each[0][1], strict=True)}
        return torch.stack([loss for loss, _ in each]), {
            name: torch.stack(g) for name, g in zip(params, zip(*(g for _, g in each), strict=True), strict=True)
        }
