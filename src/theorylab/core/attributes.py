"""What modules hold, put back as it was: numbers they count, tensors that a forward pass notes, buffers of a loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

OWN = frozenset(vars(nn.Module()))
"""Attributes that every module has."""
_CONTAINERS = (list, dict, set)


@contextmanager
def attributes_kept(modules: Sequence[nn.Module]) -> Iterator[None]:
    """On leaving, also by an exception, every attribute of the modules is the object that it was, and new ones are gone.

    Such are training flags, a step that is counted, ``self.attention = weights``, and the weight that a hook computes at every call
    (pruning, the older weight normalization): within vmap that is a tensor which cannot be saved or copied, in a measurement at other
    parameters it belongs to those. Lists, dicts and sets of the user's own modules get back what they held; objects of other kinds are
    not looked into. Parameters, buffers, parts and hooks are not attributes in this sense.

    Example:
        >>> layer = nn.Linear(1, 1)
        >>> with attributes_kept([layer]):
        ...     layer.calls = 1
        >>> hasattr(layer, "calls")
        False
    """
    held: list[tuple[dict[str, Any], dict[str, Any]]] = []
    contents: list[tuple[Any, Any]] = []
    for module in modules:
        now = vars(module)
        held.append((now, now.copy()))
        if not type(module).__module__.startswith("torch."):  # PyTorch's own collect nothing
            contents += [(v, v.copy()) for k, v in now.items() if v.__class__ in _CONTAINERS and k not in OWN]
    try:
        yield
    finally:
        for now, before in held:
            now.update(before)
            if len(now) > len(before):
                for name in now.keys() - before.keys():
                    del now[name]
        for container, before in contents:
            if isinstance(container, list):
                container[:] = before
            else:
                container.clear()
                container.update(before)


@contextmanager
def written_back(tensors: Sequence[Tensor]) -> Iterator[None]:
    """On leaving, also by an exception, tensors that were written into hold what they held."""
    held = [(t, t._version, t.detach().clone()) for t in tensors]
    try:
        yield
    finally:
        with torch.no_grad():
            for t, version, before in held:
                if t._version != version:
                    t.copy_(before)
