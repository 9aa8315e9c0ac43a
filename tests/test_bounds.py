"""Readings and confidence bounds on an error: against slow inversions, and by their coverage."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from scipy.stats import binom
from torch import Tensor

from theorylab.core.instrument import Inapplicable
from theorylab.core.problem import Problem
from theorylab.core.reading import Reading
from theorylab.instruments.bounds import test_bound
from theorylab.instruments.certify import certify
from theorylab.instruments.occam import occam
from theorylab.instruments.occam_likelihood import occam_likelihood
from theorylab.instruments.predictions import scores_and_classes, signed_margins
from theorylab.stats.binomial import bernoulli_kl, clopper_pearson, kl_inverse, mean_upper_bound, proportion


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"name": " "}, "name must not be empty"),
        ({"label": "guess"}, "'bound' or 'measure'"),
        ({"value": math.nan}, "must be finite"),
        ({"interval": (1.0, 0.0)}, "interval must be"),
        ({"delta": None}, r"delta of a bound must lie in \[0, 1\)"),
        ({"assumptions": ()}, "must name at least one"),
        ({"label": "measure"}, "belongs to bounds alone"),
    ],
)
def test_a_reading_refuses_what_it_cannot_say(change: dict, match: str) -> None:
    whole = {"name": "error", "value": 0.1, "label": "bound", "delta": 0.05, "assumptions": ("rows are independent",)}
    assert Reading(**whole).label == "bound"
    with pytest.raises(ValueError, match=match):
        Reading(**{**whole, **change})


def test_kl_inverse_is_the_root_of_kl_and_never_below_it() -> None:
    rng = np.random.default_rng(0)
    q, c = rng.uniform(0, 0.99, 300), 10 ** rng.uniform(-8, 0.5, 300)
    p = kl_inverse(q, c)
    assert (bernoulli_kl(q, p) >= c).all()  # the upper end: what is returned is excluded already, or only just
    for qi, ci, pi in zip(q, c, p, strict=True):
        root = (
            1.0
            if bernoulli_kl(qi, 1 - 1e-16) <= ci
            else brentq(lambda t, qi=qi, ci=ci: bernoulli_kl(qi, t) - ci, qi, 1 - 1e-16, xtol=1e-15)
        )
        # near c = 0 the curve is flat, and rounding of kl moves its root by about sqrt(rounding)
        assert root - 1e-12 <= pi <= root + 1e-7


def test_kl_inverse_at_the_ends() -> None:
    assert kl_inverse(1.0, 0.0) == kl_inverse(1.0, 3.0) == kl_inverse(0.2, math.inf) == 1.0
    assert kl_inverse(0.0, 2.0) == pytest.approx(1 - math.exp(-2.0), abs=1e-14)
    for q, c in ((-0.1, 1.0), (1.1, 1.0), (math.nan, 1.0), (0.5, -1.0), (0.5, math.nan)):
        with pytest.raises(ValueError, match="must"):
            kl_inverse(q, c)


@pytest.mark.parametrize(("errors", "n"), [(0, 1), (0, 50), (3, 50), (49, 50), (700, 1400)])
def test_clopper_pearson_inverts_the_binomial_tail(errors: int, n: int) -> None:
    p = clopper_pearson(errors, n, 0.05)
    assert binom.cdf(errors, n, p) == pytest.approx(0.05, rel=1e-9)
    assert p <= mean_upper_bound(errors / n, n, 0.05)  # Chernoff's bound of the same tail


def test_clopper_pearson_fails_with_probability_at_most_delta_and_a_mean_without_it_does_not() -> None:
    """Exactly, by summing over all outcomes."""
    n, p, delta = 40, 0.13, 0.1
    chance = binom.pmf(np.arange(n + 1), n, p)
    missed = np.array([clopper_pearson(k, n, delta) < p for k in range(n + 1)])
    assert chance[missed].sum() <= delta
    assert chance[np.arange(n + 1) / n < p].sum() > delta  # the empirical error itself is no bound


def test_the_interval_of_a_proportion_misses_it_as_rarely_on_either_side_as_its_level_says() -> None:
    n, p = 40, 0.13
    chance, found = binom.pmf(np.arange(n + 1), n, p), [proportion(k, n, 0.9) for k in range(n + 1)]
    assert chance[[i.high < p for i in found]].sum() <= 0.05
    assert chance[[i.low > p for i in found]].sum() <= 0.05
    assert proportion(n, n).low == pytest.approx(0.005 ** (1 / n), rel=1e-12)
    for count, trials, level in ((-1, 5, 0.9), (6, 5, 0.9), (0, 0, 0.9), (1, 5, 1.0)):
        with pytest.raises(ValueError, match="must"):
            proportion(count, trials, level)


@pytest.mark.parametrize(("errors", "n", "delta"), [(-1, 5, 0.1), (6, 5, 0.1), (0, 0, 0.1), (1, 5, 0.0), (1, 5, 1.0)])
def test_clopper_pearson_refuses(errors: int, n: int, delta: float) -> None:
    with pytest.raises(ValueError, match="must"):
        clopper_pearson(errors, n, delta)


def coin_problem(y: Tensor, x: Tensor | None = None) -> Problem:
    """A linear score whose sign is that of x."""
    net = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        net.weight.fill_(2.0)
    x = torch.ones(len(y), 1) if x is None else x
    return Problem(net, lambda o, t: torch.nn.functional.softplus(-t.reshape(-1) * o.reshape(-1)).mean(), (x, y))


def test_one_score_with_signs_is_a_classification_and_a_tie_is_an_error() -> None:
    y = torch.tensor([1, 1, -1, -1, 1])
    x = torch.tensor([[1.0], [-1.0], [-1.0], [1.0], [0.0]])
    problem = coin_problem(y, x)
    assert test_bound(problem).terms["empirical error"] == 3 / 5
    scores, classes = scores_and_classes(problem)
    assert signed_margins(scores, classes).tolist() == [2.0, -2.0, 2.0, -2.0, 0.0]


class Shifted(torch.nn.Module):
    """Scores every row by how it differs from the mean of its batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x - x.mean(0))


@pytest.mark.parametrize("measure", [test_bound, occam, certify, partial(certify, risk="loss", clamp=3.0), occam_likelihood])
def test_rows_that_depend_on_each_other_are_not_independent(measure: Callable[[Problem], object]) -> None:
    problem = Problem(Shifted(), torch.nn.functional.cross_entropy, (torch.randn(20, 4), torch.arange(20) % 3))
    with pytest.raises(Inapplicable, match="rows depend on each other"):
        measure(problem)


def test_a_model_that_squeezes_its_outputs_treats_rows_by_themselves() -> None:
    class Squeezed(torch.nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input).squeeze()

    loss = torch.nn.functional.soft_margin_loss
    assert 0 < test_bound(Problem(Squeezed(4, 1), loss, (torch.randn(20, 4), 2.0 * (torch.arange(20) % 2) - 1))).value <= 1


def test_one_hot_rows_and_class_numbers_say_the_same() -> None:
    net, x, y = torch.nn.Linear(4, 3), torch.randn(20, 4, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 3
    a = Problem(net, torch.nn.functional.cross_entropy, (x, y))
    b = Problem(net, torch.nn.functional.mse_loss, (x, torch.nn.functional.one_hot(y, 3).float()))
    assert test_bound(a) == test_bound(b) == test_bound(round(20 * test_bound(a).terms["empirical error"]), 20)


@pytest.mark.parametrize(
    ("targets", "match"),
    [
        (torch.randn(6, 3), "no one-hot classes"),
        (torch.randn(6), "no classification: scores"),
        (torch.tensor([0, 1, 2, 0, 1, -1]), r"outside 0 ... 2"),
        (torch.zeros(6, 4), "no classification"),
    ],
)
def test_targets_that_are_no_classes_are_refused(targets: Tensor, match: str) -> None:
    problem = Problem(torch.nn.Linear(2, 3), lambda o, t: o.pow(2).mean(), (torch.randn(6, 2), targets))
    with pytest.raises(Inapplicable, match=match):
        test_bound(problem)


def test_a_bound_itemizes_delta_and_names_its_assumptions() -> None:
    bound = dataclasses.replace(test_bound(5, 100), delta={"bound": 0.04, "Monte Carlo": 0.01}, beside=test_bound(3, 50))
    assert [reading.delta for reading in bound.readings()] == [0.05, 0.05]
    assert "independent" in str(bound)
    for change in ({"assumptions": ()}, {"delta": {}}, {"delta": {"a": 0.5, "b": 0.6}}, {"delta": {"a": -0.1, "b": 0.2}}):
        with pytest.raises(ValueError, match="must"):
            dataclasses.replace(bound, **change)
    with pytest.raises(ValueError, match="n is the number"):
        test_bound(coin_problem(torch.tensor([1, -1])), 5)
    with pytest.raises(ValueError, match="n, the number of test rows"):
        test_bound(5)


def test_a_certificate_is_refused_in_half_precision_where_its_steps_would_round_to_none() -> None:
    x, y = torch.randn(8, 4, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 3
    problem = Problem(torch.nn.Linear(4, 3), torch.nn.functional.cross_entropy, (x, y), dtype=torch.bfloat16)
    with pytest.raises(Inapplicable, match=r"Pass dtype=torch\.float32"):
        certify(problem)
