r"""How a loss curves in the model's outputs: the matrix between the Jacobians of a Gauss-Newton matrix, by its products and its samples.

For the usual losses it is known in closed form, :math:`\mathrm{diag}(p) - pp^\top` for cross-entropy, so that a vocabulary of c words costs
O(c) a prediction, with no graph of the loss. Any other loss is differentiated twice.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from theorylab.core.problem import Problem, finite
from theorylab.instruments.loss_root import refuse_joint_curvature
from theorylab.instruments.products import vjp

OutputProduct = Callable[[Tensor, bool], Tensor]
"""(w, many) → H w in the outputs' shape; with many, w has a leading axis of vectors."""


@dataclass(frozen=True)
class KnownLoss:
    """A loss of PyTorch and its options; as a likelihood: softmax classes, Bernoulli bits, or a Gaussian."""

    name: str
    options: dict[str, Any]


def known_loss(problem: Problem) -> KnownLoss | None:
    """Which of the losses with a closed form this one is; None for any other, a function that wraps one included."""
    criterion: Any = problem.criterion
    options: dict[str, Any] = {}
    if isinstance(criterion, functools.partial) and not criterion.args:
        criterion, options = criterion.func, dict(criterion.keywords)
    if type(criterion) is nn.CrossEntropyLoss:
        keys = ("weight", "ignore_index", "label_smoothing", "reduction")
        return KnownLoss("cross_entropy", {k: getattr(criterion, k) for k in keys})
    if type(criterion) is nn.BCEWithLogitsLoss:
        return KnownLoss("binary", {}) if criterion.weight is None and criterion.pos_weight is None else None
    if type(criterion) is nn.MSELoss:
        return KnownLoss("squared", {})
    if criterion is F.cross_entropy and not {"size_average", "reduce"} & set(options):
        return KnownLoss("cross_entropy", options)
    if set(options) <= {"reduction"}:
        if criterion is F.binary_cross_entropy_with_logits:
            return KnownLoss("binary", {})
        if criterion is F.mse_loss:
            return KnownLoss("squared", {})
    return None


def _closed_form(problem: Problem, k: int, outputs: Tensor) -> KnownLoss | None:
    """The known loss, where batch ``k``'s targets are such that its closed form holds: nothing is broadcast."""
    loss, targets = known_loss(problem), problem.batches[k].content[1]
    if loss is None or not isinstance(targets, Tensor):
        return None
    return loss if loss.name == "cross_entropy" or targets.shape == outputs.shape else None


def has_no_likelihood(problem: Problem) -> str | None:
    """A loss that is not known to be a negative log-likelihood has no labels of its own to draw."""
    loss = known_loss(problem)
    if loss is None or loss.options.get("weight") is not None:
        return (
            "the loss is not known as a negative log-likelihood, so the model's own labels cannot be drawn. Use cross_entropy without "
            "class weights, binary_cross_entropy_with_logits or mse_loss themselves, or measure ggn or empirical_fisher."
        )
    return None


def _scales(loss: KnownLoss, outputs: Tensor, targets: Tensor) -> Tensor:
    """By how much each softmax prediction counts in the mean loss, (n, 1, ...): the total weight of its targets."""
    classes = outputs.shape[1]
    weight: Tensor = loss.options.get("weight", None)  # pyright: ignore[reportAssignmentType]
    weight = outputs.new_ones(classes) if weight is None else weight.to(outputs)
    smoothing = loss.options.get("label_smoothing", 0.0)
    if targets.shape == outputs.shape and targets.is_floating_point():
        spread = (1 - smoothing) * targets.to(outputs) + smoothing / classes
        scales = (spread.movedim(1, -1) @ weight).unsqueeze(1)
        return scales / scales.numel()
    counted = targets != loss.options.get("ignore_index", -100)
    own = weight[targets.where(counted, torch.zeros_like(targets))] * counted
    total = (1 - smoothing) * own + smoothing / classes * weight.sum() * counted
    mean = loss.options.get("reduction", "mean") == "mean"
    return (total / (own.sum() if mean else own.numel())).unsqueeze(1)


def output_hessian(problem: Problem, k: int, outputs: Tensor) -> OutputProduct:
    """Products with the Hessian of batch ``k``'s mean loss in the outputs; call it within `Problem.safe`.

    Raises:
        ValueError: the loss is not finite.
    """
    outputs = outputs.detach()
    loss, targets = _closed_form(problem, k, outputs), problem.batches[k].content[1]
    if loss is None:
        return _twice_differentiated(problem, k, outputs)
    with torch.no_grad():
        finite(problem.loss_of(k, outputs))
        if loss.name == "squared":
            return lambda w, many: w * (2 / outputs.numel())
        if loss.name == "binary":
            curvature = outputs.sigmoid() * outputs.neg().sigmoid() / outputs.numel()
            return lambda w, many: curvature * w
        p, scales, classes = outputs.softmax(1), _scales(loss, outputs, targets), 1 - outputs.ndim
    scaled = p * scales

    def product(w: Tensor, many: bool) -> Tensor:
        return scaled * (w - (p * w).sum(classes, keepdim=True))  # class axis counted from the end: a leading axis does not matter

    return product


def _twice_differentiated(problem: Problem, k: int, outputs: Tensor) -> OutputProduct:
    head = outputs.requires_grad_()
    (slope,) = torch.autograd.grad(finite(problem.loss_of(k, head)), [head], create_graph=True)
    return lambda w, many: vjp([slope], [head], [w], many)[0]


def sampled_output_hessian(problem: Problem, k: int, outputs: Tensor, mc: int, generator: torch.Generator) -> OutputProduct:
    r"""The same matrix with each prediction's block :math:`H_i` replaced by the mean of ``mc`` outer products :math:`ss^\top`.

    :math:`E\,ss^\top = H_i`. For a likelihood, s is the derivative of the loss in the outputs at a label that the model itself draws; for
    another loss, the square root of the block times a vector of random signs.

    Raises:
        Inapplicable: an unknown loss couples rows.
        ValueError: the loss is not finite, or an unknown one is not convex in the outputs, so that it has no square root.
    """
    outputs = outputs.detach()
    loss, targets = _closed_form(problem, k, outputs), problem.batches[k].content[1]
    axes = tuple(range(1 - outputs.ndim, 0))  # one block a row
    with torch.no_grad():
        finite(problem.loss_of(k, outputs))
        if loss is None:
            with torch.enable_grad():
                roots = _roots(_twice_differentiated(problem, k, outputs), outputs)
            signs = torch.randint(0, 2, (mc, *outputs.shape), generator=generator, device="cpu").mul_(2).sub_(1).to(outputs)
            samples = torch.einsum("nij,snj->sni", roots, signs.reshape(mc, len(outputs), -1)).reshape(mc, *outputs.shape)
        elif loss.name == "squared":
            noise = torch.randn((mc, *outputs.shape), generator=generator, dtype=torch.float64, device="cpu")
            samples = noise.to(outputs) * (2 / outputs.numel()) ** 0.5
        elif loss.name == "binary":
            p = outputs.sigmoid()
            drawn = torch.rand((mc, *outputs.shape), generator=generator, dtype=torch.float64, device="cpu").to(outputs.device) < p
            samples = (p - drawn.to(p)) / outputs.numel() ** 0.5
        else:
            axes = (1 - outputs.ndim,)  # one block a prediction, along its classes
            samples = _label_scores(outputs.softmax(1), mc, generator) * _scales(loss, outputs, targets).sqrt()

    def inner(s: Tensor, w: Tensor) -> Tensor:
        return (s * w).sum(axes, keepdim=True) if axes else s * w  # no axes: one output a row; a sum over () would be one over all

    def product(w: Tensor, many: bool) -> Tensor:
        return sum((s * inner(s, w) for s in samples), start=torch.zeros_like(w)) / mc

    return product


def _label_scores(p: Tensor, mc: int, generator: torch.Generator) -> Tensor:
    """The scores p − e_y at labels y drawn from probabilities p (n, c, ...), (mc, n, c, ...)."""
    cumulative = p.movedim(1, -1).double().cumsum(-1)
    uniform = torch.rand((mc, *cumulative.shape[:-1], 1), generator=generator, dtype=torch.float64, device="cpu").to(p.device)
    labels = torch.stack([torch.searchsorted(cumulative, u * cumulative[..., -1:]) for u in uniform]).clamp(max=p.shape[1] - 1)
    return p - torch.zeros_like(p).expand(mc, *p.shape).scatter(2, labels.movedim(-1, 2), 1.0)


def _roots(product: OutputProduct, outputs: Tensor) -> Tensor:
    """Symmetric square roots of the rows' blocks, (n, c, c) with c outputs a row, from c products with the whole matrix."""
    test = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64, device="cpu").to(outputs)
    refuse_joint_curvature(lambda w: product(w, False), test)
    n, c = outputs.shape[0], outputs[0].numel()
    unit = torch.eye(c, dtype=outputs.dtype, device=outputs.device)
    blocks = torch.stack([product(e.expand(n, c).reshape(outputs.shape), False).reshape(n, c) for e in unit], dim=2)
    values, vectors = torch.linalg.eigh((blocks + blocks.mT) / 2)
    lowest, slack = float(values.min()), torch.finfo(outputs.dtype).eps ** 0.5 * float(values.abs().max())
    if lowest < -slack:
        raise ValueError(f"mc needs a loss that is convex in the outputs, got an eigenvalue {lowest:.3g} of its Hessian: use mc=0.")
    return vectors * values.clamp(min=0).sqrt().unsqueeze(1) @ vectors.mT
