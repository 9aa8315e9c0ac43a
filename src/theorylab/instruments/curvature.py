"""Second-order measurement of a Problem: Hessian, generalized Gauss-Newton, sharpness."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from theorylab.core.instrument import instrument
from theorylab.core.operator import Operator
from theorylab.core.problem import Params, Problem, dependent, finite
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
    refuse_once_differentiable,
    split,
    symmetric_operator,
    vjp,
)
from theorylab.instruments.refusals import hides_outputs, too_few_digits
from theorylab.learning.optimizers.adam import momentum_divisor
from theorylab.linalg.lanczos import eigs


def _hessian_graph(problem: Problem, batches: list[int]) -> Product:
    leaves = problem.leaves()
    inputs = list(leaves.values())
    total = sum((problem.weights[k] * finite(problem.batch_loss(k, leaves)) for k in batches), start=torch.zeros((), device=problem.device))
    gradient = differentiable_vjp(dependent(total), inputs)
    if 0 in batches:  # the model is the same on all batches
        refuse_once_differentiable(gradient)
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
    return symmetric_operator(problem, _hessian_graph, "hessian", memory)


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
        Inapplicable: the loss has the form loss(model, batch), which hides the outputs; or, with ``mc``, an unknown loss couples rows.
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
    # a batch's samples do not depend on the others
    seeds = torch.randint(2**62, (len(problem.batches),), generator=generator, device="cpu").tolist()

    def build(problem: Problem, batches: list[int]) -> Product:
        pieces = []
        for k in batches:
            linear = Linearization.of(problem, k)
            if mc:
                curve = sampled_output_hessian(problem, k, linear.outputs, mc, torch.Generator().manual_seed(seeds[k]))
            else:
                curve = output_hessian(problem, k, linear.outputs)
            pieces.append((problem.weights[k], linear, curve))

        def product(v: Tensor, many: bool) -> Tensor:
            parts = [linear.pull(weight * curve(linear.push(v, many), many), many) for weight, linear, curve in pieces]
            return functools.reduce(torch.add, parts)

        return product

    return symmetric_operator(problem, build, "ggn" if mc == 0 else f"ggn with {mc} samples", memory, merge=mc == 0)


@dataclass(frozen=True)
class Sharpness:
    """The largest Hessian eigenvalue: an eigenvalue lies within ``residual`` of ``value``; ``vector`` (p,) has length one."""

    value: float
    vector: Tensor
    residual: float
    converged: bool
    n_matvecs: int


def dense_sharpness(
    problem: Problem, *, precondition: Tensor | Params | None = None, tol: float = 1e-3, seed: int = 0, start: Tensor | None = None
) -> Sharpness:
    """The last eigenpair of the dense Hessian: the oracle of `sharpness`."""
    H = dense_hessian(problem).to_dense()
    if precondition is not None:
        d = _as_vector(problem, precondition).to(H)
        H = H / torch.outer(d, d).sqrt()
    values, vectors = torch.linalg.eigh(H)
    return Sharpness(float(values[-1]), vectors[:, -1], 0.0, True, problem.P)


@instrument(
    oracle=dense_sharpness,
    source=Source("Cohen et al. 2021", "Section 2 (sharpness, the largest eigenvalue of the training Hessian)", "arXiv:2103.00065"),
    refuses=too_few_digits,
)
def sharpness(
    problem: Problem,
    *,
    precondition: Tensor | Params | None = None,
    tol: float = 1e-3,
    seed: int = 0,
    start: Tensor | None = None,
    memory: int = MEMORY_BUDGET,
) -> Sharpness:
    r"""The largest eigenvalue of the Hessian, :math:`\lambda_{\max}(\nabla^2 L)`, or of the preconditioned one, by Lanczos.

    Gradient descent with step size η is unstable where it exceeds 2/η. An optimizer that divides the step by a positive vector d, as Adam
    does, sees :math:`\lambda_{\max}(D^{-1/2}\,\nabla^2 L\,D^{-1/2})` instead; Adam's threshold is :math:`(2+2\beta_1)/(1-\beta_1)/\eta`.

    Args:
        problem: The risk and the point.
        precondition: The diagonal d > 0 as a vector (p,), or as tensors by parameter name; of Adam by `adam_preconditioner`.
        tol: Relative residual at which to stop. The eigenvalue's own error is of the order of its square.
        seed: Of the starting vector.
        start: The ``vector`` of a nearby measurement, e.g. some steps earlier in training; saves products.
        memory: Bytes that the kept graph may take, as of `hessian`.

    Raises:
        ValueError: the loss is not finite, or ``precondition`` lacks a parameter, has another shape, or is not positive.

    Example:
        >>> x = torch.diag(torch.tensor([1.0, 3.0]))
        >>> quadratic = Problem(torch.nn.Linear(2, 1, bias=False), torch.nn.functional.mse_loss, (x, torch.zeros(2, 1)))
        >>> round(sharpness(quadratic).value, 4), round(sharpness(quadratic, precondition=torch.tensor([0.1, 3.0])).value, 4)
        (9.0, 10.0)

    Source: Cohen et al. 2021, arXiv:2103.00065, Section 2; preconditioned: Cohen et al. 2022, arXiv:2207.14484, Section 2.
    """
    operator = hessian(problem, memory=memory)
    if precondition is not None:
        operator = operator.precondition(_as_vector(problem, precondition))
    found = eigs(operator, k=1, which="LA", tol=tol, seed=seed, start=start)
    return Sharpness(float(found.values[0]), found.vectors[:, 0], float(found.residuals[0]), found.converged, found.n_matvecs)


def _as_vector(problem: Problem, precondition: Tensor | Params) -> Tensor:
    if isinstance(precondition, Tensor):
        return precondition
    wrong = [k for k, p in problem.params.items() if k not in precondition or precondition[k].shape != p.shape]
    if wrong:
        raise ValueError(
            f"precondition must hold a tensor of the parameter's shape for each that is measured; wrong or missing: {wrong[0]}."
        )
    return problem.flatten(precondition)


def adam_preconditioner(problem: Problem, optimizer: torch.optim.Optimizer) -> Params:
    r"""What Adam divides the momentum by: :math:`d = (1-\beta_1^t)\,(\sqrt{v_t/(1-\beta_2^t)} + \varepsilon)`, by parameter name.

    Args:
        problem: Its model is the one that ``optimizer`` trains.
        optimizer: `torch.optim.Adam` or `torch.optim.AdamW` after at least one step.

    Raises:
        TypeError: another optimizer: RAdam and NAdam keep a second moment too, and divide by something else.
        ValueError: a parameter of the problem of which the optimizer keeps no second moment.

    Example:
        >>> net = torch.nn.Linear(1, 1, bias=False)
        >>> adam = torch.optim.Adam(net.parameters(), eps=0.5)
        >>> net.weight.grad = torch.tensor([[2.0]])
        >>> adam.step()
        >>> problem = Problem(net, torch.nn.functional.mse_loss, (torch.ones(1, 1), torch.ones(1, 1)))
        >>> round(float(adam_preconditioner(problem, adam)["weight"]), 4)  # (1 − 0.9)(2 + 0.5)
        0.25

    Source: Cohen et al. 2022, arXiv:2207.14484, Section 2 (the preconditioner of Adam with bias correction).
    """
    tensors = dict(problem.model.named_parameters())
    return adam_diagonal(optimizer, {name: tensors[name] for name in problem.params})


def adam_diagonal(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> Params:
    """The preconditioner of `adam_preconditioner` for parameters by name, as ``optimizer`` holds them."""
    if not isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW):
        raise TypeError(f"optimizer must be torch.optim.Adam or AdamW, got {type(optimizer).__name__}.")
    settings = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    found = {}
    for name, p in tensors.items():
        state = optimizer.state.get(p, {})
        if "exp_avg_sq" not in state:
            raise ValueError(f"optimizer keeps no second moment of {name}: it must be an Adam that trains this model and has made a step.")
        group, t = settings[id(p)], float(state["step"])
        second = state["max_exp_avg_sq"] if group.get("amsgrad") else state["exp_avg_sq"]
        found[name] = momentum_divisor(second, t, group["betas"], group["eps"])
    return found
