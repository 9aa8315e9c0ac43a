"""Folding BatchNorm: the outputs stay, whatever the layer; what cannot be folded is named."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import theorylab
from theorylab.models.cnn import cnn
from theorylab.models.folding import Folded, fold_batchnorm


def settled(make: Callable[[], nn.Module], x: Tensor) -> nn.Module:
    """A network in evaluation mode whose BatchNorm layers have seen data and have gains and shifts."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = make().double()
        for m in net.modules():
            if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.weight is not None:
                nn.init.normal_(m.weight, 1.0, 0.5)  # some negative
                nn.init.normal_(m.bias)
    if all(m.track_running_stats for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)):
        for _ in range(3):
            net(x)
    return net.eval()


def random(*shape: int) -> Tensor:
    return 1 + 2 * torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


LAYERS = {
    "linear": (nn.Linear, nn.BatchNorm1d, {}, (9, 4)),
    "conv 1-d": (nn.Conv1d, nn.BatchNorm1d, {"kernel_size": 3, "groups": 2}, (9, 4, 8)),
    "conv 2-d": (nn.Conv2d, nn.BatchNorm2d, {"kernel_size": 3, "stride": 2, "padding": 1}, (9, 4, 6, 6)),
    "conv 2-d, circular": (nn.Conv2d, nn.BatchNorm2d, {"kernel_size": 3, "padding": 1, "padding_mode": "circular"}, (9, 4, 6, 6)),
    "conv 2-d, depthwise": (nn.Conv2d, nn.BatchNorm2d, {"kernel_size": (1, 3), "groups": 2, "dilation": 2}, (9, 4, 6, 6)),
    "conv 3-d": (nn.Conv3d, nn.BatchNorm3d, {"kernel_size": 2}, (9, 4, 4, 4, 4)),
    "transposed 1-d": (nn.ConvTranspose1d, nn.BatchNorm1d, {"kernel_size": 3, "stride": 2, "output_padding": 1}, (9, 4, 5)),
    "transposed 2-d": (nn.ConvTranspose2d, nn.BatchNorm2d, {"kernel_size": 3, "stride": 2, "groups": 2}, (9, 4, 4, 4)),
    "transposed 3-d": (nn.ConvTranspose3d, nn.BatchNorm3d, {"kernel_size": 2, "groups": 2}, (9, 4, 3, 3, 3)),
}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_every_linear_map_absorbs_its_norm(name: str, affine: bool, bias: bool) -> None:
    layer, norm, options, shape = LAYERS[name]
    x = random(*shape)
    net = settled(lambda: nn.Sequential(layer(4, 6, bias=bias, **options), norm(6, affine=affine), nn.Tanh()), x)
    before = copy.deepcopy(net.state_dict())
    folded = fold_batchnorm(net)
    assert isinstance(folded[1], Folded)  # pyright: ignore[reportIndexIssue]
    torch.testing.assert_close(folded(x), net(x), rtol=1e-12, atol=1e-12)
    assert all(torch.equal(t, before[k]) for k, t in net.state_dict().items())
    assert isinstance(net[1], norm)  # pyright: ignore[reportIndexIssue]
    assert not torch.allclose(folded(x), net.train()(x), atol=1e-3)  # the control: batch statistics are others


class Residual(nn.Module):
    """Modules in an order that is not that of the forward pass, an optional argument, and a branch on it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm2 = nn.BatchNorm2d(4)
        self.conv1 = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1, bias=False)

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        h = self.norm1(self.conv1(x)).relu()
        h = x + self.norm2(self.conv2(h))
        return h if scale is None else h * scale


def test_the_trace_decides_which_layer_feeds_which_norm() -> None:
    x = random(9, 4, 6, 6)
    net = settled(Residual, x)
    folded = fold_batchnorm(net)
    assert type(folded) is Residual
    torch.testing.assert_close(folded(x), net(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(folded(x, 2 * x), net(x, 2 * x), rtol=1e-12, atol=1e-12)
    part = fold_batchnorm(net, "norm2")
    assert isinstance(part.norm1, nn.BatchNorm2d)
    torch.testing.assert_close(part(x), net(x), rtol=1e-12, atol=1e-12)


def test_a_folded_network_folds_to_itself_and_can_be_traced_and_stored() -> None:
    x = random(9, 1, 8, 8)
    net = settled(lambda: cnn([1, 4, 8], 3, norm="batch"), x)
    folded = theorylab.fold_batchnorm(net)
    torch.testing.assert_close(fold_batchnorm(folded)(x), net(x))
    torch.testing.assert_close(fx.symbolic_trace(folded)(x), net(x))
    other = copy.deepcopy(folded)
    other.load_state_dict({k: torch.zeros_like(t) for k, t in folded.state_dict().items()})
    other.load_state_dict(folded.state_dict())
    torch.testing.assert_close(other(x), net(x))
    assert len(list(folded.buffers())) == 0
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())


def test_float32_is_folded_to_its_precision_and_frozen_layers_stay_frozen() -> None:
    x = random(9, 4, 6, 6).float()
    net = settled(lambda: nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)), x.double()).float()
    net[0].requires_grad_(False)  # pyright: ignore[reportIndexIssue]
    folded = fold_batchnorm(net)
    torch.testing.assert_close(folded(x), net(x), rtol=1e-5, atol=1e-5)
    assert folded[0].bias.dtype == torch.float32  # pyright: ignore[reportIndexIssue]
    assert not any(p.requires_grad for p in folded.parameters())


def test_sequences_that_batchnorm_reads_along_another_axis_are_refused_by_the_folded_network() -> None:
    """BatchNorm1d takes axis 1 for channels, Linear the last one: with as many tokens as features nothing but the axes tells."""
    net = settled(lambda: nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6)), random(9, 4))
    folded = fold_batchnorm(net)
    assert net(random(9, 6, 4)).shape == (9, 6, 6)
    with pytest.raises(ValueError, match=r"inputs of 2 axes.*got shape \(9, 6, 6\)"):
        folded(random(9, 6, 4))


class Twice(nn.Module):
    def __init__(self, share: str) -> None:
        super().__init__()
        self.a, self.b = nn.Conv1d(4, 4, 1), nn.Conv1d(4, 4, 1)
        self.norm, self.other = nn.BatchNorm1d(4), nn.BatchNorm1d(4)
        self.share = share
        if share == "weight":
            self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        if self.share == "layer":
            return self.norm(self.a(x)) + self.a(x.square())
        if self.share == "norm":
            return self.norm(self.a(x)) + self.norm(self.b(x))
        if self.share == "output":
            h = self.a(x)
            return self.norm(h) + h
        if self.share == "read":
            return self.norm(self.a(x)) + self.norm.bias.sum()
        if self.share == "weight":
            return self.norm(self.a(x)) + self.other(self.b(x))
        if self.share == "functional":
            return self.norm(self.a(x)[:, :4])
        if self.share == "unused":
            return self.norm(self.a(x)) + F.relu(x)
        return self.norm(self.a(x)) if bool(x.sum() > 0) else x


def hooked() -> nn.Module:
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    net[0].register_forward_hook(lambda m, args, out: 2 * out)
    return net


class Scaled(nn.Conv1d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).relu()


class Clipped(nn.BatchNorm1d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).clamp(-1, 1)


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "shared layer": (lambda: Twice("layer"), "layer a is shared: it is called 2 times"),
    "shared norm": (lambda: Twice("norm"), "BatchNorm norm is shared: it is called 2 times"),
    "shared output": (lambda: Twice("output"), "layer a feeds more than BatchNorm norm"),
    "tied weight": (lambda: Twice("weight"), "layer a is shared: its parameters are used elsewhere"),
    "norm read directly": (lambda: Twice("read"), "BatchNorm norm is shared: its parameters are used elsewhere"),
    "something between": (lambda: Twice("functional"), "BatchNorm norm must come directly after .*, it follows getitem"),
    "never called": (lambda: Twice("unused"), "BatchNorm other is not called"),
    "depends on values": (lambda: Twice("values"), "torch.fx can trace.*TraceError"),
    "activation between": (lambda: nn.Sequential(nn.Conv1d(4, 4, 1), nn.ReLU(), nn.BatchNorm1d(4)), r"it follows 1 \(ReLU\)"),
    "norm first": (lambda: nn.Sequential(nn.BatchNorm1d(4), nn.Conv1d(4, 4, 1)), "it follows input"),
    "no linear map": (lambda: nn.Sequential(Scaled(4, 4, 1), nn.BatchNorm1d(4)), r"it follows 0 \(Scaled\)"),
    "parametrized": (
        lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv1d(4, 4, 1)), nn.BatchNorm1d(4)),
        "layer 0 is parametrized: remove",
    ),
    "norm of its own": (lambda: nn.Sequential(nn.Linear(4, 4), Clipped(4)), "BatchNorm 1 is a Clipped with a forward pass of its own"),
    "hooked": (hooked, "layer 0 has forward hooks"),
    "no running statistics": (
        lambda: nn.Sequential(nn.Conv1d(4, 4, 1), nn.BatchNorm1d(4, track_running_stats=False)),
        "BatchNorm 1 keeps no running statistics",
    ),
    "other channels": (lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(5)), "BatchNorm 1 normalizes 5 channels, and layer 0 has 4"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_folded_is_named(name: str) -> None:
    make, message = REFUSED[name]
    net = make().double().eval()
    attributes = set(vars(net))
    with pytest.raises(ValueError, match=message):
        fold_batchnorm(net, "norm" if name in ("shared layer", "shared output", "norm read directly", "something between") else None)
    assert set(vars(net)) == attributes  # a failed trace leaves nothing behind


def test_training_mode_is_refused_and_so_is_what_is_no_norm() -> None:
    net = nn.Sequential(nn.Conv1d(4, 4, 1), nn.BatchNorm1d(4))
    with pytest.raises(ValueError, match=r"BatchNorm 1 is in training mode.*model.eval\(\)"):
        fold_batchnorm(net)
    with pytest.raises(ValueError, match=r"layers must name BatchNorm layers of the model \(1\), got '0'"):
        fold_batchnorm(net.eval(), ["0"])
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got list"):
        fold_batchnorm([net])  # type: ignore[type-var]


def test_random_numbers_in_the_forward_pass_leave_the_generator_alone() -> None:
    class Noisy(nn.Sequential):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) + torch.rand(1)

    net = Noisy(nn.Conv1d(4, 4, 1), nn.BatchNorm1d(4)).eval()
    before = torch.get_rng_state()
    fold_batchnorm(net)
    assert torch.equal(torch.get_rng_state(), before)
