"""How good Kronecker factors are as a curvature: exact for one linear layer, and never better than with corrected eigenvalues.

Under squared loss the Gauss-Newton matrix of a single linear layer is a Kronecker product, the identity over outputs with the second moment
of the inputs, so that K-FAC is exact and its influence scores are the exact ones. Two layers with a nonlinearity leave an error within each
layer's block, and a part of the matrix lies outside of the blocks altogether.

Both K-FAC and EK-FAC are diagonal in the same basis. EK-FAC takes for eigenvalues the diagonal of the true matrix in that basis, which is
the best choice in Frobenius norm, so that its error is at most that of K-FAC, in every layer of every network. The same numbers in
another order are no such choice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from theorylab.core.claim import AtMost, Claim, Equals, Finding
from theorylab.core.config import Config, setting
from theorylab.core.problem import Problem
from theorylab.core.series import Role, Series, Stage
from theorylab.core.source import Source
from theorylab.core.study import study
from theorylab.data.digits import digits
from theorylab.instruments.attribution import influence
from theorylab.instruments.curvature import ggn
from theorylab.instruments.kfac import ekfac, kfac
from theorylab.learning.risk import half_squared_distance
from theorylab.linalg.distance import relative_distance
from theorylab.linalg.kronecker import Kronecker
from theorylab.models.mlp import mlp
from theorylab.models.seeded import seeded

KFAC_ONE_LAYER = Claim(
    "influence/curvature/kfac_one_layer",
    "For one linear layer under squared loss the Gauss-Newton matrix is a Kronecker product, and influence with K-FAC is exact.",
    formula=r"G = I \otimes \frac1n\sum_i a_i a_i^\top",
    source=Source(
        "Martens and Grosse 2015",
        "Section 3 (the Kronecker approximation, exact where slopes do not depend on the row)",
        "arXiv:1503.05671",
    ),
    kind="identity",
    relation=Equals(atol=1e-8),
    control="two layers with tanh between them",
    reading="K-FAC treats the inputs of a layer and the slopes at its outputs as independent. For a linear model under squared loss the "
    "slopes are constant and nothing is lost. With more layers it loses twice: within each, and between them, which it takes as unrelated.",
)

EKFAC_DOMINATES = Claim(
    "influence/curvature/ekfac_dominates",
    "In every layer EK-FAC is at least as near to the Gauss-Newton block as K-FAC, in Frobenius norm.",
    formula=r"\lVert G_\ell - G_\ell^{\mathrm{EKFAC}}\rVert_F \le \lVert G_\ell - G_\ell^{\mathrm{KFAC}}\rVert_F",
    source=Source("George et al. 2018", "Section 3 (the optimal diagonal in the Kronecker-factored eigenbasis)", "arXiv:1806.03884"),
    kind="inequality",
    relation=AtMost(rtol=1e-10),
    control="the corrected eigenvalues in a random order",
    reading="Once the eigenvectors are chosen, the best eigenvalues are the second moments along them, and they cost one more pass. The "
    "norm is that of the matrix, not of its inverse: a nearer matrix need not give better scores, though in practice it does.",
)


@dataclass(frozen=True, kw_only=True)
class CurvatureConfig(Config):
    """A seed is an initial network; the digits are the same for all."""

    seeds: int = setting(4, "replicas, each with its own random numbers", low=1)
    rows: int = setting(200, "digits", low=20, high=1700)
    targets: int = setting(20, "digits that are attributed", low=1, high=97)
    width: int = setting(8, "hidden units", low=2)
    decay: float = setting(1e-3, "damping λ", low=1e-8)


def blocks(K: Kronecker, matrix: Tensor) -> list[Tensor]:
    """The matrix on each layer's own parameters."""
    where = [block.index.reshape(-1) for block in K.blocks]
    return [matrix[i[:, None], i] for i in where]


@study(
    "influence/curvature",
    claims=[KFAC_ONE_LAYER, EKFAC_DOMINATES],
    tiny=CurvatureConfig(seeds=2, rows=30, targets=5, width=2),
    small=CurvatureConfig(),
    large=CurvatureConfig(seeds=16, rows=1000, targets=90, width=32),
)
def curvature(config: CurvatureConfig) -> Iterator[Finding | Series | Stage]:
    """Scores and matrices of Kronecker factors beside those of the dense Gauss-Newton matrix."""
    x, y = (t.to(config.device) for t in digits(config.rows + config.targets, dtype=config.torch_dtype, seed=config.seed))
    train, test = (x[: config.rows], y[: config.rows]), (x[config.rows :], y[config.rows :])

    def networks(widths: list[int]) -> list[nn.Module]:
        return [seeded(partial(mlp, widths), seed, dtype=config.torch_dtype).to(config.device) for seed in config.replica_seeds]

    yield Stage("one layer")
    yield from check_one_layer(networks, train, test, config)
    yield Stage("corrected eigenvalues")
    yield from check_ekfac(networks([64, config.width, 10]), train, config)


def check_one_layer(
    networks: Callable[[list[int]], list[nn.Module]], train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], config: CurvatureConfig
) -> Iterator[Finding | Series]:
    """Influence with K-FAC against that with the dense matrix."""
    as_vectors = [(x, one_hot(y, 10).to(x)) for x, y in (train, test)]
    shown = {}
    for widths in ([64, 10], [64, config.width, 10]):
        scores, matrices, outside = [], [], []
        for net in networks(widths):
            problem = Problem(net, half_squared_distance, as_vectors[0])
            exact = influence(problem, as_vectors[1], curvature="ggn", damping=config.decay, solver="dense")
            found = influence(problem, as_vectors[1], curvature="kfac", damping=config.decay)
            scores.append(relative_distance(found, exact))
            G, K = ggn(problem).to_dense(), kfac(problem)
            matrices.append(max(relative_distance(k, g) for k, g in zip(blocks(K, K.to_dense()), blocks(K, G), strict=True)))
            inside = sum(float(g.square().sum()) for g in blocks(K, G))
            outside.append((1 - inside / float(G.square().sum())) ** 0.5 if inside < float(G.square().sum()) else 0.0)
            shown.setdefault(len(widths), (exact.flatten(), found.flatten()))
        if len(widths) == 2:
            yield KFAC_ONE_LAYER.check(predicted=0.0, measured=scores, setting="influence scores")
            yield KFAC_ONE_LAYER.check(predicted=0.0, measured=matrices, setting="matrix")
        else:
            note = f"up to {max(outside):.2g} of ‖G‖ lies outside of the blocks"
            yield KFAC_ONE_LAYER.control_check(predicted=0.0, measured=scores, setting="two layers, influence scores", note=note)
            yield KFAC_ONE_LAYER.control_check(predicted=0.0, measured=matrices, setting="two layers, worst block", note=note)
    axes: dict[str, Any] = {"x": "exact influence, of its root mean square", "y": "influence with K-FAC, likewise"}
    figure = Series("kfac", "K-FAC's influence is exact for one layer and not for two", claim=KFAC_ONE_LAYER.key, **axes)
    curves: tuple[tuple[int, str, Role], ...] = ((2, "one layer", "measured"), (3, "two layers", "control"))
    for layers, label, role in curves:
        exact, found = shown[layers]
        some = exact.argsort()[:: max(1, len(exact) // 300)]
        scale = exact.square().mean().sqrt()
        figure.line(label, exact[some] / scale, found[some] / scale, role=role, mark="points")
    yield figure


def check_ekfac(nets: list[nn.Module], train: tuple[Tensor, Tensor], config: CurvatureConfig) -> Iterator[Finding | Series]:
    """Errors of each layer's block, with K-FAC's eigenvalues, the corrected ones, and those in another order."""
    errors: dict[str, list[float]] = {"K-FAC": [], "EK-FAC": [], "permuted": []}
    for net, seed in zip(nets, config.replica_seeds, strict=True):
        problem = Problem(net, cross_entropy, train)
        generator = torch.Generator().manual_seed(seed)
        E = ekfac(problem)
        shuffled = []
        for block in E.blocks:
            values = block.eigen.values
            order = torch.randperm(values.numel(), generator=generator).to(values.device)
            shuffled.append(replace(block.eigen, values=values.flatten()[order].view_as(values)))
        permuted = Kronecker(shuffled, problem.P, dtype=E.dtype, device=E.device)
        G = ggn(problem).to_dense()
        for name, K in (("K-FAC", kfac(problem)), ("EK-FAC", E), ("permuted", permuted)):
            errors[name] += [relative_distance(k, g) for k, g in zip(blocks(E, K.to_dense()), blocks(E, G), strict=True)]
    yield EKFAC_DOMINATES.check(predicted=errors["K-FAC"], measured=errors["EK-FAC"], setting="every layer of every network, relative")
    yield EKFAC_DOMINATES.control_check(predicted=errors["K-FAC"], measured=errors["permuted"], setting="eigenvalues permuted")

    places = torch.arange(1, len(errors["K-FAC"]) + 1)
    title, ratio = "Corrected eigenvalues are nearer in every layer", "‖block − G‖ / ‖G‖"
    figure = Series("ekfac", title, x="layer, network by network", y=ratio, claim=EKFAC_DOMINATES.key)
    figure.line("K-FAC", places, errors["K-FAC"], role="predicted", mark="points").line("EK-FAC", places, errors["EK-FAC"], mark="points")
    yield figure.line("EK-FAC, eigenvalues permuted", places, errors["permuted"], role="control", mark="points")
