"""One run with many canaries bounds the ε of a mechanism from below, and the bound is rarely above the true ε.

Each of a thousand canaries takes part by a coin of its own, in one run. The auditor guesses of some which way their coins fell, and passes
over the rest. An (ε, δ)-private mechanism lets no guess be right more often than randomized response would, whatever the guesses before,
which turns the number of hits into a lower bound on ε that holds with confidence. Here the mechanism is the Gaussian one, whose ε is known
exactly; a mechanism that adds a quarter of the noise it states is caught in every run.

The bound is valid, not tight: it is two to three times below the true ε, and with more guesses it can be looser, since the last are the
least certain. At σ = 0.5 a hundred guesses are nearly all right, and no more could be proved with them. A lie by a factor of two, at σ = 2
stated and 1 added, escapes most runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from theorylab.core.claim import AtMost, Claim, Finding
from theorylab.core.config import Config, setting
from theorylab.core.series import Series, Stage
from theorylab.core.source import Source
from theorylab.core.study import study
from theorylab.instruments.privacy_audit import audit_one_run
from theorylab.stats.binomial import proportion
from theorylab.theory.gaussian_privacy import gaussian_epsilon

VALID = Claim(
    "private_learning/audit/valid",
    "In at most one of twenty runs the lower bound of a one-run audit at 95 % confidence exceeds the true ε.",
    formula=r"P\bigl(\hat\varepsilon_{0.95} > \varepsilon\bigr) \le 0.05",
    source=Source("Steinke, Nasr and Jagielski 2023", "Algorithm 1 and Appendix D (the p-value of correct guesses)", "arXiv:2305.08846"),
    kind="statistical",
    relation=AtMost(atol=0.03),
    control="a mechanism that adds a quarter of the noise it states",
    reading="What an audit finds is a fact about the mechanism, no estimate of its ε: the truth lies above, often far above. A small bound "
    "does not show that the mechanism is private. The number of guesses must be fixed before the scores are seen.",
)


@dataclass(frozen=True, kw_only=True)
class AuditConfig(Config):
    """Gaussian mechanisms of several σ; the runs of one σ are its replicas."""

    seeds: int = setting(200, "runs of each mechanism, each with its own random numbers", low=20)
    canaries: int = setting(1000, "canaries, each in the data by a coin", low=10)
    guesses: int = setting(100, "of them guessed, half as members", low=1)
    delta: float = setting(1e-5, "δ of the statement", low=1e-12, high=0.1)
    sigmas: tuple[float, ...] = setting((0.5, 1.0, 2.0), "noise over the sensitivity", low=0.1)
    lie: float = setting(4.0, "by what the control's noise is smaller than stated", low=1.0)


def bounds(config: AuditConfig, sigma: float, guesses: int | None = None) -> np.ndarray:
    """The audit's bound in every run of a mechanism that adds noise σ to each canary's bit, (runs,)."""
    found = []
    for seed in config.replica_seeds:
        rng = np.random.default_rng(seed)
        inside = rng.random(config.canaries) < 0.5
        seen = inside + sigma * rng.standard_normal(config.canaries)
        found.append(audit_one_run(seen[inside], seen[~inside], delta=config.delta, guesses=guesses or config.guesses).epsilon)
    return np.array(found)


@study(
    "private_learning/audit",
    claims=[VALID],
    tiny=AuditConfig(seeds=64, sigmas=(2.0,)),
    small=AuditConfig(),
    large=AuditConfig(seeds=1000, canaries=10_000, guesses=1000),
)
def audit(config: AuditConfig) -> Iterator[Finding | Series | Stage]:
    """Audit every mechanism against its own ε, then one that lies."""
    truths, medians, lows, highs = [], [], [], []
    for sigma in config.sigmas:
        yield Stage(f"σ = {sigma:g}")
        epsilon, found = gaussian_epsilon(1 / sigma, config.delta), bounds(config, sigma)
        above = int((found > epsilon).sum())
        note = f"true ε {epsilon:.2f}, median bound {np.median(found):.2f}, {above} violations in {found.size} runs"
        yield VALID.check(predicted=0.05, measured=proportion(above, found.size), setting=f"σ = {sigma:g}", note=note)
        truths.append(epsilon)
        medians.append(float(np.median(found)))
        lows.append(float(np.quantile(found, 0.05)))
        highs.append(float(found.max()))
    stated = config.sigmas[-1]
    yield Stage("a mechanism that lies")
    epsilon, caught = gaussian_epsilon(1 / stated, config.delta), bounds(config, stated / config.lie)
    setting = f"σ = {stated:g} stated, {stated / config.lie:g} added"
    share = proportion(int((caught > epsilon).sum()), caught.size)
    yield VALID.control_check(predicted=0.05, measured=share, setting=setting, note=f"true ε {epsilon:.2f}")

    figure = Series("valid", "One-run audits stay below the truth", x="noise σ", y="ε", claim=VALID.key, x_scale="log", y_scale="log")
    grid = np.geomspace(min(config.sigmas), max(config.sigmas) * 1.001, 30)
    figure.line("true ε", grid, [gaussian_epsilon(1 / s, config.delta) for s in grid], role="predicted")
    floor = 1e-2  # a run that proves nothing has no place on a logarithmic axis
    figure.line("median bound", config.sigmas, medians, low=np.maximum(lows, floor), high=highs, band="5 % to the largest of all runs")
    yield figure.line(f"1/{config.lie:g} of the noise stated", [stated], [float(np.median(caught))], role="control", mark="points")

    yield Stage("number of guesses")
    numbers = [n for n in (10, 30, 100, 300, 1000) if n <= config.canaries]
    effort = Series("guesses", "More guesses are not always better", x="guesses", y="median bound on ε", claim=VALID.key, x_scale="log")
    few = AuditConfig(seeds=min(40, config.seeds), seed=config.seed, canaries=config.canaries, delta=config.delta)
    for sigma in config.sigmas:
        effort.line(f"σ = {sigma:g}", numbers, [float(np.median(bounds(few, sigma, n))) for n in numbers])
    yield effort
