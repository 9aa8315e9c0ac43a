"""Work for several processes: each worker has a pipe of its own, and never outlives its parent."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection, wait
from typing import Any

Work = Callable[[Any, Callable[[str], None]], Any]
"""``work(job, on_stage)`` → result; sent to each process once, and so picklable, as jobs and results are."""

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
"""Variables that linear algebra reads as it is imported."""
FAREWELL = 5.0
"""Seconds in which a worker without a job is to end by itself."""


class WorkerDied(Exception):
    """A worker process ended in the middle of its job: killed, out of memory, or crashed in native code."""


class Workers:
    """An executor of jobs over ``processes`` spawned processes; what ``on_stage`` or ``on_output`` raises is what the job raises.

    Each slot owns one process and a pipe to it, where `concurrent.futures.ProcessPoolExecutor` shares its queues among all: so a
    process that dies takes its own job with it and no other, its exit code can be told, and stages arrive on the same pipe. A fresh
    process then serves the slot.

    Args:
        processes: At a time, at least 1.
        work: What is done with a job.
        on_stage: Told (job, stage) as it happens, in a thread of its own.
        on_output: Told (job, line) of what the work prints or warns.
        reuse: Whether a process does one job after the other; else each job gets a fresh one.
        threads: Of each process, as far as its libraries read the usual variables of the environment.
    """

    def __init__(
        self,
        processes: int,
        work: Work,
        *,
        on_stage: Callable[[Any, str], None],
        on_output: Callable[[Any, str], None],
        reuse: bool = True,
        threads: int = 1,
    ) -> None:
        self._work, self._reuse = work, reuse
        self._on = {"stage": on_stage, "output": on_output}
        self._slots = ThreadPoolExecutor(processes, thread_name_prefix="theorylab-slot")
        self._mine = threading.local()
        self._lock = threading.Lock()
        self._workers: set[_Worker] = set()
        self._stopped = False
        self._environment = {name: os.environ.get(name) for name in _THREADS}
        os.environ.update(dict.fromkeys(_THREADS, str(threads)))  # for the workers, set before they import numpy and torch

    def submit(self, job: Any) -> Future[Any]:
        """Do a job when a slot is free. The future raises what the work raises, and `WorkerDied` if its process dies."""
        return self._slots.submit(self._run, job)

    def _run(self, job: Any) -> Any:
        worker = self._worker()
        try:
            result = worker.run(job, lambda kind, text: self._on[kind](job, text))
        finally:
            if worker.busy or not self._reuse:  # it died, or nobody waits any longer for what it sends
                self._drop(worker)
        return result

    def _worker(self) -> _Worker:
        worker = getattr(self._mine, "worker", None)
        if worker is None:
            with self._lock:  # so that close() sees every process that was started
                if self._stopped:
                    raise WorkerDied("the run was stopped")
                worker = self._mine.worker = _Worker(self._work)
                self._workers.add(worker)
        return worker

    def _drop(self, worker: _Worker) -> None:
        self._mine.worker = None
        with self._lock:
            self._workers.discard(worker)
        worker.stop()

    def close(self) -> None:
        """End all workers now; jobs that still run are lost."""
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

    def __init__(self, work: Work) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, work), name="theorylab-worker", daemon=False)
        if hasattr(signal, "pthread_sigmask"):  # Ctrl-C reaches the whole group: the parent decides, even while the worker still starts
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited; this is a slot's thread, which needs no signals
        self._process.start()
        self.busy = False
        theirs.close()

    def run(self, job: Any, tell: Callable[[str, str], None]) -> Any:
        self.busy = True
        kind, content = self._exchange(job)
        while kind not in ("result", "error"):
            tell(kind, content)
            kind, content = self._exchange()
        self.busy = False
        if kind == "error":
            raise pickle.loads(content)
        return content

    def _exchange(self, *jobs: Any) -> tuple[str, Any]:
        """Send a job, where there is one, and wait for what the process says."""
        try:
            for job in jobs:
                self._pipe.send(job)
            # the process is watched too: a grandchild may hold the pipe open after it died
            if self._pipe not in wait([self._pipe, self._process.sentinel]) and not self._pipe.poll():
                raise EOFError
            return self._pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            raise WorkerDied(_cause(self._process.exitcode)) from None

    def stop(self) -> None:
        if not self.busy:  # it ends by itself, and what its libraries hold ends with it; killed, it would leave their semaphores behind
            self._pipe.close()
            self._process.join(FAREWELL)
        self._process.kill()  # of one that still works: it holds nothing worth keeping, for results are kept by the parent
        self._process.join()


def _cause(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        why = {"SIGKILL": " (perhaps out of memory: try fewer processes)", "SIGSEGV": " (a crash in native code)"}
        return f"the worker process was killed by {name}{why.get(name, '')}"
    return f"the worker process ended with exit code {code} before its job did"


def _serve(pipe: Connection, work: Work) -> None:
    """The life of a worker: do jobs until the pipe closes, and never outlive the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    lock = threading.Lock()

    def send(kind: str, content: Any) -> None:
        with lock:  # the work's own threads may print
            pipe.send((kind, content))

    sys.stdout = sys.stderr = _Output(lambda line: send("output", line))
    while True:
        try:
            job = pipe.recv()
        except EOFError:
            return
        try:
            result = work(job, lambda stage: send("stage", stage))
        except Exception as error:
            send("error", _pickled(error))
        else:
            send("result", result)


def _pickled(error: Exception) -> bytes:
    """An exception with its traceback for a note, or another that says the same where it does not survive the journey."""
    trace = traceback.format_exc()
    with contextlib.suppress(Exception):
        error.add_note(f"In a worker process:\n{trace}")
        packed = pickle.dumps(error)
        pickle.loads(packed)
        return packed
    return pickle.dumps(RuntimeError(trace))


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
