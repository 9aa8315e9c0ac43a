"""On separable data an optimizer maximizes the margin in its own geometry.

Once a linear classifier separates the data, an exponential-tailed loss falls only by growing the weights, and where they grow is decided
by the norm in which the optimizer goes downhill: gradient descent reaches the largest ℓ2 margin, sign descent and Adam the largest ℓ∞
margin, greedy coordinate descent the largest ℓ1 margin. With plain steps this takes exponentially long, as ‖w‖ grows like ln t. So the
steepest descents take steps of normalized length, c/√t in units of the data's dual norm, and the law of growth is followed with steps
inversely proportional to the loss, in the time that is their sum: ln t then reaches hundreds within thousands of steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from theorylab.core.claim import AtLeast, Claim, Equals, Finding, Scales
from theorylab.core.config import Config, setting
from theorylab.core.series import Series, Stage
from theorylab.core.source import Source
from theorylab.core.study import study
from theorylab.data.synthetic import separable
from theorylab.learning.optimizers.adam import adam
from theorylab.learning.optimizers.base import Hyper, Optimizer
from theorylab.learning.optimizers.sgd import sgd
from theorylab.learning.optimizers.steepest import greedy_coordinate, normalized_gd, sign_descent
from theorylab.learning.schedule import power_decay, scheduled
from theorylab.linalg.margin import max_margin
from theorylab.theory.implicit_bias import norm_growth_slope

GRADIENT_DESCENT = Claim(
    "implicit_bias/margins/gradient_descent",
    "On separable data normalized gradient descent, the steepest descent in ℓ2, reaches the largest ℓ2 margin.",
    formula=r"\lim_{t\to\infty} \min_i \frac{y_i\langle w_t, x_i\rangle}{\|w_t\|_2} = \max_{\|w\|_2\le 1} \min_i y_i\langle w, x_i\rangle",
    source=Source("Gunasekar et al. 2018", "Theorem 5 (steepest descent, exponential loss)", "arXiv:1802.08246"),
    kind="asymptotic",
    relation=AtLeast(rtol=0.03),
    control="the same runs measured in ℓ1 and ℓ∞",
    reading="Among all classifiers that fit, gradient descent ends at the support vector machine's, although nothing in the loss asks "
    "for it. The statement is about the limit: stopped early, or with data that are not separable, the margin is another.",
)

SIGN_DESCENT = Claim(
    "implicit_bias/margins/sign_descent",
    "On separable data sign descent, the steepest descent in ℓ∞, reaches the largest ℓ∞ margin.",
    formula=r"\lim_{t\to\infty} \min_i \frac{y_i\langle w_t, x_i\rangle}{\|w_t\|_\infty} "
    r"= \max_{\|w\|_\infty\le 1} \min_i y_i\langle w, x_i\rangle",
    source=Source("Gunasekar et al. 2018", "Theorem 5 (steepest descent, exponential loss)", "arXiv:1802.08246"),
    kind="asymptotic",
    relation=AtLeast(rtol=0.02),
    control="the same runs measured in ℓ1 and ℓ2",
    reading="The optimizer, not only the loss, chooses among the classifiers that fit: steps that move every coordinate alike end in "
    "weights of nearly equal size. A step size that does not decrease, or a noisy gradient, is outside the theorem.",
)

GREEDY_COORDINATE = Claim(
    "implicit_bias/margins/greedy_coordinate",
    "On separable data greedy coordinate descent, the steepest descent in ℓ1, reaches the largest ℓ1 margin.",
    formula=r"\lim_{t\to\infty} \min_i \frac{y_i\langle w_t, x_i\rangle}{\|w_t\|_1} = \max_{\|w\|_1\le 1} \min_i y_i\langle w, x_i\rangle",
    source=Source("Gunasekar et al. 2018", "Theorem 5 (steepest descent, exponential loss)", "arXiv:1802.08246"),
    kind="asymptotic",
    relation=AtLeast(rtol=0.08),
    control="the same runs measured in ℓ2 and ℓ∞",
    reading="Moving one coordinate at a time, as boosting does, ends in sparse weights: the hidden regularizer is ℓ1. Of the three it "
    "comes closest most slowly, so a run of a few hundred steps shows a margin well below the largest.",
)

ADAM = Claim(
    "implicit_bias/margins/adam",
    "On separable data Adam without ε reaches the largest ℓ∞ margin.",
    formula=r"\lim_{t\to\infty} \min_i \frac{y_i\langle w_t, x_i\rangle}{\|w_t\|_\infty} "
    r"= \max_{\|w\|_\infty\le 1} \min_i y_i\langle w, x_i\rangle",
    source=Source("Zhang, Zou and Cao 2024", "the main theorem on the ℓ∞ margin (full batch, ε = 0, decaying steps)", "arXiv:2406.10650"),
    kind="asymptotic",
    relation=AtLeast(rtol=0.05),
    control="the same runs measured in ℓ2 and ℓ1",
    reading="Adam inherits the bias of sign descent, not of gradient descent, although both may fit equally well. With ε > 0 the gradients "
    "eventually fall below ε and Adam turns into gradient descent with momentum; with small batches the bias may differ as well.",
)

NORM_GROWTH = Claim(
    "implicit_bias/margins/norm_growth",
    "On separable data the norm of gradient descent's weights grows by 1/γ for every unit of ln t, where γ is the largest ℓ2 margin.",
    formula=r"\frac{d\|w_t\|_2}{d\ln t} \to \frac{1}{\gamma_2}",
    source=Source("Soudry et al. 2018", "Theorem 3", "arXiv:1710.10345"),
    kind="asymptotic",
    relation=Equals(rtol=0.02),
    control="one flipped label, which makes the data inseparable: the norm converges",
    reading="The loss falls as 1/t while the weights grow only logarithmically, so training longer changes the confidence and hardly the "
    "decision. With constant steps the slope is still several per cent off after a hundred thousand; inseparable data stop the growth.",
)

DIRECTION_RATE = Claim(
    "implicit_bias/margins/direction_rate",
    "The angle between gradient descent's weights and the support vector machine closes as 1/ln t.",
    formula=r"\angle(w_t, \hat w) = \Theta(1/\ln t)",
    source=Source("Soudry et al. 2018", "Theorem 3 (bounded residual) and the convergence rates that follow from it", "arXiv:1710.10345"),
    kind="asymptotic",
    relation=Scales(-1.0, 0.2),
    control="one flipped label: the direction settles elsewhere",
    reading="The limit direction is that of the support vector machine, approached exponentially slowly: ten times nearer takes the tenth "
    "power of the time. A row that is nearly a support vector delays the law until ln t exceeds the inverse of its relative gap.",
)


NORMS = {1: "ℓ1", 2: "ℓ2", math.inf: "ℓ∞"}
DUAL = {1: math.inf, 2: 2, math.inf: 1}


@dataclass(frozen=True, kw_only=True)
class MarginsConfig(Config):
    """Gaussian rows on both sides of a random hyperplane through 0."""

    n: int = setting(15, "rows", low=2)
    d: int = setting(30, "inputs; more than rows, so that the three margins have different classifiers", low=2)
    steps: int = setting(14_000, "steps of each optimizer", low=100)
    step: float = setting(2.0, "c in η_t = c / (max ‖x‖ √t), the norm dual to the optimizer's", low=0.01, high=10.0)
    # Adam's second moment falls by β₂ a step at most, so the risk cannot fall faster than √β₂ a step for long: with the usual 0.999
    # twenty thousand steps end at 0.8 of the largest margin, on the way up. The theorem leaves β₂ free.
    beta2: float = setting(0.95, "Adam's β₂", low=0.9, high=0.9999)
    rows_2d: int = setting(40, "rows of the planar problem of the growth law", low=4)
    log_time: float = setting(200.0, "ln t up to which the growth law is followed", low=100.0)


class Method(NamedTuple):
    """An optimizer and the geometry in which it is said to maximize the margin."""

    name: str
    make: Callable[[Hyper], Optimizer]
    p: float
    claim: Claim


def methods(config: MarginsConfig) -> list[Method]:
    """The four optimizers."""
    return [
        Method("gradient descent", normalized_gd, 2, GRADIENT_DESCENT),
        Method("sign descent", sign_descent, math.inf, SIGN_DESCENT),
        Method("greedy coordinate descent", greedy_coordinate, 1, GREEDY_COORDINATE),
        Method("Adam", lambda lr: adam(lr=lr, betas=(0.9, config.beta2), eps=0.0), math.inf, ADAM),
    ]


def log_risk_gradient(z: Tensor, w: Tensor) -> Tensor:
    """Gradient of ln Σ exp(−z·w), the log of the exponential risk, which does not underflow; z (replica, n, d), w (replica, d)."""
    weights = torch.softmax(-(z @ w.unsqueeze(2)).squeeze(2), dim=1)  # (replica, n)
    return -(z.mT @ weights.unsqueeze(2)).squeeze(2)


def risk_gradient(z: Tensor, w: Tensor) -> Tensor:
    """Gradient of the exponential risk itself, for an optimizer whose memory makes the scale matter."""
    return -(z.mT @ torch.exp(-(z @ w.unsqueeze(2)))).squeeze(2)


def margins(z: Tensor, w: Tensor, p: float) -> Tensor:
    """Smallest signed margin of each replica, per unit of ‖w‖_p; (replica,)."""
    return (z @ w.unsqueeze(2)).squeeze(2).amin(1) / torch.linalg.vector_norm(w, p, dim=1)


def train(method: Method, z: Tensor, config: MarginsConfig, record: list[int]) -> list[Tensor]:
    """Weights (replica, d) after each number of steps in ``record``, from 0."""
    lr = config.step / torch.linalg.vector_norm(z, DUAL[method.p], dim=2).amax(1)
    optimizer = scheduled(method.make, lr, power_decay(0.5))
    gradient = risk_gradient if method.claim is ADAM else log_risk_gradient
    params = {"w": z.new_zeros(z.shape[0], z.shape[2])}
    state, kept, wanted = optimizer.init(params), [], set(record)
    for t in range(1, config.steps + 1):
        params, state = optimizer.update({"w": gradient(z, params["w"])}, state, params)
        if t in wanted:
            kept.append(params["w"])
    return kept


def planar(config: MarginsConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Signed rows (replica, n, 2), their best classifier (replica, 2) and its margin (replica,).

    Rows that are no support vectors are pushed half a margin further out. That leaves the best classifier as it is, and no row is nearly
    a support vector: such a row acts until ln t exceeds the inverse of the relative gap, before which the limit law is not to be seen.
    """
    rows, directions, sizes = [], [], []
    for seed in config.replica_seeds:
        x, y = separable(config.rows_2d, 2, margin=1.0, seed=seed, dtype=config.torch_dtype)
        z = x * y[:, None]
        margin, w = max_margin(z, 2)
        supports = z @ w <= margin * (1 + 1e-6)
        rows.append(torch.where(supports[:, None], z, z + 0.5 * margin * w))
        directions.append(w)
        sizes.append(margin)
    signed = torch.stack(rows).to(config.device)
    return signed, torch.stack(directions).to(config.device), signed.new_tensor(sizes)


def flip_middle(z: Tensor, direction: Tensor) -> Tensor:
    """The rows with the sign of the one of median angle reversed: rows on either side of it contradict it, so none separates them."""
    across = direction[:, :1] * z[:, :, 1] - direction[:, 1:] * z[:, :, 0]
    angle = torch.atan2(across, (z @ direction.unsqueeze(2)).squeeze(2))
    signs = torch.ones_like(angle).scatter_(1, angle.argsort(1)[:, z.shape[1] // 2, None], -1.0)
    return z * signs.unsqueeze(2)


class Growth(NamedTuple):
    """How the weights of gradient descent grow: each (step, replica)."""

    log_time: np.ndarray
    norm: np.ndarray
    angle: np.ndarray


def grow(z: Tensor, direction: Tensor, *, until: float = math.inf, steps: int | None = None) -> Growth:
    """Gradient descent with steps c/risk, in the time that is their sum, for some steps or until ln t passes ``until`` in every replica.

    A step c/risk along the risk's gradient is a step c along that of its logarithm; c is one over the largest squared row norm, at which
    the logarithm of the risk descends.
    """
    c = 1 / z.square().sum(2).amax(1)
    gd = sgd(lr=c)
    params, state = {"w": torch.zeros_like(direction)}, {}
    time, times, weights = torch.full_like(c, -math.inf), [], []
    while len(times) != steps and not bool((time > until).all()):
        log_risk = torch.logsumexp(-(z @ params["w"].unsqueeze(2)).squeeze(2), dim=1) - math.log(z.shape[1])
        time = torch.logaddexp(time, c.log() - log_risk)
        params, state = gd.update({"w": log_risk_gradient(z, params["w"])}, state, params)
        times.append(time)
        weights.append(params["w"])
    w = torch.stack(weights)  # (step, replica, d)
    along = (w * direction).sum(2)
    across = (w - along.unsqueeze(2) * direction).norm(dim=2)
    return Growth(*(v.cpu().double().numpy() for v in (torch.stack(times), w.norm(dim=2), torch.atan2(across, along))))


def slopes(x: np.ndarray, y: np.ndarray, inside: np.ndarray) -> list[float]:
    """Least-squares slope of each replica's y over x where ``inside``; all (step, replica)."""
    return [float(np.polyfit(x[keep, k], y[keep, k], 1)[0]) for k, keep in enumerate(inside.T)]


@study(
    "implicit_bias/margins",
    claims=[GRADIENT_DESCENT, SIGN_DESCENT, GREEDY_COORDINATE, ADAM, NORM_GROWTH, DIRECTION_RATE],
    tiny=MarginsConfig(n=5, d=20, steps=2000, step=1.0, beta2=0.9, rows_2d=10),
    small=MarginsConfig(),
    large=MarginsConfig(seeds=32, n=50, d=100, steps=400_000, rows_2d=200, log_time=2000.0),
)
def margin_study(config: MarginsConfig) -> Iterator[Finding | Series | Stage]:
    """Compare each optimizer's margins with the optimum in every norm, then follow the growth of the weights in the plane."""
    data = [separable(config.n, config.d, seed=seed, dtype=config.torch_dtype) for seed in config.replica_seeds]
    z = torch.stack([x * y[:, None] for x, y in data]).to(config.device)
    best = {p: z.new_tensor([max_margin(x * y[:, None], p)[0] for x, y in data]) for p in NORMS}
    record = sorted({round(t) for t in np.geomspace(10, config.steps, 30)})

    for method in methods(config):
        yield Stage(method.name)
        runs = train(method, z, config, record)
        key, title = method.claim.key, f"The margin of {method.name} in three norms"
        figure = Series(key.rpartition("/")[2], title, x="step", y="margin / largest margin", x_scale="log", claim=key)
        for p, norm in NORMS.items():
            check = method.claim.check if p == method.p else method.claim.control_check
            ratio = torch.stack([margins(z, w, p) / best[p] for w in runs])  # (time, replica)
            yield check(predicted=1.0, measured=ratio[-1], setting=f"{norm} margin / largest {norm} margin")
            role = "measured" if p == method.p else "control"
            figure.line(norm, record, ratio.mean(1), low=ratio.amin(1), high=ratio.amax(1), role=role)
        yield figure.line("largest margin", [record[0], record[-1]], [1.0, 1.0], role="predicted")

    yield from growth_law(config)


def growth_law(config: MarginsConfig) -> Iterator[Finding | Series | Stage]:
    """Slope of ‖w‖ and exponent of the angle, on separable planar data and with the label of a middle row flipped."""
    yield Stage("growth of the norm")
    z, direction, margin = planar(config)
    predicted = np.array([norm_growth_slope(float(size)) for size in margin])
    run = grow(z, direction, until=config.log_time)
    early, late = (run.log_time > 40) & (run.log_time < 80), run.log_time > 80
    growth = np.array(slopes(run.log_time, run.norm, early))
    yield NORM_GROWTH.check(predicted=1.0, measured=growth / predicted, setting="slope × γ, ln t from 40 to 80")
    angles = slopes(np.log(run.log_time.clip(1e-9)), np.log(run.angle), late)
    yield DIRECTION_RATE.check(measured=angles, setting=f"ln t from 80 to {config.log_time:g}")

    yield Stage("one flipped label")
    # the risk no longer vanishes, so ln t is the logarithm of the step count, and the second half of the steps is what there is of late
    stuck = grow(flip_middle(z, direction), direction, steps=len(run.log_time))
    last = stuck.log_time > stuck.log_time[len(stuck.log_time) // 2]
    growth = np.array(slopes(stuck.log_time, stuck.norm, last))
    yield NORM_GROWTH.control_check(predicted=1.0, measured=growth / predicted, setting="slope × γ, one flipped label")
    angles = slopes(np.log(stuck.log_time.clip(1e-9)), np.log(stuck.angle), last)
    yield DIRECTION_RATE.control_check(measured=angles, setting="one flipped label")

    norms = Series("growth", "The norm grows with ln t", x="ln t", y="‖w‖₂ [1/unit of x]", claim=NORM_GROWTH.key)
    angle = Series("angle", "The direction closes in on the support vector machine", x="ln t", y="angle [rad]", claim=DIRECTION_RATE.key)
    angle.x_scale = angle.y_scale = "log"
    norms.x_scale = norms.y_scale = "log"
    for name, grown in (("gradient descent", run), ("one flipped label", stuck)):
        role = "measured" if grown is run else "control"
        thin = np.unique(np.geomspace(1, len(grown.log_time), 200).astype(int)) - 1
        thin = thin[grown.log_time[thin, 0] > 1]
        norms.line(name, grown.log_time[thin, 0], grown.norm[thin, 0], role=role)
        angle.line(name, grown.log_time[thin, 0], grown.angle[thin, 0], role=role)
    times = np.geomspace(1, config.log_time, 50)
    yield norms.line("ln t / γ", times, predicted[0] * times, role="predicted")
    yield angle.line("∝ 1/ln t", times, run.angle[-1, 0] * run.log_time[-1, 0] / times, role="predicted")
