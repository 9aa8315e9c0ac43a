"""The classifiers of the MNIST-1D table against the layers of torch.nn, and under vmap."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn import functional as F

from theorylab.models.mnist1d import CLASSIFIERS, BidirectionalGRU, ResidualMLP, StridedCNN, StridedConv1d
from theorylab.models.seeded import seeded
from theorylab.studies.convolution.mnist1d import Mnist1dConfig

PARAMETERS = {"logistic": 410, "MLP": 15_210, "CNN": 5210, "GRU": 5134}
"""Of the authors' networks, by the sizes in their code."""


def signals(n: int = 3, length: int = 40) -> Tensor:
    return torch.randn(n, length, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("length", [40, 17, 8])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(5, 2, 1), (3, 2, 1), (3, 1, 1), (4, 3, 2), (1, 2, 0)])
def test_the_convolution_is_torchs_with_channels_last(length: int, kernel: int, stride: int, padding: int) -> None:
    layer = seeded(lambda: StridedConv1d(3, 4, kernel, stride=stride, padding=padding), 0)
    x = torch.randn(2, 3, length, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(layer(x.mT).mT, nn.Conv1d.forward(layer, x))


def test_the_convolutional_network_by_torchs_layers() -> None:
    net, h = seeded(StridedCNN, 0), signals().unsqueeze(1)
    for layer in net.layers:
        assert isinstance(layer, nn.Conv1d)
        h = F.conv1d(h, layer.weight, layer.bias, stride=2, padding=1).relu()
    assert h.shape == (3, 25, 5)
    torch.testing.assert_close(net(signals()), net.head(h.mT.flatten(1)))  # the readout takes places in another order, all the same


def test_the_gru_is_torchs() -> None:
    net = seeded(BidirectionalGRU, 0)
    gru = nn.GRU(1, 6, batch_first=True, bidirectional=True, dtype=torch.float64)
    with torch.no_grad():
        for k, suffix in enumerate(("", "_reverse")):
            for name, tensor in (
                ("weight_ih_l0", net.input),
                ("weight_hh_l0", net.recurrent),
                ("bias_ih_l0", net.input_bias),
                ("bias_hh_l0", net.recurrent_bias),
            ):
                getattr(gru, name + suffix).copy_(tensor[k])
    states, _ = gru(signals().unsqueeze(-1))
    torch.testing.assert_close(net(signals()), net.head(states.flatten(1)))


def test_the_fully_connected_network_by_hand() -> None:
    net, x = seeded(ResidualMLP, 0), signals()
    h = (x @ net.first.weight.T + net.first.bias).relu()
    torch.testing.assert_close(net(x), net.head(h + net.second(h).relu()))


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_sizes_and_vmap(name: str) -> None:
    nets = [seeded(CLASSIFIERS[name], k) for k in range(2)]
    assert sum(p.numel() for p in nets[0].parameters()) == PARAMETERS[name]
    params, buffers = stack_module_state(nets)  # type: ignore[arg-type]
    x, y = signals(), torch.tensor([3, 1, 9])

    def risk(p: dict[str, Tensor], b: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(functional_call(nets[0], (p, b), (x,)), y)

    together = vmap(grad(risk))(params, buffers)
    for k, net in enumerate(nets):
        alone = torch.autograd.grad(F.cross_entropy(net(x), y), list(net.parameters()))
        for (key, _), g in zip(net.named_parameters(), alone, strict=True):
            torch.testing.assert_close(together[key][k], g)


def test_a_table_without_its_networks_is_refused() -> None:
    for options, message in (({"models": ("CNN",)}, "models must hold CNN and MLP"), ({"finished": ("GRU",)}, "finished must name")):
        with pytest.raises(ValueError, match=message):
            Mnist1dConfig(**options)  # type: ignore[arg-type]
