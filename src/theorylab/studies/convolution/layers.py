"""What a convolutional layer is as a matrix, and which symmetry it gives the network.

A convolution on a circle commutes with shifts, so the Fourier transform makes it block diagonal: its singular values are those of one small
matrix a frequency. With zero padding it does not commute, and the formula is off, by less the larger the image. The norm of the reshaped
kernel, which many libraries take for the layer's, is neither: it ignores that neighbouring windows share inputs.

The same commutation makes features move with the image, and their global average stand still. Zero padding marks the border, and a stride
tells even places from odd ones: both break the symmetry, the stride for odd shifts alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from theorylab.core.claim import Claim, Equals, Finding
from theorylab.core.config import Config, setting
from theorylab.core.problem import Problem
from theorylab.core.seeds import derived_seed
from theorylab.core.series import Series, Stage
from theorylab.core.source import Source
from theorylab.core.study import study
from theorylab.instruments.conv_spectrum import conv_spectrum, dense_conv_spectrum
from theorylab.instruments.equivariance import equivariance
from theorylab.models.seeded import seeded
from theorylab.theory.convolution import circulant_singular_values

CIRCULANT_SPECTRUM = Claim(
    "convolution/layers/circulant_spectrum",
    "The singular values of a circular convolution of stride 1 are those of the matrices (out, in) of its kernel's Fourier transform, "
    "one a frequency.",
    formula=r"\sigma(W) = \bigcup_\omega \sigma(\hat K(\omega)), \quad \hat K(\omega)_{oi} = \sum_t k_{oit}\, e^{-2\pi i \omega t/n}",
    source=Source("Sedghi et al. 2019", "Section 2 (the theorem on the spectrum of the multi-channel layer)", "arXiv:1805.10408"),
    kind="identity",
    relation=Equals(atol=1e-10),
    control="zero padding; and the norm of the reshaped kernel for the largest value",
    reading="All singular values of a layer with tens of thousands of inputs cost one Fourier transform. The formula needs the circle: "
    "with zero padding it is an approximation that improves with the size of the image. The norm of the reshaped kernel is none.",
)

SHIFT_INVARIANCE = Claim(
    "convolution/layers/shift_invariance",
    "Circular convolutions, pointwise maps and a global average make a network invariant under shifts of its input.",
    formula=r"f(T_s x) = f(x) \quad \text{for every cyclic shift } T_s",
    source=Source("Cohen and Welling 2016", "Section 2 (equivariance), for the group of translations", "arXiv:1602.07576"),
    kind="identity",
    relation=Equals(atol=1e-12),
    control="zero padding; stride 2",
    reading="Weight sharing is a symmetry of the function, at any weights, before any training. Real networks pad with zeros and "
    "subsample: they know where the border is, and shifting an image by one pixel changes what they say.",
)


@dataclass(frozen=True, kw_only=True)
class LayersConfig(Config):
    """A seed is one layer and one network at random weights, and the images that the network sees."""

    size: int = setting(8, "places of an image along each side; even, for the stride", low=4)
    channels: int = setting(3, "channels of an image", low=1)
    width: int = setting(4, "output channels of a layer", low=1)
    rows: int = setting(8, "images a network sees", low=2)
    elements: int = setting(16, "shifts of an image, drawn from all", low=1)


Padding = Literal["circular", "zeros"]


def layer(config: LayersConfig, seed: int, kernel: tuple[int, int] = (3, 3), padding: Padding = "circular") -> nn.Conv2d:
    """One convolution that keeps the size of an image; the same weights for both paddings."""
    kind: dict[str, Any] = {"padding": "same", "padding_mode": padding, "bias": False}
    return seeded(lambda: nn.Conv2d(config.channels, config.width, kernel, **kind), seed).to(config.device)


def on_images(net: nn.Module, config: LayersConfig, seed: int, sizes: tuple[int, int]) -> Problem:
    """The net with images of normal pixels; its loss plays no part."""
    draw = torch.Generator().manual_seed(derived_seed(seed, "images"))
    x = torch.randn(config.rows, config.channels, *sizes, generator=draw, dtype=config.torch_dtype)
    return Problem(net, lambda out, y: out.flatten(1).square().sum(1), (x, torch.zeros(config.rows)), device=config.device)


def network(config: LayersConfig, seed: int, padding: Padding = "circular", stride: int = 1) -> nn.Module:
    """Two convolutions with tanh, and the mean over places; the same weights whatever the padding and the stride of the second."""
    kind: dict[str, Any] = {"padding": 1, "padding_mode": padding}

    def make() -> nn.Module:
        first = nn.Conv2d(config.channels, config.width, 3, **kind)
        second = nn.Conv2d(config.width, config.width, 3, stride=stride, **kind)
        return nn.Sequential(first, nn.Tanh(), second, nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    return seeded(make, seed)


def spectrum(config: LayersConfig, seed: int, sizes: tuple[int, int], kernel: tuple[int, int], padding: Padding = "circular") -> Tensor:
    """All singular values of the layer's Jacobian on an image of those sizes, entry by entry: no Fourier transform enters."""
    return dense_conv_spectrum(on_images(layer(config, seed, kernel, padding), config, seed, sizes), k=None)[""].values


def predicted_spectrum(config: LayersConfig, seed: int, sizes: tuple[int, int], kernel: tuple[int, int]) -> Tensor:
    """The same by the formula."""
    return circulant_singular_values(layer(config, seed, kernel).weight.detach(), sizes)


def norms_by_size(config: LayersConfig, sides: list[int]) -> Series:
    """The largest singular value against the size of the image, of the first seed's layer."""
    seed = config.replica_seeds[0]
    figure = Series(
        "norm",
        "A layer's norm depends on padding and on the image, and is not that of its kernel",
        x="places along each side",
        y="largest singular value",
        claim=CIRCULANT_SPECTRUM.key,
    )
    circular, zeros = (layer(config, seed, padding=padding) for padding in ("circular", "zeros"))
    found = {
        padding: [float(conv_spectrum(on_images(net, config, seed, (n, n)), k=1)[""].values[0]) for n in sides]
        for padding, net in (("circular", circular), ("zeros", zeros))
    }
    kernel = float(torch.linalg.matrix_norm(circular.weight.detach().flatten(1), 2))
    formula = [float(circulant_singular_values(circular.weight.detach(), (n, n))[0]) for n in sides]
    figure.line("largest over frequencies", sides, formula, role="predicted")
    figure.line("circular padding", sides, found["circular"], mark="points")
    figure.line("zero padding", sides, found["zeros"], role="control", mark="points")
    return figure.line("reshaped kernel", sides, [kernel] * len(sides), role="control")


def change_by_shift(config: LayersConfig) -> Series:
    """How far outputs move when images are shifted to the right by 1, 2, ... pixels."""
    figure = Series(
        "shift",
        "Circular padding makes shifts invisible; a stride of 2 makes the even ones invisible",
        x="shift [pixels]",
        y="relative change of the outputs",
        claim=SHIFT_INVARIANCE.key,
        y_scale="log",
    )
    shifts = list(range(1, config.size))
    kinds: tuple[tuple[str, dict[str, Any], Any], ...] = (
        ("circular padding", {}, "measured"),
        ("zero padding", {"padding": "zeros"}, "control"),
        ("circular padding, stride 2", {"stride": 2}, "control"),
    )
    for label, kind, role in kinds:
        found = torch.zeros(len(shifts), dtype=torch.float64)
        for seed in config.replica_seeds:
            problem = on_images(network(config, seed, **kind), config, seed, (config.size, config.size))
            found += torch.tensor([equivariance(problem, lambda x, s=s: x.roll(s, -1)).value for s in shifts], dtype=torch.float64)
        figure.line(label, shifts, (found / config.seeds).clamp_min(1e-17), role=role, mark="points")
    return figure


@study(
    "convolution/layers",
    claims=[CIRCULANT_SPECTRUM, SHIFT_INVARIANCE],
    tiny=LayersConfig(seeds=2, size=4, rows=3, elements=4),
    small=LayersConfig(seeds=8),
    large=LayersConfig(seeds=32, size=16, channels=8, width=16, rows=32, elements=255),
)
def layers(config: LayersConfig) -> Iterator[Finding | Series | Stage]:
    """Compare the formula with Jacobians, and outputs of shifted images with those of the images themselves."""
    square, kernel = (config.size, config.size), (3, 3)
    settings = {"3×3 kernel": (square, (3, 3)), "4×2 kernel, oblong image": ((config.size, config.size - 1), (4, 2))}
    yield Stage("singular values")
    for label, (sizes, taps) in settings.items():
        predicted = torch.cat([predicted_spectrum(config, seed, sizes, taps) for seed in config.replica_seeds])
        measured = torch.cat([spectrum(config, seed, sizes, taps) for seed in config.replica_seeds])
        yield CIRCULANT_SPECTRUM.check(predicted=predicted, measured=measured, setting=label)
    formulas = [predicted_spectrum(config, seed, square, kernel) for seed in config.replica_seeds]
    padded = [spectrum(config, seed, square, kernel, "zeros") for seed in config.replica_seeds]
    yield CIRCULANT_SPECTRUM.control_check(predicted=torch.cat(formulas), measured=torch.cat(padded), setting="zero padding")
    kernels = [torch.linalg.matrix_norm(layer(config, seed).weight.detach().flatten(1), 2) for seed in config.replica_seeds]
    largest = torch.stack([values[0] for values in formulas])
    yield CIRCULANT_SPECTRUM.control_check(predicted=largest, measured=torch.stack(kernels), setting="norm of the reshaped kernel")

    first = config.replica_seeds[0]
    figure = Series(
        "spectrum",
        "The singular values of a layer are those of its kernel's Fourier transform, on a circle",
        x="rank",
        y="singular value",
        claim=CIRCULANT_SPECTRUM.key,
    )
    ranks = torch.arange(1, len(formulas[0]) + 1)
    figure.line("Fourier transform", ranks, formulas[0], role="predicted")
    figure.line("Jacobian, circular padding", ranks, spectrum(config, first, square, kernel), mark="points")
    yield figure.line("Jacobian, zero padding", ranks, padded[0], role="control", mark="points")
    yield norms_by_size(config, list(range(3, 2 * config.size + 1)))

    yield Stage("shifts")

    def moved(**kind: Any) -> list[float]:
        problems = [on_images(network(config, seed, **kind), config, seed, square) for seed in config.replica_seeds]
        seeds = config.replica_seeds
        return [equivariance(p, "shift", elements=config.elements, seed=s).value for p, s in zip(problems, seeds, strict=True)]

    yield SHIFT_INVARIANCE.check(predicted=0.0, measured=moved(), setting="circular padding, stride 1")
    yield SHIFT_INVARIANCE.control_check(predicted=0.0, measured=moved(padding="zeros"), setting="zero padding")
    yield SHIFT_INVARIANCE.control_check(predicted=0.0, measured=moved(stride=2), setting="stride 2")
    yield change_by_shift(config)
