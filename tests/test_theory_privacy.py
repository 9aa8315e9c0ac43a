"""Accountants against quadrature, enumeration, brute force over neighbours, and the numbers of dp-accounting 0.6.0."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from theorylab.core.privacy_ledger import PrivacyLedger
from theorylab.theory import amplification, gaussian_privacy, privacy, renyi_privacy
from theorylab.theory.loss_pairs import step_pairs
from theorylab.theory.privacy_loss import composed, on_grid

RUN = PrivacyLedger(q=0.01, sigma=4.0, steps=1000)
REPLACE = dataclasses.replace(RUN, adjacency="replace_one")
FIXED = dataclasses.replace(REPLACE, sampling="fixed_size")


def mixture(parts, sigma: float, x):
    return sum(weight * norm.pdf(x, mean, sigma) for weight, mean in parts)


def hockey_stick(upper, lower, sigma: float, epsilon: float) -> float:
    """∫ (P − e^ε Q)₊ on an even grid."""
    x = np.arange(-12 * sigma - 2, 12 * sigma + 2, sigma / 4000)
    return float(np.maximum(mixture(upper, sigma, x) - math.exp(epsilon) * mixture(lower, sigma, x), 0).sum() * sigma / 4000)


# --- one step ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epsilon", [-0.7, 0.0, 0.3, 1.0, 4.0])
@pytest.mark.parametrize("mu", [0.2, 1.0, 3.0])
def test_the_gaussian_curve_is_the_integral(mu: float, epsilon: float) -> None:
    assert gaussian_privacy.gaussian_delta(mu, epsilon) == pytest.approx(hockey_stick([(1, mu)], [(1, 0)], 1.0, epsilon), abs=1e-8)


def test_the_gaussian_curve_at_its_ends() -> None:
    assert gaussian_privacy.gaussian_delta(0.0, -0.7) == pytest.approx(1 - math.exp(-0.7), rel=1e-14)
    assert gaussian_privacy.gaussian_delta(0.0, 0.7) == 0.0
    for mu in (0.0, 1e-300, 1.0):
        assert gaussian_privacy.gaussian_delta(mu, math.inf) == 0.0
        assert gaussian_privacy.gaussian_delta(mu, -math.inf) == 1.0
    assert gaussian_privacy.gaussian_delta(1e-300, 1e300) == 0.0


@pytest.mark.parametrize("ledger", [RUN, REPLACE, FIXED, dataclasses.replace(RUN, q=1.0)], ids=["add", "replace", "fixed", "all"])
@pytest.mark.parametrize(("q", "sigma"), [(0.3, 0.8), (0.02, 2.0)])
def test_a_pairs_divergence_is_the_integral_and_its_loss_inverts(ledger: PrivacyLedger, q: float, sigma: float) -> None:
    ledger = dataclasses.replace(ledger, q=q if ledger.q < 1 else 1.0, sigma=sigma)
    for pair in step_pairs(ledger):
        for epsilon in (0.001, 0.1, 0.5, 2.0):
            assert pair.divergence(epsilon) == pytest.approx(hockey_stick(pair.upper, pair.lower, sigma, epsilon), abs=2e-8)
        x = np.linspace(-3 * sigma, 3 * sigma + 1, 50)
        assert pair.inverse(pair.loss(x)) == pytest.approx(x, abs=1e-9)
        ratio = np.log(mixture(pair.upper, sigma, x) / mixture(pair.lower, sigma, x))
        assert pair.loss(x) == pytest.approx(ratio, abs=1e-9)


def test_far_tails_of_a_loss_overflow_nothing() -> None:
    for ledger in (dataclasses.replace(RUN, sigma=0.03), dataclasses.replace(REPLACE, sigma=0.03)):
        for pair in step_pairs(ledger):
            epsilon = np.array([-2000.0, -1.0, 0.0, 1.0, 2000.0])
            assert np.all(np.diff(pair.inverse(epsilon)[np.isfinite(pair.inverse(epsilon))]) > 0)


def test_no_two_replaced_rows_are_easier_to_tell_apart_than_opposite_ones() -> None:
    """Brute force in the plane: gradients u and v of norm at most 1, one in the other's place, drawn with chance q."""
    q, sigma, h = 0.3, 0.7, 0.04
    grid = np.arange(-5, 5, h)
    x, y = np.meshgrid(grid, grid)

    def density(at) -> np.ndarray:
        def normal(a, b):
            return np.exp(-((x - a) ** 2 + (y - b) ** 2) / (2 * sigma**2)) / (2 * np.pi * sigma**2)

        return (1 - q) * normal(0, 0) + q * normal(*at)

    (pair,) = step_pairs(PrivacyLedger(q, sigma, 1, adjacency="replace_one"))
    for epsilon in (0.05, 0.3, 1.0):
        worst = pair.divergence(epsilon)
        for angle, radius in itertools.product(np.linspace(0, np.pi, 7), (0.5, 1.0)):
            v = (radius * math.cos(angle), radius * math.sin(angle))
            for p, r in ((density((1, 0)), density(v)), (density(v), density((1, 0)))):
                assert np.maximum(p - math.exp(epsilon) * r, 0).sum() * h * h <= worst + 1e-4


@pytest.mark.parametrize("epsilon", [0.01, 0.2, 1.0, 3.0])
def test_one_step_of_fixed_size_has_the_profile_of_the_theorem(epsilon: float) -> None:
    """Sampling without replacement: δ(ε) = q·δ'(ln(1 + (e^ε − 1)/q)), δ' of the unsampled step with sensitivity 2."""
    q, sigma = 0.1, 1.3
    expected = q * gaussian_privacy.gaussian_delta(2 / sigma, math.log1p(math.expm1(epsilon) / q))
    run = PrivacyLedger(q, sigma, 1, "fixed_size", "replace_one")
    assert privacy.delta(run, epsilon) == pytest.approx(expected, rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("ledger", [RUN, REPLACE, FIXED], ids=["add", "replace", "fixed"])
def test_the_grid_keeps_both_masses_and_lies_on_the_curve(ledger: PrivacyLedger) -> None:
    run = dataclasses.replace(ledger, q=0.2, sigma=1.5)
    for pair in step_pairs(run):
        losses = on_grid(pair, 1e-3)
        assert losses.mass.sum() + losses.infinite == pytest.approx(1, abs=1e-12)
        # what is missing of Q's mass is where P has none, below the least loss
        assert losses.mass @ np.exp(-losses.values) == pytest.approx(1, abs=1e-9)
        for k in (0, 37, 500):
            assert losses.delta(k * 1e-3) == pytest.approx(pair.divergence(k * 1e-3), abs=1e-12)
        assert losses.delta(0.5e-3) >= pair.divergence(0.5e-3)


# --- many steps -------------------------------------------------------------------------------------------------------------------------


def test_two_steps_are_the_integral_over_the_plane() -> None:
    q, sigma, epsilon = 0.3, 1.0, 0.4
    run = PrivacyLedger(q, sigma, 2)
    x = np.arange(-9, 10, 0.01)
    for losses, pair in zip(composed([run], cell=1e-3), step_pairs(run), strict=True):
        p, r = (np.outer(m, m) for m in (mixture(side, sigma, x) for side in (pair.upper, pair.lower)))
        assert losses.delta(epsilon) == pytest.approx(np.maximum(p - math.exp(epsilon) * r, 0).sum() * 1e-4, abs=2e-6)


@pytest.mark.parametrize(
    ("run", "delta", "theirs"),
    [
        (RUN, 1e-5, 0.2721364332),
        (RUN, 1e-9, 0.4353516620),
        (PrivacyLedger(0.1, 1.0, 100), 1e-5, 7.0466026818),
        (PrivacyLedger(256 / 60000, 1.1, 14062), 1e-5, 2.3815978089),
        (PrivacyLedger(0.01, 0.5, 1000), 1e-5, 13.3608244130),
        (PrivacyLedger(1.0, 50.0, 1000), 1e-5, 2.5943839953),
        (PrivacyLedger(1e-4, 0.6, 1000), 1e-5, 0.1132264465),  # a tail so heavy that the usual grid would be far too wide
        (REPLACE, 1e-5, 0.5613618176),
        (PrivacyLedger(0.1, 1.0, 100, adjacency="replace_one"), 1e-5, 10.5163802817),
    ],
)
def test_epsilon_is_that_of_dp_accounting(run: PrivacyLedger, delta: float, theirs: float) -> None:
    """dp-accounting 0.6.0, privacy_loss_distribution.from_gaussian_mechanism at a discretization of 1e-5 to 5e-5."""
    assert privacy.epsilon(run, delta) == pytest.approx(theirs, abs=5e-5)


@pytest.mark.parametrize("steps", [1, 3, 1000])
@pytest.mark.parametrize("adjacency", ["add_remove", "replace_one"])
def test_without_sampling_all_methods_know_the_exact_curve(steps: int, adjacency) -> None:
    run = PrivacyLedger(1.0, 20.0, steps, adjacency=adjacency)
    exact = gaussian_privacy.gaussian_epsilon(run.sensitivity * steps**0.5 / 20, 1e-6)
    assert privacy.epsilon(run, 1e-6, method="gaussian") == pytest.approx(exact, rel=1e-12)
    assert exact <= privacy.epsilon(run, 1e-6) <= exact + 5e-5
    assert exact <= privacy.epsilon(run, 1e-6, method="rdp") <= 1.2 * exact + 0.02


@pytest.mark.parametrize("run", [RUN, REPLACE, FIXED, PrivacyLedger(0.2, 0.7, 20)], ids=str)
def test_delta_and_epsilon_are_inverse(run: PrivacyLedger) -> None:
    for wanted in (1e-8, 1e-5, 1e-3):
        assert privacy.delta(run, privacy.epsilon(run, wanted)) == pytest.approx(wanted, rel=1e-6)


def test_rounding_brackets_and_connecting_lies_inside() -> None:
    up, connect, down = (max(x.epsilon(1e-5) for x in composed([RUN], 1e-5, r)) for r in ("up", "connect", "down"))
    assert down < connect < up
    assert up - down == pytest.approx(1000 * 1e-5, rel=0.2)  # half a cell a step, on either side


@pytest.mark.parametrize(("sigma", "steps"), [(1.0, 1000), (5.0, 1000), (1.0, 10_000), (50.0, 100_000)])
def test_rounding_never_brings_an_upper_bound_below_the_exact_value(sigma: float, steps: int) -> None:
    """Where δ is small the transform's rounding outweighs the grid's error, which is on the safe side."""
    mu = steps**0.5 / sigma
    (upper,) = composed([PrivacyLedger(1.0, sigma, steps)])
    (lower,) = composed([PrivacyLedger(1.0, sigma, steps)], upper.cell, "down")
    for delta in (1e-4, 1e-7, 1e-9, 1e-11):
        exact = gaussian_privacy.gaussian_epsilon(mu, delta)
        assert lower.delta(exact) <= gaussian_privacy.gaussian_delta(mu, exact) <= upper.delta(exact)


@pytest.mark.parametrize("delta", [1e-5, 1e-9, 1e-12])
def test_tilted_losses_keep_small_delta_over_many_steps(delta: float) -> None:
    """Untilted, the transform's rounding is 5e-12 after so many steps, above the smallest of these δ."""
    run = PrivacyLedger(1.0, 50.0, 100_000)
    exact = gaussian_privacy.gaussian_epsilon(100_000**0.5 / 50, delta)
    assert exact <= privacy.epsilon(run, delta) <= exact + 5e-4
    assert privacy.delta(run, exact) == pytest.approx(delta, rel=1e-2)
    (plain,) = composed([run])
    assert plain.epsilon(1e-12) > gaussian_privacy.gaussian_epsilon(100_000**0.5 / 50, 1e-12) + 1  # what tilting is for


@pytest.mark.parametrize(
    "run",
    [
        PrivacyLedger(1e-4, 0.3, 3000),  # rare rows under little noise: the best tilts of the two directions are far apart
        PrivacyLedger(0.01, 1.0, 3000),
        PrivacyLedger(0.01, 1.0, 3000, adjacency="replace_one"),
        PrivacyLedger(0.05, 2.0, 3000, "fixed_size", "replace_one"),
    ],
    ids=str,
)
def test_a_tilted_bound_lies_between_those_rounded_up_and_down(run: PrivacyLedger) -> None:
    for delta in (1e-6, 1e-13):
        up, connect, down = (max(x.epsilon(delta) for x in composed([run], 1e-4, r, delta=delta)) for r in ("up", "connect", "down"))
        assert down < connect < up
        assert privacy.epsilon(run, delta) == pytest.approx(connect, abs=5e-4)
        assert privacy.delta(run, privacy.epsilon(run, delta)) == pytest.approx(delta, rel=1e-4)


def test_a_tilt_changes_nothing_where_rounding_does_not_matter() -> None:
    for run in (RUN, REPLACE, FIXED):
        plain = max(losses.epsilon(1e-4) for losses in composed([run]))
        assert privacy.epsilon(run, 1e-4) == pytest.approx(plain, abs=1e-7)


def test_several_runs_compose() -> None:
    half = dataclasses.replace(RUN, steps=500)
    assert privacy.epsilon([half, half], 1e-5) == pytest.approx(privacy.epsilon(RUN, 1e-5), abs=5e-5)
    mixed = [PrivacyLedger(1.0, 30.0, 9), PrivacyLedger(1.0, 40.0, 16)]
    exact = gaussian_privacy.gaussian_epsilon(math.sqrt(9 / 30**2 + 16 / 40**2), 1e-5)
    assert privacy.epsilon(mixed, 1e-5, method="gaussian") == pytest.approx(exact, rel=1e-12)
    assert privacy.epsilon(mixed, 1e-5) == pytest.approx(exact, abs=5e-5)
    assert privacy.epsilon(mixed, 1e-5, method="rdp") >= exact


@pytest.mark.parametrize("method", ["pld", "rdp", "gaussian"])
def test_epsilon_grows_with_steps_and_rate_and_falls_with_noise_and_delta(method) -> None:
    def at(delta=1e-5, **changes) -> float:
        return privacy.epsilon(dataclasses.replace(RUN, **changes), delta, method=method)

    assert at(steps=100) < at() < at(steps=3000)
    assert at(sigma=5.0) < at() < at(sigma=3.0)
    assert at(delta=1e-4) < at() < at(delta=1e-6)
    if method != "gaussian":
        assert at(q=0.005) < at() < at(q=0.02)


@pytest.mark.parametrize("method", ["pld", "rdp", "gaussian"])
@pytest.mark.parametrize(
    ("run", "delta"),
    [
        (PrivacyLedger(0.001, 20.0, 1), 0.01),  # one popular accountant gives −4e-5 here, and another raises
        (PrivacyLedger(1e-9, 1.0, 1), 1e-5),
        (PrivacyLedger(0.5, 1e6, 10), 1e-3),
        (PrivacyLedger(0.01, 0.1, 50), 1e-5),
        (PrivacyLedger(1.0, 0.05, 2), 1e-5),
        (PrivacyLedger(0.2, 0.03, 2, adjacency="replace_one"), 1e-5),
        (PrivacyLedger(0.3, 1.0, 0), 1e-5),
        (PrivacyLedger(0.01, 1.0, 10**6), 1e-5),
    ],
    ids=str,
)
def test_epsilon_is_finite_and_never_negative(run: PrivacyLedger, delta: float, method) -> None:
    found = privacy.epsilon(run, delta, method=method)
    assert 0 <= found < math.inf
    assert 0 <= privacy.delta(run, found, method=method) <= delta * (1 + 1e-6)


def test_a_step_hardly_ever_taken_needs_no_epsilon_at_all() -> None:
    run = PrivacyLedger(0.001, 20.0, 1)
    assert privacy.epsilon(run, 0.01) == privacy.epsilon(run, 0.01, method="rdp") == 0.0


def test_shuffled_and_unknown_sampling_are_not_amplified() -> None:
    shuffled = dataclasses.replace(RUN, sampling="shuffled")  # ten epochs
    assert privacy.epsilon(shuffled, 1e-5) == pytest.approx(gaussian_privacy.gaussian_epsilon(10**0.5 / 4, 1e-5), abs=5e-5)
    unknown = dataclasses.replace(RUN, sampling="unamplified")
    assert privacy.epsilon(unknown, 1e-5, method="gaussian") == gaussian_privacy.gaussian_epsilon(1000**0.5 / 4, 1e-5)
    assert privacy.epsilon(RUN, 1e-5) < privacy.epsilon(shuffled, 1e-5) < privacy.epsilon(unknown, 1e-5)


# --- Rényi ------------------------------------------------------------------------------------------------------------------------------


def renyi(upper, lower, sigma: float, order: float) -> float:
    """By adaptive quadrature of the definition, in pieces around the bumps."""

    def integrand(x: float) -> float:
        p, q = mixture(upper, sigma, x), mixture(lower, sigma, x)
        return math.exp(order * math.log(p) + (1 - order) * math.log(q)) if min(p, q) > 0 else 0.0

    # where both densities are normal numbers; the tails beyond are below rounding at these orders
    pieces = np.linspace(-20 * sigma, 25 * sigma + 1, 46)
    total = sum(quad(integrand, a, b, epsabs=0, epsrel=1e-12)[0] for a, b in itertools.pairwise(pieces))
    return math.log(total) / (order - 1)


@pytest.mark.parametrize(("q", "sigma"), [(0.01, 2.0), (0.3, 1.5)])
@pytest.mark.parametrize("order", [1.3, 2.0, 5.7, 12.0])
def test_a_divergence_of_any_order_is_the_integral(q: float, sigma: float, order: float) -> None:
    mixed, plain, mirrored = [(1 - q, 0), (q, 1)], [(1, 0)], [(1 - q, 0), (q, -1)]
    found = renyi_privacy.sampled_rdp(q, sigma, order)
    assert found == pytest.approx(renyi(mixed, plain, sigma, order), rel=1e-7, abs=1e-13)
    assert found >= renyi(plain, mixed, sigma, order)  # the other direction is never larger
    assert renyi_privacy.sampled_rdp(q, sigma, order, "replace_one") == pytest.approx(renyi(mixed, mirrored, sigma, order), rel=1e-7)


@pytest.mark.parametrize(("q", "sigma"), [(0.01, 0.3), (0.01, 4.0), (0.4, 1.0), (1.0, 2.0)])
@pytest.mark.parametrize("order", [2, 3, 17, 256])
def test_at_whole_orders_the_sum_and_the_binomial_theorem_agree(q: float, sigma: float, order: int) -> None:
    whole = renyi_privacy.integer_order_rdp(q, sigma, order)
    assert renyi_privacy.sampled_rdp(q, sigma, float(order)) == pytest.approx(whole, rel=1e-9, abs=1e-14)


@pytest.mark.parametrize(
    ("q", "sigma", "order", "theirs"),
    [
        (0.05, 2.0, 10.5, 0.004286259936731029),
        (0.2, 1.5, 33.3, 5.740736691519),
    ],
)
def test_fractional_orders_are_those_of_dp_accounting(q: float, sigma: float, order: float, theirs: float) -> None:
    """dp-accounting 0.6.0, _compute_rdp_poisson_subsampled_gaussian. Its series is up to 4% above the integral at orders below 3."""
    assert renyi_privacy.sampled_rdp(q, sigma, order) == pytest.approx(theirs, rel=1e-9)


@pytest.mark.parametrize(("q", "sigma", "steps"), [(0.1, 1.0, 100), (0.02, 0.8, 3000), (0.1, 0.5, 1000)])
def test_the_orders_lose_less_than_a_thousandth(q: float, sigma: float, steps: int) -> None:
    """Against ten times as many, from ε = 8 to ε = 135; whole orders alone lose more."""

    def at(orders) -> float:
        return renyi_privacy.rdp_to_epsilon(steps * np.array([renyi_privacy.sampled_rdp(q, sigma, a) for a in orders]), 1e-5, orders)

    dense = at(np.concatenate([1 + np.geomspace(0.01, 1, 300), np.geomspace(2.01, 40, 300)]))
    ours = renyi_privacy.rdp_to_epsilon(steps * renyi_privacy.rdp_curve(q, sigma), 1e-5)
    assert dense * 0.999 < ours < dense * 1.001
    assert at(np.arange(2.0, 65)) > dense * 1.005


def test_under_little_noise_high_orders_are_left_out_and_cost_nothing() -> None:
    curve = renyi_privacy.rdp_curve(0.1, 0.05)
    assert np.isinf(curve[-1])
    assert np.isfinite(curve[:40]).all()
    assert int(np.argmin(np.where(np.isfinite(curve), curve, np.inf) + 11.5 / (np.array(renyi_privacy.ORDERS) - 1))) < 40


def test_the_conversion_is_the_tangent_of_the_best_order() -> None:
    """Against a dense minimum over the orders of the unsampled step, whose divergence is a line in the order."""
    divergence, delta = 0.02, 1e-6
    alpha = np.linspace(1.001, 400, 200_000)
    best = (alpha * divergence + np.log1p(-1 / alpha) - (math.log(delta) + np.log(alpha)) / (alpha - 1)).min()
    found = renyi_privacy.rdp_to_epsilon(divergence * np.array(renyi_privacy.ORDERS), delta)
    assert best <= found <= best * 1.001


@pytest.mark.parametrize("delta", [1e-6, 1e-3])
def test_no_loss_is_left_where_the_total_variation_is_below_delta(delta: float) -> None:
    """By the inequality of Bretagnolle and Huber at the least divergence; the conversion alone would leave some."""
    within, beyond = (-math.log1p(-((delta * near) ** 2)) * np.ones(2) for near in (0.999, 1.001))
    orders = np.array([1.5, 3.0])
    assert renyi_privacy.rdp_to_epsilon(within, delta, orders) == 0.0
    assert renyi_privacy.rdp_to_epsilon(beyond, delta, orders) > 0.1
    assert renyi_privacy.rdp_to_delta(within, 0.0, orders) == pytest.approx(0.999 * delta, rel=1e-6)


def test_replacement_without_sampling_is_a_shift_of_two() -> None:
    """Its divergence is α·2²/2σ², of whatever order and by either way; here against the integral over two normals."""
    curve = renyi_privacy.rdp_curve(1.0, 3.0, "replace_one")
    for order, found in zip(renyi_privacy.ORDERS[5:60:18], curve[5:60:18], strict=True):
        assert found == pytest.approx(renyi([(1, 2)], [(1, 0)], 3.0, order), rel=1e-7)
        assert renyi_privacy.sampled_rdp(1.0, 3.0, order, "replace_one") == found


# --- pure privacy -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 1.0, 40.0, 5000.0])
@pytest.mark.parametrize("q", [1e-6, 0.1, 1.0])
def test_amplification_lies_between_nothing_and_the_whole(epsilon: float, q: float) -> None:
    found = amplification.amplified_epsilon(epsilon, q)
    assert 0 <= found <= epsilon * (1 + 1e-15)
    if epsilon < 700:
        assert math.expm1(found) == pytest.approx(q * math.expm1(epsilon), rel=1e-9)


def test_an_attacks_rates_stay_below_their_bounds_and_randomized_response_reaches_them() -> None:
    epsilon = 1.0
    honest = math.exp(epsilon) / (1 + math.exp(epsilon))
    assert amplification.membership_accuracy_bound(epsilon) == pytest.approx(honest)
    assert amplification.true_positive_rate_bound(epsilon, 0.0, 1 - honest) == pytest.approx(honest)
    assert amplification.true_positive_rate_bound(0.0, 0.0, 0.2) == 0.2
    for fpr in (0.01, 0.3, 0.9):  # the Gaussian test is below its own (ε, δ) line, and touches it somewhere
        mu = 1.5
        power = gaussian_privacy.gaussian_trade_off(mu, fpr)
        bounds = [amplification.true_positive_rate_bound(e, gaussian_privacy.gaussian_delta(mu, e), fpr) for e in np.linspace(0, 12, 2000)]
        assert power <= min(bounds) + 1e-12
        assert min(bounds) == pytest.approx(power, abs=1e-4)


# --- calibration and the path -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["pld", "rdp", "gaussian"])
@pytest.mark.parametrize(("q", "steps", "epsilon"), [(0.01, 1000, 1.0), (0.2, 50, 8.0), (1.0, 1, 0.1)])
def test_calibrated_noise_is_enough_and_hardly_more(method, q: float, steps: int, epsilon: float) -> None:
    sigma = privacy.calibrate(epsilon, 1e-5, q, steps, method=method)
    assert privacy.epsilon(PrivacyLedger(q, sigma, steps), 1e-5, method=method) <= epsilon
    assert privacy.epsilon(PrivacyLedger(q, sigma * 0.9998, steps), 1e-5, method=method) > epsilon


def test_calibration_for_replacement_and_fixed_size_needs_more_noise() -> None:
    add, replace, fixed = (
        privacy.calibrate(2.0, 1e-5, 0.05, 100, adjacency=a, sampling=s)
        for a, s in (("add_remove", "poisson"), ("replace_one", "poisson"), ("replace_one", "fixed_size"))
    )
    assert add < replace < fixed


def test_where_delta_alone_covers_the_sampling_hardly_any_noise_is_needed() -> None:
    assert privacy.calibrate(1.0, 0.5, 0.01, 10) < 0.1


def test_a_path_ends_where_the_run_ends_and_is_drawn() -> None:
    from matplotlib.figure import Figure

    path = privacy.epsilon_path(RUN, 1e-5, methods=("pld", "gaussian"), points=4)
    assert path.steps.tolist() == [1, 334, 667, 1000]
    assert path.epsilon["pld"][-1] == privacy.epsilon(RUN, 1e-5)
    assert all(np.all(np.diff(values) > 0) for values in path.epsilon.values())
    ax = path.plot(Figure().subplots())
    assert [line.get_label() for line in ax.get_lines()] == ["pld", "gaussian"]
    assert "1e-05" in ax.get_ylabel()


# --- refusals ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: privacy.epsilon(RUN, 0.0), r"delta must lie in \(0, 1\), got 0.0"),
        (lambda: privacy.epsilon(RUN, 1.0), r"delta must lie in \(0, 1\)"),
        (lambda: privacy.epsilon(RUN, math.nan), r"delta must lie in \(0, 1\)"),
        (lambda: privacy.epsilon(RUN, 1e-30), 'delta must be above 3e-19 for method="pld"'),
        (lambda: privacy.epsilon(RUN, 1e-5, method="clt"), "a central limit theorem gives no bound"),  # type: ignore[arg-type]
        (lambda: privacy.epsilon(dataclasses.replace(RUN, sigma=0.0), 1e-5), "sigma must be positive for a guarantee"),
        (lambda: privacy.epsilon(FIXED, 1e-5, method="rdp"), "batches of fixed size"),
        (lambda: privacy.epsilon([RUN, REPLACE], 1e-5), "one adjacency"),
        (lambda: privacy.delta(RUN, -0.1), "epsilon must be finite and not negative"),
        (lambda: privacy.delta(RUN, math.inf), "epsilon must be finite"),
        (lambda: privacy.calibrate(0.0, 1e-5, 0.1, 10), "epsilon must be positive"),
        (lambda: privacy.calibrate(1.0, 1e-5, 0.0, 10), r"q must lie in \(0, 1\]"),
        (lambda: privacy.calibrate(1.0, 2.0, 0.1, 10), r"delta must lie in \(0, 1\)"),
        (lambda: privacy.calibrate(1.0, 1e-5, 0.1, 0), "steps must be at least 1"),
        (lambda: privacy.epsilon_path(RUN, 1e-5, points=1), "2 points"),
        (lambda: renyi_privacy.sampled_rdp(0.1, 1.0, 1.0), "order must be above 1"),
        (lambda: renyi_privacy.sampled_rdp(0.1, 0.0, 2.0), "sigma must be positive"),
        (lambda: renyi_privacy.integer_order_rdp(0.1, 1.0, 2.5), "whole number"),
        (lambda: renyi_privacy.rdp_to_epsilon(np.ones(3), 1e-5), "one for each finite order"),
        (lambda: renyi_privacy.integer_order_rdp(0.1, 1.0, math.inf), "whole number"),  # type: ignore[arg-type]
        (lambda: renyi_privacy.sampled_rdp(0.1, 1.0, 2.0, "replace"), "adjacency must be one of add_remove, replace_one, got 'replace'"),  # type: ignore[arg-type]
        (lambda: renyi_privacy.rdp_curve(1.0, 1.0, "remove"), "adjacency must be one of"),  # type: ignore[arg-type]
        (lambda: renyi_privacy.rdp_to_epsilon(np.array([math.nan, 1.0]), 1e-5, np.array([2.0, 3.0])), "not be negative or NaN, got nan"),
        (lambda: renyi_privacy.rdp_to_epsilon(np.array([-1.0, 1.0]), 1e-5, np.array([2.0, 3.0])), "not be negative or NaN, got -1"),
        (lambda: renyi_privacy.rdp_to_delta(np.array([math.nan, 1.0]), 1.0, np.array([2.0, 3.0])), "not be negative or NaN, got nan"),
        (lambda: renyi_privacy.rdp_to_delta(np.ones(3), 1.0), "one for each finite order"),
        (lambda: renyi_privacy.rdp_to_delta(np.ones(1), 1.0, np.array([1.0])), "order above 1"),
        (lambda: renyi_privacy.rdp_to_delta(np.ones(1), -1.0, np.array([2.0])), "epsilon must be at least 0"),
        (lambda: gaussian_privacy.gaussian_epsilon(1.0, 0.0), r"delta must lie in \(0, 1\)"),
        (lambda: gaussian_privacy.gaussian_delta(-1.0, 1.0), "mu must be finite"),
        (lambda: gaussian_privacy.clt_mu(0.0, 1.0, 10), r"q must lie in \(0, 1\]"),
        (lambda: amplification.amplified_epsilon(-1.0, 0.5), "not negative"),
        (lambda: amplification.true_positive_rate_bound(1.0, 2.0, 0.5), r"lie in \[0, 1\]"),
    ],
)
def test_wrong_input_is_refused(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_something_else_than_a_ledger_is_refused() -> None:
    with pytest.raises(TypeError, match="must be a PrivacyLedger"):
        privacy.epsilon([0.1], 1e-5)  # type: ignore[list-item]
