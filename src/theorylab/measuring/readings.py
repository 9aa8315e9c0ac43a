"""How does a result become readings? Numbers and estimates one by one, tensors by their quantiles, operators by their spectrum."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from theorylab.core.estimate import Estimate
from theorylab.core.operator import Operator
from theorylab.core.reading import Reading
from theorylab.core.series import Series

LEVEL = 0.99
CURVE = 24
"""Entries of a tensor from which its quantiles are drawn, too."""

_HOW = {"converged", "n_matvecs", "n", "stderr", "residual", "residuals", "interval"}
"""Fields that say how a result was reached, or belong to its ``value``."""
_DIRECTIONS = {"vector", "vectors", "basis"}
"""Fields as long as the parameters, of no meaning entry by entry."""


@dataclass
class Shown:
    """What of a result belongs on a card, and the products that it took."""

    readings: list[Reading] = field(default_factory=list)
    figures: list[Series] = field(default_factory=list)
    matvecs: int | None = None

    def __iadd__(self, other: Shown) -> Shown:
        self.readings += other.readings
        self.figures += other.figures
        if other.matvecs is not None:
            self.matvecs = (self.matvecs or 0) + other.matvecs
        return self


def shown(name: str, result: Any, operator: Callable[[Operator], Shown]) -> Shown:
    """What of ``result`` belongs on a card.

    A result with a method ``readings()`` decides itself, and may have ``figures() -> tuple[Series, ...]``. Of a dataclass every field that
    is a number, an estimate, a tensor or one of these nested is read under its own name, and ``value`` under the instrument's; its
    ``residual`` or ``interval`` is the value's interval.

    Args:
        name: Of the instrument.
        result: What it returned.
        operator: Reads an operator, which is no number itself.

    Raises:
        TypeError: a result that has no reading.
        ValueError: a number that is not finite.

    Example:
        >>> print(*shown("gradient_noise", Estimate(2.0, 0.1, 100), lambda A: Shown()).readings)
        gradient noise 2: measure
    """
    label = name.replace("_", " ")
    found = _shown(label, result, operator)
    if not (found.readings or found.figures):
        raise TypeError(f"{name} returned a {type(result).__name__} in which there is nothing to read: it needs a method readings().")
    if len({r.name for r in found.readings}) == len(found.readings) == 1 and found.readings[0].name == "value":
        found.readings = [dataclasses.replace(found.readings[0], name=label)]
    return found


def _shown(label: str, result: Any, operator: Callable[[Operator], Shown]) -> Shown:
    if callable(getattr(result, "readings", None)):
        curves = result.figures() if callable(getattr(result, "figures", None)) else ()
        return Shown(list(result.readings()), list(curves), _matvecs(result))
    if isinstance(result, Reading):
        return Shown([result])
    if isinstance(result, Operator):
        return operator(result)
    if isinstance(result, Estimate):
        return Shown([Reading(label, result.value, "measure", result.interval(LEVEL) if result.stderr else None)])
    if isinstance(result, bool) or result is None or isinstance(result, str):
        return Shown()
    if isinstance(result, int | float):
        return Shown([Reading(label, float(result), "measure")])
    if isinstance(result, Tensor | np.ndarray):
        return _quantiles(label, np.asarray(result.detach().cpu().double() if isinstance(result, Tensor) else result, dtype=float).ravel())
    if isinstance(result, Mapping):
        return _together({f"{label}, {key}": value for key, value in result.items()}, operator)
    if isinstance(result, tuple | list):
        if all(isinstance(v, int | float) and not isinstance(v, bool) for v in result) and result:
            return _quantiles(label, np.asarray(result, dtype=float))
        return _together({f"{label} {k}": value for k, value in enumerate(result, 1)}, operator)
    if dataclasses.is_dataclass(result):
        return _fields(label, result, operator)
    return Shown()


def _together(parts: Mapping[str, Any], operator: Callable[[Operator], Shown]) -> Shown:
    total = Shown()
    for label, value in parts.items():
        total += _shown(label, value, operator)
    return total


def _matvecs(result: Any) -> int | None:
    count = getattr(result, "n_matvecs", None)
    return count if isinstance(count, int) else None


def _fields(label: str, result: Any, operator: Callable[[Operator], Shown]) -> Shown:
    fields = {f.name: getattr(result, f.name) for f in dataclasses.fields(result)}
    total = Shown()
    for name, value in fields.items():
        if name not in _HOW | _DIRECTIONS:
            words = name.replace("_", " ")
            total += _shown(label if name in ("value", "values") else f"{label}, {words}", value, operator)
    remark = "" if fields.get("converged", True) else "stopped before it converged"
    interval = _interval(fields)
    total.readings = [
        dataclasses.replace(
            r,
            interval=interval if r.name == label and r.interval is None else r.interval,
            note="; ".join(filter(None, (r.note, remark))),
        )
        for r in total.readings
    ]
    total.matvecs = _matvecs(result) if total.matvecs is None else total.matvecs
    return total


def _interval(fields: Mapping[str, Any]) -> tuple[float, float] | None:
    """The interval of a dataclass's ``value``: its own, that of its standard error, or an eigenvalue's residual on both sides."""
    value, own, residual = fields.get("value"), fields.get("interval"), fields.get("residual")
    if isinstance(own, tuple) and len(own) == 2:
        return float(own[0]), float(own[1])
    if not isinstance(value, int | float):
        return None
    if isinstance(fields.get("stderr"), float) and isinstance(fields.get("n"), int):
        return Estimate(value, fields["stderr"], fields["n"]).interval(LEVEL)
    if isinstance(residual, float) and math.isfinite(residual) and residual > 0:
        return value - residual, value + residual
    return None


def _quantiles(label: str, x: np.ndarray) -> Shown:
    """A number as it is; of more than one the smallest, the median and the largest, and of many the curve of all quantiles."""
    if x.size == 0:
        return Shown()
    if not np.isfinite(x).all():
        raise ValueError(f"{label} must be finite, got {np.count_nonzero(~np.isfinite(x))} of {x.size} numbers that are not.")
    if x.size == 1:
        return Shown([Reading(label, float(x[0]), "measure")])
    note = f"of {x.size} numbers"
    points = {"smallest": x.min(), "median": np.median(x), "largest": x.max()}
    readings = [Reading(f"{label}, {word}", float(v), "measure", note=note) for word, v in points.items()]
    if x.size < CURVE:
        return Shown(readings)
    at = np.linspace(0, 1, 201)
    positive = bool(x.min() > 0) and x.max() > 30 * x.min()
    figure = Series(f"{label.replace(' ', '_')}-quantiles", f"Quantiles of {label}", "share of the numbers below", label)
    figure.y_scale = "log" if positive else "linear"
    return Shown(readings, [figure.line(note, at, np.quantile(x, at))])
