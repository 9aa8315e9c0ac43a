"""What is shown of an operator, which is no number itself? Its trace, its extreme eigenvalues, and of a few its rank and spectrum."""

from __future__ import annotations

import math

import numpy as np
import torch

from theorylab.core.estimate import Estimate
from theorylab.core.operator import Operator
from theorylab.core.reading import Reading
from theorylab.core.seeds import derived_seed
from theorylab.core.series import Series
from theorylab.linalg.lanczos import eigs
from theorylab.linalg.spectrum import Spectrum, spectrum
from theorylab.linalg.trace import trace
from theorylab.measuring.readings import LEVEL, Shown

IN_FULL = ("hessian", "ggn")
"""Operators whose whole spectrum is shown; of others, which are near these, the trace and the largest eigenvalue."""
PROBES, STEPS, TRACE, SQUARE, TOP = 4, 40, 40, 16, 30
"""Probes and steps of a spectrum, products of a trace and of the trace of a square, and most products of a largest eigenvalue."""
FLOOR = 1e-5
"""Share of its peak below which a density is not drawn lower."""

_NAMES = {"hessian": "Hessian", "ggn": "GGN", "fisher": "Fisher", "ntk": "NTK", "kfac": "K-FAC", "ekfac": "EK-FAC", "jacobian": "Jacobian"}


def in_words(name: str) -> str:
    """An operator's name as the field writes it.

    Example:
        >>> in_words("hessian"), in_words("empirical_fisher")
        ('Hessian', 'empirical Fisher')
    """
    return " ".join(_NAMES.get(word, word) for word in name.replace("_", " ").split())


def products(name: str, p: int) -> int:
    """Products that `of_operator` takes of a symmetric map on R^p, at most.

    Example:
        >>> products("hessian", 1000), products("kfac", 1000)
        (232, 70)
    """
    few = min(TRACE, p)
    return few + (PROBES * min(STEPS, p) + 2 * min(SQUARE, p) if name in IN_FULL else min(TOP, p))


def of_operator(name: str, A: Operator, *, seed: int, vectors: int, one_by_one: bool = False) -> Shown:
    """The readings of an operator; of one that is not symmetric its largest singular value and Frobenius norm, from AᵀA.

    Args:
        name: Of the instrument.
        A: The map on R^p.
        seed: Of the probes.
        vectors: How many vectors of R^p memory has room for; with fewer than the defaults need, fewer products are taken, which the
            readings say.
        one_by_one: Multiply one vector at a time, where a block of them takes the memory of as many products.
    """
    of = in_words(name)
    if one_by_one:
        transposed = None if A.symmetric else A.T
        back = None if transposed is None else lambda v: transposed @ v
        A = Operator(A.shape, lambda v, B=A: B @ v, rmatvec=back, symmetric=A.symmetric, dtype=A.dtype, device=A.device, name=A.name)
    if not A.symmetric:
        return _singular(of, A, seed, vectors)
    before, p = A.n_matvecs, A.shape[0]
    few = max(4, min(TRACE, vectors // 5 * 2))  # XTrace holds two and a half vectors a product
    total = trace(A, few, seed=seed)
    shown = Shown([Reading(f"{of} trace", total.value, "measure", total.interval(LEVEL), note=f"XTrace, {min(few, p)} products")])
    if name in IN_FULL:
        steps = max(4, min(STEPS, vectors // 3, p))  # the basis grows by doubling: for a moment it is there one and a half times
        found = spectrum(A, PROBES, steps, seed)
        shown.readings += _extremes(of, found, steps)
        if float(found.nodes.min()) > -1e-3 * float(found.nodes.max()) and total.value > 0:
            shown.readings.append(_effective_rank(of, A, total, min(few, SQUARE), seed))
        shown.figures.append(density(of, found))
    else:
        shown.readings.append(_largest(f"{of} largest eigenvalue", A, seed, vectors))
    shown.matvecs = A.n_matvecs - before
    return shown


def _largest(label: str, A: Operator, seed: int, vectors: int) -> Reading:
    most = max(4, min(TOP, vectors // 3, A.shape[0]))
    top = eigs(A, k=1, which="LA", tol=1e-3, max_matvecs=most, seed=seed)
    value, residual = float(top.values[0]), float(top.residuals[0])
    note = "" if top.converged else f"not converged after {top.n_matvecs} products"
    return Reading(label, value, "measure", (value - residual, value + residual), note=note)


def _singular(of: str, A: Operator, seed: int, vectors: int) -> Shown:
    p = A.shape[1]
    gram = Operator((p, p), lambda v: A.T @ (A @ v), symmetric=True, dtype=A.dtype, device=A.device, name=f"{A.name}ᵀ{A.name}")
    top = _largest(f"{of} largest singular value", gram, seed, vectors)
    square = trace(gram, max(4, min(TRACE, vectors // 5 * 2)), seed=seed)
    shown = []
    for label, value, interval, note in (
        (top.name, top.value, top.interval, top.note),
        (f"{of} Frobenius norm", square.value, square.interval(LEVEL), ""),
    ):
        low, high = interval or (value, value)
        ends = (math.sqrt(max(0.0, low)), math.sqrt(max(0.0, high)))
        shown.append(Reading(label, math.sqrt(max(0.0, value)), "measure", ends, note=note))
    return Shown(shown, [], 2 * gram.n_matvecs)


def _extremes(of: str, found: Spectrum, steps: int) -> list[Reading]:
    # Ritz values lie inside the spectrum: they bound its ends from one side, and their residuals say how far off they may be.
    present = found.nodes[found.weights > 0]
    low, high = float(present.min()), float(present.max())
    note = f"Ritz value of {steps} steps, with its residual"
    return [
        Reading(f"{of} largest eigenvalue", high, "measure", (high, max(high, found.interval[1])), note=note),
        Reading(f"{of} smallest eigenvalue", low, "measure", (min(low, found.interval[0]), low), note=note),
    ]


def _effective_rank(of: str, A: Operator, total: Estimate, few: int, seed: int) -> Reading:
    """(tr A)² / tr A²: the number of equal eigenvalues with the same two moments, of a map without negative curvature."""
    squared = Operator(A.shape, lambda v: A @ (A @ v), symmetric=True, dtype=A.dtype, device=A.device, name=f"{A.name}²")
    square = trace(squared, few, seed=derived_seed(seed, "square"))
    if not square.value > 0:
        raise ValueError(f"the {of}'s trace of the square must be positive, got {square.value:.3g}.")
    rank = total.value**2 / square.value
    # the delta method: relative errors of two independent estimates
    stderr = rank * math.hypot(2 * total.stderr / total.value, square.stderr / square.value)
    low, high = Estimate(rank, stderr, min(total.n, square.n)).interval(LEVEL)
    return Reading(f"{of} effective rank", rank, "measure", (max(0.0, low), min(float(A.shape[0]), high)), note="(tr A)² / tr A²")


def density(of: str, found: Spectrum) -> Series:
    """The eigenvalue density as a curve, on a logarithmic axis; the band is the range over probes."""
    low, high = found.interval
    width = (high - low) / 100 or abs(high) / 100 or 1.0
    x = torch.linspace(low - 3 * width, high + 3 * width, 400, dtype=torch.float64, device="cpu")
    each = []
    for nodes, weights in zip(found.nodes, found.weights, strict=True):
        one = Spectrum(nodes[None], weights[None], found.interval, found.p, 0)
        each.append(one.density(x, width).numpy())
    y = np.mean(each, axis=0)
    floor = FLOOR * y.max()
    figure = Series("spectrum", f"Eigenvalue density of the {of}", "eigenvalue", "density", y_scale="log")
    label = f"mean of {len(each)} probes; what lies below 1/100,000 of the peak is drawn there"
    return figure.line(
        label,
        x,
        np.maximum(y, floor),
        low=np.maximum(np.min(each, axis=0), floor),
        high=np.maximum(np.max(each, axis=0), floor),
        band="range of probes",
    )
