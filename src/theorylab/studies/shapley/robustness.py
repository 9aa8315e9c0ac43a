r"""Independent noise in the worths harms Banzhaf's value least, and noise at one size of coalition may harm it most.

A value is a weighted sum of worths, so noise of variance σ² on each adds :math:`2\sigma^2\sum_s\binom{n-1}{s}p_s^2` to its variance. The
weights of all marginal contributions add up to one, and a sum of squares is least where they are equal, as in Banzhaf's value: of all
semivalues it is the steadiest. That is a statement on independent noise of one size. Where only coalitions of half the players are noisy,
Banzhaf, which listens to these most, is the worst of the lot.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from theorylab.core.claim import AtLeast, Claim, Equals, Finding
from theorylab.core.config import Config, setting
from theorylab.core.series import Series, Stage
from theorylab.core.source import Source
from theorylab.core.study import study
from theorylab.instruments.games import coalitions
from theorylab.instruments.valuation import exact_values
from theorylab.theory.semivalues import (
    banzhaf_weights,
    beta_weights,
    least_noise_variance,
    noise_variance,
    noise_variance_at_size,
    shapley_weights,
)

BANZHAF_MINIMAL = Claim(
    "shapley/robustness/banzhaf_minimal",
    "Where every worth carries independent noise of one variance, no semivalue has a smaller variance than Banzhaf's.",
    formula=r"\mathrm{Var}\,\phi_i = 2\sigma^2\sum_s \binom{n-1}{s} p_s^2 \ge \frac{2\sigma^2}{2^{n-1}}",
    source=Source("Wang and Jia 2023", "the section on the robustness of semivalues to noise in the worths", "arXiv:2205.15466"),
    kind="inequality",
    relation=AtLeast(atol=1e-12),
    control="noise on the coalitions of half the players only, where Shapley is the steadier",
    reading="A mean over many equally weighted worths averages noise away best. It does not follow that Banzhaf's ranking of rows is the "
    "most reliable: the differences between its values may be smaller too, and the noise of training is not the same at all sizes.",
)

NOISE_VARIANCE = Claim(
    "shapley/robustness/noise_variance",
    "The variance that independent noise in the worths gives a semivalue is twice the noise's variance times the sum of its squared "
    "weights.",
    formula=r"\mathrm{Var}\,\phi_i = 2\sigma^2\sum_s \binom{n-1}{s} p_s^2",
    source=Source("Wang and Jia 2023", "the section on the robustness of semivalues to noise in the worths", "arXiv:2205.15466"),
    kind="statistical",
    relation=Equals(rtol=0.1),
    control="noise on the coalitions of half the players only",
    reading="Each marginal contribution brings the noise of two worths, and no worth occurs twice in one player's value, so variances "
    "add. Noise shared between coalitions, such as that of a common test set, cancels in part and is outside the formula.",
)


@dataclass(frozen=True, kw_only=True)
class RobustnessConfig(Config):
    """Pure noise: values of a game are linear, so that what they are of the game itself does not matter."""

    seeds: int = setting(1, "replicas, each with its own noise", low=1)
    players: int = setting(10, "players", low=4, high=14)
    games: int = setting(10_000, "noisy games of the sampled check", low=1000)


def laws(n: int) -> dict[str, np.ndarray]:
    """Weights of several semivalues, Banzhaf's first."""
    return {
        "Banzhaf": banzhaf_weights(n),
        "Shapley": shapley_weights(n),
        "Beta(4, 1)": beta_weights(n, 4, 1),
        "Beta(16, 1)": beta_weights(n, 16, 1),
        "Banzhaf, p = 0.3": banzhaf_weights(n, 0.3),
    }


def coefficients(n: int, weights: np.ndarray) -> Tensor:
    """What each worth adds to each player's value, (n, 2^n), read off the valuation itself."""
    p = torch.as_tensor(weights)
    jacobian = torch.func.jacrev(lambda worths: exact_values(worths, p))(torch.zeros(2**n, dtype=torch.float64))
    assert isinstance(jacobian, Tensor)
    return jacobian


def batches(squares: Tensor) -> Tensor:
    """Means over 100 games each: the squares alone are so skew that single ones would widen the interval."""
    return squares[: len(squares) // 100 * 100].view(-1, 100).mean(1)


@study(
    "shapley/robustness",
    claims=[BANZHAF_MINIMAL, NOISE_VARIANCE],
    tiny=RobustnessConfig(players=6, games=4000),
    small=RobustnessConfig(),
    large=RobustnessConfig(seeds=8, players=14, games=20_000),
)
def robustness(config: RobustnessConfig) -> Iterator[Finding | Series | Stage]:
    """Enumerate what noise does to the values, and draw noisy games."""
    n, half = config.players, config.players // 2
    sizes = coalitions(n).sum(1)
    maps = {name: coefficients(n, p) for name, p in laws(n).items()}
    yield Stage("enumeration")
    for name, linear in maps.items():
        variances = linear.square().sum(1)
        yield BANZHAF_MINIMAL.check(predicted=least_noise_variance(n), measured=variances, setting=f"{name}, σ = 1")
    some = {name: linear[:, sizes == half].square().sum(1) for name, linear in maps.items()}
    least = noise_variance_at_size(banzhaf_weights(n), half)
    yield BANZHAF_MINIMAL.control_check(predicted=least, measured=some["Shapley"], setting=f"Shapley, noise on coalitions of {half} only")

    yield Stage("noisy games")
    names = ["Banzhaf", "Shapley"]
    total: dict[str, list[Tensor]] = {name: [] for name in names}
    partial: dict[str, list[Tensor]] = {name: [] for name in names}
    for seed in config.replica_seeds:
        noise = torch.randn(config.games, 2**n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        for name in names:
            total[name].append(batches((noise @ maps[name].T).square().mean(1)))
            some_noise = noise[:, sizes == half] @ maps[name][:, sizes == half].T
            partial[name].append(batches(some_noise.square().mean(1)))
    for name in names:
        expected = noise_variance(laws(n)[name])
        yield NOISE_VARIANCE.check(predicted=expected, measured=torch.cat(total[name]), setting=f"{name}, a sample 100 noisy games")
        yield NOISE_VARIANCE.control_check(
            predicted=expected, measured=torch.cat(partial[name]), setting=f"{name}, coalitions of {half} only"
        )

    size = list(range(1, n))
    figure = Series("sizes", "Which coalitions' noise a value hears", x="size of the noisy coalitions", y="variance of a value, σ = 1")
    figure.claim, figure.y_scale = BANZHAF_MINIMAL.key, "log"
    heard = {name: [noise_variance_at_size(laws(n)[name], k) for k in size] for name in ("Shapley", "Banzhaf", "Beta(4, 1)")}
    figure.line("Shapley", size, heard["Shapley"]).line("Banzhaf", size, heard["Banzhaf"], role="control")
    figure.line("Beta(4, 1)", size, heard["Beta(4, 1)"], role="predicted")
    yield figure
    chances = np.linspace(0.1, 0.9, 33)
    figure = Series("chances", "The steadiest coin is the fair one", x="chance p of taking part", y="variance of a value, σ = 1")
    figure.claim, figure.y_scale = NOISE_VARIANCE.key, "log"
    figure.line("p-biased Banzhaf", chances, [noise_variance(banzhaf_weights(n, p)) for p in chances], role="predicted")
    figure.line("Banzhaf, noisy games", [0.5], [float(torch.cat(total["Banzhaf"]).mean())], mark="points")
    yield figure.line("Shapley, noisy games", [0.5], [float(torch.cat(total["Shapley"]).mean())], role="control", mark="points")
