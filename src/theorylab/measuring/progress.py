"""How does a measurement look while it runs? Which instrument is at work, and how long it is expected to take."""

from __future__ import annotations

from rich.console import Console

from theorylab.core.progress import QUIET, Bar


class Watch(Bar):
    """Shows which instrument is being measured; to be used as a context.

    Args:
        console: Where it shows; None keeps silent.
        expected: Seconds that each instrument is expected to take, by name; 0 where unknown.
        quiet: Seconds before anything is shown.
    """

    def __init__(self, console: Console | None, expected: dict[str, float], quiet: float = QUIET) -> None:
        known = [v for v in expected.values() if v > 0]
        usual = sum(known) / len(known) if known else 1.0
        self._seconds = expected
        self._shares = {name: seconds or usual for name, seconds in expected.items()}
        self._ended = 0
        super().__init__(console, "measuring", sum(self._shares.values()), quiet=quiet)

    def begin(self, name: str) -> None:
        """An instrument starts."""
        seconds = self._seconds.get(name, 0.0)
        self.show(f"{name} ({self._ended + 1} of {len(self._seconds)}{f', about {seconds:.0f} s' if seconds >= 1 else ''})")

    def end(self, name: str) -> None:
        """An instrument is through."""
        self._ended += 1
        self.show("")
        self.advance(self._shares[name])
