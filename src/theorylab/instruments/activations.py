"""Every activation of a forward pass, as it comes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from theorylab.core.layers import named_layers
from theorylab.core.problem import Problem

Key = tuple[str, int]
"""A module's name, and which of its calls in one forward pass."""
See = Callable[[Key, Tensor], Tensor]
"""(key, activation) → what the network goes on with."""


def _matches(name: str, pattern: str) -> bool:
    parts, globs = name.split("."), pattern.split(".")
    return len(parts) == len(globs) and all(map(fnmatchcase, parts, globs))


@contextmanager
def watched(problem: Problem, k: int, modules: str | Sequence[str] | None, see: See) -> Iterator[None]:
    """While batch ``k`` goes through, ``see`` is given every activation, and its value goes on; the hooks go when it ends."""
    patterns = [modules] if isinstance(modules, str) else modules
    calls: dict[str, int] = {}
    rows = problem.batches[k].rows

    def wanted(name: str) -> bool:
        if patterns is not None:
            return any(_matches(name, p) for p in patterns)
        return not any(other.startswith(f"{name}." if name else "") for other in calls)  # something within it was seen: a container

    def hook(name: str, output: Any) -> Any:
        first = output[0] if isinstance(output, tuple) and output else output
        if not (isinstance(first, Tensor) and first.is_floating_point() and first.ndim and len(first) == rows and wanted(name)):
            return None
        calls[name] = calls.get(name, 0) + 1
        new = see((name, calls[name]), first)
        return (new, *output[1:]) if isinstance(output, tuple) else new

    def watch(name: str, module: nn.Module) -> Any:
        return module.register_forward_hook(lambda _, __, output: hook(name, output))

    handles = [watch(name, module) for name, module in named_layers(problem.model)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
