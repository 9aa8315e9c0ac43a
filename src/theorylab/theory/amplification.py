"""What sampling does to pure differential privacy, and the simplest mechanism on which it can be enumerated."""

from __future__ import annotations

import math


def amplified_epsilon(epsilon: float, q: float) -> float:
    r"""ε of an ε-private mechanism that sees each row only with chance q: :math:`\ln(1 + q(e^\varepsilon - 1))`.

    Args:
        epsilon: At least 0.
        q: In (0, 1].

    Raises:
        ValueError: an argument out of its range.

    Example:
        >>> round(amplified_epsilon(1.0, 0.1), 4), amplified_epsilon(1.0, 1.0)
        (0.1586, 1.0)

    Source: Balle, Barthe and Gaboardi 2018, arXiv:1807.01647, Theorem 8 (Poisson sampling, add/remove).
    """
    if not 0 <= epsilon < math.inf or not 0 < q <= 1:
        raise ValueError(f"epsilon must be finite and not negative and q lie in (0, 1], got epsilon={epsilon}, q={q}.")
    # in this form nothing overflows where e^ε would
    return epsilon + math.log(q) + math.log1p((1 - q) / q * math.exp(-epsilon)) if epsilon > 1 else math.log1p(q * math.expm1(epsilon))


def membership_accuracy_bound(epsilon: float) -> float:
    r"""The best accuracy of a membership attack on an ε-private mechanism at even odds, :math:`e^\varepsilon/(1+e^\varepsilon)`.

    Args:
        epsilon: At least 0.

    Example:
        >>> round(membership_accuracy_bound(1.0), 4), membership_accuracy_bound(0.0)
        (0.7311, 0.5)

    Source: Kairouz, Oh and Viswanath 2015, arXiv:1311.0776, Section 2 (the region of error rates), at its corner.
    """
    if not epsilon >= 0:
        raise ValueError(f"epsilon must not be negative, got {epsilon}.")
    return 1 / (1 + math.exp(-epsilon))


def true_positive_rate_bound(epsilon: float, delta: float, false_positive_rate: float) -> float:
    r"""The highest true-positive rate of an attack on an (ε, δ)-private mechanism at a false-positive rate.

    .. math:: \mathrm{TPR} \le \min\{e^\varepsilon\,\mathrm{FPR} + \delta,\; 1 - e^{-\varepsilon}(1 - \delta - \mathrm{FPR})\}

    Args:
        epsilon: At least 0.
        delta: In [0, 1].
        false_positive_rate: In [0, 1].

    Example:
        >>> round(true_positive_rate_bound(1.0, 1e-5, 0.01), 5)
        0.02719

    Source: Kairouz, Oh and Viswanath 2015, arXiv:1311.0776, Theorem 2.1 (Wasserman and Zhou 2010, arXiv:0811.2501, for δ = 0).
    """
    if not epsilon >= 0 or not 0 <= delta <= 1 or not 0 <= false_positive_rate <= 1:
        raise ValueError(
            "epsilon must not be negative, delta and false_positive_rate lie in [0, 1], "
            f"got epsilon={epsilon}, delta={delta}, false_positive_rate={false_positive_rate}."
        )
    first = math.exp(min(epsilon, 700.0)) * false_positive_rate + delta
    second = 1 - math.exp(-epsilon) * (1 - delta - false_positive_rate)
    return max(false_positive_rate, min(1.0, first, second))
