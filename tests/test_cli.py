"""The command line: what it prints, where it exits, and that neither bad input nor a signal loses what was computed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import webbrowser
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fakelab import FakeLab, installed

from theorylab.cli import main
from theorylab.core.record import load
from theorylab.core.scale import Scale
from theorylab.core.study import find_studies, load_study
from theorylab.course.costs import load_costs
from theorylab.course.costs import main as write_costs
from theorylab.runners.plan import calibrate

SOURCE = Path(__file__).parents[1] / "src"
COMMANDS = ("syllabus", "run", "plan", "show", "config", "measure", "plan measure")


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeLab]:
    yield from installed(tmp_path / "site", monkeypatch)


def start(*args: str, site: Path | None = None, code: str = "") -> subprocess.Popen[str]:
    """``theorylab`` (or Python code) as a process and a process group of its own, as a terminal starts it."""
    path = os.pathsep.join(str(p) for p in (site, SOURCE) if p)
    command = [sys.executable, "-c", code] if code else [sys.executable, "-m", "theorylab", *args]
    pipe = subprocess.PIPE
    environment = os.environ | {"PYTHONPATH": path}
    return subprocess.Popen(
        command, env=environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True, preexec_fn=listen_to_interrupts
    )


def listen_to_interrupts() -> None:
    """A shell starts its background jobs deaf to Ctrl-C, and what they start is deaf, too."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def until(condition: Callable[[], object], process: subprocess.Popen[str] | None = None) -> None:
    """Wait for a condition; five minutes are for a busy machine, not for a measurement."""
    for _ in range(6000):
        if condition():
            return
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise TimeoutError("the condition never came true")


def records(runs: Path, study: str) -> list[Path]:
    return sorted((runs / study).glob("*/record.json"))


def gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state == "Z"  # dead, and not yet collected by whoever inherited it


# --- the shape of the command line


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_every_help_has_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command.split(), "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "Examples:" in shown
    assert f"theorylab {command}" in shown


@pytest.mark.parametrize(
    ("args", "never"),
    [
        ("--help", ("torch", "numpy")),
        ("run --help", ("torch", "numpy")),
        ("measure --help", ("torch", "numpy")),
        ("syllabus", ("torch", "typeguard")),
    ],
)
def test_help_and_syllabus_do_not_import_what_is_slow(args: str, never: tuple[str, ...]) -> None:
    code = f"""
import sys
from theorylab.cli import main
try:
    main({args.split()!r})
finally:
    print([m for m in {never!r} if m in sys.modules], file=sys.stderr)
"""
    status, out, err = finish(start(code=code))
    assert (status, err.strip()) == (0, "[]")
    assert "deep learning" in out or "Examples:" in out


@pytest.mark.parametrize("args", [[], ["run", "--scale", "huge"], ["run", "--seeds", "many"], ["nonsense"], ["config"]])
def test_wrong_usage_exits_with_2(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(args)
    assert ended.value.code == 2
    assert capsys.readouterr().err


# --- run


def test_run_ends_with_the_path_of_the_report(lab: FakeLab, tmp_path: Path) -> None:
    lab.add("quick")
    out = tmp_path / "runs"
    status, printed, err = finish(start("run", lab.topic, "--scale", "tiny", "--out", str(out), site=lab.folder))
    assert (status, err) == (0, "")
    *_, summary, last = printed.splitlines()
    assert last == str(out / "report.html")
    assert Path(last).is_file()
    assert (out / "claims.json").is_file()
    assert summary == "1 claim: 1 holds. 1 study, 0 of them reused."


def test_exit_status_and_summary_of_claims_that_do_not_hold(lab: FakeLab, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    holds, fails, open_ = lab.add("holds"), lab.add("fails", "measured = 3.0"), lab.add("open", "measured = np.array([0.0, 2.0, 1.0])")
    blind = lab.add("blind", "control = 1.0")
    (lab.package / "open.py").write_text((lab.package / "open.py").read_text().replace("import os\n", "import os\nimport numpy as np\n"))
    find_studies.cache_clear()
    base = ["--scale", "tiny", "--jobs", "1", "--out", str(tmp_path)]
    assert main(["run", holds, open_, *base]) == 0
    printed = capsys.readouterr().out
    assert f"INCONCLUSIVE  {open_}/one  claim: measured 1 [" in printed  # exit 0, and said aloud
    assert main(["run", holds, fails, *base]) == 1
    assert f"FAILS  {fails}/one  claim: measured 3 [3, 3], claimed region [0.9, 1.1]" in capsys.readouterr().out
    assert main(["run", "--only", blind, *base]) == 1
    assert f"CONTROL HOLDS  {blind}/one  control: measured 1 " in capsys.readouterr().out


def test_settings_reach_the_study_and_the_record(lab: FakeLab, tmp_path: Path) -> None:
    key = lab.add("quick", "note = f'{config.width} {config.grid} {config.seeds} {config.seed} {config.dtype}'")
    options = ["--seeds", "5", "--seed", "7", "--dtype", "float32", "--set", "width=4", "--set", "grid=1,2"]
    assert main(["run", key, "--scale", "large", "--jobs", "1", "--out", str(tmp_path), *options]) == 0
    (path,) = records(tmp_path, key)
    record = load(path.parent)
    assert record.findings[0].note == "4 (1.0, 2.0) 5 7 float32"
    assert record.scale == "large"
    assert record.provenance.config == {
        "seeds": 5,
        "seed": 7,
        "device": "cpu",
        "dtype": "float32",
        "width": 4,
        "grid": [1.0, 2.0],
        "slope": 1.0,
        "more": [],
    }


def test_a_report_that_cannot_be_written_is_one_line_and_costs_no_record(
    lab: FakeLab, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = lab.add("quick")
    (tmp_path / "report.html").mkdir()
    args = ["run", key, "--scale", "tiny", "--jobs", "1", "--out", str(tmp_path)]
    assert main(args) == 2
    printed, err = capsys.readouterr()
    assert "1 claim: 1 holds." in printed
    assert f"theorylab: the report cannot be written to {tmp_path / 'report.html'} (Is a directory); the records are kept" in err
    assert err.count("\n") == 1
    (tmp_path / "report.html").rmdir()
    assert main(args) == 0
    assert "reused" in capsys.readouterr().out


def test_a_killed_run_loses_only_the_study_it_was_in(lab: FakeLab, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    quick = lab.add("a_quick")
    slow = lab.add("b_slow", "(FOLDER / 'pid').write_text(str(os.getpid()))\nwait_for('released')")
    args = ("run", quick, slow, "--scale", "tiny", "--jobs", "1", "--out", str(runs))
    process = start(*args, site=lab.folder)
    until(lambda: records(runs, quick) and (lab.folder / "pid").exists() and (lab.folder / "pid").read_text(), process)
    worker = int((lab.folder / "pid").read_text())
    assert not gone(worker)
    process.kill()
    finish(process)
    until(lambda: gone(worker))  # no orphan computes on

    (kept,) = records(runs, quick)
    written = kept.stat().st_mtime_ns
    assert not records(runs, slow)
    (lab.folder / "released").touch()
    status, printed, _ = finish(start(*args, site=lab.folder))
    assert status == 0
    assert f"{quick}: reused: 1 holds" in printed
    assert f"{slow}: to compute (no record)" in printed
    assert kept.stat().st_mtime_ns == written


def test_ctrl_c_keeps_what_is_done_and_says_how_to_go_on(lab: FakeLab, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    quick = lab.add("a_quick")
    slow = lab.add("b_slow", "(FOLDER / 'pid').write_text(str(os.getpid()))\nwait_for('never')")
    process = start("run", quick, slow, "--scale", "tiny", "--jobs", "1", "--out", str(runs), site=lab.folder)
    until(lambda: records(runs, quick) and (lab.folder / "pid").exists() and (lab.folder / "pid").read_text(), process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the workers get it too
    status, printed, err = finish(process)
    assert status == 130
    assert printed.splitlines()[-1] == str(runs / "report.html")
    assert slow in (runs / "report.html").read_text()  # as not run
    assert err == "theorylab: stopped: 1 of 2 studies are saved; the same command goes on from there.\n"
    assert gone(int((lab.folder / "pid").read_text()))
    (kept,) = records(runs, quick)
    assert load(kept.parent).error == ""


def test_a_study_computes_in_as_many_threads_as_asked_for(lab: FakeLab, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Torch, imported before or within the study, and what reads the environment."""
    body = "import torch\nopen(FOLDER / 'threads', 'a').write(f'{torch.get_num_threads()} {os.environ[\"OPENBLAS_NUM_THREADS\"]} ')"
    key, late = lab.add("wide", body, top="import torch"), lab.add("late", body)
    base = ["--scale", "tiny", "--jobs", "1"]
    for threads, told in ((1, {}), (2, {"threads": "2"})):
        out = tmp_path / str(threads)
        assert main(["run", key, late, *base, "--threads", str(threads), "--out", str(out)]) == 0
        assert (lab.folder / "threads").read_text().split() == [str(threads)] * 4
        (lab.folder / "threads").unlink()
        (record,) = records(out, key)
        machine = load(record.parent).machine
        assert {name: value for name, value in machine.items() if name == "threads"} == told
    capsys.readouterr()
    assert main(["plan", key, *base, "--seeds", "6", "--threads", "2", "--out", str(tmp_path / "2")]) == 0
    printed = capsys.readouterr().out
    assert "a record of this machine" in printed
    assert "with --jobs 1 --threads 2" in printed
    assert main(["plan", key, *base, "--seeds", "6", "--out", str(tmp_path / "2")]) == 0
    assert "no record with these settings" in capsys.readouterr().out  # one of two threads says little of one


def test_a_broken_package_is_named_and_hides_no_other(lab: FakeLab, tmp_path: Path) -> None:
    good = lab.add("good")
    late = lab.add("late", top="import a_module_that_is_not_there")
    broken = FakeLab(lab.folder / "elsewhere")
    (broken.package / "__init__.py").write_text("raise RuntimeError('half installed')")
    for path in broken.folder.iterdir():
        path.rename(lab.folder / path.name)
    entry = lab.folder / f"{broken.topic}-1.0.dist-info" / "entry_points.txt"
    entry.write_text(f"[theorylab.studies]\n{broken.topic} = {broken.topic}.studies\n")
    args = ("run", lab.topic, "--scale", "tiny", "--out", str(tmp_path / "runs"))
    status, printed, err = finish(start(*args, site=lab.folder))
    assert status == 1
    assert f"studies of package '{broken.topic}' ({broken.topic}.studies) cannot be found: RuntimeError: half installed" in err
    assert f"study {late}: importing {lab.topic}.late raised ModuleNotFoundError" in err
    assert len(err.splitlines()) == 2
    assert f"{good}: 1 holds" in printed
    assert records(tmp_path / "runs", good)
    assert printed.splitlines()[-1].endswith("report.html")


def test_a_data_file_of_the_wrong_hash_is_the_study_s_error(lab: FakeLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, good = lab.add("reads", "from theorylab.data.text import text\ntext('names')"), lab.add("good")
    (tmp_path / "names.txt").write_text("eve\n")
    monkeypatch.setenv("THEORYLAB_DATA", str(tmp_path))
    assert main(["run", key, good, "--scale", "tiny", "--jobs", "1", "--out", str(tmp_path / "runs")]) == 1
    (path,) = records(tmp_path / "runs", key)
    assert "SHA-256 is" in load(path.parent).error.splitlines()[-1]
    assert load(records(tmp_path / "runs", good)[0].parent).error == ""


# --- bad input


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ("run optimization/sadle", "no study matches 'optimization/sadle'; did you mean optimization/saddle?"),
        ("run optimization/saddle --seeds 0", "optimization/saddle: seeds must be at least 1, got 0"),
        ("run optimization/saddle --set decades=99", "optimization/saddle: decades must be at most 15, got 99"),
        ("run optimization/saddle --set decade=9", "has no setting 'decade' (did you mean decades?)"),
        ("run optimization/saddle --set decades", "--set takes name=value"),
        ("run optimization/saddle --jobs 0", "--jobs must be at least 1"),
        ("run optimization/saddle --threads 0", "--threads must be at least 1"),
        ("run optimization/saddle --out /dev/null/x", "--out /dev/null/x cannot be written (Not a directory); choose another folder"),
        ("run optimization/saddle --device nonsense", "--device nonsense cannot be used here"),
        ("run optimization/saddle --cluster tcp://127.0.0.1:9", "--cluster tcp://127.0.0.1:9: no Dask scheduler answers there"),
        ("run optimization/saddle --cluster tcp://127.0.0.1:9 --jobs 2", "leave --jobs out"),
        ("run optimization/saddle --cluster tcp://127.0.0.1:9 --threads 2", "leave --threads out"),
        ("run --syllabus nowhere.toml", "nowhere.toml cannot be read"),
        ("plan optimization/sadle", "did you mean optimization/saddle?"),
        ("config 'zzz'", "no study matches"),
        ("show --out nowhere", "there is no report in nowhere; `theorylab run --out nowhere` writes one."),
        ("syllabus --syllabus nowhere.toml", "nowhere.toml cannot be read"),
    ],
)
def test_bad_input_is_one_line_and_2(
    args: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(args.split()) == 2
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1
    assert not list(tmp_path.glob("runs/*"))


def test_a_gpu_that_is_not_there_is_refused_before_any_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    device = f"cuda:{torch.cuda.device_count()}"
    assert main(["run", "optimization/saddle", "--device", device, "--out", str(tmp_path)]) == 2
    assert f"--device {device} cannot be used here" in capsys.readouterr().err
    assert main(["run", "optimization/saddle", "--set", f"device={device}", "--out", str(tmp_path)]) == 2
    assert f"--device {device} cannot be used here" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_study_that_takes_only_float64_refuses_float32(lab: FakeLab, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = lab.add("exact")
    path = lab.package / "exact.py"
    narrowed = '    dtype: Literal["float64"] = setting("float64", "exact identities")\n    width: int'
    path.write_text(path.read_text().replace("    width: int", narrowed).replace("import os\n", "import os\nfrom typing import Literal\n"))
    find_studies.cache_clear()
    assert main(["run", key, "--dtype", "float32", "--out", str(tmp_path)]) == 2
    assert f"{key}: dtype must be one of float64, got 'float32'" in capsys.readouterr().err


def test_one_replica_is_refused_where_claims_are_statistical(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "optimization/sgd_noise", "--seeds", "1", "--out", str(tmp_path)]) == 2
    assert "optimization/sgd_noise: seeds must be at least 2, got 1" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_output_that_nobody_reads_on_is_no_error() -> None:
    process = start("syllabus")
    assert process.stdout is not None
    process.stdout.close()  # as `| head -0` does
    process.wait(timeout=300)
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.stderr.close()


# --- the other commands


def test_plan_names_what_it_knows_from_and_adds_up(
    lab: FakeLab, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")  # no cell of the table is wrapped
    key, new = lab.add("known"), lab.add("new")
    base = ["--scale", "tiny", "--out", str(tmp_path)]
    assert main(["run", key, *base]) == 0
    capsys.readouterr()
    assert main(["plan", lab.topic, *base, "--jobs", "2"]) == 0
    printed = capsys.readouterr().out
    assert "a valid record: not computed again" in printed
    assert "no record with these settings" in next(line for line in printed.splitlines() if line.startswith(new))
    assert "In all: 1 study of unknown cost, which a run measures." in printed
    assert main(["plan", lab.topic, *base, "--seeds", "6", "--jobs", "1"]) == 0
    assert " s with --jobs 1, at most " in (printed := capsys.readouterr().out)
    assert ", and 1 study of unknown cost, which a run measures." in printed
    assert main(["plan", key, *base, "--seeds", "6"]) == 0
    assert "a record of this machine, × 3 for seeds; changed: seeds: 2 → 6" in capsys.readouterr().out
    assert not records(tmp_path, new)


def test_plan_before_the_first_run_makes_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "optimization/saddle", "--scale", "tiny", "--out", str(tmp_path / "runs")]) == 0
    assert "In all: about" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()


def test_config_lists_a_study_s_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "optimization/saddle", "--scale", "large"]) == 0
    printed = capsys.readouterr().out
    assert "decades" in printed
    assert "a whole number, 4 … 15" in printed
    assert main(["config", "optimization"]) == 2
    assert "config takes one study, 'optimization' names" in capsys.readouterr().err


def test_show_opens_the_report_and_prints_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "report.html"
    page.write_text("")
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    assert main(["show", "--out", str(tmp_path)]) == 0
    assert opened == [page.as_uri()]
    assert capsys.readouterr().out == f"{page}\n"


def test_syllabus_tells_what_the_last_run_found(lab: FakeLab, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    holds, errs = lab.add("holds"), lab.add("errs", "raise ValueError('no')")
    lab.add("waits")
    assert main(["run", holds, errs, "--scale", "tiny", "--jobs", "1", "--out", str(tmp_path)]) == 1
    capsys.readouterr()
    assert main(["syllabus", "--out", str(tmp_path), "--json"]) == 0
    listing = json.loads(capsys.readouterr().out)
    found = {study["study"].partition("/")[2]: study["claims"][0]["state"] for study in listing["topics"][lab.topic]}
    assert found == {"holds": "holds", "errs": "error", "waits": "not run"}
    assert main(["syllabus", "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "✓ holds  one: One is one." in text
    assert "· not run  one: One is one." in text
    assert "Not in this syllabus" in text

    (path,) = records(tmp_path, holds)
    path.write_text("{")  # damaged: the listing goes on without it
    assert main(["syllabus", "--out", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["topics"][lab.topic][1]["claims"][0]["state"] == "not run"


def test_plan_counts_hours_and_says_that_their_memory_is_not_known(
    lab: FakeLab, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a study was never run whole, from what a part of it took."""
    key = lab.add("long")
    config = json.loads(json.dumps(load_study(key).scales[Scale.TINY].as_dict()))
    row = {"seconds": 36_000.0, "bytes": 5, "config": config, "part": True}
    table = {"calibration_seconds": calibrate(), "studies": {key: {"tiny": row}}}
    monkeypatch.setattr("theorylab.course.costs.load_costs", lambda: table)
    assert main(["plan", key, "--scale", "tiny", "--out", str(tmp_path), "--jobs", "1"]) == 0
    printed = capsys.readouterr().out
    assert "extrapolated from a part of it" in printed
    assert re.search(r"In all: about \d+ hours with --jobs 1, in memory that is not known\.", printed)


def test_the_packaged_costs_are_of_our_studies_at_their_own_settings() -> None:
    table = load_costs()
    assert table["calibration_seconds"] > 0
    cards = find_studies()[0]
    for key, rows in table["studies"].items():
        assert key in cards, f"{key} is gone: python -m theorylab.course.costs RUNS writes the table again"
        for scale, row in rows.items():
            assert row["config"] == json.loads(json.dumps(load_study(key).scales[Scale(scale)].as_dict())), f"{key} at {scale} changed"
            assert row["seconds"] > 0
            assert row["bytes"] > 0


def test_the_cost_table_is_made_of_default_runs(lab: FakeLab, tmp_path: Path) -> None:
    key = lab.add("quick")
    base = ["--jobs", "1", "--out", str(tmp_path / "runs")]
    assert main(["run", key, "--scale", "tiny", *base]) == 0
    assert main(["run", key, "--scale", "small", "--seeds", "3", *base]) == 0
    write_costs(tmp_path / "runs", tmp_path / "costs.json")
    assert list(json.loads((tmp_path / "costs.json").read_text())["studies"][key]) == ["tiny"]


def test_the_cost_table_keeps_what_no_record_replaces(lab: FakeLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of another scale stays, in the new machine's seconds; one whose settings or study are no more does not."""
    key, changed = lab.add("quick"), lab.add("changed")
    config = json.loads(json.dumps(load_study(key).scales[Scale.LARGE].as_dict()))
    row = {"seconds": 60.0, "bytes": 5, "config": config, "part": True}
    studies = {key: {"large": row, "tiny": row}, changed: {"large": row | {"config": config | {"seeds": 99}}}, "gone/away": {"tiny": row}}
    monkeypatch.setattr("theorylab.course.costs.load_costs", lambda: {"calibration_seconds": 1e-3, "studies": studies})
    assert main(["run", key, "--scale", "tiny", "--jobs", "1", "--out", str(tmp_path / "runs")]) == 0
    write_costs(tmp_path / "runs", tmp_path / "costs.json")
    table = json.loads((tmp_path / "costs.json").read_text())
    assert list(table["studies"]) == [key]
    rows = table["studies"][key]
    assert rows["tiny"]["config"] != config
    assert rows["large"] == row | {"seconds": pytest.approx(60 * table["calibration_seconds"] / 1e-3, rel=1e-3)}
