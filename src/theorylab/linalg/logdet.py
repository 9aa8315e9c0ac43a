"""The logarithm of a determinant by stochastic Lanczos quadrature, with an error that holds the quadrature's own."""

from __future__ import annotations

import torch
from torch import Tensor

from theorylab.core.estimate import Estimate
from theorylab.core.operator import Operator
from theorylab.core.seeds import derived_seed
from theorylab.linalg.lanczos import Krylov, check_symmetric
from theorylab.linalg.trace import signs


def logdet(A: Operator, shift: float = 0.0, n: int = 10, *, steps: int = 50, lower: float = 0.0, seed: int = 0) -> Estimate:
    r"""Estimate of log det(A + shift·I) for a symmetric map A whose eigenvalues are all at least ``lower``.

    For each of n Rademacher vectors z, of length √p, the quadratic form zᵀ log(A + shift·I) z, whose mean is the answer, is enclosed by two
    quadratures of the same Lanczos steps: Gauss' is never below it, for all even derivatives of the logarithm are negative, and
    Gauss-Radau's with a node at ``lower`` never above. The value is the mean of their middles, and the standard error that over the vectors
    plus half the mean distance of the two, so that too few steps widen the interval instead of moving it.

    Args:
        A: Symmetric map on R^p; costs n × ``steps`` products and ``steps`` vectors of memory.
        shift: Added to every eigenvalue; shift + ``lower`` must be positive. The larger it is, the fewer steps are needed.
        n: Random vectors, at least 2.
        steps: Products a vector, at least 1; the least of it and p are used.
        lower: A lower bound of A's spectrum: 0 for a semidefinite map such as the Gauss-Newton matrix.
        seed: Of the vectors.

    Raises:
        ValueError: an asymmetric operator, an argument out of range, or an eigenvalue that is found below ``lower``.

    Example:
        >>> A = Operator((3, 3), lambda v: torch.tensor([1.0, 2.0, 4.0]).double() * v, symmetric=True)
        >>> estimate = logdet(A, shift=1.0)
        >>> round(estimate.value, 4), estimate.stderr < 1e-6
        (3.4012, True)

    Source: Bai, Fahey and Golub 1996, doi:10.1016/0377-0427(96)00018-0 (both quadratures as bounds for the determinant); Ubaru, Chen and
    Saad 2017, doi:10.1137/16M1104974, Section 3.
    """
    check_symmetric(A)
    for name, value, least in (("n", n, 2), ("steps", steps, 1)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}.")
    if not shift + lower > 0:
        raise ValueError(
            f"shift + lower must be positive, or the determinant may vanish, got {shift:g} + {lower:g}: raise shift, or give the least "
            "eigenvalue as lower."
        )
    upper_sums, lower_sums = [], []
    for k, z in enumerate(signs(A, n, seed).unbind(1)):
        krylov = Krylov(A, z, torch.Generator().manual_seed(derived_seed(seed, "directions", k)))
        while len(krylov) < min(steps, A.shape[0]) and len(krylov.blocks) == 1:
            krylov.step()
        T, rounding = krylov.tridiagonal().matrix(), krylov.rounding
        nodes, weights, last = _rule(T)
        if float(nodes[0]) < lower - rounding:
            raise ValueError(
                f"{A.name} has an eigenvalue of {float(nodes[0]):.3g} or less, below lower={lower:g}: lower it and raise shift."
            )
        upper_sums.append(float(weights @ (nodes + rounding + shift).log()))
        gaps = (nodes - lower).clamp(min=max(rounding, torch.finfo(torch.float64).tiny))
        end = lower + float((krylov.beta[-1] ** 2 * last.square() / gaps).sum())  # makes ``lower`` an eigenvalue of the extended matrix
        extended = torch.block_diag(T, torch.tensor([[end]], dtype=torch.float64, device="cpu"))
        extended[-1, -2] = extended[-2, -1] = krylov.beta[-1]
        nodes, weights, _ = _rule(extended)
        lower_sums.append(float(weights @ ((nodes - rounding).clamp(min=lower) + shift).log()))
    above, below = (A.shape[0] * torch.tensor(sums, dtype=torch.float64, device="cpu") for sums in (upper_sums, lower_sums))
    middle = Estimate.over((above + below) / 2)
    return Estimate(middle.value, middle.stderr + float((above - below).clamp(min=0).mean()) / 2, n)


def _rule(T: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Nodes and weights of the quadrature of a tridiagonal matrix, and the last entries of its eigenvectors."""
    nodes, vectors = torch.linalg.eigh(T)
    return nodes, vectors[0].square(), vectors[-1]
