"""Class-wise Shapley values: a row is valued for its own class, and discounted where it harms the others."""

from __future__ import annotations

import torch
from torch import Tensor

from theorylab.instruments.games import Worth
from theorylab.instruments.valuation import shapley
from theorylab.instruments.values import Values
from theorylab.learning.linear import logistic


def class_game(
    x: Tensor, y: Tensor, x_test: Tensor, y_test: Tensor, *, label: int, context: Tensor, l2: float = 1.0
) -> tuple[Worth, Tensor]:
    r"""The game of the rows of one class, joined to a fixed set of rows of the others: :math:`v(S) = a_c\,e^{a_{\bar c}}`.

    A logistic model is fitted on S and the context; :math:`a_c` is the share of all test rows that are of the class and predicted right,
    and :math:`a_{\bar c}` that of the rows of other classes that are.

    Args:
        x: Training rows (n, d).
        y: Classes (n,), integers from 0.
        x_test: Test rows (m, d).
        y_test: Their classes (m,).
        label: The class c.
        context: Which rows of other classes take part, bool (n,), at least one; those of the class itself are ignored.
        l2: Penalty of the logistic model.

    Returns:
        The game, and the rows that are its players.

    Raises:
        ValueError: no row of the class, or no row in the context.

    Source: Schoch, Xu and Ji 2022, arXiv:2211.06800, Section 3.
    """
    players = (y == label).nonzero()[:, 0]
    others = context & (y != label)
    if len(players) == 0 or not bool(others.any()):
        raise ValueError(f"class {label} has {len(players)} rows, and {int(others.sum())} of others take part: both need one.")
    classes, inside = int(max(y.max(), y_test.max())) + 1, y_test == label

    def value(masks: Tensor) -> Tensor:
        weights = others.to(x).repeat(len(masks), 1)
        weights[:, players] = masks.to(x)
        right = logistic(x, y, weights, l2=l2, classes=classes).classes(x_test) == y_test
        own, rest = ((right & part).double().mean(1) for part in (inside, ~inside))
        return own * rest.exp()

    return value, players


def class_wise_shapley(
    x: Tensor, y: Tensor, x_test: Tensor, y_test: Tensor, *, contexts: int = 10, budget: int | None = None, l2: float = 1.0, seed: int = 0
) -> Values:
    """Class-wise Shapley values of training rows for a logistic model, (n,): means of `class_game`'s over random contexts.

    Each context holds every row of the other classes with chance one half. The standard errors are those over contexts, which include the
    sampling of orders within each.

    Args:
        x: Training rows (n, d).
        y: Classes (n,), integers from 0.
        x_test: Test rows (m, d).
        y_test: Their classes (m,).
        contexts: Random sets of other rows for each class, at least 2.
        budget: Coalitions of each game, along random orders; by default all of them up to 16 rows of a class, and 200 a row beyond.
        l2: Penalty of the logistic model.
        seed: Of contexts and orders.

    Raises:
        ValueError: a single class, or fewer than two contexts.

    Example:
        >>> x = torch.tensor([[-2.0], [-1.0], [1.0], [2.0], [1.5]], dtype=torch.float64)
        >>> y = torch.tensor([0, 0, 1, 1, 0])
        >>> class_wise_shapley(x, y, x[:4], y[:4], contexts=4).values.argmin().item()  # the last row has a wrong label
        4

    Source: Schoch, Xu and Ji 2022, arXiv:2211.06800, Section 3.
    """
    if contexts < 2:
        raise ValueError(f"contexts must be at least 2 to give a standard error, got {contexts}.")
    labels = y.unique().tolist()
    if len(labels) < 2:
        raise ValueError(f"y must hold at least two classes, got {labels}.")
    generator = torch.Generator().manual_seed(seed)
    mean, stderr, asked = torch.zeros(len(y), dtype=torch.float64), torch.zeros(len(y), dtype=torch.float64), 0
    for label in labels:
        other = (y != label).nonzero()[:, 0]
        found, players = [], (y == label).nonzero()[:, 0]
        for k in range(contexts):
            context = torch.zeros(len(y), dtype=torch.bool)
            context[other] = torch.rand(len(other), generator=generator) < 0.5
            context[other[torch.randint(len(other), (1,), generator=generator)]] = True  # never empty
            game, _ = class_game(x, y, x_test, y_test, label=label, context=context, l2=l2)
            one = shapley(game, len(players), method="auto" if budget is None else "permutation", budget=budget, seed=seed + k)
            found.append(one.values)
            asked += one.evaluations
        each = torch.stack(found)
        mean[players], stderr[players] = each.mean(0), each.std(0) / contexts**0.5
    return Values(mean, stderr, contexts, asked, "class-wise shapley, logistic")
