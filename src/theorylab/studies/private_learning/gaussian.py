"""Gaussian steps without sampling compose exactly: T of them reveal what one does whose noise is √T times smaller.

Two normals are hardest to tell apart along the line through their means, so a step of noise multiplier σ is a pair of unit normals 1/σ
apart, and T steps, whatever each looked at of the earlier ones, a pair √T/σ apart. The curve of δ over ε is then two normal tails. It is
compared with the distribution of the privacy loss of a single step, put on a grid and convolved T times by the Fourier transform, which
knows nothing of normals staying normal. Nothing is random, so seeds play no part. Small δ need care: the transform rounds to a share of the
likeliest loss, so the losses are tilted before, until those that decide δ are the likely ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from theorylab.core.claim import Claim, Equals, Finding
from theorylab.core.config import Config, setting
from theorylab.core.privacy_ledger import PrivacyLedger
from theorylab.core.series import Series, Stage
from theorylab.core.source import Source
from theorylab.core.study import study
from theorylab.theory.gaussian_privacy import gaussian_delta, gaussian_epsilon
from theorylab.theory.privacy import delta, epsilon

CURVE = Claim(
    "private_learning/gaussian/curve",
    "T Gaussian steps of noise multiplier σ on all rows have the privacy of two unit normals √T/σ apart.",
    formula=r"\delta(\varepsilon) = \Phi\Bigl(\frac\mu2 - \frac\varepsilon\mu\Bigr) - e^{\varepsilon}\,\Phi\Bigl(-\frac\mu2 "
    r"- \frac\varepsilon\mu\Bigr), \quad \mu = \frac{\sqrt T}{\sigma}",
    source=Source(
        "Balle and Wang 2018", "Theorem 8; for T steps Dong, Roth and Su 2019, arXiv:1905.02383, Corollary 3.3", "arXiv:1805.06530"
    ),
    kind="identity",
    relation=Equals(atol=1e-3),
    control="neighbours that replace a row: the sum moves by twice the clipping norm",
    reading="Noise is spent like variance: four times the steps need twice the noise, and there is no better account of a Gaussian "
    "mechanism than this one. It holds for steps that use every row; where batches are sampled the truth is smaller, and the curve is no "
    "longer that of two normals. Ask of any stated ε which neighbours it means: replacing a row costs about twice adding one.",
)


@dataclass(frozen=True, kw_only=True)
class GaussianConfig(Config):
    """Settings of the mechanism; each σ is run for each number of steps."""

    sigmas: tuple[float, ...] = setting((1.0, 5.0, 50.0), "noise multipliers σ", low=0.1)
    steps: tuple[int, ...] = setting((1, 30, 1000), "steps T", low=1)
    deltas: tuple[float, ...] = setting((1e-3, 1e-5, 1e-9), "δ at which ε is compared", low=1e-12, high=0.5)
    points: int = setting(40, "points of the figure's curve", low=2)


@study(
    "private_learning/gaussian",
    claims=[CURVE],
    tiny=GaussianConfig(sigmas=(5.0,), steps=(1, 30), deltas=(1e-5,), points=5),
    small=GaussianConfig(),
    large=GaussianConfig(sigmas=(1.0, 2.0, 5.0, 10.0, 50.0), steps=(1, 3, 10, 30, 100, 300, 1000), deltas=(1e-3, 1e-5, 1e-7, 1e-9)),
)
def gaussian(config: GaussianConfig) -> Iterator[Finding | Series | Stage]:
    """Compare ε of the composed privacy-loss distribution with the closed form, for both kinds of neighbours."""
    for adjacency in ("add_remove", "replace_one"):
        yield Stage(adjacency)
        predicted, measured = [], []
        for sigma in config.sigmas:
            for steps in config.steps:
                for d in config.deltas:
                    predicted.append(gaussian_epsilon(math.sqrt(steps) / sigma, d))
                    measured.append(epsilon(PrivacyLedger(1.0, sigma, steps, adjacency=adjacency), d))
        check = CURVE.check if adjacency == "add_remove" else CURVE.control_check
        yield check(predicted=predicted, measured=measured, setting=f"ε by privacy-loss distributions, {adjacency.replace('_', '/')}")

    yield Stage("the curve")
    sigma, steps = config.sigmas[-1], config.steps[-1]
    run = PrivacyLedger(1.0, sigma, steps)
    replaced = PrivacyLedger(1.0, sigma, steps, adjacency="replace_one")
    mu = math.sqrt(steps) / sigma
    at = np.linspace(0, gaussian_epsilon(mu, 1e-9), config.points)
    title = f"What {steps} steps reveal, σ = {sigma:g}"
    figure = Series("curve", title, x="ε", y="δ", claim=CURVE.key, y_scale="log")
    figure.line("closed form", at, [gaussian_delta(mu, e) for e in at], role="predicted")
    figure.line("privacy-loss distributions", at, [delta(run, e) for e in at], mark="points")
    yield figure.line("a row replaced", at, [delta(replaced, e) for e in at], role="control")
