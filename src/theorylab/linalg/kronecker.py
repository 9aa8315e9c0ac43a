"""Symmetric operators whose blocks have Kronecker-product eigenvectors, so that every function of them is as cheap as a product."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from theorylab.core.operator import Operator


@dataclass(frozen=True)
class Block:
    """One block, (U ⊗ V) diag(values) (U ⊗ V)ᵀ, acting on a matrix M (out, in) as U (values ⊙ UᵀMV) Vᵀ.

    ``left`` is U (out, out) and ``right`` V (in, in), both orthogonal; ``values`` (out, in) are the eigenvalues, and ``index`` (out, in)
    says where in the flat vector each entry of M lies.
    """

    left: Tensor
    right: Tensor
    values: Tensor
    index: Tensor

    @property
    def eigen(self) -> Block:
        """Itself."""
        return self

    @property
    def trace(self) -> float:
        """Sum of the eigenvalues."""
        return float(self.values.double().sum())

    def applied(self, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
        """The product with matrices (..., out, in) of a type."""
        U, V, values = (t.to(dtype) for t in (self.left, self.right, self.values))
        return lambda M: U @ (values * (U.T @ M @ V)) @ V.T


@dataclass(frozen=True)
class Factors:
    """One block that is the Kronecker product of two positive semidefinite matrices, ``left`` (out, out) and ``right`` (in, in).

    Its products take the factors as they are; their eigenvectors are found when they are first asked for.
    """

    left: Tensor
    right: Tensor
    index: Tensor

    @cached_property
    def eigen(self) -> Block:
        """The block by its eigenvectors, from those of the factors."""
        (a, U), (b, V) = (torch.linalg.eigh(factor) for factor in (self.left, self.right))
        values = torch.outer(a.clamp(min=0), b.clamp(min=0))  # rounding leaves eigenvalues of a semidefinite matrix below 0
        return Block(U, V, values, self.index)

    @property
    def trace(self) -> float:
        """Product of the factors' traces."""
        return float(self.left.trace().double() * self.right.trace().double())

    def applied(self, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
        """The product with matrices (..., out, in) of a type."""
        left, right = self.left.to(dtype), self.right.to(dtype)
        return lambda M: left @ M @ right


class Kronecker(Operator):
    """A block-diagonal symmetric operator of `Block` or `Factors`, with its inverse, determinant and trace in closed form.

    Coordinates that lie in no block are mapped to zero.

    Args:
        blocks: Blocks over disjoint coordinates, in float64 or in ``dtype``.
        size: Length p of the flat vector.
        dtype: Type of the vectors.
        device: Where they live.
        name: For messages.

    Example:
        >>> left, right = torch.diag(torch.tensor([1.0, 2.0])), torch.diag(torch.tensor([3.0, 5.0]))
        >>> K = Kronecker([Factors(left, right, torch.arange(4).reshape(2, 2))], 4, dtype=torch.float32)
        >>> (K @ torch.ones(4)).tolist(), K.trace(), round(K.inverse(1.0).trace(), 4)
        ([3.0, 5.0, 6.0, 10.0], 24.0, 0.6504)
    """

    def __init__(
        self,
        blocks: Sequence[Block | Factors],
        size: int,
        *,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
        name: str = "kronecker",
    ) -> None:
        self.blocks = list(blocks)
        products = [(block.index, block.applied(dtype)) for block in blocks]

        def product(V: Tensor) -> Tensor:
            rows = V.T if V.ndim == 2 else V
            out = torch.zeros_like(rows)
            for index, apply in products:
                out[..., index] = apply(rows[..., index])
            return out.T if V.ndim == 2 else out

        super().__init__((size, size), product, matmat=product, symmetric=True, dtype=dtype, device=device, name=name)

    def map(self, function: Callable[[Tensor], Tensor], name: str | None = None) -> Kronecker:
        """The function of the matrix: the same eigenvectors, and ``function`` of the eigenvalues (out, in) of each block.

        ``map(lambda v: (v + damping) ** -0.5) @ noise`` is a sample of the normal distribution with covariance ``inverse(damping)``.
        """
        blocks = [replace(b.eigen, values=function(b.eigen.values)) for b in self.blocks]
        return Kronecker(blocks, self.shape[0], dtype=self.dtype, device=self.device, name=name or f"f({self.name})")

    def eigenvalues(self) -> Tensor:
        """Those of all blocks, ascending."""
        return torch.cat([b.eigen.values.reshape(-1) for b in self.blocks]).sort().values

    def _check(self, damping: float) -> None:
        if not damping >= 0:
            raise ValueError(f"damping must be at least 0, got {damping}.")
        least = float(self.eigenvalues()[0]) + damping
        if not least > 0:
            raise ValueError(f"{self.name} + {damping:g}·I must be positive definite, its least eigenvalue is {least:.3g}: raise damping.")

    def inverse(self, damping: float = 0.0) -> Kronecker:
        """(A + damping·I)⁻¹ on the coordinates of the blocks.

        Raises:
            ValueError: negative damping, or A + damping·I is singular.
        """
        self._check(damping)
        return self.map(lambda v: 1 / (v + damping), f"({self.name} + {damping:g}·I)⁻¹")

    def logdet(self, damping: float = 0.0) -> float:
        """The logarithm of det(A + damping·I) over the coordinates of the blocks.

        Raises:
            ValueError: negative damping, or A + damping·I is singular.
        """
        self._check(damping)
        return float((self.eigenvalues().double() + damping).log().sum())

    def trace(self) -> float:
        """The trace."""
        return sum(block.trace for block in self.blocks)
