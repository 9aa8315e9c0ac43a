"""Studies on this machine: worker processes, one study at a time each, reused from study to study."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path

from theorylab.core.record import Record
from theorylab.core.workers import Workers
from theorylab.runners.job import Job, run_job
from theorylab.runners.memory import reset_peak


def available_cores() -> int:
    """Cores that this process may use: its affinity, and in a container its quota, not the machine's count.

    Example:
        >>> available_cores() >= 1
        True
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # no such file outside Linux, and "max" where there is no quota
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, max(1, int(quota) // int(period)))
    return cores


class LocalWorkers:
    """An executor of jobs over ``jobs`` spawned processes; one that dies takes its own study with it and no other, see `Workers`.

    Where the system cannot reset a peak of memory, each study gets a fresh process.

    Args:
        jobs: Processes at a time, at least 1.
        on_stage: Told (study, stage) as it happens, in a thread of its own.
        on_output: Told (study, line) of what a study prints or warns, which would tear a live table if it went to the terminal.
        runs: Folder of the records, where long training leaves its state; None for none.
        threads: Of each process, at least 1.
    """

    def __init__(
        self,
        jobs: int,
        on_stage: Callable[[str, str], None],
        on_output: Callable[[str, str], None],
        runs: Path | None = None,
        *,
        threads: int = 1,
    ) -> None:
        self._workers = Workers(
            jobs,
            partial(run_job, runs=runs, threads=threads),
            on_stage=lambda job, stage: on_stage(job.study, stage),
            on_output=lambda job, line: on_output(job.study, line),
            reuse=reset_peak(),
            threads=threads,
        )

    def submit(self, job: Job) -> Future[Record]:
        """Run a job when a slot is free. The future raises `WorkerDied` if its process dies."""
        return self._workers.submit(job)

    def close(self) -> None:
        """End all workers now; studies that still run are lost."""
        self._workers.close()
