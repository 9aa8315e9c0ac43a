"""Invariances: who is scale-invariant and who is not, the angle turned, and what gradient descent conserves."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from zoo import make

from theorylab.core.problem import Problem
from theorylab.instruments.invariances import angular_update, invariances
from theorylab.models.normalized import NormalizedMLP


def descend(problem: Problem, lr: float, steps: int) -> Problem:
    for _ in range(steps):
        problem = problem.at(problem.unflatten(problem.flatten(problem.params) - lr * problem.gradient()))
    return problem


@pytest.mark.parametrize("normalization", ["batch", "layer", "rms", "weight", "none"])
def test_weights_that_feed_a_normalization_are_invariant_and_no_others(normalization: str) -> None:
    torch.manual_seed(0)
    net = NormalizedMLP([5, 6, 6, 3], normalization=normalization, affine=True)  # type: ignore[arg-type]
    problem = Problem(net, F.cross_entropy, (torch.randn(20, 5), torch.arange(20) % 3), dtype=torch.float64, train=True)
    found = invariances(problem)
    for name, yes, change, cosine in zip(found.names, found.invariant, found.change, found.cosine, strict=True):
        expected = normalization != "none" and name.startswith("layers")
        assert bool(yes) is expected, name
        if expected:
            assert max(float(change), abs(float(cosine))) < 1e-10
        elif name.startswith("head"):
            assert float(change) > 1e-2


def test_a_small_norm_spoils_the_invariance_that_epsilon_leaves() -> None:
    problem = make("cnn, BatchNorm train")
    assert bool(invariances(problem).invariant[0])
    small = problem.at({"0.weight": problem.params["0.weight"] / 300, "0.bias": problem.params["0.bias"] / 300})
    assert not bool(invariances(small).invariant[0])
    assert invariances(problem).cosine[1] == 0  # a bias before BatchNorm has no gradient, and no angle to it


def test_the_effective_rate_predicts_the_angle_of_a_step() -> None:
    """A step of gradient descent turns an invariant tensor by atan(η‖g‖/‖θ‖), η‖g‖/‖θ‖ = rate × gradient at norm one."""
    torch.manual_seed(0)
    net = NormalizedMLP([5, 6, 3], normalization="layer")
    problem = Problem(net, F.cross_entropy, (torch.randn(20, 5), torch.arange(20) % 3), dtype=torch.float64)
    after = descend(problem, 0.3, 1)
    found = invariances(after, before=problem.params, lr=0.3)
    i = found.names.index("layers.0")
    theta, g = problem.params["layers.0"], problem.unflatten(problem.gradient())["layers.0"]
    assert float(found.angle[i]) == pytest.approx(math.atan(0.3 * float(g.norm() / theta.norm())), rel=1e-10)
    unit = problem.at({"layers.0": theta / theta.norm()})
    at_one = unit.unflatten(unit.gradient())["layers.0"]
    rate = float(invariances(problem, lr=0.3).effective_rate[i])
    assert math.tan(float(found.angle[i])) == pytest.approx(rate * float(at_one.norm()), rel=1e-10)


def test_angles_are_exact_when_small() -> None:
    u = torch.tensor([1.0, 0.0], dtype=torch.float64)
    for angle in (1e-9, 0.3, 3.0):
        v = 7 * torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
        assert float(angular_update({"w": u}, {"w": v})["w"]) == pytest.approx(angle, rel=1e-12)
    for before in ({}, {"w": torch.zeros(2)}, {"w": torch.ones(3)}):
        with pytest.raises(ValueError, match="'w'"):
            angular_update(before, {"w": u})


def test_readings_are_measures_and_bad_factors_are_refused() -> None:
    found = invariances(make("cnn, BatchNorm train"), lr=0.1)
    assert [r.label for r in found.readings()] == ["measure", "measure"]
    assert "0.weight" in found.readings()[0].note
    for factors in ((), (0.0,), (-1.0,)):
        with pytest.raises(ValueError, match="factors must be positive"):
            invariances(make("mlp"), factors=factors)
    zero = Problem(nn.Linear(2, 1), lambda o, t: 0 * o.mean(), (torch.ones(3, 2), torch.ones(3)))
    with pytest.raises(ValueError, match="loss is zero"):
        invariances(zero)
