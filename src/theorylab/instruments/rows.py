"""What every row of the data contributes: the gradient of its own loss, and that gradient's norm."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor

from theorylab.core.arguments import row_numbers
from theorylab.core.batches import Batch, tensors_of
from theorylab.core.instrument import Inapplicable, instrument
from theorylab.core.loss_form import unread
from theorylab.core.problem import Problem, finite
from theorylab.core.source import Source
from theorylab.instruments.factors import Dense, Factor, Lookup, Outer
from theorylab.instruments.merging import in_parts
from theorylab.instruments.operations import Recorder
from theorylab.instruments.refusals import couples_rows
from theorylab.instruments.row_trust import entries_of, trusted
from theorylab.instruments.rows_alone import close, is_mean_of_rows, looped, others_of, shares_predictions, through_batch
from theorylab.instruments.uses import Use, matrix_shape

BUDGET = 2**26
"""Numbers that temporaries may hold at once; where more rows are asked for than fit, they are taken in turn."""

PIECE = 2**16
"""Squares that are summed at once."""

Rows = slice | Tensor
"""Rows of a batch: a slice, which copies nothing, where they follow each other, else their numbers."""


@dataclass(frozen=True)
class _Explained:
    """What structure tells of one batch.

    Attributes:
        uses: Uses of parameters, with the gradients of their outputs, (n, 1, ...).
        rest: Parameters whose gradients do not follow from these.
    """

    uses: list[tuple[Use, Tensor]]
    rest: list[str]

    def gradients(self, rows: Rows) -> Mapping[str, Sequence[Factor]]:
        """By explained parameter, the factors whose sum are the gradients of some rows."""
        found: dict[str, list[Factor]] = {}
        for use, g in self.uses:
            (name,) = use.names
            if name not in self.rest:
                found.setdefault(name, []).append(use.factor(g, rows))
        return found

    def most(self, params: Mapping[str, Tensor]) -> int:
        """No fewer than `work`, and found at once."""
        factors = sum((use.entries + g.numel()) // g.shape[0] for use, g in self.uses)
        return factors + sum(p.numel() for p in params.values())

    def work(self, params: Mapping[str, Tensor], *, formed: bool = True) -> int:
        """Numbers a row that its factors, and the gradient of one parameter, hold at once; not ``formed``, of those that norms form."""
        known = {name: p.numel() for name, p in params.items()}
        if not formed:
            cheap = [name for name, factors in self.gradients(slice(1)).items() if _has_cheap_products(factors, params[name])]
            known.update(dict.fromkeys(cheap, 0))
        held = [(use.entries + g.numel()) // len(g) + sum(known[name] for name in use.names) for use, g in self.uses]
        return max([sum(params[name].numel() for name in self.rest), *held], default=1)


def _refuse_joint_loss(problem: Problem, k: int, outputs: Any, value: Tensor) -> None:
    """A mean over rows is the weighted mean over parts of the batch."""
    batch, parts = problem.batches[k], []
    if not tensors_of(outputs):
        raise Inapplicable(f"the outputs show no tensor of rows. {unread(outputs)}")
    for part in in_parts(Batch((outputs, problem._given(batch.content[1])), batch.rows)):
        try:
            value_there = problem.criterion(*part.content)
        except Exception as error:  # of the loss, which took the whole batch
            raise Inapplicable(
                f"the loss of the batch is no mean over rows that can be evaluated on some of them ({type(error).__name__}: {error}). Give "
                "a loss that treats every row by itself, of outputs in a tensor, tuple or dict: choose them by read=."
            ) from error
        parts.append(value_there.expand(part.rows))
    apart = torch.cat(parts)
    if not close(apart if value.ndim else apart.mean(), value):
        raise Inapplicable(
            f"the loss of a batch is not the mean of the losses of its rows ({value.mean():.6g} as a whole, {apart.mean():.6g} in parts), "
            'as with class weights, ignored labels or contrasts between rows. Give a loss of each row, e.g. by reduction="none".'
        )


def _explained(problem: Problem, k: int) -> _Explained:
    """Run batch ``k`` once, forward and back to the outputs of the operations on its parameters."""
    batch = problem.batches[k]
    if not batch.is_pair:
        return _Explained([], list(problem.params))
    leaves = problem.leaves()
    with Recorder(leaves, batch.rows, united=False) as recorder:
        outputs = problem.outputs(k, leaves)
    value = problem.criterion(outputs, problem._given(batch.content[1]))
    total = problem.n * problem.weights[k] * finite(value.mean() if value.ndim else value)
    if not shares_predictions(problem, k) and not is_mean_of_rows(problem, k, outputs):
        with torch.no_grad():
            _refuse_joint_loss(problem, k, outputs, value)
    if not total.requires_grad:
        return _Explained([], [])
    kept = trusted(problem, k, recorder.uses, outputs)
    count = entries_of(total, leaves, kept)
    grads = torch.autograd.grad(total, [use.edge for use in kept], allow_unused=True) if kept else []
    found = [(use, g.reshape(batch.rows, 1, *use.row_shape)) for use, g in zip(kept, grads, strict=True) if g is not None]
    explained = Counter(name for use, _ in found for name in use.names)
    # A parameter that enters the graph elsewhere too, as in a weight decay or an unknown operation, is not explained by its uses.
    return _Explained(found, [name for name in problem.params if explained[name] != count[name]])


def _chunks(problem: Problem, found: _Explained, rows: Rows, chunk: int | None, *, formed: bool = True) -> Sequence[Rows]:
    if chunk is None and _count(rows) * found.most(problem.params) <= BUDGET:
        return (rows,)
    size = chunk or max(1, BUDGET // max(1, found.work(problem.params, formed=formed)))
    if isinstance(rows, Tensor):
        return rows.split(size)
    return [slice(low, min(low + size, rows.stop)) for low in range(rows.start, rows.stop, size)]


def _formed(factors: Sequence[Factor], parameter: Tensor, into: Tensor) -> None:
    """Write the sum of the uses of a parameter, formed, into (m, entries)."""
    if not factors:
        into.zero_()
    for i, factor in enumerate(factors):
        factor.add_to(into.view(len(into), 1, *matrix_shape(parameter)), i == 0)


def _norm(vectors: Tensor) -> Tensor:
    """Norms (m,) of m vectors, in pieces: a sum of 10⁸ squares in float32 is wrong in the second digit."""
    vectors = vectors.flatten(1)
    if vectors.shape[1] <= PIECE:
        return torch.linalg.vector_norm(vectors, dim=1)
    return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(piece, dim=1) for piece in vectors.split(PIECE, dim=1)]), dim=0)


class _Norms:
    """Norms of the rows of tensors that stay alive meanwhile, each found once: the slopes of a layer serve its weight and its bias."""

    def __init__(self) -> None:
        self.known: dict[tuple[int, int], Tensor] = {}

    def __call__(self, vectors: Tensor) -> Tensor:
        """Of the m vectors, (m,)."""
        if not vectors.is_contiguous():
            return _norm(vectors)
        place = vectors.data_ptr(), vectors.numel()
        if place not in self.known:
            self.known[place] = _norm(vectors)
        return self.known[place]


def _has_cheap_products(factors: Sequence[Factor], parameter: Tensor) -> TypeGuard[Sequence[Outer | Lookup]]:
    """Whether the norm by products of all pairs of positions takes fewer operations than to form the gradient."""
    inner = [f for f in factors if isinstance(f, Outer | Lookup)]
    if len(inner) != len(factors) or len({f.groups for f in inner}) != 1:
        return False
    o, d = matrix_shape(parameter)
    o //= inner[0].groups
    return sum(f.left.shape[2] for f in inner) * (o + d) <= o * d


def _norms(factors: Sequence[Factor], parameter: Tensor, norm: _Norms) -> Tensor:
    """Norms (m,) of the sum of the uses of a parameter."""
    only = factors[0] if len(factors) == 1 else None
    if isinstance(only, Dense):
        return norm(only.jacobian)
    if isinstance(only, Outer) and only.left.shape[2] == only.groups == 1:
        return norm(only.left) * norm(only.right)
    if _has_cheap_products(factors, parameter):
        return torch.stack([a.inner(b)[:, 0] for a in factors for b in factors]).sum(0).clamp(min=0).sqrt()
    total = parameter.new_empty(factors[0].n, parameter.numel())
    _formed(factors, parameter, total)
    return _norm(total)


def _checked(problem: Problem, rows: Sequence[int] | Tensor | None, chunk: int | None) -> Tensor | None:
    """Row numbers; None for all of them, in order."""
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}.")
    if rows is None:
        return None
    return row_numbers(rows, problem.n, "rows")


def _by_batch(problem: Problem, chosen: Tensor | None) -> Iterator[tuple[int, Rows, _Explained]]:
    """Batches that hold chosen rows (sorted; None for all): their number, the rows within them, and what their uses of parameters tell."""
    start = 0
    for k, batch in enumerate(problem.batches):
        local = slice(0, batch.rows) if chosen is None else _joined(chosen[(chosen >= start) & (chosen < start + batch.rows)] - start)
        start += batch.rows
        if _count(local):
            yield k, local, _explained(problem, k)


def _joined(rows: Tensor) -> Rows:
    """The same rows as a slice, where they follow each other."""
    whole = slice(int(rows[0]), int(rows[-1]) + 1) if len(rows) else slice(0, 0)
    return whole if torch.equal(rows, _numbers(whole)) else rows


def _numbers(rows: Rows) -> Tensor:
    return rows if isinstance(rows, Tensor) else torch.arange(rows.start, rows.stop, device="cpu")


def _count(rows: Rows) -> int:
    return rows.shape[0] if isinstance(rows, Tensor) else rows.stop - rows.start


@dataclass(frozen=True)
class RowsPart:
    """Gradients of some rows, not formed where structure tells them.

    Attributes:
        factors: By explained parameter, the factors whose sum are the rows' gradients in it; nothing for one that does not matter.
        rest: Parameters that are not explained, in the order of the columns of ``others``.
        others: The rows' gradients in those, (rows, entries); None where there are none.
        n: How many rows.
    """

    factors: Mapping[str, Sequence[Factor]]
    rest: tuple[str, ...]
    others: Tensor | None
    n: int

    def norms(self, params: Mapping[str, Tensor]) -> Tensor:
        """Norms of the rows' gradients, (rows,)."""
        norm = _Norms()
        known = [_norms(factors, params[name], norm) for name, factors in self.factors.items()]
        if self.others is not None:
            known.append(_norm(self.others))
        some = next(iter(params.values()))
        # `vector_norm` along the first axis takes ten times as long.
        return torch.stack(known).square_().sum(0).sqrt_() if known else some.new_zeros(self.n)

    def add_weighted(self, weights: Tensor, total: Mapping[str, Tensor], first: bool) -> None:
        """Add their sum with ``weights`` (rows,) to ``total``, by parameter, or write it there where these are the ``first`` rows.

        From the factors, one product of matrices each.
        """
        for name, factors in self.factors.items():
            for i, factor in enumerate(factors):
                factor.pull_to(weights[:, None], total[name].view(matrix_shape(total[name])), first and i == 0)
        if self.others is not None:
            pieces = (weights @ self.others).split([total[name].numel() for name in self.rest])
            for name, piece in zip(self.rest, pieces, strict=True):
                (total[name].copy_ if first else total[name].add_)(piece.view_as(total[name]))
        if first:
            for name in total.keys() - self.factors.keys() - set(self.rest):
                total[name].zero_()


def row_parts(problem: Problem, chunk: int | None = None) -> Iterator[RowsPart]:
    """All rows in order, as many at a time as fit; iterate within `Problem.safe`."""
    for k, local, found in _by_batch(problem, _checked(problem, None, chunk)):
        others = others_of(problem, k, found.rest) if found.rest else None
        for part in _chunks(problem, found, local, chunk, formed=False):
            unexplained = None if others is None else others(_numbers(part))
            yield RowsPart(found.gradients(part), tuple(found.rest), unexplained, _count(part))


def looped_grads(problem: Problem, rows: Sequence[int] | Tensor | None = None, chunk: int | None = None) -> Tensor:
    """One backward pass a row, through the graph of its batch where outputs are known, else of the row alone: the oracle."""
    chosen, names, parts = _checked(problem, rows, chunk), list(problem.params), []
    with problem.safe():
        for k, batch in enumerate(problem.batches):
            every = torch.arange(batch.rows, device="cpu")
            parts.append(through_batch(problem, k, names, every) if batch.is_pair else looped(problem, batch, names, every)[1])
    gradients = torch.cat(parts)
    return gradients if chosen is None else gradients[chosen]


def looped_grad_norms(problem: Problem) -> Tensor:
    """Norms of the formed gradients: the oracle of `per_example_grad_norms`."""
    return looped_grads(problem).norm(dim=1)


GOODFELLOW = Source("Goodfellow 2015", "Section 4 (per-example gradients from layer inputs and backpropagated signals)", "arXiv:1510.01799")


@instrument(oracle=looped_grads, source=GOODFELLOW, refuses=couples_rows, row_axes=(0,))
def per_example_grads(problem: Problem, *, rows: Sequence[int] | Tensor | None = None, chunk: int | None = None) -> Tensor:
    r"""The gradients of the rows' own losses, :math:`\nabla \ell_i(\theta)`, one a row: (rows, p). Their mean is the gradient.

    One pass forward and back to the outputs of the operations on parameters, in whatever module, gives those of linear maps, convolutions,
    embeddings, normalizations, scales and shifts: for a matrix :math:`\sum_t g_t a_t^\top`, from the inputs a of the operation and the
    gradients g of its outputs. Parameters that are used in any other way are
    differentiated row by row, by vmap where the model allows it. Which parameters those are is read from the graph of the loss. Where
    the loss is a mean over predictions (tokens, of which some are masked), a row's loss is n times its share of that mean.

    Args:
        problem: The risk and the point; its loss is the mean of a loss of each row.
        rows: Which rows, counted through the batches in order, or a mask (n,); all of them by default. Batches that hold none are skipped.
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
    order = None if chosen is None else chosen.argsort(stable=True)
    ordered = None if chosen is None else chosen[order]
    result = torch.empty(problem.n if chosen is None else len(chosen), problem.P, dtype=problem.dtype, device=problem.device)
    sizes = [p.numel() for p in problem.params.values()]
    filled = 0
    with problem.safe():
        for k, local, found in _by_batch(problem, ordered):
            others = others_of(problem, k, found.rest) if found.rest else None
            for part in _chunks(problem, found, local, chunk):
                block = result[filled : filled + _count(part)].split(sizes, dim=1)
                filled += _count(part)
                views = dict(zip(problem.params, block, strict=True))
                gradients = found.gradients(part)
                for name, p in problem.params.items():
                    if name not in found.rest:
                        _formed(gradients.get(name, []), p, views[name])
                if others is not None:
                    pieces = others(_numbers(part)).split([views[name].shape[1] for name in found.rest], dim=1)
                    for name, piece in zip(found.rest, pieces, strict=True):
                        views[name].copy_(piece)
    return result if order is None else result[order.argsort()]


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
    with problem.safe():
        return torch.cat([part.norms(problem.params) for part in row_parts(problem, chunk)])
