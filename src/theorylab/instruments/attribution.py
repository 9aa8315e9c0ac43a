"""Influence functions: to first order, what each training row does to each prediction."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from theorylab.core.batches import Batch
from theorylab.core.instrument import instrument
from theorylab.core.operator import Operator
from theorylab.core.problem import Problem
from theorylab.core.source import Source
from theorylab.instruments.attributed import (
    Target,
    gradient_blocks,
    looped_target_gradients,
    parse_targets,
    products_with_rows,
    target_axes,
    target_gradients,
)
from theorylab.instruments.curvature import dense_ggn, dense_hessian, ggn, hessian
from theorylab.instruments.fisher import empirical_fisher, looped_fisher
from theorylab.instruments.kfac import dense_ekfac, dense_kfac, ekfac, kfac
from theorylab.instruments.loss_root import loss_root
from theorylab.instruments.products import MEMORY_BUDGET
from theorylab.instruments.refusals import couples_rows, hides_outputs, too_few_digits
from theorylab.instruments.rows import looped_grads
from theorylab.linalg.approximate import neumann_solve, truncated_solve
from theorylab.linalg.solve import solve

Curvature = Literal["ggn", "ekfac", "kfac", "fisher", "hessian", "identity"]
Solver = Literal["auto", "dense", "dual", "cg", "arnoldi", "lissa"]

SHARE = 0.1
"""Of the mean eigenvalue: the damping where none is given."""


def _along(outputs: Tensor, vectors: Tensor) -> Tensor:
    """⟨vector, outputs⟩ of each row."""
    return (vectors * outputs).flatten(1).sum(1) if outputs.ndim > 1 else vectors * outputs


def root_rows(problem: Problem, memory: int = MEMORY_BUDGET) -> Iterator[Tensor]:
    """Blocks (some, p) of a root R of the generalized Gauss-Newton matrix, RᵀR = G: a row for each output of each row of the data."""
    for k, batch in enumerate(problem.batches):
        with problem.safe():
            with torch.no_grad():
                outputs = problem.outputs(k)
            vectors = [s.detach() for s in loss_root(problem, k, outputs)]
        for s in vectors:
            part = problem.on([Batch((batch.content[0], s), batch.rows)])
            part.criterion, part.seed, part._count = _along, problem.seed + k, None  # the same dropout as within the whole
            yield from gradient_blocks(part, None, memory)


def weight_decay(optimizer: torch.optim.Optimizer) -> float:
    """The coupled weight decay λ of an optimizer: the same λ that is added to the gradient as λθ.

    Raises:
        ValueError: parameter groups of different decay, or a decoupled one, which is no part of any objective.
    """
    decays = {float(group.get("weight_decay", 0.0)) for group in optimizer.param_groups}
    if len(decays) > 1:
        raise ValueError(f"damping: the optimizer's groups have different weight decays {sorted(decays)}; give a number.")
    (decay,) = decays
    if decay and (isinstance(optimizer, torch.optim.AdamW) or any(g.get("decoupled_weight_decay") for g in optimizer.param_groups)):
        raise ValueError("damping: a decoupled weight decay (AdamW) is not the λ of an objective; give a number.")
    return decay


def _outputs_a_row(problem: Problem) -> int:
    with problem.safe(), torch.no_grad():
        outputs = problem.outputs(0)
    if not isinstance(outputs, Tensor):
        raise TypeError(f"the model's output must be one tensor, got {type(outputs).__name__}: return the logits alone.")
    return outputs[0].numel()


def _choose(problem: Problem, curvature: Curvature, solver: Solver, memory: int) -> Solver:
    p = problem.P
    rank = problem.n * (_outputs_a_row(problem) if curvature == "ggn" else 1)
    if solver != "auto":
        if solver == "dual" and curvature not in ("ggn", "fisher"):
            raise ValueError(f'solver="dual" needs a curvature that is a sum over rows, "ggn" or "fisher", got {curvature!r}.')
        return solver
    if curvature in ("ggn", "fisher") and rank < p and 8 * rank * (rank + p) <= memory:
        return "dual"
    return "dense" if 16 * p * p <= memory else "cg"


def _damped(damping: float | None, trace: float, size: int) -> float:
    if damping is None:
        if trace < 0:
            raise ValueError(f"damping must be given: the mean eigenvalue, {trace / size:.3g}, is negative, so that no share of it is one.")
        return SHARE * trace / size
    if not damping >= 0:
        raise ValueError(f"damping must be at least 0, got {damping}.")
    return float(damping)


def _factor(C: Tensor, damping: float, name: str) -> Tensor:
    """Cholesky factor of C + λI."""
    if name == "hessian":
        least = float(torch.linalg.eigvalsh(C)[0])
        if not least + damping > 0:
            raise ValueError(
                f"the Hessian + {damping:g}·I must be positive definite, its least eigenvalue is {least + damping:.3g}: give a damping "
                f'above {-least:.3g}, or take curvature="ggn", which has no negative eigenvalue.'
            )
        if least < -1e-8 * float(C.abs().max()):
            warnings.warn(
                f"the Hessian is indefinite (eigenvalue {least:.3g}): this is no minimum, and damping {damping:g} decides the scores.",
                stacklevel=4,
            )
    damped = C.clone()
    damped.diagonal().add_(damping)
    factor, info = torch.linalg.cholesky_ex(damped)
    pivots = factor.diagonal().square()
    if bool(info) or float(pivots.min()) <= 1e-14 * float(damped.diagonal().max()):
        raise ValueError(f"damping must be larger: the {name} matrix + {damping:g}·I is singular to the precision of float64.")
    return factor


def _inverse(
    problem: Problem,
    curvature: Curvature,
    damping: float | None,
    solver: Solver,
    *,
    tol: float,
    memory: int,
    rank: int,
    depth: int,
    seed: int,
) -> Callable[[Tensor], Tensor]:
    """Columns b (p, m) → (C + λI)⁻¹ b; what does not depend on b is computed once."""
    p = problem.P
    if curvature in ("identity", "kfac", "ekfac") and solver not in ("auto", "dense"):
        raise ValueError(f'solver must be "auto" for {curvature}, whose inverse is known in closed form, got {solver!r}.')
    if curvature == "identity":
        scale = 1 + _damped(damping or 0.0, 0.0, 1)
        return lambda b: b / scale
    if curvature in ("kfac", "ekfac"):
        K = kfac(problem) if curvature == "kfac" else ekfac(problem)
        inverse = K.inverse(_damped(damping, K.trace(), p))
        return lambda b: inverse @ b
    if solver in ("cg", "arnoldi", "lissa"):
        if curvature == "hessian" and damping is None:
            raise ValueError(
                f'damping must be given with solver="{solver}", which does not know the trace of the Hessian: pass the weight decay.'
            )
        blocks = root_rows(problem, memory) if curvature == "ggn" else _gradient_rows(problem, memory)
        trace = sum(float(R.square().sum()) for R in blocks) if damping is None else 0.0
        operator, value = {"ggn": ggn, "fisher": empirical_fisher, "hessian": hessian}[curvature], _damped(damping, trace, p)
        if solver == "lissa":
            weights = problem.weights
            parts = [len(weights) * w * operator(problem.on([batch])) for w, batch in zip(weights, problem.batches, strict=True)]
            return lambda b: neumann_solve(parts, b, depth, value, seed=seed)
        C = operator(problem)
        if solver == "arnoldi":
            return lambda b: truncated_solve(C, b, min(rank, p), value, seed=seed)

        def by_conjugate_gradients(b: Tensor) -> Tensor:
            found = solve(C, b, value, tol=tol)
            if not found.converged:
                warnings.warn(f"conjugate gradients reached a relative residual of {found.residual:.1e}, not {tol:.1e}.", stacklevel=4)
            return found.x

        return by_conjugate_gradients
    if curvature == "hessian":
        C = hessian(problem).to_dense()
        C = (C + C.T) / 2
        factor = _factor(C, _damped(damping, float(C.trace()), p), "hessian")
        return lambda b: torch.cholesky_solve(b, factor)
    blocks = root_rows(problem, memory) if curvature == "ggn" else _gradient_rows(problem, memory)
    if solver == "dense":
        C = torch.zeros(p, p, dtype=problem.dtype, device=problem.device)
        for R in blocks:
            C.addmm_(R.T, R)
        factor = _factor(C, _damped(damping, float(C.trace()), p), curvature)
        return lambda b: torch.cholesky_solve(b, factor)
    parts = list(blocks)
    # a loss that is linear in the outputs has no root
    R = torch.cat(parts) if parts else torch.zeros(1, p, dtype=problem.dtype, device=problem.device)
    gram = R @ R.T
    value = _damped(damping, float(gram.trace()), p)
    if value == 0:
        raise ValueError(f'damping must be positive with solver="dual": the matrix has rank at most {len(R)} of {p}.')
    factor = _factor(gram, value, curvature)
    return lambda b: (b - R.T @ torch.cholesky_solve(R @ b, factor)) / value


def _gradient_rows(problem: Problem, memory: int) -> Iterator[Tensor]:
    """Blocks of a root of the second moment of the rows' gradients."""
    return (block / problem.n**0.5 for block in gradient_blocks(problem, None, memory))


def members_of(problem: Problem, ensemble: Sequence[Problem]) -> list[Problem]:
    """The problem and the rest of the ensemble, which must have the same rows."""
    for k, other in enumerate(ensemble):
        if not isinstance(other, Problem):
            raise TypeError(
                f"ensemble must hold problems, such as problem.at(params) or population.problem(k), got {type(other).__name__}."
            )
        if other.n != problem.n:
            raise ValueError(f"ensemble[{k}] must have the {problem.n} rows of the problem, got {other.n}.")
    return [problem, *ensemble]


_DENSE: dict[str, Callable[[Problem], Operator]] = {
    "ggn": dense_ggn,
    "ekfac": dense_ekfac,
    "kfac": dense_kfac,
    "fisher": looped_fisher,
    "hessian": dense_hessian,
}


def dense_influence(
    problem: Problem,
    targets: Any = None,
    *,
    target: Target | None = None,
    curvature: Curvature = "ggn",
    damping: float | None = None,
    ensemble: Sequence[Problem] = (),
) -> Tensor:
    """The dense curvature and one solve with it, gradients row by row: the oracle of `influence`."""
    every = []
    for member in members_of(problem, ensemble):
        moved, rows = parse_targets(member, targets, target)
        p = member.P
        C = _DENSE[curvature](member).to_dense() if curvature != "identity" else torch.eye(p, dtype=member.dtype, device=member.device)
        value = damping if damping is not None else 0.0 if curvature == "identity" else SHARE * float(C.trace()) / p
        C = C + value * torch.eye(p, dtype=C.dtype, device=C.device)
        axes = target_axes(moved, target)
        T = looped_target_gradients(moved, rows, axes)
        every.append((-looped_grads(member) @ torch.linalg.lstsq(C, T.T).solution / member.n).view(member.n, -1, *axes))
    return torch.stack(every).mean(0)


@instrument(
    oracle=dense_influence,
    source=Source("Koh and Liang 2017", "Section 2.1; with the Gauss-Newton matrix Bae et al. 2022, arXiv:2209.05364", "arXiv:1703.04730"),
    refuses=(too_few_digits, hides_outputs, couples_rows),
    row_axes=(0, 1),
)
def influence(
    problem: Problem,
    targets: Any = None,
    *,
    target: Target | None = None,
    curvature: Curvature = "ggn",
    damping: float | torch.optim.Optimizer | None = None,
    solver: Solver = "auto",
    ensemble: Sequence[Problem] = (),
    tol: float = 1e-8,
    rank: int = 32,
    depth: int = 1000,
    seed: int = 0,
    memory: int = MEMORY_BUDGET,
) -> Tensor:
    r"""Influence of every training row on every target, (n, target): how the target moves per unit of the row's weight.

    .. math:: \tau_{ij} = -\frac1n\, \nabla f_j^\top (C + \lambda I)^{-1} \nabla \ell_i

    With :math:`L(\theta) = \frac1n \sum_i w_i \ell_i(\theta) + \frac\lambda2\|\theta\|^2`, and C the curvature of its first part, this is
    the derivative of the target :math:`f_j` in :math:`w_i` at the optimum. It is positive where *adding* the row raises the target;
    counting the row twice changes the target by about τ, and leaving it out by about −τ. By default the target is the loss, so that
    helpful rows have negative scores.

    The Gauss-Newton matrix has no negative eigenvalue, and its influence is the derivative of a proximal problem at any parameters, not
    only at a minimum. All is computed in float64, and by `evaluate_attribution` compared with retraining.

    Args:
        problem: The risk on the training rows, at the trained parameters. The loss is without the weight decay.
        targets: Rows (x, y) or batches of such that are attributed, or a problem on them, as `Problem.from_hf` makes of other sequences; or
            row numbers of the training set, or a mask of it; None for all training rows.
        target: What is attributed of each: a function (outputs, y) → one number a row (m,), or several (m, ...). By default the loss.
        curvature: C. "ggn" the generalized Gauss-Newton matrix, "kfac" and "ekfac" its Kronecker-factored approximations with the exact
            expectation over classes, "fisher" the second moment of the rows' gradients, "hessian" the Hessian, refused where C + λI is
            not positive definite, "identity" none: products of gradients.
        damping: λ, in units of C: the weight decay of training, as a number, or the optimizer that trained, from which it is read. Where
            it is not given, a tenth of C's mean eigenvalue.
        solver: "dense" forms C, "dual" a matrix of one row for each output of each row (Woodbury), "cg" neither, by conjugate gradients for
            all targets side by side. "auto" takes the smaller of the first two that fits into ``memory``, else the third. Two are
            approximations in use, to compare with: "arnoldi" keeps the eigenvectors of largest magnitude and drops the rest, "lissa" is
            a random Neumann series over the problem's batches.
        ensemble: The same training rows at other parameters: scores are averaged over these problems and this one.
        tol: Relative residual of "cg".
        rank: Eigenvectors of "arnoldi".
        depth: Terms of "lissa", several times the largest eigenvalue over λ.
        seed: Of "arnoldi"'s start and of "lissa"'s draws.
        memory: Bytes that matrices, and blocks of rows' and of targets' gradients, may take.

    Returns:
        Scores (n, target), or (n, target, ...) of a target of several numbers a row.

    Raises:
        Inapplicable: a loss that hides the outputs, rows that depend on each other, half precision; for "ggn" a loss that is not convex in
            the outputs; for "kfac" and "ekfac" layers other than Linear and Conv.
        ValueError: targets outside the data, a damping that leaves C + λI singular or indefinite (it names the eigenvalue), "cg" for
            the Hessian without damping, an ensemble of other rows, or a target of several numbers a row whose number changes from batch
            to batch, or under dropout.

    Example:
        >>> x, y = torch.eye(2), torch.tensor([[1.0], [1.0]])
        >>> line = Problem(torch.nn.Linear(2, 1, bias=False), torch.nn.functional.mse_loss, (x, y))
        >>> line = line.at({"weight": torch.zeros(1, 2)})
        >>> influence(line, damping=1.0).tolist()  # a row lowers its own loss, and does nothing for the other
        [[-1.0, -0.0], [-0.0, -1.0]]

    Source: Koh and Liang 2017, arXiv:1703.04730, Section 2.1; Gauss-Newton: Bae et al. 2022, arXiv:2209.05364; EK-FAC and the default
    damping: Grosse et al. 2023, arXiv:2308.03296 (a tenth of the mean eigenvalue).
    """
    if curvature not in ("identity", *_DENSE):
        raise ValueError(f"curvature must be one of {', '.join([*_DENSE, 'identity'])}, got {curvature!r}.")
    if solver not in ("auto", "dense", "dual", "cg", "arnoldi", "lissa"):
        raise ValueError(f'solver must be "auto", "dense", "dual", "cg", "arnoldi" or "lissa", got {solver!r}.')
    if rank < 1:
        raise ValueError(f"rank must be at least 1, got {rank}.")
    damping = weight_decay(damping) if isinstance(damping, torch.optim.Optimizer) else damping
    options = {"tol": tol, "memory": memory, "rank": rank, "depth": depth, "seed": seed}
    total: Tensor | None = None
    members = members_of(problem, ensemble)
    for member in members:
        work = member.to(dtype=torch.float64)
        moved, rows = parse_targets(work, targets, target)
        axes = target_axes(moved, target)
        chosen = solver if curvature in ("kfac", "ekfac", "identity") else _choose(work, curvature, solver, memory)
        inverse = _inverse(work, curvature, damping, chosen, **options)
        X = (inverse(T.T.contiguous()) for T in target_gradients(moved, rows, axes, memory))
        scores = products_with_rows(work, X, memory).view(work.n, -1, *axes) / -work.n
        total = scores if total is None else total + scores
    assert total is not None
    return (total / len(members)).to(problem.dtype)
