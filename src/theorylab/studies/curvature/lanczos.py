"""From products with a matrix alone, Lanczos finds integrals over its spectrum, its extreme eigenvalues once each, and their error.

k products from a vector give a Gauss quadrature of the matrix's spectrum as that vector weighs it, exact for polynomials up to degree
2k − 1. In rounded arithmetic the basis forgets that it was orthogonal as soon as an eigenvalue has converged, finds that eigenvalue again,
and reports copies; orthogonalizing against the whole basis prevents it. How far a value is from the truth needs no truth to compare with:
for a symmetric matrix some eigenvalue lies within the residual. For any other matrix a residual of rounding size may mean nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from theorylab.core.claim import AtMost, Claim, Equals, Finding
from theorylab.core.config import Config, setting
from theorylab.core.operator import Operator
from theorylab.core.problem import Problem
from theorylab.core.series import Series, Stage
from theorylab.core.source import Source
from theorylab.core.study import study
from theorylab.data.digits import digits
from theorylab.instruments.curvature import hessian
from theorylab.linalg.lanczos import eigs, lanczos
from theorylab.models.mlp import mlp
from theorylab.models.seeded import seeded

QUADRATURE = Claim(
    "curvature/lanczos/quadrature",
    "k steps of Lanczos from a unit vector v give nodes and weights that integrate every power up to 2k − 1 as vᵀAᵐv, exactly.",
    formula=r"\sum_{j=1}^k w_j\,\theta_j^m = v^\top A^m v \quad\text{for } m \le 2k-1",
    source=Source("Golub and Meurant 2010", "Chapter 6 (Gauss quadrature by Lanczos)", "doi:10.1515/9781400833887"),
    kind="identity",
    relation=Equals(atol=1e-10),
    control="the power 2k",
    reading="A handful of products tell the moments of the spectrum, which is why a spectral density costs so little. The nodes are no "
    "eigenvalues: what they resolve is what the starting vector sees, to the degree that k allows.",
)

NO_GHOSTS = Claim(
    "curvature/lanczos/no_ghosts",
    "With full reorthogonalization each simple eigenvalue is found once.",
    formula=r"\#\{j : |\theta_j - \lambda| \le 10^{-8}\,\lambda\} = 1",
    source=Source(
        "Paige 1971", "as in Parlett 1998, Chapter 13 (loss of orthogonality goes with convergence)", "doi:10.1137/1.9781611971163"
    ),
    kind="identity",
    relation=Equals(),
    control="the three-term recurrence alone, without reorthogonalization",
    reading="The textbook recurrence forgets a direction once it has converged, and rounding brings it back: one outlier of a network's "
    "Hessian then counts as many. Copies hardly matter for a density, whose weights they share, but a list of eigenvalues they spoil.",
)

RESIDUAL_BOUND = Claim(
    "curvature/lanczos/residual_bound",
    "Some eigenvalue of a symmetric matrix lies within ‖Aq − θq‖ of θ, for any unit vector q.",
    formula=r"\min_i |\lambda_i - \theta| \le \|A q - \theta q\|",
    source=Source("Parlett 1998", "Theorem 4.5.1", "doi:10.1137/1.9781611971163"),
    kind="inequality",
    relation=AtMost(atol=1e-12),  # rounding of the dense eigenvalues that the errors are taken from
    control="a Jordan block with 10⁻¹⁶ in its corner, which is not symmetric",
    reading="The error of a reported eigenvalue is known without knowing the eigenvalue: read it beside the value. It says that an "
    "eigenvalue is near, not which one; and it rests on symmetry, without which a tiny residual may go with a large error.",
)

OUTLIERS = (100.0, 50.0, 20.0)


@dataclass(frozen=True, kw_only=True)
class LanczosConfig(Config):
    """A seed is a random matrix, a starting vector, or an initial network."""

    size: int = setting(120, "rows of the random matrix of the quadrature", low=20)
    steps: int = setting(8, "k, products of the quadrature", low=2, high=9)
    bulk: int = setting(297, "eigenvalues in [0, 1] beside the outliers", low=50)
    long: int = setting(150, "products in which copies may appear", low=50)
    rows: int = setting(100, "digits", low=4, high=1797)
    width: int = setting(20, "hidden units of the network whose Hessian is formed", low=2)
    networks: int = setting(2, "networks", low=1)


def normal(config: LanczosConfig, seed: int, *shape: int) -> Tensor:
    """Standard normal numbers that the seed determines."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(config.device, config.torch_dtype)


def moment_errors(A: Tensor, start: Tensor, steps: int, powers: range) -> Tensor:
    """Error of the quadrature at each power, relative to the moment of |A|, which is not near zero where an odd moment is."""
    T = lanczos(Operator.from_matrix(A, symmetric=True), start, steps).matrix()
    nodes, vectors = torch.linalg.eigh(T)
    weights = vectors[0].square()
    values, basis = torch.linalg.eigh(A)
    seen = ((start / start.norm()) @ basis).square()
    return torch.stack(
        [((weights * nodes**m).sum() - (seen * values**m).sum().cpu()) / (seen * values.abs() ** m).sum().cpu() for m in powers]
    )


def copies(values: Tensor, eigenvalue: float) -> int:
    """How many of the values are the eigenvalue, to eight digits."""
    return int(((values - eigenvalue).abs() <= 1e-8 * eigenvalue).sum())


@study(
    "curvature/lanczos",
    claims=[QUADRATURE, NO_GHOSTS, RESIDUAL_BOUND],
    tiny=LanczosConfig(seeds=2, size=40, steps=5, bulk=97, long=80, rows=20, width=4, networks=1),
    small=LanczosConfig(),
    large=LanczosConfig(seeds=64, size=1000, bulk=1997, long=400, rows=1000, width=100, networks=16),
)
def lanczos_study(config: LanczosConfig) -> Iterator[Finding | Series | Stage]:
    """Moments, copies and residuals, each against dense algebra."""
    yield Stage("quadrature")
    yield from check_quadrature(config)
    yield Stage("copies")
    yield from check_ghosts(config)
    yield Stage("residuals")
    yield from check_residuals(config)


def check_quadrature(config: LanczosConfig) -> Iterator[Finding | Series]:
    """Powers up to 2k − 1, and the first that must fail."""
    k, powers = config.steps, range(2 * config.steps + 5)
    errors = []
    for seed in config.replica_seeds:
        W = normal(config, seed, config.size + 1, config.size)
        A = (W[1:] + W[1:].T) / (2 * config.size) ** 0.5
        errors.append(moment_errors(A, W[0], k, powers))
    each = torch.stack(errors)  # (replica, power)
    yield QUADRATURE.check(predicted=0.0, measured=each[:, : 2 * k].flatten(), setting=f"k = {k}, m < {2 * k}, relative to vᵀ|A|ᵐv")
    yield QUADRATURE.control_check(predicted=0.0, measured=each[:, 2 * k], setting=f"m = {2 * k}")

    title = "The quadrature is exact until the power 2k − 1"
    figure = Series("quadrature", title, x="power m", y="largest relative error", claim=QUADRATURE.key, y_scale="log")
    largest = each.abs().amax(0).clamp(min=1e-18)
    figure.line(f"m < {2 * k}", powers[: 2 * k], largest[: 2 * k], mark="points")
    yield figure.line(f"m ≥ {2 * k}", powers[2 * k :], largest[2 * k :], role="control", mark="points")


def check_ghosts(config: LanczosConfig) -> Iterator[Finding | Series]:
    """How often each outlier is returned."""
    bulk = torch.rand(config.bulk, generator=torch.Generator().manual_seed(config.seed), dtype=torch.float64)
    spectrum = torch.cat([torch.tensor(OUTLIERS, dtype=torch.float64), bulk]).to(config.device, config.torch_dtype)
    A = Operator.from_matrix(torch.diag(spectrum))
    found: dict[bool, list[int]] = {True: [], False: []}
    listed = []
    title = "Without reorthogonalization an outlier comes back"
    figure = Series("ghosts", title, x="steps", y="copies of the largest eigenvalue", claim=NO_GHOSTS.key)
    for seed in config.replica_seeds:
        start = normal(config, seed, len(spectrum))
        best = eigs(A, k=10, which="LA", tol=1e-8, seed=seed)
        listed += [copies(best.values, value) for value in OUTLIERS]
        for kept, label in ((True, "full reorthogonalization"), (False, "three-term recurrence")):
            T = lanczos(A, start, config.long, reorthogonalize=kept).matrix()
            found[kept] += [copies(torch.linalg.eigvalsh(T), value) for value in OUTLIERS]
            if seed == config.seed:
                sizes = range(10, config.long + 1, 10)
                counts = [copies(torch.linalg.eigvalsh(T[:m, :m]), OUTLIERS[0]) for m in sizes]
                figure.line(label, sizes, counts, role="measured" if kept else "control")
    yield NO_GHOSTS.check(predicted=1.0, measured=found[True], setting=f"copies after {config.long} steps")
    yield NO_GHOSTS.check(predicted=1.0, measured=listed, setting="copies among the ten largest of eigs")
    yield NO_GHOSTS.control_check(predicted=1.0, measured=found[False], setting=f"copies after {config.long} steps, three-term recurrence")
    yield figure.line("one eigenvalue", sizes, [1.0] * len(sizes), role="predicted")


def check_residuals(config: LanczosConfig) -> Iterator[Finding | Series]:
    """Every pair that eigs returns for a network's Hessian, from both ends and at loose and tight tolerances."""
    data = tuple(t.to(config.device) for t in digits(config.rows, dtype=config.torch_dtype))
    errors, residuals = [], []
    for seed in config.replica_seeds[: config.networks]:
        net = seeded(partial(mlp, [64, config.width, 10]), seed, dtype=config.torch_dtype).to(config.device)
        H = hessian(Problem(net, nn.functional.cross_entropy, data))
        truth = torch.linalg.eigvalsh(H.to_dense())
        for which in ("LA", "SA"):
            for tol in (0.3, 0.1, 1e-2, 1e-4):
                found = eigs(H, k=10, which=which, tol=tol, seed=seed)
                errors.append((found.values[:, None] - truth).abs().amin(1))
                residuals.append(found.residuals)
    error, residual = torch.cat(errors), torch.cat(residuals)
    yield RESIDUAL_BOUND.check(predicted=residual, measured=error, setting="distance to the nearest eigenvalue, by residual")

    n, corner = 20, 1e-16
    block = torch.diag(torch.ones(n - 1, dtype=torch.float64), 1)
    block[-1, 0] = corner
    q = torch.eye(n, dtype=torch.float64)[0]  # Aq is the corner times the last unit vector: θ = 0 has a residual of rounding size
    radius = corner ** (1 / n)  # the eigenvalues are the n-th roots of the corner, all of this modulus
    yield RESIDUAL_BOUND.control_check(predicted=float((block @ q).norm()), measured=[radius], setting="Jordan block, θ = 0")

    axes: dict[str, Any] = {"x": "residual ‖Aq − θq‖", "y": "distance to the nearest eigenvalue", "x_scale": "log", "y_scale": "log"}
    figure = Series("residuals", "No error exceeds its residual", claim=RESIDUAL_BOUND.key, **axes)
    figure.line("network's Hessian", residual, error.clamp(min=1e-17), mark="points")
    figure.line("Jordan block", [corner], [radius], role="control", mark="points")
    ends = [min(corner, float(residual.min())), float(residual.max())]
    yield figure.line("error = residual", ends, ends, role="predicted")
