"""How do a series' numbers leave the page? As a table to read and as CSV to compute with."""

from __future__ import annotations

import csv
import io
import urllib.parse
from dataclasses import dataclass

import numpy as np

from theorylab.core.series import Line, Series
from theorylab.report.numbers import number
from theorylab.report.thinning import evenly, select

SHOWN = 16
"""Rows of a table on the page; of more, evenly spaced ones, first and last among them."""

EMBEDDED = 1000
"""Rows of the CSV inside the page; the file beside it always holds all."""


@dataclass(frozen=True)
class Table:
    """A table to read: ``rows`` of text, and how many rows there are in all."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    total: int


def table(series: Series, shown: int = SHOWN) -> Table:
    """One column a curve where all share their x, else one row a point with the curve's name."""
    lines = series.lines
    shared = all(line.x.size == lines[0].x.size and np.array_equal(line.x, lines[0].x) for line in lines)
    if shared:
        index = evenly(lines[0].x.size, shown)
        head = (series.x, *(line.label for line in lines))
        rows = tuple(tuple(number(float(v), 6) for v in (lines[0].x[i], *(line.y[i] for line in lines))) for i in index)
        return Table(head, rows, lines[0].x.size)
    rows = tuple(
        (line.label, number(float(line.x[i]), 6), number(float(line.y[i]), 6))
        for line in lines
        for i in evenly(line.x.size, max(2, shown // len(lines)))
    )
    return Table(("curve", series.x, series.y), rows, sum(line.x.size for line in lines))


def as_csv(lines: list[Line], digits: int = 17) -> str:
    """One row a point: curve, role, x, y, and the ends of its band, empty where it has none.

    Example:
        >>> as_csv([Line("a", np.array([1.0]), np.array([0.5]))]).splitlines()
        ['curve,role,x,y,low,high', 'a,measured,1,0.5,,']
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["curve", "role", "x", "y", "low", "high"])
    for line in lines:
        # A spreadsheet runs a cell that begins like a formula; a leading quote makes it text.
        label = f"'{line.label}" if line.label[:1] in ("=", "+", "@", "\t") else line.label
        columns = [
            [""] * line.x.size if v is None else [f"{x:.{digits}g}" for x in v.tolist()] for v in (line.x, line.y, line.low, line.high)
        ]
        writer.writerows([label, line.role, *cells] for cells in zip(*columns, strict=True))
    return buffer.getvalue()


def data_link(series: Series, rows: int = EMBEDDED) -> tuple[str, bool]:
    """The CSV as a ``data:`` address for a download from within the page, and whether it holds every row."""
    total = sum(line.x.size for line in series.lines)
    most = max(2, rows // len(series.lines))
    lines = series.lines if total <= rows else [select(line, evenly(line.x.size, most)) for line in series.lines]
    return "data:text/csv;charset=utf-8," + urllib.parse.quote(as_csv(lines, 8), safe=",.+-:/()[]|"), lines is series.lines
