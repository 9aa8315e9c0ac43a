"""Datamodels: how outcomes of training depend on the training set, by regression of many retrainings on their subsets."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from theorylab.core.arguments import given
from theorylab.core.estimate import Estimate


@dataclass(frozen=True)
class Datamodels:
    """One linear model of membership a target, all float64.

    Attributes:
        slopes: What adding row i does to target j, (n, target): scores, positive where adding the row raises the output.
        intercept: (target,).
        stderr: Standard errors of the slopes, by the jackknife over subsets, (n, target). They do not hold the bias of a ridge.
        fit_error: Mean square error on the subsets fitted, (target,).
        error: Mean square error on a subset left out, (target,): what to choose a ridge by.
        ridge: The ridge of the fit.
    """

    slopes: Tensor
    intercept: Tensor
    stderr: Tensor
    fit_error: Tensor
    error: Tensor
    ridge: float

    def predict(self, masks: Tensor) -> Tensor:
        """Outputs (subset, target) of training on other subsets (subset, n)."""
        return masks.to(self.slopes) @ self.slopes + self.intercept


def _arguments(masks: Any, outputs: Any, ridge: float | None) -> tuple[Tensor, Tensor]:
    x = given(masks, torch.float64)
    f = given(outputs, torch.float64).to(x.device)
    if x.ndim != 2 or len(x) < 3 or x.shape[1] == 0:
        raise ValueError(f"masks must be (subset, n), of at least 3 subsets and one row, got {tuple(x.shape)}.")
    f = f.mean(1) if f.ndim == 3 else f
    if f.ndim != 2 or len(f) != len(x):
        raise ValueError(f"outputs must be ({len(x)}, target) or ({len(x)}, seed, target), one for each subset, got {tuple(f.shape)}.")
    if not bool(x.isfinite().all()) or not bool(f.isfinite().all()):
        raise ValueError("masks and outputs must be finite: a retraining that diverged has no value. Leave its subset out.")
    if ridge is not None and not (math.isfinite(ridge) and ridge >= 0):
        raise ValueError(f"ridge must be finite and at least 0, or None, got {ridge}.")
    return x, f


def refitted_datamodels(masks: Any, outputs: Any, *, ridge: float) -> Datamodels:
    """Least squares with the penalty as further rows, and a refit without every subset: the slow version of `datamodels`."""
    x, f = _arguments(masks, outputs, ridge)
    m, n = x.shape
    penalty = torch.cat([x.new_zeros(n, 1), math.sqrt(m * ridge) * torch.eye(n, dtype=x.dtype, device=x.device)], 1)

    def fit(kept: Tensor) -> Tensor:
        design = torch.cat([torch.ones_like(x[kept, :1]), x[kept]], 1)
        return torch.linalg.pinv(torch.cat([design, penalty])) @ torch.cat([f[kept], f.new_zeros(n, f.shape[1])])

    def value(solution: Tensor, rows: Tensor) -> Tensor:
        return x[rows] @ solution[1:] + solution[0]

    every = torch.arange(m, device=x.device)
    whole = fit(every)
    without = torch.stack([fit(every[every != s]) for s in range(m)])
    missed = torch.stack([f[s] - value(without[s], every[s : s + 1])[0] for s in range(m)])
    spread = (m - 1) / m * (without[:, 1:] - without[:, 1:].mean(0)).square().sum(0)
    return Datamodels(whole[1:], whole[0], spread.sqrt(), (f - value(whole, every)).square().mean(0), missed.square().mean(0), ridge)


def datamodels(masks: Any, outputs: Any, *, ridge: float | None = None) -> Datamodels:
    r"""Regress the outcomes of training on who was in the training set.

    .. math:: \min_{b,\,w}\ \frac1m \sum_{S} \bigl(f(S) - b - \textstyle\sum_{i\in S} w_i\bigr)^2 + \rho\,\|w\|^2

    On all subsets, or in the mean over uniform ones, the slopes are :math:`-2\hat f(\{i\})`, the Banzhaf values, and what no linear
    datamodel explains is the Fourier weight of degree two and more. On m subsets they are these values with an error of order
    :math:`1/\sqrt m` each, which is why regression takes more retrainings than there are rows.

    The errors are those of the jackknife over subsets, in closed form: without subset S the slopes move by
    :math:`-A^{-1} x_S\, r_S/(1 - h_S)`. The cost is one singular value decomposition of the masks.

    Args:
        masks: Subsets (subset, n), booleans or row weights.
        outputs: f, (subset, target), or (subset, seed, target) as `retrain` returns them, averaged over seeds.
        ridge: ρ, at least 0. None chooses the one of the least ``error``, the same for all targets, among powers of √10 times the mean
            variance of the masks' columns. Zero is plain least squares; subsets of one size need more, for they do not tell the
            intercept from a common slope.

    Raises:
        ValueError: shapes that do not fit, numbers that are not finite, a negative ridge; or a fit that is not determined, for want of
            subsets, or because they have one size.

    Example:
        >>> masks = torch.tensor([[i >> k & 1 for k in range(3)] for i in range(8)])
        >>> effects = torch.tensor([[1.0], [2.0], [-4.0]])
        >>> found = datamodels(masks, masks @ effects.long() + 5, ridge=0.0)
        >>> found.slopes[:, 0].round(decimals=6).tolist(), round(float(found.intercept), 6)
        ([1.0, 2.0, -4.0], 5.0)

    Source: Ilyas et al. 2022, arXiv:2202.00622, Section 2 (there with an ℓ1 penalty); Saunshi et al. 2023, arXiv:2210.01072 (their
    Fourier coefficients); jackknife: Efron and Stein 1981, doi:10.1214/aos/1176345462.
    """
    x, f = _arguments(masks, outputs, ridge)
    m, n = x.shape
    mean_x, mean_f = x.mean(0), f.mean(0)
    x, g = x - mean_x, f - mean_f
    U, sizes, Vt = torch.linalg.svd(x, full_matrices=False)
    rotated, own = U.T @ g, U.square()

    def fit(rho: float) -> tuple[Tensor, Tensor]:
        """What the fit misses of each subset (m, target), and 1 − leverage (m,)."""
        kept = sizes.square() / (sizes.square() + m * rho)
        return g - U @ (kept[:, None] * rotated), 1 - 1 / m - own @ kept

    if ridge is None:
        if float(sizes[0]) == 0:
            raise ValueError("masks must hold subsets that differ.")
        grid = [10 ** (k / 2) * float(x.square().mean()) for k in range(-12, 9)]
        fits = [(rho, *fit(rho)) for rho in grid]
        ridge = min(fits, key=lambda each: float((each[1] / each[2][:, None]).square().mean()))[0]
    if ridge == 0 and (m <= n or float(sizes[-1]) <= 1e-10 * float(sizes[0])):
        raise ValueError(
            f"ridge must be positive: the {m} subsets of {n} rows do not determine the slopes. They are too few, have one size, or a row "
            "is in all or none of them."
        )
    residual, left = fit(ridge)
    if float(left.min()) <= 1e-10:
        raise ValueError("ridge must be positive: without one of the subsets the slopes are not determined.")
    scaled = sizes / (sizes.square() + m * ridge)
    slopes = Vt.T @ (scaled[:, None] * rotated)
    missed = residual / left[:, None]
    response = (Vt.T * scaled) @ U.T  # (n, m): how the slopes answer to one more unit of each output
    # the jackknife's changes are response[i, s]·missed[s, j], whose squares are summed without forming them all
    total = response.square() @ missed.square() - (response @ missed).square() / m
    stderr = ((m - 1) / m * total.clamp(min=0)).sqrt()
    return Datamodels(slopes, mean_f - mean_x @ slopes, stderr, residual.square().mean(0), missed.square().mean(0), ridge)


def stability_masks(n: int, count: int, *, rho: float = 0.5, seed: int = 0) -> Tensor:
    r"""Subsets on which retraining shows how much a linear datamodel misses: booleans (4, count, n), for `stability_residual`.

    Uniform subsets x; partners that keep each bit with probability (1 + ρ)/2; the complements of these, which are −ρ-correlated with x; and
    the complements of x.

    Raises:
        ValueError: an argument out of range.

    Example:
        >>> x, near, far, opposite = stability_masks(3, 2)
        >>> bool((far != near).all()), bool((opposite != x).all())
        (True, True)
    """
    if n < 1 or count < 2:
        raise ValueError(f"n must be at least 1 and count at least 2, got {n} and {count}.")
    if not 0 < rho < 1:
        raise ValueError(f"rho must lie between 0 and 1, got {rho}.")
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(count, n, generator=generator, dtype=torch.float64, device="cpu") < 0.5
    near = x ^ (torch.rand(count, n, generator=generator, dtype=torch.float64, device="cpu") >= (1 + rho) / 2)
    return torch.stack([x, near, ~near, ~x])


def stability_residual(outputs: Any, *, rho: float = 0.5) -> Estimate:
    r"""Mean square error of the best linear datamodel of one target, without fitting one: from outcomes on correlated subsets.

    The stability :math:`S(\rho) = E f(x) f(x') = \sum_k \rho^k B_k` has an odd part with
    :math:`D(\rho) = (S(\rho) - S(-\rho))/2\rho = B_1 + \rho^2 B_3 + \dots`, so that

    .. math:: \sum_{k\ge2} B_k = \mathrm{Var} f - B_1, \qquad B_1 \approx \frac{D(\rho) - \rho^2 D(1)}{1 - \rho^2}

    with an error of :math:`-\rho^2 B_5` and smaller. A datamodel is determined by more retrainings than there are rows; this takes as
    many as the precision asks for, however many rows there are.

    Args:
        outputs: f on the subsets of `stability_masks`, (4, count), or (4, count, seed) of two or more trainings each, whose noise is then
            left out: only products of different seeds are taken. Of one training its noise counts as missed, and a little more.
        rho: As of the subsets.

    Raises:
        ValueError: a shape that does not fit, numbers that are not finite, or rho out of range.

    Example:
        >>> masks = stability_masks(3, 20_000)
        >>> found = stability_residual(masks[..., 0].double() + 2.0 * (masks[..., 1] & masks[..., 2]))  # 4 · 1/16 of degree two
        >>> abs(found.value - 0.25) < 4 * found.stderr
        True

    Source: Saunshi et al. 2023, arXiv:2210.01072, the section on the residual by noise stability, there by a polynomial fitted to S; noise
    rates that cancel other degrees: "Estimating Euclidean distance to linearity", doi:10.4230/LIPIcs.ITCS.2025.20, abstract.
    """
    f = given(outputs, torch.float64)
    if f.ndim not in (2, 3) or len(f) != 4 or f.shape[1] < 2:
        raise ValueError(f"outputs must be (4, count) or (4, count, seed), of at least 2 subsets, got {tuple(f.shape)}.")
    if not bool(f.isfinite().all()):
        raise ValueError("outputs must be finite: a retraining that diverged has no value.")
    if not 0 < rho < 1:
        raise ValueError(f"rho must lie between 0 and 1, got {rho}.")
    f = f[..., None] if f.ndim == 2 else f
    seeds = f.shape[2]
    x, near, far, opposite = f - f.mean((0, 1))  # every one of the four is uniform

    def product(a: Tensor, b: Tensor) -> Tensor:
        same = (a * b).sum(1)
        return same if seeds == 1 else (a.sum(1) * b.sum(1) - same) / (seeds * (seeds - 1))

    close = (product(x, near) - product(x, far)) / (2 * rho)
    whole = (product(x, x) - product(x, opposite)) / 2
    return Estimate.over(product(x, x) - (close - rho**2 * whole) / (1 - rho**2))
