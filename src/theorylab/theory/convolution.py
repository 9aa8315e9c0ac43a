"""Convolutions on a circle: what the kernel's Fourier transform says of the layer's matrix."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def circulant_singular_values(kernel: Tensor, sizes: tuple[int, ...]) -> Tensor:
    r"""All singular values of a circular convolution of stride 1, descending.

    With :math:`\hat K(\omega)_{oi} = \sum_t k_{oit}\, e^{-2\pi i\,\omega\cdot t / n}` they are the union over all frequencies
    :math:`\omega` of the singular values of the matrices :math:`\hat K(\omega)`.

    Args:
        kernel: Weights (out, in, taps ...), one axis of taps for each of the sizes; where the window starts does not matter.
        sizes: Places n along each axis.

    Returns:
        Π n · min(out, in) numbers, in the kernel's precision.

    Raises:
        ValueError: axes that do not fit, or a kernel that is longer than the circle.

    Example:
        >>> [round(v, 4) for v in circulant_singular_values(torch.ones(1, 1, 2), (4,)).tolist()]
        [2.0, 1.4142, 1.4142, 0.0]

    Source: Sedghi et al. 2019, arXiv:1805.10408, Section 2 (the theorem on the spectrum of the multi-channel layer).
    """
    taps = kernel.shape[2:]
    if len(taps) != len(sizes) or not sizes:
        raise ValueError(f"kernel must be (out, in, taps ...), one axis of taps for each of the sizes {sizes}, got {tuple(kernel.shape)}.")
    if any(t > n for t, n in zip(taps, sizes, strict=True)):
        raise ValueError(f"a kernel of {tuple(taps)} taps must not be longer than the circle of {sizes} places.")
    transform = kernel.to(torch.complex128 if kernel.dtype == torch.float64 else torch.complex64)
    for axis, (t, n) in enumerate(zip(taps, sizes, strict=True), start=2):
        turns = torch.outer(torch.arange(t, dtype=torch.float64, device="cpu"), torch.arange(n, dtype=torch.float64, device="cpu")) / n
        waves = torch.exp(-2j * math.pi * turns).to(transform)  # (tap, frequency)
        transform = torch.tensordot(transform.movedim(axis, -1), waves, dims=1).movedim(-1, axis)
    matrices = transform.flatten(2).permute(2, 0, 1)  # (frequency, out, in)
    return torch.linalg.svdvals(matrices).flatten().sort(descending=True).values
