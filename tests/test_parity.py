"""The instruments agree with their peers, where these are installed (the ``bench`` extra); times are measured by the benchmarks alone."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from benchmarks import apart
from benchmarks.parity import MODULES, Comparison, Contest, comparisons, families, measured, missing, not_compared
from benchmarks.parity.__main__ import measured_apart
from benchmarks.parity.records import is_measured, merged, table

ROWS = 24
NUMBERS = [c for c in comparisons(ROWS) if isinstance(c, Comparison)]


@pytest.mark.filterwarnings("ignore")  # those of the peers
@pytest.mark.parametrize("c", NUMBERS, ids=lambda c: f"{c.instrument}, {c.setting}: {c.peer}")
def test_agrees(c: Comparison) -> None:
    if missing(c.peer):
        pytest.skip(f"{c.peer} is not installed")
    assert c.deviation() <= c.tolerance


def test_every_peer_has_a_comparison() -> None:
    assert {c.peer for c in comparisons(ROWS)} == set(MODULES)


def fake(value: float, **options) -> Comparison:
    numbers = torch.tensor([4.0, 2.0], dtype=torch.float64)
    wrong = numbers * torch.tensor([1.0, 1.0 + value], dtype=torch.float64)
    return Comparison("fake", "two numbers", "torch", lambda dtype: (lambda: wrong.to(dtype), lambda: numbers.to(dtype)), **options)


def test_a_difference_is_relative_to_the_largest_number_and_errors_to_those_of_the_peer() -> None:
    assert fake(0.1).deviation() == pytest.approx(0.05)
    assert fake(1.0, errors=True).deviation() == pytest.approx((32 / 20) ** 0.5)


def test_a_missing_or_failing_peer_is_a_row_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(dtype: torch.dtype):
        raise RuntimeError("no such layer")

    found = [
        fake(1e-12, goal=1e9),
        fake(0.1),
        dataclasses.replace(fake(0.0), prepare=broken),
        dataclasses.replace(fake(0.0), peer="nngeometry"),
        Contest("fake", "by fiat", "torch", lambda: ([0.9, 0.8], [0.5, 0.6]), "its way"),
    ]
    monkeypatch.setitem(MODULES, "nngeometry", "a_module_that_is_not_there")
    monkeypatch.setattr("benchmarks.parity.products.rows", lambda n: found)
    records = list(measured(ROWS, 1, ["products"]))
    assert [r.get("agrees") for r in records] == [None, True, False, False, None]
    text = table([{"machine": {"threads": "1"}, "rows": records}])
    assert "not compared: pip install" in text
    assert "raised RuntimeError: no such layer" in text
    assert "**does not agree**" in text
    assert "| ≤ 1e+09 | yes |" in text
    assert "| 0.850 | 0.550 | +0.300 [" in text
    assert "| yes | its way |" in text
    assert [r["instrument"] for r in measured(ROWS, 1, ["products"], [])] == []


@pytest.mark.parametrize(
    ("ours", "word"),
    [([0.51, 0.52, 0.50], "yes"), ([0.5, 0.48, 0.5], "not told apart"), ([0.3, 0.31, 0.3], "**no**"), ([0.4999] * 3, "yes")],
)
def test_a_contest_is_lost_only_where_its_whole_interval_is_below(ours: list[float], word: str) -> None:
    best = {**row("influence", "pyDVL", 0.0), "ours": ours, "theirs": [0.5, 0.5, 0.5]}
    other = {**row("influence", "dattri", 0.0), "ours": ours, "theirs": [0.1, 0.1, 0.1]}
    lines = [line for line in table([{"machine": {}, "rows": [best, other]}]).splitlines() if "pyDVL" in line or "dattri" in line]
    assert f"| {word} | the best peer |" in lines[0]
    assert "the best peer" not in lines[1]


def row(family: str, peer: str, value: float) -> dict:
    about = {"family": family, "instrument": "fake", "setting": "numbers", "peer": peer, "version": "1.0", "note": ""}
    return {**about, "deviation": value, "tolerance": 1.0, "errors": False, "agrees": True, "ratio": value, "goal": None, "reached": None}


def found(runs: list[dict]) -> set[tuple]:
    return {(r["family"], r["peer"], r.get("ratio")) for run in runs for r in run["rows"]}


def test_a_new_run_replaces_the_rows_of_its_families_and_peers_alone() -> None:
    old, new = {"date": "yesterday"}, {"date": "today"}
    runs = merged(
        [], old, [row("a", "p", 1.0), row("a", "p", 2.0), row("a", "q", 3.0), row("b", "p", 4.0), row("gone", "p", 5.0)], ["a", "b"]
    )
    runs = merged(runs, new, [row("a", "p", 6.0)], ["a", "b"])
    assert found(runs) == {("a", "q", 3.0), ("b", "p", 4.0), ("a", "p", 6.0)}
    assert [(run["machine"], len(run["rows"])) for run in runs] == [(old, 2), (new, 1)]
    lines = table(runs).splitlines()
    assert "- a (q), b: date: yesterday" in lines
    assert "- a (p): date: today" in lines
    assert found(merged(runs, new, [row("a", "q", 7.0), row("b", "p", 8.0)], ["a", "b"])) == {
        ("a", "p", 6.0),
        ("a", "q", 7.0),
        ("b", "p", 8.0),
    }


def test_that_a_peer_is_missing_is_said_until_it_has_rows_and_then_no_more() -> None:
    gap, every = not_compared("a", "pyDVL", "no network"), ["a", "b"]
    runs = merged([], {}, [gap], every)
    assert "| all |  | pyDVL | | | | | | not compared: no network |" in table(runs)
    runs = merged(runs, {}, [row("b", "p", 1.0)], every)  # of another family: still said
    assert found(runs) == {("a", "pyDVL", None), ("b", "p", 1.0)}
    assert found(merged(runs, {}, [gap], every)) == found(runs)  # and once
    runs = merged(runs, {}, [row("a", "pyDVL", 2.0)], every)
    assert found(runs) == {("a", "pyDVL", 2.0), ("b", "p", 1.0)}
    assert found(merged(runs, {}, [gap], every)) == found(runs)  # what was measured once outlives its package


def test_a_peer_that_is_kept_apart_is_measured_by_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def rows_of(peer: str, install: bool = False) -> list[dict]:
        return list(measured_apart(["valuation", "influence"], peer, [], install))

    monkeypatch.setattr(apart, "made", lambda module: False)
    assert [r["family"] for r in rows_of("pyDVL")] == ["valuation", "influence"]
    assert "--peers installs it" in rows_of("pyDVL")[0]["note"]

    def offline(module: str) -> None:
        raise RuntimeError("no network")

    monkeypatch.setattr(apart, "make", offline)
    assert rows_of("pyDVL", install=True)[0]["note"] == "not compared: cannot be installed: no network"

    monkeypatch.setattr(apart, "made", lambda module: True)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 3))
    assert rows_of("pyDVL")[0]["note"] == "not compared: its process ended with exit status 3"

    def process(command: list[str], **options) -> subprocess.CompletedProcess:
        assert options["env"]["PYTHONPATH"].startswith(str(apart.folder("pydvl")))
        folder = Path(command[command.index("--out") + 1])
        (folder / "parity.json").write_text('{"runs": [{"machine": {}, "rows": [{"version": "0.10.0"}]}]}')
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", process)
    (only,) = rows_of("pyDVL")
    assert is_measured(only)


def test_packages_kept_apart_are_peers_and_their_versions_are_exact() -> None:
    files = sorted(apart.PINS.glob("*.txt"))
    assert {f.stem for f in files} <= set(MODULES.values())
    for file in files:
        pins = [line for line in file.read_text().splitlines() if not line.startswith("#")]
        assert all(line.count("==") == 1 for line in pins)
        assert {peer for peer, module in MODULES.items() if module == file.stem} & {line.split("==")[0] for line in pins}


def test_what_is_kept_apart_goes_before_what_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = tmp_path / "rich-0.1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("rich.py", "mine = True\n")
        archive.writestr("rich-0.1.dist-info/METADATA", "Metadata-Version: 2.1\nName: rich\nVersion: 0.1\n")
        archive.writestr("rich-0.1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("rich-0.1.dist-info/RECORD", "")
    monkeypatch.setattr(apart, "PINS", tmp_path)
    monkeypatch.setattr(apart, "folder", lambda module: tmp_path / "apart" / module)
    apart.pins("rich").write_text(f"{wheel}\n")
    assert not apart.made("rich")
    apart.make("rich")
    assert apart.made("rich")
    script = "import importlib.metadata as m, rich; print(rich.mine, m.version('rich'))"
    done = subprocess.run([sys.executable, "-c", script], env=apart.environment("rich"), capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "0.1"]

    apart.pins("rich").write_text(f"{tmp_path / 'none-0.1-py3-none-any.whl'}\n")
    assert not apart.made("rich")  # other pins: to be made anew
    with pytest.raises(RuntimeError, match=r"none-0\.1"):
        apart.make("rich")
    assert not apart.made("rich")


def test_families_are_the_modules_with_comparisons() -> None:
    assert set(families()) >= {"influence", "valuation", "products"}
    assert not {"problems", "records", "__main__"} & set(families())
