"""Closed-form bounds against searches, exact risks against quadrature and simulation, and what they refuse."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.integrate import dblquad
from scipy.optimize import brentq, minimize_scalar
from scipy.stats import chi2

from theorylab.theory.generalization import (
    best_lambda,
    effective_ranks,
    implicit_ridge,
    isotropic_ridgeless_risk,
    lambda_bound,
    memorizing_weights,
    one_pass_error,
    pac_bayes_slack,
    quadratic_bound,
    ridgeless_risk,
    square_root_bound,
)

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
    for args, name in (
        ((-1.0, 10, 0.1), "kl"),
        ((math.nan, 10, 0.1), "kl"),
        ((1.0, 0, 0.1), "n"),
        ((1.0, math.nan, 0.1), "n"),
        ((1.0, 10, 0.0), "delta"),
        ((1.0, 10, math.nan), "delta"),
    ):
        with pytest.raises(ValueError, match=f"^{name}"):
            pac_bayes_slack(*args)
    for lam in (2.0, math.nan):
        with pytest.raises(ValueError, match="lam must"):
            lambda_bound(0.1, 0.1, lam)
    for function in (best_lambda, quadratic_bound, square_root_bound, lambda e, k: lambda_bound(e, k, 1.0)):
        for k in (0.0, math.nan):
            with pytest.raises(ValueError, match="k must be positive"):
                function(0.1, k)
        for error in (-0.1, math.nan):
            with pytest.raises(ValueError, match="error must be at least 0"):
                function(error, 0.1)


# ---- least squares of smallest norm ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [5, 8, 30])
def test_the_isotropic_risk_of_one_feature_or_one_row_is_a_mean_over_chi_squared(n: int) -> None:
    inverse = chi2(n).expect(lambda q: 1 / q)
    assert isotropic_ridgeless_risk(n, 1, noise=0.3) == pytest.approx(0.3 * inverse, rel=1e-6)
    # one row of n features: the part of β along it is found, up to the noise over the row's length
    assert isotropic_ridgeless_risk(1, n, signal=2.0, noise=0.3) == pytest.approx(2.0 * (1 - 1 / n) + 0.3 * inverse, rel=1e-6)


@pytest.mark.parametrize("n", [6, 9])
def test_the_isotropic_risk_of_two_features_is_an_integral_over_the_eigenvalues_of_a_wishart_matrix(n: int) -> None:
    def density(a: float, b: float) -> float:  # of eigenvalues a > b, up to a constant
        return (a * b) ** ((n - 3) / 2) * math.exp(-(a + b) / 2) * (a - b)

    total = dblquad(lambda b, a: density(a, b), 0, 80, 0, lambda a: a)[0]
    inverse = dblquad(lambda b, a: density(a, b) * (1 / a + 1 / b), 0, 80, 0, lambda a: a)[0] / total
    assert isotropic_ridgeless_risk(n, 2) == pytest.approx(inverse, rel=1e-6)
    assert isotropic_ridgeless_risk(2, n, signal=0.0) == pytest.approx(inverse, rel=1e-6)


def test_the_risk_explodes_at_the_threshold_and_is_the_limit_of_the_fixed_point_away_from_it() -> None:
    assert all(isotropic_ridgeless_risk(10, p) == math.inf for p in (9, 10, 11))
    for ratio in (0.4, 3.0):
        gaps = []
        for n in (100, 1000, 10_000):
            p = round(ratio * n)
            exact = isotropic_ridgeless_risk(n, p, signal=2.0, noise=0.5)
            gaps.append(abs(exact / ridgeless_risk(np.ones(p), np.full(p, (2.0 / p) ** 0.5), n, noise=0.5) - 1))
        assert gaps[0] < 0.02
        assert gaps[1] == pytest.approx(gaps[0] / 10, rel=0.1)  # the limit is off by order 1/n
        assert gaps[2] == pytest.approx(gaps[1] / 10, rel=0.1)


@pytest.mark.parametrize("p", [1, 3, 4, 5, 6, 7, 20])
def test_without_noise_the_risk_is_the_part_of_the_target_that_no_row_sees(p: int) -> None:
    """A uniformly drawn row space of dimension n = 5 holds n/p of |β|² on average, all of it where p ≤ n."""
    assert isotropic_ridgeless_risk(5, p, signal=2.0, noise=0.0) == pytest.approx(2.0 * max(0.0, 1 - 5 / p), abs=1e-15)


def test_a_spectrum_that_is_flat_up_to_rounding_has_the_ridge_of_a_flat_one() -> None:
    rng = np.random.default_rng(0)
    for p, n in ((3, 2), (20, 7), (1000, 999), (1000, 1)):
        for _ in range(20):
            lam = np.where(rng.random(p) < 0.5, 1.0, np.nextafter(1.0, 2.0))
            assert implicit_ridge(lam, n) == pytest.approx(p / n - 1, rel=1e-10)
            assert ridgeless_risk(lam, np.zeros(p), n, noise=1.0) == pytest.approx(ridgeless_risk(np.ones(p), np.zeros(p), n, noise=1.0))


def test_the_implicit_ridge_solves_its_equation() -> None:
    assert implicit_ridge([1.0, 2.0], 2) == implicit_ridge([1.0, 2.0], 5) == 0.0
    # two levels a, b of multiplicity k: k·a/(a+κ) + k·b/(b+κ) = n is a quadratic equation
    a, b, k, n = 3.0, 0.1, 40, 30
    roots = np.roots([n, (n - k) * (a + b), (n - 2 * k) * a * b])
    assert implicit_ridge([a] * k + [b] * k, n) == pytest.approx(float(roots.max()), rel=1e-12)
    rng = np.random.default_rng(0)
    for spread in (0.1, 1.0, 8.0):
        lam = np.exp(spread * rng.standard_normal(50))
        for rows in (1, 25, 49):
            kappa = implicit_ridge(lam, rows)
            assert float((lam / (lam + kappa)).sum()) == pytest.approx(rows, rel=1e-10)
            assert implicit_ridge(7 * lam, rows) == pytest.approx(7 * kappa, rel=1e-10)


@pytest.mark.parametrize(("n", "p", "power"), [(150, 400, 1.0), (150, 400, 2.0), (150, 60, 1.0)])
def test_the_fixed_point_is_the_mean_risk_of_pseudoinverses(n: int, p: int, power: float) -> None:
    """Mean over designs of what the noise costs, σ² tr(X⁺ᵀ Σ X⁺), and of what is missed, |Σ^½ (I − X⁺X) β|²."""
    rng = np.random.default_rng(1)
    lam, beta = np.arange(1.0, p + 1) ** -power, rng.standard_normal(p)
    costs, missed = [], []
    for _ in range(60):
        x = rng.standard_normal((n, p)) * lam**0.5
        inverse = np.linalg.pinv(x)
        costs.append(float((lam[:, None] * inverse**2).sum()))
        missed.append(float((lam * (beta - inverse @ (x @ beta)) ** 2).sum()))
    for samples, noise, target in ((costs, 1.0, 0.0), (missed, 0.0, 1.0)):
        error = 4 * float(np.std(samples)) / 60**0.5
        predicted = ridgeless_risk(lam, target * beta, n, noise=noise)
        assert abs(float(np.mean(samples)) - predicted) <= error + predicted * 3 / n + 1e-12  # a limit, off by order 1/n
        assert (predicted > 10 * error) or p < n  # so that the comparison says something


def test_effective_ranks_are_ordered_and_count_a_flat_tail() -> None:
    lam = np.random.default_rng(2).exponential(size=30)
    down = sorted(lam, reverse=True)
    for k in range(30):
        r, big = effective_ranks(lam, k)
        assert 1 - 1e-12 <= r <= big * (1 + 1e-12) <= r**2 * (1 + 2e-12)
        assert r == pytest.approx(sum(down[k:]) / down[k], rel=1e-12)
        assert big == pytest.approx(sum(down[k:]) ** 2 / sum(v * v for v in down[k:]), rel=1e-12)
    assert effective_ranks([9.0, 9.0, *[0.5] * 12], 2) == pytest.approx((12.0, 12.0))


def test_what_has_no_risk_is_refused() -> None:
    with pytest.raises(ValueError, match="n must be at least 1"):
        isotropic_ridgeless_risk(0, 3)
    for name in ("signal", "noise"):
        for value in (-1.0, math.nan):
            with pytest.raises(ValueError, match=f"{name} must be at least 0 and finite"):
                isotropic_ridgeless_risk(3, 9, **{name: value})
    with pytest.raises(ValueError, match="noise must be at least 0 and finite, got nan"):
        ridgeless_risk([1.0, 1.0], [1.0, 1.0], 1, noise=math.nan)
    with pytest.raises(ValueError, match="not be the number of eigenvalues"):
        ridgeless_risk([1.0, 1.0], [1.0, 1.0], 2, noise=1.0)
    with pytest.raises(ValueError, match="one an eigenvalue"):
        ridgeless_risk([1.0, 1.0], [1.0], 1, noise=1.0)
    for spectrum in ([], [1.0, 0.0], [1.0, math.inf], [[1.0]]):
        with pytest.raises(ValueError, match="vector of positive finite"):
            implicit_ridge(spectrum, 1)
    with pytest.raises(ValueError, match="k must lie in 0"):
        effective_ranks([1.0, 2.0], 2)


# ---- the negated noise -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("m", [4, 32])
def test_the_errors_of_one_pass_are_those_of_a_simulation(m: int) -> None:
    """Drawn from the laws of norms and inner products instead of vectors: given one vector, the other's part along it is normal."""
    d, draws, rng = 400, 200_000, np.random.default_rng(m)
    own = 32 / d * rng.chisquare(d, draws)  # squared norm of a row's noise
    others = 32 / d * (m - 1) * rng.chisquare(d, draws)  # of the sum of m − 1 independent noises
    along = np.sqrt(32 / d * others) * rng.standard_normal(draws)  # inner product of a row's noise with that sum
    negated = 4 - own - np.sqrt(own / 32) * along  # given the row, the sum's part along it scales with its length
    both = 32 / d * m * rng.chisquare(d, draws)
    new = 4 + np.sqrt(32 / d * both) * rng.standard_normal(draws)
    # the normal approximation of a sum over 400 coordinates, and four standard errors of 200,000 draws
    assert one_pass_error(d, m) == pytest.approx(float((new <= 0).mean()), abs=0.003 + 4 * 0.5 / draws**0.5)
    assert one_pass_error(d, m, negated=True) == pytest.approx(float((negated <= 0).mean()), abs=0.003 + 4 * 0.5 / draws**0.5)
    assert one_pass_error(10_000 * m, m) < 1e-30 < 1 - 1e-15 <= one_pass_error(10_000 * m, m, negated=True)
    with pytest.raises(ValueError, match="d must be at least 1"):
        one_pass_error(0, m)


# ---- memorization ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "d"), [(1, 3), (2, 1), (40, 5)])
def test_the_memorizing_network_solves_the_linear_system_of_its_units(n: int, d: int) -> None:
    rng = np.random.default_rng(n)
    x, y, a = rng.standard_normal((n, d)), rng.standard_normal(n), rng.standard_normal(d)
    b, w = memorizing_weights(x, y, a)
    hidden = np.maximum((x @ a)[:, None] - b, 0)
    assert hidden @ w == pytest.approx(y, abs=1e-9)
    assert np.linalg.matrix_rank(hidden) == n  # so that no other output weights fit, and none fewer would do
    order = np.argsort(x @ a)
    assert (np.triu(hidden[order], 1) == 0).all()
    assert (np.diag(hidden[order]) > 0).all()


def test_rows_that_cannot_be_told_apart_are_refused() -> None:
    with pytest.raises(ValueError, match="every row another projection"):
        memorizing_weights([[1.0, 0.0], [1.0, 5.0]], [0.0, 1.0], [1.0, 0.0])
    with pytest.raises(ValueError, match=r"x must be \(n, d\)"):
        memorizing_weights([[1.0, 0.0]], [0.0, 1.0], [1.0, 0.0])
