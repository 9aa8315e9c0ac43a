"""Fresh noise on the labels of every step, from one generator a replica."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from theorylab.core.seeds import derived_seed

BLOCK = 128
"""Steps whose noise is drawn at a time, where a replica's labels are few, ..."""
ENTRIES = 2**18
"""... and the numbers that are drawn for a replica at a time, one step at the least.

Both always the same, whatever the number of replicas, for what a generator gives depends on how many numbers are asked of it at once.
"""


class LabelNoise:
    """Normal noise for the labels of replicas that step together; neither their number nor how steps are cut into calls changes it.

    Args:
        scale: Standard deviation of each replica, (replica,), at least 0.
        seeds: One a replica.
    """

    def __init__(self, scale: Tensor, seeds: Sequence[int]):
        self.scale = scale.cpu().double()
        self.generators = [torch.Generator().manual_seed(derived_seed(seed, "label noise")) for seed in seeds]
        self.left: Tensor | None = None  # drawn and not yet taken, (step, replica, ...)

    def part(self, index: slice) -> LabelNoise:
        """The noise of some of the replicas, which goes on where it is."""
        part = LabelNoise(self.scale[index], [])
        part.generators = self.generators[index]
        part.left = None if self.left is None else self.left[:, index]
        return part

    @staticmethod
    def merged(parts: Sequence[LabelNoise]) -> LabelNoise:
        """The noise of several groups that have taken equally many steps."""
        whole = LabelNoise(torch.cat([part.scale for part in parts]), [])
        whole.generators = [generator for part in parts for generator in part.generators]
        left = [part.left.cpu() for part in parts if part.left is not None]
        whole.left = torch.cat(left, 1) if left else None
        return whole

    def take(self, like: Tensor) -> Tensor:
        """The noise of the next step, (replica, *like.shape), for labels of one replica shaped, typed and placed as ``like``."""
        if self.left is None or len(self.left) == 0:
            block = max(1, min(BLOCK, ENTRIES // max(1, like.numel())))
            drawn = [
                torch.randn(block, *like.shape, generator=generator, dtype=torch.float64, device="cpu") for generator in self.generators
            ]
            self.left = (torch.stack(drawn, 1) * self.scale.reshape(-1, *[1] * like.ndim)).to(like)
        now, self.left = self.left[0], self.left[1:]
        return now.to(like)

    def state(self) -> dict[str, Any]:
        """Where the generators are, and what is drawn already."""
        return {"generators": [generator.get_state() for generator in self.generators], "left": self.left}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a `state` of the same replicas."""
        for generator, now in zip(self.generators, state["generators"], strict=True):
            generator.set_state(now)
        self.left = state["left"]
