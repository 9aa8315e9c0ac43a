"""What a linear function of membership can know of retraining, and what it costs to fit one.

An outcome of training, as a function of which rows are in the training set, is a game, and has a Fourier expansion over subsets. The best
linear prediction over uniform subsets leaves exactly the weight of degree two and more, and its slopes are the coefficients of degree one.
The stability of the outcome under random changes of the subset follows from the same weights. These are identities; they are checked on
random games, and on a real one: a network that is trained on every union of eight groups of digits.

Fitting needs retrainings. Each is one noisy equation for all rows together, so that a regression needs more of them than there are rows
before it is as good as one solve with the Gauss-Newton matrix: for this ridge regression, thousands.

The second claim says that at 256 retrainings influence is ahead, and that the regression does know something. The first half must break
where retrainings are plenty: at 4096 the regression has caught up. The second breaks where the outcomes are dealt to other subsets.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from theorylab.core.claim import Claim, Equals, Finding, Orders
from theorylab.core.config import Config, setting
from theorylab.core.problem import Problem
from theorylab.core.series import Series, Stage
from theorylab.core.source import Source
from theorylab.core.study import study
from theorylab.data.digits import digits
from theorylab.instruments.attribution import influence
from theorylab.learning.linear import ridge
from theorylab.learning.optimizers.sgd import sgd
from theorylab.learning.retraining import half_subsets, retrain
from theorylab.models.mlp import mlp
from theorylab.models.seeded import seeded
from theorylab.stats.datamodels import datamodels
from theorylab.stats.lds import spearman
from theorylab.theory.influence import datamodel_residual, datamodel_slopes, fourier_weights, noise_stability

FOURIER = Claim(
    "influence/datamodel/fourier",
    "The best linear datamodel leaves the Fourier weight of degree two and more; its slopes are minus twice the degree-one coefficients.",
    formula=r"\min_{\tau,b} E\Bigl(f(S) - b - \sum_{i\in S}\tau_i\Bigr)^2 = \sum_{|T|\ge2}\hat f(T)^2,\quad \tau_i = -2\hat f(\{i\})",
    source=Source(
        "Saunshi et al. 2023",
        "the characterization of datamodels by Fourier coefficients, and of their residual by noise stability",
        "arXiv:2210.01072",
    ),
    kind="identity",
    relation=Equals(atol=1e-12),
    control="subsets that hold each row with probability 0.2",
    reading="How far any attribution by single rows can go is decided by interactions: the weight of higher degree is out of its reach. "
    "The identity is one of uniform subsets, and the attribution depends on that choice: with other subsets the slopes are others.",
)

PRICE = Claim(
    "influence/datamodel/price",
    "In ridge regression, one solve with the Gauss-Newton matrix predicts retraining better than a datamodel fitted to 256 retrainings.",
    formula=r"\mathrm{LDS}(\text{influence}) > \mathrm{LDS}(\text{datamodel}_{256}) > 0",
    source=Source("Ilyas et al. 2022", "the estimation of datamodels, from many thousands of retrainings", "arXiv:2202.00622"),
    kind="statistical",
    relation=Orders(gap=0.05),
    control="4096 retrainings, where the regression has caught up; and outcomes dealt to other subsets, where it knows nothing",
    reading="A regression learns from each retraining one number about all rows, a gradient solve learns the direction of each row from "
    "the model itself. With thousands of retrainings the regression catches up, and it alone improves from there.",
)


@dataclass(frozen=True, kw_only=True)
class DatamodelConfig(Config):
    """A seed is a random game, or a data set for ridge regression; the game of the network is the same for all."""

    players: int = setting(10, "players of a random game", low=2, high=12)
    groups: int = setting(8, "groups of digits, of the game that retraining plays", low=2, high=10)
    group_rows: int = setting(8, "digits in a group", low=1)
    rows: int = setting(150, "rows n of the ridge regression", low=10)
    inputs: int = setting(30, "its inputs d", low=1)
    penalty: float = setting(0.02, "its λ, of the mean objective", low=1e-8)
    fitted: tuple[int, ...] = setting(
        (64, 128, 256, 512, 1024, 4096), "retrainings of a datamodel, in rising order, with 256 and 4096", low=8
    )
    judged: int = setting(256, "halves of the rows on which all are judged", low=16)


COMPARED, PLENTY = 256, 4096


def membership(n: int) -> Tensor:
    """All subsets of n players as bits, (2ⁿ, n), player i the bit i of the row's number."""
    return (torch.arange(2**n)[:, None] >> torch.arange(n) & 1).double()


def fit(f: Tensor, p: float) -> tuple[float, Tensor]:
    """Residual and slopes of least squares over all subsets, each weighted by its probability if rows are drawn with probability p."""
    x = membership((len(f) - 1).bit_length())
    weight = (p**x * (1 - p) ** (1 - x)).prod(1).sqrt()[:, None]
    design = torch.cat([torch.ones_like(x[:, :1]), x], 1)
    Q, R = torch.linalg.qr(weight * design)
    target = weight * f[:, None]
    solution = torch.linalg.solve_triangular(R, Q.T @ target, upper=True)
    return float((target - weight * design @ solution).square().sum()), solution[1:, 0]


def stability(f: Tensor, rho: float) -> float:
    """E f(x) f(x′) over all pairs: f after each bit in turn is kept with probability (1 + ρ)/2."""
    g, half = f, 1
    while half < len(f):
        pairs = g.view(-1, 2, half)
        g = ((1 + rho) / 2 * pairs + (1 - rho) / 2 * pairs.flip(1)).reshape(-1)
        half *= 2
    return float((f * g).mean())


def trained_game(config: DatamodelConfig) -> Tensor:
    """Mean margin of a network on other digits, trained on each union of groups, (2ⁿ,); untrained for the empty one."""
    n = config.groups * config.group_rows
    x, y = digits(n + 100, seed=config.seed, dtype=torch.float64)
    data, test = (x[:n], y[:n]), (x[n:], y[n:])
    make = partial(mlp, [64, 8, 10])
    masks = membership(config.groups).repeat_interleave(config.group_rows, 1)
    outcomes = retrain(
        make, cross_entropy, data, masks[1:], [config.seed], optimizer=sgd(0.3, momentum=0.9, weight_decay=1e-2), steps=60, targets=test,
        target=gain, dtype=torch.float64, device=config.device,
    )  # fmt: skip
    with torch.no_grad():
        empty = gain(seeded(make, config.seed)(test[0]), test[1])
    return torch.cat([empty.mean()[None], outcomes.mean((1, 2))])


def gain(outputs: Tensor, targets: Tensor) -> Tensor:
    """Log probability of the right class, one a row."""
    return -cross_entropy(outputs, targets, reduction="none")


@study(
    "influence/datamodel",
    claims=[FOURIER, PRICE],
    tiny=DatamodelConfig(players=5, groups=4, group_rows=4, fitted=(256, 4096)),
    small=DatamodelConfig(),
    large=DatamodelConfig(seeds=32, players=12, groups=10, group_rows=50, fitted=(64, 128, 256, 512, 1024, 2048, 4096, 16384)),
)
def datamodel(config: DatamodelConfig) -> Iterator[Finding | Series | Stage]:
    """Enumerate games; then fit to retrainings of ridge regression."""
    yield Stage("a network trained on every union of groups")
    yield from check_fourier(config)
    yield Stage("datamodels of ridge regression")
    yield from check_price(config)


def check_fourier(config: DatamodelConfig) -> Iterator[Finding | Series]:
    """Least squares over all subsets against Fourier weights, of random games and of a trained one."""
    games = []
    for seed in config.replica_seeds:
        games.append(torch.randn(2**config.players, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
    trained = trained_game(config)
    for name, some in (("random games", games), ("trained networks", [trained])):
        residuals, slopes, pairs, other = [], [], [], []
        for f in some:
            table = f.numpy()
            left, fitted = fit(f, 0.5)
            residuals.append(left - datamodel_residual(table))
            slopes.append(float((fitted - torch.from_numpy(datamodel_slopes(table))).abs().max()))
            weights = fourier_weights(table)
            pairs += [stability(f, rho) - noise_stability(weights, rho) for rho in (-0.5, 0.2, 0.9)]
            other.append(float((fit(f, 0.2)[1] - torch.from_numpy(datamodel_slopes(table))).abs().max()))
        yield FOURIER.check(predicted=0.0, measured=residuals, setting=f"{name}, residual less weight of degree ≥ 2")
        yield FOURIER.check(predicted=0.0, measured=slopes, setting=f"{name}, largest difference of slopes")
        yield FOURIER.check(predicted=0.0, measured=pairs, setting=f"{name}, noise stability at ρ = −0.5, 0.2, 0.9")
        yield FOURIER.control_check(predicted=0.0, measured=other, setting=f"{name}, slopes at p = 0.2")

    weights = fourier_weights(trained.numpy())[1:]
    share = np.maximum(weights / weights.sum(), 1e-12)
    axes = {"x": "degree", "y": "share of the variance over subsets", "y_scale": "log"}
    figure = Series("weights", "Most of what a training set does, its groups do alone", claim=FOURIER.key, **axes)
    figure.line("trained networks", np.arange(1, len(share) + 1), share)
    mean = np.mean([fourier_weights(f.numpy())[1:] for f in games], 0)
    yield figure.line("random games", np.arange(1, len(mean) + 1), mean / mean.sum(), role="control")


def comparison(config: DatamodelConfig, seed: int) -> tuple[float, list[float], float]:
    """Scores of influence, of datamodels by retrainings, and of one whose outcomes were dealt to other subsets."""
    generator = torch.Generator().manual_seed(seed)
    n, d, m = config.rows, config.inputs, 50
    x = torch.randn(n + m, d, generator=generator, dtype=torch.float64)
    signal = torch.randn(d, generator=generator, dtype=torch.float64)
    y = x @ signal / d**0.5 + torch.randn(n + m, generator=generator, dtype=torch.float64)
    train, probes = (x[:n], y[:n]), x[n:]
    masks = half_subsets(n, max(config.fitted) + config.judged, seed=seed).double()
    # members minimize the mean over their own half, so that the penalty of the sum is that of n/2 rows; mse_loss has no ½
    outcomes = ridge(*train, masks, l2=config.penalty * n / 4, intercept=False).outputs(probes)[..., 0]
    whole = ridge(*train, torch.ones(1, n), l2=config.penalty * n / 2, intercept=False).weights[0]
    problem = Problem(seeded(partial(nn.Linear, d, 1, bias=False), seed), mse_loss, (train[0], train[1][:, None])).at({"weight": whole.T})
    scores = influence(problem, (probes, torch.zeros(m, 1)), target=lambda out, _: out[:, 0], damping=config.penalty)
    own, judged = masks[: config.judged], outcomes[: config.judged]
    masks, outcomes = masks[config.judged :], outcomes[config.judged :]

    def score(found: Tensor) -> float:
        return float(spearman(own @ found, judged).mean())

    dealt = outcomes[:COMPARED][torch.randperm(COMPARED, generator=generator)]
    fitted = [score(datamodels(masks[:count], outcomes[:count])) for count in config.fitted]
    return score(scores), fitted, score(datamodels(masks[:COMPARED], dealt))


def check_price(config: DatamodelConfig) -> Iterator[Finding | Series]:
    """One solve against many refits."""
    found = [comparison(config, seed) for seed in config.replica_seeds]
    solve, fitted = np.array([f[0] for f in found]), np.array([f[1] for f in found])  # (replica,), (replica, count)
    dealt = np.array([f[2] for f in found])
    at, plenty = (fitted[:, config.fitted.index(count)] for count in (COMPARED, PLENTY))
    yield PRICE.check(measured=solve - at, setting=f"influence less datamodel of {COMPARED}")
    yield PRICE.check(measured=at, setting=f"datamodel of {COMPARED}")
    yield PRICE.control_check(measured=solve - plenty, setting=f"influence less datamodel of {PLENTY}")
    yield PRICE.control_check(measured=dealt, setting=f"datamodel of {COMPARED}, outcomes permuted")

    axes = {"x": "retrainings", "y": "linear datamodeling score", "x_scale": "log"}
    figure = Series("price", "A solve is worth hundreds of retrainings", claim=PRICE.key, **axes)
    figure.line("one Gauss-Newton solve", config.fitted, [solve.mean()] * len(config.fitted), role="predicted")
    figure.line("datamodel", config.fitted, fitted.mean(0), low=fitted.min(0), high=fitted.max(0))
    yield figure.line("datamodel, outcomes permuted", [COMPARED], [dealt.mean()], role="control", mark="points")
