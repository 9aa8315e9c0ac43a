"""A whole training by DP-SGD is audited in one run, and a training that breaks its promise is found out, if its canaries are good ones.

An accountant computes ε from what a training is meant to do; it cannot see a mistake in the code. An audit looks at what came out. Rows
that nobody needs, the canaries, are put into the data, each by a coin of its own. The auditor sees the network before and after training,
takes those canaries for members whose loss fell most, and those for strangers whose loss fell least, and passes over the rest. The number
of hits bounds ε from below, and if training did what the accountant was told, the bound lies above the accountant's ε in at most one of
twenty trainings. Here it is held against a training whose noise is left out, and against one whose rows are hardly clipped, with noise as
if they were: both are found out.

What an audit can find depends on its canaries. A digit with a wrong label pulls at weights that all other digits pull at too; its gradient
is lost in theirs even where there is no noise. A row with a pixel of its own, black everywhere else, has weights that no other row moves.

What it means: the bound of an honest training is near 0 here, far below ε, and that proves nothing. Silence is no evidence of privacy; only
a bound above ε says something, namely that the training is not what it claims to be. With g guesses no more than about ln(g/3) can be
proved, so that a promise of a large ε cannot be refuted by few canaries. The auditor sees two networks and no step between; the accountant
protects from one who sees all steps, and a leak that shows only there is missed. The confidence is lost if the number of guesses, the score
or the canaries are chosen after looking at the coins, and if canaries share a coin.

Sizes, steps and the step size were chosen at base seeds from 5000. What was seen there: in honest trainings rows with pixels of their own
proved no more than mislabelled ones, less than 0.1 both, so that nothing is claimed of those. Half of the noise that was promised, or rows
clipped at three times the norm, escaped in all of sixteen trainings; a fifth of the noise was found out in nine, a tenth in all, and so was
ten times the norm. At ε = 1 and some hundred rows the networks learn little: the study is about what they tell.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from theorylab.core.claim import AtMost, Claim, Finding, Orders
from theorylab.core.config import Config, setting
from theorylab.core.privacy_ledger import PrivacyLedger
from theorylab.core.series import Series, Stage
from theorylab.core.source import Source
from theorylab.core.study import study
from theorylab.data.digits import digits
from theorylab.instruments.privacy_audit import audit_one_run
from theorylab.learning.optimizers.sgd import sgd
from theorylab.learning.private_population import PrivateReplicas, dp_sgd_population
from theorylab.models.mlp import mlp
from theorylab.stats.binomial import proportion
from theorylab.theory.privacy import calibrate, epsilon

BELOW = Claim(
    "private_learning/training_audit/below",
    "In at most one of twenty trainings by DP-SGD the lower bound of a one-run audit at 95 % confidence exceeds the accountant's ε.",
    formula=r"P\bigl(\hat\varepsilon_{0.95} > \varepsilon_{\mathrm{PLD}}(\delta)\bigr) \le 0.05",
    source=Source(
        "Steinke, Nasr and Jagielski 2023", "Algorithm 1 and the experiments that audit DP-SGD by the network's losses", "arXiv:2305.08846"
    ),
    kind="statistical",
    relation=AtMost(atol=0.03),
    control="the same training without its noise; with rows clipped at a norm larger than the one that the noise is for",
    reading="The accountant trusts the code, the audit does not: together they test the sampler, the clipping, the noise and the ledger at "
    "once. A bound below ε is what a correct training shows, and what a wrong one shows to a poor attacker.",
)

CANARIES = Claim(
    "private_learning/training_audit/canaries",
    "In a training without noise, canaries with a pixel of their own prove an ε that is larger by more than 1 than mislabelled digits do.",
    formula=r"\hat\varepsilon_{\text{own pixel}} - \hat\varepsilon_{\text{wrong label}} > 1 \quad (\sigma = 0)",
    source=Source(
        "Jagielski, Ullman and Oprea 2020",
        "the clipping-aware attack (ClipBKD), which poisons the direction in which the data vary least",
        "arXiv:2006.07709",
    ),
    kind="statistical",
    relation=Orders(gap=1.0),
    control="the coins of both kinds tossed anew after training: canaries of which the network knows nothing",
    reading="A row is seen where no other row pulls. An audit with natural rows measures mostly how much they resemble each other, and its "
    "silence about a training without any privacy shows how little silence means.",
)


@dataclass(frozen=True, kw_only=True)
class TrainingAuditConfig(Config):
    """Trainings on the same digits; a seed is a training with its own coins, network, batches and noise."""

    seeds: int = setting(64, "trainings that keep their promise", low=20)
    dtype: Literal["float64", "float32"] = setting("float32", "floating-point type; the claims are not exact")
    broken: int = setting(16, "trainings of each kind that do not", low=4)
    rows: int = setting(100, "digits that are always in the data", low=1, high=900)
    canaries: int = setting(150, "canaries of each kind, each in the data by a coin", low=10, high=800)
    guesses: int = setting(60, "of them guessed, half as members", low=1)
    steps: int = setting(50, "noisy sums of DP-SGD", low=1)
    rate: float = setting(0.1, "chance of a row to be in a batch", low=0.01, high=1.0)
    lr: float = setting(0.05, "step size", low=1e-4)
    brightness: float = setting(30.0, "of a canary's own pixel; pixels of digits have deviation 1", low=1.0)
    epsilon: float = setting(1.0, "ε that is promised", low=0.1, high=3.0)
    delta: float = setting(1e-5, "δ of the promise", low=1e-12, high=0.1)
    overrun: float = setting(30.0, "by what the broken clipping norm is larger than stated", low=1.0)


@dataclass(frozen=True)
class Rows:
    """Digits, mislabelled digits, and rows with a pixel of their own, below each other; and where either kind of canary lies."""

    x: Tensor
    y: Tensor
    wrong_label: slice
    own_pixel: slice


def rows_of(config: TrainingAuditConfig) -> Rows:
    """The data that all trainings draw on: images of 64 pixels, and one more for each canary of the second kind."""
    n, m = config.rows, config.canaries
    x, y = digits(n + m, seed=config.seed, dtype=config.torch_dtype)
    generator = torch.Generator().manual_seed(config.seed)
    wrong = (y[n:] + torch.randint(1, 10, (m,), generator=generator)) % 10
    own = torch.randint(0, 10, (m,), generator=generator)
    images = x.new_zeros(n + 2 * m, 64 + m)
    images[: n + m, :64] = x
    images[n + m :, 64:] = config.brightness * torch.eye(m)
    return Rows(images, torch.cat([y[:n], wrong, own]), slice(n, n + m), slice(n + m, n + 2 * m))


def tossed(config: TrainingAuditConfig, seed: int, again: int = 0) -> Tensor:
    """The coins of one training's canaries, (canaries,); from another stream than its batches and noise."""
    return torch.as_tensor(np.random.default_rng([seed, 0x636F696E73, again]).random(config.canaries) < 0.5)


@dataclass(frozen=True)
class Kind:
    """Trainings of one kind: which canaries they hold, and the clipping norm and noise multiplier that they really use."""

    name: str
    canaries: slice
    clip: float
    sigma: float
    count: int


Seen = tuple[Tensor, Tensor]
"""By how much each canary's loss fell in each training of a kind, and its coin, (count, canaries) both."""


def trained(config: TrainingAuditConfig, data: Rows, kinds: list[Kind]) -> tuple[dict[str, Seen], PrivacyLedger]:
    """What the auditor sees of every kind, and the ledger of the first training."""
    seeds = [config.seed + k for kind in kinds for k in range(kind.count)]
    members = torch.zeros(len(seeds), len(data.y), dtype=torch.bool)
    members[:, : config.rows] = True
    placed = [(kind, slice(sum(k.count for k in kinds[:i]), sum(k.count for k in kinds[: i + 1]))) for i, kind in enumerate(kinds)]
    for kind, at in placed:
        members[at, kind.canaries] = torch.stack([tossed(config, seed) for seed in seeds[at]])

    def train(steps: int) -> PrivateReplicas:
        return dp_sgd_population(
            partial(mlp, [data.x.shape[1], 16, 10]),
            nn.functional.cross_entropy,
            (data.x, data.y),
            optimizer=sgd(config.lr),
            seeds=seeds,
            q=config.rate,
            clip=torch.tensor([kind.clip for kind in kinds for _ in range(kind.count)]),
            sigma=torch.tensor([kind.sigma for kind in kinds for _ in range(kind.count)]),
            steps=steps,
            members=members,
            dtype=config.torch_dtype,
        )

    def losses(nets: PrivateReplicas) -> Tensor:
        scores = nets.outputs(data.x)  # (training, row, class)
        each = nn.functional.cross_entropy(scores.flatten(0, 1), data.y.repeat(len(scores)), reduction="none")
        return each.view(len(scores), -1).double()

    after = train(config.steps)
    fell = losses(train(0)) - losses(after)
    return {kind.name: (fell[at, kind.canaries], members[at, kind.canaries]) for kind, at in placed}, after.ledgers[0]


def bounds(config: TrainingAuditConfig, scores: Tensor, inside: Tensor) -> np.ndarray:
    """The audit's lower bound on ε in each training, (trainings,)."""
    return np.array(
        [audit_one_run(s[c], s[~c], delta=config.delta, guesses=config.guesses).epsilon for s, c in zip(scores, inside, strict=True)]
    )


@study(
    "private_learning/training_audit",
    claims=[BELOW, CANARIES],
    tiny=TrainingAuditConfig(seeds=60, broken=8, rows=30, steps=30),
    small=TrainingAuditConfig(),
    large=TrainingAuditConfig(seeds=200, broken=50, rows=800, canaries=800, guesses=200, steps=400),
)
def training_audit(config: TrainingAuditConfig) -> Iterator[Finding | Series | Stage]:
    """Train honestly, without noise, and with broken clipping, all at once; then audit every training."""
    yield Stage("training")
    data = rows_of(config)
    sigma = calibrate(config.epsilon, config.delta, q=config.rate, steps=config.steps)
    kinds = [
        Kind("as promised", data.own_pixel, 1.0, sigma, config.seeds),
        Kind("no noise", data.own_pixel, 1.0, 0.0, config.broken),
        Kind("rows hardly clipped", data.own_pixel, config.overrun, sigma / config.overrun, config.broken),
        Kind("no noise, wrong labels", data.wrong_label, 1.0, 0.0, config.broken),
    ]
    fell, ledger = trained(config, data, kinds)

    yield Stage("audit")
    found = {name: bounds(config, *seen) for name, seen in fell.items()}
    promised = epsilon(ledger, config.delta)  # of the honest training, from what its sampler did
    honest = found["as promised"]
    beyond = int((honest > promised).sum())
    note = f"σ = {sigma:.2f}, mean bound {honest.mean():.3f}, {beyond} of {honest.size} above ε = {promised:.3f}"
    yield BELOW.check(predicted=0.05, measured=proportion(beyond, honest.size), setting="as promised", note=note)
    for name in ("no noise", "rows hardly clipped"):
        caught = found[name]
        above = int((caught > promised).sum())
        note = f"mean bound {caught.mean():.2f}, {above} of {caught.size} above ε = {promised:.3f}"
        yield BELOW.control_check(predicted=0.05, measured=proportion(above, caught.size), setting=name, note=note)

    own, wrong = found["no noise"], found["no noise, wrong labels"]
    note = f"own pixel {own.mean():.2f}, wrong label {wrong.mean():.2f}"
    yield CANARIES.check(measured=own - wrong, setting="without noise, training by training", note=note)
    again = torch.stack([tossed(config, config.seed + k, again=1) for k in range(config.broken)])
    blind = [bounds(config, fell[name][0], again) for name in ("no noise", "no noise, wrong labels")]
    yield CANARIES.control_check(measured=blind[0] - blind[1], setting="coins tossed anew")

    yield bounds_figure(promised, found)
    yield scores_figure(fell)


def bounds_figure(promised: float, found: dict[str, np.ndarray]) -> Series:
    """The audits' bounds, ascending, under the ε that was promised."""
    figure = Series("bounds", "What one-run audits prove", x="share of the trainings", y="lower bound on ε", claim=BELOW.key)
    for name, each in found.items():
        share = (np.arange(each.size) + 0.5) / each.size
        figure.line(name, share, np.sort(each), role="measured" if name == "as promised" else "control")
    return figure.line("the accountant's ε", [0.0, 1.0], [promised] * 2, role="predicted")


def scores_figure(fell: dict[str, Seen]) -> Series:
    """How far the losses of canaries fell, in the data and left out, in a training of either of two kinds."""
    figure = Series("scores", "What the auditor sees of the first training", x="share of the canaries", y="loss fell by [nats]")
    figure.claim = BELOW.key
    for name in ("as promised", "no noise"):
        scores, inside = (t[0] for t in fell[name])
        for group, label in ((inside, "in the data"), (~inside, "left out")):
            share = (torch.arange(int(group.sum())) + 0.5) / group.sum()
            figure.line(f"{name}, {label}", share, scores[group].sort().values, role="measured" if name == "as promised" else "control")
    return figure
