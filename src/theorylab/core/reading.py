"""One line of a report card: a number with its label, bound or measure, and what it rests on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Label = Literal["bound", "measure"]


@dataclass(frozen=True)
class Reading:
    r"""One number that an instrument reports, labelled by what may be concluded from it.

    A *bound* holds with probability at least 1 − δ over the draw of the data (and of the instrument's own random numbers) under its
    assumptions. A *measure* describes a model and promises nothing about it.

    A result object that has a method ``readings() -> tuple[Reading, ...]`` says by it what belongs on a report card.

    Args:
        name: What is measured, in the field's words: ``"error"``.
        value: The number; for a bound its upper end.
        label: ``"bound"`` or ``"measure"``.
        interval: (low, high) that holds the true value, where the number is uncertain.
        delta: Probability, in [0, 1), with which a bound may fail; 0 where nothing is random. None for a measure.
        assumptions: What a bound rests on, one clause each.
        note: A remark for the reader.

    Raises:
        ValueError: an empty name, a number that is not finite, an interval whose ends are reversed, a bound without δ or assumptions, or a
            measure with δ.

    Example:
        >>> print(Reading("error", 0.12, "bound", delta=0.05, assumptions=("rows are independent",)))
        error 0.12: bound (δ = 0.05; rows are independent)
        >>> print(Reading("log path norm", 3.5, "measure"))
        log path norm 3.5: measure
    """

    name: str
    value: float
    label: Label
    interval: tuple[float, float] | None = None
    delta: float | None = None
    assumptions: tuple[str, ...] = ()
    note: str = ""

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise ValueError("Reading.name must not be empty.")
        if self.label not in ("bound", "measure"):
            raise ValueError(f"Reading.label must be 'bound' or 'measure', got {self.label!r}.")
        if not math.isfinite(self.value):
            raise ValueError(f"Reading.value must be finite, got {self.value} for {self.name!r}.")
        if self.interval is not None and not (self.interval[0] <= self.interval[1] and all(map(math.isfinite, self.interval))):
            raise ValueError(f"Reading.interval must be (low, high), both finite, got {self.interval} for {self.name!r}.")
        if self.label == "measure" and self.delta is not None:
            raise ValueError(f"Reading.delta belongs to bounds alone, got {self.delta} for the measure {self.name!r}.")
        if self.label == "bound":
            if self.delta is None or not 0 <= self.delta < 1:
                raise ValueError(f"Reading.delta of a bound must lie in [0, 1), got {self.delta} for {self.name!r}.")
            if not self.assumptions:
                raise ValueError(f"Reading.assumptions of a bound must name at least one, got none for {self.name!r}.")

    def __str__(self) -> str:
        basis = "" if self.label == "measure" else f" (δ = {self.delta:g}; {'; '.join(self.assumptions)})"
        return f"{self.name} {self.value:.6g}: {self.label}{basis}"
