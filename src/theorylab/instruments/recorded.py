"""A linear map as a recorded list of tensor operations, which costs no walk through autograd's graph to repeat.

One product is run and watched. What does not depend on the vector is a constant; sums with zeros, views of views and results that nothing
uses, of which double backward makes many, are left out; a matrix product that is added to something accumulates into it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from theorylab.instruments.convolution_rewrites import quicker_convolutions
from theorylab.instruments.pooling_rewrites import quicker_pooling
from theorylab.instruments.tape import Node, accumulated, needed, part_of, repeater

log = logging.getLogger(__name__)
aten = torch.ops.aten
Linear = Callable[[Tensor], Tensor]

_ZEROS = {aten.zeros_like.default, aten.new_zeros.default, aten.zeros.default}


class Repeated:
    """A linear map that records itself after some products, and from then on repeats the record.

    The first product after recording is made both ways. Where they differ, as for a custom function that looks at its argument's values,
    the map is never recorded again.

    Args:
        product: The map itself.
        wait: Products before the one that is recorded.
        budget: Bytes that recording may hold at once; beyond it, the map stays as it is.
    """

    def __init__(self, product: Linear, *, wait: int, budget: int) -> None:
        self.product, self.wait, self.budget = product, wait, budget
        self.record: Linear | None = None
        self.checked = False

    def __call__(self, v: Tensor) -> Tensor:
        """The map applied to a vector."""
        if self.record is not None and self.checked:
            return self.record(v)
        if self.record is not None:
            out = self.product(v)
            self.checked = True
            if not _repeats(self.record, v, out):
                log.info("products: the record of a product differs from the product itself, which goes on unrecorded.")
                self.record = None
            return out
        self.wait -= 1
        if self.wait != -1:
            return self.product(v)
        out, self.record = record(self.product, v, self.budget)
        return out


def _repeats(repeat: Linear, v: Tensor, expected: Tensor) -> bool:
    try:
        gap = repeat(v) - expected
    except RuntimeError as error:  # an operation that allows for less than the graph, which stays
        log.info("products: the record of a product cannot be repeated: %s", error)
        return False
    return float(gap.norm()) <= torch.finfo(expected.dtype).eps ** 0.75 * float(expected.norm())


class _Unrecordable(Exception):
    pass


def record(product: Linear, v: Tensor, budget: int) -> tuple[Tensor, Linear | None]:
    """The product with ``v``, and a function that repeats what it did; None where that cannot be recorded."""
    recorder = _Recorder(v, budget)
    try:
        with torch.no_grad(), recorder:
            out = product(v)
    except _Unrecordable as error:
        log.info("products: %s cannot be recorded; products go through the graph.", error)
        return product(v), None
    node = recorder.nodes.get(id(out))
    if node is None:  # a map of zero, whose result depends on nothing
        return out, None
    tape = accumulated(quicker_pooling(quicker_convolutions(needed(recorder.tape, node), node)), node)
    return out, repeater(tape, recorder.source, node)


class _Recorder(TorchDispatchMode):
    """Writes down every operation that depends on one tensor; all other tensors are constants of it."""

    def __init__(self, v: Tensor, budget: int) -> None:
        super().__init__()
        self.source = Node(None)
        self.tape = [self.source]
        self.nodes: dict[int, Node] = {}  # by the identity of tensors, all of which are kept alive
        self.views: dict[tuple[Any, ...], Node] = {}  # by the place in memory, so that a view of a view back is the tensor itself
        self.alive: list[Any] = [v]
        self.made: set[int] = set()  # storages, by address, that the product allocates; ...
        self.zeros: set[int] = set()  # ... that hold nothing but zeros; ...
        self.captured: set[int] = set()  # ... that the record reads as constants; ...
        self.tenants: dict[int, set[int]] = {}  # ... and which recorded tensors live in one
        self.budget = budget
        self._know(v, self.source)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # the default imports the compiler, which takes seconds

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and write it down."""
        kwargs = kwargs or {}
        inputs = _tensors((*args, *kwargs.values()))
        depends = [t for t in inputs if self._known(t) is not None] != []
        if func._schema.is_mutable:
            self._write(func, args, kwargs, depends)
            return func(*args, **kwargs)
        out = func(*args, **kwargs)
        self._keep(out, inputs)
        if func in _ZEROS:
            self.zeros.add(_storage(out))
            return out
        if not depends:
            return out
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise _Unrecordable(str(func))
        same = self._operand_it_equals(func, args, kwargs, out)
        if same is not None:
            node = self._known(same)
            if node is not None:
                self._know(out, node)
        elif isinstance(out, Tensor):
            shared = _storage(out) in map(_storage, inputs)
            known = self.views.get(_place(out)) if shared else None
            node = self._call(func, args, kwargs) if known is None else known
            if not shared:
                node.fresh = True
            self._know(out, node)
        elif isinstance(out, tuple | list) and all(t is None or isinstance(t, Tensor) for t in out):
            several = self._call(func, args, kwargs)
            for i, part in enumerate(out):
                if part is not None:
                    self._know(part, self._call(part_of, (several, i), {}))
        else:
            raise _Unrecordable(str(func))  # a number read from a tensor: what follows may depend on its value
        return out

    def _keep(self, out: Any, inputs: list[Tensor]) -> None:
        self.alive.append(out)
        for t in _tensors((out,)):
            if _storage(t) not in self.made and _storage(t) not in map(_storage, inputs):
                self.made.add(_storage(t))
                self.budget -= t.untyped_storage().nbytes()
        if self.budget < 0:
            raise _Unrecordable("a product of this size")

    def _know(self, t: Tensor, node: Node) -> None:
        self.nodes[id(t)] = self.views[_place(t)] = node
        node.layout = _layout(t)
        self.tenants.setdefault(_storage(t), set()).add(id(t))

    def _known(self, t: Tensor) -> Node | None:
        """What makes a tensor that depends on the vector; None for a constant."""
        if id(t) in self.nodes:
            return self.nodes[id(t)]
        if not self.tenants.get(_storage(t)):
            return None
        if _place(t) not in self.views:
            raise _Unrecordable("a view of what was written in place")
        return self.views[_place(t)]

    def _write(self, func: Any, args: Any, kwargs: Any, depends: bool) -> None:
        """An operation in place, recorded as the one that makes a new tensor; refused where another tensor would see the change."""
        target = args[0] if args and isinstance(args[0], Tensor) else None
        name, _, overload = func.name().partition("::")[2].partition(".")
        if target is None or not name.endswith("_") or _storage(target) in self.captured or _storage(target) not in self.made:
            raise _Unrecordable(str(func))
        if not depends:
            if self.tenants.get(_storage(target)):
                raise _Unrecordable(str(func))
            self.zeros.discard(_storage(target))
            return
        partly = target.numel() * target.itemsize != target.untyped_storage().nbytes()
        if partly or self.tenants.get(_storage(target), set()) - {id(target)}:
            raise _Unrecordable(str(func))
        before = target if self._known(target) is not None else target.clone()  # a constant is read as it was
        node = self._call(getattr(getattr(aten, name[:-1]), overload or "default"), (before, *args[1:]), kwargs)
        self.zeros.discard(_storage(target))
        node.fresh = True
        self._know(target, node)

    def _operand_it_equals(self, func: Any, args: Any, kwargs: Any, out: Any) -> Tensor | None:
        """Of a sum with zeros the other operand, of a product with one the factor."""
        if func is aten.add.Tensor and kwargs.get("alpha", 1) == 1:
            for a, b in (args, args[::-1]):
                if isinstance(a, Tensor) and isinstance(b, Tensor) and _storage(b) in self.zeros and _layout(a) == _layout(out):
                    return a
        if func in (aten.mul.Tensor, aten.mul.Scalar) and not isinstance(args[1], Tensor) and args[1] == 1:
            return args[0] if _layout(args[0]) == _layout(out) else None
        return None

    def _call(self, func: Any, args: Any, kwargs: Any) -> Node:
        self.tape.append(Node(func, tuple(map(self._linked, args)), {k: self._linked(v) for k, v in kwargs.items()}))
        return self.tape[-1]

    def _linked(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._node(value)
        return type(value)(map(self._linked, value)) if isinstance(value, list | tuple) else value

    def _node(self, t: Tensor) -> Any:
        node = self._known(t)
        if node is not None:
            return node
        self.captured.add(_storage(t))
        self.alive.append(t)
        return t.detach()


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    """The tensors among the arguments or results of an operation, in lists too; `tensors_of` knows more kinds, and takes longer."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += _tensors(value)
    return found


def _storage(t: Tensor) -> int:
    return t.untyped_storage().data_ptr()


def _layout(t: Tensor) -> tuple[Any, ...]:
    return t.shape, t.stride(), t.dtype


def _place(t: Tensor) -> tuple[Any, ...]:
    return _storage(t), t.storage_offset(), *_layout(t)
