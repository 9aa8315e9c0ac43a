"""How does a measurement look while it runs? Silent for two seconds, then a bar in a terminal and plain lines elsewhere, on stderr."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

QUIET = 2.0
"""Seconds before anything is shown."""


class Watch:
    """Shows which instrument is being measured; to be used as a context.

    Args:
        console: Where it shows; None keeps silent.
        expected: Seconds that each instrument is expected to take, by name; 0 where unknown.
        quiet: Seconds before anything is shown.
    """

    def __init__(self, console: Console | None, expected: dict[str, float], quiet: float = QUIET) -> None:
        self._console, self._expected = console, expected
        self._lock = threading.Lock()
        self._open = False
        self._now = ""
        self._done = 0
        self._timer = threading.Timer(quiet, self._reveal)
        self._timer.daemon = True
        self._bar: Progress | None = None
        self._task = None

    def begin(self, name: str) -> None:
        """An instrument starts."""
        with self._lock:
            self._now = name
            self._show()

    def end(self, name: str) -> None:
        """An instrument is through."""
        with self._lock:
            self._done += 1
            self._now = ""
            if self._bar is not None and self._task is not None:
                self._bar.advance(self._task, self._share(name))

    def _share(self, name: str) -> float:
        known = [v for v in self._expected.values() if v > 0]
        return self._expected.get(name) or (sum(known) / len(known) if known else 1.0)

    def _reveal(self) -> None:
        with self._lock:
            self._open = True
            if self._console is not None and self._console.is_terminal:
                columns = (TextColumn("{task.description}"), BarColumn(32), TimeElapsedColumn(), TimeRemainingColumn())
                self._bar = Progress(*columns, console=self._console, transient=True)
                total = sum(map(self._share, self._expected))
                done = sum(self._share(name) for name in list(self._expected)[: self._done])
                self._task = self._bar.add_task("", total=total)
                self._bar.advance(self._task, done)
                self._bar.start()
            self._show()

    def _show(self) -> None:
        if not self._open or not self._now or self._console is None:
            return
        seconds = self._expected.get(self._now, 0.0)
        text = f"{self._now} ({self._done + 1} of {len(self._expected)}{f', about {seconds:.0f} s' if seconds >= 1 else ''})"
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=text)
        else:
            self._say(text)

    def _say(self, text: str) -> None:
        assert self._console is not None
        self._console.print(f"measuring: {text}", markup=False, highlight=False, soft_wrap=True)

    def __enter__(self) -> Self:
        if self._console is not None:
            self._timer.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._timer.cancel()
        with self._lock:
            self._open = False
            if self._bar is not None:
                self._bar.stop()
