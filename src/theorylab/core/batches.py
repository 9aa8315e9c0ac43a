"""What a Problem accepts as data, turned into a list of batches that never changes again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from theorylab.core.generators import generators_of, seeded_generators, seeded_others


class Batch(NamedTuple):
    """One minibatch: ``content`` as the loss takes it, and how many rows it holds."""

    content: Any
    rows: int

    @property
    def is_pair(self) -> bool:
        """Whether the loss is called as loss(model(x), y); otherwise as loss(model, content)."""
        return isinstance(self.content, tuple)

    def part(self, rows: slice) -> Batch:
        """Some of the rows: of every tensor with as many rows as the batch, and all of any other."""
        return Batch(rows_of(self.content, rows, self.rows), len(range(*rows.indices(self.rows))))


def map_tensors(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """Apply ``function`` to every tensor in nested dicts, lists and tuples; leave other values as they are."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, Mapping):
        return {k: map_tensors(function, v) for k, v in tree.items()}
    if isinstance(tree, list | tuple):
        mapped = [map_tensors(function, v) for v in tree]
        return mapped if isinstance(tree, list) else tuple(mapped)
    return tree


def as_call(x: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of the model for the x of a pair: model(x), but model(*x) for a tuple or list, and model(**x) for a dict."""
    if isinstance(x, Mapping):
        return (), dict(x)
    return (tuple(x), {}) if isinstance(x, list | tuple) else ((x,), {})


def rows_of(tree: Any, rows: slice | Tensor, n: int) -> Any:
    """Some rows of every tensor in ``tree`` that has ``n`` of them; other tensors as they are."""
    return map_tensors(lambda t: t[rows] if t.ndim and len(t) == n else t, tree)


def tensors_of(tree: Any) -> list[Tensor]:
    """All tensors in nested dicts, lists and tuples, in order."""
    found: list[Tensor] = []
    map_tensors(lambda t: found.append(t) or t, tree)
    return found


def _convert(item: Any, dtype: torch.dtype | None, device: torch.device) -> Batch:
    if isinstance(item, list | tuple) and len(item) == 2:
        item = tuple(item)  # (x, y): the marker of a pair, see Batch.is_pair
    elif not isinstance(item, Mapping | Tensor):
        item = list(item) if isinstance(item, tuple) else item

    def move(t: Tensor) -> Tensor:
        t = t.detach().to(device, dtype if t.is_floating_point() else None)
        return t.clone() if t.is_inference() else t  # autograd refuses tensors that were made in inference mode

    content = map_tensors(move, item)
    sizes = [t.shape[0] for t in tensors_of(content) if t.ndim]
    bare = [side for side in (content if isinstance(content, tuple) else (content,)) if not tensors_of(side)]
    strange = _other_numbers(bare)
    if strange is not None:
        raise TypeError(f"a batch of data must hold tensors with a leading row axis, got {strange}: convert them by torch.as_tensor.")
    if not sizes:
        raise TypeError(f"a batch of data must hold tensors with a leading row axis, got {type(item).__name__}.")
    if sizes[0] == 0:
        raise ValueError("data must hold at least one row in every batch, got a batch of none.")
    if isinstance(content, tuple):
        x, y = ([t.shape[0] for t in tensors_of(side) if t.ndim][:1] for side in content)
        if x and y and x != y:
            raise ValueError(f"x and y of one batch must have as many rows, got {x[0]} and {y[0]}.")
    return Batch(content, sizes[0])


def _other_numbers(tree: Any) -> str | None:
    """What kind of numbers, not in tensors, lie in nested dicts, lists and tuples; None where there are none."""
    if isinstance(tree, Mapping):
        tree = list(tree.values())
    if isinstance(tree, list | tuple):
        return next((kind for part in tree if (kind := _other_numbers(part)) is not None), None)
    if type(tree).__module__ == "numpy":
        return "NumPy arrays"
    return "plain numbers" if isinstance(tree, int | float) and not isinstance(tree, bool) else None


def drain(loader: Iterable[Any], seed: int, device: torch.device) -> list[Any]:
    """The batches of a loader in the order, and with the augmentation, that ``seed`` gives; every generator is as it was afterwards.

    Those are the global ones of torch (of the CPU and of ``device``), Python and NumPy, and those of the loader and its samplers.
    """
    if isinstance(loader, list | tuple):
        return list(loader)
    with seeded_generators(seed, device), seeded_others(seed, generators_of(loader)):
        return list(loader)


def order_of(data: Any) -> Literal["given", "shuffled"]:
    """Whether a DataLoader draws the order of its rows anew at every pass; any other data come as they are given."""
    from torch.utils.data import RandomSampler, WeightedRandomSampler

    return "shuffled" if isinstance(getattr(data, "sampler", None), RandomSampler | WeightedRandomSampler) else "given"


def as_batches(data: Any, *, dtype: torch.dtype | None, device: torch.device, seed: int, batch_size: int | None) -> list[Batch]:
    """Normalize ``data`` to batches on ``device``, floating-point tensors in ``dtype``.

    Args:
        data: A tuple (x, y) is one batch; a mapping is one batch for loss(model, batch); a list or any other iterable (a DataLoader) holds
            batches. A batch that is a tuple or list of length two is a pair (x, y), any other goes to loss(model, batch) whole.
        dtype: None leaves the data as they are.
        device: Where the batches go.
        seed: Fixes what a loader draws, such as its order; it is read once.
        batch_size: Splits every batch into parts of at most so many rows.

    Raises:
        ValueError: no data, an empty batch, or x and y of different length.
        TypeError: something without a row axis, or pairs mixed with whole batches.
    """
    if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
        raise ValueError(f"batch_size must be at least 1, and whole, got {batch_size}.")
    from torch.utils.data import Dataset

    if isinstance(data, Mapping) or (isinstance(data, tuple) and len(data) == 2):
        items = [data]
    elif isinstance(data, Tensor | str | bytes) or not isinstance(data, Iterable):
        advice = ": put it into a DataLoader" if isinstance(data, Dataset) else ""
        advice = ": give x with its y, or [x] for loss(model, batch)" if isinstance(data, Tensor) else advice
        raise TypeError(f"data must be a tuple (x, y), a dict, a list of batches or a DataLoader, got {type(data).__name__}{advice}.")
    else:
        items = drain(data, seed, device)
    if not items:
        raise ValueError(
            "data must hold at least one batch, got none: the data set is empty, or drop_last=True drops all that a loader has."
        )
    batches = [_convert(item, dtype, device) for item in items]
    if len({b.is_pair for b in batches}) > 1:
        raise TypeError("data mixes pairs (x, y), for loss(outputs, targets), with other batches, for loss(model, batch): use one kind.")
    if batch_size is not None:
        batches = [b.part(slice(i, i + batch_size)) for b in batches for i in range(0, b.rows, batch_size)]
    return batches
