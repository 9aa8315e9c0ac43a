"""A small convolutional network, with a choice of normalization."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from theorylab.models.mlp import ACTIVATIONS

Norm = Literal["batch", "layer", "group", "rms", "none"]


class RMSNorm2d(nn.Module):
    """Every row divided by the root mean square of its channels and places, nothing subtracted; then one scale a channel."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(channels)), eps

    def forward(self, x: Tensor) -> Tensor:
        """Inputs and outputs are (n, channels, height, width)."""
        size = (x.square().mean((1, 2, 3), keepdim=True) + self.eps).sqrt()
        return x / size * self.weight[:, None, None]


def _norm(kind: Norm, channels: int) -> nn.Module:
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    if kind == "layer":
        return nn.GroupNorm(1, channels)  # layer norm over channels and places, with one scale a channel
    if kind == "group":
        return nn.GroupNorm(min(4, channels), channels)
    if kind == "rms":
        return RMSNorm2d(channels)
    return nn.Identity()


def cnn(
    channels: Sequence[int],
    outputs: int,
    *,
    kernel_size: int = 3,
    norm: Norm = "none",
    activation: str = "relu",
) -> nn.Sequential:
    r"""Convolution, norm, activation for each entry of ``channels``, then the mean over places and a linear layer.

    The first convolution has stride 1, those after it stride 2; all are padded, so that any image size works.

    Args:
        channels: Channels of the input and of each convolution's output; at least two. Inputs are (n, channels[0], height, width).
        outputs: Number of outputs k; outputs are (n, k).
        kernel_size: Odd.
        norm: ``"batch"`` (running statistics in buffers), ``"layer"`` (all channels and places of one row), ``"group"`` (the channels
            in four groups; needs channels divisible by 4 where there are more), ``"rms"`` (as layer norm, but nothing is subtracted), or
            ``"none"``. With a batch or group norm the
            convolution before it has no bias, which the norm would take away.
        activation: A name in `theorylab.models.mlp.ACTIVATIONS`.

    Raises:
        ValueError: an argument out of range.

    Example:
        >>> import torch
        >>> net = cnn([1, 8, 16], 10, norm="group")
        >>> net(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5, 10])

    Source: global average pooling before the classifier, Lin et al. 2014, Section 3.2, arXiv:1312.4400.
    """
    if len(channels) < 2 or min(channels) < 1 or outputs < 1:
        raise ValueError(f"channels must list at least two numbers, each at least 1, and outputs be at least 1, got {channels}, {outputs}.")
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd, got {kernel_size}.")
    if norm not in ("batch", "layer", "group", "rms", "none"):
        raise ValueError(f"norm must be 'batch', 'layer', 'group', 'rms' or 'none', got {norm!r}.")
    if norm == "group" and any(c > 4 and c % 4 for c in channels[1:]):
        raise ValueError(f"norm='group' makes four groups: channels must be divisible by 4, got {list(channels[1:])}.")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(sorted(ACTIVATIONS))}, got {activation!r}.")
    layers: list[nn.Module] = []
    for i in range(1, len(channels)):
        stride = 1 if i == 1 else 2
        bias = norm in ("layer", "rms", "none")
        layers.append(nn.Conv2d(channels[i - 1], channels[i], kernel_size, stride=stride, padding=kernel_size // 2, bias=bias))
        layers += [_norm(norm, channels[i]), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], outputs))
