"""Measure a problem by whole families of instruments, and put what they say on one card."""

from __future__ import annotations

import dataclasses
import datetime
import inspect
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console

from theorylab.core.card import Entry
from theorylab.core.instrument import Inapplicable, Instrument
from theorylab.core.notice import Notice
from theorylab.core.operator import Operator
from theorylab.core.problem import Problem
from theorylab.core.record import Provenance, machine, source_digest, versions
from theorylab.instruments.preflight import preflight
from theorylab.instruments.refusals import too_few_digits
from theorylab.measuring import costs, operators
from theorylab.measuring.families import choose
from theorylab.measuring.progress import Watch
from theorylab.measuring.readings import Shown, shown
from theorylab.measuring.tailored import TAILORED, Tailored, fewer_rows
from theorylab.report.card import ReportCard
from theorylab.runners.memory import peak_bytes
from theorylab.runners.plan import Cost


def measure(
    problem: Problem,
    families: str | Iterable[str] | None = None,
    *,
    only: str | Iterable[str] | None = None,
    seed: int = 0,
    memory: int | float | str | None = None,
    title: str = "",
    progress: bool = True,
) -> ReportCard:
    """The report card of a problem: every instrument of the ``families``, with intervals, costs and sources.

    An instrument that does not apply is on the card with the reason, and one that raises with its error; the others go on. The problem and
    its model stay as they are.

    Args:
        problem: The risk and the point.
        families: ``["curvature", "kernels"]``, or ``"curvature,kernels"``; also single instruments. None means all that there are.
        only: Of these, the instruments of these names.
        seed: Of every instrument that draws random numbers.
        memory: Bytes that the measurement may take beside Python and torch: ``"4GiB"``, or a number. Batches are split, graphs computed
            anew and Krylov spaces kept short to respect it. None leaves each instrument its own defaults.
        title: What the card calls the problem; default: the model's class.
        progress: Say on stderr what would spoil the measurement, and what is being measured where it takes more than two seconds.

    Raises:
        ValueError: an unknown family or instrument, with those that there are; a loss that is not finite; too little memory.

    Example:
        >>> x, y = torch.eye(3), torch.arange(3)
        >>> problem = Problem(torch.nn.Linear(3, 3), torch.nn.functional.cross_entropy, (x, y))
        >>> card = measure(problem, only="sharpness")
        >>> [(reading.name, reading.label) for reading in card.readings]
        [('sharpness', 'measure')]
    """
    console = Console(stderr=True) if progress else None
    session = prepare(problem, families, only=only, seed=seed, memory=memory, title=title, announce=announcer(console))
    entries = []
    with session.watch(console) as watch:
        for entry in session.entries(watch):
            entries.append(entry)
    return session.card(entries)


def announcer(console: Console | None) -> Callable[[Notice], None]:
    """Prints notices on ``console``; nowhere where it is None."""

    def announce(notice: Notice) -> None:
        if console is not None:
            style = "yellow" if notice.level == "warning" else "dim"
            console.print(str(notice), style=style, markup=False, highlight=False, soft_wrap=True)

    return announce


@dataclass(frozen=True)
class Session:
    """A measurement that has been checked and costed, and not begun."""

    problem: Problem
    tools: tuple[Instrument, ...]
    expected: dict[str, Cost]
    notices: tuple[Notice, ...]
    provenance: Provenance
    seed: int
    room: costs.Room | None
    started: str
    begun: float

    def watch(self, console: Console | None) -> Watch:
        """What shows the progress on ``console``."""
        return Watch(console, {name: cost.seconds or 0.0 for name, cost in self.expected.items()})

    def entries(self, watch: Watch) -> Iterator[Entry]:
        """Measure one instrument after the other."""
        for tool in self.tools:
            watch.begin(tool.name)
            entry = _entry(tool, self.problem, self.seed, self.room)
            watch.end(tool.name)
            yield entry

    def card(self, entries: Iterable[Entry]) -> ReportCard:
        """The card of what has been measured."""
        entries = tuple(entries)
        left = tuple(tool.name for tool in self.tools[len(entries) :])
        seconds = time.perf_counter() - self.begun
        return ReportCard(self.provenance, entries, self.notices, self.started, seconds, peak_bytes(), machine(), left)


def prepare(
    problem: Problem,
    families: str | Iterable[str] | None = None,
    *,
    only: str | Iterable[str] | None = None,
    seed: int = 0,
    memory: int | float | str | None = None,
    title: str = "",
    announce: Callable[[Notice], None] = lambda _: None,
) -> Session:
    """Check all that `measure` is asked for, and say what it will cost, by a few gradients; nothing else is measured.

    ``announce`` is told what a preflight finds, before anything can fail.
    """
    begun, started = time.perf_counter(), datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    if not isinstance(problem, Problem):
        raise TypeError(f"problem must be a theorylab.Problem, got {type(problem).__name__}: make one of the model, its loss and its data.")
    tools = choose(families, only)
    budget = None if memory is None else costs.as_bytes(memory)
    notices = preflight(problem)
    for notice in notices:
        announce(notice)
    loss = float(problem.loss().detach())  # a loss that takes derivatives itself comes with a graph
    known = costs.footing(problem)
    room = None if budget is None else costs.share_out(problem, known, budget)
    measured = problem if room is None else room.problem
    config = {
        "model": type(problem.model).__name__,
        "parameters": problem.P,
        "loss": getattr(problem.criterion, "__name__", type(problem.criterion).__name__),
        "mean loss": loss,
        "rows": problem.n,
        "batches": len(measured.batches),
        "mode": "training" if problem.train else "evaluation",
        "dtype": str(problem.dtype).removeprefix("torch."),
        "device": str(problem.device),
        "instruments": [tool.name for tool in tools],
        "seed": seed,
        "memory": budget,
    }
    provenance = Provenance(title or config["model"], config, source_digest(__name__), versions())
    expected = {tool.name: costs.expect(tool, measured, known, budget) for tool in tools}
    return Session(measured, tools, expected, notices, provenance, seed, room, started, begun)


def _entry(tool: Instrument, problem: Problem, seed: int, room: costs.Room | None) -> Entry:
    """One instrument, whatever becomes of it."""
    takes = inspect.signature(tool.measure).parameters
    seeded = seed if "seed" in takes else None
    about: dict[str, Any] = {"instrument": tool.name, "family": tool.family, "source": tool.source, "seed": seeded}
    tailored = TAILORED.get(tool.name, Tailored())
    part, remark = fewer_rows(problem, tailored.rows)
    options: dict[str, Any] = {**tailored.options} if seeded is None else {**tailored.options, "seed": seed}
    if room is not None and "memory" in takes:
        options["memory"] = room.graph
    drawn = False

    def operator(A: Operator) -> Shown:
        nonlocal drawn
        if (reason := too_few_digits(problem)) is not None:  # products have them; what a card says of an operator has not
            raise Inapplicable(reason)
        drawn = True
        vectors = costs.free_vectors(problem) if room is None else room.vectors
        return operators.of_operator(tool.name, A, seed=seed, vectors=vectors, one_by_one=room is not None)

    start = time.perf_counter()
    try:
        if (reason := tool.why_not(problem)) is not None:
            return Entry(state="inapplicable", why=reason, **about)
        result = tool.measure(part, **options)
        own = callable(getattr(result, "readings", None))
        found = tailored.read(result) if tailored.read and not own else shown(tool.name, result, operator)
        if problem.device.type == "cuda":
            torch.cuda.synchronize(problem.device)
    except Inapplicable as reason:  # found out on the way, rows that depend on each other for example
        return Entry(state="inapplicable", why=str(reason).removeprefix(f"{tool.name} does not apply: "), **about)
    except Exception as error:  # whatever an instrument meets, the others go on
        why = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        return Entry(state="failed", why=why, traceback=traceback.format_exc(), seconds=time.perf_counter() - start, **about)
    about["seed"] = seed if drawn else seeded
    seconds = time.perf_counter() - start
    readings = tuple(dataclasses.replace(r, note="; ".join(filter(None, (r.note, remark)))) for r in found.readings)
    return Entry(state="measured", readings=readings, figures=tuple(found.figures), seconds=seconds, matvecs=found.matvecs, **about)
