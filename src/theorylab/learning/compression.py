"""Short descriptions of parameters: rounding to a few levels, and the length of a code that both sides can build."""

from __future__ import annotations

import math

import torch
from torch import Tensor

SCALE_BITS = 16
"""A tensor's scale is sent as one bfloat16 number."""


def _check_levels(levels: int) -> None:
    if levels < 3 or levels % 2 == 0:
        raise ValueError(f"levels must be odd and at least 3, so that zero is among them, got {levels}.")


def quantize(weights: Tensor, levels: int, width: float) -> tuple[Tensor, Tensor]:
    """Round to the nearest of ``levels`` equally spaced values around zero.

    Args:
        weights: Any shape.
        levels: Odd, at least 3: the symbols −m … m with m = (levels − 1)/2.
        width: Distance of neighbouring values in units of the weights' root mean square; wide spacing sends most weights to zero.

    Returns:
        Symbols of the same shape, int64, and the scale, a float64 scalar that bfloat16 holds exactly; the values are their product.

    Raises:
        ValueError: an even number of levels or fewer than 3, a width that is not positive, or weights that are not finite.

    Example:
        >>> symbols, scale = quantize(torch.tensor([1.0, -1.0, 0.1, 2.0, 2.0]), levels=3, width=0.707)
        >>> symbols.tolist(), float(scale)
        ([1, -1, 0, 1, 1], 1.0)
    """
    _check_levels(levels)
    if not width > 0:
        raise ValueError(f"width must be positive, got {width}.")
    if not bool(weights.isfinite().all()):
        raise ValueError(
            f"weights must be finite to be rounded, got {int((~weights.isfinite()).sum())} that are not: look at the training."
        )
    w, m = weights.detach().double(), (levels - 1) // 2
    scale = (width * w.square().mean().sqrt()).to(torch.bfloat16).double()
    if float(scale) == 0:
        return torch.zeros_like(w, dtype=torch.int64), scale
    return (w / scale).round().clamp(-m, m).long(), scale


def adaptive_code_bits(symbols: Tensor, levels: int) -> float:
    r"""Ideal length, in bits, of the symbols −m … m under Krichevsky and Trofimov's adaptive code.

    Symbol a has probability :math:`(n_a + \frac12)/(N + \frac{A}{2})` after :math:`n_a` of N, with A ``levels``. The receiver counts along,
    so that no table of frequencies is sent. The order of symbols does not matter:
    :math:`-\log_2\left[\frac{\Gamma(A/2)}{\Gamma(N+A/2)}\prod_a\frac{\Gamma(n_a+1/2)}{\Gamma(1/2)}\right]`.

    Args:
        symbols: Integers in −m … m, any shape.
        levels: A = 2m + 1.

    Raises:
        ValueError: an even number of levels or fewer than 3, or a symbol beyond ±m, for which the code has no word.
        TypeError: symbols that are no integers.

    Example:
        >>> round(adaptive_code_bits(torch.zeros(100, dtype=torch.int64), levels=3), 1)  # hardly more than nothing
        7.7

    Source: Krichevsky and Trofimov 1981, doi:10.1109/TIT.1981.1056331.
    """
    _check_levels(levels)
    if symbols.is_floating_point() or symbols.is_complex():
        raise TypeError(f"symbols must be integers, got {symbols.dtype}: round the weights by quantize.")
    m = (levels - 1) // 2
    if symbols.numel() and not -m <= int(symbols.min()) <= int(symbols.max()) <= m:
        raise ValueError(
            f"symbols must lie in {-m}..{m}, of which levels={levels} are made, got {int(symbols.min())}..{int(symbols.max())}: "
            f"give the levels that they were rounded to."
        )
    counts = torch.bincount(symbols.reshape(-1).long() + m, minlength=levels).double()
    half = torch.tensor(0.5, dtype=torch.float64, device="cpu")
    log = torch.lgamma(counts + 0.5).sum() - levels * torch.lgamma(half)
    log += torch.lgamma(levels * half) - torch.lgamma(counts.sum() + levels * half)
    return -float(log) / math.log(2)
