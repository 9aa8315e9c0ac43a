"""Edges of stability: the sharpness at which each optimizer begins to diverge on a quadratic."""

from __future__ import annotations

import math
from typing import Literal

from theorylab.core.ranges import below_one, positive


def stability_threshold(lr: float, momentum: float = 0.0, *, method: Literal["polyak", "nesterov"] = "polyak") -> float:
    r"""Edge of stability: the curvature above which the method diverges on a quadratic.

    .. math:: \lambda^* = \frac{2 + 2\beta}{\eta}\ \text{(Polyak; with β = 0 gradient descent's 2/η)}, \qquad
        \lambda^* = \frac{2 + 2\beta}{\eta\,(1 + 2\beta)}\ \text{(Nesterov)}

    Args:
        lr: η > 0.
        momentum: β in [0, 1).
        method: Heavy ball, or Nesterov's look-ahead with fixed momentum.

    Raises:
        ValueError: an argument out of its range, or an unknown method.

    Example:
        >>> stability_threshold(0.5), stability_threshold(0.5, 0.5), stability_threshold(0.5, 0.5, method="nesterov")
        (4.0, 6.0, 3.0)

    Source: Cohen et al. 2021, arXiv:2103.00065, Section 2 and the appendix on momentum (maximum stable sharpness).
    """
    positive(lr=lr)
    below_one(momentum=momentum)
    if method not in ("polyak", "nesterov"):
        raise ValueError(f"method must be 'polyak' or 'nesterov', got {method!r}.")
    return (2 + 2 * momentum) / (lr * (1 + 2 * momentum if method == "nesterov" else 1))


def adam_threshold(lr: float, beta1: float = 0.9) -> float:
    r"""Largest stable eigenvalue of the preconditioned Hessian for Adam, :math:`(2+2\beta_1)/((1-\beta_1)\eta)`.

    The matrix is :math:`P^{-1/2} H P^{-1/2}`, P the diagonal that Adam divides the momentum by. With P held fixed, Adam is gradient descent
    with momentum as an exponential average: heavy ball with step :math:`(1-\beta_1)\eta`, whose threshold this is.

    Args:
        lr: η > 0.
        beta1: β₁ in [0, 1).

    Raises:
        ValueError: an argument out of its range.

    Example:
        >>> round(adam_threshold(1.0, 0.9), 12), adam_threshold(0.5, 0.0)
        (38.0, 4.0)

    Source: Cohen et al. 2022, arXiv:2207.14484, Section 2 (stability of frozen Adam: 38/η at β₁ = 0.9).
    """
    below_one(beta1=beta1)
    positive(lr=lr)
    return stability_threshold((1 - beta1) * lr, beta1)


def sam_threshold(lr: float, rho: float, gradient_norm: float) -> float:
    r"""Edge of stability of SAM with gradient descent, :math:`\frac{\|g\|}{2\rho}\left(\sqrt{1 + \frac{8\rho}{\eta\|g\|}} - 1\right)`.

    The root of :math:`\eta\,(\lambda + \rho\lambda^2/\|g\|) = 2`: uphill by ρ, a direction of curvature λ adds λ²ρ/‖g‖ to the gradient's
    own λ. It depends on the gradient's norm, so it falls while training proceeds; for ρ → 0 it is 2/η.

    Args:
        lr: η > 0.
        rho: ρ ≥ 0.
        gradient_norm: ‖g‖ > 0, of the loss at the parameters.

    Raises:
        ValueError: an argument out of its range.

    Example:
        >>> sam_threshold(1.0, 1.0, 1.0), sam_threshold(0.5, 0.0, 1.0)
        (1.0, 4.0)

    Source: Long and Bartlett 2023, arXiv:2309.12488, Section 1 (the SAM-edge) and its derivation on quadratics.
    """
    positive(lr=lr, gradient_norm=gradient_norm)
    if not (rho >= 0 and math.isfinite(rho)):
        raise ValueError(f"rho must be at least 0 and finite, got {rho}.")
    # √(1 + z) − 1 without cancellation: z / (√(1 + z) + 1)
    return 4 / lr / (math.sqrt(1 + 8 * rho / (lr * gradient_norm)) + 1)
