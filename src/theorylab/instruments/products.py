"""How a Problem is differentiated once and multiplied many times: graphs that are kept where memory allows, else built anew."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from theorylab.core.operator import Operator
from theorylab.core.problem import Problem

MEMORY_BUDGET = 2**30
"""Bytes that the kept graph of one operator may hold; beyond it, every product computes the graph anew, batch by batch."""

# Layers through which several vectors go at once by vmap as fast as one after the other; convolutions and recurrences take twice as long.
BATCHABLE = (nn.Linear, nn.Flatten, nn.Identity, nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.Softplus, nn.ELU, nn.LeakyReLU)
COLUMNS = 32  # vectors at once, to bound memory

Product = Callable[[Tensor, bool], Tensor]
"""(v, many) → product; v is (p,), or (k, p) where many."""
T = TypeVar("T")


class _OverBudget(Exception):
    pass


class _Budget:
    """Counts the bytes of distinct tensors that graphs save, and stops their construction when they are too many."""

    def __init__(self, limit: int, free: list[Tensor]) -> None:
        self.limit, self.used = limit, 0
        self.seen = {t.untyped_storage().data_ptr() for t in free}  # parameters and data are held anyway

    def pack(self, t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in self.seen:
            self.seen.add(storage.data_ptr())
            self.used += storage.nbytes()
            if self.used > self.limit:
                raise _OverBudget
        return t

    def hooks(self) -> torch.autograd.graph.saved_tensors_hooks:
        return torch.autograd.graph.saved_tensors_hooks(self.pack, lambda t: t)


def kept(problem: Problem, build: Callable[[], T], memory: int) -> T | None:
    """What ``build`` makes, whose graphs stay; None where they would take more than ``memory`` bytes. Call it within `Problem.safe`."""
    try:
        with _Budget(memory, problem.held()).hooks():
            return build()
    except _OverBudget:
        problem.loss()  # refuses a loss that is not finite now, not at the first product
        return None


def vjp(outputs: list[Tensor], inputs: list[Tensor], cotangents: list[Tensor], many: bool = False) -> list[Tensor]:
    """Vector-Jacobian products through a graph that stays; zeros where no output depends on an input.

    With ``many`` the cotangents have a leading axis of vectors, and so has the result.
    """
    used = [i for i, o in enumerate(outputs) if o.requires_grad]
    lead = cotangents[0].shape[:1] if many else ()
    grads: tuple[Tensor | None, ...] = (None,) * len(inputs)
    if used:
        grads = torch.autograd.grad(
            [outputs[i] for i in used],
            inputs,
            [cotangents[i] for i in used],
            retain_graph=True,
            allow_unused=True,
            is_grads_batched=many,
        )
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


@dataclass(frozen=True)
class Linearization:
    """The model's outputs on one batch, to first order in the parameters: J v and Jᵀ u through a graph that stays."""

    problem: Problem
    k: int
    outputs: Tensor
    inputs: list[Tensor]
    probe: Tensor
    pulled: list[Tensor]
    forward: Callable[[list[Tensor]], Tensor] | None

    @classmethod
    def of(cls, problem: Problem, k: int, *, quick: bool) -> Linearization:
        """At the problem's parameters, on batch ``k``; ``quick`` spends time and memory now for faster products. Call it within `safe`.

        Raises:
            TypeError: the output is not one tensor.
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
        return cls(problem, k, outputs, inputs, probe, pulled, _linearized(problem, k, probe, pulled) if quick else None)

    def push(self, v: Tensor, many: bool = False) -> Tensor:
        """J v for v (p,), in the outputs' shape; with ``many``, v is (k, p) and the result has a leading axis."""
        parts = split(self.problem, v, many)
        if self.forward is not None and not many:
            return self.forward(parts)
        return vjp(self.pulled, [self.probe], parts, many)[0]

    def pull(self, u: Tensor, many: bool = False) -> Tensor:
        """Jᵀ u for u in the outputs' shape."""
        return join(vjp([self.outputs], self.inputs, [u], many), many)


def _linearized(problem: Problem, k: int, probe: Tensor, pulled: list[Tensor]) -> Callable[[list[Tensor]], Tensor] | None:
    """J v by `torch.func.linearize` for convolutions, where it takes half the time; None where it does not agree with the kept graph."""
    if not any(isinstance(m, nn.modules.conv._ConvNd) for m in problem.model.modules()):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer warns of its own constants
        try:
            _, push = torch.func.linearize(lambda p: problem.outputs(k, p), problem.params)
        except (RuntimeError, NotImplementedError):  # no forward derivative of some layer
            return None

    def forward(parts: list[Tensor]) -> Tensor:
        return push(dict(zip(problem.params, parts, strict=True)))

    generator = torch.Generator().manual_seed(0)
    test = [torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p) for p in problem.params.values()]
    (expected,) = vjp(pulled, [probe], test)
    agree = float((forward(test) - expected).norm()) <= torch.finfo(probe.dtype).eps ** 0.5 * float(expected.norm())
    return forward if agree else None


def _batches_well(model: nn.Module) -> bool:
    leaves = [m for m in model.modules() if not list(m.children())]
    return all(isinstance(m, BATCHABLE) for m in leaves)


def columns_at_once(problem: Problem, product: Product) -> Callable[[Tensor], Tensor] | None:
    """A block of columns by one vmapped product, where the model's layers gain from it; else None, and columns go one by one."""
    if not _batches_well(problem.model):
        return None
    return lambda V: torch.cat([product(part, True) for part in V.detach().T.contiguous().split(COLUMNS)]).T


def symmetric_operator(problem: Problem, build: Callable[[list[int], bool], Product], name: str, memory: int) -> Operator:
    """The (p, p) operator of a sum over batches: from one kept graph where it fits ``memory``, else built for every product.

    Args:
        problem: Whose batches are summed over.
        build: (batches, keep) → their product, weighted; ``keep`` says that it will be used many times.
        name: What the map is.
        memory: Bytes that the kept graph may take.
    """
    every = list(range(len(problem.batches)))
    with problem.safe():
        whole = kept(problem, lambda: build(every, True), memory)

    def product(v: Tensor, many: bool) -> Tensor:
        if whole is not None:
            with problem.kernels():
                return whole(v, many).detach()
        with problem.safe():
            total = torch.zeros_like(v)
            for k in every:
                total += build([k], False)(v, many).detach()
            return total

    return Operator(
        (problem.P, problem.P),
        lambda v: product(v.detach(), False),
        matmat=columns_at_once(problem, product),
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
    square = matrix.shape[0] == problem.P
    return Operator(
        (matrix.shape[0], problem.P),
        lambda v: matrix @ v,
        rmatvec=lambda u: matrix.T @ u,
        symmetric=square and torch.equal(matrix, matrix.T),
        dtype=matrix.dtype,
        device=matrix.device,
        name=name,
        layout=layout(problem),
    )


def dense_jacobian(problem: Problem, k: int) -> tuple[Tensor, Tensor]:
    """All outputs of batch ``k`` and their Jacobian, (*outputs, p), entry by entry: what oracles are made of. Call it within `safe`."""
    leaves = problem.leaves()
    inputs = list(leaves.values())
    outputs = problem.outputs(k, leaves)
    rows = [join(vjp([entry], inputs, [torch.ones_like(entry)])) for entry in outputs.reshape(-1)]
    return outputs.detach(), torch.stack(rows).reshape(*outputs.shape, problem.P)
