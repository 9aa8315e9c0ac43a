"""Signal profiles against layers written out by hand, and on models whose modules are called in unusual ways."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from zoo import make, vectors

from theorylab.core.instrument import Inapplicable
from theorylab.core.problem import Problem
from theorylab.instruments.signal import SignalProfile, signal_profile, slow_signal_profile
from theorylab.models.wide import wide_mlp
from theorylab.stats.fits import growth_rate
from theorylab.theory.signal import chi, fixed_length


def made(make_net):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make_net()


def seeded(make_net, **options) -> Problem:
    net, data = made(lambda: (make_net(), vectors()))
    return Problem(net, F.cross_entropy, data, dtype=torch.float64, **options)


def test_an_explicit_network_by_hand() -> None:
    """h = W x + b, tanh h, V tanh h + c, with gradients by the chain rule written out."""
    problem = seeded(lambda: nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)))
    x, y = problem.batches[0].content
    p = problem.params
    h = x @ p["0.weight"].T + p["0.bias"]
    a = h.tanh()
    f = a @ p["2.weight"].T + p["2.bias"]
    df = (f.softmax(1) - F.one_hot(y, 3)) / len(x)
    da = df @ p["2.weight"]
    dh = da * (1 - a * a)
    found = signal_profile(problem)
    assert found.names == ("0", "1", "2")
    assert found.layer.tolist() == [True, False, True]
    assert torch.allclose(found.length, torch.stack([t.square().mean() for t in (h, a, f)]))
    assert torch.allclose(found.gradient, len(x) * torch.stack([t.square().sum() for t in (dh, da, df)]))
    for t, c in zip((h, a, f), found.correlation, strict=True):  # type: ignore[arg-type]
        u = F.normalize(t, dim=1)
        pairs = torch.tril_indices(len(x), len(x), -1)
        assert float(c) == pytest.approx(float((u @ u.T)[pairs[0], pairs[1]].mean()))


def test_jacobians_of_an_explicit_network_by_hand() -> None:
    """∂h/∂x = W, ∂a/∂x = diag(1 − a²) W and ∂f/∂x = V diag(1 − a²) W, over the entries of each."""
    problem = seeded(lambda: nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)))
    W, b, V = (problem.params[k] for k in ("0.weight", "0.bias", "2.weight"))
    a = (problem.batches[0].content[0] @ W.T + b).tanh()
    middle = (1 - a * a)[:, :, None] * W
    exact = [W.square().sum() / 6, middle.square().sum() / a.numel(), (V @ middle).square().sum() / (3 * len(a))]
    for batch_size in (None, 5):
        split = Problem(problem.model, F.cross_entropy, problem.batches[0].content, dtype=torch.float64, batch_size=batch_size)
        found = signal_profile(split, probes=2000).jacobian
        assert found is not None
        for estimate, value in zip(found, exact, strict=True):
            assert estimate.n == 2000
            assert abs(estimate.value - float(value)) < 4 * estimate.stderr < 0.05 * float(value)


def test_the_rate_of_the_jacobian_is_chi_of_wide_random_networks_and_that_of_gradients() -> None:
    weight, bias = 1.3, 0.1
    q = fixed_length(weight, bias)
    net = made(lambda: wide_mlp(20, 400, 5, depth=16, weight_variance=weight, bias_variance=bias, activation="tanh"))
    x = torch.randn(32, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = x / x.square().mean(1, keepdim=True).sqrt() * math.sqrt((q - bias) / weight)  # lengths are at their fixed point from the start
    problem = Problem(net.double(), F.cross_entropy, (x, torch.arange(32) % 5))
    inner = [str(2 * layer) for layer in range(16)]  # all linear layers but the last, whose five outputs are few
    found = signal_profile(problem, modules=inner)
    assert found.jacobian is not None
    assert found.jacobian_rate is not None
    assert found.gradient_rate is not None
    assert found.jacobian[0].value == pytest.approx(weight, rel=0.05)  # the first layer alone
    for rate in (found.jacobian_rate, found.gradient_rate):
        assert math.exp(rate.value) == pytest.approx(chi(q, weight), rel=0.03)


def test_the_jacobian_is_left_out_where_it_is_not_asked_for_or_inputs_are_no_numbers() -> None:
    without = signal_profile(make("mlp"), probes=0)
    assert without.jacobian is without.jacobian_rate is None
    assert slow_signal_profile(make("mlp"), probes=0).jacobian is None
    assert signal_profile(make("attention")).jacobian is None
    for probes in (1, -1):
        with pytest.raises(ValueError, match=f"probes must be at least 2 .* got {probes}"):
            signal_profile(make("mlp"), probes=probes)


class Relaxed(nn.Module):
    """Goes down an energy in its own input before it answers, and keeps no graph of that."""

    def __init__(self) -> None:
        super().__init__()
        self.energy, self.head = nn.Linear(5, 1), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.requires_grad_()
            (slope,) = torch.autograd.grad(self.energy(x).square().sum(), x)
        return self.head(x - slope)


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g


class OnceDifferentiable(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return Once.apply(super().forward(input))  # type: ignore[return-value]


@pytest.mark.parametrize("make_net", [Relaxed, lambda: nn.Sequential(OnceDifferentiable(5, 3))])
def test_what_has_no_second_derivative_has_no_jacobian_and_says_so(make_net) -> None:
    problem = seeded(make_net)
    with pytest.raises(ValueError, match="Pass probes=0"):
        signal_profile(problem)
    assert float(signal_profile(problem, probes=0).gradient.min()) >= 0


class InPlace(nn.Module):
    """A residual block whose additions and activations overwrite what they are given."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(5, 5), nn.BatchNorm1d(5), nn.Linear(5, 5)
        self.act, self.head, self.inplace = nn.ReLU(inplace=inplace), nn.Linear(5, 3), inplace

    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.norm(self.first(x)))
        r = self.second(h)
        if self.inplace:
            r += h
            return self.head(self.act(r))
        return self.head(self.act(r + h))


def test_what_is_overwritten_later_was_measured_before() -> None:
    plain, inplace = (signal_profile(seeded(lambda way=way: InPlace(way), train=True)) for way in (False, True))
    assert plain.names == ("first", "norm", "act", "second", "act#2", "head") == inplace.names
    for a, b in ((plain.length, inplace.length), (plain.gradient, inplace.gradient), (plain.correlation, inplace.correlation)):
        assert torch.allclose(a, b, rtol=1e-12)  # type: ignore[arg-type]
    expected = slow_signal_profile(seeded(lambda: InPlace(True), train=True))
    assert torch.allclose(expected.length, inplace.length, rtol=1e-12)
    assert torch.allclose(expected.gradient, inplace.gradient, rtol=1e-12)
    for profile in (plain, expected):
        assert profile.jacobian is not None
        assert inplace.jacobian is not None
        for a, b in zip(profile.jacobian, inplace.jacobian, strict=True):
            assert b.value == pytest.approx(a.value, rel=1e-12)


def test_buffers_hooks_and_gradients_are_left_alone_also_by_an_error() -> None:
    problem = seeded(lambda: InPlace(True), train=True)
    net = problem.model
    before = {k: t.clone() for k, t in net.state_dict().items()}
    signal_profile(problem)
    x = problem.batches[0].content[0].clone()
    x[0, 0] = math.nan
    with pytest.raises(ValueError, match="loss must be finite"):
        signal_profile(Problem(net, F.cross_entropy, (x.float(), problem.batches[0].content[1]), train=True))
    assert all(torch.equal(t, before[k]) for k, t in net.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert all(p.grad is None for p in net.parameters())


def test_gradients_of_activations_do_not_depend_on_the_selected_parameters() -> None:
    whole, part = (signal_profile(make("mlp", **options)) for options in ({}, {"params": "4.bias"}))
    assert torch.equal(whole.gradient, part.gradient)


class Forces(nn.Module):
    """Asks for gradients in its own input, and returns the slope of an energy there beside it."""

    def __init__(self, *, derived: bool) -> None:
        super().__init__()
        self.energy = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 1))
        self.shift, self.derived = nn.Linear(1, 5), derived

    def forward(self, x: Tensor) -> Tensor:
        still = self.shift(x.detach()[:, :1])
        with torch.enable_grad():
            x.requires_grad_()
            energy = self.energy(x)
            if not self.derived:
                return energy + still
            (slope,) = torch.autograd.grad(energy.sum(), x, create_graph=True)
        return energy + slope + still


@pytest.mark.parametrize("derived", [False, True])
def test_a_model_that_asks_for_gradients_in_its_own_input_is_measured_as_by_the_oracle(derived: bool) -> None:
    """A derivative that it takes on its way goes through the activations too, and is not the loss's."""
    problem = seeded(lambda: Forces(derived=derived))
    found, expected = signal_profile(problem), slow_signal_profile(problem)
    assert found.names == expected.names == ("shift", "energy.0", "energy.1", "energy.2")
    for key in ("length", "correlation", "gradient"):
        assert torch.allclose(getattr(found, key), getattr(expected, key), rtol=1e-10), key
    assert float(found.gradient.min()) > 0
    assert found.jacobian is not None
    assert expected.jacobian is not None
    assert [j.value for j in found.jacobian] == pytest.approx([j.value for j in expected.jacobian], rel=1e-10)
    assert not any(t.requires_grad for t in problem.batches[0].content)


def test_modules_can_be_chosen_and_then_all_count_as_layers() -> None:
    problem = make("mlp")
    found = signal_profile(problem, modules=["1", "3"])
    assert found.names == ("1", "3")
    assert bool(found.layer.all())
    assert torch.equal(found.gradient, signal_profile(problem).gradient[[1, 3]])
    with pytest.raises(Inapplicable, match="named by modules='blocks"):
        signal_profile(problem, modules="blocks.*")


class Blocks(nn.Module):
    """A residual stream whose blocks contain modules."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(5, 5), nn.Tanh()) for _ in range(3))
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


def test_a_star_stands_for_one_part_of_a_name() -> None:
    problem = seeded(Blocks)
    assert signal_profile(problem, modules="blocks.*").names == ("blocks.0", "blocks.1", "blocks.2")
    assert signal_profile(problem, modules=["blocks.*.0", "head"]).names == ("blocks.0.0", "blocks.1.0", "blocks.2.0", "head")
    assert signal_profile(problem).names == ("blocks.0.0", "blocks.0.1", "blocks.1.0", "blocks.1.1", "blocks.2.0", "blocks.2.1", "head")


NORMS = {"weight": parametrizations.weight_norm, "spectral": parametrizations.spectral_norm, "orthogonal": parametrizations.orthogonal}


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("rows", [8, 5])  # as many as the weights have, and fewer
def test_what_only_computes_a_weight_is_no_activation_and_its_layer_counts(kind: str, rows: int) -> None:
    def make_net() -> nn.Module:
        layers = [m for _ in range(4) for m in (NORMS[kind](nn.Linear(8, 8)), nn.Tanh())]
        return nn.Sequential(*layers, nn.Linear(8, 3))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        net, x = make_net().double(), torch.randn(rows, 8, dtype=torch.float64)
    problem = Problem(net, F.cross_entropy, (x, torch.arange(rows) % 3))
    found, expected = signal_profile(problem), slow_signal_profile(problem)
    assert found.names == expected.names == tuple(map(str, range(9)))
    assert found.layer.tolist() == [True, False] * 4 + [True]
    assert found.length_rate is not None
    plain = [nn.Linear(m.in_features, m.out_features) if isinstance(m, nn.Linear) else m for m in net.eval()]  # type: ignore[attr-defined]
    for layer, computed in zip(plain[::2], net[::2], strict=True):  # type: ignore[index]
        layer.weight, layer.bias = nn.Parameter(computed.weight.detach()), computed.bias
    same = signal_profile(Problem(nn.Sequential(*plain), F.cross_entropy, (x, torch.arange(rows) % 3)))
    for key in ("length", "correlation", "gradient"):
        assert torch.allclose(getattr(found, key), getattr(same, key), rtol=1e-10), key
        assert torch.allclose(getattr(found, key), getattr(expected, key), rtol=1e-10), key
    with pytest.raises(Inapplicable, match="no module named by"):
        signal_profile(problem, modules="0.parametrizations.weight.0")


def test_modules_with_tuples_and_containers_that_hide_their_children_are_seen() -> None:
    assert signal_profile(make("LSTM")).names == ("lstm", "head")
    names = signal_profile(make("TransformerEncoderLayer")).names
    assert "layer.self_attn" in names
    assert "layer" not in names


def test_a_root_without_children_and_an_activation_that_the_loss_ignores() -> None:
    problem = Problem(nn.Linear(5, 3), lambda f, y: 0.0 * y.sum() + torch.ones(()), vectors(), dtype=torch.float64)
    found = signal_profile(problem)
    assert found.names == ("Linear",)
    assert found.gradient.tolist() == [0.0]
    one = Problem(nn.Linear(5, 3), F.cross_entropy, vectors(1), dtype=torch.float64)
    assert signal_profile(one).correlation is None


def test_batches_of_another_length_are_refused() -> None:
    net = nn.Sequential(nn.Linear(1, 2), nn.AdaptiveAvgPool2d((1, 2)), nn.Flatten(1))
    data = [(torch.zeros(2, 1, size, 1), torch.zeros(2, dtype=torch.long)) for size in (3, 4)]
    with pytest.raises(ValueError, match="one size in all batches"):
        signal_profile(Problem(net, F.cross_entropy, data))


def constant_rates(gradient: float, correlation: float) -> SignalProfile:
    layers = torch.arange(6, dtype=torch.float64)
    c, g = 1 - torch.exp(correlation * layers) / 2, torch.exp(-gradient * layers)
    c[3] -= 1e-3
    rates = growth_rate(torch.ones(6)), growth_rate(1 - c), growth_rate(g.flip(0))
    return SignalProfile(tuple("abcdef"), torch.ones(6, dtype=torch.bool), torch.ones(6), c, g, None, *rates, None)


def test_the_depth_scale_is_given_only_where_correlations_surely_rise() -> None:
    found = constant_rates(0.5, -0.25).depth_scale
    assert found is not None
    assert found[0] == pytest.approx(4)
    assert found[1][0] < 4 < found[1][1]
    assert constant_rates(0.5, 0.0).depth_scale is None


def test_readings_figures_and_plot() -> None:
    found = constant_rates(0.5, -0.25)
    readings = {r.name: r.value for r in found.readings()}
    assert readings["squared gradient, factor a layer backwards"] == pytest.approx(math.exp(0.5))
    assert readings["squared gradient, first over last layer"] == pytest.approx(math.exp(2.5))
    assert [s.y_scale for s in found.figures()] == ["log", "log"]
    ax = found.plot()
    assert len(ax.lines) == 3
    _close(ax)


def _close(ax) -> None:
    import matplotlib.pyplot as plt

    plt.close(ax.figure)


def test_growth_rates_of_random_walks_are_covered_by_their_intervals() -> None:
    """Of 400 walks of 30 steps, 99 % intervals hold the drift but for a few; the error of a line's slope would miss it often."""
    steps = 0.1 + torch.randn(400, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    inside = [low <= 0.1 <= high for low, high in (growth_rate(walk.cumsum(0).exp()).interval() for walk in steps)]
    assert sum(inside) >= 400 - 4 - 3 * 2  # three standard deviations below the mean
    for wrong in ([1.0, 2.0], [1.0, 0.0, 2.0]):
        with pytest.raises(ValueError, match="y must"):
            growth_rate(wrong)
