"""Whether two quantities order the same things alike: Kendall's τ, with a bootstrap interval, or granulated by what was changed."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from theorylab.core.estimate import LEVEL, as_samples


def kendall_tau(x: Any, y: Any, *, resamples: int = 1000, level: float = LEVEL, seed: int = 0) -> tuple[float, float, float]:
    r"""Kendall's :math:`\tau_b` of paired values, and the ends of its percentile bootstrap interval over pairs.

    Args:
        x: At least three numbers, not all equal.
        y: As many, not all equal.
        resamples: Of the pairs, with replacement; those in which x or y is constant are left out.
        level: Two-sided confidence.
        seed: Of the resampling.

    Returns:
        (τ, low, high), all in [−1, 1].

    Raises:
        ValueError: unequal lengths, fewer than three pairs, a constant, a number that is not finite, or an option out of range.

    Example:
        >>> tau, low, high = kendall_tau([1, 2, 3, 4, 5, 6], [1, 2, 4, 3, 5, 6])
        >>> round(tau, 4), low <= tau <= high
        (0.8667, True)

    Source: Kendall 1945, doi:10.1093/biomet/33.3.239 (τ_b, ties in both); Efron 1979, doi:10.1214/aos/1176344552 (bootstrap).
    """
    x, y = as_samples(x, name="x"), as_samples(y, name="y")
    if x.size != y.size or x.size < 3:
        raise ValueError(f"x and y must be pairs, at least three, got {x.size} and {y.size} numbers.")
    for name, v in (("x", x), ("y", y)):
        if np.ptp(v) == 0:
            raise ValueError(f"{name} must not be constant: it orders nothing.")
    if resamples < 1 or not 0 < level < 1:
        raise ValueError(f"resamples must be at least 1 and level lie in (0, 1), got {resamples} and {level}.")
    dx, dy = np.sign(x[:, None] - x), np.sign(y[:, None] - y)
    rng = np.random.default_rng(seed)
    taus = []
    for _ in range(resamples):
        rows = rng.integers(x.size, size=x.size)
        tau = _tau(dx[np.ix_(rows, rows)], dy[np.ix_(rows, rows)])
        if tau is not None:
            taus.append(tau)
    whole = _tau(dx, dy)
    assert whole is not None
    low, high = (float(v) for v in np.quantile(taus or [whole], [(1 - level) / 2, (1 + level) / 2]))
    return whole, min(low, whole), max(high, whole)


def kendall_tau_a(x: Any, y: Any) -> float:
    r"""Kendall's :math:`\tau_a`: the mean over pairs of sign(Δx)·sign(Δy), so that a tie in either counts as no agreement at all.

    Unlike `kendall_tau`, it is defined for constants, which order nothing: then it is 0.

    Args:
        x: At least two numbers.
        y: As many.

    Raises:
        ValueError: unequal lengths, fewer than two pairs, or a number that is not finite.

    Example:
        >>> kendall_tau_a([1, 2, 3], [1, 3, 2]), kendall_tau_a([1, 1, 1], [1, 2, 3])
        (0.333..., 0.0)

    Source: Kendall 1938, doi:10.1093/biomet/30.1-2.81; Jiang et al. 2020, arXiv:1912.02178, Section 3 (the same, of measures and gaps).
    """
    x, y = as_samples(x, name="x"), as_samples(y, name="y")
    if x.size != y.size or x.size < 2:
        raise ValueError(f"x and y must be pairs, at least two, got {x.size} and {y.size} numbers.")
    signs = np.sign(x[:, None] - x) * np.sign(y[:, None] - y)
    return float(signs.sum()) / (x.size * (x.size - 1))


def granulated_tau(x: Any, y: Any, settings: Sequence[Mapping[str, Hashable]]) -> dict[str, float]:
    r"""Kendall's τ within groups that differ in one setting only, averaged over the groups, setting by setting.

    .. math:: \psi_i = \frac1{m_i}\sum_{\theta_{-i}} \tau_a\left(\{(x(\theta), y(\theta)) : \theta_i \in \Theta_i\}\right)

    A τ over all pairs may come from one setting that moves both quantities; ψ asks of each setting by itself whether x goes along with y
    when nothing else changes. Its mean over settings is Jiang's Ψ, its least value what Dziugaite et al. ask for. Pairs of equal y say
    nothing about x and are left out (the source counts them as 0), so that y itself has ψ = 1; pairs of equal x count as no agreement.

    Args:
        x: One number a run: what is judged.
        y: As many: what it is judged by.
        settings: Name → value of each run, the same names for all. Settings of which all runs have one value are left out.

    Returns:
        Setting → ψ in [−1, 1], in the order of the names; 0 where no two y differ.

    Raises:
        ValueError: unequal lengths, other names in one of the runs, or a setting that never changes alone.

    Example:
        >>> grid = [{"width": w, "depth": d} for w in (1, 2) for d in (1, 2)]
        >>> granulated_tau([0, 1, 2, 3], [0, -1, 2, 1], grid)  # goes along with width, against depth
        {'width': 1.0, 'depth': -1.0}

    Source: Jiang et al. 2020, arXiv:1912.02178, Section 3 (the granulated Kendall's coefficient).
    """
    x, y = as_samples(x, name="x"), as_samples(y, name="y")
    if not x.size == y.size == len(settings):
        raise ValueError(f"x, y and settings must be of one length, got {x.size}, {y.size} and {len(settings)}.")
    names = list(settings[0])
    if any(set(run) != set(names) for run in settings):
        raise ValueError(f"settings must have the same names in every run, {sorted(names)}.")
    found = {}
    for name in names:
        if len({run[name] for run in settings}) == 1:
            continue
        groups: dict[tuple[Hashable, ...], list[int]] = {}
        for i, run in enumerate(settings):
            groups.setdefault(tuple(run[other] for other in names if other != name), []).append(i)
        pairs = [np.array(list(combinations(rows, 2))).T for rows in groups.values() if len(rows) > 1]
        if not pairs:
            raise ValueError(f"setting {name!r} never changes alone: run a grid.")
        each = [(np.sign(x[i] - x[j]) * np.sign(y[i] - y[j]))[y[i] != y[j]] for i, j in pairs]
        found[name] = float(np.mean([signs.mean() for signs in each if signs.size] or [0.0]))
    return found


def _tau(dx: np.ndarray, dy: np.ndarray) -> float | None:
    size = float(np.sqrt((dx != 0).sum() * (dy != 0).sum()))
    return float((dx * dy).sum()) / size if size else None
