"""Flows, stationary variances and escape times against linear algebra, integration and the iterations themselves."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.linalg import solve_discrete_lyapunov

from theorylab.learning.flow import gradient_flow
from theorylab.theory import dynamics as theory


@pytest.mark.parametrize(("eta", "beta"), [(0.05, 0.0), (1.2, 0.0), (0.5, 0.5), (2.5, 0.9)])
def test_stationary_variance_solves_the_lyapunov_equation(eta, beta):
    lam, sigma = 1.3, 0.7
    companion = np.array([[1 + beta - eta * lam, -beta], [1, 0]])
    covariance = solve_discrete_lyapunov(companion, np.diag([(eta * sigma) ** 2, 0.0]))
    assert theory.sgd_stationary_variance(eta, lam, sigma, beta) == pytest.approx(covariance[0, 0], rel=1e-9)


def test_sde_variance_is_the_limit_of_small_steps():
    for beta in (0.0, 0.9):
        exact, limit = (f(1e-6, 1.3, 0.7, beta) for f in (theory.sgd_stationary_variance, theory.sde_stationary_variance))
        assert exact == pytest.approx(limit, rel=1e-5)
    assert theory.sgd_stationary_variance(1.2, 1.3, 0.7) / theory.sde_stationary_variance(1.2, 1.3, 0.7) == pytest.approx(2 / (2 - 1.56))


def test_modified_flow_orders_follow_from_the_expansion_of_one_step():
    # f = λx²/2: gradient descent multiplies by 1 − ηλ, the flow of f + cη f'² by exp(−ηλ(1 + 2cηλ))
    for c, order in ((0.25, 2), (0.0, 1), (0.5, 1)):
        errors = [abs((1 - e) ** round(1 / e) - math.exp(-(1 + 2 * c * e))) for e in (2**-8, 2**-9)]
        assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.02)
        assert theory.flow_error_order(c) == order


def test_gradient_flow_has_order_four():
    start, time = torch.tensor([2.0], dtype=torch.float64), 1.0  # x' = −x³ has the solution x₀/√(1 + 2tx₀²)
    errors = [abs(gradient_flow(lambda x: x**3, start, time, n).item() - 2 / 3) for n in (160, 320)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(4, abs=0.3)


@pytest.mark.parametrize(("lr", "curvature"), [(2.5, 0.25), (0.1, 15.0)])
def test_the_edge_is_of_the_product_of_step_and_curvature(lr: float, curvature: float) -> None:
    variance = lr / (curvature * (2 - lr * curvature))  # of x ← (1 − ηλ)x − ηξ: η²/(1 − (1 − ηλ)²)
    assert theory.sgd_stationary_variance(lr, curvature, 1.0) == pytest.approx(variance, rel=1e-12)
    with pytest.raises(ValueError, match="below 2"):
        theory.sgd_stationary_variance(lr, 2 / lr, 1.0)


def test_saddle_slope_counts_doublings():
    step, curvature = 0.5, -2.0  # the coordinate doubles at every step
    assert theory.saddle_escape_slope(step, curvature) == pytest.approx(1 / math.log(2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: theory.sgd_stationary_variance(2.0, 1.0, 1.0), "below 2"),
        (lambda: theory.sgd_stationary_variance(0.1, 1.0, 1.0, 1.0), "momentum"),
        (lambda: theory.sde_stationary_variance(-0.1, 1.0, 1.0), "lr must be positive"),
        (lambda: theory.saddle_escape_slope(0.1, 1.0), "curvature"),
        (lambda: theory.saddle_escape_slope(0.1, 0.0), "curvature must be negative"),
        (lambda: gradient_flow(lambda x: x, torch.ones(1), 1.0, 0), "steps"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
