"""What is remembered between processes: studies are read again where their file changed, and a damaged cache is no obstacle."""

from __future__ import annotations

from pathlib import Path

import pytest

from theorylab.core import study as studies
from theorylab.core.cache import cache_folder, recall, remember


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("THEORYLAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def read(monkeypatch: pytest.MonkeyPatch) -> tuple[dict, list[str]]:
    """All studies as a new process finds them, and the modules whose source was parsed for it."""
    parsed: list[str] = []
    original = studies.read_card

    def counting(path: Path, module: str):
        parsed.append(module)
        return original(path, module)

    monkeypatch.setattr(studies, "read_card", counting)
    studies.find_studies.cache_clear()
    cards, problems = studies.find_studies()
    monkeypatch.setattr(studies, "read_card", original)
    assert not problems
    return cards, parsed


def test_sources_are_parsed_once_and_again_where_the_cache_is_damaged(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cards, parsed = read(monkeypatch)
    assert len(parsed) >= len(cards) > 10
    assert read(monkeypatch) == (cards, [])
    (folder / "cards.pickle").write_bytes(b"damaged")
    assert read(monkeypatch) == (cards, parsed)


def test_a_changed_file_is_parsed_again_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    cards, _ = read(monkeypatch)
    one = cards["optimization/saddle"]
    mark = studies._mark
    monkeypatch.setattr(studies, "_mark", lambda path: ("changed", *mark(path)) if path == one.path else mark(path))
    assert read(monkeypatch) == (cards, [one.module])


def test_another_stamp_or_a_folder_that_cannot_be_written_remember_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remember("x", 1, [2])
    assert recall("x", 1) == [2]
    assert recall("x", 2) is None
    assert recall("y", 1) is None
    blocked = folder.parent / "file"
    blocked.write_text("")
    monkeypatch.setenv("THEORYLAB_CACHE", str(blocked))
    remember("x", 1, [3])
    assert recall("x", 1) is None
    monkeypatch.delenv("THEORYLAB_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    assert cache_folder() == folder / "theorylab"
