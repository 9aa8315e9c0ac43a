r"""At initialization a deep network is a dynamical system of a few numbers, and the variance of its weights decides what depth does.

In a wide layer of independent random weights the squared length of the signal, and the correlation of two signals, follow maps of one
variable. Their fixed points and slopes say how deep a signal can go: correlations approach a fixed point as e^{−l/ξ}, and squared gradients
change by χ₁ a layer on their way back. Below the boundary χ₁ = 1 all inputs become alike and gradients vanish; above it inputs that were
alike become different and gradients explode; at it, the depth scale is infinite. That concerns means. For *every* direction to survive,
weights must be orthogonal, of a convolution delta-orthogonal.

The laws are of infinite width. At finite width each layer adds a random change of relative variance of order 1/width, and the networks
here are narrow (hundreds of units) and many rather than wide and few, at the same cost: means over draws are checked. Their bias, of the
order of depth over width, is part of what is measured. Factors a layer, of gradients and of 1 − c, are exponentials of a mean logarithm,
which lies below the mean by half of that variance a layer, up to half a percent here. The factor of 1 − c tends to e^{−1/ξ}: between the
layers where it is taken the map itself still has 0.2 % less. The number of draws, the correlation of the inputs and
the variances of the ReLU network were chosen at other seeds so that intervals fit into the regions: without biases the squared length of
a ReLU network is a random walk on a logarithmic scale, whose mean would need ten times as many draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

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
from theorylab.instruments.signal import SignalProfile, signal_profile
from theorylab.models.deep_linear import DeepLinear
from theorylab.models.initializers import delta_orthogonal_
from theorylab.models.seeded import seeded
from theorylab.models.wide import wide_mlp
from theorylab.stats.fits import growth_factors
from theorylab.theory.signal import chi, depth_scale, fixed_length, gaussian_product_exponents, signal_path

LENGTH_MAP = Claim(
    "convolution/signal/length_map",
    "In a wide random network the squared length of the signal follows a map of one variable from layer to layer.",
    formula=r"q_{l+1} = \sigma_w^2\,\mathbb{E}_{z\sim N(0,1)}\,\phi(\sqrt{q_l}\,z)^2 + \sigma_b^2"
    r"\quad\Bigl(\text{ReLU: } \tfrac{\sigma_w^2}{2} q_l + \sigma_b^2\Bigr)",
    source=Source("Poole et al. 2016", "Section 2 (the length map)", "arXiv:1606.05340"),
    kind="asymptotic",
    relation=Equals(rtol=0.03),
    control="Cauchy weights of the same scale, which have no variance",
    reading="What a layer does to the scale of its input depends on two variances only, not on the data or on the law of the weights. Sums "
    "of many independent weights are normal, which needs a finite variance and width; training makes weights dependent, and ends it.",
)
CORRELATION = Claim(
    "convolution/signal/correlation_depth",
    "Below the boundary of chaos the correlation of any two inputs follows a map to 1, exponentially, with depth scale ξ.",
    formula=r"1 - c_l \sim e^{-l/\xi},\quad \xi = -\frac{1}{\ln\chi_1},\quad \chi_1 = \sigma_w^2\,\mathbb{E}\,\phi'(\sqrt{q^*}\,z)^2",
    source=Source("Schoenholz et al. 2017", "Section 3 (depth scales)", "arXiv:1611.01232"),
    kind="asymptotic",
    relation=Equals(rtol=0.01),
    control="the chaotic phase, where correlations end below 1",
    reading="A network much deeper than ξ maps all inputs to one direction and cannot be trained from there: it no longer sees its data. "
    "At the boundary ξ is infinite. Residual connections and normalization change the map; narrow networks scatter about it.",
)
GRADIENT = Claim(
    "convolution/signal/gradient_growth",
    "On their way back squared gradient norms change by the factor χ₁ a layer: 1 for a ReLU of weight variance 2.",
    formula=r"\frac{\|\partial L/\partial h_l\|^2}{\|\partial L/\partial h_{l+1}\|^2} = \chi_1"
    r"\quad\Bigl(\text{ReLU: } \tfrac{\sigma_w^2}{2}\Bigr)",
    source=Source("Schoenholz et al. 2017", "Section 4 (backpropagation); the ReLU: He et al. 2015, Section 2.2", "arXiv:1611.01232"),
    kind="asymptotic",
    relation=Equals(rtol=0.02),
    control="BatchNorm before each ReLU",
    reading="The same number that brings signals together makes gradients vanish, so both are cured by one choice of the variance. The "
    "derivation takes the weights of the backward pass as independent of those of the forward pass, which wide random networks allow.",
)
ISOMETRY = Claim(
    "convolution/signal/isometry",
    "All singular values of a deep linear network with orthogonal weights are 1.",
    formula=r"\sigma_i(W_L \cdots W_1) = 1 \quad \text{for all } i \text{ and } L, \text{ if } W_l^\top W_l = I",
    source=Source("Saxe et al. 2014", "Section on dynamical isometry and orthogonal initial weights", "arXiv:1312.6120"),
    kind="identity",
    relation=Equals(atol=1e-10),
    control="normal weights of variance 1/width, which keep squared lengths on average",
    reading="Normal weights keep the expected mean of the squared singular values at 1, but with depth almost all vanish exponentially. "
    "A few grow as long as depth is far below width, so that some directions learn and most do not; beyond it none is left, for all "
    "Lyapunov exponents are negative. With ReLUs even orthogonal weights leave no isometry (Pennington et al. 2017).",
)
DELTA = Claim(
    "convolution/signal/delta_orthogonal",
    "A deep circular convolutional network with delta-orthogonal kernels keeps the norm of every image.",
    formula=r"K_{\text{centre}}^\top K_{\text{centre}} = I,\ K_{\text{elsewhere}} = 0 \ \Rightarrow\ "
    r"\|\mathrm{conv}_L\circ\cdots\circ\mathrm{conv}_1\, x\| = \|x\|",
    source=Source("Xiao et al. 2018", "Algorithm 2 (delta-orthogonal kernels)", "arXiv:1806.05393"),
    kind="identity",
    relation=Equals(atol=1e-10),
    control="He's normal kernels for linear layers, of variance 1 over the inputs of a unit",
    reading="A convolution is one matrix in each spatial frequency, and with random kernels their gains differ: waves of some lengths die "
    "out with depth. With all weight in the centre the gain is the same for every frequency, and orthogonal.",
)

ROWS, INPUTS, CLASSES = 4, 16, 10
START = 0.8
"""Correlation of the inputs."""
SETTLED = 5
"""Layer from which lengths are near their fixed point, so that correlations approach 1 by nearly one factor a layer."""
TANH, RELU, HE, CHAOTIC = (("tanh", 1.3, 0.1), ("relu", 0.5, 0.5), ("relu", 2.0, 0.0), ("tanh", 3.0, 0.1))
"""Activation, weight variance and bias variance."""
Kind = tuple[str, float, float]


@dataclass(frozen=True, kw_only=True)
class SignalConfig(Config):
    """A seed is a draw of a network; the inputs are the same four for all."""

    width: int = setting(300, "units of a layer", low=10)
    layers: int = setting(20, "layers of the networks with tanh; those with ReLU and biases have half as many", low=16)
    deep: int = setting(32, "draws of the deeper network without biases, and of the controls", low=2)
    deep_width: int = setting(400, "its units of a layer", low=10)
    deep_layers: int = setting(40, "its layers", low=12)
    linear_width: int = setting(100, "units of the deep linear network", low=2)
    linear_layers: int = setting(30, "its layers, and those of the convolutional one", low=2)
    channels: int = setting(8, "channels of the convolutional network", low=1)
    side: int = setting(6, "pixels along each side of its images", low=3)
    linear_draws: int = setting(4, "draws of both", low=2)


def inputs(q: float, c: float, like: SignalConfig) -> Tensor:
    """Rows of squared length q over their entries, every pair of correlation c."""
    gram = torch.full((ROWS, ROWS), c, dtype=like.torch_dtype).fill_diagonal_(1.0)
    x = torch.zeros(ROWS, INPUTS, dtype=like.torch_dtype)
    x[:, :ROWS] = torch.linalg.cholesky(gram)
    return (x * (q * INPUTS) ** 0.5).to(like.device)


def cauchy(make: Callable[[], nn.Module]) -> nn.Module:
    """The network with standard Cauchy weights in place of standard normal ones."""
    net = make()
    with torch.no_grad():
        for p in net.parameters():
            if p.ndim > 1:
                p.cauchy_()
    return net


def normalized(make: Callable[[], nn.Module], width: int) -> nn.Module:
    """The network with BatchNorm before each activation."""
    layers = [m for layer in make() for m in ([nn.BatchNorm1d(width, affine=False), layer] if isinstance(layer, nn.ReLU) else [layer])]  # type: ignore[attr-defined]
    return nn.Sequential(*layers)


@dataclass(frozen=True)
class Profiles:
    """Of each draw and hidden layer (draw, layer): squared length, correlation, squared gradient."""

    length: Tensor
    correlation: Tensor
    gradient: Tensor

    def growth(self, first: int, last: int) -> np.ndarray:
        """The factor of squared gradients a layer backwards, between two layers, (draw,)."""
        return growth_factors(self.gradient[:, first - 1 : last].flip(1))


def profiles(
    config: SignalConfig,
    kind: Kind,
    seeds: Sequence[int],
    *,
    width: int,
    layers: int,
    q: float = 1.0,
    change: Callable[[Callable[[], nn.Module]], nn.Module] | None = None,
    x: Tensor | None = None,
) -> Profiles:
    """Draw networks and measure them; ``change`` makes another network of the maker of one, and has it measured in training mode."""
    activation, weight, bias = kind
    options = {"depth": layers, "activation": activation, "weight_variance": weight, "bias_variance": bias}
    make = partial(wide_mlp, INPUTS, width, CLASSES, **options)
    x = inputs(q, START, config) if x is None else x
    y = (torch.arange(len(x)) % CLASSES).to(config.device)
    found: list[SignalProfile] = []
    for seed in seeds:
        net = seeded(make if change is None else partial(change, make), seed, dtype=config.torch_dtype).to(config.device)
        found.append(signal_profile(Problem(net, nn.functional.cross_entropy, (x, y), train=change is not None), probes=0))
    kept = found[0].layer.nonzero().flatten()[:-1]  # all but the outputs, which are few
    correlations = [p.correlation for p in found if p.correlation is not None]
    return Profiles(*(torch.stack(t)[:, kept] for t in ([p.length for p in found], correlations, [p.gradient for p in found])))


@study(
    "convolution/signal",
    claims=[LENGTH_MAP, CORRELATION, GRADIENT, ISOMETRY, DELTA],
    tiny=SignalConfig(
        seeds=12, width=150, deep=6, deep_width=100, deep_layers=16, linear_width=20, linear_layers=20, channels=3, side=4, linear_draws=2
    ),
    small=SignalConfig(seeds=224),
    large=SignalConfig(seeds=64, width=2000, deep=64, deep_width=1000, deep_layers=100, linear_width=500, linear_layers=100),
)
def signal(config: SignalConfig) -> Iterator[Finding | Series | Stage]:
    """Draw networks, send four inputs through and gradients back, and compare every layer with the maps."""
    yield Stage("tanh")
    tanh = profiles(config, TANH, config.replica_seeds, width=config.width, layers=config.layers)
    yield Stage("ReLU")
    relu = profiles(config, RELU, config.replica_seeds, width=config.width, layers=config.layers // 2, q=4.0)
    yield from check_lengths(config, tanh, relu)
    yield Stage("correlations")
    yield from check_correlations(config, tanh)
    yield Stage("gradients")
    yield from check_gradients(config, tanh, relu)
    yield Stage("isometry")
    yield from check_isometry(config)


def check_lengths(config: SignalConfig, tanh: Profiles, relu: Profiles) -> Iterator[Finding | Series]:
    """Squared lengths on the way and at the end."""
    figure = Series("length", "Squared lengths follow a map from layer to layer", x="layer", y="squared length q", claim=LENGTH_MAP.key)
    for found, (activation, weight, bias), q in ((tanh, TANH, 1.0), (relu, RELU, 4.0)):
        path = signal_path(found.length.shape[1], weight, bias, activation, q=q, c=START)[0]
        for layer in (3, len(path)):
            at = f"{activation}, layer {layer}"
            yield LENGTH_MAP.check(predicted=path[layer - 1], measured=found.length[:, layer - 1], setting=at)
        layers = torch.arange(1, len(path) + 1)
        figure.means(activation, layers, found.length.T)
        figure.line(f"{activation}, map", layers, path, role="predicted")
    heavy = profiles(config, TANH, config.replica_seeds[:9], width=config.width, layers=config.layers, change=cauchy)
    median = float(heavy.length[:, -1].median())  # their mean does not exist
    yield LENGTH_MAP.control_check(predicted=fixed_length(1.3, 0.1), measured=median, setting="Cauchy weights, tanh, median over draws")
    yield figure


def check_correlations(config: SignalConfig, tanh: Profiles) -> Iterator[Finding | Series]:
    """Correlations at layers 5, 10 and 15, and the factor a layer by which they come near 1."""
    activation, weight, bias = TANH
    far = max(80, config.layers)  # where only the exponential is left
    path = torch.tensor(signal_path(far, weight, bias, activation, c=START)[1], dtype=torch.float64)
    for layer in (5, 10, 15):
        yield CORRELATION.check(predicted=float(path[layer - 1]), measured=tanh.correlation[:, layer - 1], setting=f"layer {layer}")
    scale = depth_scale(weight, bias, activation)
    factor, what = math.exp(-1 / scale), f"factor of 1 − c a layer, layers {SETTLED} to {config.layers}"
    yield CORRELATION.check(predicted=factor, measured=growth_factors(1 - tanh.correlation[:, SETTLED - 1 :]), setting=what)

    few = config.replica_seeds[: config.deep]
    chaotic = profiles(config, CHAOTIC, few, width=config.width, layers=config.layers)
    yield CORRELATION.control_check(predicted=1.0, measured=chaotic.correlation[:, -1], setting=f"σ_w² = 3, layer {config.layers}")
    apart = growth_factors(1 - chaotic.correlation[:, SETTLED - 1 :])
    yield CORRELATION.control_check(predicted=factor, measured=apart, setting=f"σ_w² = 3, {what}")

    layers = torch.arange(1, config.layers + 1)
    title = "Below the boundary correlations approach 1 exponentially"
    figure = Series("correlation", title, x="layer", y="1 − correlation", claim=CORRELATION.key, y_scale="log")
    figure.means("σ_w² = 1.3", layers, 1 - tanh.correlation.T)
    figure.line("map", layers, 1 - path[: config.layers], role="predicted")
    figure.line("e^(−l/ξ)", layers, (1 - path[-1]) * torch.exp((far - layers) / scale), role="predicted")
    yield figure.line("σ_w² = 3, chaotic", layers, 1 - chaotic.correlation.mean(0), role="control")


def check_gradients(config: SignalConfig, tanh: Profiles, relu: Profiles) -> Iterator[Finding | Series]:
    """The factor of squared gradients a layer, of three networks, and of one with BatchNorm."""
    title = "Squared gradients change by χ₁ a layer"
    axes = {"x": "layers from the last", "y": "squared gradient over that of the last layer", "y_scale": "log"}
    figure = Series("gradient", title, claim=GRADIENT.key, **axes)  # type: ignore[arg-type]
    he = profiles(config, HE, config.replica_seeds[: config.deep], width=config.deep_width, layers=config.deep_layers)
    for found, (activation, weight, bias), first in ((tanh, TANH, 5), (relu, RELU, 1), (he, HE, 1)):
        q = fixed_length(weight, bias, activation) if bias else 1.0  # of a ReLU it does not depend on q
        factor, last = chi(q, weight, activation), found.gradient.shape[1]
        label = f"{activation}, σ_w² = {weight:g}"
        yield GRADIENT.check(predicted=factor, measured=found.growth(first, last), setting=label)
        back = torch.arange(last)
        figure.line(label, back, (found.gradient / found.gradient[:, -1:]).log().mean(0).exp().flip(0), mark="points")
        figure.line(f"χ₁ = {factor:.3g}", back, factor**back, role="predicted")
    generator = torch.Generator().manual_seed(derived_seed(config.seed, "rows"))
    rows = torch.randn(32, INPUTS, generator=generator, dtype=config.torch_dtype).to(config.device)
    change = partial(normalized, width=100)
    broken = profiles(config, HE, config.replica_seeds[: config.deep], width=100, layers=config.layers, change=change, x=rows)
    yield GRADIENT.control_check(predicted=1.0, measured=broken.growth(1, config.layers), setting="ReLU, σ_w² = 2, with BatchNorm")
    back = torch.arange(config.layers)
    shown = (broken.gradient / broken.gradient[:, -1:]).log().mean(0).exp().flip(0)
    yield figure.line("with BatchNorm", back, shown, role="control", mark="points")


def check_isometry(config: SignalConfig) -> Iterator[Finding | Series]:
    """Singular values of deep linear networks, dense and convolutional."""
    width, layers = config.linear_width, config.linear_layers
    options = {"dtype": config.torch_dtype}

    def dense(kind: str) -> nn.Module:
        weights = [nn.init.orthogonal_(torch.empty(width, width, **options)) for _ in range(layers)] if kind == "orthogonal" else None
        return DeepLinear([width] * (layers + 1), weights=weights)

    def convolutional(kind: str) -> nn.Module:
        convs = [nn.Conv2d(config.channels, config.channels, 3, padding=1, padding_mode="circular", bias=False) for _ in range(layers)]
        for conv in convs:
            delta_orthogonal_(conv.to(config.torch_dtype).weight) if kind == "orthogonal" else nn.init.kaiming_normal_(
                conv.weight, nonlinearity="linear"
            )
        return nn.Sequential(*convs)

    shapes = {ISOMETRY: (dense, (width,)), DELTA: (convolutional, (config.channels, config.side, config.side))}
    for claim, (make, shape) in shapes.items():
        size = torch.Size(shape).numel()
        basis = torch.eye(size, device=config.device, **options).unflatten(1, shape)
        spectra = {}
        for kind in ("orthogonal", "normal"):
            nets = [seeded(partial(make, kind), s, **options).to(config.device) for s in config.replica_seeds[: config.linear_draws]]
            with torch.no_grad():
                spectra[kind] = torch.stack([torch.linalg.svdvals(net(basis).flatten(1)) for net in nets])  # (draw, size)
            check = claim.check if kind == "orthogonal" else claim.control_check
            yield check(predicted=0.0, measured=(spectra[kind] - 1).abs().amax(1), setting=f"{kind} weights, largest |σ − 1|")
        key = claim.key.rpartition("/")[2]
        name = "a deep linear network" if claim is ISOMETRY else "a deep convolutional network"
        figure = Series(key, f"Singular values of {name}", x="rank", y="singular value", claim=claim.key, y_scale="log")
        seen = int((spectra["normal"][0] > 1e-14 * spectra["normal"][0, 0]).sum())  # below, rounding of the product
        rank = torch.arange(1, size + 1)
        figure.line("orthogonal", rank, spectra["orthogonal"][0])
        figure.line("normal", rank[:seen], spectra["normal"][0, :seen], role="control")
        if claim is ISOMETRY:
            lyapunov = layers * torch.tensor(gaussian_product_exponents(width)[:seen], dtype=torch.float64)
            figure.line("normal, e^(depth · Lyapunov exponent)", rank[:seen], lyapunov.exp(), role="predicted")
        yield figure.line("1", rank, torch.ones(size), role="predicted")
