"""Closed forms of cooperative games against enumeration by definition."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from scipy.integrate import quad

from theorylab.theory import games, semivalues


def by_orders(v, n: int) -> np.ndarray:
    """Mean marginal contribution over all n! orders, of a function of a set."""
    total = np.zeros(n)
    for order in itertools.permutations(range(n)):
        for k, i in enumerate(order):
            total[i] += v(frozenset(order[: k + 1])) - v(frozenset(order[:k]))
    return total / math.factorial(n)


def by_weights(v, n: int, p: np.ndarray) -> np.ndarray:
    """Σ p_s (v(S ∪ i) − v(S)) over all coalitions of the others."""
    total = np.zeros(n)
    for i in range(n):
        others = [j for j in range(n) if j != i]
        for s in range(n):
            for S in itertools.combinations(others, s):
                total[i] += p[s] * (v(frozenset({*S, i})) - v(frozenset(S)))
    return total


def of_table(table: np.ndarray):
    return lambda S: table[sum(2**i for i in S)]


N = 6
RANDOM = np.random.default_rng(0).standard_normal(2**N)


def test_dividends_make_the_game_and_share_evenly() -> None:
    table = games.from_dividends(RANDOM)
    for index in (0, 5, 37, 63):
        assert table[index] == pytest.approx(sum(RANDOM[T] for T in range(64) if T & index == T))
    np.testing.assert_allclose(games.dividends_of(table), RANDOM, atol=1e-12)
    np.testing.assert_allclose(games.shapley_of_dividends(RANDOM), by_orders(of_table(table), N), atol=1e-12)
    for p in (0.5, 0.2):
        expected = by_weights(of_table(table), N, semivalues.banzhaf_weights(N, p))
        np.testing.assert_allclose(games.banzhaf_of_dividends(RANDOM, p), expected, atol=1e-12)


def test_fourier_is_the_sum_of_signs_and_gives_banzhaf() -> None:
    by_definition = [sum((-1) ** (S & T).bit_count() * RANDOM[S] for S in range(64)) / 64 for T in range(64)]
    np.testing.assert_allclose(games.fourier(RANDOM), by_definition, atol=1e-12)
    banzhaf = by_weights(of_table(RANDOM), N, semivalues.banzhaf_weights(N))
    np.testing.assert_allclose(-2 * games.fourier(RANDOM)[2 ** np.arange(N)], banzhaf, atol=1e-12)


def derivative(v, S: tuple[int, ...], T: frozenset[int]) -> float:
    """Discrete derivative of v in the directions S at T."""
    return sum((-1) ** (len(S) - r) * v(T | set(L)) for r in range(len(S) + 1) for L in itertools.combinations(S, r))


@pytest.mark.parametrize("coalition", [(0,), (1, 3), (0, 2, 5)])
def test_interaction_indices_by_discrete_derivatives(coalition: tuple[int, ...]) -> None:
    v, s = of_table(games.from_dividends(RANDOM)), len(coalition)
    others = [i for i in range(N) if i not in coalition]
    sets = [frozenset(T) for t in range(len(others) + 1) for T in itertools.combinations(others, t)]
    expected = {
        "sii": lambda t: math.factorial(N - t - s) * math.factorial(t) / math.factorial(N - s + 1),
        "banzhaf": lambda t: 0.5 ** (N - s),
        "stii": lambda t: s / N / math.comb(N - 1, t),
    }
    for index, weight in expected.items():
        total = sum(weight(len(T)) * derivative(v, coalition, T) for T in sets)
        assert games.interaction_of_dividends(RANDOM, coalition, index, order=s) == pytest.approx(total)
    assert games.interaction_of_dividends(RANDOM, coalition, "stii", order=s + 1) == pytest.approx(derivative(v, coalition, frozenset()))


def test_airport() -> None:
    costs = np.array([4.0, 1.0, 1.0, 9.0, 2.5])
    expected = by_orders(lambda S: max((costs[i] for i in S), default=0.0), 5)
    np.testing.assert_allclose(games.airport(costs), expected, atol=1e-12)


@pytest.mark.parametrize(("left", "right"), [(1, 1), (1, 2), (2, 2), (2, 4), (3, 1), (3, 4), (2, 5)])
def test_glove(left: int, right: int) -> None:
    values = by_orders(lambda S: min(sum(i < left for i in S), sum(i >= left for i in S)), left + right)
    np.testing.assert_allclose(games.glove(left, right), (values[0], values[-1]), atol=1e-12)


@pytest.mark.parametrize(("quota", "weights"), [(51, [50, 49, 1]), (8, [5, 4, 3, 2, 1, 0]), (4, [1, 1, 1, 1, 1, 1]), (2, [3, 1, 1])])
def test_weighted_voting(quota: int, weights: list[int]) -> None:
    n, v = len(weights), lambda S: float(sum(weights[i] for i in S) >= quota)
    np.testing.assert_allclose(games.weighted_voting(quota, weights), by_orders(v, n), atol=1e-12)
    banzhaf = by_weights(v, n, semivalues.banzhaf_weights(n))
    np.testing.assert_allclose(games.weighted_voting(quota, weights, "banzhaf"), banzhaf, atol=1e-12)
    with pytest.raises(ValueError, match="index"):
        games.weighted_voting(quota, weights, "owen")


def test_quadratic_game() -> None:
    random = np.random.default_rng(1)
    Q = random.standard_normal((N, N))
    table, values = games.quadratic_game(random.standard_normal(N), Q + Q.T)
    np.testing.assert_allclose(values, by_orders(of_table(table), N), atol=1e-12)
    np.testing.assert_allclose(values, by_weights(of_table(table), N, semivalues.banzhaf_weights(N)), atol=1e-12)
    assert np.abs(values - by_weights(of_table(table), N, semivalues.banzhaf_weights(N, 0.3))).max() > 0.1


@pytest.mark.parametrize("pairs", [np.array([[0.0, 4.0], [0.0, 0.0]]), np.zeros((3, 3)), np.zeros(2), np.full((2, 2), np.nan)])
def test_a_quadratic_game_needs_a_symmetric_matrix(pairs: np.ndarray) -> None:
    with pytest.raises(ValueError, match="pairs must be symmetric"):
        games.quadratic_game(np.ones(2), pairs)


def test_linear_model() -> None:
    random = np.random.default_rng(2)
    w, x, background = random.standard_normal(4), random.standard_normal(4), random.standard_normal((7, 4))
    worth = lambda S: np.mean([sum(w[i] * (x[i] if i in S else b[i]) for i in range(4)) for b in background])  # noqa: E731
    np.testing.assert_allclose(games.linear_model_values(w, x, background), by_orders(worth, 4), atol=1e-12)


def test_conditional_game_of_a_linear_model_is_the_mean_given_what_is_seen() -> None:
    random = np.random.default_rng(5)
    w, x, mean, root = random.standard_normal(3), random.standard_normal(3), random.standard_normal(3), random.standard_normal((3, 3))
    covariance = root @ root.T
    table = games.conditional_linear_game(w, x, mean, covariance)
    precision = np.linalg.inv(covariance)  # the mean given S, another way: minus the inverse of a block of the precision times another
    for S, inside in enumerate(games.membership(3)):
        expected, out = x.copy(), ~inside
        if out.any():
            expected[out] = mean[out] - np.linalg.inv(precision[np.ix_(out, out)]) @ precision[np.ix_(out, inside)] @ (x - mean)[inside]
        assert table[S] == pytest.approx(w @ expected)
    pair = games.conditional_linear_game(np.array([2.0, 3.0]), np.array([1.0, -1.0]), np.zeros(2), np.array([[1, 0.6], [0.6, 1]]))
    assert by_orders(of_table(pair), 2)[0] == pytest.approx(2.0 + 0.3 * (3.0 * 1.0 - 2.0 * -1.0))  # w₁x₁ + ρ/2 (w₂x₁ − w₁x₂)


@pytest.mark.parametrize("k", [1, 2, 3, 7, 20])
def test_knn(k: int) -> None:
    correct = np.random.default_rng(3).random(7) < 0.5
    worth = lambda S: sum(correct[i] for i in sorted(S)[:k]) / k  # noqa: E731
    np.testing.assert_allclose(games.knn_values(correct, k), by_orders(worth, 7), atol=1e-12)


@pytest.mark.parametrize(("alpha", "beta"), [(1, 1), (16, 1), (1, 4), (0.5, 2.5)])
def test_beta_weights_are_means_over_the_chance_of_taking_part(alpha: float, beta: float) -> None:
    n, ends = 9, {"weight": "alg", "wvar": (beta - 1, alpha - 1)}  # the density's own powers at 0 and 1
    whole = quad(lambda t: 1.0, 0, 1, **ends)[0]
    expected = [quad(lambda t, s=s: t**s * (1 - t) ** (n - 1 - s), 0, 1, **ends)[0] / whole for s in range(n)]
    np.testing.assert_allclose(semivalues.beta_weights(n, alpha, beta), expected, rtol=1e-6)


@pytest.mark.parametrize("p", [semivalues.shapley_weights(9), semivalues.banzhaf_weights(9, 0.3), semivalues.beta_weights(9, 4, 1)])
def test_weights_are_a_law_over_coalitions_and_none_is_steadier_than_banzhaf(p: np.ndarray) -> None:
    assert sum(math.comb(8, s) * w for s, w in enumerate(p)) == pytest.approx(1)
    assert semivalues.noise_variance(p) > semivalues.least_noise_variance(9)
    assert semivalues.noise_variance(semivalues.banzhaf_weights(9)) == pytest.approx(semivalues.least_noise_variance(9))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
def test_the_noise_of_one_size_is_counted_coalition_by_coalition(size: int) -> None:
    p = semivalues.beta_weights(6, 4, 1)
    signs = np.array([by_weights(of_table(row), 6, p) for row in np.eye(64)])  # (coalition, player)
    of_size = games.membership(6).sum(1) == size
    expected = (signs[of_size] ** 2).sum(0).mean()
    assert semivalues.noise_variance_at_size(p, size) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("n", [1, 2, 30, 1000, 1030, 1031, 1050, 3000])
def test_noise_variances_of_any_number_of_players_are_the_exact_fractions(n: int) -> None:
    """Shapley's weights are 1/(n C(n−1, s)), Banzhaf's 1/2^(n−1); gammaln of n = 3000 is 2e4, whose rounding is 1e-11 of a weight."""
    counts, close = [math.comb(n - 1, s) for s in range(n)], {"rel": 1e-10, "abs": 1e-320}  # below 1e-308 floats lose digits
    shapley, banzhaf = semivalues.shapley_weights(n), semivalues.banzhaf_weights(n)
    expected = 3 * sum(Fraction(2, n * n * count) for count in counts)
    assert semivalues.noise_variance(shapley, 3.0) == pytest.approx(float(expected), **close)
    least = float(3 * Fraction(2, 2 ** (n - 1)))
    assert semivalues.least_noise_variance(n, 3.0) == least
    assert semivalues.noise_variance(banzhaf, 3.0) == pytest.approx(least, **close)
    for size in {1, n // 2, n - 1} - {0, n}:
        expected = 3 * sum(Fraction(1, n * n * count) for count in counts[size - 1 : size + 1])
        assert semivalues.noise_variance_at_size(shapley, size, 3.0) == pytest.approx(float(expected), **close)
        expected = 3 * Fraction(counts[size - 1] + counts[size], 4 ** (n - 1))
        assert semivalues.noise_variance_at_size(banzhaf, size, 3.0) == pytest.approx(float(expected), **close)
    assert semivalues.noise_variance(banzhaf, 0.0) == semivalues.noise_variance(np.zeros(n)) == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: games.knn_values(np.array([True, False]), 0), "k must be at least 1"),
        (lambda: games.knn_values(np.array([True, False]), -2), "k must be at least 1"),
        (lambda: games.knn_values(np.zeros(0), 1), "at least one row"),
        (lambda: games.knn_values(np.array([0.5, 1.0]), 1), "true or false"),
        (lambda: games.airport(np.array([1.0, -2.0])), "costs must be at least 0 and finite, got -2"),
        (lambda: games.glove(0, 2), "left must be at least 1"),
        (lambda: games.weighted_voting(0, [1, 2]), "quota must be at least 1"),
        (lambda: games.weighted_voting(2, [1, -2]), r"weights\[1\] must be at least 0"),
        (lambda: games.interaction_of_dividends(RANDOM, [-1]), "coalition must name different players"),
        (lambda: games.interaction_of_dividends(RANDOM, [N]), "coalition must name different players"),
        (lambda: games.interaction_of_dividends(RANDOM, [1, 1]), "coalition must name different players"),
        (lambda: games.interaction_of_dividends(RANDOM, [1], "shapley"), "index must be"),
        (lambda: games.banzhaf_of_dividends(RANDOM, 1.5), "p must lie in"),
        (lambda: semivalues.banzhaf_weights(4, -0.5), "p must lie in"),
        (lambda: semivalues.beta_weights(4, -1, 1), "alpha must be positive"),
        (lambda: semivalues.beta_weights(4, 1, 0), "beta must be positive"),
        (lambda: semivalues.shapley_weights(0), "n must be at least 1"),
        (lambda: semivalues.noise_variance(np.ones(3), -1.0), "variance must be at least 0"),
        (lambda: semivalues.noise_variance_at_size(np.ones(4), 0), "size must be one of 1 ... 3"),
        (lambda: semivalues.noise_variance_at_size(np.ones(4), 4), "size must be one of 1 ... 3"),
    ],
)
def test_what_is_no_game_or_no_law_is_refused(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_noise_variance_by_simulation() -> None:
    random, p = np.random.default_rng(4), semivalues.shapley_weights(5)
    sizes = games.membership(5).sum(1)
    noise = random.standard_normal((4000, 32))
    signs = np.array([by_weights(of_table(row), 5, p) for row in np.eye(32)])  # (32, 5): the value of each unit of noise
    for size in (None, 2):
        values = (noise if size is None else np.where(sizes == size, noise, 0.0)) @ signs
        expected = semivalues.noise_variance(p) if size is None else semivalues.noise_variance_at_size(p, size)
        # a sample variance of 4000 normals has relative error √(2/4000) = 2.2 %; averaged over five players that share noise, 5 % is safe
        assert values.var(0).mean() == pytest.approx(expected, rel=0.05)
