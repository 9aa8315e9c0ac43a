"""The replicas of a population cut into groups, by device and by way of training, and put together again."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from theorylab.learning.group import Group, Rows, tree_cat
from theorylab.learning.label_noise import LabelNoise
from theorylab.learning.optimizers.base import Optimizer, Params


class Groups(Sequence[Group]):
    """Groups in the order of their replicas.

    Args:
        whole: All replicas as one group.
        optimizer: Of all replicas.
    """

    def __init__(self, whole: Group, optimizer: Optimizer) -> None:
        self.optimizer, self.size = optimizer, whole.size
        self._groups = [whole]

    def __getitem__(self, index: Any) -> Any:
        return self._groups[index]

    def __len__(self) -> int:
        return len(self._groups)

    def __iter__(self) -> Iterator[Group]:
        return iter(self._groups)

    @property
    def devices(self) -> list[torch.device]:
        """Where the groups live, each device once, in order."""
        return list(dict.fromkeys(group.device for group in self._groups))

    def whole(self, attribute: str) -> Any:
        """A tree of tensors of all replicas: ``"params"``, ``"frozen"``, ``"buffers"`` or ``"state"``."""
        return tree_cat([getattr(group, attribute) for group in self._groups])

    def assign(self, attribute: str, new: Params) -> None:
        """Replace parameters or buffers by others of the same names and shapes.

        Raises:
            ValueError: names or shapes differ.
        """
        old = self.whole(attribute)
        if new.keys() != old.keys():
            raise ValueError(f"{attribute} must have the names {sorted(old)}, got {sorted(new)}.")
        for k, p in new.items():
            if p.shape != old[k].shape:
                raise ValueError(f"{attribute}[{k!r}] must have shape {tuple(old[k].shape)}, got {tuple(p.shape)}.")
        start = 0
        for group in self._groups:
            part = slice(start, start + group.size)
            setattr(group, attribute, {k: p.detach()[part].to(old[k]).to(group.device, copy=True) for k, p in new.items()})
            start = part.stop

    def cut(self, devices: Sequence[torch.device], chunk: int) -> None:
        """Cut the replicas into groups of at most ``chunk``, or of one each trained by the loop where it is 0, over the devices."""
        whole = self._groups[0] if len(self._groups) == 1 else self._merged()
        select = self.optimizer.select
        stacked = chunk > 0
        if select is None:  # only all replicas together can be updated
            self._groups = [whole.part(slice(0, self.size), self.optimizer, stacked, devices[0])]
            return
        groups = []
        for device, share in zip(devices, _cut(slice(0, self.size), len(devices)), strict=True):
            for part in _cut(share, math.ceil((share.stop - share.start) / max(chunk, 1))):
                groups.append(whole.part(part, select(part), stacked, device))
        self._groups = groups

    def _merged(self) -> Group:
        first = self._groups[0]
        trees = {name: self.whole(name) for name in ("params", "frozen", "buffers", "state")}
        noise = None if first.noise is None else [s for g in self._groups for s in g.noise or []]
        return Group(first.module, first.risk, self.optimizer, **trees, rows=self.rows(), noise=noise, stacked=first.stacked)

    def rows(self) -> Rows:
        """The data of all replicas."""
        parts = [group.rows for group in self._groups]
        first = parts[0]

        def cat(name: str) -> Tensor | None:
            return None if getattr(first, name) is None else tree_cat([getattr(p, name) for p in parts])

        orders = None if first.orders is None else [order for p in parts for order in p.orders or []]
        x, y = (first.x, first.y) if first.shared else (cat("x"), cat("y"))
        noise = None if first.label_noise is None else LabelNoise.merged([p.label_noise for p in parts if p.label_noise is not None])
        return type(first)(x, y, first.shared, cat("weights"), cat("batch_weights"), orders, noise)  # type: ignore[arg-type]


def _cut(whole: slice, parts: int) -> list[slice]:
    """Cut a slice into consecutive parts whose lengths differ by at most one."""
    length = whole.stop - whole.start
    edges = [whole.start + i * length // parts for i in range(parts + 1)]
    return [slice(a, b) for a, b in pairwise(edges)]
