"""Studies on this machine: worker processes, one study at a time each, reused from study to study."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection, wait
from pathlib import Path

from theorylab.core.record import Record
from theorylab.runners.job import Job, run_job
from theorylab.runners.memory import reset_peak

_ONE_THREAD: dict[str, str] = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"), "1")


class WorkerDied(Exception):
    """A worker process ended in the middle of a study: killed, out of memory, or crashed in native code."""


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
    """An executor of jobs over ``jobs`` spawned processes.

    Each slot owns one process and a pipe to it, where `concurrent.futures.ProcessPoolExecutor` shares its queues among all: so a
    process that dies takes its own study with it and no other, its exit code can be told, and stages arrive on the same pipe. A fresh
    process then serves the slot. Where the system cannot reset a peak of memory, each study gets a fresh process.

    Args:
        jobs: Processes at a time, at least 1.
        on_stage: Told (study, stage) as it happens, in a thread of its own.
        on_output: Told (study, line) of what a study prints or warns, which would tear a live table if it went to the terminal.
    """

    def __init__(self, jobs: int, on_stage: Callable[[str, str], None], on_output: Callable[[str, str], None]) -> None:
        self._on = {"stage": on_stage, "output": on_output}
        self._reuse = reset_peak()
        self._slots = ThreadPoolExecutor(jobs, thread_name_prefix="theorylab-slot")
        self._mine = threading.local()
        self._lock = threading.Lock()
        self._workers: set[_Worker] = set()
        self._stopped = False
        self._environment = {name: os.environ.get(name) for name in _ONE_THREAD}
        os.environ.update(_ONE_THREAD)  # inherited by the workers: it must be set before they import numpy and torch

    def submit(self, job: Job) -> Future[Record]:
        """Run a job when a slot is free. The future raises `WorkerDied` if its process dies."""
        return self._slots.submit(self._run, job)

    def _run(self, job: Job) -> Record:
        worker = self._worker()
        try:
            record = worker.run(job, lambda kind, text: self._on[kind](job.study, text))
        except WorkerDied:
            self._drop(worker)
            raise
        if not self._reuse:
            self._drop(worker)
        return record

    def _worker(self) -> _Worker:
        worker = getattr(self._mine, "worker", None)
        if worker is None:
            with self._lock:  # so that close() sees every process that was started
                if self._stopped:
                    raise WorkerDied("the run was stopped")
                worker = self._mine.worker = _Worker()
                self._workers.add(worker)
        return worker

    def _drop(self, worker: _Worker) -> None:
        self._mine.worker = None
        with self._lock:
            self._workers.discard(worker)
        worker.stop()

    def close(self) -> None:
        """End all workers now; studies that still run are lost."""
        with self._lock:
            self._stopped = True
            workers = list(self._workers)
        for worker in workers:
            worker.stop()
        self._slots.shutdown(wait=True, cancel_futures=True)
        for name, value in self._environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


class _Worker:
    """One process and our end of the pipe to it."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), name="theorylab-worker", daemon=False)
        if hasattr(signal, "pthread_sigmask"):  # Ctrl-C reaches the whole group: the parent decides, even while the worker still starts
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited; this is a slot's thread, which needs no signals
        self._process.start()
        theirs.close()

    def run(self, job: Job, tell: Callable[[str, str], None]) -> Record:
        try:
            self._pipe.send(job)
            while True:
                # the process is watched too: a grandchild may hold the pipe open after it died
                if self._pipe not in wait([self._pipe, self._process.sentinel]) and not self._pipe.poll():
                    raise EOFError
                message = self._pipe.recv()
                if isinstance(message, Record):
                    return message
                tell(*message)
        except (EOFError, OSError):
            self._process.join()
            raise WorkerDied(_cause(self._process.exitcode)) from None

    def stop(self) -> None:
        self._process.kill()  # a worker holds nothing worth a farewell: records are written by the parent
        self._process.join()


def _cause(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        why = {"SIGKILL": " (perhaps out of memory: try fewer --jobs or --seeds)", "SIGSEGV": " (a crash in native code)"}
        return f"the worker process was killed by {name}{why.get(name, '')}"
    return f"the worker process ended with exit code {code} before the study did"


def _serve(pipe: Connection) -> None:
    """The life of a worker: run jobs until the pipe closes, and never outlive the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    lock = threading.Lock()

    def send(message: Record | tuple[str, str]) -> None:
        with lock:  # a study's own threads may print
            pipe.send(message)

    sys.stdout = sys.stderr = _Output(lambda line: send(("output", line)))
    while True:
        try:
            job = pipe.recv()
        except EOFError:
            return
        send(run_job(job, lambda stage: send(("stage", stage))))


class _Output(io.TextIOBase):
    """A text stream that hands on whole lines, without their ends."""

    def __init__(self, hand_on: Callable[[str], None]) -> None:
        self._hand_on = hand_on
        self._rest = ""

    def write(self, text: str, /) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._hand_on(line)
        return len(text)


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # the parent was killed: nobody waits for the result
