"""Rows with wrong labels are the most exposed: a network can only know them by heart, and knowing by heart is what an attack sees.

A row like many others is predicted from the others; whether it was in the data hardly matters to its score. A mislabelled row is predicted
by nothing but itself. In a population of networks, each trained on a random half of the digits, LiRA tells almost without error which of
the mislabelled were in a network's half, and of the others much less. It sees nothing in rows that no network was trained on.

The training (Adam, batches of 32, 400 steps) was chosen at base seeds from 5000 so that every network fits its half.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from theorylab.core.claim import Claim, Finding, Orders
from theorylab.core.config import Config, setting
from theorylab.core.seeds import derived_seed
from theorylab.core.series import Series, Stage
from theorylab.core.source import Source
from theorylab.core.study import study
from theorylab.data.digits import digits
from theorylab.data.labels import flip_labels
from theorylab.instruments.membership import auc, lira, logit_confidence
from theorylab.learning.optimizers.adam import adam
from theorylab.learning.shadow_models import random_halves, shadow_models
from theorylab.models.mlp import mlp

MISLABELLED = Claim(
    "private_learning/exposure/mislabelled",
    "LiRA separates members from non-members among mislabelled rows better than among the others, by more than 0.1 in the area under the "
    "curve.",
    formula=r"\mathrm{AUC}_{\text{wrong labels}} - \mathrm{AUC}_{\text{right labels}} > 0.1",
    source=Source("Carlini et al. 2022", "the sections on which rows are vulnerable (mislabelled, atypical)", "arXiv:2112.03570"),
    kind="statistical",
    relation=Orders(gap=0.1),
    control="rows that no network was trained on, with a membership made up",
    reading="Average leakage hides who pays: the odd rows give themselves away, and they may be people unlike the others. "
    "Where networks do not fit their data by heart, for want of size or of steps or by noise, the difference shrinks.",
)


@dataclass(frozen=True, kw_only=True)
class ExposureConfig(Config):
    """One data set and its shadow networks; the base seed draws all of them, and every network attacked is a replica."""

    dtype: Literal["float64", "float32"] = setting("float32", "floating-point type; the claim is not exact")
    rows: int = setting(500, "digits, each in half of the networks", low=20, high=850)
    wrong: int = setting(50, "of these with a wrong label, and as many of the rows never seen", low=8)
    models: int = setting(128, "networks, even", low=8)
    steps: int = setting(400, "steps of Adam, batches of 32", low=1)


def areas(scores: Tensor, membership: Tensor, columns: Tensor) -> list[float]:
    """For each network the area under the curve among some rows."""
    inside = membership[:, columns]
    return [auc(s[m], s[~m]).value for s, m in zip(scores[:, columns], inside, strict=True)]


def row_areas(confidence: Tensor, membership: Tensor, columns: Tensor) -> Tensor:
    """For each of some rows, how well its confidence tells the networks trained on it from the others, ascending.

    Of the confidence itself: among networks of one row, LiRA's ratio is biased downwards by leaving each network out of its own side.
    """
    inside = membership[:, columns]
    each = [auc(s[m], s[~m]).value for s, m in zip(confidence[:, columns].T, inside.T, strict=True)]
    return torch.tensor(each, dtype=torch.float64).sort().values


def _flipped(y: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Labels of which ``count`` are wrong, and which, (n,) each."""
    made = flip_labels(y, count / len(y), seed=seed)
    return made.y, made.wrong


@study(
    "private_learning/exposure",
    claims=[MISLABELLED],
    tiny=ExposureConfig(wrong=100, models=32, steps=250),
    small=ExposureConfig(),
    large=ExposureConfig(rows=850, wrong=85, models=512, steps=2000),
)
def exposure(config: ExposureConfig) -> Iterator[Finding | Series | Stage]:
    """Train a population on random halves, and attack rows with right labels, with wrong ones, and rows it never saw."""
    x, y = digits(2 * config.rows, seed=config.seed, dtype=config.torch_dtype)
    seen = slice(0, config.rows)
    known, strangers = y[seen], y[config.rows :]
    y_seen, wrong = _flipped(known, config.wrong, config.seed)
    y_other, wrong_other = _flipped(strangers, config.wrong, derived_seed(config.seed, "strangers"))
    yield Stage("shadow networks")
    shadows = shadow_models(
        partial(mlp, [64, 32, 10]),
        nn.functional.cross_entropy,
        (x[seen], y_seen),
        optimizer=adam(0.01),
        models=config.models,
        steps=config.steps,
        seed=config.seed,
        batch_size=32,
        progress=False,
        dtype=config.torch_dtype,
    )
    yield Stage("attack")
    logits = shadows.outputs(x).double()
    inside, made_up = shadows.membership, random_halves(config.models, config.rows, derived_seed(config.seed, "made up"))
    own, strange = logit_confidence(logits[:, seen], y_seen), logit_confidence(logits[:, config.rows :], y_other)
    scores, never = lira(own, inside), lira(strange, made_up)

    exposed, usual = (torch.tensor(areas(scores, inside, c)) for c in (wrong, ~wrong))
    note = f"{float(exposed.mean()):.3f} among wrong labels, {float(usual.mean()):.3f} among right ones"
    yield MISLABELLED.check(measured=exposed - usual, setting="area under the curve, network by network", note=note)
    blind = [torch.tensor(areas(never, made_up, c)) for c in (wrong_other, ~wrong_other)]
    note = f"{float(blind[0].mean()):.3f} among wrong labels, {float(blind[1].mean()):.3f} among right ones"
    yield MISLABELLED.control_check(measured=blind[0] - blind[1], setting="rows that no network saw", note=note)

    figure = Series("exposed", "How far a row's presence shows in its own score", x="share of the rows", y="area under the row's curve")
    figure.claim = MISLABELLED.key
    for name, table, member, columns in (
        ("wrong labels", own, inside, wrong),
        ("right labels", own, inside, ~wrong),
        ("wrong labels, never seen", strange, made_up, wrong_other),
    ):
        sorted_areas = row_areas(table, member, columns)
        share = (torch.arange(len(sorted_areas)) + 0.5) / len(sorted_areas)
        figure.line(name, share, sorted_areas, role="control" if table is strange else "measured")
    yield figure.line("by chance", [0.0, 1.0], [0.5, 0.5], role="predicted")
