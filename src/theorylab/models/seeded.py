"""One network that a seed determines, made without touching the global random numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from theorylab.core.generators import seeded_generators, seeded_others

M = TypeVar("M", bound=nn.Module)


def seeded(make_model: Callable[[], M], seed: int, *, dtype: torch.dtype = torch.float64) -> M:
    """``torch.manual_seed(seed); make_model()`` in ``dtype``, with the global generators put back.

    Those of Python and NumPy are seeded as well, for initializations that draw from them.

    Args:
        make_model: Builds one network on the CPU.
        seed: Of its initial parameters.
        dtype: Of parameters and buffers.

    Example:
        >>> a, b = (seeded(lambda: nn.Linear(3, 1), 5) for _ in range(2))
        >>> bool((a.weight == b.weight).all()), a.weight.dtype
        (True, torch.float64)
    """
    with seeded_generators(seed, torch.get_default_device()), seeded_others(seed):
        return make_model().to(dtype)
