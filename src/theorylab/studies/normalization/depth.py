r"""BatchNorm lets gradients explode with depth where it was meant to tame them, at a rate that no initialization can change.

Without normalization the weights' variance decides: squared signals and squared gradients change by half of it a ReLU layer, and stay
where it is two. BatchNorm before each ReLU takes that choice away. It divides by the standard deviation of its inputs, which is smaller
than their root mean square since outputs of ReLUs have a mean, and a gradient is multiplied by what a signal is divided by. Squared
gradients grow by π/(π − 1) a layer, a factor of ten every six layers. Networks with BatchNorm are trained deep with residual connections,
whose branches dilute the factor.

The constant is of infinite width and large batches. A batch of B rows gives more (the figure of batches), and a width of few times the
batch less; at the sizes here, widths of two to eight times the batch, both are within the region and nearly cancel. Larger batches alone
lead away from the limit: 512 rows in a hundred layers of 1000 units gave 1.441, 256 rows 1.450, and 128 rows 1.466. Without ReLU the factor
is (B − 2)/(B − 3) where the inputs are many more than the rows; of fewer inputs a linear network keeps the rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from theorylab.core.claim import Claim, Equals, Finding
from theorylab.core.config import Config, setting
from theorylab.core.problem import Problem
from theorylab.core.seeds import derived_seed
from theorylab.core.series import Series, Stage
from theorylab.core.source import Source
from theorylab.core.study import study
from theorylab.instruments.signal import signal_profile
from theorylab.models.seeded import seeded
from theorylab.models.wide import ACTIVATIONS, WideLinear
from theorylab.stats.fits import growth_factors
from theorylab.theory.normalization import batch_norm_gradient_growth
from theorylab.theory.signal import chi, length_map

BN_EXPLOSION = Claim(
    "normalization/depth/bn_explosion",
    "At initialization squared gradients of a deep fully connected network with BatchNorm before each ReLU grow by π/(π − 1) a layer on "
    "their way back.",
    formula=r"\frac{\|\partial L/\partial h_l\|^2}{\|\partial L/\partial h_{l+1}\|^2} \to "
    r"\frac{\mathbb{E}\,\phi'(z)^2}{\operatorname{Var}\phi(z)} = \frac{\pi}{\pi - 1} \approx 1.467",
    source=Source("Yang et al. 2019", "gradient explosion of ReLU networks with BatchNorm at large batches", "arXiv:1902.08129"),
    kind="asymptotic",
    relation=Equals(atol=0.02),
    control="weight variance 2 without BatchNorm; and BatchNorm without ReLU",
    reading="The factor does not contain the weights' variance, so that no initialization helps: at forty "
    "layers the first one's squared gradient is a million times that of the last. It takes both, normalization and ReLU: linear networks "
    "escape, and residual connections weaken it.",
)
HE_VARIANCE = Claim(
    "normalization/depth/he_variance",
    "Without normalization squared signals and squared gradients change by half of the weight variance a ReLU layer: not at all at two.",
    formula=r"\frac{q_{l+1}}{q_l} = \frac{\|\partial L/\partial h_l\|^2}{\|\partial L/\partial h_{l+1}\|^2} = \frac{\sigma_w^2}{2}",
    source=Source("He et al. 2015", "Section 2.2 (forward and backward propagation cases)", "arXiv:1502.01852"),
    kind="asymptotic",
    relation=Equals(rtol=0.02),
    control="weight variance 1, the initialization for linear layers",
    reading="A ReLU passes half of the squared signal and half of the squared gradient, and weights of variance two over the inputs make "
    "up for both at once. The mean stays, but in a network of finite width each layer adds a random factor, so that single networks drift.",
)

INPUTS, CLASSES = 512, 10
EDGE = 5
"""Layers at either end that are left out: there the signal has not settled."""


@dataclass(frozen=True, kw_only=True)
class DepthConfig(Config):
    """A seed is a draw of a network and of its inputs."""

    width: int = setting(400, "units of a layer", low=10)
    layers: int = setting(40, "layers", low=2 * EDGE + 4)
    batch: int = setting(128, "rows of the batch that is normalized", low=4)
    plain: int = setting(48, "draws of the networks without BatchNorm, which cost little", low=2)
    rows: int = setting(4, "rows that go through these", low=2)
    curve: int = setting(4, "draws of the smaller networks with other batches", low=2)


Found = tuple[Tensor, Tensor]
"""Squared lengths and squared gradients of all layers but the last, (draw, layer) each."""


def network(width: int, layers: int, activation: str, weight_variance: float, normalized: bool) -> nn.Sequential:
    """Linear layers without biases, each followed by BatchNorm where asked, and the activation; and a linear layer to the classes."""
    parts: list[nn.Module] = []
    for layer in range(layers):
        parts.append(WideLinear(width if layer else INPUTS, width, weight_variance))
        parts += [nn.BatchNorm1d(width, affine=False)] if normalized else []
        parts.append(ACTIVATIONS[activation]())
    return nn.Sequential(*parts, WideLinear(width, CLASSES, weight_variance))


def measure(config: DepthConfig, seeds: Sequence[int], *, rows: int, **options: object) -> Found:
    """Profiles of draws, at the linear layers' outputs."""
    settings = {"width": config.width, "layers": config.layers, "activation": "relu", "weight_variance": 2.0, "normalized": False} | options
    lengths, gradients = [], []
    for seed in seeds:
        net = seeded(lambda: network(**settings), seed, dtype=config.torch_dtype).to(config.device)  # type: ignore[arg-type]
        generator = torch.Generator().manual_seed(derived_seed(seed, "inputs"))
        x = torch.randn(rows, INPUTS, generator=generator, dtype=config.torch_dtype)
        data = x.to(config.device), (torch.arange(rows) % CLASSES).to(config.device)
        found = signal_profile(Problem(net, nn.functional.cross_entropy, data, train=bool(settings["normalized"])), probes=0)
        lengths.append(found.length[found.layer][:-1])
        gradients.append(found.gradient[found.layer][:-1])
    return torch.stack(lengths), torch.stack(gradients)


def inner(values: Tensor) -> Tensor:
    """Those of the layers at neither end, of (draw, layer)."""
    return values[:, EDGE : values.shape[1] - EDGE]


@study(
    "normalization/depth",
    claims=[BN_EXPLOSION, HE_VARIANCE],
    tiny=DepthConfig(seeds=6, width=120, layers=20, batch=64, plain=12, curve=2),
    small=DepthConfig(seeds=16),
    large=DepthConfig(seeds=32, width=1500, layers=100, batch=192, plain=128, curve=16),
)
def depth(config: DepthConfig) -> Iterator[Finding | Series | Stage]:
    """Send a batch through networks with and without BatchNorm, and its gradients back."""
    yield Stage("without BatchNorm")
    seeds = [config.seed + k for k in range(config.plain)]
    he, one = (measure(config, seeds, rows=config.rows, weight_variance=v) for v in (2.0, 1.0))
    yield from check_plain(he, one)
    yield Stage("with BatchNorm")
    yield from check_explosion(config, he)
    yield Stage("other batches")
    yield from other_batches(config)


def check_plain(he: Found, one: Found) -> Iterator[Finding | Series]:
    """Factors of signals and gradients at weight variances 2 and 1."""
    figure = Series("variance", "Weight variance two keeps signals and gradients", x="layer", y="relative to the first / last layer")
    figure.claim, figure.y_scale = HE_VARIANCE.key, "log"
    names = ("squared signals", "squared gradients")
    for variance, found in ((2.0, he), (1.0, one)):
        predicted = (length_map(1.0, variance, activation="relu"), chi(1.0, variance, "relu"))
        for name, factor, values in zip(names, predicted, (found[0], found[1].flip(1)), strict=True):
            if variance == 2.0:
                yield HE_VARIANCE.check(predicted=factor, measured=growth_factors(values), setting=name)
            else:
                label = f"σ_w² = 1, {name}, predicted as at 2"
                yield HE_VARIANCE.control_check(predicted=1.0, measured=growth_factors(values), setting=label)
            shown = (values / values[:, :1]).log().mean(0).exp()
            shown = shown if name == names[0] else shown.flip(0)
            role = "measured" if variance == 2.0 else "control"
            figure.line(f"{name}, σ_w² = {variance:g}", torch.arange(1, len(shown) + 1), shown, role=role, mark="points")
    layers = torch.arange(1, he[0].shape[1] + 1)
    yield figure.line("σ_w²/2 = 1", layers, torch.ones(len(layers)), role="predicted")


def check_explosion(config: DepthConfig, he: Found) -> Iterator[Finding | Series]:
    """The factor with BatchNorm, and where it or the ReLU is left out."""
    factor = batch_norm_gradient_growth("relu")
    runs = {
        "BatchNorm and ReLU": measure(config, config.replica_seeds, rows=config.batch, normalized=True)[1],
        "ReLU alone, σ_w² = 2": he[1],
        "BatchNorm alone": measure(config, config.replica_seeds[:4], rows=config.batch, normalized=True, activation="identity")[1],
    }
    figure = Series("explosion", "BatchNorm makes gradients explode", x="layer", y="squared gradient over that of the last layer")
    figure.claim, figure.y_scale = BN_EXPLOSION.key, "log"
    for label, gradients in runs.items():
        check = BN_EXPLOSION.check if label == "BatchNorm and ReLU" else BN_EXPLOSION.control_check
        yield check(predicted=factor, measured=growth_factors(inner(gradients).flip(1)), setting=label)
        shown = (gradients / gradients[:, -1:]).log().mean(0).exp()
        role = "measured" if label == "BatchNorm and ReLU" else "control"
        figure.line(label, torch.arange(1, len(shown) + 1), shown, role=role, mark="points")
    layers = torch.arange(1, config.layers + 1)
    yield figure.line("(π/(π − 1))^(layers above)", layers, factor ** (config.layers - layers), role="predicted")


def other_batches(config: DepthConfig) -> Iterator[Series]:
    """The factor over the size of the batch, which is at least four."""
    sizes = [b for b in (6, 8, 12, 16, 32, 64) if b < config.batch]
    seeds = config.replica_seeds[: config.curve]
    small = {"width": config.width // 2, "layers": 20}
    runs = [measure(config, seeds, rows=b, normalized=True, **small)[1] for b in sizes]
    found = np.stack([growth_factors(inner(gradients).flip(1)) for gradients in runs])
    figure = Series("batch", "Small batches make it worse", x="rows of the batch", y="growth of squared gradients a layer")
    figure.line("measured, mean over draws", sizes, found.mean(1), mark="points")
    figure.line("at this batch", sizes, [batch_norm_gradient_growth("relu", b) for b in sizes], role="predicted")
    yield figure.line("π/(π − 1)", sizes, [batch_norm_gradient_growth("relu")] * len(sizes), role="predicted")
