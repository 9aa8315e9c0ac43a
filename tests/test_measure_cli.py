"""``theorylab measure`` and ``plan measure``: a user's file, whatever it does, ends in a card or in one line that says what to do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import theorylab as tl
from theorylab.cli import main
from theorylab.core import instrument as registry
from theorylab.core.instrument import instrument
from theorylab.core.source import Source

ROOT = Path(__file__).parents[1]

FILE = """
import torch
import theorylab as tl
from torch import nn

print("loading")
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
data = torch.randn(30, 4), torch.arange(30) % 3
triple = net, nn.functional.cross_entropy, data
fixed = tl.Problem(*triple)

def problem():
    print("making")
    return tl.Problem(*triple)

def makes_triple():
    return triple

def needs(width, depth=2):
    return fixed

def breaks():
    return 1 / 0

def odd():
    return 42

def leaves():
    raise SystemExit("goodbye")

def infinite():
    return tl.Problem(net, lambda o, t: nn.functional.cross_entropy(o, t) / 0.0, data)

class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x), x

def two_outputs():
    return Pair(), nn.functional.cross_entropy, data

def bad_triple():
    return net, nn.functional.cross_entropy, (torch.randn(3, 4), torch.arange(2))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "mine.py").write_text(FILE)
    return tmp_path


def test_measure_prints_a_table_writes_page_and_json_and_ends_with_the_path(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["measure", "mine.py:problem", "--only", "sharpness", "--seed", "3"]) == 0
    out, err = capsys.readouterr()
    assert "sharpness" in out
    assert "loading" in err  # what the user's file prints stays out of our output
    assert "making" in err
    page = Path(out.splitlines()[-1])
    assert page == folder / "cards" / "mine-problem.html"
    assert "<!DOCTYPE html>" in page.read_text()
    card = tl.ReportCard.from_json((folder / "cards" / "mine-problem.json").read_text())
    assert card.title == "mine.py:problem"
    assert [e.seed for e in card.entries] == [3]


def test_files_of_one_name_in_several_folders_have_a_card_each(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    elsewhere = folder / "work"
    targets = [
        "mine.py",
        "a/mine.py",
        "b/mine.py",
        "a-mine.py",
        "a b/mine.py",
        "a.b/mine.py",
        "../mine.py",
        str(elsewhere / "a" / "mine.py"),
    ]
    for target in targets:
        path = elsewhere / target
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(FILE)
    os.chdir(elsewhere)
    pages = []
    for target in targets:
        assert main(["measure", f"{target}:fixed", "--only", "sharpness"]) == 0
        pages.append(Path(capsys.readouterr().out.splitlines()[-1]))
    assert [p.name for p in pages[:3]] == ["mine-fixed.html", "a-mine-fixed.html", "b-mine-fixed.html"]
    assert pages[-1] == pages[1]  # the same file, named otherwise
    assert len(set(pages)) == len(targets) - 1
    assert sorted(p.stem for p in Path("cards").glob("*.json")) == sorted({p.stem for p in pages})


@pytest.mark.parametrize("ending", ["html", "json"])
def test_a_card_that_cannot_be_written_is_shown_all_the_same(ending: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "cards" / f"mine-problem.{ending}").mkdir(parents=True)
    assert main(["measure", "mine.py:problem", "--only", "sharpness"]) == 2
    out, err = capsys.readouterr()
    assert "sharpness" in out
    assert err.splitlines()[-1].startswith("theorylab: the card cannot be written to ")
    assert f"cards/mine-problem.{ending} (Is a directory)" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("name", ["fixed", "triple", "makes_triple"])
def test_all_kinds_of_objects_are_measured_as_the_same_problem(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["measure", f"mine.py:{name}", "--only", "sharpness", "--json", "--out", "elsewhere", "--dtype", "float64"]) == 0
    body = json.loads(capsys.readouterr().out)
    assert body["provenance"]["config"]["dtype"] == "float64"
    assert body["entries"][0]["instrument"] == "sharpness"
    assert (folder / "elsewhere" / f"mine-{name}.html").is_file()
    namespace: dict[str, object] = {}
    exec(FILE, namespace)
    expected = tl.sharpness(tl.Problem(*namespace["triple"], dtype=__import__("torch").float64))  # pyright: ignore
    assert body["entries"][0]["readings"][0]["value"] == pytest.approx(expected.value, rel=1e-6)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ("nowhere.py:problem", "nowhere.py does not exist; give a Python file and an object in it"),
        (".:problem", ". is a folder"),
        ("mine.py", "mine.py names no object in the file: write mine.py:NAME; it has triple, fixed, problem, makes_triple, breaks"),
        ("mine.py:problm", "mine.py has no 'problm'; it has triple, fixed, problem"),
        ("mine.py:needs", "mine.py:needs must be callable without arguments, but needs width: give them defaults."),
        ("mine.py:breaks", "mine.py: breaks() raised ZeroDivisionError: division by zero (line {line}, in breaks: return 1 / 0)."),
        ("mine.py:leaves", "mine.py: leaves() raised SystemExit: goodbye (line {line}, in leaves"),
        (
            "mine.py:odd",
            "mine.py:odd() must be a theorylab.Problem, or a tuple (model, loss, data), or a function that returns one; got int.",
        ),
        ("mine.py:net", "mine.py:net must be a theorylab.Problem"),
        ("mine.py:bad_triple", "x and y of one batch must have as many rows, got 3 and 2"),
        ("mine.py:infinite", "the loss must be finite to be measured, got inf"),
        (
            "mine.py:two_outputs",
            "raised TypeError: cross_entropy_loss(): argument 'input' (position 1) must be Tensor, not tuple. Raised by loss(outputs, y)",
        ),
        ("mine.py:two_outputs", "read=lambda outputs: outputs[0]."),
        ("mine.py:problem --with curvatur", "no family of instruments is called 'curvatur'; did you mean 'curvature'? Families: "),
        ("mine.py:problem --only sharpnes", "no instrument is called 'sharpnes'"),
        ("mine.py:problem --memory plenty", "memory must be a size such as 4GiB"),
        ("mine.py:problem --memory 100B", "of the problem's own parameters and data, got 100 bytes"),
        ("mine.py:problem --device nonsense", "--device nonsense cannot be used here"),
        ("mine.py:problem --out /dev/null/x", "--out /dev/null/x cannot be written"),
        (
            "broken.py:problem",
            "broken.py: importing it raised NameError: name 'undefined' is not defined (line 2, in <module>: undefined).",
        ),
        ("syntax.py:problem", "syntax.py: importing it raised SyntaxError: invalid syntax (line 1)."),
        ("notes.txt:problem", "notes.txt is not a Python file"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_bad_input_is_one_line_and_2(args: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("broken.py").write_text("x = 1\nundefined\n")
    Path("syntax.py").write_text("def\n")
    Path("notes.txt").write_text("notes")
    assert main(["measure", *args.split()]) == 2
    ours = [line for line in capsys.readouterr().err.splitlines() if line not in ("loading", "making")]
    (line,) = [line for line in ours if not line.startswith("warning: ")]  # of the preflight
    name = args.partition(":")[2]
    where = FILE[: FILE.find(f"def {name}")].count("\n") + 2 if name else 0  # the line after the function's head
    assert words.format(line=where) in line
    assert not list(Path().glob("cards/*"))


@pytest.mark.usefixtures("folder")
def test_a_file_is_imported_not_run_and_finds_its_neighbours(capsys: pytest.CaptureFixture[str]) -> None:
    Path("neighbour_of_the_model.py").write_text("width = 5\n")
    Path("script.py").write_text(
        "import neighbour_of_the_model\nfrom mine_parts import *\nif __name__ == '__main__':\n    raise RuntimeError\n"
    )
    Path("mine_parts.py").write_text(FILE)
    assert main(["measure", "script.py:fixed", "--only", "sharpness"]) == 0
    assert "script.py:fixed" in capsys.readouterr().out


@pytest.mark.usefixtures("folder")
def test_a_failing_instrument_is_shown_and_exits_with_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(registry, "_registry", {})

    def broken(problem: tl.Problem) -> float:
        raise RuntimeError("no such kernel")

    def fine(problem: tl.Problem) -> float:
        return 2.5

    def never(problem: tl.Problem) -> float:
        return 1.0

    source = Source("Nobody 1900", "Section 1", "A book")
    for function, refuses in ((broken, ()), (fine, ()), (never, lambda problem: "it has no such layer")):
        instrument(oracle=function, source=source, family="toy", refuses=refuses)(function)
    monkeypatch.setenv("COLUMNS", "150")
    assert main(["measure", "mine.py:problem", "--with", "toy"]) == 1
    out = capsys.readouterr().out
    assert "broken: RuntimeError: no such kernel" in out
    assert "fine" in out
    assert "never: it has no such layer" in out
    assert main(["measure", "mine.py:problem", "--with", "toy", "--only", "fine,never"]) == 0
    assert main(["plan", "measure", "mine.py:problem", "--with", "toy"]) == 0
    planned = capsys.readouterr().out
    assert "does not apply: it has no such layer" in planned
    assert "broken, fine of unknown cost" in planned


@pytest.mark.usefixtures("folder")
def test_plan_measure_says_seconds_and_bytes_and_measures_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "measure", "mine.py:problem", "--with", "curvature", "--only", "sharpness,hessian"]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert lines[0].split() == ["instrument", "seconds", "memory", "from"]
    assert [line.split()[0] for line in lines[1:3]] == ["hessian", "sharpness"]
    assert "gradients of" in lines[1]
    assert lines[-1].startswith("In all: about")
    assert not Path("cards").exists()


def until(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    """Wait for a condition; five minutes are for a busy machine, not for a measurement."""
    for _ in range(6000):
        if condition():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise TimeoutError("the condition never came true")


def test_ctrl_c_ends_with_a_card_of_what_is_done(folder: Path) -> None:
    slow = """
import time
from pathlib import Path
from theorylab.core.instrument import instrument
from theorylab.core.source import Source

SOURCE = Source("Nobody 1900", "Section 1", "A book")

def first(problem):
    return 2.5

def second(problem):
    Path("reached").touch()
    time.sleep(300)

for function in (first, second):
    instrument(oracle=function, source=SOURCE, family="slow")(function)
"""
    (folder / "slow_tools.py").write_text(slow)
    start = "import sys; sys.path.insert(0, '.'); import slow_tools; from theorylab.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", start, "measure", "mine.py:problem", "--with", "slow", "--out", "cards"]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    pipe = subprocess.PIPE
    options = {"cwd": folder, "env": environment, "stdout": pipe, "stderr": pipe, "text": True, "start_new_session": True}
    listen = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731  # a shell starts background jobs deaf to Ctrl-C
    process = subprocess.Popen(command, **options, preexec_fn=listen)
    until((folder / "reached").exists, process)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "theorylab: stopped: 1 of 2 instruments are on the card."
    assert "Traceback" not in err
    assert out.splitlines()[-1] == str(folder / "cards" / "mine-problem.html")
    card = tl.ReportCard.from_json((folder / "cards" / "mine-problem.json").read_text())
    assert [e.instrument for e in card.entries] == ["first"]
    assert card.unfinished == ("second",)
    assert "Not measured: second" in " ".join(out.split())


def test_the_example_is_measured_as_its_docstring_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example = ROOT / "examples" / "measure_digits.py"
    assert main(["measure", f"{example}:problem", "--only", "sharpness", "--out", str(tmp_path)]) == 0
    assert "P = 3,610" in capsys.readouterr().out
