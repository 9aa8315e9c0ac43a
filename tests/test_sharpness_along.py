"""Sharpness along training: the path of torch.optim, the eigenvalues of dense Hessians, and the known edge of a quadratic and a network."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from zoo import make

from theorylab.core.problem import Problem
from theorylab.instruments.curvature import adam_preconditioner, dense_hessian, dense_sharpness, hessian, sharpness
from theorylab.instruments.sharpness_along import replica_descent, replica_sharpness, sharpness_along
from theorylab.learning.optimizers.sgd import sgd
from theorylab.learning.population import Population
from theorylab.learning.subspace import RandomSubspace


@pytest.mark.parametrize("adaptive", [False, True])
def test_it_follows_torch_optim_and_the_dense_hessian(adaptive: bool) -> None:
    problem = make("mlp")
    before = copy.deepcopy(problem.model.state_dict())

    def optimizer(params: Any) -> torch.optim.Optimizer:
        return torch.optim.Adam(params, lr=0.01) if adaptive else torch.optim.SGD(params, lr=0.1, momentum=0.5)

    path = sharpness_along(problem, optimizer, steps=6, every=2, edge=10.0, tol=1e-6)
    model = copy.deepcopy(problem.model).double()
    trained = optimizer(list(model.parameters()))
    seen = []
    for t in range(7):
        here = Problem(model, problem.criterion, problem.batches[0].content)
        if t % 2 == 0 and not (adaptive and t == 0):
            scaling = adam_preconditioner(here, trained) if adaptive else None
            seen.append((t, dense_sharpness(here, precondition=scaling).value, float(here.loss())))
        trained.zero_grad()
        here.batch_loss(0, dict(model.named_parameters())).backward()
        trained.step()
    at, values, losses = zip(*seen, strict=True)
    assert path.steps.tolist() == list(at)
    assert torch.allclose(path.sharpness, torch.tensor(values, dtype=torch.float64), rtol=1e-8)
    assert torch.allclose(path.losses, torch.tensor(losses, dtype=torch.float64), rtol=1e-10)
    assert all(torch.equal(p, problem.model.state_dict()[k]) for k, p in before.items())


def test_a_step_too_long_for_a_sharp_minimum_ends_in_a_flatter_one() -> None:
    """f(x) = w₁w₂x beside a minimum with λ₁ = w₁² + w₂² = 6.9 > 2/η: gradient descent leaves it for one below the edge."""
    net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)).double()
    x = torch.ones(1, 1, dtype=torch.float64)
    problem = Problem(net, lambda f, y: (f - y).square().mean() / 2, (x, x))
    w = torch.tensor([[2.6]], dtype=torch.float64)
    problem = problem.at({"0.weight": w, "1.weight": 0.9 / w})
    path = sharpness_along(problem, lambda p: torch.optim.SGD(p, lr=0.4), steps=400, every=10)
    w1, w2 = (float(p) for p in path.params.values())
    assert path.edge == 5.0
    assert float(path.sharpness[0]) > path.edge > float(path.sharpness[-1])
    assert float(path.sharpness[-1]) == pytest.approx(w1**2 + w2**2, rel=1e-6)
    assert path.ratio.value == pytest.approx(float(path.sharpness[-1]) / 5.0, rel=1e-6)  # long settled in the late half
    assert path.ratio.n == 8
    assert path.plot().get_xlabel() == "step"


@pytest.mark.parametrize(("decay", "grows"), [(0.5, False), (1.5, True)])
def test_the_edge_with_weight_decay_is_where_a_quadratic_begins_to_grow(decay: float, grows: bool) -> None:
    x = torch.eye(2, dtype=torch.float64)
    problem = Problem(nn.Linear(2, 1, bias=False).double(), nn.functional.mse_loss, (x, torch.zeros(2, 1, dtype=torch.float64)))  # λ₁ = 1
    path = sharpness_along(problem, lambda p: torch.optim.SGD(p, lr=1.0, weight_decay=decay), steps=10)
    assert path.edge == 2 - decay
    assert (path.ratio.value > 1) is (float(path.losses[-1]) > float(path.losses[0])) is grows


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 1}, "steps must be at least 2"),
        ({"every": 0}, "every must lie in"),
        ({"late": 0.0}, "late must lie in"),
        ({"edge": -1.0}, "edge must be positive"),
        ({"steps": 20, "every": 20}, "every and late must leave at least two measurements"),
        ({"optimizer": lambda p: torch.optim.SGD(p, lr=0.1, maximize=True)}, "optimizer must descend"),
        ({"optimizer": lambda p: torch.optim.Adam(p)}, "edge must be given for an optimizer other than"),
        ({"optimizer": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)}, "edge must be given"),
        ({"optimizer": lambda p: torch.optim.SGD(p, lr=4.0, weight_decay=0.5)}, "one weight decay below 2/η"),
        ({"optimizer": lambda p: torch.optim.SGD(p[1:], lr=0.1)}, r"hold exactly the 6 parameters .* got 5, of which 5 are among them"),
        ({"optimizer": lambda p: torch.optim.LBFGS(p), "edge": 1.0}, "step from a gradient alone, got LBFGS"),
    ],
)
def test_bad_input(options: dict[str, Any], message: str) -> None:
    options = {"optimizer": lambda p: torch.optim.SGD(p, lr=0.1)} | options
    with pytest.raises(ValueError, match=message):
        sharpness_along(make("mlp"), **options)


def test_an_optimizer_of_the_model_itself_is_refused_before_it_steps() -> None:
    problem = make("mlp")
    own = list(problem.model.parameters())
    for p in own:
        p.grad = torch.ones_like(p)
    before = [p.detach().clone() for p in own]
    with pytest.raises(ValueError, match=r"got 6, of which 0 are among them: a copy is trained"):
        sharpness_along(problem, lambda _: torch.optim.SGD(own, lr=0.5), steps=20)
    assert all(map(torch.equal, before, own))
    with pytest.raises(TypeError, match=r"must return a torch\.optim\.Optimizer, got list"):
        sharpness_along(problem, lambda p: list(p), steps=20)  # pyright: ignore


def test_descent_of_replicas_is_that_of_dense_hessians() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(12, k, generator=generator, dtype=torch.float64) for k in (3, 2))

    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))

    population = Population(model, nn.functional.mse_loss, (x, y), optimizer=sgd(0.2), seeds=[0, 1, 2])
    run = population.train(10, every=5, measure=replica_descent())
    for k in range(3):
        problem = population.problem(k)
        g, H = problem.gradient(), dense_hessian(problem).to_dense()
        assert float(run["loss"][-1, k]) == pytest.approx(float(problem.loss()), rel=1e-12)
        assert float(run["gradient norm"][-1, k]) == pytest.approx(float(g.norm()), rel=1e-10)
        assert float(run["directional curvature"][-1, k]) == pytest.approx(float(g @ H @ g / (g @ g)), rel=1e-9)
    still = Population(lambda: nn.Linear(3, 1), nn.functional.mse_loss, (0 * x, 0 * x[:, :1]), optimizer=sgd(0.5), seeds=[0])
    assert still.train(200, every=200, measure=replica_descent())["directional curvature"][-1].isfinite().all()


class Gated(nn.Module):
    """A network whose buffer is drawn by the seed."""

    def __init__(self) -> None:
        super().__init__()
        self.gate: torch.Tensor
        self.net = net()
        self.register_buffer("gate", torch.rand(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x * self.gate)


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


OWN: dict[str, dict[str, Any]] = {
    "the same rows": {},
    "rows of their own": {"data": (normal(3, 12, 3), normal(3, 12, 2)), "data_per_replica": True},
    "row weights": {"row_weights": (normal(3, 12) > 0).double()},
    "frozen layers": {"trainable": lambda name: name.startswith("2.")},
    "drawn buffers": {"make_model": Gated},
    "running statistics": {"make_model": lambda: nn.Sequential(*net(), nn.BatchNorm1d(2)).eval()},
    "batch statistics": {"make_model": lambda: nn.Sequential(*net(), nn.BatchNorm1d(2))},
    "subspaces": {"make_model": lambda: RandomSubspace(net(), 6, seed=torch.initial_seed())},
}


@pytest.mark.parametrize("kind", OWN)
def test_each_replica_is_measured_with_all_that_is_its_own(kind: str) -> None:
    settings = {"make_model": net, "loss": nn.functional.mse_loss, "data": (normal(12, 3), normal(12, 2)), **OWN[kind]}
    population = Population(**settings, optimizer=sgd(0.2), seeds=[0, 1, 2])
    if kind == "running statistics":
        population.buffers = {k: b + torch.arange(3)[:, None] if b.ndim == 2 else b for k, b in population.buffers.items()}
    population.train(5)
    found, descent = replica_sharpness(tol=1e-6)(population), replica_descent()(population)
    for k in range(3):
        problem = population.problem(k)
        assert float(found["sharpness"][k]) == pytest.approx(sharpness(problem, tol=1e-6).value, rel=1e-9)
        g = problem.gradient()
        assert float(descent["directional curvature"][k]) == pytest.approx(float(g @ (hessian(problem) @ g) / (g @ g)), rel=1e-9)


def test_where_rows_are_shared_one_network_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    population = Population(net, nn.functional.mse_loss, (normal(12, 3), normal(12, 2)), optimizer=sgd(0.2), seeds=[0, 1, 2])
    copied, problem = [], population.problem
    monkeypatch.setattr(population, "problem", lambda k: copied.append(k) or problem(k))
    replica_sharpness()(population)
    assert copied == [0]


def test_replicas_whose_rows_weigh_differently_have_no_sharpness_of_a_mean() -> None:
    weights = torch.ones(2, 12)
    weights[1, 0] = 2
    population = Population(
        net, nn.functional.mse_loss, (normal(12, 3), normal(12, 2)), optimizer=sgd(0.2), seeds=[0, 1], row_weights=weights
    )
    with pytest.raises(ValueError, match="a problem has no row weights"):
        replica_sharpness()(population)


def test_divergence_is_named() -> None:
    x = torch.eye(3, dtype=torch.float64)
    problem = Problem(nn.Linear(3, 1).double(), nn.functional.mse_loss, (x, x.sum(1, keepdim=True)))
    with pytest.raises(ValueError, match="finite"):
        sharpness_along(problem, lambda p: torch.optim.SGD(p, lr=1e9), steps=100)
