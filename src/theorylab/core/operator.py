"""A linear map known by its products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Apply = Callable[[Tensor], Tensor]


class Operator:
    """A linear map R^columns → R^rows that is never formed unless asked for.

    ``A @ v`` takes a vector (columns,) or a block (columns, k). ``A + B``, ``c * A`` and ``A.shift(c)`` (A + cI) are operators again.

    Args:
        shape: (rows, columns).
        matvec: Product with one vector, (columns,) → (rows,).
        matmat: Product with a block, (columns, k) → (rows, k), where that is faster than a loop over ``matvec``.
        rmatvec: Product of the transpose; not needed for a symmetric map.
        symmetric: The map equals its transpose. Solvers rely on it.
        dtype: Type of the vectors; others are refused, not converted.
        device: Where the vectors live.
        name: What the map is, for messages: ``"hessian"``.

    Example:
        >>> A = Operator((2, 2), lambda v: torch.tensor([2.0, 3.0]) * v, symmetric=True, dtype=torch.float32)
        >>> (A.shift(1.0) @ torch.ones(2)).tolist(), A.n_matvecs
        ([3.0, 4.0], 1)
    """

    def __init__(
        self,
        shape: tuple[int, int],
        matvec: Apply,
        *,
        matmat: Apply | None = None,
        rmatvec: Apply | None = None,
        symmetric: bool = False,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
        name: str = "operator",
    ) -> None:
        if symmetric and shape[0] != shape[1]:
            raise ValueError(f"{name}: a symmetric operator must be square, got shape {shape}.")
        self.shape, self.symmetric, self.dtype, self.device, self.name = shape, symmetric, dtype, torch.device(device), name
        self.n_matvecs = 0
        self._matvec, self._matmat, self._rmatvec = matvec, matmat, rmatvec

    def __matmul__(self, v: Tensor) -> Tensor:
        if v.ndim not in (1, 2) or v.shape[0] != self.shape[1]:
            raise ValueError(
                f"{self.name} of shape {self.shape} multiplies ({self.shape[1]},) or ({self.shape[1]}, k), got {tuple(v.shape)}."
            )
        if v.dtype != self.dtype or v.device != self.device:
            raise TypeError(f"{self.name} takes {self.dtype} on {self.device}, got {v.dtype} on {v.device}; convert the vector first.")
        self.n_matvecs += 1 if v.ndim == 1 else v.shape[1]
        if v.ndim == 1:
            return self._matvec(v)
        if self._matmat is not None:
            return self._matmat(v)
        if v.shape[1] == 0:
            return v.new_empty(self.shape[0], 0)
        return torch.stack([self._matvec(column) for column in v.unbind(1)], dim=1)

    @property
    def T(self) -> Operator:
        """The transpose; the map itself where it is symmetric."""
        if self.symmetric:
            return self
        if self._rmatvec is None:
            raise ValueError(f"{self.name} was given no transposed product (rmatvec).")
        return Operator(
            (self.shape[1], self.shape[0]), self._rmatvec, rmatvec=self._matvec, dtype=self.dtype, device=self.device, name=f"{self.name}.T"
        )

    def _derived(self, matvec: Apply, matmat: Apply, rmatvec: Apply | None, symmetric: bool, name: str) -> Operator:
        return Operator(
            self.shape, matvec, matmat=matmat, rmatvec=rmatvec, symmetric=symmetric, dtype=self.dtype, device=self.device, name=name
        )

    def __add__(self, other: Operator) -> Operator:
        if not isinstance(other, Operator):
            return NotImplemented
        if self.shape != other.shape:
            raise ValueError(f"cannot add {self.name} of shape {self.shape} and {other.name} of shape {other.shape}.")

        def product(v: Tensor) -> Tensor:
            return self @ v + other @ v

        def transposed(v: Tensor) -> Tensor:
            return self.T @ v + other.T @ v

        return self._derived(product, product, transposed, self.symmetric and other.symmetric, f"({self.name} + {other.name})")

    def __mul__(self, c: float) -> Operator:
        def product(v: Tensor) -> Tensor:
            return c * (self @ v)

        def transposed(v: Tensor) -> Tensor:
            return c * (self.T @ v)

        return self._derived(product, product, transposed, self.symmetric, f"{c:g}·{self.name}")

    __rmul__ = __mul__

    def shift(self, c: float) -> Operator:
        """A + cI, for a square map."""
        if self.shape[0] != self.shape[1]:
            raise ValueError(f"shift needs a square operator, got {self.name} of shape {self.shape}.")

        def product(v: Tensor) -> Tensor:
            return self @ v + c * v

        def transposed(v: Tensor) -> Tensor:
            return self.T @ v + c * v

        return self._derived(product, product, transposed, self.symmetric, f"({self.name} + {c:g}·I)")

    def to_dense(self) -> Tensor:
        """The full matrix, (rows, columns): one product a column."""
        return self @ torch.eye(self.shape[1], dtype=self.dtype, device=self.device)

    def to_scipy(self) -> Any:
        """A `scipy.sparse.linalg.LinearOperator` of the same map, through NumPy on the CPU."""
        from scipy.sparse.linalg import LinearOperator

        def through(apply: Callable[[Tensor], Tensor]) -> Callable[[Any], Any]:
            return lambda v: apply(torch.as_tensor(v, dtype=self.dtype, device=self.device)).detach().cpu().numpy()

        adjoint = through(lambda v: self.T @ v.reshape(-1)) if self.symmetric or self._rmatvec is not None else None
        make: Any = LinearOperator  # scipy's stubs miss the keywords of its __new__
        return make(
            self.shape,
            matvec=through(lambda v: self @ v.reshape(-1)),
            rmatvec=adjoint,
            matmat=through(lambda v: self @ v),
            dtype=torch.empty(0, dtype=self.dtype).numpy().dtype,
        )

    def __repr__(self) -> str:
        return f"Operator({self.name}, shape={self.shape}, symmetric={self.symmetric}, dtype={self.dtype}, n_matvecs={self.n_matvecs})"
