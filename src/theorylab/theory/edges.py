"""Edges of stability of optimizers other than gradient descent: the sharpness at which each begins to diverge on a quadratic."""

from __future__ import annotations

import math


def adam_threshold(step: float, beta1: float = 0.9) -> float:
    r"""Largest stable eigenvalue of the preconditioned Hessian for Adam, :math:`(2+2\beta_1)/((1-\beta_1)\eta)`.

    The matrix is :math:`P^{-1/2} H P^{-1/2}`, P the diagonal that Adam divides the momentum by. With P held fixed, Adam is gradient descent
    with momentum as an exponential average. The threshold is that of heavy ball with step :math:`(1-\beta_1)\eta`.

    Args:
        step: η > 0.
        beta1: β₁ in [0, 1).

    Raises:
        ValueError: an argument out of its range.

    Example:
        >>> round(adam_threshold(1.0, 0.9), 12), adam_threshold(0.5, 0.0)
        (38.0, 4.0)

    Source: Cohen et al. 2022, arXiv:2207.14484, Section 2 (stability of frozen Adam: 38/η at β₁ = 0.9).
    """
    if not (step > 0 and math.isfinite(step)):
        raise ValueError(f"step must be positive and finite, got {step}.")
    if not 0 <= beta1 < 1:
        raise ValueError(f"beta1 must lie in [0, 1), got {beta1}.")
    return (2 + 2 * beta1) / ((1 - beta1) * step)


def sam_threshold(step: float, rho: float, gradient_norm: float) -> float:
    r"""Edge of stability of SAM with gradient descent, :math:`\frac{\|g\|}{2\rho}\left(\sqrt{1 + \frac{8\rho}{\eta\|g\|}} - 1\right)`.

    The root of :math:`\eta\,(\lambda + \rho\lambda^2/\|g\|) = 2`: uphill by ρ, a direction of curvature λ adds λ²ρ/‖g‖ to the gradient's
    own λ. It depends on the gradient's norm, so it falls while training proceeds; for ρ → 0 it is 2/η.

    Args:
        step: η > 0.
        rho: ρ ≥ 0.
        gradient_norm: ‖g‖ > 0, of the loss at the parameters.

    Raises:
        ValueError: an argument out of its range.

    Example:
        >>> sam_threshold(1.0, 1.0, 1.0), sam_threshold(0.5, 0.0, 1.0)
        (1.0, 4.0)

    Source: Long and Bartlett 2023, arXiv:2309.12488, Section 1 (the SAM-edge) and its derivation on quadratics.
    """
    for name, value in {"step": step, "gradient_norm": gradient_norm}.items():
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name} must be positive and finite, got {value}.")
    if not (rho >= 0 and math.isfinite(rho)):
        raise ValueError(f"rho must be at least 0 and finite, got {rho}.")
    # √(1 + z) − 1 without cancellation: z / (√(1 + z) + 1)
    return 4 / step / (math.sqrt(1 + 8 * rho / (step * gradient_norm)) + 1)
