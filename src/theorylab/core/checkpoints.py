"""Where long training leaves its state on the way, so that a program that is stopped goes on from there when it is run again."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from theorylab.core.files import write_atomically

State = TypeVar("State")
log = logging.getLogger(__name__)

_SHARE = 0.02
"""Of the time, that saving may take."""
_ROOM = 0.1
"""Of the free disk, that one state may take."""


class Clock:
    """Seconds since the program was first begun, less those between its processes and those after a process's last state."""

    def __init__(self, path: Path | None = None) -> None:
        self._path, self._begun, self._before = path, time.monotonic(), 0.0
        if path is not None:
            with suppress(OSError, ValueError):  # nothing there yet, or damaged
                self._before = float(path.read_text())

    def read(self) -> float:
        """The seconds until now."""
        return self._before + time.monotonic() - self._begun

    def save(self) -> None:
        """Leave them for the next process."""
        if self._path is not None:
            write_atomically(self._path, str(self.read()).encode())


@dataclass
class _Place:
    """A folder, and how many computations have begun that may leave something in it."""

    folder: Path
    every: float
    tell: Callable[[str], None] | None
    clock: Clock
    count: int = 0

    def next(self, call: dict[str, Any]) -> Checkpoint:
        self.count += 1
        return Checkpoint(self.folder / f"{self.count:04d}.pt", call, self)


_here: ContextVar[_Place | None] = ContextVar("checkpoints", default=None)


@contextmanager
def checkpoints(folder: str | os.PathLike[str], *, every: float = 60.0, tell: Callable[[str], None] | None = None) -> Iterator[Clock]:
    """Whatever `Population.train` does inside leaves its state in a folder, and goes on from what it finds there.

    A state is found by the place of its training in the order of calls, so the program should be the same as the one that was stopped: the
    same calls in the same order with the same settings. It is used where all that the training's numbers depend on is the same (data and
    row weights, loss, model, where training begins, the optimizer with its hyper-parameters, seeds, batch size, steps); any other training
    starts anew. What is measured on the way is not compared: trainings that differ in nothing else must keep their order. A training with
    something that has no `theorylab.core.fingerprint`, as an open file, leaves no state, which a warning says.

    Only a call that lasts leaves anything; what comes between calls is computed again. A replica ends where it would have without
    interruption, to the last bit if it goes on with as many threads. Of a measure only what it returned is there: a search that starts at
    its last result begins afresh, a list to which a measure appends lacks what an earlier process appended, and what a measure trains
    leaves no state.

    Args:
        folder: Made where it does not exist; of one program. Remove it (`discard`) when the program has ended.
        every: Seconds between states, at least 0. Longer where saving would take more than a fiftieth of the time; and nothing is saved
            that would fill a tenth of the free disk.
        tell: Told where a long training goes on, and how far it is, ``"step 300 of 10000"``, at every hundredth at most.

    Yields:
        The `Clock` of the program, over all its processes.

    Raises:
        ValueError: ``every`` is negative.

    Example:
        >>> import tempfile, torch
        >>> from theorylab.learning.optimizers.sgd import sgd
        >>> from theorylab.learning.population import Population
        >>> def trained(steps):
        ...     data = torch.ones(4, 1), torch.zeros(4, 1)
        ...     population = Population(lambda: torch.nn.Linear(1, 1), torch.nn.functional.mse_loss, data, optimizer=sgd(0.1), seeds=[0])
        ...     return population.train(steps).steps, population.step_count
        >>> folder = tempfile.mkdtemp()
        >>> for attempt in ("the first", "the second takes no step"):
        ...     with checkpoints(folder, every=0):
        ...         trained(20)[1]
        20
        20
        >>> discard(folder)
    """
    if not every >= 0:
        raise ValueError(f"every must be at least 0 seconds, got {every}.")
    place = _Place(Path(folder), every, tell, Clock(Path(folder) / "seconds"))
    with _at(place):
        yield place.clock


@contextmanager
def suspended() -> Iterator[None]:
    """What is trained inside leaves nothing and finds nothing: for what a process that goes on does not do again."""
    with _at(None):
        yield


@contextmanager
def in_subfolder(name: str) -> Iterator[None]:
    """What is trained inside has a folder and an order of its own: for a part known by its name, whichever are left out before it."""
    place = _here.get()
    with _at(place and replace(place, folder=place.folder / name, count=0)):
        yield


@contextmanager
def _at(place: _Place | None) -> Iterator[None]:
    token = _here.set(place)
    try:
        yield
    finally:
        _here.reset(token)


def next_checkpoint(call: Callable[[], dict[str, Any] | None]) -> Checkpoint | None:
    """The place of the state of the training that begins now; None outside `checkpoints`, and for one that leaves no state.

    Args:
        call: Returns what must be the same for a state to be used, in numbers, strings, lists and dictionaries of them; None where that
            cannot be said. Not called outside `checkpoints`.
    """
    place = _here.get()
    asked = None if place is None else call()
    return None if place is None or asked is None else place.next(asked)


def identity(*things: Any) -> str:
    """The `theorylab.core.fingerprint` of what a state depends on; empty, with a warning, where something has none."""
    from theorylab.core.fingerprint import fingerprint  # which imports torch, and records, which import this

    try:
        return fingerprint(*things)
    except Exception as error:  # objects refuse to be described in as many ways as there are; training does not need it
        log.warning("no checkpoint is kept of what cannot be told from another (%s); it is computed whole.", str(error).split("\n")[0])
        return ""


def once(compute: Callable[[], State]) -> State:
    """What ``compute`` returns; where that took long, a program that was stopped afterwards finds it in the folder of `checkpoints`.

    For parts of a program that do more than train. What is trained inside leaves its state, too, until the part has ended and is kept.

    Args:
        compute: Returns numbers, strings and tensors in nested lists and dictionaries. What it does and closes over must be the same for a
            result to be found; where that has no `theorylab.core.fingerprint`, it is computed again, with a warning.

    Example:
        >>> once(lambda: [1.0, 2.0])
        [1.0, 2.0]
    """
    place = _here.get()
    part = "" if place is None else identity(compute)
    if place is None or not part:
        return compute()
    checkpoint = place.next({"part": part})
    known = checkpoint.load()
    if known is None:
        inside = checkpoint.path.with_suffix("")
        with in_subfolder(inside.name):
            known = compute()
        # short as it may have been in this process: those that left something inside took their time
        if checkpoint.offer(lambda: known, 1, 1, due=inside.exists()):
            discard(inside)
    return known


def discard(folder: str | os.PathLike[str]) -> None:
    """Remove a folder of checkpoints, where there is one."""
    shutil.rmtree(folder, ignore_errors=True)


class Checkpoint:
    """The state of one training on disk, as nested dictionaries and lists of tensors, numbers and strings."""

    def __init__(self, path: Path, call: dict[str, Any], place: _Place) -> None:
        self.path, self.call, self._every, self._tell, self._clock = path, call, place.every, place.tell, place.clock
        self._left = False
        self._due = time.monotonic() + place.every
        self._told = 0.0

    def load(self) -> Any:
        """What was saved by the same training in an earlier process; None where there is nothing that can be used."""
        import torch

        if not self.path.exists():
            return None
        try:
            stored = torch.load(self.path, weights_only=True)
            call, state = stored["call"], stored["state"]
        except Exception as error:  # damaged, of a device that is not here, or no checkpoint
            log.warning("checkpoint %s cannot be read (%s); this training starts anew.", self.path, str(error).split("\n")[0])
            return None
        if call != self.call:
            log.warning("checkpoint %s is of another training; this one starts anew.", self.path)
            return None
        self._left = True
        return state

    def offer(self, state: Callable[[], Any], done: int, total: int, *, due: bool = False) -> bool:
        """Save a state if it is ``due``, if the last one is old, or if it is the last of a training that left others.

        Returns:
            Whether it is on disk.
        """
        if not (due or time.monotonic() >= self._due or (done == total and self._left)):
            return False
        saved = self._save(state())
        self.say(done, total)
        return saved

    def say(self, done: int, total: int) -> None:
        """Tell whoever wants to know how far the training is."""
        if self._tell is not None and done < total and done >= self._told + total / 100:
            self._told = done
            self._tell(f"step {done} of {total}")

    def _save(self, state: Any) -> bool:
        """Replace the state on disk, whole or not at all; returns whether. A disk that is full is told of, and stops nothing."""
        import torch

        begun = time.monotonic()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            size, free = _bytes(state), shutil.disk_usage(self.path.parent).free
            if size > _ROOM * free:
                raise OSError(f"it would take {size / 2**30:.1f} of {free / 2**30:.1f} free GiB")
            write_atomically(self.path, partial(torch.save, {"call": self.call, "state": state}))
            self._clock.save()
        except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError where the disk is full
            log.warning("checkpoint %s could not be written (%s); training goes on without.", self.path, error)
            self._left, self._due = False, float("inf")
            return False
        now = time.monotonic()
        self._left, self._due = True, now + max(self._every, (now - begun) / _SHARE)
        return True


def _bytes(state: Any) -> int:
    """What the tensors of a state hold."""
    import torch

    if isinstance(state, dict):
        return sum(map(_bytes, state.values()))
    if isinstance(state, list):
        return sum(map(_bytes, state))
    return state.nbytes if isinstance(state, torch.Tensor) else 0
