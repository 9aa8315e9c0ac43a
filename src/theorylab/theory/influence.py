r"""Closed forms of credit attribution: leaving a row out of ridge and logistic regression, and games by their Fourier coefficients.

The logistic objective is :math:`L(\theta) = \frac1n\sum_i w_i \ell_i(\theta) + \frac\lambda2\|\theta\|^2`, at weights w = 1 unless
a function says otherwise. All models are without intercept.
"""

from __future__ import annotations

import numpy as np

from theorylab.core.ranges import nonnegative, positive
from theorylab.theory.games import fourier


def _design(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if x.ndim != 2 or y.shape != (len(x),):
        raise ValueError(f"x must be (n, d) and y (n,), got {x.shape} and {y.shape}.")
    return x, y


def hat_values(x: np.ndarray, penalty: float) -> np.ndarray:
    r"""Leverages of ridge regression, :math:`h_i = x_i^\top (X^\top X + \lambda I)^{-1} x_i`, (n,), each in [0, 1].

    It is 1 only for a row that is alone in some direction of the inputs, and only without a penalty.

    Args:
        x: X, (n, d).
        penalty: λ of the sum of squares, at least 0.

    Raises:
        ValueError: a negative penalty.

    Example:
        >>> hat_values(np.array([[1.0], [2.0]]), 5.0).tolist()
        [0.1, 0.4]

    Source: Hoaglin and Welsch 1978, doi:10.1080/00031305.1978.10479237 (the hat matrix).
    """
    nonnegative(penalty=penalty)
    x = np.asarray(x, dtype=float)
    gram = x.T @ x + penalty * np.eye(x.shape[1])
    return np.einsum("ij,ji->i", x, np.linalg.solve(gram, x.T))


def press_residuals(x: np.ndarray, y: np.ndarray, penalty: float) -> np.ndarray:
    r"""What ridge regression without row i misses at row i: :math:`y_i - x_i^\top\hat\theta_{-i} = r_i / (1 - h_i)`, (n,).

    One fit instead of n. The objective is :math:`\|y - X\theta\|^2 + \lambda\|\theta\|^2` with the same λ after a row has left.

    Args:
        x: X, (n, d).
        y: (n,).
        penalty: λ, at least 0.

    Raises:
        ValueError: shapes that do not fit, a negative penalty, or a row of leverage 1.

    Example:
        >>> press_residuals(np.array([[1.0], [1.0]]), np.array([0.0, 2.0]), 0.0).tolist()
        [-2.0, 2.0]

    Source: Allen 1974, doi:10.1080/00401706.1974.10489157 (PRESS); by the formula of Sherman and Morrison.
    """
    x, y = _design(x, y)
    theta = np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ y)
    left = 1 - hat_values(x, penalty)
    if not left.min() > 1e-12:  # rounding of one
        raise ValueError(f"row {left.argmin()} has leverage 1: the rows without it do not determine a solution. Give a positive penalty.")
    return (y - x @ theta) / left


def ridge_leave_one_out(x: np.ndarray, y: np.ndarray, penalty: float) -> np.ndarray:
    r"""How the ridge solution moves where row i leaves, :math:`\hat\theta_{-i} - \hat\theta`, (n, d), exactly.

    .. math:: \hat\theta_{-i} - \hat\theta = -(X^\top X + \lambda I)^{-1} x_i\, r_i / (1 - h_i)

    Args:
        x: X, (n, d).
        y: (n,).
        penalty: λ of the sum of squares, at least 0.

    Raises:
        ValueError: as `press_residuals`.

    Example:
        >>> ridge_leave_one_out(np.array([[1.0], [1.0]]), np.array([0.0, 2.0]), 0.0).tolist()
        [[1.0], [-1.0]]

    Source: Cook 1977, doi:10.1080/00401706.1977.10489493, Section 2.
    """
    x, _ = _design(x, y)
    gram = x.T @ x + penalty * np.eye(x.shape[1])
    return -np.linalg.solve(gram, x.T).T * press_residuals(x, y, penalty)[:, None]


def _logistic(theta: np.ndarray, x: np.ndarray, y: np.ndarray, decay: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row gradients (n, d), weights p(1 − p) (n,), and the Hessian of the objective (d, d)."""
    positive(decay=decay)
    if not np.isin(y, (0, 1)).all():
        raise ValueError(f"y must hold labels 0 and 1, got {np.unique(y)[:5].tolist()}.")
    if np.shape(theta) != x.shape[1:]:
        raise ValueError(f"theta must be (d,), one for each of the {x.shape[1]} columns of x, got {np.shape(theta)}.")
    p = 1 / (1 + np.exp(-x @ theta))
    curvature = p * (1 - p)
    return (p - y)[:, None] * x, curvature, (x.T * curvature) @ x / len(x) + decay * np.eye(x.shape[1])


def logistic_derivative(theta: np.ndarray, x: np.ndarray, y: np.ndarray, decay: float, *, damping: float | None = None) -> np.ndarray:
    r"""How the logistic optimum moves with the weight of row i, :math:`d\hat\theta/dw_i = -\frac1n H^{-1} \nabla\ell_i`, (n, d).

    H is the Hessian of the whole objective, decay included. The formula is the implicit function theorem at a stationary point; anywhere
    else it is the derivative of nothing.

    Args:
        theta: The optimum, (d,).
        x: (n, d).
        y: Labels 0 and 1, (n,).
        decay: λ > 0.
        damping: In place of λ in H, to see what a wrong one does.

    Raises:
        ValueError: shapes that do not fit, labels other than 0 and 1, or a decay that is not positive.

    Example:
        >>> logistic_derivative(np.zeros(1), np.array([[1.0], [1.0]]), np.array([0.0, 1.0]), 0.25).tolist()
        [[-0.5], [0.5]]

    Source: Koh and Liang 2017, arXiv:1703.04730, Section 2.1 and Appendix A.
    """
    x, y = _design(x, y)
    if damping is not None:
        nonnegative(damping=damping)
    gradients, _, hessian = _logistic(theta, x, y, decay)
    hessian = hessian if damping is None else hessian + (damping - decay) * np.eye(len(theta))
    return -np.linalg.solve(hessian, gradients.T).T / len(x)


def newton_leave_one_out(theta: np.ndarray, x: np.ndarray, y: np.ndarray, decay: float) -> np.ndarray:
    r"""One Newton step from the optimum on the objective without row i, :math:`\frac1n H^{-1}\nabla\ell_i/(1 - h_i)`, (n, d).

    The objective without the row keeps 1/n and λ: :math:`\frac1n\sum_{j\ne i}\ell_j + \frac\lambda2\|\theta\|^2`. The leverage
    :math:`h_i = \frac1n p_i(1 - p_i)\, x_i^\top H^{-1} x_i` is what the row adds to the curvature; influence leaves it out.

    Args:
        theta: The optimum on all rows, (d,).
        x: (n, d).
        y: Labels 0 and 1, (n,).
        decay: λ > 0.

    Returns:
        The changes, (n, d).

    Raises:
        ValueError: as `logistic_derivative`.

    Example:
        >>> newton_leave_one_out(np.zeros(1), np.array([[1.0], [1.0]]), np.array([0.0, 1.0]), 0.25).round(4).tolist()
        [[0.6667], [-0.6667]]

    Source: Pregibon 1981, doi:10.1214/aos/1176345513 (one-step deletion in logistic regression).
    """
    x, y = _design(x, y)
    return -logistic_derivative(theta, x, y, decay) / (1 - logistic_leverages(theta, x, y, decay))[:, None]


def logistic_leverages(theta: np.ndarray, x: np.ndarray, y: np.ndarray, decay: float) -> np.ndarray:
    r"""Leverages :math:`h_i = \frac1n p_i(1 - p_i)\, x_i^\top H^{-1} x_i` of logistic regression, (n,), each in [0, 1).

    Raises:
        ValueError: as `logistic_derivative`.

    Example:
        >>> logistic_leverages(np.zeros(1), np.array([[1.0], [1.0]]), np.array([0.0, 1.0]), 0.25).tolist()
        [0.25, 0.25]

    Source: Pregibon 1981, doi:10.1214/aos/1176345513.
    """
    x, y = _design(x, y)
    _, curvature, hessian = _logistic(theta, x, y, decay)
    return curvature / len(x) * np.einsum("ij,ji->i", x, np.linalg.solve(hessian, x.T))


def fourier_weights(values: np.ndarray) -> np.ndarray:
    r"""Weights by degree, :math:`B_k = \sum_{|S|=k} \hat f(S)^2` for k = 0 … n: their sum is the mean of f², (n + 1,).

    Example:
        >>> fourier_weights(np.array([0.0, 1.0, 1.0, 2.0])).tolist()
        [1.0, 0.5, 0.0]

    Source: O'Donnell 2014, Analysis of Boolean Functions, Chapter 1 (weight at degree k).
    """
    coefficients = fourier(values)
    n = len(coefficients).bit_length() - 1
    degree = np.array([m.bit_count() for m in range(len(coefficients))])
    return np.bincount(degree, coefficients**2, minlength=n + 1)


def noise_stability(weights: np.ndarray, rho: float) -> float:
    r"""E f(x) f(x′) for ρ-correlated subsets, :math:`\sum_k \rho^k B_k`: x uniform, each bit of x′ kept with probability (1 + ρ)/2.

    Args:
        weights: B₀ … Bₙ.
        rho: In [−1, 1].

    Example:
        >>> noise_stability(np.array([1.0, 0.5, 0.0]), 0.5)
        1.25

    Source: O'Donnell 2014, Analysis of Boolean Functions, Section 2.4; for retraining Saunshi et al. 2023, arXiv:2210.01072.
    """
    if not -1 <= rho <= 1:
        raise ValueError(f"rho must lie in [-1, 1], got {rho}.")
    return float(np.polynomial.polynomial.polyval(rho, weights))


def datamodel_residual(values: np.ndarray) -> float:
    r"""Least mean square error of a linear function of membership over uniform subsets: :math:`\sum_{k\ge2} B_k`.

    Example:
        >>> datamodel_residual(np.array([0.0, 0.0, 0.0, 4.0]))  # both players are needed: 4 x₁x₂
        1.0

    Source: Saunshi et al. 2023, arXiv:2210.01072 (datamodels by Fourier coefficients).
    """
    return float(fourier_weights(values)[2:].sum())


def datamodel_slopes(values: np.ndarray) -> np.ndarray:
    r"""Slopes of that least-squares fit in 0/1 membership, :math:`-2\hat f(\{i\})`, (n,): the mean effect of adding the row (Banzhaf).

    Example:
        >>> datamodel_slopes(np.array([0.0, 0.0, 0.0, 4.0])).tolist()
        [2.0, 2.0]

    Source: Saunshi et al. 2023, arXiv:2210.01072 (datamodels by Fourier coefficients).
    """
    coefficients = fourier(values)
    n = len(coefficients).bit_length() - 1
    return -2 * coefficients[[1 << i for i in range(n)]]


def regression_scores(features: np.ndarray, targets: np.ndarray, misses: np.ndarray) -> np.ndarray:
    r"""TRAK without a projection: :math:`\tau_{ij} = \phi_j^\top (\Phi^\top\Phi)^{-1} \phi_i\, q_i`, (n, target).

    Args:
        features: Φ, (n, p) of rank p.
        targets: Rows φⱼ, (target, p).
        misses: q, (n,).

    Raises:
        ValueError: features of less than full rank.

    Example:
        >>> regression_scores(np.array([[1.0], [2.0]]), np.array([[5.0]]), np.array([1.0, 0.5])).round(9).tolist()
        [[1.0], [1.0]]

    Source: Park et al. 2023, arXiv:2303.14186, Section 3.
    """
    basis, triangle = np.linalg.qr(np.asarray(features, dtype=float))
    if triangle.shape[0] < triangle.shape[1] or np.abs(np.diag(triangle)).min() <= 1e-12 * np.abs(np.diag(triangle)).max():
        raise ValueError(f"features must have full column rank, got shape {features.shape}.")
    return misses[:, None] * (basis @ np.linalg.solve(triangle.T, np.asarray(targets, dtype=float).T))
