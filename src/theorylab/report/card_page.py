"""How does a report card become a page, or a fragment of a notebook? By views of its entries; either is whole in itself."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from theorylab.core.card import Card, Entry, as_json
from theorylab.core.reading import Reading
from theorylab.report.card_table import family_name, summary, value_of
from theorylab.report.numbers import count, number
from theorylab.report.shell import Detail, FigureView, asset, assets, environment, figure_view, slug

STYLES = ("colours.css", "report.css", "card.css")


@dataclass(frozen=True)
class ReadingView:
    """A reading as a page shows it."""

    reading: Reading
    value: str
    spread: str


@dataclass(frozen=True)
class EntryView:
    """An instrument as a page shows it."""

    entry: Entry
    anchor: str
    readings: tuple[ReadingView, ...]
    figures: tuple[FigureView, ...]


def _reading(reading: Reading) -> ReadingView:
    return ReadingView(reading, value_of(reading), _spread(reading))


def _spread(reading: Reading) -> str:
    """The interval's half-width relative to the value, or "" where there is none to speak of."""
    if reading.interval is None or reading.value == 0 or reading.interval[0] == reading.interval[1]:
        return ""
    share = (reading.interval[1] - reading.interval[0]) / 2 / abs(reading.value)
    return f"± {number(100 * share, 2)} %" if share < 1 else ""


def _view(entry: Entry, key: str) -> EntryView:
    # the key of the card makes the ids of its pictures its own, where a notebook shows several
    figures = tuple(
        figure_view(s, f"{slug(entry.instrument)}-{slug(s.key)}-{key}.csv", Detail(rows=10_000)) for s in entry.figures if s.lines
    )
    return EntryView(entry, f"{entry.family}/{entry.instrument}", tuple(map(_reading, entry.readings)), figures)


def _context(card: Card) -> dict[str, Any]:
    key = card.provenance.key[:6]
    states = [e.state for e in card.entries]
    numbers = [r for e in card.entries for r in e.readings]
    bounds = sum(r.label == "bound" for r in numbers)
    tally = [
        (bounds, "bound"),
        (len(numbers) - bounds, "measure"),
        (states.count("inapplicable"), "not applicable"),
        (states.count("failed"), "failed"),
    ]
    packed = base64.b64encode(json.dumps(as_json(card), ensure_ascii=False, allow_nan=False).encode()).decode()
    return {
        "card": card,
        "families": {f: [_view(e, key) for e in entries] for f, entries in card.families.items()},
        "summary": summary(card),
        "tally": [(n, word + ("s" if n != 1 and word in ("measure", "bound") else "")) for n, word in tally if n],
        "config": {k: _setting(v) for k, v in card.provenance.config.items() if v is not None},
        "json_link": Markup("data:application/json;base64," + packed),
        "json_name": f"{slug(card.title)}.json",
        "family": family_name,
    }


def _setting(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return (
        count(value)
        if isinstance(value, int) and not isinstance(value, bool)
        else number(value)
        if isinstance(value, float)
        else str(value)
    )


def render(card: Card) -> str:
    """The page as text; the same card gives the same page."""
    return environment().get_template("card.html").render(**_context(card), **assets(STYLES, ("page.js",)))


def fragment(card: Card) -> str:
    """The card for a notebook: its styles reach nothing but itself, and it follows the notebook's light or dark."""
    colours, *rest = map(asset, STYLES)
    # nested, so that no rule reaches out of the card; the colours come first, on the card instead of on the whole document
    css = f"{colours.replace(':root', '.theorylab-card')}\n.theorylab-card {{ {' '.join(rest)} }}\n{asset('notebook.css')}"
    return environment().get_template("card_fragment.html").render(**_context(card), css=Markup(css))
