"""Uses of parameters in a forward pass: what goes into an operation, and how the Jacobian of rows follows from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from theorylab.instruments.factors import Dense, Factor, Outer


@dataclass(frozen=True)
class Use:
    """One operation on parameters, whose Jacobian follows from what goes in and the gradients of what comes out.

    Attributes:
        names: A weight, a bias, or a weight and its bias.
        edge: Of the operation's output in the graph, which later changes in place do not move.
        shape: Of that output.
        x: What goes in, (n, ...); kept as it is, so that it takes no memory of its own.
        version: Of ``x`` when the operation read it.
        prepare: x of some rows → what the factor takes of it, e.g. the patches of a convolution.
        build: This, and gradients of the same rows' outputs in the operation's, (n, c, ...) → the factor of their Jacobian.
        entries: Numbers that the prepared x of all rows holds.
    """

    names: tuple[str, ...]
    edge: GradientEdge
    shape: torch.Size
    x: Tensor
    version: int
    prepare: Callable[[Tensor], Tensor]
    build: Callable[[Tensor, Tensor], Factor]
    entries: int

    @property
    def row_shape(self) -> torch.Size:
        """Of one row of the output: positions that share its first axis with the rows come first."""
        rows = self.x.shape[0]
        return self.shape[1:] if self.shape[0] == rows else torch.Size((self.shape[0] // rows, *self.shape[1:]))

    @property
    def untouched(self) -> bool:
        """Whether x still is what went in: a later operation may have written into it."""
        return self.x._version == self.version

    def factor(self, g: Tensor, rows: slice | Tensor = slice(None)) -> Factor:
        """The factor of the Jacobian of some rows, from gradients of all rows' outputs (n, c, ...)."""
        if isinstance(rows, slice) and rows == slice(0, g.shape[0]):  # two views less
            return self.build(self.prepare(self.x), g)
        return self.build(self.prepare(self.x[rows]), g[rows])


class Uses:
    """A growing list of the uses of ``leaves`` in a forward pass of ``n`` rows.

    Args:
        leaves: Parameters by name, which require a gradient.
        n: Rows of the batch: the leading axis of activations, alone or times an axis of positions.
        united: Whether a weight and its bias share one factor, where the bias is the last column: fewer products in a kernel. Otherwise
            the weight's is one block of memory, and the bias' is formed.
    """

    def __init__(self, leaves: Mapping[str, Tensor], n: int, *, united: bool = True) -> None:
        self.united = united
        self.names = {id(p): k for k, p in leaves.items()}
        self.n = n
        self.found: list[Use] = []

    def name(self, p: Any) -> str | None:
        """The name of a leaf; None for anything else."""
        return self.names.get(id(p)) if isinstance(p, Tensor) else None

    def knows(self, *tensors: Any) -> bool:
        """Whether any of them is a leaf."""
        return any(self.name(p) is not None for p in tensors)

    def add(
        self,
        out: Tensor,
        x: Tensor,
        names: tuple[str | None, ...],
        build: Callable[[Tensor, Tensor], Factor],
        prepare: Callable[[Tensor], Tensor] = lambda x: x,
        entries: int | None = None,
    ) -> None:
        """Record an operation on the leaves ``names``; None stands for what is not a leaf."""
        known = tuple(k for k in names if k is not None)
        leading = x.shape[0]
        if known and out.ndim and leading and leading % self.n == out.shape[0] % self.n == 0:
            held = x.numel() if entries is None else entries
            x = x.detach() if leading == self.n else x.detach().unflatten(0, (self.n, -1))
            self.found.append(Use(known, get_gradient_edge(out), out.shape, x, x._version, prepare, build, held))

    def product(
        self,
        out: Tensor,
        x: Tensor,
        weight: Any,
        bias: Any,
        inputs: Callable[[Tensor, int], Tensor],
        left: Callable[[Tensor], Tensor],
    ) -> None:
        """A weight (group · o, d) applied to what goes in, and its bias, which belongs to an entry that is always 1.

        Args:
            out: The operation's output.
            x: What goes in.
            weight: The weight.
            bias: The bias.
            inputs: x of m rows, and how many ones to append to each input → (m, position, group, entries).
            left: Output gradients (m, c, ...) → (m, c, position, group, o).
        """
        names, lead = (self.name(weight), self.name(bias)), weight.shape[0]
        d, ones = weight.numel() // lead, int(self.united and names[1] is not None)
        drop = d if names[0] is None else 0

        def outer(right: Tensor, g: Tensor) -> Factor:
            return Outer(left(g), right)

        def summed(x: Tensor, g: Tensor) -> Factor:
            g = left(g)
            return Dense((g.sum(2) if g.shape[2] > 1 else g[:, :, 0]).reshape(*g.shape[:2], lead, 1))

        if names[0] is not None or ones:
            held = out.numel() // lead * (d + ones - drop)
            self.add(out, x, names if ones else names[:1], outer, lambda x: inputs(x, ones)[..., drop:], held)
        if not ones:
            self.add(out, x, names[1:], summed, entries=0)

    def broadcast(self, out: Tensor, p: Tensor, shape: tuple[int, ...], x: Tensor, scale: Callable[[Tensor], Tensor] | float = 1.0) -> None:
        """An addition of scale · p to every row, p of ``shape`` broadcast over the output, and scale a number or a function of x."""
        own = out.ndim - len(shape)
        if out.ndim == 0 or own < 0 or (own == 0 and shape[0] != 1) or len(out) != self.n:
            return  # p has a row axis, or there is none
        inner = (1,) * (own - 1) + tuple(shape) if own else tuple(shape[1:])
        summed = [2 + axis for axis, (size, full) in enumerate(zip(inner, out.shape[1:], strict=True)) if size == 1 < full]

        def build(by: Tensor, g: Tensor) -> Factor:
            J = g * by[:, None] if callable(scale) else g if scale == 1 else g * scale
            J = J.sum(summed) if summed else J
            return Dense(J.reshape(*J.shape[:2], *matrix_shape(p)))

        self.add(out, x.expand(out.shape), (self.name(p),), build, scale if callable(scale) else lambda x: x)


def matrix_shape(p: Tensor) -> tuple[int, int]:
    """Leading axis, and all others: how factors lay out a parameter."""
    lead = p.shape[0] if p.ndim else 1
    return lead, p.numel() // max(1, lead)
