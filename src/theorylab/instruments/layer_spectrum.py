"""Singular values of one linear layer as it acts on its real input: by Fourier transform, from its matrix, or by Lanczos iteration."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from theorylab.core.operator import Operator
from theorylab.instruments.linear_layers import LinearLayer
from theorylab.linalg.lanczos import Eigs, eigs

DENSE_UP_TO = 1024
"""Smaller side of a dense layer up to which its singular values are computed exactly."""
UNROLLED_UP_TO = 4096
"""Smaller side of a convolution's matrix up to which all singular values are computed from it."""
ENTRIES = 2**23
"""Numbers of a block of unit vectors that go through a layer at once."""
FEW = 3
"""Lanczos iteration is worth it where k is below one in so many of the singular values."""


@dataclass(frozen=True)
class LayerSpectrum:
    """Singular values of a layer's full matrix W on one input row.

    Attributes:
        name: Of the module.
        values: The k largest, descending, (k,); float64.
        of: How many W has: the smaller of its sides.
        method: ``"fourier"``, ``"dense"`` or ``"lanczos"``.
        converged: Whether the iteration reached its tolerance; True for the other methods.
    """

    name: str
    values: Tensor
    of: int
    method: str
    converged: bool


def singular_values(layer: LinearLayer, k: int | None, tol: float) -> LayerSpectrum:
    """The k largest singular values of a layer, or all; every way in which this package computes the norm of a layer ends here.

    Raises:
        ValueError: all are asked for of a matrix that is too large to be made.
    """
    weight = layer.weight
    if isinstance(layer.module, _BatchNorm):  # diagonal: a channel's scale at each of its places
        values = weight.abs().repeat_interleave(math.prod(layer.shape[1:])).sort(descending=True).values
        return LayerSpectrum(layer.name, values[:k], len(values), "dense", True)
    columns = math.prod(layer.input_shape)
    side = min(columns, _rows(layer))
    k = side if k is None else min(k, side)
    if isinstance(layer.module, _ConvNd) and _is_circulant(layer):
        return LayerSpectrum(layer.name, _by_frequency(layer)[:k], side, "fourier", True)
    exact = side <= DENSE_UP_TO if isinstance(layer.module, nn.Linear) else FEW * k >= side
    if exact or k == side:
        if side > UNROLLED_UP_TO:
            raise ValueError(
                f"k must be at most {(side - 1) // FEW} for layer {layer.name!r}, whose matrix has {side} singular values, got {k}: "
                "only the largest of so many can be found."
            )
        return LayerSpectrum(layer.name, torch.linalg.svdvals(_matrix(layer))[:k], side, "dense", True)
    values, converged = _by_iteration(layer, k, tol)
    return LayerSpectrum(layer.name, values, side, "lanczos", converged)


def _rows(layer: LinearLayer) -> int:
    """Entries of the output of one input row."""
    return layer(torch.zeros(1, *layer.input_shape, dtype=layer.weight.dtype, device=layer.weight.device)).numel()


def _matrix(layer: LinearLayer) -> Tensor:
    """W itself, (rows, columns): the layer's outputs on unit vectors."""
    if isinstance(layer.module, nn.Linear):
        return layer.weight
    size = math.prod(layer.input_shape)
    at_once = max(1, min(256, ENTRIES // size))
    columns = []
    for start in range(0, size, at_once):
        units = torch.zeros(min(at_once, size - start), size, dtype=layer.weight.dtype, device=layer.weight.device)
        units.diagonal(start).fill_(1.0)
        columns.append(layer(units.reshape(-1, *layer.input_shape)).flatten(1))
    return torch.cat(columns).T


def _is_circulant(layer: LinearLayer) -> bool:
    """Whether the convolution commutes with cyclic shifts by its stride, whatever the size of its kernel.

    It does where windows start at every stride-th place of a circle: the stride divides the size, the output has one entry for each, and
    what lies beyond the border is the other side, or is never looked at. An even kernel that is padded alike on both sides has one output
    too many, and is not.
    """
    module = layer.module
    assert isinstance(module, _ConvNd)
    if any(module._reversed_padding_repeated_twice) and module.padding_mode != "circular":
        return False
    sizes, strides = layer.shape[1:], module.stride
    out = layer(torch.zeros(1, *layer.shape, dtype=layer.weight.dtype, device=layer.weight.device)).shape[2:]
    return all(n % s == 0 and m == n // s for n, s, m in zip(sizes, strides, out, strict=True))


def _by_frequency(layer: LinearLayer) -> Tensor:
    r"""All singular values, descending: those of a small matrix a frequency.

    A cyclic convolution multiplies the Fourier transform of its input at frequency :math:`\omega` by the matrix (out, in) of the kernel's
    transform. A stride s folds the s frequencies that it cannot tell apart into one output frequency, each by :math:`s^{-1/2}`.
    """
    module, weight = layer.module, layer.weight
    assert isinstance(module, _ConvNd)
    taps, strides, dilation = weight.shape[2:], module.stride, module.dilation
    # windows that do not overlap along an axis are copies of one matrix: one window will do
    apart = [d * (t - 1) < s for t, d, s in zip(taps, dilation, strides, strict=True)]
    sizes = [s if alone else n for n, s, alone in zip(layer.shape[1:], strides, apart, strict=True)]
    copies = math.prod(layer.shape[1:]) // math.prod(sizes)
    kernel = weight.new_zeros(*weight.shape[:2], *sizes)
    for tap in product(*(range(t) for t in taps)):
        place = tuple(t * d % n for t, d, n in zip(tap, dilation, sizes, strict=True))  # taps may meet on a small circle
        kernel[(..., *place)] += weight[(..., *tap)]
    folded = [part for n, s in zip(sizes, strides, strict=True) for part in (s, n // s)]
    out, inside = weight.shape[0] // module.groups, weight.shape[1]
    blocks = torch.fft.fftn(kernel, dim=tuple(range(2, weight.ndim))).reshape(module.groups, out, inside, *folded)
    last, count = sizes[-1] // strides[-1], torch.full((sizes[-1] // strides[-1],), copies, device=weight.device)
    if strides[-1] == 1:  # frequencies ω and −ω of a real kernel are conjugates, with the same singular values
        blocks, count = blocks[..., : last // 2 + 1], count[: last // 2 + 1]
        count[1 : (last + 1) // 2] *= 2
    aliases, places = range(3, blocks.ndim, 2), range(4, blocks.ndim, 2)
    blocks = blocks.permute(0, *places, 1, 2, *aliases)  # (group, frequency ..., out, in, alias ...)
    blocks = blocks.reshape(-1, out, inside * math.prod(strides)) / math.prod(strides) ** 0.5
    values = torch.linalg.svdvals(blocks)
    return values.repeat_interleave(count.repeat(len(values) // len(count)), 0).flatten().sort(descending=True).values


def _by_iteration(layer: LinearLayer, k: int, tol: float) -> tuple[Tensor, bool]:
    """The k largest by Lanczos iteration on WᵀW, a forward and a backward pass a product.

    A Krylov space from one vector sees one direction of each eigenspace, and layers have symmetries. So what is found is deflated, and
    another start looks for more until it finds nothing larger than the k-th.
    """
    size = math.prod(layer.input_shape)

    def gram(v: Tensor) -> Tensor:
        with torch.enable_grad():
            x = v.detach().reshape(1, *layer.input_shape).requires_grad_()
            y = layer(x)
            return torch.autograd.grad(y, x, y.detach())[0].reshape(-1)

    def top(known: Tensor, count: int) -> Eigs:
        """Of WᵀW on the complement of the columns ``known`` (columns, j)."""

        def apply(v: Tensor) -> Tensor:
            w = gram(v - known @ (known.T @ v))
            return w - known @ (known.T @ w)

        kind = {"dtype": layer.weight.dtype, "device": layer.weight.device, "name": f"gram of {layer.name}"}
        A = Operator((size, size), apply if known.numel() else gram, symmetric=True, **kind)
        return eigs(A, k=count, which="LA", tol=tol, seed=known.shape[1])

    found = top(layer.weight.new_empty(size, 0), k)
    values, vectors, converged = found.values, found.vectors, found.converged
    while k > 1:
        more = top(vectors, 1)
        converged &= more.converged
        if float(more.values[0]) <= float(values[k - 1]) * (1 + tol):
            break
        values = torch.cat([values, more.values]).sort(descending=True).values
        vectors = torch.cat([vectors, more.vectors], dim=1)
    return values[:k].clamp(min=0).sqrt(), converged
