"""What is taught when: the syllabus of a course, read from a TOML file, and its topics in lecture order."""

from __future__ import annotations

import datetime
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any


class SyllabusError(Exception):
    """A syllabus file that cannot be read or lacks a part; the message names the file, the part, and what belongs there."""


@dataclass(frozen=True)
class Lecture:
    """One meeting: its date, its title, and the topics (keys of studies' topics) that it treats."""

    date: datetime.date
    title: str
    topics: tuple[str, ...]


@dataclass(frozen=True)
class Syllabus:
    """A course: its lectures by date, and topics that belong to it without a lecture. ``raw`` is the whole file, as the report takes it."""

    title: str
    lectures: tuple[Lecture, ...]
    beyond: tuple[str, ...]
    raw: Mapping[str, Any]

    @property
    def topics(self) -> tuple[str, ...]:
        """Every topic once, in the order in which the lectures reach it, then those beyond the schedule."""
        return tuple(dict.fromkeys([t for lecture in self.lectures for t in lecture.topics] + list(self.beyond)))


def load_syllabus(path: Path | None = None) -> Syllabus:
    """Read a syllabus; without a path, the example course that ships with theorylab.

    The file has ``[course]`` with a ``title``, one ``[[lecture]]`` a meeting with ``date``, ``title`` and ``topics``, and may have
    ``[beyond_the_schedule]`` with ``topics``; other tables are passed on untouched.

    Raises:
        SyllabusError: the file is missing, is not TOML, or a part is missing or of the wrong kind.

    Example:
        >>> load_syllabus().topics[:3]
        ('optimization', 'generalization', 'implicit_bias')
    """
    name = "the packaged syllabus" if path is None else str(path)
    try:
        text = (resources.files("theorylab.course") / "syllabus.toml" if path is None else path).read_text(encoding="utf-8")
        raw = tomllib.loads(text)
    except OSError as error:
        raise SyllabusError(f"{name} cannot be read ({error.strerror}); --syllabus takes a TOML file.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SyllabusError(f"{name} is not TOML ({error}); correct it there.") from None
    title = _part(name, "[course]", raw.get("course"), "title", str)
    entries = raw.get("lecture")
    if not isinstance(entries, list) or not entries:
        raise SyllabusError(f"{name} has no [[lecture]]; write one for each meeting, with date, title and topics.")
    lectures = []
    for i, entry in enumerate(entries, 1):
        where = f"[[lecture]] {i}"
        date = _part(name, where, entry, "date", datetime.date)
        lectures.append(Lecture(date, _part(name, where, entry, "title", str), _topics(name, where, entry)))
    lectures.sort(key=lambda lecture: lecture.date)  # a stable sort: two on one day stay as written
    beyond = _topics(name, "[beyond_the_schedule]", raw["beyond_the_schedule"]) if "beyond_the_schedule" in raw else ()
    return Syllabus(title, tuple(lectures), beyond, raw)


def _part(name: str, where: str, table: Any, key: str, kind: type) -> Any:
    value = table.get(key) if isinstance(table, dict) else None
    if not isinstance(value, kind) or isinstance(value, datetime.datetime):
        asked = {str: "a text", list: "a list", datetime.date: "a date such as 2025-09-03"}[kind]
        raise SyllabusError(f"{name}, {where}: {key} must be {asked}, got {value!r}.")
    return value


def _topics(name: str, where: str, table: Any) -> tuple[str, ...]:
    topics = _part(name, where, table, "topics", list)
    for topic in topics:
        if not isinstance(topic, str) or not re.fullmatch(r"[a-z0-9_]+", topic):
            raise SyllabusError(f"{name}, {where}: a topic is a key in lower case such as 'implicit_bias', got {topic!r}.")
    return tuple(topics)
