"""How ratios of times are measured: the contestants in turn, in one process and one thread, and the median over rounds.

Times are processor seconds of this process, which other processes disturb least, and neighbours in time drift together, so only ratios
within a round are kept. Large temporary
tensors are returned to the system and faulted in again by default, which can dominate short timings: `pinned_malloc` runs the suite with
glibc's thresholds pinned.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable

MALLOC = {"MALLOC_TOP_PAD_": str(256 << 20), "MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 30)}


def pinned_malloc() -> None:
    """Start this Python again with malloc's thresholds pinned and one thread, unless it already runs so."""
    wanted = {**MALLOC, "OMP_NUM_THREADS": "1"}
    if any(os.environ.get(k) != v for k, v in wanted.items()):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **wanted})


def interleaved(contestants: dict[str, Callable[[], object]], *, rounds: int = 7, warmup: int = 1) -> dict[str, list[float]]:
    """Processor seconds of each contestant in each round, all contestants in every round, in an order that alternates.

    Args:
        contestants: Functions without arguments, each doing one unit of comparable work.
        rounds: At least 1.
        warmup: Calls before the first round.
    """
    for run in contestants.values():
        for _ in range(warmup):
            run()
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for i in range(rounds):
        for name in list(contestants)[:: 1 if i % 2 == 0 else -1]:
            start = time.process_time()
            contestants[name]()
            seconds[name].append(time.process_time() - start)
    return seconds


def ratio(numerator: list[float], denominator: list[float]) -> float:
    """The median over rounds of the ratio within a round."""
    return statistics.median(a / b for a, b in zip(numerator, denominator, strict=True))
