"""Potentials of mirror descent against quadrature, differences and a general solver; the projection against its own optimality."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.optimize import minimize

from theorylab.theory import mirror as theory

POTENTIALS = {
    "entropy": (theory.entropy(), True),
    "hyperbolic, small": (theory.hyperbolic_entropy(0.03), False),
    "hyperbolic": (theory.hyperbolic_entropy(1.0), False),
    "hyperbolic, large": (theory.hyperbolic_entropy(10.0), False),
}
every_potential = pytest.mark.parametrize("name", POTENTIALS)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inside(name: str, *shape: int, seed: int = 0) -> torch.Tensor:
    """A point of the domain."""
    w = normal(*shape, seed=seed)
    return w.abs() + 0.05 if POTENTIALS[name][1] else w


@every_potential
def test_the_mirror_map_is_the_gradient_of_the_value(name):
    potential, w = POTENTIALS[name][0], inside(name, 4, 7)
    h = 1e-6
    for i in range(7):
        shift = torch.zeros(7, dtype=torch.float64)
        shift[i] = h
        slope = (potential.value(w + shift) - potential.value(w - shift)) / (2 * h)
        torch.testing.assert_close(potential.mirror(w)[:, i], slope, rtol=1e-6, atol=1e-8)


@every_potential
def test_the_inverse_and_the_curvature_belong_to_the_map(name):
    potential, w = POTENTIALS[name][0], inside(name, 50)
    torch.testing.assert_close(potential.inverse(potential.mirror(w)), w, rtol=1e-12, atol=1e-14)
    h = 1e-6
    slope = (potential.mirror(w + h) - potential.mirror(w - h)) / (2 * h)
    torch.testing.assert_close(potential.curvature(w), slope, rtol=1e-6, atol=1e-8)


@every_potential
def test_the_conjugate_satisfies_the_bound_on_its_third_derivative_that_newton_relies_on(name):
    potential, w = POTENTIALS[name][0], inside(name, 50)
    z, h = potential.mirror(w), 1e-5
    second = [potential.inverse(z + k * h) for k in (-1, 0, 1)]
    slope = (1 / potential.curvature(second[2]) - 1 / potential.curvature(second[0])) / (2 * h)  # ψ*''' by differences of ψ*''
    assert bool((slope.abs() <= (1 + 1e-6) / potential.curvature(w)).all())


@pytest.mark.parametrize("alpha", [0.03, 1.0, 10.0])
@pytest.mark.parametrize("beta", [-2.0, 1e-3, 0.7])
def test_the_hyperbolic_entropy_is_the_integral_of_its_map(alpha, beta):
    expected, _ = quad(lambda b: np.arcsinh(b / (2 * alpha**2)), 0, beta, epsabs=1e-14, epsrel=1e-12)
    found = theory.hyperbolic_entropy(alpha).value(torch.tensor([beta], dtype=torch.float64)).item()
    assert found == pytest.approx(expected, rel=1e-11)
    z = beta / alpha**2  # and q of the paper, as it is printed
    assert found == pytest.approx(alpha**2 * (2 - np.sqrt(4 + z**2) + z * np.arcsinh(z / 2)), rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("alpha", [1e-75, 1e-20, 1e-10, 1e-3, 1.0])
def test_the_hyperbolic_entropy_has_its_two_limits_where_the_squares_leave_the_range_of_the_type(alpha, dtype):
    """For |β| ≫ α² the map is the logarithm of |β|/α², for |β| ≪ α² it is β/2α²: to terms in (α²/β)² or (β/α²)², 1e-8 at most here."""
    potential, scale, eps = theory.hyperbolic_entropy(alpha), alpha**2, torch.finfo(dtype).eps + 1e-8
    beta = torch.tensor([-3e4, -1.0, 1e-30, 0.7, 1e15], dtype=dtype)
    beta = beta[(beta.abs() > 1e4 * scale) | (beta.abs() < 1e-4 * scale)]
    size = beta.double().abs()
    steep = size.log() - 2 * np.log(alpha)
    limits = {
        "value": torch.where(size > scale, size * (steep - 1) + 2 * scale, size * (size / scale) / 4),
        "mirror": beta.sign() * torch.where(size > scale, steep, size / (2 * scale)),
        "curvature": 1 / size.clamp(min=2 * scale),
    }
    assert len(beta) >= 2
    for name, expected in limits.items():
        found = getattr(potential, name)(beta[:, None] if name == "value" else beta)
        torch.testing.assert_close(found, expected.to(dtype), rtol=2 * eps, atol=0)
    mirrored = potential.mirror(beta)
    rounding = 2 * eps * max(1.0, float(mirrored.abs().max()))  # that of the mirrored weight is multiplied by its size
    torch.testing.assert_close(potential.inverse(mirrored), beta, rtol=rounding, atol=0)


def test_the_hyperbolic_entropy_goes_from_the_square_to_the_modulus():
    beta = normal(6)
    lazy = theory.hyperbolic_entropy(100.0).value(beta) * 4 * 100.0**2
    assert lazy.item() == pytest.approx(beta.square().sum().item(), rel=1e-7)
    ratios = [theory.hyperbolic_entropy(a).value(beta).item() / -np.log(a**2) for a in (1e-2, 1e-8, 1e-32)]
    gaps = [abs(r / beta.abs().sum().item() - 1) for r in ratios]
    assert gaps[0] > gaps[1] > gaps[2]
    assert gaps[2] < 0.02  # it falls as 1/ln(1/α²)


def test_the_flow_on_u2_minus_v2_is_mirror_descent_with_this_potential():
    """A fine gradient descent on u² − v² moves arcsinh(β/2α²) by −4·time·(gradient in β), whatever the gradients are."""
    alpha, h, steps = 0.3, 1e-5, 2000
    slopes = normal(steps // 100, 5)  # an arbitrary sequence of gradients in β, each for a hundred steps
    u = v = torch.full((5,), alpha, dtype=torch.float64)
    for t in range(steps):
        g = slopes[t // 100]
        u, v = u - h * 2 * g * u, v + h * 2 * g * v
    moved = theory.hyperbolic_entropy(alpha).mirror(u**2 - v**2)
    torch.testing.assert_close(moved, -4 * h * 100 * slopes.sum(0), rtol=1e-3, atol=1e-6)


@every_potential
def test_the_projection_interpolates_and_differs_from_the_start_by_a_row(name):
    potential, x = POTENTIALS[name][0], normal(4, 11, seed=1)
    start, target = inside(name, 11, seed=2), inside(name, 11, seed=3)
    y = x @ target
    w = theory.bregman_projection(potential, x, y, start)
    torch.testing.assert_close(x @ w, y, rtol=0, atol=1e-11 * float(y.norm()))
    null = torch.linalg.svd(x).Vh[4:]
    moved = potential.mirror(w) - potential.mirror(start)
    assert float((null @ moved).norm() / moved.norm()) < 1e-9


@every_potential
def test_no_other_interpolant_is_nearer(name):
    potential, x = POTENTIALS[name][0], normal(4, 11, seed=1)
    start, target = inside(name, 11, seed=2), inside(name, 11, seed=3)
    w = theory.bregman_projection(potential, x, x @ target, start)
    best = theory.divergence(potential, w, start)
    assert theory.divergence(potential, target, start) > best > 0
    null = torch.linalg.svd(x).Vh[4:]
    for seed in range(20):
        other = w + 1e-3 * normal(7, seed=seed) @ null
        if not POTENTIALS[name][1] or bool((other > 0).all()):
            assert theory.divergence(potential, other, start) > best


def test_the_projection_against_a_general_solver():
    x, start, target = normal(3, 6, seed=1), normal(6, seed=2).abs() + 0.1, normal(6, seed=3).abs() + 0.1
    y = x @ target
    w0 = start.numpy()
    found = minimize(
        lambda w: float(np.sum(w * np.log(w / w0) - w + w0)),
        target.numpy(),
        jac=lambda w: np.log(w / w0),
        bounds=[(1e-9, None)] * 6,
        constraints={"type": "eq", "fun": lambda w: x.numpy() @ w - y.numpy(), "jac": lambda w: x.numpy()},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 1000},
    )
    w = theory.bregman_projection(theory.entropy(), x, y, start)
    np.testing.assert_allclose(w.numpy(), found.x, atol=1e-5)
    assert theory.divergence(theory.entropy(), w, start).item() == pytest.approx(found.fun, abs=1e-9)


def test_a_start_at_the_tiniest_scale_still_converges():
    x, planted = normal(10, 30), torch.zeros(30, dtype=torch.float64)
    planted[:3] = 1
    w = theory.bregman_projection(theory.hyperbolic_entropy(1e-5), x, x @ planted, torch.zeros_like(planted))
    assert float((x @ (w - planted)).norm()) < 1e-10


@pytest.mark.parametrize("target", [0.0, 1e-12, 1e-6])
@pytest.mark.parametrize("alpha", [0.01, 1.0, 100.0])
def test_targets_far_smaller_than_the_start_have_a_projection(target, alpha):
    """The terms of Xw cancel there, and what rounding leaves of them is all that can be asked of the residual."""
    potential, x, start = theory.hyperbolic_entropy(alpha), normal(3, 8, seed=1), normal(8, seed=2)
    y = torch.full((3,), target, dtype=torch.float64)
    w = theory.bregman_projection(potential, x, y, start)
    assert float((x @ w - y).norm()) < 2e-12 * float((x.abs() @ w.abs()).norm())
    moved = potential.mirror(w) - potential.mirror(start)
    null = torch.linalg.svd(x).Vh[3:]
    assert float((null @ moved).norm() / moved.norm()) < 1e-9


def test_what_has_no_projection_is_refused():
    x = torch.ones(1, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match="interpolant inside"):  # positive weights cannot sum to −1
        theory.bregman_projection(theory.entropy(), x, -x[:, 0], torch.ones(3, dtype=torch.float64))
    with pytest.raises(ValueError, match="independent rows"):
        theory.bregman_projection(theory.entropy(), x.expand(2, 3), torch.tensor([1.0, 2.0]).double(), torch.ones(3).double())
    with pytest.raises(ValueError, match="alpha must be positive"):
        theory.hyperbolic_entropy(0.0)
    with pytest.raises(ValueError, match="alpha must be positive and finite, got nan"):
        theory.hyperbolic_entropy(float("nan"))
    for alpha in (1e-80, 1e80):  # beyond, α² or β/α² is zero or infinite
        with pytest.raises(ValueError, match=r"alpha must lie in \[1e-75, 1e75\]"):
            theory.hyperbolic_entropy(alpha)
