"""Which rows a classifier gets wrong, and by what margin: what bounds, margins and flatness count."""

from __future__ import annotations

import torch
from torch import Tensor

from theorylab.core.problem import Params, Problem
from theorylab.instruments.refusals import couples_rows, hides_outputs
from theorylab.instruments.row_trust import couples_outputs


def not_classification(problem: Problem) -> str | None:
    """Errors can be counted row by row only where every row has scores of its classes and one class, and a row's scores are its own."""
    reason = hides_outputs(problem) or couples_rows(problem)
    if reason is not None:
        return reason
    with problem.safe(), torch.no_grad():
        outputs = problem.outputs(0)
    if not isinstance(outputs, Tensor):
        return f"the model returns a {type(outputs).__name__}, not one tensor of scores. Wrap it so that it returns the scores (n, k)."
    for batch in problem.batches:
        reason = _not_classes(outputs.shape[1:], batch.content[1], batch.rows)
        if reason is not None:
            return reason
    return couples_outputs(problem)


def _not_classes(scores: torch.Size, targets: object, rows: int) -> str | None:
    advice = "Errors are counted for scores (n, k) with classes (n,) in 0 ... k−1 or one-hot (n, k), or one score a row with targets ±1."
    got = f"scores (n{''.join(f', {s}' for s in scores)})"
    if not isinstance(targets, Tensor):
        return f"the targets are a {type(targets).__name__}, not a tensor of classes. {advice}"
    got += f" and targets {targets.dtype} {tuple(targets.shape)}"
    if scores in ((), (1,)):
        signs = targets.numel() == rows and bool((_numbers(targets).abs() == 1).all())
        return None if signs else f"this is no classification: {got}. {advice}"
    if len(scores) != 1:
        return f"this is no classification of rows: {got}. {advice}"
    if targets.shape == (rows,) and not targets.is_floating_point() and not targets.is_complex():
        inside = bool(((targets >= 0) & (targets < scores[0])).all())
        return None if inside else f"a class lies outside 0 ... {scores[0] - 1}: {got}. {advice}"
    if targets.shape == (rows, *scores):
        one_hot = bool(((targets == 0) | (targets == 1)).all()) and bool((targets.sum(1) == 1).all())
        return None if one_hot else f"the targets are no one-hot classes: {got}. {advice}"
    return f"this is no classification: {got}. {advice}"


def _numbers(targets: Tensor) -> Tensor:
    """True and False as 1 and 0, which some operations take alone."""
    return targets.to(torch.int8) if targets.dtype == torch.bool else targets


def scores_and_classes(problem: Problem, params: Params | None = None) -> tuple[Tensor, Tensor]:
    """Scores (n, k) of all rows, k at least 2, and their classes (n,).

    Raises:
        ValueError: the loss is not finite.
    """
    with torch.no_grad():
        problem.loss(params)
    return predictions(problem, params)


def predictions(problem: Problem, params: Params | None = None) -> tuple[Tensor, Tensor]:
    """The same without a look at the loss: for other parameters of a problem whose own loss is known to be finite."""
    with problem.safe(), torch.no_grad():
        pairs = [as_classification(problem.outputs(k, params), batch.content[1]) for k, batch in enumerate(problem.batches)]
    return torch.cat([scores for scores, _ in pairs]), torch.cat([classes for _, classes in pairs])


def as_classification(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Scores (n, k) and classes (n,) from outputs and targets as a loss takes them; one score f a row becomes the two −f/2 and f/2."""
    if outputs.ndim == 1 or outputs.shape[1] == 1:
        f = outputs.reshape(-1, 1) / 2
        return torch.cat([-f, f], dim=1), (targets.reshape(-1) > 0).long()
    return outputs, _numbers(targets).argmax(1) if targets.shape == outputs.shape else targets.long()


def signed_margins(scores: Tensor, classes: Tensor) -> Tensor:
    """Score of the right class minus the largest of the others, (n,), from scores (n, k); negative where the row is wrong."""
    right = scores.gather(1, classes[:, None])[:, 0]
    return right - scores.scatter(1, classes[:, None], -torch.inf).amax(1)


def row_errors(scores: Tensor, classes: Tensor) -> Tensor:
    """Whether each row is classified wrongly, (n,); a tie counts as an error, and so do scores that are no numbers."""
    return ~(signed_margins(scores, classes) > 0)
