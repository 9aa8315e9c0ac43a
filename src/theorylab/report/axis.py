"""On which axis do prediction and measurement fit together? Linear, logarithmic or symmetric-logarithmic, chosen by the numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from theorylab.report.numbers import number, power_of_ten

VISIBLE = 0.05
"""The share of the axis below which the claim's own numbers would no longer be told apart."""

MARGIN = 0.06
"""Empty share of the axis at each end."""


@dataclass(frozen=True)
class Axis:
    """A monotone map from numbers to percent of the width.

    ``scale`` is ``linear``, ``log`` (numbers at or below ``linear_to`` are drawn at it, where the axis says 0) or ``symlog`` (linear within
    ±``linear_to``).
    """

    scale: str
    low: float
    high: float
    linear_to: float = 0.0

    def _warp(self, x: float) -> float:
        if self.scale == "log":
            return math.log10(x) if x > 0 else -math.inf
        if self.scale == "symlog":
            return math.asinh(x / self.linear_to)
        return x

    def __call__(self, x: float) -> float:
        """Percent of the width, below 0 or above 100 outside the window; an open end is ±infinity."""
        if math.isinf(x):
            return x
        low, high = self._warp(self.low), self._warp(self.high)
        if self.scale == "log":
            x = max(x, self.linear_to)
        return 100 * (self._warp(x) - low) / (high - low)

    def ticks(self) -> list[tuple[float, str]]:
        """Positions in percent and labels, about five."""
        if self.scale == "log":
            foot = self.linear_to * 10 if self.linear_to else self.low
            first, last = math.ceil(math.log10(foot) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
            step = max(1, math.ceil((last - first) / 5))
            values = [10.0**e for e in range(last, first - 1, -step)][::-1]
            if len(values) < 2:  # less than two decades: 1, 2 and 5 of each
                values = [m * 10.0**e for e in range(first - 1, last + 1) for m in (1, 2, 5) if self.low <= m * 10.0**e <= self.high]
                values = values or [self.low, self.high]
            plain = all(1e-3 <= v <= 1e4 for v in values)
            labels = [number(v) if plain or len(values) < 2 else power_of_ten(round(math.log10(v))) for v in values]
            zero = [(self(0.0), "0")] if self.linear_to else []
            return zero + [(self(v), label) for v, label in zip(values, labels, strict=True)]
        if self.scale == "symlog":
            last = math.floor(math.log10(max(abs(self.low), abs(self.high))))
            first = math.ceil(math.log10(self.linear_to))
            powers = [10.0**e for e in range(last, first - 1, -max(1, math.ceil((last - first) / 2)))]
            values = sorted({0.0, *powers, *(-p for p in powers)})
            return [(self(v), number(v)) for v in values if self.low <= v <= self.high]
        raw = (self.high - self.low) / 4
        unit = 10.0 ** math.floor(math.log10(raw))
        step = next(m * unit for m in (1, 2, 2.5, 5, 10) if m * unit >= raw * 0.999)
        digits = 2 + max(0, math.floor(math.log10(max(abs(self.low), abs(self.high)))) - math.floor(math.log10(step)))
        values = [k * step for k in range(math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9) + 1)]
        return [(self(v), number(v, digits)) for v in values]


def _padded(scale: str, low: float, high: float, linear_to: float = 0.0) -> Axis:
    bare = Axis(scale, low, high, linear_to)
    lo, hi = bare._warp(low), bare._warp(high)
    if lo == hi:  # one number: an axis of its own size around it
        lo, hi = (lo - 1, hi + 1) if scale == "log" else (lo - (abs(lo) or 1.0) / 2, hi + (abs(hi) or 1.0) / 2)
    pad = (hi - lo) * MARGIN / (1 - 2 * MARGIN)
    back: Callable[[float], float] = {"log": lambda v: 10.0**v, "symlog": lambda v: linear_to * math.sinh(v)}.get(scale, lambda v: v)
    return Axis(scale, back(lo - pad), back(hi + pad), linear_to)


def distance_axis(values: Sequence[float]) -> Axis:
    """A logarithmic axis for numbers ≥ 0, with a place for exact zeros a decade below the smallest of the others.

    Example:
        >>> axis = distance_axis([0.0, 1e-12, 0.3])
        >>> axis.scale, axis(0.0) == axis(1e-13), axis(1e-12) < axis(0.3)
        ('log', True, True)
    """
    positive = [v for v in values if v > 0] or [1.0]
    low = 10.0 ** math.floor(math.log10(min(positive)))
    zero = low / 10 if min(values) <= 0 else 0.0
    return _padded("log", zero or low, 10.0 ** math.ceil(math.log10(max(positive))), zero)


def choose(rows: Sequence[Sequence[float]], rest: Sequence[float]) -> Axis:
    """The axis for a claim's own ``rows`` of numbers (region, prediction, measurement) and its controls' (``rest``), all finite.

    Linear if the claim's numbers, the core, stay legible on it; else logarithmic or symmetric-logarithmic if they do so there; else the
    window of the core, with the controls beyond its edges.

    Example:
        >>> choose([[0.9, 1.1]], [3.0]).scale, choose([[0.01, 1.0]], [900.0]).scale, choose([[20.3, 20.7]], [880.0]).high < 30
        ('linear', 'log', True)
    """
    core = [v for row in rows for v in row]
    everything = [*core, *rest]
    low, high, core_low, core_high = min(everything), max(everything), min(core), max(core)
    positive = low > 0
    decades = math.log10(high / low) if positive else 0.0
    core_decades = math.log10(core_high / core_low) if positive else 0.0
    if core_decades > 2:
        return _padded("log", low, high)
    sizes = [size for row in rows if (size := max(map(abs, row))) > 0]
    if not positive and sizes and max(sizes) > 100 * min(sizes):
        return _padded("symlog", low, high, min(sizes))
    if core_high - core_low >= VISIBLE * (high - low) or core_low == core_high == 0:
        return _padded("linear", low, high)
    if decades > 1 and core_decades >= VISIBLE * decades:
        return _padded("log", low, high)
    if core_low == core_high:
        return _padded("log" if decades > 1 else "linear", low, high)
    room = (core_high - core_low) * 0.75
    return _padded("linear", core_low - room, core_high + room)
