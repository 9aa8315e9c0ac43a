"""TracIn: attribution by tracing, step by step, what each row's gradient did to a target in training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from theorylab.core.instrument import instrument
from theorylab.core.problem import Problem
from theorylab.core.source import Source
from theorylab.instruments.attributed import (
    Target,
    looped_target_gradients,
    parse_targets,
    products_with_rows,
    target_axes,
    target_gradients,
)
from theorylab.instruments.products import MEMORY_BUDGET
from theorylab.instruments.refusals import couples_rows, too_few_digits
from theorylab.instruments.rows import looped_grads

Checkpoint = Mapping[str, Tensor] | Problem


def checkpoint(problem: Problem, k: int, given: Checkpoint) -> Problem:
    """The problem at a checkpoint: parameters by name, a model's whole state, or a problem on the same rows.

    Raises:
        TypeError: something else.
        ValueError: names or shapes that are not those of the problem's model, numbers that are not finite, another number of rows, or other
            values of what is not selected.
    """
    what = f"checkpoints[{k}]"
    if isinstance(given, Problem):
        if {name: p.shape for name, p in given.params.items()} != {name: p.shape for name, p in problem.params.items()}:
            raise ValueError(f"{what} is of another model: its parameters are {', '.join(given.params)}, not {', '.join(problem.params)}.")
        if given.n != problem.n:
            raise ValueError(f"{what} must have the {problem.n} rows of the problem, got {given.n}.")
        return given
    if not isinstance(given, Mapping):
        raise TypeError(f"{what} must map parameter names to tensors, or be a problem, got {type(given).__name__}.")
    own = problem._tensors(None)
    for name in [*own, *given]:
        if name not in given and name in problem.params:
            raise ValueError(f"{what} is of another model, or not whole: it has no parameter {name!r}.")
        if name not in own:
            raise ValueError(f"{what} is of another model: it holds {name!r}, which is not among {', '.join(list(own)[:20])}.")
        if name in given and given[name].shape != own[name].shape:
            raise ValueError(f"{what} is of another model: {name!r} has shape {tuple(given[name].shape)}, not {tuple(own[name].shape)}.")
        if name in given and given[name].is_floating_point() and not bool(given[name].isfinite().all()):
            raise ValueError(f"{what}: {name!r} is not finite; training had diverged.")
        if name in given and name not in problem.params and not torch.equal(given[name].to(own[name]), own[name]):
            raise ValueError(
                f"{what} has another {name!r}, which is no selected parameter, so that it cannot be moved there: give Problem(model, ...) "
                "of that checkpoint instead."
            )
    return problem.at({name: given[name] for name in problem.params})


def _visits(problem: Problem, checkpoints: Sequence[Checkpoint] | None, rates: float | Sequence[float]) -> list[tuple[Problem, float]]:
    if checkpoints is None:
        checkpoints = [problem]
    if isinstance(checkpoints, Mapping | Problem) or len(checkpoints) == 0:
        raise ValueError("checkpoints must be a list of at least one checkpoint.")
    given = [float(rates)] * len(checkpoints) if isinstance(rates, int | float) else [float(r) for r in rates]
    if len(given) != len(checkpoints):
        raise ValueError(f"rates must be a number, or one for each of the {len(checkpoints)} checkpoints, got {len(given)}.")
    if not all(math.isfinite(r) and r >= 0 for r in given):
        raise ValueError(f"rates must be finite and at least 0, got {given}.")
    return [(checkpoint(problem, k, c), r) for k, (c, r) in enumerate(zip(checkpoints, given, strict=True))]


def looped_tracin(
    problem: Problem,
    checkpoints: Sequence[Checkpoint] | None = None,
    rates: float | Sequence[float] = 1.0,
    targets: Any = None,
    *,
    target: Target | None = None,
) -> Tensor:
    """Every product of every pair of gradients by itself: the oracle of `tracin`."""
    total = 0.0
    for at, rate in _visits(problem, checkpoints, rates):
        moved, rows = parse_targets(at, targets, target)
        axes = target_axes(moved, target)
        T = looped_target_gradients(moved, rows, axes)
        products = torch.stack([torch.stack([rate * (g * h).sum() for h in T]) for g in looped_grads(at)])
        total = total - products.view(problem.n, -1, *axes)
    assert isinstance(total, Tensor)
    return total / problem.n


@instrument(
    oracle=looped_tracin,
    source=Source("Pruthi et al. 2020", "Section 3 (first-order approximation, checkpoints)", "arXiv:2002.08484"),
    refuses=(too_few_digits, couples_rows),
    family="attribution",
    row_axes=(0, 1),
)
def tracin(
    problem: Problem,
    checkpoints: Sequence[Checkpoint] | None = None,
    rates: float | Sequence[float] = 1.0,
    targets: Any = None,
    *,
    target: Target | None = None,
    memory: int = MEMORY_BUDGET,
) -> Tensor:
    r"""What each training row did to each target in the course of gradient descent, to first order in the step: (n, target).

    .. math:: \tau_{ij} = -\frac1n \sum_t \eta_t\, \langle \nabla \ell_i(\theta_t), \nabla f_j(\theta_t)\rangle

    A step of gradient descent on the mean loss moves the target by :math:`-\eta\langle\nabla L, \nabla f\rangle + O(\eta^2)`, of which row
    i has the part above. So with every step as a checkpoint the scores of a target sum, over rows, to how far training moved it, but for
    an error of relative size η. Scores are positive where the row raised the target; with the loss as the target,
    helpful rows are negative (the source has the opposite sign, and no 1/n).

    Where checkpoints are fewer than steps, each stands for the steps around it: its rate is the sum of theirs, and the sum of products is
    a quadrature of a function that falls steeply in early training. A checkpoint every so many steps, from the first one on,
    overstates the movement several times.

    Args:
        problem: The risk on the training rows; its parameters are not used where checkpoints are given.
        checkpoints: Points :math:`\theta_t` from which steps were taken: parameters by name, a model's ``state_dict()``, or problems on
            the same rows, as for models with BatchNorm, whose statistics move. None for the problem's own parameters.
        rates: η, of all checkpoints or one for each.
        targets: Rows (x, y) or batches of such; or row numbers of the training set, or a mask of it; None for all training rows.
        target: f, a function (outputs, y) → one number a row (m,), or several (m, ...), whose scores are then (n, target, ...). By default
            the loss.
        memory: Bytes that blocks of rows' and of targets' gradients may take.

    Raises:
        Inapplicable: rows that depend on each other, or half precision.
        ValueError: a checkpoint of another model, or with other values of what is not selected; rates of another number, or negative.

    Example:
        >>> x, y = torch.eye(2), torch.tensor([[1.0], [3.0]])
        >>> line = Problem(torch.nn.Linear(2, 1, bias=False), torch.nn.functional.mse_loss, (x, y))
        >>> start = {"weight": torch.zeros(1, 2)}
        >>> tracin(line, [start], rates=0.5).tolist()  # a step of 0.5: each row lowers its own loss alone
        [[-1.0, -0.0], [-0.0, -9.0]]

    Source: Pruthi et al. 2020, arXiv:2002.08484, Section 3.
    """
    total: Tensor | None = None
    for at, rate in _visits(problem, checkpoints, rates):
        work = at.to(dtype=torch.float64)
        moved, rows = parse_targets(work, targets, target)
        axes = target_axes(moved, target)
        T = (block.T for block in target_gradients(moved, rows, axes, memory))
        scores = products_with_rows(work, T, memory).view(work.n, -1, *axes) * (-rate / work.n)
        total = scores if total is None else total + scores
    assert total is not None
    return total.to(problem.dtype)
