"""By how much a layer can stretch its input: the singular values of convolutions and dense layers as they act on what they really see."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrize

from theorylab.core.instrument import Inapplicable, instrument
from theorylab.core.problem import Problem, finite
from theorylab.core.reading import Reading
from theorylab.core.safe import safe
from theorylab.core.source import Source
from theorylab.instruments.layer_spectrum import LayerSpectrum, singular_values
from theorylab.instruments.linear_layers import (
    LinearLayer,
    another_weight,
    called_layers,
    linear_layers,
    plain_outputs,
    same_outputs,
    uses_another_weight,
    with_selected_weight,
)

TOP = 10
"""Singular values of a layer that are computed where no number is given."""


@dataclass(frozen=True)
class Spectra:
    """Singular values layer by layer, in the order of the model's modules; ``found["0"]`` is the spectrum of layer 0."""

    layers: tuple[LayerSpectrum, ...]

    def __getitem__(self, name: str) -> LayerSpectrum:
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(f"no layer {name!r} was measured, but {', '.join(repr(layer.name) for layer in self.layers)}.")

    def __iter__(self) -> Iterator[LayerSpectrum]:
        return iter(self.layers)

    def readings(self) -> tuple[Reading, ...]:
        """The largest singular value of each layer."""
        return tuple(
            Reading(
                f"spectral norm of layer {layer.name or 'at the top'}",
                float(layer.values[0]),
                "measure",
                note="" if layer.converged else "has not converged: allow a larger tol",
            )
            for layer in self.layers
        )


def layer_spectrum(layer: nn.Module, input_shape: Sequence[int], k: int | None = None, *, tol: float = 1e-6) -> LayerSpectrum:
    r"""Singular values of one dense layer or convolution on inputs of a given shape; see `conv_spectrum`.

    Args:
        layer: An `nn.Linear`, `nn.Conv1d`, `nn.Conv2d` or `nn.Conv3d`; its bias plays no part. A weight that is computed
            (`torch.nn.utils.parametrizations`) is taken as in evaluation mode.
        input_shape: Of one row: (channels, height, width) for a two-dimensional convolution, (inputs,) for a dense layer.
        k: How many, the largest; None for all.
        tol: Relative residual at which an iteration stops.

    Raises:
        TypeError: another kind of layer.
        ValueError: a shape that the layer does not take, a layer of a class that computes with another weight than it holds, k below 1, or
            all of too many singular values.

    Example:
        >>> conv = nn.Conv1d(1, 1, 2, bias=False, padding="same", padding_mode="circular")
        >>> _ = nn.init.ones_(conv.weight)
        >>> [round(v, 4) for v in layer_spectrum(conv, (1, 4)).values.tolist()]  # 2|cos(πj/4)|
        [2.0, 1.4142, 1.4142, 0.0]
    """
    if not isinstance(layer, nn.Linear | _ConvNd) or isinstance(layer, _ConvTransposeNd):
        raise TypeError(f"layer must be a Linear, Conv1d, Conv2d or Conv3d, got {type(layer).__name__}.")
    _check(k, tol)
    shape = tuple(input_shape)
    rank = 1 if isinstance(layer, nn.Linear) else len(layer.kernel_size) + 1
    width = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
    if len(shape) != rank or min(shape) < 1 or shape[0] != width:
        raise ValueError(f"input_shape must hold {rank} sizes, the first of them {width}, for this {type(layer).__name__}, got {shape}.")
    device = next(layer.parameters()).device
    with safe(layer, train=False, seed=0, device=device), torch.no_grad(), parametrize.cached():
        weight = layer.weight.detach()  # in training mode spectral normalization iterates when it is read
        x = torch.ones(1, *shape, dtype=weight.dtype, device=device)
        if not same_outputs(layer(x), plain_outputs(layer, x, weight, layer.bias)):
            raise ValueError(f"layer must apply its own weight: {another_weight('layer', layer)}")
    return singular_values(LinearLayer("", layer, weight.double(), shape), k, tol)


def _check(k: int | None, tol: float) -> None:
    if k is not None and k < 1:
        raise ValueError(f"k must be at least 1, or None for all, got {k}.")
    if not tol > 0:
        raise ValueError(f"tol must be positive, got {tol}.")


def has_no_layer(problem: Problem) -> str | None:
    """Only dense layers and convolutions have a matrix of their own."""
    if with_selected_weight(problem):
        return None
    return "none of the selected parameters is the weight of a dense layer or a convolution. Select one in params=."


def _chosen(problem: Problem, layer: str | None) -> list[LinearLayer]:
    chosen = _named(problem, layer)
    if (reason := uses_another_weight(problem, {found.module for found in chosen})) is not None:
        raise Inapplicable(f"conv_spectrum does not apply: {reason}")
    return chosen


def _named(problem: Problem, layer: str | None) -> list[LinearLayer]:
    if layer is None:
        return [found for found in linear_layers(problem) if not isinstance(found.module, _BatchNorm)]
    called = {found.name: found for found in called_layers(problem) if not isinstance(found.module, _BatchNorm)}
    if layer not in called:
        raise ValueError(
            f"layer must name a dense layer or convolution that the model calls ({', '.join(map(repr, called)) or 'it calls none'}), "
            f"got {layer!r}."
        )
    return [called[layer]]


def dense_conv_spectrum(problem: Problem, layer: str | None = None, *, k: int | None = TOP, tol: float = 1e-6) -> Spectra:
    """From every layer's Jacobian on one row, entry by entry: the oracle of `conv_spectrum`."""
    spectra = []
    for found in _chosen(problem, layer):
        zero = torch.zeros(1, *found.input_shape, dtype=torch.float64, device=problem.device)
        J = torch.func.jacrev(found)(zero)
        values = torch.linalg.svdvals(J.reshape(-1, math.prod(found.input_shape)))
        spectra.append(LayerSpectrum(found.name, values[:k], len(values), "jacobian", True))
    return Spectra(tuple(spectra))


@instrument(
    oracle=dense_conv_spectrum,
    source=Source("Sedghi et al. 2019", "Section 2 (the singular values of circular convolutions)", "arXiv:1805.10408"),
    refuses=has_no_layer,
    family="architecture",
)
def conv_spectrum(problem: Problem, layer: str | None = None, *, k: int | None = TOP, tol: float = 1e-6) -> Spectra:
    r"""The largest singular values of every convolution and dense layer, as matrices on the inputs that they get in this model.

    A convolution with stride, padding, dilation and groups is one matrix W from all entries of its input to all entries of its output. Its
    largest singular value, not that of the reshaped kernel (out, in · taps), is by how much the layer can stretch a difference of inputs.
    Where W commutes with cyclic shifts (padding is circular, and the stride divides the size) its singular values are those of a matrix
    (out, in) for each frequency: the kernel's Fourier transform. With zero padding that formula is wrong, and W is taken as it is: from its
    entries where it is small or most values are asked for, by Lanczos iteration through the layer otherwise.

    All in float64. The sizes come from a forward pass on the first batch; a layer called several times is measured as it was called last.
    A weight that is computed (`torch.nn.utils.parametrizations`) is measured as the layer uses it.

    The cost is that of an SVD (out, in) a frequency, or some 2 · (30 + 4k) forward and backward passes of the layer on one row.

    Args:
        problem: The model; of its data the shape of the first batch matters alone.
        layer: Name of one module, whether or not its weight is selected; default: all layers whose weight is.
        k: How many singular values, the largest; None for all.
        tol: Relative residual at which an iteration stops.

    Returns:
        `Spectra`; a measure, like its readings, which are the spectral norms.

    Raises:
        Inapplicable: no weight of a dense layer or convolution is selected, or the class of a layer computes with another weight than it
            holds.
        ValueError: the loss is not finite, a layer that the model does not call, k below 1, or all of too many singular values.

    Example:
        >>> conv = nn.Conv2d(1, 1, 3, padding=1, bias=False)
        >>> _ = nn.init.ones_(conv.weight)
        >>> problem = Problem(nn.Sequential(conv, nn.Flatten()), nn.functional.mse_loss, (torch.zeros(2, 1, 4, 4), torch.zeros(2, 16)))
        >>> round(float(conv_spectrum(problem)["0"].values[0]), 4)  # the reshaped kernel has 3, circular padding 9
        6.8541

    Source: Sedghi et al. 2019, arXiv:1805.10408, Section 2.
    """
    _check(k, tol)
    finite(problem.loss())
    layers = _chosen(problem, layer)
    if not layers:
        raise ValueError("the model uses no selected weight by calling its layer, so that the size of the layer's input is unknown.")
    return Spectra(tuple(singular_values(found, k, tol) for found in layers))
