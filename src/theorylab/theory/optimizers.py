"""Closed-form predictions on deep-learning optimizers: dual norms, Muon's band, Adam's failure and its fixed points under weight decay."""

from __future__ import annotations

from typing import Literal

import numpy as np

Norm = Literal["l1", "l2", "linf", "frobenius", "spectral", "nuclear"]


def dual_norm(matrix: np.ndarray, norm: Norm) -> float:
    r"""The largest :math:`\langle G, D\rangle` over D of norm at most one: the dual norm of G.

    Args:
        matrix: G, (m, n).
        norm: Of D. "l1", "l2" and "linf" are of the entries; "spectral" is the largest singular value, "nuclear" their sum.

    Raises:
        ValueError: an unknown norm.

    Example:
        >>> G = np.diag([3.0, -2.0])
        >>> [round(dual_norm(G, norm), 9) for norm in ("linf", "spectral", "l1", "nuclear")]
        [5.0, 5.0, 3.0, 3.0]

    Source: Bernstein and Newhouse 2024, arXiv:2409.20325, Section 1 (steepest descent under a norm); the dual pairs are classical: Hölder's
    inequality and von Neumann's trace inequality.
    """
    singular = np.linalg.svd(matrix, compute_uv=False)
    duals = {
        "l1": np.abs(matrix).max(),
        "linf": np.abs(matrix).sum(),
        "l2": np.sqrt((matrix**2).sum()),
        "frobenius": np.sqrt((matrix**2).sum()),
        "spectral": singular.sum(),
        "nuclear": singular.max(),
    }
    if norm not in duals:
        raise ValueError(f"norm must be one of {', '.join(duals)}, got {norm!r}.")
    return float(duals[norm])


QUINTIC = (3.4445, -4.7750, 2.0315)
"""Coefficients (a, b, c) of Muon's iteration."""


def newton_schulz_value(singular: np.ndarray, steps: int = 5, coefficients: tuple[float, float, float] = QUINTIC) -> np.ndarray:
    r"""Where Muon's iteration takes singular values in [0, 1]: :math:`s \leftarrow as + bs^3 + cs^5`, repeated.

    Args:
        singular: s, of any shape.
        steps: Iterations, at least 0.
        coefficients: (a, b, c).

    Raises:
        ValueError: negative ``steps``.

    Example:
        >>> newton_schulz_value(np.array([0.001, 1.0])).round(4).tolist()
        [0.4705, 0.6964]

    Source: Jordan 2024, Muon: An optimizer for hidden layers in neural networks.
    """
    if steps < 0:
        raise ValueError(f"steps must not be negative, got {steps}.")
    s = np.asarray(singular, dtype=float)
    a, b, c = coefficients
    for _ in range(steps):
        s = a * s + b * s**3 + c * s**5
    return s


def newton_schulz_band(least: float, steps: int = 5, coefficients: tuple[float, float, float] = QUINTIC) -> tuple[float, float]:
    r"""The exact interval of what Muon's iteration makes of singular values in [least, 1].

    An iterate is a polynomial in s, so its extremes over an interval lie at the ends or where the derivative of some step vanishes. The
    interval is followed step by step: each step's polynomial is monotone between the two positive roots of its derivative.

    Args:
        least: In (0, 1].
        steps: Iterations, at least 0.
        coefficients: (a, b, c).

    Raises:
        ValueError: ``least`` outside (0, 1].

    Example:
        >>> [round(end, 4) for end in newton_schulz_band(0.01)]
        [0.6818, 1.1344]

    Source: Jordan 2024, Muon: An optimizer for hidden layers in neural networks; the interval is elementary calculus.
    """
    if not 0 < least <= 1:
        raise ValueError(f"least must lie in (0, 1], got {least}.")
    a, b, c = coefficients
    squares = np.roots([5 * c, 3 * b, a])  # of the derivative a + 3bs² + 5cs⁴, in s²
    turns = np.sqrt(squares[np.isreal(squares) & (squares.real > 0)].real)
    low, high = least, 1.0
    for _ in range(steps):
        inner = turns[(turns > low) & (turns < high)]
        ends = newton_schulz_value(np.concatenate([[low, high], inner]), 1, coefficients)
        low, high = float(ends.min()), float(ends.max())
    return low, high


def reddi_second_moment(C: float) -> float:
    r"""Adam's β₂ for which Reddi's stream of losses drives it to the worst point, :math:`1/(1 + C^2)`.

    Args:
        C: Slope of every third loss, above 2.

    Example:
        >>> reddi_second_moment(3.0)
        0.1

    Source: Reddi, Kale and Kumar 2018, arXiv:1904.09237, Theorem 1.
    """
    if C <= 2:
        raise ValueError(f"C must be above 2 for the mean loss to have its minimum at −1, got {C}.")
    return 1 / (1 + C**2)


def adamw_fixed_point(minimizer: np.ndarray, decay: float) -> np.ndarray:
    r"""Where AdamW converges on a separable quadratic: its minimizer, clipped to the box :math:`\|x\|_\infty \le 1/\lambda`.

    Args:
        minimizer: x*, of any shape.
        decay: λ > 0, decoupled.

    Example:
        >>> adamw_fixed_point(np.array([30.0, -3.0]), 0.1).tolist()
        [10.0, -3.0]

    Source: Xie and Li 2024, arXiv:2404.04454, Theorem 1.1 (limits satisfy the first-order conditions of the constrained problem).
    """
    if decay <= 0:
        raise ValueError(f"decay must be positive, got {decay}.")
    return np.clip(minimizer, -1 / decay, 1 / decay)


def ridge_minimizer(minimizer: np.ndarray, curvature: np.ndarray, decay: float) -> np.ndarray:
    r"""Minimizer of a separable quadratic with weight decay in the gradient, :math:`a_i x_i^*/(a_i + \lambda)`.

    The objective is :math:`\frac12\sum_i a_i(x_i - x_i^*)^2 + \frac\lambda2\|x\|^2`.

    Args:
        minimizer: x*, of any shape.
        curvature: a > 0, of the same shape.
        decay: λ ≥ 0.

    Example:
        >>> ridge_minimizer(np.array([30.0]), np.array([1.0]), 0.5).tolist()
        [20.0]

    Source: elementary; the contrast with decoupled decay is Loshchilov and Hutter 2019, arXiv:1711.05101, Section 2.
    """
    return curvature * minimizer / (curvature + decay)
