"""Initial weights beyond those of `torch.nn.init`, in its style: in place, from the global generator unless another is given."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def delta_orthogonal_(weight: Tensor, gain: float = 1.0, generator: torch.Generator | None = None, *, groups: int = 1) -> Tensor:
    r"""Fill a convolution's kernel with zeros but for its centre, a random orthogonal matrix of channels; the kernel itself is returned.

    A convolution of stride 1 with it, padded by half its size, acts on the channels of every place alike, and keeps the norm of any image
    up to ``gain``; so does a sequence of them. Each group of channels has a matrix of its own. `torch.nn.init.dirac_` is the identity in
    its place, and `torch.nn.init.orthogonal_` makes the kernel reshaped to a matrix orthogonal, which is no isometry of images.

    Args:
        weight: (outputs, inputs of a group, ...) with one to three axes of odd sizes after the channels.
        gain: Factor on the norm.
        generator: Of the orthogonal matrices.
        groups: Those of the layer, which its kernel does not show: as in `torch.nn.init.dirac_`.

    Raises:
        ValueError: groups that do not divide the outputs, fewer outputs than inputs, an even size, or another number of axes.

    Example:
        >>> layer = nn.Conv1d(2, 3, 3, padding=1, bias=False)
        >>> _ = delta_orthogonal_(layer.weight)
        >>> x = torch.randn(1, 2, 7)
        >>> torch.allclose(layer(x).norm(), x.norm())
        True

    Source: Xiao et al. 2018, arXiv:1806.05393, Algorithm 2.
    """
    if not 3 <= weight.ndim <= 5:
        raise ValueError(f"weight must be the kernel of a convolution, with three to five axes, got {weight.ndim}.")
    if groups < 1 or weight.shape[0] % groups:
        raise ValueError(f"groups must divide the outputs, got {groups} groups of {weight.shape[0]}.")
    outputs, inputs = weight.shape[0] // groups, weight.shape[1]
    if outputs < inputs:
        raise ValueError(f"weight must have at least as many outputs as inputs to keep norms, got {outputs} of {inputs} a group.")
    if any(size % 2 == 0 for size in weight.shape[2:]):
        raise ValueError(f"weight must have a centre, so odd sizes, got {tuple(weight.shape[2:])}.")
    with torch.no_grad():
        centre = torch.cat([nn.init.orthogonal_(weight.new_empty(outputs, inputs), gain, generator=generator) for _ in range(groups)])
        weight.zero_()[(slice(None), slice(None), *(size // 2 for size in weight.shape[2:]))] = centre
    return weight
