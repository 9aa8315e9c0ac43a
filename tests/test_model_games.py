"""Games of models and values of rows: against loops over fits, brute force, and scikit-learn."""

from __future__ import annotations

import itertools
import warnings

import matplotlib as mpl
import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from theorylab.data.digits import digits
from theorylab.data.tabular import breast_cancer
from theorylab.instruments.class_values import class_game, class_wise_shapley
from theorylab.instruments.data_values import data_oob, knn_shapley
from theorylab.instruments.feature_values import feature_shapley
from theorylab.instruments.games import Game, coalitions, table
from theorylab.instruments.interactions import interactions
from theorylab.instruments.model_games import linear_game, retraining_game
from theorylab.instruments.valuation import shapley
from theorylab.learning.linear import logistic, ridge
from theorylab.learning.optimizers.sgd import sgd
from theorylab.models.mlp import mlp
from theorylab.models.seeded import seeded
from theorylab.theory import games


def subsets(P: int, n: int) -> Tensor:
    return torch.rand(P, n, generator=torch.Generator().manual_seed(0)) < 0.4


def test_logistic_game_has_the_accuracies_of_scikit_learn() -> None:
    x, y = breast_cancer(140)
    train, test = (x[:40], y[:40]), (x[40:], y[40:])
    masks = subsets(30, 40)
    masks[0], masks[1] = False, train[1] == 1  # nobody, and one class
    worths = linear_game(*train, *test)(masks)
    assert worths[0] == 0.5
    assert worths[1] == (test[1] == 1).double().mean()
    for mask, worth in zip(masks[2:], worths[2:], strict=True):
        reference = LogisticRegression(C=1.0, solver="newton-cholesky", tol=1e-10).fit(train[0][mask], train[1][mask])
        assert worth == pytest.approx(reference.score(*test), abs=1e-12)


def test_ridge_games_are_fits_on_the_rows_alone() -> None:
    x, y = digits(60)
    masks = subsets(5, 30)
    one_hot = nn.functional.one_hot(y, 10).double()
    accuracy = linear_game(x[:30], y[:30], x[30:], y[30:], learner="ridge", l2=0.3)(masks)
    squared = linear_game(x[:30], x[:30, 20], x[30:], x[30:, 20], learner="ridge", l2=0.3)(masks)
    for k, mask in enumerate(masks):
        ones = torch.ones(1, int(mask.sum()))
        labels = ridge(x[:30][mask], one_hot[:30][mask], ones, l2=0.3).classes(x[30:])[0]
        assert accuracy[k] == (labels == y[30:]).double().mean()
        outputs = ridge(x[:30][mask], x[:30, 20][mask], ones, l2=0.3).outputs(x[30:])[0, :, 0]
        assert float(squared[k]) == pytest.approx(-float((outputs - x[30:, 20]).square().mean()), abs=1e-9)


@pytest.mark.parametrize("noise", ["none", "fresh"])
def test_a_retraining_game_trains_on_the_rows_alone(noise: str) -> None:
    x, y = digits(30)
    make = lambda: mlp([64, 4, 10])  # noqa: E731
    score = lambda outputs, targets: -torch.stack([nn.functional.cross_entropy(o, targets) for o in outputs])  # noqa: E731
    game = retraining_game(
        make,
        nn.functional.cross_entropy,
        (x[:10], y[:10]),
        (x[10:], y[10:]),
        optimizer=sgd(0.3),
        steps=7,
        seed=5,
        noise=noise,  # type: ignore[arg-type]
        score=score,
        chunk=3,
    )  # type: ignore[arg-type]
    masks = subsets(4, 10)
    masks[2] = False
    worths = game(masks)
    assert torch.equal(worths, game(masks))
    if noise == "none":
        for mask, worth in zip(masks, worths, strict=True):
            net = seeded(make, 5)
            for _ in range(7 if mask.any() else 0):
                grads = torch.autograd.grad(nn.functional.cross_entropy(net(x[:10][mask]), y[:10][mask]), list(net.parameters()))
                with torch.no_grad():
                    for p, g in zip(net.parameters(), grads, strict=True):
                        p -= 0.3 * g
            assert float(worth) == pytest.approx(-float(nn.functional.cross_entropy(net(x[10:]), y[10:]).detach()), abs=1e-9)
    else:
        twice = game(masks[[0, 0, 1]])
        assert twice[0] == twice[1] == worths[0]  # the coalition decides, not where it stands


def brute_knn(x: Tensor, y: Tensor, x_test: Tensor, y_test: Tensor, k: int) -> Tensor:
    """Enumeration, with ties in the order of rows."""

    def value(masks: Tensor) -> Tensor:
        worths = []
        for mask in masks:
            rows = mask.nonzero()[:, 0]
            total = 0.0
            for t, label in zip(x_test, y_test, strict=True):
                near = sorted(rows.tolist(), key=lambda i, t=t: (float((x[i] - t).norm()), i))[:k]
                total += sum(float(y[i] == label) for i in near) / k
            worths.append(total / len(x_test))
        return torch.tensor(worths, dtype=torch.float64)

    return shapley(value, len(x), method="exact").values


@pytest.mark.parametrize("k", [1, 3, 5, 20])
def test_knn_values_are_those_of_enumeration_also_with_ties(k: int) -> None:
    random = torch.Generator().manual_seed(3)
    x, x_test = (torch.randint(0, 3, (m, 2), generator=random).double() for m in (8, 3))  # many ties, some rows equal
    y, y_test = (torch.randint(0, 2, (m,), generator=random) for m in (8, 3))
    found = knn_shapley(x, y, x_test, y_test, k=k)
    torch.testing.assert_close(found.values, brute_knn(x, y, x_test, y_test, k), rtol=0, atol=1e-12)


def test_knn_errors_are_over_test_rows_and_one_row_is_enough() -> None:
    x, y = digits(60)
    each = torch.stack([knn_shapley(x[:40], y[:40], x[i : i + 1], y[i : i + 1], k=3).values for i in range(40, 60)])
    found = knn_shapley(x[:40], y[:40], x[40:], y[40:], k=3)
    torch.testing.assert_close(found.values, each.mean(0))
    torch.testing.assert_close(found.stderr, each.std(0) / 20**0.5)
    one = knn_shapley(x[:1], y[:1], x[40:41], y[40:41], k=3)
    assert float(one.values[0]) == pytest.approx(float(y[0] == y[40]) / 3)


@pytest.mark.parametrize("learner", ["ridge", "logistic"])
def test_data_oob_is_a_loop_over_bags(learner: str) -> None:
    x, y = breast_cancer(25)
    found = data_oob(x, y, replicas=30, learner=learner, l2=0.5, seed=4)  # type: ignore[arg-type]
    generator, right, out = torch.Generator().manual_seed(4), torch.zeros(25), torch.zeros(25)
    for _ in range(30):
        draws = torch.randint(25, (25,), generator=generator)
        ones = torch.ones(1, 25)
        if learner == "ridge":
            fit = ridge(x[draws], nn.functional.one_hot(y[draws], 2).double(), ones, l2=0.5)
        else:
            fit = logistic(x[draws], y[draws], ones, l2=0.5)
        for i in set(range(25)) - set(draws.tolist()):
            out[i] += 1
            right[i] += float(fit.classes(x[i : i + 1])[0, 0] == y[i])
    torch.testing.assert_close(found.values, (right / out).double(), rtol=0, atol=1e-6)


def test_class_wise_values_are_shapley_values_in_random_company() -> None:
    x, y = digits(60)
    x, y = x[:, 20:24], y % 3
    context = torch.zeros(30, dtype=torch.bool)
    context[::2] = True
    game, players = class_game(x[:30], y[:30], x[30:], y[30:], label=1, context=context)
    assert torch.equal(players, (y[:30] == 1).nonzero()[:, 0])
    masks = subsets(6, len(players))
    masks[0] = False
    for mask, worth in zip(masks, game(masks), strict=True):
        rows = torch.cat([players[mask], (context & (y[:30] != 1)).nonzero()[:, 0]])
        right = logistic(x[rows], y[rows], torch.ones(1, len(rows)), l2=1.0, classes=3).classes(x[30:])[0] == y[30:]
        own, rest = (float((right & part).double().mean()) for part in (y[30:] == 1, y[30:] != 1))
        assert float(worth) == pytest.approx(own * np.exp(rest), abs=1e-12)
    by_ridge, _ = class_game(x[:30], y[:30], x[30:], y[30:], label=1, context=context, learner="ridge")
    rows = torch.cat([players[masks[1]], (context & (y[:30] != 1)).nonzero()[:, 0]])
    fit = ridge(x[rows], nn.functional.one_hot(y[rows], 3).double(), torch.ones(1, len(rows)), l2=1.0)
    right = fit.classes(x[30:])[0] == y[30:]
    worth = float((right & (y[30:] == 1)).double().mean()) * np.exp(float((right & (y[30:] != 1)).double().mean()))
    assert float(by_ridge(masks[1:2])) == pytest.approx(worth, abs=1e-12)


def test_class_wise_values_are_means_over_contexts_of_every_subset_of_the_others() -> None:
    x, y = breast_cancer(48)
    train, test = (x[:8, :3], y[:8]), (x[8:, :3], y[8:])
    assert 2 <= int(train[1].sum()) <= 6
    exact, calls = torch.zeros(8, dtype=torch.float64), []
    for label in (0, 1):
        other = train[1] != label
        subsets_of_others = coalitions(int(other.sum()))[1:]
        each = []
        for chosen in subsets_of_others:
            context = torch.zeros(8, dtype=torch.bool)
            context[other] = chosen
            game, players = class_game(*train, *test, label=label, context=context)
            each.append(shapley(game, len(players)).values)
        exact[players] = torch.stack(each).mean(0)
    found = class_wise_shapley(*train, *test, contexts=60, budget=300, seed=1, progress=lambda *done: calls.append(done))
    assert bool(((found.values - exact).abs() <= 4.5 * found.stderr + 1e-12).all())
    assert calls[-1] == (120, 120)
    assert len(calls) == 120


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.bool])
def test_labels_of_any_integer_type_give_the_same_values(dtype: torch.dtype) -> None:
    x, y = breast_cancer(40)
    a, b = (x[:20], y[:20]), (x[20:], y[20:])
    c, d = (x[:20], y[:20].to(dtype)), (x[20:], y[20:].to(dtype))
    masks = subsets(4, 20)
    for learner in ("logistic", "ridge"):
        assert torch.equal(linear_game(*c, *d, learner=learner)(masks), linear_game(*a, *b, learner=learner)(masks))
        assert torch.equal(data_oob(*c, replicas=30, learner=learner).values, data_oob(*a, replicas=30, learner=learner).values)
    assert torch.equal(knn_shapley(*c, *d).values, knn_shapley(*a, *b).values)
    few = {"contexts": 2, "budget": 40, "learner": "ridge"}
    assert torch.equal(class_wise_shapley(*c, *d, **few).values, class_wise_shapley(*a, *b, **few).values)  # type: ignore[arg-type]


def test_nearest_neighbours_of_a_single_class_and_of_equal_rows() -> None:
    alike = knn_shapley(X, ONE_CLASS, X[:3], ONE_CLASS[:3], k=5).values
    torch.testing.assert_close(alike, torch.full((20,), 1 / 20, dtype=torch.float64))  # all of them right, and the whole is worth 1
    twins, labels = torch.zeros(5, 2), torch.tensor([0, 1, 0, 1, 0])
    found = knn_shapley(twins, labels, twins[:1], labels[:1], k=2).values
    torch.testing.assert_close(found, torch.as_tensor(games.knn_values((labels == 0).numpy(), 2)))  # in their given order
    with pytest.raises(TypeError, match="x_train must be a tensor, got ndarray"):
        knn_shapley(X.numpy(), Y, X, Y)  # type: ignore[arg-type]


def test_progress_over_rows_explained() -> None:
    calls = []
    feature_shapley(lambda rows: rows[:, 0], X[:3, :2], X[3:, :2], progress=lambda *done: calls.append(done))
    assert calls == [(1, 3), (2, 3), (3, 3)]


X, Y = breast_cancer(20)
ONE_CLASS = torch.zeros(20, dtype=torch.int64)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: linear_game(X, ONE_CLASS, X, ONE_CLASS), "two classes"),
        (lambda: linear_game(X, Y.double(), X, Y.double()), "integer classes"),
        (lambda: linear_game(X, Y[:3], X, Y), r"y must hold one class or number a row, \(20,\)"),
        (lambda: linear_game(X, Y, X, Y, learner="tree"), "learner"),  # type: ignore[arg-type]
        (lambda: linear_game(X, Y, X * torch.nan, Y), "x_test must be finite"),
        (lambda: linear_game(X, Y, X[:, :3], Y), "as many columns"),
        (lambda: linear_game(X, Y, X, Y.double()), "both be classes or both real"),
        (lambda: linear_game(X, X[:, 0] / 0 * 0, X, X[:, 0], learner="ridge"), "y must be finite"),
        (lambda: linear_game(X, X[:, :2], X, X[:, :2], learner="ridge"), "one class or number a row"),
        (lambda: linear_game(X.long(), Y, X, Y), "x must be a floating-point matrix"),
        (lambda: data_oob(X, ONE_CLASS), "y must hold at least two classes"),
        (lambda: data_oob(X * torch.nan, Y), "^x must be finite"),
        (lambda: class_wise_shapley(X, Y, X[Y == 0], Y[Y == 0]), r"none of \[1\]"),
        (lambda: class_wise_shapley(X, Y, X, Y, learner="tree"), "learner"),  # type: ignore[arg-type]
        (lambda: class_wise_shapley(X, Y, X, Y, budget=3), "budget"),
        (lambda: class_game(X, Y, X, Y, label=0, context=torch.ones(3)), "context must be bool"),
        (lambda: class_game(X, Y, X[Y == 0], Y[Y == 0], label=1, context=Y == 0), "rows of class 1"),
        (lambda: class_wise_shapley(X, ONE_CLASS, X, ONE_CLASS), "two classes"),
        (lambda: class_wise_shapley(X, Y, X, Y, contexts=1), "contexts"),
        (lambda: class_game(X, Y, X, Y, label=7, context=Y == 0), "class 7 has 0 rows"),
        (lambda: data_oob(X, Y, replicas=2), "raise replicas"),
        (lambda: knn_shapley(X[:0], Y[:0], X, Y), "with a row"),
        (lambda: knn_shapley(X, Y, X, Y, k=0), "k must"),
        (lambda: knn_shapley(X, Y, X, Y, k=2.5), "k must be a whole number"),  # type: ignore[arg-type]
        (lambda: knn_shapley(X, Y, X[:, :3], Y), "as many columns"),
        (lambda: knn_shapley(X * torch.nan, Y, X, Y), "finite"),
        (
            lambda: retraining_game(lambda: nn.Linear(30, 2), nn.functional.cross_entropy, (X, Y), (X, Y), optimizer=sgd(0.1), steps=0),
            "steps",
        ),
    ],
)
def test_what_is_refused(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_pictures() -> None:
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        game = Game(linear_game(X[:8], Y[:8], X[8:], Y[8:]), 8)
        sampled = shapley(game, 8, method="permutation", budget=100)
        axes = [
            sampled.plot(most=5),
            sampled.waterfall(float(game(torch.zeros(1, 8, dtype=torch.bool))), most=3),
            interactions(table(game, 8)).plot(names=list("abcdefgh")),
        ]
        features = feature_shapley(lambda rows: rows[:, 0] * rows[:, 1], X[:9, :3], X[9:, :3])
        axes += [features.beeswarm(names=["a", "b", "c"]), features.waterfall(2)]
        steps = feature_shapley(lambda rows: rows[:, 0], (X[:9, :1] > 0).double(), X[9:, :1]).beeswarm()
        colours = steps.collections[0].get_array()
        assert colours is not None
        assert len(set(colours.tolist())) == 2  # a feature of two values has two colours
        assert [len(a.get_yticklabels()) for a in axes[:2]] == [5, 4]
        for a in axes:
            a.figure.canvas.draw()
        plt.close("all")
        # the last bar of a waterfall ends where all players are worth
        ends = [bar.get_x() + bar.get_width() for bar in features.waterfall(2).patches]  # pyright: ignore[reportAttributeAccessIssue]
        assert float(features.base + features.values[2].sum()) == pytest.approx(ends[-1])
        plt.close("all")
    with pytest.raises(ValueError, match="names"):
        sampled.plot(names=["a"])


def test_every_pair_of_orders_of_a_small_game_agrees_with_enumeration_of_orders() -> None:
    game = Game(linear_game(X[:5], torch.tensor([0, 1, 0, 1, 1]), X[5:], Y[5:]), 5)
    total = torch.zeros(5, dtype=torch.float64)
    for order in itertools.permutations(range(5)):
        mask = torch.zeros(1, 5, dtype=torch.bool)
        before = game(mask)
        for i in order:
            mask[0, i] = True
            total[i] += float(game(mask) - before)
            before = game(mask)
    torch.testing.assert_close(shapley(game, 5).values, total / 120)
