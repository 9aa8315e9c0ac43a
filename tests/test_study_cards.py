"""What is read of a study without importing it: the ways to write one, what cannot be read, and what must agree with the registry."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakelab import FakeLab, installed

from theorylab.core.scale import Scale
from theorylab.core.study import StudyError, find_studies, load_study
from theorylab.runners.outcome import RunResult
from theorylab.runners.run import jobs_of


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeLab]:
    yield from installed(tmp_path / "site", monkeypatch)


def rewritten(lab: FakeLab, changes: dict[str, str]) -> str:
    """The key of a study whose text is changed."""
    key = lab.add("own")
    path = lab.package / "own.py"
    text = path.read_text()
    for old, new in changes.items():
        old, new = (part.replace("KEY", key) for part in (old, new))
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
    find_studies.cache_clear()
    return key


FROM_CLAIM, FROM_STUDY = "from theorylab.core.claim import Claim, Equals, Finding", "from theorylab.core.study import study"
CLAIMS = "from theorylab.core import claim as c\nfrom theorylab.core.claim import Finding"


@pytest.mark.parametrize(
    "changes",
    [
        {'@study("KEY"': '@study(key="KEY"'},
        {'@study("KEY"': "@study(NAME", FROM_STUDY: f'{FROM_STUDY}\n\nNAME = "KEY"'},
        {"@study(": "@st.study(", FROM_STUDY: "import theorylab.core.study as st"},
        {"@study(": "@study.study(", FROM_STUDY: "from theorylab.core import study"},
        {"@study(": "@theorylab.study(", FROM_STUDY: "import theorylab"},
        {"@study(": "@register(", FROM_STUDY: "from theorylab.core.study import study as register"},
        {"ONE = Claim(": "ONE = c.Claim(", "Equals(": "c.Equals(", FROM_CLAIM: CLAIMS},
        {"ONE = Claim(": "ONE = Statement(", FROM_CLAIM: FROM_CLAIM.replace("Claim,", "Claim as Statement,")},
        {"ONE = Claim(": "CLAIMS = [Claim(", 'reading="It is.",\n)': 'reading="It is.",\n)]\nONE = CLAIMS[0]'},
    ],
)
def test_studies_and_claims_are_read_under_any_name(changes: dict[str, str], lab: FakeLab) -> None:
    key = rewritten(lab, changes)
    cards, problems = find_studies()
    assert not problems
    assert [c.key for c in cards[key].claims] == [f"{key}/one"]
    assert load_study(key).claims == cards[key].claims


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"@study(": "@make(", "@dataclass(frozen": "make = study\n\n\n@dataclass(frozen"},
            "no study is registered in a way that can be read",
        ),
        ({'@study("KEY"': '@study("KEY"[:]'}, "the key of a study must be written out"),
        ({"ONE = Claim(\n    ": "ONE = Claim(\n    str() or "}, "a claim must be written as a literal"),
    ],
)
def test_a_study_that_cannot_be_read_is_a_problem_of_its_package(changes: dict[str, str], message: str, lab: FakeLab) -> None:
    good, key = lab.add("good"), rewritten(lab, changes)
    cards, problems = find_studies()
    assert good in cards
    assert key not in cards
    assert len(problems) == 1
    assert re.search(rf"{lab.topic}\.own, line \d+: .*{message}", problems[0])


def test_helpers_beside_studies_are_no_problem(lab: FakeLab) -> None:
    lab.add("good")
    (lab.package / "helper.py").write_text(
        "import theorylab.core.study as st\nfrom theorylab.core.study import StudyError, find_studies, load_study, study\n"
        "from theorylab import Claim\n\n\ndef keys():\n    return [study.key for study in map(load_study, find_studies()[0])]\n"
    )
    assert find_studies()[1] == ()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"ONE = Claim(": "def made():\n    return Claim(", 'reading="It is.",\n)': 'reading="It is.",\n)\n\n\nONE = made()'}, "one"),
        (
            {"claims=[ONE]": "claims=[ONE, dataclasses.replace(ONE, key=ONE.key + 'more')]", "import os": "import dataclasses\nimport os"},
            "onemore",
        ),
        ({"claims=[ONE]": "claims=[dataclasses.replace(ONE, reading='Other.')]", "import os": "import dataclasses\nimport os"}, "one"),
    ],
)
def test_a_study_whose_claims_are_not_those_in_its_text_is_refused(changes: dict, named: str, lab: FakeLab) -> None:
    """Its record would not know of them, and a claim that fails would count for nothing."""
    good, key = lab.add("good"), rewritten(lab, changes)
    message = rf"study {key}: {key}/{named} cannot be read from the text of {lab.topic}\.own as registered; write each claim"
    for _ in range(2):  # also once it is imported
        with pytest.raises(StudyError, match=message):
            load_study(key)
    ready, broken = jobs_of([find_studies()[0][k] for k in (good, key)], Scale.TINY, {}, {})
    assert [job.study for job in ready] == [good]
    assert re.match(message, broken[0].reason)
    assert RunResult(tuple(broken)).exit_status == 1
