"""Closed-form bounds against searches, and what they refuse."""

from __future__ import annotations

import math

import pytest
from scipy.optimize import brentq, minimize_scalar

from theorylab.theory.generalization import best_lambda, lambda_bound, pac_bayes_slack, quadratic_bound, square_root_bound

CASES = [(0.0, 0.01), (0.05, 0.01), (0.3, 1e-4), (0.9, 0.5)]


@pytest.mark.parametrize(("e", "k"), CASES)
def test_the_best_lambda_is_the_stationary_point_and_the_quadratic_bound_its_value(e: float, k: float) -> None:
    found = minimize_scalar(lambda t: lambda_bound(e, k, t), bounds=(1e-6, 2 - 1e-6), method="bounded", options={"xatol": 1e-12})
    assert best_lambda(e, k) == pytest.approx(found.x, abs=1e-6)
    assert quadratic_bound(e, k) == pytest.approx(found.fun, rel=1e-12)
    assert lambda_bound(e, k, best_lambda(e, k)) == pytest.approx(quadratic_bound(e, k), rel=1e-12)
    assert lambda_bound(e, k, 1.5) > quadratic_bound(e, k)


@pytest.mark.parametrize(("e", "k"), CASES)
def test_each_form_solves_its_lower_bound_of_kl(e: float, k: float) -> None:
    """(p−e)²/(2p) = 2k and 2(p−e)² = 2k."""
    p = brentq(lambda p: (p - e) ** 2 / (2 * p) - 2 * k, e + 1e-12, 100)
    assert quadratic_bound(e, k) == pytest.approx(p, rel=1e-9)
    assert 2 * (square_root_bound(e, k) - e) ** 2 == pytest.approx(2 * k, rel=1e-9)


def test_arguments_out_of_range_are_refused() -> None:
    assert pac_bayes_slack(0.0, 1, 0.5) == pytest.approx(math.log(4) / 2)
    for args in ((-1.0, 10, 0.1), (1.0, 0, 0.1), (1.0, 10, 0.0)):
        with pytest.raises(ValueError, match="kl must be"):
            pac_bayes_slack(*args)
    with pytest.raises(ValueError, match="lam must"):
        lambda_bound(0.1, 0.1, 2.0)
    for function in (best_lambda, quadratic_bound, square_root_bound):
        with pytest.raises(ValueError, match="k positive"):
            function(0.1, 0.0)
