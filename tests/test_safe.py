"""What a measurement leaves alone besides parameters: attributes, generators, targets, a loss's state; and in which contexts it runs."""

from __future__ import annotations

import contextlib
import copy
import io
import random
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.utils.prune
from test_problem import assert_same, snapshot
from torch import Tensor, nn
from torch.nn import functional as F

import theorylab as tl
from theorylab.core.attributes import attributes_kept
from theorylab.core.instrument import Inapplicable, instruments
from theorylab.core.problem import Problem
from theorylab.instruments.path_norm import path_norm


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

    def spoil() -> None:
        with attributes_kept(list(model.modules())):
            model(rows()[0])
            model.outer.out_features = 7
            del model.steps
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        spoil()
    assert (model.steps, model.hidden, model.by_name, model.outer.out_features) == (0, [], {}, 3)
    assert not hasattr(model, "new")


class Averaging(nn.Module):
    """Keeps a running mean of its hidden layer, counts its steps and draws."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer, self.steps = nn.Linear(4, 5), nn.Linear(5, 3), 0
        self.register_buffer("mean", torch.zeros(5))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.inner(x))
        self.steps += 1
        self.get_buffer("mean").mul_(0.9).add_(0.1 * h.detach().mean(0))
        torch.rand(2)
        return self.outer(h)


def spectral() -> nn.Module:
    norm = nn.utils.parametrizations.spectral_norm
    net = nn.Sequential(norm(nn.Linear(4, 5)), nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), norm(nn.Linear(5, 3)))
    for buffer in net.buffers():
        nn.init.normal_(buffer)  # far from where the iteration stays
    return net


@pytest.mark.parametrize("make", [Averaging, spectral])
@pytest.mark.parametrize(
    "measure",
    [
        tl.norms,
        tl.balancedness,
        tl.margin_geometry,
        path_norm,
        *(instruments()[name].why_not for name in ("balancedness", "margin_geometry", "norms")),
        lambda p: tl.layer_spectrum(p.model[0] if isinstance(p.model, nn.Sequential) else p.model.inner, (4,)),
    ],
)
def test_to_read_a_model_is_not_to_run_it(make: Callable[[], nn.Module], measure: Callable[[Problem], Any]) -> None:
    """Its graph is traced, and its weights are looked up, outside of any evaluation."""
    model = make().train()
    problem = Problem(model, F.cross_entropy, rows())
    before = snapshot(model)
    with contextlib.suppress(Inapplicable):
        measure(problem)
    assert_same(model, before)
    assert getattr(model, "steps", 0) == 0


def masking(outputs: Tensor, targets: Tensor) -> Tensor:
    targets[targets == 255] = -100
    return F.cross_entropy(outputs, targets, reduction="none")


@pytest.mark.parametrize("measure", [tl.per_example_grads, tl.per_example_grad_norms, tl.gradient_noise])
def test_a_loss_that_writes_into_its_targets_gets_copies(measure: Callable[[Problem], Any]) -> None:
    x, y = rows()
    y[3] = 255
    before = y.clone()
    measure(Problem(nn.Linear(4, 3), masking, (x, y)))
    assert torch.equal(y, before)


def test_a_cached_parametrization_is_computed_anew() -> None:
    model, (x, y) = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 5)), nn.Tanh(), nn.Linear(5, 3)), rows()
    problem = Problem(model, F.cross_entropy, (x, y))
    before = problem.gradient()
    with nn.utils.parametrize.cached():
        kept = model[0].weight
        assert torch.equal(problem.gradient(), before)
        assert model[0].weight is kept
    assert model[0].weight is not kept


@pytest.mark.parametrize(
    "measure",
    [
        Problem.gradient,
        tl.per_example_grads,
        tl.gradient_noise,
        tl.noise_scale,
        lambda p: tl.sharpness_along(p, lambda q: torch.optim.SGD(q, lr=0.1), steps=4).sharpness,
        lambda p: p.at({k: 2 * v for k, v in p.params.items()}).to(dtype=torch.float64).gradient(),
    ],
)
def test_inference_mode_does_not_matter(measure: Callable[[Problem], Any]) -> None:
    model, data = nn.Linear(4, 3), rows()
    expected = measure(Problem(model, F.cross_entropy, data))
    with torch.inference_mode():
        found = measure(Problem(model, F.cross_entropy, data))
        assert torch.is_inference_mode_enabled()
    assert torch.equal(found, expected) if isinstance(found, Tensor) else repr(found) == repr(expected)


class Augmented(nn.Module):
    """Draws from generators that are not torch's, as augmentations do."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x * (1 + np.random.rand()) + random.random())


def test_what_a_model_draws_from_python_and_numpy_is_frozen_and_put_back() -> None:
    before = random.getstate(), np.random.get_state()
    problem = Problem(Augmented(), nn.functional.mse_loss, (torch.randn(4, 3), torch.randn(4, 2)))
    value = problem.loss()
    assert torch.equal(problem.loss(), value)
    with problem.safe():
        assert torch.equal(problem.batch_loss(0), problem.batch_loss(0))
        assert problem.draws(0)
    assert random.getstate() == before[0]
    after = np.random.get_state()
    assert all(np.array_equal(a, b) for a, b in zip(before[1], after, strict=True))


class Averaging(nn.Module):
    """A loss that notes a running mean of what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))
        self.seen: Tensor

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        self.seen.mul_(0.9).add_(0.1 * outputs.detach().mean())
        return F.cross_entropy(outputs, targets)


def test_the_buffers_of_a_loss_are_put_back() -> None:
    loss = Averaging()
    problem = Problem(nn.Linear(4, 3), loss, rows())
    for measure in (tl.sharpness, tl.preflight, lambda p: p.gradient()):
        measure(problem)
    assert float(loss.seen) == 0.0
