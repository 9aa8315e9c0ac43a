"""Deep linear networks: a product of matrices, and initial values that gradient flow keeps balanced."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from itertools import pairwise

import torch
from torch import Tensor, nn


class DeepLinear(nn.Module):
    r"""The linear map :math:`f(x) = W_L \cdots W_1 x`, parametrized by its factors.

    Args:
        dims: Inputs, hidden widths and outputs d₀, …, d_L; factor i is (dᵢ, dᵢ₋₁). At least two, each at least 1.
        init_scale: Standard deviation σ of each factor's entries times √dᵢ₋₁: entries are drawn from N(0, σ²/dᵢ₋₁), so that at
            σ = 1 each factor keeps the mean square of its input.
        weights: Initial factors instead, for example from `balanced`; copied.

    Raises:
        ValueError: fewer than two dims, one below 1, a negative scale, or weights of other shapes.

    Example:
        >>> net = DeepLinear([3, 5, 2])
        >>> net(torch.zeros(7, 3)).shape, net.product().shape
        (torch.Size([7, 2]), torch.Size([2, 3]))
    """

    def __init__(self, dims: Sequence[int], init_scale: float = 1.0, weights: Sequence[Tensor] | None = None):
        super().__init__()
        _check_dims(dims)
        if init_scale < 0:
            raise ValueError(f"init_scale must be at least 0, got {init_scale}.")
        shapes = [(k, d) for d, k in pairwise(dims)]
        if weights is None:
            weights = [torch.randn(shape) * (init_scale / shape[1] ** 0.5) for shape in shapes]
        elif [tuple(w.shape) for w in weights] != shapes:
            raise ValueError(f"weights must have the shapes {shapes}, got {[tuple(w.shape) for w in weights]}.")
        self.factors = nn.ParameterList([nn.Parameter(w.detach().clone()) for w in weights])

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (n, k) of inputs (n, d)."""
        for w in self.factors:
            x = x @ w.mT
        return x

    def product(self) -> Tensor:
        """The end-to-end matrix W_L⋯W₁, (k, d)."""
        return end_to_end(list(self.factors))


def end_to_end(weights: Sequence[Tensor]) -> Tensor:
    """The product W_L⋯W₁ (..., k, d) of factors in the order in which they are applied, with any leading axes."""
    return reduce(lambda product, w: w @ product, weights)


def imbalance(weights: Sequence[Tensor]) -> list[Tensor]:
    """Wᵢ₊₁ᵀWᵢ₊₁ − WᵢWᵢᵀ for each pair of neighbours, (..., dᵢ, dᵢ); gradient flow keeps them constant.

    Source: Arora, Cohen and Hazan 2018, Theorem 1 (its proof and condition), arXiv:1802.06509.
    """
    return [after.mT @ after - before @ before.mT for before, after in pairwise(weights)]


def balanced(dims: Sequence[int], scale: float, generator: torch.Generator, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    r"""Factors with :math:`W_{i+1}^\top W_{i+1} = W_i W_i^\top` and a random end-to-end matrix.

    Draws A (d_L, d₀) with entries from N(0, scale²), takes its singular value decomposition UΣVᵀ, and gives each of the L factors Σ^{1/L}
    between bases that agree, so that the product is A, reduced to its best approximation of rank min(dims).

    Args:
        dims: Inputs, hidden widths and outputs; at least two, each at least 1.
        scale: Standard deviation of the entries of A, at least 0.
        generator: Source of the random numbers.
        dtype: Of the factors.

    Returns:
        The L factors, (dᵢ, dᵢ₋₁) each, in the order in which they are applied.

    Raises:
        ValueError: an argument out of range.

    Example:
        >>> weights = balanced([4, 6, 3, 5], 0.1, torch.Generator().manual_seed(0))
        >>> max(float(m.abs().max()) for m in imbalance(weights)) < 1e-12
        True

    Source: Arora, Cohen, Golowich and Hu 2019, "A convergence analysis of gradient descent for deep linear neural networks", Procedure 1
    (balanced initialization), arXiv:1810.02281.
    """
    _check_dims(dims)
    if scale < 0:
        raise ValueError(f"scale must be at least 0, got {scale}.")
    rank = min(dims)
    a = scale * torch.randn(dims[-1], dims[0], generator=generator, dtype=dtype, device="cpu")
    u, s, vh = torch.linalg.svd(a, full_matrices=False)
    root = s[:rank] ** (1 / (len(dims) - 1))
    weights = []
    for i, (d, k) in enumerate(pairwise(dims)):
        w = torch.zeros(k, d, dtype=dtype, device="cpu")
        w[:rank, :rank] = root.diag()
        if i == 0:
            w = w[:, :rank] @ vh[:rank]
        if i == len(dims) - 2:
            w = u[:, :rank] @ w[:rank]
        weights.append(w)
    return weights


def _check_dims(dims: Sequence[int]) -> None:
    if len(dims) < 2 or min(dims) < 1:
        raise ValueError(f"dims must list inputs, hidden widths and outputs, each at least 1, got {list(dims)}.")
