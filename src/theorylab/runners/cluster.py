"""Studies on a Dask cluster: the same jobs, sent to the cluster's executor."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from theorylab.core.record import Record
from theorylab.runners.job import Job, run_job
from theorylab.runners.selection import UsageError

_TOPIC = "theorylab-stages"


class ClusterWorkers:
    """An executor of jobs over the workers of a Dask scheduler.

    Workers need theorylab, and the packages of the studies, at this machine's versions, but no shared disk: a record travels back and
    is written here. Start them with one thread each (``dask worker --nthreads 1``), or memory peaks will hold several studies at once.

    Args:
        address: Of the scheduler: ``tcp://head:8786``.
        on_stage: Told (study, stage) as it happens, in a thread of the client.
        timeout: Seconds to wait for the scheduler.

    Raises:
        UsageError: Dask is not installed, no scheduler answers, or it has no workers.
    """

    def __init__(self, address: str, on_stage: Callable[[str, str], None], *, timeout: float = 5.0) -> None:
        try:
            from distributed import Client
        except ImportError as error:
            raise UsageError(f"--cluster needs Dask, which is not installed ({error}): pip install 'theorylab[cluster]'.") from None
        try:
            self._client: Any = Client(address, timeout=timeout, set_as_default=False)
        except (OSError, ValueError, TypeError) as error:
            why = str(error).split("\n")[0] or type(error).__name__
            raise UsageError(f"--cluster {address}: no Dask scheduler answers there ({why}); start one with `dask scheduler`.") from None
        if not self._client.scheduler_info(n_workers=-1)["workers"]:
            self._client.close()
            raise UsageError(f"--cluster {address}: the scheduler has no workers; start some with `dask worker {address} --nthreads 1`.")
        self._client.subscribe_topic(_TOPIC, lambda event: on_stage(*event[1]))
        self._executor = self._client.get_executor(pure=False)

    def submit(self, job: Job) -> Future[Record]:
        """Send a job; the cluster decides when and where it runs."""
        return self._executor.submit(_run_there, job)

    def close(self) -> None:
        """Cancel what is not finished and leave the cluster as it was."""
        self._executor.shutdown(wait=False)
        self._client.unsubscribe_topic(_TOPIC)
        self._client.close()


def _run_there(job: Job) -> Record:
    from distributed import get_worker

    worker = get_worker()
    return run_job(job, lambda stage: worker.log_event(_TOPIC, (job.study, stage)))
