"""The syllabus: the packaged course is whole and in order, and a file with a fault is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from theorylab.core.study import find_studies
from theorylab.course.listing import as_json, as_text
from theorylab.course.syllabus import SyllabusError, load_syllabus

LECTURE = '[[lecture]]\ndate = {date}\ntitle = "{title}"\ntopics = {topics}\n'
COURSE = '[course]\ntitle = "A course"\n'


def write(folder: Path, text: str) -> Path:
    path = folder / "course.toml"
    path.write_text(text)
    return path


def test_the_packaged_course_is_in_order_and_names_every_topic_once() -> None:
    course = load_syllabus()
    dates = [lecture.date for lecture in course.lectures]
    assert dates == sorted(dates)
    assert len(set(course.topics)) == len(course.topics)
    assert course.topics[0] == "optimization"
    assert {t for lecture in course.lectures for t in lecture.topics} | set(course.beyond) == set(course.topics)
    # topics beyond the schedule come last, unless a lecture treats them too
    assert course.topics[-1] == "private_learning"
    assert course.raw["course"]["title"] == course.title


def test_every_installed_topic_of_ours_is_taught_or_listed_as_untaught(tmp_path: Path) -> None:
    cards = find_studies()[0]
    ours = {key.partition("/")[0] for key, card in cards.items() if card.module.startswith("theorylab.")}
    course = load_syllabus()
    assert ours - set(course.topics) == {"curvature"}  # every topic measures with it, no lecture is about it
    lines = as_text(course, cards, tmp_path).splitlines()
    narrow = as_text(course, cards, tmp_path, 60)
    assert narrow.split() == " ".join(lines).split()
    assert max(len(line) for line in narrow.splitlines() if line.count("/") < 2) <= 60
    assert "    curvature" in lines[lines.index("Not in this syllabus") :]


def test_a_course_of_one_s_own_is_sorted_by_date(tmp_path: Path) -> None:
    text = COURSE + LECTURE.format(date="2026-02-01", title="Second", topics='["b", "a"]')
    text += LECTURE.format(date="2026-01-01", title="First", topics='["a"]') + '[beyond_the_schedule]\ntopics = ["c", "a"]\n'
    course = load_syllabus(write(tmp_path, text))
    assert [lecture.title for lecture in course.lectures] == ["First", "Second"]
    assert course.topics == ("a", "b", "c")
    assert as_json(course, {}, tmp_path)["topics"] == {"a": [], "b": [], "c": []}
    lines = as_text(course, {}, tmp_path).splitlines()
    assert lines.index("2026-01-01  First") < lines.index("2026-02-01  Second")
    assert "    a: see above" in lines
    assert lines[-3:] == ["Beyond the schedule", "    c: no studies yet", "    a: see above"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("course =", "is not TOML"),
        (LECTURE.format(date="2026-01-01", title="x", topics="[]"), r"\[course\]: title must be a text, got None"),
        (COURSE, r"has no \[\[lecture\]\]"),
        (COURSE + 'lecture = "x"\n', r"has no \[\[lecture\]\]"),
        (COURSE + LECTURE.format(date='"soon"', title="x", topics="[]"), r"\[\[lecture\]\] 1: date must be a date"),
        (COURSE + LECTURE.format(date="2026-01-01T10:00:00", title="x", topics="[]"), "date must be a date"),
        (COURSE + LECTURE.format(date="2026-01-01", title="x", topics='"a"'), "topics must be a list, got 'a'"),
        (COURSE + LECTURE.format(date="2026-01-01", title="x", topics='["Implicit bias"]'), "a topic is a key in lower case"),
        (COURSE + LECTURE.format(date="2026-01-01", title="x", topics="[]") + "[beyond_the_schedule]\n", "topics must be a list, got None"),
    ],
)
def test_a_fault_in_a_file_is_named(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(SyllabusError, match=words) as caught:
        load_syllabus(write(tmp_path, text))
    assert "course.toml" in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SyllabusError, match=r"nothing.toml cannot be read \(No such file or directory\)"):
        load_syllabus(tmp_path / "nothing.toml")
