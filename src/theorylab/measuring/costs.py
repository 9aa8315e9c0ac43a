"""What would measuring cost? Seconds from a few gradients of the problem times each instrument's work, bytes from a graph of a few rows."""

from __future__ import annotations

import inspect
import re
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from theorylab.core.instrument import Instrument
from theorylab.core.problem import Problem
from theorylab.instruments.certify import certify
from theorylab.instruments.merging import parted
from theorylab.instruments.noise_scale import ROWS
from theorylab.instruments.products import BATCHABLE, COLUMNS
from theorylab.instruments.refusals import fails_on
from theorylab.measuring import operators
from theorylab.measuring.tailored import KERNEL_ROWS
from theorylab.runners.plan import Cost

PRODUCT = 1.8
"""Gradients that one product with a curvature operator costs, through a graph that is kept."""
REBUILT = 2.9
"""The same where the graph does not fit memory and is built for every product."""
SLACK = 2.5
"""Resident memory over the tensors alive: what a C library keeps of blocks that come and go by the megabyte."""
COLUMN = 0.4
"""What each further vector takes that goes through a kept graph at once, as a share of the first product's bytes."""
SVD, PROGRAMS = 4, 300
"""Numbers read, in time, for each entry and each row (or column, if fewer) of a matrix that is decomposed, and for each constraint and
pair of variables of the programs of a margin: within a factor of four for programs of 20 to 640 variables."""
SMALL = 4096
"""Numbers of which a pass takes hardly less time than of one."""
ENOUGH = 0.05
"""Seconds of a gradient that can be timed well; with fewer rows than take so long, time and memory are extrapolated."""


@dataclass(frozen=True)
class Work:
    """What an instrument does.

    Attributes:
        gradients: Of the mean loss, by their time.
        passes: Over a vector of all parameters.
        vectors: Of all parameters, held at a time.
        calls: Evaluations of so few rows that their time does not depend on them, in units of the least time of a gradient.
        columns: Vectors that go through the network at once, where its layers allow it and no budget forbids it.
    """

    gradients: float
    passes: float = 0.0
    vectors: float = 0.0
    calls: float = 0.0
    columns: int = 1


@dataclass(frozen=True)
class Footing:
    """What a few gradients tell about a problem on this machine.

    Attributes:
        gradient: Seconds of a gradient of the mean loss over all rows.
        call: Seconds of a gradient of hardly any rows.
        vector: Seconds of one pass over a vector of all parameters.
        held: Bytes of the parameters, buffers and data.
        base, row: Bytes alive at the height of a Hessian product, the part that does not depend on the rows, and that of each row.
    """

    gradient: float
    call: float
    vector: float
    held: int
    base: float
    row: float

    def product(self, rows: int) -> float:
        """Bytes that a Hessian product on so many rows takes."""
        return self.base + self.row * rows


def footing(problem: Problem) -> Footing:
    """Time gradients and weigh Hessian products on more and more rows of the first batch, until a gradient takes long enough.

    Raises:
        ValueError: the loss is not finite.
    """
    batch = problem.batches[0]
    rows, seen = min(2, batch.rows) if fails_on(problem, 2) is None else batch.rows, []
    while True:
        part = problem.on([batch.part(slice(rows))])
        seen.append((rows, _seconds(part.gradient), _product_bytes(part)))
        if rows == batch.rows or seen[-1][1] > ENOUGH:
            break
        rows = min(4 * rows, batch.rows)
    (fewer, faster, less), (rows, slower, more) = seen[-2:] if len(seen) > 1 else ((0, 0.0, 0), seen[0])
    each, row = max(0.0, slower - faster) / (rows - fewer), max(0.0, more - less) / (rows - fewer)
    seconds = problem.n * each + len(problem.batches) * max(0.0, slower - rows * each)
    v = torch.zeros(8, problem.P, dtype=problem.dtype, device=problem.device)
    passes = _seconds(lambda: v @ v[0]) / len(v)
    held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in problem.held()}
    return Footing(seconds, seen[0][1], passes, sum(held.values()), max(0.0, more - row * rows), row)


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
        if k and took > ENOUGH:
            break
    return best


class _Alive(TorchDispatchMode):
    """Counts the bytes of tensors made inside and still alive, and remembers the most."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else PyTorch imports its compiler to keep it away from here: seconds, where nothing is compiled

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for t in tree_leaves(made):
            if isinstance(t, Tensor):
                self._count(t.untyped_storage())
        return made

    def _count(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return

        def gone(_: Any) -> None:
            self.now -= size
            self._known.pop(key, None)

        self._known[key] = weakref.ref(storage, gone)
        self.now += size
        self.most = max(self.most, self.now)


def _product_bytes(problem: Problem) -> int:
    """Bytes alive at the height of one Hessian product with the first batch, beside what the problem holds."""
    cuda = problem.device.type == "cuda"
    before = 0
    if cuda:  # its backward pass runs in threads that a dispatch mode does not see
        torch.cuda.reset_peak_memory_stats(problem.device)
        before = torch.cuda.memory_allocated(problem.device)
    with problem.safe(), _Alive() as alive:
        leaves = list((params := problem.leaves()).values())
        slopes = torch.autograd.grad(problem.batch_loss(0, params), leaves, create_graph=True, allow_unused=True)
        used = [g for g in slopes if g is not None and g.requires_grad]
        try:
            if used:
                torch.autograd.grad(used, leaves, [torch.ones_like(g) for g in used], allow_unused=True)
        except RuntimeError as error:
            if "derivative" not in str(error):
                raise  # else an operation has no second one: what was alive until then is all that can be, and products say why themselves
    return torch.cuda.max_memory_allocated(problem.device) - before if cuda else alive.most


def _curvature(name: str, product: float = PRODUCT) -> Callable[[Problem], Work]:
    """The work that the card reads from an operator: its products, and the linear algebra of Krylov spaces."""

    def work(problem: Problem) -> Work:
        full = name in operators.IN_FULL
        passes = operators.TRACE**2 + (2.0 * operators.PROBES * operators.STEPS**2 if full else 2.0 * operators.TOP**2)
        vectors = max(1.5 * operators.STEPS if full else 1.5 * operators.TOP, 2.5 * operators.TRACE)
        return Work(product * operators.products(name, problem.P), passes, vectors, columns=operators.TRACE // 2)

    return work


def _kernel(problem: Problem) -> Work:
    """A backward pass for each of some ten outputs, on the rows of which a card measures kernels."""
    return Work(1 + 10 * min(1.0, KERNEL_ROWS / problem.n), calls=20)


def _attribution(passes: float) -> Callable[[Problem], Work]:
    """Gradients of the rows of which a card attributes, several times over."""

    def work(problem: Problem) -> Work:
        rows = min(KERNEL_ROWS, problem.n)
        return Work(1 + 10 * passes * rows / problem.n, passes * rows, passes * rows, calls=10 * passes)

    return work


def _decompositions(problem: Problem) -> Work:
    """Singular values of every matrix in float64: as many passes over it as its shorter side, several times over."""
    sides = [(p.numel(), min(len(p), p.numel() // len(p))) for p in problem.params.values() if p.ndim > 1 and p.numel()]
    largest = max((numel for numel, _ in sides), default=0)
    return Work(1, _passes(problem, SVD * sum(numel * side for numel, side in sides)), 4 * largest / problem.P)


def _margins(problem: Problem) -> Work:
    """Three programs with a constraint for each row and wrong class, and a variable for each weight of the last layer."""
    heads = [m for m in problem.model.modules() if isinstance(m, nn.Linear)]
    if not heads:
        return Work(1)
    rows, weights = min(KERNEL_ROWS, problem.n) * max(1, len(heads[-1].weight) - 1), heads[-1].weight.numel()
    return Work(3, _passes(problem, PROGRAMS * rows * weights**2), 8 * rows * weights / problem.P, calls=10)


def _passes(problem: Problem, numbers: float) -> float:
    """What takes as long as reading so many numbers, in passes over all parameters, which of few take as long as of `SMALL`."""
    return numbers / max(SMALL, problem.P)


def _certify(problem: Problem) -> Work:
    """Two trainings on half of the rows each, and evaluations at draws from the posterior; every step costs a dozen small calls."""
    defaults = inspect.signature(certify).parameters
    training, draws = defaults["training"].default, defaults["mc"].default
    steps = 2 * training.epochs * -(-problem.n // (2 * training.batch_size))
    return Work(1.3 * training.epochs + draws / 6, 0, 8, calls=12 * (steps + draws))


WORK: Mapping[str, Callable[[Problem], Work]] = {
    "hessian": _curvature("hessian"),
    "ggn": _curvature("ggn", 1.3),
    "true_fisher": _curvature("true_fisher", 1.3),
    "empirical_fisher": _curvature("empirical_fisher", 1.3),
    "jacobian": _curvature("jacobian", 1.3),
    "sharpness": lambda problem: Work(PRODUCT * min(30, problem.P), 2.0 * 30**2, 45),
    "spherical_sharpness": lambda problem: Work(PRODUCT * min(30, problem.P), 2.0 * 30**2, 45),
    "kfac": lambda problem: Work(18, operators.TRACE**2, 2.5 * operators.TRACE),
    "ekfac": lambda problem: Work(20, operators.TRACE**2, 2.5 * operators.TRACE),
    "ntk": _kernel,
    "kernel_spectrum": _kernel,
    "kernel_alignment": _kernel,
    "kernel_regression": _kernel,
    "gradient_noise": lambda problem: Work(12),
    "noise_scale": lambda problem: Work(24 + PRODUCT * (min(ROWS, problem.n) + 1), ROWS**2, 1.5 * ROWS, columns=COLUMNS),
    "certify": _certify,
    "landscape": lambda problem: Work(0.6 * 11**2, 11**2, 3),  # losses alone, on a plane of points
    "norms": lambda problem: Work(4, 10, 2),
    "effective_rank": _decompositions,
    "margin_geometry": _margins,
    "equivariance": lambda problem: Work(4),  # nine evaluations
    "conv_spectrum": lambda problem: Work(1, calls=100),  # iterations through a layer on one row
    "clipped_sum": lambda problem: Work(3, 0, 2),
    "test_bound": lambda problem: Work(1),
    "occam": lambda problem: Work(50),
    "occam_likelihood": lambda problem: Work(50),
    "flatness": lambda problem: Work(120, 0, 3),
    "balancedness": lambda problem: Work(2, 10, 4),
    "invariances": lambda problem: Work(16 + 0.7 * len(problem.params), 0, 3),  # each tensor at two lengths; random sums and points
    "signal_profile": lambda problem: Work(12),  # eight directions, two passes each
    "influence": _attribution(12),
    "tracin": _attribution(2),
    "trak": _attribution(3),
    "per_example_grads": lambda problem: Work(10, problem.n, problem.n),
    "per_example_grad_norms": lambda problem: Work(2, 0, 1),
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
    whole, batch = known.product(problem.n), known.product(max(b.rows for b in problem.batches))
    vectors = work.vectors * problem.P * problem.dtype.itemsize
    rebuilt = memory is not None and whole > _share(memory, known)
    if memory is not None:
        vectors = min(vectors, (memory - known.held) / 2)
    elif work.columns > 1 and all(isinstance(m, BATCHABLE) for m in problem.model.modules() if not list(m.children())):
        whole *= 1 + COLUMN * work.columns
    seconds = (
        work.gradients * known.gradient * (REBUILT / PRODUCT if rebuilt else 1.0) + work.passes * known.vector + work.calls * known.call
    )
    basis = f"{work.gradients:.0f} gradients of {known.gradient:.2g} s"
    basis += f" and {work.calls:.0f} calls of {known.call:.2g} s" if work.calls * known.call > 0.1 * seconds else ""
    basis += f" and {work.passes:.2g} passes of {known.vector:.2g} s" if work.passes * known.vector > 0.5 * seconds else ""
    basis += ", graphs rebuilt" if rebuilt else ""
    return Cost(seconds, round(known.held + vectors + SLACK * (2 * batch if rebuilt else whole)), basis)


def _share(memory: int, known: Footing) -> float:
    """Of the bytes beside what the problem holds, half are for graphs; of them, half for a kept one and half for a batch's product."""
    return (memory - known.held) / 4 / SLACK


@dataclass(frozen=True)
class Room:
    """A budget of memory, shared out: the problem in batches that fit, bytes for kept graphs, and vectors of all parameters."""

    problem: Problem
    graph: int
    vectors: int


def share_out(problem: Problem, known: Footing, memory: int) -> Room:
    """Fit a problem into ``memory`` bytes beside Python and torch; its batches stay whole where their parts would have another risk.

    Raises:
        ValueError: the problem alone holds more.
    """
    share = _share(memory, known)
    if share <= 0:
        raise ValueError(
            f"memory must be more than the {in_words(known.held)} of the problem's own parameters and data, got {in_words(memory)}."
        )
    rows = max(1, int((share - known.base) / known.row)) if known.row > 0 else problem.n
    with problem.safe():
        problem = parted(problem, rows)
    return Room(problem, int(share), int((memory - known.held) / 2 / (problem.P * problem.dtype.itemsize)))


def free_vectors(problem: Problem) -> int:
    """Vectors of all parameters that half of the memory free now has room for: no Krylov space may push a machine into swap."""
    if problem.device.type == "cuda":
        free = torch.cuda.mem_get_info(problem.device)[0]
    else:
        found = re.search(r"MemAvailable:\s+(\d+) kB", _MEMORY.read_text()) if _MEMORY.is_file() else None
        free = int(found[1]) * 1024 if found else 2**40  # a system that does not tell
    return max(8, int(free / 2 / (problem.P * problem.dtype.itemsize)))


_MEMORY = Path("/proc/meminfo")
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
