"""The closed forms of first-order optimization against brute force, simulation and linear algebra."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from theorylab.learning.optimizers.accelerated import accelerated
from theorylab.learning.optimizers.ogm import ogm
from theorylab.models.objectives import huber, tridiagonal
from theorylab.theory import optimization as theory


def gd_on_huber(threshold: float, h: float, n: int) -> float:
    x = 1.0
    for _ in range(n):
        x -= h * max(-threshold, min(threshold, x))
    return x**2 / 2 if abs(x) <= threshold else threshold * abs(x) - threshold**2 / 2


@pytest.mark.parametrize("h", [0.2, 0.7, 1.0, 1.4, 1.9])
@pytest.mark.parametrize("n", [0, 1, 7, 40])
def test_gd_worst_case_is_the_maximum_over_huber_functions_and_the_parabola(h, n):
    worst = theory.gd_worst_threshold(n, step_ratio=h)
    others = [gd_on_huber(t, h, n) for t in np.linspace(0.2, 3, 201) * worst]
    parabola = (1 - h) ** (2 * n) / 2
    assert max(gd_on_huber(worst, h, n), parabola) == pytest.approx(theory.gd_worst_case(n, step_ratio=h), rel=1e-12)
    assert max(others) <= theory.gd_worst_case(n, step_ratio=h) * (1 + 1e-12)


@pytest.mark.parametrize(("h", "n"), [(0.7, 3), (1.3, 5), (1.0, 0), (1.0, 4000)])
def test_gd_worst_case_with_curvature_lies_between_parabolas_and_convex_functions(h, n):
    convex = theory.gd_worst_case(n, step_ratio=h)
    assert theory.gd_worst_case(n, step_ratio=h, curvature=1e-13) == pytest.approx(convex, rel=1e-8)
    for mu in (0.01, 0.3, 0.9):
        runs = [c / 2 * (1 - c * h) ** (2 * n) for c in np.linspace(mu, 1, 50)]
        assert max(runs) * (1 - 1e-12) <= theory.gd_worst_case(n, step_ratio=h, curvature=mu) <= convex


@pytest.mark.parametrize(("kappa", "h"), [(0.8, 1.25), (0.9, 1.5), (0.3, 0.5), (0.95, 1.9)])
@pytest.mark.parametrize("n", [0, 1, 2])
def test_gd_worst_case_with_curvature_is_the_formula_on_either_side_of_one(kappa: float, h: float, n: int) -> None:
    kept = (1 - kappa * h) ** (2 * n)
    first = kappa * kept / (1 - (1 - kappa) * kept)
    assert theory.gd_worst_case(n, step_ratio=h, curvature=kappa) == pytest.approx(max(first, (1 - h) ** (2 * n)) / 2, rel=1e-12)


def test_at_condition_one_a_step_ends_at_the_minimum() -> None:
    assert theory.gd_rate(1.0) == theory.polyak_rate(1.0) == 0.0
    assert theory.polyak_tuning(4.0, 4.0) == (0.25, 0.0)


@pytest.mark.parametrize("k", [1, 2, 7])
def test_the_span_bound_is_what_nesterovs_quadratic_leaves(k: int) -> None:
    """½xᵀAx − x₁, over 4, of 2k + 1 variables: the least over the first k, and the minimizer's norm at most 2(k + 1)/3 in square."""
    n = 2 * k + 1
    A = 2 * np.eye(n) - np.eye(n, k=1) - np.eye(n, k=-1)
    least = [-np.linalg.inv(A[:m, :m])[0, 0] / 8 for m in (k, n)]
    assert theory.span_lower_bound(k, radius=math.sqrt(2 * (k + 1) / 3)) == pytest.approx(least[0] - least[1], rel=1e-10)


def test_worst_cases_scale_with_their_units():
    assert theory.gd_worst_case(3, smoothness=5, radius=2) == pytest.approx(20 * theory.gd_worst_case(3))
    assert theory.ogm_worst_case(3, smoothness=5, radius=2) == pytest.approx(20 * theory.ogm_worst_case(3))
    assert theory.subgradient_worst_case(3, lipschitz=5, radius=2) == pytest.approx(10 * theory.subgradient_worst_case(3))
    assert theory.span_lower_bound(3, smoothness=5, radius=2) == pytest.approx(20 * theory.span_lower_bound(3))


@pytest.mark.parametrize("n", [1, 2, 9, 30])
def test_ogm_meets_its_worst_case_and_no_other_huber_function_exceeds_it(n):
    def final_gap(threshold: float) -> float:
        f, method = huber(threshold), ogm(lr=1.0, steps=n)
        y = {"y": torch.ones(1, dtype=torch.float64)}
        state = method.init(y)
        for _ in range(n):
            y, state = method.update({"y": f.gradient(y["y"])}, state, y)
        return float(f.gap(y["y"]))

    worst = 1 / theory.ogm_theta(n) ** 2
    assert final_gap(worst) == pytest.approx(theory.ogm_worst_case(n), rel=1e-10)
    assert max(final_gap(t * worst) for t in np.linspace(0.1, 4, 60)) <= theory.ogm_worst_case(n) * (1 + 1e-10)


def test_ogm_is_optimal_for_the_number_of_steps():
    # Drori 2017: no method has a smaller worst case, so gradient descent's and the lower bound bracket it
    for n in (1, 5, 50):
        assert theory.span_lower_bound(n) < theory.ogm_worst_case(n) < theory.gd_worst_case(n)
    assert theory.ogm_theta(1000) == pytest.approx(1000 / math.sqrt(2), rel=0.01)


def test_accelerated_keeps_nesterovs_guarantee():
    f = tridiagonal(61)
    method, params = accelerated(lr=1.0), {"x": torch.zeros(61, dtype=torch.float64)}
    state = method.init(params)
    radius = float(f.minimizer.norm())
    for k in range(1, 31):
        params, state = method.update({"x": f.gradient(params["x"])}, state, params)
        assert float(f.gap(state["x"]["x"])) <= 2 * radius**2 / (k + 1) ** 2


@pytest.mark.parametrize("kappa", [2.0, 10.0, 400.0])
def test_polyak_tuning_gives_all_eigenvalues_its_rate(kappa):
    step, beta = theory.polyak_tuning(1.0, 1 / kappa)
    for lam in np.linspace(1 / kappa, 1, 13):
        companion = np.array([[1 + beta - step * lam, -beta], [1, 0]])
        # at the two ends the eigenvalue is double, and rounding splits it by the root of the unit roundoff
        assert max(abs(np.linalg.eigvals(companion))) == pytest.approx(theory.polyak_rate(kappa), rel=1e-6)
    assert max(abs(1 - 2 / (1 + 1 / kappa) * lam) for lam in (1, 1 / kappa)) == pytest.approx(theory.gd_rate(kappa))


def test_lessard_cycle_solves_the_recursion_exactly():
    eta, beta = Fraction(1, 9), Fraction(4, 9)
    cycle = [Fraction(x).limit_denominator(1225) for x in theory.lessard_cycle()]
    assert [float(x) for x in cycle] == list(theory.lessard_cycle())

    def slope(x: Fraction) -> Fraction:
        return 25 * x if x < 1 else x + 24 if x < 2 else 25 * x - 24

    for t in range(3):
        before, now, after = (cycle[(t + i) % 3] for i in range(3))
        assert (1 + beta) * now - beta * before - eta * slope(now) == after


def test_pl_rates():
    assert theory.least_squares_rate(3.0, 1.0) == theory.pl_rate(3.0, 1.0) ** 2 == pytest.approx(4 / 9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: theory.gd_worst_case(-1), "steps"),
        (lambda: theory.gd_worst_case(3, step_ratio=2.0), "step_ratio"),
        (lambda: theory.gd_worst_case(3, curvature=1.0), "curvature"),
        (lambda: theory.hedge_regret_bound(-5, 10, lr=0.1), "rounds"),
        (lambda: theory.hedge_regret_bound(100, 0, lr=0.1), "experts"),
        (lambda: theory.gd_worst_case(3, radius=0), "radius"),
        (lambda: theory.subgradient_worst_case(-1), "steps"),
        (lambda: theory.ogm_theta(0), "steps"),
        (lambda: theory.nonconvex_gradient_bound(0, 1.0), "steps"),
        (lambda: theory.nonconvex_gradient_bound(3, -1.0), "gap"),
        (lambda: theory.span_lower_bound(0), "steps"),
        (lambda: theory.gd_rate(0.5), "condition"),
        (lambda: theory.polyak_rate(0.5), "condition.*got 0.5"),
        (lambda: theory.polyak_tuning(1.0, 2.0), "curvature must not exceed smoothness"),
        (lambda: theory.polyak_tuning(math.inf, 1.0), "smoothness must be positive and finite, got inf"),
        (lambda: theory.gd_rate(math.inf), "condition must be at least 1 and finite, got inf"),
        (lambda: theory.polyak_rate(math.inf), "condition must be at least 1 and finite, got inf"),
        (lambda: theory.gd_worst_case(2.5), "steps must be at least 0 and whole, got 2.5"),  # type: ignore[arg-type]
        (lambda: theory.pl_rate(1.0, 2.0), "curvature"),
        (lambda: ogm(lr=1.0, steps=0), "steps"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(("rounds", "experts"), [(10, 2), (1000, 10)])
def test_hedge_bound_is_smallest_at_its_step_and_no_sequence_of_a_small_game_exceeds_it(rounds, experts):
    step = theory.hedge_lr(rounds, experts)
    assert theory.hedge_regret_bound(rounds, experts) == pytest.approx(math.sqrt(rounds * math.log(experts) / 2))
    assert all(theory.hedge_regret_bound(rounds, experts, step * c) > theory.hedge_regret_bound(rounds, experts) for c in (0.9, 1.1))


def test_every_sequence_of_ten_rounds_keeps_hedge_within_its_bound():
    rounds, step = 10, theory.hedge_lr(10, 2)
    sequences = torch.cartesian_prod(
        *[torch.tensor([0.0, 1.0], dtype=torch.float64)] * rounds
    )  # expert 1's losses; expert 2 has 1 minus it
    paid, gap = torch.zeros(len(sequences), dtype=torch.float64), torch.zeros(len(sequences), dtype=torch.float64)
    for loss in sequences.T:
        weight = torch.sigmoid(-step * gap)  # of expert 1: gap is its total less the other's
        paid += weight * loss + (1 - weight) * (1 - loss)
        gap += 2 * loss - 1
    best = torch.minimum(sequences.sum(1), rounds - sequences.sum(1))
    regret = (paid - best).max()
    assert 0.5 * theory.hedge_regret_bound(rounds, 2) < float(regret) <= theory.hedge_regret_bound(rounds, 2)
