"""A small convolutional network, with a choice of normalization, padding, readout and initialization."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from theorylab.core.ranges import nonnegative
from theorylab.models.initializers import delta_orthogonal_
from theorylab.models.mlp import ACTIVATIONS

Norm = Literal["batch", "layer", "group", "rms", "weight", "none"]
Init = Literal["torch", "he", "orthogonal", "delta_orthogonal"]


class RMSNorm(nn.Module):
    """Every row divided by the root mean square of its channels and places, nothing subtracted; then one scale a channel."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(channels)), eps

    def forward(self, x: Tensor) -> Tensor:
        """Inputs and outputs are (n, channels, places ...)."""
        size = (x.square().mean(tuple(range(1, x.ndim)), keepdim=True) + self.eps).sqrt()
        return x / size * self.weight.view(-1, *(1,) * (x.ndim - 2))


def _norm(kind: Norm, channels: int, dims: int, eps: float) -> nn.Module:
    if kind == "batch":
        return (nn.BatchNorm1d if dims == 1 else nn.BatchNorm2d)(channels, eps=eps)
    if kind == "layer":
        return nn.GroupNorm(1, channels, eps=eps)  # layer norm over channels and places, with one scale a channel
    if kind == "group":
        return nn.GroupNorm(min(4, channels), channels, eps=eps)
    if kind == "rms":
        return RMSNorm(channels, eps)
    return nn.Identity()


def _initialize(conv: nn.Conv1d | nn.Conv2d, init: Init) -> None:
    if init == "torch":
        return
    if init == "he":
        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    else:
        (nn.init.orthogonal_ if init == "orthogonal" else delta_orthogonal_)(conv.weight)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


def cnn(
    channels: Sequence[int],
    outputs: int,
    *,
    kernel_size: int = 3,
    norm: Norm = "none",
    activation: str = "relu",
    dims: Literal[1, 2] = 2,
    padding: Literal["zeros", "circular"] = "zeros",
    readout: Literal["pool", "flatten"] = "pool",
    size: Sequence[int] | None = None,
    eps: float = 1e-5,
    init: Init = "torch",
) -> nn.Sequential:
    r"""Convolution, norm, activation for each entry of ``channels``, then a linear layer on the mean over places or on all of them.

    The first convolution has stride 1, those after it stride 2; all are padded by half a kernel, so that with ``readout="pool"`` any
    image size works.

    Args:
        channels: Channels of the input and of each convolution's output; at least two. Inputs are (n, channels[0], height, width).
        outputs: Number of outputs k; outputs are (n, k).
        kernel_size: Odd.
        norm: ``"batch"`` (running statistics in buffers), ``"layer"`` (all channels and places of one row), ``"group"`` (the channels
            in four groups; needs channels divisible by 4 where there are more), ``"rms"`` (as layer norm, but nothing is subtracted),
            ``"weight"`` (each kernel divided by its norm and given a length of its own, `torch.nn.utils.parametrizations.weight_norm`), or
            ``"none"``. With a batch norm the convolution before it has no bias, which the norm would take away, and with a group norm
            none, which would spoil the invariance under a scale of the kernel alone; with the others it has one.
        activation: A name in `theorylab.models.mlp.ACTIVATIONS`.
        dims: 2 for images, 1 for signals (n, channels[0], length).
        padding: Beyond the border: zeros, or the other side.
        readout: ``"pool"`` or ``"flatten"``.
        size: (height, width) or (length,), which ``"flatten"`` needs.
        eps: Added under the root by the norm. Scale invariance is exact at 0 only, which ``"batch"`` does not take.
        init: Kernels as PyTorch draws them, ``"he"`` (normal, of variance 2 over the inputs of a unit), ``"orthogonal"`` (the kernel
            reshaped to a matrix) or ``"delta_orthogonal"`` (see `theorylab.models.initializers.delta_orthogonal_`; channels must not
            become fewer). With all but ``"torch"`` the biases of convolutions start at zero.

    Raises:
        ValueError: an argument out of range.

    Example:
        >>> import torch
        >>> net = cnn([1, 8, 16], 10, norm="group")
        >>> net(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5, 10])
        >>> cnn([1, 8, 16], 10, dims=1, padding="circular", readout="flatten", size=[40])(torch.zeros(5, 1, 40)).shape
        torch.Size([5, 10])

    Source: global average pooling before the classifier, Lin et al. 2014, Section 3.2, arXiv:1312.4400; ``"he"``: He et al. 2015,
    Section 2.2, arXiv:1502.01852.
    """
    if len(channels) < 2 or min(channels) < 1 or outputs < 1:
        raise ValueError(f"channels must list at least two numbers, each at least 1, and outputs be at least 1, got {channels}, {outputs}.")
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd, got {kernel_size}.")
    if norm == "group" and any(c > 4 and c % 4 for c in channels[1:]):
        raise ValueError(f"norm='group' makes four groups: channels must be divisible by 4, got {list(channels[1:])}.")
    for name, value, allowed in (
        ("norm", norm, get_args(Norm)),
        ("activation", activation, sorted(ACTIVATIONS)),
        ("dims", dims, (1, 2)),
        ("padding", padding, ("zeros", "circular")),
        ("readout", readout, ("pool", "flatten")),
        ("init", init, get_args(Init)),
    ):
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(map(str, allowed))}, got {value!r}.")
    nonnegative(eps=eps)
    if eps == 0 and norm == "batch":
        raise ValueError("eps must be positive for norm='batch', as torch.nn's BatchNorm demands: models.normalized has one without.")
    if readout == "flatten" and (size is None or len(size) != dims or min(size) < 1):
        raise ValueError(f"size must name {dims} positive numbers of places for readout='flatten', got {size}.")
    layers: list[nn.Module] = []
    for i in range(1, len(channels)):
        conv = (nn.Conv1d if dims == 1 else nn.Conv2d)(
            channels[i - 1],
            channels[i],
            kernel_size,
            stride=1 if i == 1 else 2,
            padding=kernel_size // 2,
            padding_mode=padding,
            bias=norm not in ("batch", "group"),
        )
        _initialize(conv, init)
        layers += [weight_norm(conv) if norm == "weight" else conv, _norm(norm, channels[i], dims, eps), ACTIVATIONS[activation]()]
    places = 1
    if readout == "pool":
        layers.append((nn.AdaptiveAvgPool1d if dims == 1 else nn.AdaptiveAvgPool2d)(1))
    elif size is not None:
        places = math.prod(-(-n // 2 ** (len(channels) - 2)) for n in size)  # every stride of 2 leaves half, rounded up
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels[-1] * places, outputs))
