"""Exponentiated gradient is mirror descent: its step solves the proximal problem of its potential."""

from __future__ import annotations

import torch

from theorylab.learning.optimizers.mirror import exponentiated_gradient


def test_the_step_minimizes_the_linear_loss_plus_the_divergence() -> None:
    g = torch.Generator().manual_seed(0)
    start, slope = torch.rand(5, generator=g, dtype=torch.float64), torch.randn(5, generator=g, dtype=torch.float64)

    def objective(x: torch.Tensor) -> torch.Tensor:
        return 0.3 * slope @ x + (x * (x / start).log() - x + start).sum()  # η⟨g, x⟩ + KL(x ‖ start)

    (free, _) = exponentiated_gradient(0.3).update({"w": slope}, {}, {"w": start})
    x = free["w"].clone().requires_grad_()
    (stationary,) = torch.autograd.grad(objective(x), x)
    assert float(stationary.abs().max()) < 1e-14
    start = start / start.sum()
    (bound, _) = exponentiated_gradient(0.3, normalize=True).update({"w": slope}, {}, {"w": start})
    assert abs(float(bound["w"].sum()) - 1) < 1e-15
    x = bound["w"].clone().requires_grad_()
    (slopes,) = torch.autograd.grad(objective(x), x)
    assert float((slopes - slopes.mean()).abs().max()) < 1e-14  # only the multiplier of Σx = 1 is left


def test_a_step_as_large_as_one_likes_keeps_a_probability_vector() -> None:
    w = torch.full((2, 3), 1 / 3)
    moved, _ = exponentiated_gradient(1e6, normalize=True).update({"w": torch.tensor([[1.0, 2.0, 3.0], [-5.0, 1.0, 2.0]])}, {}, {"w": w})
    assert moved["w"].tolist() == [[1, 0, 0], [1, 0, 0]]
