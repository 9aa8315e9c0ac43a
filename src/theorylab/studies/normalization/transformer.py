"""Where a transformer normalizes decides how its gradients depend on depth: before its blocks they shrink, after them they do not.

A post-LN block normalizes the sum of its input and its branch, so every layer sees and returns vectors of one length, and the last layers
receive gradients of one size however deep the network is. A pre-LN block normalizes only what its branch reads: the sum itself grows with
every layer, by between 1/2 and 3/2 in second moment, and the final LayerNorm divides by its length. So does the gradient that comes back,
as L^{−1/2}. Large gradients near the output are why post-LN transformers are said to need a warm-up of the learning rate.

The networks are those of the proof: queries and keys start at zero, so that attention averages, every matrix is drawn on its own, and the
loss is the cross-entropy at one token. The gradient is measured row by row: vectors of different tokens align with depth, and gradients
summed over many aligned tokens add up. The gradient of a whole batch of 256 tokens has exponents −0.40 and +0.18 instead (8 seeds from
5000), which is another law than the theorem's. Row by row the figure agrees with infinite width, where pre-LN is a little steeper than
−1/2 at moderate depth, because aligned tokens make attention add more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from theorylab.core.claim import Claim, Equals, Finding
from theorylab.core.config import Config, setting
from theorylab.core.problem import Problem
from theorylab.core.seeds import derived_seed
from theorylab.core.series import Series, Stage
from theorylab.core.source import Source
from theorylab.core.study import study
from theorylab.instruments.rows import per_example_grad_norms
from theorylab.models.seeded import seeded
from theorylab.models.transformer import Placement, Transformer
from theorylab.stats.fits import power_law
from theorylab.theory.normalization import last_layer_exponent, last_layer_gradient

PRE_POST = Claim(
    "normalization/transformer/pre_post",
    "At initialization the gradient of a transformer's last feed-forward matrix falls with the depth L as L^{−1/2} where LayerNorm stands "
    "before the blocks, and does not depend on L where it stands after them.",
    formula=r"\Big\|\frac{\partial \mathcal{L}}{\partial W^{2,L}}\Big\|_F \propto L^{-1/2} \ \text{(pre-LN)}, \qquad "
    r"\Big\|\frac{\partial \mathcal{L}}{\partial W^{2,L}}\Big\|_F \propto L^{0} \ \text{(post-LN)}",
    source=Source("Xiong et al. 2020", "Theorem 1 (gradients of the last layer)", "arXiv:2002.04745"),
    kind="asymptotic",
    relation=Equals(atol=0.15),
    control="networks that lack the LayerNorm at work: the last one of pre-LN, those after the blocks of post-LN; and the two exchanged",
    reading="A deep post-LN transformer gets its full gradient at once in the last layers, a pre-LN one gets less the deeper it is, and "
    "tolerates a large first step. What shrinks it is the last LayerNorm, which divides by the length of a sum of L branches. It is a "
    "statement about initialization and the last layers: after training, or in the first layers, other laws apply.",
)

LAST_SUMMED = 32
"""Layers of the deepest network without LayerNorm: its signals grow by up to 3 a layer in second moment, and soon leave float32."""


@dataclass(frozen=True, kw_only=True)
class TransformerConfig(Config):
    """Transformers with averaging attention on sequences of random tokens with random labels."""

    seeds: int = setting(16, "replicas, each with its own random numbers", low=2)
    dtype: Literal["float64", "float32"] = setting("float32", "floating-point type; an exponent needs few digits")
    width: int = setting(64, "width of the residual stream, of the feed-forward layers and of the outputs", low=8)
    tokens: int = setting(8, "tokens in a sequence", low=1)
    rows: int = setting(32, "sequences over which the squared gradient norm is averaged", low=1)
    depths: tuple[int, ...] = setting((2, 4, 8, 16, 32), "numbers of layers L", low=1)


def without_norms(net: Transformer) -> None:
    """Take out the LayerNorm that the theorem rests on: the last one of pre-LN, all of post-LN."""
    if isinstance(net.norm, nn.LayerNorm):
        net.norm = nn.Identity()
        return
    for block in net.blocks:
        block.norms = nn.ModuleList(nn.Identity() for _ in block.get_submodule("norms").children())


def gradient_norm(config: TransformerConfig, placement: Placement, layers: int, seed: int, *, normalized: bool = True) -> Tensor:
    """Root mean square, over the rows, of the gradient norm of the last feed-forward matrix."""
    vocabulary = 32 * config.tokens  # so large that few tokens of a sequence are the same
    net = seeded(
        lambda: Transformer(
            vocabulary,
            config.width,
            config.width,
            layers=layers,
            hidden=config.width,
            placement=placement,
            uniform_attention=True,
        ),
        seed,
        dtype=config.torch_dtype,
    ).to(config.device)
    if not normalized:
        without_norms(net)
    generator = torch.Generator().manual_seed(derived_seed(seed, "data"))
    x = torch.randint(vocabulary, (config.rows, config.tokens), generator=generator)
    y = torch.randint(config.width, (config.rows,), generator=generator)

    def loss(outputs: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(outputs[:, -1], labels, reduction="none")

    last = f"blocks.{layers - 1}.feedforward.outer.weight"
    return per_example_grad_norms(Problem(net, loss, (x, y), params=last, device=config.device)).square().mean().sqrt()


@study(
    "normalization/transformer",
    claims=[PRE_POST],
    tiny=TransformerConfig(seeds=8, width=32, rows=16, depths=(2, 8, 32)),
    small=TransformerConfig(),
    large=TransformerConfig(seeds=32, width=512, tokens=32, rows=128, depths=(2, 4, 8, 16, 32, 64, 128)),
)
def transformer(config: TransformerConfig) -> Iterator[Finding | Series | Stage]:
    """Fit an exponent to each replica's gradient norms over the depths, for both placements."""
    figure = Series(
        "gradient",
        "Depth shrinks the last gradient where LayerNorm stands before the blocks",
        x="layers L",
        y="rms gradient norm of the last feed-forward matrix [nats]",
        claim=PRE_POST.key,
        x_scale="log",
        y_scale="log",
    )
    placements: tuple[Placement, ...] = ("pre", "post")
    shallow = [layers for layers in config.depths if layers <= LAST_SUMMED]
    for placement, other in zip(placements, reversed(placements), strict=True):
        name = f"{placement}-LN"

        def measured(depths: Sequence[int], seeds: Sequence[int], *, normalized: bool, placement: Placement = placement) -> Tensor:
            """Gradient norms (depth, replica)."""
            found = [[gradient_norm(config, placement, layers, seed, normalized=normalized) for seed in seeds] for layers in depths]
            return torch.stack([torch.stack(row) for row in found]).double()

        yield Stage(name)
        norms = measured(config.depths, config.replica_seeds, normalized=True)
        slopes = [power_law(config.depths, replica) for replica in norms.T]
        yield PRE_POST.check(predicted=last_layer_exponent(placement), measured=slopes, setting=f"{name}, exponent of L")
        yield Stage(f"{name} without the LayerNorm")
        bare = measured(shallow, config.replica_seeds[:4], normalized=False)
        broken = [power_law(shallow, replica) for replica in bare.T]
        lacks = "without its last LayerNorm" if placement == "pre" else "without LayerNorm"
        yield PRE_POST.control_check(predicted=last_layer_exponent(placement), measured=broken, setting=f"{name} {lacks}")
        yield PRE_POST.control_check(
            predicted=last_layer_exponent(other), measured=slopes, setting=f"{name}, against the exponent of {other}-LN"
        )
        wide = [
            last_layer_gradient(placement, layers, tokens=config.tokens, hidden=config.width, outputs=config.width)
            for layers in config.depths
        ]
        figure.line(name, config.depths, norms.mean(1), low=norms.amin(1), high=norms.amax(1), mark="points")
        figure.line(f"{name} at infinite width", config.depths, wide, role="predicted")
        if placement == "pre":  # of post-LN it grows by a factor a layer, far off the figure
            figure.line(f"{name} {lacks}", shallow, bare.mean(1), role="control", mark="points")
    yield figure
