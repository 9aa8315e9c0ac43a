"""Which way of training a group of replicas is fastest here: all in one vmap, in chunks that stay in cache, or one after another."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import torch

from theorylab.learning.group import Group, tree_map
from theorylab.learning.minibatches import DataOrder

CHUNKS = (8, 32, 128)
_WARMUP, _ROUNDS, _STEPS = 2, 3, 2

log = logging.getLogger(__name__)
_cache: dict[tuple, int] = {}


def _trial(group: Group) -> Group:
    """A copy whose steps leave the group as it is."""
    trial = group.part(slice(0, group.size), group.optimizer, group.stacked, group.device)
    trial.buffers = tree_map(torch.clone, trial.buffers)
    if trial.rows.orders is not None:
        trial.rows.orders = [DataOrder(order.rows, order.batch_size, 0) for order in trial.rows.orders]
    return trial


def seconds_per_step(group: Group) -> float:
    """Seconds of one step of one replica of the group, the best of a few rounds."""
    steps = _trial(group).steps(_WARMUP + _ROUNDS * _STEPS)
    for _ in range(_WARMUP):
        next(steps)
    best = float("inf")
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        for _ in range(_STEPS):
            last = next(steps)
        last.sum().item()  # waits for a device that works ahead
        best = min(best, time.perf_counter() - start)
    return best / (_STEPS * group.size)


def fastest_chunk(key: tuple, size: int, make: Callable[[int], Group]) -> int:
    """How many replicas to train in one vmap; 0 where a loop over replicas is faster.

    Times each way for a few steps and remembers the answer for this process. The choice may differ between runs on a busy machine, and
    with it the rounding of the results; pass ``mode="vmap"`` or ``"loop"`` to `Population` where bits must repeat.

    Args:
        key: What the answer depends on.
        size: Number of replicas.
        make: ``make(chunk)`` is the group of the first ``chunk`` replicas under vmap, ``make(0)`` one trained by the loop.
    """
    if key in _cache:
        return _cache[key]
    times = {0: seconds_per_step(make(0))}
    for chunk in sorted({size, *(c for c in CHUNKS if c < size)}):
        try:
            times[chunk] = seconds_per_step(make(chunk))
        except RuntimeError as error:  # what vmap has no rule for, the loop can do
            log.info(
                "population: this model cannot run under vmap (%s); replicas are trained one after another.", str(error).split("\n")[0]
            )
            break
    best = _cache[key] = min(times, key=times.__getitem__)
    how = "one after another" if best == 0 else f"{best} at a time under vmap"
    measured = ", ".join(f"{'loop' if c == 0 else c}: {1e6 * t:.0f}" for c, t in times.items())
    log.info("population: %d replicas are trained %s (microseconds a replica step: %s).", size, how, measured)
    return best
