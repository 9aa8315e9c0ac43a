"""Edges of stability, against the iterations themselves on quadratics."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import brentq

from theorylab.theory.edges import adam_threshold, sam_threshold, stability_threshold


@pytest.mark.parametrize("method", ["polyak", "nesterov"])
@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9])
def test_edge_is_where_the_companion_matrix_leaves_the_unit_disc(method, beta):
    eta = 0.3

    def radius(lam: float) -> float:
        # the state (x, v) of v ← βv + λx, x ← x − ηv (Polyak) or x ← x − η(λx + βv) (Nesterov)
        step = np.array([[1 - eta * lam, -eta * beta], [lam, beta]])
        if method == "nesterov":
            step[0] = [1 - eta * lam * (1 + beta), -eta * beta**2]
        return max(abs(np.linalg.eigvals(step)))

    edge = stability_threshold(eta, beta, method=method)
    assert radius(0.999 * edge) < 1 < radius(1.001 * edge)


@pytest.mark.parametrize("beta1", [0.0, 0.5, 0.9])
def test_frozen_adam_converges_below_and_diverges_above(beta1: float) -> None:
    for factor, stable in ((0.99, True), (1.01, False)):
        step, x, m = 0.1, 1.0, 0.0
        curvature = factor * adam_threshold(step, beta1)
        for _ in range(4000):
            m = beta1 * m + (1 - beta1) * curvature * x
            x -= step * m
            if abs(x) > 1e6:
                break
        assert (abs(x) < 1e-3) is stable


@pytest.mark.parametrize(("step", "rho", "norm"), [(0.1, 0.1, 0.5), (0.3, 0.02, 2.0), (0.01, 1.0, 0.1)])
def test_sam_edge_is_the_root_of_its_equation(step: float, rho: float, norm: float) -> None:
    root = brentq(lambda c: step * (c + rho * c**2 / norm) - 2, 0, 4 / step, xtol=1e-14)
    assert sam_threshold(step, rho, norm) == pytest.approx(root, rel=1e-10)


@pytest.mark.parametrize("rho", [0.05, 0.5])
def test_sam_bounces_forever_where_the_curvature_is_at_its_edge(rho: float) -> None:
    """In one dimension with curvature λ the gradient norm is λ|x|: SAM from x lands at −x if and only if λ is the edge at that norm."""
    step, curvature = 0.2, 6.0
    size = brentq(lambda x: sam_threshold(step, rho, curvature * x) - curvature, 1e-6, 1e3)
    x = size
    for _ in range(5):
        x -= step * curvature * (x + rho * np.sign(x))
        assert abs(x) == pytest.approx(size, rel=1e-9)


def test_small_rho_loses_no_digits() -> None:
    assert sam_threshold(0.1, 1e-18, 1.0) == pytest.approx(20.0, rel=1e-15)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: stability_threshold(0.1, 0.9, method="adam"), "method"),
        (lambda: stability_threshold(0.0), "lr must be positive"),
        (lambda: adam_threshold(0.0), "lr must be positive"),
        (lambda: adam_threshold(0.1, 1.0), r"beta1 must lie in \[0, 1\)"),
        (lambda: sam_threshold(0.1, -1.0, 1.0), "rho must be at least 0"),
        (lambda: sam_threshold(0.1, 1.0, 0.0), "gradient_norm must be positive"),
    ],
)
def test_bad_input(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
