"""How the instruments compare with the packages that people use instead: do the numbers agree, and at what ratio of time."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import pkgutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import apart
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
    "dattri": "dattri",
    "kronfluence": "kronfluence",
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

    def record(self, rounds: int) -> dict[str, Any]:
        """What was found, as it is stored."""
        deviation = self.deviation()
        taken = self.time_ratio(rounds)
        return {
            "deviation": deviation,
            "tolerance": self.tolerance,
            "errors": self.errors,
            "agrees": deviation <= self.tolerance,
            "ratio": taken,
            "goal": self.goal,
            "reached": None if self.goal is None else taken <= self.goal,
        }


@dataclass(frozen=True)
class Contest:
    """One instrument against one peer where their definitions differ, so that their numbers do: which is better by an outside standard.

    ``prepare()`` gives a number for each of several seeds, ours and the peer's for the same ones; larger is better.
    """

    instrument: str
    setting: str
    peer: str
    prepare: Callable[[], tuple[list[float], list[float]]]
    note: str = ""

    def record(self, rounds: int) -> dict[str, Any]:
        """What was found, as it is stored; no time is measured."""
        ours, theirs = self.prepare()
        return {"ours": ours, "theirs": theirs}


def missing(peer: str) -> bool:
    """Whether a peer is not installed."""
    return importlib.util.find_spec(MODULES[peer]) is None


def comparisons(n: int) -> list[Comparison | Contest]:
    """Those of every module of this package with a function ``rows(n)``, n being the rows of data that it should measure."""
    return [c for name in families() for c in importlib.import_module(f"{__name__}.{name}").rows(n)]


def families() -> list[str]:
    """Names of the modules with comparisons, found by their text, so that nothing is imported for a wrong name."""
    names = (info.name for info in pkgutil.iter_modules(__path__))
    return sorted(n for n in names if "def rows(" in (Path(__path__[0]) / f"{n}.py").read_text(encoding="utf-8"))


def measured(n: int, rounds: int, chosen: list[str], peers: list[str] | None = None) -> Iterator[dict[str, Any]]:
    """One record for each comparison of the chosen families, and one for each peer of theirs that is not installed.

    Args:
        n: Rows of data.
        rounds: Of timing.
        chosen: Families.
        peers: With these alone; None for all.
    """
    for family in chosen:
        every = [c for c in importlib.import_module(f"{__name__}.{family}").rows(n) if peers is None or c.peer in peers]
        for peer in sorted({c.peer for c in every if missing(c.peer)}):
            yield not_compared(family, peer)
        for c in every:
            if not missing(c.peer):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # those of the peers
                    yield _record(family, c, rounds)


def not_compared(family: str, peer: str, why: str = "") -> dict[str, Any]:
    """The record of a peer that is not here, with why, or with what to do."""
    if not why:
        alone = apart.pins(MODULES[peer]).is_file()
        why = "python -m benchmarks.parity --peers installs it" if alone else 'pip install -c constraints.txt ".[bench]"'
    return {"family": family, "instrument": "all", "setting": "", "peer": peer, "version": "", "note": f"not compared: {why}"}


def _record(family: str, c: Comparison | Contest, rounds: int) -> dict[str, Any]:
    version = importlib.metadata.version(c.peer).partition("+")[0]
    record = {
        "family": family,
        "instrument": c.instrument,
        "setting": c.setting,
        "peer": c.peer,
        "version": version,
        "note": c.note,
    }
    try:
        return {**record, **c.record(rounds)}
    except Exception as error:  # a peer's failure is a result: its table says so and goes on
        said = str(error).splitlines()[0][:120] if str(error) else ""
        return {**record, "note": f"raised {type(error).__name__}: {said}", "agrees": False}
