"""Shapley values of a model's features, row by row, with pictures of many rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from theorylab.core.problem import Problem
from theorylab.instruments.feature_games import Law, feature_game
from theorylab.instruments.games import evaluate
from theorylab.instruments.valuation import ShapleyMethod, shapley

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class FeatureValues:
    """Values of the features, or groups of them, of m rows.

    Attributes:
        values: (m, players).
        stderr: Their standard errors, (m, players); zeros where exact.
        base: Mean output over the background, the worth of no feature.
        features: The rows explained, (m, d).
        law: Of the absent features in the game: games of different laws have different values.
    """

    values: Tensor
    stderr: Tensor
    base: float
    features: Tensor
    law: Law

    def beeswarm(self, ax: Axes | None = None, *, names: list[str] | None = None, most: int = 15) -> Axes:
        """One point a row and feature; needs one player a feature."""
        from theorylab.instruments.value_plots import beeswarm

        return beeswarm(self.values, self.features, ax, names=names, most=most)

    def waterfall(self, row: int = 0, ax: Axes | None = None, *, names: list[str] | None = None, most: int = 12) -> Axes:
        """How one row's features lead from the base to its output."""
        from theorylab.instruments.value_plots import waterfall

        return waterfall(self.values[row], self.base, ax, names=names, most=most)


def feature_shapley(
    model: Problem | nn.Module | Callable[[Tensor], Tensor],
    x: Tensor,
    background: Tensor,
    *,
    law: Law = "interventional",
    bandwidth: float = 0.1,
    output: int | None = None,
    groups: Sequence[Sequence[int]] | None = None,
    method: ShapleyMethod = "auto",
    budget: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> FeatureValues:
    r"""Shapley values of the features of each row, in the game of what the model says when some features are drawn from a law.

    They add up to the row's output less the mean output over the background. Exact for at most 16 players, at 2^players · B outputs a row.

    The default game is interventional and asks what the model computes with; the conditional laws ask what a feature tells of the output,
    and share credit among features that come together. With dependent features the answers differ: for a linear model of two standard
    normal features of correlation ρ, weights w and row x, the first feature is worth :math:`w_1 x_1` in the one game and
    :math:`w_1 x_1 + \frac\rho2 (w_2 x_1 - w_1 x_2)` in the other, also where w₁ = 0. See `feature_game`.

    Args:
        model: A `Problem`; a module, asked in evaluation mode; or any function from rows (rows, d) to outputs.
        x: Rows to explain, (m, d) or one (d,).
        background: Rows (B, d) that stand for absence.
        law: Of the absent features: ``"interventional"``, or conditional, ``"gaussian"`` or ``"kernel"``.
        bandwidth: Of ``"kernel"``.
        output: Which of several outputs.
        groups: Players that are several features each.
        method: As for `shapley`.
        budget: Coalitions for each row.
        seed: Of sampled methods; the same coalitions for every row.
        progress: Told how many rows are done, and of how many, after each.

    Raises:
        ValueError: as for `feature_game` and `shapley`.

    Example:
        >>> w = torch.tensor([1.0, 2.0])
        >>> feature_shapley(lambda rows: rows @ w, torch.tensor([[1.0, 1.0], [0.0, 3.0]]), torch.zeros(1, 2)).values.tolist()
        [[1.0, 2.0], [0.0, 6.0]]

    Source: Štrumbelj and Kononenko 2014, doi:10.1007/s10115-013-0679-x; Lundberg and Lee 2017, arXiv:1705.07874; Aas, Jullum and Løland
    2021, arXiv:1903.10464 (dependent features).
    """
    rows = x[None] if x.ndim == 1 else x
    if rows.ndim != 2 or len(rows) == 0:
        raise ValueError(f"x must be rows (m, d), at least one, got shape {tuple(x.shape)}.")
    n = rows.shape[1] if groups is None else len(groups)
    games = [feature_game(model, row, background, law=law, bandwidth=bandwidth, output=output, groups=groups) for row in rows]
    found = []
    for game in games:
        found.append(shapley(game, n, method=method, budget=budget, seed=seed))
        if progress is not None:
            progress(len(found), len(games))
    nobody = evaluate(games[0], torch.zeros(1, n, dtype=torch.bool, device="cpu"))
    return FeatureValues(torch.stack([f.values for f in found]), torch.stack([f.stderr for f in found]), float(nobody), rows, law)
