"""What one writes at the first try of a tool that trains: each is told by the name of the argument, and before any work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import theorylab as tl
from theorylab.learning.optimizers.sgd import sgd
from theorylab.learning.parametrization import tangent_kernel
from theorylab.learning.scaling_check import ScalingPlan

X, Y = torch.randn(12, 4, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3
MASKS = torch.ones(2, 12, dtype=torch.bool)


def net(width: int = 8) -> nn.Module:
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3))


def problem() -> tl.Problem:
    return tl.Problem(net(), cross_entropy, (X, Y))


def retrain(**change: Any) -> object:
    settings = {"make_model": net, "data": (X, Y), "masks": MASKS, "seeds": [0], "optimizer": sgd(0.1), "targets": (X, Y), **change}
    return tl.retrain(settings.pop("make_model"), cross_entropy, settings.pop("data"), steps=1, progress=False, **settings)


def plan(**change: Any) -> ScalingPlan:
    settings = {"optimizer": lambda recipe: sgd(recipe.lr), "base": tl.Recipe(0.1, 2, 4), "ks": [2], "rule": "linear", **change}
    return tl.scaling_plan(net, cross_entropy, (X, Y), **settings)


def coordinates(**change: Any) -> object:
    return tl.coordinate_check(**{"make_model": net, "widths": [4, 6, 8], "data": (X, Y), **change})


def equivariance(**change: Any) -> object:
    settings = {"make_model": net, "transform": torch.eye(4), "optimizer": sgd(0.1), "steps": 2, "seeds": [0], **change}
    return tl.learner_equivariance(settings.pop("make_model"), cross_entropy, (X, Y), settings.pop("transform"), **settings)


FIRST_TRIES: dict[str, tuple[Callable[[], object], str]] = {
    "retrain, a network": (lambda: retrain(make_model=net()), "make_model must be a function that builds one network"),
    "retrain, an optimizer of torch": (
        lambda: retrain(optimizer=torch.optim.SGD),
        "optimizer must be one of theorylab.learning",
    ),
    "retrain, a number of seeds": (lambda: retrain(seeds=3), r"seeds must be whole numbers, one a replica, as range\(3\), got 3"),
    "retrain, rows alone": (lambda: retrain(data=X), "data must be two tensors, inputs and targets of all rows, got Tensor"),
    "retrain, inputs alone": (lambda: retrain(targets=X), "targets must be inputs and targets of the rows to predict, got Tensor"),
    "scaling, an optimizer": (lambda: plan(optimizer=sgd(0.1)), r"optimizer must be a function of a Recipe, .* got Optimizer"),
    "scaling, a step size": (lambda: plan(base=0.1), r"base must be a Recipe\(.*\), got float"),
    "scaling, one factor": (lambda: plan(ks=2), r"ks must be a list of factors .* got 2"),
    "scaling, a share": (lambda: plan(ks=[1.5]), r"ks must be a list of factors .*, whole numbers, .* got \[1.5\]"),
    "scaling, seeds in words": (lambda: plan(seeds="four"), r"seeds must be how many, or a list of whole numbers, .* got 'four'"),
    "coordinates, an optimizer of a population": (
        lambda: coordinates(optimizer=sgd(0.1)),
        r"optimizer must be a function of parameters, as lambda p: torch.optim.SGD\(p, lr=0.1\), got Optimizer",
    ),
    "coordinates, no optimizer": (lambda: coordinates(optimizer=list), "must return a torch.optim.Optimizer, got list"),
    "coordinates, a loss class": (lambda: coordinates(loss=nn.CrossEntropyLoss), "loss must be callable, got the class CrossEntropyLoss"),
    "coordinates, half a seed": (lambda: coordinates(seeds=2.5), "seeds must be how many, or a list of whole numbers"),
    "coordinates, steps in words": (lambda: coordinates(steps="5"), "steps must be a number"),
    "equivariance, a network": (lambda: equivariance(make_model=net()), "make_model must be a function that builds one network"),
    "equivariance, a word": (lambda: equivariance(transform="flip"), "transform must be a matrix or a function of the inputs, got str"),
    "mup, a network": (lambda: tl.mup(net(), 64), r"make_model must be a function make_model\(width\) .* got Sequential"),  # type: ignore[arg-type]
    "mup, a word": (lambda: tl.mup(net, "64"), "base must be a number"),  # type: ignore[arg-type]
    "mup, a width": (lambda: tl.mup(net, 8)("16"), "width must be a number"),  # type: ignore[arg-type]
    "tangent kernel, a network": (lambda: tangent_kernel(net(), 64), "make_model must be a function"),  # type: ignore[arg-type]
    "sharpness_along, an optimizer": (
        lambda: tl.sharpness_along(problem(), torch.optim.SGD(net().parameters(), 0.1)),  # type: ignore[arg-type]
        r"optimizer must be a function of parameters, as lambda p: .* got SGD",
    ),
    "mode_connectivity, a network": (
        lambda: tl.mode_connectivity(problem(), net()),  # type: ignore[arg-type]
        r"other must be a Problem of the same model or its parameters by name, got Sequential",
    ),
}


@pytest.mark.parametrize("name", FIRST_TRIES)
def test_a_first_try_is_told_what_to_write_instead(name: str) -> None:
    call, message = FIRST_TRIES[name]
    with pytest.raises(TypeError, match=message):
        call()


def test_what_they_are_told_to_write_works() -> None:
    assert torch.is_tensor(retrain())
    plan()
    assert plan(ks=(k for k in [1, 2]), seeds=3).ks == (1, 2)
    assert plan(seeds=3).seeds == (0, 1, 2)
    coordinates(optimizer=lambda p: torch.optim.SGD(p, lr=0.1), seeds=2)
    equivariance()
    assert isinstance(tl.mup(net, 8)(16), nn.Module)
    tl.sharpness_along(problem(), lambda p: torch.optim.SGD(p, lr=0.1), steps=4)
    tl.mode_connectivity(problem(), dict(net().named_parameters()), steps=1)
