"""Training that is stopped and goes on in a later process ends where it would have, to the last bit."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from fakelab import FakeLab, installed
from test_population import CLASSES, LR, D, data, dropped, population
from test_runner import compute, jobs
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from theorylab.core import checkpoints as checkpoints_module
from theorylab.core.checkpoints import checkpoints, discard, once
from theorylab.core.record import folder_of, training_folder
from theorylab.learning import population as population_module
from theorylab.learning.optimizers.adam import adam
from theorylab.learning.optimizers.sgd import sgd
from theorylab.learning.population import Population
from theorylab.learning.trajectory import Trajectory
from theorylab.runners.schedule import decide

STEPS, EVERY = 23, 4


class Stopped(Exception):
    pass


def losses(now: Population) -> dict[str, Tensor]:
    return {"loss": now.losses(), "norm": next(iter(now.params.values())).flatten(1).norm(dim=1)}


def stopped_at(step: int) -> Callable[[Population], dict[str, Tensor]]:
    """A measure at which the program ends, as if it had been killed there."""

    def measure(now: Population) -> dict[str, Tensor]:
        if now.step_count >= step:
            raise Stopped
        return losses(now)

    return measure


def tensors(tree: object) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, dict | list):
        for value in tree.values() if isinstance(tree, dict) else tree:
            yield from tensors(value)


def assert_same(a: Population, b: Population, of_a: Trajectory, of_b: Trajectory) -> None:
    assert a.step_count == b.step_count
    assert torch.equal(of_a.steps, of_b.steps)
    assert of_a.values.keys() == of_b.values.keys()
    assert all(torch.equal(of_a[name], of_b[name]) for name in of_a.values)
    for mine, other in zip(a._groups, b._groups, strict=True):
        one, two = list(tensors(mine.snapshot())), list(tensors(other.snapshot()))
        assert len(one) == len(two) > 0
        assert all(torch.equal(x, y) for x, y in zip(one, two, strict=True))


def normalized() -> nn.Module:
    return nn.Sequential(nn.Linear(D, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, CLASSES))


def numbers() -> tuple[Tensor, Tensor]:
    x, _ = data()
    return x, x[:, :CLASSES] ** 2


KINDS = {
    "full batches": {},
    "minibatches": {"batch_size": 8},
    "momentum": {"optimizer": sgd(LR, momentum=0.9), "batch_size": 8},
    "label noise": {"data": numbers(), "loss": mse_loss, "label_noise": 0.5, "batch_size": 5},
    "dropout": {"make_model": dropped, "batch_size": 8, "mode": "loop"},
    "running statistics": {"make_model": normalized, "batch_size": 8},
    "one step size for all": {"optimizer": adam(0.01)},
}


@pytest.mark.parametrize("mode", ["vmap", "loop"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stop", [1, 9, STEPS])
def test_training_goes_on_where_it_was_stopped(tmp_path: Path, mode: str, kind: str, stop: int) -> None:
    settings = {"mode": mode, **KINDS[kind]}
    undisturbed = population(**settings)
    path = undisturbed.train(STEPS, every=EVERY, measure=losses)
    with checkpoints(tmp_path, every=0), pytest.raises(Stopped):
        population(**settings).train(STEPS, every=EVERY, measure=stopped_at(stop))
    (state,) = tmp_path.glob("*.pt")
    taken = torch.load(state, weights_only=True)["state"]["done"]
    assert 1 <= taken < STEPS
    again = population(**settings)
    with checkpoints(tmp_path, every=0):
        assert_same(again, undisturbed, again.train(STEPS, every=EVERY, measure=losses), path)
        # and what follows it is the same
        assert_same(again, undisturbed, again.train(5, measure=losses), undisturbed.train(5, measure=losses))


def test_a_training_that_ended_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def program() -> tuple[Population, Trajectory, Trajectory]:
        pop = population(batch_size=8, mode="vmap")
        return pop, pop.train(STEPS, every=EVERY), pop.train(7)

    with checkpoints(tmp_path, every=0):
        pop, first, second = program()
    assert [path.name for path in sorted(tmp_path.glob("*.pt"))] == ["0001.pt", "0002.pt"]
    monkeypatch.setattr(Population, "_advance", None)  # no step can be taken
    with checkpoints(tmp_path, every=0):
        again, of_first, of_second = program()
    assert_same(again, pop, of_first, first)
    assert_same(again, pop, of_second, second)


def test_what_is_short_is_computed_again(tmp_path: Path) -> None:
    with checkpoints(tmp_path / "made", every=3600):
        population().train(STEPS)
    assert not (tmp_path / "made").exists()


def test_the_way_of_training_is_that_of_the_first_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = population(mode="loop")
    path = undisturbed.train(STEPS, every=EVERY, measure=losses)
    monkeypatch.setattr(population_module, "fastest_chunk", lambda *_: 0)
    with checkpoints(tmp_path, every=0), pytest.raises(Stopped):
        population(mode="auto").train(STEPS, every=EVERY, measure=stopped_at(9))
    monkeypatch.setattr(population_module, "fastest_chunk", lambda *_: pytest.fail("it was known"))
    with checkpoints(tmp_path, every=0):
        again = population(mode="auto")
        assert_same(again, undisturbed, again.train(STEPS, every=EVERY, measure=losses), path)
    assert again.mode == "loop"


def test_chunks_and_shards_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(population_module, "fastest_chunk", lambda *_: 3)  # four replicas: two and two
    for name, spread in (("chunks", lambda p: p), ("shards", lambda p: p.shard(["cpu", "cpu"]))):
        undisturbed = spread(population(batch_size=8))
        path = undisturbed.train(STEPS, every=EVERY, measure=losses)
        assert [group.size for group in undisturbed._groups] == [2, 2]
        with checkpoints(tmp_path / name, every=0), pytest.raises(Stopped):
            spread(population(batch_size=8)).train(STEPS, every=EVERY, measure=stopped_at(9))
        again = spread(population(batch_size=8))
        with checkpoints(tmp_path / name, every=0):
            assert_same(again, undisturbed, again.train(STEPS, every=EVERY, measure=losses), path)


def test_a_recorded_step_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(population_module, "RECORD_FROM", 0)
    undisturbed = population(batch_size=8, mode="vmap")
    path = undisturbed.train(STEPS, every=EVERY, measure=losses)
    assert any(undisturbed._recorded.values())
    with checkpoints(tmp_path, every=0), pytest.raises(Stopped):
        population(batch_size=8, mode="vmap").train(STEPS, every=EVERY, measure=stopped_at(9))
    again = population(batch_size=8, mode="vmap")
    with checkpoints(tmp_path, every=0):
        assert_same(again, undisturbed, again.train(STEPS, every=EVERY, measure=losses), path)


@pytest.mark.parametrize(
    "other",
    [{"seeds": [3, 1, 4, 2]}, {"optimizer": adam(LR)}, {"make_model": lambda: nn.Linear(D, CLASSES)}],
    ids=["seeds", "optimizer", "shapes"],
)
def test_a_state_of_another_training_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture, other: dict) -> None:
    with checkpoints(tmp_path, every=0):
        population().train(STEPS)
    pop, undisturbed = population(**other, mode="vmap"), population(**other, mode="vmap")
    with checkpoints(tmp_path, every=0):
        pop.train(STEPS)
    assert "another training" in caplog.text
    undisturbed.train(STEPS)
    assert all(torch.equal(p, undisturbed.params[name]) for name, p in pop.params.items())


def test_a_damaged_state_is_told_of_and_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with checkpoints(tmp_path, every=0):
        whole = population(mode="vmap")
        whole.train(STEPS)
    path = tmp_path / "0001.pt"
    path.write_bytes(path.read_bytes()[:500])
    with checkpoints(tmp_path, every=0):
        pop = population(mode="vmap")
        pop.train(STEPS)
    assert "cannot be read" in caplog.text
    assert all(torch.equal(p, whole.params[name]) for name, p in pop.params.items())


@pytest.mark.parametrize("obstacle", ["little room", "no folder"])
def test_where_nothing_can_be_saved_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, obstacle: str
) -> None:
    if obstacle == "little room":
        monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1000, 900, 100))
    else:
        (tmp_path / "states").write_text("a file")
    with checkpoints(tmp_path / "states", every=0):
        pop = population()
        pop.train(STEPS)
    assert pop.step_count == STEPS
    assert len([r for r in caplog.records if r.levelno == logging.WARNING]) == 1
    assert not list(tmp_path.glob("states/*"))


def test_nothing_is_left_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with checkpoints(tmp_path / "states", every=0):
        pass
    population().train(STEPS)
    assert not list(tmp_path.iterdir())
    discard(tmp_path / "states")  # where there is none


def test_a_part_is_computed_once(tmp_path: Path) -> None:
    asked = []

    def part(name: str) -> list[dict[str, object]]:
        asked.append(name)
        pop = population(mode="vmap")
        pop.train(STEPS)
        return [{"name": name, "losses": pop.losses(), "numbers": [1, 2.5]}]

    def program(stop: bool) -> list[list[dict[str, object]]]:
        first = once(partial(part, "first"))
        population(mode="vmap").train(STEPS)
        if stop:
            assert sorted(path.name for path in tmp_path.iterdir()) == [
                "0001.pt",
                "0002.pt",
                "seconds",
            ]  # nothing of the training inside the part
            raise Stopped
        return [first, once(partial(part, "second"))]

    undisturbed = program(stop=False)
    asked.clear()
    with checkpoints(tmp_path, every=0), pytest.raises(Stopped):
        program(stop=True)
    with checkpoints(tmp_path, every=0):
        again = program(stop=False)
    assert asked == ["first", "second"]
    assert [p[0]["name"] for p in again] == ["first", "second"]
    for mine, other in zip(again, undisturbed, strict=True):
        assert torch.equal(mine[0]["losses"], other[0]["losses"])  # type: ignore[arg-type]
        assert mine[0]["numbers"] == other[0]["numbers"]


def test_training_inside_a_part_goes_on(tmp_path: Path) -> None:
    undisturbed = population(batch_size=8, mode="vmap")
    path = undisturbed.train(STEPS, every=EVERY, measure=losses)

    def part(measure: Callable[[Population], dict[str, Tensor]]) -> dict[str, Tensor]:
        pop = population(batch_size=8, mode="vmap")
        return pop.train(STEPS, every=EVERY, measure=measure).values

    with checkpoints(tmp_path, every=0), pytest.raises(Stopped):
        once(lambda: part(stopped_at(9)))
    assert [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.pt")] == ["0001/0001.pt"]
    with checkpoints(tmp_path, every=0):
        found = once(lambda: part(losses))
    assert all(torch.equal(found[name], path[name]) for name in path.values)


def test_long_training_tells_how_far_it_is(tmp_path: Path) -> None:
    told: list[str] = []
    with checkpoints(tmp_path, every=0, tell=told.append), pytest.raises(Stopped):
        population().train(STEPS, every=EVERY, measure=stopped_at(9))
    before = len(told)
    assert told[0] == f"step 1 of {STEPS}"
    with checkpoints(tmp_path, every=0, tell=told.append):
        population().train(STEPS, every=EVERY, measure=losses)
    assert told[before] == told[before - 1]  # where it goes on
    assert f"step {STEPS} of {STEPS}" not in told
    told.clear()
    with checkpoints(tmp_path, every=3600, tell=told.append):
        population().train(STEPS)
    assert not told


def test_the_clock_counts_what_earlier_processes_spent_on_what_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(checkpoints_module.time, "monotonic", lambda: now[0])

    def measure(population: Population) -> dict[str, Tensor]:
        now[0] += 10
        if population.step_count == 12:
            raise Stopped
        return losses(population)

    with checkpoints(tmp_path, every=0) as clock, pytest.raises(Stopped):
        population().train(STEPS, every=EVERY, measure=measure)  # 10 seconds each at steps 0, 4 and 8, and 10 more that are lost
    assert clock.read() == 40
    now[0] += 5000
    with checkpoints(tmp_path, every=0) as clock:
        assert clock.read() == 30
        now[0] += 1
        assert clock.read() == 31
    (tmp_path / "seconds").write_text("damaged")
    with checkpoints(tmp_path, every=0) as clock:
        assert clock.read() == 0


def test_a_negative_interval_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"every must be at least 0 seconds, got -1"), checkpoints(tmp_path, every=-1):
        pass


# ---- studies -----------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeLab]:
    yield from installed(tmp_path / "site", monkeypatch)


BODY = """
import torch
from theorylab.core import checkpoints
from theorylab.learning.optimizers.sgd import sgd
from theorylab.learning.population import Population

checkpoints._here.get().every = 0.0  # the test does not wait for a minute
data = torch.ones(4, 1), torch.zeros(4, 1)
population = Population(lambda: torch.nn.Linear(1, 1), torch.nn.functional.mse_loss, data, optimizer=sgd(0.1), seeds=[0, 1])

def measure(now):
    with (FOLDER / "steps").open("a") as file:
        file.write(f"{now.step_count} ")
    if now.step_count == 30 and not (FOLDER / "killed").exists():
        (FOLDER / "killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return now.losses()

path = population.train(50, every=10, measure=measure)
note = " ".join(map(str, path.steps.tolist()))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the worker is killed by a signal")
def test_a_study_whose_worker_is_killed_goes_on(lab: FakeLab, tmp_path: Path) -> None:
    runs, key = tmp_path / "runs", lab.add("long", BODY)
    (job,) = jobs(key)
    first, _ = compute([job], runs)
    assert "killed" in first.records[0].error
    assert decide(job, runs, force=False).reason == "failed last time; its training goes on where it stopped"
    (folder_of(runs, job.provenance) / "record.json").unlink()  # as after Ctrl-C
    assert decide(job, runs, force=False).reason == "stopped; its training goes on where it stopped"
    second, watcher = compute([job], runs)
    assert "its training goes on" in watcher.text.getvalue()
    assert second.exit_status == 0
    assert second.records[0].findings[0].note == "0 10 20 30 40 50"
    assert any(name.startswith("first: step ") and name.endswith(" of 50") for _, name in watcher.stages)
    assert (lab.folder / "steps").read_text().split().count("0") == 1  # the start was not measured again
    assert not training_folder(runs, job.provenance).exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the worker is killed by a signal")
def test_force_begins_at_the_start(lab: FakeLab, tmp_path: Path) -> None:
    runs, key = tmp_path / "runs", lab.add("long", BODY)
    (job,) = jobs(key)
    compute([job], runs)
    assert training_folder(runs, job.provenance).exists()
    compute([job], runs, force=True)
    assert (lab.folder / "steps").read_text().split() == ["0", "10", "20", "30", "0", "10", "20", "30", "40", "50"]
