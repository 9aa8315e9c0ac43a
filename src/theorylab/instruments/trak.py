"""TRAK: attribution by regression on randomly projected gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from theorylab.core.instrument import instrument
from theorylab.core.problem import Problem
from theorylab.core.source import Source
from theorylab.instruments.attribution import Target, members_of, parse_targets
from theorylab.instruments.output_hessian import known_loss
from theorylab.instruments.refusals import couples_rows, hides_outputs, too_few_digits
from theorylab.instruments.rows import looped_grads, per_example_grads

BLOCK = 2**22
"""Entries of the projection that are drawn at a time."""


def margin(outputs: Tensor, targets: Tensor) -> Tensor:
    r"""Log odds of the right class, :math:`\log\frac{p}{1-p}`, one a row: what TRAK attributes."""
    right = torch.arange(outputs.shape[1], device=outputs.device) == targets[:, None]
    return (outputs * right).sum(1) - outputs.masked_fill(right, -torch.inf).logsumexp(1)


def _no_classes(problem: Problem) -> str | None:
    """TRAK attributes the log odds of the right class, which only a classifier has."""
    loss, y = known_loss(problem), problem.batches[0].content[1]
    plain = {"reduction", "weight", "ignore_index", "label_smoothing"}
    classes = isinstance(y, Tensor) and y.ndim == 1 and not y.is_floating_point()
    options = {} if loss is None else loss.options
    weighed = options.get("weight") is not None or bool(options.get("label_smoothing"))
    if classes and loss is not None and loss.name == "cross_entropy" and set(options) <= plain and not weighed:
        return None
    return "TRAK needs a classifier: a plain cross_entropy with one integer class a row. Use influence, which takes any loss."


def _projection(p: int, k: int, seed: int) -> Iterator[Tensor]:
    """Independent normal entries of variance 1/k, (p, k), some rows at a time, on the CPU in float64: the same whatever the device."""
    generator, step = torch.Generator().manual_seed(seed), max(1, BLOCK // k)
    for i in range(0, p, step):
        yield torch.randn(min(step, p - i), k, generator=generator, dtype=torch.float64) / k**0.5


def project(gradients: Tensor, k: int, seed: int) -> Tensor:
    """Rows (m, p) times the projection, without holding all of it: (m, k)."""
    total, start = gradients.new_zeros(len(gradients), k), 0
    for block in _projection(gradients.shape[1], k, seed):
        total += gradients[:, start : start + len(block)] @ block.to(gradients)
        start += len(block)
    return total


def _misses(problem: Problem) -> Tensor:
    """1 − the probability of the right class, (n,)."""
    found = []
    with problem.safe(), torch.no_grad():
        for j, batch in enumerate(problem.batches):
            found.append(torch.sigmoid(-margin(problem.outputs(j), batch.content[1])))
    return torch.cat(found)


def _dimension(problem: Problem, k: int | None, ridge: float) -> int:
    chosen = min(problem.P, max(1, problem.n // 4)) if k is None else k
    if not 1 <= chosen <= problem.P:
        raise ValueError(f"k must lie in 1..{problem.P}, the number of parameters, got {k}.")
    if not ridge >= 0:
        raise ValueError(f"ridge must be at least 0, got {ridge}.")
    if chosen >= problem.n and ridge == 0:
        raise ValueError(
            f"k must be below the {problem.n} rows without a ridge, got {chosen}: features then outnumber rows and fit noise. "
            "Take k of about a quarter of the rows, or a positive ridge."
        )
    return chosen


def dense_trak(
    problem: Problem,
    targets: Any = None,
    *,
    k: int | None = None,
    ridge: float = 0.0,
    target: Target | None = None,
    ensemble: Sequence[Problem] = (),
    seed: int = 0,
) -> Tensor:
    """The whole projection, gradients row by row, and an explicit inverse: the oracle of `trak`."""
    kernels, misses = [], []
    for m, member in enumerate(members_of(problem, ensemble)):
        size, own = _dimension(member, k, ridge), parse_targets(member, None, margin)[0]
        moved, rows = parse_targets(member, targets, target or margin)
        P = torch.cat(list(_projection(member.P, size, seed + m))).to(member.params[next(iter(member.params))])
        Phi, phi = looped_grads(own) @ P, looped_grads(moved, rows) @ P
        kernels.append(Phi @ torch.linalg.inv(Phi.T @ Phi + ridge * torch.eye(size).to(Phi)) @ phi.T)
        misses.append(_misses(member))
    return torch.stack(misses).mean(0)[:, None] * torch.stack(kernels).mean(0)


@instrument(
    oracle=dense_trak,
    source=Source("Park et al. 2023", "Section 3, the TRAK estimator (projection, one-step estimate, ensembling)", "arXiv:2303.14186"),
    refuses=(too_few_digits, hides_outputs, couples_rows, _no_classes),
    family="attribution",
    row_axes=(0, 1),
)
def trak(
    problem: Problem,
    targets: Any = None,
    *,
    k: int | None = None,
    ridge: float = 0.0,
    target: Target | None = None,
    ensemble: Sequence[Problem] = (),
    seed: int = 0,
) -> Tensor:
    r"""TRAK scores of every training row for every target, (n, target), of a classifier.

    .. math:: \tau_{ij} = \phi_j^\top (\Phi^\top\Phi + \alpha I)^{-1} \phi_i\, (1 - p_i), \qquad \phi = P^\top \nabla \log\tfrac{p}{1-p}

    with P a random projection to k dimensions and :math:`p_i` the probability of the right class of row i. Positive where adding the row
    raises the target, by default the log odds of the right class. Projected to all dimensions P drops out; fewer blur what is alike, more
    than there are rows fit noise. Entries of P are normal and drawn on the CPU, so that a seed gives one P on every device.

    Args:
        problem: The risk on the training rows, at the trained parameters.
        targets: As of `influence`.
        k: Dimensions. By default a quarter of the rows.
        ridge: α, in units of squared projected gradients summed over rows.
        target: What is attributed of each target, (outputs, y) → one number a row; by default the log odds.
        ensemble: The same rows at other parameters: kernels and misses 1 − p are each averaged, every member with a P of its own.
        seed: Of P.

    Raises:
        Inapplicable: no classifier with a plain cross-entropy, rows that depend on each other, half precision.
        ValueError: k at least the number of rows without a ridge, or above that of parameters; gradients that do not span k dimensions.

    Example:
        >>> data = torch.tensor([[-1.0], [1.0], [2.0]]), torch.tensor([0, 1, 1])
        >>> line = Problem(torch.nn.Linear(1, 2, bias=False), torch.nn.functional.cross_entropy, data)
        >>> scores = trak(line.at({"weight": torch.zeros(2, 1)}), k=1)
        >>> (12 * scores).round().tolist()  # features 1, 1 and 2, whose squares sum to 6, and misses of a half
        [[1.0, 1.0, 2.0], [1.0, 1.0, 2.0], [2.0, 2.0, 4.0]]

    Source: Park et al. 2023, arXiv:2303.14186, Section 3.
    """
    total, weight = None, None
    members = members_of(problem, ensemble)
    for m, member in enumerate(members):
        size, work = _dimension(member, k, ridge), member.to(dtype=torch.float64)
        work.loss()  # refuses one that is not finite
        own, (moved, rows) = parse_targets(work, None, margin)[0], parse_targets(work, targets, target or margin)
        Phi, phi = _features(own, None, size, seed + m), _features(moved, rows, size, seed + m)
        # by QR and not by the Gram matrix, which squares the condition number of the projection
        basis, triangle = torch.linalg.qr(torch.cat([Phi, ridge**0.5 * torch.eye(size).to(Phi)]))
        pivots = triangle.diagonal().abs()
        if float(pivots.min()) <= 1e-10 * float(pivots.max()):
            raise ValueError(f"k must be smaller, or ridge positive: the gradients of the rows do not span {size} dimensions.")
        kernel = basis[: len(Phi)] @ torch.linalg.solve_triangular(triangle.T, phi.T, upper=False)
        total = kernel if total is None else total + kernel
        weight = _misses(work) if weight is None else weight + _misses(work)
    assert total is not None
    assert weight is not None
    return (weight[:, None] * total / len(members) ** 2).to(problem.dtype)


def _features(problem: Problem, rows: Any, k: int, seed: int) -> Tensor:
    """Projected gradients, a block of rows at a time."""
    chosen = torch.arange(problem.n) if rows is None else rows
    return torch.cat([project(per_example_grads(problem, rows=part), k, seed) for part in chosen.split(max(1, 2**26 // problem.P))])
