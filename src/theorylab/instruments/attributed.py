"""What is attributed, and the gradients that every attribution multiplies: of training rows and of targets, in blocks that fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from theorylab.core.arguments import given, row_numbers
from theorylab.core.batches import Batch, as_batches, rows_of
from theorylab.core.problem import Problem
from theorylab.instruments.products import MEMORY_BUDGET
from theorylab.instruments.rows import looped_grads, per_example_grads
from theorylab.instruments.rows_alone import shares_predictions

Target = Callable[[Tensor, Tensor], Tensor]
Rows = Sequence[int] | Tensor | None

COPIES = 32
"""Of target rows that are evaluated at once, where each has several numbers that are attributed."""


def parse_targets(problem: Problem, targets: Any, target: Target | None) -> tuple[Problem, Rows]:
    """A problem whose rows are what is attributed, and which of them."""
    rows: Rows = None
    if targets is None:
        moved = problem.on(problem.batches)
    elif (isinstance(targets, Tensor) and not targets.is_floating_point()) or (
        isinstance(targets, list) and targets and all(isinstance(i, int) for i in targets)
    ):
        rows = row_numbers(targets, problem.n, "targets")
        moved = problem.on(problem.batches)
    elif isinstance(targets, Problem):
        moved = problem.on(targets.to(dtype=problem.dtype, device=problem.device).batches)
    else:
        moved = problem.on(as_batches(targets, dtype=problem.dtype, device=problem.device, seed=problem.seed, batch_size=None))
    if rows is None and targets is not None and not moved.batches[0].is_pair:
        raise TypeError(
            "targets must be data of the problem's kind: pairs (x, y), a problem on such, row numbers of the training set, or None."
        )
    if target is not None:
        moved.criterion, moved._count = target, None  # its numbers are one row's each, whatever the loss is a mean over
    return moved, rows


def token_losses(outputs: Tensor, labels: Tensor) -> Tensor:
    """The cross-entropy of every token, (n, token), of logits (n, k, token) and labels (n, token); 0 where the label is −100.

    As the ``target`` of an attribution it asks what made each token of a target sequence likely. Of causal language models in
    `Problem.from_hf` the labels are shifted already: entry t is the loss at the sequence's token t + 1.

    Example:
        >>> token_losses(torch.zeros(1, 2, 3), torch.tensor([[0, 1, -100]])).exp().round(decimals=4).tolist()
        [[2.0, 2.0, 1.0]]
    """
    return torch.nn.functional.cross_entropy(outputs, labels, reduction="none")


def target_axes(moved: Problem, target: Target | None) -> tuple[int, ...]:
    """The axes of what is attributed, after that of the target rows: () of one number a row, (token,) of one for each token.

    Raises:
        ValueError: batches of which rows have different numbers of numbers, or a model that draws random numbers for several a row.
    """
    if target is None or not moved.batches[0].is_pair:
        return ()
    with moved.safe(), torch.no_grad():
        shapes = {tuple(target(moved.outputs(k), batch.content[1]).shape[1:]) for k, batch in enumerate(moved.batches)}
        if len(shapes) > 1:
            raise ValueError(
                f"target must return as many numbers a row for every batch, got {', '.join(map(str, sorted(shapes)))}: pad all batches to "
                "one length, with labels that the target leaves out."
            )
        (axes,) = shapes
        if axes and any(moved.draws(k) for k in range(len(moved.batches))):
            raise ValueError("target must return one number a row where the model draws random numbers (dropout): use train=False.")
    return axes


def target_gradients(moved: Problem, rows: Rows, axes: tuple[int, ...], memory: int = MEMORY_BUDGET) -> Iterator[Tensor]:
    """Blocks (some, p) of the gradients of what is attributed, row by row, and of every row number by number."""
    if not axes:
        yield from gradient_blocks(moved, rows, memory)
        return
    chosen = torch.arange(moved.n, device="cpu") if rows is None else given(rows)
    size = max(1, memory // (16 * moved.P))
    edges = torch.tensor([batch.rows for batch in moved.batches], device="cpu").cumsum(0)
    function = moved.criterion

    def one(outputs: Tensor, y: tuple[Any, Tensor]) -> Tensor:
        return function(outputs, y[0]).flatten(1).gather(1, y[1][:, None])[:, 0]

    owner = torch.bucketize(chosen, edges, right=True)
    for k, where in zip(*torch.unique_consecutive(owner, return_counts=True), strict=True):
        batch, start = moved.batches[int(k)], int(edges[k]) - moved.batches[int(k)].rows
        local, chosen = chosen[:where] - start, chosen[where:]
        pairs = torch.cartesian_prod(local, torch.arange(math.prod(axes), device="cpu"))  # a copy of the row for each of its numbers
        for some in pairs.split(min(size, max(batch.rows, COPIES))):
            x, y = rows_of(batch.content, some[:, 0].to(moved.device), batch.rows)
            part = moved.on([Batch((x, (y, some[:, 1].to(moved.device))), len(some))])
            part.criterion = one
            yield per_example_grads(part)


def looped_target_gradients(moved: Problem, rows: Rows, axes: tuple[int, ...]) -> Tensor:
    """All of them, (targets, p), one backward pass each: the slow version of `target_gradients`."""
    function = moved.criterion
    found = []
    for e in range(math.prod(axes)):
        if axes:
            moved.criterion = lambda outputs, y, e=e: function(outputs, y).flatten(1)[:, e]
        found.append(looped_grads(moved, rows))
    return torch.stack(found, 1).flatten(0, 1)


def gradient_blocks(problem: Problem, rows: Rows = None, memory: int = MEMORY_BUDGET) -> Iterator[Tensor]:
    """The rows' gradients in order, in blocks (some, p) of about ``memory`` bytes."""
    size = max(1, memory // (16 * problem.P))
    small = _in_small_batches(problem, size)
    if rows is not None:
        parts = list(given(rows).split(size))
    else:
        ends, start = [], 0
        for batch in small.batches:  # blocks end where batches do, so that none is passed through twice
            if ends and ends[-1] - start + batch.rows <= size:
                ends[-1] += batch.rows
            else:
                start = ends[-1] if ends else 0
                ends.append(start + batch.rows)
        parts = [part for whole in torch.arange(problem.n, device="cpu").tensor_split(ends[:-1]) for part in whole.split(size)]
    for part in parts:
        yield per_example_grads(small, rows=part)


def _in_small_batches(problem: Problem, size: int) -> Problem:
    """The same rows in batches of at most ``size``, for a block costs a pass through all of its batch; as they are where a row's loss
    depends on its batch: under dropout, where batches have weights of their own, or rows their share of a mean over predictions.
    """
    if problem._count is not None or all(batch.rows <= size for batch in problem.batches):
        return problem
    with problem.safe():
        for k, batch in enumerate(problem.batches):
            if problem.draws(k) or (batch.is_pair and shares_predictions(problem, k)):
                return problem
    return problem.on([b.part(slice(i, i + size)) for b in problem.batches for i in range(0, b.rows, size)])


def products_with_rows(problem: Problem, columns: Iterator[Tensor], memory: int = MEMORY_BUDGET) -> Tensor:
    """⟨∇ℓᵢ, x⟩ of every row and every column x of some blocks (p, m), (n, columns); neither all rows nor all columns are held at once."""
    kept = list(gradient_blocks(problem, None, memory)) if 16 * problem.n * problem.P <= memory else None
    parts = [torch.cat([g @ X for g in kept or gradient_blocks(problem, None, memory)]) for X in columns]
    return torch.cat(parts, 1)
