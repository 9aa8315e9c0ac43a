"""Tensors as sums of outer products: the CP factorization, read entry by entry as a network reads its inputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class CPFactorization(nn.Module):
    r"""The tensor :math:`W = \sum_{r=1}^R w_r^1 \otimes \cdots \otimes w_r^N`, parametrized by the vectors of its R components.

    As a network it maps a tuple of indices to an entry: a linear layer on each one-hot index, products of all of them in each of R
    channels, and the sum over channels.

    Args:
        dims: Lengths d₁, …, d_N of the axes; at least two, each at least 1.
        components: R. From R = ∏dₙ / max dₙ on, every tensor can be written so.
        init_scale: Standard deviation of the entries of the vectors, drawn from a centred normal law.

    Raises:
        ValueError: fewer than two axes, an axis or R below 1, or a negative scale.

    Example:
        >>> net = CPFactorization([2, 3, 4], components=5)
        >>> net.tensor().shape, net(torch.tensor([[1, 2, 3], [0, 0, 0]])).shape
        (torch.Size([2, 3, 4]), torch.Size([2]))

    Source: Razin, Maman and Cohen 2021, Section 3 (tensor factorization), arXiv:2102.09972.
    """

    def __init__(self, dims: Sequence[int], components: int, init_scale: float = 1.0):
        super().__init__()
        if len(dims) < 2 or min(dims) < 1:
            raise ValueError(f"dims must list the lengths of at least two axes, each at least 1, got {list(dims)}.")
        if components < 1:
            raise ValueError(f"components must be at least 1, got {components}.")
        if init_scale < 0:
            raise ValueError(f"init_scale must be at least 0, got {init_scale}.")
        self.factors = nn.ParameterList([nn.Parameter(init_scale * torch.randn(d, components)) for d in dims])

    def forward(self, indices: Tensor) -> Tensor:
        """Entries (n,) at the places ``indices`` (n, N), integers."""
        # entries of the whole tensor, not products of chosen rows: a matrix product is far faster than gathering and scattering R numbers
        # an entry, unless fewer than one entry in R is asked for
        return self.tensor()[indices.unbind(1)]

    def tensor(self) -> Tensor:
        """The whole tensor, (d₁, …, d_N)."""
        return cp_tensor(list(self.factors))


def cp_tensor(factors: Sequence[Tensor]) -> Tensor:
    """The sum of the outer products of corresponding columns, (..., d₁, …, d_N), of factors (..., dₙ, R) with any leading axes.

    Example:
        >>> cp_tensor([torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [4.0]])]).tolist()
        [[3.0, 4.0], [6.0, 8.0]]
    """
    leading, shape = factors[0].shape[:-2], [f.shape[-2] for f in factors]
    product = factors[0]
    for factor in factors[1:-1]:
        product = (product.unsqueeze(-2) * factor.unsqueeze(-3)).flatten(-3, -2)  # (..., d₁⋯dₙ, R), the later axis faster
    return (product @ factors[-1].mT).reshape(*leading, *shape)


def component_norms(factors: Sequence[Tensor]) -> Tensor:
    """Frobenius norms ∏ₙ‖wᵣⁿ‖ of the components, (..., R)."""
    return torch.stack([f.norm(dim=-2) for f in factors]).prod(0)
