"""What README, docs and help texts show works: Python blocks run, commands are ones that the program takes, links lead on."""

from __future__ import annotations

import doctest
import re
import shlex
from pathlib import Path

import pytest

from theorylab.cli import options

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_the_examples_of_a_page_run_from_top_to_bottom(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of one page share a namespace; a block with >>> prompts must print what it shows."""
    text, names = page.read_text(), {"__name__": "__main__"}
    monkeypatch.chdir(tmp_path)
    for block in re.finditer(r"^```(?:python|pycon)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE):
        line = text.count("\n", 0, block.start(1))
        if ">>>" in block[1]:
            test = doctest.DocTestParser().get_doctest(block[1], names, page.name, str(page), line)
            test.globs = names  # a copy otherwise
            assert doctest.DocTestRunner().run(test, clear_globs=False).failed == 0
        else:
            exec(compile("\n" * line + block[1], str(page), "exec"), names)


def commands() -> list[tuple[str, str]]:
    """Every line of a shell block, and every example of a help text, that calls theorylab, as (where, command)."""
    found = []
    for page in PAGES:
        for block in re.findall(r"```sh\n(.*?)```", page.read_text(), flags=re.DOTALL):
            found += [(page.name, line) for line in block.splitlines() if line.startswith("theorylab ")]
    for name, (_, text) in options.COMMANDS.items():
        found += [(f"{name} --help", line.strip()) for line in text.splitlines() if line.startswith("  theorylab ")]
    return [(where, re.split(r"\s{2,}|\s#|->", line)[0]) for where, line in found]


def test_there_are_commands_to_check() -> None:
    assert {where for where, _ in commands()} >= {"README.md", "run --help"}


@pytest.mark.parametrize(("where", "command"), commands())
def test_a_command_shown_is_accepted(where: str, command: str) -> None:
    options.parse(shlex.split(command)[1:])  # SystemExit on wrong usage


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)[^)]*\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"
