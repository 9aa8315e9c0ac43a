"""What every loader and generator returns: rows and their targets."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Dataset(NamedTuple):
    """Inputs ``x`` (n, ...) and targets ``y`` (n,) or (n, k); unpacks as a pair."""

    x: Tensor
    y: Tensor
