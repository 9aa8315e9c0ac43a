r"""A datamodel is the part of degree one of the outcome of training, and regression pays for it by the thousand retrainings.

The outcome of training as a function of the training set is a game on subsets of rows. Its Fourier expansion says what a linear datamodel
can know: the slopes are the coefficients of degree one, and the weight of degree two and more is what it misses, however many retrainings
it is given. That weight is seen without any regression in how outcomes on correlated subsets resemble each other. Regression finds each
slope with an error of its own; influence computes all of them from one model. On rows of the digits with ridge regression, where
retraining is exact, a regression on a few hundred retrainings predicts others worse than influence, on thousands better: influence
is first order at the full training set, the slopes are means over subsets of half of it.

The estimate without a regression is unbiased up to interactions of five rows, and noisy: it compares products of outcomes. It is for games
of so many rows that regression has no chance, and is tried here on one of networks whose every subset is trained, so that the truth is
known. The number of its draws was raised after a pilot on other seeds, whose interval was as wide as the region.

The penalty of the ridge regression and the numbers of rows and retrainings were the first that were tried. The ridge of a datamodel is
chosen by its own error on subsets left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from theorylab.core.claim import Claim, Equals, Finding, Orders
from theorylab.core.config import Config, setting
from theorylab.core.problem import Problem
from theorylab.core.seeds import derived_seed
from theorylab.core.series import Series, Stage
from theorylab.core.source import Source
from theorylab.core.study import study
from theorylab.data.digits import digits
from theorylab.instruments.attribution import influence
from theorylab.instruments.datamodels import datamodels, stability_masks, stability_residual
from theorylab.learning.linear import LinearFits, ridge
from theorylab.learning.optimizers.sgd import sgd
from theorylab.learning.retraining import half_subsets, retrain
from theorylab.models.mlp import mlp
from theorylab.models.seeded import seeded
from theorylab.stats.lds import lds
from theorylab.theory.influence import datamodel_residual, datamodel_slopes, fourier_weights, noise_stability

FOURIER = Claim(
    "influence/datamodel/fourier",
    "Over uniform subsets the best linear datamodel has −2 times the Fourier coefficients of degree one for slopes, and misses the weight "
    "of degree two and more, which the noise stability shows without a fit.",
    formula=r"w_i = -2\hat f(\{i\}), \qquad \min_{b,w} E\Bigl(f(x) - b - \sum_i w_i x_i\Bigr)^2 = \sum_{|S|\ge2} \hat f(S)^2, "
    r"\qquad E\, f(x) f(x') = \sum_k \rho^k B_k",
    source=Source("Saunshi et al. 2023", "the sections on linear datamodels and on their residual by noise stability", "arXiv:2210.01072"),
    kind="identity",
    relation=Equals(atol=1e-12),
    control="subsets that hold each row with probability 0.2, whose slopes are others",
    reading="A linear datamodel is a projection: more retrainings sharpen it, but cannot make it know how rows act together. "
    "How much that is can be asked before paying for a regression. The slopes belong to subsets of half of the rows; "
    "at another fraction the same game has other slopes.",
)

PRICE = Claim(
    "influence/datamodel/price",
    "One influence computation orders the outcomes of new retrainings better than a datamodel regressed on 256 retrainings of 200 rows.",
    formula=r"\mathrm{LDS}(\tau_{\mathrm{influence}}) > \mathrm{LDS}(\hat w_{256})",
    source=Source(
        "Ilyas et al. 2022", "Section 2 (regression on many retrainings); Park et al. 2023, arXiv:2303.14186", "arXiv:2202.00622"
    ),
    kind="statistical",
    relation=Orders(),
    control="scores of influence given to other rows; and a datamodel regressed on sixteen times as many retrainings, which is the better",
    reading="Regression estimates hundreds of slopes from noisy sums, so it needs several retrainings for every row before it is worth "
    "more than a formula. It has no other limit: with thousands of retrainings it passes influence, which describes small changes "
    "of the full training set and is asked about halves of it.",
)

STABILITY = Claim(
    "influence/datamodel/noise_stability",
    "What the best linear datamodel of retrained networks misses can be read off outcomes on correlated subsets, without a regression.",
    formula=r"\sum_{k\ge2} B_k \approx \mathrm{Var} f - \frac{D(\rho) - \rho^2 D(1)}{1 - \rho^2}, \qquad D(\rho) = "
    r"\frac{E f(x)f(x_\rho) - E f(x)f(x_{-\rho})}{2\rho}",
    source=Source("Saunshi et al. 2023", "the section on the residual of linear datamodels by noise stability", "arXiv:2210.01072"),
    kind="statistical",
    relation=Equals(atol=0.1),
    control="partners that keep each bit with probability ρ in place of (1 + ρ)/2",
    reading="Whether a linear attribution can be right is a property of training that some retrainings on pairs of subsets measure, before "
    "any score is computed. The estimate is off by the weight of degree five and more, and where training is noisy the noise "
    "must be taken out by products of different seeds.",
)


@dataclass(frozen=True, kw_only=True)
class DatamodelConfig(Config):
    """Digits, ridge regression on one-hot labels without intercept; the outcome is the mean square error of a test row."""

    players: int = setting(10, "players of the games, whose every subset is enumerated", low=3, high=12)
    groups: int = setting(8, "groups of eight digits on which networks are trained, in every union", low=3, high=12)
    draws: int = setting(128, "draws of subsets, each of which gives an estimate of the residual", low=2)
    pairs: int = setting(4096, "subsets of a draw, each with three partners", low=2)
    n: int = setting(200, "training rows", low=20)
    probes: int = setting(32, "test rows that are attributed", low=2)
    decay: float = setting(0.01, "penalty λ of the mean squared error", low=1e-6)
    tests: int = setting(256, "subsets of half of the rows, on which scores are judged", low=16)
    few: int = setting(256, "retrainings of the datamodel that is compared; sixteen times as many are its control", low=16)


class Refits:
    """Ridge regression of digits on any weighting of its training rows, exactly."""

    def __init__(self, n: int, probes: int, decay: float, seed: int) -> None:
        x, labels = digits(n + probes, seed=seed)
        y = (labels[:, None] == torch.arange(10)).double()
        self.train, self.test, self.decay = (x[:n], y[:n]), (x[n:], y[n:]), decay

    def fit(self, masks: Tensor) -> LinearFits:
        """Sums of squares keep their weight against the penalty where rows leave, as in the objective that influence differentiates."""
        x, y = self.train
        return ridge(x, y, masks.double(), l2=self.decay * y.numel() / 2, intercept=False)

    def losses(self, masks: Tensor) -> Tensor:
        """Of each test row, (subset, probe)."""
        x, y = self.test
        return (self.fit(masks).outputs(x) - y).square().mean(2)

    def problem(self) -> Problem:
        """The linear network at its optimum on all rows."""
        x, y = self.train
        net = nn.utils.skip_init(nn.Linear, x.shape[1], y.shape[1], bias=False, dtype=x.dtype)
        weights = self.fit(torch.ones(1, len(x))).weights[0]
        problem = Problem(net, lambda outputs, targets: (outputs - targets).square().mean(1), self.train)
        return problem.at({"weight": weights.T})


def subsets(players: int) -> np.ndarray:
    """All subsets (2ⁿ, n), in the order of their bits."""
    return (np.arange(2**players)[:, None] >> np.arange(players)) & 1


def game_of_digits(players: int, decay: float, seed: int) -> np.ndarray:
    """Mean test loss after training on each union of blocks of six rows, (2ⁿ,); without a row the weights are zero."""
    refits = Refits(6 * players, 100, decay, seed)
    losses = refits.losses(torch.as_tensor(subsets(players)[1:]).repeat_interleave(6, dim=1)).mean(1)
    return np.concatenate([[float(refits.test[1].square().mean())], losses.numpy()])


class Pairs:
    """Mean products f(x) f(x′) over all pairs of subsets, by the number of rows in which they differ."""

    def __init__(self, values: np.ndarray) -> None:
        x = subsets(len(values).bit_length() - 1)
        self.n, inside = x.shape[1], x.sum(1)
        apart = inside[:, None] + inside - 2 * x @ x.T
        self.products = np.bincount(apart.reshape(-1), np.outer(values, values).reshape(-1)) / len(values)

    def stability(self, rho: float) -> float:
        """E f(x) f(x′), x uniform and each bit of x′ kept with probability (1 + ρ)/2."""
        h = np.arange(self.n + 1)
        return float(self.products @ (((1 - rho) / 2) ** h * ((1 + rho) / 2) ** (self.n - h)))

    def residual(self) -> float:
        """The weight of degree two and more from noise stabilities alone: a polynomial of degree n in ρ, known at n + 1 places."""
        places = np.cos(np.pi * np.arange(self.n + 1) / self.n)
        polynomial = np.polynomial.Chebyshev.fit(places, [self.stability(r) for r in places], self.n, domain=[-1, 1])
        return float(polynomial(1.0) - polynomial(0.0) - polynomial.deriv()(0.0))


def slopes_at(values: np.ndarray, p: float) -> np.ndarray:
    """Least squares over all subsets, each weighted by its chance where every row is in with probability p."""
    x = subsets(len(values).bit_length() - 1)
    root = np.sqrt(p ** x.sum(1) * (1 - p) ** (1 - x).sum(1))
    design = np.concatenate([np.ones((len(x), 1)), x], 1)
    return np.linalg.lstsq(root[:, None] * design, root * values, rcond=None)[0][1:]


def gain(outputs: Tensor, targets: Tensor) -> Tensor:
    """Log probability of the right class, one a row."""
    return -nn.functional.cross_entropy(outputs, targets, reduction="none")


def game_of_networks(groups: int, seed: int, device: str) -> np.ndarray:
    """Mean gain on other digits of a network trained on each union of groups, (2ⁿ,); untrained where there is none."""
    n, loss, make = 8 * groups, nn.functional.cross_entropy, partial(mlp, [64, 8, 10])
    x, y = digits(n + 100, seed=seed)
    masks = torch.as_tensor(subsets(groups)[1:]).repeat_interleave(8, dim=1)
    method = sgd(0.3, momentum=0.9, weight_decay=1e-2)
    outcomes = retrain(
        make, loss, (x[:n], y[:n]), masks, [seed], optimizer=method, steps=60, targets=(x[n:], y[n:]), target=gain, dtype=x.dtype,
        device=device, progress=False,
    )  # fmt: skip
    with torch.no_grad():
        untrained = gain(seeded(make, seed)(x[n:]), y[n:]).mean()
    return np.concatenate([[float(untrained)], outcomes.mean((1, 2)).numpy()])


def stability(config: DatamodelConfig) -> Iterator[Finding | Series | Stage]:
    """Estimates of the residual of one game of trained networks, whose every outcome is known, from draws of correlated subsets."""
    yield Stage("networks on every union of groups")
    game = game_of_networks(config.groups, config.seed, config.device)
    table, bits = torch.as_tensor(game), 2 ** torch.arange(config.groups)
    missed, rho = datamodel_residual(game), 0.5

    def ratios(kept: float) -> np.ndarray:
        """Of estimates to the residual itself; partners keep each bit with this probability."""
        found = []
        for seed in range(config.draws):
            masks = stability_masks(config.groups, config.pairs, rho=2 * kept - 1, seed=config.seed * config.draws + seed)
            found.append(stability_residual(table[masks.long() @ bits], rho=rho).value / missed)
        return np.array(found)

    weights, measured = fourier_weights(game), ratios((1 + rho) / 2)
    note = f"a linear datamodel misses {missed / weights[1:].sum():.2g} of the variance; one draw is off by {measured.std():.2g}"
    yield STABILITY.check(predicted=1.0, measured=measured, setting="estimate / weight of degree ≥ 2", note=note)
    yield STABILITY.control_check(predicted=1.0, measured=ratios(0.501), setting="bits kept with probability ρ (and 0.001)")
    figure = Series("weights", "How rows act together in training", x="degree", y="share of the variance over subsets", claim=STABILITY.key)
    figure.y_scale = "log"
    degrees = np.arange(1, config.groups + 1)
    shares = np.maximum(weights[1:] / weights[1:].sum(), 1e-12)
    figure.line("networks on unions of groups of digits", degrees, shares, mark="points")
    chance = np.array([math.comb(config.groups, int(k)) for k in degrees]) / (2**config.groups - 1)
    yield figure.line("a random game", degrees, chance, role="control")


def fourier(config: DatamodelConfig) -> Iterator[Finding | Series | Stage]:
    """A random game and one of retrainings for each replica, all subsets of which are enumerated."""
    yield Stage("games on all subsets")
    masks = subsets(config.players)
    made = {
        "random game": lambda seed: np.random.default_rng(seed).standard_normal(2**config.players),
        "retrainings on blocks of digits": lambda seed: game_of_digits(config.players, config.decay, seed),
    }
    for name, make in made.items():
        slopes, residuals, stabilities, biased, weight = [], [], [], [], []
        for seed in config.replica_seeds:
            game = make(seed)
            game = (game - game.mean()) / game.std()
            found, expected, missed = datamodels(masks, game[:, None], ridge=0.0), datamodel_slopes(game), datamodel_residual(game)
            weight.append(missed)
            slopes.append(np.abs(found.slopes[:, 0].numpy() - expected).max())
            residuals.append(float(found.fit_error) - missed)
            stabilities.append(Pairs(game).residual() - missed)
            biased.append(np.abs(slopes_at(game, 0.2) - expected).max())
        unit = f"of unit variance: {name}"
        note = f"a linear datamodel misses {np.mean(weight):.2g} of the variance"
        yield FOURIER.check(predicted=0.0, measured=np.array(slopes), setting=f"slopes, {unit}", note=note)
        yield FOURIER.check(predicted=0.0, measured=np.array(residuals), setting=f"residual, {unit}")
        yield FOURIER.check(predicted=0.0, measured=np.array(stabilities), setting=f"residual from noise stability, {unit}")
        yield FOURIER.control_check(predicted=0.0, measured=np.array(biased), setting=f"slopes at p = 0.2, {unit}")
    rho = np.linspace(-1, 1, 21)
    game = made["random game"](config.seed)
    pairs, size = Pairs(game), float(np.mean(game**2))
    figure = Series("stability", "A random game on correlated subsets", x="ρ", y="E f(x) f(x′) / E f²", claim=FOURIER.key)
    figure.line("enumerated", rho, np.array([pairs.stability(r) for r in rho]) / size, mark="points")
    weights = fourier_weights(game)
    figure.line("Σ ρᵏ B_k", rho, np.array([noise_stability(weights, r) for r in rho]) / size, role="predicted")
    yield figure.line("B₀ + ρ B₁: a linear datamodel", rho, (weights[0] + rho * weights[1]) / size, role="control")


def price(config: DatamodelConfig) -> Iterator[Finding | Series | Stage]:
    """Scores of influence and of datamodels on more and more retrainings, judged on the same other retrainings."""
    yield Stage("influence against retrainings")
    counts = [config.few * 4**k // 4 for k in range(4)]
    known, shuffled, regressed = [], [], []
    for seed in config.replica_seeds:
        refits = Refits(config.n, config.probes, config.decay, seed)
        tests = half_subsets(config.n, config.tests, seed=derived_seed(seed, "tests"))
        truth = refits.losses(tests)
        scores = influence(refits.problem(), refits.test, damping=config.decay)
        order = torch.randperm(config.n, generator=torch.Generator().manual_seed(seed))
        known.append(lds(scores, tests, truth).value)
        shuffled.append(lds(scores[order], tests, truth).value)
        masks = half_subsets(config.n, counts[-1], seed=derived_seed(seed, "subsets"))
        outputs = refits.losses(masks)
        regressed.append([lds(datamodels(masks[:m], outputs[:m]).slopes, tests, truth).value for m in counts])
    known, shuffled, regressed = np.array(known), np.array(shuffled), np.array(regressed)
    at, last = counts.index(config.few), counts[-1]
    note = f"influence {known.mean():.3f}; retrainings: " + ", ".join(
        f"{m} {v:.3f}" for m, v in zip(counts, regressed.mean(0), strict=True)
    )
    yield PRICE.check(measured=known - regressed[:, at], setting=f"{config.few} retrainings", note=note)
    yield PRICE.control_check(measured=shuffled - regressed[:, at], setting="influence of other rows")
    yield PRICE.control_check(measured=known - regressed[:, -1], setting=f"{last} retrainings")
    figure = Series("price", "What a datamodel costs", x="retrainings", y="LDS on new retrainings", claim=PRICE.key, x_scale="log")
    figure.line("datamodel", counts, regressed.mean(0), low=regressed.min(0), high=regressed.max(0), mark="points")
    figure.line("influence", counts, np.full(len(counts), known.mean()), role="predicted")
    yield figure.line("influence of other rows", counts, np.full(len(counts), shuffled.mean()), role="control")


@study(
    "influence/datamodel",
    claims=[FOURIER, PRICE, STABILITY],
    tiny=DatamodelConfig(seeds=6, players=5, groups=4, draws=64, pairs=1024, n=60, probes=16, tests=64, few=32),
    small=DatamodelConfig(seeds=8),
    large=DatamodelConfig(seeds=16, players=12, groups=12, n=1000, probes=100, tests=1024, few=2048),
)
def datamodel(config: DatamodelConfig) -> Iterator[Finding | Series | Stage]:
    """The identities by enumeration, the residual without a fit, then the price."""
    yield from fourier(config)
    yield from stability(config)
    yield from price(config)
