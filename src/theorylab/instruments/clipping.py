"""The sum of the rows' gradients, each clipped to a length: what a private step adds its noise to, without forming any of them."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from theorylab.core.instrument import Inapplicable, instrument
from theorylab.core.problem import Problem
from theorylab.core.source import Source
from theorylab.instruments.refusals import couples_rows
from theorylab.instruments.row_trust import refuse_coupled_rows
from theorylab.instruments.rows import RowsPart, looped_grads, row_parts
from theorylab.instruments.rows_alone import others_of, shares_predictions

log = logging.getLogger(__name__)
Method = Literal["auto", "ghost", "vmap", "loop"]
AT_ONCE = 2**26
"""Numbers that the gradients of rows may hold at once where they are formed."""


@dataclass(frozen=True)
class ClippedSum:
    """What `clipped_sum` found.

    Attributes:
        total: The sum of the clipped gradients, flat (p,); not divided by the rows.
        shrunk: The share of the rows whose gradient was longer than the clipping norm.
        formed: Parameters whose gradients were formed row by row, because no known operation explains them.
    """

    total: Tensor
    shrunk: float
    formed: tuple[str, ...]


def weighs_rows_together(problem: Problem) -> str | None:
    """A mean over predictions of which rows hold different numbers weighs a row by what the others hold: clipping it bounds nothing."""
    uneven = any(abs(w * problem.n / batch.rows - 1) > 1e-9 for w, batch in zip(problem.weights, problem.batches, strict=True))
    if uneven or any(batch.is_pair and shares_predictions(problem, k) for k, batch in enumerate(problem.batches)):
        return (
            "the loss is a mean over predictions of which rows hold different numbers, so that a row more changes the gradients of all "
            "others. Give one loss a row: the sum or the mean over the row's own predictions."
        )
    return None


def clip_factors(norms: Tensor, clip: float) -> Tensor:
    """min(1, C / norm), one a row; 1 for a norm of 0.

    Raises:
        ValueError: a norm is not finite, so that no factor makes the row short.
    """
    if not bool(norms.isfinite().all()):
        raise ValueError(
            f"gradients of rows must be finite to be clipped, got {float(norms[~norms.isfinite()][0])}: lower the step size or "
            "the scale of the data, or compute in float64."
        )
    return (clip / norms.clamp(min=torch.finfo(norms.dtype).tiny)).clamp(max=1.0)


def _formed_parts(problem: Problem, chunk: int | None) -> Iterator[RowsPart]:
    """All rows in order, every gradient formed by vmap where the model allows it."""
    names = tuple(problem.params)
    for k, batch in enumerate(problem.batches):
        others = others_of(problem, k, list(names))
        for part in torch.arange(batch.rows, device="cpu").split(chunk or max(1, AT_ONCE // problem.P)):
            yield RowsPart({}, names, others(part), len(part))


def looped_clipped_sum(problem: Problem, clip: float = 1.0) -> ClippedSum:
    """One backward pass a row: the oracle."""
    g = looped_grads(problem)
    norms = g.norm(dim=1)
    return ClippedSum((clip_factors(norms, clip)[:, None] * g).sum(0), float((norms > clip).double().mean()), tuple(problem.params))


LI = Source("Li et al. 2022", "Section 4 (ghost clipping)", "arXiv:2110.05679")


@instrument(oracle=looped_clipped_sum, source=LI, refuses=(couples_rows, weighs_rows_together), family="private_training")
def clipped_sum(problem: Problem, clip: float = 1.0, *, method: Method = "auto", chunk: int | None = None) -> ClippedSum:
    r"""The sum of clipped gradients, :math:`\sum_i \nabla\ell_i \min\bigl(1, C/\|\nabla\ell_i\|\bigr)`: one row moves it by at most C.

    One pass forward and one back to the outputs of the layers. The norm of a row follows from what goes into a layer and the slopes of what
    comes out, as in `theorylab.instruments.rows.per_example_grad_norms`, and so does the weighted sum: it is one product of matrices a
    layer, from the same slopes, and needs no second backward pass. No gradient of a row is kept. All uses of a parameter (tied weights) are
    added before its norm is taken. Parameters in operations that are not known are differentiated row by row and named in ``formed``.

    Args:
        problem: The risk and the point; its loss is the mean of a loss of each row.
        clip: The largest norm C of a row's gradient over all selected parameters, positive.
        method: ``"auto"`` as described. ``"ghost"``: refuse where gradients must be formed. ``"vmap"``: form all of them. ``"loop"``: one
            backward pass a row.
        chunk: Rows taken at once, to bound temporaries; by default as many as fit.

    Raises:
        Inapplicable: rows depend on each other, through the model (BatchNorm in training mode), through the loss (class weights in a mean),
            or through the number of predictions that a mean runs over; or ``method="ghost"`` and a parameter is not explained.
        ValueError: ``clip`` is not positive and finite, an unknown method, or a loss or gradient that is not finite.

    Example:
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> problem = Problem(model, torch.nn.functional.mse_loss, (torch.eye(2), torch.zeros(2, 1)))
        >>> problem = problem.at({"weight": torch.tensor([[0.25, 3.0]])})  # gradients (0.5, 0) and (0, 6)
        >>> found = clipped_sum(problem, 1.0)
        >>> found.total.tolist(), found.shrunk
        ([0.5, 1.0], 0.5)

    Source: Li et al. 2022, arXiv:2110.05679, Section 4 (ghost clipping); the sum without a second pass is Bu et al. 2023,
    arXiv:2210.00038, Section 3 (book-keeping).
    """
    if not 0 < clip < math.inf:
        raise ValueError(f"clip must be positive and finite, got {clip}: it is the largest norm of a row's gradient.")
    if method not in ("auto", "ghost", "vmap", "loop"):
        raise ValueError(f'method must be "auto", "ghost", "vmap" or "loop", got {method!r}.')
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}.")
    if method in ("vmap", "loop"):  # the others look at the batch in any case, and are refused there
        for k in range(len(problem.batches)):
            refuse_coupled_rows(problem, k)
    if method == "loop":
        return looped_clipped_sum(problem, clip)
    flat = torch.empty(problem.P, dtype=problem.dtype, device=problem.device)
    total, first = problem.unflatten(flat), True
    shrunk, formed = torch.zeros((), dtype=torch.int64, device=problem.device), dict[str, None]()
    with problem.safe():
        for part in (_formed_parts if method == "vmap" else row_parts)(problem, chunk):
            if method == "ghost" and part.rest:
                raise Inapplicable(
                    f"clipped_sum does not apply with method='ghost': no known operation explains the gradients of {', '.join(part.rest)}. "
                    "Use method='auto', which forms those."
                )
            formed.update(dict.fromkeys(part.rest))
            norms = part.norms(problem.params)
            factors = clip_factors(norms, clip).to(problem.dtype)
            shrunk += (norms > clip).sum()
            part.add_weighted(factors, total, first)
            first = False
    if formed and method == "auto":
        log.info("clipped_sum: gradients in %s are formed row by row, since no known operation explains them", ", ".join(formed))
    return ClippedSum(flat, float(shrunk) / problem.n, tuple(formed))
