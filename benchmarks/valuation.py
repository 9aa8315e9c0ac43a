"""What refitting a logistic regression on many coalitions costs, against a loop over scikit-learn; packages of values are in the parity."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from benchmarks.timing import interleaved, ratio
from theorylab.data.tabular import breast_cancer
from theorylab.instruments.model_games import linear_game
from theorylab.instruments.value_sampling import orders, prefixes

EVERY = 20  # the loop fits one coalition in so many, and is scaled up
PLAYERS, ORDERS, GOAL = 100, 12, 10.0


def rows(rounds: int = 5) -> list[dict]:
    """One row: the prefixes of random orders of rows, as permutation Shapley asks for them; the accuracies are identical."""
    from sklearn.linear_model import LogisticRegression

    x, y = breast_cancer(seed=0)
    train, test = (x[:PLAYERS], y[:PLAYERS]), (x[PLAYERS:], y[PLAYERS:])
    masks = prefixes(orders(PLAYERS, ORDERS, torch.Generator().manual_seed(0))).flatten(0, 1)
    masks = masks[torch.tensor([len(train[1][m].unique()) == 2 for m in masks])]  # the loop refuses a single class
    game, arrays = linear_game(*train, *test), [t.numpy() for t in (*train, *test)]

    def loop(chosen: Tensor, tol: float = 1e-4, max_iter: int = 100) -> list[float]:
        fits = [LogisticRegression(C=1.0, tol=tol, max_iter=max_iter).fit(arrays[0][m], arrays[1][m]) for m in chosen.numpy()]
        return [fit.score(*arrays[2:]) for fit in fits]

    some = masks[::EVERY]
    # at scikit-learn's default tolerance a test row near the boundary may fall on the other side: compared at a finer one
    if not np.allclose(game(some), loop(some, tol=1e-10, max_iter=10_000), atol=1e-12):
        raise AssertionError("the accuracies of the batched fits are not those of scikit-learn.")
    seconds = interleaved({"game": lambda: game(masks), "loop": lambda: loop(some)}, rounds=rounds)
    faster = len(masks) / len(some) * ratio(seconds["loop"], seconds["game"])
    setting = f"logistic, breast cancer, n={PLAYERS}, {len(masks)} coalitions"
    return [
        {"name": "values: refits", "setting": setting, "ratio": faster, "goal": GOAL, "better": "higher", "unit": "a scikit-learn loop"}
    ]
