"""Scaling rules, and the check of one on a model: equal training gives equality, a wrong rule a failure, and the plan comes first."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

import theorylab as tl
from theorylab.core.claim import Verdict
from theorylab.core.estimate import mean_interval
from theorylab.learning.optimizers.adam import adam
from theorylab.learning.optimizers.sgd import sgd
from theorylab.learning.population import Population
from theorylab.learning.scaling_check import ScalingPlan, scaling_check, scaling_plan
from theorylab.learning.scaling_rules import Recipe, linear_rule, same_settings, square_root_rule

BASE = Recipe(lr=0.002, batch_size=2, steps=256)


def model() -> nn.Module:
    return nn.Linear(4, 1)


def data() -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(256, 4, generator=g)
    return x, x @ torch.ones(4, 1) + 1 + 0.3 * torch.randn(256, 1, generator=g)


def check(**changed):
    given = {"optimizer": lambda r: sgd(r.lr), "base": BASE, "ks": [4, 16], "rule": "linear", "announce": lambda plan: None}
    return scaling_check(model, mse_loss, data(), **{**given, **changed})


def test_rules_keep_what_they_are_to_keep() -> None:
    base = Recipe(lr=0.3, batch_size=4, steps=800, betas=(0.99, 0.999), eps=1e-6)
    for k in (1, 4, 16):
        linear, root, same = (rule(base, k) for rule in (linear_rule, square_root_rule, same_settings))
        for recipe in (linear, root, same):
            assert recipe.batch_size * recipe.steps == base.batch_size * base.steps  # rows
        assert linear.lr * linear.steps == pytest.approx(base.lr * base.steps)  # distance along a constant gradient
        assert linear.lr**2 / linear.batch_size * linear.steps == pytest.approx(base.lr**2 / base.batch_size * base.steps)  # variance
        assert root.lr**2 * root.steps == pytest.approx(base.lr**2 * base.steps)  # variance of steps of fixed length
        assert root.lr * root.batch_size**0.5 * root.steps == pytest.approx(base.lr * base.batch_size**0.5 * base.steps)
        for a, b in zip(root.betas, base.betas, strict=True):
            assert root.batch_size / (1 - a) == pytest.approx(base.batch_size / (1 - b))  # memory, in rows
        assert root.eps * root.batch_size**0.5 == pytest.approx(base.eps * base.batch_size**0.5)  # against the noise
        assert (same.lr, same.betas, same.eps) == (base.lr, base.betas, base.eps)


def test_the_linear_rule_holds_where_steps_are_small_and_nothing_changed_does_not() -> None:
    found = check()
    assert [run.verdict for run in found.with_rule] == [Verdict.HOLDS, Verdict.HOLDS]
    assert [run.verdict for run in found.without] == [Verdict.FAILS, Verdict.FAILS]
    assert "with the rule, k = 16" in str(found)


def test_the_losses_are_those_of_populations_and_the_verdict_that_of_their_paired_change() -> None:
    found = check(ks=[4], seeds=[3, 5, 8, 9])
    losses = []
    for recipe in (BASE, linear_rule(BASE, 4)):
        population = Population(model, mse_loss, data(), optimizer=sgd(recipe.lr), seeds=[3, 5, 8, 9], batch_size=recipe.batch_size)
        population.train(recipe.steps)
        losses.append(population.losses())
    torch.testing.assert_close(torch.tensor(found.losses, dtype=torch.float64), losses[0], rtol=1e-9, atol=0)
    change = (losses[1] - losses[0]) / losses[0].mean()
    (run,) = found.with_rule
    assert run.change == pytest.approx(float(change.mean()), rel=1e-6)
    assert run.interval == pytest.approx(mean_interval(change.tolist()), rel=1e-6)
    low, high = run.interval
    assert check(ks=[4], seeds=[3, 5, 8, 9], margin=1.01 * max(-low, high)).with_rule[0].verdict is Verdict.HOLDS
    assert check(ks=[4], seeds=[3, 5, 8, 9], margin=0.99 * max(-low, high)).with_rule[0].verdict is not Verdict.HOLDS


def test_a_rule_that_diverges_fails_with_an_infinite_change() -> None:
    found = check(ks=[64], rule=lambda recipe, k: linear_rule(Recipe(1e3 * recipe.lr, recipe.batch_size, recipe.steps * 16), k))
    (run,) = found.with_rule
    assert math.isinf(run.change)
    assert run.verdict is Verdict.FAILS
    with pytest.raises(FloatingPointError, match="diverged at k = 1 already"):
        check(base=Recipe(lr=100.0, batch_size=2, steps=256))


def test_a_loss_of_zero_is_nothing_to_compare_with() -> None:
    with pytest.raises(ValueError, match="mean loss at k = 1 must be positive"):
        scaling_check(
            model,
            lambda f, y: 0 * (f - y).square().mean(),
            data(),
            optimizer=lambda r: sgd(r.lr),
            base=BASE,
            ks=[4],
            rule="linear",
            announce=lambda plan: None,
        )


def test_adams_square_root_rule_reaches_the_optimizer() -> None:
    seen = []

    def make(recipe: Recipe):
        seen.append(recipe)
        return adam(recipe.lr, betas=(recipe.betas[0], recipe.betas[1]), eps=recipe.eps)

    check(optimizer=make, rule="square_root", ks=[4], base=Recipe(0.01, 2, 64, betas=(0.9, 0.99), eps=1e-8))
    assert any(r.lr == pytest.approx(0.02) and r.betas == pytest.approx((0.6, 0.96)) and r.eps == 5e-9 for r in seen)


def test_the_cost_is_said_before_anything_is_trained() -> None:
    plans: list[ScalingPlan] = []

    def stop(plan: ScalingPlan) -> None:
        plans.append(plan)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check(announce=stop, seeds=range(4))
    (plan,) = plans
    assert plan.rows == 4 * 5 * 512  # seeds, runs, rows of each
    assert plan.seconds > 0
    assert "5 runs of 4 seeds: gradients of 1.02e+04 rows" in str(plan)
    again = scaling_plan(model, mse_loss, data(), optimizer=lambda r: sgd(r.lr), base=BASE, ks=[4, 16], rule="linear", seeds=range(4))
    assert (again.rows, again.scaled, again.unscaled) == (plan.rows, plan.scaled, plan.unscaled)


def test_the_plan_is_printed_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    tl.scaling_check(model, mse_loss, data(), optimizer=lambda r: sgd(r.lr), base=Recipe(0.002, 2, 8), ks=[4], rule="linear", seeds=[0, 1])
    assert "3 runs of 2 seeds" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"rule": "square_root", "base": Recipe(0.01, 2, 256, betas=(0.9, 0.99))},
            r"k\(1 − β\) must be below 1 .* got 16·\(1 − 0.9\) = 1.6",
        ),
        ({"rule": "cubic"}, "rule must be one of linear, square_root"),
        ({"ks": []}, "ks must name at least one factor"),
        ({"ks": [3]}, "k must be at least 1 and divide the number of steps, 256, got 3"),
        ({"seeds": [1]}, "seeds must be at least 2"),
        ({"seeds": 1}, "seeds must be at least 2 to give an interval, got 1"),
        ({"seeds": [0, 0, 0, 0]}, r"seeds must be different, .* got \(0, 0, 0, 0\)"),
        ({"margin": 0.0}, "margin must be positive"),
        ({"ks": [256]}, "batch_size must be in 1..256"),
    ],
)
def test_wrong_input_is_refused(changed, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(**changed)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Recipe(0.1, 0, 10), "batch_size and steps must be at least 1"),
        (lambda: Recipe(0.1, 1, 10, betas=(1.0,)), "betas must lie in"),
        (lambda: Recipe(-0.1, 1, 10), "must not be negative"),
        (lambda: Recipe(float("nan"), 1, 10), "must not be negative"),
    ],
)
def test_a_recipe_checks_its_ranges(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
