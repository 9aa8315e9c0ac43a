"""Locally connected layers: each place sees its neighbourhood, as in a convolution, with weights of its own."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class LocallyConnected2d(nn.Module):
    r"""A convolution without weight sharing, :math:`y_{op} = \sum_{ct} W_{poct}\, x_{c,p+t} + b_{op}` at places p.

    It has the locality of a convolution and not its symmetry: between a convolution, which it contains, and a dense layer, which contains
    it. Zeros are padded so that the image keeps its size.

    Args:
        channels: Of the input and the output.
        size: Height and width of the images, which fix the number of places.
        kernel_size: Odd.

    Raises:
        ValueError: an argument out of range, or images of another size.

    Example:
        >>> LocallyConnected2d((1, 4), (8, 6))(torch.zeros(5, 1, 8, 6)).shape
        torch.Size([5, 4, 8, 6])

    Source: LeCun 1989, "Generalization and network design strategies", Section 4 (local connections, without and with weight sharing).
    """

    def __init__(self, channels: tuple[int, int], size: tuple[int, int], kernel_size: int = 3) -> None:
        super().__init__()
        if min(channels) < 1 or min(size) < 1:
            raise ValueError(f"channels and size must be positive, got {channels} and {size}.")
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}.")
        self.size, self.kernel_size = (size[0], size[1]), kernel_size  # a tuple, as shapes are, also of a list
        inputs, outputs = channels
        bound = 1 / math.sqrt(inputs * kernel_size**2)  # as `nn.Conv2d` draws
        places = size[0] * size[1]
        self.weight = nn.Parameter(torch.empty(places, outputs, inputs * kernel_size**2).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(outputs, places).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        """Inputs (n, channels, height, width)."""
        if x.shape[-2:] != self.size:
            raise ValueError(f"images must be {self.size}, got {tuple(x.shape[-2:])}.")
        patches = nn.functional.unfold(x, self.kernel_size, padding=self.kernel_size // 2)  # (n, channel · tap, place)
        return (torch.einsum("nip,poi->nop", patches, self.weight) + self.bias).unflatten(2, self.size)

    @torch.no_grad()
    def share(self, kernel: Tensor, bias: Tensor) -> None:
        """Take the weights of a convolution (out, in, k, k) and its bias (out,) at every place.

        Raises:
            ValueError: other shapes.
        """
        _, outputs, taps = self.weight.shape
        expected = (outputs, taps // self.kernel_size**2, self.kernel_size, self.kernel_size)
        if kernel.shape != expected or bias.shape != (outputs,):
            raise ValueError(f"kernel must be {expected} and bias {(outputs,)}, got {tuple(kernel.shape)} and {tuple(bias.shape)}.")
        self.weight.copy_(kernel.flatten(1).expand_as(self.weight))
        self.bias.copy_(bias[:, None].expand_as(self.bias))
