"""The commands that README, docs and the help texts show are commands that the program takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from theorylab import cli

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def commands() -> list[tuple[str, str]]:
    """Every line of a shell block, and every example of a help text, that calls theorylab, as (where, command)."""
    found = []
    for page in PAGES:
        for block in re.findall(r"```sh\n(.*?)```", page.read_text(), flags=re.DOTALL):
            found += [(page.name, line) for line in block.splitlines() if line.startswith("theorylab ")]
    for name, (_, text) in cli._COMMANDS.items():
        found += [(f"{name} --help", line.strip()) for line in text.splitlines() if line.startswith("  theorylab ")]
    return [(where, re.split(r"\s{2,}|\s#|->", line)[0]) for where, line in found]


def test_there_are_commands_to_check() -> None:
    assert {where for where, _ in commands()} >= {"README.md", "run --help"}


@pytest.mark.parametrize(("where", "command"), commands())
def test_a_command_shown_is_accepted(where: str, command: str) -> None:
    cli._parse(shlex.split(command)[1:])  # SystemExit on wrong usage


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)[^)]*\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"
