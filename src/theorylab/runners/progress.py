"""How a run looks while it runs: a live table in a terminal, plain lines elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from theorylab.core.record import Record
from theorylab.runners.outcome import states, verdict_line
from theorylab.runners.schedule import Decision


class Progress(Protocol):
    """What a run tells whoever watches it; stages come from other threads."""

    def planned(self, decisions: Sequence[Decision]) -> None:
        """All studies of the run, with what will be done to each."""

    def stage(self, study: str, name: str) -> None:
        """A study begins a stage."""

    def output(self, study: str, line: str) -> None:
        """A study printed or warned."""

    def finished(self, study: str, record: Record) -> None:
        """A study ended, well or with an error."""

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None: ...


def watch(console: Console) -> Progress:
    """The progress that suits the console."""
    return LiveTable(console) if console.is_terminal else Lines(console)


def style_of(record: Record) -> str:
    """The colour of a record's verdicts: red where something fails, yellow where something is open."""
    found = set(states(record).values())
    return "red" if found & {"fails", "error", "control holds"} else "green" if found == {"holds"} else "yellow"


class Lines:
    """One line an event: for logs, pipes and continuous integration."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def planned(self, decisions: Sequence[Decision]) -> None:
        """Say what will be done to each study."""
        for d in decisions:
            self._say(d.job.study, f"reused: {verdict_line(d.record)}" if d.record else f"to compute ({d.reason})")

    def stage(self, study: str, name: str) -> None:
        """Say that a study begins a stage."""
        self._say(study, name)

    def finished(self, study: str, record: Record) -> None:
        """Say how a study ended."""
        self._say(study, f"{verdict_line(record)} [{record.seconds:.1f} s, {record.peak_bytes / 2**20:.0f} MiB]")

    def output(self, study: str, line: str) -> None:
        """Hand on what a study printed."""
        self._say(study, f"| {line}")

    def _say(self, study: str, text: str) -> None:
        self._console.print(f"{study}: {text}", markup=False, highlight=False, soft_wrap=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, value: object, trace: object) -> None:
        return None


class LiveTable:
    """A table that is drawn again while studies run; it stays, in its last state, when the run ends."""

    def __init__(self, console: Console) -> None:
        self._lock = threading.Lock()
        self._rows: dict[str, list[str]] = {}
        self._started: dict[str, float] = {}
        self._live = Live(console=console, get_renderable=self._table, refresh_per_second=4)

    def planned(self, decisions: Sequence[Decision]) -> None:
        """Say what will be done to each study."""
        with self._lock:
            for d in decisions:
                if d.record:
                    self._rows[d.job.study] = ["reused", f"{d.record.seconds:.1f} s", self._verdict(d.record)]
                else:
                    self._rows[d.job.study] = [f"[dim]waits ({escape(d.reason)})[/]", "", ""]

    def stage(self, study: str, name: str) -> None:
        """Say that a study begins a stage."""
        with self._lock:
            self._started.setdefault(study, time.monotonic())
            self._rows[study] = [escape(name), "", ""]

    def finished(self, study: str, record: Record) -> None:
        """Say how a study ended."""
        with self._lock:
            self._started.pop(study, None)
            self._rows[study] = ["failed" if record.error else "done", f"{record.seconds:.1f} s", self._verdict(record)]

    def output(self, study: str, line: str) -> None:
        """Print above the table what a study printed."""
        self._live.console.print(f"{study} | {line}", markup=False, highlight=False, soft_wrap=True)

    @staticmethod
    def _verdict(record: Record) -> str:
        return f"[{style_of(record)}]{escape(verdict_line(record))}[/]"

    def _table(self) -> Table:
        table = Table("study", "stage", "elapsed", "verdict", box=None, pad_edge=False, header_style="bold")
        now = time.monotonic()
        with self._lock:
            # what runs stands on top, since a terminal shows only the beginning of a long table
            rows = sorted(self._rows.items(), key=lambda row: row[0] not in self._started)
            for study, (stage, elapsed, verdict) in rows:
                running = f"{now - self._started[study]:.0f} s" if study in self._started else elapsed
                table.add_row(study, stage, running, verdict, style="bold" if study in self._started else "")
        return table

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, kind: object, value: object, trace: object) -> None:
        self._live.stop()
