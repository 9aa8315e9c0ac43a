"""Per-row Jacobians of a parameter as the factors that its layer leaves of them, without forming them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.linalg import vector_norm

BUFFER = 2**20
"""Bytes of products that are made in one piece before they are moved into a place that is not."""


class Factor(ABC):
    """The Jacobian of c outputs of n rows in one parameter, known by slices of the parameter's leading axis."""

    @property
    @abstractmethod
    def n(self) -> int:
        """Rows."""

    @property
    @abstractmethod
    def sizes(self) -> tuple[int, int, int]:
        """Outputs c, length of the parameter's leading axis, and entries for each of its places (the width)."""

    @abstractmethod
    def rows(self, low: int, high: int) -> Tensor:
        """Entries ``low`` to ``high`` of the leading axis: (n, c, high − low, width)."""

    @abstractmethod
    def pull(self, v: Tensor) -> Tensor:
        """The parameter's gradient (lead, width) along v (n, c): Σ over rows and outputs of v times the Jacobian."""

    def pull_to(self, v: Tensor, out: Tensor, first: bool) -> None:
        """Add `pull` to ``out`` (lead, width), or write it there where it is the ``first`` to come."""
        (out.copy_ if first else out.add_)(self.pull(v))

    @abstractmethod
    def add_to(self, total: Tensor, first: bool) -> None:
        """Add the whole Jacobian to ``total`` (n, c, lead, width), or write it there where it is the ``first`` to come."""


@dataclass(frozen=True)
class Dense(Factor):
    """The Jacobian itself, (n, c, lead, width)."""

    jacobian: Tensor

    @property
    def n(self) -> int:
        """The first axis."""
        return len(self.jacobian)

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Those of its last three axes."""
        _, c, lead, width = self.jacobian.shape
        return c, lead, width

    def rows(self, low: int, high: int) -> Tensor:
        """A view."""
        return self.jacobian[:, :, low:high]

    def pull(self, v: Tensor) -> Tensor:
        """One contraction."""
        return torch.einsum("na,naow->ow", v, self.jacobian)

    def add_to(self, total: Tensor, first: bool) -> None:
        """A copy."""
        (total.copy_ if first else total.add_)(self.jacobian)


@dataclass(frozen=True)
class Outer(Factor):
    r"""Sums of outer products :math:`\sum_t g_{iat} x_{it}^\top` of output gradients and inputs, as a matrix product leaves.

    Attributes:
        left: g, (n, c, position, group, o).
        right: x, (n, position, group, d).
        transposed: The parameter is stored (d, o), not (group · o, d).
    """

    left: Tensor
    right: Tensor
    transposed: bool = False

    @property
    def n(self) -> int:
        """The first axis."""
        return len(self.left)

    @property
    def groups(self) -> int:
        """Blocks of the parameter that meet inputs of their own."""
        return self.left.shape[3]

    @property
    def sizes(self) -> tuple[int, int, int]:
        """(c, group · o, d), or (c, d, o) where transposed."""
        (_, c, _, groups, o), d = self.left.shape, self.right.shape[3]
        return (c, d, o) if self.transposed else (c, groups * o, d)

    def rows(self, low: int, high: int) -> Tensor:
        """Formed from the factors, summed over positions."""
        if self.transposed:
            return torch.einsum("natgo,ntgd->nado", self.left, self.right[..., low:high])
        if self.left.shape[3] == 1:
            return torch.einsum("natgo,ntgd->naod", self.left[..., low:high], self.right)
        return torch.einsum("natgo,ntgd->nagod", self.left, self.right).flatten(2, 3)[:, :, low:high]

    def pull(self, v: Tensor) -> Tensor:
        """Output gradients first summed over outputs, as a backward pass would leave them."""
        weighed = self._weighed(v)
        if self.transposed:
            return torch.einsum("ntgo,ntgd->do", weighed, self.right)
        return torch.einsum("ntgo,ntgd->god", weighed, self.right).flatten(0, 1)

    def pull_to(self, v: Tensor, out: Tensor, first: bool) -> None:
        """Without groups one product of matrices, straight to its place."""
        if self.transposed or self.groups > 1:
            super().pull_to(v, out, first)
        else:
            torch.addmm(out, self._weighed(v).flatten(0, 2).T, self.right.flatten(0, 2), beta=0 if first else 1, out=out)

    def _weighed(self, v: Tensor) -> Tensor:
        """Σ over outputs of v times the left side, (n, position, group, o)."""
        if v.shape[1] == 1:
            return v[..., None, None] * self.left[:, 0]
        axes = sorted((2, 3, 4), key=self.left.stride, reverse=True)  # as they lie in memory, so that nothing is copied
        stored = self.left.permute(0, 1, *axes)
        summed = torch.bmm(v[:, None], stored.flatten(2)).view(self.n, *stored.shape[2:])
        return summed.permute(0, *(1 + axes.index(axis) for axis in (2, 3, 4)))

    def sides(self) -> tuple[Tensor, Tensor]:
        """The Jacobian as a product of matrices: (n, c or 1, group, lead, position) times (n, c or 1, group, position, width)."""
        if self.transposed:
            return self.right.permute(0, 2, 3, 1)[:, None], self.left.permute(0, 1, 3, 2, 4)
        return self.left.permute(0, 1, 3, 4, 2), self.right.permute(0, 2, 1, 3)[:, None]

    def add_to(self, total: Tensor, first: bool) -> None:
        """One product of matrices a row and an output."""
        a, b = self.sides()
        target = total.view(*total.shape[:2], a.shape[2], a.shape[3], b.shape[4])
        if first and a.shape[4] == 1:
            torch.mul(a, b, out=target)
        elif first and target.shape[1] == target.shape[2] == 1:
            _multiply(a[:, 0, 0], b[:, 0, 0], target[:, 0, 0])
        else:
            (target.copy_ if first else target.add_)(a @ b)

    def inner(self, other: Outer | Lookup) -> Tensor:
        """Products ⟨self, other⟩ of each row's and output's Jacobians, (n, c), from those of their factors at all pairs of positions."""
        if isinstance(other, Lookup):
            return other.inner(self)
        if self is other and self.left.shape[2] == 1:
            return (vector_norm(self.left[:, :, 0], dim=-1) * vector_norm(self.right, dim=-1)).square().sum(2)
        (a, b), (p, q) = self.sides(), other.sides()
        return ((a.mT @ p) * (b @ q.mT)).sum((2, 3, 4))


@dataclass(frozen=True)
class Lookup(Factor):
    r"""Output gradients that go to the rows of a table: :math:`\sum_t e_{\mathrm{index}_{it}} g_{iat}^\top`, as an embedding leaves.

    Attributes:
        index: Rows of the table, (n, position); −1 where nothing is learned (padding).
        left: g, (n, c, position, width).
        lead: Rows of the table.
    """

    index: Tensor
    left: Tensor
    lead: int
    groups = 1

    @property
    def n(self) -> int:
        """The first axis."""
        return len(self.left)

    @property
    def sizes(self) -> tuple[int, int, int]:
        """(c, rows of the table, width of the gradients)."""
        return self.left.shape[1], self.lead, self.left.shape[3]

    def rows(self, low: int, high: int) -> Tensor:
        """Scattered to the rows of the table, as a product with unit vectors."""
        hit = (self.index >= low) & (self.index < high)
        onehot = torch.zeros(*self.index.shape, high - low, dtype=self.left.dtype, device=self.left.device)
        onehot.scatter_(2, (self.index - low).clamp(0, high - low - 1)[..., None], hit[..., None].to(onehot))
        return torch.einsum("ntv,natw->navw", onehot, self.left)

    def pull(self, v: Tensor) -> Tensor:
        """Scattered to the whole table."""
        weighed = torch.einsum("na,natw->ntw", v, self.left)
        learned = self.index >= 0
        return self.left.new_zeros(self.sizes[1:]).index_add_(0, self.index[learned], weighed[learned])

    @property
    def learning(self) -> Tensor:
        """The output gradients, zero where nothing is learned."""
        return self.left * (self.index >= 0)[:, None, :, None]

    def add_to(self, total: Tensor, first: bool) -> None:
        """Scattered to the whole table of every row."""
        if first:
            total.zero_()
        total.scatter_add_(2, self.index.clamp(min=0)[:, None, :, None].expand(self.left.shape), self.learning)

    def inner(self, other: Outer | Lookup) -> Tensor:
        """Products ⟨self, other⟩ of each row's and output's Jacobians, (n, c), from those of their factors at all pairs of positions."""
        if isinstance(other, Lookup):
            same = (self.index[:, :, None] == other.index[:, None]).to(self.left)[:, None]
            return (same * (self.learning @ other.learning.mT)).sum((2, 3))
        a, b = (side[:, :, 0] for side in other.sides())  # (n, c or 1, lead, t'), (n, c or 1, t', width)
        at = self.index.clamp(min=0)[:, None, :, None].expand(-1, a.shape[1], -1, a.shape[3])
        return (a.gather(2, at) * (self.learning @ b.mT)).sum((2, 3))


def _multiply(a: Tensor, b: Tensor, out: Tensor) -> None:
    """Batched products of matrices into a place of any strides: PyTorch by itself makes them one by one where it is not contiguous."""
    if out.is_contiguous():
        torch.bmm(a, b, out=out)
        return
    rows = max(1, min(len(a), BUFFER // max(1, out.shape[1:].numel() * out.itemsize)))
    buffer = out.new_empty(rows, *out.shape[1:])
    for low in range(0, len(a), rows):
        at = slice(low, low + rows)
        out[at] = torch.bmm(a[at], b[at], out=buffer[: len(a) - low])


Factors = Mapping[tuple[str, ...], Sequence[Factor]]
"""Parameters → the factors whose sum is their Jacobian; a weight and a bias that are always used together share one `Outer`."""


def split(factors: Factors) -> Factors:
    """The same factors by single parameters: the bias is the last column of an `Outer` that it shares with a weight."""
    single: dict[tuple[str, ...], list[Factor]] = {}
    for names, parts in factors.items():
        for part in parts:
            if len(names) == 1:
                single.setdefault(names, []).append(part)
                continue
            assert isinstance(part, Outer)
            weight, bias = names
            single.setdefault((weight,), []).append(replace(part, right=part.right[..., :-1]))
            single.setdefault((bias,), []).append(Outer(part.left, part.right[..., -1:]))
    return single
