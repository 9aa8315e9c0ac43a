"""Closed-form predictions on deep-learning optimizers: dual norms, Muon's band, Adam's fixed points, and what noise does to their steps."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from theorylab.core.ranges import nonnegative, positive, whole
from theorylab.theory.dynamics import sgd_stationary_variance

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
    whole(0, steps=steps)
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
        ValueError: ``least`` outside (0, 1], or negative ``steps``.

    Example:
        >>> [round(end, 4) for end in newton_schulz_band(0.01)]
        [0.6818, 1.1344]

    Source: Jordan 2024, Muon: An optimizer for hidden layers in neural networks; the interval is elementary calculus.
    """
    if not 0 < least <= 1:
        raise ValueError(f"least must lie in (0, 1], got {least}.")
    whole(0, steps=steps)
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
    if not 2 < C < math.inf:
        raise ValueError(f"C must be above 2 and finite for the mean loss to have its minimum at −1, got {C}.")
    return 1 / (1 + C**2)


def adamw_fixed_point(minimizer: np.ndarray, decay: float) -> np.ndarray:
    r"""Where AdamW converges on a separable quadratic: its minimizer, clipped to the box :math:`\|x\|_\infty \le 1/\lambda`.

    Args:
        minimizer: x*, of any shape.
        decay: λ > 0, decoupled.

    Raises:
        ValueError: ``decay`` is not positive and finite.

    Example:
        >>> adamw_fixed_point(np.array([30.0, -3.0]), 0.1).tolist()
        [10.0, -3.0]

    Source: Xie and Li 2024, arXiv:2404.04454, Theorem 1.1 (limits satisfy the first-order conditions of the constrained problem).
    """
    positive(decay=decay)
    return np.clip(minimizer, -1 / decay, 1 / decay)


def ridge_minimizer(minimizer: np.ndarray, curvature: np.ndarray, decay: float) -> np.ndarray:
    r"""Minimizer of a separable quadratic with weight decay in the gradient, :math:`a_i x_i^*/(a_i + \lambda)`.

    The objective is :math:`\frac12\sum_i a_i(x_i - x_i^*)^2 + \frac\lambda2\|x\|^2`.

    Args:
        minimizer: x*, of any shape.
        curvature: a > 0, of the same shape.
        decay: λ ≥ 0.

    Raises:
        ValueError: an argument out of its range.

    Example:
        >>> ridge_minimizer(np.array([30.0]), np.array([1.0]), 0.5).tolist()
        [20.0]

    Source: elementary; the contrast with decoupled decay is Loshchilov and Hutter 2019, arXiv:1711.05101, Section 2.
    """
    nonnegative(decay=decay)
    positive(curvature=curvature)
    if np.shape(minimizer) != np.shape(curvature):
        raise ValueError(f"curvature must have the shape of minimizer, got {np.shape(curvature)} and {np.shape(minimizer)}.")
    return curvature * minimizer / (curvature + decay)


def svag_stationary_variance(lr: float, curvature: float, noise: float, amplification: float = 1.0) -> float:
    r"""Stationary variance of SVAG on λx²/2: :math:`\frac{\eta\sigma^2}{2\lambda}\Big/\Bigl(1 - \frac{\eta\lambda}{2l}\Bigr)`.

    The step is η/l and the variance of the combined gradient lσ², so that their product, which rules the limit of small steps, is SGD's.
    At l = 1 it is SGD's own variance, and as l → ∞ that of the stochastic differential equation.

    Args:
        lr: η > 0 of the SGD that is imitated.
        curvature: λ > 0.
        noise: σ > 0, the standard deviation of one gradient.
        amplification: l ≥ 1.

    Raises:
        ValueError: an argument out of its range, or ηλ/l ≥ 2.

    Example:
        >>> [round(svag_stationary_variance(1.0, 1.0, 1.0, l), 4) for l in (1, 2, 1e9)]
        [1.0, 0.6667, 0.5]

    Source: Li, Malladi and Arora 2021, arXiv:2102.12470, Equation 5, for the algorithm; the variance is that of an AR(1) process.
    """
    if not amplification >= 1:
        raise ValueError(f"amplification must be at least 1, got {amplification}.")
    return sgd_stationary_variance(lr / amplification, curvature, noise * amplification**0.5)


def linear_rule_drift(lr: float, curvature: float, k: float) -> float:
    r"""By what factor the linear rule changes SGD's stationary variance on λx²/2: :math:`\frac{2 - \eta\lambda}{2 - k\eta\lambda}`.

    Steps kη with noise σ²/k against steps η with noise σ². The rule is exact for kηλ ≪ 2, drifts before it breaks, and diverges at
    kηλ = 2.

    Args:
        lr: η > 0 at the smaller batch.
        curvature: λ > 0.
        k: By what the batch grows, at least 1, with kηλ < 2.

    Raises:
        ValueError: an argument out of its range.

    Example:
        >>> linear_rule_drift(0.1, 1.0, 10)
        1.9

    Source: elementary, from the variance of an AR(1) process; the rule is Goyal et al. 2017, arXiv:1706.02677, Section 2.1.
    """
    if not k >= 1:
        raise ValueError(f"k must be at least 1, got {k}.")
    return sgd_stationary_variance(k * lr, curvature, k**-0.5) / sgd_stationary_variance(lr, curvature, 1.0)


def adam_noisy_quadratic_loss(curvature: np.ndarray, start: np.ndarray, noise: float, lr: float, steps: int) -> float:
    r"""Expected loss of Adam on :math:`\frac12\sum_i \lambda_i x_i^2` where noise dominates its gradients, in the limit of small steps.

    .. math:: \mathbb E f = \frac12\sum_i \lambda_i \Bigl[x_i(0)^2\rho_i + \frac{\eta\sigma}{2\lambda_i}(1 - \rho_i)\Bigr], \qquad
        \rho_i = e^{-2\eta\lambda_i T/\sigma}

    Adam divides by the noise's σ, so it is SGD with step η/σ, whose stochastic differential equation is solved here. Memories shorter than
    the run do not enter. σ = σ₁/√B and T = n/B, so ησ and ηT/σ, and with them the loss, stay as they are where η grows as √B.

    Args:
        curvature: λ > 0, (d,).
        start: x(0), (d,), small against σ/λ.
        noise: σ > 0, the standard deviation of a minibatch gradient's entry.
        lr: η > 0.
        steps: T ≥ 0.

    Raises:
        ValueError: an argument out of its range.

    Example:
        >>> float(round(adam_noisy_quadratic_loss(np.ones(1), np.zeros(1), 2.0, 0.1, 10**6), 9))
        0.05

    Source: Malladi et al. 2022, arXiv:2205.10287, Section 4 (the equation of Adam), on a quadratic in the limit of dominating noise.
    """
    if np.ndim(curvature) != 1 or np.shape(curvature) != np.shape(start):
        raise ValueError(f"curvature and start must both be (d,), got {np.shape(curvature)} and {np.shape(start)}.")
    positive(noise=noise, lr=lr, curvature=curvature)
    whole(0, steps=steps)
    decay = np.exp(-2 * lr * curvature * steps / noise)
    return float(0.5 * (curvature * start**2 * decay + lr * noise / 2 * (1 - decay)).sum())


def gradient_noise_scale(hessian: np.ndarray, covariance: np.ndarray, gradient: np.ndarray) -> float:
    r"""The batch size at which the best step makes half of the largest progress, :math:`B_n = \mathrm{tr}(H\Sigma)/(g^\top H g)`.

    With H the identity this is the simple noise scale :math:`\mathrm{tr}\,\Sigma/\|g\|^2`.

    Args:
        hessian: H, (d, d).
        covariance: Σ of the gradient of one row, (d, d).
        gradient: g, (d,), along which the curvature is positive.

    Raises:
        ValueError: shapes that do not fit, or gᵀHg is not positive, so that no step along g is best.

    Example:
        >>> gradient_noise_scale(np.diag([1.0, 3.0]), np.eye(2), np.array([1.0, 0.0]))
        4.0

    Source: McCandlish et al. 2018, arXiv:1812.06162, Section 2.2, equation 2.8; the simple scale is equation 2.9.
    """
    if np.shape(covariance) != np.shape(hessian):
        raise ValueError(f"covariance must be (d, d) as hessian is, got {np.shape(covariance)} and {np.shape(hessian)}.")
    return float(np.sum(hessian * covariance)) / _curvature_along(hessian, gradient)


def best_step(hessian: np.ndarray, gradient: np.ndarray, batch: float, noise_scale: float) -> float:
    r"""The step along a minibatch's gradient with the largest expected decrease of a quadratic: :math:`\eta_{\max}/(1 + B_n/B)`.

    :math:`\eta_{\max} = \|g\|^2/(g^\top H g)` is that of the exact gradient.

    Args:
        hessian: H, (d, d).
        gradient: g, (d,), along which the curvature is positive.
        batch: B > 0, rows; infinite for the exact gradient.
        noise_scale: B_n, from `gradient_noise_scale`.

    Raises:
        ValueError: ``batch`` is not positive, ``noise_scale`` negative, shapes do not fit, or gᵀHg is not positive: no step is best.

    Example:
        >>> best_step(np.eye(2), np.array([2.0, 0.0]), 3.0, 1.0)
        0.75

    Source: McCandlish et al. 2018, arXiv:1812.06162, Section 2.2, equation 2.6.
    """
    along = _curvature_along(hessian, gradient)
    return float(gradient @ gradient) / along * _efficiency(batch, noise_scale)


def expected_decrease(hessian: np.ndarray, gradient: np.ndarray, batch: float, noise_scale: float) -> float:
    r"""Expected decrease of a quadratic by `best_step`: :math:`\Delta L_{\max}/(1 + B_n/B)`.

    :math:`\Delta L_{\max} = \|g\|^4/(2 g^\top H g)` is that of the exact gradient.

    Args:
        hessian: H, (d, d).
        gradient: g, (d,), along which the curvature is positive.
        batch: B > 0, rows; infinite for the exact gradient.
        noise_scale: B_n, from `gradient_noise_scale`.

    Raises:
        ValueError: ``batch`` is not positive, ``noise_scale`` negative, shapes do not fit, or gᵀHg is not positive: no step is best.

    Example:
        >>> expected_decrease(np.eye(2), np.array([2.0, 0.0]), np.inf, 1.0), expected_decrease(np.eye(2), np.array([2.0, 0.0]), 1.0, 1.0)
        (2.0, 1.0)

    Source: McCandlish et al. 2018, arXiv:1812.06162, Section 2.2, equation 2.7.
    """
    along = _curvature_along(hessian, gradient)
    return float(gradient @ gradient) ** 2 / (2 * along) * _efficiency(batch, noise_scale)


def _curvature_along(hessian: np.ndarray, gradient: np.ndarray) -> float:
    if np.ndim(gradient) != 1 or np.shape(hessian) != np.shape(gradient) * 2:
        raise ValueError(f"hessian must be (d, d) where gradient is (d,), got {np.shape(hessian)} and {np.shape(gradient)}.")
    along = float(gradient @ hessian @ gradient)
    if not along > 0:
        raise ValueError(f"the curvature along the gradient must be positive for a best step, got gᵀHg = {along:g}.")
    return along


def _efficiency(batch: float, noise_scale: float) -> float:
    if not batch > 0:
        raise ValueError(f"batch must be positive, got {batch}.")
    nonnegative(noise_scale=noise_scale)
    return 1 / (1 + noise_scale / batch)


MUP = {
    ("input", "adam"): (0.0, 0.0),
    ("hidden", "adam"): (-0.5, -1.0),
    ("output", "adam"): (-1.0, -1.0),
    ("input", "sgd"): (0.0, 1.0),
    ("hidden", "sgd"): (-0.5, 0.0),
    ("output", "sgd"): (-1.0, -1.0),
}
"""(role of a weight, optimizer) → exponents of its initial standard deviation and of its step size in the width."""


def mup_exponents(role: Literal["input", "hidden", "output"], optimizer: Literal["adam", "sgd"] = "adam") -> tuple[float, float]:
    r"""Exponents a, b of muP: a weight starts with standard deviation :math:`\propto m^a` and takes steps :math:`\propto m^b` at width m.

    They are what makes every activation change by :math:`\Theta(1)` in a step. A hidden matrix of Adam's steps ±η changes its output by
    η·m, as the steps of a layer are aligned with its input; hence b = −1. Outputs sum over m aligned entries as well, and start with
    a = −1 so that what they are at the start vanishes beside what they learn. Inputs sum over a fixed number.

    Args:
        role: "input" (biases, gains and embeddings too), "hidden", or "output".
        optimizer: "adam" for steps that do not depend on the gradient's scale, or "sgd".

    Raises:
        ValueError: another role or optimizer.

    Example:
        >>> mup_exponents("hidden"), mup_exponents("output", "sgd")
        ((-0.5, -1.0), (-1.0, -1.0))

    Source: Yang et al. 2022, arXiv:2203.03466, Table 3.
    """
    if (role, optimizer) not in MUP:
        raise ValueError(f"role must be 'input', 'hidden' or 'output', and optimizer 'adam' or 'sgd', got {role!r} and {optimizer!r}.")
    return MUP[role, optimizer]
