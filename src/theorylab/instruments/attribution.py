"""Influence functions: to first order, what each training row does to each prediction."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from theorylab.core.batches import Batch, as_batches, rows_of
from theorylab.core.instrument import instrument
from theorylab.core.operator import Operator
from theorylab.core.problem import Problem
from theorylab.core.source import Source
from theorylab.instruments.curvature import dense_ggn, dense_hessian, ggn, hessian
from theorylab.instruments.fisher import empirical_fisher, looped_fisher
from theorylab.instruments.kfac import dense_ekfac, dense_kfac, ekfac, kfac
from theorylab.instruments.loss_root import loss_root
from theorylab.instruments.products import MEMORY_BUDGET
from theorylab.instruments.refusals import couples_rows, hides_outputs, too_few_digits
from theorylab.instruments.rows import looped_grads, per_example_grads
from theorylab.instruments.rows_alone import shares_predictions
from theorylab.linalg.approximate import neumann_solve, truncated_solve
from theorylab.linalg.solve import solve

Curvature = Literal["ggn", "ekfac", "kfac", "fisher", "hessian", "identity"]
Solver = Literal["auto", "dense", "dual", "cg", "arnoldi", "lissa"]
Target = Callable[[Tensor, Tensor], Tensor]
Rows = Sequence[int] | Tensor | None

COPIES = 32
"""Of target rows that are evaluated at once, where each has several numbers that are attributed."""
SHARE = 0.1
"""Of the mean eigenvalue: the damping where none is given."""


def parse_targets(problem: Problem, targets: Any, target: Target | None) -> tuple[Problem, Rows]:
    """A problem whose rows are what is attributed, and which of them."""
    rows: Rows = None
    if targets is None:
        moved = problem.on(problem.batches)
    elif (isinstance(targets, Tensor) and not targets.is_floating_point()) or (
        isinstance(targets, list) and targets and all(isinstance(i, int) for i in targets)
    ):
        rows = torch.as_tensor(targets).cpu().long()
        if rows.ndim != 1 or len(rows) == 0 or int(rows.min()) < 0 or int(rows.max()) >= problem.n:
            raise ValueError(f"targets, as row numbers, must be a list within 0..{problem.n - 1}, got {targets!r}.")
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
    chosen = torch.arange(moved.n) if rows is None else torch.as_tensor(rows)
    size = max(1, memory // (16 * moved.P))
    edges = torch.tensor([batch.rows for batch in moved.batches]).cumsum(0)
    function = moved.criterion

    def one(outputs: Tensor, y: tuple[Any, Tensor]) -> Tensor:
        return function(outputs, y[0]).flatten(1).gather(1, y[1][:, None])[:, 0]

    owner = torch.bucketize(chosen, edges, right=True)
    for k, where in zip(*torch.unique_consecutive(owner, return_counts=True), strict=True):
        batch, start = moved.batches[int(k)], int(edges[k]) - moved.batches[int(k)].rows
        local, chosen = chosen[:where] - start, chosen[where:]
        pairs = torch.cartesian_prod(local, torch.arange(math.prod(axes)))  # a copy of the row for each of its numbers
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


def _along(outputs: Tensor, vectors: Tensor) -> Tensor:
    """⟨vector, outputs⟩ of each row."""
    return (vectors * outputs).flatten(1).sum(1) if outputs.ndim > 1 else vectors * outputs


def gradient_blocks(problem: Problem, rows: Rows = None, memory: int = MEMORY_BUDGET) -> Iterator[Tensor]:
    """The rows' gradients in order, in blocks (some, p) of about ``memory`` bytes."""
    size = max(1, memory // (16 * problem.P))
    small = _in_small_batches(problem, size)
    if rows is not None:
        parts = list(torch.as_tensor(rows).split(size))
    else:
        ends, start = [], 0
        for batch in small.batches:  # blocks end where batches do, so that none is passed through twice
            if ends and ends[-1] - start + batch.rows <= size:
                ends[-1] += batch.rows
            else:
                start = ends[-1] if ends else 0
                ends.append(start + batch.rows)
        parts = [part for whole in torch.arange(problem.n).tensor_split(ends[:-1]) for part in whole.split(size)]
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


def products_with_rows(problem: Problem, columns: Iterator[Tensor], memory: int = MEMORY_BUDGET) -> Tensor:
    """⟨∇ℓᵢ, x⟩ of every row and every column x of some blocks (p, m), (n, columns); neither all rows nor all columns are held at once."""
    kept = list(gradient_blocks(problem, None, memory)) if 16 * problem.n * problem.P <= memory else None
    parts = [torch.cat([g @ X for g in kept or gradient_blocks(problem, None, memory)]) for X in columns]
    return torch.cat(parts, 1)


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
            row numbers of the training set; None for all training rows.
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
