"""What a record says of its claims, in one word each, and what a whole run says in its exit status."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from theorylab.core.claim import Verdict
from theorylab.core.record import Record

State = Literal["holds", "inconclusive", "fails", "control holds", "control inconclusive", "error"]
"""Of a claim: ``control holds`` where the same check passes on the setting that should break it, so that it tests nothing."""


def state(record: Record, claim: str) -> State:
    """The state of one claim of a record.

    A claim is accepted only with controls that all fail: where one holds the check is blind, where one is inconclusive the check may
    be. The claim's own verdict comes first where it is not *holds*, whatever its control does.
    """
    outcome, control = record.outcome(claim), record.verdict(claim, "control")
    if outcome != "holds" or control is Verdict.FAILS:
        return outcome
    return "error" if control is None else "control holds" if control is Verdict.HOLDS else "control inconclusive"


def states(record: Record) -> dict[str, State]:
    """The state of every claim that the record declares, by its key."""
    return {claim["key"]: state(record, claim["key"]) for claim in record.claims}


def verdict_line(record: Record) -> str:
    """All claims of a record in a few words: ``2 hold, 1 inconclusive``; a failed run shows its error instead."""
    if record.error:
        return f"error: {last_line(record.error)}"
    counts = Counter(states(record).values())
    return in_numbers(counts)


def in_numbers(counts: Mapping[State, int]) -> str:
    """How many claims came to each state, the worst first.

    Example:
        >>> in_numbers({"holds": 2, "fails": 1})
        '1 fails, 2 hold'
    """
    many = {"holds": "hold", "fails": "fail"}
    return ", ".join(f"{n} {s if n == 1 else many.get(s, s)}" for s in _ORDER if (n := counts.get(s, 0)))


_ORDER: tuple[State, ...] = ("fails", "control holds", "error", "inconclusive", "control inconclusive", "holds")


def last_line(traceback: str) -> str:
    r"""The line of a traceback that says what was raised.

    Example:
        >>> last_line("Traceback (most recent call last):\n  ...\nValueError: seeds must be at least 1")
        'ValueError: seeds must be at least 1'
    """
    return traceback.strip().rpartition("\n")[2]


@dataclass(frozen=True)
class Outcome:
    """One study of a run: its record (None where the run was stopped first), whether it was reused, and why it was computed."""

    study: str
    record: Record | None
    reused: bool = False
    reason: str = ""


@dataclass(frozen=True)
class RunResult:
    """What a run did.

    ``problems`` are one line each: packages whose studies could not be read, and records that could not be written. ``interrupted``
    says that Ctrl-C ended it.
    """

    outcomes: tuple[Outcome, ...]
    problems: tuple[str, ...] = ()
    interrupted: bool = False

    @property
    def records(self) -> list[Record]:
        """The records, reused and new, failed runs included."""
        return [o.record for o in self.outcomes if o.record is not None]

    @property
    def counts(self) -> Counter[State]:
        """How many claims are in each state."""
        return Counter(s for record in self.records for s in states(record).values())

    @property
    def exit_status(self) -> int:
        """0: every claim holds or is inconclusive, as may be its control; 1: a claim fails, a control holds, a study errs; 130: stopped."""
        if self.interrupted:
            return 130
        errs = any(record.error for record in self.records)  # also a study of which no claim could be read
        return int(bool(self.problems) or errs or any(self.counts[s] for s in ("fails", "control holds", "error")))


def lines(result: RunResult) -> Iterator[tuple[str, str, State]]:
    """The claims that do not hold, as (claim, what was found, state), and a failed study once: what a reader must look at."""
    for record in result.records:
        if record.error:
            yield record.study, last_line(record.error), "error"
            continue
        for claim, s in states(record).items():
            if s == "holds":
                continue
            if s == "error":
                yield claim, "no finding, or no control", s
                continue
            role = "control" if s.startswith("control") else "claim"
            yield claim, f"{role}: {_worst(record, claim, role)}", s


def _worst(record: Record, claim: str, role: str) -> str:
    verdict = record.verdict(claim, role)
    finding = next(f for f in record.findings if f.claim == claim and f.role == role and f.verdict is verdict)
    low, high = finding.region
    where = f" at {finding.setting}" if finding.setting else ""
    return f"measured {finding.measured:.4g} [{finding.low:.4g}, {finding.high:.4g}], claimed region [{low:.4g}, {high:.4g}]{where}"
