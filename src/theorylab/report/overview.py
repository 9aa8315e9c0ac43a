"""Where does every claim stand, at a glance? One line a claim: its measurement on the scale of its own region, and its controls."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

from markupsafe import Markup

from theorylab.report.ledger import Row
from theorylab.report.standing import standing

HEIGHT = 22


def percent(z: float) -> float:
    """Where a standing is drawn: linear within the region, which takes the middle half of the width, and logarithmic beyond it.

    Example:
        >>> percent(0.0), percent(1.0), percent(-10.0), percent(math.inf)
        (50.0, 75.0, 12.5, 100.0)
    """
    if abs(z) <= 1:
        return 50 + 25 * z
    far = math.log10(abs(z)) if math.isfinite(z) else math.inf
    return 50 + math.copysign(25 + 25 * (1 - 1 / (1 + far)), z)


@dataclass(frozen=True)
class Line:
    """A claim of the overview: its row of the ledger and its picture."""

    row: Row
    svg: Markup

    @property
    def name(self) -> str:
        """The claim's own name, in words; its study's is the heading."""
        return self.row.key.rpartition("/")[2].replace("_", " ")


@dataclass(frozen=True)
class Block:
    """The claims of one study."""

    study: str
    lines: tuple[Line, ...]

    @property
    def name(self) -> str:
        """The study's own name, in words."""
        return self.study.rpartition("/")[2].replace("_", " ")


def _picture(row: Row) -> Markup:
    y, parts, shown = HEIGHT / 2, [], row.telling
    if shown is not None:
        ends = [within if math.isfinite(end) else edge for end, within, edge in zip(shown.region, (25, 75), (0, 100), strict=True)]
        parts.append(f'<rect class="region" x="{ends[0]}%" y="0" width="{ends[1] - ends[0]}%" height="{HEIGHT}"/>')
        if ends == [25, 75]:
            parts.append(f'<line class="predicted" x1="50%" x2="50%" y1="0" y2="{HEIGHT}"/>')
    for control in row.checks("control"):
        parts.append(f'<circle class="control" cx="{percent(standing(control)[1]):.2f}%" cy="{y:g}" r="3.4"/>')
    if shown is not None:
        low, at, high = map(percent, standing(shown))
        if high > low:
            parts.append(f'<line class="interval" x1="{low:.2f}%" x2="{high:.2f}%" y1="{y:g}" y2="{y:g}"/>')
        parts.append(f'<circle class="measured" cx="{at:.2f}%" cy="{y:g}" r="4"/>')
    head = Markup('<svg class="glance {}" aria-hidden="true" width="100%" height="{}">').format(row.state, HEIGHT)
    return head + Markup("".join(parts) + "</svg>")  # built of numbers alone


def overview(rows: Iterable[Row]) -> dict[str, list[Block]]:
    """Topic → its studies' claims as lines, in the order of the rows."""
    blocks: dict[str, list[Block]] = {}
    for study, group in groupby(rows, key=lambda r: r.study):
        blocks.setdefault(study.partition("/")[0], []).append(Block(study, tuple(Line(r, _picture(r)) for r in group)))
    return blocks
