"""Readings and confidence bounds on an error: against slow inversions, and by their coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import binom

from theorylab.core.reading import Reading
from theorylab.stats.binomial import bernoulli_kl, clopper_pearson, kl_inverse, mean_upper_bound


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


@pytest.mark.parametrize(("errors", "n", "delta"), [(-1, 5, 0.1), (6, 5, 0.1), (0, 0, 0.1), (1, 5, 0.0), (1, 5, 1.0)])
def test_clopper_pearson_refuses(errors: int, n: int, delta: float) -> None:
    with pytest.raises(ValueError, match="must"):
        clopper_pearson(errors, n, delta)
