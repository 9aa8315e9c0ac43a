"""What is small about a network that could fit anything: norms and margins, not the number of its parameters.

A network of many more parameters than rows fits random labels as well as true ones, so that no count of parameters tells the two apart.
The spectral complexity does, once it is divided by the margin: at the same training loss, random labels cost a network several times
more, and the more rows there are to memorize, the more. It descends from the simplest case, a ball of linear predictors, whose Rademacher
complexity is known for every single vector of signs; and from the product of the layers' spectral norms, which bounds how fast the
outputs can change anywhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import jacrev, vmap
from torch.nn.functional import cross_entropy

from theorylab.core.claim import AtLeast, AtMost, Claim, Equals, Finding
from theorylab.core.config import Config, setting
from theorylab.core.problem import Params
from theorylab.core.series import Series, Stage
from theorylab.core.source import Source
from theorylab.core.study import study
from theorylab.data.digits import digits
from theorylab.instruments.norms import Norms, norms
from theorylab.instruments.predictions import scores_and_classes, signed_margins
from theorylab.learning.optimizers.adam import adam
from theorylab.learning.population import Population
from theorylab.learning.stopping import train_to_loss
from theorylab.models.mlp import mlp
from theorylab.theory.capacity import linear_rademacher, linear_rademacher_bound, linear_supremum, sign_vectors

SPECTRAL = Claim(
    "generalization/capacity/spectral_complexity",
    "At the same training loss, the spectral complexity over the margin is more than twice as large on random labels as on true ones.",
    formula=r"\frac{1}{\gamma}\prod_i \|W_i\|_2 \left(\sum_i \frac{\|W_i - M_i\|_{2,1}^{2/3}}{\|W_i\|_2^{2/3}}\right)^{3/2}"
    r"\Bigg|_{\mathrm{random}} > 2\ \times\ (\ldots)\Big|_{\mathrm{true}}",
    source=Source("Bartlett et al. 2017", "Equation (1.2) and Figure 2 (margins with and without random labels)", "arXiv:1706.08498"),
    kind="statistical",
    relation=AtLeast(),
    control="two sets of true labels: other digits, and the same initial weights",
    reading="Rows, network, start and training loss are the same, and so is the number of parameters: only what had to be learned differs, "
    "and the norms know it. It is a comparison, not a certificate: put into the bound itself, both numbers are far beyond one.",
)
SUPREMUM = Claim(
    "generalization/capacity/rademacher_supremum",
    "The largest correlation of a linear predictor in a ball with given signs has a closed form, for every vector of signs.",
    formula=r"\sup_{\|w\|_2\le B} \frac1n\sum_i \sigma_i\langle w, x_i\rangle = \frac Bn\Big\|\sum_i\sigma_i x_i\Big\|_2",
    source=Source("Bartlett and Mendelson 2002", "Section 4.3 (kernel expansions)", "JMLR 3:463-482"),
    kind="identity",
    relation=Equals(rtol=1e-12, atol=1e-12),
    control="the ball of the ℓ1 norm with the same radius",
    reading="How well a class follows noise is how much it can overfit, and for linear predictors the best of them points along the sum of "
    "the rows with their signs. Another ball has another dual norm: in ℓ1 only the largest coordinate of that sum counts.",
)
RADEMACHER = Claim(
    "generalization/capacity/rademacher_linear",
    "The Rademacher complexity of linear predictors of norm at most B is at most B times the root of the rows' squared norms, over n.",
    formula=r"\hat R = \frac{B}{n}\,\mathbb{E}\Big\|\sum_i\sigma_i x_i\Big\| \le \frac{B}{n}\sqrt{\sum_i \|x_i\|^2}",
    source=Source("Bartlett and Mendelson 2002", "Lemma 22 (for kernels; here without their factor of two)", "JMLR 3:463-482"),
    kind="inequality",
    relation=AtMost(rtol=1e-12),
    control="identical rows whose signs are all equal, not independent",
    reading="The dimension does not appear: norms do, which is why large networks need not overfit. Random signs cancel, so that a sum of "
    "n rows is only √n long; signs that agree with each other do not cancel, and neither do labels that can be learned.",
)
LIPSCHITZ = Claim(
    "generalization/capacity/lipschitz_chain",
    "Nowhere does a ReLU network change faster than the product of its spectral norms, which is at most that of its Frobenius norms.",
    formula=r"\|\nabla f(x)\|_2 \le \prod_i \|W_i\|_2 \le \prod_i \|W_i\|_F",
    source=Source("Szegedy et al. 2014", "Section 4.3 (spectral analysis of unstability)", "arXiv:1312.6199"),
    kind="inequality",
    relation=AtMost(rtol=1e-12),
    control="the same weights with an activation of slope two",
    reading="The product is what margin bounds divide by: a margin of γ cannot be crossed by moving an input less than γ over it. It is "
    "loose, as the layers' directions of largest growth do not line up, and it holds only for activations of slope at most one.",
)


@dataclass(frozen=True, kw_only=True)
class CapacityConfig(Config):
    """A seed is a choice of digits and an initial network, trained on true labels, on random ones, and on other digits."""

    rows: int = setting(300, "digits to fit", low=20, high=898)
    width: int = setting(64, "units of each of two hidden layers", low=2)
    lr: float = setting(3e-3, "Adam's step size", low=1e-5, high=0.1)
    loss: float = setting(0.01, "training loss at which all networks are compared", low=1e-6, high=1.0)
    limit: int = setting(5000, "steps within which it must be reached", low=10)
    points: int = setting(500, "inputs at which a network's Jacobian is taken", low=2)
    signs: int = setting(14, "rows n of the linear class, of which all 2ⁿ vectors of signs are taken", low=2, high=18)
    sampled: int = setting(20_000, "random vectors of signs where all are too many", low=100)


MARGIN = 0.1
"""The quantile of the margin that stands for γ."""
FACTOR = 2.0
EVERY = 5
"""Steps between looks at the training loss."""


class SteepReLU(nn.Module):
    """max(2u, 0): an activation of slope two."""

    def forward(self, u: Tensor) -> Tensor:
        """Entry by entry."""
        return 2 * torch.relu(u)


# ---- linear predictors -------------------------------------------------------------------------------------------------------------------


def linear_rows(config: CapacityConfig) -> dict[str, Tensor]:
    """Rows (n, d) of several kinds."""
    n, generator = config.signs, torch.Generator().manual_seed(config.seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return {
        "digits": digits(n, seed=config.seed).x,
        "normal rows in two dimensions": normal(n, 2),
        "norms of very different size": normal(n, 5) * torch.logspace(-2, 2, n, dtype=torch.float64)[:, None],
        "orthogonal rows": torch.linalg.qr(normal(n, n)).Q,
    }


def ascend(x: Tensor, signs: Tensor, radius: float, seed: int) -> Tensor:
    """The largest correlation found by projected gradient ascent over the Euclidean ball, one predictor a vector of signs; (m,).

    The objective is linear, so that its gradient never changes; a step of one radius halves the distance from the maximizer, or better.
    """
    gradient = signs @ x / len(x)  # (m, d)
    step = radius / gradient.norm(dim=1, keepdim=True).clamp(min=torch.finfo(gradient.dtype).tiny)
    w = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(seed), dtype=gradient.dtype)
    for _ in range(40):
        w = w + step * gradient
        w = w * (radius / w.norm(dim=1, keepdim=True)).clamp(max=1)
    return (w * gradient).sum(1)


def linear_class(config: CapacityConfig) -> Iterator[Finding | Series]:
    """Every vector of signs against a search, the mean against its bound, and both over the number of rows."""
    n, radius, signs = config.signs, 1.5, sign_vectors(config.signs)
    for name, x in linear_rows(config).items():
        closed, searched = linear_supremum(x, signs, radius), ascend(x, signs, radius, config.seed)
        yield SUPREMUM.check(predicted=closed, measured=searched, setting=name)
        # a linear function is largest at a corner of the ℓ1 ball, ±B times a coordinate vector
        corners = radius / n * (signs @ x).abs().amax(1)
        if x.shape[1] > 2:
            yield SUPREMUM.control_check(predicted=closed, measured=corners, setting=f"{name}, ℓ1 ball")
        yield RADEMACHER.check(predicted=linear_rademacher_bound(x, radius), measured=[searched.mean().item()], setting=name)
    same = torch.ones(n, 3, dtype=torch.float64)
    together = ascend(same, torch.ones(1, n, dtype=torch.float64), radius, config.seed)
    yield RADEMACHER.control_check(
        predicted=linear_rademacher_bound(same, radius), measured=together, setting="identical rows, equal signs"
    )

    counts = [2**k for k in range(1, 10)]
    figure = Series(
        "rademacher",
        "How well linear predictors follow random signs",
        x="rows n",
        y="Rademacher complexity of digits, norm 1",
        claim=RADEMACHER.key,
        x_scale="log",
        y_scale="log",
    )
    rows, bounds, found, low, high = digits(max(counts), seed=config.seed).x, [], [], [], []
    generator = torch.Generator().manual_seed(config.seed)
    for count in counts:
        x = rows[:count]
        if count <= n:
            value, error = linear_rademacher(x, 1.0), 0.0
        else:
            draws = (2 * torch.randint(2, (config.sampled, count), generator=generator) - 1).to(x.dtype)
            each = linear_supremum(x, draws, 1.0)
            value, error = float(each.mean()), 2.6 * float(each.std()) / math.sqrt(config.sampled)
        found.append(value)
        low.append(value - error)
        high.append(value + error)
        bounds.append(linear_rademacher_bound(x, 1.0))
    figure.line("over signs, all or drawn at random", counts, found, low=low, high=high, mark="points", band="99 % interval")
    figure.line("bound B √Σ‖x‖² / n", counts, bounds, role="predicted")
    figure.line("bound / √2, never undercut", counts, np.array(bounds) / math.sqrt(2), role="predicted")
    equal = [float(linear_supremum(rows[:1].expand(c, -1), torch.ones(1, c, dtype=torch.float64), 1.0)) for c in counts]
    yield figure.line("identical rows, equal signs", counts, equal, role="control", mark="points")


# ---- networks ----------------------------------------------------------------------------------------------------------------------------


def fitted(data: list[tuple[Tensor, Tensor]], seeds: list[int], config: CapacityConfig) -> tuple[Population, Params]:
    """Networks as they are when their training loss first reaches the common one, and their initial parameters (replica, ...).

    Raises:
        RuntimeError: a network did not reach it within ``limit`` steps.
    """
    population = Population(
        lambda: mlp([64, config.width, config.width, 10], activation="relu"),
        cross_entropy,
        (torch.stack([x for x, _ in data]), torch.stack([y for _, y in data])),
        optimizer=adam(lr=config.lr),
        seeds=seeds,
        data_per_replica=True,
        dtype=config.torch_dtype,
        device=config.device,
        mode="vmap",
    )
    start = {k: p.clone() for k, p in population.params.items()}
    missing = int((train_to_loss(population, config.loss, every=EVERY, limit=config.limit) < 0).sum())
    if missing:
        raise RuntimeError(f"{missing} networks did not reach loss {config.loss:g} in {config.limit} steps: raise limit.")
    return population, start


TOGETHER = 500
"""Points whose Jacobians are taken at once: each holds the gradients of all outputs in every layer."""


@dataclass(frozen=True)
class Measured:
    """Norms and margins of one trained network, and how fast it changes around its rows."""

    norms: Norms
    margins: Tensor
    slopes: Tensor
    steep_slopes: Tensor

    @property
    def complexity(self) -> float:
        """Spectral complexity over the margin."""
        assert self.norms.margins is not None
        return math.exp(self.norms.log_spectral_complexity) / self.norms.margins[MARGIN]


def slopes(net: nn.Module, points: Tensor) -> Tensor:
    """Spectral norm of the Jacobian of outputs in the input, at every point; (m,)."""
    jacobians = vmap(jacrev(lambda p: net(p[None])[0]), chunk_size=TOGETHER)(points)  # (m, k, d)
    return torch.linalg.matrix_norm(jacobians.detach(), ord=2)


def measured(population: Population, start: Params, config: CapacityConfig) -> list[Measured]:
    """Every network, at its rows and at points between and beyond them."""
    found = []
    for k, seed in enumerate(population.seeds):
        problem = population.problem(k)
        net, x, _ = population.replica(k)
        generator = torch.Generator().manual_seed(seed)
        pairs = torch.randint(len(x), (2, config.points), generator=generator)
        t = 3 * torch.rand(config.points, 1, generator=generator, dtype=torch.float64).to(x) - 1
        points = x[pairs[0]] + t * (x[pairs[1]] - x[pairs[0]])
        steep = nn.Sequential(*(SteepReLU() if isinstance(layer, nn.ReLU) else layer for layer in net.children()))
        found.append(
            Measured(
                norms(problem, init={name: p[k] for name, p in start.items()}),
                signed_margins(*scores_and_classes(problem)),
                slopes(net, points),
                slopes(steep, points),
            )
        )
    return found


def networks(config: CapacityConfig) -> Iterator[Finding | Series | Stage]:
    """True labels, random labels and other digits, all at one training loss."""
    yield Stage("training on true and on random labels")
    seeds = config.replica_seeds
    halves = [(digits(2 * config.rows, seed=s), torch.Generator().manual_seed(s)) for s in seeds]
    true = [(d.x[: config.rows], d.y[: config.rows]) for d, _ in halves]
    other = [(d.x[config.rows :], d.y[config.rows :]) for d, _ in halves]
    random = [(d.x[: config.rows], torch.randint(10, (config.rows,), generator=g)) for d, g in halves]
    on_true, on_other, on_random = (measured(*fitted(data, seeds, config), config) for data in (true, other, random))

    def ratios(over: list[Measured], under: list[Measured]) -> list[float]:
        return [a.complexity / b.complexity for a, b in zip(over, under, strict=True)]

    yield SPECTRAL.check(predicted=FACTOR, measured=ratios(on_random, on_true), setting="random over true labels")
    yield SPECTRAL.control_check(predicted=FACTOR, measured=ratios(on_other, on_true), setting="other digits over the same")
    yield from margin_figures({"true labels": on_true, "random labels": on_random, "other digits": on_other}, config)

    yield Stage("Lipschitz constants")
    nets = on_true + on_random
    products = [math.exp(m.norms.log_spectral) for m in nets]
    frobenius = [math.exp(m.norms.log_frobenius) for m in nets]
    spread = torch.tensor(products, dtype=torch.float64).repeat_interleave(config.points)
    yield LIPSCHITZ.check(predicted=spread, measured=torch.cat([m.slopes for m in nets]), setting="Jacobian at points ≤ spectral norms")
    yield LIPSCHITZ.check(predicted=frobenius, measured=products, setting="spectral ≤ Frobenius norms")
    steep = torch.cat([m.steep_slopes for m in nets])
    yield LIPSCHITZ.control_check(predicted=spread, measured=steep, setting="slope two: Jacobian ≤ spectral norms")

    figure = Series(
        "lipschitz", "A network changes more slowly than its norms allow", x="share of points", y="norm of the Jacobian", y_scale="log"
    )
    figure.claim = LIPSCHITZ.key
    share = (np.arange(config.points) + 0.5) / config.points
    first = on_true[0]
    figure.line("true labels", share, first.slopes.sort().values)
    figure.line("product of spectral norms", [0, 1], [math.exp(first.norms.log_spectral)] * 2, role="predicted")
    figure.line("product of Frobenius norms", [0, 1], [math.exp(first.norms.log_frobenius)] * 2, role="predicted")
    yield figure.line("activation of slope two", share, first.steep_slopes.sort().values, role="control")


def margin_figures(groups: dict[str, list[Measured]], config: CapacityConfig) -> Iterator[Series]:
    """Distributions of normalized margins, pooled over seeds; and the complexities one by one."""
    margin = Series(
        "margins",
        "Divided by the spectral complexity, margins tell true labels from random ones",
        x="margin / spectral complexity",
        y="share of rows below",
        claim=SPECTRAL.key,
        x_scale="log",
    )
    each = Series("complexity", "Random labels cost more", x="seed", y="spectral complexity / margin", claim=SPECTRAL.key, y_scale="log")
    for name, group in groups.items():
        role = "control" if name == "other digits" else "measured"
        pooled = torch.cat([m.margins / math.exp(m.norms.log_spectral_complexity) for m in group])
        pooled = pooled[pooled > 0].sort().values  # a row that is still wrong has no place on a logarithmic axis
        margin.line(name, pooled, (np.arange(len(pooled)) + 0.5) / len(pooled), role=role)
        each.line(name, config.replica_seeds, [m.complexity for m in group], role=role, mark="points")
    yield margin
    yield each


@study(
    "generalization/capacity",
    claims=[SPECTRAL, SUPREMUM, RADEMACHER, LIPSCHITZ],
    tiny=CapacityConfig(seeds=4, rows=150, width=32, points=50, signs=8, sampled=500, lr=1e-2),
    small=CapacityConfig(),
    large=CapacityConfig(seeds=32, rows=898, width=512, lr=1e-3, points=5000, signs=18, sampled=100_000),
)
def capacity(config: CapacityConfig) -> Iterator[Finding | Series | Stage]:
    """Linear predictors by enumeration, then networks by training."""
    yield Stage("linear predictors")
    yield from linear_class(config)
    yield from networks(config)
