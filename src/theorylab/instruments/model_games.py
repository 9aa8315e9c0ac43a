"""Games of training rows: what a subset of them is worth to a model fitted on it alone."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from theorylab.instruments.games import Worth
from theorylab.instruments.labelled_rows import check_classes, check_split
from theorylab.learning.linear import logistic, ridge
from theorylab.learning.members import CHUNK, Found, Progress, Training, train_members
from theorylab.learning.optimizers.base import Optimizer
from theorylab.learning.population import Population

EVALUATED = 1 << 22
"""Outputs on test rows that are held at a time."""


def _rows(x: Tensor, y: Tensor, name: str) -> None:
    if x.ndim < 2 or len(x) == 0 or len(y) != len(x):
        raise ValueError(f"{name} must be rows and as many targets, at least one, got {tuple(x.shape)} and {tuple(y.shape)}.")


def linear_game(
    x: Tensor,
    y: Tensor,
    x_test: Tensor,
    y_test: Tensor,
    *,
    learner: Literal["logistic", "ridge"] = "logistic",
    l2: float = 1.0,
    empty: float | None = None,
) -> Worth:
    r"""The game of training rows whose worth is what a linear model fitted on them alone reaches on test rows.

    Integer targets are classes, and the worth is the test accuracy; others are regressed by ridge, and the worth is the negative mean
    squared test error. All coalitions of a call are fitted together. A coalition with rows of one class predicts that class.

    Args:
        x: Training rows (n, d), the players.
        y: Classes (n,), integers from 0, or real targets (n,).
        x_test: Test rows (m, d).
        y_test: Their targets (m,).
        learner: ``"logistic"`` or ``"ridge"`` (of one-hot labels where the targets are classes).
        l2: Penalty, as in `theorylab.learning.linear`.
        empty: Worth of nobody; by default one over the number of classes, and for real targets that of predicting zero.

    Returns:
        ``value(masks)``; wrap it in `theorylab.instruments.games.Game` to remember coalitions.

    Raises:
        ValueError: wrong shapes, one class only, or logistic regression of real targets.

    Example:
        >>> x = torch.tensor([[-2.0], [-1.0], [1.0], [2.0]], dtype=torch.float64)
        >>> game = linear_game(x, torch.tensor([0, 0, 1, 1]), x, torch.tensor([0, 0, 1, 1]))
        >>> game(torch.tensor([[False] * 4, [True, False, False, False], [True, False, False, True]])).tolist()
        [0.5, 0.5, 1.0]

    Source: Ghorbani and Zou 2019, arXiv:1904.02868, Section 2 (data Shapley's game).
    """
    check_split(x, y, x_test, y_test, real=True)
    if learner not in ("logistic", "ridge"):
        raise ValueError(f'learner must be "logistic" or "ridge", got {learner!r}.')
    classify = not y.is_floating_point()
    if learner == "logistic" and not classify:
        raise ValueError(f"logistic regression needs integer classes, got targets in {y.dtype}.")
    if classify:
        check_classes(y, y_test)
    k = int(max(y.max(), y_test.max())) + 1 if classify else 1
    if empty is None:
        empty = 1 / k if classify else -float(y_test.square().mean())
    targets, x_test = nn.functional.one_hot(y.long(), k).to(x) if classify else y.to(x), x_test.to(x)

    def value(masks: Tensor) -> Tensor:
        worths = torch.full((len(masks),), float(empty), dtype=torch.float64, device="cpu")
        if not bool(masks.any()):
            return worths
        some = masks.any(1)
        chunk = max(1, EVALUATED // (len(x_test) * k))
        for index in some.nonzero()[:, 0].split(chunk):
            weights = masks[index].to(x)
            fits = logistic(x, y, weights, l2=l2, classes=k) if learner == "logistic" else ridge(x, targets, weights, l2=l2)
            if classify:
                worths[index] = (fits.classes(x_test) == y_test).double().mean(1).cpu()
            else:
                worths[index] = -(fits.outputs(x_test)[..., 0] - y_test).square().mean(1).double().cpu()
        return worths

    return value


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Share of rows whose largest output is that of their class, (P,) from outputs (P, m, k)."""
    return (outputs.argmax(-1) == targets).double().mean(-1)


def retraining_game(
    make_model: Callable[[], nn.Module],
    loss: Callable[[Tensor, Tensor], Tensor],
    data: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    *,
    optimizer: Optimizer,
    steps: int,
    seed: int = 0,
    noise: Literal["fresh", "none"] = "none",
    score: Callable[[Tensor, Tensor], Tensor] = accuracy,
    chunk: int = CHUNK,
    jobs: int = 1,
    folder: str | os.PathLike[str] | None = None,
    progress: Progress = True,
) -> Worth:
    r"""The game of training rows whose worth is what a network trained on them alone, from scratch, reaches on test rows.

    Coalitions are trained together, as a `Population` with row weights of 0 and 1 and full batches. Nobody is worth what the untrained
    network is. The cost is one training for each coalition: with a network of 10^5 parameters and 10^4 rows Shapley values take GPU-days,
    and `knn_shapley` on its features is the way.

    Args:
        make_model: Builds one network.
        loss: ``loss(outputs, targets)``, one number a row or the mean.
        data: Training rows and targets (n, ...), the players.
        test: Test rows and targets.
        optimizer: From `theorylab.learning.optimizers`, with one setting for all.
        steps: Of full-batch training.
        seed: Of the networks' initial parameters.
        noise: ``"none"``: every coalition starts from the same network, and the game is a function. ``"fresh"``: each coalition starts from
            its own, drawn by ``seed`` and the coalition, so that worths carry independent noise and yet repeat.
        score: ``score(outputs (P, m, ...), targets)`` gives (P,).
        chunk: Coalitions trained at a time.
        jobs: Processes, as of `theorylab.learning.retraining.retrain`.
        folder: Where trained coalitions are kept, as there: a valuation that is killed and begun again with the same seed asks for the same
            coalitions in the same order, and finds them.
        progress: As there, for each call of the game.

    Returns:
        ``value(masks)``.

    Raises:
        ValueError: wrong shapes or an option out of range; FloatingPointError where training diverges.

    Example:
        >>> from theorylab.learning.optimizers.sgd import sgd
        >>> x, y = torch.tensor([[-1.0], [1.0]]), torch.tensor([0, 1])
        >>> make = lambda: nn.Linear(1, 2)
        >>> game = retraining_game(make, nn.functional.cross_entropy, (x, y), (x, y), optimizer=sgd(1.0), steps=200)
        >>> game(torch.tensor([[True, True]])).tolist()
        [1.0]

    Source: Ghorbani and Zou 2019, arXiv:1904.02868; Wang and Jia 2023, arXiv:2205.15466 (noise of training).
    """
    (x, y), (x_test, y_test) = data, test
    _rows(x, y, "data")
    _rows(x_test, y_test, "test")
    if noise not in ("fresh", "none"):
        raise ValueError(f'noise must be "fresh" or "none", got {noise!r}.')
    if min(steps, chunk, jobs) < 1:
        raise ValueError(f"steps, chunk and jobs must be at least 1, got {steps}, {chunk} and {jobs}.")

    def seeds(masks: Tensor) -> list[int]:
        return [seed if noise == "none" else zlib.crc32(row.tobytes(), seed) & 0x7FFFFFFF for row in masks.cpu().numpy()]

    read, dtype = _Scores(x_test, y_test, score), x.dtype if x.is_floating_point() else torch.float64
    training = Training(make_model, loss, data, optimizer, steps, read, None, dtype, "cpu", "vmap")

    def value(masks: Tensor) -> Tensor:
        worths = torch.empty(len(masks), dtype=torch.float64, device="cpu")
        some = masks.any(1)
        everybody = torch.ones_like(masks, dtype=dtype)
        for who, what, weights in ((some, training, masks.to(dtype)), (~some, replace(training, steps=0), everybody)):
            if bool(who.any()):
                members = weights[who], tuple(seeds(masks[who]))
                worths[who] = train_members(what, members, chunk=chunk, jobs=jobs, folder=folder, progress=progress)["worths"]
        return worths

    return value


@dataclass(frozen=True)
class _Scores:
    """What is kept of trained networks: how they score on test rows."""

    x: Tensor
    y: Tensor
    score: Callable[[Tensor, Tensor], Tensor]

    def __call__(self, population: Population) -> Found:
        outputs = population.outputs(self.x)
        return {"worths": self.score(outputs, self.y.to(outputs.device)).double()}
