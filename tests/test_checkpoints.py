"""Training that is stopped and goes on in a later process ends where it would have, to the last bit."""

from __future__ import annotations

import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from fakelab import FakeLab, installed
from test_population import CLASSES, LR, SEEDS, D, data, dropped, make, population
from test_runner import compute, jobs
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from theorylab.core import checkpoints as checkpoints_module
from theorylab.core.checkpoints import checkpoints, discard, once
from theorylab.core.files import write_atomically
from theorylab.core.record import folder_of, training_folder
from theorylab.learning import identity
from theorylab.learning import population as population_module
from theorylab.learning.optimizers.adam import adam
from theorylab.learning.optimizers.sgd import sgd
from theorylab.learning.population import Population
from theorylab.learning.schedule import power_decay, scheduled
from theorylab.learning.trajectory import Trajectory
from theorylab.models.mlp import mlp
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


class Scaled(nn.Module):
    """A network with a number that is no parameter."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale, self.net = scale, nn.Linear(D, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.net(x)


def larger() -> nn.Module:
    net = make()
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(2)
    return net


WEIGHTS = torch.ones(len(SEEDS), len(data()[0]), dtype=torch.float64)
FEWER = torch.cat([WEIGHTS[:, 1:], torch.zeros(len(SEEDS), 1)], 1)  # as many rows of the same, but one
REAL = {"data": numbers(), "loss": mse_loss}
OTHERS = {
    "seeds": ({}, {"seeds": [3, 1, 4, 2]}),
    "optimizer": ({}, {"optimizer": adam(LR)}),
    "shapes": ({}, {"make_model": lambda: nn.Linear(D, CLASSES)}),
    "data": ({}, {"data": data(seed=1)}),
    "data of a replica": (
        {"data": tuple(t.expand(len(SEEDS), *t.shape) for t in data()), "data_per_replica": True},
        {"data": tuple(t[torch.tensor([[*range(30)]] * 3 + [[*range(29), 0]])] for t in data()), "data_per_replica": True},
    ),
    "rows": ({"row_weights": WEIGHTS}, {"row_weights": FEWER}),
    "rows of minibatches": ({"row_weights": WEIGHTS, "batch_size": 8}, {"row_weights": FEWER, "batch_size": 8}),
    "loss": (REAL, REAL | {"loss": lambda out, y: (out - y).abs().mean()}),
    "what a loss closes over": (
        {"loss": partial(cross_entropy, label_smoothing=0.1)},
        {"loss": partial(cross_entropy, label_smoothing=0.2)},
    ),
    "step size": ({"optimizer": sgd(0.1)}, {"optimizer": sgd(0.2)}),
    "step size of a replica": ({}, {"optimizer": sgd(LR * torch.tensor([1, 1, 1, 2]))}),
    "momentum": ({"optimizer": sgd(LR, momentum=0.5)}, {"optimizer": sgd(LR, momentum=0.9)}),
    "schedule": ({"optimizer": scheduled(sgd, 0.1, power_decay(0.5))}, {"optimizer": scheduled(sgd, 0.1, power_decay(1.0))}),
    "batch size": ({"batch_size": 8}, {"batch_size": 9}),
    "full batches": ({}, {"batch_size": 8}),
    "precision": ({}, {"dtype": torch.float32}),
    "label noise": (REAL | {"label_noise": 0.1}, REAL | {"label_noise": 0.2}),
    "initial parameters": ({}, {"make_model": larger}),
    "activation": (
        {"make_model": lambda: mlp([D, 8, CLASSES], activation="tanh")},
        {"make_model": lambda: mlp([D, 8, CLASSES], activation="gelu")},
    ),
    "a number of the network": ({"make_model": lambda: Scaled(1.0)}, {"make_model": lambda: Scaled(2.0)}),
    "what is trained": ({}, {"trainable": lambda name: "weight" in name}),
}


def test_a_recorded_step_does_not_outlive_the_way_of_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(population_module, "RECORD_FROM", 0)

    def program(chunk: int, measure: Callable[[Population], dict[str, Tensor]] = losses) -> Population:
        monkeypatch.setattr(population_module, "fastest_chunk", lambda *_: chunk)
        pop = population(seeds=[3], optimizer=sgd(0.1), batch_size=8)  # a group of one, as a loop has
        pop.train(3)
        pop.train(STEPS, every=EVERY, measure=measure)
        return pop

    undisturbed = program(chunk=0)
    with checkpoints(tmp_path, every=0), pytest.raises(Stopped):
        program(chunk=0, measure=stopped_at(15))
    (tmp_path / "0001.pt").unlink()  # as of a short training, which is done again, and now in another way
    with checkpoints(tmp_path, every=0):
        again = program(chunk=1)
    assert again.mode == undisturbed.mode == "loop"
    assert all(torch.equal(p, undisturbed.params[name]) for name, p in again.params.items())


@pytest.mark.parametrize("kind", OTHERS)
def test_a_state_of_another_training_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str) -> None:
    first, other = OTHERS[kind]
    with checkpoints(tmp_path, every=0):
        population(**first, mode="vmap").train(STEPS)
    pop, undisturbed = population(**other, mode="vmap"), population(**other, mode="vmap")
    with checkpoints(tmp_path, every=0):
        pop.train(STEPS)
    assert "another training" in caplog.text
    undisturbed.train(STEPS)
    assert all(torch.equal(p, undisturbed.params[name]) for name, p in pop.params.items())


def test_what_comes_from_replaced_parameters_is_not_used_for_others(tmp_path: Path) -> None:
    def program(factor: float) -> Population:
        pop = population(mode="vmap")
        pop.train(STEPS)
        pop.params = {name: factor * p for name, p in pop.params.items()}
        pop.train(STEPS)
        return pop

    with checkpoints(tmp_path, every=0):
        program(0.5)
    with checkpoints(tmp_path, every=0):
        again = program(2.0)
    undisturbed = program(2.0)
    assert all(torch.equal(p, undisturbed.params[name]) for name, p in again.params.items())


def test_a_program_that_keeps_results_of_its_own_is_not_given_those_of_other_trainings(tmp_path: Path) -> None:
    kept: dict[float, Tensor] = {}

    def program(stop: bool) -> list[Tensor]:
        for factor in (1.0, 2.0, 3.0):
            if factor not in kept:
                pop = population(optimizer=sgd(factor * LR), mode="vmap")
                pop.train(STEPS)
                kept[factor] = pop.losses()
            if stop:
                raise Stopped
        return list(kept.values())

    undisturbed = program(stop=False)
    kept.clear()
    with checkpoints(tmp_path, every=0), pytest.raises(Stopped):
        program(stop=True)
    with checkpoints(tmp_path, every=0):
        again = program(stop=False)
    assert torch.equal(torch.stack(again), torch.stack(undisturbed))


def test_a_training_is_the_same_however_its_replicas_are_cut_and_whatever_was_asked_of_them() -> None:
    def hooked() -> nn.Module:
        net = make()
        net.register_forward_hook(lambda module, given, out: 2 * out)
        return net

    def known(mode: str, asked: bool) -> str:
        pop = population(make_model=hooked, mode=mode, batch_size=8)
        if asked:
            pop.losses()
        return identity.identity_of(pop._groups, pop.loss, pop.batch_size)

    assert len({known(mode, asked) for mode in ("vmap", "loop") for asked in (False, True)}) == 1
    # replicas that can only be told by data of their own
    own = {"data": tuple(t.expand(len(SEEDS), *t.shape) for t in numbers()), "loss": mse_loss, "data_per_replica": True, "label_noise": 0.1}
    cut = [population(**own, mode=mode)._call(1, None) for mode in ("vmap", "loop")]
    assert cut[0] == cut[1] is not None


def test_data_are_looked_through_once_a_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    whole = identity.identity
    monkeypatch.setattr(identity, "identity", lambda *things: asked.append(1) or whole(*things))
    population().train(STEPS)
    assert not asked
    with checkpoints(tmp_path, every=0):
        pop = population()
        pop.train(STEPS)
        pop.train(STEPS)
    assert len(asked) == 1


def test_what_cannot_be_told_from_others_leaves_no_state(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lock = threading.Lock()

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        with lock:
            return cross_entropy(outputs, targets)

    with checkpoints(tmp_path, every=0):
        pop = population(loss=loss, mode="vmap")
        pop.train(STEPS)
        assert once(lambda: [lock.locked()]) == [False]
    undisturbed = population(mode="vmap")
    undisturbed.train(STEPS)
    assert all(torch.equal(p, undisturbed.params[name]) for name, p in pop.params.items())
    assert caplog.text.count("no checkpoint is kept") == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["half of a file", "a tensor", "another dictionary"])
def test_a_damaged_state_is_told_of_and_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str) -> None:
    with checkpoints(tmp_path, every=0):
        whole = population(mode="vmap")
        whole.train(STEPS)
    path = tmp_path / "0001.pt"
    if damage == "half of a file":
        path.write_bytes(path.read_bytes()[:500])
    else:
        torch.save(torch.ones(3) if damage == "a tensor" else {"weight": torch.ones(3)}, path)
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


def asked_of(log: Path) -> list[str]:
    """What wrote its name there; a list would be a part of what a part is."""
    return log.read_text().split() if log.exists() else []


def write(log: Path, name: str) -> None:
    log.write_text(" ".join([*asked_of(log), name]))


def test_a_part_is_computed_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    tmp_path, asked = tmp_path_factory.mktemp("states"), tmp_path_factory.mktemp("log") / "asked"

    def part(name: str) -> list[dict[str, object]]:
        write(asked, name)
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
    asked.unlink()
    with checkpoints(tmp_path, every=0), pytest.raises(Stopped):
        program(stop=True)
    with checkpoints(tmp_path, every=0):
        again = program(stop=False)
    assert asked_of(asked) == ["first", "second"]
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


def test_a_part_is_not_given_what_another_found(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with checkpoints(tmp_path, every=0):
        assert [once(partial(pow, 2, k)) for k in (1, 2)] == [2, 4]
    with checkpoints(tmp_path, every=0):  # a program that has kept the first by itself
        assert once(partial(pow, 2, 2)) == 4
    assert "another training" in caplog.text


@pytest.mark.parametrize("room", [True, False], ids=["room", "full disk"])
def test_what_was_trained_inside_a_part_stays_until_the_part_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: bool) -> None:
    undisturbed = population(batch_size=8, mode="vmap")
    undisturbed.train(STEPS)

    def part() -> dict[str, Tensor]:
        pop = population(batch_size=8, mode="vmap")
        pop.train(STEPS)
        return pop.params

    def left() -> list[str]:
        return sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.pt"))

    with checkpoints(tmp_path, every=0), pytest.raises(Stopped):
        once(lambda: [part(), stop()])  # as it ended, before the part had
    # for the part as a whole, what is due depends on whether this process took its time
    assert left() == ["0001/0001.pt"]

    def write_but_parts(path: Path, content: object) -> None:
        if not room and path.parent == tmp_path:
            raise OSError("disk full")
        write_atomically(path, content)  # type: ignore[arg-type]

    monkeypatch.setattr(checkpoints_module, "write_atomically", write_but_parts)
    monkeypatch.setattr(Population, "_advance", None)  # no step can be taken
    for attempt in ("goes on", "finds it"):
        with checkpoints(tmp_path, every=3600):
            found = once(part)
        assert all(torch.equal(found[name], p) for name, p in undisturbed.params.items()), attempt
        assert left() == (["0001.pt"] if room else ["0001/0001.pt"])


def stop() -> None:
    raise Stopped


def test_training_inside_a_measure_leaves_the_order_of_others_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(now: Population) -> dict[str, Tensor]:
        inner = population(data=data(seed=now.step_count), mode="vmap")
        inner.train(3)
        return losses(now) | {"inner": inner.losses(), "part": once(partial(torch.full, (now.size,), float(now.step_count)))}

    def interrupted(now: Population) -> dict[str, Tensor]:
        if now.step_count >= 9:
            raise Stopped
        return measured(now)

    def program(measure: Callable[[Population], dict[str, Tensor]]) -> tuple[Trajectory, Trajectory]:
        first, second = population(mode="vmap"), population(optimizer=sgd(2 * LR), mode="vmap")
        return first.train(STEPS, every=EVERY, measure=measure), second.train(STEPS, every=EVERY, measure=losses)

    undisturbed = program(measured)
    with checkpoints(tmp_path, every=0), pytest.raises(Stopped):
        program(interrupted)
    assert [p.name for p in tmp_path.rglob("*.pt")] == ["0001.pt"]
    with checkpoints(tmp_path, every=0):
        found = program(measured)
    for mine, other in zip(found, undisturbed, strict=True):
        assert torch.equal(mine.steps, other.steps)
        assert all(torch.equal(mine[name], other[name]) for name in other.values)
    assert sorted(p.name for p in tmp_path.rglob("*.pt")) == ["0001.pt", "0002.pt"]


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
from theorylab.learning.schedule import power_decay, scheduled

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
