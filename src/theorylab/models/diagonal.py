"""Diagonal linear networks: a linear model whose coefficients are differences of powers."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class DiagonalLinear(nn.Module):
    r"""The linear map :math:`f(x) = \langle\beta, x\rangle` with :math:`\beta = u^L - v^L`, entry by entry.

    The same functions as a linear model, in another geometry: a network of L layers without connections between units. The parameters
    start at u = v = α, so that f = 0 whatever α.

    Args:
        d: Inputs; they are (n, d), outputs (n,).
        init: α > 0, of every entry.
        depth: Layers L ≥ 1; 1 is the linear model itself, with every coefficient a difference.

    Raises:
        ValueError: an argument out of range.

    Example:
        >>> net = DiagonalLinear(3, init=0.5)
        >>> net(torch.ones(4, 3)).shape, float(net.coefficients().detach().abs().max())
        (torch.Size([4]), 0.0)

    Source: Woodworth et al. 2020, arXiv:2002.09277, Section 4 (two layers) and the section on higher order models.
    """

    def __init__(self, d: int, init: float = 1.0, depth: int = 2):
        super().__init__()
        if d < 1:
            raise ValueError(f"d must be at least 1, got {d}.")
        if init <= 0:
            raise ValueError(f"init must be positive (at 0 no gradient reaches a network of two layers), got {init}.")
        if depth < 1:
            raise ValueError(f"depth must be at least 1, got {depth}.")
        self.depth = depth
        self.u = nn.Parameter(torch.full((d,), float(init)))
        self.v = nn.Parameter(torch.full((d,), float(init)))

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (n,) of inputs (n, d)."""
        return x @ self.coefficients()

    def coefficients(self) -> Tensor:
        """β, (d,)."""
        return coefficients(self.u, self.v, self.depth)


def coefficients(u: Tensor, v: Tensor, depth: int = 2) -> Tensor:
    """u^L − v^L, of any shape."""
    return u**depth - v**depth
