"""Where the forward pass of a model uses its parameters: recorded at the operations themselves, whatever module calls them.

A mode of PyTorch's function dispatch sees every operation and its arguments by identity, so that weights tied between modules, weights
used outside of their module and modules of one's own are seen too; nothing is hooked into the model. Operations that are not known leave
no record: whoever uses the records must check them, see `theorylab.instruments.rowwise`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from theorylab.instruments.factors import Dense, Factor, Lookup, Outer


@dataclass(frozen=True)
class Use:
    """One operation on parameters.

    Attributes:
        names: A weight, a bias, or a weight and its bias.
        edge: Of the operation's output in the graph, which later changes in place do not move.
        shape: Of that output.
        factor: Gradients of every row's outputs in it, (n, c, ...) with one row's entries in their order → the factor of their Jacobian.
        entries: Numbers that the record holds, besides the output gradients.
    """

    names: tuple[str, ...]
    edge: GradientEdge
    shape: torch.Size
    factor: Callable[[Tensor], Factor]
    entries: int


class Recorder(TorchFunctionMode):
    """Records the uses of ``leaves`` in a forward pass of ``n`` rows.

    Args:
        leaves: Parameters by name, which require a gradient.
        n: Rows of the batch: the leading axis of activations, alone or times an axis of positions.
    """

    def __init__(self, leaves: Mapping[str, Tensor], n: int) -> None:
        super().__init__()
        self.names = {id(p): k for k, p in leaves.items()}
        self.n = n
        self.uses: list[Use] = []

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        reader = _READERS.get(func)
        if reader is not None and isinstance(out, Tensor) and out.requires_grad:
            reader(self, out, *args, **kwargs)
        return out

    def name(self, p: Any) -> str | None:
        """The name of a leaf; None for anything else."""
        return self.names.get(id(p)) if isinstance(p, Tensor) else None

    def knows(self, *tensors: Any) -> bool:
        """Whether any of them is a leaf."""
        return any(self.name(p) is not None for p in tensors)

    def add(self, out: Tensor, names: tuple[str | None, ...], factor: Callable[[Tensor], Factor], entries: int = 0) -> None:
        """Record an operation on the leaves ``names``; None stands for what is not a leaf."""
        known = tuple(k for k in names if k is not None)
        if out.shape[0] % self.n == 0:
            self.uses.append(Use(known, get_gradient_edge(out), out.shape, factor, entries))

    def by_row(self, x: Tensor) -> Tensor:
        """(n or n · positions, ..., d) → (n, position, d)."""
        return x.detach().reshape(self.n, -1, x.shape[-1])

    def product(self, out: Tensor, right: Tensor, at: int, weight: Any, bias: Any, left: Callable[[Tensor], Tensor]) -> None:
        """A weight (group · o, d) applied to what goes in, and its bias.

        Args:
            out: The operation's output.
            right: What goes in, (n, places, group, entries), with any number of axes of places and of the d entries; often a view.
            at: The axis of groups.
            weight: The weight.
            bias: The bias, which belongs to an entry that is always 1.
            left: Output gradients (n, c, ...) → (n, c, position, group, o).
        """
        names = self.name(weight), self.name(bias)
        places, entries = right.shape[1:at], right.shape[at + 1 :]
        d = entries.numel() if names[0] else 0
        x = right.new_ones(right.shape[0], places.numel(), right.shape[at], d + (names[1] is not None))
        if names[0]:  # one copy, straight from the view
            x[..., :d].unflatten(3, entries).unflatten(1, places).copy_(right)
        self.add(out, names, lambda g: Outer(left(g), x), x.numel())

    def broadcast(self, out: Tensor, p: Tensor, shape: tuple[int, ...], scale: Tensor | float = 1.0) -> None:
        """An addition of ``scale`` · p to every row, with p of ``shape`` broadcast over the output."""
        own = out.ndim - len(shape)
        if own < 0 or (own == 0 and shape[0] != 1) or out.shape[0] != self.n:
            return  # p has a row axis, or there is none
        inner = (1,) * (own - 1) + tuple(shape) if own else tuple(shape[1:])
        summed = [2 + axis for axis, (size, full) in enumerate(zip(inner, out.shape[1:], strict=True)) if size == 1 < full]
        by = scale.detach().expand(out.shape)[:, None] if isinstance(scale, Tensor) else scale

        def factor(g: Tensor) -> Factor:
            J = g if isinstance(by, float) and by == 1 else g * by
            J = J.sum(summed) if summed else J
            return Dense(J.reshape(*J.shape[:2], *matrix_shape(p)))

        self.add(out, (self.name(p),), factor, scale.numel() if isinstance(scale, Tensor) else 0)


def matrix_shape(p: Tensor) -> tuple[int, int]:
    """Leading axis, and all others: how factors lay out a parameter."""
    lead = p.shape[0] if p.ndim else 1
    return lead, p.numel() // max(1, lead)


def _linear(rec: Recorder, out: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
    if rec.knows(weight, bias) and out.shape[0] % rec.n == 0:
        n, o = rec.n, weight.shape[0]
        rec.product(out, rec.by_row(input)[:, :, None], 2, weight, bias, lambda g: g.reshape(n, g.shape[1], -1, 1, o))


def _conv(
    rec: Recorder,
    out: Tensor,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> None:
    dims = weight.ndim - 2
    if not rec.knows(weight, bias) or out.ndim != dims + 2 or out.shape[0] != rec.n:
        return
    stride, dilation = ((v,) * dims if isinstance(v, int) else tuple(v) * (dims // len(v)) for v in (stride, dilation))
    kernel = weight.shape[2:]
    if isinstance(padding, str):
        total = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, kernel, strict=True)]
        sides = [(t // 2, t - t // 2) for t in total]
    else:
        padding = (padding,) * dims if isinstance(padding, int) else tuple(padding) * (dims // len(padding))
        sides = [(p, p) for p in padding]
    x = F.pad(input.detach(), [v for pair in reversed(sides) for v in pair]).contiguous()
    n, c, *spatial = x.stride()
    steps = [s * v for s, v in zip(spatial, stride, strict=True)]
    taps = [s * v for s, v in zip(spatial, dilation, strict=True)]
    patches = x.as_strided((*x.shape[:2], *out.shape[2:], *kernel), (n, c, *steps, *taps))
    patches = patches.unflatten(1, (groups, -1)).movedim((1, 2), (1 + dims, 2 + dims))  # (n, place..., group, channel, tap...)
    o = weight.shape[0] // groups
    rec.product(out, patches, 1 + dims, weight, bias, lambda g: g.flatten(3).unflatten(2, (groups, o)).permute(0, 1, 4, 2, 3))


def _addmm(rec: Recorder, out: Tensor, input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: float = 1, alpha: float = 1) -> None:
    if beta == alpha == 1:
        _matmul(rec, out, mat1, mat2)
        n, o = rec.n, out.shape[1]
        if rec.knows(input) and input.ndim == 1 and out.shape[0] % n == 0:
            rec.add(out, (rec.name(input),), lambda g: Dense(g.reshape(n, g.shape[1], -1, o, 1).sum(2)))


def _matmul(rec: Recorder, out: Tensor, input: Tensor, other: Tensor) -> None:
    name = rec.name(other)
    if name is not None and other.ndim == 2 and out.ndim >= 2 and out.shape[0] % rec.n == 0:
        x, n, o = rec.by_row(input)[:, :, None], rec.n, other.shape[1]
        rec.add(out, (name,), lambda g: Outer(g.reshape(n, g.shape[1], -1, 1, o), x, transposed=True))


def _embedding(
    rec: Recorder, out: Tensor, input: Tensor, weight: Tensor, padding_idx: int | None = None, *args: Any, **kwargs: Any
) -> None:
    name = rec.name(weight)
    if name is None or input.numel() % rec.n:
        return
    index = input.detach().reshape(rec.n, -1).long()
    if padding_idx is not None:
        index = torch.where(index == padding_idx % len(weight), -1, index)
    lead, width, n = *weight.shape, rec.n
    rec.add(out, (name,), lambda g: Lookup(index, g.reshape(n, g.shape[1], -1, width), lead), index.numel())


def _layer_norm(
    rec: Recorder, out: Tensor, input: Tensor, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> None:
    if rec.knows(weight):
        rec.broadcast(out, weight, tuple(weight.shape), F.layer_norm(input.detach(), normalized_shape, eps=eps))
    if rec.knows(bias):
        rec.broadcast(out, bias, tuple(bias.shape))


def _rms_norm(rec: Recorder, out: Tensor, input: Tensor, normalized_shape: Any, weight: Any = None, eps: float | None = None) -> None:
    if rec.knows(weight):
        rec.broadcast(out, weight, tuple(weight.shape), F.rms_norm(input.detach(), normalized_shape, eps=eps))


def _channels(rec: Recorder, out: Tensor, weight: Any, bias: Any, normalized: Callable[[], Tensor | float]) -> None:
    for p, scale in ((weight, normalized), (bias, lambda: 1.0)):
        if rec.knows(p):
            rec.broadcast(out, p, (len(p), *(1,) * (out.ndim - 2)), scale())


def _group_norm(
    rec: Recorder, out: Tensor, input: Tensor, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> None:
    _channels(rec, out, weight, bias, lambda: F.group_norm(input.detach(), num_groups, eps=eps))


def _batch_norm(
    rec: Recorder,
    out: Tensor,
    input: Tensor,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> None:
    if not training:
        _channels(rec, out, weight, bias, lambda: F.batch_norm(input.detach(), running_mean, running_var, eps=eps))


def _mul(rec: Recorder, out: Tensor, input: Any, other: Any) -> None:
    for p, scale in ((input, other), (other, input)):
        if rec.knows(p) and isinstance(scale, Tensor) and not rec.knows(scale):
            rec.broadcast(out, p, tuple(p.shape), scale)


def _add(rec: Recorder, out: Tensor, input: Any, other: Any, *, alpha: float = 1.0) -> None:
    for p, scale in ((input, 1.0), (other, float(alpha))):
        if rec.knows(p):
            rec.broadcast(out, p, tuple(p.shape), scale)


_READERS: dict[Any, Callable[..., None]] = {
    F.linear: _linear,
    **dict.fromkeys((torch.conv1d, torch.conv2d, torch.conv3d), _conv),
    torch.addmm: _addmm,
    **dict.fromkeys((torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.mm, torch.Tensor.mm), _matmul),
    F.embedding: _embedding,
    F.layer_norm: _layer_norm,
    F.rms_norm: _rms_norm,
    F.group_norm: _group_norm,
    F.batch_norm: _batch_norm,
    **dict.fromkeys((torch.mul, torch.Tensor.mul, torch.Tensor.__mul__, torch.Tensor.__rmul__), _mul),
    **dict.fromkeys((torch.add, torch.Tensor.add, torch.Tensor.__add__, torch.Tensor.__radd__), _add),
}
"""Operation → what records its use of parameters, called with the output and then the operation's own arguments."""
