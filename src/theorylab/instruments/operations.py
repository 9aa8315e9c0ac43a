"""Where the forward pass of a model uses its parameters: recorded at the operations themselves, whatever module calls them.

A mode of PyTorch's function dispatch sees every operation and its arguments by identity, so that weights tied between modules, weights
used outside of their module and modules of one's own are seen too; nothing is hooked into the model. Operations that are not known leave
no record, and what is taken for rows may be something else: whoever uses the records must check them, see
`theorylab.instruments.rowwise` and `theorylab.instruments.row_trust`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from theorylab.instruments.factors import Dense, Lookup, Outer
from theorylab.instruments.uses import Use, Uses


class Recorder(TorchFunctionMode):
    """Within it, every use of ``leaves`` by a known operation is recorded; the arguments are those of `Uses`."""

    def __init__(self, leaves: Mapping[str, Tensor], n: int, *, united: bool = True) -> None:
        super().__init__()
        self.record = Uses(leaves, n, united=united)

    @property
    def uses(self) -> list[Use]:
        """In the order of the pass; those whose input was written into since then tell nothing any more and are left out."""
        return [use for use in self.record.found if use.untouched]

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        reader = _READERS.get(func)
        # A tensor within `torch.func` lives only there; what parameters do in it goes without a record.
        if reader is not None and isinstance(out, Tensor) and out.requires_grad and not is_functorch_wrapped_tensor(out):
            reader(self.record, out, *args, **kwargs)
        return out


def _with_ones(x: Tensor, ones: int) -> Tensor:
    return F.pad(x, (0, ones), value=1.0) if ones else x


def _linear(rec: Uses, out: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
    if out.ndim > 1 and rec.knows(weight, bias):
        o, d = weight.shape
        rec.product(
            out,
            input,
            weight,
            bias,
            lambda x, ones: _with_ones(x.reshape(len(x), -1, 1, d), ones),
            lambda g: g.reshape(*g.shape[:2], -1, 1, o),
        )


@functools.lru_cache(maxsize=256)
def _taps(
    shape: tuple[int, ...],
    kernel: tuple[int, ...],
    places: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
    sides: tuple[tuple[int, int], ...],
    groups: int,
    ones: int,
) -> Tensor:
    """Which entry of a flat input (channel, ...) each patch of a convolution reads: group, then channel and tap, then place.

    A gather by these numbers is several times faster than a copy of a strided view, whose runs are as short as a row of places. The entry
    after the last stands for the padding, the one after that for the ``ones`` appended to every patch.
    """
    numel = math.prod(shape)
    entries = F.pad(torch.arange(numel, device="cpu").view(shape), [v for pair in reversed(sides) for v in pair], value=numel)
    c, *spatial = entries.stride()
    steps = [s * v for s, v in zip(spatial, stride, strict=True)]
    taps = [s * v for s, v in zip(spatial, dilation, strict=True)]
    channels = shape[0] // groups
    read = entries.as_strided((groups, channels, *kernel, *places), (channels * c, c, *taps, *steps))
    read = read.reshape(groups, channels * math.prod(kernel), -1)
    return torch.cat([read, read.new_full((groups, ones, read.shape[2]), numel + 1)], 1).flatten()


def _conv(
    rec: Uses,
    out: Tensor,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> None:
    dims, kernel, o = weight.ndim - 2, weight.shape[2:], weight.shape[0] // groups
    shape, places = input.shape[1:], out.shape[2:]  # the graph must not be kept alive by what follows
    if out.ndim != dims + 2 or not rec.knows(weight, bias):
        return
    stride, dilation = ((v,) * dims if isinstance(v, int) else tuple(v) * (dims // len(v)) for v in (stride, dilation))
    if isinstance(padding, str):
        total = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, kernel, strict=True)]
        sides = [(t // 2, t - t // 2) for t in total]
    else:
        padding = (padding,) * dims if isinstance(padding, int) else tuple(padding) * (dims // len(padding))
        sides = [(p, p) for p in padding]

    def patches(x: Tensor, ones: int) -> Tensor:
        rows, x = len(x), x.reshape(-1, *shape).flatten(1)
        index = _taps(tuple(shape), tuple(kernel), tuple(places), stride, dilation, tuple(sides), groups, ones).to(x.device)
        if ones or any(low or high for low, high in sides):
            x = F.pad(x, (0, 2))
            x[:, -1] = 1
        right = x.index_select(1, index).view(len(x), groups, -1, places.numel()).permute(0, 3, 1, 2)
        return right if len(right) == rows else right.reshape(rows, -1, *right.shape[2:])

    def left(g: Tensor) -> Tensor:
        g = g.flatten(-dims).unflatten(-2, (groups, o)).movedim(-1, -3)
        return g if g.ndim == 5 else g.flatten(2, 3)

    rec.product(out, input, weight, bias, patches, left)


def _addmm(rec: Uses, out: Tensor, input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: float = 1, alpha: float = 1) -> None:
    if beta == alpha == 1:
        _matmul(rec, out, mat1, mat2)
        o = out.shape[1]
        if input.ndim == 1 and rec.knows(input):
            rec.add(out, mat1, (rec.name(input),), lambda x, g: Dense(g.reshape(*g.shape[:2], -1, o, 1).sum(2)))


def _matmul(rec: Uses, out: Tensor, input: Tensor, other: Tensor) -> None:
    if other.ndim == 2 and out.ndim >= 2 and rec.knows(other):
        d, o = other.shape
        rec.add(
            out,
            input,
            (rec.name(other),),
            lambda x, g: Outer(g.reshape(*g.shape[:2], -1, 1, o), x, transposed=True),
            lambda x: x.reshape(len(x), -1, 1, d),
        )


def _mm(rec: Uses, out: Tensor, input: Tensor, mat2: Tensor) -> None:
    _matmul(rec, out, input, mat2)


def _embedding(
    rec: Uses,
    out: Tensor,
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> None:
    if max_norm is not None or scale_grad_by_freq:
        return
    lead, width = weight.shape

    def learned(x: Tensor) -> Tensor:
        index = x.reshape(len(x), -1).long()
        return index if padding_idx is None else torch.where(index == padding_idx % lead, -1, index)

    rec.add(out, input, (rec.name(weight),), lambda index, g: Lookup(index, g.reshape(*g.shape[:2], -1, width), lead), learned)


def _last_axes(rec: Uses, out: Tensor, input: Tensor, weight: Any, bias: Any, normalize: Callable[[Tensor], Tensor]) -> None:
    for p, scale in ((weight, normalize), (bias, 1.0)):
        if rec.knows(p):
            rec.broadcast(out, p, tuple(p.shape), input, scale)


def _layer_norm(
    rec: Uses, out: Tensor, input: Tensor, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> None:
    _last_axes(rec, out, input, weight, bias, lambda x: F.layer_norm(x, normalized_shape, eps=eps))


def _rms_norm(rec: Uses, out: Tensor, input: Tensor, normalized_shape: Any, weight: Any = None, eps: float | None = None) -> None:
    _last_axes(rec, out, input, weight, None, lambda x: F.rms_norm(x, normalized_shape, eps=eps))


def _channels(rec: Uses, out: Tensor, input: Tensor, weight: Any, bias: Any, normalize: Callable[[Tensor], Tensor]) -> None:
    for p, scale in ((weight, normalize), (bias, 1.0)):
        if rec.knows(p):
            rec.broadcast(out, p, (len(p), *(1,) * (out.ndim - 2)), input, scale)


def _group_norm(rec: Uses, out: Tensor, input: Tensor, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> None:
    _channels(rec, out, input, weight, bias, lambda x: F.group_norm(x, num_groups, eps=eps))


def _batch_norm(
    rec: Uses,
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
        _channels(rec, out, input, weight, bias, lambda x: F.batch_norm(x, running_mean, running_var, eps=eps))


def _mul(rec: Uses, out: Tensor, input: Any, other: Any) -> None:
    for p, scale in ((input, other), (other, input)):
        if rec.knows(p) and isinstance(scale, Tensor) and not rec.knows(scale):
            rec.broadcast(out, p, tuple(p.shape), scale, lambda x: x)


def _add(rec: Uses, out: Tensor, input: Any, other: Any, *, alpha: float = 1.0) -> None:
    for p, x, scale in ((input, other, 1.0), (other, input, float(alpha))):
        if rec.knows(p) and isinstance(x, Tensor):
            rec.broadcast(out, p, tuple(p.shape), x, scale)


_READERS: dict[Any, Callable[..., None]] = {
    F.linear: _linear,
    **dict.fromkeys((torch.conv1d, torch.conv2d, torch.conv3d), _conv),
    torch.addmm: _addmm,
    **dict.fromkeys((torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__), _matmul),
    **dict.fromkeys((torch.mm, torch.Tensor.mm), _mm),
    F.embedding: _embedding,
    F.layer_norm: _layer_norm,
    F.rms_norm: _rms_norm,
    F.group_norm: _group_norm,
    F.batch_norm: _batch_norm,
    **dict.fromkeys((torch.mul, torch.Tensor.mul, torch.Tensor.__mul__, torch.Tensor.__rmul__), _mul),
    **dict.fromkeys((torch.add, torch.Tensor.add, torch.Tensor.__add__, torch.Tensor.__radd__), _add),
}
"""Operation → what records its use of parameters, called with the output and then the operation's own arguments."""
