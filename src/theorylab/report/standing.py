"""Where does a measurement stand in its region? In units of the region itself, whose ends are at −1 and 1."""

from __future__ import annotations

import math

from theorylab.core.claim import Finding


def standing(finding: Finding) -> tuple[float, float, float]:
    """Low end, measurement and high end of a finding in units of its region, whose ends are at −1 and 1.

    0 is the prediction where it lies inside, and either side of it has its own unit. A bound, a region with one end, is at 1 or −1, and
    the unit is its size: 0 is a bound that is kept by as much as it is large.

    Example:
        >>> from theorylab.core.claim import Verdict
        >>> def shown(predicted, low, high, region):
        ...     return standing(Finding("a/b/c", "claim", "", predicted, low, low, high, region, 8, 0.99, Verdict.HOLDS))
        >>> shown(2.0, 1.5, 3.0, (1.0, 4.0))
        (-0.5, -0.5, 0.5)
        >>> shown(1.0, 0.25, 0.75, (-math.inf, 1.0))
        (0.25, 0.25, 0.75)
    """
    low, high = finding.region
    numbers = finding.low, finding.measured, finding.high
    if math.isfinite(low) and math.isfinite(high):
        centre = finding.predicted if low < finding.predicted < high else (low + high) / 2
        below, above = centre - low, high - centre

        def place(v: float) -> float:
            reach = above if v > centre else below
            return (v - centre) / reach if reach else math.copysign(math.inf, v - centre) if v != centre else 0.0
    else:
        end, side = (high, 1.0) if math.isfinite(high) else (low, -1.0)
        unit = max((abs(v) for v in numbers), default=0.0) if abs(end) < 1e-300 else abs(end)  # a gap of 0 has no size of its own

        def place(v: float) -> float:
            return side + (v - end) / (unit or 1.0)

    return place(numbers[0]), place(numbers[1]), place(numbers[2])


def margin(finding: Finding) -> float:
    """How far the interval lies within its region, in the region's units: 0 at the border, below 0 beyond it.

    Example:
        >>> from theorylab.core.claim import Verdict
        >>> def shown(low, high, region):
        ...     return margin(Finding("a/b/c", "claim", "", 2.0, low, low, high, region, 8, 0.99, Verdict.HOLDS))
        >>> shown(1.5, 2.5, (1.0, 3.0)), shown(1.5, 4.0, (1.0, 3.0)), shown(1.5, 1.75, (-math.inf, 2.0))
        (0.5, -1.0, 0.125)
    """
    low, _, high = standing(finding)
    below, above = (1 + low, 1 - high)
    return min(gap for gap, end in zip((below, above), finding.region, strict=True) if math.isfinite(end))
