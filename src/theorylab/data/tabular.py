"""The breast-cancer table that ships with scikit-learn: real data of two classes that needs no file and no network."""

from __future__ import annotations

import torch

from theorylab.data.dataset import Dataset


def breast_cancer(n: int | None = None, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> Dataset:
    """Rows of the Wisconsin diagnostic table (30 measurements, benign 1 or malignant 0), each column standardized over all 569 rows.

    Args:
        n: How many rows, drawn without replacement; all of them when None.
        seed: Of the draw and the order of the rows.
        dtype: Of ``x``.

    Returns:
        ``x`` (n, 30), ``y`` (n,), integers 0 and 1.

    Raises:
        ValueError: ``n`` outside 1 ... 569.

    Example:
        >>> x, y = breast_cancer(5, seed=1)
        >>> x.shape, y.dtype
        (torch.Size([5, 30]), torch.int64)

    Source: Wolberg et al. 1995, doi:10.24432/C5DW2B, as `sklearn.datasets.load_breast_cancer`.
    """
    from sklearn.datasets import load_breast_cancer

    table, labels = load_breast_cancer(return_X_y=True)
    x, y = torch.from_numpy(table).double(), torch.from_numpy(labels)
    if n is not None and not 1 <= n <= len(y):
        raise ValueError(f"n must lie in 1 ... {len(y)}, got {n}.")
    rows = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed), device="cpu")[:n]
    return Dataset(((x - x.mean(0)) / x.std(0))[rows].to(dtype), y[rows])
