"""Inputs whose labels carry no information: what a network can only memorize."""

from __future__ import annotations

import torch

from theorylab.data.dataset import Dataset


def random_labels(n: int, d: int, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> Dataset:
    """Standard normal inputs with independent labels 0 and 1, each with probability 1/2.

    Args:
        n: Rows.
        d: Inputs.
        seed: Of inputs and labels.
        dtype: Of both tensors.

    Returns:
        ``x`` (n, d) and ``y`` (n,), of the same dtype.

    Raises:
        ValueError: ``n`` or ``d`` below 1.

    Example:
        >>> x, y = random_labels(100, 5, seed=1)
        >>> x.shape, sorted(set(y.tolist()))
        (torch.Size([100, 5]), [0.0, 1.0])
    """
    for name, size in (("n", n), ("d", d)):
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}.")
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    y = torch.randint(2, (n,), generator=generator)
    return Dataset(x.to(dtype), y.to(dtype))
