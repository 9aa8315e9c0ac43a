"""The features of a linear model are worth their weight times their distance from the mean, unless one feature tells of another.

The game asks what the model says when it sees some features of a row and the others come from a background of other rows, whatever the seen
ones are. A linear model has no interactions in this game, so a feature adds the same to every coalition: its weight, times how far the row
lies from the background's mean. One product of two features in the model ends that. The model is a logistic regression of real
measurements, explained in its logit; the row's features depend on each other strongly, and the formula holds all the same, because this
game ignores that.

The conditional game does not: absent features are drawn from their law given those seen, here the normal law of the background's mean and
covariance. Then a feature also counts for what it tells of the others, and one whose weight is zero is worth something. Which of the two
answers is wanted depends on the question, what the model computes or what the feature tells; neither is the value of the feature.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from theorylab.core.claim import Claim, Equals, Finding
from theorylab.core.config import Config, setting
from theorylab.core.series import Series, Stage
from theorylab.core.source import Source
from theorylab.core.study import study
from theorylab.data.tabular import breast_cancer
from theorylab.instruments.feature_games import Law, feature_game
from theorylab.instruments.feature_values import feature_shapley
from theorylab.instruments.games import table
from theorylab.instruments.interactions import interactions
from theorylab.learning.linear import logistic
from theorylab.theory.games import conditional_linear_game, dividends_of, linear_model_values, shapley_of_dividends

LINEAR = Claim(
    "shapley/feature/linear",
    "In the interventional game a feature of a linear model is worth its weight times its distance from the background's mean, and no two "
    "features interact.",
    formula=r"\phi_i = w_i\,(x_i - \mathbb{E}\,b_i)",
    source=Source("Štrumbelj and Kononenko 2014; Lundberg and Lee 2017", "Lundberg and Lee: Corollary 1 (Linear SHAP)", "arXiv:1705.07874"),
    kind="identity",
    relation=Equals(atol=1e-10),
    control="the same model with a product of two features added",
    reading="For a linear model the sum over all coalitions says no more than the weights do. The formula is that of features drawn "
    "independently of each other; in the conditional game a feature with weight zero gets a value if it is correlated with one that "
    "counts.",
)

CONDITIONAL = Claim(
    "shapley/feature/conditional",
    "In the conditional game of normal features a linear model's values are those of the conditional means, and a feature of weight zero "
    "has one.",
    formula=r"v(S) = w_S^\top x_S + w_{\bar S}^\top \bigl(\mu_{\bar S} + \Sigma_{\bar S S}\Sigma_{SS}^{-1}(x_S - \mu_S)\bigr)",
    source=Source("Aas, Jullum and Løland 2021", "Section 3, the normal law for dependent features", "arXiv:1903.10464"),
    kind="identity",
    relation=Equals(atol=1e-9),
    control="the interventional game of the same model, row and background",
    reading="Credit follows information and not only use: what a model never reads may say much of what it does read. With independent "
    "features the two games agree. The law is assumed and not measured here: features that are not normal have other conditional means.",
)


@dataclass(frozen=True, kw_only=True)
class FeatureConfig(Config):
    """A logistic regression of the breast-cancer table; a seed is a row and a background."""

    seeds: int = setting(4, "rows explained, each with a background of its own", low=1)
    features: int = setting(12, "first columns of the table, all of whose coalitions are visited", low=3, high=16)
    background: int = setting(100, "rows that stand for absence", low=1, high=500)


@study(
    "shapley/feature",
    claims=[LINEAR, CONDITIONAL],
    tiny=FeatureConfig(seeds=2, features=6, background=20),
    small=FeatureConfig(),
    large=FeatureConfig(seeds=32, features=16, background=300),
)
def feature(config: FeatureConfig) -> Iterator[Finding | Series | Stage]:
    """Enumerate the feature games of a linear logit, of one with a product in it, and of one that does not read its first feature."""
    x, y = breast_cancer()
    x = x[:, : config.features]
    fit = logistic(x, y, torch.ones(1, len(y)), l2=1.0)
    w, b = fit.weights[0, :, 0], float(fit.intercept[0, 0])

    def linear(rows: Tensor) -> Tensor:
        return rows @ w + b

    def with_product(rows: Tensor) -> Tensor:
        return linear(rows) + rows[:, 0] * rows[:, 1]

    unread = w.clone()
    unread[0] = 0.0
    predicted, measured, other, pairs, pairs_other = [], [], [], [], []
    expected, conditional, interventional = [], [], []
    for seed in config.replica_seeds:
        yield Stage(f"row {seed}")
        rows = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))[: config.background + 1]
        one, background = x[rows[0]], x[rows[1:]]
        predicted.append(linear_model_values(w.numpy(), one.numpy(), background.numpy()))
        for model, values, found in ((linear, measured, pairs), (with_product, other, pairs_other)):
            values.append(feature_shapley(model, one, background, method="exact").values[0].numpy())
            if seed == config.seed:
                matrix = interactions(table(feature_game(model, one, background), config.features)).matrix()
                found.append(matrix[~torch.eye(config.features, dtype=torch.bool)].abs().max())
        moments = background.mean(0).numpy(), np.cov(background.numpy(), rowvar=False, bias=True)
        expected.append(shapley_of_dividends(dividends_of(conditional_linear_game(unread.numpy(), one.numpy(), *moments))))
        laws: dict[Law, list[np.ndarray]] = {"gaussian": conditional, "interventional": interventional}
        for law, found in laws.items():
            found.append(feature_shapley(lambda rows: rows @ unread, one, background, law=law, method="exact").values[0].numpy())
    yield LINEAR.check(predicted=np.concatenate(predicted), measured=np.concatenate(measured), setting="values")
    yield LINEAR.check(predicted=0.0, measured=float(pairs[0]), setting="largest interaction of a pair")
    yield LINEAR.control_check(predicted=np.concatenate(predicted), measured=np.concatenate(other), setting="values, with a product")
    yield LINEAR.control_check(predicted=0.0, measured=float(pairs_other[0]), setting="largest interaction, with a product")

    told = {name: [v[0] for v in found] for name, found in (("predicted", expected), ("gaussian", conditional), ("other", interventional))}
    yield CONDITIONAL.check(predicted=np.concatenate(expected), measured=np.concatenate(conditional), setting="values")
    yield CONDITIONAL.check(predicted=told["predicted"], measured=told["gaussian"], setting="a feature of weight zero")
    yield CONDITIONAL.control_check(predicted=np.concatenate(expected), measured=np.concatenate(interventional), setting="interventional")
    yield CONDITIONAL.control_check(predicted=told["predicted"], measured=told["other"], setting="interventional, weight zero")

    place = np.arange(1, config.features + 1)
    figure = Series("row", "One row of the table, explained", x="feature", y="value [logit]", claim=LINEAR.key)
    figure.line("weight times distance from the mean", place, predicted[0], role="predicted")
    figure.line("Shapley, by enumeration", place, measured[0], mark="points")
    yield figure.line("with a product of features 1 and 2", place, other[0], role="control", mark="points")
    figure = Series("laws", "What it computes with, and what it tells", x="feature", y="value [logit]", claim=CONDITIONAL.key)
    figure.line("closed form, normal law", place, expected[0], role="predicted")
    figure.line("conditional, by enumeration", place, conditional[0], mark="points")
    yield figure.line("interventional", place, interventional[0], role="control", mark="points")
