"""Gradient descent keeps neighbouring layers in balance, up to a drift of second order in the step size.

Rescaling one layer up and the next one down leaves a homogeneous network as it is. To that symmetry belongs a conserved quantity of
gradient flow: W_{j+1}ᵀW_{j+1} − W_jW_jᵀ between linear layers, the difference of squared norms at a ReLU unit. One step of size η changes
it by η² times the same expression in the gradients, exactly; over a fixed time the 1/η steps add up to a drift of order η.

The residual of an identity is stated relative to the squared norms whose difference it is, so that rounding is of order 1e-16. The drift
is proportional to η only where η times the sharpness is small; weights start below the variance-preserving scale to keep it so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from theorylab.core.claim import Claim, Equals, Finding, Scales
from theorylab.core.config import Config, setting
from theorylab.core.seeds import derived_seed
from theorylab.core.series import Series, Stage
from theorylab.core.source import Source
from theorylab.core.study import study
from theorylab.data.synthetic import teacher_student
from theorylab.learning.optimizers.adam import adam
from theorylab.learning.optimizers.base import Optimizer, Params
from theorylab.learning.optimizers.sgd import sgd
from theorylab.models.deep_linear import imbalance
from theorylab.stats.fits import power_law
from theorylab.theory.implicit_bias import balance_increment, unit_balance_increment

DISCRETE_IDENTITY = Claim(
    "implicit_bias/balancedness/discrete_identity",
    "In a deep linear network every step of gradient descent changes the imbalance of neighbouring layers by η² times the imbalance of "
    "their gradients, exactly.",
    formula=r"\Delta\left(W_{j+1}^\top W_{j+1} - W_j W_j^\top\right) = \eta^2\left(G_{j+1}^\top G_{j+1} - G_j G_j^\top\right)",
    source=Source(
        "Arora et al. 2018", "Theorem 1 and its proof (gradient flow; the η² term is the remainder of one step)", "arXiv:1802.06509"
    ),
    kind="identity",
    relation=Equals(atol=1e-12),
    control="tanh between the layers, which is not homogeneous",
    reading="What the layers differ by at the start is what they differ by later: small starts stay balanced, and balanced layers have "
    "equal singular values. The law needs linear (or homogeneous) layers and plain gradient descent; data, loss and depth do not matter.",
)

DRIFT_ORDER = Claim(
    "implicit_bias/balancedness/drift_order",
    "Over a fixed training time the imbalance of a deep linear network drifts in proportion to the step size.",
    formula=r"\left\|B(T) - B(0)\right\|_F \propto \eta, \qquad B_j = W_{j+1}^\top W_{j+1} - W_j W_j^\top",
    source=Source("Du et al. 2018", "Theorem 2.2 (conserved by gradient flow; η² a step for 1/η steps is of order η)", "arXiv:1806.00900"),
    kind="asymptotic",
    relation=Scales(1.0, 0.03),
    control="Adam in place of gradient descent",
    reading="Balance is a law of gradient flow that gradient descent obeys to first order: halve the step and the drift halves. Adam "
    "rescales every coordinate by itself, which breaks the symmetry, and its drift is not of the step's order.",
)

RELU_UNIT = Claim(
    "implicit_bias/balancedness/relu_unit",
    "At every hidden ReLU unit a step of gradient descent changes the squared norm of the incoming weights and bias minus that of the "
    "outgoing weights by η² times the same expression in the gradients.",
    formula=r"\Delta\left(\|w_{in}\|^2 + b^2 - \|a\|^2\right) = \eta^2\left(\|g_{in}\|^2 + g_b^2 - \|g_a\|^2\right)",
    source=Source("Du et al. 2018", "Theorem 2.1 (gradient flow, the bias as one more incoming weight)", "arXiv:1806.00900"),
    kind="identity",
    relation=Equals(atol=1e-12),
    control="tanh units",
    reading="A unit cannot grow on one side only: large outgoing weights come with large incoming ones, so units are strong or weak as a "
    "whole. It stops being true for units that are not positively homogeneous, for weight decay on one side, and for adaptive optimizers.",
)

Activation = Callable[[Tensor], Tensor]


class Step(NamedTuple):
    """One step of gradient descent: parameters and gradients before it, parameters after it."""

    before: Params
    grads: Params
    after: Params


@dataclass(frozen=True, kw_only=True)
class BalancednessConfig(Config):
    """A regression on a random teacher, fitted by dense networks of one width."""

    n: int = setting(50, "rows", low=2)
    width: int = setting(10, "inputs and hidden units", low=2)
    depth: int = setting(4, "linear layers of the deep linear network", low=2)
    gain: float = setting(0.5, "initial weights relative to the scale that preserves variance", low=0.1, high=1.0)
    steps: int = setting(50, "steps over which the identities are checked", low=1)
    lrs: tuple[float, ...] = setting((0.1, 0.05, 0.02, 0.01, 0.005), "step sizes η of the identities", low=1e-3, high=0.2)
    drift_lrs: tuple[float, ...] = setting((0.04, 0.02, 0.01), "step sizes η of the drift", low=1e-4, high=0.1)
    time: float = setting(8.0, "training time η × steps over which the drift is measured", low=1.0)


def forward(params: Params, x: Tensor, activation: Activation) -> Tensor:
    """Outputs (replica, n, k) of dense layers with weights "w0", "w1", ... (replica, out, in) and, where present, biases "b0", ..."""
    depth = sum(name.startswith("w") for name in params)
    for j in range(depth):
        x = x @ params[f"w{j}"].mT
        if f"b{j}" in params:
            x = x + params[f"b{j}"].unsqueeze(1)
        if j < depth - 1:
            x = activation(x)
    return x


def gradients(params: Params, x: Tensor, y: Tensor, activation: Activation) -> Params:
    """Gradients of each replica's own risk, half the mean squared error."""
    leaves = {k: p.detach().requires_grad_() for k, p in params.items()}
    risk = (forward(leaves, x, activation) - y).square().sum(2).mean(1) / 2  # (replica,)
    return dict(zip(leaves, torch.autograd.grad(risk.sum(), list(leaves.values())), strict=True))


def train(optimizer: Optimizer, params: Params, x: Tensor, y: Tensor, activation: Activation, steps: int) -> Iterator[Step]:
    """The steps of a training run, one after the other."""
    state = optimizer.init(params)
    for _ in range(steps):
        grads = gradients(params, x, y, activation)
        after, state = optimizer.update(grads, state, params)
        yield Step(params, grads, after)
        params = after


def tasks(config: BalancednessConfig) -> tuple[Tensor, Tensor]:
    """Inputs (replica, n, width) and targets (replica, n, 1), a teacher each."""
    drawn = [teacher_student(config.n, config.width, noise=0.1, seed=seed, dtype=config.torch_dtype) for seed in config.replica_seeds]
    return tuple(torch.stack(part).to(config.device) for part in zip(*drawn, strict=True))  # pyright: ignore[reportReturnType]


def dense(config: BalancednessConfig, sizes: list[int], *, bias: bool) -> Params:
    """Normal weights of standard deviation gain/√inputs, and biases of size 0.1."""
    layers: dict[str, list[Tensor]] = {}
    for seed in config.replica_seeds:
        generator = torch.Generator().manual_seed(derived_seed(seed, "weights"))
        for j, (d, k) in enumerate(pairwise(sizes)):
            layers.setdefault(f"w{j}", []).append(config.gain * torch.randn(k, d, generator=generator, dtype=torch.float64) / d**0.5)
            if bias:
                layers.setdefault(f"b{j}", []).append(torch.randn(k, generator=generator, dtype=torch.float64) / 10)
    return {name: torch.stack(parts).to(device=config.device, dtype=config.torch_dtype) for name, parts in layers.items()}


def imbalances(params: Params) -> list[Tensor]:
    """W_{j+1}ᵀW_{j+1} − W_jW_jᵀ of every pair of neighbouring layers, each (replica, width, width)."""
    return imbalance([params[f"w{j}"] for j in range(len(params))])


def layer_residual(steps: Iterator[Step], lr: Tensor) -> Tensor:
    """Largest deviation from the identity of layers over a run, relative to the layers' squared norms; (replica,)."""
    worst = torch.zeros_like(lr)
    for before, grads, after in steps:
        for j, (old, new) in enumerate(zip(imbalances(before), imbalances(after), strict=True)):
            predicted = balance_increment(lr[:, None, None], grads[f"w{j}"], grads[f"w{j + 1}"])
            size = before[f"w{j}"].square().sum((1, 2)) + before[f"w{j + 1}"].square().sum((1, 2))
            worst = torch.maximum(worst, (new - old - predicted).square().sum((1, 2)).sqrt() / size)
    return worst


def unit_residual(steps: Iterator[Step], lr: Tensor) -> Tensor:
    """The same for every unit of two hidden layers with biases; (replica,)."""

    def norms(p: Params, j: int) -> tuple[Tensor, Tensor]:  # of incoming weights with bias, and of outgoing weights; (replica, width)
        return p[f"w{j}"].square().sum(2) + p[f"b{j}"].square(), p[f"w{j + 1}"].square().sum(1)

    worst = torch.zeros_like(lr)
    for before, grads, after in steps:
        for j in (0, 1):
            (old_in, old_out), (new_in, new_out) = norms(before, j), norms(after, j)
            predicted = unit_balance_increment(lr[:, None], grads[f"w{j}"], grads[f"b{j}"], grads[f"w{j + 1}"])
            residual = (new_in - new_out) - (old_in - old_out) - predicted
            worst = torch.maximum(worst, (residual.abs() / (old_in + old_out)).amax(1))
    return worst


def accumulated(steps: Iterator[Step], lr: float) -> tuple[list[float], list[float]]:
    """Distance of the first replica's imbalances from their start after each step: measured, and summed up from the gradients."""
    start, total, measured, predicted = None, 0.0, [], []
    for before, grads, after in steps:
        start = torch.stack(imbalances(before)) if start is None else start
        increments = [balance_increment(lr, grads[f"w{j}"], grads[f"w{j + 1}"]) for j in range(len(grads) - 1)]
        total = total + torch.stack(increments)
        moved = torch.stack(imbalances(after)) - start
        measured.append(float(moved[:, 0].norm()))
        predicted.append(float(total[:, 0].norm()))
    return measured, predicted


def drift(optimizer: Optimizer, params: Params, x: Tensor, y: Tensor, steps: int) -> Tensor:
    """How far the imbalances have moved after some steps, all pairs together; (replica,)."""
    start = torch.stack(imbalances(params))
    for step in train(optimizer, params, x, y, torch.nn.Identity(), steps):
        params = step.after
    return (torch.stack(imbalances(params)) - start).square().sum((0, 2, 3)).sqrt()


@study(
    "implicit_bias/balancedness",
    claims=[DISCRETE_IDENTITY, DRIFT_ORDER, RELU_UNIT],
    tiny=BalancednessConfig(n=20, width=5, steps=20, lrs=(0.1, 0.01), time=2.0),
    small=BalancednessConfig(),
    large=BalancednessConfig(seeds=32, n=200, width=30, steps=200, drift_lrs=(0.04, 0.02, 0.01, 0.005)),
)
def balancedness(config: BalancednessConfig) -> Iterator[Finding | Series | Stage]:
    """Check the identities step by step, then fit the drift's order in η."""
    x, y = tasks(config)
    lr = x.new_tensor(config.lrs).repeat(config.seeds)  # every seed meets every step size
    wide_x, wide_y = (t.repeat_interleave(len(config.lrs), 0) for t in (x, y))

    yield Stage("deep linear identity")
    linear = dense(config, [config.width] * config.depth + [1], bias=False)
    wide = {k: p.repeat_interleave(len(config.lrs), 0) for k, p in linear.items()}
    for activation, check in ((torch.nn.Identity(), DISCRETE_IDENTITY.check), (torch.tanh, DISCRETE_IDENTITY.control_check)):
        steps = train(sgd(lr=lr), wide, wide_x, wide_y, activation, config.steps)
        yield check(predicted=0.0, measured=layer_residual(steps, lr))

    axes: dict[str, Any] = {"x": "step", "y": "imbalance gained ‖B(t) − B(0)‖", "claim": DISCRETE_IDENTITY.key, "y_scale": "log"}
    paths = Series("imbalance", f"What the layers' imbalance gains, η = {config.lrs[0]:g}", **axes)
    numbers = range(1, config.steps + 1)
    gd = sgd(lr=config.lrs[0])
    measured, predicted = accumulated(train(gd, linear, x, y, torch.nn.Identity(), config.steps), config.lrs[0])
    paths.line("linear layers", numbers, measured)
    paths.line("η² Σ (GᵀG − GGᵀ)", numbers, predicted, role="predicted")
    measured, _ = accumulated(train(gd, linear, x, y, torch.tanh, config.steps), config.lrs[0])
    yield paths.line("tanh between the layers", numbers, measured, role="control")

    yield Stage("ReLU unit identity")
    wide = {k: p.repeat_interleave(len(config.lrs), 0) for k, p in dense(config, [config.width] * 3 + [1], bias=True).items()}
    for activation, check in ((torch.relu, RELU_UNIT.check), (torch.tanh, RELU_UNIT.control_check)):
        steps = train(sgd(lr=lr), wide, wide_x, wide_y, activation, config.steps)
        yield check(predicted=0.0, measured=unit_residual(steps, lr))

    yield Stage("drift over a fixed time")
    figure = Series("drift", "Drift of the imbalance over a fixed time", x="step size η", y="drift ‖B(T) − B(0)‖", claim=DRIFT_ORDER.key)
    figure.x_scale = figure.y_scale = "log"
    drifts = {}
    for name, make in (("gradient descent", sgd), ("Adam", adam)):
        runs = [drift(make(lr=eta), linear, x, y, round(config.time / eta)) for eta in config.drift_lrs]
        drifts[name] = torch.stack(runs)  # (lr, replica)
    slopes = {name: [power_law(config.drift_lrs, column) for column in moved.T] for name, moved in drifts.items()}
    yield DRIFT_ORDER.check(measured=slopes["gradient descent"])
    yield DRIFT_ORDER.control_check(measured=slopes["Adam"], setting="Adam")
    mean = {name: moved.log().mean(1).exp() for name, moved in drifts.items()}
    etas = x.new_tensor(config.drift_lrs)
    figure.line("gradient descent", etas, mean["gradient descent"], mark="points")
    figure.line("∝ η", etas, mean["gradient descent"][-1] * etas / etas[-1], role="predicted")
    yield figure.line("Adam", etas, mean["Adam"], role="control", mark="points")
