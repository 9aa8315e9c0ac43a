"""Networks of one hidden layer of squares, with and without shared weights: both can say which half of their input is longer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from theorylab.models.mlp import Square


class HalfMeans(nn.Module):
    """The mean over the first half of the last axis, and over the second."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., 2d) → (..., 2)."""
        return x.unflatten(-1, (2, -1)).mean(-1)


def quadratic_cnn(inputs: int, channels: int = 4) -> nn.Sequential:
    r"""A convolution of one tap, squares, means over both halves, and a linear layer.

    :math:`f(x) = b + \sum_c (u_c \frac1d \sum_{i \le d} (w_c x_i)^2 + v_c \frac1d \sum_{i > d} (w_c x_i)^2)`: three parameters a
    channel and one more, whatever the size of the input.

    Args:
        inputs: Entries 2d of an input, an even number; inputs are (n, 2d), outputs (n, 1).
        channels: c.

    Raises:
        ValueError: an odd number of inputs, or one that is not positive.

    Example:
        >>> sum(p.numel() for p in quadratic_cnn(64).parameters())
        13

    Source: Li et al. 2021, arXiv:2010.08515, Section 1 (a convolutional net with a quadratic activation).
    """
    if inputs < 2 or inputs % 2 or channels < 1:
        raise ValueError(f"inputs must be even and at least 2, and channels at least 1, got {inputs}, {channels}.")
    layers = [nn.Unflatten(1, (1, inputs)), nn.Conv1d(1, channels, 1, bias=False), Square(), HalfMeans(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(2 * channels, 1))


def quadratic_mlp(inputs: int, width: int) -> nn.Sequential:
    r"""The same without shared weights: :math:`f(x) = b + \sum_j a_j (w_j^\top x)^2`.

    Initial weights are normal, of variance 1/inputs and 1/width, so that their law does not change when inputs are rotated.

    Args:
        inputs: Entries of an input; inputs are (n, inputs), outputs (n, 1).
        width: Hidden units.

    Raises:
        ValueError: an argument below 1.

    Example:
        >>> quadratic_mlp(8, 32)(torch.zeros(5, 8)).shape
        torch.Size([5, 1])
    """
    if inputs < 1 or width < 1:
        raise ValueError(f"inputs and width must be at least 1, got {inputs}, {width}.")
    first, last = nn.Linear(inputs, width, bias=False), nn.Linear(width, 1)
    with torch.no_grad():
        first.weight.normal_(std=inputs**-0.5)
        last.weight.normal_(std=width**-0.5)
        last.bias.zero_()
    return nn.Sequential(first, Square(), last)
