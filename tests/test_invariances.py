"""Invariances: who is scale-invariant and who is not, the angle turned, and what gradient descent conserves."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import make

from theorylab.core.problem import Problem
from theorylab.instruments.invariances import angular_update, invariances, slow_invariances
from theorylab.models.normalized import NormalizedMLP
from theorylab.theory.normalization import invariant_blocks


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


def made(make_net: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make_net()


def data(n: int = 48, d: int = 8) -> tuple[Tensor, Tensor]:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(1)), torch.arange(n) % 3


def seen(net: nn.Module, x: Tensor, y: Tensor, **options: Any) -> Problem:
    return Problem(net, F.cross_entropy, (x, y), **options)


def hidden(net: nn.Module, x: Tensor, y: Tensor, **options: Any) -> Problem:
    return Problem(net, lambda model, batch: F.cross_entropy(model(batch["x"]), batch["y"]), {"x": x, "y": y}, **options)


class Residual(nn.Module):
    """A stream to which blocks that read it through LayerNorm add little."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.embed, self.head, self.scale = nn.Linear(8, 16), nn.Linear(16, 3), scale
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        for block in self.blocks:
            h = h + self.scale * block(h)
        return self.head(h)


class Branch(nn.Module):
    """A linear map, and little of a network whose first weight feeds a normalization."""

    def __init__(self, scale: float, norm: nn.Module | None = None) -> None:
        super().__init__()
        norm = nn.LayerNorm(12) if norm is None else norm
        self.skip, self.scale = nn.Linear(8, 3), scale
        self.branch = nn.Sequential(nn.Linear(8, 12, bias=False), norm, nn.ReLU(), nn.Linear(12, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.skip(x) + self.scale * self.branch(x)


def small_head() -> nn.Module:
    net = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 3))
    nn.init.normal_(net[2].weight, std=1e-3)  # type: ignore[arg-type]
    return net


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("view", [seen, hidden])
@pytest.mark.parametrize("net", [lambda: Residual(1e-2), lambda: Residual(1e-4), lambda: Residual(1e-6), small_head])
def test_a_tensor_that_the_loss_hardly_depends_on_is_not_therefore_invariant(
    net: Callable[[], nn.Module], view: Callable[..., Problem], dtype: torch.dtype
) -> None:
    found = invariances(view(made(net), *data(), dtype=dtype))
    assert not bool(found.invariant.any())
    assert int(found.blocks.sum()) == 0
    weak = [i for i, name in enumerate(found.names) if name.endswith("weight") and ("blocks" in name or net is small_head)]
    assert float(found.change[weak].min()) < 0.01  # what misleads
    matrices = [i for i in weak if found.names[i] in found.channels]
    assert all((share := found.share[i]) is not None and share.value > 0.1 for i in matrices)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("view", [seen, hidden])
@pytest.mark.parametrize("scale", [1.0, 1e-2, 1e-4, 1e-6])
def test_what_feeds_a_normalization_is_invariant_however_little_it_matters(
    scale: float, view: Callable[..., Problem], dtype: torch.dtype
) -> None:
    for norm in (nn.LayerNorm(12), nn.BatchNorm1d(12), nn.GroupNorm(3, 12), nn.RMSNorm(12)):
        net = made(lambda norm=norm: Branch(scale, norm))
        found = invariances(view(net, *data(), dtype=dtype, train=True))
        assert [name for name, yes in zip(found.names, found.invariant.tolist(), strict=True) if yes] == ["branch.0.weight"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_in_a_fitted_network_whose_gradients_vanish_weights_are_still_told_apart(dtype: torch.dtype) -> None:
    net, (x, _) = made(lambda: Branch(1.0, nn.BatchNorm1d(12))).to(dtype), data()
    y = net(x.to(dtype)).detach() + 1e-6
    problem = Problem(net, F.mse_loss, (x, y), train=True, dtype=dtype)
    assert float(problem.loss()) < 1e-11
    found = invariances(problem)
    assert [name for name, yes in zip(found.names, found.invariant.tolist(), strict=True) if yes] == ["branch.0.weight"]


@pytest.mark.parametrize("diverges", [False, True])
def test_samples_of_the_loss_are_those_of_the_oracle_also_with_dropout_and_where_some_are_left_out(diverges: bool) -> None:
    net, (x, y) = made(lambda: nn.Sequential(Branch(1e-3), nn.Dropout(0.3))).double(), data()
    bias = net[0].skip.bias.detach()  # type: ignore[index]
    ratio = float(bias[0] / bias[1])

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Infinite at half of the points around the parameters, and at no multiple of a tensor."""
        bias = model[0].skip.bias  # type: ignore[index]
        beyond = diverges and bool(bias[0] / bias[1] > ratio + 1e-6)
        return F.cross_entropy(model(batch["x"]), batch["y"]) + (math.inf if beyond else 0.0)

    problem = Problem(net, loss, {"x": x, "y": y}, dtype=torch.float64, train=True, batch_size=20)
    found, expected = invariances(problem), slow_invariances(problem)
    assert found.invariant.tolist() == expected.invariant.tolist() == [name == "0.branch.0.weight" for name in found.names]
    for a, b in zip(found.share, expected.share, strict=True):
        assert (a is None) is (b is None)
        if a is not None and b is not None:
            assert (a.n, a.value) == (b.n, pytest.approx(b.value, rel=1e-10))
            assert (a.n < 8) is diverges
    assert [name for name, share in zip(found.names, found.share, strict=True) if share is None] == ["0.branch.1.bias"]  # it is zero


def test_a_loss_that_normalizes_the_outputs_makes_the_last_weight_invariant() -> None:
    def cosine(outputs: Tensor, y: Tensor) -> Tensor:
        return -F.cosine_similarity(outputs, F.one_hot(y, 3).to(outputs), dim=1)

    for bias in (False, True):
        net = made(lambda bias=bias: nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3, bias=bias)))
        found = invariances(Problem(net, cosine, data()))
        assert bool(found.invariant[found.names.index("2.weight")]) is not bias
        assert not bool(found.invariant[0])


def test_what_moves_nothing_is_not_called_invariant() -> None:
    net = made(lambda: Branch(0.0))
    found = invariances(seen(net, *data()))
    assert not bool(found.invariant.any())
    i = found.names.index("branch.0.weight")
    assert found.share[i] is None
    assert found.channels["branch.0.weight"].tolist() == [False] * 12


@pytest.mark.parametrize("kind", ["batch", "weight", "group", "layer", "rms"])
@pytest.mark.parametrize("eps", [0.0, 1e-5])
def test_blocks_of_channels_are_those_that_a_normalization_divides_by_one_number(kind: Any, eps: float) -> None:
    width, groups = 12, 3
    net = made(lambda: NormalizedMLP([8, width, width, 3], normalization=kind, groups=groups, eps=eps))
    problem = seen(net, *data(), dtype=torch.float64, train=True)
    found = invariances(problem)
    expected = len(invariant_blocks(kind, width, groups))
    for name, blocks in zip(found.names, found.blocks.tolist(), strict=True):
        assert blocks == (0 if name == "head" else expected)
        if name != "head":
            assert found.channels[name].tolist() == [expected == width] * width
            c = torch.rand(blocks, generator=torch.Generator().manual_seed(2), dtype=torch.float64) + 0.5
            scaled = problem.at({name: c.repeat_interleave(width // blocks)[:, None] * problem.params[name]})
            assert float(scaled.loss()) == pytest.approx(float(problem.loss()), rel=1e-3 if eps else 1e-12)
    assert ("in 12 blocks" in found.readings()[0].note) is (expected == width)


class Channels(nn.Module):
    """A transposed convolution in groups and an embedding, whose output channels are not the first axis, each before a normalization."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(7, 6), nn.BatchNorm1d(6)
        self.up, self.groups = nn.ConvTranspose1d(6, 8, 3, groups=2, bias=False), nn.GroupNorm(4, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.norm(self.embed(tokens).transpose(1, 2))
        return self.head(torch.tanh(self.groups(self.up(h))).mean(2))


def test_the_bias_of_a_transposed_convolution_has_a_channel_an_entry() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(6, 2, 5, 5, generator=generator) for _ in range(2))
    net = made(lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 2, 3, groups=2)))
    found = invariances(Problem(net, F.mse_loss, (x, y), dtype=torch.float64))
    assert found.names[-1] == "2.bias"
    assert not bool(found.invariant.any())


def test_output_channels_are_found_where_they_are_not_the_first_axis() -> None:
    tokens = torch.randint(0, 7, (20, 5), generator=torch.Generator().manual_seed(0))
    found = invariances(Problem(made(Channels), F.cross_entropy, (tokens, torch.arange(20) % 3), dtype=torch.float64, train=True))
    blocks = dict(zip(found.names, found.blocks.tolist(), strict=True))
    assert (blocks["embed.weight"], blocks["up.weight"], blocks["head.weight"]) == (6, 4, 0)
    assert found.channels["embed.weight"].tolist() == [True] * 6


def test_channels_that_are_normalized_beside_others_that_are_not_are_named() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.head = nn.Linear(8, 6), nn.BatchNorm1d(3), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            return self.head(torch.tanh(torch.cat([self.norm(h[:, :3]), h[:, 3:]], 1)))

    found = invariances(seen(made(Half), *data(), train=True))
    assert not bool(found.invariant.any())
    assert found.channels["first.weight"].tolist() == [True] * 3 + [False] * 3


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
    for factors in ((), (0.0,), (-1.0,), (math.inf,)):
        with pytest.raises(ValueError, match="factors must be positive"):
            invariances(make("mlp"), factors=factors)
    with pytest.raises(ValueError, match=r"factors must hold a number other than 1.*got \(1.0, 1.0\)"):
        invariances(make("mlp"), factors=(1.0, 1.0))
    with pytest.raises(ValueError, match=r"probes must be at least 2 .* got 1"):
        invariances(make("mlp"), probes=1)
    zero = Problem(nn.Linear(2, 1), lambda o, t: 0 * o.mean(), (torch.ones(3, 2), torch.ones(3)))
    with pytest.raises(ValueError, match="loss is zero"):
        invariances(zero)
