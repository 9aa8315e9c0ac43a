r"""Networks in the parametrization of the neural tangent kernel, whose limit of infinite width is known in closed form.

A layer of m inputs is :math:`\sqrt{\sigma_w^2/m}\,W h + \sigma_b\,\beta` with standard normal W and :math:`\beta`, so that a gradient
step changes the function by an amount that does not grow with the width.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from theorylab.core.ranges import nonnegative, positive, whole


class Erf(nn.Module):
    """The error function as an activation."""

    def forward(self, x: Tensor) -> Tensor:
        """Entry by entry."""
        return torch.erf(x)


ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "erf": Erf, "gelu": nn.GELU, "tanh": nn.Tanh, "identity": nn.Identity}


class WideLinear(nn.Module):
    """A linear layer with standard normal parameters, scaled in the forward pass; no bias where its variance is 0.

    Raises:
        ValueError: a variance out of range.
    """

    def __init__(self, inputs: int, outputs: int, weight_variance: float = 1.0, bias_variance: float = 0.0) -> None:
        super().__init__()
        positive(weight_variance=weight_variance)
        nonnegative(bias_variance=bias_variance)
        self.scale, self.bias_scale = math.sqrt(weight_variance / inputs), math.sqrt(bias_variance)
        self.weight = nn.Parameter(torch.randn(outputs, inputs))
        self.bias = nn.Parameter(torch.randn(outputs)) if bias_variance else None

    def forward(self, x: Tensor) -> Tensor:
        """(n, inputs) → (n, outputs)."""
        out = self.scale * F.linear(x, self.weight)
        return out if self.bias is None else torch.add(out, self.bias, alpha=self.bias_scale)


class WideConv2d(nn.Module):
    """A convolution of stride 1 that keeps the image's size, with standard normal parameters, scaled in the forward pass.

    Raises:
        ValueError: an even filter, another padding than ``"circular"`` or ``"zeros"``, or a variance out of range.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        filter_size: int = 3,
        weight_variance: float = 1.0,
        bias_variance: float = 0.0,
        padding: Literal["circular", "zeros"] = "circular",
    ) -> None:
        super().__init__()
        positive(weight_variance=weight_variance)
        nonnegative(bias_variance=bias_variance)
        if filter_size < 1 or filter_size % 2 == 0:
            raise ValueError(f"filter_size must be odd for the image to keep its size, got {filter_size}.")
        if padding not in ("circular", "zeros"):
            raise ValueError(f"padding must be 'circular' or 'zeros', got {padding!r}.")
        self.scale = math.sqrt(weight_variance / (inputs * filter_size**2))
        self.bias_scale = math.sqrt(bias_variance)
        self.mode, self.width = "constant" if padding == "zeros" else padding, filter_size // 2
        self.weight = nn.Parameter(torch.randn(outputs, inputs, filter_size, filter_size))
        self.bias = nn.Parameter(torch.randn(outputs, 1, 1)) if bias_variance else None

    def forward(self, x: Tensor) -> Tensor:
        """(n, inputs, h, w) → (n, outputs, h, w)."""
        out = self.scale * F.conv2d(F.pad(x, (self.width,) * 4, mode=self.mode), self.weight)
        return out if self.bias is None else torch.add(out, self.bias, alpha=self.bias_scale)


class Residual(nn.Module):
    """A sum h + branch(h)."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, h: Tensor) -> Tensor:
        """Of any shape that the branch keeps."""
        return h + self.branch(h)


def wide_mlp(
    inputs: int,
    width: int,
    outputs: int = 1,
    *,
    depth: int = 1,
    activation: str = "relu",
    weight_variance: float = 1.0,
    bias_variance: float = 0.0,
) -> nn.Sequential:
    """A fully connected network of ``depth`` hidden layers; its limit is `theorylab.theory.kernels.dense_kernel`.

    Args:
        inputs: Entries of an input; inputs are (n, inputs).
        width: Units of a hidden layer.
        outputs: Outputs are (n, outputs).
        depth: Hidden layers, at least 0.
        activation: A name in `ACTIVATIONS`.
        weight_variance: Of every layer, over its number of inputs.
        bias_variance: Of every layer.

    Raises:
        ValueError: an argument out of range.

    Example:
        >>> wide_mlp(3, 16, depth=2)(torch.zeros(5, 3)).shape
        torch.Size([5, 1])
    """
    _check(activation, "depth", depth, 0)
    sizes = [inputs, *[width] * depth, outputs]
    layers: list[nn.Module] = []
    for i in range(depth + 1):
        layers += [WideLinear(sizes[i], sizes[i + 1], weight_variance, bias_variance), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers[:-1])


def wide_residual(
    inputs: int,
    width: int,
    outputs: int = 1,
    *,
    blocks: int = 1,
    activation: str = "relu",
    weight_variance: float = 1.0,
    bias_variance: float = 0.0,
) -> nn.Sequential:
    """A linear layer, residual blocks h + linear(φ(h)), and a linear layer on φ(h).

    Its limit is `theorylab.theory.kernels.residual_kernel`.
    Arguments as `wide_mlp`, with ``blocks`` for ``depth``.

    Raises:
        ValueError: an argument out of range.

    Example:
        >>> wide_residual(3, 16, blocks=2)(torch.zeros(5, 3)).shape
        torch.Size([5, 1])
    """
    _check(activation, "blocks", blocks, 0)

    def after(n: int) -> list[nn.Module]:
        return [ACTIVATIONS[activation](), WideLinear(width, n, weight_variance, bias_variance)]

    first = WideLinear(inputs, width, weight_variance, bias_variance)
    return nn.Sequential(first, *[Residual(nn.Sequential(*after(width))) for _ in range(blocks)], *after(outputs))


def wide_cnn(
    channels: int,
    width: int,
    size: int,
    outputs: int = 1,
    *,
    depth: int = 1,
    activation: str = "relu",
    weight_variance: float = 1.0,
    bias_variance: float = 0.0,
    padding: Literal["circular", "zeros"] = "circular",
    readout: Literal["pool", "flatten"] = "pool",
) -> nn.Sequential:
    """Convolutions of three by three, and a linear layer on the mean over places or on all of them.

    Its limit is `theorylab.theory.kernels.conv_kernel`.

    Args:
        channels: Of the images (n, channels, size, size).
        width: Channels of a hidden layer.
        size: Height and width.
        outputs: Outputs are (n, outputs).
        depth: Convolutions, at least 1.
        activation: A name in `ACTIVATIONS`.
        weight_variance: Of every layer, over its number of inputs.
        bias_variance: Of every layer.
        padding: Beyond the border: the other side, or zeros.
        readout: ``"pool"`` or ``"flatten"``.

    Raises:
        ValueError: an argument out of range.

    Example:
        >>> wide_cnn(1, 16, 4, depth=2)(torch.zeros(5, 1, 4, 4)).shape
        torch.Size([5, 1])
    """
    _check(activation, "depth", depth, 1)
    if readout not in ("pool", "flatten"):
        raise ValueError(f"readout must be 'pool' or 'flatten', got {readout!r}.")
    layers: list[nn.Module] = []
    for i in range(depth):
        inputs = width if i else channels
        layers += [WideConv2d(inputs, width, 3, weight_variance, bias_variance, padding), ACTIVATIONS[activation]()]
    if readout == "pool":
        layers.append(nn.AdaptiveAvgPool2d(1))
    last = WideLinear(width if readout == "pool" else width * size**2, outputs, weight_variance, bias_variance)
    return nn.Sequential(*layers, nn.Flatten(), last)


def _check(activation: str, name: str, layers: int, least: int) -> None:
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(sorted(ACTIVATIONS))}, got {activation!r}.")
    whole(least, **{name: layers})
