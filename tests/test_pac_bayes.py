"""PAC-Bayes: the inequalities against each other and slow inversions, and certificates that hold, and do not for random labels."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch
from scipy.optimize import brentq, minimize_scalar
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import ZOO, Attention, make

from theorylab.core.instrument import Inapplicable, instruments
from theorylab.core.problem import Problem
from theorylab.data.digits import digits
from theorylab.instruments.bounds import Bound, test_bound
from theorylab.instruments.certify import Training, certify, certify_slowly, draw_seed
from theorylab.learning.pac_bayes import FLAT, Gaussian, complexity, differentiable_bound, fit_gaussian, pac_bayes_bound
from theorylab.models.mlp import mlp
from theorylab.stats.betting import betting_upper_bound, log_capital
from theorylab.stats.binomial import clopper_pearson, mean_upper_bound

KINDS = pytest.mark.parametrize("kind", ["kl", "quad", "lambda", "catoni"])
QUICK = Training(epochs=5, lr=0.01)


def random_cases(count: int = 60) -> list[tuple[float, float, int, float]]:
    rng = np.random.default_rng(0)
    return [(rng.uniform(0, 0.6), 10 ** rng.uniform(-2, 2), int(rng.integers(20, 2000)), rng.uniform(0.001, 0.2)) for _ in range(count)]


def test_the_inequalities_are_ordered_and_the_best_lambda_is_the_closed_form() -> None:
    for e, kl, n, delta in random_cases():
        k = float(complexity(kl, n, delta))
        best = minimize_scalar(
            lambda t, e=e, k=k: e / (1 - t / 2) + 2 * k / (t * (1 - t / 2)),
            bounds=(1e-9, 2 - 1e-9),
            method="bounded",
            options={"xatol": 1e-12},
        )
        values = {kind: pac_bayes_bound(kind, e, kl, n, delta) for kind in ("kl", "quad", "lambda", "catoni")}
        assert values["lambda"] == pytest.approx(min(1.0, best.fun), rel=1e-9)
        assert values["quad"] == pytest.approx(values["lambda"], rel=1e-12)
        assert e <= values["kl"] <= values["quad"] + 1e-12
        assert values["kl"] <= e + math.sqrt(k) + 1e-12
        assert e <= values["catoni"] <= 1


@KINDS
def test_what_is_trained_by_is_the_bound_with_its_derivatives(kind: str) -> None:
    for e, kl, n, delta in random_cases(20):
        leaves = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (max(e, 0.01), kl)]
        exact = pac_bayes_bound(kind, max(e, 0.01), kl, n, delta)  # type: ignore[arg-type]
        value = differentiable_bound(kind, leaves[0], leaves[1], n, delta)  # type: ignore[arg-type]
        if exact > FLAT - 0.01:
            assert float(value.detach()) >= exact - 1e-9  # the quadratic bound instead, not cut at one
            assert all(float(g) > 0 for g in torch.autograd.grad(value, leaves))
            continue
        assert float(value.detach()) == pytest.approx(exact, rel=1e-9)
        for i, grad in enumerate(torch.autograd.grad(value, leaves)):
            at = [max(e, 0.01), kl]
            h = 1e-5 * at[i]
            sides = [pac_bayes_bound(kind, *(v + s * h * (j == i) for j, v in enumerate(at)), n, delta) for s in (1, -1)]  # type: ignore
            assert float(grad) == pytest.approx((sides[0] - sides[1]) / (2 * h), rel=1e-4)


def test_kl_of_gaussians_and_draws() -> None:
    torch.manual_seed(0)
    a, b = (Gaussian(torch.randn(50).double(), torch.rand(50).double() + 0.1) for _ in range(2))
    normal = [torch.distributions.Independent(torch.distributions.Normal(g.mean, g.std), 1) for g in (a, b)]
    assert float(a.kl(b)) == pytest.approx(float(torch.distributions.kl_divergence(*normal)), rel=1e-12)
    assert float(a.kl(a)) == 0
    draws = torch.stack([a.draw(i) for i in range(4000)])
    assert float(((draws.mean(0) - a.mean) / a.std).abs().max()) < 5 / math.sqrt(4000)
    assert torch.equal(a.draw(7), draws[7])


@pytest.mark.parametrize("change", [{"kind": "best"}, {"error": 1.1}, {"kl": -1.0}, {"n": 0}, {"delta": 1.0}])
def test_a_bound_refuses(change: dict) -> None:
    with pytest.raises(ValueError, match="must"):
        pac_bayes_bound(**{"kind": "kl", "error": 0.1, "kl": 1.0, "n": 10, "delta": 0.1, **change})


@pytest.mark.parametrize("change", [{"kl": -1.0}, {"n": 0}, {"delta": 2.0}, {"delta": math.nan}])
def test_the_slack_refuses_what_the_bound_does(change: dict) -> None:
    given = {"kl": 1.0, "n": 10, "delta": 0.1, **change}
    with pytest.raises(ValueError, match="kl must be at least 0, n at least 1 and delta in"):
        complexity(**given)
    given["kl"] = torch.tensor(given["kl"])
    with pytest.raises(ValueError, match="must"):
        differentiable_bound("quad", torch.tensor(0.1), **given)


@pytest.mark.parametrize("name", ["error", "kl"])
def test_numbers_are_not_differentiated(name: str) -> None:
    with pytest.raises(TypeError, match=f"{name} must be a tensor.*got float: use pac_bayes_bound"):
        differentiable_bound("kl", **{"error": torch.tensor(0.1), "kl": torch.tensor(1.0), name: 0.1}, n=10, delta=0.1)  # type: ignore[arg-type]


def test_rounding_leaves_no_negative_entropy() -> None:
    std = torch.linspace(0.1, 1, 1000)
    one, other = Gaussian(torch.zeros(1000), std), Gaussian(torch.zeros(1000), std.nextafter(torch.ones(1000)))
    assert float(one.kl(other)) >= 0
    assert float(other.kl(one)) >= 0


def test_training_that_diverges_says_so() -> None:
    with pytest.raises(FloatingPointError, match="lower lr"):
        fit_gaussian(lambda w, q, t: w.sum() * float("nan"), Gaussian(torch.zeros(2), torch.ones(2)), steps=3, lr=0.1, seed=0)


def test_the_betting_bound_is_where_the_capital_reaches_one_over_delta() -> None:
    rng = np.random.default_rng(0)
    for a, b, n in ((1, 9, 40), (0.1, 0.3, 100), (50, 800, 400)):
        x = rng.beta(a, b, n)
        root = brentq(lambda m, x=x: log_capital(x, m) - math.log(100), x.mean(), 1 - 1e-12, xtol=1e-14)
        assert root <= betting_upper_bound(x, 0.01) <= root + 1e-8
    assert betting_upper_bound([1.0, 1.0], 0.1) == 1.0
    for bad in ([1.2], [-0.1], [math.nan], []):
        with pytest.raises(ValueError, match="must"):
            betting_upper_bound(bad, 0.1)


def test_the_betting_bound_covers_and_pays_when_the_variance_is_small() -> None:
    """Coins are its worst case; the sample size and the draws were fixed beforehand."""
    rng, delta, trials = np.random.default_rng(1), 0.1, 400
    missed = sum(betting_upper_bound((rng.random(30) < 0.3).astype(float), delta) < 0.3 for _ in range(trials))
    assert clopper_pearson(missed, trials, 0.01) <= delta
    steady = 0.05 + 0.005 * rng.standard_normal(400).clip(-3, 3)
    assert betting_upper_bound(steady, 0.01) < 0.05 + 0.4 * (mean_upper_bound(float(steady.mean()), 400, 0.01) - 0.05)


@pytest.mark.parametrize(
    "name", ["mlp", "mlp, row losses", "cnn, BatchNorm eval", "attention, tied", "TransformerEncoderLayer", "LSTM", "frozen and trainable"]
)
def test_a_certificate_agrees_with_its_oracle(name: str) -> None:
    problem = make(name)
    options = {"training": QUICK, "mc": 7, "seed": 3}
    assert_same(certify(problem, **options), certify_slowly(problem, **options))


@KINDS
def test_every_kind_agrees_with_its_oracle_and_with_either_prior(kind: str) -> None:
    problem = make("mlp")
    for more in ({}, {"prior": "data_free"}, {"risk": "loss", "clamp": 2.0}):
        options = {"training": QUICK, "mc": 7, "kind": kind, **more}
        assert_same(certify(problem, **options), certify_slowly(problem, **options))


def assert_same(fast: Bound, slow: Bound) -> None:
    assert fast.value == pytest.approx(slow.value, rel=1e-9)
    assert dict(fast.terms) == pytest.approx(dict(slow.terms), rel=1e-9)


def test_the_zoo_is_certified_or_refused_with_a_reason_and_left_as_it_was() -> None:
    refused: set[str] = set()
    for name in ZOO:
        problem = make(name)
        before, rng = {k: t.clone() for k, t in problem.model.state_dict().items()}, torch.get_rng_state()
        reason = instruments()["certify"].why_not(problem)
        if reason is None:
            assert 0 < certify(problem, training=Training(epochs=1), mc=3).value <= 1
        else:
            refused.add(reason.split(".")[0])
        assert all(torch.equal(t, before[k]) for k, t in problem.model.state_dict().items())
        assert torch.equal(torch.get_rng_state(), rng)
        assert all(p.grad is None for p in problem.model.parameters())
    assert {r.split()[0] for r in refused} == {"BatchNorm", "dropout", "the"}  # the loss has the form loss(model, batch)


def test_neither_the_trained_parameters_nor_the_buffers_reach_the_prior() -> None:
    """What was trained on all rows must not leak into what is certified on half of them."""
    problem = make("cnn, BatchNorm eval")
    trained = problem.at({k: p + 1 for k, p in problem.params.items()})
    trained._buffers = {k: b + 1 if b.is_floating_point() else b for k, b in problem._buffers.items()}
    options = {"training": QUICK, "mc": 5}
    assert certify(problem, **options) == certify(trained, **options)
    leaked = certify(trained, init=trained.params, **options)
    assert leaked.value != certify(problem, **options).value
    assert "init does not depend on the bound's rows" in leaked.assumptions


def test_the_draws_that_are_counted_are_none_that_training_has_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise that the posterior was trained under is not independent of it, and would flatter the empirical risk."""
    used: list[int] = []
    original = torch.Generator.manual_seed

    class Spy(torch.Generator):
        def manual_seed(self, seed: int) -> torch.Generator:
            used.append(seed)
            return original(self, seed)

    monkeypatch.setattr(torch, "Generator", Spy)
    certify(make("mlp"), training=QUICK, mc=5, seed=4)
    draws = [draw_seed(4, i) for i in range(5)]
    assert [s for s in used if s in draws] == draws
    assert len(used) > len(draws)
    assert len({draw_seed(s, i) for s in range(3) for i in range(4)}) == 12


def test_rows_are_kept_apart() -> None:
    problem = make("mlp")
    certificate = certify(problem, prior_rows=torch.tensor([0, 5]), training=QUICK, mc=3)
    assert certificate.rows.tolist() == [1, 2, 3, 4, 6, 7, 8, 9, 10, 11]
    with pytest.raises(ValueError, match=r"must not hold rows that the prior was trained on, got 1 of them, e\.g\. row 5"):
        certify(problem, prior_rows=torch.tensor([0, 5]), bound_rows=torch.tensor([4, 5]))
    with pytest.raises(ValueError, match="prior_rows must be left out"):
        certify(problem, prior="data_free", prior_rows=0.5)
    with pytest.raises(ValueError, match="must leave rows"):
        certify(problem, prior_rows=1.0)


@pytest.mark.parametrize("prior", ["split", "data_free"])
def test_a_mask_counts_the_rows_that_it_marks(prior: Literal["split", "data_free"]) -> None:
    problem, options = make("mlp"), {"prior": prior, "training": QUICK, "mc": 3}
    mask = torch.arange(12) % 3 > 0
    apart = {"prior_rows": ~mask} if prior == "split" else {}
    found = certify(problem, bound_rows=mask, **apart, **options)
    assert found.rows.tolist() == [1, 2, 4, 5, 7, 8, 10, 11]
    assert found.terms["rows"] == 8
    numbers = {name: rows.nonzero()[:, 0] for name, rows in apart.items()}
    assert found == certify(problem, bound_rows=mask.nonzero()[:, 0], **numbers, **options)


@pytest.mark.parametrize("prior", ["split", "data_free"])
@pytest.mark.parametrize(
    ("rows", "match"),
    [
        (torch.zeros(2000, dtype=torch.long), "bound_rows must hold each row once, got row 0 2000 times"),
        (torch.tensor([3, 4, 3]), "got row 3 2 times"),
        (torch.tensor([11, 12]), r"bound_rows must lie in 0\.\.11, got 11\.\.12"),
        (torch.tensor([-1, 3]), r"bound_rows must lie in 0\.\.11, got -1\.\.3"),
        (torch.tensor([1.0, 2.0]), r"bound_rows must be a list of at least one row number.*float32"),
        (torch.zeros(12, dtype=torch.bool), "at least one row number, or a mask that marks one"),
        (torch.ones(5, dtype=torch.bool), r"one entry for each of the 12 rows, got shape \(5,\)"),
    ],
)
def test_rows_that_are_no_independent_draws_are_not_counted(prior: Literal["split", "data_free"], rows: Tensor, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        certify(make("mlp"), prior=prior, bound_rows=rows)


def test_a_prior_has_rows_of_its_own_under_whatever_name() -> None:
    problem = make("mlp")
    for rows, match in (
        (torch.arange(-6, 0), r"prior_rows must lie in 0\.\.11, got -6\.\.-1"),  # the same rows as 6 ... 11
        (torch.tensor([2, 2]), "prior_rows must hold each row once"),
        (torch.arange(12), "got all 12 of them"),
        (torch.tensor(0.5), "at least one row number"),
    ):
        with pytest.raises(ValueError, match=match):
            certify(problem, prior_rows=rows, bound_rows=torch.arange(6, 12))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"kind": "best"}, "kind must be one of"),
        ({"prior": "posterior"}, "prior must be one of"),
        ({"delta": 0.0}, "delta must lie"),
        ({"mc": 1}, "mc be at least 2"),
        ({"risk": "loss"}, "clamp must be given for a loss, which is unbounded"),
        ({"clamp": 1.0}, "clamp belongs to"),
    ],
)
def test_certify_refuses_options(options: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        certify(make("mlp"), **options)


def test_certify_refuses_models_it_cannot_start_afresh_and_targets_without_classes() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            return self.gain * x

    net, x = nn.Sequential(nn.Linear(5, 3), Scale()), torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
    problem = Problem(net, F.cross_entropy, (x, torch.arange(12) % 3))
    with pytest.raises(Inapplicable, match=r"1.gain belongs to a Scale without reset_parameters"):
        certify(problem)
    assert certify(problem, init=problem.params, training=QUICK, mc=3).value <= 1
    regression = Problem(nn.Linear(5, 1), F.mse_loss, (x, x[:, :1]))
    with pytest.raises(Inapplicable, match="risk='loss'"):
        certify(regression)


def test_certify_refuses_batches_that_cannot_be_put_into_one() -> None:
    lengths = [(torch.zeros(3, k, dtype=torch.long), torch.arange(3)) for k in (3, 4)]
    with pytest.raises(Inapplicable, match="Pad them to one length"):
        certify(Problem(Attention(tied=False), F.cross_entropy, lengths))


def test_a_loss_of_a_regression_is_certified_under_its_clamp() -> None:
    x = torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
    problem = Problem(nn.Linear(2, 1), F.mse_loss, (x, x[:, :1] + 0.1))
    bound = certify(problem, risk="loss", clamp=4.0, training=Training(epochs=30, lr=0.03), mc=100)
    fresh = torch.randn(4000, 2, generator=torch.Generator().manual_seed(1))
    test = Problem(nn.Linear(2, 1), F.mse_loss, (fresh, fresh[:, :1] + 0.1))
    true = sum(float(test.loss(test.unflatten(bound.posterior.draw(10_000 + i)))) for i in range(20)) / 20
    assert true < bound.value < 1.0
    assert "loss cut at 4" in bound.quantity


@pytest.fixture(scope="module")
def rows() -> tuple[Tensor, Tensor]:
    return tuple(digits(seed=0, dtype=torch.float32))  # type: ignore[return-value]


def digits_problem(x: Tensor, y: Tensor) -> Problem:
    return Problem(mlp([64, 32, 10], activation="relu"), F.cross_entropy, (x, y))


def test_digits_are_certified_and_random_labels_are_not(rows: tuple[Tensor, Tensor]) -> None:
    x, y = rows
    how = {"training": Training(epochs=16, lr=6e-3), "mc": 400}
    certificate = certify(digits_problem(x[:1400], y[:1400]), **how)
    test = digits_problem(x[1400:], y[1400:])
    errors = [test_bound(test.at(test.unflatten(certificate.posterior.draw(10_000 + i)))).terms["empirical error"] for i in range(20)]
    assert sum(errors) / 20 <= certificate.value <= 0.2
    assert certificate.beside is not None
    assert certificate.beside.value < certificate.value  # a test set says more about one network than a bound about many

    noise = torch.randint(10, (1400,), generator=torch.Generator().manual_seed(0))
    assert certify(digits_problem(x[:1400], noise), **how).value > 0.85


def test_more_draws_tighten_and_every_part_of_delta_is_itemized(rows: tuple[Tensor, Tensor]) -> None:
    x, y = rows
    few, many = (certify(digits_problem(x[:400], y[:400]), training=Training(epochs=10, lr=3e-3), mc=mc) for mc in (20, 200))
    assert many.terms["empirical risk, Monte Carlo bound"] < few.terms["empirical risk, Monte Carlo bound"]
    assert few.total_delta == pytest.approx(0.05)
    assert [r.label for r in few.readings()] == ["bound", "bound"]
    assert replace(few, value=0.5).posterior is few.posterior
