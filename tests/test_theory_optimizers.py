"""The closed forms on optimizers against brute force: random directions, grids, simulations."""

from __future__ import annotations

import numpy as np
import pytest

from theorylab.theory import optimizers as theory


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
        (lambda: theory.newton_schulz_value(np.ones(1), -1), "steps must not be negative"),
        (lambda: theory.newton_schulz_band(0.0), "least must lie in"),
        (lambda: theory.reddi_second_moment(1.0), "C must be above 2"),
        (lambda: theory.adamw_fixed_point(np.ones(1), 0.0), "decay must be positive"),
    ],
)
def test_wrong_input_is_refused(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
