"""Closed forms of generalization: bounds on a chosen predictor's risk, risks of interpolation, and what memorizing takes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from theorylab.core.ranges import nonnegative, positive, whole


def pac_bayes_slack(kl: float, n: int, delta: float) -> float:
    r"""K = (KL + ln(2√n/δ)) / (2n), half of what the PAC-Bayes-kl inequality allows: kl(e ‖ risk) ≤ 2k.

    Args:
        kl: KL(posterior ‖ prior) in nats, at least 0 and finite; ln M for one of M hypotheses under a uniform prior.
        n: Rows, at least 1.
        delta: Probability of failure, in (0, 1).

    Raises:
        ValueError: an argument out of its range.

    Example:
        >>> round(pac_bayes_slack(math.log(200), 100, 0.05), 4)
        0.0564

    Source: Maurer 2004, arXiv:cs/0411099, Theorem 5.
    """
    nonnegative(kl=kl)
    whole(1, n=n)
    if not 0 < delta < 1:
        raise ValueError(f"delta must lie in (0, 1), got {delta}.")
    return (kl + math.log(2 * math.sqrt(n) / delta)) / (2 * n)


def lambda_bound(error: float, k: float, lam: float) -> float:
    r"""The PAC-Bayes-λ bound, e/(1−λ/2) + 2k/(λ(1−λ/2)), which holds for all λ in (0, 2) at once.

    Args:
        error: e, the empirical risk, at least 0.
        k: From `pac_bayes_slack`, positive.
        lam: λ.

    Raises:
        ValueError: an argument out of its range.

    Example:
        >>> round(lambda_bound(0.1, 0.05, 1.0), 12)
        0.4

    Source: Thiemann et al. 2017, arXiv:1608.05610 (the PAC-Bayes-λ inequality).
    """
    if not 0 < lam < 2:
        raise ValueError(f"lam must lie in (0, 2), got {lam}.")
    _check(error, k)
    return error / (1 - lam / 2) + 2 * k / (lam * (1 - lam / 2))


def best_lambda(error: float, k: float) -> float:
    r"""The λ at which `lambda_bound` is least: 2 / (√(1 + e/k) + 1).

    Example:
        >>> best_lambda(0.0, 0.1), best_lambda(0.3, 0.1)
        (1.0, 0.6666666666666666)

    Source: Thiemann et al. 2017, arXiv:1608.05610 (minimization in λ).
    """
    _check(error, k)
    return 2 / (math.sqrt(1 + error / k) + 1)


def quadratic_bound(error: float, k: float) -> float:
    r"""(√(e+k) + √k)², the least value of `lambda_bound` over λ; also what kl(e ‖ p) ≥ (p−e)²/(2p) makes of the PAC-Bayes-kl inequality.

    Example:
        >>> quadratic_bound(0.0, 0.1)  # 4k: no error, a fast rate
        0.4

    Source: Pérez-Ortiz et al. 2021, arXiv:2007.12911, Section 4.
    """
    _check(error, k)
    return (math.sqrt(error + k) + math.sqrt(k)) ** 2


def square_root_bound(error: float, k: float) -> float:
    r"""E + √k, from Pinsker's inequality kl(e ‖ p) ≥ 2(p−e)²: the classical form, with a slow rate even without error.

    Example:
        >>> round(square_root_bound(0.1, 0.04), 12)
        0.3

    Source: McAllester 1999, doi:10.1145/307400.307435; with Maurer's constant.
    """
    _check(error, k)
    return error + math.sqrt(k)


def _check(error: float, k: float) -> None:
    nonnegative(error=error)
    positive(k=k)


# ---- least squares of smallest norm ------------------------------------------------------------------------------------------------------


def isotropic_ridgeless_risk(n: int, p: int, *, signal: float = 1.0, noise: float = 1.0) -> float:
    r"""Mean excess risk of least squares of smallest norm on n rows of p independent standard normal features, exact for every n.

    .. math:: E\,\|\hat\beta - \beta\|^2 = \begin{cases} \sigma^2\,\dfrac{p}{n-p-1} & p < n - 1 \\
        \|\beta\|^2\left(1 - \dfrac np\right) + \sigma^2\,\dfrac{n}{p-n-1} & p > n + 1 \end{cases}

    and infinite in between, where the inverse Wishart matrix has no mean. With fewer features than rows it is the same for any covariance.
    Without noise only the second case's first term is left, which is finite for every p > n.

    Args:
        n: Rows, at least 1.
        p: Features, at least 1.
        signal: ‖β‖², at least 0.
        noise: σ², the variance of the noise, at least 0.

    Raises:
        ValueError: an argument out of its range.

    Example:
        >>> isotropic_ridgeless_risk(11, 5), isotropic_ridgeless_risk(5, 11, signal=0.0), isotropic_ridgeless_risk(5, 5)
        (1.0, 1.0, inf)

    Source: Hastie et al. 2022, arXiv:1903.08560, Theorem 1, of which it is the form at finite n (the mean of an inverse Wishart matrix).
    """
    nonnegative(signal=signal, noise=noise)
    whole(1, n=n, p=p)
    missed = signal * (1 - n / p) if p > n else 0.0  # of β, in directions that no row has
    if noise == 0:
        return missed
    if abs(n - p) <= 1:
        return math.inf
    return missed + noise * min(n, p) / (abs(n - p) - 1)


def implicit_ridge(eigenvalues: Any, n: int) -> float:
    r"""The ridge κ that interpolation of n rows amounts to: :math:`\sum_i \lambda_i/(\lambda_i + \kappa) = n`; 0 where p ≤ n.

    Args:
        eigenvalues: λ, of the covariance, (p,), all positive.
        n: Rows, at least 1.

    Raises:
        ValueError: an eigenvalue that is not positive and finite, or n below 1.

    Example:
        >>> implicit_ridge([2.0] * 30, 10)  # 30 · 2/(2 + κ) = 10
        4.0

    Source: Hastie et al. 2022, arXiv:1903.08560, Theorem 2 (there κ = 1/(γ c₀)).
    """
    from scipy.optimize import brentq

    lam = _spectrum(eigenvalues, n)
    if lam.size <= n:
        return 0.0
    # Σ λ/(λ+κ) lies between p·min/(min+κ) and p·max/(max+κ), which bracket the root
    low, high = ((lam.size / n - 1) * v for v in (lam.min(), lam.max()))
    if low == high:
        return float(low)
    # and twice as wide also where the eigenvalues differ by rounding alone, which may hide the sign at the ends
    root = brentq(lambda t: float((lam / (lam + math.exp(t))).sum()) - n, math.log(low / 2), math.log(2 * high), xtol=1e-14)
    return math.exp(float(root))  # pyright: ignore[reportArgumentType]


def ridgeless_risk(eigenvalues: Any, coefficients: Any, n: int, *, noise: float) -> float:
    r"""Excess risk of least squares of smallest norm on n Gaussian rows of any covariance, where n and p are large.

    With κ from `implicit_ridge` and :math:`D = \sum_i (\lambda_i/(\lambda_i+\kappa))^2` the directions that are fitted,

    .. math:: \frac{\kappa^2 \sum_i \lambda_i\beta_i^2/(\lambda_i+\kappa)^2}{1 - D/n} + \sigma^2\,\frac{D}{n-D}.

    Args:
        eigenvalues: λ, of the covariance, (p,), all positive.
        coefficients: β, of the target along its eigenvectors, (p,).
        n: Rows, at least 1; not p, where the risk has no limit.
        noise: σ², at least 0.

    Raises:
        ValueError: an argument out of its range, or of another length.

    Example:
        >>> ridgeless_risk([1.0] * 20, [0.0] * 20, 10, noise=1.0), ridgeless_risk([1.0] * 5, [1.0] * 5, 10, noise=1.0)
        (1.0, 1.0)

    Source: Hastie et al. 2022, arXiv:1903.08560, Theorem 2 (correlated features); the same expression as that of ridge regression with
    penalty κ corrected by 1/(1 − D/n).
    """
    lam = _spectrum(eigenvalues, n)
    beta = np.asarray(coefficients, dtype=np.float64)
    if beta.shape != lam.shape or not np.isfinite(beta).all():
        raise ValueError(f"coefficients must be finite, one an eigenvalue ({lam.size},), got shape {beta.shape}.")
    nonnegative(noise=noise)
    if lam.size == n:
        raise ValueError(f"n must not be the number of eigenvalues, where the risk has no limit, got {n}.")
    kappa = implicit_ridge(lam, n)
    fitted = float(((lam / (lam + kappa)) ** 2).sum())
    bias = kappa**2 * float((lam * beta**2 / (lam + kappa) ** 2).sum())
    return bias / (1 - fitted / n) + noise * fitted / (n - fitted)


def effective_ranks(eigenvalues: Any, k: int) -> tuple[float, float]:
    r"""Effective ranks of the spectrum beyond its first k eigenvalues, in falling order.

    .. math:: r_k = \frac{\sum_{i>k}\lambda_i}{\lambda_{k+1}}, \qquad R_k = \frac{(\sum_{i>k}\lambda_i)^2}{\sum_{i>k}\lambda_i^2},
        \qquad 1 \le r_k \le R_k \le r_k^2

    Noise that is interpolated costs little where, for some k far below n, r_k is not below n and R_k is far above it.

    Args:
        eigenvalues: λ, (p,), all positive, in any order.
        k: In 0 ... p − 1.

    Raises:
        ValueError: an eigenvalue that is not positive and finite, or k out of range.

    Example:
        >>> effective_ranks([5.0] + [0.1] * 200, 1)  # a flat tail has the rank of its dimension
        (200.0, 200.0)

    Source: Bartlett et al. 2020, arXiv:1906.11300, Definition 3.
    """
    lam = np.sort(_spectrum(eigenvalues, 1))[::-1]
    whole(0, k=k)
    if not k < lam.size:
        raise ValueError(f"k must lie in 0 ... {lam.size - 1}, got {k}.")
    tail = lam[k:] / lam[k]
    return float(tail.sum()), float(tail.sum() ** 2 / (tail**2).sum())


def _spectrum(eigenvalues: Any, n: int) -> np.ndarray:
    lam = np.asarray(eigenvalues, dtype=np.float64)
    if lam.ndim != 1 or lam.size == 0 or not (np.isfinite(lam).all() and (lam > 0).all()):
        raise ValueError(f"eigenvalues must be a vector of positive finite numbers, got {lam}.")
    whole(1, n=n)
    return lam


# ---- the negated noise -------------------------------------------------------------------------------------------------------------------


def one_pass_error(d: int, m: int, *, negated: bool = False) -> float:
    r"""Error of a linear classifier after one pass over m rows with a signal of margin 4 and d noise coordinates N(0, 32/d).

    On new rows it is Φ(−√(d/m)/8), small where d is far above m. On the training rows with their noise ``negated``, each as likely a draw
    as the row itself, the classifier's own noise speaks against it: the margin has mean 4 − 32, and the error is Φ(⅞√(d/(m+1))).

    Args:
        d: Noise coordinates, at least 1.
        m: Rows, at least 1.
        negated: Whether the error on training rows of negated noise is asked for.

    Raises:
        ValueError: an argument out of its range.

    Example:
        >>> round(one_pass_error(1000, 64), 4), round(one_pass_error(1000, 64, negated=True), 4)
        (0.3106, 0.9997)

    Source: Nagarajan and Kolter 2019, arXiv:1902.04742, Section 3.1 (the setting of Theorem 3.1); the two normal approximations, of
    sums over d coordinates, are ours.
    """
    from scipy.special import ndtr

    whole(1, d=d, m=m)
    return float(ndtr(7 / 8 * math.sqrt(d / (m + 1)) if negated else -math.sqrt(d / m) / 8))


# ---- memorization ------------------------------------------------------------------------------------------------------------------------


def memorizing_weights(x: Any, y: Any, direction: Any) -> tuple[np.ndarray, np.ndarray]:
    r"""Biases b and output weights w of a network of n hidden units that fits any n labels: f(x) = Σ_j w_j max(a·x − b_j, 0).

    All units share the input weights a, so that it has 2n + d parameters. Along a the rows are points on a line; each bias lies just before
    one of them, and the weights, found point by point, are the changes of slope of the broken line through the labels.

    Args:
        x: Rows, (n, d).
        y: Labels, (n,), any numbers.
        direction: a, (d,), on which no two rows have the same projection; almost every direction is such.

    Returns:
        b and w, each (n,).

    Raises:
        ValueError: shapes that do not fit, or two rows with one projection.

    Example:
        >>> b, w = memorizing_weights([[0.0], [1.0], [3.0]], [5.0, -1.0, 2.0], [1.0])
        >>> (np.maximum(np.array([[0.0], [1.0], [3.0]]) - b, 0) @ w).round(12).tolist()
        [5.0, -1.0, 2.0]

    Source: Zhang et al. 2017, arXiv:1611.03530, Theorem 1 and its proof in the appendix.
    """
    x, y, a = (np.asarray(v, dtype=np.float64) for v in (x, y, direction))
    if x.ndim != 2 or y.shape != x.shape[:1] or a.shape != x.shape[1:] or len(x) == 0:
        raise ValueError(f"x must be (n, d), y (n,) and direction (d,), got {x.shape}, {y.shape} and {a.shape}.")
    order = np.argsort(x @ a)
    z, labels = (x @ a)[order], y[order]
    gaps = np.diff(z)
    if not (gaps > 0).all():
        raise ValueError("direction must give every row another projection; draw another one, or drop rows that occur twice.")
    # each break lies in the middle between two points, the first half a step before the first
    step = float(gaps.mean()) if len(gaps) else 1.0
    biases = np.r_[z[0] - step / 2, z[:-1] + gaps / 2]
    weights = np.empty_like(z)
    slope = value = 0.0  # of the broken line, and its value at the next break
    for j in range(len(z)):
        needed = (labels[j] - value) / (z[j] - biases[j])  # slope between the break and its point
        weights[j] = needed - slope
        slope = needed
        if j + 1 < len(z):
            value = labels[j] + slope * (biases[j + 1] - z[j])
    return biases, weights
