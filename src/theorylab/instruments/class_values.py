"""Class-wise Shapley values: a row is valued for its own class, and discounted where it harms the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from theorylab.core.seeds import derived_seed
from theorylab.instruments.games import Worth
from theorylab.instruments.labelled_rows import check_classes, check_split
from theorylab.instruments.valuation import shapley
from theorylab.instruments.values import Values
from theorylab.learning.linear import logistic, ridge

ORDERS = 20
"""Random orders of a class that each context is given by default."""


def class_game(
    x: Tensor,
    y: Tensor,
    x_test: Tensor,
    y_test: Tensor,
    *,
    label: int,
    context: Tensor,
    learner: Literal["logistic", "ridge"] = "logistic",
    l2: float = 1.0,
) -> tuple[Worth, Tensor]:
    r"""The game of the rows of one class, joined to a fixed set of rows of the others: :math:`v(S) = a_c\,e^{a_{\bar c}}`.

    A linear model is fitted on S and the context; :math:`a_c` is the share of all test rows that are of the class and predicted right,
    and :math:`a_{\bar c}` that of the rows of other classes that are.

    Args:
        x: Training rows (n, d).
        y: Classes (n,), integers from 0.
        x_test: Test rows (m, d).
        y_test: Their classes (m,).
        label: The class c, of which there must be test rows too, or every coalition is worth nothing.
        context: Which rows of other classes take part, bool (n,), at least one; those of the class itself are ignored.
        learner: ``"logistic"``, or ``"ridge"`` on one-hot labels: one solve where the other takes some eight Newton steps, each of which
            with many classes costs hundreds of times as much.
        l2: Penalty, as in `theorylab.learning.linear`.

    Returns:
        The game, and the rows that are its players.

    Raises:
        ValueError: wrong shapes, a single class, no row of the class to train or to test on, or no row in the context.

    Source: Schoch, Xu and Ji 2022, arXiv:2211.06800, Section 3.
    """
    check_split(x, y, x_test, y_test)
    check_classes(y, y_test)
    if learner not in ("logistic", "ridge"):
        raise ValueError(f'learner must be "logistic" or "ridge", got {learner!r}.')
    if context.dtype != torch.bool or context.shape != y.shape:
        raise ValueError(f"context must be bool of shape ({len(y)},), got {context.dtype} of shape {tuple(context.shape)}.")
    own = y == label
    players, others = own.nonzero()[:, 0], context.to(y.device) & ~own
    if len(players) == 0 or not bool(others.any()):
        raise ValueError(f"class {label} has {len(players)} rows, and {int(others.sum())} of others take part: both need one.")
    inside = y_test == label
    if not bool(inside.any()):
        raise ValueError(f"y_test must hold rows of class {label}, or its training rows are worth nothing: give test rows of every class.")
    classes = int(max(y.max(), y_test.max())) + 1
    used = (own | others).nonzero()[:, 0]  # the rest would weigh nothing and cost as much as the others
    rows, labels, x_test = x[used], y[used].long(), x_test.to(x)
    targets = torch.nn.functional.one_hot(labels, classes).to(x)
    playing = own[used]

    def value(masks: Tensor) -> Tensor:
        weights = (~playing).to(x).repeat(len(masks), 1)
        weights[:, playing] = masks.to(x)
        fits = logistic(rows, labels, weights, l2=l2, classes=classes) if learner == "logistic" else ridge(rows, targets, weights, l2=l2)
        right = fits.classes(x_test) == y_test
        mine, rest = ((right & part).double().mean(1) for part in (inside, ~inside))
        return mine * rest.exp()

    return value, players


def class_wise_shapley(
    x: Tensor,
    y: Tensor,
    x_test: Tensor,
    y_test: Tensor,
    *,
    contexts: int = 10,
    budget: int | None = None,
    learner: Literal["logistic", "ridge"] = "logistic",
    l2: float = 1.0,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Values:
    """Class-wise Shapley values of training rows for a linear model, (n,): means of `class_game`'s over random contexts.

    A context is drawn evenly from the subsets of the rows of other classes that are not empty. The standard errors are those over
    contexts, which include the sampling of orders within each: for a given number of fits, more contexts with fewer orders each err less.

    Args:
        x: Training rows (n, d).
        y: Classes (n,), integers from 0.
        x_test: Test rows (m, d), some of every class of ``y``.
        y_test: Their classes (m,).
        contexts: Random sets of other rows for each class, at least 2.
        budget: Coalitions of each game, all of them where that is enough and else along random orders; by default twenty orders.
        learner: ``"logistic"``, or ``"ridge"``, which costs far less where there are many classes or features.
        l2: Its penalty.
        seed: Of contexts and orders.
        progress: Told how many games are done, and of how many, after each.

    Raises:
        ValueError: as for `class_game`; fewer than two contexts, or a budget below two orders of a class.

    Example:
        >>> x = torch.tensor([[-2.0], [-1.0], [1.0], [2.0], [1.5]], dtype=torch.float64)
        >>> y = torch.tensor([0, 0, 1, 1, 0])
        >>> class_wise_shapley(x, y, x[:4], y[:4], contexts=4).values.argmin().item()  # the last row has a wrong label
        4

    Source: Schoch, Xu and Ji 2022, arXiv:2211.06800, Section 3. Some implementations scale the values of each class afterwards; these are
    as they come.
    """
    check_split(x, y, x_test, y_test)
    check_classes(y, y_test)
    if contexts < 2:
        raise ValueError(f"contexts must be at least 2 to give a standard error, got {contexts}.")
    labels = y.unique().tolist()
    missing = sorted(set(labels) - set(y_test.tolist()))
    if missing:
        raise ValueError(
            f"y_test must hold rows of every class of y, or the training rows of that class are worth nothing, got none of {missing}."
        )
    generator = torch.Generator().manual_seed(seed)
    mean, stderr = torch.zeros(2, len(y), dtype=torch.float64, device="cpu")
    asked = done = 0
    for label in labels:
        others, players = (y != label).cpu().nonzero()[:, 0], (y == label).cpu().nonzero()[:, 0]
        spend = max(2 + ORDERS * (len(players) - 1), 2) if budget is None else budget
        found = []
        for k in range(contexts):
            context = torch.zeros(len(y), dtype=torch.bool, device="cpu")
            while not bool(context.any()):  # a model needs rows of another class
                context[others] = torch.rand(len(others), generator=generator, device="cpu") < 0.5
            game, _ = class_game(x, y, x_test, y_test, label=label, context=context, learner=learner, l2=l2)
            one = shapley(game, len(players), budget=spend, seed=derived_seed(seed, "orders", int(label), k))
            found.append(one.values)
            asked, done = asked + one.evaluations, done + 1
            if progress is not None:
                progress(done, contexts * len(labels))
        each = torch.stack(found)
        mean[players], stderr[players] = each.mean(0), each.std(0) / contexts**0.5
    return Values(mean, stderr, contexts, asked, f"class-wise shapley, {learner}")
