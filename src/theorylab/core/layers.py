"""Which of a model's modules are layers, and which only compute a parameter of one, as weight normalization does."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.nn.utils.parametrize import ParametrizationList


def named_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The model and all modules within it, by name, without those of `torch.nn.utils.parametrize`, whose outputs are parameters.

    Example:
        >>> net = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 3)), nn.Tanh())
        >>> [name for name, _ in named_layers(net)]
        ['', '0', '1']
    """
    computing = {part for m in model.modules() if (within := _parametrizations(m)) is not None for part in within.modules()}
    return ((name, m) for name, m in model.named_modules() if m not in computing)


def has_parts(module: nn.Module) -> bool:
    """Whether a module contains others that are layers."""
    return sum(1 for _ in named_layers(module)) > 1


def has_matrix(module: nn.Module) -> bool:
    """Whether a module owns a parameter of two axes or more, or one that is computed from such: a weight, and no bias or gain.

    Example:
        >>> [has_matrix(m) for m in (nn.Linear(2, 3), nn.utils.parametrizations.orthogonal(nn.Linear(2, 3)), nn.LayerNorm(3))]
        [True, True, False]
    """
    own, within = list(module.parameters(recurse=False)), _parametrizations(module)
    if within is not None:  # the originals: computing the parameter may change buffers, as a power iteration does
        own += [p for computed in within.values() for p in computed.parameters(recurse=False)]
    return any(p.ndim > 1 for p in own)


def _parametrizations(module: nn.Module) -> nn.ModuleDict | None:
    """What computes a module's parameters, by the name of each, or None."""
    within = getattr(module, "parametrizations", None)
    known = isinstance(within, nn.ModuleDict) and all(isinstance(m, ParametrizationList) for m in within.values())
    return within if known else None
