"""Adam and sharpness-aware minimization train at edges of stability of their own.

Gradient descent with full batches sharpens until λ₁ = 2/η and stays there. The argument behind that threshold is one of stability on
quadratics, and it carries over: with its preconditioner P frozen, Adam is gradient descent with an averaged gradient on a rescaled problem,
whose threshold is (2 + 2β₁)/((1 − β₁)η), 38/η for β₁ = 0.9. It is the preconditioned sharpness λ₁(P^{-1/2} H P^{-1/2}) that goes there; the
plain one is free to grow. Sharpness-aware minimization takes its gradient uphill, which makes sharp directions count more, so that its
threshold is lower than 2/η, and the lower the smaller the gradient.

Both facts are observations, with a heuristic derivation and no theorem: P changes slowly, but it changes, and the gradient's norm in SAM's
threshold is taken as it is at the moment. Adam's preconditioner must be taken with the bias correction of the momentum, or the ratio is off
at the beginning.

At large the data are 5000 images of CIFAR-10, where λ₁ begins between 140 and 170, so that SAM needs a smaller step than on the digits.
In pilots of one network and 1000 images (base seed 5000) Adam was at 0.89 to 1.06 of its edge from step 150 to 400, SAM at 0.98 to 1.06 of
its own from step 50 to 400, at a quarter of 2/η. Two networks of the whole run (base seed 0) are at 0.99 of Adam's edge in its late half,
with the Hessian itself at 252 where Adam's threshold is 76,000, and at 1.01 of SAM's; two are too few for the control of SAM by
minibatches, at 0.4 of its edge.

Measured on real data: a tanh network on the handwritten digits of scikit-learn, squared loss Σ(f − y)² on one-hot targets, mean over rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from theorylab.core.claim import Claim, Finding, Within
from theorylab.core.config import Config, setting
from theorylab.core.series import Role, Series, Stage
from theorylab.core.source import Source
from theorylab.core.study import study
from theorylab.data.images import pixels
from theorylab.instruments.sharpness_along import replica_sharpness
from theorylab.learning.optimizers.adam import adam, momentum_divisor
from theorylab.learning.optimizers.base import Optimizer, Params
from theorylab.learning.optimizers.sam import sam
from theorylab.learning.optimizers.sgd import sgd
from theorylab.learning.population import Population
from theorylab.learning.risk import squared_distance
from theorylab.learning.trajectory import Trajectory
from theorylab.models.mlp import mlp
from theorylab.theory.edges import adam_threshold, sam_threshold, stability_threshold

ADAM = Claim(
    "optimizers/edges/adam",
    "Full-batch Adam drives the preconditioned sharpness to its own edge of stability, (2 + 2β₁)/((1 − β₁)η), and stays there.",
    formula=r"\lambda_1\left(P_t^{-1/2} H_t P_t^{-1/2}\right) \approx \frac{2 + 2\beta_1}{(1 - \beta_1)\,\eta}, \qquad "
    r"P_t = (1 - \beta_1^t)\left(\sqrt{\hat v_t} + \epsilon\right)",
    source=Source("Cohen et al. 2022", "Section 3 (the adaptive edge of stability)", "arXiv:2207.14484"),
    kind="statistical",
    relation=Within(0.90, 1.10),
    control="minibatches of 4 rows, with the same step size; 2/η, the threshold without the average over gradients; and the sharpness that "
    "is not preconditioned",
    reading="Adaptive steps do not escape the edge, they move it: Adam may train at curvatures where gradient descent would diverge, for "
    "it rescales those directions, and the rescaled problem is again as sharp as its step allows. With minibatches or a step so small that "
    "the data are fitted first the edge is not reached.",
)

SAM = Claim(
    "optimizers/edges/sam",
    "Sharpness-aware minimization with full batches keeps λ₁ at its own edge, which depends on the gradient's norm and lies below 2/η.",
    formula=r"\lambda_1(H_t) \approx \frac{\|g_t\|}{2\rho}\left(\sqrt{1 + \frac{8\rho}{\eta\,\|g_t\|}} - 1\right)",
    source=Source("Long and Bartlett 2023", "Section 1 (the SAM-edge) and Section 3 (experiments)", "arXiv:2309.12488"),
    kind="statistical",
    relation=Within(0.95, 1.15),
    control="minibatches of 4 rows, with the same step size and ρ; and the edge of gradient descent, 2/η",
    reading="As the gradient shrinks, so does the edge: SAM ends in flatter regions than gradient descent with the same step, and earlier. "
    "The formula says by how much, from the step size, ρ and the gradient's norm alone. It assumes full batches, and that training lasts "
    "until the edge is reached; with minibatches λ₁ stays well below it.",
)

BATCH = 4
"""Rows of a minibatch of the controls."""


@dataclass(frozen=True, kw_only=True)
class EdgesConfig(Config):
    """A seed is an initial network; the data are the same for all. A ratio is a mean over the late half of training."""

    data: Literal["digits", "cifar10"] = setting("digits", "images to train on; cifar10 is read from the data folder")
    rows: int = setting(512, "images to train on; there are 1797 digits", low=16, high=50_000)
    width: int = setting(32, "units of each of the two hidden layers", low=2)
    steps: int = setting(1500, "training steps", low=20)
    measurements: int = setting(10, "how often λ₁ is measured on the way, after the start", low=2)
    adam_lr: float = setting(2e-3, "step size η of Adam", low=1e-5)
    beta1: float = setting(0.9, "β₁ of Adam", low=0.0, high=0.999)
    beta2: float = setting(0.99, "β₂ of Adam", low=0.0, high=0.9999)
    sam_lr: float = setting(0.1, "step size η of SAM", low=1e-4)
    rho: float = setting(0.1, "ρ of SAM", low=1e-4)


def preconditioner(population: Population, beta1: float, beta2: float, eps: float) -> Params:
    """What Adam divides its momentum by, by name (replica, ...); one before the first step."""
    second, t = population.state["second"], population.step_count
    return {k: momentum_divisor(v, t, (beta1, beta2), eps) if t else torch.ones_like(v) for k, v in second.items()}


def gradient_norms(population: Population) -> Tensor:
    """‖∇L‖ of every replica, (replica,); on the processor, where the sharpness is too."""
    grads = population.gradients()[1].values()
    return torch.stack([g.flatten(1).double().square().sum(1) for g in grads]).sum(0).sqrt().cpu()


@study(
    "optimizers/edges",
    claims=[ADAM, SAM],
    tiny=EdgesConfig(seeds=4, rows=96, width=16, steps=600, measurements=4, dtype="float32"),
    small=EdgesConfig(dtype="float32"),
    large=EdgesConfig(
        seeds=16,
        data="cifar10",
        rows=5000,
        width=200,
        steps=3000,
        measurements=100,
        adam_lr=5e-4,
        sam_lr=0.005,
        rho=0.02,
        dtype="float32",
    ),
)
def edges(config: EdgesConfig) -> Iterator[Finding | Series | Stage]:
    """Train populations by Adam and by SAM, and compare the sharpness of each with its threshold along the way."""
    x, y = pixels(config.data, config.rows, dtype=config.torch_dtype)
    data = x, nn.functional.one_hot(y, 10).to(x)
    every = max(1, config.steps // config.measurements)

    def population(optimizer: Optimizer, batch_size: int | None = None) -> Population:
        return Population(
            lambda: mlp([x.shape[1], config.width, config.width, 10], activation="tanh"),
            squared_distance,
            data,
            optimizer=optimizer,
            seeds=config.replica_seeds,
            batch_size=batch_size,
            dtype=config.torch_dtype,
            device=config.device,
        )

    yield Stage(f"Adam, η = {config.adam_lr:g}")
    eps = 1e-8
    method, plain = adam(config.adam_lr, betas=(config.beta1, config.beta2), eps=eps), replica_sharpness()

    def scaled() -> Callable[[Population], dict[str, Tensor]]:
        return replica_sharpness(precondition=lambda now: preconditioner(now, config.beta1, config.beta2, eps))

    preconditioned = scaled()
    run = population(method).train(config.steps, every=every, measure=lambda now: preconditioned(now) | {"plain": plain(now)["sharpness"]})
    noisy = population(method, BATCH).train(config.steps, every=every, measure=scaled())
    edge, without = adam_threshold(config.adam_lr, config.beta1), stability_threshold(config.adam_lr)
    sharp = run.late(run.values["sharpness"])
    name = f"η = {config.adam_lr:g}, β₁ = {config.beta1:g}"
    yield ADAM.check(predicted=edge, measured=sharp, setting=name)
    yield ADAM.control_check(predicted=edge, measured=noisy.late(noisy["sharpness"]), setting=f"{name}, batch {BATCH}")
    yield ADAM.control_check(predicted=without, measured=sharp, setting="against 2/η")
    yield ADAM.control_check(predicted=edge, measured=run.late(run.values["plain"]), setting="λ₁ of the Hessian itself")
    figure = Series("adam", "Adam at an edge of its own", x="step", y="sharpness / edge", claim=ADAM.key)
    lines: tuple[tuple[str, Tensor, Role], ...] = (
        ("preconditioned", run["sharpness"], "measured"),
        (f"preconditioned, batch {BATCH}", noisy["sharpness"], "control"),
        ("not preconditioned", run["plain"], "control"),
    )
    for label, values, role in lines:
        ratio = values[1:] / edge  # before the first step there is no preconditioner
        figure.line(label, run.steps[1:], ratio.mean(1), low=ratio.amin(1), high=ratio.amax(1), role=role)
    yield figure.line("edge of stability", run.steps[1:], torch.ones(len(run.steps) - 1), role="predicted")

    yield Stage(f"SAM, η = {config.sam_lr:g}, ρ = {config.rho:g}")

    def trained(batch_size: int | None) -> tuple[Trajectory, Tensor]:
        """λ₁ along the run, and SAM's edge at the norm that the gradient of all rows has there, (t, replica)."""
        sharpness = replica_sharpness()
        run = population(sam(sgd(config.sam_lr), config.rho), batch_size).train(
            config.steps, every=every, measure=lambda now: sharpness(now) | {"norm": gradient_norms(now)}
        )
        return run, run["norm"].clone().apply_(lambda norm: sam_threshold(config.sam_lr, config.rho, norm))

    run, edges_now = trained(None)
    without = stability_threshold(config.sam_lr)
    name = f"λ₁ / edge, η = {config.sam_lr:g}, ρ = {config.rho:g}"
    yield SAM.check(predicted=1.0, measured=run.late(run["sharpness"] / edges_now), setting=name)
    noisy, edges_there = trained(BATCH)
    yield SAM.control_check(predicted=1.0, measured=noisy.late(noisy["sharpness"] / edges_there), setting=f"{name}, batch {BATCH}")
    yield SAM.control_check(predicted=without, measured=run.late(run["sharpness"]), setting="λ₁ against 2/η")
    figure = Series("sam", "SAM's edge falls as the gradient shrinks", x="step", y="λ₁", claim=SAM.key)
    sharp = run["sharpness"]
    figure.line("λ₁", run.steps, sharp.mean(1), low=sharp.amin(1), high=sharp.amax(1))
    figure.line("edge of SAM", run.steps, edges_now.mean(1), role="predicted")
    figure.line(f"λ₁, batch {BATCH}", noisy.steps, noisy["sharpness"].mean(1), role="control")
    figure.line(f"edge of SAM, batch {BATCH}", noisy.steps, edges_there.mean(1), role="predicted")
    yield figure.line("edge of gradient descent, 2/η", run.steps, torch.full((len(run.steps),), without), role="control")
