"""How does something long look while it runs? Silent for two seconds, then a bar in a terminal and plain lines elsewhere."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

QUIET = 2.0
"""Seconds before anything is shown."""


class Bar:
    """Shows what is being done now, and how much of all is done; to be used as a context.

    Args:
        console: Where it shows; None keeps silent.
        name: What begins every plain line.
        total: How much there is to do, in any unit.
        quiet: Seconds before anything is shown.
        every: Seconds between plain lines at least; 0 for a line whenever something else is done.
    """

    def __init__(self, console: Console | None, name: str, total: float, *, quiet: float = QUIET, every: float = 0.0) -> None:
        self._console, self._name, self._total, self._every = console, name, total, every
        self._lock = threading.Lock()
        self._open = False
        self._text = ""
        self._done = 0.0
        self._said = float("-inf")
        self._timer = threading.Timer(quiet, self._reveal)
        self._timer.daemon = True
        self._bar: Progress | None = None
        self._task = None

    def show(self, text: str) -> None:
        """Something else is being done now; nothing, where the text is empty."""
        with self._lock:
            self._text = text
            self._show()

    def advance(self, amount: float) -> None:
        """So much more is done."""
        with self._lock:
            self._done += amount
            if self._bar is not None and self._task is not None:
                self._bar.advance(self._task, amount)

    def _reveal(self) -> None:
        with self._lock:
            self._open = True
            if self._console is not None and self._console.is_terminal:
                columns = (TextColumn("{task.description}"), BarColumn(32), TimeElapsedColumn(), TimeRemainingColumn())
                self._bar = Progress(*columns, console=self._console, transient=True)
                self._task = self._bar.add_task("", total=self._total, completed=self._done)  # pyright: ignore[reportArgumentType]
                self._bar.start()
            self._show()

    def _show(self) -> None:
        if not self._open or not self._text or self._console is None:
            return
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=self._text)
        elif time.monotonic() - self._said >= self._every:
            self._said = time.monotonic()
            self._console.print(f"{self._name}: {self._text}", markup=False, highlight=False, soft_wrap=True)

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
