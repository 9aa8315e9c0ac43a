"""Slices of the loss and paths between solutions: closed forms, invariance under rescaling, and bad input."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import make, vectors

from theorylab.core.problem import Problem
from theorylab.instruments.landscape import filter_directions, landscape, looped_landscape
from theorylab.instruments.mode_connectivity import mode_connectivity


def quadratic(curvatures: list[float]) -> Problem:
    """½ Σ c_i w_i² at the minimum."""
    net = nn.Linear(len(curvatures), 1, bias=False)
    x = torch.diag(torch.tensor(curvatures).sqrt())
    problem = Problem(net, lambda o, y: o.square().sum(1) * len(curvatures) / 2, (x, torch.zeros(len(x))), dtype=torch.float64)
    return problem.at({"weight": torch.zeros(1, len(curvatures))})


def test_eigenvectors_show_the_parabolas_of_their_eigenvalues() -> None:
    found = landscape(quadratic([1.0, 5.0, 9.0]), along="eigenvectors", span=2.0, points=5)
    a, b = torch.meshgrid(found.coordinates, found.coordinates, indexing="ij")
    assert torch.allclose(found.losses, 4.5 * a**2 + 2.5 * b**2, atol=1e-10)
    assert found.coordinates.tolist() == [-2, -1, 0, 1, 2]


def test_eigenvectors_are_those_of_the_dense_hessian() -> None:
    problem = make("mlp")
    fast, slow = (f(problem, directions=1, along="eigenvectors", points=5) for f in (landscape, looped_landscape))
    assert torch.allclose(fast.losses, slow.losses, rtol=1e-5)
    assert torch.allclose(fast.vectors, slow.vectors, atol=1e-5)


def test_given_directions_are_followed_as_they_are() -> None:
    problem = quadratic([2.0, 4.0])
    found = landscape(problem, directions=torch.tensor([0.0, 3.0]), points=3)
    assert found.losses.tolist() == pytest.approx([18, 0, 18])
    plane = landscape(problem, directions=torch.eye(2), points=3)
    assert plane.losses[2, 1] == pytest.approx(1)  # the first axis is along the first vector
    assert plane.losses[1, 2] == pytest.approx(2)


def test_filters_move_by_their_own_length_and_vectors_stay() -> None:
    problem = make("GroupNorm, LayerNorm")
    moved = problem.unflatten(filter_directions(problem, 1, 0)[:, 0])
    for name, p in problem.params.items():
        if p.ndim > 1:
            assert torch.allclose(moved[name].flatten(1).norm(dim=1), p.flatten(1).norm(dim=1))
        else:
            assert not moved[name].any()
    biases = make("mlp", params="*.bias")
    assert float(filter_directions(biases, 1, 0).norm()) == pytest.approx(float(biases.flatten(biases.params).norm()))


def test_filter_normalization_is_blind_to_the_rescaling_of_a_relu_net() -> None:
    net = nn.Sequential(nn.Linear(5, 6, bias=False), nn.ReLU(), nn.Linear(6, 3, bias=False))
    problem = Problem(net, F.cross_entropy, vectors(), dtype=torch.float64)
    rescaled = problem.at({"0.weight": 10 * problem.params["0.weight"], "2.weight": problem.params["2.weight"] / 10})
    assert torch.allclose(landscape(problem).losses, landscape(rescaled).losses, rtol=1e-10)
    raw = torch.randn(problem.P, generator=torch.Generator().manual_seed(0))
    assert not torch.allclose(landscape(problem, directions=raw).losses, landscape(rescaled, directions=raw).losses, rtol=0.1)


@pytest.mark.parametrize("directions", [1, 2])
def test_a_landscape_is_drawn_with_its_units(directions: int) -> None:
    ax = landscape(quadratic([1.0, 5.0]), directions=directions, along="eigenvectors", points=5).plot()
    assert "direction" in ax.get_xlabel()
    _close(ax)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"points": 4}, "points must be odd"),
        ({"points": 1}, "points must be odd"),
        ({"span": 0.0}, "span must be positive"),
        ({"directions": 3}, "directions must be 1, 2 or"),
        ({"directions": torch.zeros(5)}, "directions must have shape"),
        ({"along": "other"}, "along must be"),
        ({"span": 1e200, "directions": torch.ones(2)}, "make span smaller"),
    ],
)
def test_a_landscape_refuses_wrong_input(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        landscape(quadratic([1.0, 1.0]), **options)


def on_a_circle(angle: float) -> Problem:
    """(|w|² − 1)², zero on the unit circle, at an angle in degrees."""
    net = nn.Linear(2, 1, bias=False)

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        return (model.weight.square().sum() - batch.mean()).square()  # pyright: ignore

    problem = Problem(net, loss, [torch.ones(1)], dtype=torch.float64)
    return problem.at({"weight": torch.tensor([[math.cos(math.radians(angle)), math.sin(math.radians(angle))]])})


def test_a_curve_goes_around_the_barrier_of_the_line() -> None:
    a, b = on_a_circle(0.0), on_a_circle(90.0)
    found = mode_connectivity(a, b, steps=200, lr=0.05)
    assert found.line_barrier == pytest.approx(0.25)  # in the middle |w|² is a half
    assert found.curve_barrier < 0.02
    straight = mode_connectivity(a, b, steps=0)
    assert straight.curve_barrier == pytest.approx(straight.line_barrier)
    assert torch.allclose(found.curve[[0, -1]], torch.zeros(2, dtype=torch.float64), atol=1e-14)
    assert mode_connectivity(a, a, steps=2).line_barrier == 0
    ax = found.plot()
    assert ax.get_legend() is not None
    _close(ax)


def test_paths_are_repeatable_and_take_parameters_by_name() -> None:
    a, b = on_a_circle(0.0), on_a_circle(60.0)
    first, second = mode_connectivity(a, b, steps=20, seed=3), mode_connectivity(a, b.params, steps=20, seed=3)
    assert torch.equal(first.curve, second.curve)
    assert torch.equal(a.params["weight"], on_a_circle(0.0).params["weight"])


def test_paths_refuse_wrong_input() -> None:
    a = on_a_circle(0.0)
    for options, message in [
        ({"points": 2}, "points must be at least 3"),
        ({"steps": -1}, "steps must be at least 0"),
        ({"lr": 0.0}, "lr must be positive"),
    ]:
        with pytest.raises(ValueError, match=message):
            mode_connectivity(a, a, **options)
    with pytest.raises(ValueError, match="it lacks weight"):
        mode_connectivity(a, {})
    with pytest.raises(ValueError, match="must have shape"):
        mode_connectivity(a, {"weight": torch.zeros(3)})
    instance = nn.Sequential(nn.Unflatten(1, (1, 2)), nn.InstanceNorm1d(1, track_running_stats=True), nn.Flatten(), nn.Linear(2, 1))
    for norm in (make("cnn, BatchNorm eval"), Problem(instance, F.mse_loss, (torch.randn(4, 2), torch.zeros(4, 1)))):
        with pytest.raises(ValueError, match="train=True"):
            mode_connectivity(norm, norm)


def _close(ax) -> None:
    import matplotlib.pyplot as plt

    plt.close(ax.figure)
