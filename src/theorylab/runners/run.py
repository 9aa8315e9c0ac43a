"""Run studies: prepare, reuse what is valid, compute the rest wherever workers are, and keep every record as it arrives."""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, as_completed
from pathlib import Path
from typing import Any, Protocol

from theorylab.core.checkpoints import discard
from theorylab.core.files import try_writing
from theorylab.core.record import Record, RecordError, folder_of, load, save, training_folder
from theorylab.core.scale import Scale
from theorylab.core.study import StudyCard, StudyError, load_study
from theorylab.core.workers import WorkerDied
from theorylab.runners.job import Job, empty_record, prepare
from theorylab.runners.outcome import Outcome, RunResult
from theorylab.runners.plan import Costs, expect, longest_first
from theorylab.runners.progress import Progress
from theorylab.runners.schedule import Decision, decide
from theorylab.runners.selection import UsageError, configure, together


class Workers(Protocol):
    """Where jobs run: `LocalWorkers` or `ClusterWorkers`."""

    def submit(self, job: Job) -> Future[Record]:
        """Start a job when there is room for it."""
        ...

    def close(self) -> None:
        """End, whatever still runs."""


def check_folder(runs: Path) -> None:
    """Make the output folder and write in it once, so that an hour of work is not lost to a wrong path.

    Raises:
        UsageError: it cannot be made or written.
    """
    try:
        try_writing(runs)
    except OSError as error:
        raise UsageError(f"--out {runs} cannot be written ({error.strerror or error}); choose another folder.") from None


def jobs_of(cards: Sequence[StudyCard], scale: Scale, common: Mapping[str, Any], own: Mapping[str, str]) -> tuple[list[Job], list[Outcome]]:
    """The jobs of the studies with the user's settings, and the outcome of each study that cannot be imported.

    Raises:
        UsageError: settings that a study refuses; all refusals in one line.
    """
    ready: list[Job] = []
    broken: list[Outcome] = []
    refused: list[tuple[str, str]] = []
    for card in cards:
        try:
            ready.append(prepare(card, scale, configure(load_study(card.key), scale, common, own)))
        except StudyError as error:
            record = empty_record(prepare(card, scale, None), traceback.format_exc())
            broken.append(Outcome(card.key, record, reason=str(error)))
        except UsageError as error:
            refused.append((card.key, str(error)))
    if refused:
        raise UsageError(together(refused))
    return ready, broken


def run(
    jobs: Sequence[Job],
    workers: Workers,
    runs: Path,
    progress: Progress,
    *,
    broken: Sequence[Outcome] = (),
    force: bool = False,
    costs: Costs | None = None,
    threads: int = 1,
) -> RunResult:
    """Compute the jobs that have no valid record, the longest first, and save each record as it arrives.

    A study that raises, or whose worker dies, becomes a record with an error and stops nothing. Ctrl-C ends the workers; what had
    finished is saved, and the next run goes on from there.

    Args:
        jobs: What is asked for.
        workers: Where to compute; the caller closes them.
        runs: Folder of the records; it can be written (`check_folder`).
        progress: Told what happens.
        broken: Studies that could not be imported; their records, which hold the error, are kept with the others.
        force: Compute studies that have a valid record too, and all from the start.
        costs: Table of expected costs, for the order.
        threads: Of each process, for the order.
    """
    decisions = [decide(job, runs, force=force) for job in jobs]
    progress.planned(decisions)
    outcomes = {d.job.study: Outcome(d.job.study, d.record, d.record is not None, d.reason) for d in decisions}
    waiting = {d.job.study: d for d in decisions if d.record is None}
    problems: list[str] = []
    for outcome in broken:
        outcomes[outcome.study] = outcome
        if outcome.record is not None:
            problems += _keep(outcome.record, runs)
            progress.finished(outcome.study, outcome.record)
    for decision in waiting.values() if force else ():
        discard(training_folder(runs, decision.job.provenance))  # of an earlier run that was stopped
    order = longest_first({key: expect(d.job, runs, costs or {}, threads=threads) for key, d in waiting.items()})
    futures = {workers.submit(waiting[key].job): waiting[key] for key in order}

    def keep(future: Future[Record]) -> None:
        decision = futures[future]
        record = _result(future, decision)
        problems.extend(_keep(record, runs))
        outcomes[record.study] = Outcome(record.study, record, reason=decision.reason)
        progress.finished(record.study, record)

    interrupted = False
    try:
        for future in as_completed(futures):
            keep(future)
    except KeyboardInterrupt:
        interrupted = True
        for future, decision in futures.items():  # finished, but not yet kept when Ctrl-C came
            if future.done() and not future.cancelled() and outcomes[decision.job.study].record is None:
                keep(future)
    return RunResult(tuple(outcomes.values()), tuple(problems), interrupted)


def _result(future: Future[Record], decision: Decision) -> Record:
    try:
        return future.result()
    except WorkerDied as error:
        return empty_record(decision.job, str(error))
    except Exception:  # of a cluster: a lost worker, a job that cannot be sent; none of them stops the others
        return empty_record(decision.job, traceback.format_exc())


def _keep(record: Record, runs: Path) -> list[str]:
    """Save a record; a failed run never replaces a finished one of the same key. Returns what went wrong, one line each."""
    if record.error and _finished(folder_of(runs, record.provenance)):
        return []
    try:
        save(record, runs)
    except (OSError, ValueError, TypeError) as error:
        return [f"the record of {record.study} could not be written under {runs} ({error}); its result is in this run's report only."]
    return []


def _finished(folder: Path) -> bool:
    try:
        return not load(folder).error
    except RecordError:
        return False
