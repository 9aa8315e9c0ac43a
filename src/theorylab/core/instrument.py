"""The registry of instruments: plain functions that measure a Problem, each with a slow oracle and a source."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from theorylab.core.source import Source

F = TypeVar("F", bound=Callable[..., Any])
Refusal = Callable[[Any], str | None]
"""Problem → why an instrument does not apply to it and what to do, or None where it does."""


class Inapplicable(ValueError):
    """An instrument does not apply to a problem; the message says why and what to do."""


@dataclass(frozen=True)
class Instrument:
    """A registered instrument.

    Attributes:
        name: Of the function.
        family: Under which ``theorylab measure --with`` finds it: ``"curvature"``.
        measure: The function that a user calls.
        oracle: The slow, obvious version.
        source: Where the quantity is defined.
        refusals: What is asked of a problem before any work.
        row_axes: Axes of the result that run over the rows of the data, in their order.
        trains: Whether it trains, so that its result depends on the order of rows and on rounding as training does.
    """

    name: str
    family: str
    measure: Callable[..., Any]
    oracle: Callable[..., Any]
    source: Source
    refusals: tuple[Refusal, ...] = ()
    row_axes: tuple[int, ...] = ()
    trains: bool = False

    def why_not(self, problem: Any) -> str | None:
        """Why the instrument does not apply to ``problem``, or None where it does."""
        return next((reason for refuses in self.refusals if (reason := refuses(problem)) is not None), None)


_registry: dict[str, Instrument] = {}


def instrument(
    *,
    oracle: Callable[..., Any],
    source: Source,
    refuses: Refusal | tuple[Refusal, ...] = (),
    family: str = "",
    row_axes: tuple[int, ...] = (),
    trains: bool = False,
) -> Callable[[F], F]:
    """Register ``measure(problem, ...)`` under its name; calls first ask the problem whether the instrument applies.

    Args:
        oracle: The slow, obvious version with the same signature; the test battery demands that both agree in float64.
        source: Where the quantity is defined.
        refuses: Functions of the problem alone that say why the instrument does not apply; the first reason is raised as `Inapplicable`.
        family: Under which users find it; default: the name of the module.
        row_axes: Axes of the result that run over the rows of the data: (0,) for one number a row, (0, 1) for a kernel. Several entries
            that belong to one row follow each other. A result without such axes does not depend on the order of rows.
        trains: The instrument trains; the battery leaves to its own tests what rounding and the order of rows do to training.

    Raises:
        ValueError: another module registered the name.
    """

    def register(measure: F) -> F:
        name, home = measure.__name__, measure.__module__
        taken = _registry.get(name)
        if taken is not None and taken.measure.__module__ != home:
            raise ValueError(f"instrument {name} is registered by {taken.measure.__module__} already.")

        of_problem = next(iter(inspect.signature(measure).parameters), "") == "problem"

        @functools.wraps(measure)
        def checked(problem: Any, *args: Any, **kwargs: Any) -> Any:
            import torch  # here, for the registry is read without it

            from theorylab.core.precision import full_float32
            from theorylab.core.problem import check_problem

            if of_problem:
                check_problem(name, problem)
            with torch.inference_mode(False), full_float32():
                reason = entry.why_not(problem)
                if reason is not None:
                    raise Inapplicable(f"{name} does not apply: {reason}")
                return measure(problem, *args, **kwargs)

        refusals = refuses if isinstance(refuses, tuple) else (refuses,)
        entry = Instrument(name, family or home.rpartition(".")[2], checked, oracle, source, refusals, row_axes, trains)
        _registry[name] = entry
        return cast(F, checked)

    return register


def instruments() -> dict[str, Instrument]:
    """All registered instruments by name (of the modules imported so far; ``import theorylab.instruments`` brings ours)."""
    return dict(sorted(_registry.items()))
