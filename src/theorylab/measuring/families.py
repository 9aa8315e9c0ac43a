"""Which instruments does a card hold? Families and names as the user gives them, checked before any work."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Sequence

import theorylab.instruments  # noqa: F401  its import fills the registry
from theorylab.core.instrument import Instrument, instruments

BY_NAME_ALONE = ("per_example_grads", "ntk", "test_bound")
"""Instruments that are on a card only where they are named themselves: those that return a large matrix, of which others say what is
worth a line, and one that is a bound only where the problem's rows were held out, which nobody but the user knows."""


def families() -> dict[str, tuple[Instrument, ...]]:
    """All instruments by family, each family in the order in which its modules define them.

    Example:
        >>> [tool.name for tool in families()["curvature"]][:2]
        ['hessian', 'ggn']
    """
    found: dict[str, list[Instrument]] = {}
    for tool in sorted(instruments().values(), key=_place):
        found.setdefault(tool.family, []).append(tool)
    return {family: tuple(tools) for family, tools in sorted(found.items())}


def _place(tool: Instrument) -> tuple[str, int]:
    return tool.measure.__module__, inspect.unwrap(tool.measure).__code__.co_firstlineno


def choose(wanted: str | Iterable[str] | None = None, only: str | Iterable[str] | None = None) -> tuple[Instrument, ...]:
    """The instruments of the families ``wanted``, in that order; of these, those named in ``only``.

    Of a family, those in `BY_NAME_ALONE` are left out.

    Args:
        wanted: Names of families, or of single instruments; a text may hold several between commas. None means all families, or where
            ``only`` names instruments, theirs.
        only: Names of instruments.

    Raises:
        ValueError: a name that is neither a family nor an instrument, with those that there are; or instruments in ``only`` that lie
            outside of the families.

    Example:
        >>> [tool.name for tool in choose("curvature", only=["sharpness"])]
        ['sharpness']
    """
    every = families()
    singles = {tool.name: tool for tools in every.values() for tool in tools}
    names, single = _names(wanted), _names(only)
    chosen: dict[str, Instrument] = {}
    for name in names or every:
        if name not in every and name not in singles:
            raise ValueError(f"no family of instruments is called {name!r}{_near(name, [*every, *singles])} Families: {', '.join(every)}.")
        members = (singles[name],) if name in singles and name not in every else every[name]
        chosen |= {tool.name: tool for tool in members if tool.name not in BY_NAME_ALONE or tool.name in (name, *single)}
    for name in single:
        if name not in singles:
            raise ValueError(f"no instrument is called {name!r}{_near(name, singles)} Instruments: {', '.join(singles)}.")
        if name not in chosen:
            raise ValueError(f"{name} belongs to the family {singles[name].family!r}, which is not among {', '.join(names)}: add it there.")
    return tuple(tool for name, tool in chosen.items() if not single or name in single)


def _names(given: str | Iterable[str] | None) -> list[str]:
    texts = [] if given is None else [given] if isinstance(given, str) else list(given)
    return [name.strip() for text in texts for name in text.split(",") if name.strip()]


def _near(name: str, names: Iterable[str]) -> str:
    near: Sequence[str] = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {near[0]!r}?" if near else "."
