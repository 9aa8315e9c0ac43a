"""Where a module holds its buffers: they are put there for each replica, and read back where a forward pass replaces them."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from theorylab.core.substitution import places_of
from theorylab.learning.optimizers.base import Params


class BufferSlots:
    """Every place of a module that holds a buffer: several where parts share one.

    A forward pass may write into a buffer (batch norm in training), or put another tensor in its place (``self.mean = 0.9 * self.mean +
    ...``), which is written back here, after the backward pass: the one that it replaces may be part of the graph.
    """

    def __init__(self, module: nn.Module):
        names = {name for name, _ in module.named_buffers()}
        places = {name: held for name, held in places_of(module).items() if name in names}
        self.slots = {name: [(module.get_submodule(".".join(path))._buffers, key) for path, key in held] for name, held in places.items()}

    @classmethod
    def moved(cls, module: nn.Module, device: torch.device) -> nn.Module:
        """A copy of a module on a device, in which a buffer that parts share is still one, other than by ``to`` alone."""
        copied = copy.deepcopy(module)
        slots = cls(copied).slots
        copied.to(device)
        for (first, name), *others in slots.values():
            for held, key in others:
                held[key] = first[name]
        return copied

    def put(self, buffers: Params) -> None:
        """Let the module hold these."""
        for name, value in buffers.items():
            for held, key in self.slots[name]:
                held[key] = value

    def reassigned(self, before: Params) -> Params:
        """What the module holds now in place of ``before``, by name, detached; it holds ``before`` again.

        Raises:
            ValueError: a tensor of another shape or type, or one in place of a buffer that several parts share.
        """
        found = {}
        for name, old in before.items():
            slots = self.slots[name]
            for held, key in slots:
                new = held.get(key)
                if new is old:
                    continue
                if len(slots) > 1 or not isinstance(new, Tensor) or (new.shape, new.dtype) != (old.shape, old.dtype):
                    got = f"{new.dtype} of shape {tuple(new.shape)}" if isinstance(new, Tensor) else type(new).__name__
                    raise ValueError(
                        f"buffer {name}, {old.dtype} of shape {tuple(old.shape)}, must keep type and shape, and be written in place where "
                        f"several modules share it, got {got} in its place: write self.{key}.copy_(...), or self.{key}.mul_(...).add_(...)."
                    )
                found[name] = new.detach()
                held[key] = old
        return found


@torch.no_grad()
def write(buffers: Params, new: Params) -> None:
    """Write what was `BufferSlots.reassigned` into buffers."""
    for name, value in new.items():
        buffers[name].copy_(value)
