"""A transformer with normalization before or after its blocks, out of plain matrices, so that replicas run under `torch.func.vmap`."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from theorylab.core.ranges import nonnegative, whole

Placement = Literal["pre", "post"]


class Attention(nn.Module):
    """Softmax attention of several heads: concat_h softmax(q_h k_hᵀ/√d_h) v_h, then a linear map; no biases."""

    def __init__(self, width: int, heads: int, *, uniform: bool, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.query, self.key, self.value, self.mix = (_matrix(width, width) for _ in range(4))
        if uniform:
            for layer in (self.query, self.key):
                nn.init.zeros_(layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(n, token, width) to the same."""
        q, k, v = (layer(x).unflatten(-1, (self.heads, -1)).transpose(-3, -2) for layer in (self.query, self.key, self.value))
        scores = q @ k.mT / math.sqrt(q.shape[-1])  # (n, head, token, token)
        if self.causal:
            later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=x.device).triu(1)
            scores = scores.masked_fill(later, -math.inf)
        return self.mix((scores.softmax(-1) @ v).transpose(-3, -2).flatten(-2))


class FeedForward(nn.Module):
    """W_out relu(W_in x), at each token; no biases."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.inner, self.outer = _matrix(width, hidden), _matrix(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(n, token, width) to the same."""
        return self.outer(F.relu(self.inner(x)))


class Block(nn.Module):
    r"""Attention, then a feed-forward layer, each inside a residual branch: x + f(LN(x)) where pre-LN, LN(x + f(x)) where post-LN."""

    def __init__(self, width: int, heads: int, hidden: int, *, placement: Placement, uniform: bool, causal: bool, eps: float) -> None:
        super().__init__()
        self.pre = placement == "pre"
        self.attention = Attention(width, heads, uniform=uniform, causal=causal)
        self.feedforward = FeedForward(width, hidden)
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=eps) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """(n, token, width) to the same."""
        for norm, branch in zip(self.norms, (self.attention, self.feedforward), strict=True):
            x = x + branch(norm(x)) if self.pre else norm(x + branch(x))
        return x


class Transformer(nn.Module):
    r"""Embedding, ``layers`` blocks of attention and feed-forward layer, and a linear readout at every token.

    Pre-LN blocks compute :math:`x \leftarrow x + f(\mathrm{LN}(x))` and leave the sum to a last LayerNorm before the readout; post-LN
    blocks, those of the original transformer, compute :math:`x \leftarrow \mathrm{LN}(x + f(x))` and need none. All matrices are drawn
    from the global generator, each on its own: normal with variance 1/fan-in, embeddings with variance one; gains are one. There are no
    biases but LayerNorm's shifts.

    Args:
        tokens: Size of the vocabulary; inputs are integers (n, token).
        width: Of the residual stream.
        outputs: Numbers k read out at each token; outputs are (n, token, k).
        layers: Blocks, at least 1.
        heads: A divisor of ``width``.
        hidden: Units of each feed-forward layer; by default four times ``width``.
        placement: ``"pre"`` or ``"post"``.
        uniform_attention: Start from zero queries and keys, so that each token attends to all alike. Training leaves it so: where both
            are zero, both have zero gradient.
        causal: Tokens attend to themselves and those before.
        context: Learned positions, as many as tokens in the longest input; by default none, and the tokens form a set.
        eps: Of LayerNorm.

    Raises:
        ValueError: an argument out of range.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> net = Transformer(10, 8, 10, layers=2, heads=2, causal=True)
        >>> net(torch.arange(6).reshape(2, 3)).shape
        torch.Size([2, 3, 10])

    Source: Vaswani et al. 2017, arXiv:1706.03762, Section 3 (post-LN); Xiong et al. 2020, arXiv:2002.04745, Section 3.1 and Table 1
    (pre-LN, with a final LayerNorm).
    """

    def __init__(
        self,
        tokens: int,
        width: int,
        outputs: int,
        *,
        layers: int,
        heads: int = 1,
        hidden: int | None = None,
        placement: Placement = "pre",
        uniform_attention: bool = False,
        causal: bool = False,
        context: int | None = None,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        hidden = 4 * width if hidden is None else hidden
        whole(1, tokens=tokens, width=width, outputs=outputs, layers=layers, hidden=hidden)
        nonnegative(eps=eps)
        if heads < 1 or width % heads:
            raise ValueError(f"heads must divide width, got {heads} heads for width {width}.")
        if placement not in get_args(Placement):
            raise ValueError(f"placement must be 'pre' or 'post', got {placement!r}.")
        if context is not None and context < 1:
            raise ValueError(f"context must be at least 1, or None for no positions, got {context}.")
        self.embed = nn.Embedding(tokens, width)
        self.position = None if context is None else nn.Embedding(context, width)
        self.blocks = nn.ModuleList(
            Block(width, heads, hidden, placement=placement, uniform=uniform_attention, causal=causal, eps=eps) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width, eps=eps) if placement == "pre" else nn.Identity()
        self.head = _matrix(width, outputs)

    def forward(self, tokens: Tensor) -> Tensor:
        """Outputs (n, token, k) of integers (n, token)."""
        x = self.embed(tokens)
        if self.position is not None:
            if tokens.shape[-1] > self.position.num_embeddings:
                raise ValueError(f"inputs must have at most {self.position.num_embeddings} tokens (context), got {tokens.shape[-1]}.")
            x = (x + self.position.weight[: tokens.shape[-1]]) / math.sqrt(2)  # second moments stay one
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def _matrix(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias=False)
    nn.init.normal_(layer.weight, std=inputs**-0.5)
    return layer
