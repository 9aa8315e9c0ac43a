"""What networks hold beside registered parameters and buffers: a population has one of it for all replicas, so seeds must agree on it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from numbers import Number
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from theorylab.core.attributes import OWN


def plain_values(module: nn.Module) -> dict[str, Any]:
    """Tensors, arrays and numbers in plain attributes, by where they are; those of layers in plain lists, which are no parts, too.

    Other objects are not looked into, and aliases of parameters are left out.
    """
    registered = {id(p) for p in module.parameters()}
    seen = {id(m) for m in module.modules()}

    def within(value: Any, path: str) -> Iterator[tuple[str, Any]]:
        if isinstance(value, Tensor | np.ndarray | Number):
            if id(value) not in registered:
                yield path, value
            return
        if not isinstance(value, Mapping | list | tuple | nn.Module) or id(value) in seen:
            return
        seen.add(id(value))
        if isinstance(value, nn.Module):
            for name, held in (*value.named_parameters(), *value.named_buffers()):
                yield f"{path}.{name}", held
            for name, part in value.named_modules():
                seen.add(id(part))
                yield from of(part, f"{path}.{name}" if name else path)
            return
        for key, part in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from within(part, f"{path}[{key!r}]")

    def of(part: nn.Module, path: str) -> Iterator[tuple[str, Any]]:
        for key, value in vars(part).items():
            if key not in OWN:
                yield from within(value, f"{path}.{key}" if path else key)

    return {where: value for name, part in module.named_modules() for where, value in of(part, name)}


def unlike(first: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Where the `plain_values` of two networks differ.

    Example:
        >>> unlike({"a": 1, "b": torch.zeros(2)}, {"a": 1, "b": torch.ones(2)})
        ['b']
    """
    return [path for path in {**first, **other} if path not in first or path not in other or not _same(first[path], other[path])]


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if a.layout != torch.strided:
            a, b = a.to_dense(), b.to_dense()
        return a.shape == b.shape and a.dtype == b.dtype and bool(((a == b) | ((a != a) & (b != b))).all())  # NaN is like NaN
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.shape == b.shape and bool(np.all((a == b) | ((a != a) & (b != b))))
    return type(a) is type(b) and bool(a == b or (a != a and b != b))


def refuse_unlike(before: Mapping[str, Any], after: Mapping[str, Any], differ: Mapping[str, tuple[int, int]]) -> None:
    """Refuse what differs between seeds, except what a forward pass makes anew, as the older weight normalization makes its weight.

    Args:
        before: The `plain_values` of a network.
        after: Those after one forward pass.
        differ: Where networks differ, and two seeds of such.

    Raises:
        ValueError: naming where, and what to write instead.
    """
    for path, (first, other) in differ.items():
        if path not in before or before[path] is after.get(path):
            raise ValueError(
                f"make_model must register all that depends on the seed, got the plain attribute {path}, which seeds {first} and {other} "
                f"make differently: every replica would have that of seed {first}. Write self.register_buffer(name, tensor) in place of "
                "self.name = tensor, nn.ModuleList for a list of layers, or draw it from a generator of a fixed seed."
            )
