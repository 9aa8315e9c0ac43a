"""TRAK: attribution by the gradients of an output, randomly projected, through a linear model of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from theorylab.core.instrument import Inapplicable, instrument
from theorylab.core.problem import Problem
from theorylab.core.seeds import derived_seed
from theorylab.core.source import Source
from theorylab.instruments.attributed import Target, gradient_blocks, looped_target_gradients, parse_targets, target_axes, target_gradients
from theorylab.instruments.attribution import members_of
from theorylab.instruments.membership import logit_confidence
from theorylab.instruments.products import MEMORY_BUDGET
from theorylab.instruments.refusals import couples_rows, hides_outputs, too_few_digits
from theorylab.instruments.rows import looped_grads
from theorylab.linalg.projection import Signs

MOST = 512
"""Entries of the projected gradients where nobody says how many."""


def margin(outputs: Tensor, targets: Tensor) -> Tensor:
    r"""The logit of the right class's probability, :math:`\ln\frac{p}{1-p}`, of logits (n, k) and classes (n,): (n,).

    The cross-entropy is a function of it alone, :math:`\ln(1 + e^{-f})`, and it is nearly linear in the parameters where probabilities
    saturate. The same number as `theorylab.instruments.membership.logit_confidence`, by which attacks score.

    Example:
        >>> margin(torch.tensor([[2.0, 0.0, -torch.inf]]), torch.tensor([0])).tolist()
        [2.0]

    Source: Park et al. 2023, arXiv:2303.14186, Section 3 (the output function of multi-class classification).
    """
    return logit_confidence(outputs, targets)


def pull(problem: Problem, output: Target | None) -> Tensor:
    r"""How fast each row's loss falls with its output, :math:`-d\ell_i/df_i`, (n,); minus one where the output is the loss.

    Raises:
        ValueError: the loss is not a function of the output alone.
    """
    if output is None:
        return torch.full((problem.n,), -1.0, dtype=problem.dtype, device=problem.device)
    found = []
    for k, batch in enumerate(problem.batches):
        with problem.safe():
            with torch.no_grad():
                outputs = problem.outputs(k)
            y, leaf = batch.content[1], outputs.detach().requires_grad_()
            (slope,) = torch.autograd.grad(batch.rows * problem.criterion(leaf, problem._given(y)).mean(), leaf)
            value = output(leaf, y)
            if value.shape != (batch.rows,):
                raise ValueError(f"output must return one number a row, ({batch.rows},), got shape {tuple(value.shape)}.")
            (along,) = torch.autograd.grad(value.sum(), leaf)
        slope, along = slope.reshape(batch.rows, -1), along.reshape(batch.rows, -1)
        square = along.square().sum(1)
        weight = (slope * along).sum(1) / square.where(square > 0, torch.ones_like(square))
        rest = (slope - weight[:, None] * along).norm(dim=1)
        if bool((rest > 1e-6 * slope.norm(dim=1) + 1e-12 * slope.norm()).any()):
            raise ValueError(
                "output must be a number of which each row's loss is a function, as `margin` is for the cross-entropy, or None for the "
                "loss itself: along other directions of the model's outputs this loss changes too."
            )
        found.append(-weight)
    return torch.cat(found)


Size = int | Literal["all"] | None


def _size(problem: Problem, k: Size, ridge: float) -> int | None:
    """Entries of the features, None where gradients are not projected; after a look at the arguments."""
    if not ridge >= 0:
        raise ValueError(f"ridge must be at least 0, got {ridge}.")
    if isinstance(k, str) and k != "all":
        raise ValueError(f'k must be a number, "all" or None, got {k!r}.')
    size = problem.P if k == "all" else max(1, min(MOST, problem.n // 4, problem.P)) if k is None else k
    if size < 1:
        raise ValueError(f"k must be at least 1, got {k}.")
    if ridge == 0 and size >= problem.n:
        raise ValueError(
            f"k must be below the number of rows, {problem.n}, or ridge positive, got {size} features: a linear model with as many "
            "features as rows fits everything, and attributes each row to itself alone."
        )
    if ridge == 0 and size > problem.P:
        raise ValueError(f"k must be at most the number of parameters, {problem.P}, or ridge positive, got {size}.")
    return None if k == "all" else size


def _members(problem: Problem, ensemble: Sequence[Problem], output: Target | None) -> list[Problem]:
    if output is not None and (reason := hides_outputs(problem)):
        raise Inapplicable(f"output does not apply: {reason}")
    return members_of(problem, ensemble)


def formed_trak(
    problem: Problem,
    targets: Any = None,
    *,
    k: Size = None,
    output: Target | None = None,
    target: Target | None = None,
    ridge: float = 0.0,
    ensemble: Sequence[Problem] = (),
    seed: int = 0,
) -> Tensor:
    """Gradients row by row, the projection formed, and normal equations: the oracle of `trak`."""
    size, kernels, weights = _size(problem, k, ridge), [], []
    for member, each in enumerate(_members(problem, ensemble, output)):
        (training, _), (moved, rows) = parse_targets(each, None, output), parse_targets(each, targets, target or output)
        axes = target_axes(moved, target or output)
        P = torch.eye(each.P, dtype=each.dtype, device=each.device)
        P = P if size is None else Signs(each.P, size, seed=derived_seed(seed, "member", member))(P)
        phi, psi = looped_grads(training) @ P, looped_target_gradients(moved, rows, axes) @ P
        second = phi.T @ phi / each.n + ridge * torch.eye(P.shape[1], dtype=phi.dtype, device=phi.device)
        kernels.append((phi @ torch.linalg.lstsq(second, psi.T).solution / each.n).view(each.n, -1, *axes))
        weights.append(pull(each, output))
    return torch.stack(weights).mean(0).view(-1, *[1] * (kernels[0].ndim - 1)) * torch.stack(kernels).mean(0)


@instrument(
    oracle=formed_trak,
    source=Source("Park et al. 2023", "Section 3 (linearization, random projection, one Newton step, ensembling)", "arXiv:2303.14186"),
    refuses=(too_few_digits, couples_rows),
    family="attribution",
    row_axes=(0, 1),
)
def trak(
    problem: Problem,
    targets: Any = None,
    *,
    k: Size = None,
    output: Target | None = None,
    target: Target | None = None,
    ridge: float = 0.0,
    ensemble: Sequence[Problem] = (),
    seed: int = 0,
    memory: int = MEMORY_BUDGET,
) -> Tensor:
    r"""Scores of every training row for every target by the linear model of projected gradients, (n, target).

    .. math:: \tau_{ij} = -\frac{d\ell_i}{df_i}\, \frac1n\, \psi_j^\top \Bigl(\frac1n \sum_l \phi_l \phi_l^\top + \rho I\Bigr)^{-1} \phi_i,
        \qquad \phi_i = P^\top \nabla f(x_i, y_i)

    f is a number of which the loss of a row is a function: for cross-entropy the `margin`, as in the source, or the loss itself. A
    score is positive where adding the row raises the target; with the loss, helpful rows are negative. P holds random signs that depend
    on the seed alone, not on the device; each member of an ensemble has its own. Kernels and slopes of the loss are averaged over the
    members apart, then multiplied.

    Without a projection, and with the loss as the output, this is the influence of the empirical Fisher matrix with damping ρ. An
    invertible P changes nothing; one with fewer columns leaves part of every gradient out. The cost is O(n·p·k) beside the gradients.

    Args:
        problem: The risk on the training rows, at the trained parameters.
        targets: Rows (x, y) or batches of such; or row numbers of the training set, or a mask of it; None for all training rows.
        k: Entries of the projected gradients. None for a quarter of the number of rows, at most 512 or the number of parameters;
            "all" for no projection.
        output: f, a function (outputs, y) → one number a row. By default the loss.
        target: What is attributed of each target, where that is another function of (outputs, y) than the output: one number a row (m,), or
            several (m, ...), whose scores are then (n, target, ...).
        ridge: ρ, at least 0, in units of the second moment of the gradients.
        ensemble: The same training rows at other parameters.
        seed: Of the projections.
        memory: Bytes that blocks of rows' and of targets' gradients may take.

    Raises:
        Inapplicable: rows that depend on each other, or half precision; an output, where the loss hides the outputs.
        ValueError: as many features as rows or more than parameters without a ridge, features that are linearly dependent on the rows, an
            output of which the loss is no function, or an ensemble of other rows.

    Example:
        >>> x, y = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 1.0]]), torch.tensor([[1.0], [1.0], [0.0]])
        >>> line = Problem(torch.nn.Linear(2, 1, bias=False), torch.nn.functional.mse_loss, (x, y))
        >>> line = line.at({"weight": torch.zeros(1, 2)})
        >>> scores = trak(line, (x[1:2], y[1:2]), k="all", output=lambda o, y: o[:, 0])
        >>> (scores[:, 0] + 0).tolist()  # half for each row of input (0, 1), times how far its loss pulls
        [0.0, 1.0, 0.0]

    Source: Park et al. 2023, arXiv:2303.14186, Section 3, there without a ridge.
    """
    size = _size(problem, k, ridge)
    kernel: Tensor | None = None
    weight: Tensor | None = None
    members = _members(problem, ensemble, output)
    for member, each in enumerate(members):
        work = each.to(dtype=torch.float64)
        signs = None if size is None else Signs(work.P, size, seed=derived_seed(seed, "member", member), memory=memory)

        def features(blocks: Iterator[Tensor], signs: Signs | None = signs) -> Tensor:
            return torch.cat([g if signs is None else signs(g) for g in blocks])

        slopes = pull(work, output)  # before any gradient, for it refuses an output
        phi = features(gradient_blocks(parse_targets(work, None, output)[0], None, memory))
        moved, rows = parse_targets(work, targets, target or output)
        axes = target_axes(moved, target or output)
        psi = phi if targets is None and target is None else features(target_gradients(moved, rows, axes, memory))
        # triangular factor of the second moment by QR: normal equations would square the condition number
        tall = torch.cat([phi, (work.n * ridge) ** 0.5 * torch.eye(phi.shape[1], dtype=phi.dtype, device=phi.device)]) if ridge else phi
        factor = torch.linalg.qr(tall, mode="r").R
        sizes = factor.diagonal().abs()
        if float(sizes.min()) <= 1e-10 * float(sizes.max()):
            raise ValueError("ridge must be positive: the rows' projected gradients do not span their space.")
        left, right = (torch.linalg.solve_triangular(factor, t, upper=True, left=False) for t in (phi, psi))
        found = (left @ right.T).view(work.n, -1, *axes)
        kernel = found if kernel is None else kernel + found
        weight = slopes if weight is None else weight + slopes
    assert kernel is not None
    assert weight is not None
    return (weight.view(-1, *[1] * (kernel.ndim - 1)) * kernel / len(members) ** 2).to(problem.dtype)
