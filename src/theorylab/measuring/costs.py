"""What would measuring cost? Seconds from a few gradients of the problem times each instrument's work, bytes from a graph of a few rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from theorylab.core.instrument import Instrument
from theorylab.core.problem import Problem
from theorylab.measuring import operators
from theorylab.runners.plan import Cost

PRODUCT = 1.8
"""Gradients that one product with a curvature operator costs, through a graph that is kept."""
REBUILT = 2.9
"""The same where the graph does not fit memory and is built for every product."""
SMALL = 8
"""Rows of the graph whose size is measured."""
SLACK = 1.5
"""What a backward pass takes beside the tensors that its graph keeps: their gradients, of which the largest are there at a time."""


@dataclass(frozen=True)
class Work:
    """What an instrument does: ``gradients`` of the mean loss, ``passes`` over a vector of all parameters, ``vectors`` held at a time."""

    gradients: float
    passes: float = 0.0
    vectors: float = 0.0


@dataclass(frozen=True)
class Footing:
    """What a few gradients tell about a problem on this machine.

    Attributes:
        gradient: Seconds of a gradient of the mean loss over all rows.
        vector: Seconds of one pass over a vector of all parameters.
        held: Bytes of the parameters, buffers and data.
        base, row: Bytes of a graph of the gradient, the part that does not depend on the rows, and the part of each row.
    """

    gradient: float
    vector: float
    held: int
    base: float
    row: float

    def graph(self, rows: int) -> float:
        """Bytes that a gradient's graph of so many rows takes."""
        return SLACK * (self.base + self.row * rows)


def footing(problem: Problem) -> Footing:
    """Time a gradient of the first batch, and measure the graph of a few rows.

    Raises:
        ValueError: the loss is not finite.
    """
    batch = problem.batches[0]
    first = problem.on([batch])
    seconds = _seconds(first.gradient) * problem.n / first.n
    v = torch.zeros(8, problem.P, dtype=problem.dtype, device=problem.device)
    passes = _seconds(lambda: v @ v[0]) / len(v)
    few, fewer = min(SMALL, first.n), max(1, min(SMALL, first.n) // 2)
    large, small = (_graph_bytes(problem.on([batch.part(slice(rows))])) for rows in (few, fewer))
    row = (large - small) / (few - fewer) if few > fewer else float(large)
    held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in problem.held()}
    return Footing(seconds, passes, sum(held.values()), max(0.0, large - row * few), row)


def _seconds(call: Callable[[], object]) -> float:
    """Wall time of a call: the second one, or the best of three more where they are short."""
    best = float("inf")
    for k in range(4):
        start = time.perf_counter()
        call()
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        took = time.perf_counter() - start
        best = took if k == 1 else min(best, took)  # the first call also allocates and compiles kernels
        if k and took > 0.05:
            break
    return best


def _graph_bytes(problem: Problem) -> int:
    """Bytes of distinct tensors that a differentiable gradient keeps, beside those that the problem holds anyway."""
    seen = {t.untyped_storage().data_ptr() for t in problem.held()}
    total = 0

    def pack(t: Tensor) -> Tensor:
        nonlocal total
        storage = t.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            total += storage.nbytes()
        return t

    with problem.safe(), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        leaves = problem.leaves()
        loss = problem.batch_loss(0, leaves)
        kept = torch.autograd.grad(loss, list(leaves.values()), create_graph=True, allow_unused=True)
        del kept
    return total


def _curvature(name: str, product: float = PRODUCT) -> Callable[[Problem], Work]:
    """The work that the card reads from an operator: its products, and the linear algebra of Krylov spaces."""

    def work(problem: Problem) -> Work:
        full = name in operators.IN_FULL
        passes = operators.TRACE**2 + (2.0 * operators.PROBES * operators.STEPS**2 if full else 2.0 * operators.TOP**2)
        vectors = max(1.5 * operators.STEPS if full else 1.5 * operators.TOP, 2.5 * operators.TRACE)
        return Work(product * operators.products(name, problem.P), passes, vectors)

    return work


WORK: Mapping[str, Callable[[Problem], Work]] = {
    "hessian": _curvature("hessian"),
    "ggn": _curvature("ggn", 1.3),
    "true_fisher": _curvature("true_fisher", 1.3),
    "empirical_fisher": _curvature("empirical_fisher", 1.3),
    "jacobian": _curvature("jacobian", 1.3),
    "sharpness": lambda problem: Work(PRODUCT * min(30, problem.P), 2.0 * 30**2, 45),
}
"""The work of each instrument, and of what the card reads from its result."""


def expect(tool: Instrument, problem: Problem, known: Footing, memory: int | None = None) -> Cost:
    """What one instrument will cost.

    Args:
        tool: The instrument.
        problem: In the batches in which it will be measured.
        known: Its `footing`.
        memory: Bytes for the measurement; products through a graph that does not fit cost more.
    """
    if tool.name not in WORK:
        return Cost(None, None, "unknown: no model of its work")
    work = WORK[tool.name](problem)
    whole, batch = known.graph(problem.n), known.graph(max(b.rows for b in problem.batches))
    vectors = work.vectors * problem.P * problem.dtype.itemsize
    rebuilt = memory is not None and whole > _share(memory, known)
    if memory is not None:
        vectors = min(vectors, _share(memory, known))
    seconds = work.gradients * known.gradient * (REBUILT / PRODUCT if rebuilt else 1.0) + work.passes * known.vector
    basis = f"{work.gradients:.0f} gradients of {known.gradient:.2g} s" + (", graphs rebuilt" if rebuilt else "")
    return Cost(seconds, round(known.held + vectors + (batch if rebuilt else whole)), basis)


def _share(memory: int, known: Footing) -> float:
    return (memory - known.held) / 2


@dataclass(frozen=True)
class Room:
    """A budget of memory, shared out: the problem in batches that fit, bytes for kept graphs, and vectors of all parameters."""

    problem: Problem
    graph: int
    vectors: int


def share_out(problem: Problem, known: Footing, memory: int) -> Room:
    """Fit a problem into ``memory`` bytes: half for graphs, half for vectors, beside what the problem itself holds.

    Raises:
        ValueError: the problem alone holds more.
    """
    share = _share(memory, known)
    if share <= 0:
        raise ValueError(
            f"memory must be more than the {in_words(known.held)} of the problem's own parameters and data, got {in_words(memory)}."
        )
    rows = max(1, int((share / SLACK - known.base) / known.row)) if known.row > 0 else problem.n
    if rows < max(b.rows for b in problem.batches) and not problem.train:  # BatchNorm in training mode sees other batches otherwise
        problem = problem.on([b.part(slice(i, i + rows)) for b in problem.batches for i in range(0, b.rows, rows)])
    return Room(problem, int(share), int(share / (problem.P * problem.dtype.itemsize)))


_UNITS = {"": 1, "b": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def as_bytes(text: str | float) -> int:
    """Bytes from a number, or a text with a unit.

    Raises:
        ValueError: not a positive size.

    Example:
        >>> as_bytes("4GiB"), as_bytes("500 MB"), as_bytes(1e6)
        (4294967296, 500000000, 1000000)
    """
    plain = str(text).strip().lower()
    digits = plain.rstrip("bikmgt ")
    unit = plain[len(digits) :].strip()
    unit = unit if unit == "b" else unit.removesuffix("b")
    try:
        size = int(float(digits) * _UNITS[unit])
    except (ValueError, KeyError, OverflowError):
        size = 0
    if size < 1:
        raise ValueError(f"memory must be a size such as 4GiB, 500MB or a number of bytes, got {text!r}.")
    return size


def in_words(size: float) -> str:
    """A size in binary units.

    Example:
        >>> in_words(4 * 2**30), in_words(1.5 * 2**20)
        ('4 GiB', '1.5 MiB')
    """
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.3g} GiB"
