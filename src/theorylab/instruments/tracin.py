"""Attribution along training: what each row's gradient did to each target, step by step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from theorylab.core.instrument import instrument
from theorylab.core.problem import Problem
from theorylab.core.source import Source
from theorylab.instruments.attribution import Target, parse_targets
from theorylab.instruments.refusals import couples_rows, too_few_digits
from theorylab.instruments.rows import looped_grads, per_example_grads

BLOCK = 2**26
"""Entries of the training rows' gradients that are held at once."""


def _at(problem: Problem, checkpoints: Sequence[Mapping[str, Tensor]]) -> list[Problem]:
    """The problem at each checkpoint."""
    found = []
    for k, checkpoint in enumerate(checkpoints):
        missing = [name for name in problem.params if name not in checkpoint]
        if missing:
            raise ValueError(f"checkpoints[{k}] must hold every parameter of the problem, and lacks {missing[0]!r}: is it of this model?")
        try:
            found.append(problem.at({name: checkpoint[name] for name in problem.params}))
        except ValueError as error:
            raise ValueError(f"checkpoints[{k}] is of another model: {error}") from error
    return found or [problem]


def _rates(rates: float | Sequence[float], count: int) -> list[float]:
    each = [float(rates)] * count if isinstance(rates, int | float) else [float(rate) for rate in rates]
    if len(each) != count:
        raise ValueError(f"rates must be a number or one for each of the {count} checkpoints, got {len(each)}.")
    if not all(rate > 0 for rate in each):
        raise ValueError(f"rates must be positive, got {min(each)}.")
    return each


def _sum(
    problem: Problem,
    checkpoints: Sequence[Mapping[str, Tensor]],
    rates: float | Sequence[float],
    targets: Any,
    target: Target | None,
    gradients: Callable[..., Tensor],
) -> Tensor:
    total: Tensor | None = None
    points = _at(problem.to(dtype=torch.float64), checkpoints)
    for point, rate in zip(points, _rates(rates, len(points)), strict=True):
        moved, rows = parse_targets(point, targets, target)
        along = gradients(moved, rows=rows).T * (-rate / point.n)
        part = torch.cat([gradients(point, rows=some) @ along for some in torch.arange(point.n).split(max(1, BLOCK // point.P))])
        total = part if total is None else total + part
    assert total is not None
    return total.to(problem.dtype)


def looped_tracin(
    problem: Problem,
    checkpoints: Sequence[Mapping[str, Tensor]] = (),
    rates: float | Sequence[float] = 1.0,
    targets: Any = None,
    *,
    target: Target | None = None,
) -> Tensor:
    """The same sum with gradients row by row: the oracle of `tracin`."""
    return _sum(problem, checkpoints, rates, targets, target, looped_grads)


@instrument(
    oracle=looped_tracin,
    source=Source("Pruthi et al. 2020", "Section 3 (TracIn and its checkpoint version, TracInCP)", "arXiv:2002.08484"),
    refuses=(too_few_digits, couples_rows),
    family="attribution",
    row_axes=(0, 1),
)
def tracin(
    problem: Problem,
    checkpoints: Sequence[Mapping[str, Tensor]] = (),
    rates: float | Sequence[float] = 1.0,
    targets: Any = None,
    *,
    target: Target | None = None,
) -> Tensor:
    r"""What each training row did to each target along training, to first order in every step: (n, target).

    .. math:: \tau_{ij} = -\sum_t \frac{\eta_t}{n}\, \langle \nabla f_j(\theta_t), \nabla \ell_i(\theta_t) \rangle

    Summed over rows and over *all* steps of full-batch gradient descent, these are the total change of the target, up to terms of order η.
    With few checkpoints, each standing for many steps, they are not: most of the change happens early. In sign and scale they are as the
    scores of `influence`: positive where adding the row raises the target. The work is that of the rows' gradients at each checkpoint.

    Args:
        problem: The risk on the training rows; its own parameters do not matter where there are checkpoints.
        checkpoints: Parameters by name at some steps of training (state dicts will do); none for the problem's own.
        rates: The step size, or one for each checkpoint, times the number of steps for which it stands.
        targets: As of `influence`.
        target: As of `influence`.

    Raises:
        Inapplicable: rows that depend on each other, or half precision.
        ValueError: a checkpoint of another model, rates that are not positive or too few, targets outside the data.

    Example:
        >>> x, y = torch.eye(2), torch.tensor([[1.0], [1.0]])
        >>> line = Problem(torch.nn.Linear(2, 1, bias=False), torch.nn.functional.mse_loss, (x, y))
        >>> start = {"weight": torch.zeros(1, 2)}
        >>> tracin(line, [start], 0.125).tolist()  # each row lowers its own loss, from 1 by about a quarter
        [[-0.25, -0.0], [-0.0, -0.25]]

    Source: Pruthi et al. 2020, arXiv:2002.08484, Section 3.
    """
    return _sum(problem, checkpoints, rates, targets, target, per_example_grads)
