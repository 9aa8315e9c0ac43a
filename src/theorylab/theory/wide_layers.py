r"""What a layer of infinite width does to the covariance of its units at random parameters (NNGP) and to the neural tangent kernel.

Layers are functions from `Kernel` to `Kernel`, in the order of the forward pass: ``dense(activate(dense(inputs(x), 2.0), "relu"), 2.0)``.
In the parametrization of the NTK: a layer of m inputs is :math:`\sqrt{\sigma_w^2/m}\,W h + \sigma_b\,\beta`, and all entries of W and
:math:`\beta` are standard normal at the start. Widths go to infinity one after another.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from theorylab.core.ranges import nonnegative, positive, whole
from theorylab.theory.activations import DUALS


@dataclass(frozen=True)
class Kernel:
    """The two kernels of n inputs with m others at one layer.

    Attributes:
        nngp: Covariance of one unit at two inputs, (n, m); of images also at places, (n, m, h, w), or pairs, (n, m, h, w, h, w).
        ntk: Tangent kernel of all layers so far, of the same shape.
        own: The covariance of each of the n inputs with itself, (n, ...), which activations need.
        other: The same of the m others, (m, ...).
    """

    nngp: Tensor
    ntk: Tensor
    own: Tensor
    other: Tensor

    @property
    def pairs(self) -> bool:
        """Whether places are paired, as a global average at the end needs."""
        return self.nngp.ndim == 6

    def each(self, f: Callable[[Tensor], Tensor]) -> Kernel:
        """One linear map of all four."""
        return Kernel(f(self.nngp), f(self.ntk), f(self.own), f(self.other))


def inputs(x1: Tensor, x2: Tensor | None = None) -> Kernel:
    """Before the first layer: ⟨x, x'⟩/d of vectors (n, d) and (m, d); ``x2`` is ``x1`` by default.

    Raises:
        ValueError: not vectors of one length, or numbers that are not finite.
        TypeError: not floating-point numbers of one type: products of integers, as of pixels, would overflow.
    """
    x2 = x1 if x2 is None else x2
    _check_numbers(x1, x2)
    if x1.ndim != 2 or x2.ndim != 2 or x1.shape[1] != x2.shape[1]:
        raise ValueError(f"inputs must be (n, d) and (m, d), got {tuple(x1.shape)} and {tuple(x2.shape)}.")
    d = x1.shape[1]
    nngp = x1 @ x2.T / d
    return Kernel(nngp, torch.zeros_like(nngp), x1.square().sum(1) / d, x2.square().sum(1) / d)


def images(x1: Tensor, x2: Tensor | None = None, *, pairs: bool = True) -> Kernel:
    """Before the first convolution: products over channels of images (n, c, h, w) and (m, c, h, w), at equal places or all pairs of places.

    Args:
        x1: The n images.
        x2: The m others; default: the same.
        pairs: All pairs of places, n m (h w)² numbers, which `pool` needs; equal places suffice for `flatten`.

    Raises:
        ValueError: not images of one size, or numbers that are not finite.
        TypeError: not floating-point numbers of one type: products of integers, as of pixels, would overflow.
    """
    x2 = x1 if x2 is None else x2
    _check_numbers(x1, x2)
    if x1.ndim != 4 or x1.shape[1:] != x2.shape[1:]:
        raise ValueError(f"images must be (n, c, h, w) and (m, c, h, w), got {tuple(x1.shape)} and {tuple(x2.shape)}.")
    c = x1.shape[1]
    across, within = ("nchw,mcyx->nmhwyx", "nchw,ncyx->nhwyx") if pairs else ("nchw,mchw->nmhw", "nchw,nchw->nhw")
    nngp = torch.einsum(across, x1, x2) / c
    return Kernel(nngp, torch.zeros_like(nngp), torch.einsum(within, x1, x1) / c, torch.einsum(within, x2, x2) / c)


def _check_numbers(x1: Tensor, x2: Tensor) -> None:
    for name, x in (("x1", x1), ("x2", x2)):
        if not x.is_floating_point():
            raise TypeError(f"{name} must hold floating-point numbers, got {x.dtype}: convert it, for example with {name}.double().")
        if not bool(torch.isfinite(x).all()):
            raise ValueError(f"{name} must hold finite numbers only, got {int((~torch.isfinite(x)).sum())} that are NaN or infinite.")
    if x1.dtype != x2.dtype:
        raise TypeError(f"x2 must have the type of x1, {x1.dtype}, got {x2.dtype}: convert one of them.")


def dense(k: Kernel, weight_variance: float = 1.0, bias_variance: float = 0.0) -> Kernel:
    r"""A linear layer: :math:`\Sigma' = \sigma_w^2\Sigma + \sigma_b^2` and :math:`\Theta' = \Sigma' + \sigma_w^2\Theta`.

    The first term of the tangent kernel is the share of the layer's own parameters.

    Raises:
        ValueError: a variance out of range.

    Example:
        >>> x = torch.eye(2)
        >>> dense(Kernel(x, torch.zeros(2, 2), torch.ones(2), torch.ones(2)), 2.0, 1.0).ntk.tolist()
        [[3.0, 1.0], [1.0, 3.0]]

    Source: Jacot et al. 2018, arXiv:1806.07572, Theorem 1.
    """
    positive(weight_variance=weight_variance)
    nonnegative(bias_variance=bias_variance)
    nngp = weight_variance * k.nngp + bias_variance
    own, other = (weight_variance * v + bias_variance for v in (k.own, k.other))
    return Kernel(nngp, nngp + weight_variance * k.ntk, own, other)


def activate(k: Kernel, activation: str) -> Kernel:
    r"""A nonlinearity: :math:`\Sigma \to E[\phi(u)\phi(v)]` and :math:`\Theta \to \Theta\, E[\phi'(u)\phi'(v)]` for :math:`(u, v) \sim
    N(0, \Sigma)`.

    Args:
        k: After a linear layer, so that its units are normal.
        activation: A name in `theorylab.theory.activations.DUALS`.

    Raises:
        ValueError: an unknown activation.
    """
    if activation not in DUALS:
        raise ValueError(f"activation must be one of {', '.join(sorted(DUALS))}, got {activation!r}.")
    dual = DUALS[activation]
    a, c = (_variance(v, k.pairs) for v in (k.own, k.other))  # (n, places), (m, places)
    left, right = (1,) * (a.ndim - 1), tuple(c.shape[1:])
    if k.pairs:
        wide = a.view(len(a), 1, *a.shape[1:], *left), c.view(1, len(c), *left, *right)
    else:
        wide = a.view(len(a), 1, *a.shape[1:]), c.view(1, len(c), *right)
    nngp, slope = dual(k.nngp, *wide)

    def within(v: Tensor, variance: Tensor) -> Tensor:
        first = variance.view(*variance.shape, *left) if k.pairs else variance
        second = variance.view(len(variance), *left, *variance.shape[1:]) if k.pairs else variance
        return dual(v, first, second)[0]

    return Kernel(nngp, k.ntk * slope, within(k.own, a), within(k.other, c))


def _variance(v: Tensor, pairs: bool) -> Tensor:
    """Of each place, (n, h, w), out of the covariance of all pairs of them."""
    if not pairs:
        return v
    n, h, w = v.shape[:3]
    return v.reshape(n, h * w, h * w).diagonal(dim1=1, dim2=2).reshape(n, h, w)


def residual(k: Kernel, branch: Callable[[Kernel], Kernel]) -> Kernel:
    """A sum h + branch(h): the branch ends in a linear layer, whose fresh weights make it uncorrelated with h, so that kernels add.

    Source: Huang et al. 2020, arXiv:2002.06262, Section 3.
    """
    other = branch(k)
    return Kernel(k.nngp + other.nngp, k.ntk + other.ntk, k.own + other.own, k.other + other.other)


Padding = Literal["circular", "zeros"]


def convolve(
    k: Kernel, filter_size: int = 3, weight_variance: float = 1.0, bias_variance: float = 0.0, padding: Padding = "circular"
) -> Kernel:
    """A convolution of stride 1: the mean over the filter's taps of kernels shifted by them, at both places alike, then as `dense`.

    Args:
        k: Of images.
        filter_size: Odd; the image keeps its size.
        weight_variance: Of the sum over channels and taps, so that a weight has this over channels · filter_size².
        bias_variance: Of the bias.
        padding: What lies beyond the border: the other side, or zeros.

    Raises:
        ValueError: not a kernel of images, or an argument out of range.

    Example:
        >>> convolve(images(torch.ones(1, 1, 2, 2), pairs=False), 1, 2.0, 1.0).nngp.flatten().tolist()
        [3.0, 3.0, 3.0, 3.0]

    Source: Arora et al. 2019, arXiv:1904.11955, Section 4.
    """
    if k.nngp.ndim not in (4, 6):
        raise ValueError(f"convolve needs a kernel of images, got one of shape {tuple(k.nngp.shape)}: start from images.")
    whole(1, filter_size=filter_size)
    if filter_size % 2 == 0:
        raise ValueError(f"filter_size must be odd, got {filter_size}.")
    if padding not in ("circular", "zeros"):
        raise ValueError(f"padding must be 'circular' or 'zeros', got {padding!r}.")
    places = 4 if k.pairs else 2
    return dense(k.each(lambda t: _filtered(t, filter_size, places, padding)), weight_variance, bias_variance)


def _filtered(t: Tensor, size: int, places: int, padding: Padding) -> Tensor:
    """The mean over taps of ``t`` shifted along its last axes, rows and columns of both places together."""
    r, axes = size // 2, tuple(range(-places, 0))
    total = torch.zeros_like(t)
    wide = F.pad(t, (r,) * (2 * places)) if padding == "zeros" else t
    for dy, dx in product(range(-r, r + 1), repeat=2):
        shift = (dy, dx) * (places // 2)
        if padding == "circular":
            total += torch.roll(t, [-s for s in shift], axes)
        else:
            part = [slice(r + s, r + s + t.shape[axis]) for s, axis in zip(shift, axes, strict=True)]
            total += wide[(..., *part)]
    return total / size**2


def pool(k: Kernel) -> Kernel:
    """The mean over places of every channel: of the kernels, over all pairs of places.

    Raises:
        ValueError: a kernel at equal places only.
    """
    if not k.pairs:
        raise ValueError("pool needs the kernel at all pairs of places: start from images(..., pairs=True).")
    return k.each(lambda t: t.mean((-4, -3, -2, -1)))


def flatten(k: Kernel) -> Kernel:
    """All places of all channels in one vector, with weights of their own: only equal places meet.

    Raises:
        ValueError: not a kernel of images at equal places.
    """
    if k.nngp.ndim != 4:
        raise ValueError("flatten needs the kernel of images at equal places: start from images(..., pairs=False).")
    return k.each(lambda t: t.mean((-2, -1)))
