"""The faces of a report card: a table in a terminal, a fragment in a notebook, a page on disk, and JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from theorylab.core.card import Card, as_json, from_json
from theorylab.core.files import write_atomically

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult


@dataclass(frozen=True)
class ReportCard(Card):
    """What instruments say about a problem; see `Card` for its parts and ``readings`` for the numbers.

    ``print(card)`` shows a table, a notebook shows the card as the last value of a cell, ``to_html`` writes a page that opens from disk,
    and ``to_json`` keeps every number.
    """

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from theorylab.report.card_table import as_table

        yield as_table(self, options.max_width)

    def __str__(self) -> str:
        from theorylab.report.card_table import as_text

        return as_text(self)

    def _repr_html_(self) -> str:
        from theorylab.report.card_page import fragment

        return fragment(self)

    def to_html(self, path: str | Path) -> Path:
        """Write the card as one page, whole in itself: no network and no other file.

        Raises:
            OSError: ``path`` cannot be written.
        """
        from theorylab.report.card_page import render

        write_atomically(Path(path), render(self).encode())
        return Path(path)

    def to_json(self, path: str | Path | None = None) -> str:
        """The card as JSON text; also written to ``path`` where one is given. `from_json` reads it back."""
        text = json.dumps(as_json(self), indent=1, ensure_ascii=False, allow_nan=False)
        if path is not None:
            write_atomically(Path(path), text.encode())
        return text

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The card of what `to_json` returned.

        Raises:
            ValueError: not JSON, another schema, or a part that is missing.
        """
        return cls(**from_json(json.loads(text)))
