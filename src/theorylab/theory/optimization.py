"""What first-order methods guarantee, at worst and on quadratics: worst cases, lower bounds, rates, regret."""

from __future__ import annotations

import math

from theorylab.core.ranges import nonnegative, positive, whole


def gd_worst_case(steps: int, *, step_ratio: float = 1.0, smoothness: float = 1.0, curvature: float = 0.0, radius: float = 1.0) -> float:
    r"""Largest f(x_n) − f* after n steps of gradient descent over all L-smooth, μ-strongly convex functions.

    .. math:: \frac{LR^2}{2} \max\left\{\frac{\kappa}{\kappa - 1 + (1 - \kappa h)^{-2n}},\ (1 - h)^{2n}\right\}, \quad
        \kappa = \frac{\mu}{L}, \qquad \text{the first term being } \frac{1}{2nh + 1} \text{ for } \mu = 0

    For convex functions a Huber function attains the first term, that with the threshold `gd_worst_threshold`; the parabola Lx²/2, from
    side to side of whose minimum long steps jump, the second.

    Args:
        steps: n ≥ 0.
        step_ratio: h = ηL in (0, 2).
        smoothness: L > 0.
        curvature: μ in [0, L).
        radius: R = ‖x₀ − x*‖ > 0.

    Raises:
        ValueError: an argument out of its range.

    Example:
        >>> gd_worst_case(2)
        0.1

    Source: Drori and Teboulle 2014, arXiv:1206.3209, Theorems 3.1 and 3.2 (μ = 0, h ≤ 1) and Conjecture 3.1 (h < 2); proved for all of
    these by Kim 2024, arXiv:2412.04427 (abstract and Section 1).
    """
    positive(smoothness=smoothness)
    _check_curvature(curvature, smoothness)
    threshold, kappa = gd_worst_threshold(steps, step_ratio=step_ratio, radius=radius), curvature / smoothness
    slope = threshold / radius
    if kappa:
        less = min(kappa * step_ratio, 2 - kappa * step_ratio)  # |1 − κh| = 1 − less
        kept = (1 - less) ** (2 * steps)
        lost = -math.expm1(2 * steps * math.log1p(-less)) if less < 1 else float(steps > 0)  # 1 − kept, where κ is small too
        slope = kappa * kept / (kappa * kept + lost)
    return smoothness * radius**2 / 2 * max(slope, (1 - step_ratio) ** (2 * steps))


def _check_curvature(curvature: float, smoothness: float) -> None:
    if not 0 <= curvature < smoothness:
        raise ValueError(f"curvature must lie in [0, smoothness = {smoothness:g}), got {curvature}.")


def gd_worst_threshold(steps: int, *, step_ratio: float = 1.0, radius: float = 1.0) -> float:
    r"""Threshold τ = R/(2nh + 1) of the Huber function on which n steps of gradient descent end highest.

    With it the last iterate is still on the slope, after steps as short as a convex function of this smoothness can make them. No convex
    function is worse, but for h > 1 the parabola where (1 − h)²ⁿ > 1/(2nh + 1).

    Args:
        steps: n ≥ 0.
        step_ratio: h = ηL in (0, 2).
        radius: R > 0.

    Raises:
        ValueError: an argument out of its range.

    Example:
        >>> gd_worst_threshold(2)
        0.2

    Source: Drori and Teboulle 2014, arXiv:1206.3209, Theorem 3.2.
    """
    whole(0, steps=steps)
    if not 0 < step_ratio < 2:
        raise ValueError(f"step_ratio must lie in (0, 2), got {step_ratio}: longer steps diverge on a parabola.")
    positive(radius=radius)
    return radius / (2 * steps * step_ratio + 1)


def subgradient_worst_case(steps: int, *, lipschitz: float = 1.0, radius: float = 1.0) -> float:
    r"""Largest min_t f(x_t) − f* of the subgradient method with η = R/(M√(n+1)), over convex M-Lipschitz functions: MR/√(n+1).

    No method that uses n + 1 subgradients does better in dimension n + 1 or more.

    Args:
        steps: n ≥ 0.
        lipschitz: M > 0.
        radius: R > 0.

    Raises:
        ValueError: an argument out of its range.

    Example:
        >>> subgradient_worst_case(3)
        0.5

    Source: Drori and Teboulle 2016, arXiv:1409.2636, Appendix A (the lower bound); Nesterov 2004, Section 3.2.3 (the upper one).
    """
    whole(0, steps=steps)
    positive(lipschitz=lipschitz, radius=radius)
    return lipschitz * radius / math.sqrt(steps + 1)


def sgd_step_bound(*, smoothness: float = 1.0, curvature: float = 0.0, radius: float = 1.0, noise: float = 1.0) -> float:
    r"""Largest E‖x₁ − x*‖² after one step η = 1/L of SGD on a mean of L-smooth, μ-strongly convex functions.

    .. math:: \Bigl(\frac{a R}{2} + \sqrt{\frac{a^2 R^2}{4} + \frac{v^2}{L^2}}\Bigr)^2, \qquad a = 1 - \frac{\mu}{L}

    Args:
        smoothness: L > 0.
        curvature: μ in [0, L).
        radius: R = ‖x₀ − x*‖ > 0.
        noise: v > 0, the root mean square over the functions of ‖∇f_i(x*)‖.

    Raises:
        ValueError: an argument out of its range.

    Example:
        >>> round(sgd_step_bound(curvature=0.5, noise=1e-9), 6)  # without noise it is gradient descent's (1 − μ/L)²
        0.25

    Source: Taylor and Bach 2019, arXiv:1902.00947 (finite sums by performance estimation); in this form it is what the program gives.
    """
    positive(smoothness=smoothness, radius=radius, noise=noise)
    _check_curvature(curvature, smoothness)
    half = (1 - curvature / smoothness) * radius / 2
    return (half + math.hypot(half, noise / smoothness)) ** 2


def ogm_theta(steps: int) -> float:
    r"""θ_n of the optimized gradient method: θ₀ = 1, θ_{i+1} = (1 + √(1 + 4θ_i²))/2, with 8 in place of 4 in the last step.

    Args:
        steps: n ≥ 1.

    Raises:
        ValueError: ``steps`` < 1.

    Example:
        >>> ogm_theta(1)
        2.0

    Source: Kim and Fessler 2016, arXiv:1406.5468, Algorithm OGM1.
    """
    whole(1, steps=steps)
    theta = 1.0
    for _ in range(steps - 1):
        theta = (1 + math.sqrt(1 + 4 * theta**2)) / 2
    return (1 + math.sqrt(1 + 8 * theta**2)) / 2


def ogm_worst_case(steps: int, *, smoothness: float = 1.0, radius: float = 1.0) -> float:
    r"""Largest f(x_n) − f* of the optimized gradient method over convex L-smooth functions: LR²/(2θ_n²).

    Attained by the Huber function with threshold R/θ_n².

    Args:
        steps: n ≥ 1.
        smoothness: L > 0.
        radius: R > 0.

    Raises:
        ValueError: an argument out of its range.

    Example:
        >>> ogm_worst_case(1)
        0.125

    Source: Kim and Fessler 2016, arXiv:1406.5468, Theorem 2; no first-order method is better: Drori 2017, arXiv:1606.01424, Theorem 3.
    """
    positive(smoothness=smoothness, radius=radius)
    return smoothness * radius**2 / (2 * ogm_theta(steps) ** 2)


def nonconvex_gradient_bound(steps: int, gap: float, *, smoothness: float = 1.0) -> float:
    r"""Upper bound on min_t ‖∇f(x_t)‖² after n steps of gradient descent with η = 1/L on an L-smooth function: 4L(f₀ − f*)/(3n).

    Args:
        steps: n ≥ 1.
        gap: f(x₀) − f* ≥ 0.
        smoothness: L > 0.

    Raises:
        ValueError: an argument out of its range.

    Example:
        >>> round(nonconvex_gradient_bound(10, 1.0), 4)
        0.1333

    Source: Taylor 2017, PhD thesis, UCLouvain, page 190; proved in Abbaszadehpeivasti, de Klerk and Zamani 2021, arXiv:2104.05468.
    """
    whole(1, steps=steps)
    nonnegative(gap=gap)
    positive(smoothness=smoothness)
    return 4 * smoothness * gap / (3 * steps)


def span_lower_bound(steps: int, *, smoothness: float = 1.0, radius: float = 1.0) -> float:
    r"""Lower bound on f(x_k) − f* for every method whose iterates stay in the span of its gradients: 3LR²/(32(k+1)²).

    The function that shows it is Nesterov's tridiagonal quadratic of exactly 2k + 1 variables (more may be added that play no part): on
    that of many more variables the first k steps get lower.

    Args:
        steps: k ≥ 1.
        smoothness: L > 0.
        radius: R > 0.

    Raises:
        ValueError: an argument out of its range.

    Example:
        >>> span_lower_bound(3, smoothness=32)
        0.1875

    Source: Nesterov 2004, Introductory Lectures on Convex Optimization, Theorem 2.1.7.
    """
    whole(1, steps=steps)
    positive(smoothness=smoothness, radius=radius)
    return 3 * smoothness * radius**2 / (32 * (steps + 1) ** 2)


def _check_condition(condition: float) -> None:
    if not 1 <= condition < math.inf:
        raise ValueError(f"condition must be at least 1 and finite, got {condition}.")


def gd_rate(condition: float) -> float:
    r"""Contraction a step of gradient descent with η = 2/(L + μ) on a quadratic: (κ − 1)/(κ + 1).

    Args:
        condition: κ = L/μ ≥ 1.

    Raises:
        ValueError: ``condition`` < 1, or not finite.

    Example:
        >>> gd_rate(3.0)
        0.5

    Source: Nesterov 2004, Introductory Lectures on Convex Optimization, Theorem 2.1.15.
    """
    _check_condition(condition)
    return (condition - 1) / (condition + 1)


def polyak_rate(condition: float) -> float:
    r"""Asymptotic contraction a step of the heavy ball in Polyak's tuning on a quadratic: (√κ − 1)/(√κ + 1).

    Args:
        condition: κ = L/μ ≥ 1.

    Raises:
        ValueError: ``condition`` < 1, or not finite.

    Example:
        >>> polyak_rate(9.0)
        0.5

    Source: Polyak 1964, doi:10.1016/0041-5553(64)90137-5; Lessard et al. 2016, arXiv:1408.3595, Proposition 1.
    """
    _check_condition(condition)
    return gd_rate(math.sqrt(condition))


def _check_pair(smoothness: float, curvature: float) -> None:
    positive(smoothness=smoothness, curvature=curvature)
    if curvature > smoothness:
        raise ValueError(f"curvature must not exceed smoothness, got {curvature} > {smoothness}.")


def polyak_tuning(smoothness: float, curvature: float) -> tuple[float, float]:
    r"""Polyak's step and momentum for a quadratic: η = 4/(√L + √μ)², β = ((√κ − 1)/(√κ + 1))².

    Args:
        smoothness: L ≥ μ.
        curvature: μ > 0.

    Returns:
        (η, β).

    Raises:
        ValueError: ``curvature`` not positive or above ``smoothness``.

    Example:
        >>> tuple(round(v, 4) for v in polyak_tuning(25.0, 1.0))
        (0.1111, 0.4444)

    Source: Polyak 1964, doi:10.1016/0041-5553(64)90137-5; Lessard et al. 2016, arXiv:1408.3595, Proposition 1.
    """
    _check_pair(smoothness, curvature)
    return 4 / (math.sqrt(smoothness) + math.sqrt(curvature)) ** 2, polyak_rate(smoothness / curvature) ** 2


def lessard_cycle() -> tuple[float, float, float]:
    r"""The attracting cycle of the heavy ball with η = 1/9, β = 4/9 on Lessard's function, from its largest point on.

    The three iterates lie on the pieces 25x − 24, 25x and 25x of f', where x_{t+1} = (1+β)x_t − βx_{t−1} − ηf'(x_t) is affine; the cycle
    solves the three linear equations: 2592/1225, 792/1225, −2208/1225.

    Example:
        >>> [round(v, 5) for v in lessard_cycle()]
        [2.11592, 0.64653, -1.80245]

    Source: Lessard, Recht and Packard 2016, arXiv:1408.3595, Section 4.6.
    """
    return 2592 / 1225, 792 / 1225, -2208 / 1225


def pl_rate(smoothness: float, curvature: float) -> float:
    r"""Contraction a step of f − f* under gradient descent with η = 1/L and the Polyak-Łojasiewicz inequality: 1 − μ/L, an upper bound.

    Args:
        smoothness: L ≥ μ.
        curvature: The constant μ > 0 of ½‖∇f‖² ≥ μ(f − f*).

    Raises:
        ValueError: ``curvature`` not positive or above ``smoothness``.

    Example:
        >>> pl_rate(4.0, 1.0)
        0.75

    Source: Karimi, Nutini and Schmidt 2016, arXiv:1608.04636, Theorem 1.
    """
    _check_pair(smoothness, curvature)
    return 1 - curvature / smoothness


def least_squares_rate(smoothness: float, curvature: float) -> float:
    r"""Asymptotic contraction a step of f − f* on least squares with η = 1/L: (1 − μ/L)², the square of the bound `pl_rate`.

    Args:
        smoothness: Largest eigenvalue L of AᵀA.
        curvature: Least positive eigenvalue μ.

    Raises:
        ValueError: ``curvature`` not positive or above ``smoothness``.

    Example:
        >>> least_squares_rate(4.0, 1.0)
        0.5625

    Source: the residual's slowest mode shrinks by 1 − μ/L a step and f is its square; compare Karimi et al. 2016, arXiv:1608.04636,
    Theorem 1.
    """
    return pl_rate(smoothness, curvature) ** 2


def hedge_lr(rounds: int, experts: int) -> float:
    r"""Step size of Hedge that makes `hedge_regret_bound` smallest, :math:`\eta = \sqrt{8 \ln N / T}`.

    Args:
        rounds: T ≥ 1.
        experts: N ≥ 2.

    Raises:
        ValueError: an argument out of its range.

    Example:
        >>> round(hedge_lr(1000, 10), 4)
        0.1357

    Source: Cesa-Bianchi and Lugosi 2006, Prediction, Learning, and Games, Theorem 2.2.
    """
    whole(1, rounds=rounds)
    whole(2, experts=experts)
    return math.sqrt(8 * math.log(experts) / rounds)


def hedge_regret_bound(rounds: int, experts: int, lr: float | None = None) -> float:
    r"""Largest regret of Hedge after T rounds of losses in [0, 1], whoever chooses them: :math:`\ln N/\eta + T\eta/8`.

    With the best step, `hedge_lr`, this is :math:`\sqrt{T \ln N / 2}`.

    Args:
        rounds: T ≥ 1.
        experts: N ≥ 2.
        lr: η > 0; default: the best for T rounds.

    Raises:
        ValueError: an argument out of its range.

    Example:
        >>> round(hedge_regret_bound(1000, 10), 2)
        33.93

    Source: Cesa-Bianchi and Lugosi 2006, Prediction, Learning, and Games, Theorem 2.2.
    """
    best = hedge_lr(rounds, experts)
    lr = best if lr is None else lr
    positive(lr=lr)
    return math.log(experts) / lr + rounds * lr / 8
