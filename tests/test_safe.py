"""What a measurement leaves alone besides parameters: attributes, generators, targets, losses with a state; and in which contexts it runs."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.utils.prune
from torch import Tensor, nn
from torch.nn import functional as F

import theorylab as tl
from theorylab.core.attributes import attributes_kept
from theorylab.core.problem import Problem


def rows() -> tuple[Tensor, Tensor]:
    return torch.randn(12, 4, generator=torch.Generator().manual_seed(1)), torch.arange(12) % 3


class Noting(nn.Module):
    """Stores on itself what passes through it, by assignment and in containers, and counts."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(4, 5), nn.Linear(5, 3)
        self.steps, self.hidden = 0, []
        self.by_name: dict[str, Tensor] = {}
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.inner(x))
        self.steps += 1
        self.last = self.new = h
        self.hidden.append(h)
        self.by_name["h"] = h
        return self.outer(h)


def hooked(normalize: Callable[[nn.Linear], nn.Module]) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.Sequential(normalize(nn.Linear(4, 5)), nn.Tanh(), nn.Linear(5, 3))


STORING: dict[str, Callable[[], nn.Module]] = {
    "attributes": Noting,
    "weight_norm": lambda: hooked(nn.utils.weight_norm),
    "spectral_norm": lambda: hooked(nn.utils.spectral_norm),
    "pruning": lambda: hooked(lambda m: torch.nn.utils.prune.random_unstructured(m, "weight", amount=0.5)),
}
MEASURES: dict[str, Callable[[Problem], Any]] = {
    "per_example_grads": tl.per_example_grads,
    "ntk": tl.ntk,
    "flatness": tl.flatness,
    "loss": Problem.loss,
}


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("name", STORING)
def test_what_a_forward_pass_stores_on_modules_is_as_it_was(name: str, measure: str) -> None:
    model, (x, y) = STORING[name](), rows()
    model(x)
    attributes = [dict(vars(m)) for m in model.modules()]
    weights = [m.weight.detach().clone() for m in model.modules() if isinstance(m, nn.Linear)]
    MEASURES[measure](Problem(model, F.cross_entropy, (x, y)))
    for module, before in zip(model.modules(), attributes, strict=True):
        assert vars(module).keys() == before.keys()
        assert all(now is before[k] or now == before[k] for k, now in vars(module).items())
    assert all(map(torch.equal, weights, [m.weight for m in model.modules() if isinstance(m, nn.Linear)]))
    assert not isinstance(model, Noting) or len(model.hidden) == model.steps == 1


def test_a_model_that_notes_its_activations_is_copied_and_saved_after_a_measurement() -> None:
    model = Noting()
    tl.per_example_grads(Problem(model, F.cross_entropy, rows()))
    torch.save(model, io.BytesIO())
    assert copy.deepcopy(model).last is None


def test_attributes_are_put_back_after_an_exception() -> None:
    model = Noting()
    with pytest.raises(RuntimeError, match="stop"), attributes_kept(list(model.modules())):
        model(rows()[0])
        model.outer.out_features = 7
        del model.steps
        raise RuntimeError("stop")
    assert (model.steps, model.hidden, model.by_name, model.outer.out_features) == (0, [], {}, 3)
    assert not hasattr(model, "new")
