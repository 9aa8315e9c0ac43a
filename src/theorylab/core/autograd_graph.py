"""The nodes of an autograd graph."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Any

from torch import Tensor


def nodes_before(results: Iterable[Tensor], *, beyond: Collection[Any] = ()) -> Iterator[Any]:
    """Every node on which some tensors depend, once, and their own; leaves have a ``variable``. Nothing is sought ``beyond`` some nodes.

    Example:
        >>> import torch
        >>> x = torch.ones(1, requires_grad=True)
        >>> [node.name().rpartition("::")[2] for node in nodes_before([x.exp()])]
        ['ExpBackward0', 'AccumulateGrad']
    """
    seen, waiting = set(beyond), [t.grad_fn for t in results]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        waiting.extend(before for before, _ in node.next_functions)
