"""What a population recorded while it trained."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

Measured = Tensor | dict[str, Tensor]
FIRST_ROWS = 64
"""Measurements for which there is room at first."""


@dataclass(frozen=True)
class Trajectory:
    """Measurements at some steps of a training run.

    ``steps`` (t,) counts optimizer steps since the population was made; ``values`` holds one (t, replica) tensor a quantity. A measure
    that returns a bare tensor is recorded as ``"value"``.
    """

    steps: Tensor
    values: dict[str, Tensor] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Tensor:
        return self.values[name]

    def late(self, values: Tensor) -> Tensor:
        """Mean over the second half of the steps from the first measurement to the last, (replica,), of a quantity (t, replica).

        A measurement stands for the steps since the one before it: the last may follow sooner than the others, and counts for less then.
        """
        gaps = self.steps.diff()
        weights = torch.cat([gaps[:1], gaps]) if len(gaps) else torch.ones(1, device="cpu")  # the first stands for as many as the second
        weights = weights * (self.steps >= (self.steps[0] + self.steps[-1]) / 2)
        return torch.einsum("t,t...->...", (weights / weights.sum()).to(values), values)


class Recorder:
    """Collects what ``measure`` returns and checks that it is one number a replica.

    Each quantity has one table, which doubles when it is full: a small tensor kept from every step would split the large ones that steps
    leave free, and the process would grow by their size at each.
    """

    def __init__(self, size: int):
        self.size = size
        self.steps: list[int] = []
        self._tables: dict[str, Tensor] = {}

    def add(self, step: int, measured: Measured) -> None:
        """Record the measurement of one step.

        Raises:
            ValueError: a value is not (replica,), or the names differ from those of the first measurement.
        """
        row = measured if isinstance(measured, dict) else {"value": measured}
        for name, value in row.items():
            if not isinstance(value, Tensor) or value.shape != (self.size,):
                got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(f"measure must return one number a replica, shape ({self.size},), got {got} for {name!r}.")
        if self.steps and row.keys() != self._tables.keys():
            raise ValueError(f"measure must return the same names every time, got {sorted(row)} after {sorted(self._tables)}.")
        done = len(self.steps)
        for name, value in row.items():
            table = self._tables[name] if done else value.detach().new_empty(FIRST_ROWS, self.size)
            if done == len(table):
                table = torch.cat([table, torch.empty_like(table)])
            self._tables[name] = table.to(torch.promote_types(table.dtype, value.dtype))
            self._tables[name][done] = value.detach()
        self.steps.append(step)

    def trajectory(self) -> Trajectory:
        """All that was recorded."""
        steps = torch.tensor(self.steps, dtype=torch.int64, device="cpu")
        return Trajectory(steps, {name: table[: len(self.steps)].clone() for name, table in self._tables.items()})

    def resume(self, trajectory: Trajectory) -> None:
        """Go on after what an earlier recorder had."""
        self.steps, self._tables = trajectory.steps.tolist(), dict(trajectory.values)
