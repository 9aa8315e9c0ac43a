"""Fitting the noise exactly: what interpolation costs, when it costs nothing, and why the worst model is the one that barely interpolates.

Least squares of smallest norm can be followed exactly. With independent features of one variance its risk is known for every number of
rows n and features p: it explodes where p = n and falls again beyond. With other covariances many directions of small variance act as a
ridge κ that nobody asked for, and the noise is spread over so many of them that it hardly shows in a prediction: overfitting is benign
where the spectrum's tail has far more effective directions than there are rows. A power law i^{-1.5} has not, and pays for the noise.

The peak is not a matter of squares. Random ReLU features fitted by least squares have it, and so has a network trained by Adam on noisy
labels: its test *loss* is largest at the width at which the training rows are first fitted. The test *error* of the same networks hardly
shows a bump with a few hundred rows, so nothing is claimed of it. Either peak is gone with the best ridge, or where training stops at its
best moment.

The settings were chosen on base seeds 5000-5005: the width, number of rows and step size for which a network reaches the threshold within
a few seconds. With all 4000 rows of MNIST-1D (three seeds, six widths, the other settings those of the large scale) the test loss is 1.6
nats at 265 parameters, 14.6 at 5110, where training first interpolates, and 7.4 at 10,210; at the best stopping time 1.6, 1.3 and 1.3. The
asymptotic formula is compared where p is at least 1.5 n: nearer to n it is off by about 1/(p − n), which the limit leaves out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from theorylab.core.claim import Claim, Equals, Finding, Orders
from theorylab.core.config import Config, setting
from theorylab.core.seeds import derived_seed
from theorylab.core.series import Series, Stage
from theorylab.core.source import Source
from theorylab.core.study import study
from theorylab.data.images import mnist1d
from theorylab.data.labels import corrupt
from theorylab.data.synthetic import teacher_student
from theorylab.learning.optimizers.adam import adam
from theorylab.learning.population import Population
from theorylab.linalg.least_squares import minimum_norm, ridge_path
from theorylab.models.mlp import mlp
from theorylab.theory.generalization import effective_ranks, isotropic_ridgeless_risk, ridgeless_risk

RIDGELESS = Claim(
    "generalization/interpolation/ridgeless_exact",
    "The excess risk of least squares of smallest norm on isotropic Gaussian features is known exactly for every number of rows.",
    formula=r"E\,\|\hat\beta - \beta\|^2 = \begin{cases} \sigma^2\,\frac{p}{n-p-1} & p < n-1 \\ "
    r"\|\beta\|^2(1 - \frac np) + \sigma^2\,\frac{n}{p-n-1} & p > n+1 \end{cases}",
    source=Source("Hastie et al. 2022", "Theorem 1 (its limit; at finite n by the mean of an inverse Wishart matrix)", "arXiv:1903.08560"),
    kind="statistical",
    relation=Equals(rtol=0.05),
    control="eigenvalues i^{-1.5} of the covariance, of the same total and signal, with more features than rows",
    reading="The peak at p = n is variance: the smallest singular value of a square matrix is tiny, and the noise is divided by it. "
    "Beyond it more features mean a smaller norm. With fewer features than rows no covariance changes the risk; with more, it decides.",
)
BENIGN = Claim(
    "generalization/interpolation/benign",
    "Interpolation is ridge regression with a penalty κ set by the spectrum, harmless where its tail has far more directions than rows.",
    formula=r"R = \frac{\kappa^2\sum_i \lambda_i\beta_i^2/(\lambda_i+\kappa)^2}{1 - D/n} + \sigma^2\frac{D}{n-D},\quad "
    r"\sum_i\frac{\lambda_i}{\lambda_i+\kappa} = n,\quad D = \sum_i\frac{\lambda_i^2}{(\lambda_i+\kappa)^2}",
    source=Source(
        "Hastie et al. 2022", "Theorem 2 (correlated features); effective ranks: Bartlett et al. 2020, arXiv:1906.11300", "arXiv:1903.08560"
    ),
    kind="asymptotic",
    relation=Equals(rtol=0.05),
    control="rows of two lengths with the same covariance, whose features are then not independent",
    reading="The noise is fitted exactly and yet hardly felt: it is stored in directions that a new row almost never has. With a tail "
    "of few directions, or one that decays as a power, interpolation costs a fixed share of the noise, or more, however many there are. "
    "Rows of unequal length break the formula.",
)
LOSS_PEAK = Claim(
    "generalization/interpolation/loss_peak",
    "The test loss of models of growing size rises to a peak where they first interpolate the training rows, and falls again beyond.",
    formula=r"\frac{L_{\mathrm{test}}(p^*)}{\max\{L_{\mathrm{test}}(p) : p \le \tfrac12 p^* \text{ or } p \ge 2p^*\}} \ge 1.2,\quad "
    r"p^* = \min\{p : L_{\mathrm{train}} \approx 0\}",
    source=Source(
        "Belkin et al. 2019",
        "random features; networks with label noise: Nakkiran et al. 2020, Section 5, arXiv:1912.02292",
        "arXiv:1812.11118",
    ),
    kind="statistical",
    relation=Orders(gap=0.1823215567939546),  # ln 1.2
    control="the best ridge of every size (Nakkiran et al. 2021, arXiv:2003.01897), the best stopping time of every width",
    reading="A model that can only just fit noisy rows has no choice left and must contort itself; a larger one may choose, and training "
    "chooses smoothly. The threshold is found on the training rows alone. Regularize well, and larger is better all the way.",
)


@dataclass(frozen=True, kw_only=True)
class InterpolationConfig(Config):
    """A seed is a group of designs whose mean is one sample, one draw of random features, and one network of every width."""

    n: int = setting(40, "rows of the isotropic problem", low=10)
    ratios: tuple[float, ...] = setting((0.2, 0.4, 0.6, 0.75, 1.35, 1.5, 2.0, 3.0, 5.0), "p/n, away from 1, some above", low=0.05)
    designs: int = setting(250, "designs of a seed and setting", low=2)
    labels: int = setting(8, "draws of the noise on each design", low=1)
    rows: int = setting(100, "rows of the problem with spikes, and of the random features", low=20)
    tails: tuple[float, ...] = setting((1.5, 3.0, 10.0), "features per row of spectra with a flat tail", low=1.2)
    spectra_designs: int = setting(64, "designs of a seed and spectrum", low=2)
    sizes: tuple[float, ...] = setting(
        (0.1, 0.25, 0.5, 0.8, 1.0, 1.25, 2.0, 4.0, 10.0), "random features per row, in rising order", low=0.01, rising=True
    )
    signals: int = setting(300, "MNIST-1D rows a network is trained on", low=50, high=4000)
    widths: tuple[int, ...] = setting((2, 6, 12, 30, 80), "hidden units of networks, in rising order", low=1, rising=True)
    steps: int = setting(800, "full-batch steps of Adam", low=16)
    lr: float = setting(0.02, "Adam's step size", low=1e-5, high=1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if max(self.ratios) <= 1:
            raise ValueError(f"ratios must hold one above 1, with more features than rows for the control, got {self.ratios}.")


NOISE = 0.5  # σ² of the linear problems, whose signal is 1
SPIKES, TAIL_TRACE = 5, 5.0  # as much variance in the tail as in the spikes
LABEL_NOISE = 0.15
TEACHER_INPUTS, TEACHER_NOISE, TEST_ROWS = 10, 0.3, 1000
EARLY = 60
"""Steps at the beginning after every second of which a network is looked at: a wide one is at its best after some ten."""
RIDGES = tuple(10.0**k for k in np.linspace(-4, 3, 15))


# ---- least squares -----------------------------------------------------------------------------------------------------------------------


class Problem(NamedTuple):
    """Gaussian rows by the eigenvalues of their covariance (p,), and a linear target along its eigenvectors (p,)."""

    eigenvalues: np.ndarray
    coefficients: np.ndarray


def isotropic(p: int) -> Problem:
    """Signal 1, spread over all features."""
    return Problem(np.ones(p), np.full(p, p**-0.5))


def power_spectrum(p: int, *, spread: bool) -> Problem:
    """Eigenvalues i^{-1.5}, the target on the first ones or ``spread`` over all; scaled to total p (as isotropic) and signal 1."""
    lam = np.arange(1.0, p + 1) ** -1.5
    lam *= p / lam.sum()
    beta = np.ones(p) if spread else (np.arange(p) < SPIKES).astype(float)
    return Problem(lam, beta / math.sqrt(float((lam * beta**2).sum())))


def spiked(p: int) -> Problem:
    """A few eigenvalues 1, which carry the target, and a flat tail of a fixed total."""
    lam = np.r_[np.ones(SPIKES), np.full(p - SPIKES, TAIL_TRACE / (p - SPIKES))]
    return Problem(lam, np.where(np.arange(p) < SPIKES, SPIKES**-0.5, 0.0))


def excess_risks(problem: Problem, n: int, designs: int, config: InterpolationConfig, *, two_lengths: bool = False) -> list[float]:
    """Mean excess risk of each seed's designs: (β̂ − β)ᵀ Σ (β̂ − β), known exactly for each fit.

    With ``two_lengths`` a row is multiplied by √0.2 or √1.8, each with probability 1/2, which leaves its covariance as it was.
    """
    lam, beta = (torch.as_tensor(v, device=config.device).to(config.torch_dtype) for v in problem)
    chunk = max(1, 2_000_000 // (n * lam.numel()))  # designs at a time: what stays near the processor
    means = []
    for seed in config.replica_seeds:
        generator = torch.Generator(device=config.device).manual_seed(seed)
        risks = []
        for start in range(0, designs, chunk):
            many = min(chunk, designs - start)
            # normals of single precision are drawn ten times faster, and as good here: all that follows is in the config's precision
            x, noise, side = (
                torch.randn(many, n, k, generator=generator, device=config.device, dtype=torch.float32).to(lam)
                for k in (lam.numel(), config.labels, 1)
            )
            x *= lam.sqrt()
            if two_lengths:
                x *= torch.where(side > 0, 0.2**0.5, 1.8**0.5).to(x)
            fit = minimum_norm(x, x @ beta[:, None] + NOISE**0.5 * noise)
            risks.append((lam[:, None] * (fit - beta[:, None]).square()).sum(1).mean(1))
        means.append(float(torch.cat(risks).mean()))
    return means


def check_ridgeless(config: InterpolationConfig) -> Iterator[Finding | Series]:
    """The exact risk, on both sides of the peak."""
    n = config.n
    sizes = [round(r * n) for r in config.ratios]
    samples = []
    for p in sizes:
        samples.append(excess_risks(isotropic(p), n, config.designs, config))
        yield RIDGELESS.check(predicted=isotropic_ridgeless_risk(n, p, noise=NOISE), measured=samples[-1], setting=f"n = {n}, p = {p}")
    few, many = min(sizes, key=lambda p: abs(p - n / 2)), max(p for p in sizes if p > n)
    free = excess_risks(power_spectrum(few, spread=True), n, config.designs, config)
    predicted = isotropic_ridgeless_risk(n, few, noise=NOISE)
    yield RIDGELESS.check(predicted=predicted, measured=free, setting=f"n = {n}, p = {few}, eigenvalues i^(−1.5)", note="the same draws")
    other = excess_risks(power_spectrum(many, spread=True), n, config.designs, config)
    predicted = isotropic_ridgeless_risk(n, many, noise=NOISE)
    yield RIDGELESS.control_check(predicted=predicted, measured=other, setting=f"n = {n}, p = {many}, eigenvalues i^(−1.5)")

    figure = Series("ridgeless", f"The risk of interpolation is known exactly (n = {n})", x="features per row p/n", y="excess risk")
    figure.claim, figure.x_scale, figure.y_scale = RIDGELESS.key, "log", "log"
    below, above = range(math.ceil(n * min(config.ratios)), n - 1), range(n + 2, max(sizes) + 1)
    for name, side in (("p < n", below), ("p > n", above)):  # apart, for nothing is finite in between
        theory = [isotropic_ridgeless_risk(n, p, noise=NOISE) for p in side]
        figure.line(f"theory, {name}", [p / n for p in side], theory, role="predicted")
        shown = [i for i, p in enumerate(sizes) if p in side]
        figure.means(f"isotropic features, {name}", [sizes[i] / n for i in shown], [samples[i] for i in shown])
    yield figure.means("eigenvalues i^(−1.5)", [many / n], [other], role="control")


def check_benign(config: InterpolationConfig) -> Iterator[Finding | Series]:
    """The fixed-point risk of flat tails of growing dimension, and of a power law."""
    n = config.rows
    sizes = [round(t * n) for t in config.tails]
    problems = {f"flat tail, p = {p}": spiked(p) for p in sizes} | {f"i^(−1.5), p = {sizes[-1]}": power_spectrum(sizes[-1], spread=False)}
    samples: dict[str, list[float]] = {}
    for name, problem in problems.items():
        predicted = ridgeless_risk(*problem, n, noise=NOISE)
        samples[name] = excess_risks(problem, n, config.spectra_designs, config)
        r, R = (v / n for v in effective_ranks(problem.eigenvalues, SPIKES))
        note = f"beyond the first {SPIKES} directions r/n = {r:.2g}, R/n = {R:.2g}; σ² = {NOISE:g}"
        yield BENIGN.check(predicted=predicted, measured=samples[name], setting=name, note=note)
    uneven = {}
    for name in list(problems)[-2:]:
        uneven[name] = excess_risks(problems[name], n, config.spectra_designs, config, two_lengths=True)
        predicted = ridgeless_risk(*problems[name], n, noise=NOISE)
        yield BENIGN.control_check(predicted=predicted, measured=uneven[name], setting=f"{name}, rows of two lengths")

    title = f"The more directions the tail has, the less it costs to fit the noise (n = {n})"
    figure = Series("benign", title, x="features per row p/n, the tail's variance fixed", y="excess risk", claim=BENIGN.key)
    figure.x_scale = figure.y_scale = "log"
    grid = np.unique(np.geomspace(1.1 * n, max(100 * n, sizes[-1]), 60).round().astype(int))
    figure.line("flat tail, theory", grid / n, [ridgeless_risk(*spiked(int(p)), n, noise=NOISE) for p in grid], role="predicted")
    grid = grid[grid <= 10 * max(n, sizes[-1] // 10)]
    power = [ridgeless_risk(*power_spectrum(int(p), spread=False), n, noise=NOISE) for p in grid]
    figure.line("i^(−1.5), theory", grid / n, power, role="predicted")
    names = list(problems)
    figure.means("flat tail", [p / n for p in sizes], [samples[k] for k in names[:-1]])
    figure.means("i^(−1.5)", [sizes[-1] / n], [samples[names[-1]]])
    yield figure.means("flat tail, rows of two lengths", [sizes[-1] / n], [uneven[names[-2]]], role="control")


# ---- the peak ----------------------------------------------------------------------------------------------------------------------------


class Curve(NamedTuple):
    """Losses over sizes, each (size, replica): at the end of fitting, and with the best regularization of every size and replica."""

    train: Tensor
    test: Tensor
    regularized: Tensor

    def threshold(self, level: float) -> int:
        """The first size at which half of the replicas have a training loss below ``level``."""
        below = (self.train.median(1).values < level).nonzero().flatten()
        if not len(below):
            raise ValueError(
                f"no size fits the training rows to a loss of {level:g}; add larger ones, got {self.train.median(1).values.tolist()}."
            )
        return int(below[0])


def prominence(losses: Tensor, sizes: Sequence[int], at: int) -> Tensor:
    """Ln of the loss at one size over the largest at both ends and at half its size or less, twice or more, (replica,).

    A size of the grid next to the threshold may be as high. Losses are (size, replica).
    """
    others = [i for i, p in enumerate(sizes) if i in (0, len(sizes) - 1) or 2 * p <= sizes[at] or p >= 2 * sizes[at]]
    return (losses[at] / losses[others].amax(0)).log()


def random_directions(config: InterpolationConfig, p: int) -> Tensor:
    """Of p random features, (replica, d, p); from other numbers than the inputs of the same seed, which would be the directions else."""
    draws = [torch.Generator().manual_seed(derived_seed(s, "features")) for s in config.replica_seeds]
    return torch.stack([torch.randn(TEACHER_INPUTS, p, generator=g, dtype=torch.float64) for g in draws])


def random_feature_curve(config: InterpolationConfig) -> tuple[list[int], Curve]:
    """Random ReLU features of a teacher's inputs, fitted by ridge regression; in double precision, which the threshold needs."""
    n, d = config.rows, TEACHER_INPUTS
    data = [teacher_student(n + TEST_ROWS, d, noise=TEACHER_NOISE, seed=s) for s in config.replica_seeds]
    x, y = (torch.stack(part).to(config.device) for part in zip(*data, strict=True))
    sizes = [round(s * n) for s in config.sizes]
    found = []
    for p in sizes:
        features = torch.relu(x @ random_directions(config, p).to(x)) / p**0.5
        fits = ridge_path(features[:, :n], y[:, :n], (0.0, *RIDGES))
        squares = torch.stack([(features @ fit - y).square().squeeze(2) for fit in fits])  # (penalty, replica, row)
        train, test = squares[:, :, :n].mean(2), squares[:, :, n:].mean(2)
        found.append((train[0], test[0], test[1:].amin(0)))
    return sizes, Curve(*(torch.stack(part).cpu() for part in zip(*found, strict=True)))


def network_curve(config: InterpolationConfig) -> tuple[list[int], Curve]:
    """Networks of one hidden layer on MNIST-1D with noisy labels; parameters, and losses at the end and at the best moment."""
    train, test = mnist1d()
    rows, labels = [], []
    for seed in config.replica_seeds:
        chosen = torch.randperm(len(train.y), generator=torch.Generator().manual_seed(seed))[: config.signals]
        rows.append(train.x[chosen])
        labels.append(corrupt(train.y[chosen], LABEL_NOISE, classes=10, seed=seed))
    x, y = torch.stack(rows).to(config.device), torch.stack(labels).to(config.device)
    new_x, new_y = test.x.to(config.device), test.y.to(config.device)

    def measure(population: Population) -> dict[str, Tensor]:
        return {"train": population.losses(), "test": torch.stack([cross_entropy(o, new_y) for o in population.outputs(new_x)])}

    sizes, found = [], []
    for width in config.widths:
        network = partial(mlp, [x.shape[2], width, 10], activation="relu")
        population = Population(
            network,
            cross_entropy,
            (x, y),
            optimizer=adam(config.lr),
            seeds=config.replica_seeds,
            data_per_replica=True,
            dtype=torch.float32,  # nothing exact is claimed of networks, and the data are of single precision
            device=config.device,
            mode="vmap",
        )
        early = min(EARLY, config.steps // 2)
        first = population.train(early, every=2, measure=measure)
        run = population.train(config.steps - early, every=min(50, config.steps // 16), measure=measure)
        sizes.append(sum(p[0].numel() for p in population.params.values()))
        found.append((run["train"][-1], run["test"][-1], torch.cat([first["test"], run["test"]]).amin(0)))
    return sizes, Curve(*(torch.stack(part).cpu().double() for part in zip(*found, strict=True)))


def check_peak(
    name: str, sizes: list[int], curve: Curve, level: float, remedy: str, axis: tuple[str, str, str]
) -> Iterator[Finding | Series]:
    """The prominence of the peak at the threshold, and its absence under the best regularization."""
    at = curve.threshold(level)
    note = f"threshold {sizes[at]} of {sizes[0]} ... {sizes[-1]}, ln of the ratio"
    yield LOSS_PEAK.check(measured=prominence(curve.test, sizes, at), setting=name, note=note)
    yield LOSS_PEAK.control_check(measured=prominence(curve.regularized, sizes, at), setting=f"{name}, {remedy}", note=note)
    key, x, y = axis
    figure = Series(key, f"The test loss peaks where training first interpolates: {name}", x=x, y=y, claim=LOSS_PEAK.key)
    figure.x_scale = figure.y_scale = "log"
    test, best = curve.test, curve.regularized
    figure.line("test", sizes, test.median(1).values, low=test.amin(1), high=test.amax(1))
    figure.line(f"test, {remedy}", sizes, best.median(1).values, low=best.amin(1), high=best.amax(1), role="control")
    fitted = curve.train.median(1).values
    shown = [i for i in range(len(sizes)) if fitted[i] > 1e-6]  # rounding, further down
    figure.line("training", [sizes[i] for i in shown], fitted[shown])
    yield figure


@study(
    "generalization/interpolation",
    claims=[RIDGELESS, BENIGN, LOSS_PEAK],
    tiny=InterpolationConfig(
        seeds=8,
        ratios=(0.4, 2.0, 5.0),
        tails=(1.5, 4.0),
        designs=60,
        spectra_designs=20,
        sizes=(0.25, 1.0, 4.0),
        signals=200,
        widths=(2, 12, 60),
        steps=500,
    ),
    small=InterpolationConfig(),
    large=InterpolationConfig(
        seeds=32,
        n=200,
        ratios=(0.2, 0.4, 0.6, 0.8, 0.9, 1.1, 1.25, 1.5, 2.0, 3.0, 5.0),
        designs=200,
        rows=400,
        tails=(1.5, 3.0, 10.0, 20.0),
        signals=4000,  # as in the paper
        widths=(2, 5, 10, 20, 40, 60, 80, 100, 130, 160, 200, 300, 400),
        steps=4000,
        lr=0.01,
    ),
)
def interpolation(config: InterpolationConfig) -> Iterator[Finding | Series | Stage]:
    """Exact and asymptotic risks of interpolating least squares, then the peak of random features and of networks."""
    yield Stage("isotropic features")
    yield from check_ridgeless(config)
    yield Stage("spectra")
    yield from check_benign(config)
    yield Stage("random features")
    axis = ("features", "random features (training rows: " + str(config.rows) + ")", "mean squared error")
    yield from check_peak("random ReLU features", *random_feature_curve(config), 1e-6, "best ridge", axis)
    yield Stage("networks on MNIST-1D")
    axis = ("networks", "parameters", "cross-entropy [nats]")
    yield from check_peak("networks on MNIST-1D", *network_curve(config), 0.02, "best stopping time", axis)
