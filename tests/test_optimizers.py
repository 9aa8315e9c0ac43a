"""Every optimizer in learning/optimizers: pure, with hyper-parameters of each replica, and equal to PyTorch's where it has the same."""

from __future__ import annotations

import functools
import importlib
import inspect
import itertools
import pkgutil
from collections.abc import Callable, Iterator
from typing import Literal

import pytest
import torch
from torch import nn

import theorylab.learning.optimizers as package
from theorylab.core.checkpoints import checkpoints
from theorylab.learning.minibatches import minibatches
from theorylab.learning.optimizers.adam import adam, momentum_divisor
from theorylab.learning.optimizers.base import Hyper, Optimizer, take
from theorylab.learning.optimizers.mirror import exponentiated_gradient
from theorylab.learning.optimizers.muon import muon
from theorylab.learning.optimizers.ogm import ogm
from theorylab.learning.optimizers.rmsprop import rmsprop
from theorylab.learning.optimizers.sam import sam
from theorylab.learning.optimizers.sgd import sgd
from theorylab.learning.optimizers.shampoo import shampoo, soap
from theorylab.learning.optimizers.steepest import normalized_gd
from theorylab.learning.optimizers.svag import svag
from theorylab.learning.population import Population
from theorylab.learning.schedule import constant, cosine, exponential_decay, power_decay, scheduled, warmup_stable_decay
from theorylab.models.seeded import seeded

K = 3
SPREAD = torch.tensor([0.8, 1.0, 1.2], dtype=torch.float64)
LR = 0.05 * SPREAD
REQUIRED = {"lr": 0.05}
"""Values for arguments without a default; other factories' own are looked up by annotation and name."""
AT_LEAST_ONE = {"amplification"}
"""Arguments whose values below one are refused."""


def factories() -> Iterator[Callable[..., Optimizer]]:
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        for name, value in vars(module).items():
            if name.startswith("_") or not inspect.isfunction(value) or value.__module__ != module.__name__:
                continue
            if inspect.signature(value).return_annotation in (Optimizer, "Optimizer"):
                yield value


def constant_sgd(lr: Hyper) -> Optimizer:
    return scheduled(sgd, lr, constant())


def cosine_momentum(lr: Hyper, momentum: Hyper = 0.5) -> Optimizer:
    return scheduled(lambda rate: sgd(rate, momentum=momentum), lr, cosine(20, floor=0.1))


def warmup_stable_decay_adam(lr: Hyper, eps: Hyper = 1e-3) -> Optimizer:
    return scheduled(lambda rate: adam(rate, eps=eps), lr, warmup_stable_decay(15, warmup=3, decay=5, floor=0.1))


def exponential_sgd_by_schedule(lr: Hyper, factor: Hyper = 0.9, weight_decay: Hyper = 0.1) -> Optimizer:
    return scheduled(lambda rate: sgd(rate, weight_decay=weight_decay), lr, exponential_decay(factor))


def power_rmsprop(lr: Hyper, power: Hyper = 0.5) -> Optimizer:
    return scheduled(rmsprop, lr, power_decay(power))


SCHEDULED = [constant_sgd, cosine_momentum, warmup_stable_decay_adam, exponential_sgd_by_schedule, power_rmsprop]
"""Each schedule around an optimizer, with hyper-parameters of the replicas in all three places: step size, optimizer, schedule."""
FACTORIES = [*factories(), *SCHEDULED]
PARTIAL = {"greedy_coordinate": "moves one coordinate of one tensor"}
every_factory = pytest.mark.parametrize("factory", FACTORIES, ids=lambda f: f.__name__)


def arguments(factory: Callable[..., Optimizer]) -> dict:
    """Something for every argument that has no default: an optimizer, or a small positive number."""
    needed = [p for p in inspect.signature(factory).parameters.values() if p.default is p.empty]
    return {
        p.name: sgd(LR) if "Optimizer" in str(p.annotation) else REQUIRED.get(p.name, 7 if "int" in str(p.annotation) else 0.05)
        for p in needed
    }


def per_replica(factory: Callable[..., Optimizer]) -> dict:
    """The arguments, every `Hyper` one different for each replica."""
    out = arguments(factory)
    for p in inspect.signature(factory).parameters.values():
        if "Hyper" not in str(p.annotation) or "tuple" in str(p.annotation):
            continue
        value = 2.0 if p.name in AT_LEAST_ONE else out.get(p.name, p.default)
        if isinstance(value, float) and value > 0:
            out[p.name] = value * SPREAD if value < 0.8 or p.name in AT_LEAST_ONE else value * SPREAD.clamp(max=1.0)
    return out


def some(hypers: dict, part: slice, *, scalar: bool = False) -> dict:
    """The arguments for some replicas; for one, as numbers where ``scalar``."""

    def cut(value: object) -> object:
        if isinstance(value, Optimizer):
            assert value.select is not None
            return value.select(part)
        return (float(value[part]) if scalar else value[part]) if isinstance(value, torch.Tensor) else value

    return {name: cut(value) for name, value in hypers.items()}


def start(seed: int) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {name: torch.randn(K, *shape, generator=g, dtype=torch.float64) for name, shape in (("w", (4, 3)), ("b", (4,)), ("s", ()))}


def gradient(params: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k: (p**3 + p - 0.3) for k, p in params.items()}


def run(optimizer: Optimizer, params: dict[str, torch.Tensor], steps: int) -> dict[str, torch.Tensor]:
    state = optimizer.init(params)
    for _ in range(steps):
        params, state = take(optimizer, gradient, state, params)
    return params


def tensors(tree: object) -> Iterator[torch.Tensor]:
    if isinstance(tree, dict):
        for value in tree.values():
            yield from tensors(value)
    else:
        assert isinstance(tree, torch.Tensor)
        yield tree


def test_the_battery_discovers_the_optimizers():
    assert {"sgd", "adam", "rmsprop", "svag", "shampoo", "soap", "muon", "exponentiated_gradient"} <= {f.__name__ for f in FACTORIES}


@every_factory
def test_update_is_pure(factory):
    optimizer = factory(**per_replica(factory))
    params, grads = start(0), gradient(start(1))
    state = optimizer.init(params)
    _, state = optimizer.update(grads, state, params)  # a state that is no longer all zeros
    inputs = [*tensors(params), *tensors(grads), *tensors(state)]
    before = [t.clone() for t in inputs]
    first = optimizer.update(grads, state, params)
    second = optimizer.update(grads, state, params)
    assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))
    for a, b in zip([*tensors(first[0]), *tensors(first[1])], [*tensors(second[0]), *tensors(second[1])], strict=True):
        assert torch.equal(a, b)
    moved = [not torch.equal(p, params[k]) for k, p in first[0].items()]
    assert any(moved) if factory.__name__ in PARTIAL else all(moved)


@every_factory
def test_a_lone_replica_equals_its_batch_twin(factory):
    together = run(factory(**per_replica(factory)), start(0), 10)
    for k in range(K):
        one = slice(k, k + 1)
        lone = run(factory(**some(per_replica(factory), one)), {n: p[one] for n, p in start(0).items()}, 10)
        for n, p in lone.items():
            torch.testing.assert_close(p[0], together[n][k], rtol=1e-12, atol=1e-12)  # ten steps of rounding


@every_factory
def test_per_replica_hypers_equal_a_loop_of_scalar_ones(factory):
    together = run(factory(**per_replica(factory)), start(0), 10)
    for k in range(K):
        one = slice(k, k + 1)
        lone = run(factory(**some(per_replica(factory), one, scalar=True)), {n: p[one] for n, p in start(0).items()}, 10)
        for n, p in lone.items():
            torch.testing.assert_close(p[0], together[n][k], rtol=1e-12, atol=1e-12)


@every_factory
def test_select_indexes_the_hypers(factory):
    optimizer = factory(**per_replica(factory))
    assert optimizer.select is not None, f"decorate {factory.__name__} with @selectable, or populations cannot cut it in chunks"
    part = run(optimizer.select(slice(1, 3)), {n: p[1:3] for n, p in start(0).items()}, 3)
    whole = run(optimizer, start(0), 3)
    assert all(torch.equal(p, whole[n][1:3]) for n, p in part.items())
    twice = optimizer.select(slice(1, 3)).select
    assert twice is not None
    last = run(twice(slice(1, 2)), {n: p[2:3] for n, p in start(0).items()}, 3)
    for n, p in last.items():
        torch.testing.assert_close(p, whole[n][2:3], rtol=1e-12, atol=1e-12)


@every_factory
def test_hypers_of_the_wrong_length_are_refused(factory):
    hypers = some(per_replica(factory), slice(0, 2))
    with pytest.raises(ValueError, match="one a replica"):
        run(factory(**hypers), start(0), 1)


AGAINST_TORCH = {
    "sgd": (sgd(LR), lambda p, k: torch.optim.SGD(p, lr=float(LR[k]))),
    "momentum": (
        sgd(LR, momentum=0.9 * SPREAD.clamp(max=1.0), weight_decay=0.1 * SPREAD),
        lambda p, k: torch.optim.SGD(p, lr=float(LR[k]), momentum=0.9 * min(1.0, float(SPREAD[k])), weight_decay=0.1 * float(SPREAD[k])),
    ),
    "nesterov": (sgd(LR, momentum=0.9, nesterov=True), lambda p, k: torch.optim.SGD(p, lr=float(LR[k]), momentum=0.9, nesterov=True)),
    "adam": (
        adam(LR, betas=(0.8 * SPREAD.clamp(max=1.0), 0.99), weight_decay=0.1),
        lambda p, k: torch.optim.Adam(p, lr=float(LR[k]), betas=(0.8 * min(1.0, float(SPREAD[k])), 0.99), weight_decay=0.1),
    ),
    "amsgrad": (adam(LR, betas=(0.8, 0.9), amsgrad=True), lambda p, k: torch.optim.Adam(p, float(LR[k]), betas=(0.8, 0.9), amsgrad=True)),
    "rmsprop": (
        rmsprop(LR, alpha=0.9 * SPREAD.clamp(max=1.0), eps=1e-6 * SPREAD, weight_decay=0.1 * SPREAD),
        lambda p, k: torch.optim.RMSprop(
            p, float(LR[k]), alpha=0.9 * min(1.0, float(SPREAD[k])), eps=1e-6 * float(SPREAD[k]), weight_decay=0.1 * float(SPREAD[k])
        ),
    ),
    "rmsprop, centered, with momentum": (
        rmsprop(LR, alpha=0.95, momentum=0.5 * SPREAD, centered=True),
        lambda p, k: torch.optim.RMSprop(p, float(LR[k]), alpha=0.95, momentum=0.5 * float(SPREAD[k]), centered=True),
    ),
    "adamw": (
        adam(LR, weight_decay=0.1 * SPREAD, eps=1e-6 * SPREAD, decoupled=True),
        lambda p, k: torch.optim.AdamW(p, lr=float(LR[k]), weight_decay=0.1 * float(SPREAD[k]), eps=1e-6 * float(SPREAD[k])),
    ),
}


@pytest.mark.parametrize("name", AGAINST_TORCH)
def test_equals_torch_optim(name):
    optimizer, reference = AGAINST_TORCH[name]
    ours = run(optimizer, start(0), 50)
    for k in range(K):
        params = {n: p[k].clone().requires_grad_() for n, p in start(0).items()}
        theirs = reference(list(params.values()), k)
        for _ in range(50):
            for n, g in gradient({n: p.detach() for n, p in params.items()}).items():
                params[n].grad = g
            theirs.step()
        for n, p in params.items():
            torch.testing.assert_close(ours[n][k], p.detach(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("make", [lambda p: torch.optim.Adam(p, 0.05), lambda p: torch.optim.AdamW(p, 0.05, weight_decay=0.1)])
def test_adam_moves_in_bfloat16_as_that_of_torch_does(make) -> None:
    """β₂ = 0.999 is one in bfloat16: as powers of that, the bias corrections would be zero."""
    first = {n: p.bfloat16() for n, p in start(0).items()}
    decoupled = make(list(first.values())).defaults["weight_decay"] > 0
    ours = run(adam(0.05, weight_decay=0.1 if decoupled else 0.0, decoupled=decoupled), first, 20)
    swept = run(
        adam(0.05, betas=(torch.full((K,), 0.9), torch.full((K,), 0.999)), weight_decay=0.1 * decoupled, decoupled=decoupled), first, 20
    )
    theirs = {n: p.clone() for n, p in first.items()}
    reference = make(list(theirs.values()))
    for _ in range(20):
        for n, g in gradient(theirs).items():
            theirs[n].grad = g
        reference.step()
    for n, p in theirs.items():
        assert ours[n].dtype == torch.bfloat16
        assert (p - first[n]).abs().max() > 0.3
        torch.testing.assert_close(ours[n], p, rtol=0.02, atol=0.02)
        torch.testing.assert_close(swept[n], p, rtol=0.02, atol=0.02)


def test_decoupled_decay_of_sgd_shrinks_the_parameter_and_not_the_momentum() -> None:
    optimizer = sgd(LR, momentum=0.9, weight_decay=0.3 * SPREAD, decoupled=True)
    ours = run(optimizer, start(0), 7)
    for k in range(K):
        eta, decay = float(LR[k]), 0.3 * float(SPREAD[k])
        for n, p in start(0).items():
            w, v = p[k], torch.zeros_like(p[k])
            for _ in range(7):
                v = 0.9 * v + w**3 + w - 0.3
                w = (1 - eta * decay) * w - eta * v
            torch.testing.assert_close(ours[n][k], w)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sgd(-0.1), "lr must be at least 0 and finite, got -0.1"),
        (lambda: sgd(torch.tensor([0.1, -0.1])), "lr must be at least 0"),
        (lambda: sgd(float("nan")), "lr must be at least 0 and finite, got nan"),
        (lambda: sgd(0.1, momentum=1.0), r"momentum must lie in \[0, 1\), got 1"),
        (lambda: sgd(0.1, weight_decay=-1.0), "weight_decay must be at least 0"),
        (lambda: sgd(0.1, nesterov=True), "nesterov needs momentum"),
        (lambda: adam(0.1, betas=(1.0, 0.999)), r"betas\[0\] must lie in"),
        (lambda: adam(0.1, betas=(0.9, torch.tensor([0.9, 1.0]))), r"betas\[1\] must lie in \[0, 1\), got 1"),
        (lambda: adam(0.1, eps=-1.0), "eps must be at least 0"),
        (lambda: rmsprop(0.1, alpha=2.0), "alpha must lie in"),
        (lambda: muon(0.1, momentum=1.5), "momentum must lie in"),
        (lambda: muon(0.1, steps=-1), "steps must be at least 0"),
        (lambda: muon(0.1, steps=2.5), "steps must be at least 0 and whole, got 2.5"),  # type: ignore[arg-type]
        (lambda: ogm(0.1, steps=2.5), "steps must be at least 1 and whole, got 2.5"),  # type: ignore[arg-type]
        (lambda: ogm(0.1, steps=float("nan")), "steps must be at least 1 and whole, got nan"),  # type: ignore[arg-type]
        (lambda: svag(0.1, amplification=float("inf")), "amplification must be at least 0 and finite, got inf"),
        (lambda: svag(0.1, amplification=float("nan")), "amplification must be at least 1"),
        (lambda: shampoo(0.1, exponent=0.0), "exponent must be positive and finite, got 0"),
        (lambda: shampoo(0.1, exponent=-4.0), "exponent must be positive"),
        (lambda: sam(sgd(0.1), rho=-1.0), "rho must be at least 0"),
        (lambda: exponentiated_gradient(-1.0), "lr must be at least 0"),
        (lambda: shampoo(0.1, eps=-1.0), "eps must be at least 0"),
        (lambda: soap(0.1, shampoo_beta=1.0), "shampoo_beta must lie in"),
        (lambda: svag(-0.1), "lr must be at least 0"),
        (lambda: normalized_gd(-0.1), "lr must be at least 0"),
        (lambda: scheduled(sgd, -0.1, constant()), "lr must be at least 0"),
    ],
)
def test_hypers_out_of_their_range_are_refused(call: Callable[[], Optimizer], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (5, 5)])
def test_muons_other_scale_gives_its_updates_the_root_mean_square_of_adamws(shape: tuple[int, int]) -> None:
    method = muon(1.0, momentum=0.0, steps=None, scale="match_rms_adamw")
    W = {"W": torch.zeros(1, *shape, dtype=torch.float64)}
    G = {"W": torch.randn(1, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))}
    moved = method.update(G, method.init(W), W)[0]["W"]
    assert moved.square().mean().sqrt().item() == pytest.approx(0.2, rel=1e-9)


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_soaps_floor_is_a_share_of_the_gradients_norm(size: float) -> None:
    W = {"W": torch.zeros(1, 2, 2, dtype=torch.float64)}
    G = {"W": size * torch.diag(torch.tensor([3.0, 0.02], dtype=torch.float64))[None]}
    for floor, small in ((0.0, -1.0), (0.005, -1.0), (0.01, 0.0)):  # the small entry is 0.0067 of the norm
        method = soap(1.0, eps=0.0, floor=floor)
        moved = method.update(G, method.init(W), W)[0]["W"][0]
        torch.testing.assert_close(moved, torch.diag(torch.tensor([-1.0, small], dtype=torch.float64)), atol=1e-9, rtol=0)


def test_ogm_has_its_last_factor_once() -> None:
    """By its formulas in plain numbers: 8 in the step named, 4 before and after."""
    steps, lr, curvature = 2, 0.5, 1.0
    method, points = ogm(lr, steps=steps), {"y": torch.ones(1, dtype=torch.float64)}
    state = method.init(points)
    x, y, theta = 1.0, 1.0, 1.0
    for t in range(1, 5):
        points, state = method.update({"y": curvature * points["y"]}, state, points)
        ahead = y - lr * curvature * y
        after = (1 + (1 + (8 if t == steps else 4) * theta**2) ** 0.5) / 2
        x, y, theta = ahead, ahead + (theta - 1) / after * (ahead - x) + theta / after * (ahead - y), after
        assert points["y"].item() == pytest.approx(y, rel=1e-12, abs=1e-15)


def test_adam_corrects_both_biases_and_its_divisor_is_what_it_divides_by() -> None:
    """From moments small enough for ε to count, so that a missing correction shows."""
    lr, betas, eps = 0.1, (0.9, 0.99), 1e-3
    generator = torch.Generator().manual_seed(0)
    theirs = torch.ones(1, 4, dtype=torch.float64, requires_grad=True)
    reference = torch.optim.Adam([theirs], lr=lr, betas=betas, eps=eps)
    ours, method = {"x": theirs.detach().clone()}, adam(lr, betas, eps)
    state = method.init(ours)
    for t in range(1, 7):
        theirs.grad = 1e-4 * torch.randn(1, 4, dtype=torch.float64, generator=generator)
        reference.step()
        before = ours["x"]
        ours, state = method.update({"x": theirs.grad}, state, ours)
        torch.testing.assert_close(ours["x"], theirs.detach(), rtol=1e-12, atol=0)
        step = lr * state["first"]["x"] / momentum_divisor(state["second"]["x"], t, betas, eps)
        torch.testing.assert_close(before - ours["x"], step, rtol=1e-9, atol=0)


def test_sam_of_an_optimizer_that_probes_is_refused() -> None:
    with pytest.raises(ValueError, match="base must take its gradient at the parameters, got sam sgd"):
        sam(sam(sgd(0.1)))


def published_sam(parameters: list[torch.Tensor], base: torch.optim.Optimizer, rho: float, closure: Callable[[], torch.Tensor]) -> None:
    """Algorithm 1 of Foret et al., word by word: up to the worst neighbour, its gradient, back, and a step."""
    base.zero_grad()
    closure().backward()
    norm = torch.stack([p.grad.norm() for p in parameters]).norm()
    ups = [rho * p.grad / norm for p in parameters]
    with torch.no_grad():
        for p, up in zip(parameters, ups, strict=True):
            p.add_(up)
    base.zero_grad()
    closure().backward()
    with torch.no_grad():
        for p, up in zip(parameters, ups, strict=True):
            p.sub_(up)
    base.step()


@pytest.mark.parametrize("mode", ["vmap", "loop"])
@pytest.mark.parametrize("batch_size", [None, 4])
def test_sam_in_a_population_equals_the_published_algorithm(mode: Literal["vmap", "loop"], batch_size: int | None) -> None:
    """Each replica with its own ρ, momentum and weight decay of the base seeing the second gradient."""
    x = torch.randn(12, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = x.sin().sum(1, keepdim=True)
    rhos = torch.tensor([0.0, 0.05, 0.3], dtype=torch.float64)

    def net() -> nn.Module:
        return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 1))

    base = sgd(0.1, momentum=0.9, weight_decay=1e-2)
    population = Population(
        net, nn.functional.mse_loss, (x, y), optimizer=sam(base, rhos), seeds=range(3), batch_size=batch_size, mode=mode
    )
    population.train(50)
    for k in range(3):
        model = seeded(net, k)
        torch_sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)
        order = minibatches(12, batch_size, k) if batch_size else itertools.repeat(torch.arange(12))

        def closure(model: nn.Module, rows: torch.Tensor) -> torch.Tensor:
            return nn.functional.mse_loss(model(x[rows]), y[rows])

        for rows in itertools.islice(order, 50):
            published_sam(list(model.parameters()), torch_sgd, float(rhos[k]), functools.partial(closure, model, rows))
        for name, p in model.named_parameters():
            torch.testing.assert_close(population.params[name][k], p.detach(), rtol=1e-8, atol=1e-10)


def test_both_passes_of_sam_see_the_same_dropout() -> None:
    """Drawn once a step from the replica's own stream, which goes on from its ``make_model()``."""
    x = torch.randn(12, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = x.sin().sum(1, keepdim=True)

    def net() -> nn.Module:
        return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, 1))

    population = Population(net, nn.functional.mse_loss, (x, y), optimizer=sam(sgd(0.1), 0.3), seeds=range(2))
    population.train(5)
    for k in range(2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(k)
            model = net().double()
            for _ in range(5):
                before = torch.get_rng_state()

                def closure(model: nn.Module, before: torch.Tensor) -> torch.Tensor:
                    torch.set_rng_state(before)
                    return nn.functional.mse_loss(model(x), y)

                step = torch.optim.SGD(model.parameters(), lr=0.1)
                published_sam(list(model.parameters()), step, 0.3, functools.partial(closure, model, before))
        for name, p in model.named_parameters():
            torch.testing.assert_close(population.params[name][k], p.detach(), rtol=1e-8, atol=1e-10)


def test_sam_leaves_running_statistics_to_the_first_pass() -> None:
    x = torch.randn(16, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def net() -> nn.Module:
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))

    runs = [
        Population(net, nn.functional.mse_loss, (x, x[:, :1]), optimizer=method, seeds=[0, 1], mode="vmap")
        for method in (sgd(0.1), sam(sgd(0.1), 0.1))
    ]
    for run in runs:
        run.train(1)
    assert all(torch.equal(runs[0].buffers[k], b) for k, b in runs[1].buffers.items())
    assert not torch.equal(runs[0].params["0.weight"], runs[1].params["0.weight"])


def test_svag_is_sgd_on_the_combination_of_each_pair_of_gradients():
    amplification = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)
    method, x = svag(LR, amplification=amplification), start(0)
    state, reference = method.init(x), start(0)
    for t in range(5):
        first, second = gradient(start(2 * t + 1)), gradient(start(2 * t + 2))
        held, state = method.update(first, state, x)
        assert all(torch.equal(held[n], x[n]) for n in x)
        x, state = method.update(second, state, held)
        for n, p in reference.items():
            for k in range(K):
                root = (2 * amplification[k] - 1).sqrt()
                p[k] -= LR[k] / amplification[k] * ((1 + root) * first[n][k] + (1 - root) * second[n][k]) / 2
    for n, p in reference.items():
        torch.testing.assert_close(x[n], p, rtol=1e-12, atol=1e-12)


def test_svag_refuses_a_combination_with_less_variance():
    with pytest.raises(ValueError, match="amplification must be at least 1"):
        svag(0.1, amplification=torch.tensor([2.0, 0.9]))


def test_sam_takes_a_schedule_inside_and_outside() -> None:
    inside = sam(scheduled(sgd, LR, cosine(10)), 0.1)
    outside = scheduled(lambda lr: sam(sgd(lr), 0.1), LR, cosine(10))
    ours, theirs = run(inside, start(0), 8), run(outside, start(0), 8)
    assert all(torch.equal(p, theirs[k]) for k, p in ours.items())
    plain = run(scheduled(sgd, LR, cosine(10)), start(0), 8)
    assert not torch.allclose(plain["w"], ours["w"])


@every_factory
def test_training_by_every_optimizer_goes_on_where_it_was_stopped(factory, tmp_path):
    x = torch.randn(12, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def trained(stop: int | None = None) -> Population:
        def measure(now: Population) -> torch.Tensor:
            if now.step_count == stop:
                raise KeyboardInterrupt
            return now.losses()

        optimizer = factory(**per_replica(factory))
        population = Population(lambda: nn.Linear(5, 2), nn.functional.mse_loss, (x, x[:, :2]), optimizer=optimizer, seeds=range(K))
        population.params = {name: p.abs() + 0.1 for name, p in population.params.items()}  # some stay in the positive orthant
        population.train(8, every=2, measure=measure)
        return population

    undisturbed = trained()
    with checkpoints(tmp_path, every=0), pytest.raises(KeyboardInterrupt):
        trained(stop=6)
    with checkpoints(tmp_path, every=0):
        again = trained()
    pairs = zip([*tensors(again.params), *tensors(again.state)], [*tensors(undisturbed.params), *tensors(undisturbed.state)], strict=True)
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in pairs)  # the way of training is timed anew, and with it rounding
