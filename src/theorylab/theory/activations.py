r"""Dual activations: the Gaussian expectations :math:`E[\phi(u)\phi(v)]` and :math:`E[\phi'(u)\phi'(v)]` of which wide kernels are made.

Here (u, v) is normal with mean zero, variances a and c, and covariance b. The second expectation is the derivative of the first in b.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from torch import Tensor

Dual = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(b, a, c), broadcast against each other → the expectations of φφ and of φ'φ'."""


def relu(b: Tensor, a: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    r"""Of max(u, 0): :math:`\frac{1}{2\pi}(\sin\vartheta + (\pi - \vartheta)\cos\vartheta)\sqrt{ac}` and
    :math:`\frac{1}{2\pi}(\pi - \vartheta)`, with :math:`\cos\vartheta = b/\sqrt{ac}`.

    Example:
        >>> one = torch.ones(1, dtype=torch.float64)
        >>> [v.item() for v in relu(one, one, one)]  # half of the mass lies above zero
        [0.5, 0.5]

    Source: Cho and Saul 2009, "Kernel Methods for Deep Learning", Section 2 (arc-cosine kernels of order 1 and 0).
    """
    sine = _gap(b, a, c).sqrt()
    away = math.pi - torch.atan2(sine, b)  # atan2, for acos has no accuracy near 1, and is NaN beyond
    return (sine + away * b) / (2 * math.pi), away / (2 * math.pi)


def _gap(b: Tensor, a: Tensor, c: Tensor) -> Tensor:
    """The determinant ac − b², zero where u and v are proportional: rounding leaves some, whose root would be an angle of 1e-8."""
    product = a * c
    gap = (product - b * b).clamp(min=0)
    return torch.where(gap <= 8 * torch.finfo(gap.dtype).eps * product, torch.zeros_like(gap), gap)


def erf(b: Tensor, a: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    r"""Of the error function: :math:`\frac{2}{\pi}\arcsin\frac{2b}{\sqrt{(1+2a)(1+2c)}}` and
    :math:`\frac{4}{\pi}\big((1+2a)(1+2c) - 4b^2\big)^{-1/2}`.

    Example:
        >>> zero = torch.zeros(1, dtype=torch.float64)
        >>> [round(v.item(), 4) for v in erf(zero, zero, zero)]  # φ'(0)² = 4/π
        [0.0, 1.2732]

    Source: Williams 1997, "Computing with Infinite Networks", the sigmoidal transfer function.
    """
    return _of_error_functions(b, a, c, np.array([0.5]), np.array([1.0]))


def gelu(b: Tensor, a: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    r"""Of u Φ(u), Φ the normal distribution function. With :math:`g = ac - b^2`, :math:`D = 1 + a + c + g`,
    :math:`s = \frac{1}{1+a} + \frac{1}{1+c}` and :math:`\vartheta = \frac\pi2 + \arctan\frac{b}{\sqrt D}`, the expectations are
    :math:`\frac{1}{2\pi}\big(b\vartheta + \frac{g + b^2 s}{\sqrt D}\big)` and
    :math:`\frac{1}{2\pi}\big(\vartheta + \frac{b}{\sqrt D}(s + \frac1D)\big)`.

    By integration by parts, E[u g(u, v)] = a E[∂_u g] + b E[∂_v g], with g = Φ(u) v Φ(v).

    Example:
        >>> zero = torch.zeros(1, dtype=torch.float64)
        >>> [v.item() for v in gelu(zero, zero, zero)]  # φ'(0)² = Φ(0)²
        [0.0, 0.25]

    Source: Tsuchida et al. 2021, arXiv:2002.08517, Section 3 (the GELU kernel).
    """
    gap = _gap(b, a, c)
    D = 1 + a + c + gap  # not (1+a)(1+c) − b², of which large variances leave only rounding
    share, root = 1 / (1 + a) + 1 / (1 + c), D.sqrt()
    away = torch.atan2(root, -b)
    return (b * (away + b / root * share) + gap / root) / (2 * math.pi), (away + b / root * (share + 1 / D)) / (2 * math.pi)


TERMS = 12
"""Error functions whose weighted sum stands for an activation that has no closed form."""


def tanh(b: Tensor, a: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    r"""Of the hyperbolic tangent, which has no closed form: of the mean of error functions
    :math:`\tanh u = E\,\operatorname{erf}\big(u / (\sqrt2\,K)\big)`, where K has Kolmogorov's distribution.

    A Gauss rule of `TERMS` nodes in ln K takes the mean, so that both expectations are those of one function, a weighted sum of error
    functions, and the kernel is positive definite. Whatever the variances, the singularities of what is integrated lie at negative K², a
    fixed distance π/2 from the real axis of ln K: the relative error of both is below 1e-12 at all variances and correlations.

    Example:
        >>> one = torch.ones(1, dtype=torch.float64)
        >>> [round(v.item(), 6) for v in tanh(one, one, one)]
        [0.394294, 0.464403]

    Source: Stefanski 1991, doi:10.1016/0167-7152(91)90181-P, the theorem (the logistic distribution is a normal one whose standard
    deviation is 2K); the expectations of each pair of error functions as in `erf`.
    """
    return _of_error_functions(b, a, c, *_kolmogorov_rule())


@cache
def _kolmogorov_rule() -> tuple[np.ndarray, np.ndarray]:
    """Squares of the nodes k and weights of the Gauss rule in ln k for Kolmogorov's density 8k Σ (−1)^{j−1} j² exp(−2j²k²).

    Found by orthogonalizing polynomials over a fine trapezoid rule, whose error is rounding, as the density is smooth and dies out at both
    ends faster than any exponential of ln k.
    """
    grid = np.linspace(math.log(0.15), math.log(4.6), 2000)
    k, j = np.exp(grid)[:, None], np.arange(1, 61)
    density = np.clip((8 * k * (-1.0) ** (j - 1) * j**2 * np.exp(-2 * (j * k) ** 2)).sum(1), 0, None)  # rounding is left where it ends
    at = np.linspace(-1, 1, len(grid))
    basis, _ = np.linalg.qr(np.sqrt(density * k[:, 0])[:, None] * np.polynomial.chebyshev.chebvander(at, TERMS - 1))
    nodes, vectors = np.linalg.eigh(basis.T @ (at[:, None] * basis))  # multiplication by ln k, on polynomials
    return np.exp(2 * np.interp(nodes, at, grid)), vectors[0] ** 2


BLOCK = 2**16
"""Numbers that are held at a time while pairs of error functions are summed: small enough for a cache."""


def _of_error_functions(b: Tensor, a: Tensor, c: Tensor, squares: np.ndarray, weights: np.ndarray) -> tuple[Tensor, Tensor]:
    r"""Of :math:`\sum_i w_i \operatorname{erf}(u / \sqrt{2 s_i})`: over pairs, with :math:`r^{-2} = (s_i + a)(s_j + c) - b^2`, the sums
    of :math:`\frac2\pi \arctan(b r)` and :math:`\frac2\pi r`, each times its weights.
    """
    gap = (a * c - b * b).clamp(min=0)[..., None]  # taken first: it is zero where u = ±v, and large numbers would leave rounding of it
    b, a, c = b[..., None], a[..., None], c[..., None]
    table = np.stack([np.repeat(squares, len(squares)), np.tile(squares, len(squares)), np.outer(weights, weights).ravel() * 2 / math.pi])
    covariance, slopes = torch.zeros_like(gap[..., 0]), torch.zeros_like(gap[..., 0])
    for s, t, weight in zip(*(v.split(max(1, BLOCK // max(1, gap.numel()))) for v in torch.from_numpy(table).to(gap)), strict=True):
        r = (gap + c * s + (a + s) * t).rsqrt()
        covariance, slopes = covariance + torch.atan(b * r) @ weight, slopes + r @ weight
    return covariance, slopes


def identity(b: Tensor, a: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Of u itself: b and 1."""
    return b + 0 * (a + c), torch.ones_like(b + a + c)


DUALS: dict[str, Dual] = {"relu": relu, "erf": erf, "gelu": gelu, "tanh": tanh, "identity": identity}
"""Activation → its dual."""
