"""What a finite step and noise make of gradient descent: the flow that it follows, stationary variances, the time to leave a saddle."""

from __future__ import annotations

import math

from theorylab.core.ranges import below_one, positive
from theorylab.theory.edges import stability_threshold

REGULARIZATION = 1 / 4
"""Coefficient c of the modified loss L + cη‖∇L‖² (Barrett and Dherin 2021, arXiv:2009.11162, Theorem 3.1)."""


def flow_error_order(coefficient: float) -> int:
    r"""Order in η of the distance after fixed time between gradient descent and the flow of L + cη‖∇L‖²: 2 where c = 1/4, else 1.

    A step of the flow expands to θ − η∇L + η²(½ − 2c)H∇L + O(η³); the η² term is absent from gradient descent, so it must vanish. The error
    of a step accumulates over 1/η of them, which costs one order.

    Args:
        coefficient: c; 0 for the flow of L itself.

    Raises:
        ValueError: ``coefficient`` is not finite.

    Example:
        >>> flow_error_order(0.25), flow_error_order(0.0)
        (2, 1)

    Source: Barrett and Dherin 2021, arXiv:2009.11162, Theorem 3.1.
    """
    if not math.isfinite(coefficient):
        raise ValueError(f"coefficient must be finite, got {coefficient}.")
    return 2 if coefficient == REGULARIZATION else 1


def sgd_stationary_variance(lr: float, curvature: float, noise: float, momentum: float = 0.0) -> float:
    r"""Stationary variance of noisy gradient descent with heavy-ball momentum on λx²/2, exact in discrete time.

    .. math:: x_{t+1} = (1+\beta)x_t - \beta x_{t-1} - \eta(\lambda x_t + \sigma\xi_t), \qquad
        \mathrm{Var} = \frac{(1+\beta)\,\eta\sigma^2}{(1-\beta)\,\lambda\,(2(1+\beta) - \eta\lambda)}

    Args:
        lr: η > 0, with ηλ < 2(1 + β), the edge of stability.
        curvature: λ > 0.
        noise: σ > 0, the standard deviation of the gradient's noise.
        momentum: β in [0, 1).

    Raises:
        ValueError: an argument out of its range, or a step beyond the edge, where no stationary law exists.

    Example:
        >>> sgd_stationary_variance(1.0, 1.0, 1.0)
        1.0

    Source: variance of the AR(2) process with φ₁ = 1 + β − ηλ, φ₂ = −β and innovations of variance η²σ²; Box, Jenkins and Reinsel 2008,
    Time Series Analysis, Section 3.2.4.
    """
    positive(curvature=curvature, noise=noise)
    edge = lr * stability_threshold(lr, momentum)
    if not lr * curvature < edge:
        raise ValueError(f"lr · curvature must lie below 2(1 + β) = {edge:g} for a stationary law, got {lr * curvature:g}.")
    return (1 + momentum) * lr * noise**2 / ((1 - momentum) * curvature * (edge - lr * curvature))


def sde_stationary_variance(lr: float, curvature: float, noise: float, momentum: float = 0.0) -> float:
    r"""The same variance in the continuous-time limit, with momentum as an effective step: η_eff σ²/(2λ), η_eff = η/(1 − β).

    Right only for ηλ ≪ 2(1 + β); `sgd_stationary_variance` is larger by the factor 2(1+β)/(2(1+β) − ηλ).

    Args:
        lr: η > 0.
        curvature: λ > 0.
        noise: σ > 0.
        momentum: β in [0, 1).

    Raises:
        ValueError: an argument out of its range.

    Example:
        >>> sde_stationary_variance(1.0, 1.0, 1.0)
        0.5

    Source: Mandt, Hoffman and Blei 2017, arXiv:1704.04289, Section 3 (the stationary law of the Ornstein-Uhlenbeck process).
    """
    positive(lr=lr, curvature=curvature, noise=noise)
    below_one(momentum=momentum)
    return lr / (1 - momentum) * noise**2 / (2 * curvature)


def saddle_escape_slope(lr: float, curvature: float) -> float:
    r"""Steps that gradient descent needs to leave a strict saddle, per unit of ln(1/δ), from distance δ.

    Along the escape direction x grows by the factor 1 + η|λ| a step, so reaching distance 1 takes
    ln(1/δ) / ln(1 + η|λ|) steps; the slope in ln(1/δ) is 1 / ln(1 + η|λ|).

    Args:
        lr: η > 0.
        curvature: The negative Hessian eigenvalue λ < 0.

    Raises:
        ValueError: ``lr`` ≤ 0 or ``curvature`` ≥ 0.

    Example:
        >>> round(saddle_escape_slope(0.05, -1.0), 2)
        20.5

    Source: linearization at a strict saddle, as in Lee et al. 2016, arXiv:1602.04915, Section 3.
    """
    positive(lr=lr)
    if not -math.inf < curvature < 0:
        raise ValueError(f"curvature must be negative and finite at a strict saddle, got {curvature}.")
    return 1 / math.log1p(lr * -curvature)
