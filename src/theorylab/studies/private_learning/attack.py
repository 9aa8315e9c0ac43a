"""A guarantee of differential privacy caps every attack on membership, and without one a good attack finds out who was in the data.

An (ε, δ)-private mechanism caps the true positive rate at e^ε times the false positive rate, plus δ, and hence the accuracy at even odds.
Randomized response attains the cap. A network trained by DP-SGD stays far below: its accountant assumes an attacker who sees every noisy
sum, and this one sees the outputs of the last network. Both are attacked at their most exposed rows, those with wrong labels. Without noise
the same training, its gradients clipped as before, breaks the cap.

Among attacks, comparing a row's score with its own scores in networks trained with it and without it (LiRA) beats a threshold on the loss,
above all where few may be accused wrongly: the loss of a row says how hard it is first, and whether it was learnt second.

The size of networks, steps and step sizes were chosen at base seeds from 5000; so was the number of rows attacked, raised to a hundred when
rates of one network turned out too coarse with forty. A first version compared the true positive rate at a false positive rate of 5 %, over
all networks, with its cap; single networks whose scores are all large left it open at some seeds, 0 among them, and both rates are now
compared network by network. At ε = 1 and a hundred rows the private networks are hardly
better than chance at their task: the study is about what they tell, not about what they can do.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from theorylab.core.claim import AtMost, Claim, Finding, Orders
from theorylab.core.config import Config, setting
from theorylab.core.estimate import Estimate
from theorylab.core.seeds import derived_seed
from theorylab.core.series import Series, Stage
from theorylab.core.source import Source
from theorylab.core.study import study
from theorylab.data.digits import digits
from theorylab.data.labels import flip_labels
from theorylab.instruments.membership import auc, lira, logit_confidence
from theorylab.learning.optimizers.adam import adam
from theorylab.learning.optimizers.sgd import sgd
from theorylab.learning.private_population import dp_sgd_population
from theorylab.learning.shadow_models import random_halves, shadow_models
from theorylab.models.mlp import mlp
from theorylab.theory.amplification import true_positive_rate_bound
from theorylab.theory.privacy import calibrate

BOUND = Claim(
    "private_learning/attack/bound",
    "On an (ε, δ)-private mechanism no attack has a true positive rate above e^ε times its false positive rate plus δ, nor at even odds an "
    "accuracy above (e^ε + δ)/(1 + e^ε), which randomized response attains.",
    formula=r"\mathrm{TPR} \le e^{\varepsilon}\,\mathrm{FPR} + \delta, \qquad "
    r"\tfrac12(\mathrm{TPR} + 1 - \mathrm{FPR}) \le \frac{e^{\varepsilon} + \delta}{1 + e^{\varepsilon}}",
    source=Source(
        "Kairouz, Oh and Viswanath 2015",
        "Section 2 (the region of error rates); the hypothesis test is Wasserman and Zhou 2010, doi:10.1198/jasa.2009.tm08651",
        "arXiv:1311.0776",
    ),
    kind="statistical",
    relation=AtMost(atol=0.01),
    control="the mechanism run at 2ε; the same training without noise",
    reading="Privacy is a statement about a test: whoever wants to know if a row was in the data must err often. The cap is for the worst "
    "row and the best attack; that an attack stays below it proves nothing, and one that goes above it proves a mistake.",
)

LIRA_BEATS_LOSS = Claim(
    "private_learning/attack/lira_beats_loss",
    "Where one non-member of a hundred may be accused, LiRA recognizes more members than a threshold on the loss.",
    formula=r"\mathrm{TPR}_{\mathrm{LiRA}}(0.01) > \mathrm{TPR}_{\mathrm{loss}}(0.01)",
    source=Source("Carlini et al. 2022", "the evaluation at low false positive rates", "arXiv:2112.03570"),
    kind="statistical",
    relation=Orders(gap=0.03),
    control="the record of who was in permuted over models, for the attacker and for the score",
    reading="A small loss may mean an easy row: only against the row's own history is it evidence. The advantage is at low false positive "
    "rates, where an accusation means something, and it costs the training of many more networks on data like the victim's.",
)


@dataclass(frozen=True, kw_only=True)
class AttackConfig(Config):
    """One data set and its shadow networks; the base seed draws all of them, and every network attacked is a replica."""

    dtype: Literal["float64", "float32"] = setting("float32", "floating-point type; these claims are not exact")
    rows: int = setting(500, "digits, each in half of the networks", low=20, high=1700)
    wrong: int = setting(50, "of these with a wrong label", low=2)
    models: int = setting(128, "networks, even", low=8)
    steps: int = setting(400, "steps of Adam, batches of 32", low=1)
    private_rows: int = setting(200, "digits of the private networks", low=20, high=1700)
    private_wrong: int = setting(100, "of these with a wrong label: the rows attacked", low=4)
    private_models: int = setting(64, "private networks, even", low=8)
    private_steps: int = setting(100, "noisy sums of DP-SGD", low=1)
    rate: float = setting(0.2, "chance of a row to be in a batch", low=0.01, high=1.0)
    epsilon: float = setting(1.0, "ε of the guarantee", low=0.1, high=3.0)
    delta: float = setting(1e-5, "δ of the guarantee", low=1e-12, high=0.1)
    draws: int = setting(100_000, "draws of randomized response", low=1000)


def accuracy_bound(epsilon: float, delta: float) -> float:
    """The best accuracy at even odds: half of TPR + 1 − FPR at the corner of the region of error rates."""
    corner = (1 - delta) / (1 + math.exp(epsilon))
    return 0.5 * (true_positive_rate_bound(epsilon, delta, corner) + 1 - corner)


def randomized_response(epsilon: float, draws: int, seed: int) -> Estimate:
    """How often the answer is the truth, if it is given with the odds e^ε : 1."""
    rng = np.random.default_rng(seed)
    truth = rng.random(draws) < 0.5
    answer = np.where(rng.random(draws) < math.exp(epsilon) / (1 + math.exp(epsilon)), truth, ~truth)
    return Estimate.over((answer == truth).astype(float))


def rates_at(fpr: float, scores: Tensor, membership: Tensor) -> tuple[Tensor, Tensor]:
    """True and false positive rates of each model at the threshold that a share ``fpr`` of all non-members exceeds, (models,) each."""
    above = scores > scores[~membership].quantile(1 - fpr, interpolation="higher")
    return tuple((above & side).double().sum(1) / side.double().sum(1) for side in (membership, ~membership))  # type: ignore[return-value]


def curve(scores: Tensor, membership: Tensor, at: Tensor) -> Tensor:
    """True positive rates at the false positive rates ``at``."""
    return torch.stack([((scores > t) & membership).double().sum() / membership.sum() for t in scores[~membership].quantile(1 - at)])


@study(
    "private_learning/attack",
    claims=[BOUND, LIRA_BEATS_LOSS],
    tiny=AttackConfig(rows=200, wrong=20, models=16, steps=150, private_rows=60, private_wrong=30, private_models=20, private_steps=60),
    small=AttackConfig(),
    large=AttackConfig(
        rows=1600, wrong=160, models=512, steps=2000, private_rows=1600, private_wrong=800, private_models=256, private_steps=1000
    ),
)
def attack(config: AttackConfig) -> Iterator[Finding | Series | Stage]:
    """Randomized response, then private networks with and without their noise, then two attacks on networks without any privacy."""
    yield Stage("randomized response")
    epsilon, delta = config.epsilon, config.delta
    best = accuracy_bound(epsilon, 0.0)
    answers = randomized_response(epsilon, config.draws, config.seed)
    yield BOUND.check(predicted=best, measured=answers, setting=f"randomized response, ε = {epsilon:g}, accuracy")
    lie = randomized_response(2 * epsilon, config.draws, config.seed)
    yield BOUND.control_check(predicted=best, measured=lie, setting="randomized response at 2ε, accuracy")
    yield Stage("private networks")
    yield from check_private(config, epsilon, delta)
    yield Stage("LiRA against the loss")
    yield from check_lira(config)


def check_private(config: AttackConfig, epsilon: float, delta: float) -> Iterator[Finding | Series]:
    """LiRA on the mislabelled rows of DP-SGD networks, with the noise that ε asks for and with none."""
    x, y = digits(config.private_rows, seed=config.seed, dtype=config.torch_dtype)
    flipped = flip_labels(y, config.private_wrong / len(y), seed=config.seed)
    y, wrong = flipped.y, flipped.wrong
    membership = random_halves(config.private_models, len(x), config.seed)
    sigma = calibrate(epsilon, delta, q=config.rate, steps=config.private_steps)
    at = torch.logspace(-2, 0, 25, dtype=torch.float64).clamp(max=1 - 1e-9)
    figure = Series("bound", "What ε leaves to an attack", x="false positive rate", y="true positive rate", claim=BOUND.key, x_scale="log")
    for noise, check in ((sigma, BOUND.check), (0.0, BOUND.control_check)):
        nets = dp_sgd_population(
            partial(mlp, [64, 32, 10]),
            nn.functional.cross_entropy,
            (x, y),
            optimizer=sgd(0.5),
            seeds=range(config.seed, config.seed + config.private_models),
            q=config.rate,
            clip=1.0,
            sigma=noise,
            steps=config.private_steps,
            members=membership,
            dtype=config.torch_dtype,
        )
        scores = lira(logit_confidence(nets.outputs(x).double(), y), membership, variance="pooled")[:, wrong]
        inside = membership[:, wrong]
        right = ((scores > 0) == inside).double()
        # at even odds: the mean of both sides' shares, so that a network with few members among the rows attacked counts as any other
        share = [(right * side).sum(1) / side.sum(1) for side in (inside, ~inside)]
        name = f"DP-SGD, σ = {noise:.3g}"
        yield check(predicted=accuracy_bound(epsilon, delta), measured=0.5 * (share[0] + share[1]), setting=f"{name}, accuracy")
        # network by network, since one whose scores are all large has many true and many false positives
        true, false = rates_at(0.05, scores, inside)
        excess = true - math.exp(epsilon) * false
        note = f"true positive rate {float(true.mean()):.3f}, false positive rate {float(false.mean()):.3f}"
        yield check(predicted=delta, measured=excess, setting=f"{name}, TPR − e^ε FPR", note=note)
        figure.line(name, at, curve(scores, inside, at), role="measured" if noise else "control")
    caps = [true_positive_rate_bound(epsilon, delta, float(f)) for f in at]
    yield figure.line(f"the cap, ε = {epsilon:g}", at, caps, role="predicted")


def check_lira(config: AttackConfig) -> Iterator[Finding | Series]:
    """True positive rates of both attacks at the rows with right labels, and with permuted membership."""
    x, y = digits(config.rows, seed=config.seed, dtype=config.torch_dtype)
    flipped = flip_labels(y, config.wrong / len(y), seed=config.seed)
    y, wrong = flipped.y, flipped.wrong
    shadows = shadow_models(
        partial(mlp, [64, 32, 10]),
        nn.functional.cross_entropy,
        (x, y),
        optimizer=adam(0.01),
        models=config.models,
        steps=config.steps,
        seed=config.seed,
        batch_size=32,
        progress=False,
        dtype=config.torch_dtype,
    )
    logits = shadows.outputs(x).double()
    confidence = logit_confidence(logits, y)
    minus_loss = torch.nn.functional.logsigmoid(confidence)  # log p of the label, since the confidence is its logit
    permuted = random_halves(config.models, len(x), derived_seed(config.seed, "permuted"))
    at = torch.logspace(-3, 0, 31, dtype=torch.float64).clamp(max=1 - 1e-9)
    figure = Series("lira", "Two attacks on the same networks", x="false positive rate", y="true positive rate", claim=LIRA_BEATS_LOSS.key)
    figure.x_scale = figure.y_scale = "log"
    for inside, check in ((shadows.membership, LIRA_BEATS_LOSS.check), (permuted, LIRA_BEATS_LOSS.control_check)):
        true = inside is shadows.membership
        ratio, clean = lira(confidence, inside)[:, ~wrong], inside[:, ~wrong]
        plain = minus_loss[:, ~wrong]
        areas = [auc(s[clean], s[~clean]).value for s in (ratio, plain)]
        yield check(
            measured=rates_at(0.01, ratio, clean)[0] - rates_at(0.01, plain, clean)[0],
            setting="TPR at 1 % FPR, rows with right labels" if true else "membership permuted",
            note=f"area under the curve {areas[0]:.3f} by LiRA, {areas[1]:.3f} by the loss",
        )
        if true:
            figure.line("LiRA", at, curve(ratio, clean, at).clamp(min=1e-4)).line("loss", at, curve(plain, clean, at).clamp(min=1e-4))
        else:
            figure.line("LiRA, membership permuted", at, curve(ratio, clean, at).clamp(min=1e-4), role="control")
    yield figure.line("by chance", at, at, role="predicted")
