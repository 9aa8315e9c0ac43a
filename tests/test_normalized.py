"""Normalized nets against the layers of torch.nn, and under torch.func."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap

from theorylab.models.normalized import NormalizedMLP, PreNormResidual, batch_norm, group_norm, layer_norm, rms_norm

EPS = 1e-5
KINDS = ["none", "batch", "layer", "group", "rms", "weight"]


@pytest.fixture
def x() -> torch.Tensor:
    return 3 + 2 * torch.randn(16, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (lambda x: batch_norm(x, EPS), nn.BatchNorm1d(12, eps=EPS, affine=False)),
        (lambda x: group_norm(x, 3, EPS), nn.GroupNorm(3, 12, eps=EPS, affine=False)),
        (lambda x: layer_norm(x, EPS), nn.LayerNorm(12, eps=EPS, elementwise_affine=False)),
        (lambda x: rms_norm(x, EPS), nn.RMSNorm(12, eps=EPS, elementwise_affine=False)),
    ],
)
def test_layers_equal_torch(x: torch.Tensor, ours, theirs: nn.Module) -> None:
    torch.testing.assert_close(ours(x), theirs.double().train()(x), rtol=1e-12, atol=1e-12)


def build(kind: str, **options) -> NormalizedMLP:
    torch.manual_seed(0)
    return NormalizedMLP([12, 6, 6, 2], normalization=kind, groups=3, eps=EPS, **options).double()


def reference(net: NormalizedMLP, kind: str) -> nn.Sequential:
    """The same net out of torch.nn layers."""
    modules: list[nn.Module] = []
    for weight, gain, shift in zip(net.layers, net.gains, net.shifts, strict=True):
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=kind in ("none", "weight")).double()
        norm = {
            "batch": lambda: nn.BatchNorm1d(6, eps=EPS),
            "layer": lambda: nn.LayerNorm(6, eps=EPS),
            "group": lambda: nn.GroupNorm(3, 6, eps=EPS),
            "rms": lambda: nn.RMSNorm(6, eps=EPS),
        }.get(kind, nn.Identity)()
        with torch.no_grad():
            linear.weight.copy_(weight)
            if kind in ("none", "weight"):  # gain and shift go into the linear map
                scale = gain if kind == "none" else gain / (weight.square().sum(1) + EPS).sqrt()
                linear.weight.mul_(scale[:, None])
                linear.bias.copy_(shift)
            else:
                norm = norm.double()
                norm.weight.copy_(gain)
                if kind != "rms":
                    norm.bias.copy_(shift)
        modules += [linear, norm, nn.Tanh()]
    head = nn.Linear(6, 2, bias=False).double()
    with torch.no_grad():
        head.weight.copy_(net.head)
    return nn.Sequential(*modules, head)


@pytest.mark.parametrize("kind", KINDS)
def test_net_equals_torch(x: torch.Tensor, kind: str) -> None:
    net = build(kind, affine=True)
    if kind == "rms":  # torch's RMSNorm has no shift
        with torch.no_grad():
            for shift in net.shifts:
                shift.zero_()
    torch.testing.assert_close(net(x), reference(net, kind).train()(x), rtol=1e-10, atol=1e-12)


def test_weight_norm_equals_torch(x: torch.Tensor) -> None:
    net = NormalizedMLP([12, 6, 2], normalization="weight", affine=True).double()
    linear = nn.utils.parametrizations.weight_norm(nn.Linear(12, 6).double())
    with torch.no_grad():
        linear.parametrizations.weight.original0.copy_(net.gains[0][:, None])
        linear.parametrizations.weight.original1.copy_(net.layers[0])
        linear.bias.copy_(net.shifts[0])
    torch.testing.assert_close(net(x), torch.tanh(linear(x)) @ net.head.T, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_vmap_equals_a_loop(x: torch.Tensor, kind: str) -> None:
    torch.manual_seed(1)
    nets = [NormalizedMLP([12, 6, 1], normalization=kind, groups=2, affine=True, fixed_head=True).double() for _ in range(3)]
    params, buffers = stack_module_state(nets)

    def risk(p, b):
        return functional_call(nets[0], (p, b), (x,)).square().mean()

    gradients = vmap(grad(risk))(params, buffers)
    for k, net in enumerate(nets):
        names = [n for n, _ in net.named_parameters()]
        alone = torch.autograd.grad(net(x).square().mean(), list(net.parameters()), allow_unused=True)
        for name, g in zip(names, alone, strict=True):
            torch.testing.assert_close(gradients[name][k], g, rtol=1e-10, atol=1e-12)


def test_fixed_head_is_no_parameter() -> None:
    free, fixed = build("batch"), build("batch", fixed_head=True)
    assert "head" in dict(free.named_parameters())
    assert "head" not in dict(fixed.named_parameters())
    torch.testing.assert_close(fixed.head, free.head.detach())  # the same draw either way


def test_nets_can_be_copied_and_pickled(x: torch.Tensor) -> None:
    net = build("group")
    torch.testing.assert_close(copy.deepcopy(net)(x), net(x))
    torch.testing.assert_close(pickle.loads(pickle.dumps(net))(x), net(x))


def test_residual_stream_by_hand(x: torch.Tensor) -> None:
    torch.manual_seed(0)
    net = PreNormResidual(12, 8, 3, blocks=2, eps=EPS).double()
    norm = nn.RMSNorm(8, eps=EPS, elementwise_affine=False)
    h = x @ net.embed.T
    h = h + torch.tanh(norm(h) @ net.read[0].T) @ net.write[0].T
    h = h + torch.tanh(norm(h) @ net.read[1].T) @ net.write[1].T
    torch.testing.assert_close(net(x), norm(h) @ net.head.T, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: NormalizedMLP([3, 1]), "at least one hidden layer"),
        (lambda: NormalizedMLP([3, 4, 1], eps=-1.0), "eps must be at least 0"),
        (lambda: NormalizedMLP([3, 4, 1], eps=math.nan), "eps must be at least 0"),
        (lambda: PreNormResidual(3, 4, 1, eps=-1.0), "eps must be at least 0"),
        (lambda: NormalizedMLP([3, 4, 1], normalization="group", groups=3), "groups must be positive and divide"),
        (lambda: NormalizedMLP([3, 4, 1], normalization="group", groups=0), "groups must be positive"),
        (lambda: NormalizedMLP([3, 4, 1], normalization="group", groups=-2), "groups must be positive"),
        (lambda: NormalizedMLP([3, 4, 1], normalization="group", groups=4), "at least two channels"),
        (lambda: NormalizedMLP([3, 4, 1, 1], normalization="layer"), "at least two channels"),
        (lambda: group_norm(torch.randn(2, 6), -2), "groups must be positive"),
        (lambda: layer_norm(torch.randn(2, 1)), "at least two channels"),
        (lambda: NormalizedMLP([3, 4, 1])(torch.randn(1, 3)), "at least two rows"),
        (lambda: NormalizedMLP([3, 4, 1], normalization="instance"), "normalization must be one of"),
        (lambda: PreNormResidual(3, 4, 1, blocks=0), "blocks must be at least 1"),
    ],
)
def test_bad_input(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
