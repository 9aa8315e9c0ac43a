"""The multilayer perceptron."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


class Square(nn.Module):
    """The square as an activation: with it, two layers multiply."""

    def forward(self, u: Tensor) -> Tensor:
        """Entry by entry."""
        return u * u


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "elu": nn.ELU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "sigmoid": nn.Sigmoid,
    "identity": nn.Identity,
    "square": Square,
}


def mlp(widths: Sequence[int], *, activation: str = "tanh", bias: bool = True, init_scale: float = 1.0) -> nn.Sequential:
    r"""A fully connected network, :math:`f(x) = W_L\,\phi(W_{L-1} \cdots \phi(W_1 x + b_1) \cdots) + b_L`.

    Args:
        widths: Number of inputs, of units in each hidden layer, and of outputs; at least two, each at least 1. Inputs are (n, widths[0])
            or flattened to it, outputs (n, widths[-1]).
        activation: A name in `ACTIVATIONS`, applied after every layer but the last. For curvature, prefer a smooth one.
        bias: Whether layers have biases.
        init_scale: Factor on PyTorch's initial weights and biases; all are multiplied by it, so the function of a bias-free
            ReLU network is scaled by init_scale to the number of layers.

    Raises:
        ValueError: fewer than two widths, a width below 1, or an unknown activation.

    Example:
        >>> net = mlp([64, 32, 10], activation="tanh")
        >>> net(torch.zeros(5, 8, 8)).shape
        torch.Size([5, 10])
        >>> sum(p.numel() for p in net.parameters())
        2410
    """
    if len(widths) < 2 or min(widths) < 1:
        raise ValueError(f"widths must list inputs, hidden units and outputs, each at least 1, got {list(widths)}.")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(sorted(ACTIVATIONS))}, got {activation!r}.")
    layers: list[nn.Module] = [nn.Flatten()]
    for d, k in pairwise(widths):
        layers += [nn.Linear(d, k, bias=bias), ACTIVATIONS[activation]()]
    net = nn.Sequential(*layers[:-1])
    if init_scale != 1.0:
        with torch.no_grad():
            for p in net.parameters():
                p.mul_(init_scale)
    return net
