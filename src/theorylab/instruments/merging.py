"""Other batches for the same risk, where its mean over rows does not know the difference: one for speed, small ones for memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from theorylab.core.batches import Batch, alike, split
from theorylab.core.problem import Params, Problem, flat_gradient


def merged(problem: Problem) -> Problem:
    """The same problem with all batches in one, or the problem itself where that would be another function of the parameters.

    It is another where something couples the rows of a batch, as BatchNorm in training mode, dropout's masks, a contrastive loss, or a mean
    over the labels that are not ignored do. Found by comparing the losses and the gradients, to rounding. Call it within `Problem.safe`.
    """
    if len(problem.batches) == 1 or problem.train:
        return problem
    whole = joined(problem)
    if whole is None:
        return problem
    loss, gradient = _loss_and_gradient(whole, 0)  # first: what is too large for a kept graph is then found out soonest
    parts = [(w, *_loss_and_gradient(problem, k)) for k, w in enumerate(problem.weights)]
    tolerance = torch.finfo(problem.dtype).eps ** 0.75
    scale = sum(w * abs(part) for w, part, _ in parts), sum(w * float(g.norm()) for w, _, g in parts)
    same_loss = abs(loss - sum(w * part for w, part, _ in parts)) <= tolerance * scale[0]
    gap = gradient - torch.stack([w * g for w, _, g in parts]).sum(0)
    return whole if same_loss and float(gap.norm()) <= tolerance * scale[1] else problem


def parted(problem: Problem, rows: int) -> Problem:
    """The same problem in batches of at most ``rows`` rows, or the problem itself where that would be another function.

    Found by `same_risk`. Call it within `Problem.safe`.
    """
    if problem.train or all(b.rows <= rows for b in problem.batches):
        return problem
    small = problem.on(split(problem.batches, rows))
    return small if same_risk(small, problem) else problem


def joined(problem: Problem) -> Problem | None:
    """The same problem with all batches in one; None where their contents cannot be put one after the other."""
    if len(problem.batches) == 1:
        return problem
    try:
        content = _joined([b.content for b in problem.batches], [b.rows for b in problem.batches])
    except _Unlike:
        return None
    return problem.on([Batch(content, problem.n)])


def same_risk(one: Problem, other: Problem, digits: float = 0.75) -> bool:
    """Whether two problems that differ in their batches alone have the same risk, to that share of digits; call it within `Problem.safe`.

    Found by comparing the losses, which takes no graph. They are compared at the point and at one nearby: where a last layer is zero, all
    classes lose as much, and no weights of classes are seen.
    """
    tolerance = torch.finfo(other.dtype).eps ** digits
    for params in (other.params, _nearby(other)):
        with torch.no_grad():
            ours, theirs = (torch.stack([w * p.batch_loss(k, params) for k, w in enumerate(p.weights)]).double() for p in (one, other))
        if params is not other.params and not bool(torch.isfinite(theirs).all()):
            continue  # a loss that ends close by tells nothing there
        if not float((ours.sum() - theirs.sum()).abs()) <= tolerance * float(theirs.abs().sum()):
            return False
    return True


def in_parts(batch: Batch) -> list[Batch]:
    """Parts of 1, 4, 16, ... rows: so few of any batch, and no pattern of rows hides that a loss is not the mean of theirs."""
    parts, start, size = [], 0, 1
    while start < batch.rows:
        parts.append(batch.part(slice(start, start + size)))
        start, size = start + size, 4 * size
    return parts


def weighing(problem: Problem) -> Problem:
    """The same problem without the batches that weigh nothing: a mean over none of its predictions is no number."""
    return problem.on([b for b, w in zip(problem.batches, problem.weights, strict=True) if w > 0])


def _nearby(problem: Problem) -> Params:
    """Parameters a tenth of their root mean square away, in a direction that is always the same."""
    generator = torch.Generator().manual_seed(0)
    size = float(problem.flatten(problem.params).double().square().mean().sqrt()) or 1.0
    steps = {k: torch.randn(p.shape, generator=generator, dtype=torch.float64, device="cpu").to(p) for k, p in problem.params.items()}
    return {k: p + 0.1 * size * steps[k] for k, p in problem.params.items()}


def _loss_and_gradient(problem: Problem, k: int) -> tuple[float, Tensor]:
    leaves = problem.leaves()
    loss = problem.batch_loss(k, leaves)
    if not loss.requires_grad:
        return float(loss), torch.zeros(problem.P, dtype=problem.dtype, device=problem.device)
    grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return float(loss.detach()), flat_gradient(grads, leaves.values())


class _Unlike(Exception):
    """Contents that cannot be put one after the other."""


def _joined(contents: list[Any], rows: list[int]) -> Any:
    """The contents' tensors one after the other along the rows, and what has no rows where it is the same in all.

    Raises:
        _Unlike: where it is not, or they differ in anything else.
    """
    first = contents[0]
    if isinstance(first, Tensor):
        if all(isinstance(t, Tensor) and (t.shape[1:], t.dtype) == (first.shape[1:], first.dtype) for t in contents):
            if all(t.ndim and t.shape[0] == n for t, n in zip(contents, rows, strict=True)):
                return torch.cat(contents)
            if all(torch.equal(t, first) for t in contents):
                return first
    elif isinstance(first, Mapping):
        if all(isinstance(c, Mapping) and c.keys() == first.keys() for c in contents):
            return alike(first, {k: _joined([c[k] for c in contents], rows) for k in first})
    elif isinstance(first, list | tuple):
        if all(type(c) is type(first) and len(c) == len(first) for c in contents):
            return alike(first, [_joined(list(each), rows) for each in zip(*contents, strict=True)])
    elif all(type(c) is type(first) and (c is first or (isinstance(c, str | int | float) and c == first)) for c in contents):
        return first
    raise _Unlike
