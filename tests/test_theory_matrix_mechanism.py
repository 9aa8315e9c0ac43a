"""Factorizations of prefix sums: that they factor, what they cost by simulation, and that their asymptotics are met."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from theorylab.theory import matrix_mechanism as theory


@pytest.mark.parametrize("n", [1, 2, 17, 200])
def test_every_factorization_factors(n: int) -> None:
    A = np.tril(np.ones((n, n)))
    C = theory.sqrt_factor(n)
    pairs = [(C, C), *(theory.banded(n, b) for b in {1, min(3, n), n}), *(theory.power_split(n, p) for p in (0.0, 0.3, 0.5, 1.0))]
    for B, C in pairs:
        assert np.abs(B @ C - A).max() < 1e-12 * n
        assert not np.triu(B, 1).any()
        assert not np.triu(C, 1).any()
    assert theory.prefix_sums(n).tolist() == A.tolist()


def test_the_coefficients_are_central_binomials() -> None:
    expected = [math.comb(2 * k, k) / 4**k for k in range(60)]
    assert theory.power_coefficients(60) == pytest.approx(expected, rel=1e-14)
    inverse = np.linalg.inv(theory.sqrt_factor(12))
    assert theory.power_coefficients(12, -0.5) == pytest.approx(inverse[:, 0], abs=1e-14)


def test_a_band_has_its_diagonals_and_all_of_them_are_the_square_root() -> None:
    _, C = theory.banded(9, 3)
    assert np.count_nonzero(C) == 9 + 8 + 7
    B, C = theory.banded(9, 9)
    assert np.allclose(B, C)
    assert np.array_equal(C, theory.sqrt_factor(9))


def test_error_is_the_worst_standard_deviation_at_equal_sensitivity() -> None:
    """Releases A g + s B z with s the sensitivity, so that every mechanism protects one step's term alike."""
    n, draws = 20, 200_000
    B, C = theory.power_split(n, 0.4)
    noise = np.linalg.norm(C, axis=0).max() * B @ np.random.default_rng(0).standard_normal((n, draws))
    assert theory.error(B, C) == pytest.approx(noise.std(1).max(), rel=4 / math.sqrt(2 * draws) + 1e-3)
    assert theory.mean_error(B, C) == pytest.approx(math.sqrt((noise**2).mean()), rel=0.01)
    assert theory.mean_error(B, C) <= theory.error(B, C)


def test_the_sensitivity_in_an_error_is_that_of_a_column() -> None:
    """Of a triangular matrix that is not constant along its diagonals, whose rows have other norms than its columns."""
    C = np.array([[3.0, 0.0], [4.0, 1.0]])  # columns of norm 5 and 1, rows of norm 3 and √17
    B = np.array([[1.0, 0.0], [2.0, 2.0]])
    assert theory.error(B, C) == pytest.approx(math.sqrt(8) * 5, rel=1e-14)
    assert theory.mean_error(B, C) == pytest.approx(math.sqrt(9 / 2) * 5, rel=1e-14)


@pytest.mark.parametrize("n", [1, 5, 300])
def test_the_square_roots_error_in_closed_form(n: int) -> None:
    C = theory.sqrt_factor(n)
    assert theory.sqrt_error(n) == pytest.approx(theory.error(C, C), rel=1e-13)
    assert theory.independent_error(n) == pytest.approx(theory.error(theory.prefix_sums(n), np.eye(n)), rel=1e-13)


def test_the_asymptotic_errs_as_one_over_n() -> None:
    gaps = [theory.sqrt_error(n) - theory.sqrt_error_asymptotic(n) for n in (100, 1000, 10_000)]
    assert gaps[0] / gaps[1] == pytest.approx(10, rel=0.02)
    assert gaps[1] / gaps[2] == pytest.approx(10, rel=0.02)
    assert abs(gaps[1]) < 1e-4


@pytest.mark.parametrize(("C", "separation"), [(theory.banded(9, 3)[1], 2), (theory.sqrt_factor(9), 2), (theory.banded(9, 2)[1], 3)])
@pytest.mark.parametrize("visits", [1, 2, 3])
def test_sensitivity_is_the_worst_of_all_visits(C: np.ndarray, separation: int, visits: int) -> None:
    """Brute force over times and signs: u of norm 1 in the plane is not needed, as all inner products of columns are at least 0."""
    worst = 0.0
    for times in itertools.combinations(range(9), visits):
        if all(b - a >= separation for a, b in itertools.pairwise(times)):
            for signs in itertools.product((-1, 1), repeat=visits):
                worst = max(worst, float(np.linalg.norm(C[:, times] @ np.array(signs))))
    assert theory.sensitivity(C, visits, separation) == pytest.approx(worst, rel=1e-12)


def test_banded_visits_do_not_meet() -> None:
    B, C = theory.banded(30, 5)
    once = theory.sensitivity(C, 1, 30)
    assert theory.sensitivity(C, 4, 5) == pytest.approx(2 * once, rel=1e-12)
    full = theory.sqrt_factor(30)
    assert theory.sensitivity(full, 4, 5) > 2 * theory.sensitivity(full, 1, 30)
    assert theory.error(B, C) < theory.independent_error(30)


def test_noise_weights_turn_steps_into_sums() -> None:
    B, C = theory.banded(8, 3)
    assert theory.prefix_sums(8) @ theory.noise_weights(C) == pytest.approx(B, abs=1e-13)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: theory.sqrt_factor(0), "n must be at least 1 and whole, got 0"),
        (lambda: theory.sqrt_error(2.5), "n must be at least 1 and whole, got 2.5"),  # type: ignore[arg-type]
        (lambda: theory.banded(4, 5), r"bands must be a whole number in 1 \.\.\. n = 4, got 5"),
        (lambda: theory.banded(4, 0), "bands must be"),
        (lambda: theory.power_split(4, 1.5), r"power must lie in \[0, 1\]"),
        (lambda: theory.error(np.eye(3), np.eye(4)), r"B must be \(n, m\) and C \(m, n\), got shapes \(3, 3\) and \(4, 4\)"),
        (lambda: theory.sensitivity(-np.eye(3), 1, 1), "no negative entry"),
        (lambda: theory.sensitivity(np.eye(3), 0, 1), "at least 1"),
        (lambda: theory.sensitivity(np.diag([1.0, 2.0, 3.0]), 1, 1), "falling down every column and along every diagonal"),
        (lambda: theory.sensitivity(np.array([[1.0, 0.0], [2.0, 1.0]]), 2, 1), "falling down every column"),
        (lambda: theory.sensitivity(np.ones((2, 2)), 1, 1), "lower triangular"),
    ],
)
def test_wrong_input_is_refused(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
