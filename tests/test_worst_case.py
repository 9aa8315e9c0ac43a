"""Worst cases by performance estimation: equal to the closed forms, above every run of the method, and reached by known functions."""

from __future__ import annotations

import importlib.util
import itertools
from typing import Any

import numpy as np
import pytest

from theorylab.theory import worst_case as module
from theorylab.theory.optimization import gd_worst_threshold
from theorylab.theory.worst_case import FunctionClass, gradient_descent, heavy_ball, optimized_gradient, worst_case

solved = pytest.mark.skipif(importlib.util.find_spec("PEPit") is None, reason="PEPit is not installed")


@solved
@pytest.mark.parametrize("steps", [1, 6])
@pytest.mark.parametrize(
    ("method", "function_class", "options"),
    [
        ("gradient_descent", "convex", {"smoothness": 3.0, "radius": 2.0}),
        ("gradient_descent", "convex", {"lr": 0.5}),
        ("gradient_descent", "convex", {"lr": 1.5}),
        ("gradient_descent", "convex", {"lr": 1.9}),
        ("gradient_descent", "convex", {"lr": 0.6, "curvature": 0.1, "smoothness": 2.0}),
        ("gradient_descent", "convex", {"lr": 1.7, "curvature": 0.7, "radius": 2.0}),
        ("ogm", "convex", {"smoothness": 2.0, "radius": 0.5}),
        ("subgradient", "nonsmooth", {"lipschitz": 2.0, "radius": 3.0}),
        ("gradient_descent", "nonconvex", {"gap": 2.0, "smoothness": 3.0}),
        ("gradient_descent", "convex", {"radius": 1e-3}),  # solvers are accurate to absolute amounts
        ("gradient_descent", "convex", {"smoothness": 1e4}),
        ("ogm", "convex", {"radius": 1e-3, "smoothness": 1e-2}),
        ("subgradient", "nonsmooth", {"lipschitz": 1e3, "radius": 1e-4}),
        ("gradient_descent", "nonconvex", {"gap": 1e-4, "smoothness": 1e3}),
    ],
)
def test_the_program_agrees_with_the_closed_form(method: str, function_class: FunctionClass, options: dict[str, float], steps: int) -> None:
    program = worst_case(method, function_class, steps, closed_form=False, **options)  # type: ignore[arg-type]
    formula = worst_case(method, function_class, steps, closed_form=True, **options)  # type: ignore[arg-type]
    assert (program.by, formula.by) == ("performance estimation", "closed form")
    assert program.value == pytest.approx(formula.value, rel=1e-6)


@solved
def test_strongly_convex_gradient_descent_is_worst_on_a_quadratic_or_a_huber_function() -> None:
    """With 1/L the worst of f_n − f* is attained in one dimension: never below a run on a quadratic of either curvature."""
    L, mu, steps = 1.0, 0.1, 4
    value = worst_case("gradient_descent", "convex", steps, smoothness=L, curvature=mu, closed_form=False).value
    runs = [c / 2 * (1 - c / L) ** (2 * steps) for c in np.linspace(mu, L, 50)]
    assert max(runs) <= value <= worst_case("gradient_descent", "convex", steps, smoothness=L, closed_form=True).value


@solved
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"curvature": 0.3},
        {"curvature": 0.2, "noise": 0.5, "radius": 2.0, "smoothness": 2.0},
        {"functions": 3},
        {"radius": 1e-3, "noise": 1e-3},
    ],
)
def test_a_step_of_sgd_is_at_worst_what_the_formula_says(options: dict[str, Any]) -> None:
    program = worst_case("sgd", "finite_sum", 1, closed_form=False, **options)
    assert program.value == pytest.approx(worst_case("sgd", "finite_sum", 1, closed_form=True, **options).value, rel=1e-6)


@solved
def test_no_run_of_sgd_ends_further_than_its_worst_case() -> None:
    """Three steps on two parabolas apart: all eight orders, over many pairs of curvatures and of gradients at the minimizer."""
    lr, mu, steps = 0.6, 0.2, 3
    value = worst_case("sgd", "finite_sum", steps, lr=lr, curvature=mu).value
    ends = []
    for a, b in itertools.product(np.linspace(mu, 1, 9), repeat=2):
        for push in (-1.0, 1.0):  # the gradients at 0, where the minimizer of the mean is
            points = np.array([1.0])
            for _ in range(steps):
                points = np.concatenate([points - lr * (a * points + push), points - lr * (b * points - push)])
            ends.append(float((points**2).mean()))
    assert 0.9 * value < max(ends) <= value * (1 + 1e-4)


@solved
def test_a_method_of_ones_own_and_no_run_beats_it() -> None:
    """Heavy ball on random convex quadratics and Huber functions ends below its worst case, the same function of points in both."""
    step, momentum, steps = 0.7, 0.4, 5
    method = heavy_ball(step, momentum)
    value = worst_case(method, "convex", steps).value
    rng = np.random.default_rng(0)
    ends = []
    for _ in range(200):
        curvatures, x0 = rng.uniform(0, 1, 4), rng.standard_normal(4)
        end = method(lambda x, c=curvatures: c * x, x0 / np.linalg.norm(x0), steps)[-1]
        ends.append(0.5 * (curvatures * end**2).sum())
    for tau in np.linspace(0.01, 1, 100):
        end = method(lambda x, tau=tau: np.clip(x, -tau, tau), np.array([1.0]), steps)[-1]
        ends.append(float(np.where(abs(end) <= tau, end**2 / 2, tau * abs(end) - tau**2 / 2)[0]))
    assert max(ends) <= value * (1 + 1e-4)
    assert max(ends) > 0.8 * value  # and a Huber function comes near


@solved
def test_the_units_of_a_function_are_not_seen_in_its_worst_case() -> None:
    """The class under μ of a method of one's own, and of SGD over several steps, scaled in place and value."""
    one = worst_case(heavy_ball(0.7, 0.4), "convex", 4, curvature=0.1).value
    scaled = worst_case(heavy_ball(0.7e-3, 0.4), "convex", 4, smoothness=1e3, curvature=100.0, radius=1e-2).value
    assert scaled == pytest.approx(one * 1e3 * 1e-4, rel=1e-6)
    one = worst_case("gradient_descent", "pl", 3, curvature=0.2).value
    scaled = worst_case("gradient_descent", "pl", 3, smoothness=1e3, curvature=200.0, gap=1e-3).value
    assert scaled == pytest.approx(one * 1e-3, rel=1e-6)
    one = worst_case("sgd", "finite_sum", 2, curvature=0.2, radius=1.0, noise=0.5, lr=0.6).value
    scaled = worst_case("sgd", "finite_sum", 2, smoothness=10.0, curvature=2.0, radius=1e-3, noise=5e-3, lr=0.06).value
    assert scaled == pytest.approx(one * 1e-6, rel=1e-6)


@solved
def test_a_value_that_the_solver_cannot_tell_from_its_error_is_refused() -> None:
    exact = worst_case("gradient_descent", "convex", 10, curvature=0.5)
    assert exact.by == "closed form"
    assert exact.value == pytest.approx(0.5 / 2 * 0.5**20, rel=1e-12)
    with pytest.raises(RuntimeError, match=r"too small to be told from the solver's error; take fewer steps"):
        worst_case("gradient_descent", "convex", 10, curvature=0.5, closed_form=False)


@solved
def test_the_pl_rate_bounds_the_program() -> None:
    value = worst_case("gradient_descent", "pl", 3, curvature=0.2).value
    assert (1 - 0.2) ** 6 <= value <= (1 - 0.2) ** 3  # a parabola of curvature μ is in the class


def test_the_named_methods_run_on_points_of_any_kind() -> None:
    steps, tau = 6, gd_worst_threshold(6)

    def huber(x: Any) -> Any:
        return np.clip(x, -tau, tau)

    end = gradient_descent(1.0)(huber, np.array([1.0]), steps)[-1]
    assert tau * abs(float(end[0])) - tau**2 / 2 == pytest.approx(worst_case("gradient_descent", "convex", steps, closed_form=True).value)
    assert len(optimized_gradient(1.0)(huber, np.array([1.0]), steps)) == steps + 1


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("gradient_descent", "convex", 0), {}, "steps must be at least 1"),
        (("gradient_descent", "convex", 2), {"smoothness": -1.0}, "smoothness must be positive"),
        (("gradient_descent", "convex", 2), {"curvature": 2.0}, "curvature must lie in"),
        (("gradient_descent", "convex", 2), {"curvature": 1.0}, "curvature must be below smoothness"),
        (("gradient_descent", "pl", 2), {}, "curvature must be positive for the class 'pl'"),
        (("gradient_descent", "concave", 2), {}, "function_class must be"),
        (("adam", "convex", 2), {}, "method must be one of gradient_descent"),
        (("sgd", "convex", 2), {}, "go together"),
        (("gradient_descent", "finite_sum", 2), {}, "go together"),
        (("sgd", "finite_sum", 9), {}, "functions\\*\\*steps must be at most 32"),
        (("sgd", "finite_sum", 1), {"noise": 0.0}, "noise must be positive"),
        (("ogm", "convex", 2), {"lr": 0.1}, "lr must be positive, and left out"),
        (("accelerated", "convex", 2), {"closed_form": True}, "no closed form is known"),
    ],
)
def test_bad_input(arguments: tuple, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        worst_case(*arguments, **options)


def test_without_pepit_closed_forms_serve_and_others_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "available", lambda: False)
    assert worst_case("gradient_descent", "convex", 2).by == "closed form"
    with pytest.raises(ModuleNotFoundError, match=r"theorylab\[pep\]"):
        worst_case("accelerated", "convex", 2)
    with pytest.raises(ModuleNotFoundError, match=r"theorylab\[pep\]"):
        worst_case("gradient_descent", "convex", 2, closed_form=False)
