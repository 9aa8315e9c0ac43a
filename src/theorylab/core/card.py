"""What measuring a problem leaves behind: each instrument's readings, what they cost, and all that they depend on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from theorylab.core.notice import Notice
from theorylab.core.reading import Reading
from theorylab.core.record import Provenance
from theorylab.core.series import Line, Series
from theorylab.core.source import Source

SCHEMA = 1
"""Raised when the layout of a card's JSON changes."""

State = Literal["measured", "inapplicable", "failed"]


@dataclass(frozen=True)
class Entry:
    """One instrument on a card.

    Attributes:
        instrument: Its name.
        family: Under which ``--with`` finds it.
        state: ``measured``; ``inapplicable``, where it does not apply to the problem; or ``failed``, where it raised.
        source: Where the quantity is defined.
        readings: What it says, in numbers.
        figures: What it says, in curves.
        why: Of an instrument that was not measured: the reason, or the error in one line.
        traceback: Of one that failed.
        seconds: Wall time.
        matvecs: Products with an operator, where it counts them.
        seed: Of its random numbers, where it draws any.
    """

    instrument: str
    family: str
    state: State
    source: Source
    readings: tuple[Reading, ...] = ()
    figures: tuple[Series, ...] = ()
    why: str = ""
    traceback: str = ""
    seconds: float = 0.0
    matvecs: int | None = None
    seed: int | None = None


@dataclass(frozen=True)
class Card:
    """All entries of one problem, in the order in which they were measured.

    Attributes:
        provenance: The problem and the settings (``config``), the code, and the versions: all that the numbers depend on.
        entries: One for each instrument that was asked for, except those that an interruption kept from starting.
        notices: What a preflight found.
        started: ISO 8601, UTC.
        seconds: Wall time in all.
        peak_bytes: The process's peak resident size; 0 where the system does not tell.
        machine: Where it ran.
        unfinished: Names of the instruments that an interruption kept from being measured.
    """

    provenance: Provenance
    entries: tuple[Entry, ...] = ()
    notices: tuple[Notice, ...] = ()
    started: str = ""
    seconds: float = 0.0
    peak_bytes: int = 0
    machine: Mapping[str, str] = field(default_factory=dict)
    unfinished: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """What was measured: the file and the object in it, or the model's class."""
        return self.provenance.study

    @property
    def readings(self) -> tuple[Reading, ...]:
        """The readings of all entries."""
        return tuple(r for e in self.entries for r in e.readings)

    @property
    def families(self) -> dict[str, tuple[Entry, ...]]:
        """The entries by family, in order."""
        return {f: tuple(e for e in self.entries if e.family == f) for f in dict.fromkeys(e.family for e in self.entries)}


def as_json(card: Card) -> dict[str, Any]:
    """The card as JSON values; `from_json` is its inverse."""
    body = {f.name: getattr(card, f.name) for f in dataclasses.fields(card)}
    return {
        "schema": SCHEMA,
        **body,
        "provenance": dataclasses.asdict(card.provenance),
        "notices": [dataclasses.asdict(n) for n in card.notices],
        "machine": dict(card.machine),
        "entries": [_entry_json(e) for e in card.entries],
    }


def _entry_json(entry: Entry) -> dict[str, Any]:
    return {
        **{f.name: getattr(entry, f.name) for f in dataclasses.fields(entry)},
        "source": dataclasses.asdict(entry.source) | {"url": entry.source.url},
        "readings": [dataclasses.asdict(r) for r in entry.readings],
        "figures": [_series_json(s) for s in entry.figures],
    }


def _series_json(series: Series) -> dict[str, Any]:
    lines = [{k: v.tolist() if hasattr(v, "tolist") else v for k, v in vars(line).items()} for line in series.lines]
    return vars(series) | {"lines": lines}


def from_json(body: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a `Card` from what `as_json` returned and JSON stored.

    Raises:
        ValueError: another schema, or a part that is missing or of the wrong kind.
    """
    if body.get("schema") != SCHEMA:
        raise ValueError(f"a card must be of schema {SCHEMA}, got {body.get('schema')!r}: it was written by another version of theorylab.")
    try:
        return {k: v for k, v in body.items() if k != "schema"} | {
            "provenance": Provenance(**body["provenance"]),
            "entries": tuple(_entry(e) for e in body["entries"]),
            "notices": tuple(Notice(**n) for n in body["notices"]),
            "unfinished": tuple(body["unfinished"]),
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the card is incomplete or damaged: {error}.") from error


def _entry(body: Mapping[str, Any]) -> Entry:
    readings = []
    for r in body["readings"]:
        parts: dict[str, Any] = {**r, "assumptions": tuple(r["assumptions"])}
        parts["interval"] = None if r["interval"] is None else tuple(r["interval"])
        readings.append(Reading(**parts))
    source = Source(**{k: v for k, v in body["source"].items() if k != "url"})
    fields: dict[str, Any] = {**body, "source": source, "readings": tuple(readings), "figures": tuple(map(_series, body["figures"]))}
    return Entry(**fields)


def _series(body: Mapping[str, Any]) -> Series:
    import numpy as np

    lines = []
    for line in body["lines"]:
        parts: dict[str, Any] = {k: np.asarray(v) if isinstance(v, list) else v for k, v in line.items()}
        lines.append(Line(**parts))
    fields: dict[str, Any] = {**body, "lines": lines}
    return Series(**fields)
