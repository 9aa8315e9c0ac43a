"""The runner: resume, isolation of failures, reasons, memory, plans, and the same jobs on a Dask cluster."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from multiprocessing import util
from pathlib import Path

import pytest
from fakelab import FakeLab, installed
from rich.console import Console

from theorylab.core.claim import Claim, Equals, Verdict
from theorylab.core.record import Record, folder_of, load, save
from theorylab.core.scale import Scale
from theorylab.core.source import Source
from theorylab.core.study import find_studies, load_study
from theorylab.core.workers import Workers
from theorylab.runners.cluster import ClusterWorkers
from theorylab.runners.job import Job, empty_record
from theorylab.runners.local import LocalWorkers, available_cores
from theorylab.runners.memory import reset_peak
from theorylab.runners.outcome import Outcome, RunResult, lines, state, verdict_line
from theorylab.runners.plan import Cost, calibrate, expect, longest_first, makespan, table_of
from theorylab.runners.progress import Lines, LiveTable, watch
from theorylab.runners.run import check_folder, jobs_of, run
from theorylab.runners.schedule import decide
from theorylab.runners.selection import UsageError, assignments, configure, describe, select


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeLab]:
    yield from installed(tmp_path / "site", monkeypatch)


class Watcher(Lines):
    """Keeps the stages, in order, and the lines."""

    def __init__(self) -> None:
        self.text = io.StringIO()
        self.stages: list[tuple[str, str]] = []
        super().__init__(Console(file=self.text, width=500))

    def stage(self, study: str, name: str) -> None:
        self.stages.append((study, name))
        super().stage(study, name)


def jobs(*keys: str, scale: Scale = Scale.TINY, **settings: object) -> list[Job]:
    cards = find_studies()[0]
    return jobs_of([cards[key] for key in keys], scale, settings, {})[0]


def compute(todo: list[Job], runs: Path, *, processes: int = 1, **options: object) -> tuple[RunResult, Watcher]:
    watcher = Watcher()
    with closing(LocalWorkers(processes, watcher.stage, watcher.output, runs)) as workers:
        return run(todo, workers, runs, watcher, **options), watcher  # type: ignore[arg-type]


def record_of(result: RunResult, study: str) -> Record:
    return next(r for r in result.records if r.study == study)


def test_a_run_saves_what_it_finds_and_reuses_it(lab: FakeLab, tmp_path: Path) -> None:
    key = lab.add("quick")
    first, watcher = compute(jobs(key), tmp_path / "runs")
    record = record_of(first, key)
    assert not record.error
    assert [f.verdict for f in record.findings] == [Verdict.HOLDS, Verdict.FAILS]
    assert record.seconds > 0
    assert record.peak_bytes > 2**20
    assert record.path == f"{lab.topic}/quick.py"
    assert watcher.stages == [(key, "importing"), (key, "first"), (key, "second")]
    assert first.exit_status == 0

    again, watcher = compute(jobs(key), tmp_path / "runs")
    assert [(o.reused, o.reason) for o in again.outcomes] == [(True, "")]
    assert watcher.stages == []
    assert record_of(again, key).findings == record.findings
    assert "reused: 1 holds" in watcher.text.getvalue()


def test_one_failure_stops_no_other_study(lab: FakeLab, tmp_path: Path) -> None:
    good = [lab.add(f"good{i}") for i in range(2)]
    raises = lab.add("raises", "raise ZeroDivisionError('of a study')")
    dies = lab.add("dies", "os.kill(os.getpid(), signal.SIGKILL)")
    leaves = lab.add("leaves", "os._exit(7)")
    result, _ = compute(jobs(*good, raises, dies, leaves), tmp_path / "runs")
    for key in good:
        assert record_of(result, key).error == ""
    error = record_of(result, raises).error
    assert error.startswith("Traceback")
    assert error.rstrip().endswith("ZeroDivisionError: of a study")
    assert "raises.py" in error
    assert "killed by SIGKILL" in record_of(result, dies).error
    assert "exit code 7" in record_of(result, leaves).error
    assert result.exit_status == 1
    assert result.counts == {"holds": 2, "error": 3}
    # the next run computes again only what failed
    decisions = {key: decide(jobs(key)[0], tmp_path / "runs", force=False) for key in (*good, raises, dies)}
    assert [d.reason for d in decisions.values()] == ["", "", "failed last time", "failed last time"]


def test_what_a_study_found_before_it_raised_is_kept(lab: FakeLab, tmp_path: Path) -> None:
    body = """
    yield ONE.check(predicted=1.0, measured={measured})
    yield Series("early", "A line", x="x", y="y").line("a", [0, 1], [1, 2])
    raise ZeroDivisionError("of a study")
    """
    refuted, confirmed = lab.add("refuted", body.format(measured=5.0)), lab.add("confirmed", body.format(measured=1.0))
    result, _ = compute(jobs(refuted, confirmed), tmp_path / "runs")
    for key, outcome in ((refuted, "fails"), (confirmed, "error")):  # what it saw may refute the claim, but cannot confirm it
        record = load(folder_of(tmp_path / "runs", record_of(result, key).provenance))
        assert record.error.rstrip().endswith("ZeroDivisionError: of a study")
        assert [f.role for f in record.findings] == ["claim"]
        assert [s.key for s in record.series] == ["early"]
        assert record.outcome(f"{key}/one") == outcome
    assert result.counts == {"fails": 1, "error": 1}
    assert result.exit_status == 1


def test_a_worker_that_dies_takes_no_other_study_with_it(lab: FakeLab, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    dies = lab.add("dies", "wait_for('begun')\nos.kill(os.getpid(), signal.SIGKILL)")
    # begun before the other dies, and finished after the parent noticed
    lives = lab.add(
        "lives",
        f"""
        with (FOLDER / 'begin-count').open('a') as file:
            file.write('x')
        (FOLDER / 'begun').touch()
        while not list(Path({str(runs)!r}).glob('*/dies/*/record.json')):
            time.sleep(0.05)
        """,
    )
    result, _ = compute(jobs(dies, lives), runs, processes=2)
    assert "killed by SIGKILL" in record_of(result, dies).error
    assert record_of(result, lives).error == ""
    assert (lab.folder / "begin-count").read_text() == "x"


def test_a_study_that_cannot_be_imported_becomes_an_error_of_its_own(lab: FakeLab, tmp_path: Path) -> None:
    good, broken = lab.add("good"), lab.add("broken", top="raise RuntimeError('at import')")
    cards = find_studies()[0]
    todo, outcomes = jobs_of([cards[good], cards[broken]], Scale.TINY, {}, {})
    assert [j.study for j in todo] == [good]
    (outcome,) = outcomes
    assert "RuntimeError: at import" in outcome.reason
    result, _ = compute(todo, tmp_path / "runs", broken=outcomes)
    assert "RuntimeError: at import" in record_of(result, broken).error
    assert result.exit_status == 1
    (lab.package / "broken.py").write_text((lab.package / "broken.py").read_text().replace("raise RuntimeError('at import')", ""))
    (job,) = jobs(broken)
    assert decide(job, tmp_path / "runs", force=False).reason == "failed last time"


def test_reasons_for_computing_again(lab: FakeLab, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    key = lab.add("quick")
    (job,) = jobs(key)
    assert decide(job, runs, force=False).reason == "no record"
    compute([job], runs)
    assert decide(job, runs, force=False).record is not None
    assert decide(job, runs, force=True).reason == "--force"
    assert decide(jobs(key, seeds=16)[0], runs, force=False).reason == "changed: seeds: 2 → 16"
    # another scale is another line of history
    assert decide(jobs(key, scale=Scale.SMALL)[0], runs, force=False).reason == "no record"

    folder = folder_of(runs, job.provenance)
    kept = {path: path.read_bytes() for path in folder.iterdir()}
    (folder / "record.json").write_bytes(kept[folder / "record.json"][:200])
    assert decide(job, runs, force=False).reason.startswith("record damaged: ")
    (folder / "record.json").unlink()
    assert decide(job, runs, force=False).reason.startswith("record half-written: ")
    (folder / "record.json").write_bytes(kept[folder / "record.json"])
    next(folder.glob("series-*.npz")).write_bytes(b"x")
    assert "checksum" in decide(job, runs, force=False).reason
    for path, data in kept.items():
        path.write_bytes(data)
    assert decide(job, runs, force=False).record is not None

    source = lab.package / "quick.py"
    source.write_text(source.read_text() + "# changed\n")
    assert decide(jobs(key)[0], runs, force=False).reason == "changed: its source or a module that it imports"


def test_a_record_in_the_place_of_another_is_not_believed(lab: FakeLab, tmp_path: Path) -> None:
    key = lab.add("quick")
    (job,), (other,) = jobs(key), jobs(key, seeds=5)
    compute([job], tmp_path)
    folder_of(tmp_path, job.provenance).rename(folder_of(tmp_path, other.provenance))
    assert "another run" in decide(other, tmp_path, force=False).reason


@pytest.mark.parametrize("text", ["{", "null"])
def test_a_damaged_record_is_computed_again_and_written_whole(text: str, lab: FakeLab, tmp_path: Path) -> None:
    (job,) = jobs(lab.add("quick"))
    compute([job], tmp_path)
    folder = folder_of(tmp_path, job.provenance)
    (folder / "record.json").write_text(text)
    result, watcher = compute([job], tmp_path)
    assert "record damaged" in watcher.text.getvalue()
    assert result.exit_status == 0
    assert load(folder).error == ""


def test_a_failed_run_never_replaces_a_finished_record(lab: FakeLab, tmp_path: Path) -> None:
    (job,) = jobs(lab.add("moody", "if (FOLDER / 'angry').exists(): raise RuntimeError('no')"))
    compute([job], tmp_path)
    (lab.folder / "angry").touch()
    result, _ = compute([job], tmp_path, force=True)
    assert result.exit_status == 1
    assert load(folder_of(tmp_path, job.provenance)).error == ""


def test_a_worker_whose_source_changed_meanwhile_refuses(lab: FakeLab, tmp_path: Path) -> None:
    (job,) = jobs(lab.add("quick"))
    stale = dataclasses.replace(job, provenance=dataclasses.replace(job.provenance, source="0" * 16))
    result, _ = compute([stale], tmp_path)
    assert "another version of what was asked for (its source" in result.records[0].error


def test_a_record_that_cannot_be_written_is_said_and_still_reported(lab: FakeLab, tmp_path: Path) -> None:
    (job,) = jobs(lab.add("quick"))
    runs = tmp_path / "runs"
    runs.mkdir()
    (runs / lab.topic).write_text("a file where a folder should be")
    result, _ = compute([job], runs)
    assert len(result.problems) == 1
    assert "could not be written" in result.problems[0]
    assert result.records[0].findings
    assert result.exit_status == 1


def test_peak_memory_is_each_study_s_own_though_workers_are_reused(lab: FakeLab, tmp_path: Path) -> None:
    note = "note = str(os.getpid())"
    big = lab.add("big", f"block = b'x' * (300 * 2**20)\n{note}")
    little = lab.add("little", note)
    result, _ = compute(jobs(big) + jobs(little), tmp_path)
    by_key = {key: record_of(result, key) for key in (big, little)}
    # in the order big, little: both unknown to the plan, and one process
    assert by_key[big].started <= by_key[little].started
    assert by_key[big].peak_bytes - by_key[little].peak_bytes > 250 * 2**20
    pids = {r.findings[0].note for r in by_key.values()}
    assert len(pids) == (1 if reset_peak() else 2)  # a fresh process where the peak cannot be reset


def test_workers_compute_in_one_thread_and_leave_our_environment_alone(
    lab: FakeLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    key = lab.add("threads", "import torch\nnote = f'{torch.get_num_threads()} {os.environ[\"OMP_NUM_THREADS\"]}'")
    result, _ = compute(jobs(key), tmp_path)
    assert result.records[0].findings[0].note == "1 1"
    assert os.environ["OMP_NUM_THREADS"] == "5"


def test_what_a_study_prints_and_warns_is_handed_on_by_line(lab: FakeLab, tmp_path: Path) -> None:
    key = lab.add("talks", "import warnings\nprint('one')\nprint('two', end='')\nprint(' halves')\nwarnings.warn('beware')")
    _, watcher = compute(jobs(key), tmp_path)
    printed = watcher.text.getvalue()
    for line in (f"{key}: | one\n", f"{key}: | two halves\n", "UserWarning: beware"):
        assert line in printed


def test_the_real_study_runs(tmp_path: Path) -> None:
    result, watcher = compute(jobs("optimization/saddle"), tmp_path)
    assert result.exit_status == 0, result.records[0].error
    assert ("optimization/saddle", "strict saddle") in watcher.stages


# --- which studies, with which settings


def test_selection_by_study_topic_claim_and_glob(lab: FakeLab) -> None:
    quick, other = lab.add("quick"), lab.add("slow")
    cards = find_studies()[0]
    for pattern in (quick, f"{quick}/one", f"{lab.topic}/q*", f"{lab.topic[:-1]}?/qui*"):
        assert [c.key for c in select(cards, [pattern])] == [quick]
    assert [c.key for c in select(cards, [lab.topic])] == [quick, other]
    assert len(select(cards, [])) == len(cards)
    with pytest.raises(UsageError, match=f"did you mean {quick}"):
        select(cards, [f"{lab.topic}/quikc"])
    for pattern, meant in (
        ("optimisation", "optimization"),
        ("sadle", "optimization/saddle"),
        ("optimization/sadle", "optimization/saddle"),
    ):
        with pytest.raises(UsageError, match=rf"did you mean {meant}\?"):
            select(cards, [pattern])


@pytest.mark.parametrize(
    ("common", "own", "words"),
    [
        ({"seeds": 0}, {}, "seeds must be at least 1, got 0"),
        ({}, {"width": "10"}, "width must be at most 9, got 10"),
        ({}, {"width": "3.5"}, "width must be a whole number, got '3.5'"),
        ({}, {"widht": "3"}, r"no setting 'widht' \(did you mean width\?\); it has seeds, seed, device, dtype, width, grid, slope, more"),
        ({}, {"grid": "0.1,x"}, "grid must be numbers, comma-separated"),
        ({}, {"grid": "0.1,-1"}, "grid must be at least 0, got -1"),
        ({}, {"grid": "0.1,inf"}, "grid must be finite, got inf"),
        ({}, {"grid": "nan"}, "grid must be finite, got nan"),
        ({}, {"grid": ""}, "grid must hold at least one value, got none"),
        ({}, {"slope": "-inf"}, "slope must be finite, got -inf"),
        ({}, {"slope": "nan"}, "slope must be finite, got nan"),
        ({"dtype": "float16"}, {}, "dtype must be one of float64, float32"),
        ({"seeds": 4}, {"seeds": "3"}, "--seeds 4 and --set seeds=3 contradict each other: give seeds once"),
        ({"dtype": "float32"}, {"dtype": "float64"}, "--dtype float32 and --set dtype=float64 contradict each other"),
    ],
)
def test_settings_that_are_refused(lab: FakeLab, common: dict, own: dict, words: str) -> None:
    key = lab.add("quick")
    with pytest.raises(UsageError, match=f"study {key}: .*{words}|study {key} has {words}"):
        configure(load_study(key), Scale.TINY, common, own)


def test_settings_as_text_and_as_a_table(lab: FakeLab) -> None:
    loaded = load_study(lab.add("quick"))
    config = configure(loaded, Scale.TINY, {"seeds": 4}, assignments(["width=5", "grid=1, 2.5"]))
    assert (config.seeds, config.width, config.grid) == (4, 5, (1.0, 2.5))  # type: ignore[attr-defined]
    same = configure(loaded, Scale.TINY, {"seeds": 4}, assignments(["seeds=4", "more=", "slope=-1e300"]))
    assert (same.seeds, same.more, same.slope) == (4, (), -1e300)  # type: ignore[attr-defined]
    assert ("width", "5", "a whole number, 1 … 9", "a width") in describe(config)
    for texts in (["width"], ["=3"], ["width=1", "width=2"]):
        with pytest.raises(UsageError, match="--set"):
            assignments(texts)


def test_refusals_of_several_studies_are_one_line(lab: FakeLab) -> None:
    keys = [lab.add("a"), lab.add("b")]
    with pytest.raises(UsageError, match=f"^{keys[0]}, {keys[1]}: seeds must be at least 1") as caught:
        jobs(*keys, seeds=0)
    assert "\n" not in str(caught.value)


def test_an_output_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"--out .* cannot be written \(Not a directory\)"):
        check_folder(tmp_path / "file" / "runs")
    check_folder(tmp_path / "new" / "runs")
    assert list((tmp_path / "new" / "runs").iterdir()) == []


# --- what it all comes to

CLAIM = Claim("a/b/c", "s", formula="f", source=Source("w", "l", "r"), kind="asymptotic", relation=Equals(atol=1), control="x", reading="r")


def record_with(job: Job, claim: list[Verdict], control: list[Verdict], error: str = "") -> Record:
    record = empty_record(job, error)
    record.claims = [{"key": CLAIM.key}]
    checks = [("claim", v) for v in claim] + [("control", v) for v in control]
    at = {Verdict.HOLDS: 0.0, Verdict.FAILS: 5.0}
    record.findings = [
        dataclasses.replace(CLAIM.check(predicted=0.0, measured=at.get(v, 0.5)), role=role, verdict=v)  # type: ignore[arg-type]
        for role, v in checks
    ]
    return record


@pytest.mark.parametrize(
    ("claim", "control", "error", "expected", "status"),
    [
        (["holds"], ["fails"], "", "holds", 0),
        (["holds", "fails"], ["fails"], "", "fails", 1),
        (["holds", "inconclusive"], ["fails"], "", "inconclusive", 0),
        (["holds"], ["holds"], "", "control holds", 1),
        (["holds"], ["inconclusive"], "", "control inconclusive", 0),
        (["holds"], ["fails", "holds"], "", "control holds", 1),  # one control that fails makes no other good
        (["holds"], ["fails", "inconclusive", "fails"], "", "control inconclusive", 0),
        (["holds"], ["fails", "fails"], "", "holds", 0),
        (["fails"], ["holds"], "", "fails", 1),
        (["holds"], ["fails"], "Traceback\nValueError: x", "error", 1),
        (["fails"], ["fails"], "Traceback\nValueError: x", "fails", 1),  # what it saw before it broke off refutes the claim
        ([], [], "", "error", 1),
    ],
)
def test_states_and_exit_status(claim: list, control: list, error: str, expected: str, status: int, lab: FakeLab) -> None:
    (job,) = jobs(lab.add("quick"))
    record = record_with(job, [Verdict(v) for v in claim], [Verdict(v) for v in control], error)
    assert state(record, CLAIM.key) == expected
    result = RunResult((Outcome(job.study, record),))
    assert result.exit_status == status
    assert [s for _, _, s in lines(result)] == ([] if expected == "holds" else ["error" if error else expected])
    assert verdict_line(record) == ("error: ValueError: x" if error else f"1 {expected}")
    assert dataclasses.replace(result, interrupted=True).exit_status == 130


# --- plans


def test_expected_cost_comes_from_records_then_the_table_then_nothing(lab: FakeLab, tmp_path: Path) -> None:
    key = lab.add("quick")
    (job,) = jobs(key)
    assert expect(job, tmp_path, {}).seconds is None
    assert expect(job, tmp_path, {}).basis == "no record with these settings"
    table = {"studies": {key: {"tiny": {"seconds": 3.0, "bytes": 100, "config": job.provenance.config}}}}
    assert (expect(job, tmp_path, table, speed=2.0).seconds, expect(job, tmp_path, table).bytes) == (6.0, 100)
    assert expect(jobs(key, scale=Scale.LARGE)[0], tmp_path, table).seconds is None  # another scale is another study's cost

    record = dataclasses.replace(empty_record(job), seconds=10.0, peak_bytes=1000)
    save(record, tmp_path)
    assert (expect(job, tmp_path, table).seconds, expect(job, tmp_path, table).bytes) == (10.0, 1000)
    double = expect(jobs(key, seeds=4)[0], tmp_path, table)
    assert (double.seconds, double.bytes) == (20.0, 2000)
    assert expect(jobs(key, seeds=4)[0], tmp_path, table, floor=800).bytes == 800 + 2 * 200
    half = expect(jobs(key, seeds=1)[0], tmp_path, table)
    assert (half.seconds, half.bytes) == (5.0, 1000)
    other = jobs_of([find_studies()[0][key]], Scale.TINY, {}, {"width": "7"})[0][0]
    assert expect(other, tmp_path, table).seconds is None
    # a failed run and another machine are no witnesses
    elsewhere = dataclasses.replace(record, machine={"system": "other"})
    for useless in (elsewhere, dataclasses.replace(record, error="no")):
        save(useless, tmp_path)
        assert expect(job, tmp_path, table).seconds == 3.0


def test_makespan_and_order() -> None:
    assert makespan([], 3) == 0
    for n in (1, 2, 3, 5):
        seconds = [5.0, 4.0, 3.0, 3.0, 3.0]
        assert max(sum(seconds) / n, max(seconds)) <= makespan(seconds, n) <= sum(seconds) / n + max(seconds)
    costs = {"a": expectation(1.0), "b": expectation(None), "c": expectation(9.0)}
    assert longest_first(costs) == ["b", "c", "a"]
    assert calibrate() > 0


def expectation(seconds: float | None):
    return Cost(seconds, None, "")


def test_a_cost_table_of_records_answers_for_them(lab: FakeLab, tmp_path: Path) -> None:
    (job,) = jobs(lab.add("quick"))
    record = dataclasses.replace(empty_record(job), seconds=2.5, peak_bytes=7)
    table = json.loads(json.dumps(table_of([record, dataclasses.replace(record, error="no", seconds=99.0)])))
    assert table["calibration_seconds"] > 0
    assert expect(job, tmp_path, table).seconds == 2.5
    table["studies"][job.study][str(job.scale)]["part"] = True
    assert expect(job, tmp_path, table) == Cost(2.5, None, "extrapolated from a part of it")


@pytest.mark.parametrize(
    ("affinity", "quota", "cores"),
    [
        (6, "max 100000", 6),
        (6, "300000 100000", 3),
        (6, "350000 100000", 3),
        (6, "50000 100000", 1),
        (2, "300000 100000", 2),
        (6, None, 6),
        (None, "max 100000", 9),
        (None, "400000 100000", 4),
    ],
)
def test_cores_are_those_that_this_process_may_use(
    affinity: int | None, quota: str | None, cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a machine of nine: those of its affinity, which not every system has, and of a container's quota."""

    def read_text(path: Path) -> str:
        assert path == Path("/sys/fs/cgroup/cpu.max")
        if quota is None:
            raise FileNotFoundError
        return quota + "\n"

    monkeypatch.setattr(os, "cpu_count", lambda: 9)
    if affinity is None:
        monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    else:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(affinity)), raising=False)
    with monkeypatch.context() as files:
        files.setattr(Path, "read_text", read_text)
        assert available_cores() == cores


# --- progress


def test_a_terminal_gets_a_table_and_a_pipe_gets_lines(lab: FakeLab, tmp_path: Path) -> None:
    screen = Console(file=io.StringIO(), force_terminal=True, width=120)
    table = watch(screen)
    assert isinstance(table, LiveTable)
    good, bad = jobs(lab.add("good")) + jobs(lab.add("bad"))
    with table:
        table.planned([decide(job, tmp_path, force=False) for job in (good, bad)])
        table.stage(good.study, "a [bold] stage")
        table.stage(bad.study, "begins")
        table.output(bad.study, "[red] a warning")
        assert f"{bad.study} | [red] a warning" in screen.file.getvalue()  # type: ignore[attr-defined]
        assert "a [bold] stage" in render(table)
        table.finished(good.study, record_with(good, [Verdict.HOLDS], [Verdict.FAILS]))
        table.finished(bad.study, empty_record(bad, "Traceback\nValueError: [red] no"))
        shown = render(table)
    assert "1 holds" in shown
    assert "error: ValueError: [red] no" in shown
    assert isinstance(watch(Console(file=io.StringIO())), Lines)


def render(table: LiveTable) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(table._table())
    return console.file.getvalue()  # type: ignore[attr-defined]


# --- a cluster


def test_no_cluster_and_no_dask_are_one_line_each(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"--cluster tcp://127.0.0.1:9: no Dask scheduler answers there") as caught:
        ClusterWorkers("tcp://127.0.0.1:9", print, timeout=1.0)
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match=r"--cluster nonsense://x: no Dask scheduler answers there"):
        ClusterWorkers("nonsense://x", print, timeout=1.0)
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(UsageError, match=r"pip install 'theorylab\[cluster\]'"):
        ClusterWorkers("tcp://127.0.0.1:9", print)


def test_the_same_jobs_run_on_a_cluster(lab: FakeLab, tmp_path: Path) -> None:
    from distributed import LocalCluster

    good, raises = lab.add("good"), lab.add("raises", "raise ZeroDivisionError('there')")
    todo = jobs(good, raises)
    watcher = Watcher()
    with LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None) as cluster:
        with closing(ClusterWorkers(cluster.scheduler_address, watcher.stage)) as workers:
            result = run(todo, workers, tmp_path, watcher)
        assert record_of(result, good).findings[0].verdict is Verdict.HOLDS
        assert "ZeroDivisionError: there" in record_of(result, raises).error
        assert load(folder_of(tmp_path, todo[0].provenance)).study == good
        # by the scheduler's order, a study's stages come before its record is asked for; some may still travel when it ends
        assert (good, "importing") in watcher.stages


def leave_word(path: str, on_stage: object) -> None:
    """A job after which the process has something to do at its end, as libraries with semaphores have."""
    util.Finalize(None, Path(path).touch, exitpriority=1)


def test_a_worker_without_a_job_ends_by_itself(tmp_path: Path) -> None:
    """Killed, it would leave semaphores behind, of which Python warns when the run is over."""
    workers = Workers(1, leave_word, on_stage=lambda job, stage: None, on_output=lambda job, line: None)
    workers.submit(str(tmp_path / "ended")).result()
    assert not (tmp_path / "ended").exists()
    workers.close()
    assert (tmp_path / "ended").exists()


def twice(job: int, on_stage: Callable[[str], None]) -> int:
    """A job that tells of itself and says something before it gives its result."""
    on_stage("begins")
    print("half way")
    return 2 * job


@pytest.mark.parametrize("error", [ValueError, OSError])  # the second is also what a pipe to a dead process raises
@pytest.mark.parametrize("where", ["stage", "output"])
def test_what_is_told_may_raise_and_the_next_job_gets_its_own_result(error: type[Exception], where: str) -> None:
    def told(kind: str, job: int) -> None:
        if (kind, job) == (where, 1):
            raise error("no space left")

    workers = Workers(1, twice, on_stage=lambda job, stage: told("stage", job), on_output=lambda job, line: told("output", job))
    with closing(workers):
        with pytest.raises(error, match="no space left"):
            workers.submit(1).result(timeout=120)
        assert workers.submit(2).result(timeout=120) == 4
        assert workers.submit(3).result(timeout=120) == 6
