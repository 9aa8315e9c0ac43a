"""Curves of a study: means over replicas, each with its interval, and what their bands are."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from theorylab.core.estimate import Estimate, mean_interval
from theorylab.core.series import Series
from theorylab.stats.fits import growth_factors, growth_rate


def series(y_scale="linear") -> Series:
    return Series("s", "A curve", x="x", y="y", y_scale=y_scale)


def test_means_and_their_intervals_are_those_of_each_row() -> None:
    samples = torch.randn(3, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64).exp()
    (line,) = series().means("m", [1, 2, 3], samples).lines
    for i, row in enumerate(samples):
        assert line.y[i] == pytest.approx(float(row.mean()))
        assert (line.low[i], line.high[i]) == pytest.approx(Estimate.over(row).interval())
    (line,) = series("log").means("g", [1, 2, 3], samples, geometric=True, role="control", mark="line").lines
    for i, row in enumerate(samples):
        assert line.y[i] == pytest.approx(float(row.log().mean().exp()))
        assert (line.low[i], line.high[i]) == pytest.approx(tuple(np.exp(Estimate.over(row.log()).interval())))
    assert (line.role, line.mark) == ("control", "line")


def test_one_replica_that_stands_out_does_not_widen_its_point_alone() -> None:
    row = [1.0, 1.01, 0.99, 1.02, 0.98, 1.0, 1.01, 3.0]
    (line,) = series().means("m", [1], [row]).lines
    assert line.high[0] < max(row) <= mean_interval(row)[1]


def test_a_band_says_what_it_is() -> None:
    lines = series().line("a", [1], [1], low=[0], high=[2]).line("b", [1], [1]).means("c", [1], [[1.0, 2.0]]).lines
    assert [line.band for line in lines] == ["range of replicas", "", "99 % interval"]


def test_an_interval_below_zero_is_cut_on_a_logarithmic_axis_only() -> None:
    wide = [[0.1, 3.0]]
    (cut,) = series("log").means("m", [1], wide).lines
    (whole,) = series().means("m", [1], wide).lines
    assert whole.low[0] < 0 < cut.low[0] == pytest.approx(1.55e-3)
    assert cut.high[0] == whole.high[0]


@pytest.mark.parametrize(
    ("samples", "geometric", "message"),
    [
        ([[1.0]], False, "at least 2 numbers"),
        ([[1.0, -1.0]], True, "samples must be positive for a geometric mean"),
        ([[1.0, 2.0], [1.0, 2.0]], False, "must have one length"),
        ([[1.0, float("nan")]], False, "must be finite"),
    ],
)
def test_bad_samples(samples: list[list[float]], geometric: bool, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        series().means("m", [1], samples, geometric=geometric)


def test_growth_factors_are_one_a_row() -> None:
    rows = torch.rand(5, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.1
    assert growth_factors(rows) == pytest.approx([np.exp(growth_rate(row).value) for row in rows])
    with pytest.raises(ValueError, match="at least three values"):
        growth_factors(rows[:, :2])
