r"""Nearest neighbours can be valued exactly: a recursion over the order of distance replaces the sum over coalitions.

For a k-nearest-neighbour classifier a row matters to a coalition only if fewer than k of its members are nearer, and two rows next to each
other in distance differ only where exactly the k-th place is at stake. So the difference of their values is a count, and all values follow
from one pass from the farthest row to the nearest. The recursion is checked against the sum over all coalitions, with k below and above the
number of rows. It holds for the worth 1/k for each right neighbour; the worth that divides by the number of neighbours actually found, for
coalitions smaller than k, is another game.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from theorylab.core.claim import Claim, Equals, Finding
from theorylab.core.config import Config, setting
from theorylab.core.series import Series, Stage
from theorylab.core.source import Source
from theorylab.core.study import study
from theorylab.data.digits import digits
from theorylab.instruments.data_values import knn_shapley
from theorylab.instruments.valuation import shapley
from theorylab.theory.games import knn_values

RECURSION = Claim(
    "shapley/knn/recursion",
    "The Shapley values of training rows for a nearest-neighbour classifier follow a recursion over the rows in order of distance.",
    formula=r"s_n = \frac{c_n}{\max(n,k)}, \qquad s_i = s_{i+1} + \frac{c_i - c_{i+1}}{k}\,\frac{\min(k,i)}{i}",
    source=Source("Jia et al. 2019", "the recursion for unweighted KNN classifiers (exact, O(n log n))", "arXiv:1908.08619"),
    kind="identity",
    relation=Equals(atol=1e-12),
    control="the share of right neighbours among min(k, s), for k > 1",
    reading="A value that costs 2^n trainings in general costs one sort here, which is why nearest neighbours on the features of a "
    "network stand in for the network. The values are those of the nearest-neighbour classifier, not of the network, and of this worth "
    "alone.",
)


@dataclass(frozen=True, kw_only=True)
class KnnConfig(Config):
    """Digits; a seed is a draw of training rows and test rows."""

    rows: int = setting(10, "training rows, all of whose coalitions are visited", low=4, high=14)
    test: int = setting(3, "test rows of a draw", low=1)
    shown: int = setting(400, "training rows of the figure", low=50, high=1500)


def neighbours_game(x: Tensor, y: Tensor, x_test: Tensor, y_test: Tensor, k: int, *, found: bool = False):
    """The game by its definition: mean over test rows of the right ones among the k nearest, over k, or over those ``found``."""
    orders = [(x - t).norm(dim=1).argsort(stable=True) for t in x_test]

    def value(masks: Tensor) -> Tensor:
        total = torch.zeros(len(masks), dtype=torch.float64)
        for order, label in zip(orders, y_test, strict=True):
            sorted_masks = masks[:, order]
            chosen = sorted_masks & (sorted_masks.cumsum(1) <= k)
            share = (chosen & (y[order] == label)).sum(1).double()
            total += share / (chosen.sum(1).clamp(min=1) if found else k)
        return total / len(orders)

    return value


@study(
    "shapley/knn",
    claims=[RECURSION],
    tiny=KnnConfig(seeds=2, rows=6, shown=100),
    small=KnnConfig(),
    large=KnnConfig(seeds=32, rows=14, shown=1500),
)
def knn(config: KnnConfig) -> Iterator[Finding | Series | Stage]:
    """Compare the recursion with the sum over coalitions, for the worth it is for and for another."""
    x, y = digits()
    y = y % 2  # two classes, so that few rows hold both
    n, m = config.rows, config.test
    for k in (1, 3, 5, 20):
        yield Stage(f"k = {k}")
        predicted, measured, fast, other = [], [], [], []
        for seed in config.replica_seeds:
            rows = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))[: n + m]
            train, test = rows[:n], rows[n:]
            sample = x[train], y[train], x[test], y[test]
            by_row = np.zeros(n)
            for t, label in zip(x[test], y[test], strict=True):
                order = (x[train] - t).norm(dim=1).argsort(stable=True)
                by_row[order.numpy()] += knn_values((y[train][order] == label).numpy(), k) / m
            predicted.append(by_row)
            measured.append(shapley(neighbours_game(*sample, k), n, method="exact").values.numpy())
            fast.append(knn_shapley(*sample, k=k).values.numpy())
            other.append(shapley(neighbours_game(*sample, k, found=True), n, method="exact").values.numpy())
        gaps = [np.abs(np.array(found) - predicted).max(1) for found in (measured, fast, other)]  # the largest of each draw
        yield RECURSION.check(predicted=0.0, measured=gaps[0], setting=f"k = {k}, largest gap to the sum over coalitions")
        yield RECURSION.check(predicted=0.0, measured=gaps[1], setting=f"k = {k}, largest gap to all rows at once")
        if k > 1:  # with one neighbour the two worths are the same
            yield RECURSION.control_check(predicted=0.0, measured=gaps[2], setting=f"k = {k}, share among those found")

    yield Stage("values by distance")
    train, t = slice(0, config.shown), config.shown
    order = (x[train] - x[t]).norm(dim=1).argsort(stable=True)
    values = knn_shapley(x[train], y[train], x[t : t + 1], y[t : t + 1], k=5).values[order].numpy()
    right = (y[train][order] == y[t]).numpy()
    rank = np.arange(1, config.shown + 1)
    figure = Series("ranks", "Near rows decide, for better and for worse", x="rank by distance", y="value", claim=RECURSION.key)
    figure.x_scale = "log"
    figure.line("right label", rank[right], values[right], mark="points")
    yield figure.line("wrong label", rank[~right], values[~right], role="control", mark="points")
