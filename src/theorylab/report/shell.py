"""What do all pages share? Templates and their filters, styles, scripts, and figures ready to be put in."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from theorylab.core.estimate import LEVEL
from theorylab.core.series import Series
from theorylab.report import ledger, numbers
from theorylab.report.figures import Figure, draw
from theorylab.report.mathml import typeset
from theorylab.report.tables import EMBEDDED, Table, data_link, table
from theorylab.report.thinning import POINTS


@dataclass(frozen=True)
class FigureView:
    """A series as a page shows it."""

    series: Series
    anchor: str
    figure: Figure
    table: Table
    csv_name: str
    csv_link: str
    csv_whole: bool


@dataclass(frozen=True)
class Detail:
    """What a figure may hold: points of a curve, and rows of its CSV."""

    points: int = POINTS
    rows: int = EMBEDDED


def slug(text: str) -> str:
    """A text as a part of an id or of a file's name."""
    return re.sub(r"[^A-Za-z0-9_]+", "-", text).strip("-") or "series"


def figure_view(series: Series, csv_name: str, detail: Detail) -> FigureView:
    """A series with its drawing, its table and its CSV; the name of the latter makes its ids unique.

    One that cannot be drawn has the reason in the drawing's place: it must not cost the page.
    """
    link, whole = data_link(series, detail.rows)
    stem = csv_name.removesuffix(".csv")
    try:
        figure = draw(series, slug(stem), detail.points)
    except Exception as error:  # of matplotlib, which raises anything where its arithmetic overflows
        reason = f"{type(error).__name__}: {error}".strip().splitlines()[0].removesuffix(".")
        figure = Figure(Markup(), (), f"This figure cannot be drawn ({reason}). Its numbers are in the table and in the CSV.")
    return FigureView(series, f"figure:{stem}", figure, table(series), csv_name, link, whole)


@cache
def environment() -> Environment:
    """The templates, with what they may call."""
    made = Environment(
        loader=PackageLoader("theorylab.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    made.globals |= {"STATES": ledger.STATES, "CONTROLS": ledger.CONTROLS, "POWER": ledger.POWER, "LEVEL": LEVEL}
    made.filters |= {
        "number": numbers.number,
        "duration": numbers.duration,
        "size": numbers.size,
        "topic": ledger.topic_name,
        "in_words": numbers.in_words,
        "sentence": numbers.sentence,
        "typeset": typeset,
    }
    made.globals |= {"interval": numbers.interval, "measured_to": numbers.measured}
    return made


@cache
def asset(name: str) -> str:
    """A style sheet or script of ours."""
    return (Path(__file__).parent / "templates" / name).read_text(encoding="utf-8")


def assets(styles: Iterable[str], scripts: Iterable[str]) -> dict[str, Any]:
    """Styles and scripts for ``base.html``, all in the page itself, with the hash that its policy asks for."""
    script = "".join(map(asset, scripts))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return {"css": Markup("".join(map(asset, styles))), "script": Markup(script), "script_hash": digest}  # our own files
