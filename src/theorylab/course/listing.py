"""The syllabus as a list: lectures, topics, studies and claims, each claim with what the last run found."""

from __future__ import annotations

import contextlib
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from theorylab.core.record import RecordError, load
from theorylab.core.study import StudyCard
from theorylab.course.syllabus import Syllabus
from theorylab.runners.outcome import states

_MARKS = {"holds": "✓", "fails": "✗", "error": "✗", "control holds": "✗", "not run": "·"}


def last_states(study: str, runs: Path) -> tuple[str, dict[str, str]]:
    """The scale and the claims' states of a study's newest readable record; ("", {}) where there is none.

    Newest is by the file's time, so that of many records only one is read.
    """
    for path in sorted((runs / study).glob("*/record.json"), key=lambda p: p.stat().st_mtime, reverse=True):
        with contextlib.suppress(RecordError):
            record = load(path.parent, series=False)
            return record.scale, dict(states(record))
    return "", {}


def as_json(course: Syllabus, cards: Mapping[str, StudyCard], runs: Path) -> dict[str, Any]:
    """The listing for programs: ``course``, ``lectures``, ``beyond_the_schedule``, and ``topics`` with their studies and claims.

    ``topics`` has every topic of the course in lecture order, then topics that only installed studies have.
    """
    topics: dict[str, list[dict[str, Any]]] = {topic: [] for topic in course.topics}
    for key, card in cards.items():
        scale, found = last_states(key, runs)
        claims = [
            {"key": c.key, "statement": c.statement, "source": str(c.source), "kind": c.kind, "state": found.get(c.key, "not run")}
            for c in card.claims
        ]
        topics.setdefault(key.partition("/")[0], []).append({"study": key, "title": card.title, "scale": scale or None, "claims": claims})
    return {
        "course": course.title,
        "lectures": [{"date": x.date.isoformat(), "title": x.title, "topics": list(x.topics)} for x in course.lectures],
        "beyond_the_schedule": list(course.beyond),
        "topics": topics,
    }


def wrapped(line: str, width: int) -> str:
    """A line broken at words, its rest four places further in than its beginning.

    Example:
        >>> print(wrapped("  holds  name: a statement of many words", 30))
          holds  name: a statement of
              many words
    """
    indent = len(line) - len(line.lstrip()) + 4
    return textwrap.fill(line, width, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False)


def as_text(course: Syllabus, cards: Mapping[str, StudyCard], runs: Path, width: int | None = None) -> str:
    """The listing for a reader: each topic's studies stand under the first lecture that treats it.

    Lines are broken at ``width``, or stay whole for a program to search where there is none.
    """
    topics = as_json(course, cards, runs)["topics"]
    lines = [course.title]
    seen: set[str] = set()

    def describe(topic: str) -> None:
        if topic in seen:
            lines.append(f"    {topic}: see above")
            return
        seen.add(topic)
        lines.append(f"    {topic}" if topics[topic] else f"    {topic}: no studies yet")
        for study in topics[topic]:
            lines.append(f"        {study['study']}  {study['title']}" + (f"  [{study['scale']}]" if study["scale"] else ""))
            for claim in study["claims"]:
                mark, name = _MARKS.get(claim["state"], "?"), claim["key"].rpartition("/")[2]
                lines.append(f"            {mark} {claim['state']}  {name}: {claim['statement']}")

    for lecture in course.lectures:
        lines += ["", f"{lecture.date}  {lecture.title}"]
        for topic in lecture.topics:
            describe(topic)
    for title, rest in (
        ("Beyond the schedule", course.beyond),
        ("Not in this syllabus", tuple(t for t in topics if t not in course.topics)),
    ):
        if any(topic not in seen for topic in rest):
            lines += ["", title]
            for topic in rest:
                describe(topic)
    return "\n".join(wrapped(line, width) if width else line for line in lines)
