"""Effective rates against steps that are really taken, equilibrium against its law, and sharpness at norm one."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import theorylab
from theorylab.core.problem import Problem
from theorylab.instruments.curvature import sharpness
from theorylab.instruments.effective import effective_rates, spherical_sharpness
from theorylab.models.normalized import NormalizedMLP
from theorylab.models.seeded import seeded

Make = Callable[..., torch.optim.Optimizer]
SGD, ADAM = torch.optim.SGD, torch.optim.Adam


def data(n: int = 64, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 6, generator=generator, dtype=torch.float64), torch.randint(0, 3, (n,), generator=generator)


def network(seed: int = 0) -> nn.Module:
    return seeded(lambda: NormalizedMLP([6, 8, 8, 3], normalization="layer", affine=True), seed)


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int, batch: int = 16) -> None:
    x, y = data()
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        rows = torch.randperm(len(x), generator=generator)[:batch]
        optimizer.zero_grad()
        F.cross_entropy(net(x[rows]), y[rows]).backward()
        optimizer.step()


OPTIMIZERS: dict[str, Make] = {
    "SGD": lambda p: SGD(p, lr=0.1, weight_decay=0.01),
    "momentum": lambda p: SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "Nesterov": lambda p: SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "Adam": lambda p: ADAM(p, lr=0.01, weight_decay=0.01),
    "AdamW, amsgrad": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, amsgrad=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_step_is_the_one_that_the_optimizer_takes(name: str) -> None:
    """On copies of network and optimizer, one real step for each minibatch."""
    net = network()
    optimizer = OPTIMIZERS[name](net.parameters())
    train(net, optimizer, 5)
    x, y = data()
    state = copy.deepcopy(optimizer.state_dict())
    found = effective_rates(Problem(net, F.cross_entropy, (x, y), batch_size=16), optimizer)
    updates, angles = [], []
    for rows in torch.arange(64).split(16):
        other, method = copy.deepcopy((net, optimizer))
        method.zero_grad()
        F.cross_entropy(other(x[rows]), y[rows]).backward()
        method.step()
        pairs = list(zip(net.parameters(), other.parameters(), strict=True))
        updates.append(torch.stack([(b - a).norm() / a.norm() for a, b in pairs]).detach())
        angles.append(torch.stack([torch.acos(F.cosine_similarity(a.flatten(), b.flatten(), dim=0)) for a, b in pairs]).detach())
    torch.testing.assert_close(found.update, torch.stack(updates).square().mean(0).sqrt(), rtol=1e-10, atol=0)
    torch.testing.assert_close(found.angle, torch.stack(angles).square().mean(0).sqrt(), rtol=1e-6, atol=0)  # acos loses digits
    assert found.invariant.tolist() == [k.startswith("layers") for k, _ in net.named_parameters()]
    law = name in ("SGD", "momentum")
    for values in (found.rate, found.equilibrium, found.ratio, found.time_constant):
        assert bool(values.isnan().all()) is not law
    # the optimizer, its momenta and the network are as they were
    for a, b in zip(state["state"].values(), optimizer.state_dict()["state"].values(), strict=True):
        assert all(torch.equal(torch.as_tensor(a[k]), torch.as_tensor(b[k])) for k in a)
    assert len(found.readings()) == (5 if law else 3)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this PyTorch has no Muon")
def test_a_step_of_muon_is_measured() -> None:
    net = network()
    matrices = {k: p for k, p in net.named_parameters() if p.ndim == 2}
    muon = torch.optim.Muon(matrices.values(), lr=0.1)
    found = effective_rates(Problem(net, F.cross_entropy, data(), params=list(matrices)), muon)
    other, method = copy.deepcopy((net, muon))
    F.cross_entropy(other(data()[0]), data()[1]).backward()
    method.step()
    moved = torch.stack([(other.get_parameter(k) - p).norm() / p.norm() for k, p in matrices.items()])
    torch.testing.assert_close(found.update, moved.detach(), rtol=1e-10, atol=0)
    assert bool(found.equilibrium.isnan().all())  # SGD's laws are not Muon's


def test_weights_before_a_small_head_are_not_called_invariant() -> None:
    net = seeded(lambda: nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)), 0)
    nn.init.normal_(net[2].weight, std=1e-5, generator=torch.Generator().manual_seed(0))  # type: ignore[index]
    found = effective_rates(Problem(net, F.cross_entropy, data()), SGD(net.parameters(), lr=0.1))
    assert not bool(found.invariant.any())


def test_settings_are_read_group_by_group() -> None:
    net = network()
    weights, rest = ([p for k, p in net.named_parameters() if k.startswith("layers") is yes] for yes in (True, False))
    groups = [{"params": weights, "weight_decay": 0.02, "momentum": 0.5, "dampening": 0.25}, {"params": rest, "lr": 1.0}]
    found = effective_rates(Problem(net, F.cross_entropy, data()), SGD(groups, lr=0.1))
    i, j = found.names.index("layers.0"), found.names.index("head")
    eta = 0.1 * 0.75
    assert float(found.equilibrium[i]) == pytest.approx(math.sqrt(2 * eta * 0.02 / 1.5), rel=1e-12)
    assert float(found.rate[i]) == pytest.approx(eta / float(weights[0].detach().square().sum()), rel=1e-12)
    assert float(found.time_constant[i]) == pytest.approx(0.5 / (2 * eta * 0.02), rel=1e-12)
    assert (float(found.equilibrium[j]), float(found.ratio[j]), float(found.time_constant[j])) == (0.0, math.inf, math.inf)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_ratio_tells_equilibrium_from_its_absence(momentum: float) -> None:
    """After many time constants it is one; at the start, and where nothing is normalized, it is not."""
    lr, decay, steps = 0.5 * (1 - momentum), 0.02, 800
    ratios = {}
    for normalization in ("layer", "none"):
        net = seeded(lambda kind=normalization: NormalizedMLP([6, 8, 8, 3], normalization=kind), 0)
        optimizer = SGD(net.parameters(), lr=lr, momentum=momentum, weight_decay=decay)
        for when in (0, steps):
            train(net, optimizer, when)
            problem = Problem(net, F.cross_entropy, data(), batch_size=16)
            found = effective_rates(problem, optimizer)
            ratios[normalization, when] = found.ratio[found.names.index("layers.1")]
    # the norm itself is nearly constant, and four minibatches leave the rms angle uncertain by some 20 %
    assert float(ratios["layer", steps]) == pytest.approx(1.0, abs=0.3)
    assert abs(math.log(float(ratios["layer", 0]))) > 0.5
    assert abs(math.log(float(ratios["none", steps]))) > 0.5


def test_decay_alone_shortens_the_squared_norm_in_a_time_constant() -> None:
    net = nn.Linear(4, 3, bias=False).double()
    optimizer = SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.002)
    problem = Problem(net, F.mse_loss, (torch.ones(2, 4).double(), torch.ones(2, 3).double()))
    steps = round(float(effective_rates(problem, optimizer).time_constant[0]))
    for _ in range(100):  # past the first steps, in which the momentum builds up
        net.weight.grad = torch.zeros_like(net.weight)
        optimizer.step()
    before = float(net.weight.detach().square().sum())
    for _ in range(steps):
        optimizer.step()
    assert float(net.weight.detach().square().sum()) / before == pytest.approx(math.exp(-1), rel=0.02)  # first order in ηλ/(1 − γ)


def test_a_problem_in_another_precision_and_a_tensor_of_zeros() -> None:
    net = seeded(lambda: nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3)), 0, dtype=torch.float32)
    nn.init.zeros_(net[0].bias)
    optimizer = ADAM(net.parameters(), lr=0.01)
    x, y = data()
    F.cross_entropy(net(x.float()), y).backward()
    optimizer.step()
    nn.init.zeros_(net[0].bias)
    found = effective_rates(Problem(net, F.cross_entropy, (x, y), dtype=torch.float64), optimizer)
    i = found.names.index("0.bias")
    assert (float(found.update[i]), float(found.angle[i])) == (math.inf, 0.0)
    assert bool((found.angle[torch.arange(4) != i] > 0).all())


class Own(torch.optim.SGD):
    pass


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda net: torch.optim.LBFGS(net.parameters()), TypeError, "LBFGS does not"),
        (lambda net: Own(net.parameters(), lr=0.1), TypeError, "one of torch.optim.*got Own"),
        (lambda net: "SGD", TypeError, "one of torch.optim.*got str"),
        (lambda net: SGD([net.head], lr=0.1), ValueError, r"layers\.0 is none of its own"),
    ],
)
def test_optimizers_that_cannot_be_read_are_refused(make, error: type[Exception], message: str) -> None:
    net = network()
    with pytest.raises(error, match=message):
        effective_rates(Problem(net, F.cross_entropy, data()), make(net))


def test_spherical_sharpness_does_not_depend_on_the_norm_and_is_sharpness_at_norm_one() -> None:
    problem = Problem(network(), F.cross_entropy, data())
    theta = problem.params["layers.0"]
    at_one = problem.only("layers.0").at({"layers.0": theta / theta.norm()})
    expected = sharpness(at_one, tol=1e-8).value
    for c in (0.1, 1.0, 30.0):
        found = theorylab.spherical_sharpness(problem.at({"layers.0": c * theta}), "layers.0", tol=1e-8)
        assert found.value == pytest.approx(expected, rel=1e-9)
        assert found.vector.shape == (theta.numel(),)
    head = [spherical_sharpness(problem.at({"head": c * problem.params["head"]}), "head").value for c in (1.0, 3.0)]
    assert abs(math.log(head[1] / head[0])) > 0.1  # the control: the loss feels the size of the head
    with pytest.raises(ValueError, match="matches no parameter"):
        spherical_sharpness(problem, "layers.7")


def test_it_is_the_step_size_at_which_gradient_descent_on_invariant_weights_turns_unstable() -> None:
    """Near a minimum, the top eigenvector of the Hessian grows by |1 − η/‖θ‖² · spherical sharpness| a step."""
    problem = Problem(network(), F.cross_entropy, data(), params="layers.0")
    for _ in range(300):  # to a stationary direction
        problem = problem.at(problem.unflatten(problem.flatten(problem.params) - 0.5 * problem.gradient()))
    found = spherical_sharpness(problem, tol=1e-8)
    theta, v = problem.flatten(problem.params), found.vector
    for factor in (1.9, 2.1):
        lr = factor * float(theta.square().sum()) / found.value
        moved = theta + 1e-6 * v
        here, there = (problem.at(problem.unflatten(t)).gradient() for t in (theta, moved))
        growth = float(((moved - lr * there) - (theta - lr * here)) @ v) / 1e-6
        assert abs(growth) == pytest.approx(factor - 1, abs=1e-3)
