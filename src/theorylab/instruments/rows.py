"""What every row of the data contributes: the gradient of its own loss, and that gradient's norm."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from theorylab.core.batches import rows_of, tensors_of
from theorylab.core.instrument import Inapplicable, instrument
from theorylab.core.problem import Problem, finite
from theorylab.core.source import Source
from theorylab.instruments.layers import Call, Gradients, Outer, gradients_of, recorded, row_wise, uses, work
from theorylab.instruments.refusals import couples_rows
from theorylab.instruments.rows_alone import close, looped, others_of, shares_predictions, through_batch

BUDGET = 2**26
"""Numbers that temporaries may hold at once; where more rows are asked for than fit, they are taken in turn."""


@dataclass(frozen=True)
class _Layers:
    """What structure gives for one batch: uses of layers with the gradients of their outputs, and the parameters it says nothing about."""

    calls: list[tuple[Call, Tensor]]
    rest: list[str]


def _refuse_joint_loss(problem: Problem, k: int, outputs: Any, value: Tensor) -> None:
    """A mean over rows is the weighted mean over parts of the batch; here of 1, 4, 16, ... rows, so that no pattern of rows hides it."""
    batch, parts, start, size = problem.batches[k], [], 0, 1
    while start < batch.rows:
        out, y = (rows_of(side, slice(start, start + size), batch.rows) for side in (outputs, batch.content[1]))
        parts.append(problem.criterion(out, y).expand(min(size, batch.rows - start)))
        start, size = start + size, 4 * size
    apart = torch.cat(parts)
    if not close(apart if value.ndim else apart.mean(), value):
        raise Inapplicable(
            f"the loss of a batch is not the mean of the losses of its rows ({value.mean():.6g} as a whole, {apart.mean():.6g} in parts), "
            'as with class weights, ignored labels or contrasts between rows. Give a loss of each row, e.g. by reduction="none".'
        )


def _stand_alone(problem: Problem, k: int, calls: list[Call], outputs: Any) -> set[int]:
    """Calls that see the first row as they would if it were alone; none where the outputs are not those of the row alone."""
    batch = problem.batches[k]
    single = problem.on([batch.part(slice(1))])
    leaves = single.leaves()
    with recorded(single, leaves, 1) as alone:
        out = single.outputs(0, leaves)
    if len(alone) != len(calls) or not all(map(close, tensors_of(out), tensors_of(rows_of(outputs, slice(1), batch.rows)))):
        return set()
    return {i for i, (a, c) in enumerate(zip(alone, calls, strict=True)) if a.module is c.module and close(a.x, c.x[:1])}


def _separate(calls: list[Call], outputs: Any) -> set[int]:
    """Calls through which the first row's outputs depend on their first row only: dearer than `_stand_alone`, but right under dropout."""
    first = [t[:1] for t in tensors_of(outputs) if t.requires_grad]
    if not first:
        return set(range(len(calls)))
    generator = torch.Generator().manual_seed(0)
    cotangents = [torch.randn(t.shape, generator=generator).to(t) for t in first]
    grads = torch.autograd.grad(first, [c.output for c in calls], cotangents, retain_graph=True, allow_unused=True)
    return {i for i, g in enumerate(grads) if g is None or not bool(g[1:].any())}


def _layers(problem: Problem, k: int) -> _Layers:
    """Run batch ``k`` once, forward and back to the outputs of its layers."""
    batch = problem.batches[k]
    if not batch.is_pair:
        return _Layers([], list(problem.params))
    leaves = problem.leaves()
    with recorded(problem, leaves, batch.rows) as calls:
        outputs = problem.outputs(k, leaves)
    value = problem.criterion(outputs, batch.content[1])
    total = problem.n * problem.weights[k] * finite(value.mean())
    if not shares_predictions(problem, k):
        with torch.no_grad():
            _refuse_joint_loss(problem, k, outputs, value)
    trusted = set(range(len(calls))) if row_wise(problem.model) else _stand_alone(problem, k, calls, outputs)
    if len(trusted) < len(calls):
        trusted |= _separate(calls, outputs)
    kept = [calls[i] for i in sorted(trusted) if calls[i].untouched]
    count = uses(total, leaves)
    grads = torch.autograd.grad(total, [c.output for c in kept], allow_unused=True) if kept and total.requires_grad else [None] * len(kept)
    found = [(c, g) for c, g in zip(kept, grads, strict=True) if g is not None]
    explained = Counter(name for c, _ in found for name in c.names.values())
    # A parameter that enters the graph elsewhere too, as in a weight decay or an unknown module, is not explained by its layers.
    return _Layers(found, [name for name in problem.params if explained[name] != count[name]])


def _chunks(problem: Problem, found: _Layers, rows: Tensor, chunk: int | None) -> tuple[Tensor, ...]:
    other = sum(problem.params[name].numel() for name in found.rest)
    most = max([other, *(work(call, g) for call, g in found.calls)], default=1)
    return rows.split(chunk or max(1, BUDGET // max(1, most)))


def _formed(gradients: list[Gradients], into: Tensor) -> None:
    """Write the sum of the uses of a parameter, formed, into (m, ...)."""
    if not gradients:
        into.zero_()
    for i, use in enumerate(gradients):
        if isinstance(use, Outer):
            use.add_to(into, i == 0)
        elif i == 0:
            into.copy_(use.view_as(into))
        else:
            into.add_(use.view_as(into))


def _square(gradients: Tensor) -> Tensor:
    """Squared norms (m,) of m vectors, in pieces: a sum of 10⁸ squares in float32 is wrong in the second digit."""
    pieces = gradients.flatten(1).split(2**16, dim=1)
    return torch.stack([torch.linalg.vector_norm(piece, dim=1).double().square() for piece in pieces]).sum(0)


def _squares(gradients: list[Gradients], parameter: Tensor) -> Tensor:
    """Squared norms (m,) of the sum of the uses of a parameter."""
    factors = [use for use in gradients if isinstance(use, Outer)]
    if len(gradients) == 1 and not factors:
        return _square(gradients[0])  # pyright: ignore[reportArgumentType]
    if len(factors) == len(gradients):
        places = sum(use.right.shape[2] for use in factors)
        o, i = factors[0].o, factors[0].right.shape[3]
        if places * (o + i) <= o * i:  # fewer operations than forming them
            return torch.stack([a.inner(b) for a in factors for b in factors]).sum(0).clamp(min=0)
    rows = len(factors[0].right) if factors else len(gradients[0])  # pyright: ignore[reportArgumentType]
    total = parameter.new_empty(rows, *parameter.shape)
    _formed(gradients, total)
    return _square(total)


def _checked(problem: Problem, rows: Sequence[int] | Tensor | None, chunk: int | None) -> Tensor:
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}.")
    if rows is None:
        return torch.arange(problem.n)
    chosen = torch.as_tensor(rows).cpu()
    if chosen.ndim != 1 or len(chosen) == 0 or chosen.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"rows must be a list of at least one row number, got {rows!r}.")
    if not 0 <= int(chosen.min()) <= int(chosen.max()) < problem.n:
        raise ValueError(f"rows must lie in 0..{problem.n - 1}, got {int(chosen.min())}..{int(chosen.max())}.")
    return chosen.long()


def _by_batch(problem: Problem, chosen: Tensor) -> Iterator[tuple[int, Tensor, _Layers]]:
    """Batches that hold chosen rows (sorted): their number, the rows counted within them, and what their layers tell."""
    start = 0
    for k, batch in enumerate(problem.batches):
        local = chosen[(chosen >= start) & (chosen < start + batch.rows)] - start
        start += batch.rows
        if len(local):
            yield k, local, _layers(problem, k)


def _index(rows: Tensor) -> slice | Tensor:
    """The same rows as a slice, which copies nothing, where they follow each other."""
    first = int(rows[0])
    return slice(first, first + len(rows)) if torch.equal(rows, torch.arange(first, first + len(rows))) else rows


def looped_grads(problem: Problem, rows: Sequence[int] | Tensor | None = None, chunk: int | None = None) -> Tensor:
    """One backward pass a row, through the graph of its batch where outputs are known, else of the row alone: the oracle."""
    chosen, names, parts = _checked(problem, rows, chunk), list(problem.params), []
    with problem.safe():
        for k, batch in enumerate(problem.batches):
            every = torch.arange(batch.rows)
            parts.append(through_batch(problem, k, names, every) if batch.is_pair else looped(problem, batch, names, every)[1])
    return torch.cat(parts)[chosen]


def looped_grad_norms(problem: Problem) -> Tensor:
    """Norms of the formed gradients: the oracle of `per_example_grad_norms`."""
    return looped_grads(problem).norm(dim=1)


GOODFELLOW = Source("Goodfellow 2015", "Section 4 (per-example gradients from layer inputs and backpropagated signals)", "arXiv:1510.01799")


@instrument(oracle=looped_grads, source=GOODFELLOW, refuses=couples_rows, row_axes=(0,))
def per_example_grads(problem: Problem, *, rows: Sequence[int] | Tensor | None = None, chunk: int | None = None) -> Tensor:
    r"""The gradients of the rows' own losses, :math:`\nabla \ell_i(\theta)`, one a row: (rows, p). Their mean is the gradient.

    One pass forward and back to the outputs of the layers gives those of linear, convolutional, embedding and normalization layers,
    :math:`\sum_t g_t a_t^\top` from a layer's inputs a and the gradients g of its outputs. Parameters that are used in any other way are
    differentiated row by row, by vmap where the model allows it. Which parameters those are is read from the graph of the loss. Where
    the loss is a mean over predictions (tokens, of which some are masked), a row's loss is n times its share of that mean.

    Args:
        problem: The risk and the point; its loss is the mean of a loss of each row.
        rows: Which rows, counted through the batches in order; all of them by default. Batches that hold none are skipped.
        chunk: Rows taken at once, to bound temporaries; by default as many as fit.

    Raises:
        Inapplicable: rows depend on each other, through the model (BatchNorm in training mode) or through the loss (class weights).
        ValueError: a row that does not exist, or a loss that is not finite.

    Example:
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> problem = Problem(model, torch.nn.functional.mse_loss, (torch.eye(2), torch.zeros(2, 1)))
        >>> per_example_grads(problem.at({"weight": torch.tensor([[1.0, 3.0]])})).tolist()
        [[2.0, 0.0], [0.0, 6.0]]

    Source: Goodfellow 2015, arXiv:1510.01799, Section 4, there for fully connected layers.
    """
    chosen = _checked(problem, rows, chunk)
    order = chosen.argsort(stable=True)
    result = torch.empty(len(chosen), problem.P, dtype=problem.dtype, device=problem.device)
    sizes = [p.numel() for p in problem.params.values()]
    filled = 0
    with problem.safe():
        for k, local, found in _by_batch(problem, chosen[order]):
            others = others_of(problem, k, found.rest) if found.rest else None
            for part in _chunks(problem, found, local, chunk):
                block = result[filled : filled + len(part)].split(sizes, dim=1)
                filled += len(part)
                views = dict(zip(problem.params, block, strict=True))
                gradients = gradients_of(found.calls, _index(part))
                for name, p in problem.params.items():
                    if name not in found.rest:
                        _formed(gradients.get(name, []), views[name].view(len(part), *p.shape))
                if others is not None:
                    pieces = others(part).split([views[name].shape[1] for name in found.rest], dim=1)
                    for name, piece in zip(found.rest, pieces, strict=True):
                        views[name].copy_(piece)
    return result if rows is None else result[order.argsort()]


@instrument(oracle=looped_grad_norms, source=GOODFELLOW, refuses=couples_rows, row_axes=(0,))
def per_example_grad_norms(problem: Problem, *, chunk: int | None = None) -> Tensor:
    r"""The lengths of the rows' own gradients, :math:`\|\nabla \ell_i(\theta)\|`, (n,); no gradient is kept.

    Where a layer sees a row at few places t, its share is
    :math:`\sum_{t,t'} \langle g_t, g_{t'}\rangle \langle a_t, a_{t'}\rangle`, without forming the gradient (a *ghost norm*); where it sees
    many, the gradients of some rows are formed and forgotten. Uses of one parameter by several layers are added before the norm is taken.

    Args:
        problem: The risk and the point; its loss is the mean of a loss of each row.
        chunk: Rows taken at once, to bound temporaries; by default as many as fit.

    Raises:
        Inapplicable: rows depend on each other, through the model (BatchNorm in training mode) or through the loss (class weights).
        ValueError: a loss that is not finite.

    Example:
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> problem = Problem(model, torch.nn.functional.mse_loss, (torch.eye(2), torch.zeros(2, 1)))
        >>> per_example_grad_norms(problem.at({"weight": torch.tensor([[1.0, 3.0]])})).tolist()
        [2.0, 6.0]

    Source: Goodfellow 2015, arXiv:1510.01799, Section 4; for several places Li et al. 2022, arXiv:2110.05679, Section 4 (ghost clipping).
    """
    squares = []
    with problem.safe():
        for k, local, found in _by_batch(problem, _checked(problem, None, chunk)):
            others = others_of(problem, k, found.rest) if found.rest else None
            for part in _chunks(problem, found, local, chunk):
                gradients = gradients_of(found.calls, _index(part))
                known = [_squares(terms, problem.params[name]) for name, terms in gradients.items() if name not in found.rest]
                if others is not None:
                    known.append(_square(others(part)))
                squares.append(torch.stack(known).sum(0) if known else torch.zeros(len(part), device=problem.device))
    return torch.cat(squares).sqrt().to(problem.dtype)
