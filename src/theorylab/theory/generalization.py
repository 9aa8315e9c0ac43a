"""Closed-form bounds on the risk of a randomized or chosen predictor: what PAC-Bayes and union bounds say before any network is trained."""

from __future__ import annotations

import math


def pac_bayes_slack(kl: float, n: int, delta: float) -> float:
    r"""K = (KL + ln(2√n/δ)) / (2n), half of what the PAC-Bayes-kl inequality allows: kl(e ‖ risk) ≤ 2k.

    Args:
        kl: KL(posterior ‖ prior) in nats, at least 0; ln M for one of M hypotheses under a uniform prior.
        n: Rows, at least 1.
        delta: Probability of failure, in (0, 1).

    Raises:
        ValueError: an argument out of its range.

    Example:
        >>> round(pac_bayes_slack(math.log(200), 100, 0.05), 4)
        0.0564

    Source: Maurer 2004, arXiv:cs/0411099, Theorem 5.
    """
    if kl < 0 or n < 1 or not 0 < delta < 1:
        raise ValueError(f"kl must be at least 0, n at least 1 and delta in (0, 1), got kl={kl}, n={n}, delta={delta}.")
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
    if error < 0 or not k > 0:
        raise ValueError(f"error must be at least 0 and k positive, got error={error}, k={k}.")
