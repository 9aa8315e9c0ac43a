"""What a loss makes of a batch: a mean over rows, or one number a row; sums are refused."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from theorylab.core.batches import Batch, map_tensors, tensors_of

Reduction = Literal["mean", "rows"]


@contextmanager
def naming(batch: Batch, dtype: torch.dtype, call: str, advice: str = "") -> Iterator[None]:
    """Errors of the user's model or loss keep their kind, and get a note of what was called, on what batch, and what to look at."""
    try:
        yield
    except Exception as error:
        shapes = ", ".join(f"{str(t.dtype).removeprefix('torch.')} {tuple(t.shape)}" for t in tensors_of(batch.content))
        if not advice and not batch.is_pair:
            advice = f"The loss is called so because the batch is no pair (x, y) but {_form(batch.content)}."
        held = ", but not tensors within the loss, as weights of classes" if call.startswith("loss") else ""
        error.add_note(
            f"Raised by {call} when first evaluated, on a batch of {shapes}, with parameters of {str(dtype).removeprefix('torch.')}. "
            + (advice or f"Check that the model takes such inputs and the loss such targets; dtype= converts parameters and data{held}.")
        )
        raise


def _form(content: Any) -> str:
    if isinstance(content, Tensor):
        return "a single tensor; if two of them were meant as one batch, give them as a tuple (x, y), not as a list"
    if isinstance(content, Mapping):
        return f"a dict of {', '.join(map(str, content))}"
    return f"a {type(content).__name__} of {len(content)}"


def unread(outputs: Any) -> str:
    """How to choose from outputs that are not one tensor what the loss takes; "" where they are."""
    if isinstance(outputs, Tensor):
        return ""
    kind, key, names = type(outputs).__name__, 0, ""
    if isinstance(outputs, Mapping):
        key, names = next(iter(outputs), None), f" of {', '.join(map(str, outputs))}"
    return f"The model returns a {kind}{names}: say by read= what of it the loss takes, e.g. read=lambda outputs: outputs[{key!r}]."


def without_broadcast(criterion: Callable[..., Tensor], outputs: Any, targets: Any) -> Tensor:
    """The loss of a pair; PyTorch's warning that outputs and targets of different shapes were broadcast is an error here.

    Raises:
        ValueError: they were, which makes a risk over all pairs of rows.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Using a target size")
        try:
            return criterion(outputs, targets)
        except UserWarning as warning:
            raise ValueError(
                f"loss must get outputs and targets of one shape, got {tuple(outputs.shape)} and {tuple(targets.shape)}, which broadcast "
                "to every pair of rows: reshape the targets."
            ) from warning


def reduction_of(value: Any, rows: int) -> Reduction:
    """How a loss of a batch of so many rows came out.

    Raises:
        TypeError: not a tensor.
        ValueError: neither a scalar nor (rows,).
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"loss must return a tensor, got {type(value).__name__}.")
    if value.ndim == 0:
        return "mean"
    if value.shape == (rows,):
        return "rows"
    raise ValueError(f"loss must return a scalar, or one loss a row ({rows},), got shape {tuple(value.shape)}: average it a row.")


def refuse_sum(criterion: Callable[..., Tensor], outputs: Any, batch: Batch, value: Any) -> None:
    """A mean is the same when every row is there twice; a sum doubles, and would be weighted wrongly.

    Raises:
        ValueError: the loss of a pair is a sum.
    """
    if not (isinstance(value, Tensor) and value.ndim == 0):
        return
    twice = [_twice(side, batch.rows) for side in (outputs, batch.content[1])]
    try:
        doubled = criterion(*twice)
    except Exception:  # a loss that takes so many rows and no more, or outputs whose tensors are not seen: then it is not known
        return
    _refuse_doubling(float(value), float(doubled))


def _twice(tree: Any, rows: int) -> Any:
    return map_tensors(lambda t: torch.cat([t, t]) if t.ndim and len(t) == rows else t, tree)


def refuse_sum_of_whole(loss: Callable[[Batch], Tensor], batch: Batch, value: Tensor) -> None:
    """The same for loss(model, batch), of several batches, given how ``loss`` evaluates one; of one batch a sum is as good as a mean.

    Raises:
        ValueError: it is a sum.
    """
    try:
        doubled = loss(Batch(_twice(batch.content, batch.rows), 2 * batch.rows))
    except Exception:  # a model or a loss that takes so many rows and no more: then it is not known
        return
    _refuse_doubling(float(value), float(doubled))


def _refuse_doubling(once: float, twice: float) -> None:
    if once != 0 and abs(twice / once - 2) < 1e-3:
        raise ValueError('loss must be a mean over rows or one loss a row, got a sum over rows: use reduction="mean" or "none".')
