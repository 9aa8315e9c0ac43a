"""``theorylab measure`` and ``theorylab plan measure``: a user's file in, a report card or its expected cost out."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from theorylab.core.card import Entry
from theorylab.measuring.costs import in_words
from theorylab.measuring.families import choose
from theorylab.measuring.measure import Session, announcer, prepare
from theorylab.measuring.subject import SubjectError, load
from theorylab.report.card import ReportCard
from theorylab.report.card_table import as_text
from theorylab.report.numbers import duration
from theorylab.report.shell import slug
from theorylab.runners.memory import peak_bytes
from theorylab.runners.run import check_folder
from theorylab.runners.selection import UsageError, check_device


@dataclass(frozen=True)
class Request:
    """What the user asked for on the command line."""

    target: str
    families: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    seed: int = 0
    device: str | None = None
    dtype: str | None = None
    memory: str | None = None


@contextlib.contextmanager
def _refusing() -> Iterator[None]:
    """A request that cannot be carried out is a line, not a traceback."""
    try:
        yield
    except (SubjectError, ValueError, TypeError, RuntimeError) as error:
        raise UsageError(str(error)) from error


def _prepared(request: Request, errors: Console) -> Session:
    with _refusing():
        choose(request.families or None, request.only or None)  # before the user's file, which may take its time
        check_device(request.device or "cpu")
        dtype = None if request.dtype is None else getattr(torch, request.dtype)
        problem = load(request.target, device=request.device, dtype=dtype)
        name = Path(request.target.rpartition(":")[0]).name + ":" + request.target.rpartition(":")[2]
        options: dict[str, Any] = {"only": request.only or None, "seed": request.seed, "memory": request.memory, "title": name}
        return prepare(problem, request.families or None, **options, announce=announcer(errors))


def measure(request: Request, out: Path, *, json: bool, console: Console) -> int:
    """Measure, show the card, and write it as a page and as JSON under ``out``; the last line printed is the page's path.

    Returns:
        0; 1 where an instrument raised; 130 where Ctrl-C stopped it, with what was done on the card.

    Raises:
        UsageError: what was asked for cannot be carried out, or the card, which is shown, not written.
    """
    check_folder(out)
    errors = Console(stderr=True)
    session = _prepared(request, errors)
    entries: list[Entry] = []
    stopped = False
    try:
        with session.watch(errors) as watch:
            for entry in session.entries(watch):
                entries.append(entry)
    except KeyboardInterrupt:
        stopped = True
    card = session.card(entries)
    page, trouble = _written(card, out, _name(request.target))
    if json:
        print(card.to_json())
    else:
        if console.is_terminal:
            console.print(card)
        else:
            print(as_text(card, console.width))  # a file wants no padding at the ends of lines
        if not trouble:
            print(f"\n{page}", flush=True)
    if trouble:
        raise UsageError(trouble)
    if stopped:
        print(f"theorylab: stopped: {len(entries)} of {len(session.tools)} instruments are on the card.", file=sys.stderr)
        return 130
    return int(any(entry.state == "failed" for entry in entries))


def _name(target: str) -> str:
    """The name of the card's files: where the file lies in the working folder, and the object in it.

    So two files of one name in two folders have two cards. A digest tells what lies elsewhere, or has letters that a name should not have.
    """
    head, _, name = target.rpartition(":")
    path, here = Path(os.path.abspath(head)), Path.cwd()
    if path.is_relative_to(here) and path.suffix == ".py":
        parts = (*path.relative_to(here).with_suffix("").parts, name)
        if all(re.fullmatch(r"[A-Za-z0-9_]+", part) for part in parts):
            return "-".join(parts)
    return f"{slug(path.stem)}-{slug(name)}-{hashlib.sha256(f'{path}:{name}'.encode()).hexdigest()[:8]}"


def _written(card: ReportCard, out: Path, name: str) -> tuple[Path, str]:
    """Write the card; the path of its page, and what went wrong, which must not cost what is shown of it."""
    page, trouble = out / f"{name}.html", ""
    try:
        card.to_json(out / f"{name}.json")
        card.to_html(page)
    except OSError as error:
        where, why = error.filename2 or error.filename or out, error.strerror or error
        trouble = f"the card cannot be written to {where} ({why}); it is only shown."
    return page.resolve(), trouble


def plan(request: Request, console: Console) -> int:
    """Say what `measure` would cost, from a few gradients of the problem.

    Raises:
        UsageError: what was asked for cannot be carried out.
    """
    session = _prepared(request, Console(stderr=True))
    table = Table("instrument", "seconds", "memory", "from", box=None, pad_edge=False)
    reasons = {tool.name: reason for tool in session.tools if (reason := tool.why_not(session.problem)) is not None}
    costs = {name: cost for name, cost in session.expected.items() if name not in reasons}
    for name in session.expected:
        cost = costs.get(name)
        row: tuple[Any, ...] = ("0", "", f"does not apply: {reasons.get(name)}")
        if cost is not None:
            row = (_seconds(cost.seconds), "unknown" if cost.bytes is None else in_words(cost.bytes), cost.basis)
        table.add_row(name, *row)
    console.print(table, markup=False, highlight=False)
    known = [cost for cost in costs.values() if cost.seconds is not None]
    unknown = [name for name, cost in costs.items() if cost.seconds is None]
    beside = f", and {', '.join(unknown)} of unknown cost" if unknown else ""
    most = max((cost.bytes or 0 for cost in known), default=0)
    seconds = sum(cost.seconds or 0.0 for cost in known)
    console.print(
        f"\nIn all: about {duration(seconds)}, at most {in_words(most)} at a time beside the {in_words(peak_bytes())} that Python, torch "
        f"and the file take{beside}.",
        highlight=False,
        soft_wrap=True,
    )
    return 0


def _seconds(seconds: float | None) -> str:
    return "unknown" if seconds is None else f"{seconds:.1f}"
