"""Modular arithmetic: a whole table of sums, of which a part is shown."""

from __future__ import annotations

import torch
from torch.nn.functional import one_hot

from theorylab.data.dataset import Dataset
from theorylab.data.images import Split


def modular_addition(p: int, fraction: float = 0.5, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Split:
    r"""All p² sums :math:`(a + b) \bmod p`, a random share of them to train on and the others to test on.

    Args:
        p: Modulus, at least 2.
        fraction: Share of the table that is trained on, in (0, 1); the number of rows is rounded, and each part has at least one.
        seed: Of the split.
        dtype: Of ``x``.

    Returns:
        ``x`` (n, 2p), two one-hot vectors side by side; ``y`` (n,), integers 0 ... p−1.

    Raises:
        ValueError: ``p`` or ``fraction`` out of range.

    Example:
        >>> train, test = modular_addition(5, 0.6)
        >>> train.x.shape, test.x.shape
        (torch.Size([15, 10]), torch.Size([10, 10]))
        >>> a, b = train.x[0].view(2, 5).argmax(1).tolist()
        >>> (a + b) % 5 == train.y[0]
        tensor(True)

    Source: Power et al. 2022, arXiv:2201.02177, Section 2; one-hot inputs as in Gromov 2023, arXiv:2301.02679.
    """
    if p < 2:
        raise ValueError(f"p must be at least 2, got {p}.")
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must lie in (0, 1), got {fraction}.")
    a, b = (table.flatten() for table in torch.meshgrid(torch.arange(p, device="cpu"), torch.arange(p, device="cpu"), indexing="ij"))
    x, y = torch.cat([one_hot(a, p), one_hot(b, p)], dim=1).to(dtype), (a + b) % p
    order = torch.randperm(p * p, generator=torch.Generator().manual_seed(seed), device="cpu")
    shown = min(max(round(fraction * p * p), 1), p * p - 1)
    return Split(*(Dataset(x[rows], y[rows]) for rows in (order[:shown], order[shown:])))
