"""The instruments agree with their peers, where these are installed (the ``bench`` extra); times are measured by the benchmarks alone."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from benchmarks.parity import MODULES, Comparison, comparisons, measured
from benchmarks.parity.__main__ import table

ROWS = 24


@pytest.mark.filterwarnings("ignore")  # those of the peers
@pytest.mark.parametrize("c", comparisons(ROWS), ids=lambda c: f"{c.instrument}, {c.setting}: {c.peer}")
def test_agrees(c: Comparison) -> None:
    if c.missing:
        pytest.skip(f"{c.peer} is not installed")
    assert c.deviation() <= c.tolerance


def test_every_peer_has_a_comparison() -> None:
    assert {c.peer for c in comparisons(ROWS)} == set(MODULES)


def fake(value: float, **options) -> Comparison:
    numbers = torch.tensor([4.0, 2.0], dtype=torch.float64)
    wrong = numbers * torch.tensor([1.0, 1.0 + value], dtype=torch.float64)
    return Comparison("fake", "two numbers", "torch", lambda dtype: (lambda: wrong.to(dtype), lambda: numbers.to(dtype)), **options)


def test_a_difference_is_relative_to_the_largest_number_and_errors_to_those_of_the_peer() -> None:
    assert fake(0.1).deviation() == pytest.approx(0.05)
    assert fake(1.0, errors=True).deviation() == pytest.approx((32 / 20) ** 0.5)


def test_a_missing_or_failing_peer_is_a_row_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(dtype: torch.dtype):
        raise RuntimeError("no such layer")

    found = [
        fake(1e-12, goal=1e9),
        fake(0.1),
        dataclasses.replace(fake(0.0), prepare=broken),
        dataclasses.replace(fake(0.0), peer="nngeometry"),
    ]
    monkeypatch.setitem(MODULES, "nngeometry", "a_module_that_is_not_there")
    monkeypatch.setattr("benchmarks.parity.products.rows", lambda n: found)
    records = list(measured(ROWS, 1, ["products"]))
    assert [r.get("agrees") for r in records] == [None, True, False, False]
    text = table(records, {"threads": "1"})
    assert "not installed: pip install" in text
    assert "raised RuntimeError: no such layer" in text
    assert "**does not agree**" in text
    assert "| ≤ 1e+09 | yes |" in text
