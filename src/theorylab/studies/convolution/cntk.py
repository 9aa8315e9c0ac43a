"""The kernel of infinitely wide convolutional networks: it forgets where an image lies, and finite networks come to it as m^{-1/2}.

With circular padding and a global average, the tangent kernel does not see shifts of either image. That is exact, at infinite width and at
any other. A linear layer on all places at once has a weight of its own for each and compares images place by place, though the convolutions
are the same; zero padding leaves a trace of the border.

At random weights, the tangent kernel of one convolution with m channels is a mean over channels, which are independent. So its distance
from the limit falls as m^{-1/2}. In the standard parametrization the factor 1/√m is in the initial weights and not in the forward pass:
gradients with respect to the last layer add up over channels, and the kernel grows as m. It has no limit unless the learning rate shrinks
with the width.

The number of networks and the spacing of the widths were chosen on other seeds, for an interval half as wide as the region.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from theorylab.core.claim import Claim, Equals, Finding, Scales
from theorylab.core.config import Config, setting
from theorylab.core.problem import Problem
from theorylab.core.seeds import derived_seed
from theorylab.core.series import Series, Stage
from theorylab.core.source import Source
from theorylab.core.study import study
from theorylab.instruments.kernels import ntk
from theorylab.models.seeded import seeded
from theorylab.models.wide import wide_cnn
from theorylab.stats.fits import power_law
from theorylab.theory.kernels import conv_kernel

SHIFT_INVARIANCE = Claim(
    "convolution/cntk/shift_invariance",
    "The convolutional tangent kernel with circular padding and global average pooling does not change when an image is shifted.",
    formula=r"\Theta(T_s x, x') = \Theta(x, x') \quad \text{for every cyclic shift } T_s",
    source=Source("Arora et al. 2019", "Section 4 (the kernel with global average pooling)", "arXiv:1904.11955"),
    kind="identity",
    relation=Equals(atol=1e-10),
    control="a linear layer on all places instead of the average; zero padding",
    reading="Kernel regression with this kernel is what an infinitely wide network learns, and it learns every shift of an image with the "
    "image. Without pooling weight sharing leaves no trace at infinite width: the kernel is that of a network that shares no weights.",
)

WIDTH_LIMIT = Claim(
    "convolution/cntk/width_limit",
    "The tangent kernel of a random convolutional network with m channels differs from its limit by an amount of order m^{-1/2}.",
    formula=r"\lVert \Theta_m - \Theta_\infty \rVert \propto m^{-1/2}",
    source=Source("Arora et al. 2019", "Section 4 (the limit); the rate is that of a mean of m independent channels", "arXiv:1904.11955"),
    kind="asymptotic",
    relation=Scales(exponent=-0.5, tol=0.05),
    control="the standard parametrization, without the factor 1/√m",
    reading="Channels are to a convolutional network what hidden units are to a dense one, and the average over places lowers the noise "
    "but not the exponent. The limit belongs to a parametrization: PyTorch's own makes the kernel grow with the width.",
)


@dataclass(frozen=True, kw_only=True)
class CntkConfig(Config):
    """A seed is a set of images and shifts, and a group of networks of every width, whose root mean square distance is one sample.

    The images at which networks are compared with the limit are those of the first seed for all.
    """

    size: int = setting(6, "places along each side of the images that are shifted", low=3)
    channels: int = setting(2, "channels of an image", low=1)
    depth: int = setting(2, "convolutions of the kernels whose images are shifted", low=1)
    images: int = setting(4, "images at which networks are compared with the limit", low=2)
    side: int = setting(4, "places of these images along each side", low=3)
    widths: tuple[int, ...] = setting((32, 64, 256, 1024, 2048), "channels m of a network, in rising order", low=8, rising=True)
    draws: int = setting(32, "networks of a seed and width", low=1)


WEIGHT_VARIANCE = 2.0  # keeps the norm of activations through a ReLU


def drawn_images(config: CntkConfig, seed: int, count: int, size: int) -> Tensor:
    """Images of normal pixels, (count, channels, size, size)."""
    draw = torch.Generator().manual_seed(derived_seed(seed, "images"))
    return torch.randn(count, config.channels, size, size, generator=draw, dtype=config.torch_dtype).to(config.device)


def shifted(x: Tensor, seed: int) -> Tensor:
    """Every image by a shift of its own, none by nothing."""
    draw = torch.Generator().manual_seed(derived_seed(seed, "shifts"))
    size = x.shape[-1]
    offsets = torch.randint(1, size, (len(x), 2), generator=draw).tolist()
    return torch.stack([image.roll(by, (1, 2)) for image, by in zip(x, offsets, strict=True)])


def shifted_kernels(config: CntkConfig, **kind: Any) -> tuple[Tensor, Tensor]:
    """Θ(x, x') and Θ(Tx, x') for three images x and three x' of every seed."""
    still, moved = [], []
    for seed in config.replica_seeds:
        x, other = drawn_images(config, seed, 6, config.size).chunk(2)
        options = {"depth": config.depth, "weight_variance": WEIGHT_VARIANCE, **kind}
        still.append(conv_kernel(x, other, **options).ntk)
        moved.append(conv_kernel(shifted(x, seed), other, **options).ntk)
    return torch.stack(still), torch.stack(moved)


def shifted_network_kernels(config: CntkConfig, width: int = 16) -> tuple[Tensor, Tensor]:
    """The same kernels of finite networks at random weights, by their Jacobians."""
    still, moved = [], []
    for seed in config.replica_seeds:
        x, other = drawn_images(config, seed, 6, config.size).chunk(2)
        net = network(config, width, seed, depth=config.depth)
        both = [ntk(problem_of(net, torch.cat([images, other])))[:3, 3:] for images in (x, shifted(x, seed))]
        still.append(both[0])
        moved.append(both[1])
    return torch.stack(still), torch.stack(moved)


def problem_of(net: nn.Module, x: Tensor) -> Problem:
    """A problem that shows the kernel; its targets play no part."""
    return Problem(net, nn.functional.mse_loss, (x, x.new_zeros(len(x), 1)))


def network(config: CntkConfig, width: int, seed: int, *, depth: int = 1, standard: bool = False) -> nn.Module:
    """Convolutions with ReLU, the mean over places, and a linear layer, at random weights; the function is the same either way."""

    def make() -> nn.Module:
        net = wide_cnn(config.channels, width, config.size, depth=depth, weight_variance=WEIGHT_VARIANCE)
        if standard:
            for layer in net:
                if hasattr(layer, "scale"):
                    with torch.no_grad():
                        layer.weight.mul_(layer.scale)  # pyright: ignore
                    layer.scale = 1.0  # pyright: ignore
        return net

    return seeded(make, seed, dtype=config.torch_dtype).to(config.device)


def distances(config: CntkConfig, *, draws: int, standard: bool) -> np.ndarray:
    """‖Θ_m − Θ_∞‖ / ‖Θ_∞‖ at every width, the root mean square over the draws of each seed, (replica, width)."""
    x = drawn_images(config, config.seed, config.images, config.side)
    limit = conv_kernel(x, depth=1, weight_variance=WEIGHT_VARIANCE).ntk
    found = np.empty((config.seeds, len(config.widths), draws))
    for place in np.ndindex(*found.shape):
        replica, which, draw = place
        own = (config.replica_seeds[replica] * len(config.widths) + which) * draws + draw  # no two share their numbers
        net = network(config, config.widths[which], own, standard=standard)
        found[place] = float((ntk(problem_of(net, x)) - limit).norm() / limit.norm())
    return np.sqrt((found**2).mean(2))


def kernel_by_shift(config: CntkConfig) -> Series:
    """Θ(Tx, x) / Θ(x, x) of one image against the shift."""
    x = drawn_images(config, config.seed, 1, config.size)
    figure = Series(
        "shift",
        "With pooling on a circle, an image and its shift are one to the kernel",
        x="shift [pixels]",
        y="Θ(Tx, x) / Θ(x, x)",
        claim=SHIFT_INVARIANCE.key,
    )
    shifts = list(range(config.size))
    images = torch.cat([x.roll(s, -1) for s in shifts])
    figure.line("invariance", shifts, [1.0] * len(shifts), role="predicted")
    for label, kind, role in CASES:
        options = {"depth": config.depth, "weight_variance": WEIGHT_VARIANCE, **kind}
        ratio = conv_kernel(images, x, **options).ntk[:, 0] / conv_kernel(x, **options).ntk[0, 0]
        figure.line(label, shifts, ratio, role=role, mark="points")
    return figure


CASES: tuple[tuple[str, dict[str, str], Any], ...] = (
    ("circular padding, pooling", {}, "measured"),
    ("circular padding, all places", {"readout": "flatten"}, "control"),
    ("zero padding, pooling", {"padding": "zeros"}, "control"),
)


@study(
    "convolution/cntk",
    claims=[SHIFT_INVARIANCE, WIDTH_LIMIT],
    tiny=CntkConfig(seeds=6, size=4, widths=(32, 128, 512), draws=4),
    small=CntkConfig(seeds=16),
    large=CntkConfig(seeds=64, size=8, side=8, depth=4, images=8, widths=(32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)),
)
def cntk(config: CntkConfig) -> Iterator[Finding | Series | Stage]:
    """Shift images and compare kernels; then fit the exponent of the distance from the limit."""
    yield Stage("shifts")
    for label, kind, role in CASES:
        still, moved = shifted_kernels(config, **kind)
        check = SHIFT_INVARIANCE.check if role == "measured" else SHIFT_INVARIANCE.control_check
        yield check(predicted=still, measured=moved, setting=f"limit, {label}")
    still, moved = shifted_network_kernels(config)
    yield SHIFT_INVARIANCE.check(predicted=still, measured=moved, setting="networks of 16 channels")
    yield kernel_by_shift(config)

    figure = Series(
        "distance",
        "Networks with more channels have less random tangent kernels",
        x="channels m",
        y="‖Θ_m − Θ_∞‖ / ‖Θ_∞‖",
        claim=WIDTH_LIMIT.key,
        x_scale="log",
        y_scale="log",
    )
    for standard in (False, True):
        yield Stage("standard parametrization" if standard else "tangent-kernel parametrization")
        found = distances(config, draws=1 if standard else config.draws, standard=standard)
        slopes = np.array([power_law(config.widths, replica) for replica in found])
        middle = np.sqrt((found**2).mean(0))
        if standard:
            yield WIDTH_LIMIT.control_check(measured=slopes, setting="standard parametrization")
            figure.line("standard parametrization", config.widths, middle, role="control", mark="points")
        else:
            yield WIDTH_LIMIT.check(measured=slopes, setting="one convolution, ReLU, pooling")
            figure.line("weights scaled by 1/√m", config.widths, middle, mark="points")
            guide = middle[0] * (np.array(config.widths) / config.widths[0]) ** -0.5
            figure.line("m^(−1/2)", config.widths, guide, role="predicted")
    yield figure
