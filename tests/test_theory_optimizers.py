"""The closed forms on optimizers against brute force: random directions, grids, simulations."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch

from theorylab.learning.optimizers.muon import muon
from theorylab.theory import optimizers as theory
from theorylab.theory.dynamics import sde_stationary_variance
from theorylab.theory.optimizers import mup_exponents


def unit(direction: np.ndarray, norm: str) -> np.ndarray:
    singular = np.linalg.svd(direction, compute_uv=False)
    size = {
        "l1": np.abs(direction).sum(),
        "linf": np.abs(direction).max(),
        "l2": np.linalg.norm(direction),
        "frobenius": np.linalg.norm(direction),
        "spectral": singular.max(),
        "nuclear": singular.sum(),
    }
    return direction / size[norm]


@pytest.mark.parametrize("norm", ["l1", "l2", "linf", "frobenius", "spectral", "nuclear"])
def test_no_direction_beats_the_dual_norm_and_climbing_from_any_comes_near(norm: str) -> None:
    random = np.random.default_rng(0)
    G = random.standard_normal((4, 3))
    best = -np.inf
    for _ in range(20):
        D = unit(random.standard_normal(G.shape), norm)
        for size in np.geomspace(1, 1e-3, 400):  # random local search, with smaller and smaller changes
            other = unit(D + size * random.standard_normal(G.shape), norm)
            D = other if (G * other).sum() > (G * D).sum() else D
        best = max(best, float((G * D).sum()))
    assert 0.9 * theory.dual_norm(G, norm) < best <= theory.dual_norm(G, norm) * (1 + 1e-12)  # type: ignore[arg-type]


@pytest.mark.parametrize("least", [0.003, 0.01, 0.1, 0.6, 1.0])
@pytest.mark.parametrize("steps", [0, 1, 3, 5, 8])
def test_the_band_is_the_image_of_a_fine_grid(least: float, steps: int) -> None:
    image = theory.newton_schulz_value(np.geomspace(least, 1, 400_001), steps)
    assert theory.newton_schulz_band(least, steps) == pytest.approx((image.min(), image.max()), abs=1e-6)


def test_by_default_the_band_is_of_as_many_iterations_as_muon_takes() -> None:
    s = np.geomspace(0.01, 1, 30)
    W = {"W": torch.zeros(1, 30, 30, dtype=torch.float64)}
    optimizer = muon(lr=1.0, momentum=0.0)
    moved = optimizer.update({"W": torch.from_numpy(np.diag(s))[None]}, optimizer.init(W), W)[0]["W"]
    taken = -moved[0].diagonal().numpy()
    np.testing.assert_allclose(taken, theory.newton_schulz_value(s / np.linalg.norm(s)), rtol=1e-6)
    grid = theory.newton_schulz_value(np.geomspace(0.01, 1, 200_001))
    np.testing.assert_allclose(theory.newton_schulz_band(0.01), (grid.min(), grid.max()), rtol=1e-6)


def test_adamws_box_clips_on_both_sides() -> None:
    assert theory.adamw_fixed_point(np.array([-30.0, -10.5, -3.0, 3.0, 30.0]), 0.1).tolist() == [-10.0, -10.0, -3.0, 3.0, 10.0]


def test_reddis_stream_drives_adam_by_its_recursion_to_the_worst_point() -> None:
    C, x, v = 3.0, 0.0, 0.0
    beta = theory.reddi_second_moment(C)
    for t in range(3000):
        g = C if t % 3 == 0 else -1.0
        v = beta * v + (1 - beta) * g**2
        x = float(np.clip(x - 0.5 / np.sqrt(t + 1) * g / np.sqrt(v), -1, 1))
    assert x > 0.98


def test_weight_decay_moves_the_minimum_where_it_is_said_to() -> None:
    grid = np.linspace(-40, 40, 800_001)
    for at, a, decay in ((30.0, 2.0, 0.5), (-3.0, 0.5, 0.1)):
        penalized = 0.5 * a * (grid - at) ** 2 + 0.5 * decay * grid**2
        assert theory.ridge_minimizer(np.array(at), np.array(a), decay) == pytest.approx(grid[penalized.argmin()], abs=1e-4)
        boxed = np.where(np.abs(grid) <= 1 / decay, 0.5 * a * (grid - at) ** 2, np.inf)
        assert theory.adamw_fixed_point(np.array(at), decay) == pytest.approx(grid[boxed.argmin()], abs=1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: theory.dual_norm(np.eye(2), "l3"), "norm must be one of"),  # type: ignore[arg-type]
        (lambda: theory.newton_schulz_value(np.ones(1), -1), "steps must be at least 0"),
        (lambda: theory.newton_schulz_band(0.0), "least must lie in"),
        (lambda: theory.newton_schulz_band(0.1, -3), "steps must be at least 0"),
        (lambda: theory.ridge_minimizer(np.ones(1), np.ones(1), -1.0), "decay must be at least 0"),
        (lambda: theory.ridge_minimizer(np.ones(1), np.zeros(1), 1.0), "curvature must be positive"),
        (lambda: theory.adam_noisy_quadratic_loss(np.ones(1), np.ones(1), -2.0, 0.1, 5), "noise must be positive"),
        (lambda: theory.best_step(-np.eye(2), np.ones(2), 1.0, 1.0), "curvature along the gradient must be positive"),
        (lambda: theory.expected_decrease(-np.eye(2), np.ones(2), 1.0, 1.0), "curvature along the gradient must be positive"),
        (lambda: theory.expected_decrease(np.eye(2), np.ones(2), 1.0, -1.0), "noise_scale must be at least 0"),
        (lambda: theory.expected_decrease(np.ones(2), np.ones(2), 1.0, 1.0), r"hessian must be \(d, d\)"),
        (lambda: theory.best_step(np.eye(2), np.ones((2, 1)), 1.0, 1.0), r"hessian must be \(d, d\)"),
        (lambda: theory.gradient_noise_scale(np.eye(2), np.array([1.0, 2.0]), np.ones(2)), r"covariance must be \(d, d\)"),
        (lambda: theory.adam_noisy_quadratic_loss(np.ones(3), np.ones(1), 1.0, 0.1, 5), r"must both be \(d,\), got \(3,\) and \(1,\)"),
        (lambda: theory.ridge_minimizer(np.ones(3), np.ones(1), 1.0), "the shape of minimizer"),
        (lambda: theory.reddi_second_moment(1.0), "C must be above 2"),
        (lambda: theory.adamw_fixed_point(np.ones(1), 0.0), "decay must be positive"),
    ],
)
def test_wrong_input_is_refused(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("amplification", [1.0, 3.0])
def test_svags_variance_is_that_of_many_walks(amplification: float) -> None:
    random, step, curvature, noise = np.random.default_rng(1), 0.9, 1.4, 0.7
    root, x = np.sqrt(2 * amplification - 1), np.zeros(200_000)
    for _ in range(40):
        first, second = (curvature * x + noise * random.standard_normal(x.shape) for _ in range(2))
        x = x - step / amplification * ((1 + root) / 2 * first + (1 - root) / 2 * second)
    # a variance of n normal numbers has relative standard error √(2/n)
    assert theory.svag_stationary_variance(step, curvature, noise, amplification) == pytest.approx(
        (x**2).mean(), rel=4 * (2 / len(x)) ** 0.5
    )


def test_svag_tends_to_the_differential_equation() -> None:
    limit = sde_stationary_variance(0.9, 1.4, 0.7)
    levels = (10, 100, 1000)
    gaps = [theory.svag_stationary_variance(0.9, 1.4, 0.7, level) / limit - 1 for level in levels]
    assert gaps == pytest.approx([0.9 * 1.4 / (2 * level) for level in levels], rel=0.1)


def test_the_linear_rule_drifts_as_two_simulations_do() -> None:
    random, step, curvature, k = np.random.default_rng(2), 0.1, 1.2, 8
    spreads = []
    for eta, sigma in ((step, 1.0), (k * step, k**-0.5)):
        x = np.zeros(200_000)
        for _ in range(100):
            x = x - eta * (curvature * x + sigma * random.standard_normal(x.shape))
        spreads.append((x**2).mean())
    assert theory.linear_rule_drift(step, curvature, k) == pytest.approx(spreads[1] / spreads[0], rel=0.02)


def test_adams_loss_under_dominating_noise_is_that_of_a_simulation() -> None:
    """Corrections are of the orders of step·memory·curvature/noise and of (curvature·start/noise)², one percent each here."""
    random, curvature, start, noise, step, steps = np.random.default_rng(3), np.array([1.0, 0.2]), np.ones(2), 20.0, 0.02, 1000
    x, m, v = np.ones((4000, 2)) * start, 0.0, 0.0
    beta1, beta2 = 0.9, 0.999
    for t in range(1, steps + 1):
        g = curvature * x + noise * random.standard_normal(x.shape)
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
        x = x - step * (m / (1 - beta1**t)) / np.sqrt(v / (1 - beta2**t))
    losses = 0.5 * (x**2 @ curvature)
    predicted = theory.adam_noisy_quadratic_loss(curvature, start, noise, step, steps)
    assert predicted == pytest.approx(losses.mean(), abs=4 * losses.std() / np.sqrt(len(losses)) + 0.03 * predicted)
    quarter = theory.adam_noisy_quadratic_loss(curvature, start, noise / 2, 2 * step, steps // 4)
    assert quarter == pytest.approx(predicted, rel=1e-12)  # the square root rule


def test_the_noise_scale_gives_the_best_of_all_steps_and_its_decrease() -> None:
    random, batch = np.random.default_rng(4), 3
    rows = random.standard_normal((50, 4)) @ np.diag([1.0, 2.0, 0.5, 1.0]) + 0.7
    root = random.standard_normal((4, 4))
    H, g = root @ root.T, rows.mean(0)
    scale = theory.gradient_noise_scale(H, np.cov(rows.T, bias=True), g)
    drawn = rows[random.integers(len(rows), size=(400_000, batch))].mean(1)
    along, bend = drawn @ g, 0.5 * np.einsum("mi,ij,mj->m", drawn, H, drawn)
    steps = np.linspace(0, 2, 2001) * theory.best_step(H, g, np.inf, scale)
    decreases = steps * along.mean() - steps**2 * bend.mean()
    assert theory.best_step(H, g, batch, scale) == pytest.approx(steps[decreases.argmax()], rel=0.02)
    assert theory.expected_decrease(H, g, batch, scale) == pytest.approx(decreases.max(), rel=0.01)


def test_half_of_the_progress_is_made_at_the_noise_scale() -> None:
    H, g, scale = np.diag([1.0, 4.0]), np.array([1.0, -0.5]), 7.0
    assert theory.expected_decrease(H, g, scale, scale) == pytest.approx(theory.expected_decrease(H, g, np.inf, scale) / 2)
    assert theory.best_step(H, g, np.inf, scale) == pytest.approx(1.25 / 2.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: theory.svag_stationary_variance(1.0, 1.0, 1.0, 0.5), "amplification must be at least 1"),
        (lambda: theory.linear_rule_drift(0.1, 1.0, 0.5), "k must be at least 1"),
        (lambda: theory.linear_rule_drift(0.1, 1.0, 20), "must lie below 2"),
        (lambda: theory.gradient_noise_scale(-np.eye(2), np.eye(2), np.ones(2)), "curvature along the gradient must be positive"),
        (lambda: theory.best_step(np.eye(2), np.ones(2), 0.0, 1.0), "batch must be positive"),
    ],
)
def test_noise_outside_of_the_laws_is_refused(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_mup_exponents_make_every_change_of_an_activation_independent_of_the_width(optimizer: Literal["adam", "sgd"]) -> None:
    """One step on aligned rank-one gradients of a network of three layers, by hand: the changes of hidden units and output do not grow."""
    changes = []
    for m in (2**8, 2**12):
        (_, b1), (_, b2), (a3, b3) = (mup_exponents(role, optimizer) for role in ("input", "hidden", "output"))
        h1 = h2 = np.ones(m)  # activations of size one in each coordinate
        w3 = m**a3 * np.ones(m)  # the outputs' weights, aligned with what they see
        delta2, delta1 = w3, w3  # signals sent back: of the size of the outputs' weights, through hidden weights that keep sizes

        def step(gradient: np.ndarray) -> np.ndarray:
            return np.sign(gradient) if optimizer == "adam" else gradient

        hidden_1 = m**b1 * step(delta1) * 1.0  # one input of size one
        hidden_2 = m**b2 * step(delta2) * ((h1**2).sum() if optimizer == "sgd" else h1.sum())
        output = m**b3 * (step(h2) * h2).sum()
        changes.append([np.abs(hidden_1).mean(), np.abs(hidden_2).mean(), abs(output)])
    np.testing.assert_allclose(changes[0], changes[1], rtol=1e-12)


def test_mup_exponents_refuse_what_they_do_not_know() -> None:
    with pytest.raises(ValueError, match="role must be"):
        mup_exponents("bias")  # type: ignore[arg-type]
