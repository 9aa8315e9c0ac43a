"""Norms of layers: convolutions as they really act, and what a chain of layers implies."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from zoo import Masked, Standardized, hooked

from theorylab.core.instrument import Inapplicable
from theorylab.core.problem import Problem
from theorylab.instruments.norms import dense_norms, norms

GEOMETRIES = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "stride": 2},
    {"kernel_size": (2, 3), "stride": (1, 2), "padding": (0, 2)},
    {"kernel_size": 3, "dilation": 2, "padding": "same"},
    {"kernel_size": 3, "groups": 2, "padding": 2},
]


def image_problem(net: nn.Module, size: tuple[int, ...] = (2, 7, 6)) -> Problem:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(8, *size, generator=generator, dtype=torch.float64), torch.arange(8) % 3
    return Problem(net, F.cross_entropy, (x, y), dtype=torch.float64)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_a_convolution_is_the_matrix_it_applies_to_its_input(geometry: dict) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 4, **geometry), nn.Flatten(), nn.LazyLinear(3))
    net(torch.zeros(1, 2, 7, 6))
    problem = image_problem(net)
    fast, slow = norms(problem, tol=1e-8), dense_norms(problem)
    for a, b in zip(fast.layers, slow.layers, strict=True):
        assert (a.spectral, a.frobenius, a.distance_21) == pytest.approx((b.spectral, b.frobenius, b.distance_21), rel=1e-9)
    kernel = problem.params["0.weight"]
    assert (
        abs(fast.layers[0].spectral / float(torch.linalg.matrix_norm(kernel.flatten(1), 2)) - 1) > 0.02
    )  # the kernel's own norm is another


def test_the_dense_unrolled_matrix_is_that_of_the_layer_itself() -> None:
    """The oracle's matrix against the module in the user's model, so that both cannot share one mistake."""
    torch.manual_seed(0)
    conv = nn.Conv2d(2, 3, 3, stride=2, padding=1, bias=False).double()
    W = torch.stack([conv(e.reshape(1, 2, 7, 6)).detach().reshape(-1) for e in torch.eye(84, dtype=torch.float64)], dim=1)
    net = nn.Sequential(conv, nn.Flatten(), nn.Linear(36, 3))
    found = norms(image_problem(net), tol=1e-8).layers[0]
    assert found.spectral == pytest.approx(float(torch.linalg.matrix_norm(W, 2)), rel=1e-9)
    assert found.frobenius == pytest.approx(float(W.norm()), rel=1e-12)


def test_the_product_of_spectral_norms_bounds_the_slope_of_a_chain_and_not_with_a_steeper_activation() -> None:
    torch.manual_seed(1)
    layers = [nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(80, 8), nn.Tanh(), nn.Linear(8, 3)]
    net = nn.Sequential(*layers)
    nn.init.uniform_(net[1].weight)
    problem = image_problem(net)
    found, eager = norms(problem), net.double().eval()
    assert [layer.name for layer in found.layers] == ["0", "1", "4", "6"]
    x = problem.batches[0].content[0]
    slope = max(float(torch.linalg.matrix_norm(torch.func.jacrev(eager)(row[None]).detach().reshape(3, -1), 2)) for row in x)
    assert math.log(slope) <= found.log_spectral <= found.log_frobenius

    steep = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Identity(), nn.Linear(1, 3, bias=False))
    y = torch.zeros(4, dtype=torch.long)
    one = Problem(steep, F.cross_entropy, (torch.zeros(4, 1), y))
    steep[1].forward = lambda h: 2 * h  # an activation of slope two
    two = float(torch.func.jacrev(steep)(torch.zeros(1)).detach().norm())
    assert math.log(two) > norms(one).log_spectral + 0.6


def test_distances_are_from_the_initialization_that_is_given() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(84, 5), nn.ReLU(), nn.Linear(5, 3))
    problem = image_problem(net)
    start = {k: p + (0.5 if k == "1.weight" else 0.0) for k, p in problem.params.items()}
    found = norms(problem, init=start)
    assert found.distance == pytest.approx(0.5 * math.sqrt(84 * 5), rel=1e-12)
    first, second = found.layers
    assert first.distance_21 == pytest.approx(5 * 0.5 * math.sqrt(84), rel=1e-12)  # five units, each moved by 0.5 in 84 inputs
    assert second.distance == second.distance_21 == 0
    assert found.log_spectral_complexity == pytest.approx(math.log(second.spectral * first.distance_21), rel=1e-12)
    assert found.reference == "initialization"
    assert norms(problem).reference == "zero"
    with pytest.raises(ValueError, match="init equals"):
        norms(problem, init=problem.params)


def test_margins_are_signed() -> None:
    net = nn.Linear(3, 3, bias=False)
    problem = Problem(net, F.cross_entropy, (torch.eye(3), torch.tensor([0, 1, 0]))).at(
        {"weight": torch.diag(torch.tensor([1.0, 2.0, 3.0]))}
    )
    margins = norms(problem).margins
    assert margins is not None
    assert (margins[0.0], margins[0.5]) == (-3.0, 1.0)
    assert {r.label for r in norms(problem).readings()} == {"measure"}


@pytest.mark.parametrize(
    ("net", "match"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(84, 3), nn.LayerNorm(3)), "multiplied by any number"),
        (nn.Sequential(nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"), nn.Flatten(), nn.Linear(84, 3)), "pads by circular"),
        (nn.Sequential(nn.ConvTranspose2d(2, 2, 1), nn.Flatten(), nn.Linear(84, 3)), "ConvTranspose2d"),
        (nn.Sequential(nn.Flatten(), nn.utils.parametrizations.spectral_norm(nn.Linear(84, 3))), "is computed"),
        (
            nn.Sequential(Standardized(2, 2, 3, padding=1), nn.Flatten(), nn.Linear(84, 3)),
            "of 0, a Standardized, are not those of its weight",
        ),
        (nn.Sequential(nn.Flatten(), nn.Linear(84, 4), nn.ReLU(), Masked(4, 3)), "of 3, a Masked, are not those of its weight"),
        (nn.Sequential(nn.Flatten(), hooked(nn.Linear(84, 3))), "of 1, a Linear, are not .* or a hook changes them"),
    ],
)
def test_refuses_what_its_norms_would_not_describe(net: nn.Module, match: str) -> None:
    with pytest.raises(Inapplicable, match=match):
        norms(image_problem(net))


def test_refuses_a_layer_that_is_called_twice() -> None:
    """With a weight of 3I its chain has the slope 9, which a product over layers, each once, does not bound."""
    a = nn.Linear(3, 3, bias=False)
    x, y = torch.eye(3), torch.arange(3)
    problem = Problem(nn.Sequential(a, nn.ReLU(), a), F.cross_entropy, (x, y), dtype=torch.float64)
    with pytest.raises(Inapplicable, match="0 is called 2 times"):
        norms(problem)
    b = nn.Linear(3, 3, bias=False)
    b.weight = a.weight  # another layer of the same weight is a factor of its own
    tied = Problem(nn.Sequential(a, nn.ReLU(), b), F.cross_entropy, (x, y), dtype=torch.float64).at({"0.weight": 3 * torch.eye(3)})
    assert math.exp(norms(tied).log_spectral) == pytest.approx(9.0)
    assert math.exp(dense_norms(tied).log_spectral) == pytest.approx(9.0)


def test_a_layer_that_is_zero_has_no_logarithm() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(84, 3))
    nn.init.zeros_(net[1].weight)
    with pytest.raises(ValueError, match="layer 1 must be positive"):
        norms(image_problem(net))
