"""A group of replicas that take their steps together: on one device, in one way (one vmap, or one after another)."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from theorylab.learning.buffers import BufferSlots
from theorylab.learning.label_noise import LabelNoise
from theorylab.learning.minibatches import DataOrder
from theorylab.learning.optimizers.base import Optimizer, Params
from theorylab.learning.risk import LoopGradient, Risk, StackedGradient
from theorylab.learning.traced import TracedGradient, trace

TAKE = 128
"""Minibatches whose row numbers are drawn at a time."""
EVALUATED = 2**22
"""Numbers of input, over rows and replicas, that go through the networks at once where no gradient is taken: it bounds the memory, of which
hidden layers take as many times more as they are wider than the input."""


def tree_map(function: Any, tree: Any) -> Any:
    """Apply a function to every tensor of a nested dictionary."""
    return {k: tree_map(function, v) for k, v in tree.items()} if isinstance(tree, dict) else function(tree)


def tree_cat(trees: Sequence[Any]) -> Any:
    """Concatenate nested dictionaries of tensors along the replica axis; tensors without one must be the same for all."""
    first = trees[0]
    if isinstance(first, dict):
        return {k: tree_cat([t[k] for t in trees]) for k in first}
    return first if len(trees) == 1 or first.ndim == 0 else torch.cat([t.to(first.device) for t in trees])


@dataclass
class Rows:
    """The data of some replicas: tensors shared by all (n, ...), or one set each (replica, n, ...), and what each row weighs.

    ``weights`` (replica, n) multiply the rows of a full batch and have mean 1 over all n; ``batch_weights`` multiply those of a minibatch
    and have mean 1 over the rows of positive weight (None where that makes them 1); ``orders`` is None for full batches. ``label_noise``
    is added to the targets of each step, and to nothing else.
    """

    x: Tensor
    y: Tensor
    shared: bool
    weights: Tensor | None
    batch_weights: Tensor | None
    orders: list[DataOrder] | None
    label_noise: LabelNoise | None = None

    def part(self, index: slice, device: torch.device) -> Rows:
        """The data of some of the replicas, on a device."""
        cut = slice(None) if self.shared else index
        return replace(
            self,
            x=self.x[cut].to(device),
            y=self.y[cut].to(device),
            weights=None if self.weights is None else self.weights[index].to(device),
            batch_weights=None if self.batch_weights is None else self.batch_weights[index].to(device),
            orders=None if self.orders is None else self.orders[index],
            label_noise=None if self.label_noise is None else self.label_noise.part(index),
        )

    def batches(self, steps: int) -> Iterator[tuple[Tensor, Tensor, Tensor | None, bool]]:
        """``steps`` times ``(x, y, weights, shared)``: the rows of one step, with a replica axis unless shared."""
        if self.label_noise is None:
            yield from self._clean(steps)
            return
        size = len(self.label_noise.generators)
        for x, y, w, shared in self._clean(steps):
            if shared:
                x, y = x.expand(size, *x.shape), y.expand(size, *y.shape)
            yield x, y + self.label_noise.take(y[0]), w, False

    def _clean(self, steps: int) -> Iterator[tuple[Tensor, Tensor, Tensor | None, bool]]:
        if self.orders is None:
            for _ in range(steps):
                yield self.x, self.y, self.weights, self.shared
            return
        device, size = self.x.device, len(self.orders)
        alone = size == 1 and self.shared
        offset = None if self.shared else torch.arange(size, device="cpu")[None, :, None] * self.x.shape[1]
        x, y = (self.x, self.y) if self.shared else (self.x.flatten(0, 1), self.y.flatten(0, 1))
        for start in range(0, steps, TAKE):
            index = torch.stack([order.take(min(TAKE, steps - start)) for order in self.orders], 1)  # (step, replica, row)
            where = (index if offset is None else index + offset).flatten(1).to(device)
            index = index.to(device) if self.batch_weights is not None else index
            for t, flat in enumerate(where):
                w = None if self.batch_weights is None else self.batch_weights.gather(1, index[t])
                if alone:
                    yield x.index_select(0, flat), y.index_select(0, flat), w, True
                else:
                    rows = (size, len(flat) // size)
                    yield x.index_select(0, flat).unflatten(0, rows), y.index_select(0, flat).unflatten(0, rows), w, False


@dataclass
class Group:
    """Some replicas: parameters, buffers and optimizer state with a leading replica axis, data, and how a step is taken.

    ``noise`` holds the state of each replica's random stream, drawn on by layers such as dropout; None where the model draws nothing.
    """

    module: nn.Module
    risk: Risk
    optimizer: Optimizer
    params: Params
    frozen: Params
    buffers: Params
    state: Any
    rows: Rows
    noise: list[Tensor] | None
    stacked: bool

    @property
    def size(self) -> int:
        """Number of replicas."""
        return len(next(iter(self.params.values())))

    @property
    def device(self) -> torch.device:
        """Where the replicas live."""
        return next(iter(self.params.values())).device

    def part(self, index: slice, optimizer: Optimizer, stacked: bool, device: torch.device) -> Group:
        """Some of the replicas as a group of their own; tensors that stay on the device are views."""

        def cut(t: Tensor) -> Tensor:
            return (t[index] if t.ndim else t).to(device)

        trees = {name: tree_map(cut, getattr(self, name)) for name in ("params", "frozen", "buffers", "state")}
        noise = None if self.noise is None else self.noise[index]
        module = self.module if device == self.device else BufferSlots.moved(self.module, device)  # groups of a device share a template
        return replace(self, **trees, module=module, optimizer=optimizer, rows=self.rows.part(index, device), noise=noise, stacked=stacked)

    def gradient(self) -> StackedGradient | LoopGradient:
        """What computes losses and gradients of this group."""
        return (StackedGradient if self.stacked else LoopGradient)(self.module, self.risk)

    def trial(self) -> Group:
        """A copy whose steps leave this group as it is, with another data order."""
        copied = self.part(slice(0, self.size), self.optimizer, self.stacked, self.device)
        copied.buffers = tree_map(torch.clone, self.buffers)
        if self.rows.orders is not None:
            copied.rows.orders = [DataOrder(order.rows, order.batch_size, 0) for order in self.rows.orders]
        if self.rows.label_noise is not None:
            copied.rows.label_noise = LabelNoise(self.rows.label_noise.scale, [0] * self.size)
        return copied

    def snapshot(self) -> dict[str, Any]:
        """All that steps change, as nested dictionaries and lists of tensors."""
        orders, noise = self.rows.orders, self.rows.label_noise
        return {
            "params": self.params,
            "buffers": self.buffers,
            "state": self.state,
            "noise": self.noise,
            "orders": None if orders is None else [order.state() for order in orders],
            "label_noise": None if noise is None else noise.state(),
        }

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Go on from a `snapshot` of the same replicas."""
        for name in ("params", "buffers", "state"):
            setattr(self, name, tree_map(lambda t: t.to(self.device), snapshot[name]))
        self.noise = snapshot["noise"]
        for order, state in zip(self.rows.orders or [], snapshot["orders"] or [], strict=True):
            order.restore(state)
        if self.rows.label_noise is not None:
            self.rows.label_noise.restore(snapshot["label_noise"])

    def recorded(self) -> TracedGradient | None:
        """The gradient of a step recorded for the shapes of this group, or None where that cannot be."""
        copied = self.trial()
        gradient = copied.gradient()
        if not isinstance(gradient, StackedGradient):
            return None
        return trace(gradient, copied.params, copied.frozen, copied.buffers, *next(copied.rows.batches(1)))

    def steps(self, count: int, recorded: TracedGradient | None = None) -> Iterator[Tensor]:
        """Take ``count`` optimizer steps; yields the losses (replica,) that each step saw, before it."""
        gradient = recorded or self.gradient()
        update, probe = self.optimizer.update, self.optimizer.probe
        for rows in self.rows.batches(count):
            noise = self.noise and list(self.noise)
            losses, grads = self._gradient(gradient, self.params, self.buffers, self.noise, *rows)
            if probe is not None:  # the same rows and noise again; running statistics are those of the first pass
                with torch.no_grad():
                    there = probe(grads, self.state, self.params)
                _, grads = self._gradient(gradient, there, tree_map(torch.clone, self.buffers), noise, *rows)
            with torch.no_grad():
                self.params, self.state = update(grads, self.state, self.params)
            yield losses

    def _gradient(
        self,
        gradient: Any,
        params: Params,
        buffers: Params,
        noise: list[Tensor] | None,
        x: Tensor,
        y: Tensor,
        weights: Tensor | None,
        shared: bool,
    ) -> tuple[Tensor, Params]:
        if noise is None:
            return gradient(params, self.frozen, buffers, x, y, weights, shared)
        each = []
        for k in range(self.size):
            with random_stream(noise, k, self.device):
                own = (x if shared else x[k], y if shared else y[k], None if weights is None else weights[k])
                each.append(gradient.one(params, self.frozen, buffers, k, *own))
        grads = zip(*(g for _, g in each), strict=True)
        return torch.stack([loss for loss, _ in each]), {k: torch.stack(g) for k, g in zip(self.params, grads, strict=True)}

    def losses(self) -> Tensor:
        """Risks (replica,) over all rows; leaves buffers and random streams as they are."""
        gradient = self.gradient()
        with self._at_rest() as (buffers, rows), torch.no_grad():
            cuts = self._cuts(rows.x, rows.shared)
            parts = ((self._cut(buffers, cut), rows.part(cut, self.device)) for cut in cuts)
            return torch.cat([gradient.losses(*trees, own.x, own.y, own.weights, own.shared) for trees, own in parts])

    def outputs(self, x: Tensor, shared: bool) -> Tensor:
        """Outputs (replica, m, ...) at other rows, (m, ...) where ``shared`` and else (replica, m, ...); leaves all else as it is."""
        gradient = self.gradient()
        with self._at_rest() as (buffers, _), torch.no_grad():
            x, cuts = x.to(self.device), self._cuts(x, shared)
            return torch.cat([gradient.outputs(*self._cut(buffers, cut), x if shared else x[cut], shared) for cut in cuts])

    def _cuts(self, x: Tensor, shared: bool) -> list[slice]:
        """The replicas in parts that are evaluated one after another: as many at once as `EVALUATED` allows."""
        together = max(1, EVALUATED // max(1, x.numel() if shared else x[0].numel()))
        return [slice(start, start + together) for start in range(0, self.size, together)]

    def _cut(self, buffers: Params, cut: slice) -> tuple[Params, Params, Params]:
        """Parameters, frozen ones and buffers of some of the replicas."""
        first, second, third = ({k: t[cut] for k, t in tree.items()} for tree in (self.params, self.frozen, buffers))
        return first, second, third

    def gradients(self) -> tuple[Tensor, Params]:
        """Risks (replica,) over all rows, and their gradients."""
        with self._at_rest() as (buffers, rows):
            return self.gradient()(self.params, self.frozen, buffers, rows.x, rows.y, rows.weights, rows.shared)

    @contextmanager
    def _at_rest(self) -> Iterator[tuple[Params, Rows]]:
        drops = [m for m in self.module.modules() if isinstance(m, nn.modules.dropout._DropoutNd) and m.training]
        for m in drops:
            m.eval()
        try:
            with random_stream(None if self.noise is None else list(self.noise), 0, self.device):
                yield tree_map(torch.clone, self.buffers), self.rows
        finally:
            for m in drops:
                m.train()

    def replica(self, k: int) -> tuple[nn.Module, Tensor, Tensor]:
        """A copy of the network of replica ``k``, and its rows."""
        module = copy.deepcopy(self.module)
        for name, p in module.named_parameters():
            p.data = (self.params if name in self.params else self.frozen)[name][k].clone()
        for name, b in module.named_buffers():
            b.data = self.buffers[name][k].clone()
        x, y = (self.rows.x, self.rows.y) if self.rows.shared else (self.rows.x[k], self.rows.y[k])
        if self.rows.weights is not None:
            w = self.rows.weights[k]
            if not torch.allclose(w[w > 0], w.max()):
                raise ValueError("a problem has no row weights: those of a replica must be equal where they are positive.")
            x, y = x[w > 0], y[w > 0]
        return module, x, y


@contextmanager
def random_stream(states: list[Tensor] | None, k: int, device: torch.device) -> Iterator[None]:
    """Let the global generator of a device continue stream ``k``, and put it back afterwards."""
    if states is None:
        yield
        return
    cuda = device.type == "cuda"
    before = torch.cuda.get_rng_state(device) if cuda else torch.get_rng_state()
    put = (lambda s: torch.cuda.set_rng_state(s, device)) if cuda else torch.set_rng_state
    put(states[k])
    try:
        yield
    finally:
        states[k] = torch.cuda.get_rng_state(device) if cuda else torch.get_rng_state()
        put(before)
