"""What a valuation returns: one number a player with its standard error."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from theorylab.core.estimate import LEVEL

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Values:
    """Values of n players.

    Attributes:
        values: (n,), float64.
        stderr: Their standard errors, (n,); zeros where the values are exact.
        samples: Independent samples behind the errors; 1 for exact values.
        evaluations: Coalitions whose worth was asked for.
        method: How they were found, and of which game: ``"shapley, exact"``.
    """

    values: Tensor
    stderr: Tensor
    samples: int
    evaluations: int
    method: str

    @property
    def exact(self) -> bool:
        """Whether no error is left: nothing was sampled, or every sample said the same."""
        return not bool(self.stderr.any())

    def __len__(self) -> int:
        return len(self.values)

    def interval(self, level: float = LEVEL, *, simultaneous: bool = False) -> tuple[Tensor, Tensor]:
        """Ends of Student's interval of each player, (n,) each.

        Args:
            level: Two-sided confidence, in (0, 1), of each interval.
            simultaneous: Whether ``level`` is that all n intervals hold at once (Bonferroni), as a ranking needs.

        Raises:
            ValueError: ``level`` out of range.
        """
        if not 0 < level < 1:
            raise ValueError(f"level must lie in (0, 1), got {level}.")
        if self.exact:
            return self.values, self.values
        from scipy.special import stdtrit

        tail = (1 - level) / (2 * len(self) if simultaneous else 2)
        half = float(stdtrit(max(self.samples - 1, 1), 1 - tail)) * self.stderr
        return self.values - half, self.values + half

    def ranking(self, *, descending: bool = True) -> Tensor:
        """Players by value, (n,), equal ones by their number. A ranking says nothing where the intervals overlap: look at these first."""
        return torch.sort(self.values, descending=descending, stable=True).indices

    def named(self, method: str) -> Values:
        """The same with another description."""
        return replace(self, method=method)

    def plot(self, ax: Axes | None = None, *, names: list[str] | None = None, most: int = 20) -> Axes:
        """Bars with 99 % intervals of the players of largest absolute value."""
        from theorylab.instruments.value_plots import bars

        return bars(self, ax, names=names, most=most)

    def waterfall(self, base: float, ax: Axes | None = None, *, names: list[str] | None = None, most: int = 12) -> Axes:
        """How the values lead from the worth of nobody, ``base``, to that of all."""
        from theorylab.instruments.value_plots import waterfall

        return waterfall(self.values, base, ax, names=names, most=most)


def scores_of(values: Values | Tensor) -> Tensor:
    """One finite number a player, (n,) on the CPU, of values or of a plain tensor.

    Raises:
        TypeError: neither.
        ValueError: no vector, an empty one, or numbers that are not finite.
    """
    scores = values.values if isinstance(values, Values) else values
    if not isinstance(scores, Tensor):
        raise TypeError(f"values must be Values or a tensor, got {type(scores).__name__}.")
    if scores.ndim != 1 or len(scores) == 0:
        raise ValueError(f"values must be a vector (n,) of one number a player, got shape {tuple(scores.shape)}.")
    if not scores.isfinite().all():
        raise ValueError(f"values must be finite, got {float(scores[~scores.isfinite()][0])}.")
    return scores.detach().cpu()
