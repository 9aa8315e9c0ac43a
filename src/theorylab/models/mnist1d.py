"""The four classifiers of the MNIST-1D table, linear, fully connected, convolutional and recurrent; all of them run under vmap.

Each takes signals (n, length) and returns logits (n, k). Parameters start as those of `torch.nn` layers of the same kind.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ResidualMLP(nn.Module):
    """A hidden layer, a second one added to it, and a linear readout: h = φ(W₁x), W₃(h + φ(W₂h)), φ the ReLU, with biases."""

    def __init__(self, inputs: int = 40, outputs: int = 10, hidden: int = 100) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(inputs, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, k) of signals (n, length)."""
        h = F.relu(self.first(x))
        return self.head(h + F.relu(self.second(h)))


class StridedConv1d(nn.Conv1d):
    """`nn.Conv1d` with channels last, as one product of all windows with one matrix: under vmap a third cheaper than its own way."""

    def forward(self, input: Tensor) -> Tensor:
        """(n, length, c_in) to (n, place, c_out)."""
        (kernel,), (stride,), (padding,) = self.kernel_size, self.stride, cast(tuple[int], self.padding)
        places = (input.shape[-2] + 2 * padding - kernel) // stride + 1
        blocks = -(-kernel // stride)  # a window is so many runs of ``stride`` positions, the last of them perhaps cut
        right = stride * (places - 1 + blocks) - input.shape[-2] - padding
        runs = F.pad(input, (0, 0, padding, right)).unflatten(-2, (-1, stride)).flatten(-2)  # (n, run, stride·c_in)
        width = input.shape[-1]
        parts = [runs[..., b : b + places, : min(stride, kernel - b * stride) * width] for b in range(blocks)]
        windows = torch.cat(parts, -1)  # (n, place, kernel·c_in)
        return windows @ self.weight.permute(2, 1, 0).flatten(0, 1) + cast(Tensor, self.bias)


class StridedCNN(nn.Module):
    """Three convolutions of stride 2 with ReLU, kernels of 5, 3 and 3, flattened into a linear readout."""

    def __init__(self, length: int = 40, outputs: int = 10, channels: int = 25) -> None:
        super().__init__()
        kernels = (5, 3, 3)
        self.layers = nn.ModuleList(StridedConv1d(channels if i else 1, channels, k, stride=2, padding=1) for i, k in enumerate(kernels))
        for k in kernels:
            length = (length + 2 - k) // 2 + 1
        self.head = nn.Linear(channels * length, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, k) of signals (n, length)."""
        h = x.unsqueeze(-1)
        for layer in self.layers:
            h = F.relu(layer(h))
        return self.head(h.flatten(-2))


class BidirectionalGRU(nn.Module):
    r"""A GRU that reads the signal from either end, one number a step, and a linear readout of all its states.

    :math:`h_t = (1 - z_t)\,n_t + z_t\,h_{t-1}` with :math:`r_t, z_t = \sigma(W x_t + b + U h_{t-1} + c)` and
    :math:`n_t = \tanh(W_n x_t + b_n + r_t\,(U_n h_{t-1} + c_n))`. Parameters have a leading axis for the two directions, and the order of
    gates of `nn.GRU`, which vmap does not run.
    """

    def __init__(self, length: int = 40, outputs: int = 10, hidden: int = 6) -> None:
        super().__init__()

        def uniform(*shape: int) -> nn.Parameter:
            return nn.Parameter((2 * torch.rand(2, *shape) - 1) / math.sqrt(hidden))

        self.input, self.recurrent = uniform(3 * hidden, 1), uniform(3 * hidden, hidden)
        self.input_bias, self.recurrent_bias = uniform(3 * hidden), uniform(3 * hidden)
        self.head = nn.Linear(2 * hidden * length, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, k) of signals (n, length)."""
        both = torch.stack([x, x.flip(-1)])  # (direction, n, length)
        seen = both.unsqueeze(-1) * self.input.mT.unsqueeze(-2) + self.input_bias[:, None, None]  # (direction, n, length, 3·hidden)
        h, states = seen.new_zeros(*seen.shape[:2], seen.shape[-1] // 3), []
        for step in seen.unbind(-2):
            r, z, n = step.chunk(3, -1)
            r_h, z_h, n_h = (h @ self.recurrent.mT + self.recurrent_bias[:, None]).chunk(3, -1)
            z = torch.sigmoid(z + z_h)
            h = torch.lerp(torch.tanh(n + torch.sigmoid(r + r_h) * n_h), h, z)
            states.append(h)
        ahead, back = torch.stack(states, -2)  # each (n, length, hidden)
        return self.head(torch.cat([ahead, back.flip(-2)], -1).flatten(-2))


CLASSIFIERS: dict[str, Callable[[], nn.Module]] = {
    "logistic": lambda: nn.Linear(40, 10),
    "MLP": ResidualMLP,
    "CNN": StridedCNN,
    "GRU": BidirectionalGRU,
}
"""Name in the table → how to make it, for signals of length 40 in ten classes.

Source: Greydanus and Kobak 2024, arXiv:2011.14439, Table 1 and the code that goes with it.
"""
