"""At inference BatchNorm costs nothing: it is an affine map a channel, and the linear map before it absorbs it exactly.

In training BatchNorm divides by the standard deviation of the batch at hand, which depends on every row. In evaluation it divides by a
stored one, and an affine map after a linear one is one linear map: multiply the weights of each output channel by g/√(v + ε), and move the
bias along. Deployed networks are folded like that, and quantized afterwards. The identity is algebra and holds for every linear map, for
convolutions of any stride, padding and grouping and for transposed ones, with and without a bias of their own, and for running statistics
of any quality. It ends where the network is trained on: in training mode the same layer is another function, which no fixed weights equal.
The figure separates the two: as running statistics converge, the network in training mode comes closer to the folded one, and stops
where the fluctuation of a batch's own statistics begins.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from theorylab.core.claim import Claim, Equals, Finding
from theorylab.core.config import Config, setting
from theorylab.core.seeds import derived_seed
from theorylab.core.series import Series, Stage
from theorylab.core.source import Source
from theorylab.core.study import study
from theorylab.models.cnn import cnn
from theorylab.models.folding import fold_batchnorm
from theorylab.models.seeded import seeded

FOLD = Claim(
    "normalization/inference/fold",
    "A network with BatchNorm in evaluation mode computes the same function as the network without it whose linear maps are rescaled.",
    formula=r"g\,\frac{Wx + b - \mu}{\sqrt{v + \epsilon}} + s = W'x + b',\qquad W' = \frac{g}{\sqrt{v + \epsilon}}\,W,\quad "
    r"b' = g\,\frac{b - \mu}{\sqrt{v + \epsilon}} + s",
    source=Source("Jacob et al. 2018", "Section 3.2 (batch normalization folding)", "arXiv:1712.05877"),
    kind="identity",
    relation=Equals(atol=1e-10),
    control="the same network in training mode",
    reading="Normalization is a tool of training that a deployed network need not carry. The identity needs stored statistics and nothing "
    "between the linear map and the BatchNorm: a residual sum or a nonlinearity in between cannot be absorbed, nor can LayerNorm, whose "
    "scale depends on the input.",
)


class Bottleneck(nn.Module):
    """A residual block whose two branches meet after their last BatchNorm, as in a ResNet."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        wide = 2 * channels
        self.branch = nn.Sequential(
            nn.Conv2d(channels, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, stride=2, padding=1, groups=2, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, wide, 1, bias=False),
            nn.BatchNorm2d(wide),
        )
        self.shortcut = nn.Sequential(nn.Conv2d(channels, wide, 1, stride=2), nn.BatchNorm2d(wide))

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, height, width) to twice the channels at half the size."""
        return (self.branch(x) + self.shortcut(x)).relu()


def zoo(channels: int) -> dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]]:
    """Networks by name, and the shape of a row of their inputs; between them every kind of linear map that BatchNorm follows."""
    c = channels
    return {
        "plain, 2-d": (lambda: cnn([3, c, 2 * c], 10, norm="batch"), (3, 8, 8)),
        "residual, 2-d": (
            lambda: nn.Sequential(nn.Conv2d(3, c, 3), nn.BatchNorm2d(c), Bottleneck(c), Bottleneck(2 * c), nn.Flatten()),
            (3, 8, 8),
        ),
        "separable and dilated, 2-d": (
            lambda: nn.Sequential(
                nn.Conv2d(c, c, 3, groups=c, padding=2, dilation=2, padding_mode="circular"),
                nn.BatchNorm2d(c, affine=False),
                nn.Conv2d(c, 2 * c, 1, bias=False),
                nn.BatchNorm2d(2 * c),
                nn.SiLU(),
            ),
            (c, 8, 8),
        ),
        "strided, 1-d": (
            lambda: nn.Sequential(
                nn.Conv1d(1, c, 5, stride=2), nn.BatchNorm1d(c), nn.ReLU(), nn.Conv1d(c, c, 3, stride=2, bias=False), nn.BatchNorm1d(c)
            ),
            (1, 40),
        ),
        "grouped, 3-d": (
            lambda: nn.Sequential(nn.Conv3d(2, c, 3, groups=2), nn.BatchNorm3d(c), nn.GELU(), nn.Conv3d(c, 2, 1), nn.BatchNorm3d(2)),
            (2, 5, 5, 5),
        ),
        "generator, transposed": (
            lambda: nn.Sequential(
                nn.Linear(16, 4 * c),
                nn.BatchNorm1d(4 * c),
                nn.ReLU(),
                nn.Unflatten(1, (c, 2, 2)),
                nn.ConvTranspose2d(c, c, 4, stride=2, padding=1, groups=2, bias=False),
                nn.BatchNorm2d(c),
                nn.ReLU(),
                nn.ConvTranspose2d(c, 2, 3, stride=2, output_padding=1),
                nn.BatchNorm2d(2),
                nn.Tanh(),
            ),
            (16,),
        ),
    }


@dataclass(frozen=True, kw_only=True)
class InferenceConfig(Config):
    """Networks with random weights, gains and shifts, whose running statistics come from random batches."""

    channels: int = setting(8, "channels of the first layer of each network, even", low=2)
    rows: int = setting(32, "rows of a batch", low=8)
    batches: int = setting(60, "batches that the running statistics have seen", low=2)


def inputs(config: InferenceConfig, shape: tuple[int, ...], seed: int, batch: int) -> Tensor:
    """The batch of that number for a replica: standard normal about a mean of one."""
    generator = torch.Generator().manual_seed(derived_seed(seed, "batch", batch))
    return (1 + torch.randn(config.rows, *shape, generator=generator, dtype=config.torch_dtype)).to(config.device)


def build(config: InferenceConfig, make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """One network; BatchNorm's gains and shifts are random, gains of either sign."""

    def scattered() -> nn.Module:
        net = make()
        for m in net.modules():
            if isinstance(m, _BatchNorm) and m.affine:
                nn.init.normal_(m.weight, 1.0, 0.5)
                nn.init.normal_(m.bias, 0.0, 0.5)
        return net

    return seeded(scattered, seed, dtype=config.torch_dtype).to(config.device)


@torch.no_grad()
def differences(net: nn.Module, x: Tensor) -> tuple[float, float]:
    """Largest difference of the folded network from the network in evaluation and in training mode, over the largest output."""
    folded = fold_batchnorm(net.eval())(x)
    evaluated, trained = net(x), copy.deepcopy(net).train()(x)
    top = evaluated.abs().max()
    return tuple(float((folded - outputs).abs().max() / top) for outputs in (evaluated, trained))  # pyright: ignore[reportReturnType]


@study(
    "normalization/inference",
    claims=[FOLD],
    tiny=InferenceConfig(seeds=2, channels=4, rows=16, batches=5),
    small=InferenceConfig(),
    large=InferenceConfig(seeds=32, channels=32, rows=128, batches=200),
)
def inference(config: InferenceConfig) -> Iterator[Finding | Series | Stage]:
    """Let running statistics settle, fold, and compare on new rows."""
    for name, (make, shape) in zoo(config.channels).items():
        yield Stage(name)
        exact, control = [], []
        for seed in config.replica_seeds:
            net = build(config, make, seed)
            with torch.no_grad():
                for batch in range(config.batches):
                    net(inputs(config, shape, seed, batch))
            same, other = differences(net, inputs(config, shape, seed, config.batches))
            exact.append(same)
            control.append(other)
        yield FOLD.check(predicted=0.0, measured=exact, setting=name)
        yield FOLD.control_check(predicted=0.0, measured=control, setting=f"{name}, in training mode")

    yield Stage("while the statistics settle")
    make, shape = zoo(config.channels)["plain, 2-d"]
    seen, gaps = [], []
    nets = [build(config, make, seed) for seed in config.replica_seeds]
    for batch in range(config.batches):
        for net, seed in zip(nets, config.replica_seeds, strict=True):
            with torch.no_grad():
                net.train()(inputs(config, shape, seed, batch))
        seen.append(batch + 1)
        gaps.append(
            [differences(net, inputs(config, shape, seed, config.batches)) for net, seed in zip(nets, config.replica_seeds, strict=True)]
        )
    values = torch.tensor(gaps, dtype=torch.float64).clamp_min(1e-17)  # (batch, replica, mode); a logarithmic axis has no zero
    figure = Series(
        "gap",
        "Folding is exact for whatever statistics are stored; training mode is another function",
        x="batches that the running statistics have seen",
        y="largest difference from the folded network / largest output",
        claim=FOLD.key,
        y_scale="log",
    )
    evaluated, trained = values.unbind(-1)
    figure.line("evaluation mode", seen, evaluated.mean(1), low=evaluated.amin(1), high=evaluated.amax(1))
    yield figure.line("training mode", seen, trained.mean(1), low=trained.amin(1), high=trained.amax(1), role="control")
