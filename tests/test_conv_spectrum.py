"""Spectra of layers against the singular values of their Jacobian, of the module itself, in every geometry."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import Standardized

from theorylab.core.instrument import Inapplicable
from theorylab.core.problem import Problem
from theorylab.instruments import layer_spectrum as how
from theorylab.instruments.conv_spectrum import conv_spectrum, dense_conv_spectrum, layer_spectrum
from theorylab.theory.convolution import circulant_singular_values

GEOMETRIES = [  # the layer, the shape of its input, and how its spectrum must be found
    (lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), (3, 6, 5), "fourier"),
    (lambda: nn.Conv2d(3, 2, (2, 4), padding="same", padding_mode="circular"), (3, 4, 6), "fourier"),  # even kernels
    (lambda: nn.Conv2d(2, 3, 3, padding=2, dilation=2, padding_mode="circular"), (2, 4, 5), "fourier"),  # taps that meet on the circle
    (lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2, padding_mode="circular"), (4, 4, 4), "fourier"),
    (lambda: nn.Conv2d(2, 3, 3, padding=1, stride=2, padding_mode="circular"), (2, 6, 4), "fourier"),
    (lambda: nn.Conv2d(3, 8, 2, stride=2), (3, 4, 6), "fourier"),  # patches that do not overlap
    (lambda: nn.Conv2d(3, 5, 1), (3, 4, 5), "fourier"),
    (lambda: nn.Conv2d(3, 5, (1, 3), padding=(0, 1), padding_mode="circular"), (3, 4, 5), "fourier"),
    (lambda: nn.Conv2d(3, 5, (3, 1), padding=(1, 0), padding_mode="circular"), (3, 4, 6), "fourier"),
    (lambda: nn.Conv2d(2, 3, (2, 3), stride=(3, 1), padding=(0, 1), padding_mode="circular"), (2, 6, 5), "fourier"),
    (lambda: nn.Conv2d(2, 3, 2, stride=(3, 4)), (2, 6, 8), "fourier"),
    (lambda: nn.Conv1d(2, 3, 3, padding=1, padding_mode="circular"), (2, 1), "fourier"),
    (lambda: nn.Conv1d(2, 3, 4, padding="same", padding_mode="circular"), (2, 7), "fourier"),
    (lambda: nn.Conv3d(1, 2, 3, padding=1, padding_mode="circular"), (1, 3, 4, 3), "fourier"),
    (lambda: nn.Conv2d(2, 3, (3, 2), padding=(1, 1), padding_mode="circular"), (2, 5, 4), "dense"),  # one column too many
    (lambda: nn.Conv2d(2, 3, 3, padding=1, stride=2, padding_mode="circular"), (2, 5, 5), "dense"),  # 2 does not divide 5
    (lambda: nn.Conv2d(2, 3, 3, padding=2, padding_mode="circular"), (2, 4, 4), "dense"),
    (lambda: nn.Conv2d(2, 3, 3, padding=1), (2, 5, 4), "dense"),
    (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), (2, 5, 4), "dense"),
    (lambda: nn.Conv2d(2, 4, 3, padding=1, padding_mode="replicate", stride=2, groups=2), (2, 5, 4), "dense"),
    (lambda: nn.Conv1d(2, 3, 3, dilation=2), (2, 9), "dense"),
    (lambda: nn.Linear(5, 3), (5,), "dense"),
]


def made(make: Callable[[], nn.Module], seed: int = 0) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make().double()


def true_spectrum(layer: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """From the Jacobian of the module itself, bias and all."""
    x = torch.randn(1, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return torch.linalg.svdvals(torch.func.jacrev(layer)(x).detach().reshape(-1, math.prod(shape)))


@pytest.mark.parametrize(("make", "shape", "method"), GEOMETRIES)
def test_every_geometry_has_the_singular_values_of_its_jacobian(make: Any, shape: tuple[int, ...], method: str) -> None:
    layer = made(make)
    found = layer_spectrum(layer, shape)
    assert found.method == method
    assert torch.allclose(found.values, true_spectrum(layer, shape), rtol=0, atol=1e-13)


@pytest.mark.parametrize("padding", ["zeros", "reflect"])
def test_lanczos_finds_the_largest_of_a_layer_that_is_too_large_to_unroll(padding: Any) -> None:
    layer = made(lambda: nn.Conv2d(3, 4, 3, padding=1, stride=(1, 2), padding_mode=padding))
    found = layer_spectrum(layer, (3, 12, 11), 8, tol=1e-9)
    assert (found.method, found.converged, found.of) == ("lanczos", True, 4 * 12 * 6)
    assert torch.allclose(found.values, true_spectrum(layer, (3, 12, 11))[:8], rtol=1e-12)


def test_lanczos_counts_the_copies_that_symmetry_makes() -> None:
    """Four groups of one kernel, and two axes alike: every value comes four or eight times."""
    layer = made(lambda: nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False))
    with torch.no_grad():
        taps = torch.tensor([1.0, 3.0, 0.5], dtype=torch.float64)
        layer.weight.copy_((taps[:, None] * taps).expand(4, 1, 3, 3))
    found = layer_spectrum(layer, (4, 9, 9), 14, tol=1e-9)
    assert found.method == "lanczos"
    expected = true_spectrum(layer, (4, 9, 9))[:14]
    assert float(expected[0] - expected[3]) < 1e-12
    assert torch.allclose(found.values, expected, rtol=1e-10)


def test_the_fourier_formula_is_wrong_with_zero_padding_and_the_reshaped_kernel_is_wrong_always() -> None:
    layer = made(lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular", bias=False))
    zeros = nn.Conv2d(3, 4, 3, padding=1, bias=False).double()
    zeros.load_state_dict(layer.state_dict())
    formula = circulant_singular_values(layer.weight.detach(), (8, 8))
    assert torch.allclose(formula, layer_spectrum(layer, (3, 8, 8)).values, rtol=0, atol=1e-13)
    assert float((formula - layer_spectrum(zeros, (3, 8, 8)).values).abs().max()) > 0.05
    assert float(torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2)) < 0.8 * float(formula[0])


@pytest.mark.parametrize(("taps", "sizes"), [((2,), (5,)), ((3, 2), (4, 6)), ((1, 3), (3, 3)), ((2, 2, 3), (2, 3, 4))])
def test_the_theory_is_that_of_a_matrix_written_out_entry_by_entry(taps: tuple[int, ...], sizes: tuple[int, ...]) -> None:
    kernel = torch.randn(3, 2, *taps, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    places = list(torch.cartesian_prod(*(torch.arange(n) for n in sizes)).reshape(-1, len(sizes)).tolist())
    matrix = torch.zeros(3, len(places), 2, len(places), dtype=torch.float64)
    for i, place in enumerate(places):
        for tap in torch.cartesian_prod(*(torch.arange(t) for t in taps)).reshape(-1, len(taps)).tolist():
            seen = [(p + t) % n for p, t, n in zip(place, tap, sizes, strict=True)]
            matrix[:, i, :, places.index(seen)] += kernel[(..., *tap)]
    expected = torch.linalg.svdvals(matrix.reshape(3 * len(places), -1))
    assert torch.allclose(circulant_singular_values(kernel, sizes), expected, rtol=0, atol=1e-13)


def test_wrong_arguments_of_the_theory_are_named() -> None:
    kernel = torch.ones(1, 1, 3, 3)
    with pytest.raises(ValueError, match="one axis of taps for each of the sizes"):
        circulant_singular_values(kernel, (4,))
    with pytest.raises(ValueError, match="longer than the circle"):
        circulant_singular_values(kernel, (4, 2))


class Late(nn.Module):
    """A convolution called by keyword on one image at a time, and one that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, padding=1)
        self.idle = nn.Conv2d(1, 2, 3)
        self.head = nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.stack([self.conv(input=row) for row in x]).flatten(1))


def images(net: nn.Module, size: tuple[int, ...] = (1, 4, 4), **options) -> Problem:
    x = torch.randn(4, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return Problem(net, F.cross_entropy, (x, torch.arange(4) % 3), dtype=torch.float64, **options)


def test_layers_of_a_problem_are_found_by_name_with_the_shape_that_they_see() -> None:
    problem = images(made(Late))
    found = conv_spectrum(problem, k=None)
    assert [(layer.name, layer.of) for layer in found] == [("conv", 16), ("head", 3)]
    assert torch.equal(found["head"].values, torch.linalg.svdvals(problem.params["head.weight"]))
    assert torch.equal(conv_spectrum(problem, "conv", k=None)["conv"].values, found["conv"].values)
    assert [layer.name for layer in conv_spectrum(images(made(Late), params="head.*"))] == ["head"]
    assert [layer.name for layer in conv_spectrum(images(made(Late), params="head.*"), "conv")] == ["conv"]  # named, so measured
    assert [r.name for r in found.readings()] == ["spectral norm of layer conv", "spectral norm of layer head"]
    with pytest.raises(ValueError, match=r"layer must name .* \('conv', 'head'\), got 'idle'"):
        conv_spectrum(problem, "idle")
    with pytest.raises(KeyError, match="no layer 'idle' was measured"):
        found["idle"]
    with pytest.raises(ValueError, match="size of the layer's input is unknown"):
        conv_spectrum(images(made(Late), params="idle.weight"))
    with pytest.raises(ValueError, match="k must be at least 1, or None for all, got 0"):
        conv_spectrum(problem, k=0)
    with pytest.raises(ValueError, match="tol must be positive"):
        conv_spectrum(problem, tol=0.0)
    with pytest.raises(Inapplicable, match="none of the selected parameters is the weight"):
        conv_spectrum(images(made(Late), params="*.bias"))


def test_a_weight_that_is_computed_is_measured_as_the_layer_uses_it() -> None:
    conv = nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular")
    net = made(lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(conv), nn.Flatten(), nn.Linear(32, 3)))
    problem = images(net, params="0.*")
    doubled = problem.at({k: 2 * p for k, p in problem.params.items() if k.endswith("original0")})  # the lengths of the rows
    found = [conv_spectrum(p)["0"].values for p in (problem, doubled)]
    assert torch.allclose(found[1], 2 * found[0], rtol=1e-12)
    assert torch.allclose(found[0], true_spectrum(net[0], (1, 4, 4))[:10], rtol=1e-12)
    assert torch.allclose(found[0], dense_conv_spectrum(problem)["0"].values, rtol=1e-12)


def test_a_layer_that_computes_with_another_weight_than_it_holds_is_refused() -> None:
    net = made(lambda: nn.Sequential(Standardized(1, 2, 3, padding=1), nn.Flatten(), nn.Linear(32, 3)))
    with pytest.raises(Inapplicable, match="of 0, a Standardized, are not those of its weight"):
        conv_spectrum(images(net))
    assert [layer.name for layer in conv_spectrum(images(net), "2")] == ["2"]
    assert [layer.name for layer in conv_spectrum(images(net, params="2.*"))] == ["2"]
    with pytest.raises(Inapplicable, match="of 0, a Standardized"):
        conv_spectrum(images(net, params="2.*"), "0")
    with pytest.raises(ValueError, match=r"layer must apply its own weight: .* a Standardized"):
        layer_spectrum(net[0], (1, 4, 4))


class Dropped(nn.Module):
    """A parametrization that drops other weights every time, in training mode."""

    def forward(self, weight: Tensor) -> Tensor:
        return F.dropout(weight, 0.5, self.training)


def test_a_weight_that_changes_at_every_look_is_that_of_the_pass() -> None:
    net = made(lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 3)))
    nn.utils.parametrize.register_parametrization(net[1], "weight", Dropped())
    found = conv_spectrum(images(net, train=True))["1"].values
    assert torch.equal(found, conv_spectrum(images(net, train=True))["1"].values)  # as the problem's seed says
    assert not torch.allclose(found, conv_spectrum(images(net))["1"].values, rtol=1e-2)


def test_a_bare_layer_needs_a_shape_that_fits() -> None:
    conv = nn.Conv2d(3, 4, 3)
    for shape in ((3, 8), (4, 8, 8), (3, 0, 8)):
        with pytest.raises(ValueError, match="input_shape must hold 3 sizes, the first of them 3"):
            layer_spectrum(conv, shape)
    with pytest.raises(TypeError, match="got ConvTranspose2d"):
        layer_spectrum(nn.ConvTranspose2d(3, 4, 3), (3, 8, 8))
    with pytest.raises(ValueError, match="input_shape must hold 1 sizes, the first of them 5"):
        layer_spectrum(nn.Linear(5, 2), (4,))


def test_all_of_too_many_singular_values_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(how, "UNROLLED_UP_TO", 100)
    with pytest.raises(ValueError, match=r"k must be at most 63 for layer '', whose matrix has 192 singular values, got 192"):
        layer_spectrum(nn.Conv2d(3, 4, 3, padding=1), (3, 8, 8))
    assert len(layer_spectrum(nn.Conv2d(3, 4, 3, padding=1), (3, 8, 8), 4).values) == 4
