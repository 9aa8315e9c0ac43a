"""Signal propagation in wide networks against adaptive quadrature, iteration of the maps, random layers and random products."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import erf

from theorylab.theory import signal as theory

FUNCTIONS: dict[str, tuple[Callable[[float], float], Callable[[float], float]]] = {
    "tanh": (math.tanh, lambda u: 1 / math.cosh(u) ** 2),
    "erf": (lambda u: float(erf(u)), lambda u: 2 / math.sqrt(math.pi) * math.exp(-u * u)),
    "relu": (lambda u: max(u, 0.0), lambda u: float(u > 0)),
}
PHASES = [("tanh", 1.3, 0.1), ("tanh", 3.0, 0.1), ("erf", 1.2, 0.2), ("erf", 2.5, 0.05), ("relu", 1.0, 0.5), ("relu", 1.7, 0.1)]


def gaussian(f: Callable[[float], float]) -> float:
    """E f(z) by adaptive quadrature, split at the kink of the ReLU."""
    density = [quad(lambda z: f(z) * math.exp(-z * z / 2), a, b, epsabs=1e-13, limit=300)[0] for a, b in ((-12, 0), (0, 12))]
    return sum(density) / math.sqrt(2 * math.pi)


@pytest.mark.parametrize(("name", "weight", "bias"), PHASES)
@pytest.mark.parametrize("q", [0.05, 0.7, 2.0, 20.0, 100.0])
def test_lengths_and_slopes_are_gaussian_expectations(name: str, weight: float, bias: float, q: float) -> None:
    value, slope = FUNCTIONS[name]
    expected = weight * gaussian(lambda z: value(math.sqrt(q) * z) ** 2) + bias
    assert theory.length_map(q, weight, bias, name) == pytest.approx(expected, abs=1e-9)
    expected = weight * gaussian(lambda z: slope(math.sqrt(q) * z) ** 2)
    assert theory.chi(q, weight, name) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("name", "weight", "bias"), PHASES)
def test_iterating_the_maps_from_anywhere_leads_to_the_fixed_points_at_the_rate_of_the_depth_scale(
    name: str, weight: float, bias: float
) -> None:
    fixed, end, scale = (f(weight, bias, name) for f in (theory.fixed_length, theory.fixed_correlation, theory.depth_scale))
    for q, c in ((0.3, 0.1), (2.0, 0.9)):
        lengths, correlations = theory.signal_path(300, weight, bias, name, q=q, c=c)
        assert lengths[-1] == pytest.approx(fixed, rel=1e-9)
        assert correlations[-1] == pytest.approx(end, abs=1e-9)
        far = [abs(value - end) for value in correlations]
        tail = [k for k in range(len(far) - 1) if 1e-7 < far[k] < 1e-4]
        rates = [-1 / math.log(far[k + 1] / far[k]) for k in tail]
        assert rates[-1] == pytest.approx(scale, rel=2e-3)


@pytest.mark.parametrize(("weight", "bias"), [(1.3, 0.1), (3.0, 0.1), (16.0, 0.09), (36.0, 0.1), (100.0, 0.1)])
def test_the_map_itself_approaches_its_end_at_the_rate_of_the_depth_scale(weight: float, bias: float) -> None:
    """Iterated by a dense trapezoid rule for tanh, whose poles come nearer as 1/√q: hence the step."""
    x = np.arange(-9, 9, 0.3 / max(1.0, math.sqrt(weight + bias)))
    p = np.exp(-x * x / 2) * (x[1] - x[0]) / math.sqrt(2 * math.pi)
    q, path = 1.0, [0.0, 0.6]
    for _ in range(200):
        q = weight * float(p @ np.tanh(math.sqrt(q) * x) ** 2) + bias
    while abs(path[-1] - path[-2]) > 1e-13:
        other = path[-1] * x[:, None] + math.sqrt(1 - min(path[-1], 1.0) ** 2) * x
        path.append((weight * float(p * np.tanh(math.sqrt(q) * x) @ np.tanh(math.sqrt(q) * other) @ p) + bias) / q)
    far = np.abs(np.array(path[:-1]) - path[-1])
    near = np.flatnonzero((far > 1e-8) & (far < 1e-4))[:-1]
    assert theory.fixed_length(weight, bias) == pytest.approx(q, rel=1e-10)
    assert -1 / np.log(far[near + 1] / far[near]) == pytest.approx(theory.depth_scale(weight, bias), rel=1e-3)


def test_correlations_are_the_means_over_random_layers() -> None:
    """One layer of a million units, on two inputs of squared lengths 0.8 and correlation 0.4."""
    random = np.random.default_rng(0)
    u, w = random.standard_normal((2, 1_000_000)) * math.sqrt(0.8)
    v = 0.4 * u + math.sqrt(1 - 0.4**2) * w
    for name, f in (("tanh", np.tanh), ("erf", erf), ("relu", lambda z: np.maximum(z, 0))):
        after = 1.4 * f(u) * f(v) + 0.2
        expected = theory.correlation_map(0.4, 0.8, 1.4, 0.2, name) * theory.length_map(0.8, 1.4, 0.2, name)
        assert abs(after.mean() - expected) < 4 * after.std() / 1000


@pytest.mark.parametrize("name", ["tanh", "erf"])
@pytest.mark.parametrize("bias", [0.02, 0.3, 10.0, 50.0])
def test_the_phase_boundary_separates_order_from_chaos(name: str, bias: float) -> None:
    critical = theory.critical_weight_variance(bias, name)
    q, slope = theory.fixed_length(critical, bias, name), FUNCTIONS[name][1]
    assert critical * gaussian(lambda z: slope(math.sqrt(q) * z) ** 2) == pytest.approx(1, abs=1e-9)
    assert theory.fixed_correlation(0.97 * critical, bias, name) == 1
    assert theory.fixed_correlation(1.1 * critical, bias, name) < 0.999
    assert theory.depth_scale(critical * (1 - 1e-4), bias, name) > 20 * theory.depth_scale(0.8 * critical, bias, name)


def test_boundaries_in_closed_form_and_without_biases() -> None:
    assert theory.critical_weight_variance(0.0, "erf") == pytest.approx(math.pi / 4)
    assert theory.fixed_length(0.9, 0.0, "tanh") == 0  # below the boundary every length shrinks to nothing
    assert theory.fixed_correlation(1.5, 0.0, "tanh") == 0  # an odd map keeps orthogonal inputs orthogonal
    assert theory.chi(1.0, 2.0, "relu") == 1


@pytest.mark.parametrize(("weight", "bias"), [(0.5, 1e-13), (0.5, 1e-300), (0.999, 1e-20), (1e-200, 1e-200)])
def test_biases_however_small_keep_lengths_from_vanishing(weight: float, bias: float) -> None:
    """There tanh is the identity, of which q* = σ_b²/(1 − σ_w²), and the depth scale −1/ln σ_w²."""
    assert theory.fixed_length(weight, bias) == pytest.approx(bias / (1 - weight), rel=1e-12)
    assert theory.depth_scale(weight, bias) == pytest.approx(-1 / math.log(weight), rel=1e-9)


def test_at_the_boundary_lengths_are_the_root_of_the_bias() -> None:
    """E tanh² = q − 2q² to third order, so that q* = σ_b/√2; the sixteenth digit of the map is 1e-16/4q* of the root."""
    assert theory.fixed_length(1.0, 1e-20) == pytest.approx(1e-10 / math.sqrt(2), rel=1e-5)


@pytest.mark.parametrize(("weight", "rel"), [(1.9999, 1e-4), (1.999999, 1e-6)])
def test_lengths_of_a_gelu_settle_where_those_of_a_relu_do(weight: float, rel: float) -> None:
    """2 E φ² = q − (3/√2 − 2√2/3)/(π√q) + ... far away."""
    gap, least = 1 - weight / 2, (3 / math.sqrt(2) - 2 * math.sqrt(2) / 3) / math.pi
    assert theory.fixed_length(weight, 1.0, "gelu") == pytest.approx((1 - least * gap**0.5) / gap, rel=rel)


def test_logarithms_of_singular_values_of_gaussian_products() -> None:
    """Their sum is that of the exponents at any depth, and each is its exponent's at great depth."""
    random, width, layers = np.random.default_rng(0), 4, 400
    exponents = np.array(theory.gaussian_product_exponents(width))
    found = []
    for _ in range(40):
        basis, total = np.eye(width), np.zeros(width)
        for _ in range(layers):  # by QR, for the product itself under- and overflows
            basis, r = np.linalg.qr(random.standard_normal((width, width)) / math.sqrt(width) @ basis)
            total += np.log(np.abs(np.diag(r)))
        found.append(total / layers)
    error = np.std(found, axis=0, ddof=1) / math.sqrt(len(found))
    assert np.all(np.abs(np.mean(found, axis=0) - exponents) < 4 * error + 2 / layers)
    dets = [np.linalg.slogdet(random.standard_normal((width, width)) / math.sqrt(width))[1] for _ in range(20_000)]
    assert abs(np.mean(dets) - exponents.sum()) < 4 * np.std(dets) / math.sqrt(len(dets))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: theory.length_map(-1.0, 1.0), "q must be"),
        (lambda: theory.correlation_map(0.5, 0.0, 1.0), "q must be positive where bias_variance is 0"),
        (lambda: theory.length_map(1.0, 0.0), "weight_variance must be positive"),
        (lambda: theory.length_map(1.0, 1.0, -0.1), "bias_variance must be"),
        (lambda: theory.length_map(1.0, 1.0, 0.0, "step"), "activation must be one of"),
        (lambda: theory.correlation_map(1.5, 1.0, 1.0), "c must lie"),
        (lambda: theory.chi(1.0, 1.0, c=2.0), "c must lie"),
        (lambda: theory.chi(1.0, 1.0, c=math.nan), "c must lie"),
        (lambda: theory.chi(1.0, 1.0, "relu", c=-3.0), "c must lie"),
        (lambda: theory.chi(1.0, math.inf), "weight_variance must be positive and finite"),
        (lambda: theory.critical_weight_variance(math.inf), "bias_variance must be at least 0 and finite"),
        (lambda: theory.fixed_length(2.0, 0.1, "relu"), "weight_variance must be below 2"),
        (lambda: theory.fixed_length(3.0, 0.1, "gelu"), "grow without bound"),
        (lambda: theory.fixed_length(1.0, 1e-30), "bias_variance must be 0, or about 1e-24 at least"),
        (lambda: theory.fixed_correlation(0.5, 0.0), "shrink to nothing"),
        (lambda: theory.critical_weight_variance(0.1, "gelu"), "activation must be"),
        (lambda: theory.critical_weight_variance(-0.1), "bias_variance must be"),
        (lambda: theory.signal_path(0, 1.0), "layers must be"),
        (lambda: theory.gaussian_product_exponents(0), "width must be"),
    ],
)
def test_wrong_input_is_refused(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
