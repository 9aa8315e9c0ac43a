"""Kendall's τ within groups, against the sum over pairs written out."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest
from scipy.stats import kendalltau

from theorylab.stats.rank_correlation import granulated_tau, kendall_tau_a


def test_without_ties_it_is_the_usual_tau_and_ties_count_as_no_agreement() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 20))
    assert kendall_tau_a(x, y) == pytest.approx(kendalltau(x, y).statistic, abs=1e-12)
    assert kendall_tau_a([1, 1, 2], [1, 2, 3]) == pytest.approx(2 / 3)
    assert kendall_tau_a(x, np.zeros(20)) == 0
    with pytest.raises(ValueError, match="at least two"):
        kendall_tau_a([1], [1])


def test_granulated_tau_compares_runs_that_differ_in_one_setting_only() -> None:
    rng = np.random.default_rng(1)
    grid = [{"a": a, "b": b, "c": c, "fixed": 0} for a, b, c in product((1, 2, 3), (1, 2), (1, 2, 3, 4))]
    x, y = rng.normal(size=(2, len(grid)))
    expected: dict[str, list[float]] = {"a": [], "b": [], "c": []}
    for i, j in combinations(range(len(grid)), 2):
        differ = [name for name in grid[i] if grid[i][name] != grid[j][name]]
        if len(differ) == 1:
            expected[differ[0]].append(np.sign(x[i] - x[j]) * np.sign(y[i] - y[j]))
    found = granulated_tau(x, y, grid)
    assert found == pytest.approx(
        {name: np.mean(signs) for name, signs in expected.items()}
    )  # groups are of one size, so pairs weigh alike


def test_one_setting_cannot_hide_behind_another() -> None:
    """Width drives both quantities so strongly that τ over all pairs is high; the sign within depth is wrong in every pair."""
    grid = [{"width": w, "depth": d} for w in range(5) for d in range(2)]
    measure = [10 * run["width"] + run["depth"] for run in grid]
    gap = [10 * run["width"] - run["depth"] for run in grid]
    assert kendall_tau_a(measure, gap) > 0.7
    assert granulated_tau(measure, gap, grid) == {"width": 1.0, "depth": -1.0}


def test_a_tie_in_the_gap_says_nothing_and_a_tie_in_the_measure_is_no_agreement() -> None:
    grid = [{"a": a, "b": b} for a in (0, 1) for b in (0, 1)]
    gap = [0.0, 0.0, 1.0, 2.0]
    assert granulated_tau(gap, gap, grid) == {"a": 1.0, "b": 1.0}  # of the two pairs along b, one is tied
    assert granulated_tau([0, 0, 0, 1], gap, grid) == {"a": 0.5, "b": 1.0}
    assert granulated_tau(gap, [3.0] * 4, grid) == {"a": 0.0, "b": 0.0}


def test_what_is_no_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="never changes alone"):
        granulated_tau([1, 2], [1, 2], [{"a": 1, "b": 1}, {"a": 2, "b": 2}])
    with pytest.raises(ValueError, match="same names"):
        granulated_tau([1, 2], [1, 2], [{"a": 1}, {"b": 2}])
    with pytest.raises(ValueError, match="of one length"):
        granulated_tau([1, 2], [1, 2], [{"a": 1}])
