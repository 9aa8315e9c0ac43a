"""Inner products of all rows' Jacobians in a parameter, from their factors: a block of the tangent kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from theorylab.instruments.factors import Factor, Lookup, Outer

Strip = tuple[slice, slice]
"""Rows of one block against rows of another."""

CACHE = 2**24
"""Bytes of a slice of two Jacobians: what is multiplied while it is still near."""
PAIRS = 2**21
"""Bytes of output gradients that are moved to the positions of one row at a time."""


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
        at = torch.searchsorted(met, part.index.contiguous()).clamp(max=len(met) - 1)
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
    if isinstance(one, Outer) and isinstance(two, Outer):
        add = _cheapest(one, two, trace)
        if add is not None:
            add(total, one, two, trace, strips, memory)
            return
    _add_by_slices(total, [one] if one else a, [two] if two else b, trace, strips, memory)


def _cheapest(a: Outer, b: Outer, trace: bool) -> Callable[..., None] | None:
    """What sums over positions by the fewest operations, or None where the Jacobians' slices take fewer yet.

    Measured on one core: an entry's product by itself counts as ten operations of a large product of matrices, one of small products as
    two, and what is called for every row as a million; on a GPU, which waits for calls, as a thousand times that.
    """
    (n, c, s, groups, o), d, m, t = a.left.shape, a.right.shape[3], b.left.shape[0], b.left.shape[2]
    if groups > 1 or a.transposed != b.transposed:
        return None
    slices = n * m * (1 if trace else c) * c * o * d + (n * s + m * t) * c * o * d
    if trace:
        return _add_by_positions if n * m * s * t * (c * o + d + 10) < slices else None
    call = 10**6 if a.left.device.type == "cpu" else 10**9
    ways: dict[Callable[..., None], int] = {
        _add_by_positions: n * m * s * t * (c * c * (o + 10) + d),
        _add_by_pairs: n * m * s * (t * d + 2 * c * o * t + 2 * c * c * o) + n * call,
    }
    best = min(ways, key=ways.__getitem__)
    return best if ways[best] < slices else None


def _add_by_positions(total: Tensor, a: Outer, b: Outer, trace: bool, strips: Sequence[Strip], memory: int) -> None:
    """Σ over pairs of positions of ⟨g, g'⟩⟨x, x'⟩: the Gram of output gradients times that of inputs."""

    def layout(left: Tensor) -> Tensor:  # (n, c, position, 1, o) → (n, position, c · o), or (n, c, position, o)
        return left[:, :, :, 0].transpose(1, 2).flatten(2) if trace else left[:, :, :, 0].contiguous()

    g, x, h, y = layout(a.left), a.right[:, :, 0].contiguous(), layout(b.left), b.right[:, :, 0].contiguous()
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


def _add_by_pairs(total: Tensor, a: Outer, b: Outer, trace: bool, strips: Sequence[Strip], memory: int) -> None:
    """Σ over positions of a row of ⟨g, Σ over those of another of ⟨x, x'⟩ g'⟩: neither Jacobians nor all outputs at pairs of positions."""
    n, c, s, _, o = a.left.shape
    m, t = b.left.shape[0], b.left.shape[2]
    g, h = (side.left[:, :, :, 0].transpose(2, 3).flatten(2) for side in (a, b))  # (row, c, o · position)
    x, y = a.right[:, :, 0], b.right[:, :, 0]
    h = h.reshape(m, c * o, t)
    flat = total.view(n, c, m * c)
    size = total.element_size()
    width = max(1, min(m, min(memory, PAIRS) // (c * o * s * size)))
    moved = total.new_empty(width, c * o, s)  # once, as memory that the system hands out anew costs more than what is computed in it
    for rows, columns in strips:
        for first in range(columns.start, columns.stop, width):
            j = slice(first, min(first + width, columns.stop))
            others = y[j].flatten(0, 1)
            step = max(1, memory // (len(others) * s * size))
            for low in range(rows.start, rows.stop, step):
                i = slice(low, min(low + step, rows.stop))
                inputs = (others @ x[i].flatten(0, 1).T).view(j.stop - j.start, t, i.stop - i.start, s)
                for k in range(i.start, i.stop):
                    left = torch.bmm(h[j], inputs[:, :, k - i.start], out=moved[: j.stop - j.start])
                    flat[k, :, c * j.start : c * j.stop].addmm_(g[k], left.view(-1, o * s).T)


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
