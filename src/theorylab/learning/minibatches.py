"""In which order a replica sees its rows: one generator each, reshuffled every epoch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


class DataOrder:
    """The endless sequence of minibatches of one replica.

    Each epoch is one permutation of ``rows`` cut into ``batch_size`` pieces; a remainder shorter than that is dropped, so that every batch
    has the same size. The permutations come from a generator of this replica alone: neither the number of replicas nor how many batches
    are taken at a time changes them.

    Args:
        rows: Row numbers to draw from, (m,), int64.
        batch_size: In 1..m.
        seed: Seed of the generator.
    """

    def __init__(self, rows: Tensor, batch_size: int, seed: int):
        self.rows = rows.cpu()
        self.batch_size = batch_size
        self.generator = torch.Generator().manual_seed(seed)
        self.left = torch.empty(0, batch_size, dtype=torch.int64, device="cpu")  # batches of the current epoch not yet taken

    def take(self, count: int) -> Tensor:
        """The next ``count`` batches, (count, batch_size)."""
        parts, have = [self.left], len(self.left)
        while have < count:
            shuffled = self.rows[torch.randperm(len(self.rows), generator=self.generator, device="cpu")]
            batches = len(shuffled) // self.batch_size
            parts.append(shuffled[: batches * self.batch_size].view(batches, self.batch_size))
            have += batches
        ready = torch.cat(parts)
        self.left = ready[count:]
        return ready[:count]

    def state(self) -> dict[str, Tensor]:
        """Where the sequence is."""
        return {"generator": self.generator.get_state(), "left": self.left}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on from a `state` of the same sequence."""
        self.generator.set_state(state["generator"])
        self.left = state["left"]


def minibatches(n: int, batch_size: int, seed: int) -> Iterator[Tensor]:
    """The minibatches that a replica of this seed trains on: an endless iterator of row numbers (batch_size,).

    Raises:
        ValueError: ``batch_size`` is not in 1..n.

    Example:
        >>> batches = minibatches(6, 2, seed=0)
        >>> epoch = torch.cat([next(batches) for _ in range(3)])
        >>> sorted(epoch.tolist())
        [0, 1, 2, 3, 4, 5]
    """
    if not 1 <= batch_size <= n:
        raise ValueError(f"batch_size must be in 1..{n} (the number of rows), got {batch_size}.")
    order = DataOrder(torch.arange(n, device="cpu"), batch_size, seed)
    return (order.take(1)[0] for _ in iter(int, 1))
