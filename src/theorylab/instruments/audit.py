"""Which measures of generalization survive a change of seed, of settings, of scale and of labels: a table with flags."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch

from theorylab.core.problem import Problem
from theorylab.core.reading import Reading
from theorylab.instruments.balancedness import layer_pairs
from theorylab.instruments.flatness import flatness
from theorylab.instruments.norms import norms
from theorylab.learning.population import Population
from theorylab.stats.rank_correlation import kendall_tau

SEED = "seed"
"""The setting that tells apart runs which should be alike."""
UNCHANGED = 1e-3
"""Relative change of a measure up to which a rescaling counts as not noticed."""


@dataclass(frozen=True)
class Run:
    """A trained network, how it generalizes, and how it came about.

    Attributes:
        problem: The network on its training rows.
        gap: Test minus training error or loss: what a measure is asked to order.
        settings: Name → value, e.g. ``{"seed": 0, "lr": 0.1, "labels": "random"}``; of all runs the same names.
    """

    problem: Problem
    gap: float
    settings: Mapping[str, Hashable]


@dataclass(frozen=True)
class MeasureAudit:
    """How one measure did. Larger values should go with larger gaps.

    Attributes:
        name: Of the measure.
        values: One a run.
        tau: Kendall's τ with the gap, over all runs.
        interval: Its bootstrap interval.
        agreement: Setting → share of pairs of runs which differ in it alone (and in their gap) that the measure orders as the gap does.
        fickle: Setting → share of its changes whose effect on the measure has one sign with one seed, another with another.
        rescaling: Largest relative change when ReLU units are rescaled, which leaves the network's function as it is; None where no net
            could be rescaled.
        flags: What speaks against it, in words.
    """

    name: str
    values: tuple[float, ...]
    tau: float
    interval: tuple[float, float]
    agreement: Mapping[str, float]
    fickle: Mapping[str, float]
    rescaling: float | None
    flags: tuple[str, ...]

    @property
    def worst_setting(self) -> str | None:
        """The setting of least agreement, None where there is none. Not the seed: runs that differ in it alone differ by chance."""
        return min((s for s in self.agreement if s != SEED), key=lambda s: self.agreement[s], default=None)


@dataclass(frozen=True)
class Audit:
    """All measures, the best first by the agreement in their worst setting, then by τ; prints as a table."""

    measures: tuple[MeasureAudit, ...]

    def readings(self) -> tuple[Reading, ...]:
        """τ of every measure with its interval; flags are the notes."""
        return tuple(Reading(f"τ of {m.name}", m.tau, "measure", interval=m.interval, note="; ".join(m.flags)) for m in self.measures)

    def __str__(self) -> str:
        rows = [("measure", "τ", "interval", "worst setting", "flags")]
        for m in self.measures:
            worst = m.worst_setting
            said = "" if worst is None else f"{worst} {m.agreement[worst]:.2f}"
            rows.append((m.name, f"{m.tau:+.2f}", f"{m.interval[0]:+.2f} … {m.interval[1]:+.2f}", said, "; ".join(m.flags) or "none"))
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        return "\n".join("  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[4]]) for row in rows)


def runs_of(population: Population, problem: Problem, gaps: Sequence[float], settings: Sequence[Mapping[str, Hashable]]) -> tuple[Run, ...]:
    """The replicas of a trained population as runs: ``problem`` with the parameters, frozen ones too, and the buffers of each.

    Args:
        population: Of networks whose parameters and buffers have the names of the problem's.
        problem: On the rows that the measures look at, the same for all.
        gaps: One a replica.
        settings: One a replica.

    Raises:
        ValueError: another number of gaps or settings than replicas, or parameters or buffers that do not fit the problem.
    """
    if not len(gaps) == len(settings) == population.size:
        raise ValueError(f"gaps and settings must be one a replica, {population.size}, got {len(gaps)} and {len(settings)}.")
    return tuple(Run(own, gap, given) for own, gap, given in zip(population.problems(problem), gaps, settings, strict=True))


def standard_measures(problem: Problem) -> dict[str, float]:
    """Norms, margin, flatness, loss and gradient, each turned so that larger should mean a larger gap."""
    found = norms(problem)
    measures = {
        "loss": float(problem.loss()),
        "gradient norm": float(problem.gradient().norm()),
        "distance from zero": found.distance,
        "log spectral product": found.log_spectral,
        "log Frobenius product": found.log_frobenius,
        "log spectral complexity": found.log_spectral_complexity,
        "sharpness, isotropic": -math.log(flatness(problem, kind="isotropic").value),
        "sharpness, magnitude": -math.log(flatness(problem, kind="magnitude").value),
    }
    if found.log_path_norm is not None:
        measures["log path norm"] = found.log_path_norm
    if found.margins is not None:
        measures["minus margin, lower tenth"] = -found.margins[0.1]
    return measures


def rescaled(problem: Problem, *, seed: int = 0) -> Problem | None:
    """The same function at other parameters: ReLU units' inputs times c, outputs over c, log-uniform c in 1/8 … 8; None where none are.

    Raises:
        ArithmeticError: the loss changed, by more than rounding.
    """
    found = layer_pairs(problem)
    if isinstance(found, str):
        return None
    generator, moved = torch.Generator().manual_seed(seed), dict(problem.params)
    pairs = [(pair.inner, pair.outer) for pair in found if not pair.why_not]
    for inner, outer in pairs:
        W = moved[f"{inner}.weight"]
        c = (math.log(8) * (2 * torch.rand(len(W), generator=generator, dtype=torch.float64, device="cpu") - 1)).exp().to(W)
        moved[f"{inner}.weight"] = c[:, None] * W
        if f"{inner}.bias" in moved:
            moved[f"{inner}.bias"] = c * moved[f"{inner}.bias"]
        moved[f"{outer}.weight"] = moved[f"{outer}.weight"] / c
    if not pairs:
        return None
    other = problem.at(moved)
    before, after = float(problem.loss()), float(other.loss())
    if abs(after - before) > 1e3 * torch.finfo(problem.dtype).eps * max(1.0, abs(before)):
        raise ArithmeticError(f"rescaling must not change the loss, but it went from {before} to {after}: report this network as a bug.")
    return other


def audit(
    runs: Sequence[Run],
    measures: Callable[[Problem], Mapping[str, float]] = standard_measures,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Audit:
    r"""Ask of every measure whether it orders runs as their generalization gap does, and what moves it that should not.

    A high τ over all runs may come from one setting alone, e.g. width. So each setting is looked at by pairs of runs which differ in it and
    in nothing else; the worst setting is what counts, and the seed is none. A measure is *flagged* where it (1) agrees with the gap in
    fewer than half of such pairs, (2) responds to a setting with a sign that depends on the seed, in more than a quarter of cases, (3)
    moves under a rescaling that leaves the network's function as it is, or (4) has an interval for τ that holds zero.

    Args:
        runs: At least three, with the same names of settings and not all of one gap. ``"seed"`` marks repetitions, which differ by chance:
            a measure is neither ranked nor flagged by how it orders them.
        measures: Problem → name → number, larger for larger expected gaps; asked once a run, and once more rescaled.
        resamples: Of the bootstrap.
        seed: Of bootstrap and rescaling.

    Raises:
        ValueError: too few runs, other settings in one of them, or a measure that is not finite or the same for all runs.

    Example:
        >>> def run(w, gap, lr):
        ...     net = torch.nn.Linear(1, 1, bias=False)
        ...     problem = Problem(net, torch.nn.functional.mse_loss, (torch.ones(2, 1), torch.zeros(2, 1)))
        ...     return Run(problem.at({"weight": torch.tensor([[w]])}), gap, {"lr": lr})
        >>> runs = [run(w, gap=w, lr=w) for w in (1.0, 2.0, 3.0, 4.0)]
        >>> table = audit(runs, lambda p: {"norm": float(p.params["weight"].norm())})
        >>> table.measures[0].tau, table.measures[0].agreement
        (1.0, {'lr': 1.0})

    Source: Jiang et al. 2020, arXiv:1912.02178, Section 3 (τ, and by one setting at a time); Dziugaite et al. 2020, arXiv:2010.11924,
    Section 4 (the worst environment).
    """
    names = _check(runs)
    tables = [dict(measures(run.problem)) for run in runs]
    others = [rescaled(run.problem, seed=seed) for run in runs]
    moved = [None if other is None else dict(measures(other)) for other in others]
    gaps = [run.gap for run in runs]
    audits = []
    for name in tables[0]:
        values = tuple(float(table[name]) for table in tables)
        tau, low, high = kendall_tau(values, gaps, resamples=resamples, seed=seed)
        agreement = {s: share for s in names if (share := _agreement(runs, values, s)) is not None}
        fickle = {s: share for s in names if s != SEED and (share := _fickle(runs, values, s)) is not None}
        spread = max(abs(v) for v in values)
        changes = [abs(table[name] - v) / spread for table, v in zip(moved, values, strict=True) if table is not None]
        rescaling = max(changes) if changes else None
        audits.append(
            MeasureAudit(name, values, tau, (low, high), agreement, fickle, rescaling, _flags(agreement, fickle, rescaling, (low, high)))
        )

    def rank(m: MeasureAudit) -> tuple[float, float]:
        worst = m.worst_setting
        return 0.0 if worst is None else -m.agreement[worst], -m.tau

    return Audit(tuple(sorted(audits, key=rank)))


def _check(runs: Sequence[Run]) -> tuple[str, ...]:
    if len(runs) < 3:
        raise ValueError(f"runs must be at least three to be ordered, got {len(runs)}.")
    names = tuple(runs[0].settings)
    for i, run in enumerate(runs):
        if set(run.settings) != set(names):
            raise ValueError(f"runs must have the settings {sorted(names)}, run {i} has {sorted(run.settings)}.")
        if not math.isfinite(run.gap):
            raise ValueError(f"runs must have finite gaps, run {i} has {run.gap}.")
    return names


def _differ_in(a: Run, b: Run, setting: str) -> bool:
    return [k for k in a.settings if a.settings[k] != b.settings[k]] == [setting]


def _agreement(runs: Sequence[Run], values: Sequence[float], setting: str) -> float | None:
    pairs = [(i, j) for i, j in combinations(range(len(runs)), 2) if _differ_in(runs[i], runs[j], setting) and runs[i].gap != runs[j].gap]
    if not pairs:
        return None
    return sum((values[i] - values[j]) * (runs[i].gap - runs[j].gap) > 0 for i, j in pairs) / len(pairs)


def _fickle(runs: Sequence[Run], values: Sequence[float], setting: str) -> float | None:
    """Over changes (from, to) of the setting at fixed others: whether the seeds agree on the sign of the effect."""
    effects: dict[Hashable, set[bool]] = {}
    counts: dict[Hashable, int] = {}
    for i, j in combinations(range(len(runs)), 2):
        if not _differ_in(runs[i], runs[j], setting):
            continue
        low, high = sorted((i, j), key=lambda r: repr(runs[r].settings[setting]))
        rest = tuple(sorted((k, repr(v)) for k, v in runs[i].settings.items() if k not in (setting, SEED)))
        change = (repr(runs[low].settings[setting]), repr(runs[high].settings[setting]), rest)
        effects.setdefault(change, set()).add(values[high] > values[low])
        counts[change] = counts.get(change, 0) + 1
    repeated = [len(effects[change]) > 1 for change in effects if counts[change] > 1]
    return sum(repeated) / len(repeated) if repeated else None


def _flags(
    agreement: Mapping[str, float], fickle: Mapping[str, float], rescaling: float | None, interval: tuple[float, float]
) -> tuple[str, ...]:
    said = [f"wrong way under {s}: agrees in {share:.0%}" for s, share in agreement.items() if share < 0.5 and s != SEED]
    said += [f"its response to {s} changes sign with the seed" for s, share in fickle.items() if share > 0.25]
    if rescaling is not None and rescaling > UNCHANGED:
        said.append(f"moves by {rescaling:.0%} under a rescaling that changes nothing")
    if interval[0] <= 0 <= interval[1]:
        said.append("τ may be zero")
    return tuple(said)
