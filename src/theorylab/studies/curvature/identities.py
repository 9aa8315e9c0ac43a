"""Four matrices that are said to be the curvature of a network agree under conditions, exactly, and otherwise not at all.

The Fisher matrix is the generalized Gauss-Newton matrix where the labels are drawn from the model's own softmax; it is not where they are
those of the data. The Hessian is the Gauss-Newton matrix plus the curvature of the network, weighted by the slopes of the loss; that part
vanishes where the outputs are linear in the parameters. K-FAC's Kronecker products are the Gauss-Newton blocks of a deep linear network
under squared loss. And under squared loss the Gauss-Newton matrix and the tangent kernel are one spectrum seen from two sides.

Each is measured with an instrument and compared with what its definition says: rows' gradients at every label, the Hessian of the outputs
weighted by fixed slopes, the blocks of the Gauss-Newton matrix, the eigenvalues of the kernel. All in float64, on handwritten digits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from theorylab.core.claim import Claim, Equals, Finding
from theorylab.core.config import Config, setting
from theorylab.core.problem import Problem
from theorylab.core.series import Series, Stage
from theorylab.core.source import Source
from theorylab.core.study import study
from theorylab.data.digits import digits
from theorylab.instruments.curvature import ggn, hessian
from theorylab.instruments.kernels import ntk
from theorylab.instruments.kfac import kfac
from theorylab.instruments.rows import per_example_grads
from theorylab.learning.risk import half_squared_distance
from theorylab.linalg.distance import relative_distance
from theorylab.models.mlp import mlp
from theorylab.models.seeded import seeded

FISHER_IS_GGN = Claim(
    "curvature/identities/fisher_is_ggn",
    "For softmax cross-entropy the Fisher matrix, over labels that the model draws, is the generalized Gauss-Newton matrix.",
    formula=r"\frac1n\sum_i \mathbb{E}_{y\sim p_\theta(\cdot|x_i)}\, g_{iy}\, g_{iy}^\top "
    r"= \frac1n\sum_i J_i^\top(\operatorname{diag} p_i - p_i p_i^\top)\, J_i",
    source=Source("Martens 2020", "Section 9 (the Fisher and the generalized Gauss-Newton matrix)", "arXiv:1412.1193"),
    kind="identity",
    relation=Equals(atol=1e-10),
    control="the observed labels in place of the model's: the empirical Fisher",
    reading="Natural gradient and Gauss-Newton are one method for the losses of classification. The equality needs the model's own labels: "
    "with those of the data, which cost no sampling, the matrix is another, and near a good fit it vanishes with the gradients.",
)

HESSIAN_SPLIT = Claim(
    "curvature/identities/hessian_split",
    "The Hessian is the Gauss-Newton matrix plus the outputs' own Hessians weighted by the slopes of the loss, and the former alone where "
    "the outputs are linear in the parameters.",
    formula=r"\nabla^2 L = G + \frac1n\sum_i\sum_c \frac{\partial\ell_i}{\partial f_c}\,\nabla^2 f_{ic}",
    source=Source("Schraudolph 2002", "Section 3 (the Gauss-Newton matrix)", "doi:10.1162/08997660260028683"),
    kind="identity",
    relation=Equals(atol=1e-10),
    control="the Gauss-Newton matrix alone, with the hidden layer's parameters among the selected",
    reading="What Gauss-Newton leaves out is the bending of the network, and it is weighted by how far the predictions are off. It is "
    "small near a good fit and large at initialization, where the Hessian has negative eigenvalues that no Gauss-Newton matrix has.",
)

KFAC_DEEP_LINEAR = Claim(
    "curvature/identities/kfac_deep_linear",
    "In a deep linear network under squared loss, K-FAC's Kronecker products are the layers' blocks of the Gauss-Newton matrix.",
    formula=r"G_{\ell\ell} = B_\ell \otimes A_\ell,\quad A_\ell = \frac1n\sum_i a_{i} a_{i}^\top,\quad B_\ell = \sum_c g_{c}\, g_{c}^\top",
    source=Source(
        "Bernacchia et al. 2018",
        "the blocks of the exact natural gradient of deep linear networks; the approximation is Martens and Grosse 2015, arXiv:1503.05671",
        "NeurIPS 2018: Exact natural gradient in deep linear networks and its application to the nonlinear case",
    ),
    kind="identity",
    relation=Equals(atol=1e-12),
    control="tanh between the layers",
    reading="K-FAC assumes that a layer's inputs and the slopes at its outputs vary independently over rows; in a linear network the "
    "slopes do not vary at all. With a nonlinearity both depend on the row, and the product of means is no longer the mean of products.",
)

NTK_DUAL = Claim(
    "curvature/identities/ntk_dual",
    "Under squared loss the nonzero eigenvalues of the Gauss-Newton matrix are those of the neural tangent kernel divided by the rows.",
    formula=r"\operatorname{spec}_{\ne 0}\Bigl(\tfrac1n J^\top J\Bigr) = \operatorname{spec}_{\ne 0}\Bigl(\tfrac1n J J^\top\Bigr)",
    source=Source(
        "Horn and Johnson 2012", "Theorem 1.3.22 (the eigenvalues of AB and BA), with A = J, B = Jᵀ", "doi:10.1017/CBO9781139020411"
    ),
    kind="identity",
    relation=Equals(atol=1e-10),
    control="cross-entropy, whose Gauss-Newton matrix has the softmax's weights inside",
    reading="A flat direction of the loss is a pattern of outputs that the kernel learns slowly: parameters and functions see one "
    "spectrum. Where the loss curves differently at different outputs the kernel must be weighted before the two agree.",
)


@dataclass(frozen=True, kw_only=True)
class IdentitiesConfig(Config):
    """A seed is an initial network; the digits are the same for all."""

    seeds: int = setting(4, "replicas, each with its own random numbers", low=1)
    rows: int = setting(50, "digits", low=4, high=1797)
    width: int = setting(8, "hidden units", low=2)


def along(outputs: Tensor, slopes: Tensor) -> Tensor:
    """⟨slopes, f⟩, one a row: a loss whose Hessian holds the curvature of the network alone."""
    return (slopes * outputs).sum(-1)


def fisher_by_definition(problem: Problem) -> Tensor:
    """Outer products of the rows' gradients at every label, weighted by the label's probability, (p, p)."""
    x, y = problem.batches[0].content
    with problem.safe(), torch.no_grad():
        p = problem.outputs(0).softmax(1)  # (n, k)
    total = torch.zeros(problem.P, problem.P, dtype=problem.dtype, device=problem.device)
    for label in range(p.shape[1]):
        g = per_example_grads(Problem(problem.model, problem.criterion, (x, torch.full_like(y, label))))
        total += g.T @ (p[:, label, None] * g) / len(y)
    return total


def blocks_of(problem: Problem, matrix: Tensor) -> Tensor:
    """The matrix with what couples different layers set to zero."""
    layer = [name.rpartition(".")[0] for name in problem.params]
    number = torch.cat([torch.full((p.numel(),), layer.index(k)) for k, p in zip(layer, problem.params.values(), strict=True)])
    return torch.where((number[:, None] == number).to(matrix.device), matrix, 0.0)


def dual_gap(problem: Problem) -> tuple[Tensor, Tensor, float]:
    """Largest eigenvalues of the Gauss-Newton matrix and of the kernel over n, descending, and their gap relative to the largest."""
    kernel = torch.linalg.eigvalsh(ntk(problem) / problem.n).flip(0)
    matrix = torch.linalg.eigvalsh(ggn(problem).to_dense()).flip(0)
    few = min(len(kernel), len(matrix))  # of the larger matrix the rest must be zero, of the smaller there is none
    rest = torch.cat([kernel[few:], matrix[few:]]).abs()
    gap = max(float((kernel[:few] - matrix[:few]).abs().max()), float(rest.max()) if len(rest) else 0.0)
    return matrix[:few], kernel[:few], gap / float(kernel[0])


@study(
    "curvature/identities",
    claims=[FISHER_IS_GGN, HESSIAN_SPLIT, KFAC_DEEP_LINEAR, NTK_DUAL],
    tiny=IdentitiesConfig(seeds=2, rows=12, width=3),
    small=IdentitiesConfig(),
    large=IdentitiesConfig(seeds=16, rows=500, width=32),
)
def identities(config: IdentitiesConfig) -> Iterator[Finding | Series | Stage]:
    """Form each matrix in two ways on small networks, and then where its hypothesis is broken."""
    x, y = (t.to(config.device) for t in digits(config.rows, dtype=config.torch_dtype))
    one_hot = nn.functional.one_hot(y, 10).to(x)
    center = x.unflatten(1, (8, 8))[:, 2:5, 3:5].flatten(1)  # six pixels that are rarely blank, for a network of small blocks

    def networks(widths: list[int], activation: str = "tanh") -> list[nn.Module]:
        make = partial(mlp, widths, activation=activation)
        return [seeded(make, seed, dtype=config.torch_dtype).to(config.device) for seed in config.replica_seeds]

    classifiers = networks([64, config.width, 10])
    yield Stage("Fisher and Gauss-Newton")
    yield from check_fisher(classifiers, (x, y))
    yield Stage("the Hessian's two parts")
    yield from check_split(classifiers, (x, y))
    yield Stage("K-FAC")
    yield from check_kfac(networks, (center, one_hot[:, :4]))
    yield Stage("tangent kernel")
    yield from check_dual(networks([64, config.width, 3]), x, one_hot[:, :3], y % 3)


def check_fisher(classifiers: list[nn.Module], data: tuple[Tensor, Tensor]) -> Iterator[Finding | Series]:
    """G against the Fisher matrix by its definition, and against the empirical one."""
    true, empirical, shown = [], [], []
    for net in classifiers:
        problem = Problem(net, nn.functional.cross_entropy, data)
        G, F = ggn(problem).to_dense(), fisher_by_definition(problem)
        g = per_example_grads(problem)
        observed = g.T @ g / problem.n
        true.append(relative_distance(G, F))
        empirical.append(relative_distance(observed, F))
        shown = shown or [torch.linalg.eigvalsh(m).flip(0) for m in (G, F, observed)]
    yield FISHER_IS_GGN.check(predicted=0.0, measured=true, setting="‖G − F‖ / ‖F‖")
    yield FISHER_IS_GGN.control_check(predicted=0.0, measured=empirical, setting="empirical Fisher, ‖E − F‖ / ‖F‖")

    top = torch.arange(1, min(60, len(shown[0])) + 1)
    figure = Series("fisher", "The Fisher and Gauss-Newton matrices are one", x="rank", y="eigenvalue", claim=FISHER_IS_GGN.key)
    figure.line("Fisher, by definition", top, shown[1][: len(top)], role="predicted")
    figure.line("Gauss-Newton", top, shown[0][: len(top)], mark="points")
    yield figure.line("empirical Fisher", top, shown[2][: len(top)], role="control")


def check_split(classifiers: list[nn.Module], data: tuple[Tensor, Tensor]) -> Iterator[Finding | Series]:
    """H against G plus the network's own curvature, and against G alone with the last layer's and with all parameters."""
    whole, last, all_but, shown = [], [], [], []
    for net in classifiers:
        problem = Problem(net, nn.functional.cross_entropy, data)
        with problem.safe():
            outputs = problem.outputs(0).detach().requires_grad_()
            (slopes,) = torch.autograd.grad(problem.n * problem.loss_of(0, outputs), outputs)
        H, G = hessian(problem).to_dense(), ggn(problem).to_dense()
        bending = hessian(Problem(net, along, (data[0], slopes))).to_dense()
        whole.append(relative_distance(G + bending, H))
        all_but.append(relative_distance(G, H))
        names = [name for name in problem.params if name.startswith(list(problem.params)[-1].partition(".")[0])]
        head = Problem(net, nn.functional.cross_entropy, data, params=names)
        last.append(relative_distance(ggn(head).to_dense(), hessian(head).to_dense()))
        shown = shown or [torch.linalg.eigvalsh(m) for m in (H, G)]
    yield HESSIAN_SPLIT.check(predicted=0.0, measured=whole, setting="all parameters, ‖G + weighted ∇²f − H‖ / ‖H‖")
    yield HESSIAN_SPLIT.check(predicted=0.0, measured=last, setting="last layer alone, ‖G − H‖ / ‖H‖")
    yield HESSIAN_SPLIT.control_check(predicted=0.0, measured=all_but, setting="all parameters, ‖G − H‖ / ‖H‖")

    rank = torch.arange(1, len(shown[0]) + 1)
    title = "The Hessian has negative eigenvalues, Gauss-Newton has none"
    figure = Series("split", title, x="rank, ascending", y="eigenvalue", claim=HESSIAN_SPLIT.key)
    yield figure.line("Hessian", rank, shown[0]).line("Gauss-Newton", rank, shown[1], role="control")


def check_kfac(networks: Callable[[list[int], str], list[nn.Module]], data: tuple[Tensor, Tensor]) -> Iterator[Finding | Series]:
    """K-FAC against the blocks of the Gauss-Newton matrix, without and with a nonlinearity."""
    gaps: dict[str, list[float]] = {"identity": [], "tanh": []}
    axes: dict[str, Any] = {"x": "scale of the inputs", "y": "‖K − blocks of G‖ / ‖blocks of G‖", "x_scale": "log", "y_scale": "log"}
    figure = Series("kfac", "The farther from linear, the farther K-FAC from its blocks", claim=KFAC_DEEP_LINEAR.key, **axes)
    scales = [0.03, 0.1, 0.3, 1.0, 3.0]
    for activation, found in gaps.items():
        for k, net in enumerate(networks([data[0].shape[1], 5, data[1].shape[1]], activation)):
            curve = []
            for scale in scales:
                problem = Problem(net, half_squared_distance, (scale * data[0], data[1]))
                curve.append(relative_distance(kfac(problem).to_dense(), blocks_of(problem, ggn(problem).to_dense())))
            found.append(curve[scales.index(1.0)])
            if k == 0:
                role = "measured" if activation == "identity" else "control"
                floor = torch.tensor(curve).clamp(min=1e-18)  # an exact zero has no place on a logarithmic axis
                figure.line("linear" if activation == "identity" else activation, scales, floor, role=role)
    yield KFAC_DEEP_LINEAR.check(predicted=0.0, measured=gaps["identity"], setting="‖K − blocks of G‖ / ‖blocks of G‖")
    yield KFAC_DEEP_LINEAR.control_check(predicted=0.0, measured=gaps["tanh"], setting="tanh")
    yield figure


def check_dual(nets: list[nn.Module], x: Tensor, one_hot: Tensor, y: Tensor) -> Iterator[Finding | Series]:
    """Spectra of the Gauss-Newton matrix and of the kernel, under squared loss and under cross-entropy."""
    squared = [dual_gap(Problem(net, half_squared_distance, (x, one_hot))) for net in nets]
    entropy = [dual_gap(Problem(net, nn.functional.cross_entropy, (x, y))) for net in nets]
    yield NTK_DUAL.check(predicted=0.0, measured=[gap for _, _, gap in squared], setting="largest gap / largest eigenvalue")
    yield NTK_DUAL.control_check(predicted=0.0, measured=[gap for _, _, gap in entropy], setting="cross-entropy")

    matrix, kernel, _ = squared[0]
    rank, floor = torch.arange(1, len(matrix) + 1), 1e-12 * float(kernel[0])
    figure = Series("dual", "Parameters and outputs see one spectrum", x="rank", y="eigenvalue", claim=NTK_DUAL.key, y_scale="log")
    figure.line("tangent kernel / n", rank, kernel.clamp(min=floor), role="predicted")
    figure.line("Gauss-Newton, squared loss", rank, matrix.clamp(min=floor), mark="points")
    yield figure.line("Gauss-Newton, cross-entropy", rank, entropy[0][0].clamp(min=floor), role="control")
