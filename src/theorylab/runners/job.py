"""One study to be run: what a worker is sent, what it does, and the record that comes back."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from theorylab.core.checkpoints import Clock, checkpoints
from theorylab.core.config import Config
from theorylab.core.record import Provenance, Record, claim_dict, machine, source_digest, training_folder, versions
from theorylab.core.scale import Scale
from theorylab.core.study import Result, StudyCard, StudyError, load_study
from theorylab.runners.memory import peak_bytes, reset_peak


@dataclass(frozen=True)
class Job:
    """A study with its settings, in plain values: a worker can unpickle it without importing the study.

    ``settings`` are the config's fields as they are; ``provenance.config`` holds the same as JSON has them.
    """

    card: StudyCard
    scale: Scale
    settings: dict[str, Any]
    provenance: Provenance

    @property
    def study(self) -> str:
        """The study's key."""
        return self.card.key


def prepare(card: StudyCard, scale: Scale, config: Config | None) -> Job:
    """The job of a study; ``config`` is None for a study that could not be imported, whose record can hold only its error."""
    settings = {} if config is None else config.as_dict()
    return Job(card, scale, settings, _provenance(card, settings))


def _provenance(card: StudyCard, settings: dict[str, Any]) -> Provenance:
    try:
        source = source_digest(card.module)
    except Exception:  # a module that it imports does not parse: the error of the run says so
        source = ""
    # through JSON, so that a tuple equals the list that a stored record gives back
    return Provenance(card.key, json.loads(json.dumps(settings)), source, versions())


def empty_record(job: Job, error: str = "", *, threads: int = 1) -> Record:
    """A record of the job without results: of a run that begins, or that could not."""
    parts = job.card.module.split(".")
    path = job.card.path.parts[-len(parts) - (job.card.path.name == "__init__.py") :]
    claims = [claim_dict(claim) for claim in job.card.claims]
    started = datetime.now(UTC).isoformat(timespec="seconds")
    record = Record(job.provenance, str(job.scale), job.card.title, job.card.text, job.card.module, "/".join(path), claims)
    return replace(record, error=error, started=started, machine=machine(threads))


class Stages:
    """Tells the stages of a study, and how far the present one is."""

    def __init__(self, on_stage: Callable[[str], None]) -> None:
        self._on_stage, self._now = on_stage, ""

    def begin(self, name: str) -> None:
        """A stage begins."""
        self._now = name
        self._on_stage(name)

    def within(self, text: str) -> None:
        """The stage is so far."""
        self._on_stage(f"{self._now}: {text}")


def run_job(job: Job, on_stage: Callable[[str], None], runs: Path | None = None, *, threads: int = 1) -> Record:
    """Run the study in this process; whatever it raises becomes the record's ``error``, beside what it found before.

    It computes in ``threads`` threads: one where studies run side by side. Where ``runs`` is given, the folder of the records, long
    training leaves its state there and goes on from what an earlier run left.

    ``seconds`` is the wall time of the study itself, without imports, and with what earlier runs spent on training that it goes on with.
    ``peak_bytes`` is the peak resident size of this process during it (see `theorylab.runners.memory`), imports included, since a study
    needs those too.
    """
    on_stage("importing")
    try:
        study = load_study(job.study)
        here = _provenance(job.card, job.settings)
        if here != job.provenance:
            changed = here.differs_from(job.provenance)
            raise StudyError(
                f"study {job.study}: the worker has another version of what was asked for ({changed}); make them equal, run again."
            )
        config = type(study.scales[job.scale])(**job.settings)
    except Exception:
        return empty_record(job, traceback.format_exc())
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)  # more in all than there are cores make a machine several times slower
    reset_peak()
    record, stages, result = empty_record(job, threads=threads), Stages(on_stage), Result()
    with nullcontext(Clock()) if runs is None else checkpoints(training_folder(runs, job.provenance), tell=stages.within) as clock:
        try:
            study.execute(config, stages.begin, into=result)
        except Exception:
            record.error = traceback.format_exc()
        record.seconds = clock.read()
    record.findings, record.series = result.findings, result.series
    record.peak_bytes = peak_bytes()
    return record
