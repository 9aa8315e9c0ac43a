"""Closed-form predictions of first-order optimization: worst cases, rates, stationary variances, escape times, edges of stability."""

from __future__ import annotations

import math


def saddle_escape_slope(step: float, curvature: float) -> float:
    r"""Steps that gradient descent needs to leave a strict saddle, per unit of ln(1/δ), from distance δ.

    Along the escape direction x grows by the factor 1 + η|λ| a step, so reaching distance 1 takes
    ln(1/δ) / ln(1 + η|λ|) steps; the slope in ln(1/δ) is 1 / ln(1 + η|λ|).

    Args:
        step: Step size η > 0.
        curvature: The negative Hessian eigenvalue λ < 0.

    Raises:
        ValueError: ``step`` ≤ 0 or ``curvature`` ≥ 0.

    Example:
        >>> round(saddle_escape_slope(0.05, -1.0), 2)
        20.5

    Source: linearization at a strict saddle, as in Lee et al. 2016, arXiv:1602.04915, Section 3.
    """
    if step <= 0:
        raise ValueError(f"step must be positive, got {step}.")
    if curvature >= 0:
        raise ValueError(f"curvature must be negative at a strict saddle, got {curvature}.")
    return 1 / math.log1p(step * -curvature)
