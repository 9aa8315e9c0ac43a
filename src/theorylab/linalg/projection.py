"""Random projections of long vectors, drawn in blocks so that neither the device nor the memory at hand changes them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from theorylab.core.seeds import derived_seed

BLOCK = 4096
"""Entries of a vector that share a generator; part of the law, so that it must not depend on anything."""


class Signs:
    r"""Projection :math:`v \mapsto v P`, with P (p, k) of independent random signs over :math:`\sqrt k`, so that :math:`E\,PP^\top = I`.

    Signs are drawn on the CPU, each block of entries by a generator of its own, whatever the device, the precision and the number of
    vectors: the same seed is the same P everywhere, and a longer vector begins with the same signs.

    Args:
        p: Entries of the vectors.
        k: Entries that are left.
        seed: Of the signs.
        memory: Bytes up to which the signs are kept between calls; beyond it they are drawn anew each time.

    Example:
        >>> short, long = Signs(3, 2, seed=0), Signs(5000, 2, seed=0)
        >>> bool((short(torch.eye(3)) == long(torch.eye(5000))[:3]).all())
        True

    Source: Achlioptas 2003, doi:10.1016/S0022-0000(03)00025-4, Theorem 1.1.
    """

    def __init__(self, p: int, k: int, *, seed: int, memory: int = 2**28) -> None:
        if p < 1 or k < 1:
            raise ValueError(f"p and k must be at least 1, got {p} and {k}.")
        self.p, self.k, self.seed = p, k, seed
        self._keep = p * k <= memory
        self._kept: dict[int, Tensor] = {}

    def _block(self, index: int) -> Tensor:
        if index in self._kept:
            return self._kept[index]
        generator = torch.Generator().manual_seed(derived_seed(self.seed, "signs", index))
        rows = min(BLOCK, self.p - index * BLOCK)
        drawn = torch.randint(0, 2, (rows, self.k), generator=generator, dtype=torch.int8, device="cpu").mul_(2).sub_(1)
        if self._keep:
            self._kept[index] = drawn
        return drawn

    def __call__(self, vectors: Tensor) -> Tensor:
        """The projections (m, k) of vectors (m, p)."""
        if vectors.ndim != 2 or vectors.shape[1] != self.p:
            raise ValueError(f"vectors must have shape (m, {self.p}), got {tuple(vectors.shape)}.")
        total = vectors.new_zeros(len(vectors), self.k)
        for index, part in enumerate(vectors.split(BLOCK, dim=1)):
            total.addmm_(part, self._block(index).to(part))
        return total / math.sqrt(self.k)
