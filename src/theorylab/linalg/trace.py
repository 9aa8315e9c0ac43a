"""The trace of an operator from products with random vectors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from theorylab.core.estimate import Estimate
from theorylab.core.operator import Operator, check_operator
from theorylab.core.seeds import derived_seed

BLOCK = 64  # probes multiplied at once, to bound memory, ...
ENTRIES = 2**27  # ... and their entries at once, one probe at the least


def check(A: Operator, n: int) -> None:
    """Refuse what has no trace, or too few products for a standard error.

    Raises:
        TypeError: ``A`` is no operator.
        ValueError: the map is not square, or ``n`` is below 2.
    """
    check_operator(A)
    if A.shape[0] != A.shape[1]:
        raise ValueError(f"{A.name} must be square, got shape {A.shape}.")
    if n < 2:
        raise ValueError(f"n must be at least 2 to give a standard error, got {n}.")


def signs(A: Operator, n: int, seed: int) -> Tensor:
    """Rademacher vectors, (p, n)."""
    return _signs(A, n, torch.Generator().manual_seed(seed))


def sign_blocks(A: Operator, n: int, seed: int) -> Iterator[Tensor]:
    """The same vectors, drawn as they are asked for, as many at once as memory allows."""
    generator, block = torch.Generator().manual_seed(seed), max(1, min(BLOCK, ENTRIES // A.shape[1]))
    for start in range(0, n, block):
        yield _signs(A, min(block, n - start), generator)


def _signs(A: Operator, n: int, generator: torch.Generator) -> Tensor:
    drawn = torch.randint(0, 2, (n, A.shape[1]), generator=generator, dtype=torch.int8, device="cpu")
    return drawn.mul_(2).sub_(1).T.to(A.device, A.dtype)


def _hutchinson(A: Operator, n: int, seed: int) -> Estimate:
    return Estimate.over(torch.cat([(Z * (A @ Z)).sum(0) for Z in sign_blocks(A, n, seed)]))


def _hutchpp(A: Operator, n: int, seed: int) -> Estimate:
    p, m = A.shape[0], n // 3
    if m < 2:
        raise ValueError(f'n must be at least 6 for method="hutchpp", three products for each of two vectors, got {n}.')
    if n >= p:
        return _exact(A)
    sketch, rest = signs(A, 2 * m, seed).split(m, dim=1)
    Q, _ = torch.linalg.qr(A @ sketch)  # orthonormal also where the products span less: any basis that rest does not depend on is unbiased
    inside = float((Q * (A @ Q)).sum())
    outside = rest - Q @ (Q.T @ rest)
    return Estimate.over(inside + (outside * (A @ outside)).sum(0).double())


def _exact(A: Operator) -> Estimate:
    return Estimate(float(A.to_dense().diagonal().double().sum()), 0.0, A.shape[0])


def _xtrace(A: Operator, n: int, seed: int) -> Estimate:
    p, m = A.shape[0], n // 2
    if m < 2:
        raise ValueError(f'n must be at least 4 for method="xtrace", two products for each of two vectors, got {n}.')
    if n >= p:
        return _exact(A)  # as many products give the trace itself
    omega = torch.randn(p, m, generator=torch.Generator().manual_seed(seed), dtype=torch.float64, device="cpu").to(A.device, A.dtype)
    Y = A @ omega
    if not float(Y.abs().max()) > 0:
        return Estimate(0.0, 0.0, m)  # A is zero on m Gaussian vectors, so it is zero
    Q, R = torch.linalg.qr(Y)
    eps, size = torch.finfo(Y.dtype).eps, R.diagonal().abs()
    if float(size.min()) < 10 * eps * float(size.max()) * p**0.5:
        # Range of lower dimension than m: fill it up with directions of rounding size, so that leaving one vector out is defined.
        generator = torch.Generator().manual_seed(derived_seed(seed, "noise"))
        noise = torch.randn(p, m, generator=generator, dtype=torch.float64, device="cpu").to(Y)
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


def trace(A: Operator, n: int = 60, method: Literal["xtrace", "hutchpp", "hutchinson"] = "xtrace", seed: int = 0) -> Estimate:
    r"""Unbiased estimate of tr(A) from ``n`` products.

    ``"hutchinson"`` averages zᵀAz over n Rademacher vectors z; for symmetric A its variance is 2(‖A‖_F² − Σ a_ii²)/n, so a diagonal A is
    estimated exactly. ``"hutchpp"`` takes the trace on the span of AS for n/3 vectors S exactly, with n/3 more products, and estimates the
    rest by Hutchinson with the last third. ``"xtrace"`` does without that split: each of n/2 vectors in turn is left out of the span
    and estimates the rest; on a decaying spectrum its error is the least. Its standard error treats those n/2 estimates as independent,
    which they are only nearly; those of the other two are of independent samples.

    Args:
        A: Square map on R^p. XTrace keeps n vectors, Hutch++ as many.
        n: Products; at least 2, for XTrace at least 4 (and an even number is used), for Hutch++ at least 6 (a multiple of 3 is used).
            From n = p on, these two return the exact trace.
        method: Which estimator.
        seed: Of the random vectors.

    Raises:
        ValueError: a map that is not square, too few products, or an unknown method.

    Example:
        >>> A = Operator((3, 3), lambda v: torch.tensor([1.0, 2.0, 4.0]).double() * v, symmetric=True)
        >>> trace(A, n=2, method="hutchinson").value
        7.0

    Source: Hutchinson 1989, doi:10.1080/03610918908812806; Meyer, Musco, Musco and Woodruff 2021, arXiv:2010.09649, Algorithm 1 (Hutch++);
    Epperly, Tropp and Webber 2024, arXiv:2301.07825, Section 2 (XTrace) and its remark on normalizing the rest.
    """
    check(A, n)
    methods = {"hutchinson": _hutchinson, "hutchpp": _hutchpp, "xtrace": _xtrace}
    if method not in methods:
        raise ValueError(f"method must be one of {', '.join(methods)}, got {method!r}.")
    return methods[method](A, n, seed)
