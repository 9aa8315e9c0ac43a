"""Möbius transform of a game, and the interaction indices that follow from it: who is worth more, or less, together."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Index = Literal["sii", "stii", "banzhaf"]


def _players(table: Tensor) -> int:
    if not isinstance(table, Tensor):
        raise TypeError(f"table must be a tensor, got {type(table).__name__}.")
    n = table.numel().bit_length() - 1
    if table.ndim != 1 or len(table) != 2**n or n < 1:
        raise ValueError(f"table must hold the worth of every coalition, (2^n,) with n ≥ 1, got shape {tuple(table.shape)}.")
    if not table.is_floating_point() or not table.isfinite().all():
        raise ValueError("table must hold finite floating-point numbers.")
    return n


def mobius(table: Tensor) -> Tensor:
    r"""Möbius coefficients :math:`a_T = \sum_{S\subseteq T} (-1)^{|T|-|S|} v(S)` of a game, (2^n,), in n·2^{n−1} subtractions.

    What a coalition is worth beyond what its parts are: the game is :math:`v(S) = \sum_{T\subseteq S} a_T`.

    Args:
        table: Worths of all coalitions, (2^n,), bit i of the index for player i, as `theorylab.instruments.games.table` gives them.

    Raises:
        ValueError: a length that is no power of two, or numbers that are not finite.

    Example:
        >>> mobius(torch.tensor([0.0, 1.0, 2.0, 13.0])).tolist()
        [0.0, 1.0, 2.0, 10.0]

    Source: Rota 1964, doi:10.1007/BF00531932; Grabisch and Roubens 1999, doi:10.1007/s001820050125.
    """
    n, a = _players(table), table.clone()
    for i in range(n):
        halves = a.view(-1, 2, 2**i)
        halves[:, 1] -= halves[:, 0]
    return a


@dataclass(frozen=True)
class Interactions:
    """Interaction indices of all coalitions of up to ``order`` players.

    ``coalitions`` are tuples of players, by size; ``values`` (their number,) goes with them.
    """

    coalitions: tuple[tuple[int, ...], ...]
    values: Tensor
    n: int
    order: int
    index: str

    def __getitem__(self, coalition: tuple[int, ...]) -> float:
        key = tuple(sorted(coalition))
        if key not in self._places:
            raise KeyError(f"{coalition} is no coalition of 1 ... {self.order} different players of {self.n}.")
        return float(self.values[self._places[key]])

    @cached_property
    def _places(self) -> dict[tuple[int, ...], int]:
        return {coalition: k for k, coalition in enumerate(self.coalitions)}

    def matrix(self) -> Tensor:
        """Pairs as a symmetric matrix (n, n), single players on the diagonal.

        Raises:
            ValueError: the order is below 2.
        """
        if self.order < 2:
            raise ValueError(f"a matrix needs the interactions of pairs, order 2, got order {self.order}.")
        out = self.values.new_zeros(self.n, self.n)
        for coalition, v in zip(self.coalitions, self.values, strict=True):
            i, j = min(coalition), max(coalition)
            if len(coalition) <= 2:
                out[i, j] = out[j, i] = v
        return out

    def plot(self, ax: Axes | None = None, *, names: list[str] | None = None) -> Axes:
        """The matrix in colours."""
        from theorylab.instruments.value_plots import interaction_matrix

        return interaction_matrix(self.matrix(), ax, names=names)


def _weight(index: Index, t: int, s: int) -> float:
    """Of the Möbius coefficient of t players in the index of s of them."""
    return {"sii": 1 / (t - s + 1), "banzhaf": 0.5 ** (t - s), "stii": 1 / math.comb(t, s)}[index]


def interactions(table: Tensor, order: int = 2, index: Index = "sii") -> Interactions:
    r"""Interaction indices from the worths of all coalitions: sums of Möbius coefficients over supersets, by a fast transform.

    ``"sii"``, the Shapley interaction index :math:`\sum_{T\supseteq S} a_T/(t-s+1)`, whose singles are Shapley values; ``"banzhaf"``,
    :math:`\sum_T a_T 2^{s-t}`; ``"stii"``, Shapley-Taylor, :math:`\sum_T a_T/\binom ts` at the highest order and :math:`a_S` below it,
    which adds up to v(N) − v(∅). Positive: worth more together than apart. One transform of n·2^n additions for each order.

    Args:
        table: Worths of all coalitions, (2^n,).
        order: Largest coalition, in 1 ... n.
        index: See above.

    Raises:
        ValueError: a table that is none, an order out of range, or an unknown index.

    Example:
        >>> found = interactions(torch.tensor([0.0, 1.0, 2.0, 13.0]))
        >>> dict(zip(found.coalitions, found.values.tolist()))
        {(0,): 6.0, (1,): 7.0, (0, 1): 10.0}

    Source: Grabisch and Roubens 1999, doi:10.1007/s001820050125; Sundararajan, Dhamdhere and Agarwal 2020, arXiv:1902.05622.
    """
    n = _players(table)
    if not 1 <= order <= n:
        raise ValueError(f"order must lie in 1 ... {n}, got {order}.")
    if index not in ("sii", "stii", "banzhaf"):
        raise ValueError(f'index must be "sii", "stii" or "banzhaf", got {index!r}.')
    a = mobius(table).cpu()
    sizes = torch.zeros(1, dtype=torch.long, device="cpu")
    for _ in range(n):
        sizes = torch.cat([sizes, sizes + 1])
    sets, found = [], []
    for s in range(1, order + 1):
        here = list(itertools.combinations(range(n), s))
        places = torch.tensor([sum(1 << i for i in S) for S in here], device="cpu")
        sets += here
        if index == "stii" and s < order:
            found.append(a[places])
            continue
        by_size = torch.tensor([_weight(index, t, s) if t >= s else 0.0 for t in range(n + 1)], dtype=a.dtype, device="cpu")
        above = a * by_size[sizes]
        for i in range(n):
            halves = above.view(-1, 2, 2**i)
            halves[:, 0] += halves[:, 1]
        found.append(above[places])
    return Interactions(tuple(sets), torch.cat(found), n, order, index)
