"""Second-order measurement of a Problem: Hessian, generalized Gauss-Newton, sharpness."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from theorylab.core.instrument import instrument
from theorylab.core.operator import Operator
from theorylab.core.problem import Problem, finite
from theorylab.core.source import Source
from theorylab.instruments.output_hessian import output_hessian, sampled_output_hessian
from theorylab.instruments.products import (
    MEMORY_BUDGET,
    Linearization,
    Product,
    dense_jacobian,
    dense_operator,
    differentiable_vjp,
    join,
    split,
    symmetric_operator,
    vjp,
)
from theorylab.instruments.refusals import hides_outputs
from theorylab.linalg.lanczos import eigs


def _hessian_graph(problem: Problem, batches: list[int]) -> Product:
    leaves = problem.leaves()
    inputs = list(leaves.values())
    total = sum((problem.weights[k] * finite(problem.batch_loss(k, leaves)) for k in batches), start=torch.zeros((), device=problem.device))
    gradient = differentiable_vjp(total, inputs)
    return lambda v, many: join(vjp(gradient, inputs, split(problem, v, many), many), many)


def dense_hessian(problem: Problem) -> Operator:
    """The Hessian row by row, each the gradient of one entry of the gradient, batch by batch: the oracle of `hessian`."""
    rows = torch.zeros(problem.P, problem.P, dtype=problem.dtype, device=problem.device)
    with problem.safe():
        for k, w in enumerate(problem.weights):
            leaves = problem.leaves()
            inputs = list(leaves.values())
            for i, entry in enumerate(join(differentiable_vjp(problem.batch_loss(k, leaves), inputs))):
                rows[i] += w * join(vjp([entry], inputs, [torch.ones_like(entry)]))
    return dense_operator(problem, (rows + rows.T) / 2, "dense hessian")


def dense_ggn(problem: Problem, *, mc: int = 0, seed: int = 0) -> Operator:
    """JᵀHJ from the dense Jacobian of all outputs and the dense Hessian of the loss in them: the oracle of `ggn`, also of its mean."""
    total = torch.zeros(problem.P, problem.P, dtype=problem.dtype, device=problem.device)
    with problem.safe():
        for k, w in enumerate(problem.weights):
            outputs, J = dense_jacobian(problem, k)
            J = J.reshape(-1, problem.P)
            curve = torch.autograd.functional.hessian(lambda o, k=k: problem.loss_of(k, o), outputs)
            assert isinstance(curve, Tensor)
            total += w * J.T @ curve.reshape(len(J), len(J)) @ J
    return dense_operator(problem, (total + total.T) / 2, "dense ggn")


@instrument(
    oracle=dense_hessian,
    source=Source("Pearlmutter 1994", "Section 3 (exact multiplication by the Hessian)", "doi:10.1162/neco.1994.6.1.147"),
)
def hessian(problem: Problem, *, memory: int = MEMORY_BUDGET) -> Operator:
    r"""The Hessian :math:`\nabla^2 L(\theta)` of the mean loss, (p, p).

    The graph of the gradient is kept, so that a product costs one backward pass through it, about the work of one and a half gradients.
    Where it would exceed ``memory``, it is built anew for every product, batch by batch.

    Args:
        problem: The risk and the point.
        memory: Bytes that the kept graph may take.

    Raises:
        ValueError: the loss is not finite.

    Example:
        >>> line = torch.nn.Linear(2, 1, bias=False)
        >>> quadratic = Problem(line, torch.nn.functional.mse_loss, (torch.eye(2), torch.zeros(2, 1)))
        >>> hessian(quadratic).to_dense().tolist()
        [[1.0, 0.0], [0.0, 1.0]]

    Source: Pearlmutter 1994, doi:10.1162/neco.1994.6.1.147, Section 3.
    """
    return symmetric_operator(problem, lambda batches, keep: _hessian_graph(problem, batches), "hessian", memory)


@instrument(
    oracle=dense_ggn,
    source=Source("Schraudolph 2002", "Section 3 (fast curvature matrix-vector products)", "doi:10.1162/08997660260028683"),
    refuses=hides_outputs,
)
def ggn(problem: Problem, *, mc: int = 0, seed: int = 0, memory: int = MEMORY_BUDGET) -> Operator:
    r"""The generalized Gauss-Newton matrix :math:`\frac1n\sum_i J_i^\top \nabla^2_f\ell_i\, J_i`, (p, p).

    J is the Jacobian of the model's outputs, and the inner matrix the Hessian of the loss in them, applied in closed form for the losses
    that `theorylab.instruments.output_hessian` knows. Positive semidefinite for a convex loss, and equal to the Hessian where the model is
    linear in its parameters.

    With ``mc`` samples each inner block is replaced by the mean of outer products :math:`ss^\top` whose expectation it is: for a
    likelihood, s is the derivative of the loss in the outputs at a label that the model draws itself; for another convex loss, the block's
    square root times random signs. A product costs the same: what is approximated is the matrix, as by the Monte Carlo Fisher.

    Args:
        problem: The risk and the point; its batches are pairs (x, y), and the model's output is one tensor.
        mc: Samples a prediction; 0 is exact.
        seed: Of the samples, which stay the same for all products of the operator.
        memory: Bytes that the kept graph may take.

    Raises:
        Inapplicable: the loss has the form loss(model, batch), which hides the outputs.
        ValueError: the loss is not finite; ``mc`` is negative, or positive for an unknown loss that is not convex in the outputs.
        TypeError: the output is not one tensor.

    Example:
        >>> line = torch.nn.Linear(2, 1, bias=False)
        >>> quadratic = Problem(line, torch.nn.functional.mse_loss, (torch.eye(2), torch.zeros(2, 1)))
        >>> ggn(quadratic).to_dense().tolist()
        [[1.0, 0.0], [0.0, 1.0]]

    Source: Schraudolph 2002, doi:10.1162/08997660260028683, Section 3; sampling: Martens 2020, arXiv:1412.1193, Sections 6 and 9.
    """
    if mc < 0:
        raise ValueError(f"mc must be at least 1 sample, or 0 for the exact matrix, got {mc}.")
    generator = torch.Generator().manual_seed(seed)
    seeds = torch.randint(2**62, (len(problem.batches),), generator=generator).tolist()  # a batch's samples do not depend on the others

    def build(batches: list[int], keep: bool) -> Product:
        pieces = []
        for k in batches:
            linear = Linearization.of(problem, k, quick=keep)
            if mc:
                curve = sampled_output_hessian(problem, k, linear.outputs, mc, torch.Generator().manual_seed(seeds[k]))
            else:
                curve = output_hessian(problem, k, linear.outputs)
            pieces.append((problem.weights[k], linear, curve))

        def product(v: Tensor, many: bool) -> Tensor:
            total = torch.zeros_like(v)
            for weight, linear, curve in pieces:
                total += linear.pull(weight * curve(linear.push(v, many), many), many)
            return total

        return product

    return symmetric_operator(problem, build, "ggn" if mc == 0 else f"ggn with {mc} samples", memory)


@dataclass(frozen=True)
class Sharpness:
    """The largest Hessian eigenvalue: an eigenvalue lies within ``residual`` of ``value``; ``vector`` (p,) has length one."""

    value: float
    vector: Tensor
    residual: float
    converged: bool
    n_matvecs: int


def dense_sharpness(problem: Problem, *, tol: float = 1e-3, seed: int = 0, start: Tensor | None = None) -> Sharpness:
    """The last eigenpair of the dense Hessian: the oracle of `sharpness`."""
    values, vectors = torch.linalg.eigh(dense_hessian(problem).to_dense())
    return Sharpness(float(values[-1]), vectors[:, -1], 0.0, True, problem.P)


@instrument(
    oracle=dense_sharpness,
    source=Source("Cohen et al. 2021", "Section 2 (sharpness, the largest eigenvalue of the training Hessian)", "arXiv:2103.00065"),
)
def sharpness(problem: Problem, *, tol: float = 1e-3, seed: int = 0, start: Tensor | None = None) -> Sharpness:
    r"""The largest eigenvalue of the Hessian, :math:`\lambda_{\max}(\nabla^2 L)`, by Lanczos.

    Args:
        problem: The risk and the point.
        tol: Relative residual at which to stop. The eigenvalue's own error is of the order of its square.
        seed: Of the starting vector.
        start: The ``vector`` of a nearby measurement, e.g. some steps earlier in training; saves products.

    Raises:
        ValueError: the loss is not finite.

    Example:
        >>> x = torch.diag(torch.tensor([1.0, 3.0]))
        >>> quadratic = Problem(torch.nn.Linear(2, 1, bias=False), torch.nn.functional.mse_loss, (x, torch.zeros(2, 1)))
        >>> round(sharpness(quadratic).value, 4)
        9.0

    Source: Cohen et al. 2021, arXiv:2103.00065, Section 2.
    """
    found = eigs(hessian(problem), k=1, which="LA", tol=tol, seed=seed, start=start)
    return Sharpness(float(found.values[0]), found.vectors[:, 0], float(found.residuals[0]), found.converged, found.n_matvecs)
