"""How a Problem is differentiated once and multiplied many times: graphs that are kept where memory allows, else built anew."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from theorylab.core.autograd_graph import nodes_before
from theorylab.core.operator import Operator
from theorylab.core.problem import Problem
from theorylab.instruments.merging import merged, parted
from theorylab.instruments.recorded import Repeated

MEMORY_BUDGET = 2**30
"""Bytes that the kept graph of one operator may hold; beyond it, every product builds the graph anew, for as many rows at once as fit."""

# Layers through which several vectors go at once by vmap as fast as one after the other; convolutions and recurrences take twice as long.
BATCHABLE = (nn.Linear, nn.Flatten, nn.Identity, nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.Softplus, nn.ELU, nn.LeakyReLU)
COLUMNS = 32  # vectors at once, to bound memory
BATCHED_BYTES = 2**18
"""Kept graphs up to this size take several vectors at once; in larger ones the recorded product of each is faster."""
RECORD_AFTER = 8
"""Products before one is recorded, which costs as much as some eight and saves half of one each time after, ..."""
RECORD_AT_ONCE = 2**24
"""... but next to nothing beside a product through a graph of more bytes than this, which is recorded from the first."""

Product = Callable[[Tensor, bool], Tensor]
"""(v, many) → product; v is (p,), or (k, p) where many."""
T = TypeVar("T")


class _NotKept(Exception):
    """A graph that is over its budget, or whose bytes cannot be counted."""


class _Budget:
    """Counts the bytes of distinct tensors that graphs save, and stops their construction when they are too many."""

    def __init__(self, limit: float, free: list[Tensor]) -> None:
        self.limit, self.used = limit, 0
        self.seen = {t.untyped_storage().data_ptr() for t in free}  # parameters and data are held anyway

    def pack(self, t: Tensor) -> tuple[Tensor, int]:
        storage = t.untyped_storage()
        if storage.data_ptr() not in self.seen:
            self.seen.add(storage.data_ptr())
            self.used += storage.nbytes()
            if self.used > self.limit:
                raise _NotKept
        return t.detach(), t._version  # without its graph, which autograd adds: a node that holds what it made is never freed


def _unpack(saved: tuple[Tensor, int]) -> Tensor:
    """What a graph saved, if it is still what it was: tensors that pass through hooks go without PyTorch's own look at their version."""
    t, version = saved
    if t._version != version:
        raise RuntimeError(
            f"a tensor {tuple(t.shape)} that a derivative needs has been modified by an inplace operation of the model or the loss: write "
            "h = h * 0.5 for h.mul_(0.5) or h *= 0.5."
        )
    return t


@contextmanager
def _counted(problem: Problem, limit: float) -> Iterator[_Budget]:
    """Counts what graphs save within, beyond what the problem holds; raises `_NotKept` where that is too much or cannot be seen."""
    budget = _Budget(limit, problem.held())
    try:
        with torch.autograd.graph.saved_tensors_hooks(budget.pack, _unpack):
            yield budget
    except RuntimeError as error:
        if "saved tensor hooks" not in str(error):  # a model or loss that takes derivatives by torch.func refuses them
            raise
        raise _NotKept from error


@dataclass(frozen=True)
class Kept(Generic[T]):
    """Something whose graphs stay, the problem it was built from, and how many bytes the graphs hold."""

    built: T
    problem: Problem
    bytes: int


def kept(problem: Problem, build: Callable[[Problem], T], memory: int, *, merge: bool = True) -> Kept[T] | None:
    """What ``build`` makes of the problem, minibatches merged where that changes nothing; None where its graphs would exceed ``memory``.

    None also where their bytes cannot be counted: a model or loss that takes derivatives by `torch.func` refuses hooks on saved tensors.

    Raises:
        ValueError: the loss is not finite.
    """
    try:
        with problem.safe():
            if merge and len(problem.batches) > 1:
                with _counted(problem, memory):
                    problem = merged(problem)
            with _counted(problem, memory) as budget:
                built = build(problem)
        return Kept(built, problem, budget.used)
    except _NotKept:
        problem.loss()  # refuses a loss that is not finite now, not at the first product
        return None


def fitting(problem: Problem, build: Callable[[Problem], object], memory: int) -> Problem:
    """The problem in batches whose graphs fit ``memory`` each, judged by that of one row, where its batches may be parted."""
    if memory <= 0 or max(b.rows for b in problem.batches) == 1:
        return problem
    with problem.safe():
        single = problem.on([problem.batches[0].part(slice(1))])
        try:
            with _counted(problem, math.inf) as budget:
                build(single)
        except _NotKept:
            return problem
        return parted(problem, max(1, memory // max(1, budget.used)))


def repeated(problem: Problem, product: Callable[[Tensor], Tensor], graph: int, memory: int) -> Callable[[Tensor], Tensor]:
    """A product through a kept graph of ``graph`` bytes, recorded once that pays, and with the problem's kernels."""
    quick = Repeated(lambda v: product(v).detach(), wait=0 if graph > RECORD_AT_ONCE else RECORD_AFTER, budget=memory - graph)

    def run(v: Tensor) -> Tensor:
        with problem.kernels():
            return quick(v)

    return run


def vjp(outputs: list[Tensor], inputs: list[Tensor], cotangents: list[Tensor], many: bool = False) -> list[Tensor]:
    """Vector-Jacobian products through a graph that stays; zeros where no output depends on an input.

    With ``many`` the cotangents have a leading axis of vectors, and so has the result.
    """
    used = [i for i, o in enumerate(outputs) if o.requires_grad]
    lead = cotangents[0].shape[:1] if many else ()
    grads: tuple[Tensor | None, ...] = (None,) * len(inputs)
    if used:
        try:
            grads = torch.autograd.grad(
                [outputs[i] for i in used],
                inputs,
                [cotangents[i] for i in used],
                retain_graph=True,
                allow_unused=True,
                is_grads_batched=many,
            )
        except RuntimeError as error:
            if "derivative for" not in str(error):
                raise
            raise NotImplementedError(
                f"{str(error).removesuffix('.')}, of which a second derivative has need: do without the operation, or leave the parameters "
                "before it out of params=. For nn.EmbeddingBag take nn.Embedding and a mean."
            ) from error
    return [x.new_zeros(lead + x.shape) if g is None else g for x, g in zip(inputs, grads, strict=True)]


def differentiable_vjp(output: Tensor, inputs: list[Tensor], cotangent: Tensor | None = None) -> list[Tensor]:
    """Vector-Jacobian products that can be differentiated again."""
    grads = torch.autograd.grad(output, inputs, cotangent, create_graph=True, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, grads, strict=True)]


def split(problem: Problem, v: Tensor, many: bool) -> list[Tensor]:
    """A vector (p,), or vectors (k, p), as tensors of the parameters' shapes."""
    if not many:
        return list(problem.unflatten(v).values())
    parts = v.split([p.numel() for p in problem.params.values()], dim=1)
    return [part.reshape(len(v), *p.shape) for part, p in zip(parts, problem.params.values(), strict=True)]


def join(parts: list[Tensor], many: bool = False) -> Tensor:
    """The inverse of `split`."""
    return torch.cat([g.reshape(len(g), -1) if many else g.reshape(-1) for g in parts], dim=-1)


def refuse_once_differentiable(gradient: list[Tensor]) -> None:
    """Refuse a graph of which a part is cut off from the parameters: PyTorch would leave it out of a second derivative, without a word.

    Raises:
        ValueError: a custom function of the model or the loss has a backward pass that is marked as ``once_differentiable``.
    """
    if any(node.name() == "torch::autograd::Error" for node in nodes_before(gradient)):
        raise ValueError(
            "the model or the loss uses a custom autograd function that can be differentiated only once (once_differentiable), so that "
            "second derivatives would leave it out: write its backward pass in differentiable operations, or do without the function."
        )


@dataclass(frozen=True)
class Linearization:
    """The model's outputs on one batch, to first order in the parameters: J v and Jᵀ u through a graph that stays."""

    problem: Problem
    outputs: Tensor
    inputs: list[Tensor]
    probe: Tensor
    pulled: list[Tensor]

    @classmethod
    def of(cls, problem: Problem, k: int) -> Linearization:
        """At the problem's parameters, on batch ``k``; call it within `Problem.safe`.

        Raises:
            TypeError: the output is not one tensor.
            ValueError: a part of the model can be differentiated only once.
        """
        leaves = problem.leaves()
        inputs = list(leaves.values())
        outputs = problem.outputs(k, leaves)
        if not isinstance(outputs, Tensor):
            raise TypeError(f"the model's output must be one tensor, got {type(outputs).__name__}: return the logits alone.")
        if not outputs.requires_grad:
            outputs = outputs + 0 * sum(p.sum() for p in inputs)  # no parameter matters: a Jacobian of zero
        # J v as the derivative of u → Jᵀu, which is linear: one more pass through the kept graph, and right with dropout,
        # whose masks torch.func.linearize would draw again.
        probe = torch.zeros_like(outputs, requires_grad=True)
        pulled = differentiable_vjp(outputs, inputs, probe)
        if k == 0:  # the model is the same on all batches
            refuse_once_differentiable(pulled)
        return cls(problem, outputs, inputs, probe, pulled)

    def push(self, v: Tensor, many: bool = False) -> Tensor:
        """J v for v (p,), in the outputs' shape; with ``many``, v is (k, p) and the result has a leading axis."""
        return vjp(self.pulled, [self.probe], split(self.problem, v, many), many)[0]

    def pull(self, u: Tensor, many: bool = False) -> Tensor:
        """Jᵀ u for u in the outputs' shape."""
        return join(vjp([self.outputs], self.inputs, [u], many), many)


def _batches_well(model: nn.Module) -> bool:
    leaves = [m for m in model.modules() if not list(m.children())]
    return all(isinstance(m, BATCHABLE) for m in leaves)


def columns_at_once(graph: Kept[Product] | None) -> Callable[[Tensor], Tensor] | None:
    """A block of columns by one vmapped product, where the model's layers and the graph's size gain from it; else columns go one by one."""
    if graph is None or graph.bytes > BATCHED_BYTES or not _batches_well(graph.problem.model):
        return None

    def matmat(V: Tensor) -> Tensor:
        with graph.problem.kernels():
            return torch.cat([graph.built(part, True).detach() for part in V.detach().T.contiguous().split(COLUMNS)]).T

    return matmat


def symmetric_operator(
    problem: Problem, build: Callable[[Problem, list[int]], Product], name: str, memory: int, *, merge: bool = True
) -> Operator:
    """The (p, p) operator of a sum over batches: from one kept graph where it fits ``memory``, else built for every product.

    Args:
        problem: Whose batches are summed over.
        build: (problem, batches) → the product of their weighted sum.
        name: What the map is.
        memory: Bytes that the kept graph may take.
        merge: Whether ``build`` gives the same for other batches of the same rows.
    """
    graph = kept(problem, lambda whole: build(whole, list(range(len(whole.batches)))), memory, merge=merge)
    if graph is None and merge:
        problem = fitting(problem, lambda single: build(single, [0]), memory)

    def anew(v: Tensor) -> Tensor:
        with problem.safe():
            total = torch.zeros_like(v)
            for k in range(len(problem.batches)):
                total += build(problem, [k])(v, False).detach()
            return total

    product = anew if graph is None else repeated(problem, lambda v: graph.built(v, False), graph.bytes, memory)
    return Operator(
        (problem.P, problem.P),
        lambda v: product(v.detach()),
        matmat=columns_at_once(graph),
        symmetric=True,
        dtype=problem.dtype,
        device=problem.device,
        name=name,
        layout=layout(problem),
    )


def layout(problem: Problem) -> dict[str, slice]:
    """Where each parameter lies in the flat vector."""
    places, start = {}, 0
    for name, p in problem.params.items():
        places[name] = slice(start, start + p.numel())
        start += p.numel()
    return places


def dense_operator(problem: Problem, matrix: Tensor, name: str) -> Operator:
    """An operator that holds its matrix, (rows, p): what oracles return."""
    return Operator.from_matrix(matrix, name=name, layout=layout(problem))


def dense_jacobian(problem: Problem, k: int) -> tuple[Tensor, Tensor]:
    """All outputs of batch ``k`` and their Jacobian, (*outputs, p), entry by entry: what oracles are made of. Call it within `safe`."""
    leaves = problem.leaves()
    inputs = list(leaves.values())
    outputs = problem.outputs(k, leaves)
    rows = [join(vjp([entry], inputs, [torch.ones_like(entry)])) for entry in outputs.reshape(-1)]
    return outputs.detach(), torch.stack(rows).reshape(*outputs.shape, problem.P)
