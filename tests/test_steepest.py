"""Steepest descents go downhill as fast as their norm allows."""

from __future__ import annotations

import math

import pytest
import torch

from theorylab.learning.optimizers.steepest import greedy_coordinate, normalized_gd, sign_descent


def gradient(seed: int) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {k: torch.randn(3, *shape, generator=g, dtype=torch.float64) for k, shape in (("w", (4, 2)), ("b", (4,)))}


@pytest.mark.parametrize(("make", "p", "dual"), [(normalized_gd, 2, 2), (sign_descent, math.inf, 1), (greedy_coordinate, 1, math.inf)])
def test_the_step_has_the_norm_lr_and_attains_the_dual_norm(make, p, dual):
    grads, lr = gradient(0), torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    new, _ = make(lr).update(grads, {}, {k: torch.zeros_like(g) for k, g in grads.items()})
    step, slope = (torch.cat([t.reshape(3, -1) for t in tree.values()], dim=1) for tree in (new, grads))
    torch.testing.assert_close(torch.linalg.vector_norm(step, p, dim=1), lr)
    # of all steps of that norm this one descends most: −⟨g, step⟩ = η‖g‖_*
    torch.testing.assert_close(-(slope * step).sum(1), lr * torch.linalg.vector_norm(slope, dual, dim=1))


@pytest.mark.parametrize("scale", [1e-30, 1e-42, 1e30])
def test_a_gradient_whose_square_is_lost_has_a_direction(scale: float) -> None:
    """In single precision: the square of 1e-30 is zero, and of 1e30 infinite; 1e-42 is not even normal."""
    grads = {"w": torch.tensor([[3.0, 0.0]]) * scale, "b": torch.tensor([4.0]) * scale}
    new, _ = normalized_gd(0.5).update(grads, {}, {"w": torch.zeros(1, 2), "b": torch.zeros(1)})
    assert [*new["w"][0].tolist(), *new["b"].tolist()] == pytest.approx([-0.3, 0.0, -0.4], rel=1e-2)


@pytest.mark.parametrize("make", [normalized_gd, sign_descent, greedy_coordinate])
def test_a_stationary_replica_stays(make):
    grads = {"x": torch.tensor([[0.0, 0.0], [3.0, 1.0]], dtype=torch.float64)}
    new, _ = make(1.0).update(grads, {}, {"x": torch.ones(2, 2, dtype=torch.float64)})
    assert new["x"][0].tolist() == [1.0, 1.0]
    assert new["x"][1].tolist() != [1.0, 1.0]
