"""Which parameters of a model are differentiated: by name, by glob, or all that are trainable."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn


def _patterns(params: Any) -> list[str]:
    """Names and globs as a list.

    Raises:
        TypeError: something else, parameters themselves for example.
    """
    if isinstance(params, str):
        return [params]
    given: list[Any] = list(params) if isinstance(params, Iterable) and not isinstance(params, Tensor) else [params]
    for pattern in given:
        if not isinstance(pattern, str):
            kind = type(pattern).__name__
            raise TypeError(f"params must be a name or a glob, or a list of either, got {kind}: names are in model.named_parameters().")
    return given


def select(model: nn.Module, params: str | Sequence[str] | None) -> list[str]:
    """Canonical names, in the model's order, of the parameters that ``params`` means.

    Args:
        model: With at least one parameter; tied ones count once, and any of their names selects them.
        params: A name or a glob, or a list of either; None for those that require a gradient.

    Raises:
        ValueError: no parameters, none that is trainable or named, or a pattern that matches none.
        TypeError: ``params`` of another kind, or a selected parameter that is not real floating point.
    """
    canonical = {id(p): k for k, p in model.named_parameters()}
    if not canonical:
        raise ValueError(f"model {type(model).__name__} has no parameters: there is nothing to differentiate.")
    if params is None:
        chosen = {k for k, p in model.named_parameters() if p.requires_grad}
        if not chosen:
            raise ValueError("all parameters are frozen (requires_grad=False): unfreeze some, or name those to differentiate in params=.")
    else:
        every = {k: canonical[id(p)] for k, p in model.named_parameters(remove_duplicate=False)}  # a tied alias selects its parameter
        chosen = set()
        for pattern in _patterns(params):
            matched = {name for alias, name in every.items() if alias == pattern or fnmatchcase(alias, pattern)}
            if not matched:
                inside = any(alias.startswith(f"{pattern}.") for alias in every)
                advice = f"write {pattern + '.*'!r} for all of that module" if inside else f"there are {', '.join(list(every)[:20])}"
                raise ValueError(f"params: {pattern!r} matches no parameter; {advice}.")
            chosen |= matched
        if not chosen:
            raise ValueError("params must name at least one parameter, got an empty list.")
    names = [k for k in canonical.values() if k in chosen]
    for k, p in model.named_parameters():
        if k in chosen and not p.is_floating_point():
            raise TypeError(f"parameter {k} must be real floating point to be differentiated, got {p.dtype}: leave it out of params=.")
    return names
