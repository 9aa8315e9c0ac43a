"""A square root of the loss's curvature in the model's outputs: vectors s with Σ s sᵀ = ∇²_f L."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from theorylab.core.instrument import Inapplicable
from theorylab.core.problem import Problem, finite

Map = Callable[[Tensor], Tensor]
"""A linear map of tensors in the outputs' shape that acts on every row by itself."""


def loss_root(problem: Problem, k: int, outputs: Tensor, *, mc: int = 0, generator: torch.Generator | None = None) -> Iterator[Tensor]:
    r"""Cotangents of the outputs of batch ``k`` whose backward passes sum to the generalized Gauss-Newton matrix.

    Each has the shape of ``outputs`` and holds one vector :math:`s_i` for every row i, such that over all of them
    :math:`\sum s_i s_i^\top = \nabla^2_{f_i} (w_k L_k)` with w_k the batch's share of the rows and L_k its mean loss. There are as many as
    a row has outputs, and nothing is sampled: for a softmax cross-entropy they are :math:`\sqrt{p_c/n}\,(e_c - p)`, one for each class c.
    With ``mc`` there are so many random mixtures of them instead, by independent signs, for which the equation holds in expectation.

    Which form the curvature has is measured, not read from the name of the loss: a diagonal (squared error, logistic and other losses of
    single outputs), a multiple of diag(p) − ppᵀ at every position (cross-entropy, also weighted, smoothed or masked), or neither, where
    the dense matrix of each row is computed and factorized.

    Args:
        problem: The risk and the point.
        k: Which batch.
        outputs: Those of the batch, with the rows first.
        mc: Random vectors a row; 0 for the exact root.
        generator: Of the signs; needed with ``mc``.

    Raises:
        Inapplicable: the loss couples rows, or is not convex in the outputs.
        ValueError: the loss is not finite.
    """
    head = outputs.detach().requires_grad_()
    loss = problem.weights[k] * finite(problem.loss_of(k, head))
    slope = torch.autograd.grad(loss, [head], create_graph=True, allow_unused=True)[0] if loss.requires_grad else None
    if slope is None or not slope.requires_grad:
        return  # linear in the outputs

    def curve(u: Tensor) -> Tensor:
        (image,) = torch.autograd.grad(slope, [head], u, retain_graph=True, allow_unused=True)
        return torch.zeros_like(head) if image is None else image

    root = _root(head.detach(), curve)
    if mc == 0:
        for unit in _units(head.detach()):
            yield root(unit)
    for _ in range(mc):
        signs = torch.randint(0, 2, head.shape, generator=generator, device="cpu").mul_(2).sub_(1)
        yield root(signs.to(head.device, head.dtype)) / mc**0.5


def _root(f: Tensor, curve: Map) -> Map:
    """A map R of each row with R Rᵀ the curvature at outputs ``f``."""
    generator = torch.Generator().manual_seed(0)
    probe, test = (torch.randn(f.shape, generator=generator, dtype=torch.float64, device="cpu").to(f) for _ in range(2))
    truth = curve(test)
    weight = curve(torch.ones_like(f))
    if _equal(weight * test, truth):
        _refuse_concave(weight)
        return lambda z: weight.clamp(min=0).sqrt() * z
    for axis in sorted({1, f.ndim - 1}) if f.ndim > 1 else []:
        p = f.softmax(axis)

        def centred(u: Tensor, p: Tensor = p, axis: int = axis) -> Tensor:
            return p * (u - (p * u).sum(axis, keepdim=True))

        image = centred(probe)
        size = image.square().sum(axis, keepdim=True)
        scale = (curve(probe) * image).sum(axis, keepdim=True) / size.where(size > 0, 1)  # a certain prediction has no curvature
        if _equal(scale * centred(test), truth):
            spread = (scale.clamp(min=0) * p).sqrt()
            return lambda z: spread * z - p * (spread * z).sum(axis, keepdim=True)
    return _dense_root(f, curve, test)


def _equal(a: Tensor, b: Tensor) -> bool:
    # A wrong form is off by a part of order one; rounding is far below the three quarters of the digits that are asked for here.
    return float((a - b).norm()) <= torch.finfo(a.dtype).eps ** 0.75 * float(b.norm())


def _units(like: Tensor) -> Iterator[Tensor]:
    """Each output of a row alone, for all rows at once."""
    for j in range(like[0].numel()):
        unit = torch.zeros_like(like).reshape(len(like), -1)
        unit[:, j] = 1
        yield unit.reshape(like.shape)


def _dense_root(f: Tensor, curve: Map, test: Tensor) -> Map:
    refuse_joint_curvature(curve, test)
    H = torch.stack([curve(unit).reshape(len(f), -1) for unit in _units(f)], dim=2)  # (n, output, output)
    values, vectors = torch.linalg.eigh(H)
    _refuse_concave(values)
    roots = vectors * values.clamp(min=0).sqrt()[:, None]
    return lambda z: (roots @ z.reshape(len(f), -1, 1)).reshape(f.shape)


def refuse_joint_curvature(curve: Map, test: Tensor) -> None:
    """Refuse a loss that couples rows, found by products with a random ``test`` in the outputs' shape.

    For each digit of the rows' binary numbers, the rows that have it must not move those that have not: two rows differ in one digit.

    Raises:
        Inapplicable: they do.
    """
    rows = torch.arange(len(test), device=test.device)
    for digit in range((len(test) - 1).bit_length()):
        have = (rows >> digit) % 2 == 1
        image = curve(torch.where(have.view(-1, *[1] * (test.ndim - 1)), test, 0))
        if float(image[~have].norm()) > torch.finfo(test.dtype).eps * float(image.norm()):
            raise Inapplicable("the loss of one row depends on the outputs of other rows, so that its curvature is not a sum over rows.")


def _refuse_concave(values: Tensor) -> None:
    least, size = float(values.min()), float(values.abs().max())
    if least < -(torch.finfo(values.dtype).eps ** 0.75) * size:
        raise Inapplicable(f"the loss must be convex in the model's outputs, its Hessian there has the eigenvalue {least:.3g}.")
