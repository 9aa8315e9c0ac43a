"""A report card in a real browser: silent from disk and in a notebook, narrow and wide, legible in light and dark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from chromium import BEYOND, CLIPPED, CONTRASTS, browser, needs_chromium, open_page

import theorylab as tl
from theorylab.core.card import Entry
from theorylab.core.notice import Notice
from theorylab.core.reading import Reading
from theorylab.core.record import Provenance
from theorylab.core.series import Series
from theorylab.core.source import Source

__all__ = ["browser", "open_page"]  # fixtures
pytestmark = needs_chromium

PAPER, BOOK = (
    Source("Somebody et al. 2021", "Theorem 3.1 (a long locator, in words)", "arXiv:2103.00065"),
    Source("Nobody 1900", "Section 1", "A book"),
)


def example() -> tl.ReportCard:
    """Everything that can be on a card, with names and numbers of every length."""
    curve = Series("spectrum", "Eigenvalue density of the Hessian", "eigenvalue", "density", y_scale="log")
    curve.line("mean of 4 probes", [0, 1, 2], [1.0, 0.1, 0.01], low=[0.9, 0.05, 0.01], high=[1.1, 0.2, 0.02])
    numbers = (
        Reading("trace", 12345.678, "measure", (12000.0, 12700.0), note="XTrace, 40 products"),
        Reading("smallest eigenvalue of a matrix with a very long name indeed", -1.2345e-12, "measure", (-3.2e-12, -1.1e-12)),
        Reading("plain", 3.0, "measure"),
    )
    bound = Reading(
        "error of the stochastic classifier", 0.1234, "bound", delta=0.05, assumptions=("rows are independent", "loss in [0, 1]")
    )
    entries = (
        Entry("hessian", "curvature", "measured", PAPER, numbers, (curve,), seconds=1.25, matvecs=12345, seed=0),
        Entry("certify", "bounds", "measured", BOOK, (bound,), seconds=75.0, seed=3),
        Entry("ggn", "curvature", "inapplicable", PAPER, why="the loss has the form loss(model, batch), which hides the outputs."),
        Entry(
            "a_rather_long_name_of_an_instrument",
            "curvature",
            "failed",
            BOOK,
            why="RuntimeError: " + "x" * 120,
            traceback="Traceback\n" + "y" * 200,
        ),
    )
    entries += tuple(Entry(f"tool_{k}", f"family_{k}", "measured", BOOK, numbers[2:]) for k in range(7))  # more than a narrow bar holds
    config = {
        "model": "TransformerForSequenceClassification",
        "parameters": 1234567,
        "loss": "cross_entropy",
        "mean loss": 0.01234,
        "rows": 50000,
    }
    config |= {"batches": 3, "mode": "evaluation", "dtype": "float32", "device": "cuda:0", "instruments": ["hessian", "ggn"], "seed": 0}
    notices = (
        Notice("BatchNorm runs in training mode", "its output of one row depends on the others", "use train=False", "warning"),
        Notice("inputs are not standardized", "the first layer sees values up to 255", "scale them as in training", "info"),
    )
    provenance = Provenance("my_model.py:a_function_with_a_long_name", config, "0" * 16, {"torch": "2.13.0"})
    return tl.ReportCard(provenance, entries, notices, "2026-01-02T03:04:05+00:00", 76.3, 2**30, {"system": "Linux"}, ("audit",))


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    return example().to_html(tmp_path_factory.mktemp("card") / "card.html").as_uri()


def test_loads_in_silence_and_every_link_has_a_target(open_page: Any):
    page = open_page()
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    page.wait_for_load_state("networkidle")
    assert page.heard == []
    lost = page.evaluate(
        "[...document.querySelectorAll(\"a[href^='#']\")].map((a) => a.hash.slice(1)).filter((id) => !document.getElementById(id))"
    )
    assert lost == []


@pytest.mark.parametrize("width", [390, 768, 1440])
def test_no_sideways_scroll_and_no_label_clipped(open_page: Any, width: int):
    page = open_page(width)
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(BEYOND, width) == []
    assert page.evaluate(CLIPPED) == []


@pytest.mark.parametrize("width", [390, 1440])
def test_value_and_interval_stay_beside_their_reading(open_page: Any, width: int):
    page = open_page(width)
    boxes = page.eval_on_selector_all(
        ".readings tbody tr",
        "rows => rows.map((row) => ['th', '.value', '.spread'].map((part) => row.querySelector(part).getBoundingClientRect().toJSON()))",
    )
    assert len(boxes) == 4 + 7
    for name, value, spread in boxes:
        assert name["right"] <= value["left"] + 1
        assert value["right"] <= spread["left"] + 1 or value["bottom"] <= spread["top"] + 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_legible(open_page: Any, scheme: str):
    page = open_page(scheme=scheme)
    found = page.evaluate(CONTRASTS)
    assert len(found) > 60
    assert any(in_figure for _, in_figure, _ in found)
    assert [f for f in found if f[0] < 4.5] == []


def test_theme_can_be_chosen_and_json_downloaded(open_page: Any, tmp_path: Path):
    page = open_page(scheme="dark")
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.click("#theme")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before
    with page.expect_download() as download:
        page.click("footer a")
    download.value.save_as(tmp_path / "card.json")
    assert tl.ReportCard.from_json((tmp_path / "card.json").read_text(encoding="utf-8")).to_json() == example().to_json()


def test_reads_without_scripts(open_page: Any):
    page = open_page(script=False)
    assert page.is_visible("[id='curvature/hessian'] .readings")
    assert page.locator("svg.curves").first.is_visible()
    assert not page.is_visible("#theme")
    page.click("details.ran summary >> nth=0")
    assert page.is_visible("text=peak memory")


@pytest.mark.parametrize("dark", [False, True])
def test_in_a_notebook_it_follows_the_notebook_and_leaves_the_rest_alone(browser: Any, tmp_path: Path, dark: bool):
    theme = "false" if dark else "true"
    outside = '<p id="outside" style="font: 12px monospace">outside</p>'
    text = f'<!DOCTYPE html><body data-jp-theme-light="{theme}" style="background: {"#111" if dark else "#fff"}">{outside}{{}}</body>'
    (tmp_path / "plain.html").write_text(text.replace("{}", ""), encoding="utf-8")
    (tmp_path / "card.html").write_text(text.replace("{}", example()._repr_html_()), encoding="utf-8")
    page = browser.new_page(viewport={"width": 1000, "height": 800}, color_scheme="light")
    heard: list[str] = []
    page.on("console", lambda message: heard.append(message.text))
    style = """() => { const style = getComputedStyle(document.querySelector("#outside"));
      return ["color", "margin", "font", "lineHeight", "boxSizing"].map((k) => style[k]); }"""
    looks = []
    for name in ("plain.html", "card.html"):
        page.goto((tmp_path / name).as_uri())
        looks.append(page.evaluate(style))
    assert looks[0] == looks[1]
    assert heard == []
    found = [f for f in page.evaluate(CONTRASTS) if f[2] != "outside"]
    assert len(found) > 40
    assert [f for f in found if f[0] < 4.5] == []
    paper = page.evaluate("getComputedStyle(document.querySelector('.theorylab-card')).backgroundColor")
    assert (sum(map(int, paper.removeprefix("rgb(").removesuffix(")").split(","))) < 3 * 128) == dark
    assert page.evaluate("document.documentElement.scrollWidth") <= 1000
    page.close()
