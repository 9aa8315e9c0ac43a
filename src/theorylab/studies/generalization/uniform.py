"""Uniform convergence cannot explain a classifier that generalizes: a data set as likely as its own on which it is always wrong.

A linear classifier sees a weak signal, the same in every row, and very many coordinates of noise. One pass over the rows adds up the signal
and, beside it, the noise of each row. On a new row the accumulated noise is nearly orthogonal to the new one, and the classifier is right.
Now turn the sign of the noise in every training row. The noise is symmetric, so this data set was exactly as likely as the one drawn, but
its rows are aligned with the weights, the wrong way round, and the error is 1.

So the gap between error on a sample and error on new rows is nearly 1 for some sample in every set of samples of probability above 1/2: any
bound that holds uniformly, even over only those classifiers that training would return, must allow for it and says nothing. The
classifier's own error on new rows meanwhile tends to 0. With noise of much smaller variance the negated rows are classified rightly too.

The number of seeds was raised once, from 8 to 16, after a first look in which some intervals were as wide as the claimed region.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from theorylab.core.claim import Claim, Equals, Finding
from theorylab.core.config import Config, setting
from theorylab.core.series import Series, Stage
from theorylab.core.source import Source
from theorylab.core.study import study
from theorylab.theory.generalization import one_pass_error

NEGATED_NOISE = Claim(
    "generalization/uniform/negated_noise",
    "The more coordinates of noise there are, the more rarely a linear classifier trained by one pass errs on new rows, and the more often "
    "on its training rows with their noise negated: in the limit never, and always.",
    formula=r"P_{\mathrm{new}}(y\langle w, x\rangle < 0) \approx \Phi\left(-\tfrac18\sqrt{D/m}\right), \qquad "
    r"P_{\mathrm{negated}}(y\langle w, x\rangle < 0) \approx \Phi\left(\tfrac78\sqrt{D/(m+1)}\right)",
    source=Source("Nagarajan and Kolter 2019", "Section 3.1, Theorem 3.1 (the two errors are those of its proof)", "arXiv:1902.04742"),
    kind="asymptotic",
    relation=Equals(atol=0.01),
    control="noise N(0, I/D) in place of N(0, 32 I/D), with which both errors are 0",
    reading="The negated rows are as good a sample as the rows themselves, so a bound that holds for all samples alike, with high "
    "probability, cannot be below their error. Bounds that look at one sample and one classifier, or at the signal alone, escape this.",
)
VARIANCE = 32.0  # of a row's noise, summed over its coordinates; the signal's margin is 4


@dataclass(frozen=True, kw_only=True)
class UniformConfig(Config):
    """A seed is a group of data sets whose mean error is one sample."""

    m: int = setting(64, "training rows", low=2)
    noise: tuple[int, ...] = setting((250, 1000, 4000, 16_000), "coordinates of noise D, in rising order", low=8, rising=True)
    draws: int = setting(20, "data sets of a seed and D", low=1)
    numbers: int = setting(500_000, "normal numbers spent on the new rows of each data set: numbers/D rows", low=1000)


class Errors(NamedTuple):
    """Mean errors of each seed's classifiers."""

    training: list[float]
    new: list[float]
    negated: list[float]


def rows(count: int, noise: int, m: int, variance: float, generator: torch.Generator, device: str) -> tuple[Tensor, Tensor]:
    """Rows (count, 1 + noise) whose first coordinate is the signal 2y/√m, and fair labels ±1 (count,).

    In single precision: only signs of margins are read off, and most of the time goes into drawing the numbers.
    """
    y = 2.0 * torch.randint(2, (count,), generator=generator, device=device) - 1
    x = torch.randn(count, 1 + noise, generator=generator, device=device, dtype=torch.float32).mul_((variance / noise) ** 0.5)
    x[:, 0] = 2 / m**0.5 * y
    return x, y


def wrong(w: Tensor, x: Tensor, y: Tensor) -> float:
    """Share of rows on the wrong side."""
    return float((y * (x @ w) <= 0).double().mean())


def measured_errors(noise: int, variance: float, config: UniformConfig) -> Errors:
    """One pass from 0 on the loss −y⟨w, x⟩ with step size 1, which adds y·x for every row, and what comes of it."""
    means = []
    for seed in config.replica_seeds:
        generator = torch.Generator(device=config.device).manual_seed(seed)
        found = []
        for _ in range(config.draws):
            x, y = rows(config.m, noise, config.m, variance, generator, config.device)
            w = y @ x
            new = rows(max(1, config.numbers // noise), noise, config.m, variance, generator, config.device)
            negated = -x
            negated[:, 0] = x[:, 0]
            found.append((wrong(w, x, y), wrong(w, *new), wrong(w, negated, y)))
        means.append(np.mean(found, axis=0))
    return Errors(*(list(map(float, v)) for v in np.transpose(means)))


@study(
    "generalization/uniform",
    claims=[NEGATED_NOISE],
    tiny=UniformConfig(seeds=4, noise=(1000, 4000), draws=4),
    small=UniformConfig(seeds=16),
    large=UniformConfig(seeds=32, m=256, noise=(1000, 4000, 16_000, 64_000, 256_000), draws=16, numbers=50_000_000),
)
def uniform(config: UniformConfig) -> Iterator[Finding | Series | Stage]:
    """Errors on new, on training and on negated rows, with growing noise."""
    m = config.m
    found = {}
    for d in config.noise:
        yield Stage(f"{d} coordinates of noise")
        found[d] = errors = measured_errors(d, VARIANCE, config)
        note = f"training error {np.mean(errors.training):.3g}"
        yield NEGATED_NOISE.check(predicted=one_pass_error(d, m), measured=errors.new, setting=f"D = {d}, new rows", note=note)
        predicted = one_pass_error(d, m, negated=True)
        yield NEGATED_NOISE.check(predicted=predicted, measured=errors.negated, setting=f"D = {d}, training rows with their noise negated")
    yield Stage("little noise")
    d = min(config.noise, key=lambda d: abs(d - 16 * m))  # where both predictions are far from 0
    little = measured_errors(d, 1.0, config)
    yield NEGATED_NOISE.control_check(predicted=one_pass_error(d, m), measured=little.new, setting=f"D = {d}, little noise, new rows")
    predicted = one_pass_error(d, m, negated=True)
    yield NEGATED_NOISE.control_check(predicted=predicted, measured=little.negated, setting=f"D = {d}, little noise, negated")

    title = "The better it generalizes, the worse it does on its training rows with their noise negated"
    figure = Series("errors", title, x="coordinates of noise per training row D/m", y="error", claim=NEGATED_NOISE.key, x_scale="log")
    grid = np.geomspace(min(config.noise), max(config.noise), 60)
    curves = {"new rows": (False, [e.new for e in found.values()]), "noise negated": (True, [e.negated for e in found.values()])}
    for name, (negated, samples) in curves.items():
        figure.line(f"{name}, theory", grid / m, [one_pass_error(round(g), m, negated=negated) for g in grid], role="predicted")
        low, high, mean = (f(samples, axis=1) for f in (np.min, np.max, np.mean))
        figure.line(name, [d / m for d in found], mean, low=low, high=high, mark="points")
    figure.line("training rows", [d / m for d in found], [np.mean(e.training) for e in found.values()], mark="points")
    yield figure.line("noise negated, little noise", [d / m], [np.mean(little.negated)], role="control", mark="points")
