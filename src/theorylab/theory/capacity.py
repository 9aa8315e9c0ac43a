r"""Rademacher complexity of linear predictors: how well a ball of them can follow signs that mean nothing.

.. math:: \hat{R}(x) = \mathbb{E}_\sigma \sup_{\|w\|_2\le B} \frac1n \sum_i \sigma_i \langle w, x_i\rangle
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from theorylab.core.ranges import nonnegative, whole

MOST_ROWS = 22
"""Rows up to which all signs are enumerated: 4 million of them."""


def sign_vectors(n: int, *, dtype: torch.dtype = torch.float64) -> Tensor:
    """All 2^n vectors of signs, (2^n, n); the second half is the negative of the first, in reverse order.

    Raises:
        ValueError: ``n`` is not in 1 ... 22.

    Example:
        >>> sign_vectors(2).tolist()
        [[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]]
    """
    whole(0, n=n)
    if not 1 <= n <= MOST_ROWS:
        raise ValueError(f"n must be in 1 ... {MOST_ROWS} for all signs to be enumerated, got {n}: draw some at random.")
    bits = torch.arange(2**n, device="cpu")[:, None] >> torch.arange(n, device="cpu") & 1
    return (1 - 2 * bits).to(dtype)


def linear_supremum(x: Tensor, signs: Tensor, radius: float) -> Tensor:
    r"""Largest correlation of a linear predictor with each vector of signs, in closed form.

    .. math:: \sup_{\|w\|_2\le B} \frac1n\sum_i\sigma_i\langle w, x_i\rangle = \frac Bn \sqrt{\sigma^\top K \sigma}, \qquad K = XX^\top

    The Euclidean norm is its own dual; only inner products of rows enter, so that the same holds in any Hilbert space of features.

    Args:
        x: Rows (n, d).
        signs: (m, n).
        radius: B, at least 0.

    Returns:
        (m,).

    Raises:
        ValueError: ``radius`` is negative or not finite.

    Example:
        >>> linear_supremum(torch.tensor([[3.0], [4.0]]), torch.tensor([[1.0, 1.0], [1.0, -1.0]]), 2.0)
        tensor([7., 1.])

    Source: Bartlett and Mendelson 2002, JMLR 3:463-482, Section 4.3 (kernel expansions).
    """
    nonnegative(radius=radius)
    return radius / len(x) * (signs @ x).norm(dim=1)  # not from K: where the signs nearly cancel, its square keeps half of the digits


def linear_rademacher(x: Tensor, radius: float) -> float:
    """Empirical Rademacher complexity of linear predictors of norm at most ``radius``, over all 2^n signs.

    Raises:
        ValueError: more rows than can be enumerated, or a radius that is negative or not finite.

    Example:
        >>> linear_rademacher(torch.tensor([[3.0], [4.0]], dtype=torch.float64), 2.0)  # the mean of 7 and 1
        4.0

    Source: Bartlett and Mendelson 2002, JMLR 3:463-482, Definition 2, without their absolute value and factor of two.
    """
    return float(linear_supremum(x, sign_vectors(len(x), dtype=x.dtype), radius).mean())


def linear_rademacher_bound(x: Tensor, radius: float) -> float:
    r"""The bound :math:`B\sqrt{\sum_i \|x_i\|^2}/n` on `linear_rademacher`, by Jensen's inequality and independence of the signs.

    Attained by orthogonal rows; and never more than √2 above the complexity itself (Khinchin and Kahane).

    Raises:
        ValueError: ``radius`` is negative or not finite.

    Example:
        >>> linear_rademacher_bound(torch.tensor([[3.0], [4.0]]), 2.0)
        5.0

    Source: Bartlett and Mendelson 2002, JMLR 3:463-482, Lemma 22; the constant √2 is Latała and Oleszkiewicz 1994, Studia Mathematica
    109:101-104.
    """
    nonnegative(radius=radius)
    return radius / len(x) * math.sqrt(float(x.square().sum()))
