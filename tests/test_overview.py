"""The overview of all claims: where a finding is drawn must say on which side of its region it lies."""

from __future__ import annotations

import math
import re

import pytest
import report_records

from theorylab.core.claim import AtLeast, AtMost, Equals, Finding, Orders, Relation, Scales, Verdict, Within
from theorylab.report.ledger import rows_of
from theorylab.report.overview import overview, percent
from theorylab.report.page import render
from theorylab.report.standing import margin, standing

RELATIONS = [Equals(rtol=0.1), Equals(atol=1e-12), Equals(), Within(0.9, 1.2), Within(1.2, 1.5), AtMost(), AtLeast(rtol=0.01)]
NUMBERS = [-3.0, -1.0, -1e-13, 0.0, 1e-13, 0.2, 0.9, 1.0, 1.0 + 5e-13, 1.1, 1.3, 7.0, 1e12]


def finding(relation: Relation, predicted: float, measured: float) -> Finding:
    low, high = relation.region(predicted)
    verdict = Verdict.HOLDS if low <= measured <= high else Verdict.FAILS
    return Finding("a/b/c", "claim", "", predicted, measured, measured, measured, (low, high), 1, 0.99, verdict)


@pytest.mark.parametrize("relation", [*RELATIONS, Orders(), Orders(0.4), Scales(-0.5, 0.1)], ids=str)
@pytest.mark.parametrize("predicted", [1.0, 0.0, -1.0])
def test_what_holds_lies_in_the_band_and_what_fails_lies_outside(relation: Relation, predicted: float) -> None:
    if isinstance(relation, Orders | Scales):
        predicted = relation.gap if isinstance(relation, Orders) else relation.exponent
    for measured in NUMBERS:
        shown = finding(relation, predicted, measured)
        low, high = shown.region
        z = standing(shown)[1]
        left = -math.inf if math.isinf(low) else -1.0
        right = math.inf if math.isinf(high) else 1.0
        rounding = 1e-9
        if shown.verdict is Verdict.HOLDS:
            assert left - rounding <= z <= right + rounding, (measured, z)
        else:
            assert z <= left + rounding or z >= right - rounding, (measured, z)


@pytest.mark.parametrize(
    ("relation", "worst_first"),
    [
        (Equals(rtol=0.1), [0.5, 1.2, 1.11, 1.09, 0.95, 1.0]),  # beyond the border, across none, then within
        (AtMost(), [3.0, 1.1, 0.99, 0.2, -3.0]),
        (AtLeast(), [-3.0, 0.9, 1.1, 3.0]),
    ],
    ids=str,
)
def test_the_margin_orders_by_the_border(relation: Relation, worst_first: list[float]) -> None:
    margins = [margin(finding(relation, 1.0, v)) for v in worst_first]
    assert margins == sorted(margins)
    assert [m >= 0 for m in margins] == [finding(relation, 1.0, v).verdict is Verdict.HOLDS for v in worst_first]


def test_a_wide_interval_counts_by_its_end() -> None:
    low, high = Equals(rtol=0.5).region(1.0)
    wide = Finding("a/b/c", "claim", "", 1.0, 1.0, 0.6, 1.1, (low, high), 8, 0.99, Verdict.HOLDS)
    assert margin(wide) == pytest.approx(0.2)


def test_the_scale_is_monotone_and_ends_at_the_edges() -> None:
    at = [percent(z) for z in (-math.inf, -1e13, -10.0, -1.0, -0.5, 0.0, 0.5, 1.0, 10.0, 1e13, math.inf)]
    assert at == sorted(at)
    assert (at[0], at[-1]) == (0.0, 100.0)


def test_every_claim_has_one_line_and_a_link() -> None:
    records = report_records.records()
    rows = [r for record in records for r in rows_of(record)]
    lines = [line for blocks in overview(rows).values() for block in blocks for line in block.lines]
    assert sorted(line.row.key for line in lines) == sorted(r.key for r in rows)
    section = re.search(r'<section id="overview".*?</section>', render(records, report_records.SYLLABUS), re.DOTALL)
    assert section
    for row in rows:
        assert section[0].count(f'href="#{row.key}"') == 1


def test_the_text_of_a_topic_opens_it() -> None:
    records = report_records.records()
    hostile = f"A line {report_records.HOSTILE}\n\n*Setting.* Here :math:`x < 1`."
    page = render(records, report_records.SYLLABUS, topics={"optimization": hostile, "no_such_topic": "unused"})
    assert "<em>Setting.</em> Here <math" in page
    assert "<script>alert" not in page
    assert "unused" not in page
