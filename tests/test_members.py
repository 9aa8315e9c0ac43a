"""Long trainings of many networks: the same numbers in any chunks and processes, continued after a kill, and never mixed with others."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

from theorylab.core import checkpoints as checkpoints_module
from theorylab.core.checkpoints import checkpoints
from theorylab.core.progress import Bar
from theorylab.instruments.model_games import retraining_game
from theorylab.learning.optimizers.adam import adam
from theorylab.learning.optimizers.sgd import sgd
from theorylab.learning.population import Population
from theorylab.learning.retraining import half_subsets, retrain
from theorylab.learning.shadow_models import shadow_models


def net(hidden: int = 5) -> nn.Module:
    return nn.Sequential(nn.Linear(4, hidden), nn.Tanh(), nn.Linear(hidden, 3))


def data(n: int = 10) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(n, 4, generator=generator, dtype=torch.float64), torch.arange(n) % 3


def given(**change: Any) -> dict[str, Any]:
    """Arguments of a retraining of ten members, in chunks of four."""
    x, y = data()
    return {
        "make_model": net,
        "loss": F.cross_entropy,
        "data": (x, y),
        "masks": half_subsets(10, 5, seed=1),
        "seeds": [7, 8],
        "optimizer": sgd(0.2, momentum=0.5),
        "steps": 6,
        "targets": (x[:3], y[:3]),
        "chunk": 4,
        "dtype": torch.float64,
        "mode": "loop",
        "progress": False,
    } | change


def told(**change: Any) -> tuple[Tensor, list[int]]:
    """What a retraining finds, and how many members were done whenever it said so."""
    seen: list[int] = []
    return retrain(**given(progress=lambda done, total: seen.append(done), **change)), seen


def test_members_are_the_same_in_any_chunks() -> None:
    whole = retrain(**given(chunk=10))
    for chunk in (1, 3, 4):
        found, seen = told(chunk=chunk)
        assert torch.equal(found, whole)
        assert seen == [0, *range(chunk, 10, chunk), 10]
        torch.testing.assert_close(retrain(**given(chunk=chunk, mode="vmap")), whole, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("mode", ["loop", "vmap"])
def test_members_are_the_same_in_any_number_of_processes_also_of_closures(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as a worker has
    try:
        hidden, scale = 6, torch.tensor(0.5, dtype=torch.float64)
        change = {"make_model": lambda: net(hidden), "target": lambda out, y: scale * out[:, 0], "optimizer": adam(0.01), "mode": mode}
        one, several = retrain(**given(**change)), retrain(**given(jobs=2, **change))
    finally:
        torch.set_num_threads(torch_threads)
    assert torch.equal(one, several)


class Hanging(nn.Module):
    """A network that stops computing in a process that was told to, once so many files are in a folder."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder, self.layers = folder, net()

    def forward(self, x: Tensor) -> Tensor:
        while len(list(Path(self.folder).glob("*.members"))) >= int(os.environ.get("THEORYLAB_TEST_HANG", "1000")):
            time.sleep(0.01)
        return self.layers(x)


def hanging(folder: str, **change: Any) -> dict[str, Any]:
    return given(make_model=lambda: Hanging(folder), folder=folder, chunk=2, **change)


def wait_until(condition: Callable[[], bool]) -> None:
    """For as long as a crowded machine may take, so that a failure ends too."""
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it did not happen in five minutes")


def not_there(group: int) -> bool:
    """Whether no process of a group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_killed_retraining_goes_on_from_the_chunks_that_were_done(jobs: int, tmp_path: Path) -> None:
    program = f"import test_members as t; t.retrain(**t.hanging({str(tmp_path)!r}, jobs={jobs}))"
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    victim = subprocess.Popen(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": paths, "THEORYLAB_TEST_HANG": "2"},
        start_new_session=True,
    )
    try:
        wait_until(lambda: len(list(tmp_path.glob("*.members"))) >= 2 or victim.poll() is not None)
        assert victim.poll() is None, "it ended by itself"
    finally:
        victim.send_signal(signal.SIGKILL)
        victim.wait()
    wait_until(lambda: not_there(victim.pid))  # its workers end with it, though nobody tells them
    kept = len(list(tmp_path.glob("*.members")))
    assert kept == 2 if jobs == 1 else 2 <= kept <= 3  # the other worker may have been at the end of its chunk
    seen: list[int] = []
    found = retrain(**hanging(str(tmp_path), progress=lambda done, total: seen.append(done)))
    assert seen[0] == 2 * kept
    assert seen[-1] == 10
    assert torch.equal(found, retrain(**given(make_model=lambda: Hanging(""))))


def other_net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))


def smoothed(outputs: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(outputs, labels, label_smoothing=0.1)


X, Y = data()
LOCK = threading.Lock()  # nothing that could be sent or told from another
OTHERS: dict[str, Callable[[], dict[str, Any]]] = {
    "data": lambda: {"data": (X + 1e-9, Y)},
    "labels": lambda: {"data": (X, Y.flip(0))},
    "masks": lambda: {"masks": half_subsets(10, 5, seed=2)},
    "row weights": lambda: {"masks": 1.0 + half_subsets(10, 5, seed=1)},
    "seeds": lambda: {"seeds": [9, 10]},
    "loss": lambda: {"loss": smoothed},
    "optimizer": lambda: {"optimizer": sgd(0.2, momentum=0.6)},
    "model": lambda: {"make_model": other_net},
    "steps": lambda: {"steps": 7},
    "batch_size": lambda: {"batch_size": 2},
    "targets": lambda: {"targets": (X[1:4], Y[1:4])},
    "target": lambda: {"target": lambda out, y: out[:, 0]},
    "dtype": lambda: {"dtype": torch.float32},
}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a retraining."""
    folder = tmp_path_factory.mktemp("kept")
    retrain(**given(folder=folder))
    return folder


def test_what_is_kept_is_found(kept: Path) -> None:
    found, seen = told(folder=kept)
    assert seen == [10]
    assert torch.equal(found, retrain(**given()))
    _, seen = told(folder=kept, masks=torch.cat([half_subsets(10, 5, seed=1), half_subsets(10, 2, seed=9)]))
    assert seen[0] == 8  # of more subsets the whole chunks at the beginning


@pytest.mark.parametrize(("stop", "left"), [(7, 12), (9, 10)], ids=["between chunks", "in a chunk"])
def test_chunks_and_checkpoints_together_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int, left: int) -> None:
    """Chunks that are found are not trained: the states of those after them are found all the same, and no chunk is given another's."""
    calls, advance = [0], Population._advance

    def advanced(population: Population, count: int, check: bool) -> None:
        calls[0] += 1
        if calls[0] == stop:
            raise InterruptedError
        advance(population, count, check)

    change = {"seeds": [7], "masks": half_subsets(10, 10, seed=1), "folder": tmp_path / "chunks"}  # chunks differ in row weights alone
    undisturbed = retrain(**given(**change | {"folder": None}))
    monkeypatch.setattr(Population, "_advance", advanced)
    monkeypatch.setattr(checkpoints_module, "_SHARE", 1e9)  # a state after every step, however long it takes
    with checkpoints(tmp_path / "states", every=0), pytest.raises(InterruptedError):
        retrain(**given(**change))
    calls[0], stop = 0, 0
    with checkpoints(tmp_path / "states", every=0):
        assert torch.equal(retrain(**given(**change)), undisturbed)
    assert calls[0] == left


@pytest.mark.parametrize("name", OTHERS)
def test_what_was_kept_of_another_configuration_is_not_used(name: str, kept: Path) -> None:
    change = OTHERS[name]()
    found, seen = told(folder=kept, **change)
    assert seen[0] == 0
    assert torch.equal(found, retrain(**given(**change)))


@pytest.mark.parametrize("damage", [lambda raw: raw[:-20], lambda raw: raw[:60] + b"?" + raw[61:], lambda raw: b""])
def test_a_damaged_file_is_trained_again_with_a_warning(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    expected = retrain(**given(folder=tmp_path))
    files = sorted(tmp_path.glob("*.members"))
    whole = files[1].read_bytes()
    files[1].write_bytes(damage(whole))
    with pytest.warns(UserWarning, match=rf"{files[1].name} cannot be read \(it does not match its checksum\); its members are trained"):
        found, seen = told(folder=tmp_path)
    assert seen[0] in (6, 8)  # the last chunk has two members
    assert torch.equal(found, expected)
    assert told(folder=tmp_path)[1] == [10]


def dying(outputs: Tensor, labels: Tensor) -> Tensor:
    os.kill(os.getpid(), signal.SIGKILL)
    return outputs.sum()


def test_what_happens_in_a_worker_is_told() -> None:
    with pytest.raises(RuntimeError, match=r"killed by SIGKILL.*kept where a folder is given"):
        retrain(**given(jobs=2, loss=dying))
    with pytest.raises(FloatingPointError, match="seed 7") as raised:
        retrain(**given(jobs=2, loss=lambda out, y: F.cross_entropy(out, y) / 0))
    assert any("In a worker process" in note for note in raised.value.__notes__)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"chunk": 0}, ValueError, "chunk and jobs must be at least 1, got 0 and 1"),
        ({"jobs": 0}, ValueError, "chunk and jobs must be at least 1, got 4 and 0"),
        ({"folder": "/dev/null/here"}, ValueError, "folder must be one that can be written"),
        ({"jobs": 2, "make_model": lambda: LOCK and net()}, TypeError, "make_model cannot be sent to another process"),
        ({"folder": ".", "loss": lambda out, y: LOCK and out.mean()}, TypeError, "cannot be told from others of its kind"),
    ],
)
def test_bad_requests_are_refused_before_any_work(change: dict, error: type[Exception], message: str) -> None:
    def never(outputs: Tensor, labels: Tensor) -> Tensor:
        raise AssertionError("it was measured")

    with pytest.raises(error, match=message):
        retrain(**given(**{"target": never} | change))


def test_shadow_models_and_games_are_kept_too(tmp_path: Path) -> None:
    seen: list[int] = []
    options = {"optimizer": adam(0.02), "steps": 5, "seed": 0, "folder": tmp_path, "progress": lambda done, total: seen.append(done)}
    first = shadow_models(net, F.cross_entropy, (X, Y), models=6, chunk=4, **options)
    again = shadow_models(net, F.cross_entropy, (X, Y), models=6, chunk=4, **options)
    assert seen == [0, 4, 6, 6]
    assert torch.equal(first.outputs(X), again.outputs(X))
    alone = shadow_models(net, F.cross_entropy, (X, Y), models=6, **options | {"folder": None})
    torch.testing.assert_close(first.outputs(X), alone.outputs(X), rtol=1e-9, atol=1e-12)

    masks = half_subsets(10, 6, seed=4)
    masks[2] = False
    worths = []
    for folder in (tmp_path, tmp_path, None):
        seen.clear()
        game = retraining_game(net, F.cross_entropy, (X, Y), (X, Y), chunk=2, **options | {"folder": folder})
        worths.append(game(masks))
    assert torch.equal(worths[0], worths[1])
    assert torch.equal(worths[0], worths[2])


def test_plain_lines_keep_their_distance() -> None:
    console = Console(file=(shown := io.StringIO()), width=80)
    with Bar(console, "training", 4, quiet=0, every=1e9) as bar:
        bar._timer.join()
        for done in range(3):
            bar.show(f"{done} of 4 networks")
    assert shown.getvalue() == "training: 0 of 4 networks\n"
