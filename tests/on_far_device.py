"""Run in a process of its own: ``python on_far_device.py studies TOPIC`` or ``instruments MODEL``; prints what went wrong, and ends with 1.

Studies run at tiny with few seeds: what is asked is whether every tensor is where it has to be. The pretended device calculates as the CPU
does, so that verdicts would say nothing more.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from dataclasses import replace

import far_device  # noqa: F401  registers the device
import torch
from test_instruments import accurate, assert_agree
from zoo import make

from theorylab.core.config import Config
from theorylab.core.instrument import Instrument, instruments
from theorylab.core.scale import Scale
from theorylab.core.study import find_studies, load_study


def few(config: Config) -> Config:
    """Two seeds, or as many as the study needs."""
    try:
        return replace(config, seeds=2)
    except ValueError:
        return config


def studies(topic: str) -> dict[str, Callable[[], object]]:
    """Each study of a topic."""

    def runner(key: str) -> Callable[[], object]:
        study = load_study(key)
        return lambda: study.execute(replace(few(study.scales[Scale.TINY]), device="far"))

    return {key: runner(key) for key in find_studies()[0] if key.startswith(f"{topic}/")}


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
    sys.exit(main(*sys.argv[1:]))
