"""How is a series of curves drawn? By matplotlib, as an SVG whose colours are the page's own, so that it follows light and dark."""

from __future__ import annotations

import io
import math
import textwrap
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from theorylab.core.series import Line, Series
from theorylab.report.inline_svg import COLOUR, MEASURED, inlined
from theorylab.report.numbers import number, power_of_ten
from theorylab.report.thinning import POINTS, evenly, select, thin

_MARKERS = "os^Dvp"
_DASHES = ((4.5, 2.5), (7, 2, 1.5, 2), (2.5, 1.5), (9, 3), (5, 2, 1, 2, 1, 2))


@dataclass(frozen=True)
class Style:
    """How one curve is drawn; the legend draws the same."""

    colour: str
    dash: tuple[float, ...]
    marker: str
    line: bool
    filled: bool


@dataclass(frozen=True)
class Figure:
    """A drawn series: the picture, and its legend as HTML beside it, where it hides no data and wraps on a narrow screen."""

    svg: Markup
    legend: tuple[tuple[Markup, Line], ...]
    remark: str


def styles(lines: list[Line]) -> list[Style]:
    """Measured curves are solid and coloured, predictions dashed, controls dotted and muted.

    Predictions take the colours of the measured curves where there are as many of both, and the colour of the text otherwise.
    """
    count = {role: sum(line.role == role for line in lines) for role in ("measured", "predicted", "control")}
    paired = count["measured"] == count["predicted"] > 1
    seen = dict.fromkeys(count, 0)
    result = []
    for line in lines:
        k = seen[line.role]
        seen[line.role] += 1
        points = line.mark == "points"
        marker = _MARKERS[(k + k // MEASURED) % len(_MARKERS)]  # when colours begin again, each has another marker
        colour = f"var(--c{k % MEASURED + 1})"
        if line.role == "measured":
            result.append(Style(colour, (), marker if points or count["measured"] > 1 else "", not points, True))
        elif line.role == "predicted":
            result.append(Style(colour if paired else "var(--ink)", _DASHES[k % len(_DASHES)], marker if points else "", not points, False))
        else:
            result.append(Style("var(--control)", (1.2, 1.8 + k), marker if points or k else "", not points, False))
    return result


def _drawable(line: Line, log_x: bool, log_y: bool) -> np.ndarray:
    keep = np.ones(line.x.size, dtype=bool)
    if log_x:
        keep &= line.x > 0
    if log_y:
        keep &= line.y > 0
    return np.flatnonzero(keep)


def _marked(x: np.ndarray, log: bool, marks: int = 8) -> list[int]:
    """Where a line carries its marker: evenly along the axis, so that a noisy curve is not covered by them."""
    along = np.log(x) if log else x
    if x.size <= marks or not np.all(np.diff(along) >= 0):
        return evenly(x.size, marks).tolist()
    return np.unique(np.searchsorted(along, np.linspace(along[0], along[-1], marks)).clip(max=x.size - 1)).tolist()


def log_ticks(low: float, high: float) -> list[float]:
    """Whole decades; 1, 2 and 5 of each where fewer than three lie within; round numbers where even of those fewer do.

    Example:
        >>> log_ticks(0.5, 2e3), log_ticks(3.0, 40.0), log_ticks(2.2, 4.5)
        ([1.0, 10.0, 100.0, 1000.0], [5.0, 10.0, 20.0], [2.5, 3.0, 3.5, 4.0, 4.5])
    """
    from matplotlib.ticker import MaxNLocator

    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    decades = [10.0**e for e in range(first, last + 1, max(1, math.ceil((last - first) / 5)))]
    if len(decades) > 2:
        return decades
    within = [v for e in range(first - 1, last + 1) for m in (1, 2, 5) if low <= (v := float(f"{m}e{e}")) <= high * (1 + 1e-9)]
    if len(within) > 2:
        return within
    return [float(v) for v in MaxNLocator(5, steps=(1, 2, 2.5, 5, 10)).tick_values(low, high) if low <= v <= high * (1 + 1e-9)]


def _ticks(axis: Any, log: bool, counted: bool) -> None:
    from matplotlib import ticker

    def label(value: float, _: int) -> str:
        exponent = np.log10(value) if value > 0 else np.nan
        if log and abs(exponent - round(exponent)) < 1e-6 and not -2 <= round(exponent) <= 3:
            return power_of_ten(round(exponent))
        return number(value, 6)

    if not log:
        axis.set_major_locator(ticker.MaxNLocator(5, steps=(1, 2, 2.5, 5, 10), integer=counted))  # there is no shift by 1.5 pixels
    else:
        axis.set_major_locator(ticker.FixedLocator(log_ticks(*axis.get_view_interval())))
        axis.set_minor_locator(ticker.NullLocator())
    axis.set_major_formatter(ticker.FuncFormatter(label))


def _draw(series: Series, points: int) -> tuple[str, list[Style], str]:
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure as Canvas

    ink, rule, paper = (COLOUR[f"var(--{v})"] for v in ("ink-2", "rule", "paper"))
    usable = {
        axis: scale == "log" and any((getattr(line, axis) > 0).any() for line in series.lines)
        for axis, scale in (("x", series.x_scale), ("y", series.y_scale))
    }
    settings: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": series.key,
        "text.parse_math": False,  # labels are plain text: a dollar sign is a dollar sign
        "font.size": 10,  # room for the largest that the page sets the text in, on a narrow screen
        "axes.unicode_minus": True,
        "path.simplify": False,
    }
    look = styles(series.lines)
    hidden = 0
    with mpl.rc_context(settings):
        figure = Canvas(figsize=(4.7, 3.0), layout="constrained")
        canvas = FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        for line, style in zip(series.lines, look, strict=True):
            index = _drawable(line, usable["x"], usable["y"])
            hidden += line.x.size - index.size
            if not index.size:
                continue
            kept = thin(select(line, index), points, log=usable["x"])
            colour = COLOUR[style.colour]
            if kept.low is not None and kept.high is not None:
                floor = kept.y.min() / 10 if usable["y"] else -np.inf  # a band that reaches below zero ends at the foot of a log axis
                axes.fill_between(kept.x, np.maximum(kept.low, floor), kept.high, color=colour, alpha=0.16, linewidth=0)
            axes.plot(
                kept.x,
                kept.y,
                color=colour,
                linewidth=1.25 if style.line else 0,
                linestyle=(0, style.dash) if style.dash and style.line else "-" if style.line else "none",
                marker=style.marker or "none",
                markersize=4.6,
                markevery=_marked(kept.x, usable["x"]) if style.line else 1,
                markerfacecolor=colour if style.filled else paper,
                markeredgecolor=paper if style.filled and style.line else colour,
                markeredgewidth=0.6 if style.filled else 1.0,
                zorder={"control": 2, "measured": 3, "predicted": 4}[line.role] - (0.5 if style.marker and style.line else 0),
            )
        if usable["x"]:
            axes.set_xscale("log")
        if usable["y"]:
            axes.set_yscale("log")
        for name, axis in (("x", axes.xaxis), ("y", axes.yaxis)):
            values = np.concatenate([getattr(line, name) for line in series.lines])
            counted = bool((values == np.round(values)).all()) and np.ptp(values) >= 2
            _ticks(axis, usable[name], counted)
        axes.set_xlabel(textwrap.fill(series.x, 58), color=ink)
        axes.set_ylabel(textwrap.fill(series.y, 36), color=ink)
        axes.tick_params(which="both", color=rule, labelcolor=ink, length=3)
        axes.grid(color=rule, linewidth=0.6)
        axes.set_axisbelow(True)
        for side, spine in axes.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(rule)
        figure.patch.set_alpha(0)
        axes.patch.set_alpha(0)
        buffer = io.StringIO()
        with warnings.catch_warnings():
            # The page is set in the reader's fonts, so it does not matter which letters matplotlib's own font lacks.
            warnings.filterwarnings("ignore", message="Glyph .* missing from")
            canvas.print_svg(buffer, metadata={"Date": None})
    remark = f"{hidden} point{'s' if hidden > 1 else ''} at or below zero: not on the logarithmic axis." if hidden else ""
    return buffer.getvalue(), look, remark


def swatch(style: Style) -> Markup:
    """The legend's sample of a curve."""
    parts = []
    if style.line:
        dash = f' stroke-dasharray="{" ".join(f"{d * 1.4:g}" for d in style.dash)}"' if style.dash else ""
        parts.append(f'<path d="M0 6H30" fill="none" stroke="{style.colour}" stroke-width="1.8"{dash}/>')
    if style.marker:
        shape = {
            "o": '<circle cx="15" cy="6" r="3.4"',
            "s": '<path d="M11.8 2.8h6.4v6.4h-6.4z"',
            "^": '<path d="M15 2l4 7.4h-8z"',
            "D": '<path d="M15 1.6l4.2 4.4-4.2 4.4-4.2-4.4z"',
            "v": '<path d="M15 10l4-7.4h-8z"',
            "p": '<path d="M15 2l4 3-1.5 4.6h-5L11 5z"',
        }[style.marker]
        parts.append(f'{shape} fill="{style.colour if style.filled else "var(--paper)"}" stroke="{style.colour}" stroke-width="1.2"/>')
    return Markup(f'<svg class="swatch" width="30" height="12" viewBox="0 0 30 12" aria-hidden="true">{"".join(parts)}</svg>')


def draw(series: Series, prefix: str, points: int = POINTS) -> Figure:
    """A series as inline SVG.

    Args:
        series: At least one line.
        prefix: Letters, digits and hyphens; makes the ids inside the picture unique on the page.
        points: Points drawn of each curve.

    Raises:
        ValueError: a series without lines.
    """
    if not series.lines:
        raise ValueError(f"series {series.key!r} has no line to draw.")
    svg, look, remark = _draw(series, points)
    described = ", ".join(f"{line.label} ({line.role})" for line in series.lines)
    box, body = inlined(svg, prefix)
    head = Markup('<svg class="curves" role="img" aria-labelledby="{0}-title {0}-desc" viewBox="{1}"><title id="{0}-title">{2}</title>')
    desc = Markup('<desc id="{}-desc">{} over {}: {}.</desc>')
    opening = head.format(prefix, box, series.title) + desc.format(prefix, series.y, series.x, described)
    drawing = opening + Markup(body) + Markup("</svg>")
    return Figure(drawing, tuple(zip(map(swatch, look), series.lines, strict=True)), remark)
