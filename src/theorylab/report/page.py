"""How do records become one page? Views of the records for the templates, then three kinds of file: HTML, JSON, CSV."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from theorylab.core.files import write_atomically
from theorylab.core.record import Record, source_digest
from theorylab.core.study import StudyCard
from theorylab.report import ledger
from theorylab.report.interval_plot import Plot, plot
from theorylab.report.ledger import Row
from theorylab.report.mathml import mathml, paragraphs
from theorylab.report.overview import overview
from theorylab.report.shell import Detail, FigureView, assets, environment, figure_view, slug
from theorylab.report.tables import EMBEDDED, as_csv
from theorylab.report.thinning import POINTS

DRAWN = 36_000
"""Points that all curves of a page may have together, a band counting twice; with more, each curve is drawn with fewer."""

ROWS = 5_000
"""Rows of CSV that a page may hold; the files beside it always hold all."""


@dataclass(frozen=True)
class ClaimView:
    """A claim as the page shows it."""

    row: Row
    formula: Markup
    plot: Plot | None
    figures: tuple[FigureView, ...]


@dataclass(frozen=True)
class StudyView:
    """A study as the page shows it; without a record where it was not run."""

    key: str
    title: str
    text: Markup
    module: str
    path: str
    claims: tuple[ClaimView, ...]
    figures: tuple[FigureView, ...]
    record: Record | None
    source: str
    source_changed: bool

    @property
    def topic(self) -> str:
        """First part of the key."""
        return self.key.partition("/")[0]


def csv_names(record: Record) -> list[str]:
    """A file name for each series of a record: safe, and no two alike.

    Two series whose keys differ in punctuation alone get a number.
    """
    names: list[str] = []
    for series in record.series:
        stem = f"{slug(record.study)}-{slug(series.key)}"
        names.append(stem if stem not in names else f"{stem}-{len(names) + 1}")
    return [f"{name}.csv" for name in names]


_DOCSTRING = re.compile(r'\A[rR]?""".*?"""', re.DOTALL)


def _source(record: Record) -> tuple[str, bool]:
    """The study's source text as it is now, and whether it (or what it imports) differs from what ran; "" where it cannot be read."""
    try:
        spec = importlib.util.find_spec(record.module)
        if spec is None or not spec.origin:
            return "", False
        text = Path(spec.origin).read_text(encoding="utf-8")
        shown = _DOCSTRING.sub('"""(the text above)"""', text, count=1)  # once on a page is enough
        return shown, source_digest(record.module) != record.provenance.source
    except Exception:  # finding a module imports its packages, and an import of someone else's may raise anything
        return "", False


def _body(text: str) -> Markup:
    return paragraphs(text.strip().partition("\n")[2])  # the first line is the title


def detail_of(records: Sequence[Record]) -> Detail:
    """The detail at which the figures of all records fit on one page."""
    series = [s for r in records for s in r.series]
    wanted = sum(min(line.x.size, POINTS) * (1 if line.low is None else 3) for s in series for line in s.lines)
    return Detail(max(30, min(POINTS, POINTS * DRAWN // max(1, wanted))), max(30, min(EMBEDDED, ROWS // max(1, len(series)))))


def _figures(record: Record, detail: Detail) -> list[FigureView]:
    views = []
    for series, name in zip(record.series, csv_names(record), strict=True):
        if not series.lines:
            continue
        views.append(figure_view(series, name, detail))
    return views


def _claim_view(row: Row, figures: Sequence[FigureView] = ()) -> ClaimView:
    drawn = plot(row.findings, row.claim["kind"]) if row.findings else None
    return ClaimView(row, mathml(row.claim["formula"]), drawn, tuple(f for f in figures if f.series.claim == row.key))


def study_view(record: Record, detail: Detail) -> StudyView:
    """What the page shows of a record."""
    figures = _figures(record, detail)
    rows = ledger.rows_of(record)
    source, changed = _source(record)
    keys = {r.key for r in rows}
    return StudyView(
        record.study,
        record.title,
        _body(record.text),
        record.module,
        record.path,
        tuple(_claim_view(r, figures) for r in rows),
        tuple(f for f in figures if f.series.claim not in keys),
        record,
        source,
        changed,
    )


def pending_view(card: StudyCard) -> StudyView:
    """What the page shows of a study that was not run."""
    claims = tuple(_claim_view(r) for r in ledger.pending_rows(card))
    return StudyView(card.key, card.title, _body(card.text), card.module, "", claims, (), None, "", False)


def _machine(record: Record) -> str:
    known = {"system": "{}", "processor": "{}", "python": "Python {}", "cores": "{} cores"}
    return ", ".join(known.get(k, k + " {}").format(v) for k, v in record.machine.items())


def _versions(record: Record) -> str:
    return ", ".join(f"{k} {v}" for k, v in record.provenance.versions.items())


def _distinct(texts: Iterable[str]) -> list[str]:
    return [text for text in dict.fromkeys(texts) if text]


def render(
    records: Sequence[Record],
    syllabus: Mapping[str, Any],
    *,
    pending: Sequence[StudyCard] = (),
    topics: Mapping[str, str] | None = None,
) -> str:
    """The page as text; see `write`."""
    detail = detail_of(records)
    views = [*(study_view(r, detail) for r in records), *map(pending_view, pending)]
    stops = ledger.outline(syllabus, (v.topic for v in views))
    order = ledger.topic_order(stops)
    views.sort(key=lambda v: (order.index(v.topic), v.key))
    rows = [c.row for v in views for c in v.claims]
    return (
        environment()
        .get_template("page.html")
        .render(
            course={"title": "theorylab", "about": ""} | syllabus.get("course", {}),
            stops=stops,
            order=order,
            views=views,
            by_topic={t: [v for v in views if v.topic == t] for t in order},
            prose={t: (text.partition("\n")[0], _body(text)) for t, text in (topics or {}).items()},
            rows=rows,
            glance=overview(rows),
            tally=ledger.tally(rows),
            date=max((r.started for r in records), default="")[:10],
            scales=sorted({r.scale for r in records}),
            seconds=sum(r.seconds for r in records),
            machines=_distinct(map(_machine, records)),
            versions=_distinct(map(_versions, records)),
            errors=[v for v in views if v.record and v.record.error],
            **assets(("colours.css", "report.css"), ("page.js", "ledger.js")),
        )
    )


def write(
    records: Sequence[Record],
    syllabus: Mapping[str, Any],
    out: Path,
    *,
    pending: Sequence[StudyCard] = (),
    topics: Mapping[str, str] | None = None,
) -> Path:
    """Write the report of a run: ``report.html``, ``claims.json`` and ``csv/<study>-<series>.csv``.

    The page is whole in itself: no network, no other file, and readable without scripts.

    Args:
        records: One for each study, finished or failed.
        syllabus: Parsed ``syllabus.toml``; its lectures give the order. Studies of topics in no lecture come under "Beyond the schedule".
        out: Folder, made where it does not exist.
        pending: Studies that were not run, shown as such.
        topics: Topic → the text that opens it: a line that says what it is about, then paragraphs. See `theorylab.core.topic`.

    Returns:
        The path of the page.

    Raises:
        ValueError: two records, or a record and a pending card, of one study.
        OSError: ``out`` cannot be written.
    """
    keys = [*(r.study for r in records), *(c.key for c in pending)]
    twice = sorted({k for k in keys if keys.count(k) > 1})
    if twice:
        raise ValueError(
            f"records and pending must name each study once, got {', '.join(twice)} more than once: choose one record of each."
        )
    page = render(records, syllabus, pending=pending, topics=topics)
    rows = [row for record in records for row in ledger.rows_of(record)] + [row for card in pending for row in ledger.pending_rows(card)]
    order = ledger.topic_order(ledger.outline(syllabus, (r.topic for r in rows)))
    rows.sort(key=lambda r: (order.index(r.topic), r.study))
    body = {
        "schema": 1,
        "course": syllabus.get("course", {}).get("title", ""),
        "date": max((r.started for r in records), default=""),
        "tally": ledger.tally(rows),
        "claims": ledger.as_json(rows),
    }
    out = Path(out)
    for record in records:
        for series, name in zip(record.series, csv_names(record), strict=True):
            write_atomically(out / "csv" / name, as_csv(series.lines).encode())
    write_atomically(out / "claims.json", json.dumps(body, indent=1, ensure_ascii=False, allow_nan=False).encode())
    write_atomically(out / "report.html", page.encode())
    return out / "report.html"
