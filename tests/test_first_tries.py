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

X, Y = torch.randn(12, 4, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3
MASKS = torch.ones(2, 12, dtype=torch.bool)


def net(width: int = 8) -> nn.Module:
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3))


def problem() -> tl.Problem:
    return tl.Problem(net(), cross_entropy, (X, Y))


def retrain(**change: Any) -> object:
    settings = {"make_model": net, "data": (X, Y), "masks": MASKS, "seeds": [0], "optimizer": sgd(0.1), "targets": (X, Y), **change}
    return tl.retrain(settings.pop("make_model"), cross_entropy, settings.pop("data"), steps=1, progress=False, **settings)


def plan(**change: Any) -> object:
    settings = {"optimizer": lambda recipe: sgd(recipe.lr), "base": tl.Recipe(0.1, 2, 4), "ks": [2], "rule": "linear", **change}
    return tl.scaling_plan(net, cross_entropy, (X, Y), **settings)


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
    equivariance()
    assert isinstance(tl.mup(net, 8)(16), nn.Module)
    tl.sharpness_along(problem(), lambda p: torch.optim.SGD(p, lr=0.1), steps=4)
    tl.mode_connectivity(problem(), dict(net().named_parameters()), steps=1)
