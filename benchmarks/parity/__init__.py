"""How the instruments compare with the packages that people use instead: do the numbers agree, and at what ratio of time."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import pkgutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.timing import interleaved, ratio

MODULES = {
    "curvlinops-for-pytorch": "curvlinops",
    "hessian-eigenthings": "hessian_eigenthings",
    "backpack-for-pytorch": "backpack",
    "nngeometry": "nngeometry",
    "PEPit": "PEPit",
    "dp-accounting": "dp_accounting",
    "opacus": "opacus",
    "pyDVL": "pydvl",
    "shap": "shap",
    "shapiq": "shapiq",
    "torch": "torch",
}
"""Peer, as it is installed → the module that it brings."""

Measure = Callable[[], Tensor]


@dataclass(frozen=True)
class Comparison:
    """One instrument against one peer.

    ``prepare(dtype)`` gives both measurements, each a function that does the whole work anew; what may be shared, such as the data, is made
    before. Numbers are compared in float64 and times in float32.

    With ``errors`` the measurements are random, and return their relative errors over several seeds: what is compared is the root mean
    square of ours over that of the peer's.
    """

    instrument: str
    setting: str
    peer: str
    prepare: Callable[[torch.dtype], tuple[Measure, Measure]]
    tolerance: float = 1e-10
    goal: float | None = None
    errors: bool = False
    note: str = ""

    @property
    def missing(self) -> bool:
        """Whether the peer is not installed."""
        return importlib.util.find_spec(MODULES[self.peer]) is None

    def deviation(self) -> float:
        """The largest difference relative to the largest number; with ``errors``, the ratio of errors."""
        ours, theirs = (measure().detach() for measure in self.prepare(torch.float64))
        if self.errors:
            return float(ours.square().mean().sqrt() / theirs.square().mean().sqrt())
        if ours.shape != theirs.shape:
            raise ValueError(f"{self.instrument} has shape {tuple(ours.shape)}, and {self.peer}'s {tuple(theirs.shape)}.")
        return float((ours - theirs).abs().max() / theirs.abs().max())

    def time_ratio(self, rounds: int) -> float:
        """Our time over the peer's, the median over rounds."""
        ours, theirs = self.prepare(torch.float32)
        seconds = interleaved({"ours": ours, "theirs": theirs}, rounds=rounds)
        return ratio(seconds["ours"], seconds["theirs"])


def comparisons(n: int) -> list[Comparison]:
    """Those of every module of this package with a function ``rows(n)``, n being the rows of data that it should measure."""
    return [c for name in families() for c in importlib.import_module(f"{__name__}.{name}").rows(n)]


def families() -> list[str]:
    """Names of the modules with comparisons."""
    return sorted(info.name for info in pkgutil.iter_modules(__path__) if not info.name.startswith("_") and info.name != "problems")


def measured(n: int, rounds: int, chosen: list[str]) -> Iterator[dict[str, Any]]:
    """One record for each comparison of the chosen families, and one for each peer that is not installed."""
    every = [c for name in chosen for c in importlib.import_module(f"{__name__}.{name}").rows(n)]
    for peer in sorted({c.peer for c in every if c.missing}):
        yield {"instrument": "all", "setting": "", "peer": peer, "note": 'not installed: pip install -c constraints.txt ".[bench]"'}
    for c in every:
        if not c.missing:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # those of the peers
                yield _record(c, rounds)


def _record(c: Comparison, rounds: int) -> dict[str, Any]:
    version = importlib.metadata.version(c.peer).partition("+")[0]
    record: dict[str, Any] = {"instrument": c.instrument, "setting": c.setting, "peer": f"{c.peer} {version}", "note": c.note}
    try:
        deviation = c.deviation()
    except Exception as error:  # a peer's failure is a result: its table says so and goes on
        return {
            **record,
            "note": f"raised {type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else ''}",
            "agrees": False,
        }
    taken = c.time_ratio(rounds)
    return {
        **record,
        "deviation": deviation,
        "tolerance": c.tolerance,
        "errors": c.errors,
        "agrees": deviation <= c.tolerance,
        "ratio": taken,
        "goal": c.goal,
        "reached": None if c.goal is None else taken <= c.goal,
    }
