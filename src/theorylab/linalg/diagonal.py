"""The diagonal of an operator from products with random vectors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from theorylab.core.operator import Operator
from theorylab.linalg.trace import check, sign_blocks


@dataclass(frozen=True)
class DiagonalEstimate:
    """Each diagonal entry's estimate and standard error, both (p,), from ``n`` probes."""

    value: Tensor
    stderr: Tensor
    n: int


def diag(A: Operator, n: int = 60, seed: int = 0) -> DiagonalEstimate:
    r"""Unbiased estimate of the diagonal: the mean of z ⊙ Az over ``n`` Rademacher vectors z.

    The variance of entry i is :math:`\sum_{j\ne i} a_{ij}^2 / n`.

    Args:
        A: Square map on R^p.
        n: Products, at least 2. From n = p on the exact diagonal comes back, with a standard error of zero.
        seed: Of the random vectors.

    Raises:
        ValueError: a map that is not square, or n below 2.

    Example:
        >>> A = Operator((3, 3), lambda v: torch.tensor([1.0, 2.0, 4.0]).double() * v, symmetric=True)
        >>> diag(A, n=2).value.tolist()
        [1.0, 2.0, 4.0]

    Source: Bekas, Kokiopoulou and Saad 2007, doi:10.1016/j.apnum.2007.01.003, Section 2.
    """
    check(A, n)
    p = A.shape[0]
    if n >= p:
        exact = A.to_dense().diagonal().clone()
        return DiagonalEstimate(exact, torch.zeros_like(exact), p)
    total, deviation = torch.zeros(2, p, dtype=torch.float64, device=A.device)
    done = 0
    for Z in sign_blocks(A, n, seed):
        samples = (Z * (A @ Z)).double()
        # Welford's update by blocks: a sum of squares would lose the variance of entries that are large and certain.
        mean, count = samples.mean(1), samples.shape[1]
        deviation += samples.sub_(mean[:, None]).square_().sum(1) + (mean - total).square() * done * count / (done + count)
        total += (mean - total) * count / (done + count)
        done += count
    return DiagonalEstimate(total.to(A.dtype), (deviation / (n - 1) / n).sqrt().to(A.dtype), n)
