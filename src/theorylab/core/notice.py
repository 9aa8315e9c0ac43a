"""Something to look at before a number is believed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Notice:
    """Something to look at before measuring: ``what`` is the case, ``why`` it matters, what to ``do``.

    Example:
        >>> print(Notice("the loader shuffles", "Rows were read in some order", "Pass shuffle=False", "info"))
        info: the loader shuffles. Rows were read in some order. Pass shuffle=False.
    """

    what: str
    why: str
    do: str
    level: Literal["info", "warning"]

    def __str__(self) -> str:
        return f"{self.level}: {self.what}. {self.why}. {self.do}."
