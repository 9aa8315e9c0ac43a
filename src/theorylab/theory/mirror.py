"""Potentials of mirror descent, and the interpolant that each of them picks."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from theorylab.core.ranges import positive

NEWTON_STEPS = 500
"""Far beyond what a feasible problem takes: the step moves a dual coordinate by at least ln 2, or is a full Newton step."""


class Potential(NamedTuple):
    """A separable, strictly convex potential ψ by what mirror descent needs of it, all entry by entry but ``value``.

    Attributes:
        value: ψ(w), (..., d) → (...).
        mirror: The mirror map φ = ∇ψ.
        inverse: φ⁻¹, which is the gradient of the conjugate ψ*.
        curvature: ∇²ψ's diagonal, as a function of w.
    """

    value: Callable[[Tensor], Tensor]
    mirror: Callable[[Tensor], Tensor]
    inverse: Callable[[Tensor], Tensor]
    curvature: Callable[[Tensor], Tensor]


def entropy() -> Potential:
    r"""The negative entropy :math:`\psi(w) = \sum_i w_i \ln w_i - w_i` on positive weights, with φ(w) = ln w.

    Its divergence is the generalized Kullback-Leibler divergence; its mirror descent is exponentiated gradient.

    Example:
        >>> entropy().value(torch.tensor([1.0, 1.0])).item()
        -2.0

    Source: Kivinen and Warmuth 1997, doi:10.1006/inco.1996.2612, Section 3; Gunasekar et al. 2018, arXiv:1802.08246, Section 2.
    """
    return Potential(lambda w: (torch.xlogy(w, w) - w).sum(-1), torch.log, torch.exp, torch.reciprocal)


def hyperbolic_entropy(alpha: float) -> Potential:
    r"""The potential of gradient flow on β = u² − v² from u = v = α: the hyperbolic entropy at scale α².

    .. math:: \psi(\beta) = \alpha^2 \sum_i q(\beta_i/\alpha^2), \qquad q(z) = 2 - \sqrt{4 + z^2} + z\,\mathrm{arcsinh}(z/2),
        \qquad \phi(\beta) = \mathrm{arcsinh}\big(\beta/2\alpha^2\big)

    For \|β\| ≪ α² it is the square β²/4α², for \|β\| ≫ α² the modulus \|β\| ln(1/α²), up to terms that no longer depend on α: minimum ℓ2
    norm in the kernel regime, minimum ℓ1 norm in the rich one. Computed in float64 whatever the type of β, for β/α² leaves the range of
    float32 before α does.

    Args:
        alpha: Initial scale α, in [1e-75, 1e75].

    Raises:
        ValueError: ``alpha`` is not.

    Example:
        >>> potential, beta = hyperbolic_entropy(0.5), torch.tensor([0.0, 3.0])
        >>> bool(torch.isclose(potential.inverse(potential.mirror(beta)), beta).all()), potential.value(beta[:1]).item()
        (True, 0.0)

    Source: Woodworth et al. 2020, arXiv:2002.09277, Section 4 (the potential Q_α).
    """
    positive(alpha=alpha)
    if not 1e-75 <= alpha <= 1e75:
        raise ValueError(f"alpha must lie in [1e-75, 1e75], so that beta/alpha² stays within the range of float64, got {alpha:g}.")
    scale = alpha**2

    def value(beta: Tensor) -> Tensor:
        z = beta / scale
        # 2 − √(4+z²) = −z²/(2 + √(4+z²)), which keeps its digits near 0; no z² is formed, which overflows long before z
        return scale * (z * torch.asinh(z / 2) - z * (z / (2 + _root(z, 2)))).sum(-1)

    return Potential(
        _in_float64(value),
        _in_float64(lambda beta: torch.asinh(beta / (2 * scale))),
        _in_float64(lambda z: 2 * scale * torch.sinh(z)),
        _in_float64(lambda beta: _root(beta, 2 * scale).reciprocal()),
    )


def _root(x: Tensor, y: float) -> Tensor:
    """√(x² + y²)."""
    return torch.hypot(x, torch.full_like(x, y))


def _in_float64(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: f(x.double()).to(x.dtype)


def divergence(potential: Potential, w: Tensor, start: Tensor) -> Tensor:
    r"""The Bregman divergence :math:`D_\psi(w, w_0) = \psi(w) - \psi(w_0) - \langle\phi(w_0), w - w_0\rangle \ge 0`.

    Args:
        potential: ψ.
        w: (..., d).
        start: w₀ (..., d), inside the domain.

    Example:
        >>> round(divergence(entropy(), torch.tensor([2.0]), torch.tensor([1.0])).item(), 4)  # 2 ln 2 − 1
        0.3863

    Source: Bregman 1967, doi:10.1016/0041-5553(67)90040-7.
    """
    return potential.value(w) - potential.value(start) - (potential.mirror(start) * (w - start)).sum(-1)


def bregman_projection(potential: Potential, x: Tensor, y: Tensor, start: Tensor) -> Tensor:
    r"""The interpolant that mirror descent with a potential reaches from a start: the nearest one in its divergence.

    .. math:: w^\star = \arg\min_{Xw = y} D_\psi(w, w_0) = \phi^{-1}\big(\phi(w_0) + X^\top\nu\big) \quad\text{for the ν with } Xw^\star = y

    ν is found by Newton's method on the dual, Σψ*(φ(w₀) + Xᵀν) − ⟨ν, y⟩. The conjugates of both entropies satisfy \|ψ*'''\| ≤ ψ*'', so that
    the step ln(1 + c)/c, where c is the largest change of a mirrored weight that the full one would make, descends from anywhere.

    Args:
        potential: ψ with \|ψ*'''\| ≤ ψ*'', such as `entropy` and `hyperbolic_entropy`.
        x: Rows (n, d), linearly independent.
        y: Targets (n,).
        start: w₀ (d,), inside the domain.

    Returns:
        (d,), with a residual ‖Xw − y‖ of at most some 1e-12 (‖y‖ + ‖|X||w|‖) in float64, which is that of its rounding.

    Raises:
        ValueError: dependent rows, or no interpolant inside the domain (for the entropy: none that is positive).

    Example:
        >>> x, y = torch.tensor([[1.0, 1.0]], dtype=torch.float64), torch.tensor([3.0], dtype=torch.float64)
        >>> w = bregman_projection(entropy(), x, y, torch.tensor([1.0, 2.0], dtype=torch.float64))
        >>> [round(v, 9) for v in w.tolist()]  # the start, scaled
        [1.0, 2.0]

    Source: Gunasekar et al. 2018, arXiv:1802.08246, Theorem 1 (the limit); Bach 2010, arXiv:0910.4627, Section 2 (functions whose third
    derivative is bounded by the second, and Newton steps on them).
    """
    origin, nu = potential.mirror(start), torch.zeros_like(y)
    for _ in range(NEWTON_STEPS):
        w = potential.inverse(origin + x.T @ nu)
        if not bool(w.isfinite().all()):
            break
        residual = x @ w - y
        # the terms of Xw may cancel, as where y is far smaller than the start
        if float(residual.norm()) <= 5e3 * torch.finfo(y.dtype).eps * float(y.norm() + (x.abs() @ w.abs()).norm()):
            return w
        factor, failed = torch.linalg.cholesky_ex((x / potential.curvature(w)) @ x.T)
        if int(failed):
            break
        step = torch.cholesky_solve(residual.unsqueeze(1), factor).squeeze(1)
        c = (x.T @ step).abs().amax()
        nu = nu - step * (torch.log1p(c) / c)
    raise ValueError("x and y must have linearly independent rows and an interpolant inside the potential's domain; Newton found none.")
