"""Installation: the wheel holds all that a run needs, and the set-up script explains what it cannot do."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "THEORYLAB"))}
    return subprocess.run(
        [str(c) for c in command], cwd=cwd, env=clean | environment, capture_output=True, text=True, check=False, timeout=600
    )


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of a fresh environment that holds the built wheel; its dependencies are borrowed from this one."""
    folder = tmp_path_factory.mktemp("wheel")
    built = run(sys.executable, "-m", "build", "--wheel", "--outdir", folder, ROOT, cwd=folder)
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("*.whl")
    assert run(sys.executable, "-m", "venv", folder / "venv", cwd=folder).returncode == 0
    python = folder / "venv" / "bin" / "python"
    done = run(python, "-m", "pip", "install", "--no-deps", "--no-index", wheel, cwd=folder)
    assert done.returncode == 0, done.stderr
    site = next((folder / "venv" / "lib").glob("python*/site-packages"))
    # a path line in a .pth file brings the packages of this environment, but not its own .pth files, so not an editable theorylab
    (site / "borrowed.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    where = run(python, "-c", "import theorylab; print(theorylab.__file__)", cwd=folder)
    assert str(site) in where.stdout, where.stdout + where.stderr
    return folder / "venv" / "bin"


def test_the_wheel_runs_a_study_and_writes_the_report(installed: Path, tmp_path: Path) -> None:
    done = run(installed / "theorylab", "run", "optimization/saddle", "--scale", "tiny", "--jobs", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    report = tmp_path / "runs" / "report.html"
    assert done.stdout.rstrip().endswith(str(report))
    assert "<math" in report.read_text(encoding="utf-8")


def test_the_wheel_is_typed_and_lists_the_syllabus(installed: Path, tmp_path: Path) -> None:
    done = run(installed / "theorylab", "syllabus", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Optimization theory" in done.stdout
    assert (next((installed.parent / "lib").glob("python*/site-packages")) / "theorylab" / "py.typed").exists()


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """The set-up script in a tree without the rest: whatever goes wrong must go wrong before anything is installed."""
    (tmp_path / "scripts").mkdir()
    return Path(shutil.copy(ROOT / "scripts" / "install.sh", tmp_path / "scripts"))


def fake_python(folder: Path, body: str) -> str:
    path = folder / "fake-python"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ('[ "$1" = --version ] && echo "Python 3.9.2" && exit 0; exit 1', "Python 3.11 or newer is needed"),
        ('case "$*" in *ensurepip*) exit 1;; esac; exit 0', "apt-get install python3-venv"),
    ],
    ids=["too old", "no venv"],
)
def test_set_up_says_in_one_line_what_is_missing(script: Path, tmp_path: Path, body: str, words: str) -> None:
    done = run("sh", script, cwd=tmp_path, PYTHON=fake_python(tmp_path, body))
    assert done.returncode == 1
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / ".venv").exists()


def test_set_up_refuses_an_unknown_torch(script: Path, tmp_path: Path) -> None:
    done = run("sh", script, cwd=tmp_path, TORCH="rocm")
    assert done.returncode == 1
    assert "TORCH must be cpu or cuda" in done.stderr


def test_every_dependency_is_pinned() -> None:
    import tomllib

    pins = {line.split("==")[0].lower().replace("_", "-") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    every = [project["dependencies"], *project["optional-dependencies"].values()]
    names = {re.split("[>=[]", requirement)[0].lower() for group in every for requirement in group}
    missing = names - pins - {"theorylab"}  # an extra of our own, which another one takes in
    assert not missing
