"""The verdict engine: what it must say on known inputs, and how often it errs on simulated ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from theorylab.core.claim import AtLeast, AtMost, Claim, Equals, Kind, Orders, Relation, Scales, Verdict, Within
from theorylab.core.estimate import Estimate, Interval, mean_interval
from theorylab.core.source import Source

HOLDS, FAILS, INCONCLUSIVE = Verdict.HOLDS, Verdict.FAILS, Verdict.INCONCLUSIVE


def claim(relation: Relation, kind: Kind = "statistical") -> Claim:
    source = Source("Somebody 2000", "Theorem 1", "arXiv:0000.00000")
    return Claim("topic/study/name", "A statement.", "a = b", source, kind, relation, "a control", "A reading.")


def verdicts(relation: Relation, draws: np.ndarray, predicted: float | None = None) -> np.ndarray:
    """The verdict on each row of draws (trial, replica)."""
    return np.array([claim(relation).check(measured=row, predicted=predicted).verdict for row in draws])


@pytest.mark.parametrize(
    ("relation", "predicted", "value", "verdict"),
    [
        (Equals(rtol=0.1), 2.0, 2.19, HOLDS),
        (Equals(rtol=0.1), 2.0, 2.21, FAILS),
        (Equals(rtol=0.1), -2.0, -2.19, HOLDS),
        (Equals(atol=0.1), 0.0, -0.11, FAILS),
        (Within(0.95, 1.10), 2.0, 2.19, HOLDS),
        (Within(0.95, 1.10), 2.0, 1.89, FAILS),
        (Within(0.95, 1.10), -2.0, -2.19, HOLDS),
        (AtMost(), 1.0, 1.0, HOLDS),
        (AtMost(rtol=1e-12), 1.0, 1.0 + 1e-11, FAILS),
        (AtLeast(), 1.0, 0.999, FAILS),
        (Orders(), None, 1e-9, HOLDS),
        (Orders(), None, 0.0, FAILS),  # equal quantities are not ordered
        (Orders(gap=0.5), None, 0.4, FAILS),
        (Scales(-0.5, 0.15), None, -0.36, HOLDS),
        (Scales(-0.5, 0.15), None, -0.34, FAILS),
    ],
)
def test_regions(relation: Relation, predicted: float | None, value: float, verdict: Verdict) -> None:
    assert claim(relation, "asymptotic").check(measured=value, predicted=predicted).verdict is verdict


def test_an_interval_across_the_border_is_inconclusive() -> None:
    assert claim(Equals(atol=0.1)).check(predicted=1.0, measured=Estimate(1.09, 0.01, 30)).verdict is INCONCLUSIVE
    assert claim(AtMost()).check(predicted=1.0, measured=Estimate(0.99, 0.01, 30)).verdict is INCONCLUSIVE


@pytest.mark.parametrize("kind", ["statistical", "inequality"])
def test_an_interval_of_its_own_is_judged_as_it_is(kind: Kind) -> None:
    for low, high, verdict in ((0.0, 0.04, HOLDS), (0.06, 0.2, FAILS), (0.0, 0.06, INCONCLUSIVE)):
        found = claim(AtMost(), kind).check(predicted=0.05, measured=Interval((low + high) / 2, low, high, n=30))
        assert (found.verdict, found.low, found.high, found.n) == (verdict, low, high, 30)


@pytest.mark.parametrize("numbers", [(0.5, 0.6, 0.7, 3), (0.5, 0.4, float("inf"), 3), (0.5, 0.4, 0.6, 0)])
def test_an_interval_that_is_none_is_refused(numbers: tuple[float, float, float, int]) -> None:
    with pytest.raises(ValueError, match="Interval"):
        Interval(*numbers)


def test_a_wide_interval_never_holds() -> None:
    """Accepting what cannot be told apart from the prediction would reward few seeds: three wild replicas around the exact value."""
    assert claim(Equals(rtol=0.1)).check(predicted=1.0, measured=[0.5, 1.0, 1.5]).verdict is INCONCLUSIVE


def test_a_replica_far_out_is_inconclusive_unless_it_agrees_too() -> None:
    quiet = [1.0 + 1e-3 * k for k in range(15)]
    assert claim(Equals(atol=0.5)).check(predicted=1.0, measured=[*quiet, 4.0]).verdict is INCONCLUSIVE
    assert claim(Equals(atol=0.5)).check(predicted=1.0, measured=[*quiet, 1.4]).verdict is HOLDS


def test_one_counterexample_refutes_an_identity_or_inequality_but_not_a_mean() -> None:
    values = np.full(1000, 0.5)
    values[17] = 1.01
    found = claim(AtMost(), "inequality").check(predicted=1.0, measured=values)
    assert (found.verdict, found.measured, found.high, found.n) == (FAILS, 1.01, 1.01, 1000)
    assert claim(AtMost()).check(predicted=1.0, measured=values).verdict is INCONCLUSIVE  # an outlier: the hull crosses 1


def test_the_worst_of_several_predictions_is_shown() -> None:
    found = claim(Equals(rtol=1e-3), "identity").check(predicted=[1.0, 10.0, 100.0], measured=[1.0, 10.5, 101.0])
    assert (found.verdict, found.predicted, found.measured) == (FAILS, 10.0, 10.5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_samples_stop_a_check(bad: float) -> None:
    for kind in ("identity", "inequality", "asymptotic", "statistical"):
        with pytest.raises(ValueError, match="position 1"):
            claim(Equals(atol=1), kind).check(predicted=0.0, measured=torch.tensor([0.0, bad], dtype=torch.float64))
    with pytest.raises(ValueError, match="finite"):
        Estimate(bad, 0.1, 3)


def test_misuse_is_refused() -> None:
    with pytest.raises(TypeError, match="float64"):
        claim(Equals(atol=1e-3), "identity").check(predicted=0.0, measured=torch.zeros(3))
    with pytest.raises(ValueError, match="at least 2 replicas"):
        claim(Equals(atol=1)).check(predicted=0.0, measured=[0.0])
    with pytest.raises(ValueError, match="predicted is required"):
        claim(Equals(atol=1)).check(measured=[0.0, 1.0])
    with pytest.raises(ValueError, match="one number for a claim about a mean"):
        claim(Equals(atol=1)).check(predicted=[0.0, 1.0], measured=[0.0, 1.0])
    with pytest.raises(ValueError, match="samples themselves"):
        claim(Equals(atol=1), "inequality").check(predicted=0.0, measured=Estimate(0.0, 0.1, 9))
    with pytest.raises(ValueError, match="topic/study/name"):
        Claim("Wrong Key", "s", "f", Source("a", "b", "c"), "identity", Equals(), "c", "r")


def test_worst_verdict_of_several_settings() -> None:
    assert Verdict.worst([HOLDS, INCONCLUSIVE, HOLDS]) is INCONCLUSIVE
    assert Verdict.worst([INCONCLUSIVE, FAILS, HOLDS]) is FAILS


def test_best_verdict_of_several_controls() -> None:
    assert Verdict.best([FAILS, INCONCLUSIVE, FAILS]) is INCONCLUSIVE
    assert Verdict.best([FAILS, HOLDS, INCONCLUSIVE]) is HOLDS
    assert Verdict.best([FAILS, FAILS]) is FAILS


# Error rates. A two-sided 99 % interval errs on one side in 0.5 % of samples; over 4000 trials the count is binomial(4000, 0.005): its mean
# is 20, and it exceeds 45 with probability 1e-6. The seeds are fixed, so these tests either always pass or never do.
TRIALS = 4000


@pytest.mark.parametrize("n", [4, 8, 16])
def test_false_alarms_at_the_border_are_as_rare_as_the_level_says(n: int) -> None:
    draws = np.random.default_rng(n).normal(1.1, 0.05, (TRIALS, n))
    found = verdicts(Equals(rtol=0.1), draws, predicted=1.0)  # the truth lies on the border: both decisions are errors
    assert (found == HOLDS).sum() <= 45
    assert (found == FAILS).sum() <= 45


def test_a_true_claim_well_inside_its_region_never_fails_and_usually_holds() -> None:
    draws = np.random.default_rng(0).normal(1.0, 0.05, (TRIALS, 16))
    found = verdicts(Equals(rtol=0.1), draws, predicted=1.0)
    assert (found == FAILS).sum() == 0
    assert (found == HOLDS).mean() > 0.97  # power: the half-width is about 2.95·0.05/√16 = 0.04, the margin 0.1


def test_a_false_claim_is_found_out() -> None:
    draws = np.random.default_rng(1).normal(1.3, 0.05, (TRIALS, 16))
    found = verdicts(Equals(rtol=0.1), draws, predicted=1.0)
    assert (found == HOLDS).sum() == 0
    assert (found == FAILS).mean() > 0.99


@pytest.mark.parametrize("law", ["standard_cauchy", "standard_t"])
def test_heavy_tails_are_inconclusive_rather_than_precise(law: str) -> None:
    """No mean, or no variance (1.5 degrees of freedom): replicas that average to the prediction by chance prove nothing."""
    rng = np.random.default_rng(2)
    draws = rng.standard_cauchy((1000, 16)) if law == "standard_cauchy" else rng.standard_t(1.5, (1000, 16))
    found = verdicts(Equals(atol=0.1), draws, predicted=0.0)
    assert (found == HOLDS).sum() == 0
    assert (found == INCONCLUSIVE).mean() > 0.95


def test_skewed_samples_hold_less_often_than_student_would_let_them() -> None:
    """Exponential replicas whose mean lies on the border of AtMost: a one-sided error, and Student's interval alone makes far too many."""
    draws = np.random.default_rng(3).exponential(1.0, (TRIALS, 16))
    ours = np.mean([mean_interval(row)[1] < 1.0 for row in draws])
    student = np.mean([Estimate.over(row).interval()[1] < 1.0 for row in draws])
    assert student > 0.025
    assert ours < 0.6 * student


def test_the_interval_is_equivariant() -> None:
    x = np.random.default_rng(4).gamma(2.0, size=12)
    low, high = mean_interval(x)
    assert np.allclose(mean_interval(-3 * x + 7), (-3 * high + 7, -3 * low + 7), rtol=1e-12)
