"""A study's settings: one frozen dataclass is the Python API, the command-line flags and the stored record."""

from __future__ import annotations

import dataclasses
import itertools
import math
import typing
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeVar

T = TypeVar("T")


def setting(default: T, help: str, *, low: float | None = None, high: float | None = None, rising: bool = False) -> T:
    """A field of a `Config` with its meaning (units included) and closed range, checked on construction.

    Args:
        default: Its value at laptop scale.
        help: Its meaning.
        low: The least value, of every entry of a tuple.
        high: The largest.
        rising: The tuple must hold at least two numbers, each larger than the one before.
    """
    return field(default=default, metadata={"help": help, "low": low, "high": high, "rising": rising})


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings common to all studies; a study subclasses it and adds its own with `setting`.

    Raises:
        ValueError: a value outside its range, or not finite, naming the field, the range and the value; or no value at all for a setting
            of several, where that is not the default.

    Example:
        >>> Config(seeds=0)
        Traceback (most recent call last):
        ValueError: seeds must be at least 1, got 0 (seeds: replicas, each with its own random numbers).
    """

    seeds: int = setting(8, "replicas, each with its own random numbers", low=1)
    seed: int = setting(0, "base seed; replica k uses seed + k", low=0)
    device: str = setting("cpu", "torch device: cpu, cuda, cuda:1, ...")
    dtype: Literal["float64", "float32"] = setting("float64", "floating-point type of the computation")

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for f in fields(self):
            value, hint = getattr(self, f.name), hints[f.name]
            low, high, about = (f.metadata.get(k) for k in ("low", "high", "help"))
            tail = f" ({f.name}: {about})." if about else "."
            if typing.get_origin(hint) is Literal and value not in typing.get_args(hint):
                raise ValueError(f"{f.name} must be one of {', '.join(map(str, typing.get_args(hint)))}, got {value!r}{tail}")
            if value == () and f.default != ():
                raise ValueError(f"{f.name} must hold at least one value, got none{tail}")
            for v in value if isinstance(value, tuple) else (value,):
                if isinstance(v, float) and not math.isfinite(v):  # a closed range has no place for it, nor has a record
                    raise ValueError(f"{f.name} must be finite, got {v}{tail}")
                if low is not None and not v >= low:
                    raise ValueError(f"{f.name} must be at least {low:g}, got {v}{tail}")
                if high is not None and not v <= high:
                    raise ValueError(f"{f.name} must be at most {high:g}, got {v}{tail}")
            if f.metadata.get("rising") and not (len(value) > 1 and all(a < b for a, b in itertools.pairwise(value))):
                raise ValueError(f"{f.name} must be at least two numbers in rising order, got {value}{tail}")

    @property
    def replica_seeds(self) -> list[int]:
        """The seed of each replica."""
        return [self.seed + k for k in range(self.seeds)]

    @property
    def torch_dtype(self) -> Any:
        """The torch dtype that ``dtype`` names."""
        import torch

        return getattr(torch, self.dtype)

    def as_dict(self) -> dict[str, Any]:
        """The settings as JSON-ready values."""
        return dataclasses.asdict(self)
