"""The task that separates convolutions from fully connected networks, and the learners that meet on it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from theorylab.data.synthetic import quadratic_sign
from theorylab.learning.optimizers.adam import adam
from theorylab.learning.optimizers.sgd import sgd
from theorylab.models.quadratic import quadratic_cnn, quadratic_mlp
from theorylab.models.seeded import seeded
from theorylab.studies.convolution.separation import (
    GRID,
    RATIOS,
    SeparationConfig,
    crossing,
    products,
    ridge_accuracy,
    rows_by_bisection,
    rows_of_networks,
)


def test_labels_say_which_half_is_longer_and_are_balanced() -> None:
    x, y = quadratic_sign(4000, 3, seed=5)
    assert x.shape == (4000, 6)
    assert all(float(b) == (1.0 if row[:3].norm() > row[3:].norm() else -1.0) for row, b in zip(x[:200], y[:200], strict=True))
    assert abs(float(y.mean())) < 4 / 4000**0.5
    assert torch.equal(quadratic_sign(10, 3, seed=5).x, quadratic_sign(10, 3, seed=5).x)
    for n, d in ((0, 2), (2, 0)):
        with pytest.raises(ValueError, match="must be at least 1 and whole, got 0"):
            quadratic_sign(n, d)


def test_shared_weights_see_only_the_two_halves() -> None:
    net: Any = seeded(lambda: quadratic_cnn(8, 3), 0)
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mixed = torch.cat([x[:, [2, 0, 3, 1]], x[:, [7, 4, 6, 5]]], 1)
    assert torch.allclose(net(mixed), net(x), rtol=1e-13)
    assert not torch.allclose(net(x.roll(1, 1)), net(x), rtol=1e-3)
    w, (u, b) = net[1].weight[:, 0, 0], (net[5].weight[0], net[5].bias)
    halves = x.square().unflatten(1, (2, 4)).mean(2)  # (n, 2)
    assert torch.allclose(net(x), ((w**2)[:, None] * halves[:, None]).flatten(1) @ u[:, None] + b, rtol=1e-12)
    with pytest.raises(ValueError, match="inputs must be even"):
        quadratic_cnn(7)


def test_the_dense_net_is_a_quadratic_form_whose_initial_law_has_no_preferred_basis() -> None:
    net: Any = seeded(lambda: quadratic_mlp(4, 2000), 0)
    W, a = net[0].weight, net[2].weight[0]
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    A = W.T @ (a[:, None] * W)
    assert torch.allclose(net(x)[:, 0], torch.einsum("ni,ij,nj->n", x, A, x), rtol=1e-10)
    assert torch.allclose(W.T @ W / 2000, torch.eye(4, dtype=torch.float64) / 4, atol=0.03)
    with pytest.raises(ValueError, match="must be at least 1"):
        quadratic_mlp(4, 0)


@pytest.mark.parametrize("n", [5, 200])
def test_regression_on_products_is_regression_with_the_squared_kernel(n: int) -> None:
    x, y = quadratic_sign(n, 3, seed=1)
    test = quadratic_sign(300, 3, seed=2)
    assert torch.allclose(products(x) @ products(test.x).T, (x @ test.x.T) ** 2, rtol=1e-12)
    alpha = torch.linalg.solve((x @ x.T) ** 2 + products(x).shape[1] * torch.eye(n), y)  # one system, not a stack
    expected = (((test.x @ x.T) ** 2 @ alpha) * test.y > 0).double().mean()
    assert ridge_accuracy(products(x), y, products(test.x), test.y) == pytest.approx(float(expected), abs=1e-12)


def test_thresholds_are_found_where_accuracy_crosses() -> None:
    assert rows_by_bisection(lambda n: n / 1000, 4, 4000) == pytest.approx(800, rel=0.03)
    assert crossing((2, 8), [0.7, 0.9]) == pytest.approx(4.0)
    assert crossing((2, 8), [0.85, 0.9]) == 2.0
    with pytest.raises(ValueError, match="10 rows do not suffice"):
        rows_by_bisection(lambda n: 0.5, 4, 10)
    with pytest.raises(ValueError, match="8 rows do not suffice"):
        crossing((2, 8), [0.5, 0.6])


def test_trained_dense_nets_need_more_rows_than_entries_and_shared_weights_do_not() -> None:
    """The setting of the study that only its large scale has, on few rows."""
    config = SeparationConfig(seeds=1, seed=3, draws=2, steps=300, test_rows=500)
    grid = tuple(round(ratio * 16) for ratio in RATIOS)
    (dense,) = rows_of_networks(config, 4, lambda: quadratic_mlp(8, 32), sgd(0.02, momentum=0.9), grid)
    (shared,) = rows_of_networks(config, 4, lambda: quadratic_cnn(8), adam(0.05), GRID)
    assert shared < 8 < 30 < dense < grid[-1]
