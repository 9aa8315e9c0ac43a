"""The path norm: by enumerating paths, invariant under rescaling, in the log domain, refused where paths have no meaning."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune
from zoo import hooked

from theorylab.core.instrument import Inapplicable
from theorylab.core.problem import Problem
from theorylab.instruments.balancedness import balancedness
from theorylab.instruments.norms import norms
from theorylab.instruments.path_norm import path_norm


def relu_problem(net: nn.Module, *size: int) -> Problem:
    x = torch.randn(4, *size, generator=torch.Generator().manual_seed(0))
    return Problem(net, lambda o, t: o.pow(2).mean(), (x, torch.zeros(4)), dtype=torch.float64)


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.relu(self.norm(self.conv(x)))


def residual_net() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 3, stride=2), Residual(2), nn.AvgPool2d(2), nn.Flatten(1), nn.Linear(2, 2))
    for name, buffer in net.named_buffers():
        if "running" in name:
            nn.init.uniform_(buffer, 0.5, 2.0)
    return net


def test_equals_the_sum_over_enumerated_paths() -> None:
    torch.manual_seed(0)
    widths = [3, 4, 2, 2]
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 2)).double()
    W, b = [net[i].weight.tolist() for i in (0, 2, 4)], [net[i].bias.tolist() for i in (0, 2, 4)]
    total = 0.0
    for start in range(4):  # from the inputs, or from the bias of a layer
        for path in itertools.product(*(range(widths[i]) for i in range(start, 4))):
            if start == 0:
                product = math.prod(W[i][path[i + 1]][path[i]] for i in range(3))
            else:
                product = b[start - 1][path[0]] * math.prod(W[i][path[i + 1 - start]][path[i - start]] for i in range(start, 3))
            total += product**2
    problem = relu_problem(net, 3)
    assert path_norm(problem) == pytest.approx(0.5 * math.log(total), abs=1e-12)


def test_residual_connections_pools_and_batchnorm_are_linear_pieces() -> None:
    net = residual_net()
    problem = relu_problem(net, 1, 7, 7)
    conv, block, _, _, head = net.double().eval()
    scale = block.norm.weight / (block.norm.running_var + block.norm.eps).sqrt()
    shift = block.norm.bias - block.norm.running_mean * scale
    with torch.no_grad():
        ones = torch.ones(1, 1, 7, 7, dtype=torch.float64)
        h = F.conv2d(ones, conv.weight**2, conv.bias**2, stride=2)
        g = F.conv2d(h, block.conv.weight**2, block.conv.bias**2, padding=1) * scale.view(-1, 1, 1) ** 2 + shift.view(-1, 1, 1) ** 2
        pooled = F.avg_pool2d(h + g, 2, divisor_override=16)
        total = float(F.linear(pooled.flatten(1), head.weight**2, head.bias**2).sum())
    assert path_norm(problem) == pytest.approx(0.5 * math.log(total), abs=1e-12)


@pytest.mark.parametrize(
    ("pool", "size"),
    [
        (nn.AvgPool1d(3, stride=2, padding=1, ceil_mode=True), (6,)),
        (nn.AvgPool1d(3, stride=2, padding=1, count_include_pad=False), (6,)),
        (nn.AvgPool2d(2, divisor_override=1), (4, 4)),
        (nn.AvgPool2d((3, 2), stride=2, padding=(1, 0), ceil_mode=True), (6, 5)),
        (nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False, ceil_mode=True), (6, 6)),
        (nn.AvgPool3d(2, stride=2, padding=1, count_include_pad=False), (3, 4, 2)),
        (nn.AvgPool3d(2, divisor_override=3), (2, 3, 4)),
    ],
    ids=str,
)
def test_a_pool_is_the_matrix_that_it_applies(pool: nn.Module, size: tuple[int, ...]) -> None:
    entries = math.prod(size)
    matrix = pool(torch.eye(entries, dtype=torch.float64).reshape(entries, 1, *size)).flatten(1)  # (input, output)
    net = nn.Sequential(pool, nn.Flatten(), nn.Linear(matrix.shape[1], 1, bias=False))
    nn.init.ones_(net[2].weight)
    assert path_norm(relu_problem(net, 1, *size)) == pytest.approx(0.5 * math.log(float(matrix.square().sum())), abs=1e-12)


class Sum(nn.Module):
    def __init__(self, plus) -> None:
        super().__init__()
        self.a, self.b, self.plus = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False), plus
        nn.init.constant_(self.a.weight, 3.0)
        nn.init.constant_(self.b.weight, 4.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.plus(self.a(x), self.b(x))


@pytest.mark.parametrize(
    "plus", [torch.add, lambda a, b: a.add(b), lambda a, b: a + b, lambda a, b: a.add_(b)], ids=["torch.add", "add", "+", "add_"]
)
def test_a_sum_adds_paths(plus) -> None:
    assert path_norm(relu_problem(Sum(plus), 1)) == pytest.approx(math.log(5), abs=1e-12)


@pytest.mark.parametrize(
    "plus",
    [lambda a, b: torch.add(a, b, alpha=10), lambda a, b: a.add(b, alpha=10), lambda a, b: a.add_(b, alpha=-1)],
    ids=["torch.add", "add", "add_"],
)
def test_a_sum_with_a_factor_is_not_plain_and_is_refused(plus) -> None:
    with pytest.raises(Inapplicable, match="plain sum of two tensors"):
        path_norm(relu_problem(Sum(plus), 1))


def test_rescaling_a_relu_layer_changes_nothing_and_a_tanh_layer_is_refused() -> None:
    torch.manual_seed(0)
    problem = relu_problem(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), 3)
    p = problem.params
    c = torch.tensor([0.1, 2.0, 30.0, 1.0], dtype=torch.float64)
    scaled = problem.at({"0.weight": c[:, None] * p["0.weight"], "0.bias": c * p["0.bias"], "2.weight": p["2.weight"] / c})
    assert float(scaled.loss()) == pytest.approx(float(problem.loss()), rel=1e-12)
    assert path_norm(scaled) == pytest.approx(path_norm(problem), abs=1e-12)
    assert norms(scaled).log_path_norm == pytest.approx(norms(problem).log_path_norm, abs=1e-12)
    assert abs(norms(scaled).log_spectral - norms(problem).log_spectral) > 0.1  # the product of norms does change
    tanh = relu_problem(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), 3)
    with pytest.raises(Inapplicable, match="1 is a Tanh"):
        path_norm(tanh)
    assert norms(tanh).log_path_norm is None


def test_does_not_overflow() -> None:
    layers = [m for _ in range(40) for m in (nn.Linear(1, 1), nn.ReLU())]
    net = nn.Sequential(*layers)
    for p in net.parameters():
        nn.init.constant_(p, 1e10)
    tiny = Problem(net, lambda o, t: (o * 0).nan_to_num().mean() + 1, (torch.zeros(2, 1), torch.zeros(2)), dtype=torch.float64)
    # the path from the first bias alone weighs 1e10^40; those from later biases add a geometric series
    assert path_norm(tiny) == pytest.approx(40 * math.log(1e10) + 0.5 * math.log(2), abs=1e-9)


@pytest.mark.parametrize(
    ("net", "match"),
    [
        (nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.LayerNorm(4)), "a LayerNorm"),
        (nn.Sequential(nn.Linear(3, 4), nn.GELU()), "a GELU"),
        (nn.Sequential(nn.Unflatten(1, (1, 3)), nn.MaxPool1d(2)), "a Unflatten"),
        (prune.l1_unstructured(nn.Linear(3, 4), "weight", 0.5), "a Linear whose weight or bias is computed"),
        (hooked(nn.Linear(3, 4)), "a hook changes them"),
    ],
)
def test_refuses_other_graphs(net: nn.Module, match: str) -> None:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.net = nn.Linear(3, 3), net

        def forward(self, x: Tensor) -> Tensor:
            return self.net(self.first(x))

    with pytest.raises(Inapplicable, match=match):
        path_norm(relu_problem(Head(), 3))


def test_refuses_products_of_tensors_and_branches_on_data() -> None:
    class Gate(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return x * super().forward(x)

    class Branch(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if x.sum() > 0 else x

    for net, match in ((Gate(3, 3), "path norms are of ReLU"), (Branch(3, 3), "cannot be traced")):
        with pytest.raises(Inapplicable, match=match):
            path_norm(relu_problem(nn.Sequential(net), 3))


class Optional(nn.Module):
    """Branches on what it is not given."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor, act: Any = None, skip: Tensor | None = None, return_features: bool = False) -> Any:
        h = self.inner(x)
        h = F.relu(h) if act is None else h
        if skip is not None:
            h = h + skip
        return (self.outer(h), h) if return_features else self.outer(h)


def test_what_the_problem_does_not_give_the_model_has_its_default() -> None:
    net = Optional()
    plain = nn.Sequential(net.inner, nn.ReLU(), net.outer)
    assert path_norm(relu_problem(net, 3)) == pytest.approx(path_norm(relu_problem(plain, 3)), abs=1e-12)
    (pair,) = balancedness(relu_problem(net, 3)).pairs
    assert (pair.first, pair.second, pair.diagonal) == ("inner.weight", "outer.weight", True)  # only so through a ReLU


def test_outputs_are_what_is_read_of_them() -> None:
    net = Optional()
    x = torch.randn(4, 3)

    def loss(outputs: Any, targets: Tensor) -> Tensor:
        return (outputs if isinstance(outputs, Tensor) else outputs[0]).pow(2).mean()

    data = ({"x": x, "return_features": True}, torch.zeros(4))
    assert balancedness(Problem(net, loss, data, read=lambda out: out[0])).pairs[0].diagonal
    pairs = Features()
    read, whole = (Problem(pairs, loss, (x, torch.zeros(4)), read=r) for r in (lambda out: out[0], None))
    assert path_norm(read) == pytest.approx(path_norm(Problem(pairs.net, loss, (x, torch.zeros(4)))), abs=1e-6)
    assert norms(whole).log_path_norm is None


class Features(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.net(x), x


def test_norms_without_a_path_norm_are_measured() -> None:
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 2, bias=False))
    first, second = torch.diag(torch.tensor([1.0, 0.0])), torch.diag(torch.tensor([0.0, 1.0]))
    problem = relu_problem(net, 2).at({"0.weight": first.double(), "2.weight": second.double()})
    with pytest.raises(ValueError, match="no path"):
        path_norm(problem)
    assert norms(problem).log_path_norm is None


@pytest.mark.parametrize("part", ["weight", "bias"])
def test_layers_whose_weights_are_computed_are_refused(part: str) -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    nn.utils.parametrize.register_parametrization(net[2], part, nn.Tanh())
    with pytest.raises(Inapplicable, match=r"2 is a .*Linear whose weight or bias is computed"):
        path_norm(relu_problem(net, 3))
