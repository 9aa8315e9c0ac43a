"""Gradients of rows that no layer's structure gives: every row evaluated alone, by vmap where that works, or through its batch."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from theorylab.core.batches import Batch, map_tensors, rows_of, tensors_of
from theorylab.core.instrument import Inapplicable
from theorylab.core.problem import Params, Problem, finite, flat_gradient
from theorylab.instruments.output_hessian import known_loss
from theorylab.instruments.refusals import with_labels


def close(a: Tensor, b: Tensor) -> bool:
    """Equal up to the rounding of other kernels: to half of the dtype's digits."""
    if a.shape != b.shape or not (a.is_floating_point() or a.is_complex()):
        return torch.equal(a, b)
    return bool((a - b).abs().max() <= torch.finfo(a.dtype).eps ** 0.5 * b.abs().max()) if a.numel() else True


Alone = Callable[[Problem, Batch, list[str], Tensor], tuple[Tensor, Tensor]]
"""(problem, batch, names, indices of m rows) → losses (m,) and gradients in the named parameters (m, p) of rows evaluated one by one."""


def looped(problem: Problem, batch: Batch, names: list[str], rows: Tensor) -> tuple[Tensor, Tensor]:
    """One row after the other, each a batch of its own."""
    losses, gradients = [], []
    for i in rows.tolist():
        leaves = problem.leaves()
        with torch.set_grad_enabled(bool(names)):
            loss = problem.on([batch.part(slice(i, i + 1))]).batch_loss(0, leaves)
        losses.append(loss.detach())
        wanted = [leaves[name] for name in names]
        grads = torch.autograd.grad(loss, wanted, allow_unused=True) if wanted and loss.requires_grad else [None] * len(wanted)
        gradients.append(flat_gradient(grads, wanted) if wanted else loss.new_zeros(0))
    return torch.stack(losses), torch.stack(gradients)


def _vmapped(problem: Problem, batch: Batch, names: list[str], rows: Tensor) -> tuple[Tensor, Tensor]:
    def by_row(t: Tensor) -> bool:
        return t.ndim > 0 and len(t) == batch.rows

    def loss(params: Params, *row: Tensor) -> Tensor:
        parts = iter(row)
        content = map_tensors(lambda t: next(parts)[None] if by_row(t) else t, batch.content)
        return problem.on([Batch(content, 1)]).batch_loss(0, {**problem.params, **params})

    data = [t[rows] for t in tensors_of(batch.content) if by_row(t)]
    chosen = {name: problem.params[name] for name in names}
    axes = (None, *[0] * len(data))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # vmap says where it loops itself
        if not names:
            with torch.no_grad():
                losses = torch.func.vmap(loss, axes, randomness="error")(chosen, *data)
            return losses, losses.new_zeros(len(rows), 0)
        grads, losses = torch.func.vmap(torch.func.grad_and_value(loss), axes, randomness="error")(chosen, *data)
    return losses, torch.cat([grads[name].reshape(len(rows), -1) for name in names], dim=1)


def through_batch(problem: Problem, k: int, names: list[str], rows: Tensor) -> Tensor:
    """What each row's outputs contribute to n times the risk, through the graph of the whole batch: slow, but right under dropout too."""
    leaves = problem.leaves()
    outputs = problem.outputs(k, leaves)
    parts = [t for t in tensors_of(outputs) if t.requires_grad]
    slopes: Sequence[Tensor | None] = []
    if parts:
        risk = problem.n * problem.weights[k] * finite(problem.loss_of(k, outputs))
        slopes = torch.autograd.grad(risk, parts, retain_graph=True, allow_unused=True) if risk.requires_grad else [None] * len(parts)
    wanted = [leaves[name] for name in names]
    gradients = []
    for i in rows.tolist():
        own = [torch.zeros_like(t) for t in parts]
        for cotangent, slope in zip(own, slopes, strict=True):
            if slope is not None:
                cotangent[i] = slope[i]
        grads = torch.autograd.grad(parts, wanted, own, retain_graph=True, allow_unused=True) if parts else [None] * len(wanted)
        gradients.append(flat_gradient(grads, wanted))
    return torch.stack(gradients)


def shares_predictions(problem: Problem, k: int) -> bool:
    """Whether the loss is a mean over predictions of which rows hold different numbers, as tokens; each row then has its share of it."""
    loss, y = known_loss(problem), problem.batches[k].content[1]
    if loss is None or loss.name != "cross_entropy" or loss.options.get("weight") is not None or y.is_floating_point():
        return False
    ignored = y == loss.options.get("ignore_index", -100)
    if problem.reduction != "mean" or not bool(ignored.any()):
        return False
    each = ignored.reshape(len(y), -1).sum(1)
    return bool((each != each[0]).any())


def is_mean_of_rows(problem: Problem, k: int, outputs: Any) -> bool:
    """Whether the loss of batch ``k`` is known to be the mean of its rows' losses, so that nothing has to be compared."""
    loss, y = known_loss(problem), problem.batches[k].content[1]
    if loss is None or loss.options.get("weight") is not None:
        return False
    return loss.name == "cross_entropy" or (isinstance(outputs, Tensor) and y.shape == outputs.shape)


@contextmanager
def _needing_others() -> Iterator[None]:
    """What a row that is evaluated alone raises means that it needs the others, as a node of a graph needs its neighbours."""
    try:
        yield
    except Exception as error:  # of the model or the loss, which took the whole batch
        raise Inapplicable(
            f"rows depend on each other: the first cannot be evaluated alone ({type(error).__name__}: {error}). Give a model that treats "
            "every row by itself."
        ) from error


def _way_alone(problem: Problem, k: int, names: list[str]) -> Alone:
    """By vmap where it works and agrees with the loop on the first row; refuses a batch whose loss is not its rows' mean."""
    batch, every = problem.batches[k], torch.arange(problem.batches[k].rows, device="cpu")
    alone: Alone = looped
    with _needing_others():
        first = looped(problem, batch, names, every[:1])
    try:
        losses = _vmapped(problem, batch, [], every[:1])[0]  # without derivatives some operations have no batching rule that have one with
        if close(losses, first[0]) and all(map(close, _vmapped(problem, batch, names, every[:1]), first)):
            alone = _vmapped
    except (RuntimeError, NotImplementedError, ValueError, TypeError):
        pass  # what vmap cannot transform, the loop can
    whole = finite(problem.batch_loss(k)).detach()
    apart = alone(problem, batch, [], every)[0].mean()
    if not close(apart, whole):
        raise Inapplicable(
            f"rows depend on each other: the batch has the loss {whole:.6g}, its rows one by one {apart:.6g} on average. "
            + (with_labels(problem) or "Give a model that treats every row by itself, and a loss that is the mean over rows.")
        )
    return alone


def refuse_coupled_outputs(problem: Problem, k: int) -> None:
    """Compare the outputs of the first row alone with those in its batch; with dropout a row alone draws other numbers, so it is left off.

    Raises:
        Inapplicable: they differ.
    """
    still, batch = copy.copy(problem), problem.batches[k]
    with problem.safe():
        still.train = problem.train and not problem.draws(k)
    with still.safe(), torch.no_grad():
        if still.draws(k):
            return
        whole = still.outputs(k)
        with _needing_others():
            alone = still.on([batch.part(slice(1))]).outputs(0)
    among = tensors_of(rows_of(whole, slice(1), batch.rows))
    # A model that squeezes its outputs drops the axis of a single row.
    same = (close(a.reshape(b.shape) if a.numel() == b.numel() else a, b) for a, b in zip(tensors_of(alone), among, strict=False))
    if not all(same):
        raise Inapplicable("rows depend on each other: the first has other outputs alone. Give a model that treats every row by itself.")


def others_of(problem: Problem, k: int, names: list[str]) -> Callable[[Tensor], Tensor]:
    """Indices of m rows of batch ``k`` → gradients (m, p) in parameters that its layers do not explain.

    Raises:
        Inapplicable: rows depend on each other, or their random draws are hidden.
    """
    batch = problem.batches[k]
    random = problem.draws(k)
    if batch.is_pair and (random or shares_predictions(problem, k)):
        refuse_coupled_outputs(problem, k)
        return lambda rows: through_batch(problem, k, names, rows)
    if random:
        raise Inapplicable(
            "the model draws random numbers (dropout), and a loss of the form loss(model, batch) hides which of them a row got. "
            "Use train=False, or give batches as pairs (x, y)."
        )
    alone, scale = _way_alone(problem, k, names), problem.n * problem.weights[k] / batch.rows
    return lambda rows: scale * alone(problem, batch, names, rows)[1]
