"""Occam's razor as a number: how short a description of the trained network is, and what that implies for its error."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch.nn.modules.batchnorm import _NormBase

from theorylab.core.instrument import instrument
from theorylab.core.problem import Params, Problem
from theorylab.core.source import Source
from theorylab.instruments.bounds import INDEPENDENT, Bound, test_bound
from theorylab.instruments.coded import LEVELS, Describe, assumed, best, check, describe, messages, slow_describe, slow_kl_inverse
from theorylab.instruments.predictions import not_classification, predictions, row_errors
from theorylab.stats.binomial import kl_inverse


def _carries_statistics(problem: Problem) -> str | None:
    for module in problem.model.modules():
        if isinstance(module, _NormBase) and module.running_mean is not None:
            return (
                f"the running statistics of {type(module).__name__} were computed from rows, and no code for them is counted. Fold them "
                "into the layer before."
            )
    return None


def _best(
    problem: Problem,
    start: Params | None,
    levels: Sequence[int],
    delta: float,
    describe: Describe,
    errors: Callable[[Problem, Params], int],
    inverse: Callable[[float, float], float],
) -> tuple[Bound, Params]:
    def bounds() -> Iterator[tuple[Bound, Params]]:
        for coded, bits, chosen in messages(problem, start, levels, describe):
            wrong = errors(problem, coded) / problem.n
            value = inverse(wrong, (bits * math.log(2) + math.log(1 / delta)) / problem.n)
            terms = {"empirical error": wrong, "bits": bits, **chosen, "rows": float(problem.n)}
            yield Bound(value, {"union over codes": delta}, terms, (INDEPENDENT, *assumed(problem, start)), "Occam"), coded

    bound, coded = best(bounds())
    before = errors(problem, problem.params) / problem.n
    return replace(
        bound,
        terms={**bound.terms, "bits a weight": bound.terms["bits"] / problem.P, "empirical error before coding": before},
        quantity="error of the coded network",
    ), coded


def _count(problem: Problem, params: Params) -> int:
    return int(row_errors(*predictions(problem, params)).sum())


def slow_occam(
    problem: Problem,
    *,
    coding: Literal["full", "difference"] = "full",
    levels: Sequence[int] = LEVELS,
    init: Params | None = None,
    delta: float = 0.05,
    test: Problem | None = None,
) -> Bound:
    """Coding symbol by symbol, counting row by row, inverting by root finding: the oracle of `occam`."""

    def errors(problem: Problem, params: Params) -> int:
        scores, classes = (t.tolist() for t in predictions(problem, params))
        return sum(max(s for j, s in enumerate(row) if j != c) >= row[c] for row, c in zip(scores, classes, strict=True))

    return _best(problem, init, levels, delta, slow_describe, errors, slow_kl_inverse)[0]


@instrument(
    oracle=slow_occam,
    source=Source("Langford 2005", "Section 4 (the Occam's razor bound)", "Journal of Machine Learning Research 6, 273-306"),
    refuses=(not_classification, _carries_statistics),
    family="bounds",
)
def occam(
    problem: Problem,
    *,
    coding: Literal["full", "difference"] = "full",
    levels: Sequence[int] = LEVELS,
    init: Params | None = None,
    delta: float = 0.05,
    test: Problem | None = None,
) -> Bound:
    r"""A bound on the error of the network as a short message describes it, after rounding its parameters to a few levels.

    :math:`\mathrm{kl}^{-1}\left(\hat e,\ (b\ln 2 + \ln(1/\delta))/n\right)` for a description of b bits: a union bound over all messages,
    each weighed by 2 to the power of minus its length, and Chernoff's bound for each network. A randomized network would pay ln(2√n/δ)
    instead.

    Each tensor is rounded to ``levels`` values around zero, and its symbols are sent by an adaptive arithmetic code. Counted are the
    symbols, a 16-bit scale and the end of message a tensor, and the choice among ``levels``. All spacings are tried and the best bound is
    reported; that choice is in the scales that are sent. The rows may be those that the network was trained on.

    What is coded is what the problem selects; all else is known to the receiver, and must not depend on the rows. So a network that was
    trained in few numbers has a short message: for adapters (LoRA), select them, ``params="*lora*"``; for a random subspace, train a
    `RandomSubspace`, of which z alone is coded, while where it began and the random map, in its buffers, are among what is assumed.

    Args:
        problem: A classification at trained parameters.
        coding: ``"full"`` codes the selected parameters, ``"difference"`` their change since ``init``.
        levels: Odd numbers that may be chosen from; fix them before looking.
        init: Where training began, known to the receiver: its seed must not depend on the rows.
        delta: Probability with which the bound may fail.
        test: A problem on unseen rows; a test-set bound of the coded network is then beside this one.

    Raises:
        Inapplicable: no classification of independent rows, or running statistics (BatchNorm), which would have to be sent as well.
        ValueError: the loss is not finite, or an argument out of its range.

    Example:
        >>> x = torch.randn(2000, 2, generator=torch.Generator().manual_seed(0))
        >>> problem = Problem(torch.nn.Linear(2, 2), torch.nn.functional.cross_entropy, (x, (x[:, 0] > 0).long()))
        >>> w = torch.tensor([[-1.0, 0.01], [1.0, 0.0]])
        >>> bound = occam(problem.at({"weight": w, "bias": torch.zeros(2)}))
        >>> bound.terms["empirical error"], round(bound.terms["bits"]), round(bound.value, 3)
        (0.0, 50, 0.019)

    Source: Langford 2005, Journal of Machine Learning Research 6, 273-306, Section 4. Rounding in a random subspace: Lotfi et al. 2022,
    arXiv:2211.13609, which sends a table of frequencies and of levels instead.
    """
    check(coding, problem, levels, init, delta)
    with torch.no_grad():
        problem.loss()
    bound, coded = _best(problem, init, levels, delta, describe, _count, kl_inverse)
    if test is None:
        return bound
    return replace(bound, beside=replace(test_bound(test.at(coded), delta=delta), quantity=bound.quantity))
