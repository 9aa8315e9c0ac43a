"""How far is what was measured from what was predicted? One strip for each setting: region, prediction, interval, samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from markupsafe import Markup

from theorylab.core.claim import Finding
from theorylab.report.axis import Axis, choose, distance_axis
from theorylab.report.numbers import number

HEIGHT = 54
DOTS = 20
"""Samples drawn in a strip; of more, evenly spaced quantiles."""


@dataclass(frozen=True)
class Strip:
    """A finding and its picture."""

    finding: Finding
    svg: Markup


@dataclass(frozen=True)
class Plot:
    """The strips of a claim over one axis: what the axis shows, in words, and its ticks.

    ``distance`` says that the axis shows the distance from the prediction. Where no axis holds the numbers, ``label`` says so and the
    strips have no picture.
    """

    label: str
    strips: tuple[Strip, ...]
    axis: Markup
    distance: bool


@dataclass(frozen=True)
class _Numbers:
    """A finding in the units of the axis."""

    predicted: float
    measured: float
    low: float
    high: float
    region: tuple[float, float]
    samples: tuple[float, ...]

    def drawn(self) -> list[float]:
        return [v for v in (self.predicted, self.low, self.high, self.measured, *self.region) if math.isfinite(v)]


def _samples(finding: Finding) -> tuple[float, ...]:
    samples = finding.samples
    if len(samples) < 2:
        return ()
    if finding.low == finding.high and len(set(samples)) > 1:
        return ()  # each sample has its own prediction, and the finding shows the worst pair
    if len(samples) > DOTS:
        samples = tuple(map(float, np.quantile(samples, np.linspace(0, 1, DOTS))))
    return samples


def _distance(finding: Finding) -> _Numbers:
    """The finding as distances from its prediction: the interval is that of the samples' distances, or spans those of its ends."""
    p = finding.predicted
    samples = tuple(abs(s - p) for s in _samples(finding))
    ends = samples or (abs(finding.low - p), abs(finding.high - p))
    reach = finding.region[1] - p
    low, high = min(ends), max(*ends, abs(finding.measured - p))
    return _Numbers(0.0, abs(finding.measured - p), low, high, (-math.inf, reach), samples)


def _ratio(finding: Finding) -> _Numbers:
    p = finding.predicted
    ends = sorted((finding.low / p, finding.high / p))
    low, high = sorted((finding.region[0] / p, finding.region[1] / p))
    return _Numbers(1.0, finding.measured / p, ends[0], ends[1], (low, high), tuple(s / p for s in _samples(finding)))


def _value(finding: Finding) -> _Numbers:
    return _Numbers(finding.predicted, finding.measured, finding.low, finding.high, finding.region, _samples(finding))


def _shifted(finding: Finding) -> _Numbers:
    n, p = _value(finding), finding.predicted
    ends = n.region[0] - p, n.region[1] - p
    return replace(
        n, predicted=0.0, measured=n.measured - p, low=n.low - p, high=n.high - p, region=ends, samples=tuple(s - p for s in n.samples)
    )


def _units(findings: Sequence[Finding], kind: str) -> tuple[str, list[_Numbers]]:
    """What the axis shows: the measurement itself where one prediction serves all settings, else its relation to each one's own."""
    predictions = [f.predicted for f in findings]
    bounded = all(math.isfinite(v) for f in findings for v in f.region)
    if kind == "identity" and bounded:
        return "distance from the prediction, |measured − predicted|", [_distance(f) for f in findings]
    if max(predictions) - min(predictions) <= 1e-9 * max(map(abs, predictions)):
        return "measured", [_value(f) for f in findings]
    if min(predictions) > 0 or max(predictions) < 0:
        return "measured / predicted", [_ratio(f) for f in findings]
    return "measured − predicted", [_shifted(f) for f in findings]


def _beyond(axis: Axis, x: float, y: float) -> str:
    """Where a number lies off the axis: an arrow at the edge, and the number."""
    right = axis(x) > 100
    anchor, at, text = ("end", "99%", f"{number(x, 3)} ▸") if right else ("start", "1%", f"◂ {number(x, 3)}")
    return f'<text class="off" x="{at}" y="{y:g}" text-anchor="{anchor}">{text}</text>'


def _at(percent: float) -> str:
    return f"{min(100.0, max(0.0, percent)):.2f}%"


def _strip(finding: Finding, n: _Numbers, axis: Axis, grid: str, distance: bool) -> Markup:
    y, parts = HEIGHT / 2 - 3, [grid]
    left, right = (axis(v) for v in n.region)
    if right > 0 and left < 100:
        a, b = max(0.0, left), min(100.0, right)
        b = min(100.0, max(b, a + 0.6))  # a narrow region stays visible
        parts.append(f'<rect class="region" x="{a:.2f}%" y="0" width="{b - a:.2f}%" height="{HEIGHT}"/>')
        parts += [f'<line class="border" x1="{_at(v)}" x2="{_at(v)}" y1="0" y2="{HEIGHT}"/>' for v in (left, right) if 0 < v < 100]
    if not distance and 0 <= axis(n.predicted) <= 100:
        x = _at(axis(n.predicted))
        parts.append(f'<line class="predicted" x1="{x}" x2="{x}" y1="0" y2="{HEIGHT}"/>')
    shown = [
        f'<circle cx="{_at(axis(sample))}" cy="{y + 10 + i % 3 * 2.5:g}" r="1.6"/>'  # on three lines, so that equal ones do not hide
        for i, sample in enumerate(n.samples)
        if 0 <= axis(sample) <= 100
    ]
    parts += ['<g class="samples">', *shown, "</g>"] if shown else []
    where = axis(n.measured)
    if axis(n.high) < 0 or axis(n.low) > 100:
        parts.append(_beyond(axis, n.measured, y + 7))
    else:
        if n.high > n.low:
            parts.append(f'<line class="interval" x1="{_at(axis(n.low))}" x2="{_at(axis(n.high))}" y1="{y:g}" y2="{y:g}"/>')
            for end in (axis(n.low), axis(n.high)):
                if 0 <= end <= 100:
                    parts.append(f'<line class="interval" x1="{_at(end)}" x2="{_at(end)}" y1="{y - 4:g}" y2="{y + 4:g}"/>')
        parts.append(
            f'<circle class="measured" cx="{_at(where)}" cy="{y:g}" r="4.5"/>' if 0 <= where <= 100 else _beyond(axis, n.measured, y - 6)
        )
    predicted, measured, low, high = map(number, (finding.predicted, finding.measured, *finding.region))
    words = f"predicted {predicted}, measured {measured}, region {low} to {high}, {finding.verdict}"
    head = Markup('<svg class="strip {}" role="img" width="100%" height="{}" aria-label="{}">').format(
        f"{finding.role} {finding.verdict}", HEIGHT, f"{finding.setting or finding.role}: {words}"
    )
    return head + Markup("".join(parts) + "</svg>")  # built of numbers alone


def plot(findings: Sequence[Finding], kind: str) -> Plot:
    """The interval plot of a claim's findings, claims before controls.

    Args:
        findings: At least one.
        kind: The claim's kind. An identity with a tolerance is shown by its distance from the prediction, on a logarithmic axis.

    Raises:
        ValueError: no findings.

    Example:
        >>> from theorylab.core.claim import Claim, Equals
        >>> from theorylab.core.source import Source
        >>> claim = Claim("a/b/c", "One is one.", "1=1", Source("Peano 1889", "Section 1", "Arithmetices principia"), "identity",
        ...               Equals(atol=1e-12), "two", "It is.")
        >>> plot([claim.check(predicted=1.0, measured=1.0), claim.control_check(predicted=1.0, measured=2.0)], "identity").label
        'distance from the prediction, |measured − predicted|'
    """
    if not findings:
        raise ValueError("findings must hold at least one finding to plot, got none.")
    ordered = sorted(findings, key=lambda f: f.role == "control")
    label, rows = _units(ordered, kind)
    core = [n.drawn() for f, n in zip(ordered, rows, strict=True) if f.role == "claim"]
    rest = [v for n in rows for v in n.drawn()]
    distance = label.startswith("distance")
    try:
        # A region that begins at "no distance at all" has no lower end to draw, and an exact agreement is a zero on a logarithmic axis.
        apart = [v for n in rows for v in (n.low, n.high, n.measured, n.region[1])]
        axis = distance_axis(apart) if distance else choose(core or [rest], rest)
        ticks = axis.ticks()
    except (ArithmeticError, ValueError):  # an axis reaches beyond its numbers, and float64 ends at 1.8×10³⁰⁸
        largest = max(abs(v) for f in ordered for v in (f.predicted, f.measured, f.low, f.high))
        reason = f"cannot be drawn: no axis holds these numbers, which reach {number(largest)}"
        return Plot(reason, tuple(Strip(f, Markup()) for f in ordered), Markup(), False)
    grid = "".join(f'<line class="grid" x1="{_at(x)}" x2="{_at(x)}" y1="0" y2="{HEIGHT}"/>' for x, _ in ticks)
    strips = tuple(Strip(f, _strip(f, n, axis, grid, distance)) for f, n in zip(ordered, rows, strict=True))
    anchors = ["start" if x < 4 else "end" if x > 96 else "middle" for x, _ in ticks]
    texts = "".join(f'<text x="{_at(x)}" y="14" text-anchor="{a}">{t}</text>' for (x, t), a in zip(ticks, anchors, strict=True))
    return Plot(label, strips, Markup(f'<svg class="ticks" aria-hidden="true" width="100%" height="18">{texts}</svg>'), distance)
