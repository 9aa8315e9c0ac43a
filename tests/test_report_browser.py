"""The report in a real browser: silent from disk, filtered, sorted, narrow and wide, legible in light and dark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import report_records
from chromium import BEYOND, CLIPPED, CONTRASTS, browser, needs_chromium, open_page, playwright

from theorylab.report import write

__all__ = ["browser", "open_page"]  # fixtures

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(report_records.records(), report_records.SYLLABUS, tmp_path_factory.mktemp("report")).as_uri()


def visible_keys(page: Any) -> list[str]:
    return page.eval_on_selector_all("#ledger-rows tr:not([hidden]) .claim a", "links => links.map((a) => a.getAttribute('href').slice(1))")


def test_loads_in_silence(open_page: Any):
    page = open_page()
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    page.wait_for_load_state("networkidle")
    assert page.heard == []


def test_every_claim_has_its_anchor_and_every_link_a_target(open_page: Any):
    page = open_page()
    targets = page.eval_on_selector_all("a[href^='#']", "links => links.map((a) => a.hash.slice(1))")
    lost = page.evaluate("(targets) => targets.filter((id) => !document.getElementById(id))", targets)
    assert lost == []
    declared = {c["key"] for r in report_records.records() for c in r.claims}
    assert set(visible_keys(page)) == declared
    page.click("#ledger-rows a[href='#optimization/saddle/escape_time']")
    assert page.url.endswith("#optimization/saddle/escape_time")
    playwright.expect(page.locator("[id='optimization/saddle/escape_time'] h4")).to_be_in_viewport()


def test_link_to_folded_source_unfolds_it(open_page: Any):
    page = open_page(hash="#source:optimization/saddle")
    assert page.evaluate("document.getElementById('source:optimization/saddle').open")
    assert page.is_visible("text=def escape_steps")


def test_filter_by_text_verdict_and_topic(open_page: Any):
    page = open_page()
    total = len(visible_keys(page))
    page.fill("#filter-text", "REGRET hedge")
    assert visible_keys(page) == ["optimization/worst_case/hedge"]
    assert page.inner_text("#ledger-shown") == f"1 of {total} claims"
    page.fill("#filter-text", "no such words")
    assert visible_keys(page) == []
    assert page.is_visible("#ledger-none")
    page.click("#filter-form button[type=reset]")
    playwright.expect(page.locator("#ledger-shown")).to_have_text(f"{total} claims")
    page.select_option("#filter-verdict", "fails")
    assert visible_keys(page) == ["implicit_bias/balance/drift"]
    page.select_option("#filter-verdict", "powerless")
    assert "implicit_bias/balance/max_margin" in visible_keys(page)
    page.select_option("#filter-verdict", "")
    page.select_option("#filter-topic", "normalization")
    assert visible_keys(page) == ["normalization/equilibrium/rate", "normalization/equilibrium/time"]
    assert page.heard == []


def test_sort_by_number_and_text_both_ways(open_page: Any):
    page = open_page()
    course = visible_keys(page)

    def column(name: str) -> list[str]:
        head = page.locator(f"#ledger-table th:has-text('{name}')")
        head.locator("button").click()
        index = head.evaluate("(th) => th.cellIndex")
        return page.eval_on_selector_all("#ledger-rows tr", f"rows => rows.map((row) => row.cells[{index}].dataset.sort)")

    up = column("Measured")
    numbers = [float(v) for v in up if v]
    assert numbers == sorted(numbers)
    assert "" in up
    assert up[-1] == ""  # what was not measured comes last
    down = column("Measured")
    assert [float(v) for v in down if v] == numbers[::-1]
    assert down[-1] == ""
    assert page.get_attribute("#ledger-table th:has-text('Measured')", "aria-sort") == "descending"
    studies = column("Study")
    assert studies == sorted(studies)
    column("No.")
    assert visible_keys(page) == course


@pytest.mark.parametrize("width", [390, 768, 1440])
def test_no_sideways_scroll(open_page: Any, width: int):
    page = open_page(width)
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    beyond = page.evaluate(BEYOND, width)
    assert beyond == []


@pytest.mark.parametrize("width", [390, 1440])
def test_figures_clip_no_label(open_page: Any, width: int):
    page = open_page(width)
    clipped = page.evaluate(CLIPPED)
    assert clipped == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_legible(open_page: Any, scheme: str):
    page = open_page(scheme=scheme)
    found = page.evaluate(CONTRASTS)
    assert len(found) > 300
    assert any(in_figure for _, in_figure, _ in found)
    assert [f for f in found if f[0] < 4.5] == []
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    dark = sum(map(int, background.removeprefix("rgb(").removesuffix(")").split(","))) < 3 * 128
    assert dark == (scheme == "dark")


def test_theme_can_be_chosen_against_the_system(open_page: Any):
    page = open_page(scheme="dark")
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.click("#theme")
    assert page.get_attribute("html", "data-theme") == "light"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before
    page.click("#theme")
    page.click("#theme")
    assert page.get_attribute("html", "data-theme") is None
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == before


def test_formulas_are_mathml_set_by_the_browser(open_page: Any):
    page = open_page()
    assert page.locator("article math").count() >= 8
    fraction = page.locator("mfrac").first
    height, line = fraction.evaluate("(e) => [e.getBoundingClientRect().height, parseFloat(getComputedStyle(e).fontSize)]")
    assert height > 1.5 * line  # a fraction is stacked


def test_reads_without_scripts(open_page: Any):
    page = open_page(script=False)
    for key in ("optimization/saddle/escape_time", "implicit_bias/balance/drift"):
        assert page.is_visible(f"[id='{key}']")
        assert page.is_visible(f"#ledger-rows a[href='#{key}']")
    assert page.locator("svg.curves").first.is_visible()
    assert page.locator("math").first.is_visible()
    assert not page.is_visible("#filter-form")  # controls that need the script are not shown
    assert not page.is_visible("#theme")
    page.click("details.ran summary >> nth=0")
    assert page.is_visible("text=peak memory")


def test_ledger_can_be_used_by_keyboard(open_page: Any):
    page = open_page()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the ledger of claims"
    page.focus("#ledger-table th:nth-child(2) button")
    page.keyboard.press("Enter")
    assert page.get_attribute("#ledger-table th:nth-child(2)", "aria-sort") == "ascending"


def test_only_what_scrolls_is_a_stop_of_the_keyboard(open_page: Any):
    for width in (390, 1440):
        page = open_page(width)
        page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
        page.wait_for_timeout(100)  # a fold tells of its opening in a task of its own
        wrong = """() => [...document.querySelectorAll(".scroll, .formula")]
          .filter((e) => e.hasAttribute("tabindex") !== e.scrollWidth > e.clientWidth).map((e) => e.textContent.slice(0, 40))"""
        assert page.evaluate(wrong) == []
    page.set_viewport_size({"width": 390, "height": 900})
    page.wait_for_timeout(100)
    assert page.evaluate(wrong) == []
    assert page.locator("[tabindex='0']").count() > 0


def test_tables_are_unfolded_for_print_and_folded_after_it(open_page: Any):
    page = open_page()
    unfolded = "document.querySelectorAll('.series details[open]').length"
    tables = page.locator(".series details").count()
    assert (page.evaluate(unfolded), tables > 0) == (0, True)
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate(unfolded) == tables
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate(unfolded) == 0


def test_csv_downloads_from_within_the_page(open_page: Any, tmp_path: Path):
    page = open_page()
    with page.expect_download() as download:
        page.click("a[download='optimization-saddle-escape.csv']")
    download.value.save_as(tmp_path / "saddle.csv")
    assert (tmp_path / "saddle.csv").read_text().startswith("curve,role,x,y,low,high\nstrict saddle,measured,")
