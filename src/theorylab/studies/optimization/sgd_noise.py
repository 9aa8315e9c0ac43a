"""Noise keeps stochastic gradient descent away from the minimum, and how far is known exactly, not only for small steps.

Near a minimum of curvature λ the iterates of SGD with gradient noise of variance σ² form a stationary process, AR(1), or AR(2) with
momentum. Its variance has a closed form for every stable step. The stochastic differential equation that is often put in its place gets
the limit of small steps right and misses the divergence at the edge of stability; with momentum, so does the rule of the effective step
η/(1−β).

The sample size is fixed before looking: each seed is a group of independent chains, and a group's variance is one sample.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from theorylab.core.claim import Claim, Finding, Within
from theorylab.core.config import Config, setting
from theorylab.core.series import Series, Stage
from theorylab.core.source import Source
from theorylab.core.study import study
from theorylab.learning.optimizers.sgd import sgd
from theorylab.theory.dynamics import sde_stationary_variance, sgd_stationary_variance

STATIONARY_VARIANCE = Claim(
    "optimization/sgd_noise/stationary_variance",
    "SGD with step η and gradient noise σ at curvature λ fluctuates with variance ησ²/(λ(2−ηλ)), at any stable step.",
    formula=r"\mathrm{Var}\,x = \frac{\eta\,\sigma^2}{\lambda\,(2 - \eta\lambda)}",
    source=Source("Mandt et al. 2017", "Section 3 (stationary variance), without its continuous-time limit", "arXiv:1704.04289"),
    kind="statistical",
    relation=Within(0.95, 1.05),
    control="every draw of the noise used in two steps, at the smallest; the stochastic differential equation's ησ²/(2λ) at the largest",
    reading="A constant step buys speed with a floor of noise proportional to η. The diffusion picture is right for ηλ ≪ 1; near the "
    "edge ηλ = 2 the true fluctuation diverges while the picture sees nothing. On a network the noise depends on the place, "
    "and this holds only locally.",
)

MOMENTUM_VARIANCE = Claim(
    "optimization/sgd_noise/momentum_variance",
    "With heavy-ball momentum β the stationary variance is (1+β)ησ²/((1−β)λ(2(1+β)−ηλ)).",
    formula=r"\mathrm{Var}\,x = \frac{(1+\beta)\,\eta\,\sigma^2}{(1-\beta)\,\lambda\,(2(1+\beta) - \eta\lambda)}",
    source=Source("Box et al. 2008", "Section 3.2.4 (variance of an AR(2) process)", "Time Series Analysis: Forecasting and Control"),
    kind="statistical",
    relation=Within(0.95, 1.05),
    control="every draw of the noise used in two steps, at the smallest; the differential equation with the effective step η/(1−β) at the "
    "largest",
    reading="Momentum multiplies the noise floor as it multiplies the step, by 1/(1−β), as long as ηλ is small. At large steps the "
    "two part: momentum moves the edge of stability out to 2(1+β)/λ, and the variance with it.",
)


@dataclass(frozen=True, kw_only=True)
class SgdNoiseConfig(Config):
    """A seed is a group of chains; half-width of the 99 % interval: about 2.7·√(2 / (seeds·chains)) of the variance."""

    curvature: float = setting(1.3, "curvature λ", low=0.01)
    noise: float = setting(0.7, "standard deviation σ of the gradient's noise", low=1e-6)
    lrs: tuple[float, ...] = setting((0.05, 0.5, 1.2), "step sizes η, in rising order; ηλ < 2", low=1e-3)
    momenta: tuple[float, ...] = setting((0.5, 0.9), "momentum coefficients β", low=0.0, high=0.95)
    chains: int = setting(1000, "independent chains a seed", low=2)
    iterations: int = setting(300, "steps until the chains are stationary", low=200)


BLOCK = 20
"""Steps whose noise is drawn at once: fewer calls than one a step, and less memory than all."""


def stationary_variances(config: SgdNoiseConfig, momenta: tuple[float, ...], lrs: tuple[float, ...], *, uses: int = 1) -> Tensor:
    """Mean of x² about the known mean 0 in each group of chains after the burn-in from 0, (momentum, step size, replica).

    All settings see the same noise: each is judged by itself, and one drawing serves them all. With ``uses`` above 1 every draw serves as
    many steps, so that the noise of neighbouring steps is not independent.
    """
    dtype = config.torch_dtype
    grid = torch.cartesian_prod(torch.tensor(momenta, dtype=dtype), torch.tensor(lrs, dtype=dtype))  # (setting, 2)
    method = sgd(lr=grid[:, 1], momentum=grid[:, 0])
    generators = [torch.Generator().manual_seed(s) for s in config.replica_seeds]
    params = {"x": torch.zeros(len(grid), config.seeds, config.chains, dtype=dtype)}
    state = method.init(params)
    for _ in range(0, config.iterations, BLOCK):
        noise = torch.stack([torch.randn(BLOCK, config.chains, generator=g, dtype=dtype) for g in generators], 1)
        for shock in noise.repeat_interleave(uses, 0):  # (replica, chain)
            params, state = method.update({"x": config.curvature * params["x"] + config.noise * shock}, state, params)
    return (params["x"] ** 2).mean(-1).reshape(len(momenta), len(lrs), config.seeds)


def figure(key: str, title: str, claim: Claim) -> Series:
    """The axes that both figures share."""
    return Series(key, title, x="ηλ", y="stationary variance / (σ²/λ²)", claim=claim.key, x_scale="log", y_scale="log")


@study(
    "optimization/sgd_noise",
    claims=[STATIONARY_VARIANCE, MOMENTUM_VARIANCE],
    tiny=SgdNoiseConfig(seeds=8, momenta=(0.9,), chains=1000),
    small=SgdNoiseConfig(seeds=32),
    large=SgdNoiseConfig(seeds=128, chains=10_000, iterations=600, lrs=(0.05, 0.2, 0.5, 0.9, 1.2, 1.4)),
)
def sgd_noise(config: SgdNoiseConfig) -> Iterator[Finding | Series | Stage]:
    """Variance over many chains, against the exact formula and the continuous limit."""
    curvature, noise, lrs = config.curvature, config.noise, config.lrs
    unit = noise**2 / curvature**2
    grid = torch.logspace(-1.5, 0.29, 60, dtype=torch.float64) / curvature  # up to just below ηλ = 2
    for claim, momenta, key in ((STATIONARY_VARIANCE, (0.0,), "variance"), (MOMENTUM_VARIANCE, config.momenta, "momentum")):
        yield Stage("with momentum" if claim is MOMENTUM_VARIANCE else "without momentum")
        title = "Where SGD's fluctuation and its continuous limit part" + (" (with momentum)" if claim is MOMENTUM_VARIANCE else "")
        curves = figure(key, title, claim)
        twice = stationary_variances(config, momenta, lrs[:1], uses=2)[:, 0]  # (momentum, replica)
        for beta, measured, dependent in zip(momenta, stationary_variances(config, momenta, lrs), twice, strict=True):
            with_beta = f", β = {beta:g}" if beta else ""
            for lr, samples in zip(lrs, measured, strict=True):
                setting_text = f"η = {lr:g}{with_beta}"
                yield claim.check(predicted=sgd_stationary_variance(lr, curvature, noise, beta), measured=samples, setting=setting_text)
            law = sgd_stationary_variance(lrs[0], curvature, noise, beta)
            yield claim.control_check(predicted=law, measured=dependent, setting=f"η = {lrs[0]:g}{with_beta}, noise used twice")
            yield claim.control_check(
                predicted=sde_stationary_variance(lrs[-1], curvature, noise, beta), measured=measured[-1], setting=f"SDE, {setting_text}"
            )
            curves.line(f"measured{with_beta}", [lr * curvature for lr in lrs], [m.mean() / unit for m in measured], mark="points")
            exact = [sgd_stationary_variance(float(s), curvature, noise, beta) / unit for s in grid]
            limit = [sde_stationary_variance(float(s), curvature, noise, beta) / unit for s in grid]
            curves.line(f"exact{with_beta}", grid * curvature, exact, role="predicted")
            curves.line(f"SDE{with_beta}", grid * curvature, limit, role="control")
        yield curves
