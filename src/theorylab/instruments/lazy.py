"""How far training moved a network: parameters, outputs and kernel, and whether it stayed on its linearization (lazy) or not (rich)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from theorylab.core.instrument import Inapplicable
from theorylab.core.problem import Params, Problem
from theorylab.instruments.kernels import ntk
from theorylab.instruments.refusals import couples_rows, hides_outputs


@dataclass(frozen=True)
class Movement:
    r"""Distances between two points of training, on the same data.

    Attributes:
        parameters: :math:`\lVert\theta_t - \theta_0\rVert / \lVert\theta_0\rVert`.
        outputs: :math:`\lVert f_t - f_0\rVert / \lVert f_0\rVert`.
        kernel: :math:`\lVert\Theta_t - \Theta_0\rVert_F / \lVert\Theta_0\rVert_F`.
        rotation: :math:`1 - \langle\Theta_0, \Theta_t\rangle_F / (\lVert\Theta_0\rVert\lVert\Theta_t\rVert)`, the kernel distance; blind to
            a change of the kernel's size.
        nonlinearity: :math:`\lVert f_t - f_0 - J_0(\theta_t - \theta_0)\rVert / \lVert f_t - f_0\rVert`, the share of the outputs' change
            that the network linearized at the start does not have. Near 0 training was lazy; of order 1 the network learned features.
    """

    parameters: float
    outputs: float
    kernel: float
    rotation: float
    nonlinearity: float


def distance_moved(before: Problem, after: Problem | Params, *, trace_outputs: bool = False) -> Movement:
    r"""Measure the way from one point to another: relative changes, and how much of it a linearized network would have gone.

    Args:
        before: The problem at the start.
        after: The problem after training, on the same data; or only its parameters.
        trace_outputs: Compare kernels summed over outputs.

    Raises:
        Inapplicable: the loss hides the outputs, or BatchNorm in training mode couples the rows.
        ValueError: other parameters than those of ``before``, outputs of another shape, a start at zero, or nothing moved.

    Example:
        >>> line = Problem(torch.nn.Linear(2, 1, bias=False), torch.nn.functional.mse_loss, (torch.eye(2), torch.zeros(2, 1)))
        >>> moved = distance_moved(line.at({"weight": torch.ones(1, 2)}), line.at({"weight": torch.tensor([[2.0, 1.0]])}))
        >>> round(moved.parameters, 3), moved.kernel, moved.nonlinearity  # a linear model's kernel does not move
        (0.707, 0.0, 0.0)

    Source: Chizat et al. 2019, arXiv:1812.07956, Section 1 (lazy training stays near the linearized model); the kernel distance of Fort et
    al. 2020, arXiv:2010.15110, Section 2.
    """
    for refuses in (hides_outputs, couples_rows):
        reason = refuses(before)
        if reason is not None:
            raise Inapplicable(f"distance_moved does not apply: {reason}")
    end = after if isinstance(after, Problem) else before.at(after)
    if {k: p.shape for k, p in end.params.items()} != {k: p.shape for k, p in before.params.items()}:
        raise ValueError("after must have the parameters of before, of the same shapes: build both from one kind of model.")
    start_params, step = before.flatten(before.params), end.flatten(end.params) - before.flatten(before.params)
    start, linear = _linearized(before, before.unflatten(step))
    with end.safe(), torch.no_grad():
        moved = torch.cat([end.outputs(k).reshape(-1) for k in range(len(end.batches))])
    if moved.shape != start.shape:
        raise ValueError(f"before and after must have outputs of one size, on the same data, got {len(start)} and {len(moved)}.")
    change = moved - start
    for name, size in (("the parameters", start_params), ("the outputs", start)):
        if not float(size.norm()) > 0:
            raise ValueError(f"{name} of before are zero: a relative distance from them is not defined.")
    if not float(change.norm()) > 0:
        raise ValueError("before and after have the same outputs: nothing moved.")
    first, last = ntk(before, trace_outputs=trace_outputs), ntk(end, trace_outputs=trace_outputs)
    return Movement(
        parameters=float(step.norm() / start_params.norm()),
        outputs=float(change.norm() / start.norm()),
        kernel=float((last - first).norm() / first.norm()),
        rotation=1 - float((first / first.norm() * (last / last.norm())).sum()),
        nonlinearity=float((change - linear).norm() / change.norm()),
    )


def _linearized(problem: Problem, step: Params) -> tuple[Tensor, Tensor]:
    """Outputs at the start, and their derivative along ``step``: of u → Jᵀu, which is linear, so that frozen dropout stays frozen."""
    outputs, pushed = [], []
    with problem.safe():
        for k in range(len(problem.batches)):
            leaves = problem.leaves()
            out = problem.outputs(k, leaves)
            u = torch.zeros_like(out, requires_grad=True)
            pulled = torch.autograd.grad(out, list(leaves.values()), u, create_graph=True, materialize_grads=True)
            along = torch.stack([(g * step[name]).sum() for name, g in zip(leaves, pulled, strict=True)]).sum()
            outputs.append(out.detach().reshape(-1))
            pushed.append(torch.autograd.grad(along, u)[0].reshape(-1))
    return torch.cat(outputs), torch.cat(pushed)
