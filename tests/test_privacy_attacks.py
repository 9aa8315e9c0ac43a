"""Attacks and audits against slow versions, known answers, and mechanisms whose privacy is known."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy.stats import binom, norm

from theorylab.core.estimate import Estimate
from theorylab.instruments.membership import Rate, auc, lira, logit_confidence, rmia, roc_at
from theorylab.instruments.privacy_audit import audit_clopper_pearson, audit_gdp, audit_one_run, one_run_p_value
from theorylab.learning.optimizers.sgd import sgd
from theorylab.learning.shadow_models import ShadowModels, random_halves, shadow_models


def halves(models: int, rows: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([rng.permutation(models) < models // 2 for _ in range(rows)], axis=1)


@pytest.mark.parametrize("variance", ["row", "pooled"])
def test_lira_leaves_the_model_under_attack_out(variance: str) -> None:
    """The literal version: refit both laws for every model and row."""
    inside, rng = halves(10, 7, 0), np.random.default_rng(1)
    scores = 1e3 + rng.standard_normal((10, 7)) * (1 + inside) + 2 * inside
    expected = np.zeros((10, 7))
    for k in range(10):
        others = np.arange(10) != k
        laws = []
        for side in (inside, ~inside):
            chosen = [scores[others & side[:, i], i] for i in range(7)]
            mean, var = np.array([c.mean() for c in chosen]), np.array([c.var(ddof=1) for c in chosen])
            laws.append((mean, np.sqrt(var if variance == "row" else np.full(7, var.mean()))))
        expected[k] = norm.logpdf(scores[k], *laws[0]) - norm.logpdf(scores[k], *laws[1])
    assert np.allclose(lira(scores, inside, variance=variance), expected, rtol=1e-9, atol=1e-9)  # type: ignore[arg-type]


def test_lira_sees_nothing_where_there_is_nothing() -> None:
    inside, rng = halves(64, 400, 0), np.random.default_rng(2)
    ratios = lira(rng.standard_normal((64, 400)), inside).numpy()
    measured = auc(ratios[inside], ratios[~inside])
    assert abs(measured.value - 0.5) < 5 * measured.stderr


def test_lira_refuses_too_few_models() -> None:
    inside = halves(6, 5, 0)
    inside[:, 2] = [True, False, False, False, False, False]
    with pytest.raises(ValueError, match="at least 3 models and out of that of as many, got a row with 1"):
        lira(np.zeros((6, 5)), inside)
    with pytest.raises(ValueError, match="must vary over models"):
        lira(np.zeros((6, 5)), halves(6, 5, 0))
    with pytest.raises(ValueError, match="scores must be finite"):
        lira(np.full((6, 5), np.inf), halves(6, 5, 0))
    with pytest.raises(ValueError, match=r"both be \(models, rows\)"):
        lira(np.zeros((6, 4)), halves(6, 5, 0))


def test_logit_confidence_does_not_overflow() -> None:
    logits = torch.tensor([[[1.0, 2.0, 0.5], [800.0, 0.0, 1.0]]], dtype=torch.float64)
    targets = torch.tensor([1, 0])
    p = logits[0, 0].softmax(0)[1]
    found = logit_confidence(logits, targets)
    assert found.shape == (1, 2)
    assert torch.allclose(found[0, 0], torch.log(p / (1 - p)))
    assert float(found[0, 1]) == pytest.approx(800 - math.log(1 + math.e))


def test_rmia_is_the_share_of_reference_rows_outdone() -> None:
    inside, rng = halves(8, 6, 3), np.random.default_rng(4)
    p, z = rng.uniform(0.05, 1, (8, 6)), rng.uniform(0.05, 1, (8, 9))
    for gamma in (0.5, 1.0, 2.0):
        expected = np.zeros((8, 6))
        for k in range(8):
            others = np.arange(8) != k
            for i in range(6):
                px = 0.5 * (p[others & inside[:, i], i].mean() + p[others & ~inside[:, i], i].mean())
                pz = z[others].mean(0)
                expected[k, i] = np.mean((p[k, i] / px) / (z[k] / pz) >= gamma)
        assert np.allclose(rmia(p, inside, z, gamma=gamma), expected)
    with pytest.raises(ValueError, match=r"probabilities must lie in \(0, 1\]"):
        rmia(0 * p, inside, z)
    with pytest.raises(ValueError, match="gamma must be positive"):
        rmia(p, inside, z, gamma=0.0)


def test_auc_counts_pairs() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 6, 30).astype(float), rng.integers(0, 5, 40).astype(float)
    pairs = (a[:, None] > b).mean() + 0.5 * (a[:, None] == b).mean()
    assert auc(a, b).value == pytest.approx(pairs, abs=1e-14)


def test_delongs_error_is_that_of_repeated_samples() -> None:
    rng = np.random.default_rng(1)
    runs: list[Estimate] = [auc(rng.standard_normal(60) + 1, rng.standard_normal(80)) for _ in range(800)]
    spread = np.std([r.value for r in runs])
    assert np.mean([r.stderr for r in runs]) == pytest.approx(spread, rel=5 / math.sqrt(2 * 800))


def test_roc_at_admits_the_false_positives_it_names() -> None:
    rng = np.random.default_rng(0)
    inside, outside = rng.standard_normal(500) + 1, rng.standard_normal(1000)
    for fpr in (0.0, 0.01, 0.1, 0.5):
        rate = roc_at(fpr, inside, outside)
        threshold = np.sort(outside)[-1 - round(fpr * 1000)]
        assert (outside > threshold).mean() <= fpr
        assert rate.value == (inside > threshold).mean()
        assert rate.low <= rate.value <= rate.high
    assert roc_at(0.5, np.zeros(10), np.zeros(10)).value == 0.0  # equal scores tell nothing
    with pytest.raises(ValueError, match="at least 1000 scores"):
        roc_at(0.001, inside, outside[:500])
    with pytest.raises(ValueError, match=r"fpr must lie in \[0, 1\)"):
        roc_at(1.0, inside, outside)


def test_the_interval_of_a_rate_is_exact() -> None:
    rate = Rate.of(3, 20, 0.9)
    assert binom.cdf(3, 20, rate.high) == pytest.approx(0.05)
    assert binom.sf(2, 20, rate.low) == pytest.approx(0.05)
    assert Rate.of(0, 5).low == 0.0
    assert Rate.of(5, 5).high == 1.0


def literal_p_value(m: int, r: int, v: int, chance: Fraction, delta: Fraction) -> Fraction:
    """The p-value with fractions and plain sums."""

    def at_least(k: int) -> Fraction:
        return sum((math.comb(r, j) * chance**j * (1 - chance) ** (r - j) for j in range(max(k, 0), r + 1)), Fraction(0))

    worst = max((at_least(v - i) - at_least(v)) / i for i in range(1, m + 1))
    return min(Fraction(1), at_least(v) + 2 * m * delta * worst)


@pytest.mark.parametrize(("m", "r", "v"), [(12, 8, 7), (12, 8, 4), (20, 20, 20), (20, 1, 1), (9, 6, 0)])
def test_the_tail_of_one_run_by_direct_sums(m: int, r: int, v: int) -> None:
    epsilon = math.log(3)  # chance 3/4
    expected = literal_p_value(m, r, v, Fraction(3, 4), Fraction(1, 1000))
    assert one_run_p_value(m, r, v, epsilon, 1e-3) == pytest.approx(float(expected), rel=1e-12)


def test_one_run_audit_of_a_gaussian_mechanism() -> None:
    """Medians as measured with an independent implementation: 1000 canaries, 100 guesses, δ = 1e-5."""
    for sigma, median in ((1.0, 1.63), (2.0, 0.65)):
        bounds = []
        for seed in range(60):
            rng = np.random.default_rng(seed)
            inside = rng.random(1000) < 0.5
            scores = inside + sigma * rng.standard_normal(1000)
            bounds.append(audit_one_run(scores[inside], scores[~inside], delta=1e-5, guesses=100).epsilon)
        assert np.median(bounds) == pytest.approx(median, abs=0.12)


def test_one_run_audit_is_sharp_where_its_worst_case_is_attained() -> None:
    """Randomized response with ε: the bound is violated in about 5 % of runs, not more."""
    epsilon, violations = 1.0, 0
    chance = math.exp(epsilon) / (1 + math.exp(epsilon))
    for seed in range(1000):
        rng = np.random.default_rng(seed)
        inside = rng.random(400) < 0.5
        scores = np.where(rng.random(400) < chance, inside, ~inside) + 1e-6 * rng.random(400)
        bound = audit_one_run(scores[inside], scores[~inside], delta=0.0, guesses=400)
        violations += bound.epsilon > epsilon
    assert binom.sf(violations - 1, 1000, 0.05) > 1e-4
    assert violations > 10


def test_equal_scores_are_resolved_against_the_attacker() -> None:
    bound = audit_one_run(np.zeros(50), np.zeros(50), delta=1e-5, guesses=40)
    assert bound.epsilon == 0.0
    assert bound.correct == 0
    for members in (2, 5, 8):  # every canary is guessed once, whatever the ties
        everything = audit_one_run(np.zeros(members), np.zeros(10 - members), delta=0.0, guesses=10)
        assert everything.guesses == 10
        assert everything.correct == abs(members - 5)  # half are guessed in, so that some guesses must be right
        assert everything.epsilon == 0.0


def test_a_perfect_attack_proves_what_its_guesses_allow() -> None:
    bound = audit_one_run(np.ones(500), np.zeros(500), delta=0.0, guesses=100)
    assert (1 / (1 + math.exp(-bound.epsilon))) ** 100 == pytest.approx(0.05, rel=1e-6)


def test_many_run_audits_of_gaussian_runs() -> None:
    """μ = 2: valid in nearly all repetitions, and the Gaussian audit reaches further."""
    mus, epsilons = [], []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        inside, outside = 2 + rng.standard_normal(400), rng.standard_normal(400)
        mus.append(audit_gdp(inside, outside, threshold=1.0).mu)
        epsilons.append(audit_clopper_pearson(inside, outside, delta=1e-3, threshold=1.0).epsilon)
    assert binom.sf(sum(mu > 2 for mu in mus) - 1, 200, 0.05) > 1e-3
    assert 1.6 < np.median(mus) < 2.0
    assert 1.0 < np.median(epsilons) < 1.9  # the whole curve is at ε = 4.9 for this δ


def test_clopper_pearson_audit_uses_both_sides_of_the_test() -> None:
    """Few misses, many alarms: the second ratio is the large one."""
    inside, outside = np.ones(1000), np.concatenate([np.ones(500), np.zeros(500)])
    bound = audit_clopper_pearson(inside, outside, delta=0.0, threshold=0.5)
    t, f = 0.025 ** (1 / 1000), binom.ppf(0.975, 1000, 0.5) / 1000
    assert bound.epsilon == pytest.approx(math.log((1 - f) / (1 - t)), abs=0.05)
    assert audit_clopper_pearson(outside, inside, delta=0.0, threshold=0.5).epsilon == 0.0


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: audit_one_run([1.0], [0.0], delta=1.0, guesses=1), r"delta must lie in \[0, 1\)"),
        (lambda: audit_one_run([1.0], [0.0], delta=0.0, guesses=3), r"guesses must be in 1\.\.2"),
        (lambda: audit_one_run([1.0], [0.0], delta=0.0, guesses=1, level=1.0), r"level must lie in \(0, 1\)"),
        (lambda: audit_one_run([math.nan], [0.0], delta=0.0, guesses=1), "scores_in must be finite"),
        (lambda: audit_clopper_pearson([1.0], [], delta=0.0, threshold=0.5), "scores_out must hold at least one"),
        (lambda: audit_gdp([1.0], [0.0], threshold=math.nan), "threshold must be a number"),
        (lambda: one_run_p_value(5, 6, 1, 1.0, 0.0), "correct ≤ guesses ≤ canaries"),
        (lambda: one_run_p_value(5, 5, 1, -1.0, 0.0), "epsilon must not be negative"),
        (lambda: auc([1.0], [0.0, 1.0]), "at least two members"),
    ],
)
def test_arguments_out_of_range(call, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()


def test_shadow_models_are_trained_on_their_halves_alone() -> None:
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(12, 4, generator=g, dtype=torch.float64), torch.randint(0, 3, (12,), generator=g)

    def train(x: torch.Tensor) -> ShadowModels:
        options = {"optimizer": sgd(0.3), "models": 6, "steps": 8, "seed": 3}
        return shadow_models(lambda: torch.nn.Linear(4, 3), torch.nn.functional.cross_entropy, (x, y), **options)

    shadows = train(x)
    assert shadows.membership.sum(0).tolist() == [3] * 12
    changed = x.clone()
    changed[5] = 50.0
    moved = (train(changed).outputs(x) - shadows.outputs(x)).abs().amax((1, 2)) > 1e-6
    assert torch.equal(moved, shadows.membership[:, 5])
    net, _, _ = shadows.population.replica(2)
    with torch.no_grad():
        assert torch.allclose(shadows.outputs(x)[2], net(x), atol=1e-12)
    with pytest.raises(ValueError, match="models must be even"):
        random_halves(5, 4, 0)
