"""Distributions of the privacy loss state a smaller ε than Rényi orders, sampling makes it far smaller, and a normal limit false.

Every accountant answers for the same run: T steps, each a Gaussian sum over rows drawn with chance q. Rényi orders keep moments of the
privacy loss and pay for the conversion; the loss's distribution, on a grid and convolved, loses only the grid. How the grid is filled
decides whether it is usable: connecting the dots errs by the square of a cell a step, rounding up by half a cell, which over thousands of
steps makes a rigorous bound that is worse than the one it was to improve on. Rounding down, on a fine grid, bounds ε from below. The
central limit theorem replaces the distribution by a normal, whose tail is too thin. Nothing is random, so seeds play no part.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from theorylab.core.claim import AtLeast, AtMost, Claim, Finding
from theorylab.core.config import Config, setting
from theorylab.core.privacy_ledger import PrivacyLedger
from theorylab.core.series import Series, Stage
from theorylab.core.source import Source
from theorylab.core.study import study
from theorylab.theory.gaussian_privacy import clt_mu, gaussian_epsilon
from theorylab.theory.privacy import epsilon
from theorylab.theory.privacy_loss import Rounding, composed

PLD_BELOW_RDP = Claim(
    "private_learning/accounting/pld_below_rdp",
    "ε from the distribution of the privacy loss is at most ε from Rényi orders, and at least a lower bound on the truth.",
    formula=r"\underline\varepsilon \le \varepsilon_{\mathrm{PLD}}(\delta) \le \min_{\alpha>1}\; T D_\alpha + \ln\frac{\alpha-1}{\alpha} "
    r"- \frac{\ln\delta + \ln\alpha}{\alpha-1}",
    source=Source(
        "Koskela, Jälkö and Honkela 2020",
        "Section 5 (the Fourier accountant against moments); connecting the dots is Doroshenko et al. 2022, arXiv:2207.04380",
        "arXiv:1906.03049",
    ),
    kind="inequality",
    relation=AtMost(),
    control="the same distribution with every loss rounded up, on a grid of cells of 10⁻⁴",
    reading="Both are upper bounds on the same ε; the difference, a tenth or so, is what converting moments costs. A grid makes "
    "the distribution's ε a bound only if it is filled with care, and rounding up is careful and useless over many steps. The lower bound "
    "shows how little is left to gain: beyond it no accountant can go for this mechanism.",
)

AMPLIFICATION = Claim(
    "private_learning/accounting/amplification",
    "Sampling makes the difference: at a rate of one in a hundred, a thousand steps reveal less than a hundredth of what they else would.",
    formula=r"\varepsilon(q = 1)\,/\,\varepsilon(q) \ge 1/q",
    source=Source("Abadi et al. 2016", "Section 3.1 (the moments accountant, and amplification by sampling)", "arXiv:1607.00133"),
    kind="inequality",
    relation=AtLeast(),
    control="no sampling, q = 1, where the ratio is 1",
    reading="Without sampling no network could be trained privately for thousands of steps at a useful noise. The whole gain rests on the "
    "sampler: ε computed for Poisson batches says nothing of shuffled epochs. With little noise or few steps the gain is smaller than 1/q, "
    "as it is for pure ε.",
)

CLT_UNSAFE = Claim(
    "private_learning/accounting/clt_unsafe",
    "The central limit approximation is no upper bound: it states an ε that is at least a twentieth below a lower bound on the true one.",
    formula=r"\varepsilon_{\mathrm{CLT}} \le 0.95\;\underline\varepsilon, \qquad \mu_{\mathrm{CLT}} = q\sqrt{T(e^{1/\sigma^2}-1)}",
    source=Source(
        "Gopi, Lee and Wutschitz 2021",
        "Section 1 (that the approximation underestimates); the approximation is Bu et al. 2019, arXiv:1911.11607, Section 3",
        "arXiv:2106.02848",
    ),
    kind="inequality",
    relation=AtMost(),
    control="no sampling and much noise, where the steps are normal already",
    reading="A bound that is right on average over settings is not a bound: someone who trains until this ε reaches a promised value has "
    "broken the promise. The privacy loss of a sampled step has a long tail to the right, which a normal of the same variance lacks, and "
    "small δ asks for exactly that tail.",
)


FIXED_SIZE = Claim(
    "private_learning/accounting/fixed_size",
    "Batches of fixed size can reveal five times what Poisson batches of the same rate do, where neighbours replace a row.",
    formula=r"\varepsilon_{\text{fixed size}}(q,\sigma,T) \ge 5\;\varepsilon_{\text{Poisson}}(q,\sigma,T)",
    source=Source("Lebeda et al. 2024", "the comparison of Poisson sampling with sampling without replacement", "arXiv:2405.20769"),
    kind="inequality",
    relation=AtLeast(),
    control="twice the noise on the batches of fixed size, which makes up for the distance",
    reading="Where a row is not drawn, a Poisson batch stays without it, one clipping norm away; in a batch of fixed size another takes "
    "its place, which may pull the opposite way, two norms away. Under much noise the two accounts differ by less than a factor of 2, near "
    "σ = 1 they are worlds apart. Stating the Poisson ε for a loader of equal batches is a common error.",
)


@dataclass(frozen=True, kw_only=True)
class AccountingConfig(Config):
    """A grid of runs, and the runs in which the claims were first met."""

    rates: tuple[float, ...] = setting((0.001, 0.01, 0.1), "sampling rates q", low=1e-5, high=1.0)
    sigmas: tuple[float, ...] = setting((0.8, 1.5, 4.0), "noise multipliers σ", low=0.3)
    steps: tuple[int, ...] = setting((10, 1000), "steps T", low=1)
    delta: float = setting(1e-5, "δ at which ε is compared", low=1e-9, high=0.1)
    rounding_steps: int = setting(14_062, "steps of the run with q = 256/60000, σ = 1.1 on which rounding is shown", low=100)
    cell: float = setting(1e-4, "cell of the grid on which losses are rounded up, nats", low=1e-6, high=1e-2)
    points: int = setting(14, "points of each figure's curves", low=3)


def rounded(run: PrivacyLedger, delta: float, rounding: Rounding, cell: float | None = None) -> float:
    """ε by a distribution whose losses are put on the grid in a given way."""
    return max(losses.epsilon(delta) for losses in composed([run], cell, rounding, delta=delta))


def lower_bound(run: PrivacyLedger, delta: float) -> float:
    """ε that no accountant may go below: losses rounded down, on cells that make the drift of half a cell a step small.

    Cells are at least an eighth of those on which the dots are connected, or wide losses would not fit.
    """
    finest = max(losses.cell for losses in composed([run])) / 8
    return max(0.0, rounded(run, delta, "down", max(finest, min(2e-5, 0.02 / run.steps))))


@study(
    "private_learning/accounting",
    claims=[PLD_BELOW_RDP, AMPLIFICATION, CLT_UNSAFE, FIXED_SIZE],
    tiny=AccountingConfig(rates=(0.01,), sigmas=(4.0,), steps=(100,), rounding_steps=14_062, points=3),
    small=AccountingConfig(),
    large=AccountingConfig(
        rates=(1e-4, 1e-3, 0.01, 0.03, 0.1, 0.3), sigmas=(0.6, 0.8, 1.0, 1.5, 2.0, 4.0), steps=(1, 10, 100, 1000), points=40
    ),
)
def accounting(config: AccountingConfig) -> Iterator[Finding | Series | Stage]:
    """Ask every accountant about the same runs."""
    yield from below_rdp(config)
    yield from amplification(config)
    yield from central_limit(config)
    yield from fixed_size(config)


def below_rdp(config: AccountingConfig) -> Iterator[Finding | Series | Stage]:
    """The grid of runs between its lower and upper bounds, and rounding up on the run of a well-known tutorial."""
    yield Stage("every cell")
    runs = [PrivacyLedger(*cell) for cell in itertools.product(config.rates, config.sigmas, config.steps)]
    found = [epsilon(run, config.delta) for run in runs]
    orders = [epsilon(run, config.delta, method="rdp") for run in runs]
    lower = [lower_bound(run, config.delta) for run in runs]
    yield PLD_BELOW_RDP.check(predicted=orders, measured=found, setting="PLD against Rényi orders")
    yield PLD_BELOW_RDP.check(predicted=found, measured=lower, setting="lower bound against PLD")

    yield Stage("rounding")
    run = PrivacyLedger(256 / 60_000, 1.1, config.rounding_steps)
    by_orders = epsilon(run, config.delta, method="rdp")
    yield PLD_BELOW_RDP.control_check(
        predicted=by_orders, measured=rounded(run, config.delta, "up", config.cell), setting="losses rounded up"
    )
    cells = np.geomspace(config.cell / 5, config.cell * 2, max(3, config.points // 2))
    figure = Series("rounding", "ε by how losses are put on the grid", x="cell of the grid [nats]", y="ε", claim=PLD_BELOW_RDP.key)
    figure.x_scale = "log"
    figure.line("connecting the dots", cells, [rounded(run, config.delta, "connect", c) for c in cells])
    figure.line("rounded up", cells, [rounded(run, config.delta, "up", c) for c in cells], role="control")
    figure.line("rounded down: below the truth", cells, [rounded(run, config.delta, "down", c) for c in cells])
    yield figure.line("Rényi orders", cells, [by_orders] * len(cells), role="predicted")


def amplification(config: AccountingConfig) -> Iterator[Finding | Series | Stage]:
    """ε of one run with and without sampling."""
    yield Stage("sampling")
    q, sigma, steps = 0.01, 4.0, 1000
    sampled = epsilon(PrivacyLedger(q, sigma, steps), config.delta)
    whole = epsilon(PrivacyLedger(1.0, sigma, steps), config.delta)
    setting = f"q = {q:g}, σ = {sigma:g}, T = {steps}"
    yield AMPLIFICATION.check(predicted=1 / q, measured=whole / sampled, setting=setting, note=f"ε {sampled:.3f} against {whole:.1f}")
    unsampled = epsilon(PrivacyLedger(q, sigma, steps, sampling="unamplified"), config.delta)
    yield AMPLIFICATION.control_check(predicted=1 / q, measured=whole / unsampled, setting="every row in every batch")

    rates = np.geomspace(1e-3, 1, config.points)
    figure = Series("sampling", f"ε against the sampling rate, σ = {sigma:g}, T = {steps}", x="sampling rate q", y="ε")
    figure.claim, figure.x_scale, figure.y_scale = AMPLIFICATION.key, "log", "log"
    figure.line("PLD", rates, [epsilon(PrivacyLedger(r, sigma, steps), config.delta) for r in rates], mark="points")
    figure.line("q times ε without sampling", rates, rates * whole, role="predicted")
    yield figure.line("not sampled", rates, [whole] * len(rates), role="control")


def central_limit(config: AccountingConfig) -> Iterator[Finding | Series | Stage]:
    """The approximation against the lower bound, where it fails and where there is nothing to approximate."""
    yield Stage("central limit")

    def ratio(run: PrivacyLedger) -> float:
        return gaussian_epsilon(clt_mu(run.q, run.sigma, run.steps), config.delta) / lower_bound(run, config.delta)

    run = PrivacyLedger(0.1, 1.0, 100)
    yield CLT_UNSAFE.check(predicted=0.95, measured=ratio(run), setting="q = 0.1, σ = 1, T = 100")
    yield CLT_UNSAFE.control_check(predicted=0.95, measured=ratio(PrivacyLedger(1.0, 10.0, 100)), setting="q = 1, σ = 10, T = 100")

    steps = np.unique(np.geomspace(1, 1000, config.points).astype(int))
    runs = [dataclasses.replace(run, steps=int(t)) for t in steps]
    figure = Series("steps", f"ε against steps, q = {run.q:g}, σ = {run.sigma:g}, δ = {config.delta:g}", x="steps", y="ε")
    figure.claim, figure.x_scale, figure.y_scale = CLT_UNSAFE.key, "log", "log"
    figure.line("Rényi orders", steps, [epsilon(r, config.delta, method="rdp") for r in runs], role="predicted")
    figure.line("PLD", steps, [epsilon(r, config.delta) for r in runs])
    approximate = [gaussian_epsilon(clt_mu(r.q, r.sigma, r.steps), config.delta) for r in runs]
    yield figure.line("central limit, no bound", steps, approximate, role="control")


def fixed_size(config: AccountingConfig) -> Iterator[Finding | Series | Stage]:
    """Two ways to draw batches of the same mean size, for neighbours of the same kind."""
    yield Stage("batches of fixed size")
    poisson = PrivacyLedger(0.01, 1.0, 500, adjacency="replace_one")
    fixed = dataclasses.replace(poisson, sampling="fixed_size")

    def ratio(noise: float) -> float:
        return epsilon(dataclasses.replace(fixed, sigma=noise), config.delta) / epsilon(poisson, config.delta)

    yield FIXED_SIZE.check(predicted=5.0, measured=ratio(1.0), setting="q = 0.01, σ = 1, T = 500")
    yield FIXED_SIZE.control_check(predicted=5.0, measured=ratio(2.0), setting="σ = 2 for batches of fixed size")

    noises = np.geomspace(0.8, 8, config.points)
    figure = Series("fixed", "ε by how batches are drawn, q = 0.01, T = 500", x="noise multiplier σ", y="ε", claim=FIXED_SIZE.key)
    figure.x_scale = figure.y_scale = "log"
    for label, run in (("fixed size", fixed), ("Poisson, a row replaced", poisson)):
        figure.line(label, noises, [epsilon(dataclasses.replace(run, sigma=s), config.delta) for s in noises])
    added = dataclasses.replace(poisson, adjacency="add_remove")
    yield figure.line("Poisson, a row more", noises, [epsilon(dataclasses.replace(added, sigma=s), config.delta) for s in noises])
