"""What a Problem accepts as data, turned into a list of batches that never changes again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sized
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
        return type(self.content) is tuple  # a named one is a batch of its own kind

    def part(self, rows: slice) -> Batch:
        """Some of the rows: of every tensor with as many rows as the batch, and all of any other."""
        return Batch(rows_of(self.content, rows, self.rows), len(range(*rows.indices(self.rows))))


def map_tensors(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """Apply ``function`` to every tensor in nested dicts, lists and tuples; leave other values as they are."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, Mapping):
        return alike(tree, {k: map_tensors(function, v) for k, v in tree.items()})
    if isinstance(tree, list | tuple):
        return alike(tree, [map_tensors(function, v) for v in tree])
    return tree


def alike(tree: Any, parts: dict[Any, Any] | list[Any]) -> Any:
    """Other parts in a container of the kind of ``tree``, whose names stay: a named tuple, or a mapping that is made of a dict."""
    if isinstance(parts, list):
        return parts if isinstance(tree, list) else type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)
    if type(tree) is dict:
        return parts
    try:
        made = type(tree)(parts)
    except Exception:  # of another constructor, as that of a defaultdict
        return parts
    return made if isinstance(made, Mapping) and made.keys() == parts.keys() else parts


def as_call(x: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of the model for the x of a pair: model(x), but model(*x) for a tuple or list, and model(**x) for a dict."""
    if isinstance(x, Mapping):
        return (), dict(x)
    return (tuple(x), {}) if isinstance(x, list | tuple) else ((x,), {})


def rows_of(tree: Any, rows: slice | Tensor, n: int) -> Any:
    """Some rows of every tensor in ``tree`` that has ``n`` of them; other tensors as they are."""
    return map_tensors(lambda t: t[rows] if t.ndim and len(t) == n else t, tree)


def split(batches: Iterable[Batch], size: int) -> list[Batch]:
    """The same rows in batches of at most ``size``."""
    return [b if b.rows <= size else b.part(slice(i, min(i + size, b.rows))) for b in batches for i in range(0, b.rows, size)]


def tensors_of(tree: Any) -> list[Tensor]:
    """All tensors in nested dicts, lists and tuples, in order."""
    found: list[Tensor] = []
    map_tensors(lambda t: found.append(t) or t, tree)
    return found


def _convert(item: Any, dtype: torch.dtype | None, device: torch.device, alone: bool) -> Batch:
    if isinstance(item, list | tuple) and len(item) == 2:
        item = tuple(item)  # (x, y): the marker of a pair, see Batch.is_pair
    elif type(item) is tuple:
        item = list(item)

    def move(t: Tensor) -> Tensor:
        t = t.detach().to(device, dtype if t.is_floating_point() else None)
        return t.clone() if t.is_inference() else t  # autograd refuses tensors that were made in inference mode

    content = map_tensors(move, item)
    sides = content if type(content) is tuple else (content,)
    strange = _other_numbers([side for side in sides if not tensors_of(side)])
    if strange is not None:
        raise TypeError(f"a batch of data must hold tensors with a leading row axis, got {strange}: convert them by torch.as_tensor.")
    sizes = [[t.shape[0] for t in tensors_of(side) if t.ndim] for side in sides]
    if not any(sizes):
        raise TypeError(f"a batch of data must hold tensors with a leading row axis, got {type(item).__name__}.")
    for name, side in zip("xy", sides, strict=False):
        if len(sides) == 2 and isinstance(side, Tensor) and side.ndim == 0:
            raise ValueError(f"{name} of a batch must have a leading row axis, got a single number: batch examples by a DataLoader.")
    rows = _common(sizes, alone)
    if rows == 0:
        raise ValueError("data must hold at least one row in every batch, got a batch of none.")
    return Batch(content, rows)


def _common(sides: list[list[int]], alone: bool) -> int:
    """The rows of a batch: the leading size that most of its tensors share, of a pair one that is found on both sides.

    A size of 1 belongs to what holds for all rows, where there is another. Of several as frequent ones the largest is taken where the
    batch is ``alone``, for then nothing is weighed by it.
    """
    sides = [side for side in sides if side]
    shared = set(sides[0]).intersection(*sides)
    if not shared:
        x, y = (side[0] for side in sides)
        raise ValueError(f"x and y of one batch must have as many rows, got {x} and {y}.")
    counts = Counter(size for side in sides for size in side if size in shared)
    likely = [size for size, count in counts.items() if count == max(counts.values())]
    likely = likely if len(likely) == 1 else [size for size in likely if size != 1]
    if len(likely) > 1 and not alone:
        raise ValueError(
            f"the tensors of a batch must agree on its rows, by which batches weigh and are split, got leading sizes {sorted(counts)}, "
            "none of them the most frequent: give all data as one batch, or as pairs (x, y) with one y a row."
        )
    return max(likely)


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


def order_of(data: Any, seed: int = 0) -> Literal["given", "shuffled"]:
    """Whether a DataLoader draws the order of its rows anew at every pass; any other data come as they are given.

    Of samplers that are not PyTorch's own the order is drawn twice, and compared.
    """
    from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SequentialSampler, SubsetRandomSampler, WeightedRandomSampler

    if not isinstance(data, DataLoader) or isinstance(data.dataset, IterableDataset):
        return "given"
    sampler: Any = data.batch_sampler if data.batch_sampler is not None else data.sampler
    sampler = getattr(sampler, "sampler", sampler)  # of batches that are made of an order of rows
    if isinstance(sampler, SequentialSampler):
        return "given"
    if isinstance(sampler, RandomSampler | SubsetRandomSampler | WeightedRandomSampler):
        return "shuffled"
    orders = []
    for own in (seed, seed + 1):
        with seeded_generators(own, torch.device("cpu")), seeded_others(own, generators_of(data)):
            orders.append([i.tolist() if hasattr(i, "tolist") else i for i in sampler])
    return "given" if orders[0] == orders[1] else "shuffled"


def left_off(data: Any, rows: int) -> int:
    """How many rows a DataLoader has beside the ``rows`` that were read of it, for ``drop_last=True`` drops a batch that is not full."""
    batches = getattr(data, "batch_sampler", None)
    if not (getattr(data, "drop_last", False) or getattr(batches, "drop_last", False)):
        return 0
    sampler = getattr(batches, "sampler", getattr(data, "sampler", None))
    return max(0, len(sampler) - rows) if isinstance(sampler, Sized) else 0


def as_batches(data: Any, *, dtype: torch.dtype | None, device: torch.device, seed: int, batch_size: int | None) -> list[Batch]:
    """Normalize ``data`` to batches on ``device``, floating-point tensors in ``dtype``.

    Args:
        data: A tuple (x, y) is one batch; a mapping or a named tuple is one batch for loss(model, batch); a list or any other iterable (a
            DataLoader) holds batches. A batch that is a tuple or list of length two is a pair (x, y), any other goes to loss(model, batch)
            whole. Its rows are the leading size that most of its tensors share.
        dtype: None leaves the data as they are.
        device: Where the batches go.
        seed: Fixes what a loader draws, such as its order; it is read once.
        batch_size: Splits every batch into parts of at most so many rows.

    Raises:
        ValueError: no data, an empty batch, x and y of different length, or several batches whose tensors share no number of rows.
        TypeError: something without a row axis, or pairs mixed with whole batches.
    """
    if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
        raise ValueError(f"batch_size must be at least 1, and whole, got {batch_size}.")
    from torch.utils.data import Dataset

    if isinstance(data, Mapping) or hasattr(data, "_fields") or (isinstance(data, tuple) and len(data) == 2):
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
    batches = [_convert(item, dtype, device, len(items) == 1 and batch_size is None) for item in items]
    if len({b.is_pair for b in batches}) > 1:
        raise TypeError("data mixes pairs (x, y), for loss(outputs, targets), with other batches, for loss(model, batch): use one kind.")
    return batches if batch_size is None else split(batches, batch_size)
