"""What is shown of an operator, which is no number itself? Its trace, its extreme eigenvalues, its effective rank and its spectrum."""

from __future__ import annotations

import numpy as np
import torch

from theorylab.core.estimate import Estimate
from theorylab.core.operator import Operator
from theorylab.core.reading import Reading
from theorylab.core.series import Series
from theorylab.linalg.spectrum import Spectrum, spectrum
from theorylab.linalg.trace import trace
from theorylab.measuring.readings import LEVEL, Shown

PROBES, STEPS, PRODUCTS = 4, 40, 40
"""Probes and steps of the spectrum, and products of the trace, where memory allows them."""
FLOOR = 1e-5
"""Share of its peak below which a density is drawn as this share."""


def products(p: int) -> int:
    """Products that `of_operator` takes of a symmetric map on R^p.

    Example:
        >>> products(1000), products(10)
        (200, 50)
    """
    return PROBES * min(STEPS, p) + min(PRODUCTS, p)


def of_operator(A: Operator, *, seed: int, vectors: int = 10**9) -> Shown:
    """The readings of a symmetric operator; of another one those of AᵀA.

    Args:
        A: The map.
        seed: Of the probes.
        vectors: How many vectors of R^p memory has room for, at least 8; with fewer than the defaults need, fewer steps are taken, which
            the readings say.
    """
    name, squared = A.name, not A.symmetric
    if squared:
        A = _gram(A)
    p, before = A.shape[0], A.n_matvecs
    steps = max(4, min(STEPS, vectors // 3, p))  # the basis grows by doubling: for a moment it is there one and a half times
    found = spectrum(A, PROBES, steps, seed)
    few = max(4, min(PRODUCTS, vectors // 5 * 2))  # XTrace holds two and a half vectors a product
    total = trace(A, few, seed=seed)
    of = f"{name}ᵀ{name}" if squared else name
    readings = [Reading(f"trace of the {of}", total.value, "measure", total.interval(LEVEL), note=f"XTrace, {min(few, p)} products")]
    readings += _extremes(of, found, steps)
    readings += _effective_rank(of, found)
    return Shown(readings, [density(of, found)], A.n_matvecs - before)


def _gram(A: Operator) -> Operator:
    def product(v: torch.Tensor) -> torch.Tensor:
        return A.T @ (A @ v)

    p = A.shape[1]
    return Operator((p, p), product, symmetric=True, dtype=A.dtype, device=A.device, name=f"{A.name}ᵀ{A.name}")


def _extremes(of: str, found: Spectrum, steps: int) -> list[Reading]:
    # Ritz values lie inside the spectrum: they bound its ends from one side, and their residuals say how far off they may be.
    present = found.nodes[found.weights > 0]
    low, high = float(present.min()), float(present.max())
    note = f"Ritz value of {steps} steps, with its residual"
    return [
        Reading(f"largest eigenvalue of the {of}", high, "measure", (high, max(high, found.interval[1])), note=note),
        Reading(f"smallest eigenvalue of the {of}", low, "measure", (min(low, found.interval[0]), low), note=note),
    ]


def _effective_rank(of: str, found: Spectrum) -> list[Reading]:
    """(tr A)² / tr A², the number of equal eigenvalues with the same two moments; for a map without negative curvature."""
    if float(found.nodes.min()) < -1e-3 * float(found.nodes.max()) or float(found.nodes.max()) <= 0:
        return []
    first, second = ((found.weights * found.nodes**m).sum(1) for m in (1, 2))
    ratio = float(found.p * first.mean() ** 2 / second.mean())
    k = len(first)
    without = torch.stack([found.p * first[i != torch.arange(k)].mean() ** 2 / second[i != torch.arange(k)].mean() for i in range(k)])
    stderr = float(((k - 1) / k * (without - without.mean()).square().sum()).sqrt())  # jackknife
    low, high = Estimate(ratio, stderr, k).interval(LEVEL)
    interval = (max(0.0, low), min(float(found.p), high))
    return [Reading(f"effective rank of the {of}", ratio, "measure", interval, note="(tr A)² / tr A²")]


def density(of: str, found: Spectrum) -> Series:
    """The eigenvalue density as a curve, on a logarithmic axis; the band is the range over probes."""
    low, high = found.interval
    width = (high - low) / 100 or abs(high) / 100 or 1.0
    x = torch.linspace(low - 3 * width, high + 3 * width, 400, dtype=torch.float64)
    each = []
    for nodes, weights in zip(found.nodes, found.weights, strict=True):
        one = Spectrum(nodes[None], weights[None], found.interval, found.p, 0)
        each.append(one.density(x, width).numpy())
    y = np.mean(each, axis=0)
    floor = FLOOR * y.max()
    figure = Series("spectrum", f"Eigenvalues of the {of}", "eigenvalue", f"density (below {FLOOR:g} of its peak cut)", y_scale="log")
    label = f"mean of {len(each)} probes, and their range"
    return figure.line(label, x, np.maximum(y, floor), low=np.maximum(np.min(each, axis=0), floor), high=np.maximum(np.max(each, axis=0), floor))
