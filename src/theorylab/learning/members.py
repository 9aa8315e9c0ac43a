"""Training many networks that differ in row weights and seeds: in chunks that are kept on disk, by several processes, with progress."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import as_completed
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from theorylab.core.checkpoints import in_subfolder
from theorylab.core.files import try_writing, write_atomically
from theorylab.core.fingerprint import fingerprint
from theorylab.core.progress import Bar
from theorylab.core.record import versions
from theorylab.core.workers import WorkerDied, Workers
from theorylab.learning.optimizers.base import Optimizer
from theorylab.learning.population import Population
from theorylab.learning.risk import Loss

Members = tuple[Tensor, tuple[int, ...]]
"""Row weights (member, n), and a seed each."""
Found = dict[str, Tensor]
"""What is read off trained members, by name, each (member, ...)."""
Progress = bool | Callable[[int, int], None]
"""Whether to show on stderr what takes more than two seconds; or what is told (members done, members) instead."""
CHUNK = 128
"""Members that are trained together where nobody says how many; larger groups are hardly faster."""


@dataclass(frozen=True)
class Training:
    """What all members have in common.

    Attributes:
        make_model: Builds one network.
        loss: As of `Population`.
        data: Inputs and targets (n, ...).
        optimizer: With hyper-parameters that are numbers.
        steps: Of each member.
        read: What is kept of trained members.
        batch_size: Rows of a minibatch; None for full batches.
        dtype: Of parameters and data.
        device: Where to train.
        mode: As of `Population`.
    """

    make_model: Callable[[], nn.Module]
    loss: Loss
    data: tuple[Tensor, Tensor]
    optimizer: Optimizer
    steps: int
    read: Callable[[Population], Found]
    batch_size: int | None
    dtype: torch.dtype
    device: str | torch.device
    mode: Literal["auto", "vmap", "loop"]

    def population(self, members: Members) -> Population:
        """The members before training."""
        weights, seeds = members
        return Population(
            self.make_model,
            self.loss,
            self.data,
            optimizer=self.optimizer,
            seeds=seeds,
            batch_size=self.batch_size,
            row_weights=weights,
            dtype=self.dtype,
            device=self.device,
            mode=self.mode,
        )

    def run(self, members: Members) -> Found:
        """Train the members and read them."""
        population = self.population(members)
        population.train(self.steps)
        return {name: t.detach().cpu() for name, t in self.read(population).items()}


def train_members(
    training: Training,
    members: Members,
    *,
    chunk: int = CHUNK,
    jobs: int = 1,
    folder: str | os.PathLike[str] | None = None,
    progress: Progress = True,
) -> Found:
    """Train all members, ``chunk`` at a time, and read them: by name (member, ...).

    Each chunk is trained by itself, so that a member's numbers do not depend on how many processes there are, nor on what was trained
    before and found in ``folder``. Another size of chunks, another number of threads (a worker has one, this process its own) and the
    choice of ``mode="auto"``, which goes by the clock, change rounding alone.

    Args:
        training: What they have in common.
        members: What they differ in.
        chunk: Members that are trained together, at least 1.
        jobs: Processes, at least 1; 1 trains in this one.
        folder: Where trained chunks are kept, each under the `fingerprint` of all that it depends on.
        progress: As `Progress` says.

    Raises:
        ValueError: ``chunk`` or ``jobs`` below 1, or a folder that cannot be written.
        TypeError: with ``jobs``, something that cannot be sent to another process; with ``folder``, something that has no fingerprint.
        RuntimeError: a worker process died.
    """
    if chunk < 1 or jobs < 1:
        raise ValueError(f"chunk and jobs must be at least 1, got {chunk} and {jobs}.")
    weights, seeds = members
    # copies, for a view would be sent with all of which it is one
    parts = [(weights[i : i + chunk].clone(), seeds[i : i + chunk]) for i in range(0, len(seeds), chunk)]
    paths = [None] * len(parts) if folder is None else _paths(training, parts, Path(folder))
    found = [None if path is None else _recalled(path) for path in paths]
    missing = [k for k, each in enumerate(found) if each is None]
    with _told(progress, len(seeds)) as tell:
        done = len(seeds) - sum(len(parts[k][1]) for k in missing)
        tell(done)
        for k, packed in _trained(training, {k: parts[k] for k in missing}, paths, min(jobs, len(missing))):
            path = paths[k]
            if path is not None:
                write_atomically(path, packed)
            found[k] = _unpacked(packed)
            done += len(parts[k][1])
            tell(done)
    return {name: torch.cat([each[name] for each in found if each is not None]) for name in found[0] or {}}


def _trained(training: Training, parts: dict[int, Members], paths: Sequence[Path | None], jobs: int) -> Iterator[tuple[int, bytes]]:
    """Numbers of parts, and what was found of each, packed, in the order in which they are done."""
    if jobs <= 1:
        for k, part in parts.items():
            path = paths[k]
            # a chunk that is found is not trained, and the states of those after it must be found all the same
            with nullcontext() if path is None else in_subfolder(path.stem):
                packed = _packed(training.run(part))
            yield k, packed
        return
    workers = Workers(
        jobs, _Sent(_by_value(training)), on_stage=lambda job, stage: None, on_output=lambda job, line: print(line, file=sys.stderr)
    )
    try:
        # pickled here: tensors would else travel as handles of shared memory, which do not outlive a worker
        futures = {workers.submit(pickle.dumps(part)): k for k, part in parts.items()}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except WorkerDied as error:
        raise RuntimeError(
            f"{error}. What was trained before is kept where a folder is given. If no worker starts at all: a program that uses jobs > 1 "
            'must keep what it runs under `if __name__ == "__main__":`, for every worker imports it.'
        ) from None
    finally:
        workers.close()


@dataclass(frozen=True)
class _Sent:
    """The work of a worker process, which is sent the training once."""

    training: bytes

    def __call__(self, members: bytes, on_stage: Callable[[str], None]) -> bytes:
        torch.set_num_threads(1)
        return _packed(_received(self.training).run(pickle.loads(members)))


@lru_cache(maxsize=1)
def _received(training: bytes) -> Training:
    return pickle.loads(training)


def _by_value(training: Training) -> bytes:
    """Pickled together with the closures and lambdas that it holds; functions of modules go by name."""
    import cloudpickle

    for name, thing in vars(training).items():
        try:
            cloudpickle.dumps(thing)
        except Exception as error:
            raise TypeError(
                f"{name} cannot be sent to another process ({error}): with jobs > 1 it must not hold open files, locks, generators or "
                "the like. Make these inside of the function, or use jobs=1."
            ) from error
    return cloudpickle.dumps(training)


def _paths(training: Training, parts: Sequence[Members], folder: Path) -> list[Path | None]:
    """Where each part is kept: the name is a digest of all that its numbers depend on, so that nothing else is ever found there."""
    try:
        try_writing(folder)
    except OSError as error:
        raise ValueError(f"folder must be one that can be written, {folder} cannot ({error.strerror or error}).") from None
    common = fingerprint(vars(training), versions(), Training)
    return [folder / f"{fingerprint(common, *part)}.members" for part in parts]


def _packed(found: Found) -> bytes:
    """A checksum and the tensors."""
    file = io.BytesIO()
    torch.save(found, file)
    return hashlib.sha256(file.getbuffer()).digest() + file.getvalue()


def _unpacked(packed: bytes) -> Found:
    checksum, content = packed[:32], packed[32:]
    if hashlib.sha256(content).digest() != checksum:
        raise ValueError("it does not match its checksum")
    return torch.load(io.BytesIO(content), weights_only=True)


def _recalled(path: Path) -> Found | None:
    """What was kept there, or None where nothing is, or nothing that can be believed."""
    try:
        return _unpacked(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        warnings.warn(f"{path} cannot be read ({error}); its members are trained again.", stacklevel=4)
        return None


@contextmanager
def _told(progress: Progress, total: int) -> Iterator[Callable[[int], Any]]:
    """What is told the number of members that are done."""
    if callable(progress):
        yield lambda done: progress(done, total)
        return
    from rich.console import Console

    with Bar(Console(stderr=True) if progress else None, "training", total, every=10.0) as bar:
        before = 0

        def tell(done: int) -> None:
            nonlocal before
            bar.advance(done - before)
            before = done
            bar.show(f"{done} of {total} networks")

        yield tell
