"""Is this the training of the same population? A digest of all that its numbers depend on but seeds and steps."""

from __future__ import annotations

from typing import Any

from torch import nn

from theorylab.core.checkpoints import identity
from theorylab.learning.groups import Groups
from theorylab.learning.risk import Loss


def identity_of(groups: Groups, loss: Loss, batch_size: int | None) -> str:
    """Of the rows and their weights, the network, where it is now, the loss, and the optimizer with its hyper-parameters.

    It does not depend on how the replicas are cut into groups. Empty, with a warning, where something cannot be told from others.
    """
    rows = groups.rows()
    noise = None if rows.label_noise is None else rows.label_noise.scale
    data = rows.x, rows.y, rows.weights, rows.batch_weights, noise, batch_size
    now = [groups.whole(attribute) for attribute in ("params", "frozen", "buffers", "state")]
    return identity(data, now, _layers(groups[0].module), loss, groups.optimizer)


def _layers(module: nn.Module) -> list[Any]:
    """What a network is beside its parameters and buffers, for a template's are those of whichever replica went through it last."""
    apart = ("_parameters", "_buffers", "_modules")
    return [
        (name, type(layer), {k: _hooks(v) if k.endswith("_hooks") else v for k, v in vars(layer).items() if k not in apart})
        for name, layer in module.named_modules()
    ]


def _hooks(hooks: Any) -> Any:
    """Without their numbers, which count the hooks of the process."""
    return list(hooks.values()) if isinstance(hooks, dict) else hooks
