"""The registry of instruments: plain functions that measure a Problem, each with a slow oracle and a source."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from theorylab.core.source import Source

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Instrument:
    """A registered instrument; the function itself is left as it is."""

    name: str
    measure: Callable[..., Any]
    oracle: Callable[..., Any]
    source: Source


_registry: dict[str, Instrument] = {}


def instrument(*, oracle: Callable[..., Any], source: Source) -> Callable[[F], F]:
    """Register ``measure(problem, ...)`` under its name.

    Args:
        oracle: The slow, obvious version with the same signature; the test battery demands that both agree in float64.
        source: Where the quantity is defined.

    Raises:
        ValueError: another module registered the name.
    """

    def register(measure: F) -> F:
        taken = _registry.get(measure.__name__)
        if taken is not None and taken.measure.__module__ != measure.__module__:
            raise ValueError(f"instrument {measure.__name__} is registered by {taken.measure.__module__} already.")
        _registry[measure.__name__] = Instrument(measure.__name__, measure, oracle, source)
        return measure

    return register


def instruments() -> dict[str, Instrument]:
    """All registered instruments by name (of the modules imported so far; ``import theorylab.instruments`` brings ours)."""
    return dict(sorted(_registry.items()))
