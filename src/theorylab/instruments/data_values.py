"""Values of training rows without a game of retraining: exact for nearest neighbours, and by the bags that leave a row out."""

from __future__ import annotations

from numbers import Integral
from typing import Literal

import torch
from torch import Tensor

from theorylab.instruments.labelled_rows import check_classes, check_rows
from theorylab.instruments.values import Values
from theorylab.learning.linear import logistic, ridge

HELD = 1 << 23
"""Distances held at a time."""


def knn_shapley(x_train: Tensor, y_train: Tensor, x_test: Tensor, y_test: Tensor, *, k: int = 5) -> Values:
    r"""Exact Shapley values of training rows for a k-nearest-neighbour classifier, in O(n log n) a test row.

    A coalition is worth, at one test row, 1/k for each of its k nearest rows that has the test row's label; the game is the mean over test
    rows, and so are the values. With rows in the order of distance and :math:`c_i` whether the i-th has the right label,

    .. math:: s_n = \frac{c_n}{\max(n, k)}, \qquad s_i = s_{i+1} + \frac{c_i - c_{i+1}}{k}\,\frac{\min(k, i)}{i}.

    Rows at exactly equal distances are taken in their given order: of two equal rows the first is the nearer. Whole-number inputs tie
    often; add a small jitter where the order of rows should not matter. Rows of a single class are all worth the same. The standard errors
    are those of the mean over test rows as a sample; a single test row has none, and they are 0.

    Args:
        x_train: Training rows (n, d).
        y_train: Their classes, integers (n,).
        x_test: Test rows (m, d).
        y_test: Their classes (m,).
        k: Neighbours, at least 1; may exceed n.

    Returns:
        Values of the training rows, which add up to the mean share of right labels among the k nearest.

    Raises:
        ValueError: no rows, wrong shapes, numbers that are not finite, or k < 1.

    Example:
        >>> x, y = torch.tensor([[0.0], [1.0], [5.0]]), torch.tensor([0, 0, 1])
        >>> knn_shapley(x, y, torch.tensor([[0.2]]), torch.tensor([0]), k=1).values.round(decimals=4).tolist()
        [0.5, 0.5, 0.0]

    Source: Jia et al. 2019, arXiv:1908.08619 (exact values of unweighted KNN classifiers).
    """
    check_rows(x_train, y_train, "x_train", "y_train")
    check_rows(x_test, y_test, "x_test", "y_test")
    if x_train.shape[1] != x_test.shape[1]:
        raise ValueError(f"x_train and x_test must have as many columns, got {x_train.shape[1]} and {x_test.shape[1]}.")
    if not isinstance(k, Integral) or k < 1:
        raise ValueError(f"k must be a whole number of neighbours, at least 1, got {k}.")
    n, m = len(x_train), len(x_test)
    i = torch.arange(1, n, device=x_train.device)
    factors = (i.clamp(max=k) / i.double() / k).to(torch.float64)  # of the differences
    total, squares = (torch.zeros(n, dtype=torch.float64, device=x_train.device) for _ in range(2))
    for rows, labels in zip(*(t.split(max(1, HELD // n)) for t in (x_test, y_test)), strict=True):
        # not by a matrix product, whose rounding would break ties between equal rows at random
        distances = torch.cdist(rows, x_train.to(rows), compute_mode="donot_use_mm_for_euclid_dist")
        order = distances.sort(dim=1, stable=True).indices
        c = (y_train[order] == labels[:, None]).double()
        steps = torch.cat([(c[:, :-1] - c[:, 1:]) * factors, c[:, -1:] / max(n, k)], 1)
        sums = steps.cumsum(1)
        values = torch.empty_like(steps).scatter_(1, order, sums[:, -1:] - sums + steps)  # sums from the far end
        total += values.sum(0)
        squares += values.square().sum(0)
    mean = total / m
    spread = ((squares / m - mean.square()).clamp(min=0) / max(m - 1, 1)).sqrt()
    return Values(mean, spread, m, 0, f"knn-shapley, k = {k}, exact over {m} test rows")


def data_oob(
    x: Tensor,
    y: Tensor,
    *,
    replicas: int = 500,
    learner: Literal["ridge", "logistic"] = "ridge",
    l2: float = 1.0,
    seed: int = 0,
) -> Values:
    r"""Data-OOB: how often the models of bootstrap samples that leave a row out predict its label.

    Each of the B samples draws n rows with replacement and fits a linear classifier, all at once; a row's value is the share of right
    predictions among the models whose sample missed it, about B/e of them. Low values point to wrong labels. No test set is needed.

    Args:
        x: Rows (n, d).
        y: Classes (n,), integers from 0.
        replicas: B.
        learner: ``"ridge"`` on one-hot labels, or ``"logistic"``.
        l2: Its penalty, as in `theorylab.learning.linear`.
        seed: Of the bootstrap samples.

    Returns:
        Values in [0, 1], with the standard errors of these shares over bootstrap samples.

    Raises:
        ValueError: a single class, wrong shapes, or a row that fewer than two samples leave out.

    Example:
        >>> x = torch.tensor([[-2.0], [-1.5], [-1.0], [1.0], [1.5], [2.0]], dtype=torch.float64)
        >>> data_oob(x, torch.tensor([0, 0, 1, 1, 1, 1]), replicas=200).values.argmin().item()  # the third has a wrong label
        2

    Source: Kwon and Zou 2023, arXiv:2304.07718, Section 3.
    """
    check_rows(x, y)
    check_classes(y)
    if learner not in ("ridge", "logistic"):
        raise ValueError(f'learner must be "ridge" or "logistic", got {learner!r}.')
    if replicas < 2:
        raise ValueError(f"replicas must be at least 2, got {replicas}.")
    n, generator = len(x), torch.Generator().manual_seed(seed)
    draws = torch.stack([torch.randint(n, (n,), generator=generator, device="cpu") for _ in range(replicas)])
    counts = x.new_zeros(replicas, n).scatter_add_(1, draws.to(x.device), x.new_ones(replicas, n))
    right, left_out = (torch.zeros(n, dtype=torch.float64, device=x.device) for _ in range(2))
    targets = torch.nn.functional.one_hot(y.long()).to(x)
    for part in counts.split(64):
        fits = ridge(x, targets, part, l2=l2) if learner == "ridge" else logistic(x, y, part, l2=l2)
        out = part == 0
        right += (out & (fits.classes(x) == y)).sum(0)
        left_out += out.sum(0)
    if int(left_out.min()) < 2:
        raise ValueError(f"row {int(left_out.argmin())} is left out by {int(left_out.min())} samples, two are needed: raise replicas.")
    share = right / left_out
    stderr = (share * (1 - share) / (left_out - 1)).sqrt()
    return Values(share, stderr, int(left_out.min()), 0, f"data-oob, {learner}")
