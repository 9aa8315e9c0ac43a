"""Adam without memory is sign descent; with a short memory it can go uphill; with decoupled weight decay it solves a problem in a box.

Three facts on what Adam minimizes. Reddi's stream of linear losses rewards −1, but Adam's normalization shrinks the one informative
gradient in three, and the iterate is driven to +1; keeping the largest second moment repairs it. Decoupled weight decay is not a penalty:
the limit of AdamW minimizes the loss itself, over the box |xᵢ| ≤ 1/λ, while decay inside the gradient gives ridge regression.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from theorylab.core.claim import Claim, Equals, Finding
from theorylab.core.config import Config, setting
from theorylab.core.seeds import derived_seed
from theorylab.core.series import Series, Stage
from theorylab.core.source import Source
from theorylab.core.study import study
from theorylab.learning.optimizers.adam import adam
from theorylab.learning.optimizers.base import Optimizer
from theorylab.learning.optimizers.steepest import sign_descent
from theorylab.learning.schedule import power_decay, scheduled, warmup_stable_decay
from theorylab.theory.optimizers import adamw_fixed_point, reddi_second_moment, ridge_minimizer

SIGN_LIMIT = Claim(
    "optimizers/adaptive/sign_limit",
    "With β₁ = β₂ = 0 and ε = 0 Adam is sign descent.",
    formula=r"\theta_{t+1} = \theta_t - \eta\, g_t / \sqrt{g_t^2} = \theta_t - \eta\,\mathrm{sign}(g_t)",
    source=Source("Kingma and Ba 2015", "Algorithm 1, with both averages switched off", "arXiv:1412.6980"),
    kind="identity",
    relation=Equals(atol=1e-12),
    control="β₂ = 0.9",
    reading="Adam's scale invariance is that of the sign. What distinguishes it from sign descent is memory alone: averages over the past, "
    "which make the step small where gradients change their sign. The tolerance is the rounding of a hundred steps.",
)

REDDI = Claim(
    "optimizers/adaptive/reddi_nonconvergence",
    "On losses Cx, −x, −x in turns over [−1, 1], C = 3, whose mean is least at −1, Adam with β₁ = 0, β₂ = 1/(1+C²) and steps ∝ 1/√t goes "
    "to +1; AMSGrad goes to −1.",
    formula=r"f_t(x) = \begin{cases} Cx & t \equiv 1 \pmod 3\\ -x & \text{otherwise}\end{cases}, \qquad x_t^{\text{Adam}} \to +1",
    source=Source("Reddi et al. 2018", "Theorem 1 and Section 3", "arXiv:1904.09237"),
    kind="asymptotic",
    relation=Equals(atol=0.01),
    control="Adam with its usual β₂ = 0.999, and AMSGrad, against +1",
    reading="The large gradient comes once in three steps and is divided by its own size; the two small ones, after it is half forgotten, "
    "are not. A long memory (β₂ near one) hides the effect at a given C, and for every β₂ there is a C that brings it back.",
)

BOX = Claim(
    "optimizers/adaptive/decoupled_decay_box",
    "With a decaying step AdamW converges, on a separable quadratic, to its minimizer clipped to |xᵢ| ≤ 1/λ.",
    formula=r"x_\infty = \arg\min_{\|x\|_\infty \le 1/\lambda} f(x) = \mathrm{clip}(x^*, \pm 1/\lambda)",
    source=Source("Xie and Li 2024", "Theorem 1.1", "arXiv:2404.04454"),
    kind="asymptotic",
    relation=Equals(atol=1e-3),
    control="decay inside the gradient, whose limit is the ridge solution",
    reading="Decoupled decay leaves alone every coordinate that fits the box, and stops the others at its wall, however deep their minimum "
    "lies. It is a constraint, not a penalty: the loss's scale plays no part. A minimum exactly at the wall is approached as slowly as the "
    "step decays. With minibatch noise the box is only where the iterates stay, not what they reach.",
)


@dataclass(frozen=True, kw_only=True)
class AdaptiveConfig(Config):
    """Each seed is one start; losses are deterministic but for the gradients of the sign limit."""

    stream: int = setting(15_000, "rounds of the stream of losses, a multiple of three", low=300)
    steps: int = setting(15_000, "steps of AdamW", low=1000)
    lr: float = setting(0.04, "AdamW's first step size", low=1e-4)
    decay: float = setting(0.1, "weight decay λ", low=1e-3)


SLOPE = 3.0
USUAL_BETA2 = 0.999
MINIMIZER, CURVATURE = (30.0, -30.0, 3.0, -3.0, 15.0), (1.0, 2.0, 0.5, 1.0, 0.1)


def starts(config: AdaptiveConfig, size: int) -> Tensor:
    """One uniform start in [−1, 1] a seed, (replica, size)."""
    draws = [torch.rand(size, generator=torch.Generator().manual_seed(s), dtype=config.torch_dtype) for s in config.replica_seeds]
    return (2 * torch.stack(draws) - 1).to(config.device)


def follow(method: Optimizer, x: Tensor, slope: Callable[[Tensor, int], Tensor], steps: int, every: int = 0) -> tuple[Tensor, Tensor]:
    """The last point, and the path at every ``every`` steps, of ``method`` on slopes that may depend on the time."""
    params, state, path = {"x": x}, method.init({"x": x}), [x]
    for t in range(steps):
        params, state = method.update({"x": slope(params["x"], t)}, state, params)
        if every and (t + 1) % every == 0:
            path.append(params["x"])
    return params["x"], torch.stack(path)


def in_the_interval(method: Optimizer) -> Optimizer:
    """The method with its parameters projected on [−1, 1] after every step."""

    def update(grads, state, params):  # type: ignore[no-untyped-def]
        params, state = method.update(grads, state, params)
        return {k: p.clamp(-1, 1) for k, p in params.items()}, state

    return Optimizer(f"projected {method.name}", method.init, update)


def reddi_runs(config: AdaptiveConfig, beta2s: tuple[float, ...], *, amsgrad: bool = False) -> list[tuple[Tensor, Tensor]]:
    """For each β₂ the rounds (time,) and the points there (time, replica), to the last; all in one run, from the same starts."""
    start, every = starts(config, 1), config.stream // 300 // 3 * 3 or 3
    each = torch.tensor(beta2s, dtype=start.dtype, device=start.device).repeat_interleave(config.seeds)
    method = scheduled(lambda lr: adam(lr, betas=(0.0, each), eps=0.0, amsgrad=amsgrad), 0.5, power_decay(0.5))
    last, path = follow(
        in_the_interval(method),
        start.repeat(len(beta2s), 1),
        lambda x, t: torch.full_like(x, SLOPE if t % 3 == 0 else -1.0),
        config.stream,
        every,
    )
    rounds = torch.cat([every * torch.arange(len(path)), torch.tensor([config.stream])])
    return [(rounds, points) for points in torch.cat([path[:, :, 0], last.T]).split(config.seeds, dim=1)]


@study(
    "optimizers/adaptive",
    claims=[SIGN_LIMIT, REDDI, BOX],
    tiny=AdaptiveConfig(seeds=4, stream=6000, steps=4000, lr=0.1),
    small=AdaptiveConfig(seeds=16),
    large=AdaptiveConfig(seeds=64, stream=300_000, steps=300_000),
)
def adaptive(config: AdaptiveConfig) -> Iterator[Finding | Series | Stage]:
    """Run Adam, sign descent, AMSGrad and AdamW side by side."""
    yield Stage("sign limit")
    start, noise = starts(config, 20), torch.Generator().manual_seed(derived_seed(config.seed, "shocks"))
    shocks = torch.randn(100, config.seeds, 20, generator=noise, dtype=config.torch_dtype).to(config.device)
    reference, _ = follow(sign_descent(0.01), start, lambda x, t: x + shocks[t], 100)
    for beta, check in ((0.0, SIGN_LIMIT.check), (0.9, SIGN_LIMIT.control_check)):
        moved, _ = follow(adam(0.01, betas=(0.0, beta), eps=0.0), start, lambda x, t: x + shocks[t], 100)
        yield check(predicted=0.0, measured=(moved - reference).abs().amax(1), setting=f"β₂ = {beta:g}")

    yield Stage("Reddi's stream")
    short = reddi_second_moment(SLOPE)
    adams, grown = reddi_runs(config, (short, USUAL_BETA2)), reddi_runs(config, (short,), amsgrad=True)
    runs = dict(zip(("Adam", f"Adam, β₂ = {USUAL_BETA2:g}", "AMSGrad"), (*adams, *grown), strict=True))
    figure = Series("reddi", "Adam climbs where AMSGrad descends", x="round", y="x", claim=REDDI.key)
    for name, (rounds, path) in runs.items():
        role = "control" if name not in ("Adam", "AMSGrad") else "measured"
        figure.line(name, rounds, path.mean(1), low=path.amin(1), high=path.amax(1), role=role)
    for name, (_, path) in runs.items():
        check = REDDI.check if name == "Adam" else REDDI.control_check
        yield check(predicted=1.0, measured=path[-1], setting=f"{name} against +1")
    yield REDDI.check(predicted=-1.0, measured=grown[0][1][-1], setting="AMSGrad against −1")
    for name, end in (("Adam's end", 1.0), ("AMSGrad's end", -1.0)):
        figure.line(f"{name}: {end:+g}".replace("-", "−"), [1, config.stream], [end, end], role="predicted")
    yield figure

    yield Stage("weight decay")
    target, curvature = (torch.tensor(v, dtype=config.torch_dtype, device=config.device) for v in (MINIMIZER, CURVATURE))
    box = adamw_fixed_point(target.cpu().numpy(), config.decay)
    schedule, start = warmup_stable_decay(config.steps, 0, config.steps), starts(config, len(MINIMIZER))
    limits = {}
    for decoupled in (True, False):
        make = lambda lr, d=decoupled: adam(lr, betas=(0.9, 0.95), weight_decay=config.decay, decoupled=d)  # noqa: E731
        limits[decoupled], _ = follow(scheduled(make, config.lr, schedule), start, lambda x, t: curvature * (x - target), config.steps)
    for i, (at, wall) in enumerate(zip(MINIMIZER, box, strict=True)):
        yield BOX.check(predicted=float(wall), measured=limits[True][:, i], setting=f"x* = {at:g}")
    yield BOX.control_check(predicted=float(box[0]), measured=limits[False][:, 0], setting=f"inside the gradient, x* = {MINIMIZER[0]:g}")
    bars = Series("box", "Limits under weight decay, coordinate by coordinate", x="coordinate", y="limit", claim=BOX.key)
    place = torch.arange(1, len(MINIMIZER) + 1)
    bars.line("AdamW", place, limits[True].mean(0), mark="points").line("clip(x*, ±1/λ)", place, box, role="predicted")
    ridge = ridge_minimizer(target.cpu().numpy(), curvature.cpu().numpy(), config.decay)
    bars.line("decay in the gradient", place, limits[False].mean(0), role="control", mark="points")
    yield bars.line("ridge", place, ridge, role="predicted")
