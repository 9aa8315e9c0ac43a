"""Occam's razor as a number: how short a description of the trained network is, and what that implies for its error."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal, cast

import torch
from torch.nn.modules.batchnorm import _NormBase

from theorylab.core.instrument import instrument
from theorylab.core.problem import Params, Problem
from theorylab.core.source import Source
from theorylab.instruments.bounds import INDEPENDENT, Bound, test_bound
from theorylab.instruments.predictions import not_classification, predictions, row_errors
from theorylab.learning.compression import SCALE_BITS, adaptive_code_bits, quantize
from theorylab.stats.binomial import bernoulli_kl, kl_inverse

LEVELS = (3, 5, 9, 17, 33)
WIDTHS = (0.125, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0)
"""Spacings that are tried, in units of a tensor's root mean square. Their choice is free: the scale itself is sent."""
END_BITS = 2
"""What an arithmetic coder adds to the ideal length, at most, to end its message so that no other message begins with it."""


def _carries_statistics(problem: Problem) -> str | None:
    for module in problem.model.modules():
        if isinstance(module, _NormBase) and module.running_mean is not None:
            return (
                f"the running statistics of {type(module).__name__} were computed from rows, and no code for them is counted. Fold them "
                "into the layer before."
            )
    return None


def _describe(weights: Params, start: Params | None, levels: int, width: float) -> tuple[Params, float]:
    """The coded parameters, and the bits of their description without those that name ``levels``."""
    coded, bits = {}, 0.0
    for k, w in weights.items():
        base = torch.zeros_like(w) if start is None else start[k].to(w)
        symbols, scale = quantize(w - base, levels, width)
        coded[k] = base + (scale * symbols).to(w)
        bits += SCALE_BITS + END_BITS + adaptive_code_bits(symbols, levels)
    return coded, bits


def _best(
    problem: Problem,
    start: Params | None,
    levels: Sequence[int],
    delta: float,
    describe: Callable[[Params, Params | None, int, float], tuple[Params, float]],
    errors: Callable[[Problem, Params], int],
    inverse: Callable[[float, float], float],
) -> tuple[Bound, Params]:
    choice = math.ceil(math.log2(len(levels)))
    best: tuple[Bound, Params] | None = None
    for L in levels:
        for width in WIDTHS:
            coded, bits = describe(problem.params, start, L, width)
            bits, wrong = bits + choice, errors(problem, coded) / problem.n
            value = inverse(wrong, (bits * math.log(2) + math.log(1 / delta)) / problem.n)
            terms = {"empirical error": wrong, "bits": bits, "levels": float(L), "width": width, "rows": float(problem.n)}
            rank = round(value, 9), bits  # bounds that are one but for rounding are told apart by their bits
            if best is None or rank < (round(best[0].value, 9), best[0].terms["bits"]):
                best = Bound(value, {"union over codes": delta}, terms, (INDEPENDENT,), "Occam"), coded
    assert best is not None
    bound, coded = best
    assumptions = [INDEPENDENT, "architecture and frozen parameters do not depend on the rows"]
    if problem._buffers:
        assumptions.append("buffers do not depend on the rows")
    if start is not None:
        assumptions.append("init does not depend on the rows")
    before = errors(problem, problem.params) / problem.n
    return replace(
        bound,
        terms={**bound.terms, "bits a weight": bound.terms["bits"] / problem.P, "empirical error before coding": before},
        assumptions=tuple(assumptions),
        quantity="error of the coded network",
    ), coded


def _count(problem: Problem, params: Params) -> int:
    return int(row_errors(*predictions(problem, params)).sum())


def _check(problem: Problem, coding: str, levels: Sequence[int], init: Params | None, delta: float) -> None:
    if coding not in ("full", "difference"):
        raise ValueError(f"coding must be 'full' or 'difference', got {coding!r}.")
    if (coding == "difference") != (init is not None):
        raise ValueError("init must be given for coding='difference', the parameters that training started from, and only then.")
    if not levels or not 0 < delta < 1:
        raise ValueError(f"levels must name at least one number and delta lie in (0, 1), got levels={tuple(levels)}, delta={delta}.")
    if init is not None:
        problem.at(init)  # refuses names and shapes that do not fit
        missing = problem.params.keys() - init.keys()
        if missing:
            raise ValueError(f"init must hold every selected parameter; {sorted(missing)[0]} is missing.")


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
    from scipy.optimize import brentq

    def describe(weights: Params, start: Params | None, L: int, width: float) -> tuple[Params, float]:
        coded, bits = {}, 0.0
        for k, w in weights.items():
            base = torch.zeros_like(w) if start is None else start[k].to(w)
            flat = (w - base).double().reshape(-1).tolist()
            scale = float(torch.tensor(width * math.sqrt(math.fsum(v * v for v in flat) / len(flat)), dtype=torch.bfloat16, device="cpu"))
            m, counts, values = (L - 1) // 2, [0.5] * L, []
            for v in flat:
                symbol = max(-m, min(m, round(v / scale))) if scale else 0
                bits -= math.log2(counts[symbol + m] / sum(counts))
                counts[symbol + m] += 1
                values.append(scale * symbol)
            coded[k] = base + torch.tensor(values, dtype=torch.float64, device="cpu").reshape(w.shape).to(w)
            bits += 16 + 2
        return coded, bits

    def errors(problem: Problem, params: Params) -> int:
        scores, classes = (t.tolist() for t in predictions(problem, params))
        return sum(max(s for j, s in enumerate(row) if j != c) >= row[c] for row, c in zip(scores, classes, strict=True))

    def inverse(q: float, c: float) -> float:
        top = 1 - 1e-15
        if bernoulli_kl(q, top) <= c:
            return 1.0
        return cast(float, brentq(lambda p: bernoulli_kl(q, p) - c, max(q, 1e-300), top, xtol=1e-15))

    return _best(problem, init, levels, delta, describe, errors, inverse)[0]


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

    Args:
        problem: A classification at trained parameters. Frozen parameters are no part of the message: for adapters (LoRA), select them.
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

    Source: Langford 2005, Journal of Machine Learning Research 6, 273-306, Section 4.
    """
    _check(problem, coding, levels, init, delta)
    with torch.no_grad():
        problem.loss()
    bound, coded = _best(problem, init, levels, delta, _describe, _count, kl_inverse)
    if test is None:
        return bound
    return replace(bound, beside=replace(test_bound(test.at(coded), delta=delta), quantity=bound.quantity))
