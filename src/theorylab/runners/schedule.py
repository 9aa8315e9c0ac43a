"""Which studies need computing, and why: a valid record is not computed again."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from theorylab.core.record import Record, RecordError, folder_of, load, training_folder
from theorylab.runners.job import Job


@dataclass(frozen=True)
class Decision:
    """What to do with a job: reuse ``record``, or compute it for ``reason`` (a record is then None)."""

    job: Job
    reason: str
    record: Record | None


def decide(job: Job, runs: Path, *, force: bool) -> Decision:
    """Whether a finished record of exactly this job lies under ``runs``; if not, what differs from the last one at its scale."""
    folder = folder_of(runs, job.provenance)
    if force:
        return Decision(job, "--force", None)
    going_on = "; its training goes on where it stopped" if training_folder(runs, job.provenance).is_dir() else ""
    if folder.is_dir():
        try:
            record = load(folder)
        except RecordError as error:
            if (folder / "record.json").exists():
                return Decision(job, f"record damaged: {error}", None)
            if going_on:
                return Decision(job, f"stopped{going_on}", None)
            return Decision(job, f"record half-written: {folder} holds no record.json (the run was stopped)", None)
        if record.provenance != job.provenance:
            return Decision(job, f"record damaged: {folder} holds the record of another run", None)
        return Decision(job, f"failed last time{going_on}", None) if record.error else Decision(job, "", record)
    last = next((r for r in history(job.study, runs) if r.scale == job.scale), None)
    if last is None:
        return Decision(job, "no record", None)
    if last.error:
        return Decision(job, "failed last time", None)
    return Decision(job, f"changed: {job.provenance.differs_from(last.provenance)}", None)


def history(study: str, runs: Path) -> list[Record]:
    """The readable records of a study, the newest first."""
    found = []
    for path in sorted((runs / study).glob("*/record.json"), key=lambda p: p.stat().st_mtime, reverse=True):
        with contextlib.suppress(RecordError):  # a damaged record tells nothing of the past; the run that needs it says so
            found.append(load(path.parent))
    return found
