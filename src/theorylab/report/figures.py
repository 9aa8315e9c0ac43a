"""How is a series of curves drawn? By matplotlib, as an SVG whose colours are the page's own, so that it follows light and dark."""

from __future__ import annotations

import io
import re
import textwrap
import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from markupsafe import Markup

from theorylab.core.series import Line, Series
from theorylab.report.numbers import number, power_of_ten

POINTS = 500
"""Points of a curve that are drawn; of a longer one, the extremes of equal stretches of its axis, so that no spike is lost."""

MEASURED = 6
"""Colours of measured curves; the page's CSS names them --c1, --c2, ... (Okabe and Ito's, shaded for light and dark)."""

_MARKERS = "os^Dvp"
_DASHES = ((4.5, 2.5), (7, 2, 1.5, 2), (2.5, 1.5), (9, 3), (5, 2, 1, 2, 1, 2))
# Colours that stand in for the page's variables: matplotlib writes them out as they are, and they are replaced in the text.
_STAND_INS = {f"#0101{k:02x}": f"var(--c{k})" for k in range(1, MEASURED + 1)} | {
    "#020201": "var(--ink)",
    "#020202": "var(--ink-2)",
    "#020203": "var(--rule)",
    "#020204": "var(--paper)",
    "#020205": "var(--control)",
}
_COLOUR = {name: key for key, name in _STAND_INS.items()}


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
        marker = _MARKERS[k % len(_MARKERS)]
        colour = f"var(--c{k % MEASURED + 1})"
        if line.role == "measured":
            result.append(Style(colour, (), marker if points or count["measured"] > 1 else "", not points, True))
        elif line.role == "predicted":
            result.append(Style(colour if paired else "var(--ink)", _DASHES[k % len(_DASHES)], marker if points else "", not points, False))
        else:
            result.append(Style("var(--control)", (1.2, 1.8 + k), marker if points or k else "", not points, False))
    return result


def thin(line: Line, points: int = POINTS, *, log: bool = False) -> Line:
    """At most ``points`` points of a curve: the first, last, lowest and highest of equal stretches of its axis.

    Example:
        >>> spike = np.zeros(10_000)
        >>> spike[1234] = 1.0
        >>> kept = thin(Line("spike", np.arange(10_000.0), spike))
        >>> kept.y.max(), kept.y.size <= POINTS
        (np.float64(1.0), True)
    """
    n = line.x.size
    if n <= points:
        return line
    ascending = bool(np.all(np.diff(line.x) >= 0)) and line.x[0] < line.x[-1]
    along = (np.log(line.x) if log and line.x[0] > 0 else line.x) if ascending else np.arange(n, dtype=float)
    stretches = np.minimum(((along - along[0]) / (along[-1] - along[0]) * (points // 4)).astype(int), points // 4 - 1)
    starts = np.flatnonzero(np.diff(stretches, prepend=-1))
    keep = set()
    for start, end in zip(starts, [*starts[1:], n], strict=True):
        y = line.y[start:end]
        keep |= {int(start), int(end) - 1, int(start + y.argmin()), int(start + y.argmax())}
    return select(line, np.array(sorted(keep)))


def select(line: Line, index: np.ndarray) -> Line:
    """The points of a curve at ``index``."""
    low, high = (None if v is None else v[index] for v in (line.low, line.high))
    return replace(line, x=line.x[index], y=line.y[index], low=low, high=high)


def _drawable(line: Line, log_x: bool, log_y: bool) -> np.ndarray:
    keep = np.ones(line.x.size, dtype=bool)
    if log_x:
        keep &= line.x > 0
    if log_y:
        keep &= line.y > 0
    return np.flatnonzero(keep)


def _ticks(axis: Any, log: bool) -> None:
    from matplotlib import ticker

    def label(value: float, _: int) -> str:
        exponent = np.log10(value) if value > 0 else np.nan
        if log and abs(exponent - round(exponent)) < 1e-6 and not -2 <= round(exponent) <= 3:
            return power_of_ten(round(exponent))
        return number(value, 6)

    if not log:
        axis.set_major_locator(ticker.MaxNLocator(5))
    else:
        low, high = axis.get_view_interval()
        wide = high / low > 12
        axis.set_major_locator(ticker.LogLocator(numticks=6) if wide else ticker.LogLocator(subs=(1, 2, 5), numticks=8))
        axis.set_minor_locator(ticker.NullLocator())
    axis.set_major_formatter(ticker.FuncFormatter(label))


def _draw(series: Series, points: int) -> tuple[str, list[Style], str]:
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure as Canvas

    ink, rule, paper = (_COLOUR[f"var(--{v})"] for v in ("ink-2", "rule", "paper"))
    usable = {
        axis: scale == "log" and any((getattr(line, axis) > 0).any() for line in series.lines)
        for axis, scale in (("x", series.x_scale), ("y", series.y_scale))
    }
    settings = {
        "svg.fonttype": "none",
        "svg.hashsalt": series.key,
        "text.parse_math": False,  # labels are plain text: a dollar sign is a dollar sign
        "font.size": 9,
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
            colour = _COLOUR[style.colour]
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
                markevery=1 if not style.line else max(1, kept.x.size // 7),
                markerfacecolor=colour if style.filled else paper,
                markeredgecolor=paper if style.filled and style.line else colour,
                markeredgewidth=0.6 if style.filled else 1.0,
                zorder={"control": 2, "measured": 3, "predicted": 4}[line.role] - (0.5 if style.marker and style.line else 0),
            )
        if usable["x"]:
            axes.set_xscale("log")
        if usable["y"]:
            axes.set_yscale("log")
        for axis, log in ((axes.xaxis, usable["x"]), (axes.yaxis, usable["y"])):
            _ticks(axis, log)
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


_NUMBER = re.compile(r"-?\d+\.\d{2,}")


def _shorter(match: re.Match[str]) -> str:
    return f"{round(float(match[0]), 1) + 0.0:g}"  # + 0.0: no minus before a zero


def inlined(svg: str, prefix: str) -> str:
    """An SVG file as an element of the page: no prolog, ids that are referred to made unique by ``prefix``, the others dropped.

    Coordinates are rounded to a tenth of a point, colours become the page's variables, and text takes the page's font.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<title>.*?</title>", "", svg, flags=re.DOTALL)
    svg = svg.replace("xlink:href", "href")
    referred = set(re.findall(r'href="#([^"]+)"', svg)) | set(re.findall(r"url\(#([^)]+)\)", svg))
    svg = re.sub(r' id="([^"]+)"', lambda m: f' id="{prefix}-{m[1]}"' if m[1] in referred else "", svg)
    svg = re.sub(r'href="#|url\(#', lambda m: f"{m[0]}{prefix}-", svg)
    svg = re.sub(r"font(?:-family)?: [^;\"]*'[^;\"]*;? ?|font-size: 9px; ?", "", svg)  # the page's CSS sets the text
    svg = re.sub(r' transform="rotate\(-0 [^"]*"', "", svg)
    svg = re.sub(r"#0[12]0[12]0[0-9a-f]", lambda m: _STAND_INS.get(m[0], m[0]), svg)
    svg = re.sub(r'(?<= d=")[^"]*', lambda m: " ".join(_NUMBER.sub(_shorter, m[0]).split()), svg)
    svg = re.sub(r'(?<= [xy]=")[^"]*', lambda m: _NUMBER.sub(_shorter, m[0]), svg)
    svg = re.sub(r"<style[^>]*>.*?</style>", "", svg, flags=re.DOTALL)  # it would rule the whole page; the figure's class says the same
    svg = re.sub(r"<defs>\s*</defs>", "", svg)
    return re.sub(r">\s+<", "><", svg).strip()


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
    head = Markup('<svg class="curves" role="img" aria-labelledby="{0}-title {0}-desc" viewBox="{1}"><title id="{0}-title">{2}</title>').format(
        prefix, re.search(r'viewBox="([^"]+)"', svg)[1], series.title
    ) + Markup('<desc id="{}-desc">{} over {}: {}.</desc>').format(prefix, series.y, series.x, described)
    body = re.sub(r"^<svg[^>]*>", "", inlined(svg, prefix))
    return Figure(head + Markup(body), tuple(zip(map(swatch, look), series.lines, strict=True)), remark)
