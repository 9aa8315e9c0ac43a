"""A learner who weighs experts by their past keeps up with the best of them, against any sequence of losses.

Hedge multiplies each expert's weight by e^(−ηℓ). Its total loss exceeds that of the best expert in hindsight by at most √(T ln N/2), also
where an adversary sees the weights before choosing the losses: nothing is assumed about where the losses come from. Following whoever
has been best so far has no such guarantee: an adversary makes it wrong in every round.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from theorylab.core.claim import AtMost, Claim, Finding
from theorylab.core.config import Config, setting
from theorylab.core.series import Series, Stage
from theorylab.core.source import Source
from theorylab.core.study import study
from theorylab.learning.optimizers.mirror import exponentiated_gradient
from theorylab.theory.optimization import hedge_lr, hedge_regret_bound

HEDGE_REGRET = Claim(
    "optimization/online/hedge_regret",
    "With losses in [0, 1] and step √(8 ln N/T), Hedge's regret after T rounds is at most √(T ln N/2), for every sequence of losses.",
    formula=r"\sum_t \langle w_t, \ell_t\rangle - \min_i \sum_t \ell_{t,i} \;\le\; \sqrt{\tfrac{T}{2} \ln N}",
    source=Source("Cesa-Bianchi and Lugosi 2006", "Theorem 2.2", "Prediction, Learning, and Games"),
    kind="inequality",
    relation=AtMost(rtol=1e-12),
    control="following the leader, on two experts whose losses alternate",
    reading="Learning needs no assumption on the data to compete with the best of N strategies: the price a round vanishes as 1/√T, and "
    "N enters by its logarithm only. The guarantee is about regret, not loss: where all experts are bad, so is Hedge. It is lost if losses "
    "are unbounded, or if the weights follow the past without restraint, as the leader's do.",
)


@dataclass(frozen=True, kw_only=True)
class OnlineConfig(Config):
    """Each seed draws one sequence of each kind; the adversary's needs no seed but the order of the experts."""

    rounds: int = setting(1000, "rounds T", low=10)
    experts: int = setting(10, "experts N", low=2)


Adversary = Callable[[Tensor, int], Tensor]
"""(weights (replica, expert), round) → losses (replica, expert) in [0, 1]; it may look at the weights."""


BLOCK = 100
"""Rounds whose coins are flipped at once: fewer calls than one a round, and less memory than all."""


def coin_flips(config: OnlineConfig, bias: float) -> Adversary:
    """Losses 0 or 1 by independent coins; the first expert's coin is better by ``bias``. To be called round by round, from 0."""
    generators = [torch.Generator().manual_seed(s) for s in config.replica_seeds]
    chance = torch.full((config.experts,), 0.5, dtype=torch.float64)
    chance[0] -= bias
    flips = torch.empty(0)

    def losses(weights: Tensor, t: int) -> Tensor:
        nonlocal flips
        if t % BLOCK == 0:
            draws = [torch.rand(BLOCK, config.experts, generator=g, dtype=torch.float64) < chance for g in generators]
            flips = torch.stack(draws)  # (replica, round, expert)
        return flips[:, t % BLOCK].to(weights)

    return losses


def drifting(config: OnlineConfig) -> Adversary:
    """Smooth losses whose best expert changes with time, each sequence with phases of its own."""
    turns = torch.stack(
        [torch.rand(config.experts, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in config.replica_seeds]
    )
    return lambda weights, t: (0.5 + 0.5 * torch.sin(2 * torch.pi * (turns + 3 * t / config.rounds))).to(weights)


def spiteful(weights: Tensor, t: int) -> Tensor:
    """Loss 1 to whoever has the largest weight, 0 to all others."""
    return torch.zeros_like(weights).scatter_(1, weights.argmax(1, keepdim=True), 1.0)


def alternating(weights: Tensor, t: int) -> Tensor:
    """Two experts wrong in turns, after a first half loss that decides who leads: the leader is always the one to be wrong."""
    losses = torch.zeros_like(weights)
    losses[:, 0] = 0.5 if t == 0 else float(t % 2 == 0)
    losses[:, 1] = float(t % 2 == 1)
    return losses


Learner = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(weights, losses of this round, total losses so far), each (replica, expert) → weights for the next round."""


def hedge(lr: float) -> Learner:
    """Weights by exponentiated gradient."""
    method = exponentiated_gradient(lr=lr, normalize=True)
    return lambda weights, losses, totals: method.update({"w": losses}, {}, {"w": weights})[0]["w"]


def follow_the_leader(weights: Tensor, losses: Tensor, totals: Tensor) -> Tensor:
    """All weight to the expert with the smallest total loss."""
    return torch.zeros_like(weights).scatter_(1, totals.argmin(1, keepdim=True), 1.0)


def regrets(weights: Tensor, learner: Learner, adversary: Adversary, rounds: int) -> Tensor:
    """Regret against the best expert so far, after 1, 2, ... rounds: (rounds, replica)."""
    paid, totals, path = weights.new_zeros(len(weights)), torch.zeros_like(weights), []
    for t in range(rounds):
        losses = adversary(weights, t)
        paid = paid + (weights * losses).sum(1)
        totals = totals + losses
        path.append(paid - totals.amin(1))
        weights = learner(weights, losses, totals)
    return torch.stack(path)


@study(
    "optimization/online",
    claims=[HEDGE_REGRET],
    tiny=OnlineConfig(seeds=20, rounds=200),
    small=OnlineConfig(seeds=200),
    large=OnlineConfig(seeds=1000, rounds=10_000, experts=100),
)
def online(config: OnlineConfig) -> Iterator[Finding | Series | Stage]:
    """The regret of Hedge on random, drifting and adversarial losses; of following the leader on losses that alternate."""
    rounds, experts = config.rounds, config.experts
    lr, bound = hedge_lr(rounds, experts), hedge_regret_bound(rounds, experts)
    uniform = torch.full((config.seeds, experts), 1 / experts, dtype=config.torch_dtype)
    times = torch.arange(1, rounds + 1)
    sequences: dict[str, Adversary] = {
        "fair coins": coin_flips(config, 0.0),
        "one better coin": coin_flips(config, 0.1),
        "drifting losses": drifting(config),
        "loss to the largest weight": spiteful,
    }
    figure = Series("regret", "Regret against the best expert so far", x="rounds", y="regret", claim=HEDGE_REGRET.key)
    for name, adversary in sequences.items():
        yield Stage(name)
        path = regrets(uniform, hedge(lr), adversary, rounds)
        yield HEDGE_REGRET.check(predicted=bound, measured=path[-1], setting=name)
        figure.line(f"Hedge, {name}", times, path.mean(1), low=path.amin(1), high=path.amax(1))

    yield Stage("following the leader")
    pair = torch.full((1, 2), 0.5, dtype=config.torch_dtype)
    leader = regrets(pair, follow_the_leader, alternating, rounds)
    yield HEDGE_REGRET.control_check(predicted=hedge_regret_bound(rounds, 2), measured=leader[-1], setting="alternating losses, N = 2")
    figure.line("ln N/η + tη/8", times, [hedge_regret_bound(int(t), experts, lr) for t in times], role="predicted")
    shown = leader[:, 0] <= 2 * bound
    yield figure.line("following the leader, alternating losses", times[shown], leader[shown, 0], role="control")
