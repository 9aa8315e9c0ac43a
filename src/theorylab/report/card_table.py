"""How does a report card look in a terminal? One table, a section a family, and below it where each number comes from."""

from __future__ import annotations

import io

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from theorylab.core.card import Card, Entry
from theorylab.core.reading import Reading
from theorylab.report.ledger import topic_name
from theorylab.report.numbers import digits_for, duration, interval, number, count


def as_table(card: Card) -> Group:
    """The card for a rich console."""
    parts: list[Text | Table] = [Text(card.title, style="bold"), Text(summary(card), style="dim"), Text()]
    for remark in card.remarks:
        parts.append(Text.assemble((f"{remark.level}: ", "yellow"), f"{remark.what}. {remark.why}. {remark.do}."))
    if card.remarks:
        parts.append(Text())
    parts += [_readings(card), Text(), _sources(card)]
    if card.unfinished:
        parts += [Text(), Text(f"Stopped before: {', '.join(card.unfinished)}.", style="yellow")]
    return Group(*parts)


def as_text(card: Card) -> str:
    """The same as plain text, as wide as the terminal."""
    buffer = io.StringIO()
    Console(file=buffer, color_system=None, highlight=False).print(as_table(card))
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines())


def summary(card: Card) -> str:
    """The problem in a line."""
    c = card.provenance.config
    return (
        f"{c['model']}, P = {count(c['parameters'])}; {c['loss']} {number(c['mean loss'])} over n = {count(c['rows'])} rows, "
        f"{c['mode']} mode, {c['dtype']} on {c['device']}; {duration(card.seconds)}"
    )


def value_of(reading: Reading) -> str:
    """The number with the digits that its interval leaves it."""
    low, high = reading.interval or (reading.value, reading.value)
    return number(reading.value, digits_for(reading.value, high - low), zeros=high > low)


def _readings(card: Card) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("reading", overflow="fold", ratio=1)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("99 % interval", no_wrap=True)
    table.add_column("kind", no_wrap=True)
    table.add_column("cost", justify="right", no_wrap=True)
    for family, entries in card.families.items():
        table.add_row(Text(topic_name(family), style="bold"))
        for entry in entries:
            _entry(table, entry)
    return table


def _entry(table: Table, entry: Entry) -> None:
    if entry.state != "measured":
        style, word = ("red", "failed") if entry.state == "failed" else ("dim", "does not apply")
        table.add_row(Text(f"  {entry.instrument}: {entry.why}", style=style), "", "", Text(word, style=style), _cost(entry))
        return
    for k, r in enumerate(entry.readings):
        notes = "; ".join(filter(None, (r.note, *r.assumptions)))
        name = Text.assemble(f"  {r.name}", (f"  {notes}" if notes else "", "dim"))
        kind = Text(f"bound, δ = {r.delta:g}" if r.label == "bound" else "measure", style="cyan" if r.label == "bound" else "dim")
        table.add_row(name, value_of(r), interval(*r.interval) if r.interval else "", kind, _cost(entry) if k == 0 else "")
    if not entry.readings:
        table.add_row(Text(f"  {entry.instrument}: a figure, on the page", style="dim"), "", "", "", _cost(entry))


def _cost(entry: Entry) -> Text:
    products = "" if entry.matvecs is None else f", {count(entry.matvecs)} products"
    return Text(f"{duration(entry.seconds)}{products}" if entry.state != "inapplicable" else "", style="dim")


def _sources(card: Card) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for entry in card.entries:
        seed = "" if entry.seed is None else f"; seed {entry.seed}"
        table.add_row(Text(entry.instrument, style="dim"), Text(f"{entry.source}{seed}", style="dim"))
    return table
