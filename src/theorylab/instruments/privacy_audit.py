"""Lower bounds on the privacy that a mechanism spent, from what an attacker guessed right: what no accountant can be below."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from theorylab.core.estimate import as_samples
from theorylab.stats.binomial import clopper_pearson


@dataclass(frozen=True)
class EpsilonBound:
    """What an audit proves: with confidence ``level`` the mechanism is not (ε, δ)-private for any ε below ``epsilon``.

    Attributes:
        epsilon: The lower bound; 0 where nothing was found.
        delta: The δ it is for.
        level: Its one-sided confidence.
        correct: Guesses that were right.
        guesses: Guesses made.
    """

    epsilon: float
    delta: float
    level: float
    correct: int
    guesses: int


@dataclass(frozen=True)
class MuBound:
    """With confidence ``level`` the mechanism is not μ-Gaussian private for any μ below ``mu``; the same remarks as of `EpsilonBound`."""

    mu: float
    level: float


def _checked(scores_in: Any, scores_out: Any, level: float, delta: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1), got {level}.")
    if not 0 <= delta < 1:
        raise ValueError(f"delta must lie in [0, 1), got {delta}.")
    return as_samples(scores_in, name="scores_in"), as_samples(scores_out, name="scores_out")


def one_run_p_value(canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    r"""Chance, at most, of so many correct guesses about one run of an (ε, δ)-private mechanism.

    Each canary is in the data by a fair coin. With :math:`f(v) = P[\mathrm{Bin}(r, \frac{e^\varepsilon}{1+e^\varepsilon}) \ge v]` it is
    :math:`f(v) + 2m\delta\,\max_{i\ge1} \frac{f(v-i) - f(v)}{i}`, m canaries and r guesses.

    Raises:
        ValueError: counts that do not fit each other, ε < 0, or δ outside [0, 1].

    Example:
        >>> round(one_run_p_value(10, 10, 10, 0.0, 0.0), 6)  # ten coins
        0.000977

    Source: Steinke, Nasr and Jagielski 2023, arXiv:2305.08846, Appendix D (the p-value of correct guesses).
    """
    from scipy.stats import binom

    if not 0 <= correct <= guesses <= canaries:
        raise ValueError(f"counts must satisfy correct ≤ guesses ≤ canaries, got {correct}, {guesses}, {canaries}.")
    if not epsilon >= 0 or not 0 <= delta <= 1:
        raise ValueError(f"epsilon must not be negative and delta lie in [0, 1], got {epsilon} and {delta}.")
    chance = 1 / (1 + math.exp(-epsilon))
    tail = float(binom.sf(correct - 1, guesses, chance))
    if delta == 0 or correct == 0:
        return min(1.0, tail)
    below = np.cumsum(binom.pmf(np.arange(correct - 1, -1, -1), guesses, chance))  # P[v − i ≤ Bin < v], i = 1 ... v
    return min(1.0, tail + 2 * canaries * delta * float((below / np.arange(1, correct + 1)).max()))


def audit_one_run(scores_in: Any, scores_out: Any, *, delta: float, guesses: int, level: float = 0.95) -> EpsilonBound:
    r"""A lower bound on ε from *one* run, in which every canary took part by its own fair coin.

    The half of the ``guesses`` with the highest scores is guessed to be in, the other half, with the lowest, out; the rest is passed over.
    The bound is the largest ε that makes so many hits unlikely. Equal scores are resolved against the attacker. More guesses are not always
    better: the last of them are the least certain.

    Args:
        scores_in: Of canaries that were in the run; larger for members, as `theorylab.instruments.membership.lira`.
        scores_out: Of canaries that were left out.
        delta: δ of the statement under test, in [0, 1).
        guesses: How many to make, in 1 ... canaries. Fix it before looking at the scores, or the confidence is lost.
        level: One-sided confidence.

    Returns:
        The bound; it fails in at most a share 1 − level of runs. It need not be near the true ε.

    Raises:
        ValueError: an argument out of its range, or scores that are not finite.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> scores_in, scores_out = 1 + 0.5 * rng.standard_normal(500), 0.5 * rng.standard_normal(500)
        >>> bound = audit_one_run(scores_in, scores_out, delta=1e-5, guesses=100)  # of a mechanism with ε = 10
        >>> 2.0 < bound.epsilon < 10.0
        True

    Source: Steinke, Nasr and Jagielski 2023, arXiv:2305.08846, Algorithm 1 and Appendix D (the p-value).
    """
    members, others = _checked(scores_in, scores_out, level, delta)
    canaries = members.size + others.size
    if not 1 <= guesses <= canaries:
        raise ValueError(f"guesses must be in 1..{canaries} (the number of canaries), got {guesses}.")
    scores = np.concatenate([members, others])
    inside = np.arange(canaries) < members.size
    ranked = inside[np.lexsort((inside, -scores))]  # from the highest; of equal scores those that are out come first, which is wrong
    guessed_in, guessed_out = (guesses + 1) // 2, guesses // 2
    correct = int(ranked[:guessed_in].sum() + (~ranked[canaries - guessed_out :]).sum())
    alpha = 1 - level

    def unlikely(epsilon: float) -> bool:
        return one_run_p_value(canaries, guesses, correct, epsilon, delta) <= alpha

    low, high = 0.0, 1.0
    if not unlikely(0.0):
        return EpsilonBound(0.0, delta, level, correct, guesses)
    while unlikely(high):
        low, high = high, 2 * high
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if unlikely(middle) else (low, middle)
    return EpsilonBound(low, delta, level, correct, guesses)


def _error_rates(scores_in: np.ndarray, scores_out: np.ndarray, threshold: float, level: float) -> tuple[float, float, int]:
    """A lower bound on the true and an upper one on the false positive rate, together of confidence ``level``; and the hits."""
    if math.isnan(threshold):
        raise ValueError("threshold must be a number, got nan: no score is above it.")
    hits, alarms = int((scores_in > threshold).sum()), int((scores_out > threshold).sum())
    side = (1 - level) / 2
    true = 1 - clopper_pearson(scores_in.size - hits, scores_in.size, side)
    return true, clopper_pearson(alarms, scores_out.size, side), hits + scores_out.size - alarms


def audit_clopper_pearson(scores_in: Any, scores_out: Any, *, delta: float, threshold: float, level: float = 0.95) -> EpsilonBound:
    r"""A lower bound on ε from independent runs with and without one row: :math:`\max\bigl(\ln\frac{t-\delta}{f},
    \ln\frac{1-f-\delta}{1-t}\bigr)`.

    t is a lower confidence bound on the true positive rate of "score above the threshold", f an upper one on its false positive rate, both
    exact and each of half the error.

    Args:
        scores_in: Of independent runs with the row.
        scores_out: Of independent runs without it.
        delta: δ of the statement under test, in [0, 1).
        threshold: Fixed before looking, or chosen on other runs.
        level: One-sided confidence.

    Raises:
        ValueError: an argument out of its range, or scores that are not finite.

    Example:
        >>> bound = audit_clopper_pearson([1.0] * 500, [0.0] * 500, delta=0.0, threshold=0.5)
        >>> round(bound.epsilon, 2)  # 500 runs on either side cannot prove more
        4.91

    Source: Jagielski et al. 2020, arXiv:2006.07709, Section 4 (the interval); both sides of the test as in Nasr et al. 2021,
    arXiv:2101.04535, Section IV.
    """
    members, others = _checked(scores_in, scores_out, level, delta)
    true, false, correct = _error_rates(members, others, threshold, level)
    ratios = ((true - delta) / false, (1 - false - delta) / (1 - true))
    found = max(0.0, *(math.log(r) if r > 0 else -math.inf for r in ratios))
    return EpsilonBound(found, delta, level, correct, members.size + others.size)


def audit_gdp(scores_in: Any, scores_out: Any, *, threshold: float, level: float = 0.95) -> MuBound:
    r"""A lower bound on the μ of a Gaussian mechanism, :math:`\mu \ge \Phi^{-1}(t) - \Phi^{-1}(f)`, from independent runs.

    Where the mechanism is known to be Gaussian, as one step of DP-SGD on all rows is, this tests the whole trade-off curve by one of its
    points, and reaches further than `audit_clopper_pearson` with the same runs. t and f are as there; ε at a δ follows from μ by the exact
    formula of the Gaussian mechanism.

    Raises:
        ValueError: an argument out of its range, or scores that are not finite.

    Example:
        >>> audit_gdp([1.0] * 500, [0.0] * 500, threshold=0.5).mu > 4
        True

    Source: Nasr et al. 2023, arXiv:2302.07956, Section 4 (auditing by the trade-off curve of the Gaussian mechanism).
    """
    from scipy.special import ndtri

    members, others = _checked(scores_in, scores_out, level)
    true, false, _ = _error_rates(members, others, threshold, level)
    return MuBound(max(0.0, float(ndtri(true) - ndtri(false))), level)
