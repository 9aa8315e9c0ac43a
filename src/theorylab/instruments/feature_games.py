"""Games of features: what a model says of a row when it knows some of its features, and the others are drawn from a law."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from theorylab.core.batches import Batch
from theorylab.core.problem import Problem
from theorylab.core.safe import safe
from theorylab.core.substitution import places_of, substituted
from theorylab.instruments.games import Worth

EVALUATED = 1 << 22
"""Numbers in the rows that a model is shown at a time."""
RANK = 1e-10
"""Eigenvalues of a correlation matrix below this, relative to the largest, count as zero."""
SUPPORT = 1e-6
"""Standard deviations that a row may lie outside the span of the background by rounding."""

Law = Literal["interventional", "gaussian", "kernel"]


def predictor(model: Problem | nn.Module | Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The outputs of a problem's model at its parameters, of a module in evaluation mode, or of any function of rows; no gradients.

    A problem or a module is left as it was: its mode, its buffers and the random number generators.
    """

    def of_problem(rows: Tensor) -> Tensor:
        assert isinstance(model, Problem)
        rows = rows.to(model.device, model.dtype)
        with model.safe(), torch.no_grad():
            return model.on([Batch((rows, rows), len(rows))]).outputs(0)

    def of_module(rows: Tensor) -> Tensor:
        assert isinstance(model, nn.Module)
        place = next(model.parameters(), rows).device
        buffers = {k: b.clone() for k, b in model.named_buffers()}
        with safe(model, train=False, seed=0, device=place), torch.no_grad(), substituted(model, buffers, places_of(model)):
            return model(rows.to(place))

    def of_function(rows: Tensor) -> Tensor:
        assert not isinstance(model, Problem)
        with torch.no_grad():
            return model(rows)

    return of_problem if isinstance(model, Problem) else of_module if isinstance(model, nn.Module) else of_function


def _one_output(predict: Callable[[Tensor], Tensor], row: Tensor, output: int | None) -> Callable[[Tensor], Tensor]:
    """One number a row, float64 (rows,), of a model with one or several outputs; asks it about one row to see which."""

    def outputs(rows: Tensor) -> Tensor:
        found = predict(rows)
        if not isinstance(found, Tensor) or found.ndim not in (1, 2) or len(found) != len(rows):
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f"model must return (rows,) or (rows, k) for rows ({len(rows)}, d), got {got}.")
        return found[:, None] if found.ndim == 1 else found

    k = outputs(row[None]).shape[1]
    if output is None and k > 1:
        raise ValueError(f"output must name one of the {k} outputs of the model.")
    if output is not None and not 0 <= output < k:
        raise ValueError(f"output must lie in 0 ... {k - 1}, the outputs of the model, got {output}.")
    return lambda rows: outputs(rows)[:, output or 0].double()


def feature_game(
    model: Problem | nn.Module | Callable[[Tensor], Tensor],
    x: Tensor,
    background: Tensor,
    *,
    law: Law = "interventional",
    bandwidth: float = 0.1,
    output: int | None = None,
    groups: Sequence[Sequence[int]] | None = None,
) -> Worth:
    r"""The game of features whose worth is the model's mean output with the present features of ``x`` and the others drawn from a law.

    ``"interventional"``, absent features whatever the present ones are: :math:`v(S) = \frac1B \sum_b f(x_S, b_{\bar S})`. It tells what
    the model computes with, and shows it rows that may never occur.

    The other two are *conditional* (observational), :math:`v(S) = E[f(X) \mid X_S = x_S]`. They tell what a present feature says of
    the output, also by way of the features that it comes with: one that the model never reads has a value if it is correlated with one
    that it does. The two kinds agree where features are independent, and only then for every model.

    ``"gaussian"`` moves each row of the background to agree with x on S, and what it is expected to be elsewhere along with it,

    .. math:: \tilde b_{\bar S} = b_{\bar S} + \Sigma_{\bar S S} \Sigma_{SS}^{-1} (x_S - b_S),

    with the background's covariance Σ. The moved rows have exactly the mean and covariance of the normal law of the background's moments
    given :math:`x_S`, so v(S) is exact for that law, without sampling, where f is a polynomial of degree two. For other f the rest is
    distributed as the background's own residuals; right where these do not depend on :math:`x_S`, as under the normal law.

    ``"kernel"`` keeps the background's rows and weighs them by how near they are on S, by :math:`\exp(-D_S^2 / 2h^2)` with
    :math:`D_S^2 = (x-b)_S^\top \Sigma_{SS}^{-1} (x-b)_S / |S|`. It assumes no law, and needs many rows near ``x``; as h falls it becomes
    the nearest row alone, and as h grows the interventional game.

    Args:
        model: A `Problem`; a module, asked in evaluation mode; or any function from rows (rows, d) to outputs (rows,) or (rows, k).
        x: The row to explain, (d,).
        background: Rows (B, d) that stand for absence. Conditional laws need many more rows than features.
        law: Of the absent features.
        bandwidth: h of ``"kernel"``, positive.
        output: Which of the k outputs; needed where there are several.
        groups: Players that are several features each; by default one a feature.

    Returns:
        ``value(masks)`` over d players, or one for each group.

    Raises:
        ValueError: wrong shapes, groups that are empty, overlap or leave a feature out, several outputs and none named; of a conditional
            law, an ``x`` that cannot occur because it breaks a linear dependence among the background's features, as a constant one.

    Example:
        >>> f = lambda rows: rows @ torch.tensor([1.0, 2.0])
        >>> game = feature_game(f, torch.tensor([1.0, 1.0]), torch.zeros(3, 2))
        >>> game(torch.tensor([[False, False], [True, False], [True, True]])).tolist()
        [0.0, 1.0, 3.0]
        >>> twins = torch.tensor([[-1.0, -1.0], [1.0, 1.0]])  # the second feature is what the first is
        >>> feature_game(f, torch.tensor([1.0, 1.0]), twins, law="gaussian")(torch.tensor([[True, False]])).tolist()
        [3.0]

    Source: Lundberg and Lee 2017, arXiv:1705.07874, Section 4; Janzing, Minorics and Blöbaum 2020, arXiv:1910.13413, and Sundararajan and
    Najmi 2020, arXiv:1908.08474 (how the two differ); Aas, Jullum and Løland 2021, arXiv:1903.10464, Section 3 (normal law, and kernel,
    of which we keep all rows where they keep the nearest). Rows are moved by Matheron's rule: Wilson et al. 2021, arXiv:2011.04026.
    """
    d = x.numel()
    if x.ndim != 1 or background.ndim != 2 or background.shape[1] != d or len(background) == 0:
        raise ValueError(f"x must be (d,) and background (B, d) with a row, got {tuple(x.shape)} and {tuple(background.shape)}.")
    if not (x.isfinite().all() and background.isfinite().all()):
        raise ValueError("x and background must be finite.")
    if law not in ("interventional", "gaussian", "kernel"):
        raise ValueError(f'law must be "interventional", "gaussian" or "kernel", got {law!r}.')
    if not 0 < bandwidth < float("inf"):
        raise ValueError(f"bandwidth must be positive and finite, got {bandwidth}.")
    parts = [[i] for i in range(d)] if groups is None else [list(g) for g in groups]
    if sorted(i for g in parts for i in g) != list(range(d)) or not all(parts):
        raise ValueError(f"groups must hold every feature 0 ... {d - 1} exactly once and none may be empty, got {parts}.")
    owner = torch.empty(d, dtype=torch.long, device="cpu")
    for player, members in enumerate(parts):
        owner[members] = player
    outputs = _one_output(predictor(model), x, output)
    moments = None if law == "interventional" else _Moments(x, background)

    def value(masks: Tensor) -> Tensor:
        found = []
        for part in masks.split(max(1, EVALUATED // (max(len(background), d) * d))):
            present = part[:, owner].to(x.device)
            others = moments.moved(present) if moments is not None and law == "gaussian" else background
            rows = torch.where(present[:, None, :], x, others)  # (P, B, d)
            answers = outputs(rows.flatten(0, 1)).view(len(part), -1)  # (P, B)
            if moments is not None and law == "kernel":
                found.append((answers * moments.weights(present, bandwidth).to(answers.device)).sum(1).cpu())
            else:
                found.append(answers.mean(1).cpu())
        return torch.cat(found)

    return value


class _Moments:
    """A background by its mean, scales and correlations, in float64, and a row that is to be explained before it."""

    def __init__(self, x: Tensor, background: Tensor):
        b = background.double()
        mean = b.mean(0)
        self.scale = (b - mean).square().mean(0).sqrt()
        constant = self.scale <= 1e-12 * mean.abs()  # by rounding
        self.scale[constant] = 1.0
        self.background = background
        self.rows = ((b - mean) / self.scale).masked_fill(constant, 0.0)  # (B, d)
        self.x = (x.double() - mean) / self.scale
        self.correlations = self.rows.T @ self.rows / len(b)
        everything = torch.ones(1, len(x), dtype=torch.bool, device=x.device)
        outside = (self.x - self.correlations @ (self.inverses(everything)[0] @ self.x)).abs()
        if float(outside.max()) > SUPPORT * max(1.0, float(self.x.abs().max())):
            i = int(outside.argmax())
            raise ValueError(
                f"x must be a row that can occur, but its feature {i} breaks a linear dependence of the {len(b)} rows of background, "
                "in which what is absent given x is undefined: give more rows than features, leave out features that are constant or "
                'sums of others, or take law="interventional".'
            )

    def inverses(self, present: Tensor) -> Tensor:
        """Inverse correlations among the present features, zero elsewhere, (P, d, d); pseudo-inverses where features are dependent."""
        inside = present.double()
        return torch.linalg.pinv(self.correlations * inside[:, :, None] * inside[:, None, :], hermitian=True, rtol=RANK)

    def moved(self, present: Tensor) -> Tensor:
        """The background with what the present features lead one to expect, (P, B, d); right in the absent features."""
        gap = (self.x - self.rows) * present.double()[:, None, :]
        expected = gap @ self.inverses(present) @ self.correlations
        return (self.background + self.scale * expected).to(self.background.dtype)

    def weights(self, present: Tensor, bandwidth: float) -> Tensor:
        """Of the background's rows, (P, B), which add up to one however far all of them are."""
        gap = (self.x - self.rows) * present.double()[:, None, :]
        distance = ((gap @ self.inverses(present)) * gap).sum(2) / present.sum(1).clamp(min=1)[:, None]
        return torch.softmax(-distance / (2 * bandwidth**2), 1)
