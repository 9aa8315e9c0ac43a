"""Shampoo, a preconditioner on each side of a matrix, and SOAP, Adam in its eigenbasis."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from theorylab.core.ranges import below_one, nonnegative, positive
from theorylab.learning.matrix_steps import for_matrices
from theorylab.learning.optimizers.base import Hyper, Optimizer, replica_ones, selectable, spread
from theorylab.linalg.orthogonalize import inverse_root


def _eye(like: Tensor, size: int) -> Tensor:
    return torch.eye(size, dtype=like.dtype, device=like.device).expand(len(like), size, size)


@selectable
def shampoo(lr: Hyper, *, eps: Hyper = 1e-6, decay: Hyper = 1.0, exponent: float = 4.0) -> Optimizer:
    r"""Shampoo: each matrix moves by its gradient between two roots of sums of its past gradients' squares.

    .. math:: W \leftarrow W - \eta\, L^{-1/4} G R^{-1/4}, \qquad L = \epsilon I + \sum GG^\top, \qquad R = \epsilon I + \sum G^\top G

    Vectors and scalars are left to Adam with the same step size. Without accumulation (``decay=0``, ``eps=0``) the step is the polar factor
    of the gradient.

    Args:
        lr: Step size η.
        eps: ε, where the sums start. Below the rounding of a sum that rounding takes its place, as `inverse_root` says.
        decay: What the sums are multiplied by before a gradient is added: 1 sums, less forgets.
        exponent: 4 in the roots above.

    Raises:
        ValueError: a hyper-parameter out of its range.

    Example:
        >>> plain = shampoo(lr=1.0, eps=0.0, decay=0.0)
        >>> W = {"W": torch.zeros(1, 2, 2)}
        >>> plain.update({"W": torch.tensor([[[3.0, 0.0], [0.0, -2.0]]])}, plain.init(W), W)[0]["W"].round(decimals=4).tolist()
        [[[-1.0, 0.0], [0.0, 1.0]]]

    Source: Gupta, Koren and Singer 2018, arXiv:1802.09568, Algorithm 1.
    """
    nonnegative(lr=lr, eps=eps, decay=decay)
    positive(exponent=exponent)

    def start(p: Tensor) -> Any:
        m, n = p.shape[-2:]
        return {"left": spread(eps, p) * _eye(p, m), "right": spread(eps, p) * _eye(p, n)}

    def step(g: Tensor, state: Any, p: Tensor) -> tuple[Tensor, Any]:
        left = spread(decay, p) * state["left"] + g @ g.mT
        right = spread(decay, p) * state["right"] + g.mT @ g
        move = inverse_root(left, exponent) @ g @ inverse_root(right, exponent)
        return p - spread(lr, p) * move, {"left": left, "right": right}

    return for_matrices("shampoo", lr, start, step)


@selectable
def soap(
    lr: Hyper,
    betas: tuple[Hyper, Hyper] = (0.95, 0.95),
    *,
    shampoo_beta: Hyper = 0.95,
    eps: Hyper = 1e-8,
    weight_decay: Hyper = 0.0,
    floor: float = 0.0,
) -> Optimizer:
    r"""SOAP: Adam on the gradient as seen in the eigenbases of Shampoo's two preconditioners, which are found anew after every step.

    .. math:: W \leftarrow (1-\eta\lambda) W - \eta\, Q_L\, \mathrm{Adam}(Q_L^\top G Q_R)\, Q_R^\top, \quad\text{then}\quad
        L \leftarrow \beta L + (1-\beta)GG^\top = Q_L\Lambda Q_L^\top, \quad
        R \leftarrow \beta R + (1-\beta)G^\top G = Q_R\Lambda' Q_R^\top

    A step sees its gradient in the bases of those before it, as published; the first one, for which the paper names none, in its own. The
    first moment is kept in the original basis and rotated, the second in the rotated one. Vectors and scalars are left to Adam with the
    same step size.

    Args:
        lr: Step size η.
        betas: β₁ and β₂ of Adam, with bias correction.
        shampoo_beta: β of the preconditioners.
        eps: ε, added outside of Adam's root.
        weight_decay: λ, decoupled.
        floor: Rotated entries below this share of the gradient's norm count as zero. They are rounding where the basis is the gradient's
            own, and Adam would scale them up to its step.

    Raises:
        ValueError: a hyper-parameter out of its range.

    Example:
        >>> first = soap(lr=1.0, eps=0.0)
        >>> W = {"W": torch.zeros(1, 2, 2)}
        >>> first.update({"W": torch.tensor([[[3.0, 0.0], [0.0, -2.0]]])}, first.init(W), W)[0]["W"].round(decimals=4).tolist()
        [[[-1.0, 0.0], [0.0, 1.0]]]

    Source: Vyas et al. 2024, arXiv:2409.11321, Algorithm 3, with its preconditioning frequency set to one.
    """
    beta1, beta2 = betas
    nonnegative(lr=lr, eps=eps, weight_decay=weight_decay, floor=floor)
    below_one(**{"betas[0]": beta1, "betas[1]": beta2, "shampoo_beta": shampoo_beta})

    def start(p: Tensor) -> Any:
        m, n = p.shape[-2:]
        one = replica_ones(p)
        sides = {"left": p.new_zeros(len(p), m, m), "right": p.new_zeros(len(p), n, n)}
        bases = {"left_basis": sides["left"].clone(), "right_basis": sides["right"].clone()}
        moments = {"first": torch.zeros_like(p), "second": torch.zeros_like(p), "power1": one, "power2": one.clone()}
        return {**sides, **bases, **moments, "begun": torch.zeros_like(one, dtype=torch.bool)}

    def step(g: Tensor, state: Any, p: Tensor) -> tuple[Tensor, Any]:
        b, b1, b2, eta = spread(shampoo_beta, p), spread(beta1, p), spread(beta2, p), spread(lr, p)
        left = b * state["left"] + (1 - b) * g @ g.mT
        right = b * state["right"] + (1 - b) * g.mT @ g
        next_Q, next_P = torch.linalg.eigh(left)[1], torch.linalg.eigh(right)[1]
        Q = torch.where(state["begun"], state["left_basis"], next_Q)
        P = torch.where(state["begun"], state["right_basis"], next_P)
        first = b1 * state["first"] + (1 - b1) * g
        rotated = Q.mT @ g @ P
        if floor:
            rotated = torch.where(rotated.abs() > floor * torch.linalg.matrix_norm(g, keepdim=True), rotated, 0.0)
        second = b2 * state["second"] + (1 - b2) * rotated.square()
        power1, power2 = b1 * state["power1"], b2 * state["power2"]
        size = (second / (1 - power2)).sqrt() + spread(eps, p)
        move = torch.where(second > 0, (Q.mT @ first @ P) / (1 - power1) / size, 0.0)
        new = p * (1 - eta * spread(weight_decay, p)) - eta * Q @ move @ P.mT
        moments = {"first": first, "second": second, "power1": power1, "power2": power2}
        sides = {"left": left, "right": right, "left_basis": next_Q, "right_basis": next_P}
        return new, {**sides, **moments, "begun": torch.ones_like(state["begun"])}

    return for_matrices("soap", lr, start, step)
