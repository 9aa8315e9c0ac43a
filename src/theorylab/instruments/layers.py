"""The gradient of every row in a layer's parameters, from what goes into the layer and the gradient of what comes out of it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.linalg import vector_norm
from torch.nn import functional as F

from theorylab.core.problem import Params, Problem
from theorylab.core.safe import BATCH_COUPLED


@dataclass(frozen=True)
class Outer:
    r"""Gradients :math:`\sum_t \text{left}_{t}\, \text{right}_{t}^\top` of a matrix: one a row and a group, not formed unless asked for.

    ``left`` is (n, group, t, o) and ``right`` (n, group, t, i), where t runs over the tokens or places of a row. Where ``left`` holds
    integers, (n, 1, t), each stands for a unit vector of length ``o``: the rows of an embedding that were looked up.
    """

    left: Tensor
    right: Tensor
    o: int

    @property
    def looked_up(self) -> bool:
        """Whether ``left`` holds the indices of unit vectors."""
        return not self.left.is_floating_point()

    def add_to(self, total: Tensor, first: bool) -> None:
        """Add the gradients to ``total`` (n, ...), or write them there where it is the ``first`` to come."""
        n, groups, t, i = self.right.shape
        target = total.view(n, groups, self.o, i)
        if self.looked_up:
            if first:
                target.zero_()
            index = self.left.reshape(n, t, 1).expand(n, t, i)
            target[:, 0].scatter_add_(1, index, self.right[:, 0])
        elif t == 1 and first:
            torch.mul(self.left.mT, self.right, out=target)
        elif first:
            target.copy_(self.left.mT @ self.right)
        else:
            target.add_(self.left.mT @ self.right)

    def inner(self, other: Outer) -> Tensor:
        """Inner products ⟨self, other⟩ of the rows' gradients, (n,), from those of their factors: (t, t') numbers a row."""
        if self.looked_up and not other.looked_up:
            return other.inner(self)
        if not self.looked_up and self is other and self.left.shape[2] == 1:
            return (vector_norm(self.left[:, :, 0], dim=-1) * vector_norm(self.right[:, :, 0], dim=-1)).square().sum(1)
        if not other.looked_up:
            left = self.left @ other.left.mT
        elif self.looked_up:
            left = (self.left[..., :, None] == other.left[..., None, :]).to(self.right.dtype)
        else:
            left = self.left.gather(3, other.left[..., None, :].expand(*self.left.shape[:3], other.left.shape[2]))
        return (left * (self.right @ other.right.mT)).sum((1, 2, 3))


Gradients = Outer | Tensor
"""Gradients of one parameter, one a row: as `Outer`, or formed, (n, *shape)."""


@dataclass(frozen=True)
class Call:
    """One use of a layer: ``names`` of its selected parameters by role, its input (n, ...), and where its output's gradient arrives."""

    module: nn.Module
    names: dict[str, str]
    x: Tensor
    output: GradientEdge
    version: int
    statistics: tuple[Tensor, Tensor] | None = field(default=None)

    @property
    def untouched(self) -> bool:
        """Whether the input still is what went in: a later layer may have written into it."""
        return self.x._version == self.version


def _linear(call: Call, x: Tensor, g: Tensor) -> dict[str, Gradients]:
    right, left = x.reshape(len(x), 1, -1, x.shape[-1]), g.reshape(len(g), 1, -1, g.shape[-1])
    return {"weight": Outer(left, right, g.shape[-1]), "bias": g.flatten(1, -2).sum(1) if g.ndim > 2 else g}


def patches(m: Any, x: Tensor) -> Tensor:
    """What the kernel of a convolution meets at each place of its input, (n, group, place, channel · offset)."""
    mode = "constant" if m.padding_mode == "zeros" else m.padding_mode
    x = F.pad(x, m._reversed_padding_repeated_twice, mode=mode)
    axes = len(m.kernel_size)
    for axis, (k, step, gap) in enumerate(zip(m.kernel_size, m.stride, m.dilation, strict=True), start=2):
        x = x.unfold(axis, (k - 1) * gap + 1, step)[..., ::gap]  # a view: (n, c, place..., offset...)
    places, offsets = range(3, 3 + axes), range(3 + axes, 3 + 2 * axes)
    x = x.unflatten(1, (m.groups, -1)).permute(0, 1, 2, *offsets, *places)
    return x.reshape(len(x), m.groups, m.in_channels // m.groups * math.prod(m.kernel_size), -1).mT


def _conv(call: Call, x: Tensor, g: Tensor) -> dict[str, Gradients]:
    m: Any = call.module
    left = g.reshape(len(g), m.groups, m.out_channels // m.groups, -1).mT
    return {"weight": Outer(left, patches(m, x), m.out_channels // m.groups), "bias": g.flatten(2).sum(2)}


def _embedding(call: Call, x: Tensor, g: Tensor) -> dict[str, Gradients]:
    m: Any = call.module
    tokens, right = x.reshape(len(x), 1, -1), g.reshape(len(g), 1, -1, m.embedding_dim)
    if m.padding_idx is not None:
        right = right * (tokens != m.padding_idx)[..., None]
    return {"weight": Outer(tokens, right, m.num_embeddings)}


def _last_axes_norm(call: Call, x: Tensor, g: Tensor) -> dict[str, Gradients]:
    m: Any = call.module
    normalize: Any = F.rms_norm if isinstance(m, nn.RMSNorm) else F.layer_norm
    scaled = g * normalize(x, m.normalized_shape, eps=m.eps)
    middle = tuple(range(1, x.ndim - len(m.normalized_shape)))
    return {"weight": scaled.sum(middle) if middle else scaled, "bias": g.sum(middle) if middle else g}


def _channel_norm(call: Call, x: Tensor, g: Tensor) -> dict[str, Gradients]:
    m: Any = call.module
    if call.statistics is None:
        normalized = F.group_norm(x, m.num_groups, eps=m.eps)
    else:
        normalized = F.batch_norm(x, *call.statistics, training=False, eps=m.eps)
    return {
        "weight": (g * normalized).flatten(2).sum(2) if x.ndim > 2 else g * normalized,
        "bias": g.flatten(2).sum(2) if x.ndim > 2 else g,
    }


Formula = Callable[[Call, Tensor, Tensor], dict[str, Gradients]]
"""(call, x, gradient of its output) → gradients by role, one a row; x and the gradient may hold some of the rows only."""

FORMULAS: dict[Any, Formula] = {
    nn.Linear.forward: _linear,
    nn.Conv1d.forward: _conv,
    nn.Conv2d.forward: _conv,
    nn.Conv3d.forward: _conv,
    nn.Embedding.forward: _embedding,
    nn.LayerNorm.forward: _last_axes_norm,
    nn.RMSNorm.forward: _last_axes_norm,
    nn.GroupNorm.forward: _channel_norm,
    nn.modules.batchnorm._BatchNorm.forward: _channel_norm,
}
"""Keyed by what runs, not by the class: a subclass with a forward of its own is not mistaken for its parent."""


ACTIVATIONS = (nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.Softplus, nn.ELU, nn.LeakyReLU, nn.Identity, nn.Dropout)
POOLS = (nn.AvgPool2d, nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)


def row_wise(model: nn.Module) -> bool:
    """Whether the structure alone shows that every layer treats every row by itself: a chain of layers that do."""

    def safe(m: nn.Module) -> bool:
        known = type(m) in (nn.Sequential, *ACTIVATIONS, *POOLS) or type(m).forward in FORMULAS
        flat = type(m) is nn.Flatten and m.start_dim == 1
        joint = isinstance(m, BATCH_COUPLED) and (m.training or m.running_mean is None)
        return (known or flat) and not joint and not m._forward_hooks and not m._forward_pre_hooks

    return all(safe(m) for m in model.modules())


def _fits(m: Any, x: Any, out: Any, rows: int) -> bool:
    """Whether the first axis of what goes in and out runs over rows, and the layer treats every row by itself."""
    if not (isinstance(x, Tensor) and isinstance(out, Tensor) and out.requires_grad and x.ndim and len(x) == len(out) == rows):
        return False
    if isinstance(m, nn.Embedding):
        return m.max_norm is None and not m.scale_grad_by_freq
    if isinstance(m, BATCH_COUPLED):
        return not m.training and m.running_mean is not None
    if isinstance(m, nn.modules.conv._ConvNd):
        return x.ndim == len(m.kernel_size) + 2
    return x.ndim > len(getattr(m, "normalized_shape", (1,)))


def gradients_of(calls: Sequence[tuple[Call, Tensor]], rows: slice | Tensor) -> dict[str, list[Gradients]]:
    """By parameter, the gradients of some rows: one entry a use, to be added up. ``calls`` come with the gradients of their outputs."""
    found: dict[str, list[Gradients]] = {}
    for call, g in calls:
        by_role = FORMULAS[type(call.module).forward](call, call.x[rows], g[rows])
        for role, name in call.names.items():
            found.setdefault(name, []).append(by_role[role])
    return found


def work(call: Call, g: Tensor) -> int:
    """Numbers a row that its formulas hold at once: patches of a convolution, and the weight's gradient."""
    weight: Any = call.module.weight
    patches = math.prod(getattr(call.module, "kernel_size", ())) * (call.x.numel() + g.numel()) // len(g)
    return patches + weight.numel()


@contextmanager
def recorded(problem: Problem, leaves: Params, rows: int) -> Iterator[list[Call]]:
    """Within it, every use of a layer that `FORMULAS` knows and that holds a selected parameter is added to the list.

    Args:
        problem: Its model gets hooks, which are removed on leaving.
        leaves: The selected parameters, as they are given to `Problem.outputs`.
        rows: Rows of the batch; layers whose input has another first axis are left out.
    """
    names = {id(p): k for k, p in leaves.items()}
    calls: list[Call] = []

    def hook(m: Any, args: tuple[Any, ...], out: Any) -> None:
        used = {role: names[id(p)] for role, p in m._parameters.items() if p is not None and id(p) in names}
        if used and len(args) == 1 and _fits(m, args[0], out, rows):
            statistics: Any = (m.running_mean, m.running_var) if isinstance(m, BATCH_COUPLED) else None
            calls.append(Call(m, used, args[0].detach(), get_gradient_edge(out), args[0]._version, statistics))

    known = [m for m in problem.model.modules() if type(m).forward in FORMULAS]
    handles = [m.register_forward_hook(hook, prepend=True) for m in known]  # before a user's hook, which may replace the output
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def uses(value: Tensor, leaves: Params) -> Counter[str]:
    """How often each parameter enters the graph of ``value``: the edges that end in it."""
    names, counts, seen = {id(p): k for k, p in leaves.items()}, Counter[str](), set()
    todo: list[Any] = [value.grad_fn]
    while todo:
        for node, _ in todo.pop().next_functions:
            leaf = getattr(node, "variable", None)
            if leaf is not None:
                counts[names.get(id(leaf), "")] += 1
            elif node is not None and node not in seen:
                seen.add(node)
                todo.append(node)
    return counts
