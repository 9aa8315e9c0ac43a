"""A population: each replica is what a lone run would be, whatever the way of training, and bad input is named."""

from __future__ import annotations

import copy
import gc
import itertools
import logging
import random
import re

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from theorylab.core.generators import other_states
from theorylab.learning import fastest, group, trajectory
from theorylab.learning.buffers import BufferSlots
from theorylab.learning.minibatches import DataOrder, minibatches
from theorylab.learning.optimizers.adam import adam
from theorylab.learning.optimizers.base import Optimizer
from theorylab.learning.optimizers.sgd import sgd
from theorylab.learning.population import Population
from theorylab.models.cnn import cnn
from theorylab.models.mlp import mlp
from theorylab.models.seeded import seeded

K, N, D, CLASSES = 4, 30, 6, 3
SEEDS = [3, 1, 4, 1]  # a repeated seed: two replicas that differ in step size only
LR = torch.tensor([0.05, 0.1, 0.2, 0.4], dtype=torch.float64)
MODES = ["vmap", "loop", "auto"]


def data(n: int = N, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, D, generator=g, dtype=torch.float64), torch.randint(0, CLASSES, (n,), generator=g)


def make() -> nn.Module:
    return mlp([D, 8, CLASSES])


def population(**kwargs) -> Population:
    return Population(**{"make_model": make, "loss": cross_entropy, "data": data(), "optimizer": sgd(LR), "seeds": SEEDS, **kwargs})


def lone(seed: int, optimizer, steps: int, x: Tensor, y: Tensor, batch_size: int | None, make_model=make) -> nn.Module:
    """The ordinary PyTorch run that a replica must reproduce."""
    torch.manual_seed(seed)
    net = make_model().double()
    opt = optimizer(net.parameters())
    batches = minibatches(len(x), batch_size or len(x), seed)
    for _ in range(steps):
        rows = slice(None) if batch_size is None else next(batches)
        opt.zero_grad()
        cross_entropy(net(x[rows]), y[rows]).backward()
        opt.step()
    return net


def assert_replica(pop: Population, k: int, net: nn.Module, tol: float = 1e-10) -> None:
    for name, p in net.named_parameters():
        torch.testing.assert_close(pop.params[name][k], p.detach(), rtol=0, atol=tol)
    for name, b in net.named_buffers():
        torch.testing.assert_close(pop.buffers[name][k], b, rtol=0, atol=tol)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("batch_size", [None, 8])
@pytest.mark.parametrize(
    ("optimizer", "reference"),
    [
        (sgd(LR, momentum=0.9), lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9)),
        (adam(LR / 10), lambda p, lr: torch.optim.Adam(p, lr=lr / 10)),
    ],
    ids=["momentum", "adam"],
)
def test_members_equal_separate_runs(mode, batch_size, optimizer, reference):
    pop = population(optimizer=optimizer, batch_size=batch_size, mode=mode)
    pop.train(20)
    pop.train(30)
    assert pop.step_count == 50
    assert pop.mode in ("vmap", "loop")
    for k, seed in enumerate(SEEDS):
        assert_replica(pop, k, lone(seed, lambda p, k=k: reference(p, float(LR[k])), 50, *data(), batch_size))


def test_a_replica_does_not_depend_on_the_others():
    whole = population(batch_size=8, mode="vmap")
    part = population(batch_size=8, mode="vmap", seeds=SEEDS[1:3], optimizer=sgd(LR[1:3]))
    for name, p in part.params.items():
        assert torch.equal(p, whole.params[name][1:3])
    whole.train(10)
    part.train(10)
    for name, p in part.params.items():  # ten steps: rounding has not been amplified yet
        torch.testing.assert_close(p, whole.params[name][1:3], rtol=0, atol=1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_the_global_generator_is_left_alone(mode):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    pop = population(mode=mode, batch_size=8, make_model=lambda: nn.Sequential(make(), nn.Dropout(0.0 if mode == "vmap" else 0.5)))
    pop.train(3)
    pop.losses()
    pop.gradients()
    assert torch.equal(before, torch.get_rng_state())


def test_initializations_drawn_by_numpy_and_python_follow_the_seeds():
    def drawn_elsewhere() -> nn.Module:
        net = nn.Linear(D, CLASSES)
        with torch.no_grad():
            net.weight.copy_(torch.from_numpy(np.random.standard_normal((CLASSES, D))))
            net.bias.fill_(random.random())
        return net

    before = other_states()
    first, again = (population(make_model=drawn_elsewhere).params for _ in range(2))
    lone = seeded(drawn_elsewhere, SEEDS[2])
    assert other_states() == before
    for name, p in first.items():
        assert torch.equal(p, again[name])
        assert torch.equal(p[1], p[3])  # one seed
        assert not torch.equal(p[0], p[1])
        assert torch.equal(p[2], lone.get_parameter(name))


@pytest.mark.parametrize("chunk", [1, 3, 4])
def test_chunks_are_the_same_population(chunk):
    whole, cut = (
        population(batch_size=8, mode="vmap", optimizer=adam(LR / 10)),
        population(batch_size=8, mode="vmap", optimizer=adam(LR / 10)),
    )
    cut._groups.cut([cut.device], chunk)
    whole.train(10)
    cut.train(10)
    for name, p in whole.params.items():
        torch.testing.assert_close(p, cut.params[name], rtol=0, atol=1e-12)
    torch.testing.assert_close(whole.losses(), cut.losses())
    assert cut.state["first"].keys() == whole.params.keys()


def test_shards_are_the_same_population():
    whole, cut = population(batch_size=8, mode="vmap"), population(batch_size=8, mode="vmap")
    whole.train(4)
    cut.train(4)
    assert cut.shard(["cpu", "cpu"]) is cut
    whole.train(6)
    cut.train(6)
    for name, p in whole.params.items():
        torch.testing.assert_close(p, cut.params[name], rtol=0, atol=1e-12)
    losses, grads = cut.gradients()
    torch.testing.assert_close(losses, whole.losses())
    assert all(g.shape == whole.params[name].shape for name, g in grads.items())


def test_an_optimizer_that_cannot_be_cut_still_trains_in_every_mode():
    plain = sgd(LR)
    foreign = Optimizer("foreign", plain.init, plain.update)
    reference = population(mode="vmap", batch_size=8)
    reference.train(10)
    for mode in MODES:
        pop = population(optimizer=foreign, mode=mode, batch_size=8)
        pop.train(10)
        for name, p in reference.params.items():
            torch.testing.assert_close(p, pop.params[name], rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="selectable"):
        pop.shard(["cpu", "cpu"])


# ---- rows ----


@pytest.mark.parametrize("mode", ["vmap", "loop"])
@pytest.mark.parametrize("batch_size", [None, 5])
def test_weights_of_zero_and_one_train_on_the_subset(mode, batch_size):
    x, y = data()
    weights = (torch.rand(K, N, generator=torch.Generator().manual_seed(1)) < 0.5).double()
    assert len(set(weights.sum(1).tolist())) > 1  # subsets of different sizes
    pop = population(row_weights=3 * weights, mode=mode, batch_size=batch_size)  # the common factor cancels
    pop.train(20)
    for k, seed in enumerate(SEEDS):
        keep = weights[k] > 0
        net = lone(seed, lambda p, k=k: torch.optim.SGD(p, lr=float(LR[k])), 20, x[keep], y[keep], batch_size)
        assert_replica(pop, k, net)
        torch.testing.assert_close(pop.losses()[k], cross_entropy(net(x[keep]), y[keep]).detach())


def test_weighted_risk_and_its_unbiased_minibatches():
    x, y = data()
    weights = torch.rand(K, N, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weights[:, :6] = 0
    pop = population(row_weights=weights)
    for k in range(K):
        rows = cross_entropy(outputs(pop, k, x), y, reduction="none")
        torch.testing.assert_close(pop.losses()[k], (weights[k] * rows).sum() / weights[k].sum())
    # the mean gradient over one epoch that divides the rows evenly is the full gradient; a step of size lr shows it
    lr, batch = 1e-6, 6
    pop = population(row_weights=weights, batch_size=batch, optimizer=sgd(lr), mode="vmap")
    start, (_, grads) = pop.params, pop.gradients()
    pop.train(24 // batch)
    for name, p in pop.params.items():
        moved = (start[name] - p) / (lr * (24 // batch))
        torch.testing.assert_close(moved, grads[name], rtol=0, atol=1e-4)  # parameters move by 4e-6 in between


def outputs(pop: Population, k: int, x: Tensor) -> Tensor:
    net = make().double()
    net.load_state_dict({name: p[k] for name, p in pop.params.items()})
    return net(x).detach()


@pytest.mark.parametrize("mode", ["vmap", "loop"])
@pytest.mark.parametrize("batch_size", [None, 8])
def test_data_of_each_replica(mode, batch_size):
    sets = [data(seed=s) for s in range(K)]
    stacked = torch.stack([x for x, _ in sets]), torch.stack([y for _, y in sets])
    pop = population(data=stacked, data_per_replica=True, mode=mode, batch_size=batch_size)
    pop.train(20)
    for k, seed in enumerate(SEEDS):
        net = lone(seed, lambda p, k=k: torch.optim.SGD(p, lr=float(LR[k])), 20, *sets[k], batch_size)
        assert_replica(pop, k, net)
        torch.testing.assert_close(pop.losses()[k], cross_entropy(net(sets[k][0]), sets[k][1]).detach())


def test_minibatches_are_epochs_without_their_remainder():
    batches = minibatches(10, 3, seed=7)
    epochs = [torch.cat([next(batches) for _ in range(3)]) for _ in range(3)]
    assert all(len(set(e.tolist())) == 9 for e in epochs)
    assert len({tuple(e.tolist()) for e in epochs}) == 3
    order = DataOrder(torch.arange(10), 3, seed=7)
    for count, start in ((2, 0), (5, 2), (2, 7)):  # taken in any number at a time
        assert torch.equal(order.take(count).flatten(), torch.cat(epochs)[3 * start : 3 * (start + count)])


# ---- models ----


@pytest.mark.parametrize("mode", ["vmap", "loop"])
def test_batch_norm_in_training_updates_its_buffers(mode):
    def net() -> nn.Module:
        return nn.Sequential(nn.Unflatten(1, (1, 2, 3)), cnn([1, 4, 4], CLASSES, norm="batch", activation="tanh"))

    pop = population(make_model=net, mode=mode, batch_size=8)
    pop.train(10)
    for k, seed in enumerate(SEEDS):
        assert_replica(pop, k, lone(seed, lambda p, k=k: torch.optim.SGD(p, lr=float(LR[k])), 10, *data(), 8, net))
    before = pop.buffers
    pop.losses()
    pop.gradients()
    assert all(torch.equal(b, before[name]) for name, b in pop.buffers.items())
    assert pop.buffers["1.1.num_batches_tracked"].tolist() == [10] * K


class Averaging(nn.Module):
    """Centers by an exponential average of its outputs, in place or by assignment, and counts its passes."""

    mean: Tensor
    passes: Tensor

    def __init__(self, in_place: bool):
        super().__init__()
        self.net, self.in_place = make(), in_place
        self.register_buffer("mean", torch.rand(CLASSES))
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        h = self.net(x)
        now, out = h.detach().mean(0), h * (1 + self.mean.clone() if self.in_place else 1 + self.mean)
        if self.in_place:
            self.mean.mul_(0.9).add_(0.1 * now)
            self.passes.add_(1)
        else:
            self.mean, self.passes = 0.9 * self.mean + 0.1 * now, self.passes + 1
        return out


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_buffers_that_are_written_or_replaced_are_those_of_separate_runs(mode, in_place, monkeypatch):
    monkeypatch.setattr("theorylab.learning.population.RECORD_FROM", 0)  # what writes to buffers is not recorded
    pop = population(make_model=lambda: Averaging(in_place), mode=mode, batch_size=8)
    pop.train(4)
    pop.losses()
    pop.gradients()
    pop.train(6)
    assert pop.buffers["passes"].tolist() == [10] * K
    for k, seed in enumerate(SEEDS):
        net = lone(seed, lambda p, k=k: torch.optim.SGD(p, lr=float(LR[k])), 10, *data(), 8, lambda: Averaging(in_place))
        assert_replica(pop, k, net)


class Scaled(nn.Module):
    scale: Tensor

    def __init__(self, scale: Tensor):
        super().__init__()
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def sharing() -> nn.Module:
    scale = torch.rand(D, dtype=torch.float64)
    return nn.Sequential(Scaled(scale), nn.Linear(D, D), nn.Tanh(), Scaled(scale), nn.Linear(D, CLASSES))


@pytest.mark.parametrize("mode", MODES)
def test_a_buffer_that_two_modules_share_is_that_of_the_replica_in_both(mode):
    pop = population(make_model=sharing, mode=mode)
    assert list(pop.buffers) == ["0.scale"]
    pop.train(10)
    for k, seed in enumerate(SEEDS):
        net = lone(seed, lambda p, k=k: torch.optim.SGD(p, lr=float(LR[k])), 10, *data(), None, sharing)
        for name, p in net.named_parameters():
            torch.testing.assert_close(pop.params[name][k], p.detach(), rtol=0, atol=1e-10)
        torch.testing.assert_close(pop.losses()[k], cross_entropy(net(data()[0]), data()[1]).detach())
        torch.testing.assert_close(pop.problem(k).loss(), pop.losses()[k])


def test_a_buffer_that_two_modules_share_stays_one_on_another_device():
    first, _, _, second, _ = BufferSlots.moved(sharing(), torch.device("meta")).children()
    assert first.scale is second.scale
    assert first.scale.device.type == "meta"


class Spoilt(nn.Module):
    """Holds what replicas would share, by a function of the module that makes it, or replaces it in the forward pass."""

    def __init__(self, hold, replace=lambda module: None):
        super().__init__()
        self.net, self.replace = make(), replace
        hold(self)

    def forward(self, x: Tensor) -> Tensor:
        self.replace(self)
        return self.net(x)


def share(module: nn.Module) -> None:
    module.first, module.second = (Scaled(b) for b in [torch.zeros(2, dtype=torch.float64)] * 2)


UNREGISTERED = {
    "W": lambda m: vars(m).update(W=torch.randn(3)),
    "kept['w'][1]": lambda m: vars(m).update(kept={"w": [0.0, torch.randn(3)]}),
    "drawn": lambda m: vars(m).update(drawn=np.random.standard_normal(2)),
    "rate": lambda m: vars(m).update(rate=random.random()),
    "order[0]": lambda m: vars(m).update(order=torch.randperm(1000).tolist()),
    "layers[0].weight": lambda m: vars(m).update(layers=[nn.Linear(2, 2)]),
    "layers[0].scale": lambda m: vars(m).update(layers=(Scaled(torch.rand(2)),)),
    "net.W": lambda m: vars(m.net).update(W=torch.randn(3)),
}


@pytest.mark.parametrize("path", UNREGISTERED)
def test_what_is_not_registered_must_be_the_same_for_all_seeds(path):
    with pytest.raises(ValueError, match=rf"the plain attribute {re.escape(path)}, which seeds 3 and 1 make differently"):
        population(make_model=lambda: Spoilt(UNREGISTERED[path]))
    population(make_model=lambda: Spoilt(UNREGISTERED[path]), seeds=[3, 3, 3, 3])

    def alike() -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            random.seed(0)
            np.random.seed(0)
            return Spoilt(UNREGISTERED[path])

    population(make_model=alike)


@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated", "ignore:There is a performance drop")
def test_a_weight_that_a_hook_makes_of_parameters_may_differ(norm):
    def net() -> nn.Module:
        return nn.Sequential(norm(nn.Linear(D, 4)), nn.Tanh(), nn.Linear(4, CLASSES))

    pop = population(make_model=net, mode="loop", dtype=torch.float32)
    assert len(set(pop.losses()[:3].tolist())) == 3


@pytest.mark.parametrize(
    ("hold", "replace", "message"),
    [
        (lambda m: m.register_buffer("run", None), lambda m: setattr(m, "run", torch.ones(2)), "which makes run, one for all replicas"),
        (
            lambda m: m.register_buffer("run", torch.zeros(2)),
            lambda m: setattr(m, "run", torch.ones(3)),
            r"buffer run, torch.float64 of shape \(2,\), must keep type and shape.* got torch.float32 of shape \(3,\)",
        ),
        (lambda m: m.register_buffer("run", torch.zeros(2)), lambda m: setattr(m, "run", None), "got NoneType in its place"),
        (
            share,
            lambda m: setattr(m.second, "scale", m.second.scale + 1),
            r"buffer first.scale.* written in place where several modules share it.* self\.scale\.copy_",
        ),
    ],
    ids=["made", "reshaped", "removed", "shared"],
)
@pytest.mark.parametrize("mode", MODES)
def test_buffers_that_replicas_could_not_have_each_are_refused(mode, hold, replace, message):
    with pytest.raises(ValueError, match=message):
        population(make_model=lambda: Spoilt(hold, replace), mode=mode)


def test_buffers_of_the_networks_must_have_the_same_shapes():
    with pytest.raises(ValueError, match="same shapes for every seed; seed 1 differs from seed 3"):
        population(make_model=lambda: Spoilt(lambda m: m.register_buffer("b", torch.zeros(torch.initial_seed()))))


def dropped() -> nn.Module:
    return nn.Sequential(nn.Linear(D, 16), nn.Tanh(), nn.Dropout(0.5), nn.Linear(16, CLASSES))


def test_dropout_trains_in_a_loop_on_its_own_stream():
    with pytest.raises(ValueError, match="mode='loop'"):
        population(make_model=dropped, mode="vmap")
    pop = population(make_model=dropped, mode="auto", batch_size=8)
    assert pop.mode == "loop"
    pop.train(6)
    pop.losses()  # draws nothing from the streams
    pop.train(4)
    for k, seed in enumerate(SEEDS):
        assert_replica(pop, k, lone(seed, lambda p, k=k: torch.optim.SGD(p, lr=float(LR[k])), 10, *data(), 8, dropped))
    assert torch.equal(pop.losses(), pop.losses())


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(2, 1, 4, dropout=0.0, batch_first=True)
        self.out = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layer(x.unflatten(1, (3, 2))).flatten(1))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.out = nn.LSTM(2, 4, batch_first=True), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layer(x.unflatten(1, (3, 2)))[0][:, -1])


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.out = nn.Linear(D, D), nn.Linear(D, D), nn.Linear(D, CLASSES)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.second(self.first(x).tanh()).tanh())


@pytest.mark.parametrize(("net", "vmaps"), [(Attention, True), (Tied, True), (Recurrent, False)])
def test_layers_of_other_kinds(net, vmaps):
    pop = population(make_model=net, batch_size=8, mode="vmap" if vmaps else "auto")
    assert pop.mode == ("vmap" if vmaps else "loop")
    pop.train(10)
    for k, seed in enumerate(SEEDS):
        assert_replica(pop, k, lone(seed, lambda p, k=k: torch.optim.SGD(p, lr=float(LR[k])), 10, *data(), 8, net))


def test_frozen_parameters_stay():
    pop = population(trainable=lambda name: name.startswith("3"))
    assert set(pop.params) == {"3.weight", "3.bias"}
    assert set(pop.frozen) == {"1.weight", "1.bias"}
    before = pop.frozen
    pop.train(5)
    assert all(torch.equal(p, before[name]) for name, p in pop.frozen.items())


def test_parameters_that_need_no_gradient_are_frozen_by_default():
    def net() -> nn.Module:
        made = make()
        made.get_parameter("1.weight").requires_grad_(False)
        return made

    pop = population(make_model=net)
    assert set(pop.frozen) == {"1.weight"}
    assert pop.problem(0).params.keys() == pop.params.keys()


@pytest.mark.parametrize("mode", ["vmap", "loop"])
def test_losses_and_gradients_against_autograd(mode):
    pop = population(mode=mode)
    losses, grads = pop.gradients()
    for k in range(K):
        net, x, y = pop.replica(k)
        loss = cross_entropy(net(x), y)
        loss.backward()
        torch.testing.assert_close(losses[k], loss.detach())
        for name, p in net.named_parameters():
            torch.testing.assert_close(grads[name][k], p.grad)


@pytest.mark.parametrize("mode", ["vmap", "loop"])
@pytest.mark.parametrize("cut", [False, True])
def test_outputs_are_those_of_the_replicas_at_shared_rows_and_at_rows_of_their_own(mode, cut):
    pop = population(mode=mode)
    if cut:
        pop.shard(["cpu", "cpu"])
    rows = torch.randn(K, 5, D, generator=torch.Generator().manual_seed(0))
    shared, own = pop.outputs(rows[0]), pop.outputs(rows, per_replica=True)
    assert not shared.requires_grad
    for k in range(K):
        net = pop.replica(k)[0]
        torch.testing.assert_close(shared[k], net(rows[0].double()).detach(), rtol=0, atol=1e-12)
        torch.testing.assert_close(own[k], net(rows[k].double()).detach(), rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="x must hold the rows of each of the 4 replicas"):
        pop.outputs(rows[:2], per_replica=True)


@pytest.mark.parametrize("kind", ["weights", "rows of their own", "running statistics"])
def test_evaluated_in_parts_or_at_once(kind, monkeypatch):
    """Few replicas at a time where their rows are many."""
    x, y = (torch.stack(part) for part in zip(*(data(seed=s) for s in range(K)), strict=True))
    options = {
        "weights": {"row_weights": torch.rand(K, N, generator=torch.Generator().manual_seed(1), dtype=torch.float64)},
        "rows of their own": {"data": (x, y), "data_per_replica": True},
        "running statistics": {"make_model": lambda: nn.Sequential(nn.Linear(D, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, CLASSES))},
    }
    pop = population(mode="vmap", **options[kind])
    pop.train(3)
    at_once, buffers = (pop.losses(), pop.outputs(x[0]), pop.outputs(x, per_replica=True)), {k: t.clone() for k, t in pop.buffers.items()}
    cuts, parts = group.Group._cuts, []
    monkeypatch.setattr(group.Group, "_cuts", lambda *args: parts.append(len(c := cuts(*args))) or c)
    for together, expected in ((1, 4), (3, 2)):
        monkeypatch.setattr(group, "EVALUATED", together * N * D)
        for whole, found in zip(at_once, (pop.losses(), pop.outputs(x[0]), pop.outputs(x, per_replica=True)), strict=True):
            torch.testing.assert_close(found, whole, rtol=0, atol=1e-14)
        assert parts[-3:] == [expected] * 3
    assert all(torch.equal(t, buffers[k]) for k, t in pop.buffers.items())


def test_a_loss_of_each_row_is_averaged():
    rows = population(loss=lambda o, t: cross_entropy(o, t, reduction="none"))
    torch.testing.assert_close(rows.losses(), population().losses())


def test_assigned_parameters_are_trained_from():
    pop, other = population(mode="vmap"), population(mode="vmap", seeds=[0, 5, 6, 7])
    pop.params = other.params
    pop.train(5)
    other.train(5)
    assert all(torch.equal(p, other.params[name]) for name, p in pop.params.items())
    with pytest.raises(ValueError, match="shape"):
        pop.params = {name: p[:2] for name, p in pop.params.items()}
    with pytest.raises(ValueError, match="names"):
        pop.params = {}


def test_replicas_are_copies():
    pop = population()
    net, _, _ = pop.replica(2)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    pop.train(2)
    assert all(torch.equal(p, before[name]) for name, p in net.named_parameters())
    with pytest.raises(IndexError, match=r"0\.\.3"):
        pop.replica(4)


@pytest.mark.parametrize("mode", ["vmap", "loop"])
def test_problems_have_the_losses_and_gradients_of_their_replicas(mode):
    weights = (torch.rand(K, N, generator=torch.Generator().manual_seed(1)) < 0.5).double()
    for kwargs in ({}, {"row_weights": weights}, {"trainable": lambda name: name.endswith("weight")}):
        pop = population(mode=mode, **kwargs)
        pop.train(3)
        losses, grads = pop.gradients()
        for k in range(K):
            problem = pop.problem(k)
            torch.testing.assert_close(problem.loss(), losses[k])
            torch.testing.assert_close(problem.gradient(), problem.flatten({name: g[k] for name, g in grads.items()}))
    assert pop.measure(lambda problem, power: float(problem.gradient().norm()) ** power, power=2) == pytest.approx(
        sum(g.flatten(1).square().sum(1) for g in grads.values()).tolist()
    )


@pytest.mark.parametrize("last", [nn.BatchNorm1d(CLASSES), nn.Dropout(0.5)], ids=["batch_norm", "dropout"])
def test_problems_of_models_with_a_mode(last):
    pop = population(make_model=lambda: nn.Sequential(make(), copy.deepcopy(last)), batch_size=8)
    pop.train(3)
    losses, grads = pop.gradients()
    problem = pop.problem(1)
    torch.testing.assert_close(problem.loss(), losses[1])
    torch.testing.assert_close(problem.gradient(), problem.flatten({name: g[1] for name, g in grads.items()}))


def test_a_problem_without_weights_is_refused():
    pop = population(row_weights=torch.arange(1.0, N + 1).repeat(K, 1))
    with pytest.raises(ValueError, match="row weights"):
        pop.problem(0)


# ---- the way of training ----


def test_the_faster_way_is_timed_once_and_told(monkeypatch, caplog):
    calls = []

    def seconds(groups, record, enough):
        calls.append({chunk: (group.stacked, group.size) for chunk, group in groups.items()})
        return {chunk: 1.0 if chunk else 2.0 for chunk in groups}

    monkeypatch.setattr(fastest, "seconds_per_step", seconds)
    monkeypatch.setattr(fastest, "_cache", {})
    with caplog.at_level(logging.INFO, logger="theorylab"):
        for _ in range(2):
            pop = population()
            assert pop.mode == "auto"
            pop.train(1)
            assert pop.mode == "vmap"
    assert calls == [{0: (False, 1), 4: (True, 4)}]
    assert len(caplog.records) == 1
    assert "4 at a time under vmap" in caplog.text


def test_the_loop_is_taken_where_it_is_faster(monkeypatch):
    monkeypatch.setattr(fastest, "seconds_per_step", lambda groups, record, enough: {chunk: 1.0 + chunk for chunk in groups})
    monkeypatch.setattr(fastest, "_cache", {})
    pop = population()
    pop.train(1)
    assert pop.mode == "loop"


def test_more_replicas_at_once_are_not_tried_where_a_step_is_long(monkeypatch):
    """They would gain no time, and take memory."""
    monkeypatch.setattr(fastest, "CHUNKS", (2, 3))
    monkeypatch.setattr(fastest, "_cache", {})
    built = []

    def keeping(group, record):
        built.append(group.size)
        return fastest_watch(group, record)

    fastest_watch = fastest.Stopwatch
    monkeypatch.setattr(fastest, "Stopwatch", keeping)
    population().train(1)
    assert built == [1, 2, 3, K]
    built.clear()
    fastest._cache.clear()
    monkeypatch.setattr(fastest, "_SLOW", 0.0)
    population().train(1)
    assert built == [1, 2]


def test_timing_changes_nothing():
    pop, reference = population(batch_size=8, optimizer=adam(LR / 10)), population(batch_size=8, optimizer=adam(LR / 10), mode="vmap")
    before, state = pop.params, pop.state
    for record in (False, True):
        assert fastest.seconds_per_step({0: pop._groups[0]}, record)[0] > 0
    assert all(torch.equal(p, before[name]) for name, p in pop.params.items())
    assert all(torch.equal(s, state["second"][name]) for name, s in pop.state["second"].items())
    pop.train(3)
    reference.train(3)
    for name, p in reference.params.items():
        torch.testing.assert_close(p, pop.params[name], rtol=0, atol=1e-12)


def test_a_model_that_vmap_cannot_run_is_looped(caplog):
    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = make()

        def forward(self, x: Tensor) -> Tensor:
            out = self.net(x)
            return out if float(out.detach().sum()) > 0 else 2 * out  # data-dependent control flow

    with caplog.at_level(logging.INFO, logger="theorylab"):
        pop = population(make_model=Branch, mode="auto")
    assert pop.mode == "loop"
    assert "cannot run under vmap" in caplog.text
    pop.losses()
    pop.train(2)
    with pytest.raises(ValueError, match="cannot run under vmap"):
        population(make_model=Branch, mode="vmap")


@pytest.mark.parametrize("batch_size", [None, 8])
@pytest.mark.parametrize("weighted", [False, True])
def test_recorded_steps_are_the_same_steps(monkeypatch, batch_size, weighted):
    weights = torch.rand(K, N, generator=torch.Generator().manual_seed(1), dtype=torch.float64) if weighted else None
    plain = population(mode="vmap", batch_size=batch_size, row_weights=weights, trainable=lambda name: name != "1.bias")
    plain.train(10)
    monkeypatch.setattr("theorylab.learning.population.RECORD_FROM", 0)
    pop = population(mode="vmap", batch_size=batch_size, row_weights=weights, trainable=lambda name: name != "1.bias")
    assert pop._groups[0].recorded() is not None
    pop.train(10)
    for name, p in plain.params.items():
        torch.testing.assert_close(p, pop.params[name], rtol=0, atol=1e-12)


def test_steps_that_write_to_buffers_are_not_recorded():
    pop = population(make_model=lambda: nn.Sequential(make(), nn.BatchNorm1d(CLASSES)), mode="vmap", batch_size=8)
    assert pop._groups[0].recorded() is None
    assert pop.buffers["1.num_batches_tracked"].tolist() == [0] * K


def test_a_record_that_depends_on_the_example_is_refused():
    calls = []

    def drifting(o: Tensor, t: Tensor) -> Tensor:
        calls.append(1)
        return (10 + len(calls)) * cross_entropy(o, t)  # not twice as much at the second call, which would be a sum over rows

    assert population(loss=drifting, mode="vmap")._groups[0].recorded() is None


# ---- trajectories and divergence ----


def test_trajectory():
    pop = population(mode="vmap")
    start = pop.losses()
    path = pop.train(7, every=3, measure=lambda p: {"risk": p.losses(), "norm": p.params["1.weight"].flatten(1).norm(dim=1)})
    assert path.steps.tolist() == [0, 3, 6, 7]
    assert path["risk"].shape == path["norm"].shape == (4, K)
    assert torch.equal(path["risk"][0], start)
    assert torch.equal(path["risk"][-1], pop.losses())
    again = pop.train(2, measure=lambda p: p.losses())
    assert again.steps.tolist() == [7, 9]
    assert torch.equal(again["value"][0], path["risk"][-1])
    assert pop.train(2, every=1)["loss"].shape == (3, K)
    nothing = pop.train(1)
    assert nothing.steps.tolist() == []
    assert nothing.values == {}


def test_the_late_mean_is_one_over_steps_wherever_measurements_end():
    """A measurement at the last step, sooner after the others than they follow each other, does not count for as much as they do."""
    values = torch.tensor([[9.0], [9.0], [1.0], [2.0], [5.0]])
    found = trajectory.Trajectory(torch.tensor([0, 4, 8, 12, 13]), {"v": values})
    assert found.late(values).tolist() == pytest.approx([(4 * 1 + 4 * 2 + 1 * 5) / 9])
    later = trajectory.Trajectory(found.steps + 1000, {"v": values})  # of a population that has trained before
    assert later.late(values).tolist() == found.late(values).tolist()
    alone = trajectory.Trajectory(torch.tensor([7]), {"v": values[:1]})
    assert alone.late(values[:1]).tolist() == [9.0]


def test_a_trajectory_is_as_long_as_it_gets_and_of_a_type_that_holds_all():
    pop = population(mode="vmap")
    steps = 2 * trajectory.FIRST_ROWS + 3
    path = pop.train(steps, every=1, measure=lambda now: torch.full((K,), now.step_count if now.step_count < 70 else now.step_count + 0.5))
    assert path.steps.tolist() == list(range(steps + 1))
    wanted = [t if t < 70 else t + 0.5 for t in range(steps + 1)]
    assert path["value"].dtype == torch.float32
    assert path["value"].tolist() == [[t] * K for t in wanted]


@pytest.mark.parametrize("every", [1, None])
def test_no_tensor_is_kept_of_each_step(every):
    """They would split what large ones leave free, and the process would grow with every step."""
    alive, gd, steps = [], sgd(LR), itertools.count()

    def update(grads, state, params):
        if next(steps) % 25 == 24:  # asking takes a while
            alive.append(sum(type(o) is Tensor for o in gc.get_objects()))
        return gd.update(grads, state, params)

    population(optimizer=Optimizer("counting", gd.init, update), mode="vmap").train(100, every=every)
    assert len(alive) == 4
    assert alive[-1] <= alive[0] + 2  # some come and go


def test_divergence_names_replica_and_step():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(8, 2, generator=g, dtype=torch.float64)
    lr = torch.tensor([0.01, 1e80], dtype=torch.float64)

    def runaway(**kwargs) -> Population:
        return Population(lambda: nn.Linear(2, 1), mse_loss, (x, x[:, :1]), optimizer=sgd(lr), seeds=[0, 1], mode="vmap", **kwargs)

    pop = runaway()
    with pytest.raises(FloatingPointError, match=r"replica 1 \(seed 1\).*step 2\b"):
        pop.train(10)  # losses: finite, 1e160-fold, infinite
    allowed = runaway()
    allowed.train(10, check=False)
    assert bool(allowed.losses()[0].isfinite())
    assert not bool(allowed.losses()[1].isfinite())
    with pytest.raises(FloatingPointError, match="replica 1"):
        runaway().train(10, every=5)


# ---- bad input ----


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"seeds": []}, "seeds"),
        ({"batch_size": N + 1}, r"batch_size must be in 1\.\.30"),
        ({"batch_size": 0}, "batch_size"),
        ({"optimizer": sgd(LR[:3])}, "sgd does not fit 4 replicas.*one a replica"),
        ({"optimizer": adam(LR[:3])}, "adam does not fit 4 replicas"),
        ({"row_weights": torch.ones(K, N - 1)}, r"row_weights must be \(replica, n\)"),
        ({"row_weights": -torch.ones(K, N)}, "at least 0"),
        ({"row_weights": torch.full((K, N), float("nan"))}, "finite"),
        ({"row_weights": torch.cat([torch.ones(2, N), torch.zeros(2, N)])}, "replica 2 sum to zero"),
        ({"row_weights": torch.eye(K, N), "batch_size": 2}, r"batch_size must be in 1\.\.1"),
        ({"row_weights": torch.ones(K, N), "loss": lambda o, t: cross_entropy(o, t, reduction="sum")}, "mean over rows"),
        ({"loss": lambda o, t: o}, r"loss must return a scalar, or one loss a row \(30,\), got shape \(30, 3\)"),
        ({"loss": nn.CrossEntropyLoss(reduction="sum")}, "loss must be a mean over rows or one loss a row, got a sum over rows"),
        ({"loss": lambda o, t: cross_entropy(o, t, reduction="sum"), "batch_size": 8}, "got a sum over rows"),
        (
            {"make_model": lambda: nn.Linear(D, 1), "loss": mse_loss, "data": (data()[0], data()[0][:, 0])},
            r"outputs and targets of one shape, got \(30, 1\) and \(30,\), which broadcast",
        ),
        ({"data": (torch.zeros(3, D), torch.zeros(2))}, "data"),
        ({"data": (torch.zeros(0, D), torch.zeros(0))}, "data"),
        ({"data": (torch.zeros(2, N, D), torch.zeros(2, N)), "data_per_replica": True}, "one data set for each of the 4 seeds"),
        ({"mode": "fast"}, "mode"),
        ({"trainable": lambda name: False}, "trainable"),
        ({"make_model": lambda: mlp([D, 4, CLASSES, int(torch.randint(2, 90, ()))]), "loss": lambda o, t: o.mean()}, "same shapes"),
        ({"make_model": lambda: nn.Sequential(make(), nn.BatchNorm1d(CLASSES)), "row_weights": torch.ones(K, N)}, "batch norm"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        population(**kwargs)


def test_wrong_kinds_are_named():
    with pytest.raises(TypeError, match="make_model"):
        population(make_model=lambda: torch.zeros(1))
    with pytest.raises(TypeError, match="loss"):
        population(loss=lambda o, t: 0.0)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"make_model": nn.Linear(D, CLASSES)}, r"make_model must be a function that builds one network, .* got Linear"),
        ({"make_model": None}, "make_model must be a function"),
        ({"loss": nn.CrossEntropyLoss}, r"got the class CrossEntropyLoss: make an instance, CrossEntropyLoss\(\.\.\.\)"),
        ({"data": data()[0]}, "data must be two tensors, .* got Tensor"),
        ({"data": tuple(t.numpy() for t in data())}, r"got \(ndarray, ndarray\): convert arrays by torch.as_tensor"),
        ({"optimizer": sgd}, r"optimizer must be one of .* got sgd: pass sgd\(\.\.\.\)"),
        ({"optimizer": torch.optim.SGD}, r"got SGD: pass sgd\(lr=0.1\). Those of torch train one network"),
        ({"optimizer": torch.optim.SGD(nn.Linear(1, 1).parameters(), 0.1)}, r"got SGD: pass sgd\(lr=0.1\)"),
        ({"seeds": 3}, r"seeds must be whole numbers, one a replica, as range\(3\), got 3"),
        ({"seeds": [0.5, 1.0, 2.0, 3.0]}, "seeds must be whole numbers"),
        ({"dtype": "float32"}, "dtype must be a floating-point type such as torch.float64, got 'float32'"),
        ({"dtype": torch.int64}, "dtype must be a floating-point type"),
        ({"trainable": ["weight"]}, "trainable must be a function of a name, .* got list"),
    ],
)
def test_what_is_no_argument_of_a_population_is_named_before_any_work(change: dict, match: str):
    with pytest.raises(TypeError, match=match):
        population(**change)


def test_bad_training_arguments_are_named():
    pop = population()
    with pytest.raises(ValueError, match="steps"):
        pop.train(-1)
    with pytest.raises(ValueError, match="every"):
        pop.train(1, every=0)
    with pytest.raises(ValueError, match=r"steps must be at least 0 and whole, got 2.5"):
        pop.train(2.5)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="measure must be a function of the population, got str"):
        pop.train(1, measure="loss")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="one number a replica"):
        pop.train(1, every=1, measure=lambda p: p.losses()[:2])
    with pytest.raises(ValueError, match="devices"):
        pop.shard([])
    with pytest.raises(ValueError, match="devices"):
        pop.shard(["cpu"] * 5)
