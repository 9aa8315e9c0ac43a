"""Values of rows and features, against pyDVL, shap and shapiq."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from benchmarks.parity import Comparison, Measure
from theorylab.data.digits import digits
from theorylab.data.tabular import breast_cancer
from theorylab.instruments.data_values import knn_shapley
from theorylab.instruments.feature_games import feature_game
from theorylab.instruments.feature_values import feature_shapley
from theorylab.instruments.games import table
from theorylab.instruments.interactions import interactions

FEATURES = 12


def _neighbours(n: int):
    def prepare(dtype: torch.dtype) -> tuple[Measure, Measure]:
        from pydvl.valuation import Dataset, KNNShapleyValuation  # pyright: ignore[reportMissingImports]
        from sklearn.neighbors import KNeighborsClassifier

        x, y = digits(n + n // 2)
        x = (x + 1e-3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype)).to(dtype)  # whole pixels tie
        train, test = (x[:n], y[:n]), (x[n:], y[n:])

        def theirs() -> Tensor:
            method = KNNShapleyValuation(KNeighborsClassifier(n_neighbors=5), Dataset(*(t.numpy() for t in test)), progress=False)
            result = method.fit(Dataset(*(t.numpy() for t in train))).values()
            return torch.zeros(n, dtype=torch.float64).scatter_(0, torch.as_tensor(result.indices), torch.as_tensor(result.values))

        return lambda: knn_shapley(*train, *test, k=5).values, theirs

    return prepare


def _network(dtype: torch.dtype) -> tuple[Tensor, Tensor, torch.nn.Module]:
    x, _ = breast_cancer(seed=0, dtype=dtype)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(FEATURES, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1)).to(dtype)
    return x[:5, :FEATURES], x[100:200, :FEATURES], net


def _features(dtype: torch.dtype) -> tuple[Measure, Measure]:
    import shap  # pyright: ignore[reportMissingImports]

    x, background, net = _network(dtype)

    def predict(array: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return net(torch.as_tensor(array, dtype=dtype))[:, 0].numpy()

    explainer = shap.explainers.Exact(predict, shap.maskers.Independent(background.numpy(), max_samples=len(background)))
    theirs = lambda: torch.as_tensor(explainer(x.numpy(), max_evals=2**FEATURES, silent=True).values)  # noqa: E731
    theirs()  # its first call compiles
    return lambda: feature_shapley(net, x, background, method="exact").values, theirs


def _pairs(dtype: torch.dtype) -> tuple[Measure, Measure]:
    import shapiq  # pyright: ignore[reportMissingImports]

    x, background, net = _network(dtype)
    worths = table(feature_game(net, x[0], background), FEATURES)
    lookup, places = worths.numpy(), 2 ** np.arange(FEATURES)
    i, j = torch.triu_indices(FEATURES, FEATURES, 1)

    def theirs() -> Tensor:
        found = shapiq.ExactComputer(n_players=FEATURES, game=lambda masks: lookup[masks @ places])(index="SII", order=2)
        return torch.tensor([found[pair] for pair in zip(i.tolist(), j.tolist(), strict=True)], dtype=torch.float64)

    return lambda: interactions(worths).matrix()[i, j], theirs


def rows(n: int) -> list[Comparison]:
    """One a peer."""
    return [
        Comparison("knn_shapley", "digits, k=5", "pyDVL", _neighbours(n), goal=0.1),
        Comparison("feature_shapley", "d=12, 5 rows, 100 of background", "shap", _features, goal=round(1 / 1.3, 3), note="exact, warm"),
        Comparison("interactions", "pairs of 12 players, from their table", "shapiq", _pairs, goal=0.05),
    ]
