"""Noise that is correlated over steps gives running sums at a logarithmic error where independent noise has √n.

A learner that only ever uses sums of gradients needs no private gradient. Whatever noise is added to step t may be taken back in part at
the next ones, provided that what a single row changes, a column of C, stays small: with A = BC the released sums are A(g + C⁻¹z), the error
at a step is the norm of B's row, and the noise must be in proportion to C's largest column. The square root of A splits the burden evenly
between the two. Uneven splits into powers factor as exactly and cost more, and how much more can be read off their coefficients.

The error is measured on draws of the noise, too: the noise of all steps, C⁻¹z, is formed and summed up, anew in every replica.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from theorylab.core.claim import Claim, Equals, Finding
from theorylab.core.config import Config, setting
from theorylab.core.series import Series, Stage
from theorylab.core.source import Source
from theorylab.core.study import study
from theorylab.theory.matrix_mechanism import (
    banded,
    error,
    independent_error,
    noise_weights,
    power_coefficients,
    power_split,
    prefix_sums,
    sqrt_error_asymptotic,
    sqrt_factor,
)

FACTOR = Claim(
    "private_learning/matrix/factor",
    "The lower-triangular Toeplitz matrix of the coefficients (2k choose k)/4ᵏ is a square root of the matrix of running sums.",
    formula=r"C^2 = A, \qquad C_{ij} = c_{i-j},\quad c_k = \binom{2k}{k}\Big/4^k,\quad A_{ij} = \mathbf 1[i\ge j]",
    source=Source("Fichtenberger, Henzinger and Upadhyay 2023", "Section 1 (the factorization of the counting matrix)", "arXiv:2202.11205"),
    kind="identity",
    relation=Equals(atol=1e-12),
    control="the same matrix cut to its first diagonals, squared",
    reading="The coefficients are those of (1 − x)^(−1/2), and squaring a Toeplitz matrix squares its generating function. Cutting C to a "
    "few diagonals is useful all the same, as a band needs little memory, but then the other factor must be AC⁻¹ and not C.",
)

SQRT = Claim(
    "private_learning/matrix/sqrt",
    "The square root's largest error at unit privacy grows as the logarithm of the steps over π, with the constant known.",
    formula=r"\max_t\|B_{t\cdot}\|\,\max_j\|C_{\cdot j}\| = \sum_{k<n}c_k^2 = \frac{\ln n + \gamma + 4\ln 2}{\pi} + o(1)",
    source=Source(
        "Fichtenberger, Henzinger and Upadhyay 2023",
        "the main theorem (the leading term); with a matching lower bound Henzinger, Upadhyay and Upadhyay 2023, arXiv:2211.05006",
        "arXiv:2202.11205",
    ),
    kind="asymptotic",
    relation=Equals(rtol=1e-3),
    control="uneven powers of A: 0.6 for B with 0.4 for C, and 0.7 with 0.3",
    reading="A thousand running sums cost little more noise than one: 3.3 times, where independent noise needs 32 times. No factorization "
    "does better than (ln n)/π up to a constant added. The gain is for sums alone; where batches are sampled, "
    "amplification by sampling may be worth more, and the two do not simply multiply.",
)

GAIN = Claim(
    "private_learning/matrix/gain",
    "At equal privacy the noise in the last of n running sums is π√n/(ln n + γ + 4 ln 2) times smaller than independent noise.",
    formula=r"\frac{\sqrt n}{\operatorname{sd}\bigl(\sum_{s\le n}\xi_s\bigr)\max_j\|C_{\cdot j}\|} = "
    r"\frac{\pi\sqrt n}{\ln n + \gamma + 4\ln 2} + o(1), \qquad \xi = C^{-1}z",
    source=Source("Denisov et al. 2022", "Section 2 (the noise of a factorization mechanism, C⁻¹z)", "arXiv:2202.08312"),
    kind="statistical",
    relation=Equals(rtol=0.05),
    control="independent noise itself, of the same privacy",
    reading="The noise of a step is larger than before, and most of it is taken back later: what a learner sees, the sum, is nearly clean, "
    "nine times cleaner after a thousand steps. It supposes that a row takes part once; its visits add up unless they are a band apart.",
)


@dataclass(frozen=True, kw_only=True)
class MatrixConfig(Config):
    """A seed is a draw of the noise; the factorizations are the same for all."""

    n: int = setting(1000, "steps", low=16, high=20_000)
    bands: int = setting(16, "diagonals of the banded factor", low=1)
    draws: int = setting(500, "draws of the noise a replica, whose standard deviation is taken at the last step", low=50)


def deviation(C: np.ndarray, draws: int, seed: int) -> float:
    """Standard deviation of the last sum's error over draws of the noise, scaled to unit privacy of one step's term.

    The last step has the largest error of the mechanisms here, as the norms of B's rows grow.
    """
    z = torch.randn(len(C), draws, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).numpy()
    steps = noise_weights(C) @ z  # each column the noise of all steps in one run
    return float(np.linalg.norm(C, axis=0).max() * steps.sum(0).std())


@study(
    "private_learning/matrix",
    claims=[FACTOR, SQRT, GAIN],
    tiny=MatrixConfig(seeds=8, n=300),
    small=MatrixConfig(seeds=16),
    large=MatrixConfig(seeds=32, n=4000, draws=4000),
)
def matrix(config: MatrixConfig) -> Iterator[Finding | Series | Stage]:
    """Check the factorization, its error against the asymptotic law, and the error of drawn noise."""
    yield Stage("factorization")
    n, C, A = config.n, sqrt_factor(config.n), prefix_sums(config.n)
    cut = banded(n, min(config.bands, n - 1))[1]
    yield FACTOR.check(predicted=0.0, measured=float(np.abs(C @ C - A).max()), setting="largest entry of |C² − A|")
    yield FACTOR.control_check(predicted=0.0, measured=float(np.abs(cut @ cut - A).max()), setting=f"{config.bands} diagonals")

    yield Stage("error")
    splits = {p: error(*power_split(n, p)) for p in (0.4, 0.3)}
    yield SQRT.check(predicted=sqrt_error_asymptotic(n), measured=error(C, C), setting=f"n = {n}")
    for power, found in splits.items():
        yield SQRT.control_check(predicted=sqrt_error_asymptotic(n), measured=found, setting=f"powers {1 - power:.1f} and {power:.1f}")
    yield from error_figure(config)

    yield Stage("drawn noise")
    predicted = independent_error(n) / sqrt_error_asymptotic(n)
    seeds = config.replica_seeds
    yield GAIN.check(
        predicted=predicted, measured=[independent_error(n) / deviation(C, config.draws, s) for s in seeds], setting=f"n = {n}"
    )
    independent = [independent_error(n) / deviation(np.eye(n), config.draws, s) for s in seeds]
    yield GAIN.control_check(predicted=predicted, measured=independent, setting="independent noise")
    yield noise_figure(config, C)


def error_figure(config: MatrixConfig) -> Iterator[Series]:
    """Largest error against steps: the law, the square root, a band, uneven powers and independent noise."""
    figure = Series("error", "The error of running sums at equal privacy", x="steps n", y="largest error", claim=SQRT.key)
    figure.x_scale = figure.y_scale = "log"
    sizes = np.unique(np.geomspace(4, config.n, 14).astype(int))

    def toeplitz_error(power: float) -> list[float]:
        b, c = power_coefficients(config.n, 1 - power), power_coefficients(config.n, power)
        return [float(np.sqrt((b[:k] ** 2).sum() * (c[:k] ** 2).sum())) for k in sizes]

    figure.line("(ln n + γ + 4 ln 2)/π", sizes, [sqrt_error_asymptotic(int(k)) for k in sizes], role="predicted")
    figure.line("square root", sizes, toeplitz_error(0.5), mark="points")
    inside = [int(k) for k in sizes if k >= config.bands]
    figure.line(f"{config.bands} bands", inside, [error(*banded(k, config.bands)) for k in inside])
    figure.line("powers 0.7 and 0.3", sizes, toeplitz_error(0.3), role="control")
    yield figure.line("independent noise", sizes, [independent_error(int(k)) for k in sizes], role="control")


def noise_figure(config: MatrixConfig, C: np.ndarray) -> Series:
    """One draw of the noise in the running sums, correlated and independent."""
    z = torch.randn(config.n, dtype=torch.float64, generator=torch.Generator().manual_seed(config.seed)).numpy()
    steps = np.arange(1, config.n + 1)
    figure = Series("noise", "One draw of the noise in the sums, at equal privacy", x="step", y="error of the sum", claim=GAIN.key)
    figure.line("square root", steps, np.linalg.norm(C, axis=0).max() * (C @ z))
    return figure.line("independent", steps, np.cumsum(z), role="control")
