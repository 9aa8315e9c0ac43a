"""Which way of training a group of replicas is fastest here: all in one vmap, in chunks that stay in cache, or one after another."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable

import torch

from theorylab.learning.group import Group

CHUNKS = (8, 32, 128)
RECORD_FROM = 10_000
"""Steps times replicas from which recording a step pays."""
_ROUNDS, _STEPS = 5, 2
_SLOW = 0.1
"""Seconds of a step from which one is enough: it is far above the clock's noise, and more would cost more than they could save."""

log = logging.getLogger(__name__)
_cache: dict[tuple, int] = {}


class Stopwatch:
    """Times the steps of one group, in rounds."""

    def __init__(self, group: Group, record: bool):
        self.group = group.trial()
        self.running = self.group.steps(2 + _ROUNDS * _STEPS, self.group.recorded() if record else None)
        # other processes on the machine do not count; but several threads, or a device, are known by the wall only
        alone = torch.get_num_threads() == 1 and group.device.type == "cpu"
        self.clock = time.process_time if alone else time.perf_counter
        self.take(1)  # what the first step allocates
        self.best = self.take(1)
        self.rounds = 0 if self.best > _SLOW else _ROUNDS

    def take(self, steps: int) -> float:
        """Seconds of some steps."""
        start = self.clock()
        losses = [next(self.running) for _ in range(steps)]
        losses[-1].sum().item()  # waits for a device that works ahead
        return self.clock() - start

    def round(self) -> None:
        """Time a few more steps, where they are cheap, and keep the best."""
        if self.rounds:
            self.rounds -= 1
            self.best = min(self.best, self.take(_STEPS) / _STEPS)


def seconds_per_step(groups: dict[int, Group], record: bool, enough: float = math.inf) -> dict[int, float]:
    """Seconds of one step of one replica in each group, the best of a few rounds that the groups take in turn.

    Groups that follow one of several replicas whose step takes ``enough`` seconds are left out: what a call costs matters no more there,
    and more replicas at once would take more memory.
    """
    watches: dict[int, Stopwatch] = {}
    for name, group in groups.items():
        watches[name] = Stopwatch(group, record)
        if group.size > 1 and watches[name].best > enough:
            break
    for _ in range(_ROUNDS):
        for watch in watches.values():
            watch.round()
    return {name: watch.best / watch.group.size for name, watch in watches.items()}


def fastest_chunk(key: tuple, size: int, make: Callable[[int], Group], record: bool = False) -> int:
    """How many replicas to train in one vmap; 0 where a loop over replicas is faster.

    Times each way for a few steps and remembers the answer for this process. The choice may differ between runs on a busy machine, and
    with it the rounding of the results; pass ``mode="vmap"`` or ``"loop"`` to `Population` where bits must repeat.

    Args:
        key: What the answer depends on.
        size: Number of replicas.
        make: ``make(chunk)`` is the group of the first ``chunk`` replicas under vmap, ``make(0)`` one trained by the loop.
        record: Whether steps under vmap are going to be recorded.
    """
    key = (*key, record)
    if key in _cache:
        return _cache[key]
    times = seconds_per_step({chunk: make(chunk) for chunk in (0, *sorted({size, *(c for c in CHUNKS if c < size)}))}, record, _SLOW)
    best = _cache[key] = min(times, key=times.__getitem__)
    how = "one after another" if best == 0 else f"{best} at a time under vmap"
    measured = ", ".join(f"{'loop' if c == 0 else c}: {1e6 * t:.0f}" for c, t in times.items())
    log.info("population: %d replicas are trained %s (microseconds a replica step: %s).", size, how, measured)
    return best
