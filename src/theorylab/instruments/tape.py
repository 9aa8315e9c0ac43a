"""A list of tensor operations that can be repeated for another input: what a recording writes down."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten
_ACCUMULATING: dict[Any, tuple[Any, Any]] = {
    aten.mm.default: (aten.addmm.default, aten.addmm_.default),
    aten.bmm.default: (aten.baddbmm.default, aten.baddbmm_.default),
}


@dataclass(eq=False)
class Node:
    """One operation; among its arguments, at any depth of lists, may be other nodes. The input has no function.

    ``layout`` is what operations on the result rely on, its shape, strides and dtype; ``fresh`` says that it is in memory of its own.
    """

    function: Callable[..., Any] | None
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    layout: tuple[Any, ...] = ()
    fresh: bool = False


def operands(node: Node) -> list[Node]:
    """The nodes among the arguments of an operation, each as often as it stands there."""
    found: list[Node] = []

    def look(value: Any) -> None:
        if isinstance(value, Node):
            found.append(value)
        elif isinstance(value, list | tuple):
            for v in value:
                look(v)

    look(node.args)
    look(list(node.kwargs.values()))
    return found


def needed(nodes: list[Node], output: Node) -> list[Node]:
    """Those of the nodes, in order, on which the output depends."""
    wanted = {output}
    for node in reversed(nodes):
        if node in wanted:
            wanted.update(operands(node))
    return [node for node in nodes if node in wanted]


def users_of(nodes: list[Node], output: Node) -> dict[Node, list[Node]]:
    """By node, those that read it, each as often as it does; the output is read by itself too, as nothing may take its place."""
    users: dict[Node, list[Node]] = {node: [] for node in nodes}
    for node in nodes:
        for operand in operands(node):
            users[operand].append(node)
    users[output].append(output)
    return users


def part_of(several: Any, i: int) -> Any:
    """One of the results of an operation that has several."""
    return several[i]


def accumulated(nodes: list[Node], output: Node) -> list[Node]:
    """The same with a + b·c in one operation, in the memory of a where nothing else reads it."""
    users = users_of(nodes, output)
    replaced: set[Node] = set()
    for node in nodes:
        if node.function is not aten.add.Tensor or len(node.args) != 2 or node.kwargs:
            continue
        for a, b in (node.args, node.args[::-1]):
            if not isinstance(a, Node) or not isinstance(b, Node) or b.function not in _ACCUMULATING or len(users[b]) > 1:
                continue
            if b.layout != node.layout or b in replaced:  # also in strides, on which later views may rely
                continue
            own = a.fresh and len(users[a]) == 1 and a.layout == node.layout
            node.function, node.args, node.fresh = _ACCUMULATING[b.function][own], (a, *b.args), True
            replaced.add(b)
            break
    return [node for node in nodes if node not in replaced]


def repeater(nodes: list[Node], source: Node, output: Node) -> Callable[[Tensor], Tensor]:
    """A function that runs the operations on another input, and keeps no result longer than it is needed."""
    place = {node: i for i, node in enumerate(nodes)}
    last = {operand: i for i, node in enumerate(nodes) for operand in operands(node)}
    forget: dict[int, list[int]] = {}
    for node, i in last.items():
        if node is not output:
            forget.setdefault(i, []).append(place[node])
    steps = [
        (i, node.function, _filler(node.args, place), _filler(node.kwargs, place) if node.kwargs else None, forget.get(i, ()))
        for i, node in enumerate(nodes)
        if node.function is not None
    ]
    start, end = place[source], place[output]

    def run(v: Tensor) -> Tensor:
        values: list[Any] = [None] * len(nodes)
        values[start] = v
        with torch.no_grad():
            for i, function, args, kwargs, done in steps:
                values[i] = function(*args(values)) if kwargs is None else function(*args(values), **kwargs(values))
                for j in done:
                    values[j] = None
        return values[end]

    return run


def _filler(tree: Any, place: dict[Node, int]) -> Callable[[list[Any]], Any]:
    """Values of the nodes → the arguments with them in place."""
    if isinstance(tree, Node):
        i = place[tree]
        return lambda values: values[i]
    if isinstance(tree, dict):
        parts = {k: _filler(v, place) for k, v in tree.items()}
        return lambda values: {k: part(values) for k, part in parts.items()}
    if isinstance(tree, list | tuple) and any(isinstance(v, Node | list | tuple | dict) for v in tree):
        fixed, filled = list(tree), [(k, _filler(v, place)) for k, v in enumerate(tree) if isinstance(v, Node | list | tuple | dict)]

        def fill(values: list[Any]) -> Any:
            out = fixed.copy()
            for k, part in filled:
                out[k] = part(values)
            return out

        return fill
    return lambda values: tree
