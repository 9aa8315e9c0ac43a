"""What a cooperative game is here: a function from coalitions, rows of a boolean matrix, to their worths; checked, cached, tabulated."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Worth = Callable[[Tensor], Tensor]
"""``value(masks)``: the worth (P,) of each coalition, a row of ``masks`` (bool, (P, n)) that says which players are in it."""
MOST = 24
"""Players up to which all coalitions are visited."""
BLOCK = 1 << 14
"""Coalitions that a game is asked for at a time."""


def evaluate(value: Worth, masks: Tensor) -> Tensor:
    """Worths (P,) of coalitions (P, n) in float64, asked for in blocks.

    Raises:
        TypeError: the game does not return a tensor.
        ValueError: it returns the wrong shape, or a number that is not finite; names the coalition.
    """
    found = []
    for part in masks.split(BLOCK):
        worth = value(part)
        if not isinstance(worth, Tensor):
            raise TypeError(f"value must return a tensor, got {type(worth).__name__}.")
        if worth.shape != part.shape[:1]:
            raise ValueError(f"value must return one worth a coalition, shape ({len(part)},), got {tuple(worth.shape)}.")
        bad = (~worth.isfinite()).nonzero()[:, 0]
        if len(bad):
            who = part[bad[0]].nonzero()[:, 0].tolist()
            shown = f"of players {who}" if len(who) <= 12 else f"of {len(who)} players, {who[:6]} ... among them,"
            raise ValueError(
                f"value must be finite, got {float(worth[bad[0]])} for the coalition {shown if who else 'of nobody'}"
                f"{' ' if who else ', '}({len(bad)} of {len(part)} are not). Give such coalitions a worth: a game has one for each."
            )
        found.append(worth.detach().to("cpu", torch.float64))
    return torch.cat(found) if found else torch.empty(0, dtype=torch.float64, device="cpu")


def coalitions(n: int) -> Tensor:
    """All coalitions of n players, bool (2^n, n): player i is in row r where bit i of r is set.

    Raises:
        ValueError: n outside 1 ... 24.
    """
    if not 1 <= n <= MOST:
        raise ValueError(f"n must lie in 1 ... {MOST} to visit all 2^n coalitions, got {n}. Sample, or merge players into groups.")
    return (torch.arange(2**n, device="cpu")[:, None] >> torch.arange(n, device="cpu")) & 1 == 1


def table(value: Worth, n: int) -> Tensor:
    """Worths of all coalitions, float64 (2^n,), in the order of `coalitions`.

    Example:
        >>> table(lambda masks: masks.sum(1).double() ** 2, 2).tolist()
        [0.0, 1.0, 1.0, 4.0]
    """
    return evaluate(value, coalitions(n))


def ends(value: Worth, n: int) -> Tensor:
    """Worths of nobody and of all n players, (2,)."""
    return evaluate(value, torch.tensor([False, True], device="cpu")[:, None].expand(2, n))


def from_table(worths: Tensor) -> Worth:
    """The game whose worths are listed, (2^n,), in the order of `coalitions`: the inverse of `table`.

    Raises:
        ValueError: a length that is no power of two.

    Example:
        >>> from_table(torch.tensor([0.0, 1.0, 1.0, 4.0]))(torch.tensor([[True, False], [True, True]])).tolist()
        [1.0, 4.0]
    """
    n = worths.numel().bit_length() - 1
    if worths.ndim != 1 or len(worths) != 2**n:
        raise ValueError(f"worths must list 2^n coalitions, got shape {tuple(worths.shape)}.")
    places = torch.tensor([1 << i for i in range(n)], device="cpu")
    return lambda masks: worths[masks.long() @ places]


class Game:
    """A game that remembers: each coalition is evaluated once, however often and in whatever company it is asked for.

    What is known stays known when a long run is interrupted: keep the game, and call the same valuation again.

    Args:
        value: The game; must give a coalition the same worth whenever asked.
        n: Players.
        block: Coalitions that ``value`` is asked for at a time.
        progress: Told after each block how many of the coalitions asked for are done, and of how many that were not known.

    Attributes:
        evaluations: Coalitions that ``value`` was asked for so far.

    Raises:
        ValueError: ``n`` or ``block`` below 1; of a call, masks of another shape or type.

    Example:
        >>> game = Game(lambda masks: masks.sum(1).double(), 3)
        >>> masks = torch.tensor([[True, False, True], [True, False, True], [True, True, True]])
        >>> game(masks).tolist(), game(masks[:1]).tolist(), game.evaluations
        ([2.0, 2.0, 3.0], [2.0], 2)
    """

    def __init__(self, value: Worth, n: int, *, block: int = BLOCK, progress: Callable[[int, int], None] | None = None):
        if n < 1 or block < 1:
            raise ValueError(f"n and block must be at least 1, got {n} and {block}.")
        self.value, self.n, self.block, self.progress, self.evaluations = value, n, block, progress, 0
        self._known: dict[bytes, float] = {}

    def __call__(self, masks: Tensor) -> Tensor:
        """Worths (P,) of coalitions (P, n), from memory where known."""
        if masks.dtype != torch.bool or masks.ndim != 2 or masks.shape[1] != self.n:
            raise ValueError(f"masks must be bool of shape (P, {self.n}), got {masks.dtype} of shape {tuple(masks.shape)}.")
        rows = masks.cpu().numpy()
        keys = [row.tobytes() for row in rows]
        fresh = {key: k for k, key in enumerate(keys) if key not in self._known}
        done, missing = 0, list(fresh)
        while done < len(missing):
            part = missing[done : done + self.block]
            worths = evaluate(self.value, masks[[fresh[key] for key in part]])
            self._known.update(zip(part, worths.tolist(), strict=True))
            done += len(part)
            self.evaluations += len(part)
            if self.progress is not None:
                self.progress(done, len(missing))
        return torch.tensor([self._known[key] for key in keys], dtype=torch.float64, device="cpu")
