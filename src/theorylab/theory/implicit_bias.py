"""Which solution training picks: minimum norms, growing norms, conserved balance, and products whose rank falls while norms grow."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import linprog
from torch import Tensor

from theorylab.core.ranges import nonnegative, positive, whole


def minimum_norm_solution(x: Tensor, y: Tensor, start: Tensor | None = None) -> Tensor:
    r"""The interpolant of an underdetermined linear system that lies nearest to a start, in the Euclidean norm.

    .. math:: w^\star = w_0 + X^+(y - X w_0), \qquad X^+ = X^\top (X X^\top)^{-1}

    Gradient descent on the squared error moves within the row space of X only, so this is where it ends; from 0 it is the solution of
    minimum norm. Computed by a QR factorization of :math:`X^\top`, so the condition number is not squared.

    Args:
        x: (..., n, d) of full row rank, n ≤ d.
        y: (..., n).
        start: w₀ (..., d); 0 if left out.

    Returns:
        (..., d).

    Raises:
        ValueError: n > d, numbers that are not finite, or rows that are linearly dependent to working precision.

    Example:
        >>> minimum_norm_solution(torch.tensor([[3.0, 4.0]]), torch.tensor([25.0])).tolist()
        [3.0, 4.0]

    Source: Gunasekar et al. 2018, Theorem 1 (mirror descent) with the Euclidean potential, arXiv:1802.08246.
    """
    n, d = x.shape[-2:]
    if n > d:
        raise ValueError(f"x must have no more rows than columns (an underdetermined system), got {n} rows and {d} columns.")
    _finite(x=x, y=y, **({} if start is None else {"start": start}))
    q, r = torch.linalg.qr(x.mT)  # Xᵀ = QR, so X⁺ = Q R⁻ᵀ
    pivots = r.diagonal(dim1=-2, dim2=-1).abs()
    if bool((pivots.amin(-1) <= torch.finfo(x.dtype).eps * d * pivots.amax(-1)).any()):
        raise ValueError("x must have linearly independent rows; leave out rows that repeat others.")
    residual = y if start is None else y - (x @ start.unsqueeze(-1)).squeeze(-1)
    step = (q @ torch.linalg.solve_triangular(r.mT, residual.unsqueeze(-1), upper=False)).squeeze(-1)
    return step if start is None else start + step


def _finite(**tensors: Tensor) -> None:
    for name, t in tensors.items():
        if not bool(t.isfinite().all()):
            raise ValueError(f"{name} must be finite, got {int((~t.isfinite()).sum())} entries that are not.")


def minimum_l1_solution(x: Tensor, y: Tensor) -> Tensor:
    r"""The interpolant of an underdetermined linear system with the least ℓ1 norm (basis pursuit), by linear programming.

    .. math:: \min \|w\|_1 \quad\text{subject to}\quad Xw = y

    It has at most n entries that are not zero. Training whose geometry favours sparsity, such as gradient flow on u² − v² from a start near
    0, tends to it where it is unique.

    Args:
        x: (n, d), n ≤ d, of full row rank.
        y: (n,).

    Returns:
        (d,), in the dtype of ``x``, float64 for integers.

    Raises:
        ValueError: numbers that are not finite, or no interpolant.

    Example:
        >>> minimum_l1_solution(torch.tensor([[3.0, 4.0]]), torch.tensor([20.0])).tolist()
        [0.0, 5.0]

    Source: Chen, Donoho and Saunders 1998, doi:10.1137/S1064827596304010, Section 2 (basis pursuit as a linear program).
    """
    _finite(x=x, y=y)
    rows, d = x.double().cpu().numpy(), x.shape[-1]
    found = linprog(np.ones(2 * d), A_eq=np.hstack([rows, -rows]), b_eq=y.double().cpu().numpy())  # w = u − v with u, v ≥ 0
    if not found.success:
        raise ValueError(f"x and y must have an interpolant, and the linear program found none: {found.message}")
    return torch.from_numpy(found.x[:d] - found.x[d:]).to(x if x.is_floating_point() else x.double())


def norm_growth_slope(margin: float) -> float:
    r"""Norm that gradient descent on an exponential-tailed loss gains per unit of ln t, on separable data: 1/γ₂.

    The iterate is :math:`w(t) = \hat w \ln t + O(1)`, where ŵ is the support vector machine of functional margin 1, of norm 1/γ₂.

    Args:
        margin: γ₂ > 0, the largest ℓ2 margin (see `theorylab.linalg.margin.max_margin`).

    Raises:
        ValueError: ``margin`` is not positive and finite.

    Example:
        >>> norm_growth_slope(0.5)
        2.0

    Source: Soudry et al. 2018, Theorem 3, arXiv:1710.10345.
    """
    positive(margin=margin)
    return 1 / margin


def balance_increment(lr: Tensor | float, grad_below: Tensor, grad_above: Tensor) -> Tensor:
    r"""What one step of gradient descent adds to the imbalance of two neighbouring linear layers.

    .. math:: \Delta\left(W_{j+1}^\top W_{j+1} - W_j W_j^\top\right) = \eta^2\left(G_{j+1}^\top G_{j+1} - G_j G_j^\top\right)

    The terms of first order cancel because :math:`W_{j+1}^\top G_{j+1} = G_j W_j^\top` for a linear network and any loss: the imbalance
    is conserved by gradient flow and drifts by η² a step in gradient descent.

    Args:
        lr: Step size η, a number or a tensor that broadcasts against (..., width, width).
        grad_below: G_j, the gradient of the lower layer's weight (..., width, d).
        grad_above: G_{j+1}, that of the upper layer's weight (..., k, width).

    Returns:
        (..., width, width).

    Raises:
        ValueError: the layers do not meet in one width, or ``lr`` is negative or not finite.

    Example:
        >>> balance_increment(0.5, torch.tensor([[2.0]]), torch.tensor([[4.0]])).item()
        3.0

    Source: conservation by gradient flow: Arora et al. 2018, Theorem 1 and its proof, arXiv:1802.06509; Du et al. 2018, Theorem 2.2,
    arXiv:1806.00900. The term of second order is the exact remainder of one step.
    """
    if grad_below.shape[-2] != grad_above.shape[-1]:
        raise ValueError(
            f"grad_above must have as many columns as grad_below has rows, got {tuple(grad_above.shape)} and {tuple(grad_below.shape)}."
        )
    nonnegative(lr=lr)
    return lr**2 * (grad_above.mT @ grad_above - grad_below @ grad_below.mT)


def unit_balance_increment(lr: Tensor | float, grad_in: Tensor, grad_bias: Tensor, grad_out: Tensor) -> Tensor:
    r"""What one step of gradient descent adds to the imbalance of each hidden ReLU unit.

    .. math:: \Delta\left(\|w_{in}\|^2 + b^2 - \|a\|^2\right) = \eta^2\left(\|g_{in}\|^2 + g_b^2 - \|g_a\|^2\right)

    A positively homogeneous unit takes the same gradient through its input as through its output,
    :math:`\langle w_{in}, g_{in}\rangle + b\,g_b = \langle a, g_a\rangle`, so the terms of first order cancel.

    Args:
        lr: Step size η, a number or a tensor that broadcasts against (..., width).
        grad_in: Gradient of the incoming weights (..., width, d).
        grad_bias: Gradient of the biases (..., width).
        grad_out: Gradient of the outgoing weights (..., k, width).

    Returns:
        (..., width).

    Raises:
        ValueError: ``lr`` is negative or not finite.

    Example:
        >>> unit_balance_increment(1.0, torch.tensor([[3.0]]), torch.tensor([1.0]), torch.tensor([[2.0]])).tolist()
        [6.0]

    Source: Du et al. 2018, Theorem 2.1 (gradient flow, the bias as one more incoming weight), arXiv:1806.00900; the term of second
    order is the exact remainder of one step.
    """
    nonnegative(lr=lr)
    return lr**2 * (grad_in.square().sum(-1) + grad_bias.square() - grad_out.square().sum(-2))


def singular_value_speed(product: Tensor, gradient: Tensor, depth: int) -> Tensor:
    r"""Time derivative of the singular values of a product of balanced factors under gradient flow.

    .. math:: \dot\sigma_r = -N\,(\sigma_r^2)^{1 - 1/N}\,\langle \nabla\ell(W),\, u_r v_r^\top\rangle

    The deeper the product, the slower its small singular values move against its large ones, which is what favours low rank.

    Args:
        product: W = W_N⋯W₁, (..., k, d), with distinct singular values.
        gradient: ∇ℓ(W), the loss's gradient in the product, of the same shape.
        depth: Number of factors N ≥ 1.

    Returns:
        (..., min(k, d)), in the order of descending singular values.

    Raises:
        ValueError: ``depth`` < 1, or unequal shapes.

    Example:
        >>> product = torch.tensor([[4.0, 0.0], [0.0, 1.0]])
        >>> singular_value_speed(product, torch.eye(2), depth=2).tolist()
        [-8.0, -2.0]

    Source: Arora et al. 2019, Theorem 3, arXiv:1905.13655.
    """
    whole(1, depth=depth)
    if product.shape != gradient.shape:
        raise ValueError(f"gradient must have the shape of product, {tuple(product.shape)}, got {tuple(gradient.shape)}.")
    u, s, vh = torch.linalg.svd(product, full_matrices=False)
    along = torch.einsum("...kr,...kd,...rd->...r", u, gradient, vh)
    return -depth * (s**2).pow(1 - 1 / depth) * along


def component_speed(factors: Sequence[Tensor], gradient: Tensor) -> Tensor:
    r"""Time derivative of the norms of the components of a balanced CP factorization under gradient flow.

    .. math:: \frac{d}{dt}\|\otimes_n w_r^n\| = -N\,\|\otimes_n w_r^n\|^{2 - 2/N}\,\langle \nabla\ell(W), \otimes_n \hat w_r^n\rangle

    Balanced means that the N vectors of a component have one length, which the flow preserves. For N = 2 the norms grow at a speed
    proportional to themselves, for N ≥ 3 faster: the largest leaves the others behind.

    Args:
        factors: The N matrices (..., dₙ, R) whose columns are the vectors :math:`w_r^n`, none of them zero.
        gradient: ∇ℓ(W), the loss's gradient in the tensor :math:`W = \sum_r \otimes_n w_r^n`, (..., d₁, …, d_N).

    Returns:
        (..., R).

    Raises:
        ValueError: the shape of ``gradient`` is not that of the tensor.

    Example:
        >>> ones = torch.tensor([[2.0]])
        >>> component_speed([ones, ones, ones], torch.tensor([[[1.0]]])).tolist()  # of w³ with ẇ = −w²
        [-48.0]

    Source: Razin, Maman and Cohen 2021, Theorem 1 (unbalancedness zero), arXiv:2102.09972.
    """
    shape = (*factors[0].shape[:-2], *(f.shape[-2] for f in factors))
    if gradient.shape != shape:
        raise ValueError(f"gradient must have the shape of the tensor, {tuple(shape)}, got {tuple(gradient.shape)}.")
    norms = torch.stack([f.norm(dim=-2) for f in factors]).prod(0)
    along = gradient.flatten(-len(factors))[..., None, :]  # (..., R or 1, d₁⋯d_N); axes are contracted one by one
    for f in factors:
        unit = (f / f.norm(dim=-2, keepdim=True)).mT  # (..., R, d)
        along = (along.unflatten(-1, (f.shape[-2], -1)) * unit[..., None]).sum(-2)
    return -len(factors) * norms ** (2 - 2 / len(factors)) * along.squeeze(-1)


def unobserved_entry_bound(loss: Tensor) -> Tensor:
    r"""How large the missing entry of a 2×2 completion must be where the determinant is positive.

    Observed are w₀₁ = w₁₀ = 1 and w₁₁ = 0, with loss ℓ half the sum of squared residuals. Each residual is at most √(2ℓ), and a positive
    determinant means w₀₀w₁₁ > w₀₁w₁₀, so

    .. math:: |w_{00}| > \frac{w_{01}\,w_{10}}{|w_{11}|} \ge \frac{(1 - \sqrt{2\ell})^2}{\sqrt{2\ell}} \qquad (2\ell < 1)

    and fitting the observations drives the entry, hence every norm of the matrix, to infinity.

    Args:
        loss: ℓ, any shape, in (0, 1/2).

    Raises:
        ValueError: a loss outside (0, 1/2).

    Example:
        >>> round(unobserved_entry_bound(torch.tensor(0.005)).item(), 4)
        8.1

    Source: Razin and Cohen 2020, Theorem 1 and the lower bound on the unobserved entry in its proof, arXiv:2005.06398.
    """
    if not bool(((loss > 0) & (loss < 0.5)).all()):
        raise ValueError(f"loss must lie in (0, 1/2), where both off-diagonal entries are positive, got {loss.min():g} to {loss.max():g}.")
    root = (2 * loss).sqrt()
    return (1 - root).square() / root
