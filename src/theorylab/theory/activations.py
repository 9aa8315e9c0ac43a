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
    product = a * c
    gap = (product - b * b).clamp(min=0)
    # On the diagonal the gap is zero, but rounding leaves some, of which the root would be an angle of 1e-8.
    gap = torch.where(gap <= 8 * torch.finfo(gap.dtype).eps * product, torch.zeros_like(gap), gap)
    sine = gap.sqrt()
    away = math.pi - torch.atan2(sine, b)  # atan2, for acos has no accuracy near 1, and is NaN beyond
    return (sine + away * b) / (2 * math.pi), away / (2 * math.pi)


def erf(b: Tensor, a: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    r"""Of the error function: :math:`\frac{2}{\pi}\arcsin\frac{2b}{\sqrt{(1+2a)(1+2c)}}` and
    :math:`\frac{4}{\pi}\big((1+2a)(1+2c) - 4b^2\big)^{-1/2}`.

    Example:
        >>> zero = torch.zeros(1, dtype=torch.float64)
        >>> [round(v.item(), 4) for v in erf(zero, zero, zero)]  # φ'(0)² = 4/π
        [0.0, 1.2732]

    Source: Williams 1997, "Computing with Infinite Networks", the sigmoidal transfer function.
    """
    product = (1 + 2 * a) * (1 + 2 * c)
    return torch.asin(2 * b / product.sqrt()) * (2 / math.pi), (product - 4 * b * b).rsqrt() * (4 / math.pi)


def gelu(b: Tensor, a: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    r"""Of u Φ(u), Φ the normal distribution function. With :math:`D = (1+a)(1+c) - b^2` and :math:`N = ac + b^2(\frac{1}{1+a} +
    \frac{1}{1+c} - 1)`, the first is :math:`\frac b4 + \frac{b}{2\pi}\arcsin\frac{b}{\sqrt{(1+a)(1+c)}} + \frac{N}{2\pi\sqrt D}`.

    By integration by parts, E[u g(u, v)] = a E[∂_u g] + b E[∂_v g], with g = Φ(u) v Φ(v).

    Example:
        >>> zero = torch.zeros(1, dtype=torch.float64)
        >>> [v.item() for v in gelu(zero, zero, zero)]  # φ'(0)² = Φ(0)²
        [0.0, 0.25]

    Source: Tsuchida et al. 2021, arXiv:2002.08517, Section 3 (the GELU kernel).
    """
    scale = (1 + a) * (1 + c)
    D = scale - b * b  # at least 1 + a + c
    slope = 1 / (1 + a) + 1 / (1 + c) - 1
    N = a * c + b * b * slope
    angle = torch.asin(b / scale.sqrt())
    covariance = b / 4 + (b * angle + N / D.sqrt()) / (2 * math.pi)
    return covariance, 0.25 + (angle + (b + 2 * b * slope) / D.sqrt() + N * b / D**1.5) / (2 * math.pi)


TERMS = 200
"""Of the Hermite series of an activation that has no closed form, and nodes of the quadrature that finds its coefficients."""


def tanh(b: Tensor, a: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    r"""Of the hyperbolic tangent, which has no closed form: :math:`\sum_k \phi_k(a)\,\phi_k(c)\,\rho^k`, with :math:`\rho = b/\sqrt{ac}`
    and :math:`\phi_k(a) = E[\phi(\sqrt a z)\, h_k(z)]` over normalized Hermite polynomials; likewise of its slope.

    A truncated series still is a positive definite kernel. The poles of tanh at ±iπ/2 make its error fall as :math:`e^{-\pi\sqrt{K/a}}` in
    the number K of terms, where ρ is one: with `TERMS` it is rounding at a variance of one, 1e-9 at 3 (of the slope 1e-7) and 1e-5 at 10.

    Example:
        >>> one = torch.ones(1, dtype=torch.float64)
        >>> [round(v.item(), 6) for v in tanh(one, one, one)]
        [0.394294, 0.464403]

    Source: Daniely et al. 2016, arXiv:1602.05897, the dual activation as a power series.
    """
    product = a * c
    rho = torch.where(product > 0, b / torch.where(product > 0, product, torch.ones_like(product)).sqrt(), 0.0)
    covariance, slopes = torch.zeros_like(rho), torch.zeros_like(rho)
    series = zip(*_tanh_coefficients(a), *_tanh_coefficients(c), strict=True)
    for value_a, slope_a, value_c, slope_c in reversed(list(series)):  # Horner's rule in ρ²: tanh is odd, and its slope even
        covariance = covariance * rho * rho + value_a * value_c
        slopes = slopes * rho * rho + slope_a * slope_c
    return covariance * rho, slopes


def _tanh_coefficients(a: Tensor) -> tuple[Tensor, Tensor]:
    """Odd Hermite coefficients of z → tanh(√a z), and the even ones of its slope, (terms, *a.shape) each."""
    z, rule = (torch.from_numpy(t).to(a) for t in _hermite_rule())
    value = torch.tanh(a.sqrt()[..., None] * z)
    odd, even = value @ rule[:, 1::2], (1 - value * value) @ rule[:, ::2]
    return odd.movedim(-1, 0), even.movedim(-1, 0)


@cache
def _hermite_rule() -> tuple[np.ndarray, np.ndarray]:
    """Nodes z (n,), and h_k(z) times their weights for each k, (n, terms): against f(z) it gives f's coefficients."""
    z, weights = np.polynomial.hermite_e.hermegauss(TERMS)
    root = np.sqrt(weights / math.sqrt(2 * math.pi))
    columns = [root, z * root]  # h_k times the root of the weight, which stays small
    for k in range(1, TERMS - 1):
        columns.append((z * columns[k] - math.sqrt(k) * columns[k - 1]) / math.sqrt(k + 1))
    return z, root[:, None] * np.stack(columns, axis=1)


def identity(b: Tensor, a: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Of u itself: b and 1."""
    return b + 0 * (a + c), torch.ones_like(b + a + c)


DUALS: dict[str, Dual] = {"relu": relu, "erf": erf, "gelu": gelu, "tanh": tanh, "identity": identity}
"""Activation → its dual."""
