"""A network as a short message describes it: parameters rounded to a few levels, the bits that say so, and the best choice of both."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch

from theorylab.core.problem import Params, Problem
from theorylab.instruments.bounds import Bound
from theorylab.learning.compression import SCALE_BITS, adaptive_code_bits, quantize
from theorylab.stats.binomial import bernoulli_kl

LEVELS = (3, 5, 9, 17, 33)
WIDTHS = (0.125, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0)
"""Spacings that are tried, in units of a tensor's root mean square. Their choice is free: the scale itself is sent."""
END_BITS = 2
"""What an arithmetic coder adds to the ideal length, at most, to end its message so that no other message begins with it."""
Describe = Callable[[Params, Params | None, int, float], tuple[Params, float]]
"""(parameters, start, levels, width) → the coded parameters, and the bits of their description without those that name ``levels``."""


def check(coding: str, problem: Problem, levels: Sequence[int], init: Params | None, delta: float) -> None:
    """Refuse options that name no code.

    Raises:
        ValueError: an argument out of its range, or an ``init`` that does not fit the coding or the problem.
    """
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


def describe(weights: Params, start: Params | None, levels: int, width: float) -> tuple[Params, float]:
    """Every tensor, or its difference from where it started, rounded and sent by an adaptive arithmetic code: a `Describe`."""
    coded, bits = {}, 0.0
    for k, w in weights.items():
        base = torch.zeros_like(w) if start is None else start[k].to(w)
        symbols, scale = quantize(w - base, levels, width)
        coded[k] = base + (scale * symbols).to(w)
        bits += SCALE_BITS + END_BITS + adaptive_code_bits(symbols, levels)
    return coded, bits


def slow_describe(weights: Params, start: Params | None, levels: int, width: float) -> tuple[Params, float]:
    """Symbol by symbol: the `describe` of oracles."""
    coded, bits = {}, 0.0
    for k, w in weights.items():
        base = torch.zeros_like(w) if start is None else start[k].to(w)
        flat = (w - base).double().reshape(-1).tolist()
        scale = float(torch.tensor(width * math.sqrt(math.fsum(v * v for v in flat) / len(flat)), dtype=torch.bfloat16, device="cpu"))
        m, counts, values = (levels - 1) // 2, [0.5] * levels, []
        for v in flat:
            symbol = max(-m, min(m, round(v / scale))) if scale else 0
            bits -= math.log2(counts[symbol + m] / sum(counts))
            counts[symbol + m] += 1
            values.append(scale * symbol)
        coded[k] = base + torch.tensor(values, dtype=torch.float64, device="cpu").reshape(w.shape).to(w)
        bits += 16 + 2
    return coded, bits


def messages(
    problem: Problem, start: Params | None, levels: Sequence[int], describe: Describe
) -> Iterator[tuple[Params, float, dict[str, float]]]:
    """Every description that is tried: the coded parameters, the bits of the whole message, and what was chosen.

    Messages end where they end, without a length in front: none is the beginning of another, so their 2^−bits sum to at most one.
    """
    choice = math.ceil(math.log2(len(levels)))
    for L in levels:
        for width in WIDTHS:
            coded, bits = describe(problem.params, start, L, width)
            yield coded, bits + choice, {"levels": float(L), "width": width}


def assumed(problem: Problem, start: Params | None) -> tuple[str, ...]:
    """What the receiver must know before the rows are drawn, since no message says it."""
    clauses = ["architecture and frozen parameters do not depend on the rows"]
    if problem._buffers:
        clauses.append("buffers do not depend on the rows")
    if start is not None:
        clauses.append("init does not depend on the rows")
    return tuple(clauses)


def best(bounds: Iterable[tuple[Bound, Params]]) -> tuple[Bound, Params]:
    """The smallest bound and its network; bounds that are one but for rounding are told apart by their bits."""
    return min(bounds, key=lambda found: (round(found[0].value, 9), found[0].terms["bits"]))


def slow_kl_inverse(q: float, c: float) -> float:
    """The largest p with kl(q‖p) ≤ c by root finding: the `kl_inverse` of oracles."""
    from scipy.optimize import brentq

    top = 1 - 1e-15
    if bernoulli_kl(q, top) <= c:
        return 1.0
    found = brentq(lambda p: bernoulli_kl(q, p) - c, max(q, 1e-300), top, xtol=1e-15)
    return float(found)  # pyright: ignore[reportArgumentType]  # a root alone, without the report that is asked for by full_output
