"""Closed forms of attribution against refits, finite differences and enumeration of subsets."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.optimize import minimize

from theorylab.theory import influence as theory


def rows(n: int = 20, d: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, d)), rng.standard_normal(n)


@pytest.mark.parametrize("penalty", [0.0, 0.7, 30.0])
def test_ridge_without_a_row_is_the_refit(penalty: float) -> None:
    x, y = rows()

    def fit(kept: np.ndarray) -> np.ndarray:
        # least squares with the penalty as extra rows
        a = np.concatenate([x[kept], np.sqrt(penalty) * np.eye(3)])
        return np.linalg.lstsq(a, np.concatenate([y[kept], np.zeros(3)]), rcond=None)[0]

    every = np.arange(20)
    whole = fit(every)
    moved, residuals = theory.ridge_leave_one_out(x, y, penalty), theory.press_residuals(x, y, penalty)
    for i in every:
        without = fit(every[every != i])
        np.testing.assert_allclose(moved[i], without - whole, atol=1e-12)
        assert abs(residuals[i] - (y[i] - x[i] @ without)) < 1e-12
    h = theory.hat_values(x, penalty)
    assert (h > 0).all()
    assert h.sum() == pytest.approx(3 if penalty == 0 else sum(s / (s + penalty) for s in np.linalg.eigvalsh(x.T @ x)))


def optimum(x: np.ndarray, y: np.ndarray, decay: float, w: np.ndarray) -> np.ndarray:
    """By a general optimizer, polished by Newton steps written out."""

    def value(t: np.ndarray) -> float:
        return float(w @ np.logaddexp(0, -(2 * y - 1) * (x @ t))) / len(x) + decay / 2 * float(t @ t)

    theta = minimize(value, np.zeros(x.shape[1])).x
    for _ in range(5):
        p = 1 / (1 + np.exp(-x @ theta))
        gradient = x.T @ (w * (p - y)) / len(x) + decay * theta
        theta = theta - np.linalg.solve((x.T * (w * p * (1 - p))) @ x / len(x) + decay * np.eye(len(theta)), gradient)
    return theta


def test_the_logistic_derivative_is_the_finite_difference_of_refits() -> None:
    x, noise = rows(seed=1)
    y, decay = (noise > 0).astype(float), 0.1
    theta = optimum(x, y, decay, np.ones(20))
    slopes = theory.logistic_derivative(theta, x, y, decay)
    for i in range(4):
        up, down = (optimum(x, y, decay, np.ones(20) + s * 1e-4 * (np.arange(20) == i)) for s in (1, -1))
        np.testing.assert_allclose(slopes[i], (up - down) / 2e-4, rtol=1e-6, atol=1e-9)
    p = 1 / (1 + np.exp(-x @ theta))
    damped = (x.T * (p * (1 - p))) @ x / 20 + 0.2 * np.eye(3)  # 0.2 in place of the decay, not beside it
    expected = -((p - y)[:, None] * x) @ np.linalg.inv(damped) / 20
    np.testing.assert_allclose(theory.logistic_derivative(theta, x, y, decay, damping=0.2), expected, rtol=1e-10)


def test_the_newton_step_is_one_step_without_the_row() -> None:
    x, noise = rows(seed=2)
    y, decay = (noise > 0).astype(float), 0.1
    theta = optimum(x, y, decay, np.ones(20))
    p = 1 / (1 + np.exp(-x @ theta))
    for i, step in enumerate(theory.newton_leave_one_out(theta, x, y, decay)):
        w = (np.arange(20) != i).astype(float)
        gradient = x.T @ (w * (p - y)) / 20 + decay * theta
        hessian = (x.T * (w * p * (1 - p))) @ x / 20 + decay * np.eye(3)
        np.testing.assert_allclose(step, -np.linalg.solve(hessian, gradient), rtol=1e-9, atol=1e-12)


def game(n: int = 6, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(2**n)


def test_fourier_coefficients_by_definition_and_parseval() -> None:
    f = game()
    x = np.array([[m >> i & 1 for i in range(6)] for m in range(64)])
    by_definition = [np.mean(f * np.prod((-1.0) ** (x * s), axis=1)) for s in x]
    np.testing.assert_allclose(theory.fourier(f), by_definition, atol=1e-14)
    assert theory.fourier_weights(f).sum() == pytest.approx(np.mean(f**2))


def test_residual_and_slopes_are_those_of_least_squares_over_all_subsets() -> None:
    f = game()
    x = np.array([[1.0, *(m >> i & 1 for i in range(6))] for m in range(64)])
    solution, residual, *_ = np.linalg.lstsq(x, f, rcond=None)
    assert theory.datamodel_residual(f) == pytest.approx(residual[0] / 64, rel=1e-12)
    np.testing.assert_allclose(theory.datamodel_slopes(f), solution[1:], atol=1e-13)


@pytest.mark.parametrize("rho", [-0.5, 0.0, 0.3, 1.0])
def test_noise_stability_by_enumerating_pairs(rho: float) -> None:
    f, total = game(4), 0.0
    for a, b in itertools.product(range(16), repeat=2):
        flips = (a ^ b).bit_count()
        total += f[a] * f[b] * ((1 - rho) / 2) ** flips * ((1 + rho) / 2) ** (4 - flips) / 16
    assert theory.noise_stability(theory.fourier_weights(f), rho) == pytest.approx(total, abs=1e-14)


def test_bad_arguments_are_refused() -> None:
    x, y = rows()
    for call, message in (
        (lambda: theory.hat_values(x, -1.0), "penalty must be at least 0"),
        (lambda: theory.press_residuals(x, y[1:], 1.0), "x must be"),
        (lambda: theory.logistic_derivative(np.zeros(3), x, y, 0.0), "decay must be positive"),
        (lambda: theory.logistic_derivative(np.zeros(3), x, y, 0.1), "y must hold labels 0 and 1"),
        (lambda: theory.logistic_leverages(np.zeros(3), x, np.sign(y), 0.1), "y must hold labels 0 and 1"),
        (lambda: theory.newton_leave_one_out(np.zeros(3), x, (y > 0) * 2.0, 0.1), "y must hold labels 0 and 1"),
        (lambda: theory.newton_leave_one_out(np.zeros(3), x, y > 0, -0.1), "decay must be positive"),
        (lambda: theory.logistic_leverages(np.zeros(3), x, y > 0, 0.0), "decay must be positive"),
        (lambda: theory.logistic_leverages(np.zeros((3, 1)), x, y > 0, 0.1), r"theta must be \(d,\)"),
        (lambda: theory.logistic_derivative(np.zeros(3), x, y > 0, 0.1, damping=-0.1), "damping must be at least 0"),
        (lambda: theory.press_residuals(np.eye(2), np.ones(2), 0.0), "row 0 has leverage 1"),
        (lambda: theory.ridge_leave_one_out(np.array([[1.0, 0], [1, 0], [0, 3]]), np.ones(3), 0.0), "row 2 has leverage 1"),
        (lambda: theory.fourier(np.zeros(3)), r"2\^n entries"),
        (lambda: theory.noise_stability(np.ones(2), 2.0), "rho must lie"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_regression_scores_do_not_see_a_change_of_basis() -> None:
    rng = np.random.default_rng(4)
    features, targets, misses = rng.standard_normal((20, 5)), rng.standard_normal((3, 5)), rng.random(20)
    found = theory.regression_scores(features, targets, misses)
    explicit = np.diag(misses) @ features @ np.linalg.inv(features.T @ features) @ targets.T
    np.testing.assert_allclose(found, explicit, atol=1e-12)
    basis = rng.standard_normal((5, 5))
    np.testing.assert_allclose(theory.regression_scores(features @ basis, targets @ basis, misses), found, atol=1e-11)
    with pytest.raises(ValueError, match="full column rank"):
        theory.regression_scores(features[:4], targets, misses)
