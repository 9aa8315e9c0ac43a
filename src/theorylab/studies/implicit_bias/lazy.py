"""A network whose output is multiplied by a large factor trains lazily: its kernel stays where it was.

Let f = α(h − h₀) be a network h less its initial output, multiplied by α, and be trained on the squared loss divided by α². The factor
cancels: that is the training of h itself on the targets h₀ + y/α, and so it is done here. Large α asks h for a small change, in which it
is linear: parameters, tangent kernel and the share of the change that the linearization misses all move by amounts of order 1/α, while f
fits y. Small α asks for a large one, and the network learns features: on the way there the kernel's change grows faster than 1/α, until it
is of the kernel's own size.

It is the subtraction that makes the network lazy, not the factor. Without it f = αh starts at αh₀; to undo that, h must change by h₀
however large α is.

The step is a fixed part of one over the largest eigenvalue of the kernel at the start, for the eigenvalues grow with the width and a step
of usual size diverges. All α are trained for as many steps: the theorem compares them at a fixed time.

How large α must be depends on the time. At large, where a hundred rows are fitted for longer, the change fell with the power −1.46 of α
from 8 to 16, and −1.1 from 32 to 64 (four networks): a fit from 8 to 128 gave −1.2. There it begins at 32, where three networks of base
seed 5000 gave −1.03 up to 512.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from theorylab.core.claim import Claim, Finding, Scales
from theorylab.core.config import Config, setting
from theorylab.core.problem import Problem
from theorylab.core.seeds import derived_seed
from theorylab.core.series import Series, Stage
from theorylab.core.source import Source
from theorylab.core.study import study
from theorylab.data.synthetic import teacher_student
from theorylab.instruments.kernels import ntk
from theorylab.instruments.lazy import distance_moved
from theorylab.learning.optimizers.sgd import sgd
from theorylab.learning.population import Population
from theorylab.models.mlp import mlp
from theorylab.models.seeded import seeded
from theorylab.stats.fits import power_law

KERNEL_CHANGE = Claim(
    "implicit_bias/lazy/kernel_change",
    "In training f = α(h − h₀) on the squared loss over α², for a fixed time, the relative change of the tangent kernel is of order 1/α.",
    formula=r"\frac{\lVert\Theta_t - \Theta_0\rVert_F}{\lVert\Theta_0\rVert_F} \propto \alpha^{-1}, \qquad "
    r"f = \alpha\,(h_\theta - h_{\theta_0}), \quad L = \frac{1}{\alpha^2}\,R(f)",
    source=Source(
        "Chizat et al. 2019",
        "Theorem 2.2 (at a fixed time parameters have moved by O(1/α), and so the differential)",
        "arXiv:1812.07956",
    ),
    kind="asymptotic",
    relation=Scales(-1.0, 0.2),
    control="f = αh, without subtracting the initial output",
    reading="Laziness is a matter of scale, not of width: whatever makes the required change of the network small makes it train as a "
    "kernel method. The law needs an output that starts near zero and α large enough; below that the network learns features.",
)


@dataclass(frozen=True, kw_only=True)
class LazyConfig(Config):
    """A tanh network of one hidden layer on the targets of a random teacher; replica k has its own network, teacher and rows."""

    seeds: int = setting(16, "replicas, each with its own random numbers", low=1)
    n: int = setting(20, "rows", low=2)
    d: int = setting(10, "inputs", low=1)
    width: int = setting(64, "hidden units", low=1)
    alphas: tuple[float, ...] = setting(
        (8.0, 16.0, 32.0, 64.0), "factors α to which the power law is fitted, in rising order", low=1.0, rising=True
    )
    rich: tuple[float, ...] = setting((0.5, 1.0, 2.0, 4.0), "smaller factors, for the figure", low=0.05)
    steps: int = setting(1500, "steps from each start", low=1)
    step: float = setting(0.25, "step size times the largest curvature at the start, 2λ_max(Θ)/n", low=1e-3, high=1.0)


QUANTITIES = {"kernel": "tangent kernel", "parameters": "parameters", "nonlinearity": "share of the change that is not linear"}


def train(alphas: tuple[float, ...], config: LazyConfig, *, centered: bool) -> tuple[dict[str, Tensor], float]:
    """Train h on h₀ + y/α, or on y/α where not ``centered``, at every α.

    Returns:
        The `QUANTITIES` of how far each replica went, (alpha, replica), and the largest final loss relative to the initial one.
    """
    make = partial(mlp, [config.d, config.width, 1], activation="tanh")
    starts, rows, targets, lrs = [], [], [], []
    for seed in config.replica_seeds:
        drawn = teacher_student(config.n, config.d, seed=derived_seed(seed, "data"), dtype=config.torch_dtype)
        x, y = (t.to(config.device) for t in drawn)
        net = seeded(make, seed, dtype=config.torch_dtype).to(config.device)
        start = Problem(net, nn.functional.mse_loss, (x, y))
        with torch.no_grad():
            origin = net(x) if centered else torch.zeros_like(y)
        starts.append(start)
        rows.append(x)
        targets.append(torch.stack([origin + y / alpha for alpha in alphas]))
        lrs.append(config.step * config.n / (2 * torch.linalg.eigvalsh(ntk(start))[-1]))
    population = Population(
        make,
        nn.functional.mse_loss,
        (torch.stack(rows).repeat(len(alphas), 1, 1), torch.stack(targets, 1).flatten(0, 1)),  # (alpha · replica, n, ...)
        optimizer=sgd(torch.stack(lrs).repeat(len(alphas))),
        seeds=config.replica_seeds * len(alphas),
        data_per_replica=True,
        dtype=config.torch_dtype,
        device=config.device,
    )
    first = population.losses()
    population.train(config.steps)
    left = float((population.losses() / first).amax())
    ends = ({name: p[k] for name, p in population.params.items()} for k in range(len(population)))
    moved = [distance_moved(starts[k % config.seeds], end) for k, end in enumerate(ends)]
    return {q: population.losses().new_tensor([getattr(m, q) for m in moved]).unflatten(0, (len(alphas), -1)) for q in QUANTITIES}, left


@study(
    "implicit_bias/lazy",
    claims=[KERNEL_CHANGE],
    tiny=LazyConfig(n=10, d=5, width=16, alphas=(16.0, 64.0), rich=(1.0,), steps=200),
    small=LazyConfig(),
    large=LazyConfig(
        seeds=32,
        n=100,
        d=20,
        width=256,
        alphas=(32.0, 64.0, 128.0, 256.0, 512.0),
        rich=(0.5, 1.0, 2.0, 4.0, 8.0, 16.0),
        steps=20_000,
    ),
)
def lazy(config: LazyConfig) -> Iterator[Finding | Series | Stage]:
    """Fit the exponent of the kernel's change in α, with and without subtracting the initial output."""
    figure = Series("movement", "How far training goes, against the factor α", x="factor α", y="relative change")
    figure.claim, figure.x_scale, figure.y_scale = KERNEL_CHANGE.key, "log", "log"
    for centered in (True, False):
        yield Stage("f = α(h − h₀)" if centered else "f = αh")
        alphas = (*config.rich, *config.alphas) if centered else config.alphas
        moved, left = train(alphas, config, centered=centered)
        large = moved["kernel"][-len(config.alphas) :]
        check = KERNEL_CHANGE.check if centered else KERNEL_CHANGE.control_check
        slopes = [power_law(config.alphas, column) for column in large.T]
        where = f"α from {config.alphas[0]:g} to {config.alphas[-1]:g}"
        changes = ", ".join(f"{float(c):.2g}" for c in large.mean(1))
        note = f"mean relative change {changes}; loss at the end at most {left:.1e} of that at the start"
        yield check(measured=slopes, setting=where if centered else f"f = αh, {where}", note=note)
        for quantity, name in QUANTITIES.items() if centered else [("kernel", "tangent kernel, f = αh")]:
            values = moved[quantity]
            mean, low, high = values.log().mean(1).exp(), values.amin(1), values.amax(1)
            figure.line(name, alphas, mean, low=low, high=high, role="measured" if centered else "control", mark="points")
            if centered and quantity == "kernel":
                figure.line("∝ 1/α", config.alphas, [float(mean[-1]) * config.alphas[-1] / a for a in config.alphas], role="predicted")
    yield figure
