"""What values of games cost: refits against a loop over scikit-learn, nearest neighbours against pyDVL, features against shap and shapiq.

Packages that are not installed leave their rows out. Before anything is timed the numbers are compared: the accuracies must be identical,
the values equal.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from benchmarks.timing import interleaved, ratio
from theorylab.data.digits import digits
from theorylab.data.tabular import breast_cancer
from theorylab.instruments.data_values import knn_shapley
from theorylab.instruments.feature_values import feature_shapley
from theorylab.instruments.games import table
from theorylab.instruments.interactions import interactions
from theorylab.instruments.model_games import feature_game, linear_game
from theorylab.instruments.value_sampling import orders, prefixes

EVERY = 20  # the loop fits one coalition in so many, and is scaled up
PLAYERS, ORDERS = 100, 12
GOALS = {"refits": 10.0, "knn": 10.0, "features": 1.3, "interactions": 20.0}


def row(name: str, setting: str, faster: float, unit: str) -> dict:
    """A row of the table for a speed-up."""
    return {"name": f"values: {name}", "setting": setting, "ratio": faster, "goal": GOALS[name], "better": "higher", "unit": unit}


def rows(rounds: int = 5) -> list[dict]:
    """A row for refits, and one for each package that is installed."""
    return [*refits(rounds), *nearest_neighbours(rounds), *features(rounds), *pairs(rounds)]


def refits(rounds: int) -> Iterator[dict]:
    """Logistic regressions of the prefixes of random orders, as permutation Shapley asks for them."""
    from sklearn.linear_model import LogisticRegression

    x, y = breast_cancer(seed=0)
    train, test = (x[:PLAYERS], y[:PLAYERS]), (x[PLAYERS:], y[PLAYERS:])
    masks = prefixes(orders(PLAYERS, ORDERS, torch.Generator().manual_seed(0))).flatten(0, 1)
    masks = masks[torch.tensor([len(train[1][m].unique()) == 2 for m in masks])]  # the loop refuses a single class
    game, arrays = linear_game(*train, *test), [t.numpy() for t in (*train, *test)]

    def loop(chosen: Tensor) -> list[float]:
        return [LogisticRegression(C=1.0).fit(arrays[0][m], arrays[1][m]).score(*arrays[2:]) for m in chosen.numpy()]

    some = masks[::EVERY]
    # at scikit-learn's own default tolerance a row near the boundary may fall on the other side: compared at a finer one
    fine = [LogisticRegression(C=1.0, tol=1e-10, max_iter=10_000).fit(arrays[0][m], arrays[1][m]).score(*arrays[2:]) for m in some.numpy()]
    if not np.allclose(game(some), fine, atol=1e-12):
        raise AssertionError("the accuracies of the batched fits are not those of scikit-learn.")
    seconds = interleaved({"game": lambda: game(masks), "loop": lambda: loop(some)}, rounds=rounds)
    faster = len(masks) / len(some) * ratio(seconds["loop"], seconds["game"])
    yield row("refits", f"logistic, breast cancer, n={PLAYERS}, {len(masks)} coalitions", faster, "a loop over scikit-learn")


def nearest_neighbours(rounds: int) -> Iterator[dict]:
    """Exact values of 1,297 digits from 500 test digits, k = 5."""
    if importlib.util.find_spec("pydvl") is None:
        return
    from pydvl.valuation import Dataset, KNNShapleyValuation
    from sklearn.neighbors import KNeighborsClassifier

    x, y = digits()
    x = x + 1e-3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype)  # whole pixels tie
    train, test = (x[:-500], y[:-500]), (x[-500:], y[-500:])

    def theirs() -> np.ndarray:
        method = KNNShapleyValuation(KNeighborsClassifier(n_neighbors=5), Dataset(*(t.numpy() for t in test)), progress=False)
        result = method.fit(Dataset(*(t.numpy() for t in train))).values()
        values = np.empty(len(train[1]))
        values[result.indices] = result.values
        return values

    ours = knn_shapley(*train, *test, k=5).values.numpy()
    if not np.allclose(ours, theirs(), atol=1e-12):
        raise AssertionError("the values of nearest neighbours are not those of pyDVL.")
    seconds = interleaved({"ours": lambda: knn_shapley(*train, *test, k=5), "theirs": theirs}, rounds=rounds)
    yield row("knn", f"digits, {len(train[1])} rows, {len(test[1])} test rows", ratio(seconds["theirs"], seconds["ours"]), "pyDVL")


def network() -> tuple[Tensor, Tensor, torch.nn.Module]:
    """Twelve columns of a table, background rows and a small network."""
    x, _ = breast_cancer(seed=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(12, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1)).double()
    return x[:5, :12], x[100:200, :12], net


def features(rounds: int) -> Iterator[dict]:
    """Exact values of twelve features of five rows, with a background of a hundred."""
    if importlib.util.find_spec("shap") is None:
        return
    import shap

    x, background, net = network()

    def predict(array: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return net(torch.as_tensor(array))[:, 0].numpy()

    explainer = shap.explainers.Exact(predict, shap.maskers.Independent(background.numpy(), max_samples=len(background)))
    ours = feature_shapley(net, x, background, method="exact").values.numpy()
    if not np.allclose(ours, explainer(x.numpy(), max_evals=2**13).values, atol=1e-8):
        raise AssertionError("the values of features are not those of shap.")
    seconds = interleaved(
        {"ours": lambda: feature_shapley(net, x, background, method="exact"), "theirs": lambda: explainer(x.numpy(), max_evals=2**13)},
        rounds=rounds,
    )
    yield row("features", "d=12, 5 rows, 100 background rows, exact", ratio(seconds["theirs"], seconds["ours"]), "shap's Exact, warm")


def pairs(rounds: int) -> Iterator[dict]:
    """Shapley interactions of pairs of twelve players from the table of all worths."""
    if importlib.util.find_spec("shapiq") is None:
        return
    import shapiq

    x, background, net = network()
    worths = table(feature_game(net, x[0], background), 12)
    lookup, places = worths.numpy(), 2 ** np.arange(12)

    def theirs() -> np.ndarray:
        found = shapiq.ExactComputer(n_players=12, game=lambda masks: lookup[masks @ places])(index="SII", order=2)
        return np.array([found[(i, j)] for i in range(12) for j in range(i + 1, 12)])

    ours = interactions(worths).matrix()
    if not np.allclose([float(ours[i, j]) for i in range(12) for j in range(i + 1, 12)], theirs(), atol=1e-8):
        raise AssertionError("the interactions are not those of shapiq.")
    seconds = interleaved({"ours": lambda: interactions(worths), "theirs": theirs}, rounds=rounds)
    yield row("interactions", "pairs of 12 players from their table", ratio(seconds["theirs"], seconds["ours"]), "shapiq's ExactComputer")
