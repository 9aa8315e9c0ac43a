"""A fully connected net with the normalization of your choice, by batch statistics and with an ``eps`` that may be zero.

The layers here keep no running statistics and write nothing in place, so that they work under `torch.func` transformations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from theorylab.core.ranges import nonnegative

Kind = Literal["none", "batch", "layer", "group", "rms", "weight"]


def batch_norm(x: Tensor, eps: float = 0.0) -> Tensor:
    """Each channel less its mean over the rows, divided by its standard deviation over the rows; x (n, d).

    Raises:
        ValueError: a single row.
    """
    if x.shape[0] < 2:
        raise ValueError(f"batch_norm needs at least two rows, got {x.shape[0]}: a row less its own mean is zero.")
    centred = x - x.mean(0, keepdim=True)
    return centred * (centred.square().mean(0, keepdim=True) + eps).rsqrt()


def group_norm(x: Tensor, groups: int, eps: float = 0.0) -> Tensor:
    """Each group of channels of a row less its mean, divided by its standard deviation; x (n, d), ``groups`` divides d.

    Raises:
        ValueError: groups that do not divide d, or of a single channel.
    """
    _check_groups(groups, x.shape[-1])
    grouped = x.unflatten(-1, (groups, -1))
    centred = grouped - grouped.mean(-1, keepdim=True)
    return (centred * (centred.square().mean(-1, keepdim=True) + eps).rsqrt()).flatten(-2)


def layer_norm(x: Tensor, eps: float = 0.0) -> Tensor:
    """Each row less its mean, divided by its standard deviation; x (n, d).

    Raises:
        ValueError: a single channel.
    """
    return group_norm(x, 1, eps)


def rms_norm(x: Tensor, eps: float = 0.0) -> Tensor:
    """Each row divided by its root mean square; x (n, d)."""
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt()


def _unchanged(x: Tensor) -> Tensor:
    return x


def _check_groups(groups: int, width: int) -> None:
    if groups < 1 or width % groups:
        raise ValueError(f"groups must be positive and divide the width, got {groups} groups of {width} channels.")
    if width // groups < 2:
        raise ValueError(f"a group must have at least two channels, got {groups} of {width}: a channel less its own mean is zero.")


class NormalizedMLP(nn.Module):
    r"""h_{l+1} = φ(gain ⊙ norm(h_l W_lᵀ) + shift), then a linear head without normalization.

    Parameters are ``layers.l`` (width_{l+1}, width_l), ``head`` (k, width_L), and with ``affine`` also ``gains.l``, ``shifts.l``
    (width_{l+1},). There are no biases before a normalization: BatchNorm would remove them, and elsewhere they would spoil the scale
    invariance of the weights alone. Weight normalization divides each row of W_l by (its squared norm + eps)^{1/2}. All are drawn from the
    global generator: normal with variance 1/fan-in, gains around 1.

    Args:
        widths: Inputs, hidden widths, outputs: at least three. A single output is squeezed, so that outputs are (n,).
        normalization: Where it acts: BatchNorm over the rows of the batch (no running statistics), the others within a row.
        eps: Added under the root. Scale invariance is exact at 0 only.
        groups: Groups of GroupNorm.
        affine: Learned gain and shift after the normalization.
        fixed_head: The head is a buffer, not a parameter.
        activation: φ.

    Raises:
        ValueError: too few widths, an ``eps`` out of range, groups (the whole width with ``"layer"``) that do not divide a hidden width or
            have a single channel, or an unknown normalization. In the forward pass: a single row with ``"batch"``.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> net, x = NormalizedMLP([5, 8, 1], normalization="layer"), torch.randn(3, 5)
        >>> before = net(x)
        >>> with torch.no_grad(): _ = net.layers[0].mul_(10.0)
        >>> torch.allclose(net(x), before)
        True

    Source: Ioffe and Szegedy 2015, arXiv:1502.03167, Algorithm 1; Ba et al. 2016, arXiv:1607.06450, Section 3; Wu and He 2018,
    arXiv:1803.08494, Section 3; Zhang and Sennrich 2019, arXiv:1910.07467, Section 4 (RMSNorm); Salimans and Kingma 2016,
    arXiv:1602.07868, Section 2 (weight normalization).
    """

    def __init__(
        self,
        widths: Sequence[int],
        *,
        normalization: Kind = "batch",
        eps: float = 0.0,
        groups: int = 1,
        affine: bool = False,
        fixed_head: bool = False,
        activation: Callable[[Tensor], Tensor] = torch.tanh,
    ) -> None:
        super().__init__()
        if len(widths) < 3:
            raise ValueError(f"widths must name inputs, at least one hidden layer, and outputs, got {list(widths)}.")
        nonnegative(eps=eps)
        for width in widths[1:-1] if normalization in ("layer", "group") else ():
            _check_groups(groups if normalization == "group" else 1, width)
        norms: dict[str, Callable[[Tensor], Tensor]] = {
            "none": _unchanged,
            "batch": partial(batch_norm, eps=eps),
            "layer": partial(layer_norm, eps=eps),
            "group": partial(group_norm, groups=groups, eps=eps),
            "rms": partial(rms_norm, eps=eps),
            "weight": _unchanged,  # it normalizes the matrix, not what comes out
        }
        if normalization not in norms:
            raise ValueError(f"normalization must be one of {', '.join(norms)}, got {normalization!r}.")
        self.normalization, self.eps, self.groups, self.squeeze = normalization, eps, groups, widths[-1] == 1
        self._normalize, self._activation = norms[normalization], activation
        shapes = list(zip(widths[1:], widths[:-1], strict=True))
        weights = [torch.randn(shape) / math.sqrt(shape[1]) for shape in shapes]
        self.layers = nn.ParameterList(weights[:-1])
        if fixed_head:
            self.register_buffer("head", weights[-1])
        else:
            self.head = nn.Parameter(weights[-1])
        hidden = widths[1:-1] if affine else []
        self.gains = nn.ParameterList(1 + 0.3 * torch.randn(w) for w in hidden)
        self.shifts = nn.ParameterList(0.3 * torch.randn(w) for w in hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (n, k) of inputs (n, d), or (n,) where k is 1."""
        for layer, weight in enumerate(self.layers):
            if self.normalization == "weight":
                weight = weight * (weight.square().sum(1, keepdim=True) + self.eps).rsqrt()
            x = self._normalize(x @ weight.T)
            if len(self.gains):
                x = x * self.gains[layer] + self.shifts[layer]
            x = self._activation(x)
        outputs = x @ self.head.T
        return outputs.squeeze(-1) if self.squeeze else outputs


class PreNormResidual(nn.Module):
    r"""A residual stream whose blocks normalize what they read: h ← h + φ(norm(h) W_inᵀ) W_outᵀ, between an embedding and a head.

    The shape of a pre-norm transformer without its attention. Every vector that ``embed`` and ``write.l`` put into the stream is read
    through a normalization only, and yet none of these weights is scale invariant: a normalization divides by the scale of the *sum*.

    Args:
        inputs: Input dimension.
        width: Width of the stream and of the blocks.
        outputs: Output dimension.
        blocks: Residual blocks, at least 1.
        eps: Added under the root of RMSNorm.

    Raises:
        ValueError: fewer than one block, or an ``eps`` out of range.

    Example:
        >>> PreNormResidual(5, 8, 2, blocks=3)(torch.randn(4, 5)).shape
        torch.Size([4, 2])

    Source: Xiong et al. 2020, arXiv:2002.04745, Section 3.1 (pre-LN), with RMSNorm.
    """

    def __init__(self, inputs: int, width: int, outputs: int, *, blocks: int = 2, eps: float = 0.0) -> None:
        super().__init__()
        if blocks < 1:
            raise ValueError(f"blocks must be at least 1, got {blocks}.")
        nonnegative(eps=eps)
        self.eps = eps
        self.embed = nn.Parameter(torch.randn(width, inputs) / math.sqrt(inputs))
        self.read = nn.ParameterList(torch.randn(width, width) / math.sqrt(width) for _ in range(blocks))
        self.write = nn.ParameterList(torch.randn(width, width) / math.sqrt(width) for _ in range(blocks))
        self.head = nn.Parameter(torch.randn(outputs, width) / math.sqrt(width))

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (n, k) of inputs (n, d)."""
        stream = x @ self.embed.T
        for read, write in zip(self.read, self.write, strict=True):
            stream = stream + torch.tanh(rms_norm(stream, self.eps) @ read.T) @ write.T
        return rms_norm(stream, self.eps) @ self.head.T
