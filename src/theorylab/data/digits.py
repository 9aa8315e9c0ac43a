"""The handwritten digits that ship with scikit-learn: real data that needs no file and no network."""

from __future__ import annotations

import torch

from theorylab.data.dataset import Dataset


def digits(n: int | None = None, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> Dataset:
    """Rows of the UCI digits (8 × 8 pixels, ten classes), each pixel standardized over all 1797 rows.

    Args:
        n: How many rows, drawn without replacement; all of them when None.
        seed: Of the draw and the order of the rows.
        dtype: Of ``x``.

    Returns:
        ``x`` (n, 64); pixels that are constant over the data set stay 0. ``y`` (n,), integers 0-9.

    Raises:
        ValueError: ``n`` outside 1 ... 1797.

    Example:
        >>> x, y = digits(5, seed=1)
        >>> x.shape, y.dtype
        (torch.Size([5, 64]), torch.int64)

    Source: Alpaydin & Kaynak 1998, doi:10.24432/C50P49, as `sklearn.datasets.load_digits`.
    """
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    x, y = torch.from_numpy(pixels).double(), torch.from_numpy(labels)
    if n is not None and not 1 <= n <= len(y):
        raise ValueError(f"n must lie in 1 ... {len(y)}, got {n}.")
    spread = x.std(0)
    x = (x - x.mean(0)) / torch.where(spread > 0, spread, torch.ones_like(spread))
    rows = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed), device="cpu")[:n]
    return Dataset(x[rows].to(dtype), y[rows])
