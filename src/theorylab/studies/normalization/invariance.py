"""Normalization makes weights scale invariant, and that alone fixes how their gradients, curvature and norms behave.

A loss that does not see the length of θ has a gradient orthogonal to θ, and derivatives that shrink as θ grows. A step of gradient descent
can then only lengthen θ, and weight decay only shorten it: the length is a slow variable that sets the effective step size η/‖θ‖². All of
this is exact where the normalization adds no ``eps`` under its root, and for every step size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import functional
from torch.nn.functional import binary_cross_entropy_with_logits

from theorylab.core.claim import Claim, Equals, Finding
from theorylab.core.config import Config, setting
from theorylab.core.series import Role, Series, Stage
from theorylab.core.source import Source
from theorylab.core.study import study
from theorylab.core.substitution import places_of, substituted
from theorylab.data.synthetic import random_labels
from theorylab.learning.optimizers.observed import observed
from theorylab.learning.optimizers.sgd import sgd
from theorylab.learning.population import Population
from theorylab.learning.trajectory import Trajectory
from theorylab.models.normalized import Kind, NormalizedMLP, PreNormResidual
from theorylab.models.seeded import seeded
from theorylab.theory.normalization import invariant_blocks, squared_norm_after_step

DERIVATIVES = Claim(
    "normalization/invariance/derivatives",
    "At scale-invariant weights the gradient is orthogonal to θ, is of degree −1 and the Hessian of degree −2 in the length of θ, and "
    "the Hessian maps θ to minus the gradient.",
    formula=r"\langle\theta, \nabla L\rangle = 0,\quad \nabla L(c\theta) = \nabla L(\theta)/c,\quad "
    r"\nabla^2 L(c\theta) = \nabla^2 L(\theta)/c^2,\quad \nabla^2 L(\theta)\,\theta = -\nabla L(\theta)",
    source=Source("Li and Arora 2020", "lemma on the gradients of scale-invariant functions", "arXiv:1910.07454"),
    kind="identity",
    relation=Equals(atol=1e-10),
    control="eps = 0.01 under the root of BatchNorm, at weights of a hundredth of their usual size",
    reading="A larger weight vector sees a smaller gradient and a smaller curvature, so its length acts as a step size. "
    "With the usual eps the laws hold as long as a layer's variance is far above eps; decayed weights can leave that region.",
)
NORM_UPDATE = Claim(
    "normalization/invariance/norm_update",
    "A step of plain SGD with weight decay changes the norm of scale-invariant weights by its two parts alone: decay shrinks it, the "
    "gradient adds its square.",
    formula=r"\|\theta_{t+1}\|^2 = (1 - \eta\lambda)^2\,\|\theta_t\|^2 + \eta^2\,\|g_t\|^2",
    source=Source("van Laarhoven 2017", "analysis of the effective learning rate", "arXiv:1706.05350"),
    kind="identity",
    relation=Equals(rtol=1e-12),
    control="momentum 0.9, whose steps are not orthogonal to θ; a network without normalization",
    reading="Pythagoras: the gradient is a leg of a right angle, whatever the data, the loss or the batch. "
    "Momentum breaks the identity at each step, since it carries old gradients that were orthogonal to older weights.",
)
NORM_GROWTH = Claim(
    "normalization/invariance/norm_growth",
    "Without weight decay the norm of scale-invariant weights never falls, and its square grows by the sum of all squared steps.",
    formula=r"\|\theta_t\|^2 = \|\theta_0\|^2 + \eta^2 \sum_{s<t} \|g_s\|^2",
    source=Source("Arora, Li and Lyu 2019", "lemma on the norm of scale-invariant weights under gradient descent", "arXiv:1812.03981"),
    kind="identity",
    relation=Equals(rtol=1e-12),
    control="weight decay",
    reading="A step size far too large lengthens θ in its first steps until η/‖θ‖² is small enough again: the rate tunes itself. "
    "It can only fall, so a step size that starts too small stays so, and weight decay is needed to bring it back.",
)
WHICH = Claim(
    "normalization/invariance/which",
    "Scale invariant are the weights that one normalization divides by their common scale: a channel under BatchNorm or weight "
    "normalization, a group under GroupNorm, the whole matrix under LayerNorm or RMSNorm, all that writes into a pre-norm residual "
    "stream. A part of such a block is not, nor are gains, shifts and the head.",
    formula=r"B \text{ a normalized block} \;\Rightarrow\; f(c\,\theta_B) = f(\theta_B)\ \ \forall c > 0",
    source=Source("Li and Arora 2020", "discussion of which architectures are scale invariant", "arXiv:1910.07454"),
    kind="identity",
    relation=Equals(atol=1e-8),
    control="the weights of a pre-norm residual stream, which are read through normalizations only and so look invariant",
    reading="The measured number is the relative change of the outputs when a block is tripled, in percent and cut at one: 0 or 1. "
    "In a pre-norm transformer no single matrix is invariant, since the stream that is normalized is a sum.",
)

ETA, LAMBDA = 0.1, 5e-3
TOO_LARGE = (1.0, 100.0, 10_000.0)
"""Factors on the step size without decay."""
TRIPLE = 3.0
Tensors = dict[str, Tensor]
Apply = Callable[[Tensors], Tensor]


@dataclass(frozen=True, kw_only=True)
class InvarianceConfig(Config):
    """Small networks of two hidden layers on random labels."""

    inputs: int = setting(20, "inputs", low=2)
    width: int = setting(16, "hidden units of the trained networks", low=4)
    rows: int = setting(128, "rows of data", low=16)
    batch: int = setting(64, "rows of a minibatch", low=8)
    steps: int = setting(100, "optimizer steps", low=10)
    dense_width: int = setting(6, "hidden units of the network whose Hessian is formed", low=4)


# ---- derivatives -------------------------------------------------------------------------------------------------------------------------


def flat_risk(config: InvarianceConfig, seed: int, eps: float) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """The risk of a BatchNorm network as a function of all its hidden weights in one vector, and their initial values."""
    widths = [config.dense_width // 2, config.dense_width, config.dense_width, 1]
    net = seeded(lambda: NormalizedMLP(widths, eps=eps, fixed_head=True), seed).to(config.device, config.torch_dtype)
    x, y = (t.to(config.device) for t in random_labels(config.rows, widths[0], seed=seed, dtype=config.torch_dtype))
    names, params = zip(*net.named_parameters(), strict=True)
    sizes, places = [p.numel() for p in params], places_of(net)

    def risk(theta: Tensor) -> Tensor:
        parts = [t.view(p.shape) for t, p in zip(theta.split(sizes), params, strict=True)]
        with substituted(net, dict(zip(names, parts, strict=True)), places):
            return binary_cross_entropy_with_logits(net(x), y)

    return risk, torch.cat([p.detach().flatten() for p in params])


def gradient(risk: Callable[[Tensor], Tensor], theta: Tensor) -> Tensor:
    """∇L(θ), by autograd: `torch.func.grad` would import a compiler first."""
    leaf = theta.detach().requires_grad_()
    return torch.autograd.grad(risk(leaf), leaf)[0]


def hessian(risk: Callable[[Tensor], Tensor], theta: Tensor) -> Tensor:
    """∇²L(θ)."""
    found = functional.hessian(risk, theta)
    assert isinstance(found, Tensor)
    return found


def residuals(risk: Callable[[Tensor], Tensor], theta: Tensor, c: float) -> dict[str, float]:
    """By how much each of the four identities is missed, relative to its right-hand side."""
    g, h = gradient(risk, theta), hessian(risk, theta)
    g_far, h_far = gradient(risk, c * theta), hessian(risk, c * theta)
    return {
        "⟨θ, ∇L⟩ = 0": float((theta @ g).abs() / (theta.norm() * g.norm())),
        "∇L(cθ) = ∇L(θ)/c": float((c * g_far - g).norm() / g.norm()),
        "∇²L(cθ) = ∇²L(θ)/c²": float((c**2 * h_far - h).norm() / h.norm()),
        "∇²L(θ)θ = −∇L(θ)": float((h @ theta + g).norm() / g.norm()),
    }


def check_derivatives(config: InvarianceConfig) -> Iterator[Finding | Series]:
    """All four identities at initialization, and gradient and curvature along a ray."""
    exact, control = [], []
    for seed in config.replica_seeds:
        exact.append(residuals(*flat_risk(config, seed, eps=0.0), TRIPLE))
        risk, theta = flat_risk(config, seed, eps=1e-2)
        control.append(residuals(risk, theta / 100, TRIPLE))
    for name in exact[0]:
        yield DERIVATIVES.check(predicted=0.0, measured=[r[name] for r in exact], setting=name)
        yield DERIVATIVES.control_check(predicted=0.0, measured=[r[name] for r in control], setting=f"{name}, eps = 0.01, θ/100")

    scales = 10 ** torch.linspace(-2, 1, 7, dtype=config.torch_dtype)
    figure = Series(
        "scale",
        "Gradient and curvature fall with the length of the weights",
        x="c, length of θ in units of its initial value",
        y="‖∇L(cθ)‖, ‖∇²L(cθ)‖_F [nats], in units of their values at c = 1",
        claim=DERIVATIVES.key,
        x_scale="log",
        y_scale="log",
    )
    cases: tuple[tuple[float, Role], ...] = ((0.0, "measured"), (1e-2, "control"))
    for eps, role in cases:
        risk, theta = flat_risk(config, config.seed, eps)
        for what, derivative in (("gradient", gradient), ("Hessian", hessian)):
            norms = torch.stack([derivative(risk, c * theta).norm() for c in scales.to(theta)])
            figure.line(f"{what}, eps = {eps:g}", scales, norms / derivative(risk, theta).norm(), role=role, mark="points")
    figure.line("1/c", scales, 1 / scales, role="predicted")
    yield figure.line("1/c²", scales, 1 / scales**2, role="predicted")


# ---- norms -------------------------------------------------------------------------------------------------------------------------------


def train(
    config: InvarianceConfig, normalization: Kind = "batch", *, lr: float = ETA, decay: float = 0.0, momentum: float = 0.0
) -> Trajectory:
    """Norms before and after each step, and gradient norms, of every hidden matrix: values (step, replica)."""
    data = [random_labels(config.rows, config.inputs, seed=s, dtype=config.torch_dtype) for s in config.replica_seeds]
    population = Population(
        lambda: NormalizedMLP([config.inputs, config.width, config.width, 1], normalization=normalization, fixed_head=True),
        binary_cross_entropy_with_logits,
        (torch.stack([d.x for d in data]), torch.stack([d.y for d in data])),
        optimizer=observed(sgd(lr, momentum=momentum, weight_decay=decay)),
        seeds=config.replica_seeds,
        batch_size=config.batch,
        data_per_replica=True,
        dtype=config.torch_dtype,
        device=config.device,
        mode="vmap",
    )
    population.train(1)  # nothing is observed before the first step
    return population.train(config.steps - 1, every=1, measure=lambda p: p.state["last"])


def squares(run: Trajectory, what: str) -> Tensor:
    """The squared norms called ``what`` of all hidden matrices, (step, replica, tensor)."""
    return torch.stack([v for k, v in run.values.items() if k.startswith(f"{what} ")], -1).square()


def check_norms(config: InvarianceConfig) -> Iterator[Finding | Series]:
    """The norm of each step, and over all steps without decay."""

    def update(run: Trajectory, lr: float, decay: float) -> dict[str, Any]:
        predicted = squared_norm_after_step(squares(run, "norm"), squares(run, "gradient"), lr, decay)
        return {"predicted": predicted, "measured": squares(run, "after")}

    def growth(run: Trajectory, lr: float) -> dict[str, Any]:
        total = squares(run, "gradient").cumsum(0)
        return {"predicted": squared_norm_after_step(squares(run, "norm")[:1], total, lr), "measured": squares(run, "after")}

    def falls(run: Trajectory) -> Tensor:
        return (squares(run, "after") < squares(run, "norm")).sum((0, 2)).double()

    decayed = train(config, decay=LAMBDA)
    yield NORM_UPDATE.check(**update(decayed, ETA, LAMBDA), setting=f"η = {ETA:g}, λ = {LAMBDA:g}")
    heavy = train(config, decay=LAMBDA, momentum=0.9)
    yield NORM_UPDATE.control_check(**update(heavy, ETA, LAMBDA), setting="momentum 0.9")
    bare = train(config, "none", decay=LAMBDA)
    yield NORM_UPDATE.control_check(**update(bare, ETA, LAMBDA), setting="no BatchNorm")

    figure = Series(
        "norm",
        "Too large a step size corrects itself, too small a one does not",
        x="step",
        y="effective step size η/‖θ‖² of the second layer",
        claim=NORM_GROWTH.key,
        y_scale="log",
    )
    sides: tuple[tuple[str, Role], ...] = (("measured", "measured"), ("from the gradients", "predicted"))
    for lr in (factor * ETA for factor in TOO_LARGE):
        run = train(config, lr=lr)
        name = f"η = {lr:g}"
        yield NORM_GROWTH.check(**growth(run, lr), setting=name)
        yield NORM_GROWTH.check(predicted=0.0, measured=falls(run), setting=f"{name}, steps at which a norm falls")
        for label, role in sides:
            norms = torch.cat([squares(run, "norm")[:1], growth(run, lr)[role]])[:, 0, -1]  # of the first replica, from step 0
            figure.line(f"{name}, {label}", range(config.steps + 1), lr / norms, role=role)
    yield NORM_GROWTH.control_check(**growth(decayed, ETA), setting=f"λ = {LAMBDA:g}")
    yield NORM_GROWTH.control_check(predicted=0.0, measured=falls(decayed), setting=f"λ = {LAMBDA:g}, steps at which a norm falls")
    yield figure


# ---- which -------------------------------------------------------------------------------------------------------------------------------


def response(outputs: Apply, params: Tensors, tripled: Tensors) -> float:
    """Relative change of the outputs under ``params | tripled``, in percent and at most 1."""
    before = outputs(params)
    return min(float((outputs(params | tripled) - before).norm() / before.norm()) / 1e-2, 1.0)


def triple(p: Tensor, rows: slice = slice(None)) -> Tensor:
    """The tensor with some of its rows three times as large."""
    factor = torch.ones_like(p)
    factor[rows] = TRIPLE
    return factor * p


def build(make: Callable[[], nn.Module], config: InvarianceConfig, seed: int) -> tuple[Apply, Tensors]:
    """A network's outputs on random inputs as a function of its parameters, and these."""
    net = seeded(make, seed).to(config.device, config.torch_dtype)
    x = random_labels(config.rows, config.inputs, seed=seed, dtype=config.torch_dtype).x.to(config.device)
    places = places_of(net)

    def outputs(params: Tensors) -> Tensor:
        with substituted(net, params, places):
            return net(x)

    return outputs, {k: p.detach() for k, p in net.named_parameters()}


def check_which(config: InvarianceConfig) -> Iterator[Finding]:
    """Triple every block that should not matter, and much that should."""
    width, groups = 12, 3
    for kind in ("batch", "weight", "group", "layer", "rms"):
        blocks = invariant_blocks(kind, width, groups)
        make = partial(NormalizedMLP, [config.inputs, width, width, 3], normalization=kind, groups=groups, affine=True)
        inside, part, other = [], [], []
        for seed in config.replica_seeds:
            outputs, params = build(make, config, seed)
            layers = [k for k in params if k.startswith("layers")]
            inside += [response(outputs, params, {k: triple(params[k], rows)}) for k in layers for rows in blocks]
            other += [response(outputs, params, {k: triple(params[k])}) for k in params if k not in layers]
            part += [response(outputs, params, {k: triple(params[k], slice(0, blocks[0].stop - 1))}) for k in layers]
        yield WHICH.check(predicted=0.0, measured=inside, setting=f"{kind} norm, {len(blocks)} of {width} channels as blocks")
        yield WHICH.check(predicted=1.0, measured=other, setting=f"{kind} norm, gains, shifts and head")
        if blocks[0].stop > 1:  # a single channel has no proper part
            yield WHICH.check(predicted=1.0, measured=part, setting=f"{kind} norm, all of a block but one channel")

    alone, together = [], []
    for seed in config.replica_seeds:
        outputs, params = build(lambda: PreNormResidual(config.inputs, width, 3), config, seed)
        stream = {k: triple(p) for k, p in params.items() if k == "embed" or k.startswith("write")}
        alone += [response(outputs, params, {k: p}) for k, p in stream.items()]
        together.append(response(outputs, params, stream))
    yield WHICH.check(predicted=0.0, measured=together, setting="pre-norm residual stream, all that writes into it")
    yield WHICH.control_check(predicted=0.0, measured=alone, setting="pre-norm residual stream, one matrix at a time")


@study(
    "normalization/invariance",
    claims=[DERIVATIVES, NORM_UPDATE, NORM_GROWTH, WHICH],
    tiny=InvarianceConfig(seeds=2, width=8, rows=64, batch=32, steps=20, dense_width=4),
    small=InvarianceConfig(),
    large=InvarianceConfig(seeds=32, width=128, rows=1024, batch=128, steps=2000, dense_width=16),
)
def invariance(config: InvarianceConfig) -> Iterator[Finding | Series | Stage]:
    """Check the identities one by one, at initialization and along training runs."""
    yield Stage("derivatives")
    yield from check_derivatives(config)
    yield Stage("norms")
    yield from check_norms(config)
    yield Stage("which weights are invariant")
    yield from check_which(config)
