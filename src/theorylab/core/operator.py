"""A linear map known by its products."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor

Apply = Callable[[Tensor], Tensor]


class Operator:
    """A linear map R^columns → R^rows that is never formed unless asked for.

    ``A @ v`` takes a vector (columns,) or a block (columns, k). ``A + B``, ``c * A``, ``A.shift(c)`` (A + cI), ``A.block(names)`` and
    ``A.precondition(d)`` are operators again.

    Args:
        shape: (rows, columns).
        matvec: Product with one vector, (columns,) → (rows,).
        matmat: Product with a block, (columns, k) → (rows, k), where that is faster than a loop over ``matvec``.
        rmatvec: Product of the transpose; not needed for a symmetric map.
        symmetric: The map equals its transpose. Solvers rely on it.
        dtype: Type of the vectors; others are refused, not converted.
        device: Where the vectors live.
        name: What the map is, for messages: ``"hessian"``.
        layout: Where each named part of a vector (columns,) lies, for `block`: parameter name → slice.

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
        layout: Mapping[str, slice] | None = None,
    ) -> None:
        if symmetric and shape[0] != shape[1]:
            raise ValueError(f"{name}: a symmetric operator must be square, got shape {shape}.")
        self.shape, self.symmetric, self.dtype, self.device, self.name = shape, symmetric, dtype, torch.device(device), name
        self.layout = dict(layout or {})
        self.n_matvecs = 0
        self._matvec, self._matmat, self._rmatvec = matvec, matmat, rmatvec

    @classmethod
    def from_matrix(
        cls, matrix: Tensor, *, symmetric: bool | None = None, name: str = "matrix", layout: Mapping[str, slice] | None = None
    ) -> Operator:
        """The map of a matrix that is there, (rows, columns).

        Args:
            matrix: Real floating-point matrix; it is kept, not copied.
            symmetric: It equals its transpose; unless given, it is compared with it, entry by entry and exactly.
            name: What the map is, for messages.
            layout: Where each named part of a vector lies.

        Raises:
            TypeError: it is no tensor of real floating-point numbers.
            ValueError: it is no matrix, or not square and said to be symmetric.

        Example:
            >>> A = Operator.from_matrix(torch.tensor([[2.0, 1.0], [1.0, 3.0]]))
            >>> (A @ torch.ones(2)).tolist(), A.symmetric
            ([3.0, 4.0], True)
        """
        if not isinstance(matrix, Tensor) or not matrix.is_floating_point():
            got = matrix.dtype if isinstance(matrix, Tensor) else type(matrix).__name__
            raise TypeError(f"matrix must be a tensor of real floating-point numbers, got {got}.")
        if matrix.ndim != 2:
            raise ValueError(f"matrix must have shape (rows, columns), got {tuple(matrix.shape)}.")
        matrix = matrix.detach()
        rows, columns = matrix.shape
        return cls(
            (rows, columns),
            lambda v: matrix @ v,
            matmat=lambda V: matrix @ V,
            rmatvec=lambda u: matrix.T @ u,
            symmetric=torch.equal(matrix, matrix.T) if symmetric is None else symmetric,
            dtype=matrix.dtype,
            device=matrix.device,
            name=name,
            layout=layout,
        )

    def __matmul__(self, v: Tensor) -> Tensor:
        if not isinstance(v, Tensor):
            raise TypeError(f"{self.name} multiplies tensors, got {type(v).__name__}: convert it by torch.as_tensor, or Problem.flatten.")
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
            self.shape,
            matvec,
            matmat=matmat,
            rmatvec=rmatvec,
            symmetric=symmetric,
            dtype=self.dtype,
            device=self.device,
            name=name,
            layout=self.layout,
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

    def block(self, names: str | Sequence[str]) -> Operator:
        """The restriction to some parameters: a diagonal block of a symmetric map, some columns of another.

        A product costs one of the whole map; ``Problem(..., params=names)`` differentiates less, where many are needed.

        Args:
            names: Parameter names or globs, as in ``"layers.0.*"``; the block keeps the parameters' order in the vector.

        Raises:
            ValueError: the map has no named parameters, or a name matches none.

        Example:
            >>> A = Operator((3, 3), lambda v: v.flip(0), symmetric=True, layout={"weight": slice(0, 2), "bias": slice(2, 3)})
            >>> A.block("weight").to_dense().tolist()
            [[0.0, 0.0], [0.0, 1.0]]
        """
        if not self.layout:
            raise ValueError(f"{self.name} has no named parameters to take a block of; the operators of a Problem have them.")
        chosen: set[str] = set()
        for pattern in [names] if isinstance(names, str) else names:
            matched = {name for name in self.layout if name == pattern or fnmatchcase(name, pattern)}
            if not matched:
                raise ValueError(f"names: {pattern!r} matches no parameter of {self.name}; there are {', '.join(list(self.layout)[:20])}.")
            chosen |= matched
        if not chosen:
            raise ValueError("names must hold at least one parameter, got an empty list.")
        layout, start = {}, 0
        for name in [name for name in self.layout if name in chosen]:
            size = self.layout[name].stop - self.layout[name].start
            layout[name] = slice(start, start + size)
            start += size

        def widen(v: Tensor) -> Tensor:
            whole = v.new_zeros(self.shape[1], *v.shape[1:])
            for name, part in layout.items():
                whole[self.layout[name]] = v[part]
            return whole

        def narrow(v: Tensor) -> Tensor:
            return torch.cat([v[self.layout[name]] for name in layout])

        def product(v: Tensor) -> Tensor:
            return narrow(self @ widen(v)) if self.symmetric else self @ widen(v)

        return Operator(
            (start if self.symmetric else self.shape[0], start),
            product,
            matmat=product,
            rmatvec=lambda u: narrow(self.T @ u),
            symmetric=self.symmetric,
            dtype=self.dtype,
            device=self.device,
            name=f"{self.name}[{', '.join([names] if isinstance(names, str) else names)}]",
            layout=layout,
        )

    def precondition(self, d: Tensor) -> Operator:
        r""":math:`D^{-1/2} A D^{-1/2}` for the diagonal matrix D of ``d``: its eigenvalues are those of :math:`D^{-1}A`.

        Args:
            d: Positive vector (columns,), of a symmetric map.

        Raises:
            ValueError: a map that is not symmetric, a vector of another shape, or an entry that is not positive and finite.

        Example:
            >>> A = Operator((2, 2), lambda v: torch.tensor([8.0, 9.0]).double() * v, symmetric=True)
            >>> A.precondition(torch.tensor([4.0, 9.0]).double()).to_dense().tolist()
            [[2.0, 0.0], [0.0, 1.0]]
        """
        if not self.symmetric:
            raise ValueError(f"precondition needs a symmetric operator, got {self.name} of shape {self.shape}.")
        if d.shape != (self.shape[1],):
            raise ValueError(f"d must have shape ({self.shape[1]},), got {tuple(d.shape)}.")
        d = d.detach().to(self.device, self.dtype)
        if not bool((d > 0).all()) or not bool(torch.isfinite(d).all()):
            raise ValueError(f"d must be positive and finite, got values from {float(d.min()):.3g} to {float(d.max()):.3g}.")
        root = d.rsqrt()

        def product(v: Tensor) -> Tensor:
            scale = root if v.ndim == 1 else root[:, None]
            return scale * (self @ (scale * v))

        return self._derived(product, product, product, True, f"preconditioned {self.name}")

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
            dtype=torch.empty(0, dtype=self.dtype, device="cpu").numpy().dtype,
        )

    def __repr__(self) -> str:
        return f"Operator({self.name}, shape={self.shape}, symmetric={self.symmetric}, dtype={self.dtype}, n_matvecs={self.n_matvecs})"


def check_operator(A: object) -> None:
    """Refuse what is no Operator, a problem or a matrix for example.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(A, Operator):
        advice = ": wrap a matrix as Operator.from_matrix(matrix)" if isinstance(A, Tensor) else ""
        raise TypeError(f"A must be an Operator, such as tl.hessian(problem), got {type(A).__name__}{advice}.")
