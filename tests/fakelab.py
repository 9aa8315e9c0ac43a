"""A package of small studies, written to a folder as an installer would leave it: for tests of the runner and the command line."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from theorylab.core import study as study_module
from theorylab.core.study import find_studies

STUDY = '''"""A fake study named {name}."""

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from theorylab.core.claim import Claim, Equals, Finding
from theorylab.core.config import Config, setting
from theorylab.core.series import Series, Stage
from theorylab.core.source import Source
from theorylab.core.study import study

ONE = Claim(
    "{key}/one", "One is one.", formula="1 = 1", source=Source("Peano 1889", "Axiom 1", "Arithmetices principia"),
    kind="asymptotic", relation=Equals(atol=0.1), control="two", reading="It is.",
)
FOLDER = Path({folder!r})


def wait_for(name):
    """Until another process leaves a file; two minutes are for a machine that is busy, not for a measurement."""
    for _ in range(1200):
        if (FOLDER / name).exists():
            return
        time.sleep(0.1)
    raise TimeoutError(name)


@dataclass(frozen=True, kw_only=True)
class FakeConfig(Config):
    """Settings of a fake study."""

    width: int = setting(3, "a width", low=1, high=9)
    grid: tuple[float, ...] = setting((0.1, 0.2), "a grid", low=0)
    slope: float = setting(1.0, "a slope")
    more: tuple[int, ...] = setting((), "more widths; none by default")


@study("{key}", claims=[ONE], tiny=FakeConfig(seeds=2), small=FakeConfig(), large=FakeConfig(width=9))
def run(config: FakeConfig) -> Iterator[Finding | Series | Stage]:
    """Check that one is one."""
    measured, control, note = 1.0, 2.0, ""
    yield Stage("first")
{body}
    yield Stage("second")
    yield ONE.check(predicted=1.0, measured=measured, note=note)
    yield ONE.control_check(predicted=1.0, measured=control)
    yield Series("line", "A line", x="x", y="y").line("a", [0, 1], [1, 2])
'''

_numbers = itertools.count()


class FakeLab:
    """A package under ``folder`` with a topic of its own name; studies are added by `add`, with lines of code in their middle."""

    def __init__(self, folder: Path) -> None:
        # every package has its own name, since modules and their sources are remembered for the life of a process
        self.topic = f"fakelab{next(_numbers)}"
        self.folder = folder
        self.package = folder / self.topic
        self.package.mkdir(parents=True)
        (self.package / "__init__.py").write_text("")
        info = folder / f"{self.topic}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {self.topic}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[theorylab.studies]\n{self.topic} = {self.topic}\n")

    def key(self, name: str) -> str:
        return f"{self.topic}/{name}"

    def add(self, name: str, body: str = "", *, top: str = "") -> str:
        """Write the study ``name`` and return its key; ``top`` is code that runs when its module is imported."""
        text = STUDY.format(name=name, key=self.key(name), folder=str(self.folder), body=textwrap.indent(textwrap.dedent(body), "    "))
        (self.package / f"{name}.py").write_text(text + textwrap.dedent(top))
        find_studies.cache_clear()
        return self.key(name)


def installed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeLab]:
    """A package on the path of this process, forgotten afterwards; the body of the fixture ``lab``."""
    lab = FakeLab(folder)
    monkeypatch.syspath_prepend(str(lab.folder))  # spawned workers inherit sys.path
    yield lab
    for key in [k for k in study_module._registry if k.startswith(lab.topic)]:
        del study_module._registry[key]
    find_studies.cache_clear()
