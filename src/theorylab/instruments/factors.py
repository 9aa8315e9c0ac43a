"""Per-row Jacobians of a parameter as the factors that its layer leaves of them, without forming them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


class Factor(ABC):
    """The Jacobian of c outputs of n rows in one parameter, known by slices of the parameter's leading axis."""

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


@dataclass(frozen=True)
class Dense(Factor):
    """The Jacobian itself, (n, c, lead, width)."""

    jacobian: Tensor

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
        weighed = torch.einsum("na,natgo->ntgo", v, self.left)
        if self.transposed:
            return torch.einsum("ntgo,ntgd->do", weighed, self.right)
        return torch.einsum("ntgo,ntgd->god", weighed, self.right).flatten(0, 1)


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


Strip = tuple[slice, slice]
"""Rows of one block against rows of another."""

CACHE = 2**24
"""Bytes of a slice of two Jacobians: what is multiplied while it is still near."""

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


def merge(parts: Sequence[Factor]) -> Factor | None:
    """One factor equal to the sum of several of one kind, whose positions are put side by side; None where the kinds differ."""
    first = parts[0]
    if len(parts) == 1:
        return first
    if isinstance(first, Outer):
        outer = [p for p in parts if isinstance(p, Outer) and p.transposed == first.transposed]
        if len(outer) == len(parts):
            return replace(first, left=torch.cat([p.left for p in outer], 2), right=torch.cat([p.right for p in outer], 1))
    if isinstance(first, Lookup):
        lookups = [p for p in parts if isinstance(p, Lookup)]
        if len(lookups) == len(parts):
            return replace(first, left=torch.cat([p.left for p in lookups], 2), index=torch.cat([p.index for p in lookups], 1))
    return None


def _compact(a: Lookup, b: Lookup) -> tuple[Lookup, Lookup]:
    """The same products from a table of only those rows that both look up."""
    met = torch.unique(a.index)
    met = met[torch.isin(met, b.index) & (met >= 0)]

    def renumber(part: Lookup) -> Lookup:
        if not len(met):
            return replace(part, index=torch.full_like(part.index, -1), lead=0)
        at = torch.searchsorted(met, part.index).clamp(max=len(met) - 1)
        return replace(part, index=torch.where(met[at] == part.index, at, -1), lead=len(met))

    first = renumber(a)
    return first, first if a is b else renumber(b)


def add_gram(total: Tensor, a: Sequence[Factor], b: Sequence[Factor], *, trace: bool, strips: Sequence[Strip], memory: int) -> None:
    r"""Add to ``total`` the products :math:`\langle J_{ia}, J'_{jb} \rangle` in one parameter (or in a weight and its bias).

    Args:
        total: (n, c, m, c), or (n, m) where ``trace``: then Σ over a of the products with b = a.
        a: Factors whose sum is J, of n rows.
        b: Factors whose sum is J', of m rows; the same object where the product is symmetric.
        trace: Only equal outputs, summed.
        strips: Which products are wanted: rows of a against rows of b.
        memory: Bytes that temporary tensors may take.
    """
    one = merge(a)
    two = one if a is b else merge(b)
    if isinstance(one, Lookup) and isinstance(two, Lookup):
        one, two = _compact(one, two)
    if isinstance(one, Outer) and isinstance(two, Outer) and _positions_win(one, two, trace):
        _add_by_positions(total, one, two, trace, strips, memory)
    else:
        _add_by_slices(total, [one] if one else a, [two] if two else b, trace, strips, memory)


def _positions_win(a: Outer, b: Outer, trace: bool) -> bool:
    """Whether Grams over pairs of positions take less time than the Jacobians' slices; an entry's product counts as ten operations."""
    (n, c, s, groups, o), d, m, t = a.left.shape, a.right.shape[3], b.left.shape[0], b.left.shape[2]
    if groups > 1 or a.transposed != b.transposed:
        return False
    forming = (n * s + m * t) * c * o * d
    if trace:
        return n * m * s * t * (c * o + d + 10) < n * m * c * o * d + forming
    return n * m * s * t * (c * c * (o + 10) + d) < n * m * c * c * o * d + forming


def _add_by_positions(total: Tensor, a: Outer, b: Outer, trace: bool, strips: Sequence[Strip], memory: int) -> None:
    """Σ over pairs of positions of ⟨g, g'⟩⟨x, x'⟩: the Gram of output gradients times that of inputs."""

    def layout(left: Tensor) -> Tensor:  # (n, c, position, 1, o) → (n, position, c · o), or (n, c, position, o)
        return left[:, :, :, 0].transpose(1, 2).flatten(2) if trace else left[:, :, :, 0].contiguous()

    g, x, h, y = layout(a.left), a.right[:, :, 0], layout(b.left), b.right[:, :, 0]
    c, s, t = a.left.shape[1], x.shape[1], y.shape[1]
    row = y.shape[0] * s * t * (1 if trace else c * c) * g.element_size()
    step = max(1, memory // row)
    for rows, columns in strips:
        for low in range(rows.start, rows.stop, step):
            i = slice(low, min(low + step, rows.stop))
            slopes = g[i].flatten(0, -2) @ h[columns].flatten(0, -2).T
            inputs = x[i].flatten(0, 1) @ y[columns].flatten(0, 1).T
            n, m = len(x[i]), len(y[columns])
            if trace:
                total[i, columns] += slopes.mul_(inputs).view(n, s, m, t).sum((1, 3))
            elif s == t == 1:
                each = inputs.repeat_interleave(c, 1).view(n, 1, m * c)  # one long row to multiply by, not m short ones
                total.flatten(2)[i, :, c * columns.start : c * columns.stop].addcmul_(slopes.view(n, c, m * c), each)
            else:
                total[i, :, columns] += slopes.view(n, c, s, m, c, t).mul_(inputs.view(n, 1, s, m, 1, t)).sum((2, 5))


def _add_by_slices(total: Tensor, a: Sequence[Factor], b: Sequence[Factor], trace: bool, strips: Sequence[Strip], memory: int) -> None:
    """Products of the Jacobians themselves, a slice of the parameter's leading axis at a time."""

    def part(factors: Sequence[Factor], low: int, high: int) -> Tensor:
        J = factors[0].rows(low, high)
        for other in factors[1:]:
            J = J + other.rows(low, high)
        return J.flatten(1) if trace else J.flatten(2).flatten(0, 1)  # (n, c · entries), or (n · c, entries)

    c, lead, width = a[0].sizes
    per = 1 if trace else c
    flat = total if trace else total.view(total.shape[0] * c, total.shape[2] * c)
    step = max(1, min(memory, CACHE) // (max(1, width) * sum(flat.shape) // per * c * total.element_size()))
    for low in range(0, lead, step):
        high = min(low + step, lead)
        J = part(a, low, high)
        K = J if a is b or a[0] is b[0] else part(b, low, high)
        for rows, columns in strips:
            i, j = (slice(per * s.start, per * s.stop) for s in (rows, columns))
            flat[i, j].addmm_(J[i], K[j].T)
