"""How does a report card look in a terminal? One table, a section a family, and below it each instrument's cost and source."""

from __future__ import annotations

import io

from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from theorylab.core.card import Card, Entry
from theorylab.core.reading import Reading
from theorylab.report.ledger import topic_name
from theorylab.report.numbers import count, duration, interval, measured, number, sentence

WIDE = 110
"""Columns from which a measure's remark stands beside its name."""


FAMILIES = {"kfac": "K-FAC"}
"""Families whose name in words is not their key with spaces."""


def family_name(family: str) -> str:
    """A family's key in words.

    Example:
        >>> family_name("gradient_noise"), family_name("kfac")
        ('Gradient noise', 'K-FAC')
    """
    return FAMILIES.get(family, topic_name(family))


def as_table(card: Card, width: int) -> Group:
    """The card for a rich console of so many columns."""
    parts: list[Text | Table] = [Text(card.title, style="bold"), Text(summary(card), style="dim"), Text()]
    for n in card.notices:
        parts += [Text.assemble((f"{n.level}: ", "yellow"), " ".join(map(sentence, (n.what, n.why, n.do)))), Text()]
    parts += [_readings(card, width >= WIDE), Text(), _sources(card)]
    if card.unfinished:
        parts += [Text(), Text(f"Stopped. Not measured: {', '.join(card.unfinished)}.", style="yellow")]
    return Group(*parts)


def as_text(card: Card, width: int | None = None) -> str:
    """The same as plain text, by default as wide as the terminal."""
    console = Console(file=io.StringIO(), color_system=None, highlight=False, width=width)
    with console.capture() as captured:
        console.print(as_table(card, console.width))
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def summary(card: Card) -> str:
    """The problem in a line."""
    c = card.provenance.config
    return (
        f"{c['model']}, P = {count(c['parameters'])}; {c['loss']} {number(c['mean loss'])} over n = {count(c['rows'])} rows, "
        f"{c['mode']} mode, {c['dtype']} on {c['device']}; {duration(card.seconds)}"
    )


def value_of(reading: Reading) -> str:
    """The number with the digits that its interval leaves it."""
    return measured(reading.value, *(reading.interval or (reading.value, reading.value)))


def _readings(card: Card, wide: bool) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    table.add_column("reading", overflow="fold", max_width=78)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("99 % interval", no_wrap=True)
    table.add_column("kind", no_wrap=True)
    for family, entries in card.families.items():
        table.add_row(Text(family_name(family), style="bold"))
        for entry in entries:
            _entry(table, entry, wide)
    return table


def _entry(table: Table, entry: Entry, wide: bool) -> None:
    if entry.state != "measured":
        style, word = ("red", "failed") if entry.state == "failed" else ("dim", "not applicable")
        row = Padding(Text(f"{entry.instrument}: {entry.why}", style=style), (0, 0, 0, 2))
        table.add_row(row, "", "", Text(word, style=style))
        return
    for r in entry.readings:
        bound = r.label == "bound"
        # what a bound rests on is a part of it; a measure's remark is for who has the room
        notes = "; ".join(filter(None, (f"δ = {r.delta:g}", *r.assumptions, r.note))) if bound else r.note if wide else ""
        name = Text.assemble(r.name, (("\n" if bound else "  ") + notes if notes else "", "dim"))
        kind = Text(r.label, style="cyan" if bound else "dim")
        table.add_row(Padding(name, (0, 0, 0, 2)), value_of(r), interval(*r.interval) if r.interval else "", kind)
    if not entry.readings:
        table.add_row(Padding(Text(f"{entry.instrument}: a figure, on the page", style="dim"), (0, 0, 0, 2)))


def _sources(card: Card) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for entry in card.entries:
        products = "" if entry.matvecs is None else f", {count(entry.matvecs)} products"
        cost = f"{duration(entry.seconds)}{products}. " if entry.state != "inapplicable" else ""
        seed = "" if entry.seed is None else f". Seed {entry.seed}"
        table.add_row(Text(entry.instrument, style="dim"), Text(f"{cost}{entry.source}{seed}.", style="dim"))
    return table
