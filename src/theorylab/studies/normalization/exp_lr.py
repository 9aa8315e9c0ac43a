"""With normalized weights, weight decay is the same as a step size that grows exponentially.

Decay shrinks θ; a scale-invariant loss does not notice, except that the shorter θ has a larger gradient. Growing the step instead of
shrinking the weights gives the same networks at every step, also with momentum. All hypotheses matter: each control drops one.

The two runs round differently, and training amplifies that, the more the larger η/(1 − γ): some hundred steps are compared, in which
the weights part by factors from 1.1 to 5 and the step grows by up to 25. Thousands of steps would compare two chaotic copies of one run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from theorylab.core.claim import Claim, Equals, Finding
from theorylab.core.config import Config, setting
from theorylab.core.series import Series, Stage
from theorylab.core.source import Source
from theorylab.core.study import study
from theorylab.learning.memorizing import memorizing_population
from theorylab.learning.optimizers.base import Optimizer
from theorylab.learning.optimizers.exponential import exponential_sgd
from theorylab.learning.optimizers.sgd import sgd
from theorylab.learning.population import Population
from theorylab.learning.trajectory import Trajectory
from theorylab.models.normalized import Kind, NormalizedMLP
from theorylab.theory.normalization import exponential_growth, matched_buffer

EQUIVALENCE = Claim(
    "normalization/exp_lr/equivalence",
    "On scale-invariant weights, SGD with step η, decay λ and momentum γ passes through the same networks as SGD without decay whose step "
    "grows as η_t = η α^(−2t−1), from a matched momentum buffer; its weights are α^(−t) θ_t.",
    formula=r"\tilde\theta_t = \alpha^{-t}\theta_t,\quad \eta_t = \eta\,\alpha^{-2t-1},\quad "
    r"v_0 = -\frac{1-\alpha}{\eta\alpha}\,\theta_0,\quad \alpha^2 - (1+\gamma-\lambda\eta)\,\alpha + \gamma = 0",
    source=Source("Li and Arora 2020", "Section 2 (equivalence at constant step size, with momentum)", "arXiv:1910.07454"),
    kind="identity",
    relation=Equals(atol=1e-9),
    control="an unmatched buffer; a trained head, which is not scale invariant; eps = 0.01 in BatchNorm; no BatchNorm",
    reading="Weight decay does not regularize a normalized network: it is a schedule of the effective step size. "
    "The two runs part where some trained weights are not scale invariant, or where the variance of a layer comes near eps.",
)

RATES = ((0.1, 5e-3, 0.0), (0.1, 5e-3, 0.9), (0.4, 1e-2, 0.5))
"""(η, λ, γ) of each comparison; the controls use the second."""


@dataclass(frozen=True, kw_only=True)
class ExpLrConfig(Config):
    """Two BatchNorm tanh layers under a fixed head, on random labels; pairs of runs on the same minibatches."""

    inputs: int = setting(20, "inputs", low=2)
    width: int = setting(32, "hidden units a layer", low=4)
    rows: int = setting(256, "rows of data", low=16)
    batch: int = setting(64, "rows of a minibatch", low=8)
    steps: int = setting(200, "optimizer steps", low=10)
    control_seeds: int = setting(4, "replicas of each control, at most seeds", low=1)


def train(
    config: ExpLrConfig, optimizer: Optimizer, seeds: Sequence[int], normalization: Kind = "batch", eps: float = 0.0, head: bool = False
) -> tuple[Trajectory, Tensor]:
    """Losses over all rows and weight norms during training, and the final hidden weights in one vector (replica, p)."""
    population = memorizing_population(
        lambda: NormalizedMLP([config.inputs, config.width, config.width, 1], normalization=normalization, eps=eps),
        rows=config.rows,
        inputs=config.inputs,
        optimizer=optimizer,
        seeds=seeds,
        batch_size=config.batch,
        dtype=config.torch_dtype,
        device=config.device,
        trainable=lambda name: head or name != "head",
    )

    def hidden(p: Population) -> Tensor:
        return torch.cat([w.flatten(1) for name, w in p.params.items() if name != "head"], 1)

    run = population.train(
        config.steps,
        every=max(config.steps // 20, 1),
        measure=lambda p: {"loss": p.losses(), "norm": hidden(p).norm(dim=1)},
    )
    return run, hidden(population)


def hypers(rates: Sequence[tuple[float, float, float]], config: ExpLrConfig) -> tuple[Tensor, Tensor, Tensor]:
    """η, λ and γ of each replica."""
    lr, decay, momentum = (torch.tensor(values, dtype=config.torch_dtype, device=config.device) for values in zip(*rates, strict=True))
    return lr, decay, momentum


def decayed(rates: Sequence[tuple[float, float, float]], config: ExpLrConfig) -> Optimizer:
    """SGD with weight decay."""
    lr, decay, momentum = hypers(rates, config)
    return sgd(lr, momentum=momentum, weight_decay=decay)


def growing(rates: Sequence[tuple[float, float, float]], config: ExpLrConfig, *, matched: bool = True) -> Optimizer:
    """SGD without decay whose step grows to the same effect."""
    lr, _, momentum = hypers(rates, config)
    alpha = lr.new_tensor([exponential_growth(*r) for r in rates])
    buffer = lr.new_tensor([matched_buffer(*r) if matched else 0.0 for r in rates])
    return exponential_sgd(lr / alpha, growth=alpha**-2, momentum=momentum, buffer=buffer)


def gap(one: tuple[Trajectory, Tensor], other: tuple[Trajectory, Tensor]) -> Tensor:
    """The largest difference of two runs' losses in nats, (replica,)."""
    return (one[0]["loss"] - other[0]["loss"]).abs().amax(0)


@study(
    "normalization/exp_lr",
    claims=[EQUIVALENCE],
    tiny=ExpLrConfig(seeds=2, width=8, rows=64, batch=32, steps=60, control_seeds=2),
    small=ExpLrConfig(),
    large=ExpLrConfig(seeds=32, width=256, rows=4096, batch=128, control_seeds=8),
)
def exp_lr(config: ExpLrConfig) -> Iterator[Finding | Series | Stage]:
    """Train each network twice and compare losses and weights; then drop the hypotheses one at a time."""
    yield Stage("both schedules")
    rates = [r for r in RATES for _ in config.replica_seeds]
    seeds = config.replica_seeds * len(RATES)
    decay, growth = train(config, decayed(rates, config), seeds), train(config, growing(rates, config), seeds)
    alphas = decay[1].new_tensor([exponential_growth(*r) for r in rates])
    predicted = alphas[:, None] ** -config.steps * decay[1]
    distance = (predicted - growth[1]).norm(dim=1) / growth[1].norm(dim=1)
    for k, (eta, lam, gamma) in enumerate(RATES):
        part = slice(k * config.seeds, (k + 1) * config.seeds)
        name = f"η = {eta:g}, λ = {lam:g}, γ = {gamma:g}"
        yield EQUIVALENCE.check(predicted=0.0, measured=gap(decay, growth)[part], setting=f"{name}, loss [nats]")
        yield EQUIVALENCE.check(predicted=0.0, measured=distance[part], setting=f"{name}, weights, relative to their norm")

    yield Stage("controls")
    seeds = config.replica_seeds[: config.control_seeds]
    rates = [RATES[1]] * len(seeds)
    normal = train(config, decayed(rates, config), seeds)
    unmatched = train(config, growing(rates, config, matched=False), seeds)
    yield EQUIVALENCE.control_check(predicted=0.0, measured=gap(normal, unmatched), setting="buffer starts at zero")
    broken = {"trained head": {"head": True}, "eps = 0.01": {"eps": 1e-2}, "no BatchNorm": {"normalization": "none"}}
    for name, options in broken.items():
        pair = train(config, decayed(rates, config), seeds, **options), train(config, growing(rates, config), seeds, **options)
        yield EQUIVALENCE.control_check(predicted=0.0, measured=gap(*pair), setting=name)

    key, steps, shown = EQUIVALENCE.key, decay[0].steps, config.seeds  # the first replica of the second setting
    figure = Series("loss", "Weight decay and a growing step give the same losses", x="step", y="training loss [nats]", claim=key)
    figure.line("growing step, unmatched buffer", steps, unmatched[0]["loss"][:, 0], role="control")
    figure.line("constant step, weight decay", steps, decay[0]["loss"][:, shown], role="predicted")
    yield figure.line("growing step, matched buffer", steps, growth[0]["loss"][:, shown], mark="points")

    figure = Series("norm", "The weights themselves part exponentially", x="step", y="‖θ‖", claim=key, y_scale="log")
    figure.line("constant step, weight decay", steps, decay[0]["norm"][:, shown])
    figure.line("growing step", steps, growth[0]["norm"][:, shown], mark="points")
    grown = alphas[shown] ** -steps.to(alphas)
    yield figure.line("α^(−t) times the norm under decay", steps, grown * decay[0]["norm"][:, shown], role="predicted")
