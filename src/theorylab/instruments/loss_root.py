"""A square root of the loss's curvature in the model's outputs: vectors s with Σ s sᵀ = ∇²_f L."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from theorylab.core.instrument import Inapplicable
from theorylab.core.problem import Problem, finite

Product = Callable[[Tensor], Tensor]


def loss_root(problem: Problem, k: int, outputs: Tensor) -> Iterator[Tensor]:
    r"""Cotangents of the outputs of batch ``k`` whose backward passes sum to the generalized Gauss-Newton matrix.

    Each has the shape of ``outputs`` and holds one vector :math:`s_i` for every row i, such that over all of them
    :math:`\sum s_i s_i^\top = \nabla^2_{f_i} (w_k L_k)` with w_k the batch's share of the rows and L_k its mean loss. No expectation is
    sampled: for a softmax cross-entropy these are the vectors :math:`\sqrt{p_c/n}\,(e_c - p)`, one for each class c.

    Which form the curvature has is measured, not read from the name of the loss: a diagonal (squared error, logistic and other losses of
    single outputs), a multiple of diag(p) − ppᵀ at every position (cross-entropy, also weighted, smoothed or masked), or neither, where
    the dense matrix of each row is computed and factorized.

    Args:
        problem: The risk and the point.
        k: Which batch.
        outputs: Those of the batch, with the rows first.

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

    generator = torch.Generator().manual_seed(0)
    probe, test = (torch.randn(head.shape, generator=generator, dtype=torch.float64).to(head) for _ in range(2))
    truth = curve(test)
    for form in (_diagonal, *(_softmax(axis) for axis in sorted({1, head.ndim - 1}) if head.ndim > 1)):
        product, columns = form(head.detach(), curve, probe)
        if _equal(product(test), truth):
            yield from columns
            return
    yield from _dense(head.detach(), curve, test)


def _equal(a: Tensor, b: Tensor) -> bool:
    # A wrong form is off by a part of order one; rounding is far below the three quarters of the digits that are asked for here.
    return float((a - b).norm()) <= torch.finfo(a.dtype).eps ** 0.75 * float(b.norm())


def _one_hot(values: Tensor) -> Iterator[Tensor]:
    """Each entry of a row alone, for all rows at once."""
    flat = values.reshape(len(values), -1)
    for j in range(flat.shape[1]):
        column = torch.zeros_like(flat)
        column[:, j] = flat[:, j]
        yield column.reshape(values.shape)


def _diagonal(f: Tensor, curve: Product, probe: Tensor) -> tuple[Product, Iterator[Tensor]]:
    weight = curve(torch.ones_like(f))

    def columns() -> Iterator[Tensor]:
        _refuse_concave(weight)
        yield from _one_hot(weight.clamp(min=0).sqrt())

    return lambda u: weight * u, columns()


def _softmax(axis: int) -> Callable[[Tensor, Product, Tensor], tuple[Product, Iterator[Tensor]]]:
    def form(f: Tensor, curve: Product, probe: Tensor) -> tuple[Product, Iterator[Tensor]]:
        p = f.softmax(axis)

        def centred(u: Tensor) -> Tensor:
            return p * (u - (p * u).sum(axis, keepdim=True))

        image = centred(probe)
        size = image.square().sum(axis, keepdim=True)
        scale = (curve(probe) * image).sum(axis, keepdim=True) / size.where(size > 0, 1)  # a certain prediction has no curvature

        def columns() -> Iterator[Tensor]:
            root = (scale.clamp(min=0) * p).sqrt()
            for one in _one_hot(root):
                yield one - p * one.sum(axis, keepdim=True)

        return lambda u: scale * centred(u), columns()

    return form


def _dense(f: Tensor, curve: Product, test: Tensor) -> Iterator[Tensor]:
    odd = (torch.arange(len(f), device=f.device) % 2).bool()
    image = curve(torch.where(odd.view(-1, *[1] * (f.ndim - 1)), test, 0))
    if float(image[~odd].norm()) > torch.finfo(f.dtype).eps * float(image.norm()):
        raise Inapplicable("the loss of one row depends on the outputs of other rows, so that its curvature is not a sum over rows.")
    images = [curve(unit).reshape(len(f), -1) for unit in _one_hot(torch.ones_like(f))]
    H = torch.stack(images, dim=2)  # (n, output, output)
    values, vectors = torch.linalg.eigh(H)
    _refuse_concave(values)
    for column in (vectors * values.clamp(min=0).sqrt()[:, None]).unbind(2):
        yield column.reshape(f.shape)


def _refuse_concave(values: Tensor) -> None:
    least, size = float(values.min()), float(values.abs().max())
    if least < -(torch.finfo(values.dtype).eps ** 0.75) * size:
        raise Inapplicable(f"the loss must be convex in the model's outputs, its Hessian there has the eigenvalue {least:.3g}.")
