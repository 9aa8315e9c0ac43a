"""Ranks that need no threshold: how many singular values matter, by their entropy and by their squares."""

from __future__ import annotations

import torch
from torch import Tensor


def entropy_rank(singular_values: Tensor) -> Tensor:
    r"""The effective rank: exponential of the entropy of the singular values, taken as probabilities.

    .. math:: \operatorname{erank} = \exp\left(-\sum_i p_i \ln p_i\right), \qquad p_i = \frac{\sigma_i}{\sum_j \sigma_j}

    It is the rank where all singular values that are not zero are equal, less where they differ, and does not depend on their scale.

    Args:
        singular_values: (..., r), at least 0.

    Returns:
        (...), in [1, r]; 0 where all are zero.

    Raises:
        ValueError: a negative or non-finite value.

    Example:
        >>> entropy_rank(torch.tensor([[2.0, 2.0, 0.0], [5.0, 0.0, 0.0]])).tolist()
        [2.0, 1.0]

    Source: Roy and Vetterli 2007, "The effective rank: a measure of effective dimensionality", EUSIPCO 2007, pages 606-610.
    """
    s = _checked(singular_values)
    p = s / s.sum(-1, keepdim=True).clamp_min(torch.finfo(s.dtype).tiny)
    return torch.where(s.sum(-1) > 0, torch.special.entr(p).sum(-1).exp(), 0.0)


def stable_rank(singular_values: Tensor) -> Tensor:
    r"""The stable rank :math:`\|A\|_F^2/\|A\|_2^2 = \sum_i \sigma_i^2/\sigma_1^2`, which a small perturbation changes little.

    Args:
        singular_values: (..., r), at least 0.

    Returns:
        (...), in [1, r]; 0 where all are zero.

    Raises:
        ValueError: a negative or non-finite value.

    Example:
        >>> stable_rank(torch.tensor([2.0, 1.0, 1.0])).item()
        1.5

    Source: Rudelson and Vershynin 2007, Section 1 (numerical rank), arXiv:math/0503442.
    """
    s = _checked(singular_values)
    top = s.amax(-1, keepdim=True)
    return (s / top.clamp_min(torch.finfo(s.dtype).tiny)).square().sum(-1)


def _checked(s: Tensor) -> Tensor:
    if not bool((s.isfinite() & (s >= 0)).all()):
        raise ValueError("singular_values must be finite and at least 0.")
    return s
