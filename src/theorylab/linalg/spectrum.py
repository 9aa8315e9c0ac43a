"""Spectral density of a symmetric operator by stochastic Lanczos quadrature."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from theorylab.core.estimate import Estimate
from theorylab.core.operator import Operator
from theorylab.core.seeds import derived_seed
from theorylab.linalg.lanczos import Krylov, check_symmetric, random_vector


@dataclass(frozen=True)
class Spectrum:
    """A sum of point masses that stands for the eigenvalue distribution of an operator on R^p, per probe.

    ``nodes`` and ``weights`` are (probe, step), float64 on the CPU; the weights of each probe sum to one. Where a probe's Krylov space
    ended early its row is padded by weights of zero. ``interval`` holds every node, and each end the residual of the extreme one besides.
    """

    nodes: Tensor
    weights: Tensor
    interval: tuple[float, float]
    p: int
    n_matvecs: int

    def moment(self, m: int) -> Estimate:
        r"""Estimate of the m-th moment of the spectrum, :math:`\frac1p\sum_i\lambda_i^m`, exact per probe for m ≤ 2·steps − 1."""
        if m < 0:
            raise ValueError(f"m must be at least 0, got {m}.")
        return Estimate.over((self.weights * self.nodes**m).sum(1))

    def density(self, x: Tensor, width: float | None = None) -> Tensor:
        """Density at the points ``x``, each mass spread to a Gaussian of standard deviation ``width`` (default: 1 % of the interval).

        Raises:
            ValueError: a width that is not positive; also by default, where all eigenvalues are the same.
        """
        return self._densities(x, width).mean(-1)

    def density_stderr(self, x: Tensor, width: float | None = None) -> Tensor:
        """Standard error of `density` at the points ``x``, from its spread over the probes.

        Raises:
            ValueError: fewer than two probes, or a width as `density` refuses it.
        """
        probes = len(self.nodes)
        if probes < 2:
            raise ValueError(f"probes must be at least 2 to give a standard error, got {probes}.")
        return self._densities(x, width).std(-1) / math.sqrt(probes)

    def _densities(self, x: Tensor, width: float | None) -> Tensor:
        """One a probe, (..., probe)."""
        width = (self.interval[1] - self.interval[0]) / 100 if width is None else width
        if not width > 0:
            raise ValueError(f"width must be positive, got {width}.")
        gaps = (x.double().cpu()[..., None, None] - self.nodes) / width  # (..., probe, step)
        peaks = torch.exp(-gaps.square() / 2) / (width * math.sqrt(2 * math.pi))
        return (self.weights * peaks).sum(-1)


def spectrum(A: Operator, probes: int = 4, steps: int = 50, seed: int = 0) -> Spectrum:
    r"""Stochastic Lanczos quadrature of the eigenvalue density of a symmetric map on R^p.

    From each random unit vector v, Lanczos gives nodes θ_j and weights w_j with :math:`\sum_j w_j f(\theta_j) = v^\top f(A) v` for
    polynomials f of degree up to 2·steps − 1, whose mean over v is tr f(A) / p.

    Args:
        A: Symmetric map; costs ``probes`` × ``steps`` products and ``steps`` vectors of memory.
        probes: Random vectors, at least 1; at least 2 for the standard error of a moment.
        steps: Products a probe, at least 1; the least of it and p are used.
        seed: Of the probes.

    Raises:
        ValueError: an asymmetric operator, or ``probes`` or ``steps`` below 1.

    Example:
        >>> A = Operator((3, 3), lambda v: 2.0 * v, symmetric=True)
        >>> round(spectrum(A, probes=2, steps=3).moment(2).value, 9)
        4.0

    Source: Ubaru, Chen and Saad 2017, doi:10.1137/16M1104974, Section 3.
    """
    check_symmetric(A)
    for name, value in (("probes", probes), ("steps", steps)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
    p = A.shape[0]
    steps = min(steps, p)
    nodes, weights = torch.zeros(2, probes, steps, dtype=torch.float64, device="cpu")
    low, high, products = math.inf, -math.inf, 0
    for k in range(probes):
        # one a probe: more probes leave the first ones as they were
        generator = torch.Generator().manual_seed(derived_seed(seed, "probe", k))
        krylov = Krylov(A, random_vector(A, generator), generator)
        while len(krylov) < steps and len(krylov.blocks) == 1:
            krylov.step()
        values, vectors = torch.linalg.eigh(krylov.tridiagonal().matrix())
        m, residuals = len(values), krylov.beta[-1] * vectors[-1].abs()
        nodes[k, :m], nodes[k, m:] = values, values[-1]
        weights[k, :m] = vectors[0].square()
        low, high = min(low, float(values[0] - residuals[0])), max(high, float(values[-1] + residuals[-1]))
        products += m
    return Spectrum(nodes, weights, (low, high), p, products)
