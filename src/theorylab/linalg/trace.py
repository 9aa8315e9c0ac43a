"""Trace and diagonal of an operator from products with random vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from theorylab.core.estimate import Estimate
from theorylab.core.operator import Operator

BLOCK = 64  # probes multiplied at once, to bound memory


@dataclass(frozen=True)
class DiagonalEstimate:
    """Each diagonal entry's estimate and standard error, both (p,), from ``n`` probes."""

    value: Tensor
    stderr: Tensor
    n: int


def _check(A: Operator, n: int) -> None:
    if A.shape[0] != A.shape[1]:
        raise ValueError(f"{A.name} must be square, got shape {A.shape}.")
    if n < 2:
        raise ValueError(f"n must be at least 2 to give a standard error, got {n}.")


def _signs(A: Operator, n: int, seed: int) -> Tensor:
    """Rademacher vectors, (p, n)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2, (n, A.shape[1]), generator=generator).mul_(2).sub_(1).T.to(A.device, A.dtype)


def _hutchinson(A: Operator, n: int, seed: int) -> Estimate:
    samples = [(Z * (A @ Z)).sum(0) for Z in _signs(A, n, seed).split(BLOCK, dim=1)]
    return Estimate.over(torch.cat(samples))


def _xtrace(A: Operator, n: int, seed: int) -> Estimate:
    p, m = A.shape[0], n // 2
    if m < 2:
        raise ValueError(f'n must be at least 4 for method="xtrace", two products for each of two vectors, got {n}.')
    if n >= p:
        return Estimate(float(A.to_dense().diagonal().double().sum()), 0.0, p)  # as many products give the trace itself
    omega = torch.randn(p, m, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(A.device, A.dtype)
    Y = A @ omega
    if not float(Y.abs().max()) > 0:
        return Estimate(0.0, 0.0, m)  # A is zero on m Gaussian vectors, so it is zero
    Q, R = torch.linalg.qr(Y)
    eps, size = torch.finfo(Y.dtype).eps, R.diagonal().abs()
    if float(size.min()) < 10 * eps * float(size.max()) * p**0.5:
        # Range of lower dimension than m: fill it up with directions of rounding size, so that leaving one vector out is defined.
        noise = torch.randn(p, m, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64).to(Y)
        Q, R = torch.linalg.qr(Y + 100 * eps * Y.norm() / p**0.5 * noise)
    Z = A @ Q
    H = Q.T @ Z  # (m, m)
    W, B, C = Q.T @ omega, Q.T @ Y, Z.T @ omega  # Qᵀω, QᵀAω, QᵀAᵀω, a column for each ω
    # The basis without vector i is Q(I − s sᵀ) with s the unit vector along column i of R^{-T}: orthogonal to every other column of R.
    eye = torch.eye(m, dtype=R.dtype, device=R.device)
    S = torch.linalg.solve_triangular(R, eye, upper=True).T
    S = S / S.norm(dim=0)
    inside = W - S * (S * W).sum(0)  # Qᵀ of the projection of ω_i on the basis without vector i
    projected = H.diagonal().sum() - (S * (H @ S)).sum(0)
    rest = (omega * Y).sum(0) - (inside * B).sum(0) - (inside * C).sum(0) + (inside * (H @ inside)).sum(0)
    # The rest of ω_i is isotropic in p − m + 1 dimensions; dividing out its length takes the variance of the length away.
    scale = (p - m + 1) / (omega.square().sum(0) - inside.square().sum(0))
    return Estimate.over(projected + scale * rest)


def trace(A: Operator, n: int = 60, method: Literal["xtrace", "hutchinson"] = "xtrace", seed: int = 0) -> Estimate:
    r"""Unbiased estimate of tr(A) from ``n`` products.

    ``"hutchinson"`` averages zᵀAz over n Rademacher vectors z; for symmetric A its variance is 2(‖A‖_F² − Σ a_ii²)/n, so a diagonal A is
    estimated exactly. ``"xtrace"`` takes the trace on the span of Aω for n/2 Gaussian vectors exactly and estimates only the rest, leaving
    out each vector in turn; on a decaying spectrum its error falls much faster. Its standard error treats those n/2 estimates as
    independent, which they are only nearly.

    Args:
        A: Square map on R^p. XTrace keeps n vectors.
        n: Products; at least 2, for XTrace at least 4 (and an even number is used). From n = p on, XTrace returns the exact trace.
        method: Which estimator.
        seed: Of the random vectors.

    Raises:
        ValueError: a map that is not square, too few products, or an unknown method.

    Example:
        >>> A = Operator((3, 3), lambda v: torch.tensor([1.0, 2.0, 4.0]).double() * v, symmetric=True)
        >>> trace(A, n=2, method="hutchinson").value
        7.0

    Source: Hutchinson 1989, doi:10.1080/03610918908812806; Epperly, Tropp and Webber 2024, arXiv:2301.07825, Section 2 (XTrace) and its
    remark on normalizing the rest.
    """
    _check(A, n)
    if method == "hutchinson":
        return _hutchinson(A, n, seed)
    if method == "xtrace":
        return _xtrace(A, n, seed)
    raise ValueError(f'method must be "xtrace" or "hutchinson", got {method!r}.')


def diagonal(A: Operator, n: int = 60, seed: int = 0) -> DiagonalEstimate:
    r"""Unbiased estimate of the diagonal: the mean of z ⊙ Az over ``n`` Rademacher vectors z.

    The variance of entry i is :math:`\sum_{j\ne i} a_{ij}^2 / n`.

    Args:
        A: Square map on R^p.
        n: Products, at least 2.
        seed: Of the random vectors.

    Raises:
        ValueError: a map that is not square, or n below 2.

    Example:
        >>> A = Operator((3, 3), lambda v: torch.tensor([1.0, 2.0, 4.0]).double() * v, symmetric=True)
        >>> diagonal(A, n=2).value.tolist()
        [1.0, 2.0, 4.0]

    Source: Bekas, Kokiopoulou and Saad 2007, doi:10.1016/j.apnum.2007.01.003, Section 2.
    """
    _check(A, n)
    total, square = torch.zeros(A.shape[0], dtype=torch.float64), torch.zeros(A.shape[0], dtype=torch.float64)
    for Z in _signs(A, n, seed).split(BLOCK, dim=1):
        samples = (Z * (A @ Z)).double().cpu()
        total += samples.sum(1)
        square += samples.square().sum(1)
    mean = total / n
    variance = (square / n - mean.square()).clamp(min=0) * n / (n - 1)
    return DiagonalEstimate(mean.to(A.device, A.dtype), (variance / n).sqrt().to(A.device, A.dtype), n)
