"""Curves that a study leaves for its figures and tables, and the stages it reports while it runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from theorylab.core.estimate import LEVEL, Estimate, as_samples

if TYPE_CHECKING:
    import numpy as np

Role = Literal["measured", "predicted", "control"]


@dataclass(frozen=True)
class Stage:
    """A line of progress: what the study does now. Yielded by a study, shown live, not stored."""

    name: str


@dataclass(frozen=True)
class Line:
    """One curve: ``y`` over ``x``, with an optional band from ``low`` to ``high``, of which ``band`` says in words what it is.

    ``role`` tells the figure how to draw it: what was *measured*, what was *predicted*, or the *control*.
    """

    label: str
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    role: Role = "measured"
    mark: Literal["line", "points"] = "line"
    band: str = ""


@dataclass
class Series:
    """A figure's data: named lines over one pair of axes.

    Args:
        key: Short name within the study, ``"sharpness"``; names the figure's anchor and its CSV.
        title: What the figure shows, in one sentence.
        x: Label of the horizontal axis, with its unit.
        y: Label of the vertical axis, with its unit.
        claim: Key of the claim that the figure belongs to, or "" for the study as a whole.
        x_scale: ``"linear"`` or ``"log"``.
        y_scale: The same for the vertical axis.

    Example:
        >>> s = Series("decay", "Loss falls", x="step", y="loss [nats]", y_scale="log")
        >>> s.line("GD", [0, 1, 2], [1.0, 0.5, 0.25]).lines[0].label
        'GD'
    """

    key: str
    title: str
    x: str
    y: str
    claim: str = ""
    x_scale: Literal["linear", "log"] = "linear"
    y_scale: Literal["linear", "log"] = "linear"
    lines: list[Line] = field(default_factory=list)

    def line(
        self,
        label: str,
        x: Any,
        y: Any,
        *,
        low: Any = None,
        high: Any = None,
        role: Role = "measured",
        mark: Literal["line", "points"] = "line",
        band: str = "range of replicas",
    ) -> Series:
        """Add a curve and return self; all vectors must be finite and of one length, and ``band`` says what lies from low to high."""
        vectors = {"x": x, "y": y, "low": low, "high": high}
        arrays = {k: None if v is None else as_samples(v, name=f"{self.key}, line {label!r}, {k}") for k, v in vectors.items()}
        sizes = {k: a.size for k, a in arrays.items() if a is not None}
        if len(set(sizes.values())) != 1:
            raise ValueError(f"{self.key}, line {label!r}: x, y, low and high must have one length, got {sizes}.")
        self.lines.append(Line(label, role=role, mark=mark, band=band if low is not None else "", **arrays))  # pyright: ignore[reportArgumentType]
        return self

    def means(
        self,
        label: str,
        x: Any,
        samples: Any,
        *,
        geometric: bool = False,
        role: Role = "measured",
        mark: Literal["line", "points"] = "points",
    ) -> Series:
        """Add a curve of means over replicas, each within Student's confidence interval, and return self.

        A verdict's interval (`mean_interval`) is also widened where one replica stands out: along a curve that would come and go.

        Where the vertical axis is logarithmic, an interval that reaches below 0 is cut at a thousandth of the mean.

        Args:
            label: As of `line`.
            x: One value a mean.
            samples: As many vectors of replicas, (x, replica), at least two replicas each; positive where ``geometric``.
            geometric: Means of the logarithms, and their intervals, put back by the exponential.
            role: As of `line`.
            mark: As of `line`.

        Raises:
            ValueError: fewer than two replicas, or as `line`.

        Example:
            >>> s = Series("error", "Error by width", x="width", y="error", y_scale="log").means("net", [8], [[1.0, 100.0]], geometric=True)
            >>> round(float(s.lines[0].y[0]), 9)
            10.0
        """
        import numpy as np

        rows = [as_samples(row, name=f"{self.key}, line {label!r}, samples") for row in samples]
        if geometric and min(float(row.min()) for row in rows) <= 0:
            raise ValueError(f"{self.key}, line {label!r}: samples must be positive for a geometric mean.")
        rows = [np.log(row) for row in rows] if geometric else rows
        mean = np.array([row.mean() for row in rows])
        low, high = np.array([Estimate.over(row).interval() for row in rows]).T
        if geometric:
            mean, low, high = np.exp(mean), np.exp(low), np.exp(high)
        if self.y_scale == "log":
            low = np.maximum(low, 1e-3 * mean)
        return self.line(label, x, mean, low=low, high=high, role=role, mark=mark, band=f"{100 * LEVEL:g} % interval")
