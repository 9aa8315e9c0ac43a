"""What does the run say, claim by claim and topic by topic? Records to rows of the ledger and to the outline of the course."""

from __future__ import annotations

import datetime
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from theorylab.core.claim import Finding
from theorylab.core.record import Record, claim_dict
from theorylab.core.study import StudyCard
from theorylab.report.standing import margin

STATES = {
    "holds": ("✓", "holds"),
    "fails": ("✗", "fails"),
    "inconclusive": ("?", "inconclusive"),
    "error": ("!", "error"),
    "pending": ("·", "not run"),
}
"""What a claim can come to: its glyph and its word. Colour only repeats what they say."""

CONTROLS = {
    "fails": ("✓", "fails, as it must"),
    "holds": ("!", "holds: no power"),
    "inconclusive": ("?", "inconclusive"),
    "": ("·", "not run"),
}
"""What a control's verdict means for its claim."""

POWER = {
    "fails": "control fails, as it must",
    "holds": "control holds: the check has no power",
    "inconclusive": "control inconclusive: the check may have no power",
    "": "control not run",
}
"""The same in a sentence."""

NAMES = {"gans": "GANs"}
"""Topics whose name in words is not their key with spaces."""


@dataclass(frozen=True)
class Row:
    """One claim with all that was found about it."""

    claim: Mapping[str, Any]
    state: str
    control: str
    findings: tuple[Finding, ...]
    study: str
    record: str
    scale: str
    seconds: float | None

    @property
    def key(self) -> str:
        """``topic/study/name``, also the anchor."""
        return self.claim["key"]

    @property
    def topic(self) -> str:
        """First part of the key."""
        return self.key.partition("/")[0]

    def checks(self, role: str) -> list[Finding]:
        """The findings of a role, in the study's order."""
        return [f for f in self.findings if f.role == role]

    @property
    def telling(self) -> Finding | None:
        """The check that decided the verdict; of several, the one that is nearest to the border of its region, or farthest beyond it."""
        checks = self.checks("claim")
        return min([f for f in checks if f.verdict == self.state] or checks, key=margin, default=None)


def rows_of(record: Record) -> list[Row]:
    """The rows of a record, one for each claim that it declares, reached or not."""
    rows = []
    for claim in record.claims:
        findings = tuple(f for f in record.findings if f.claim == claim["key"])
        control = str(record.verdict(claim["key"], "control") or "")
        rows.append(
            Row(claim, record.outcome(claim["key"]), control, findings, record.study, record.provenance.key, record.scale, record.seconds)
        )
    return rows


def pending_rows(card: StudyCard) -> list[Row]:
    """The rows of a study that was not run."""
    return [Row(claim_dict(c), "pending", "", (), card.key, "", "", None) for c in card.claims]


@dataclass(frozen=True)
class Stop:
    """One stop of the timeline: lectures with the same topics, gathered under the first one's title."""

    dates: tuple[datetime.date, ...]
    title: str
    topics: tuple[str, ...]

    @property
    def when(self) -> str:
        """``3, 8 Sep``: the month is said once for neighbours that share it.

        Example:
            >>> Stop((datetime.date(2025, 9, 3), datetime.date(2025, 9, 8), datetime.date(2025, 10, 1)), "", ()).when
            '3, 8 Sep, 1 Oct'
        """
        shown = []
        for date, after in zip_longest(self.dates, self.dates[1:]):
            shown.append(f"{date.day}" if after and after.month == date.month else f"{date.day} {date:%b}")
        return ", ".join(shown)


def outline(syllabus: Mapping[str, Any], topics: Iterable[str] = ()) -> list[Stop]:
    """The course in lecture order, then what lies beyond the schedule: its named topics, and ``topics`` that no lecture has.

    Args:
        syllabus: Parsed ``syllabus.toml``: tables ``lecture`` (date, title, topics) and ``beyond_the_schedule`` (topics).
        topics: Topics of the studies at hand.
    """
    gathered: dict[Any, Stop] = {}
    for i, lecture in enumerate(syllabus.get("lecture", ())):
        names, date = tuple(lecture.get("topics", ())), lecture.get("date")
        dates = (date,) if isinstance(date, datetime.date) else ()
        before = gathered.get(names or i)
        gathered[names or i] = Stop(before.dates + dates, before.title, names) if before else Stop(dates, lecture["title"], names)
    stops = list(gathered.values())
    scheduled = {t for s in stops for t in s.topics}
    named = syllabus.get("beyond_the_schedule", {}).get("topics", ())
    beyond = [t for t in dict.fromkeys([*named, *sorted(set(topics))]) if t not in scheduled]
    return [*stops, Stop((), "Beyond the schedule", tuple(beyond))] if beyond else stops


def topic_order(stops: Sequence[Stop]) -> list[str]:
    """All topics in the order in which the course meets them."""
    return list(dict.fromkeys(t for s in stops for t in s.topics))


def topic_name(topic: str) -> str:
    """A topic's key in words.

    Example:
        >>> topic_name("implicit_bias")
        'Implicit bias'
    """
    words = topic.replace("_", " ")
    return NAMES.get(topic, words[:1].upper() + words[1:])


def tally(rows: Sequence[Row]) -> dict[str, int]:
    """How many claims came to each state, in the order of `STATES`; ``powerless``: those that hold while their control does not fail."""
    count = Counter(r.state for r in rows)
    return {s: count[s] for s in STATES} | {"powerless": sum(r.state == "holds" and r.control != "fails" for r in rows)}


def as_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows as JSON values: an open end of a region is null; samples stay in the record that ``record`` names."""

    def finding(f: Finding) -> dict[str, Any]:
        kept = {k: v for k, v in vars(f).items() if k not in ("claim", "samples", "region")}
        return kept | {"verdict": str(f.verdict), "region": [v if math.isfinite(v) else None for v in f.region]}

    return [
        {
            **r.claim,
            "verdict": r.state,
            "control_verdict": r.control or None,
            "accepted": r.state == "holds" and r.control == "fails",
            "findings": [finding(f) for f in r.findings],
            "study": r.study,
            "record": r.record or None,
            "scale": r.scale or None,
            "seconds": r.seconds,
        }
        for r in rows
    ]
