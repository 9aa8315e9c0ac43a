"""The exact worst case of a first-order method over a class of functions, by performance estimation.

A method that moves along gradients, a class, a number of steps: the largest final error over *all* functions of the class and all
dimensions is the value of a semidefinite program whose unknowns are inner products of iterates and gradients and the function's values.
It is solved by PEPit (extra ``pep``). Where the value is known in closed form, that serves.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from theorylab.core.ranges import below_one, nonnegative, positive, whole
from theorylab.theory.optimization import (
    gd_worst_case,
    nonconvex_gradient_bound,
    ogm_worst_case,
    sgd_step_bound,
    subgradient_worst_case,
)

Method = Callable[[Callable[[Any], Any], Any, int], list[Any]]
"""``method(gradient, x0, steps)`` → iterates x_0, ..., x_n, made by sums and scalar multiples of points and gradients alone."""

FunctionClass = Literal["convex", "nonsmooth", "nonconvex", "pl", "finite_sum"]
MOST_ENDS = 32
"""Ends of stochastic runs that the program takes: it grows with the square of their number."""
SMALLEST = 1e-4
"""The smallest value of a program that is believed, in its units: the solver was seen to be off by 1e-8 to 8e-6 there."""


def gradient_descent(lr: float) -> Method:
    """Steps of a fixed size, x ← x − lr · ∇f(x); with a subgradient, the subgradient method.

    Raises:
        ValueError: ``lr`` is negative or not finite.

    Example:
        >>> gradient_descent(0.5)(lambda x: x, 1.0, 2)
        [1.0, 0.5, 0.25]
    """
    nonnegative(lr=lr)

    def run(gradient: Callable[[Any], Any], x: Any, steps: int) -> list[Any]:
        points = [x]
        for _ in range(steps):
            x = x - lr * gradient(x)
            points.append(x)
        return points

    return run


def heavy_ball(lr: float, momentum: float) -> Method:
    """Polyak's momentum: x_{t+1} = x_t − lr · ∇f(x_t) + momentum · (x_t − x_{t−1}), started at rest.

    Raises:
        ValueError: ``lr`` is negative or not finite, or ``momentum`` outside [0, 1).

    Example:
        >>> heavy_ball(0.5, 0.5)(lambda x: x, 1.0, 2)
        [1.0, 0.5, 0.0]
    """
    nonnegative(lr=lr)
    below_one(momentum=momentum)

    def run(gradient: Callable[[Any], Any], x: Any, steps: int) -> list[Any]:
        points, before = [x], x
        for _ in range(steps):
            x, before = x - lr * gradient(x) + momentum * (x - before), x
            points.append(x)
        return points

    return run


def _accelerated(smoothness: float, last: int) -> Method:
    positive(smoothness=smoothness)

    def run(gradient: Callable[[Any], Any], x: Any, steps: int) -> list[Any]:
        points, y, z, theta = [x], x, x, 1.0
        for i in range(steps):
            z_next = y - gradient(y) * (1 / smoothness)
            grown = (1 + math.sqrt(1 + (last if i == steps - 1 else 4) * theta**2)) / 2
            if last == 8:  # OGM: a second momentum term; the last point is y's
                y = z_next + (z_next - z) * ((theta - 1) / grown) + (z_next - y) * (theta / grown)
            else:
                y = z_next + (z_next - z) * ((theta - 1) / grown)
            z, theta = z_next, grown
            points.append(y if last == 8 else z)
        return points

    return run


def accelerated_gradient(smoothness: float) -> Method:
    """Nesterov's method of 1983 for smooth convex functions, with its sequence θ_{i+1} = (1 + √(1 + 4θ_i²))/2.

    Raises:
        ValueError: ``smoothness`` is not positive and finite.

    Example:
        >>> accelerated_gradient(2.0)(lambda x: x, 1.0, 1)
        [1.0, 0.5]
    """
    return _accelerated(smoothness, 4)


def optimized_gradient(smoothness: float) -> Method:
    """The optimized gradient method OGM1 of Kim and Fessler, with 8 in place of 4 in the last step.

    Raises:
        ValueError: ``smoothness`` is not positive and finite.

    Example:
        >>> optimized_gradient(2.0)(lambda x: x, 1.0, 1)
        [1.0, 0.25]
    """
    return _accelerated(smoothness, 8)


@dataclass(frozen=True)
class WorstCase:
    """The largest final error of a method over a class.

    Attributes:
        value: In the units of the class's criterion.
        by: How it was found.
    """

    value: float
    by: Literal["closed form", "performance estimation"]


def available() -> bool:
    """Whether PEPit is installed."""
    return importlib.util.find_spec("PEPit") is not None


NAMED = ("gradient_descent", "accelerated", "ogm", "subgradient", "sgd")


def worst_case(
    method: str | Method,
    function_class: FunctionClass,
    steps: int,
    *,
    lr: float | None = None,
    smoothness: float = 1.0,
    curvature: float = 0.0,
    lipschitz: float = 1.0,
    radius: float = 1.0,
    gap: float = 1.0,
    functions: int = 2,
    noise: float = 1.0,
    closed_form: bool | None = None,
) -> WorstCase:
    r"""The exact worst case of ``steps`` steps of a method over a class of functions.

    =============== ========================================================= ====================== =================================
    class           functions                                                 start                  criterion
    =============== ========================================================= ====================== =================================
    ``convex``      L-smooth and convex, μ-strongly where ``curvature`` > 0   ‖x_0 − x*‖ ≤ R         f(x_n) − f*
    ``nonsmooth``   convex and M-Lipschitz                                    ‖x_0 − x*‖ ≤ R         min_t f(x_t) − f*, t = 0...n
    ``nonconvex``   L-smooth                                                  f(x_0) − f(x_n) ≤ gap  min_t ‖∇f(x_t)‖², t = 0...n
    ``pl``          L-smooth, ½‖∇f‖² ≥ μ(f − f*)                              f(x_0) − f* ≤ gap      f(x_n) − f*
    ``finite_sum``  means of m L-smooth, μ-strongly convex functions with     ‖x_0 − x*‖ ≤ R         E‖x_n − x*‖², over which f_i each
                    mean ‖∇f_i(x*)‖² ≤ v²                                                            step of SGD draws
    =============== ========================================================= ====================== =================================

    The program for ``pl`` is a relaxation: its value bounds the worst case from above. The others are exact.

    Args:
        method: One of ``"gradient_descent"``, ``"accelerated"``, ``"ogm"``, ``"subgradient"``, or a `Method` of your own; for
            ``finite_sum`` it is ``"sgd"``, which draws with replacement.
        function_class: See the table.
        steps: n ≥ 1; the program has some n² unknowns: .1 s at n = 10, seconds at 30. For ``finite_sum`` mⁿ is to be at most 32.
        lr: η of ``"gradient_descent"`` and ``"sgd"`` (default 1/L) and ``"subgradient"`` (default R/(M√(n+1))).
        smoothness: L > 0.
        curvature: μ in [0, L) for ``convex`` and ``finite_sum``, in (0, L] for ``pl``; the other classes have none.
        lipschitz: M > 0.
        radius: R > 0.
        gap: > 0.
        functions: m ≥ 2 of ``finite_sum``.
        noise: v > 0 of ``finite_sum``.
        closed_form: True: from the formula, or an error where none is known; False: from the program; None: from the formula where
            one is known, else from the program.

    Raises:
        ValueError: an argument out of its range, an unknown method or class, a method that does not return the n + 1 iterates, or no
            formula where one was asked for.
        ModuleNotFoundError: PEPit is needed and not installed.
        RuntimeError: the solver did not come to a solution, or to one below 1e-4 in units of LR², MR, L·gap, gap or max(R, v/L)², which
            cannot be told from its error.

    Example:
        >>> worst_case("gradient_descent", "convex", 2)
        WorstCase(value=0.1, by='closed form')

    Source: Drori and Teboulle 2014, arXiv:1206.3209, Section 3 (performance estimation); Taylor, Hendrickx and Glineur 2017,
    arXiv:1502.05666, Theorem 4 (interpolation, which makes it exact); finite sums: Taylor and Bach 2019, arXiv:1902.00947; PEPit: Goujaud
    et al. 2024, arXiv:2201.04040.
    """
    whole(1, steps=steps)
    whole(2, functions=functions)
    positive(smoothness=smoothness, lipschitz=lipschitz, radius=radius, gap=gap, noise=noise)
    if not 0 <= curvature <= smoothness:
        raise ValueError(f"curvature must lie in [0, smoothness = {smoothness:g}], got {curvature}.")
    if function_class not in get_args(FunctionClass):
        raise ValueError(f"function_class must be one of {', '.join(get_args(FunctionClass))}, got {function_class!r}.")
    if function_class in ("convex", "finite_sum") and curvature == smoothness:
        raise ValueError(
            f"curvature must be below smoothness = {smoothness:g} for the class {function_class!r}, got {curvature}: of equal ones there "
            "is but the parabola, of which a gradient step with η = 1/L is the minimizer."
        )
    if function_class == "pl" and curvature == 0:
        raise ValueError("curvature must be positive for the class 'pl', got 0.")
    if isinstance(method, str) and method not in NAMED:
        raise ValueError(f"method must be one of {', '.join(NAMED)}, or a function (gradient, x0, steps) → iterates; got {method!r}.")
    if (method == "sgd") != (function_class == "finite_sum"):
        raise ValueError(f"method 'sgd' and function_class 'finite_sum' go together, got {method!r} and {function_class!r}.")
    if function_class == "finite_sum" and functions**steps > MOST_ENDS:
        raise ValueError(f"functions**steps must be at most {MOST_ENDS}, got {functions} functions and {steps} steps.")
    if lr is not None and not (0 < lr < math.inf and method in ("gradient_descent", "subgradient", "sgd")):
        raise ValueError(f"lr must be positive, and left out for methods that have their own; got {lr} for {method!r}.")
    if closed_form is not False:
        value = _formula(method, function_class, steps, lr, smoothness, curvature, lipschitz, radius, gap, noise)
        if value is not None:
            return WorstCase(value, "closed form")
        if closed_form:
            raise ValueError(f"no closed form is known here for {method!r} over the class {function_class!r}: leave closed_form out.")
    if not available():
        raise ModuleNotFoundError(
            f"the program of {method!r} over the class {function_class!r} needs PEPit: pip install 'theorylab[pep]'.", name="PEPit"
        )
    units = _units(function_class, smoothness, lipschitz, radius, gap, noise)
    ratio = curvature / smoothness
    if function_class == "finite_sum":
        step = 1.0 if lr is None else lr * smoothness
        value = _solve_sgd(steps, step, functions, ratio, radius / units.length, noise / (smoothness * units.length)) * units.length**2
    else:
        run = method if callable(method) else _named(method, steps, lr, smoothness, lipschitz, radius)
        value = _solve(run, function_class, steps, ratio, units)
    return WorstCase(value, "performance estimation")


def _named(method: str, steps: int, lr: float | None, smoothness: float, lipschitz: float, radius: float) -> Method:
    if method == "gradient_descent":
        return gradient_descent(1 / smoothness if lr is None else lr)
    if method == "subgradient":
        return gradient_descent(radius / (lipschitz * math.sqrt(steps + 1)) if lr is None else lr)
    return accelerated_gradient(smoothness) if method == "accelerated" else optimized_gradient(smoothness)


def _formula(
    method: str | Method,
    function_class: str,
    steps: int,
    lr: float | None,
    smoothness: float,
    curvature: float,
    lipschitz: float,
    radius: float,
    gap: float,
    noise: float,
) -> float | None:
    if (method, function_class) == ("gradient_descent", "convex"):
        ratio = 1.0 if lr is None else lr * smoothness
        scaled = {"step_ratio": ratio, "smoothness": smoothness, "curvature": curvature, "radius": radius}
        return gd_worst_case(steps, **scaled) if 0 < ratio < 2 else None
    if (method, function_class) == ("ogm", "convex") and curvature == 0:
        return ogm_worst_case(steps, smoothness=smoothness, radius=radius)
    if (method, function_class) == ("subgradient", "nonsmooth") and lr is None:
        return subgradient_worst_case(steps, lipschitz=lipschitz, radius=radius)
    if (method, function_class) == ("gradient_descent", "nonconvex") and lr in (None, 1 / smoothness):
        return nonconvex_gradient_bound(steps, gap, smoothness=smoothness)
    if method == "sgd" and steps == 1 and lr in (None, 1 / smoothness):
        return sgd_step_bound(smoothness=smoothness, curvature=curvature, radius=radius, noise=noise)
    return None


@dataclass(frozen=True)
class _Units:
    """Units in which a program is solved, as solvers are accurate to absolute amounts: L, and what bounds the start, are one there.

    The function is ``value`` times a function of the program, of points ``length`` times its points.
    """

    length: float
    value: float

    @property
    def gradient(self) -> float:
        return self.value / self.length


def _units(function_class: str, smoothness: float, lipschitz: float, radius: float, gap: float, noise: float) -> _Units:
    if function_class == "convex":
        return _Units(radius, smoothness * radius**2)
    if function_class == "nonsmooth":
        return _Units(radius, lipschitz * radius)
    if function_class == "finite_sum":
        longer = max(radius, noise / smoothness)
        return _Units(longer, smoothness * longer**2)
    return _Units(math.sqrt(gap / smoothness), gap)


def _solve(run: Method, function_class: str, steps: int, ratio: float, units: _Units) -> float:
    """The program of a method for the class with L = M = R = gap = 1 and μ = ``ratio``; the method sees the user's units."""
    import PEPit
    from PEPit import functions as classes

    program: Any = PEPit.PEP()  # its types do not know what its arithmetic makes
    if function_class == "convex":
        f = program.declare_function(classes.SmoothStronglyConvexFunction, L=1.0, mu=ratio)
    elif function_class == "nonsmooth":
        f = program.declare_function(classes.ConvexLipschitzFunction, M=1.0)
    elif function_class == "nonconvex":
        f = program.declare_function(classes.SmoothFunction, L=1.0)
    else:
        f = program.declare_function(classes.SmoothQuadraticLojasiewiczFunctionExpensive, L=1.0, mu=ratio)
    x0 = program.set_initial_point()
    best = None if function_class == "nonconvex" else f.stationary_point()
    known: dict[int, tuple[Any, Any, Any]] = {}  # one gradient a point, also where several are allowed; the point keeps its id its own

    def oracle(x: Any) -> tuple[Any, Any]:
        if id(x) not in known:
            known[id(x)] = x, *f.oracle(x * (1 / units.length))
        return known[id(x)][1:]

    points = run(lambda x: oracle(x)[0] * units.gradient, x0 * units.length, steps)
    if len(points) != steps + 1:
        raise ValueError(f"method must return the {steps + 1} iterates x_0, ..., x_n, got {len(points)}.")
    if function_class in ("convex", "nonsmooth"):
        program.set_initial_condition((x0 - best) ** 2 <= 1)
    elif function_class == "nonconvex":
        program.set_initial_condition(oracle(points[0])[1] - oracle(points[-1])[1] <= 1)
    else:
        program.set_initial_condition(oracle(points[0])[1] - f(best) <= 1)
    if function_class == "nonconvex":
        for x in points:
            program.set_performance_metric(oracle(x)[0] ** 2)
        return _value(program, steps, function_class) * units.gradient**2
    for x in points if function_class == "nonsmooth" else points[-1:]:
        program.set_performance_metric(oracle(x)[1] - f(best))
    return _value(program, steps, function_class) * units.value


def _solve_sgd(steps: int, lr: float, functions: int, ratio: float, radius: float, noise: float) -> float:
    """The program of SGD for L = 1."""
    import PEPit
    from PEPit.functions import SmoothStronglyConvexFunction

    program: Any = PEPit.PEP()
    parts: list[Any] = [program.declare_function(SmoothStronglyConvexFunction, L=1.0, mu=ratio) for _ in range(functions)]
    mean: Any = sum(parts[1:], parts[0]) / functions
    best = mean.stationary_point()
    x0 = program.set_initial_point()
    program.set_initial_condition((x0 - best) ** 2 <= radius**2)
    squares = [f.gradient(best) ** 2 for f in parts]
    program.add_constraint(sum(squares[1:], squares[0]) / functions <= noise**2)
    ends = [x0]
    for _ in range(steps):
        ends = [x - lr * f.gradient(x) for x in ends for f in parts]
    distances = [(x - best) ** 2 for x in ends]
    program.set_performance_metric(sum(distances[1:], distances[0]) / len(ends))
    return _value(program, steps, "finite_sum")


def _value(program: Any, steps: int, function_class: str) -> float:
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # solvers and PEPit warn of accuracy, for which there is `SMALLEST`
        value = program.solve(verbose=0, wrapper="cvxpy", solver="CLARABEL")
    if value is None or not math.isfinite(value):
        raise RuntimeError(f"the semidefinite program of {steps} steps over the class {function_class!r} was not solved (value {value}).")
    if value < SMALLEST:
        raise RuntimeError(
            f"the worst case of {steps} steps over the class {function_class!r} is {value:.1e} where smoothness and start are one, too "
            f"small to be told from the solver's error; take fewer steps, so that it is above {SMALLEST:g}."
        )
    return float(value)
