"""What becomes of a game's worth as players leave or join it in the order of their values, beside random orders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from theorylab.core.estimate import Estimate
from theorylab.instruments.games import Game, Worth
from theorylab.instruments.value_sampling import orders
from theorylab.instruments.values import Values, scores_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Order = Literal["highest", "lowest"]


def _area(worths: Tensor, moved: Tensor) -> Tensor:
    """Mean along curves (..., m), by trapezes."""
    return torch.trapezoid(worths, moved.double()) / (moved[-1] - moved[0])


@dataclass(frozen=True)
class ValueCurve:
    """Worths as players leave a game, or join it, one after another.

    Attributes:
        moved: Players removed or added so far, (m,), from 0.
        worths: The worth of those who are in then, (m,).
        order: In which the players move, (n,).
        random: The same in random orders of the players, (baseline, m).
        direction: Whether players are ``"removed"`` or ``"added"``.
    """

    moved: Tensor
    worths: Tensor
    order: Tensor
    random: Tensor
    direction: Literal["removed", "added"]

    @property
    def area(self) -> float:
        """Mean worth along the curve (trapezes): low where the players that leave first, or join last, matter."""
        return float(_area(self.worths, self.moved))

    @property
    def random_areas(self) -> Tensor:
        """The areas of the random orders, (baseline,): their spread is what an order without meaning shows."""
        return _area(self.random, self.moved)

    @property
    def excess(self) -> Estimate:
        """The area less the mean area of random orders, with the standard error of that mean.

        Negative where values are good and the highest are removed, or the lowest added, first; positive in the other two cases.

        Raises:
            ValueError: fewer than two random orders.
        """
        if len(self.random) < 2:
            raise ValueError(f"baseline must be at least 2 random orders to compare with, got {len(self.random)}.")
        return Estimate.over(self.area - self.random_areas)

    def plot(self, ax: Axes | None = None, *, label: str = "by value") -> Axes:
        """Worth over the number of players moved; the mean of random orders is dashed, one standard deviation of them shaded."""
        from theorylab.instruments.value_plots import curve

        return curve(self.moved, self.worths, self.random, self.direction, ax, label=label)


def removal_curve(
    values: Values | Tensor,
    value: Worth,
    *,
    order: Order = "highest",
    most: int | None = None,
    every: int = 1,
    baseline: int = 20,
    seed: int = 0,
) -> ValueCurve:
    """What the worth becomes as players are removed, those of the highest value first or those of the lowest.

    Where values tell who matters, removing the highest first loses more worth than a random order, and removing the lowest first less.

    Args:
        values: Of the players, (n,). Equal values are taken by number.
        value: The game: better not the one that the values are of, but its like on other test rows. Each coalition is asked for once.
        order: Who goes first.
        most: Players to remove, in 1 ... n; n − 1 by default.
        every: Evaluate after every so many removals, and after the last.
        baseline: Random orders to compare with; each costs as many coalitions as the curve. 0 leaves them out.
        seed: Of the random orders.

    Raises:
        ValueError: values that are not finite or no vector, or a number out of range.

    Example:
        >>> curve = removal_curve(torch.tensor([3.0, 1.0, 2.0]), lambda masks: masks.double() @ torch.tensor([3.0, 1.0, 2.0]).double())
        >>> curve.worths.tolist(), curve.excess.value < 0
        ([6.0, 3.0, 1.0], True)

    Source: Ghorbani and Zou 2019, arXiv:1904.02868, Section 4 (removal of data).
    """
    n = len(scores_of(values))
    return _curve(values, value, "removed", order, max(n - 1, 1) if most is None else most, every, baseline, seed)


def addition_curve(
    values: Values | Tensor,
    value: Worth,
    *,
    order: Order = "highest",
    most: int | None = None,
    every: int = 1,
    baseline: int = 20,
    seed: int = 0,
) -> ValueCurve:
    """What the worth becomes as players join an empty coalition, those of the highest value first or those of the lowest.

    Where values tell who matters, adding the highest first gains worth sooner than a random order. The coalitions are those of a removal
    from the other end: adding the highest first passes the same as removing the lowest first, backwards.

    Args:
        values: Of the players, (n,). Equal values are taken by number.
        value: The game, as for `removal_curve`.
        order: Who comes first.
        most: Players to add, in 1 ... n; all by default.
        every: Evaluate after every so many additions, and after the last.
        baseline: Random orders to compare with; each costs as many coalitions as the curve. 0 leaves them out.
        seed: Of the random orders.

    Raises:
        ValueError: values that are not finite or no vector, or a number out of range.

    Example:
        >>> curve = addition_curve(torch.tensor([3.0, 1.0, 2.0]), lambda masks: masks.double() @ torch.tensor([3.0, 1.0, 2.0]).double())
        >>> curve.worths.tolist(), curve.excess.value > 0
        ([0.0, 3.0, 5.0, 6.0], True)

    Source: Ghorbani and Zou 2019, arXiv:1904.02868, Section 4 (acquisition of data).
    """
    n = len(scores_of(values))
    return _curve(values, value, "added", order, n if most is None else most, every, baseline, seed)


def _curve(
    values: Values | Tensor,
    value: Worth,
    direction: Literal["removed", "added"],
    order: Order,
    most: int,
    every: int,
    baseline: int,
    seed: int,
) -> ValueCurve:
    scores = scores_of(values)
    n = len(scores)
    if not 1 <= most <= n or every < 1:
        raise ValueError(f"most must lie in 1 ... {n} and every be at least 1, got {most} and {every}.")
    if baseline < 0:
        raise ValueError(f"baseline must be a number of random orders, 0 or more, got {baseline}.")
    if order not in ("highest", "lowest"):
        raise ValueError(f'order must be "highest" or "lowest", got {order!r}.')
    first = torch.sort(scores, descending=order == "highest", stable=True).indices
    every_order = torch.cat([first[None], orders(n, baseline, torch.Generator().manual_seed(seed))])
    moved = torch.tensor([*range(0, most, every), most], device="cpu")
    has_moved = every_order.argsort(1)[:, None, :] < moved[:, None]  # (1 + baseline, m, n)
    masks = has_moved if direction == "added" else ~has_moved
    worths = Game(value, n)(masks.flatten(0, 1)).view(len(masks), -1)  # a game that remembers: all orders begin with one coalition
    return ValueCurve(moved, worths[0], first, worths[1:], direction)
