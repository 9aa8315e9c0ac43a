"""Kernels of whole networks of infinite width, dense, residual and convolutional, and what the tangent kernel predicts of training.

Composed of the layers of `theorylab.theory.wide_layers`, where the parametrization is said; other networks are composed alike.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from theorylab.core.ranges import nonnegative, whole
from theorylab.theory.wide_layers import Kernel, Padding, activate, convolve, dense, flatten, images, inputs, pool, residual


def dense_kernel(
    x1: Tensor,
    x2: Tensor | None = None,
    depth: int = 1,
    activation: str = "relu",
    weight_variance: float = 1.0,
    bias_variance: float = 0.0,
) -> Kernel:
    r"""A fully connected network of ``depth`` hidden layers.

    Args:
        x1: Inputs (n, d).
        x2: Inputs (m, d); default: the same.
        depth: Hidden layers, at least 0; a linear model has none.
        activation: After each of them: ``"relu"``, ``"erf"``, ``"gelu"``, ``"tanh"`` or ``"identity"``.
        weight_variance: Of every layer, over its number of inputs.
        bias_variance: Of every layer.

    Returns:
        Kernels (n, m) of one output; different outputs are independent.

    Raises:
        ValueError: an argument out of range, or inputs as `theorylab.theory.wide_layers.inputs` refuses them.
        TypeError: as `theorylab.theory.wide_layers.inputs`.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
        >>> k = dense_kernel(x, depth=1, activation="relu", weight_variance=2.0)
        >>> k.ntk[0, 0].item(), round(k.nngp[0, 1].item(), 4)
        (2.0, 0.3183)

    Source: Lee et al. 2018, arXiv:1711.00165, Section 2 (NNGP); Jacot et al. 2018, arXiv:1806.07572, Theorem 1 (NTK).
    """
    whole(0, depth=depth)
    k = dense(inputs(x1, x2), weight_variance, bias_variance)
    for _ in range(depth):
        k = dense(activate(k, activation), weight_variance, bias_variance)
    return k


def residual_kernel(
    x1: Tensor,
    x2: Tensor | None = None,
    blocks: int = 1,
    activation: str = "relu",
    weight_variance: float = 1.0,
    bias_variance: float = 0.0,
) -> Kernel:
    """A linear layer, ``blocks`` residual blocks h + dense(φ(h)), and a linear layer on φ(h) that reads out; arguments as `dense_kernel`.

    Raises:
        ValueError: an argument out of range, or inputs as `theorylab.theory.wide_layers.inputs` refuses them.
        TypeError: as `theorylab.theory.wide_layers.inputs`.

    Example:
        >>> x = torch.eye(2, dtype=torch.float64)
        >>> residual_kernel(x, blocks=1, weight_variance=2.0).nngp[0, 0].item()  # h has variance 1 + 1
        2.0
    """
    whole(0, blocks=blocks)
    k = dense(inputs(x1, x2), weight_variance, bias_variance)
    for _ in range(blocks):
        k = residual(k, lambda h: dense(activate(h, activation), weight_variance, bias_variance))
    return dense(activate(k, activation), weight_variance, bias_variance)


BLOCK = 2**24
"""Numbers of a convolutional kernel that are held at a time, in each of a few tensors."""


def conv_kernel(
    x1: Tensor,
    x2: Tensor | None = None,
    depth: int = 1,
    activation: str = "relu",
    weight_variance: float = 1.0,
    bias_variance: float = 0.0,
    *,
    filter_size: int = 3,
    padding: Padding = "circular",
    readout: Literal["pool", "flatten"] = "pool",
) -> Kernel:
    """``depth`` convolutions, each with its activation, and a linear layer on the mean over places or on all places.

    Args:
        x1: Images (n, c, h, w).
        x2: Images (m, c, h, w); default: the same.
        depth: Convolutions, at least 1.
        activation: As `dense_kernel`.
        weight_variance: Of every layer.
        bias_variance: Of every layer.
        filter_size: Odd.
        padding: ``"circular"`` or ``"zeros"``.
        readout: ``"pool"`` averages over places, which takes (h w)² numbers a pair of images on the way; ``"flatten"`` takes h w. Where
            all pairs have more than `BLOCK`, blocks of images follow each other, and what is held is that many, or those of one pair.

    Raises:
        ValueError: an argument out of range, or inputs as `theorylab.theory.wide_layers.images` refuses them.
        TypeError: as `theorylab.theory.wide_layers.images`.

    Example:
        >>> x = torch.ones(1, 1, 4, 4, dtype=torch.float64)
        >>> k = conv_kernel(x, depth=1, weight_variance=2.0)  # a constant image: as one place, fully connected
        >>> k.ntk.item(), dense_kernel(x[:, 0, 0, :1], depth=1, weight_variance=2.0).ntk.item()
        (4.0, 4.0)

    Source: Arora et al. 2019, arXiv:1904.11955, Section 4; Novak et al. 2019, arXiv:1810.05148, Section 3.
    """
    whole(1, depth=depth)
    if readout not in ("pool", "flatten"):
        raise ValueError(f"readout must be 'pool' or 'flatten', got {readout!r}.")

    def block(x1: Tensor, x2: Tensor) -> Kernel:
        k = images(x1, x2, pairs=readout == "pool")
        for _ in range(depth):
            k = activate(convolve(k, filter_size, weight_variance, bias_variance, padding), activation)
        return dense(pool(k) if readout == "pool" else flatten(k), weight_variance, bias_variance)

    x2 = x1 if x2 is None else x2
    places = x1.shape[2:].numel()
    each = places**2 if readout == "pool" else places
    if len(x1) * len(x2) * each <= BLOCK:
        return block(x1, x2)
    side = max(1, math.isqrt(BLOCK // each))
    rows = [[block(a, b) for b in x2.split(side)] for a in x1.split(side)]
    nngp, ntk = (torch.cat([torch.cat([getattr(k, name) for k in row], 1) for row in rows]) for name in ("nngp", "ntk"))
    return Kernel(nngp, ntk, torch.cat([row[0].own for row in rows]), torch.cat([k.other for k in rows[0]]))


def linearized_residual(theta: Tensor, residual: Tensor, lr: float, steps: int) -> Tensor:
    r"""The residual f − y of a linearized network after ``steps`` of gradient descent: :math:`(I - \eta\Theta/n)^t (f_0 - y)`.

    Of the loss :math:`\frac{1}{2n}\lVert f - y\rVert^2`.

    Args:
        theta: Its kernel on the n rows, (n, n), symmetric up to rounding.
        residual: f_0 − y, (n,).
        lr: Step size η.
        steps: t, at least 0.

    Raises:
        ValueError: shapes that do not fit, a kernel that is not symmetric, or a negative number of steps.

    Example:
        >>> linearized_residual(2 * torch.eye(2), torch.tensor([1.0, -2.0]), lr=0.5, steps=1).tolist()
        [0.5, -1.0]

    Source: Lee et al. 2019, arXiv:1902.06720, Section 2.2 (dynamics of linearized networks).
    """
    n = len(residual)
    if theta.shape != (n, n) or residual.ndim != 1:
        raise ValueError(f"theta must be (n, n) and residual (n,), got {tuple(theta.shape)} and {tuple(residual.shape)}.")
    size, skew = (float(t.detach().abs().max()) for t in (theta, theta - theta.T))
    if not skew <= 1e3 * torch.finfo(theta.dtype).eps * size:  # rounding of a sum over many parameters is far below
        raise ValueError(f"theta must be symmetric, got entries of up to {size:.3g} that differ from their mirror images by {skew:.3g}.")
    nonnegative(lr=lr)
    whole(0, steps=steps)
    values, vectors = torch.linalg.eigh(theta)
    return vectors @ ((1 - lr * values / n) ** steps * (vectors.T @ residual))
