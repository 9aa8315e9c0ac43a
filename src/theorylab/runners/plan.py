"""What a run would cost before it starts: seconds and bytes of each study, from its past records or from a table."""

from __future__ import annotations

import heapq
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from theorylab.core.record import Record, machine
from theorylab.runners.job import Job
from theorylab.runners.schedule import history

Costs = Mapping[str, Any]
"""``{"calibration_seconds": s, "studies": {key: {scale: {"seconds": s, "bytes": b, "config": {...}}}}}``, measured on one machine.

A row with ``"part": true`` is of a study that has not run whole: seconds by extrapolation from a part of it, whose bytes say little.
"""


@dataclass(frozen=True)
class Cost:
    """An expectation, and where it comes from; ``seconds`` and ``bytes`` are None where nothing is known."""

    seconds: float | None
    bytes: int | None
    basis: str


def expect(job: Job, runs: Path, table: Costs, speed: float = 1.0, floor: int = 0, *, threads: int = 1) -> Cost:
    """What the job will cost on this machine.

    The newest finished record of the study at this scale, on a machine like this one, is the best witness; else the table, times
    ``speed``. Only settings that differ in ``seeds`` (and ``seed``) are comparable: seconds are then scaled by the seeds, which is right
    for a loop over replicas and too much for a population trained at once. Of bytes, what exceeds ``floor`` is scaled up, never down.

    Args:
        job: What would run.
        runs: Folder of the records.
        table: Costs on the machine where the table was made.
        floor: Bytes that a process takes before it computes, by its imports alone.
        threads: Of a process; a record counts where it was computed with as many, and the table is of one.
        speed: This machine's `calibrate` over the table's ``calibration_seconds``: 2.0 where this machine is half as fast.
    """
    here = machine(threads)
    past = [r for r in history(job.study, runs) if r.scale == job.scale and not r.error and r.machine == here]
    for record in sorted(past, key=lambda r: r.provenance.config != job.provenance.config):  # an equal config first; the sort keeps age
        if (ratio := _seeds_ratio(job, record.provenance.config)) is not None:
            return Cost(record.seconds * ratio, _scaled(record.peak_bytes, ratio, floor), _basis("a record of this machine", ratio))
    row = table.get("studies", {}).get(job.study, {}).get(job.scale)
    if row is not None and (ratio := _seeds_ratio(job, row["config"])) is not None:
        source = "extrapolated from a part of it" if row.get("part") else "the packaged table"
        source += ", on one thread" if threads > 1 else ""
        size = None if row.get("part") else _scaled(row["bytes"], ratio, floor)
        return Cost(row["seconds"] * ratio * speed, size, _basis(source, ratio))
    return Cost(None, None, "no record with these settings")


def _seeds_ratio(job: Job, other: Mapping[str, Any]) -> float | None:
    """How many times the other's seeds the job has, or None where they differ in more than seeds."""
    mine, theirs = dict(job.provenance.config), dict(other)
    for config in (mine, theirs):
        config.pop("seed", None)
    seeds, others = mine.pop("seeds", None), theirs.pop("seeds", None)
    return seeds / others if mine == theirs and seeds and others else None


def _scaled(size: int, ratio: float, floor: int) -> int:
    fixed = min(size, floor)
    return round(fixed + (size - fixed) * max(1.0, ratio))


def _basis(what: str, ratio: float) -> str:
    return what if ratio == 1 else f"{what}, × {ratio:g} for seeds"


def makespan(seconds: Sequence[float], jobs: int) -> float:
    """Wall seconds of tasks handed to ``jobs`` workers in the given order, each to the first that is free.

    Example:
        >>> makespan([3.0, 2.0, 2.0], jobs=2)
        4.0
    """
    free = [0.0] * jobs
    for s in seconds:
        heapq.heapreplace(free, free[0] + s)
    return max(free)


def calibrate() -> float:
    """Seconds of a fixed workload on one core: small float64 matrix products and a Python loop, as studies are made of; best of three."""
    a = np.random.default_rng(0).standard_normal((64, 64)) / 8
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        x = a
        for _ in range(2000):
            x = np.tanh(a @ x)
        best = min(best, time.perf_counter() - start)
    return best


def longest_first(costs: Mapping[str, Cost]) -> list[str]:
    """The studies in the order in which they should start: unknown ones first, since they may be the longest."""
    return sorted(costs, key=lambda key: -(float("inf") if (s := costs[key].seconds) is None else s))


def table_of(records: Sequence[Record]) -> dict[str, Any]:
    """A cost table of finished records of this machine, to ship with a package of studies.

    Settings that differ from the scale's own belong in no table: the caller passes records of default runs.
    """
    studies: dict[str, dict[str, Any]] = {}
    for r in sorted(records, key=lambda r: r.study):
        if not r.error:
            row = {"seconds": round(r.seconds, 3), "bytes": r.peak_bytes, "config": r.provenance.config}
            studies.setdefault(r.study, {})[str(r.scale)] = row
    return {"calibration_seconds": round(calibrate(), 4), "studies": studies}
