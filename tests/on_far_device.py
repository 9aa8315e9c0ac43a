"""Run in a process of its own: ``python on_far_device.py studies TOPIC`` or ``instruments MODEL``; prints what went wrong, and ends with 1.

Studies run at tiny with few seeds: what is asked is whether every tensor is where it has to be. The pretended device calculates as the CPU
does, so that verdicts would say nothing more.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import far_device  # noqa: F401  registers the device
import torch
from test_instruments import accurate, assert_agree
from zoo import make

from theorylab.core.config import Config
from theorylab.core.instrument import Instrument, instruments
from theorylab.core.scale import Scale
from theorylab.core.study import find_studies, load_study

SHORTER: dict[str, dict[str, int]] = {
    "convolution/mnist1d": {"steps": 100},
    "generalization/interpolation": {"designs": 20, "steps": 50},
    "implicit_bias/diagonal": {"flow_steps": 100, "rich_steps": 300, "noise_steps": 200},
    "implicit_bias/margins": {"steps": 200},
    "implicit_bias/matrix": {"steps": 600, "complete_steps": 100},
    "optimization/edge_of_stability": {"steps": 60, "momentum_steps": 60},
    "optimizers/adaptive": {"stream": 1000, "steps": 1000},
    "optimizers/edges": {"steps": 60},
}
"""Durations of studies that take thousands of steps: an operation costs ten times as much here."""


def shortened(key: str) -> Config:
    """A study's settings at tiny, with two seeds, or as many as it needs."""
    config = replace(load_study(key).scales[Scale.TINY], device="far", **SHORTER.get(key, {}))
    try:
        return replace(config, seeds=2)
    except ValueError:
        return config


def studies(topic: str) -> dict[str, Callable[[], object]]:
    """Each study of a topic."""
    keys = [key for key in find_studies()[0] if key.startswith(f"{topic}/")]
    return {key: partial(load_study(key).execute, shortened(key)) for key in keys}


def measurements(model: str) -> dict[str, Callable[[], object]]:
    """Each instrument on a model of the zoo, against what it says on the CPU."""

    def comparison(tool: Instrument) -> Callable[[], object]:
        def compare() -> None:
            near, far = (tool.measure(make(model, device=device), **accurate(tool)) for device in ("cpu", "far"))
            assert_agree(far, near, 1e-9)

        return compare

    usable = [t for t in instruments().values() if not t.trains and t.why_not(make(model)) is None]
    return {tool.name: comparison(tool) for tool in usable}


def main(kind: str, which: str) -> int:
    """Do all, and print the end of each traceback."""
    torch.set_num_threads(1)
    todo = {"studies": studies, "instruments": measurements}[kind](which)
    assert todo, f"nothing to do for {which}"
    wrong = 0
    for name, act in todo.items():
        try:
            act()
        except Exception:
            wrong += 1
            print(f"{name}:", *traceback.format_exc().splitlines()[-12:], sep="\n")
    return int(wrong > 0)


if __name__ == "__main__":
    status = main(*sys.argv[1:])
    sys.stdout.flush()
    os._exit(status)  # at once: the thread of derivatives on a device of Python's is not always joined in time, which aborts
