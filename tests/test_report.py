"""The report without a browser: rows, axes, formulas, figures and tables from records, and a page that is well-formed and escapes."""

from __future__ import annotations

import csv
import dataclasses
import html.parser
import json
import re
import urllib.parse
from pathlib import Path
from typing import get_args
from xml.etree import ElementTree

import numpy as np
import pytest
import report_records

from theorylab.core.claim import Equals, Finding, Kind, Orders, Verdict
from theorylab.core.estimate import LEVEL
from theorylab.core.record import Record, load, save
from theorylab.core.scale import Scale
from theorylab.core.series import Line, Series
from theorylab.core.study import find_studies
from theorylab.report import ledger, write
from theorylab.report.axis import choose, distance_axis
from theorylab.report.figures import draw, log_ticks, styles
from theorylab.report.interval_plot import plot
from theorylab.report.mathml import mathml, paragraphs, typeset
from theorylab.report.numbers import number
from theorylab.report.page import render
from theorylab.report.tables import as_csv, data_link, table
from theorylab.report.thinning import POINTS, thin

VOID = {"meta", "link", "input", "br", "hr", "img"}


class Parsed(html.parser.HTMLParser):
    """Tags closed in the order in which they were opened, ids, links, and the text outside scripts and styles."""

    def __init__(self, page: str):
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.faults: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        if len(attributes) != len(attrs):
            self.faults.append(f"attribute twice in <{tag}> at {self.getpos()}")
        self.elements.append((tag, attributes))
        if "id" in attributes:
            self.ids.append(attributes["id"] or "")
        self.links += [value for name, value in attrs if name in ("href", "src", "xlink:href") and value]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}> closes another element at {self.getpos()}")

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.words.append(data)


@pytest.fixture(scope="module")
def records() -> list[Record]:
    return report_records.records()


@pytest.fixture(scope="module")
def out(records: list[Record], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "made" / "on demand"
    assert write(records, report_records.SYLLABUS, folder) == folder / "report.html"
    return folder


@pytest.fixture(scope="module")
def page(out: Path) -> Parsed:
    return Parsed((out / "report.html").read_text(encoding="utf-8"))


# The page


def test_page_is_well_formed_with_unique_ids(page: Parsed):
    assert page.faults == []
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))


def test_every_claim_and_figure_is_drawn(page: Parsed):
    assert "cannot be drawn" not in " ".join(page.words)


def test_every_claim_has_an_anchor_and_every_inner_link_a_target(page: Parsed, records: list[Record]):
    keys = {c["key"] for r in records for c in r.claims}
    assert keys <= set(page.ids)
    targets = {urllib.parse.unquote(link[1:]) for link in page.links if link.startswith("#")}
    assert keys <= targets
    assert targets <= set(page.ids)


def test_page_says_what_verdicts_and_kinds_mean(out: Path):
    words = re.search(r'<dl class="texts words">.*?</dl>', (out / "report.html").read_text(encoding="utf-8"), re.DOTALL)
    assert words
    explained = set(re.findall(r"<em>([^<]+)</em>", words[0]))
    assert {str(v) for v in Verdict} | set(get_args(Kind)) <= explained
    assert f"{100 * LEVEL:g} % confidence" in words[0]
    assert {str(s) for s in Scale} <= explained
    assert 'id="seed"' in words[0]


def test_range_of_samples_is_told_from_an_interval_of_a_mean(out: Path):
    text = (out / "report.html").read_text(encoding="utf-8")
    shown = dict(re.findall(r'<article class="claim-card" id="([^"]+)"(.*?)</article>', text, re.DOTALL))
    for key, marked in (("optimization/worst_case/hedge", True), ("optimization/edge_of_stability/gd", False)):
        row = re.search(rf'<a href="#{key}">.*?</tr>', text[text.index('<tbody id="ledger-rows">') :], re.DOTALL)
        assert row
        for part in (shown[key], row[0]):
            within = re.findall(r'<span class="n within">([^<]+)</span>', part)
            assert within
            assert all(w.startswith("range [" if marked else "[") for w in within)


@pytest.mark.parametrize("width", [1e-9, 1e-3])
def test_interval_whose_ends_read_alike_is_not_shown(width: float):
    claim = report_records.claim("a/b/c", "One.", "1", "statistical", Equals(rtol=0.1), "two")
    around = [10 - width, 10.0, 10 + width]
    checks = [claim.check(predicted=10.0, measured=around), claim.control_check(predicted=10.0, measured=[90.0, 90.0])]
    text = render([report_records.record("a/b", "Title", "", [claim], checks, [])], report_records.SYLLABUS)
    shown = re.findall(r'<span class="n">(10[.0]*)</span>(?: <span class="n within">([^<]+)</span>)?<small>([^<]*)<', text)
    assert shown == ([("10", "", "mean of 3")] if width < 1e-6 else [("10.000", "[9.994, 10.006]", "mean of 3, 99 % interval")])


def test_page_needs_no_network(page: Parsed, out: Path):
    loaded = [
        e for e in page.elements if e[0] in ("img", "iframe", "video", "audio", "object", "embed") or (e[0] == "script" and "src" in e[1])
    ]
    assert loaded == []
    assert [a["href"] for tag, a in page.elements if tag == "link"] == ["data:,"]
    outside = [link for link in page.links if re.match(r"[a-z]+:", link) and not link.startswith("data:")]
    assert outside  # the sources
    assert all(link.startswith(("https://arxiv.org/", "https://doi.org/")) for link in outside)
    text = (out / "report.html").read_text(encoding="utf-8")
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)


def test_hostile_strings_are_shown_and_not_run(page: Parsed):
    assert sum(tag == "script" for tag, _ in page.elements) == 1
    assert not any(tag == "b" for tag, _ in page.elements)
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    words = " ".join(page.words)
    assert words.count(report_records.HOSTILE) >= 10  # title, text, statement, source, control, reading, setting, note, labels


def test_links_of_a_tampered_record_are_not_followed(records: list[Record]):
    record = dataclasses.replace(records[0], claims=[dict(c) for c in records[0].claims])
    record.claims[0]["source"] = record.claims[0]["source"] | {"url": "javascript:alert(1)"}
    assert "javascript:" not in render([record], report_records.SYLLABUS)


def test_failed_study_shows_its_traceback_and_leaves_the_others_alone(page: Parsed, records: list[Record]):
    words = " ".join(" ".join(page.words).split())
    assert "Stopped with an error" in words
    assert 'raise ValueError("<lr> & co")' in words
    rows = {r.key: r for record in records for r in ledger.rows_of(record)}
    assert rows["normalization/equilibrium/time"].state == "error"
    assert rows["normalization/equilibrium/rate"].state == "error"  # what held before the study broke off is not the whole claim
    assert rows["optimization/saddle/escape_time"].state == "holds"


@pytest.mark.parametrize(("controls", "said"), [("holds", "So in 1 of its 3 settings."), ("fails", None)])
def test_a_control_that_holds_among_others_that_fail_is_shown(records: list[Record], controls: str, said: str | None):
    record = next(r for r in records if r.study == "optimization/edge_of_stability")
    (control,) = [f for f in record.findings if f.role == "control" and f.claim.endswith("/gd")]
    more = [dataclasses.replace(control, verdict=Verdict(v), setting=f"batch {k}") for k, v in enumerate((controls, "fails"))]
    changed = dataclasses.replace(record, findings=[*record.findings, *more])
    row = ledger.rows_of(changed)[0]
    assert row.control == controls
    parsed = Parsed(render([changed], report_records.SYLLABUS))
    words = " ".join(" ".join(parsed.words).split())
    assert ("of its 3 settings" in words) == (said is not None)
    assert said is None or said in words


def test_same_records_give_the_same_page(records: list[Record], out: Path):
    assert render(records, report_records.SYLLABUS) == (out / "report.html").read_text(encoding="utf-8")


def test_stored_records_give_the_same_page(records: list[Record], out: Path, tmp_path: Path):
    again = [load(save(record, tmp_path)) for record in records]
    assert render(again, report_records.SYLLABUS) == (out / "report.html").read_text(encoding="utf-8")


def test_page_of_nothing_still_shows_the_course():
    parsed = Parsed(render([], report_records.SYLLABUS))
    assert parsed.faults == []
    words = " ".join(parsed.words)
    assert "Optimization theory" in words
    assert words.count("no study yet") == 7
    assert Parsed(render([], {})).faults == []


def test_pending_studies_are_listed_as_not_run(records: list[Record]):
    card = find_studies()[0]["optimization/saddle"]
    others = [r for r in records if r.study != card.key]
    parsed = Parsed(render(others, report_records.SYLLABUS, pending=[card]))
    assert parsed.faults == []
    assert "optimization/saddle/escape_time" in parsed.ids
    assert "Not run yet." in " ".join(parsed.words)
    with pytest.raises(ValueError, match="optimization/saddle more than once"):
        write(records, report_records.SYLLABUS, Path("unused"), pending=[card])


def test_forty_claims_with_long_curves_stay_under_five_megabytes(tmp_path: Path):
    claims = [
        report_records.claim(f"optimization/many/claim{i}", "It holds.", "x = 1", "statistical", Equals(atol=1.0), "none")
        for i in range(40)
    ]
    findings = [c.check(predicted=0.0, measured=np.linspace(-0.1, 0.1, 2000)) for c in claims]
    x, rng = np.arange(1, 3001), np.random.default_rng(0)
    series = []
    for c in claims:
        s = Series(c.key.rpartition("/")[2], "Noise", x="step", y="y", claim=c.key)
        for k in range(6):
            y = rng.normal(k, 1, x.size)
            s.line(f"run {k}", x, y, low=y - 1, high=y + 1)
        series.append(s)
    record = report_records.record("optimization/many", "Many", "", claims, findings, series)
    assert write([record], report_records.SYLLABUS, tmp_path).stat().st_size < 5e6


# The ledger


def test_claims_json_is_the_ledger(out: Path, records: list[Record]):
    body = json.loads((out / "claims.json").read_text(encoding="utf-8"))
    rows = {c["key"]: c for c in body["claims"]}
    assert list(rows) == [
        *[k for r in sorted(records, key=lambda r: r.study) if r.study.startswith("optimization") for k in (c["key"] for c in r.claims)],
        *["implicit_bias/balance/drift", "implicit_bias/balance/max_margin", "normalization/equilibrium/rate"],
        *["normalization/equilibrium/time", "private_learning/hostile/strings", "private_learning/hostile/numbers"],
    ]
    hedge = rows["optimization/worst_case/hedge"]
    assert hedge["verdict"] == "holds"
    assert hedge["control_verdict"] == "fails"
    assert hedge["accepted"]
    assert hedge["source"]["locator"] == "Theorem 2.2"
    assert hedge["findings"][0]["region"] == [None, 33.93]
    assert hedge["record"] == next(r for r in records if r.study == hedge["study"]).provenance.key
    assert not rows["implicit_bias/balance/max_margin"]["accepted"]  # it holds, and so does its control
    assert body["tally"]["holds"] == sum(c["verdict"] == "holds" for c in rows.values())


def test_state_of_a_claim_is_its_worst_setting(records: list[Record]):
    (gd, _) = ledger.rows_of(records[0])
    assert gd.state == "inconclusive"
    assert gd.telling is not None
    assert gd.telling.setting == "η = 0.125"


@pytest.mark.parametrize(("measured", "told"), [((1.0, 1.09, 1.05), 1.09), ((1.0, 1.2, 1.5), 1.5), ((1.0, 1.0), 1.0)])
def test_a_row_tells_the_setting_nearest_to_its_border_or_farthest_beyond(measured: tuple[float, ...], told: float):
    claim = report_records.claim("a/b/c", "One.", "1", "asymptotic", Equals(rtol=0.1), "two")
    checks = [claim.check(predicted=1.0, measured=m, setting=f"setting {i}") for i, m in enumerate(measured)]
    record = report_records.record("a/b", "Title", "", [claim], [*checks, claim.control_check(predicted=1.0, measured=9.0)], [])
    (row,) = ledger.rows_of(record)
    assert row.telling is checks[measured.index(told)]
    assert dataclasses.replace(row, findings=()).telling is None


def test_outline_gathers_lectures_and_puts_unscheduled_topics_last():
    stops = ledger.outline(report_records.SYLLABUS, ["optimization", "knitting"])
    assert stops[0].when == "3, 8 Sep"
    assert stops[0].title == "Optimization theory"
    assert stops[-1].topics == ("private_learning", "knitting")
    assert ledger.topic_order(stops)[-1] == "knitting"


# Interval plots


def finding(low: float, high: float, region: tuple[float, float], predicted: float = 1.0, role: str = "claim", **other: object) -> Finding:
    values: dict[str, object] = {
        "claim": "a/b/c", "role": role, "setting": "", "predicted": predicted, "measured": (low + high) / 2, "low": low, "high": high,
        "region": region, "n": 8, "level": 0.99, "verdict": Verdict.HOLDS,
    }  # fmt: skip
    return Finding(**values | other)  # pyright: ignore[reportArgumentType]


def positions(svg: str, cls: str, attribute: str = "x1") -> list[float]:
    return [float(m) for tag in re.findall(rf'<[^>]*class="{cls}"[^>]*>', svg) for m in re.findall(rf'{attribute}="([\d.]+)%"', tag)]


@pytest.mark.parametrize(
    ("row", "inside"),
    [(finding(0.98, 1.02, (0.9, 1.1)), True), (finding(1.2, 1.3, (0.9, 1.1)), False), (finding(0.2, 0.5, (-np.inf, 1.0)), True)],
)
def test_interval_is_drawn_inside_its_region_exactly_if_it_lies_inside(row: Finding, inside: bool):
    svg = str(plot([row], "statistical").strips[0].svg)
    (left,), (width,) = positions(svg, "region", "x"), positions(svg, "region", "width")
    ends = positions(svg, "interval")
    assert len(ends) == 3
    assert (left <= min(ends) and max(ends) <= left + width) == inside
    ElementTree.fromstring(svg)


def test_open_region_reaches_the_edge():
    svg = str(plot([finding(2, 3, (1.0, np.inf))], "statistical").strips[0].svg)
    (left,), (width,) = positions(svg, "region", "x"), positions(svg, "region", "width")
    assert left > 0
    assert left + width == pytest.approx(100)


def test_control_far_away_is_named_at_the_edge_and_the_claim_stays_legible():
    near, far = finding(20.4, 20.5, (20.3, 20.7), 20.5), finding(4836.0, 4836.0, (20.3, 20.7), 20.5, "control")
    drawn = plot([far, near], "asymptotic")
    assert [s.finding.role for s in drawn.strips] == ["claim", "control"]
    assert positions(str(drawn.strips[0].svg), "region", "width")[0] > 10
    assert "4836 ▸" in str(drawn.strips[1].svg)


def test_identity_is_drawn_by_its_distance_on_a_logarithmic_axis():
    exact, near = finding(1, 1, (1 - 1e-12, 1 + 1e-12)), finding(1 + 4e-16, 1 + 4e-16, (1 - 1e-12, 1 + 1e-12))
    far = finding(1.3, 1.3, (1 - 1e-12, 1 + 1e-12), 1.0, "control")
    drawn = plot([exact, near, far], "identity")
    assert drawn.distance
    at = [positions(str(s.svg), "measured", "cx")[0] for s in drawn.strips]
    edge = positions(str(drawn.strips[0].svg), "border")[0]
    assert at[0] < at[1] < edge < at[2]
    assert ">0</text>" in str(drawn.axis)


def test_settings_with_predictions_of_their_own_are_drawn_relative_to_them():
    drawn = plot([finding(1.9, 2.1, (1.8, 2.2), 2.0), finding(190, 210, (180, 220), 200.0)], "statistical")
    assert drawn.label == "measured / predicted"
    first, second = (positions(str(s.svg), "measured", "cx") for s in drawn.strips)
    assert first == pytest.approx(second, abs=0.01)


def test_orders_of_nothing_but_rounding_do_not_stretch_the_axis():
    claim = report_records.claim("a/b/c", "s", "x", "statistical", Orders(), "none")
    drawn = plot([claim.check(measured=[6.0, 7.0, 6.5]), claim.control_check(measured=[1e-9, -1e-9, 0.0])], "statistical")
    assert drawn.label == "measured"
    assert positions(str(drawn.strips[0].svg), "predicted")[0] == pytest.approx(
        positions(str(drawn.strips[1].svg), "measured", "cx")[0], abs=0.1
    )


@pytest.mark.parametrize(
    ("rows", "rest", "scale"),
    [
        ([[0.9, 1.1]], [1.5], "linear"),
        ([[0.0]], [0.0], "linear"),
        ([[1e-6, 1.0]], [30.0], "log"),
        ([[-1.0, 1.0], [-1e-4, 1e-4]], [5.0], "symlog"),
        ([[5.0]], [5.0], "linear"),
        ([[5.0]], [5e6], "log"),
        ([[-1e300, 1e300]], [], "linear"),
    ],
)
def test_axis_is_monotone_and_shows_the_claim(rows: list[list[float]], rest: list[float], scale: str):
    axis = choose(rows, rest)
    assert axis.scale == scale
    core = sorted(v for row in rows for v in row)
    at = [axis(v) for v in core]
    assert at == sorted(at)
    assert at[0] >= 0
    assert at[-1] <= 100
    ticks = axis.ticks()
    assert 1 <= len(ticks) <= 12
    assert all(-1e-6 <= x <= 100 + 1e-6 for x, _ in ticks)
    assert len({label for _, label in ticks}) == len(ticks)


EDGE_OF_FLOAT64 = {
    "an identity missed by all": ("identity", Equals(rtol=1e-12), 1.0, [1e308]),
    "both ends": ("asymptotic", Equals(rtol=0.1), 1e-300, [1e300]),
    "both signs": ("identity", Equals(rtol=1e-12), -0.5e308, [1.2e308]),
}


@pytest.mark.parametrize("name", EDGE_OF_FLOAT64)
def test_numbers_that_no_axis_holds_are_told_without_a_picture(name: str):
    kind, relation, predicted, measured = EDGE_OF_FLOAT64[name]
    claim = report_records.claim("a/b/c", "s", "x", kind, relation, "none")
    near, far = claim.check(predicted=predicted, measured=predicted), claim.check(predicted=predicted, measured=measured)
    drawn = plot([near, far], kind)
    assert drawn.label == f"cannot be drawn: no axis holds these numbers, which reach {number(measured[0])}"
    assert [(s.finding, s.svg) for s in drawn.strips] == [(near, ""), (far, "")]
    made = report_records.record("a/b", "Title", "", [claim], [near, far], [])
    page = Parsed(render([made, *report_records.records()], report_records.SYLLABUS))
    assert not page.faults
    words = " ".join(" ".join(page.words).split())
    assert words.count("cannot be drawn") == 1  # and every other claim is
    assert number(predicted) in words


@pytest.mark.parametrize("y", [[-1.7e308, 1.7e308], [1e308, 1.2e308]])
def test_a_figure_that_cannot_be_drawn_says_why_and_keeps_its_numbers(y: list[float], tmp_path: Path):
    series = Series("edge", "At the edge of float64", x="step", y="y").line("a", [0, 1], y)
    made = report_records.record("a/b", "Title", "", [], [], [series])
    write([made, report_records.bias()], report_records.SYLLABUS, tmp_path)
    page = Parsed((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert not page.faults
    words = " ".join(" ".join(page.words).split())
    assert re.search(r"This figure cannot be drawn \(\w+: .+\)\. Its numbers are in the table and in the CSV\.", words)
    assert number(y[1], 6) in words
    with (tmp_path / "csv" / "a-b-edge.csv").open() as file:
        assert [float(row["y"]) for row in csv.DictReader(file)] == y


def test_distance_axis_of_exact_agreement_alone():
    axis = distance_axis([0.0, 0.0])
    assert 0 <= axis(0.0) <= 100


# Formulas and text


@pytest.mark.parametrize(
    "latex",
    [
        r"T(\delta) = \frac{\ln(1/\delta)}{\ln(1 + \eta\,|\lambda|)}",
        r"\bigl\|W^\top W - \bigl\langle a, b\bigr\rangle\bigr\|_F \le \varepsilon",
        r"\arg\min_{w}\,\|w\|_2 \quad\text{s.t. } y_i w^\top x_i \ge 1",
        r"\operatorname*{arg\,min}_w \tr A + \mathrm{d}x",
        r"\begin{cases} a & x>0\\ b & x\le 0\end{cases}",
    ],
)
def test_formulas_become_mathml_in_full(latex: str):
    root = ElementTree.fromstring(str(mathml(latex)))
    assert root.tag == "math"
    assert root.attrib["aria-label"] == latex
    assert not any("\\" in (node.text or "") or "&" in (node.text or "") or "*" in (node.text or "") for node in root.iter())


@pytest.mark.parametrize(
    ("latex", "spaces"),
    [
        (r"\ln 0.2", 1),
        (r"-\ln\sigma", 1),
        (r"2\log_2 n", 2),
        (r"x^{\ln 2}", 1),
        (r"\tfrac12\cos^2\theta", 2),
        (r"\ln\ln n", 2),
        (r"\ln(x)", 0),
        (r"\exp\left(-x\right)", 0),
        (r"\ln\|x\|", 0),
        (r"\ln\,x", 1),
        (r"a b", 0),
    ],
)
def test_functions_stand_apart_from_letters_and_close_to_brackets(latex: str, spaces: int):
    root = ElementTree.fromstring(str(mathml(latex)))
    assert sum(node.tag == "mspace" for node in root.iter()) == spaces


def test_every_formula_of_the_installed_studies_becomes_mathml():
    for card in find_studies()[0].values():
        for claim in card.claims:
            assert str(mathml(claim.formula)).startswith("<math"), f"{claim.key}: {claim.formula} is not understood by the converter"


@pytest.mark.parametrize("latex", [r"\unknown{x}", r"\frac{a", "}{", ""])
def test_formula_not_understood_is_shown_as_its_source_or_whole(latex: str):
    shown = str(mathml(latex))
    assert shown.startswith("<code") or (shown.startswith("<math") and "\\" not in re.sub(r'aria-label="[^"]*"', "", shown))
    assert mathml(r"\unknown <b>") == '<code class="latex">\\unknown &lt;b&gt;</code>'


def test_formula_escapes_its_text():
    assert "<script>" not in mathml(r"\text{<script>alert(1)</script>} a < b")
    assert "<b>" not in paragraphs("a <b> ``<b>`` *<b>*\n\n- <b>\n\n    <b>")


# Figures and tables


def test_thinning_keeps_ends_and_spikes():
    x = np.arange(1, 100_001, dtype=float)
    y = np.zeros(x.size)
    y[77_777] = 9.0
    for log in (False, True):
        kept = thin(Line("a", x, y, low=y - 1, high=y + 1), log=log)
        assert kept.x.size <= POINTS
        assert (kept.x[0], kept.x[-1], kept.y.max()) == (1.0, 100_000.0, 9.0)
        assert kept.low is not None
        assert kept.low.size == kept.x.size
    circle = np.linspace(0, 2 * np.pi, 10_000)
    assert thin(Line("circle", np.cos(circle), np.sin(circle))).x.size <= POINTS


def test_figure_uses_the_pages_colours_and_its_own_ids():
    series = Series("s", "t", x="x", y="y").line("a", [1, 2], [1, 2]).line("b", [1, 2], [2, 2], role="predicted")
    first, second = str(draw(series, "one").svg), str(draw(series, "two").svg)
    assert not re.search(r"#[0-9a-f]{6}", first)
    assert "var(--c1)" in first
    ids = [set(re.findall(r' id="([^"]+)"', svg)) for svg in (first, second)]
    assert ids[0]
    assert not ids[0] & ids[1]
    ElementTree.fromstring(first)
    with pytest.raises(ValueError, match="no line"):
        draw(Series("empty", "t", x="x", y="y"), "three")


def test_figure_shows_labels_as_they_are():
    label = '$x$ href="#a" url(#b) #010101 font: 1px'
    svg = str(draw(Series("s", "t", x=label, y="y").line("a", [1, 2], [1, 2]), "p").svg)
    assert label in [node.text for node in ElementTree.fromstring(svg).iter("text")]


def test_legend_says_what_a_band_is_and_a_stored_record_keeps_it(records: list[Record], out: Path, tmp_path: Path):
    text = (out / "report.html").read_text(encoding="utf-8")
    assert "<small>band: range of replicas</small>" in text
    stored = [load(save(r, tmp_path)) for r in records]
    bands = [[line.band for s in r.series for line in s.lines] for r in records]
    assert bands == [[line.band for s in r.series for line in s.lines] for r in stored]


def test_roles_differ_by_more_than_colour():
    series = Series("s", "t", x="x", y="y")
    for role in ("measured", "measured", "predicted", "control"):
        series.line(role, [1], [1], role=role)
    look = [(s.dash, s.marker, s.filled) for s in styles(series.lines)]
    assert len(set(look)) == 4


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("2θ_n² + 10x_i", "2θ<sub>n</sub>² + 10x<sub>i</sub>"),
        ("‖A‖_F²", "‖A‖<sub>F</sub>²"),
        ("error 4.8e-14, δ = 1e-05", "error 4.8×10⁻¹⁴, δ = 10⁻⁵"),
        ("conv2d_x, a1b_c, snake_case, 1e5x", "conv2d_x, a1b_c, snake_case, 1e5x"),
    ],
)
def test_words_are_typeset(text: str, shown: str):
    assert str(typeset(text)) == shown


def test_many_curves_look_different():
    for mark in ("line", "points"):
        series = Series("s", "t", x="x", y="y")
        for k in range(18):
            series.line(str(k), [1], [1], mark=mark)
        assert len(set(styles(series.lines))) == 18


def test_points_off_a_logarithmic_axis_are_counted():
    series = Series("s", "t", x="x", y="y", x_scale="log", y_scale="log").line("a", [0, 1, 2, 3], [1, 0, 1, 2])
    assert draw(series, "p").remark.startswith("2 points")
    assert draw(Series("s", "t", x="x", y="y", y_scale="log").line("a", [1, 2], [0, -1]), "p").remark == ""  # then the axis is linear


@pytest.mark.parametrize("low", [1.0, 1.1, 2.1, 4.9, 0.03])
@pytest.mark.parametrize("width", [1.3, 2, 5, 9, 13, 60, 99, 101, 900, 1e5, 1e30])
def test_a_logarithmic_axis_has_ticks_to_read_it_by(low: float, width: float) -> None:
    ticks = log_ticks(low, low * width)
    assert 3 <= len(ticks) <= 9
    assert ticks == sorted(set(ticks))
    assert all(low <= t <= low * width * (1 + 1e-9) for t in ticks)
    series = Series("s", "t", x="x", y="y", x_scale="log", y_scale="log").line("a", [low, low * width], [low, low * width])
    shown = re.findall(r'<text [^>]*class="te">([^<]+)</text>', str(draw(series, "p").svg))
    assert len(set(shown)) == len(shown) >= 3


def test_what_is_counted_has_no_ticks_between_the_counts() -> None:
    def labels(y: list[float]) -> list[str]:
        svg = str(draw(Series("s", "t", x="x", y="y").line("a", [0.1] * len(y), y), "p").svg)
        return re.findall(r'<text [^>]*class="te">([^<]+)</text>', svg)  # right-aligned: those of the vertical axis

    assert labels([0, 1, 2, 3]) == ["0", "1", "2", "3"]
    assert labels([0, 1.2, 3]) == ["0", "1", "2", "3"]
    assert labels([0, 1, 1.9]) == ["0", "0.5", "1", "1.5"]


def test_csv_beside_the_page_holds_every_number(out: Path, records: list[Record]):
    record = next(r for r in records if r.study == "optimization/saddle")
    (series,) = record.series
    with (out / "csv" / "optimization-saddle-escape.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for line in series.lines:
        mine = [r for r in rows if r["curve"] == line.label]
        np.testing.assert_array_equal([float(r["x"]) for r in mine], line.x)
        np.testing.assert_array_equal([float(r["y"]) for r in mine], line.y)
    assert all(path.parent == out / "csv" for path in out.rglob("*.csv"))  # no series key leads out of the folder


def test_csv_inside_the_page_is_whole_or_says_that_it_is_not():
    short = Series("s", "t", x="x", y="y").line("a, b", [1.5, 2], [1e-300, -2])
    link, whole = data_link(short)
    assert whole
    assert urllib.parse.unquote(link.partition(",")[2]) == as_csv(short.lines)
    long = Series("s", "t", x="x", y="y").line("a", range(10_000), range(10_000))
    link, whole = data_link(long)
    assert not whole
    rows = urllib.parse.unquote(link.partition(",")[2]).splitlines()
    assert rows[1].startswith("a,measured,0,")
    assert rows[-1].startswith("a,measured,9999,")


def test_csv_of_a_formula_is_text():
    assert as_csv([Line("=1+1", np.array([1.0]), np.array([1.0]))]).splitlines()[1].startswith("'=1+1,")


def test_table_has_a_column_a_curve_where_x_is_shared():
    shared = Series("s", "t", x="x", y="y").line("a", [1, 2], [3, 4]).line("b", [1, 2], [5, 6])
    assert table(shared).head == ("x", "a", "b")
    assert table(shared).rows == (("1", "3", "5"), ("2", "4", "6"))
    apart = shared.line("c", [9], [9])
    assert table(apart).head == ("curve", "x", "y")
    assert table(apart).total == 5
