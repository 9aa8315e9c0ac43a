"""Games of features: the interventional one by replacing features, the conditional ones against closed forms, draws and loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from theorylab.core.problem import Problem
from theorylab.instruments.feature_games import feature_game
from theorylab.instruments.feature_values import feature_shapley
from theorylab.instruments.games import coalitions, table
from theorylab.models.mlp import mlp
from theorylab.models.seeded import seeded
from theorylab.theory import games

D = 4


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


MIX = normal(0, D, D)
BACKGROUND = normal(1, 60, D) @ MIX + normal(2, D)  # features of different means and scales that depend on each other
X = normal(3, D) @ MIX
MEAN, COVARIANCE = BACKGROUND.mean(0), torch.cov(BACKGROUND.T, correction=0)
W = normal(4, D)


def conditional_moments(inside: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and covariance (D, D) of the normal law given x on S, by the inverse of one block."""
    mean, covariance = X.clone(), torch.zeros(D, D, dtype=torch.float64)
    out = ~inside
    regression = torch.linalg.lstsq(COVARIANCE[inside][:, inside], COVARIANCE[inside][:, out]).solution  # (S, rest)
    mean[out] = MEAN[out] + (X - MEAN)[inside] @ regression
    covariance[out.nonzero(), out.nonzero().T] = COVARIANCE[out][:, out] - COVARIANCE[out][:, inside] @ regression
    return mean, covariance


def test_the_interventional_game_replaces_absent_features_row_by_row() -> None:
    net = seeded(lambda: mlp([4, 5, 3]), 0)
    x, background = normal(1, 4), normal(2, 6, 4)
    game = feature_game(Problem(net, nn.functional.cross_entropy, (background, torch.zeros(6).long())), x, background, output=2)
    for mask, worth in zip(coalitions(4), table(game, 4), strict=True):
        rows = [torch.stack([x[i] if mask[i] else b[i] for i in range(4)]) for b in background]
        assert float(worth) == pytest.approx(float(net(torch.stack(rows))[:, 2].mean().detach()), abs=1e-12)
    grouped = feature_game(net, x, background, output=2, groups=[[0, 3], [1, 2]])
    torch.testing.assert_close(table(grouped, 2), table(game, 4)[[0, 9, 6, 15]])


def test_values_of_a_linear_model_and_their_sum() -> None:
    w, x, background = normal(5, 5), normal(6, 3, 5), normal(7, 9, 5)
    found = feature_shapley(lambda rows: rows @ w, x, background)
    for values, row in zip(found.values, x, strict=True):
        np.testing.assert_allclose(values, games.linear_model_values(w.numpy(), row.numpy(), background.numpy()), atol=1e-12)
    torch.testing.assert_close(found.base + found.values.sum(1), x @ w)
    sampled = feature_shapley(lambda rows: (rows @ w).sin(), x, background, method="permutation", budget=60)
    assert float(sampled.stderr.min()) > 0


def test_the_normal_law_is_exact_for_a_linear_model() -> None:
    expected = games.conditional_linear_game(W.numpy(), X.numpy(), MEAN.numpy(), COVARIANCE.numpy())
    found = table(feature_game(lambda rows: rows @ W, X, BACKGROUND, law="gaussian"), D)
    np.testing.assert_allclose(found, expected, atol=1e-11)
    values = feature_shapley(lambda rows: rows @ W, X, BACKGROUND, law="gaussian")
    assert values.law == "gaussian"
    np.testing.assert_allclose(values.values[0], games.shapley_of_dividends(games.dividends_of(expected)), atol=1e-11)
    independent = feature_shapley(lambda rows: rows @ W, X, BACKGROUND)
    assert float((values.values - independent.values).abs().max()) > 0.1  # the two games are not one


def test_the_normal_law_is_exact_for_a_quadratic_model() -> None:
    Q = normal(8, D, D)
    found = table(feature_game(lambda rows: (rows @ Q * rows).sum(1) + rows @ W, X, BACKGROUND, law="gaussian"), D)
    for inside, worth in zip(coalitions(D)[1:], found[1:], strict=True):
        mean, covariance = conditional_moments(inside)
        assert float(worth) == pytest.approx(float(mean @ Q @ mean + (Q * covariance).sum() + W @ mean), abs=1e-9)


def test_the_normal_law_of_a_rough_model_is_that_of_draws() -> None:
    background = normal(9, 40_000, D) @ MIX  # normal, so that residuals are
    f = lambda rows: (rows @ W).sin() + rows[:, 0].tanh() * rows[:, 2].abs()  # noqa: E731
    found = table(feature_game(f, X, background, law="gaussian"), D)
    mean, covariance = torch.zeros(D), MIX.T @ MIX
    expected = games.membership(D)  # the order of the table
    for k in (1, 6, 11):
        inside = torch.as_tensor(expected[k])
        out = ~inside
        regression = torch.linalg.lstsq(covariance[inside][:, inside], covariance[inside][:, out]).solution
        spread = torch.linalg.cholesky(covariance[out][:, out] - covariance[out][:, inside] @ regression)
        rows = X.repeat(40_000, 1)
        rows[:, out] = (mean[out] + X[inside] @ regression) + normal(10 + k, 40_000, int(out.sum())) @ spread.T
        answers = f(rows)
        # both sides are means over 40 000 rows: √2 standard errors each; moments of the background err by about as much
        assert float(found[k]) == pytest.approx(float(answers.mean()), abs=4.5 * 2 * float(answers.std()) / 200)


@pytest.mark.parametrize("rho", [-0.8, 0.0, 0.5])
def test_two_correlated_features_have_the_values_of_the_docs(rho: float) -> None:
    signs = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)  # mean 0, covariance 1
    background = signs @ torch.tensor([[1.0, rho], [0.0, (1 - rho**2) ** 0.5]], dtype=torch.float64)
    x, w = torch.tensor([2.0, -0.5], dtype=torch.float64), torch.tensor([0.0, 3.0], dtype=torch.float64)
    values = feature_shapley(lambda rows: rows @ w, x, background, law="gaussian").values[0]
    first = w[0] * x[0] + rho / 2 * (w[1] * x[0] - w[0] * x[1])
    torch.testing.assert_close(values, torch.stack([first, w @ x - first]))
    assert feature_shapley(lambda rows: rows @ w, x, background).values[0, 0] == 0


def test_a_wide_kernel_is_the_interventional_game_and_a_narrow_one_conditions_on_equal_rows() -> None:
    net = seeded(lambda: mlp([D, 6, 1]), 0)
    f = lambda rows: net(rows)[:, 0].detach()  # noqa: E731
    flat = table(feature_game(f, X, BACKGROUND), D)
    torch.testing.assert_close(table(feature_game(f, X, BACKGROUND, law="kernel", bandwidth=1e6), D), flat, rtol=0, atol=1e-9)
    whole = torch.randint(0, 2, (80, D), generator=torch.Generator().manual_seed(0)).double()
    found = table(feature_game(f, whole[0], whole, law="kernel", bandwidth=0.01), D)
    for inside, worth in zip(coalitions(D), found, strict=True):
        equal = whole[(whole == whole[0])[:, inside].all(1)]  # the law of the background itself, given x on S
        rows = torch.where(inside, whole[0], equal)
        assert float(worth) == pytest.approx(float(f(rows).mean()), abs=1e-12)


def test_a_kernel_is_its_formula() -> None:
    f = lambda rows: (rows @ W).sin()  # noqa: E731
    found = table(feature_game(f, X, BACKGROUND, law="kernel", bandwidth=0.4), D)
    for inside, worth in zip(coalitions(D)[1:-1], found[1:-1], strict=True):
        block, weights, answers = COVARIANCE[inside][:, inside], [], []
        for b in BACKGROUND:
            gap = (X - b)[inside]
            squared = gap @ torch.linalg.lstsq(block, gap[:, None]).solution[:, 0] / inside.sum()
            weights.append(float(torch.exp(-squared / (2 * 0.4**2))))
            answers.append(float(f(torch.where(inside, X, b)[None])))
        assert float(worth) == pytest.approx(np.average(answers, weights=weights), abs=1e-10)
    nobody_near = feature_game(f, X + 1000, BACKGROUND, law="kernel", bandwidth=0.01)
    assert bool(table(nobody_near, D).isfinite().all())  # weights that all vanish in the formula still add up to one


@pytest.mark.parametrize("law", ["gaussian", "kernel"])
def test_dependent_features_are_fine_where_the_row_obeys_and_refused_where_not(law: str) -> None:
    one_hot = nn.functional.one_hot(torch.arange(30) % 3, 3).double()  # three columns that add up to one
    background = torch.cat([one_hot, normal(0, 30, 1), torch.full((30, 1), 0.1, dtype=torch.float64)], 1)
    x = torch.cat([one_hot[1], torch.tensor([0.7, 0.1], dtype=torch.float64)])
    found = feature_shapley(lambda rows: rows[:, 2] + rows[:, 3], x, background, law=law)  # type: ignore[arg-type]
    assert float(found.base + found.values.sum()) == pytest.approx(0.7)
    game = feature_game(lambda rows: rows[:, 2], x, background, law=law, bandwidth=0.01)  # type: ignore[arg-type]
    known = torch.tensor([[False, True, False, False, False], [True, True, False, False, False]])
    # the second category is there, so the third is not; under the kernel by the rows alone, under the normal law by its mean
    assert float(game(known)[1]) == pytest.approx(0.0, abs=1e-9)
    broken = x.clone()
    broken[0] = 1.0  # two categories at once
    with pytest.raises(ValueError, match="linear dependence"):
        feature_game(lambda rows: rows[:, 2], broken, background, law=law)  # type: ignore[arg-type]
    constant = x.clone()
    constant[4] = 0.2
    with pytest.raises(ValueError, match="feature 4"):
        feature_game(lambda rows: rows[:, 2], constant, background, law=law)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="more rows than features"):
        feature_game(lambda rows: rows @ W, X, BACKGROUND[:3], law=law)  # type: ignore[arg-type]


@pytest.mark.parametrize("law", ["gaussian", "kernel"])
def test_conditional_games_do_not_depend_on_units_or_on_how_calls_are_cut(law: str, monkeypatch: pytest.MonkeyPatch) -> None:
    f = lambda rows: (rows @ W).sin()  # noqa: E731
    scale, shift = torch.tensor([1e-6, 1.0, 1e6, -3.0], dtype=torch.float64), torch.tensor([0.0, 5.0, 1e6, 1.0], dtype=torch.float64)
    plain = table(feature_game(f, X, BACKGROUND, law=law, bandwidth=0.5), D)  # type: ignore[arg-type]
    unscaled = lambda rows: f((rows - shift) / scale)  # noqa: E731
    moved = feature_game(unscaled, X * scale + shift, BACKGROUND * scale + shift, law=law, bandwidth=0.5)  # type: ignore[arg-type]
    torch.testing.assert_close(table(moved, D), plain, rtol=0, atol=1e-8)
    monkeypatch.setattr("theorylab.instruments.feature_games.EVALUATED", 1)
    torch.testing.assert_close(table(feature_game(f, X, BACKGROUND, law=law, bandwidth=0.5), D), plain, rtol=0, atol=1e-12)  # type: ignore[arg-type]


def test_groups_condition_on_all_their_features() -> None:
    f = lambda rows: (rows @ W).sin()  # noqa: E731
    for law in ("gaussian", "kernel"):
        grouped = table(feature_game(f, X, BACKGROUND, law=law, groups=[[0, 3], [1, 2]]), 2)  # type: ignore[arg-type]
        torch.testing.assert_close(grouped, table(feature_game(f, X, BACKGROUND, law=law), D)[[0, 9, 6, 15]])  # type: ignore[arg-type]


def test_single_precision_is_near_double() -> None:
    f = lambda rows: (rows @ W.to(rows)).sin()  # noqa: E731
    for law in ("interventional", "gaussian", "kernel"):
        double = feature_shapley(f, X, BACKGROUND, law=law).values  # type: ignore[arg-type]
        single = feature_shapley(f, X.float(), BACKGROUND.float(), law=law).values  # type: ignore[arg-type]
        torch.testing.assert_close(single, double, rtol=0, atol=2e-5)
    net = seeded(lambda: mlp([D, 6, 1]), 0).float()
    problem = Problem(net, nn.functional.mse_loss, (BACKGROUND.float(), torch.zeros(60, 1)))
    assert bool(feature_shapley(problem, X, BACKGROUND).values.isfinite().all())  # rows are given in the problem's precision


def test_a_module_is_asked_in_evaluation_mode_and_left_as_it_was() -> None:
    net = nn.Sequential(nn.Linear(D, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1)).double().train()
    before, state = {k: v.clone() for k, v in net.state_dict().items()}, torch.get_rng_state()
    found, again = (feature_shapley(net, X, BACKGROUND).values for _ in range(2))
    assert torch.equal(found, again)
    assert net.training
    assert net[1].training
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: feature_game(lambda rows: rows, X, BACKGROUND), "output must name one of the 4"),
        (lambda: feature_game(lambda rows: rows, X, BACKGROUND, output=4), r"output must lie in 0 \.\.\. 3"),
        (lambda: feature_game(lambda rows: rows, X, BACKGROUND, output=-1), "output must lie"),
        (lambda: feature_game(lambda rows: rows.mean(), X, BACKGROUND), "model must return"),
        (lambda: feature_game(lambda rows: rows[:, None, :], X, BACKGROUND), "model must return"),
        (lambda: feature_game(lambda rows: rows[:, 0], X, BACKGROUND[:0]), "background"),
        (lambda: feature_game(lambda rows: rows[:, 0], X, BACKGROUND[:, :3]), "background"),
        (lambda: feature_game(lambda rows: rows[:, 0], X * torch.nan, BACKGROUND), "finite"),
        (lambda: feature_game(lambda rows: rows[:, 0], X, BACKGROUND, groups=[[0], [0, 1]]), "groups must hold"),
        (lambda: feature_game(lambda rows: rows[:, 0], X, BACKGROUND, law="causal"), "law must"),  # type: ignore[arg-type]
        (lambda: feature_game(lambda rows: rows[:, 0], X, BACKGROUND, law="kernel", bandwidth=0.0), "bandwidth"),
        (lambda: feature_shapley(lambda rows: rows[:, 0], X[None, None], BACKGROUND), "x must be rows"),
        (lambda: feature_shapley(lambda rows: rows[:, 0] * torch.nan, X, BACKGROUND), "finite"),
    ],
)
def test_what_is_refused(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
