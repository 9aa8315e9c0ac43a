"""A model with other tensors in place of its own: `torch.func.functional_call`, without the third of a millisecond that one takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

Places = dict[str, list[tuple[tuple[str, ...], str]]]


def places_of(model: nn.Module) -> Places:
    """By the name of each parameter and buffer, every place that holds it, as the path of a module and a name there: several if tied."""
    first: dict[int, str] = {}
    places: Places = {}
    for tensors in (model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)):
        for name, tensor in tensors:
            *path, key = name.split(".")
            places.setdefault(first.setdefault(id(tensor), name), []).append((tuple(path), key))
    return places


@contextmanager
def substituted(model: nn.Module, tensors: Mapping[str, Tensor], places: Places) -> Iterator[None]:
    """Within it, the model holds ``tensors`` instead of its own of these names; afterwards its own again, whatever happened.

    Args:
        model: The model whose `places_of` are ``places``. They are looked up anew, so that a part may have been replaced since.
        tensors: By the name of a parameter or a buffer.
        places: Where each is held.

    Example:
        >>> import torch
        >>> layer = nn.Linear(1, 1)
        >>> with substituted(layer, {"weight": torch.full((1, 1), 3.0), "bias": torch.zeros(1)}, places_of(layer)):
        ...     layer(torch.ones(1)).tolist()
        [3.0]
    """
    replaced: list[tuple[dict[str, Any], str, Any]] = []
    parts: dict[tuple[str, ...], nn.Module] = {}
    try:
        for name, tensor in tensors.items():
            for path, key in places[name]:
                part = parts.get(path)
                if part is None:
                    part = parts[path] = model.get_submodule(".".join(path))
                held: dict[str, Any] = part._parameters if key in part._parameters else part._buffers
                replaced.append((held, key, held[key]))
                held[key] = tensor
        yield
    finally:
        for held, key, own in reversed(replaced):  # a module that has two places is replaced twice
            held[key] = own
