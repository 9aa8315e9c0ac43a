r"""Fair division of a game's worth among its players: Shapley, Banzhaf, Beta-Shapley and every other semivalue, and the least core.

A game is any function from coalitions to worths, ``value(masks: bool (P, n)) -> (P,)``. Players may be rows of data, features or parts of a
model; `theorylab.instruments.model_games` makes games of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Literal

import torch
from torch import Tensor

from theorylab.instruments import value_sampling as sampling
from theorylab.instruments.games import MOST, Worth, coalitions, ends, evaluate, table
from theorylab.instruments.value_sampling import Sampled
from theorylab.instruments.values import Values

EXACT = 16
"""Players up to which ``method="auto"`` visits all coalitions."""
ShapleyMethod = Literal["auto", "exact", "permutation", "kernel", "owen", "stratified"]


def exact_values(worths: Tensor, weights: Tensor) -> Tensor:
    """Semivalues (n,) of a table of all worths (2^n,), with the weight of a marginal contribution to each number of others, (n,)."""
    n = len(weights)
    sizes = torch.zeros(1, dtype=torch.long, device="cpu")
    for _ in range(n - 1):
        sizes = torch.cat([sizes, sizes + 1])  # of the coalitions of the others
    each = weights[sizes]
    return torch.stack([(worths.view(-1, 2, 2**i).diff(dim=1).flatten() * each).sum() for i in range(n)])


def _weights(law: Tensor) -> Tensor:
    """Weight of one coalition of each size from the chance of that size."""
    n = len(law)
    return torch.stack([law[s] / math.comb(n - 1, s) for s in range(n)])


def _check(n: int, budget: int | None) -> None:
    if not isinstance(n, Integral) or n < 1:
        raise ValueError(f"n must be a whole number of players, at least 1, got {n}.")
    if budget is not None and not isinstance(budget, Integral):
        raise ValueError(f"budget must be a whole number of coalitions, got {budget}.")


def _affordable(n: int, budget: int | None) -> bool:
    """Whether ``"auto"`` visits all coalitions."""
    return n <= EXACT and (budget is None or budget >= 2**n)


def _values(found: Sampled, method: str) -> Values:
    return Values(found.values, found.stderr, found.samples, found.evaluations, method)


def _semivalue(name: str, value: Worth, n: int, law: Tensor, method: str, budget: int | None, seed: int, tol: float = 0.0) -> Values:
    """By enumeration, permutations or windows, from the law of the size of the coalition that a player joins."""
    if method == "auto":
        method = "exact" if _affordable(n, budget) else "permutation"
    if tol and method not in ("exact", "permutation"):
        raise ValueError(f'tol stops method="permutation" only, got {method!r}.')
    if method == "exact":
        if budget is not None and n <= MOST and budget < 2**n:
            raise ValueError(
                f'method="exact" evaluates all 2^{n} = {2**n} coalitions, more than the budget of {budget}: raise it, or sample.'
            )
        values = exact_values(table(value, n), _weights(law))
        return Values(values, torch.zeros_like(values), 1, 2**n, f"{name}, exact")
    budget = 200 * n if budget is None else budget
    if method == "permutation":
        return _values(sampling.permutations(value, n, law, budget, seed, tol=tol), f"{name}, permutation")
    if method == "stratified":
        return _values(sampling.windows(value, n, law, budget, seed), f"{name}, stratified")
    raise ValueError(f"method {method!r} is none of those of {name}.")


def shapley(
    value: Worth,
    n: int,
    *,
    method: ShapleyMethod = "auto",
    budget: int | None = None,
    seed: int = 0,
    tol: float = 0.0,
    truncation: float = 0.0,
) -> Values:
    r"""Shapley value: a player's mean marginal contribution over all orders of joining.

    .. math:: \phi_i = \sum_{S \not\ni i} \frac{s!\,(n-1-s)!}{n!}\,[v(S \cup i) - v(S)]

    It is the only division that adds up to :math:`v(N) - v(\emptyset)`, treats equal players alike, gives nothing to those who add nothing,
    and is linear in the game. It does not make the game itself a good one: a biased worth has biased shares.

    Methods, all with standard errors: ``"exact"`` visits the 2^n coalitions; ``"permutation"`` walks random orders, each of which adds up;
    ``"kernel"`` is constrained regression on sampled pairs of coalitions (KernelSHAP), exact where the budget covers all; ``"owen"``
    samples the multilinear extension; ``"stratified"`` samples every size evenly, by the windows of random orders laid in circles.
    ``"auto"`` is exact up to 16 players, where the budget allows it, and permutations beyond.

    Args:
        value: The game: ``value(masks)`` gives the worths (P,) of coalitions, bool (P, n).
        n: Players.
        method: See above.
        budget: Coalitions that may be evaluated; 200 n by default. Large n: 200 orders do not suffice to rank, see the intervals.
        seed: Of the samples.
        tol: Of permutations, not negative: stop once every standard error is at most this. The errors at a stopping time are slightly
            too small.
        truncation: Of permutations: give up an order once its worth is within this of v(N). This *biases* the values, by at most
            ``truncation`` each if no player ever lowers the worth, and without a bound otherwise; 0, the default, never does.

    Raises:
        ValueError: n < 1, n > 24 for ``"exact"``, a budget too small for a standard error (or for all coalitions, if exact), ``tol`` or
            ``truncation`` of a method that has none, or a game that returns NaN or the wrong shape.

    Example:
        >>> gloves = lambda masks: torch.minimum(masks[:, 0], masks[:, 1] | masks[:, 2]).double()  # one left, two right
        >>> shapley(gloves, 3).values.round(decimals=4).tolist()
        [0.6667, 0.1667, 0.1667]

    Source: Shapley 1953, doi:10.1515/9781400881970-018; Castro et al. 2009, doi:10.1016/j.cor.2008.04.004 (permutations); Lundberg and Lee
    2017, arXiv:1705.07874, Theorem 2, and Covert and Lee 2021, arXiv:2012.01536 (regression on pairs); Owen 1972,
    doi:10.1287/mnsc.18.5.64; Maleki et al. 2013, arXiv:1306.4265 (strata of one size); Ghorbani and Zou 2019, arXiv:1904.02868
    (truncation).
    """
    _check(n, budget)
    if not (tol >= 0 and truncation >= 0):
        raise ValueError(f"tol and truncation must not be negative, got {tol} and {truncation}.")
    if method not in ("auto", "exact", "permutation", "kernel", "owen", "stratified"):
        raise ValueError(f"method must be auto, exact, permutation, kernel, owen or stratified, got {method!r}.")
    if tol and method in ("kernel", "owen"):
        raise ValueError(f'tol stops method="permutation" only, got {method!r}.')
    law = torch.full((n,), 1 / n, dtype=torch.float64, device="cpu")
    spend = 200 * n if budget is None else budget
    if method == "kernel":
        return _values(sampling.regression(value, n, spend, seed), "shapley, kernel")
    if method == "owen":
        return _values(sampling.multilinear(value, n, spend, seed), "shapley, owen")
    if truncation:
        if method != "permutation":
            raise ValueError(f'truncation is of method="permutation", got {method!r}.')
        found = sampling.permutations(value, n, law, spend, seed, truncation=truncation, tol=tol)
        return _values(found, f"shapley, permutation, truncated at {truncation:g}: biased")
    return _semivalue("shapley", value, n, law, method, budget, seed, tol)


def banzhaf(
    value: Worth,
    n: int,
    *,
    method: Literal["auto", "exact", "msr", "permutation", "stratified"] = "auto",
    p: float = 0.5,
    budget: int | None = None,
    seed: int = 0,
) -> Values:
    r"""Banzhaf value: mean marginal contribution where every other player takes part with chance p, one half by default.

    Of all semivalues it suffers least from independent noise in the worths, and it does not add up to v(N). ``"msr"``, maximum sample
    reuse, draws coalitions of chance p and lets each serve every player: mean worth with a player less that without.

    Args:
        value: The game, as for `shapley`.
        n: Players.
        method: ``"auto"`` is exact up to 16 players, where the budget allows it, and maximum sample reuse beyond.
        p: In (0, 1).
        budget: Coalitions that may be evaluated; 200 n by default.
        seed: Of the samples.

    Raises:
        ValueError: as for `shapley`; p out of range.

    Example:
        >>> banzhaf(lambda masks: (masks.sum(1) >= 2).double(), 3).values.tolist()  # majority of three
        [0.5, 0.5, 0.5]

    Source: Banzhaf 1965, Rutgers Law Review 19; Wang and Jia 2023, arXiv:2205.15466 (robustness, maximum sample reuse).
    """
    _check(n, budget)
    if not 0 < p < 1:
        raise ValueError(f"p must lie in (0, 1), got {p}.")
    name = "banzhaf" if p == 0.5 else f"banzhaf(p = {p:g})"
    if method == "msr" or (method == "auto" and not _affordable(n, budget)):
        return _values(sampling.reuse(value, n, p, 200 * n if budget is None else budget, seed), f"{name}, msr")
    s = torch.arange(n, dtype=torch.float64, device="cpu")
    log_law = _log_binomial(n) + s * math.log(p) + (n - 1 - s) * math.log1p(-p)
    return _semivalue(name, value, n, log_law.exp(), method, budget, seed)


def _log_binomial(n: int) -> Tensor:
    s = torch.arange(n, dtype=torch.float64, device="cpu")
    return torch.lgamma(torch.tensor(float(n), dtype=torch.float64, device="cpu")) - torch.lgamma(s + 1) - torch.lgamma(n - s)


def beta_shapley(
    value: Worth,
    n: int,
    *,
    alpha: float,
    beta: float,
    method: Literal["auto", "exact", "permutation", "stratified"] = "auto",
    budget: int | None = None,
    seed: int = 0,
) -> Values:
    r"""Beta(α, β)-Shapley: mean marginal contribution where the others take part with a chance drawn from Beta(β, α).

    Beta(1, 1) is Shapley. α above β favours small coalitions, where the marginal contributions of data are largest: Beta(16, 1) hardly
    looks beyond a few rows. It does not add up to v(N) unless α = β = 1.

    Args:
        value: The game, as for `shapley`.
        n: Players.
        alpha: Positive.
        beta: Positive.
        method: As for `shapley`.
        budget: Coalitions that may be evaluated; 200 n by default.
        seed: Of the samples.

    Raises:
        ValueError: as for `shapley`; α or β not positive.

    Example:
        >>> game = lambda masks: masks.sum(1).double() ** 0.5
        >>> torch.allclose(beta_shapley(game, 4, alpha=1, beta=1).values, shapley(game, 4).values)
        True

    Source: Kwon and Zou 2022, arXiv:2110.14049, Section 3.
    """
    _check(n, budget)
    if not (0 < alpha < math.inf and 0 < beta < math.inf):
        raise ValueError(f"alpha and beta must be positive and finite, got {alpha} and {beta}.")
    s = torch.arange(n, dtype=torch.float64, device="cpu")
    a, b = torch.tensor(float(alpha), dtype=torch.float64, device="cpu"), torch.tensor(float(beta), dtype=torch.float64, device="cpu")
    top = torch.lgamma(s + b) + torch.lgamma(n - 1 - s + a) - torch.lgamma(n - 1 + a + b)
    law = (_log_binomial(n) + top - torch.lgamma(a) - torch.lgamma(b) + torch.lgamma(a + b)).exp()
    return _semivalue(f"beta({alpha:g}, {beta:g})-shapley", value, n, law, method, budget, seed)


def semivalue(
    value: Worth,
    n: int,
    *,
    weights: Tensor | Sequence[float],
    method: Literal["auto", "exact", "permutation", "stratified"] = "auto",
    budget: int | None = None,
    seed: int = 0,
) -> Values:
    r"""Any semivalue :math:`\sum_{S\not\ni i} p_{|S|}\,[v(S\cup i) - v(S)]`.

    Args:
        value: The game, as for `shapley`.
        n: Players.
        weights: p, of one coalition of s others, (n,), not negative, with :math:`\sum_s \binom{n-1}{s} p_s = 1`.
        method: As for `shapley`.
        budget: Coalitions that may be evaluated; 200 n by default.
        seed: Of the samples.

    Raises:
        ValueError: as for `shapley`; weights of the wrong shape, negative, or that do not sum to one over coalitions.

    Example:
        >>> leave_one_out = torch.tensor([0.0, 0.0, 1.0])
        >>> semivalue(lambda masks: masks.sum(1).double() ** 2, 3, weights=leave_one_out).values.tolist()  # 9 - 4
        [5.0, 5.0, 5.0]

    Source: Dubey, Neyman and Weber 1981, doi:10.1287/moor.6.1.122.
    """
    _check(n, budget)
    weights = torch.as_tensor(weights, dtype=torch.float64, device="cpu")
    if weights.shape != (n,):
        raise ValueError(f"weights must have shape ({n},), one for each number of others, got {tuple(weights.shape)}.")
    if not (weights.isfinite().all() and (weights >= 0).all()):
        raise ValueError("weights must be finite and not negative.")
    law = weights * _log_binomial(n).exp()
    if not math.isclose(float(law.sum()), 1.0, rel_tol=1e-6):
        raise ValueError(f"weights must sum to one over all coalitions of the others, Σ C(n-1, s) p_s = 1, got {float(law.sum()):.6g}.")
    return _semivalue("semivalue", value, n, law, method, budget, seed)


@dataclass(frozen=True)
class LeastCore:
    """A division that leaves no coalition short by more than ``deficit``: ``values`` (n,) add up to v(N) − v(∅)."""

    values: Tensor
    deficit: float
    evaluations: int


def least_core(value: Worth, n: int, *, budget: int | None = None, seed: int = 0) -> LeastCore:
    r"""The division whose worst-off coalition is least short: :math:`\min_{x, e} e` with :math:`\sum_{i\in S} x_i + e \ge v(S)`, Σx = v(N).

    Where the deficit e is not positive the division is in the core: no coalition gains by leaving. Among several the one of least Euclidean
    norm is *not* sought; a linear program returns some vertex. Worths are taken less that of nobody.

    Args:
        value: The game, as for `shapley`.
        n: Players.
        budget: Coalitions whose demand counts, drawn evenly; all 2^n by default (n ≤ 16).
        seed: Of the draw. A sampled program's deficit is a lower bound of the true one.

    Raises:
        ValueError: n < 1, n > 16 without a budget, or a budget below 1.
        ArithmeticError: the linear program was not solved.

    Example:
        >>> core = least_core(lambda masks: (masks.sum(1) >= 2).double(), 3)  # majority of three
        >>> core.values.round(decimals=4).tolist(), round(core.deficit, 4)
        ([0.3333, 0.3333, 0.3333], 0.3333)

    Source: Maschler, Peleg and Shapley 1979, doi:10.1287/moor.4.4.303; Yan and Procaccia 2021, doi:10.1609/aaai.v35i6.16721 (of data).
    """
    import numpy as np
    from scipy.optimize import linprog

    _check(n, budget)
    if budget is None and n > EXACT:
        raise ValueError(f"budget is needed for more than {EXACT} players, got n = {n}.")
    if budget is not None and budget < 1:
        raise ValueError(f"budget must be at least 1 coalition, got {budget}.")
    if budget is None or (n <= MOST and budget >= 2**n):
        masks = coalitions(n)[1:-1]
    else:
        generator = torch.Generator().manual_seed(seed)
        masks = torch.stack([torch.rand(n, generator=generator, device="cpu") < 0.5 for _ in range(budget)])
        masks = masks[masks.any(1) & ~masks.all(1)]
    empty, full = ends(value, n).tolist()
    demands, total = (evaluate(value, masks) - empty).numpy(), full - empty
    if n == 1:
        return LeastCore(torch.tensor([total], dtype=torch.float64, device="cpu"), 0.0, 2)
    rows = -np.column_stack([masks.numpy().astype(float), np.ones(len(masks))])
    equality = np.append(np.ones(n), 0.0)[None]
    found = linprog(np.append(np.zeros(n), 1.0), rows, -demands, equality, [total], bounds=[(None, None)] * (n + 1), method="highs")
    if found.status != 0:
        raise ArithmeticError(f"the linear program of the least core was not solved: {found.message} Raise budget.")
    return LeastCore(torch.from_numpy(found.x[:n]), float(found.x[n]), len(masks) + 2)
