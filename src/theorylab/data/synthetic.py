"""Seeded synthetic tasks whose ground truth is known."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from theorylab.core.ranges import nonnegative, whole
from theorylab.data.dataset import Dataset


def _normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64, device="cpu")


def teacher_student(n: int, d: int, *, width: int = 4, noise: float = 0.0, seed: int = 0, dtype: torch.dtype = torch.float64) -> Dataset:
    r"""Regression on a random two-layer tanh teacher, :math:`y = a^\top\tanh(W x) + \sigma\epsilon`.

    Inputs are standard normal, the rows of W are unit vectors and the entries of a are ±1/√width, so targets are of order one.

    Args:
        n: Rows.
        d: Inputs.
        width: Hidden units of the teacher.
        noise: σ ≥ 0.
        seed: Of teacher, inputs and noise.
        dtype: Of both tensors.

    Returns:
        ``x`` (n, d) and ``y`` (n, 1).

    Example:
        >>> x, y = teacher_student(100, 5, seed=1)
        >>> x.shape, y.shape
        (torch.Size([100, 5]), torch.Size([100, 1]))
    """
    whole(1, n=n, d=d, width=width)
    nonnegative(noise=noise)
    draws = _normal(seed, n * (d + 1) + width * (d + 1))
    x, epsilon, weights, signs = draws.split([n * d, n, width * d, width])
    x = x.view(n, d)
    weights = torch.nn.functional.normalize(weights.view(width, d), dim=1)
    y = torch.tanh(x @ weights.T) @ signs.sign()[:, None] / width**0.5 + noise * epsilon[:, None]
    return Dataset(x.to(dtype), y.to(dtype))


def gaussian_mixture(
    n: int, d: int, *, classes: int = 2, distance: float = 4.0, seed: int = 0, dtype: torch.dtype = torch.float64
) -> Dataset:
    """Classes of unit-variance isotropic Gaussians whose means lie ``distance`` apart, pair by pair.

    The means are orthogonal vectors of length distance/√2 in a random orientation, so ``classes`` must not exceed ``d``.

    Returns:
        ``x`` (n, d) and integer ``y`` (n,), classes of equal size up to one row, in random order.

    Raises:
        ValueError: more classes than dimensions, or a negative distance.

    Example:
        >>> x, y = gaussian_mixture(6, 3, classes=3)
        >>> sorted(y.tolist())
        [0, 0, 1, 1, 2, 2]
    """
    whole(1, n=n, d=d, classes=classes)
    if classes > d:
        raise ValueError(f"classes must be at most d = {d} (their means are orthogonal), got {classes}.")
    nonnegative(distance=distance)
    noise, directions = _normal(seed, n * d + d * classes).split([n * d, d * classes])
    means = torch.linalg.qr(directions.view(d, classes)).Q.T * distance / 2**0.5  # (class, d)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed), device="cpu")
    y = (torch.arange(n, device="cpu") % classes)[order]
    return Dataset((means[y] + noise.view(n, d)).to(dtype), y)


def separable(n: int, d: int, *, margin: float = 0.1, seed: int = 0, dtype: torch.dtype = torch.float64) -> Dataset:
    """Standard normal rows labelled by a random hyperplane through 0, pushed off it so that it separates them by ``margin``.

    The maximal margin is at least ``margin``, and usually larger.

    Returns:
        ``x`` (n, d) and ``y`` (n,) of ±1.

    Raises:
        ValueError: ``margin`` ≤ 0.

    Example:
        >>> x, y = separable(20, 2, margin=0.5)
        >>> sorted(set(y.tolist()))
        [-1.0, 1.0]
    """
    whole(1, n=n, d=d)
    if margin <= 0:
        raise ValueError(f"margin must be positive, got {margin}.")
    x, normal = _normal(seed, (n + 1) * d).split([n * d, d])
    x, normal = x.view(n, d), normal / normal.norm()
    y = torch.where(x @ normal >= 0, 1.0, -1.0).double()
    return Dataset((x + margin * y[:, None] * normal).to(dtype), y.to(dtype))


class Completion(NamedTuple):
    """A tensor of low rank and which of its entries are observed."""

    truth: Tensor  # (d₁, …, d_N)
    observed: Tensor  # the same shape, bool


def tensor_completion(
    shape: tuple[int, ...], *, rank: int, fraction: float, seed: int = 0, dtype: torch.dtype = torch.float64
) -> Completion:
    """A sum of ``rank`` outer products of standard normal vectors, scaled to mean square one, and a uniform draw of observed entries.

    A matrix where ``shape`` has two axes.

    Args:
        shape: Lengths of the axes, at least two of them.
        rank: Outer products. Of a matrix this is the rank, of a tensor the CP rank is at most this.
        fraction: Share of observed entries, in (0, 1]; their number is rounded to the nearest integer.
        seed: Of factors and observations.
        dtype: Of the tensor.

    Raises:
        ValueError: fewer than two axes, a rank above that of any matrix of this shape, or a fraction out of range.

    Example:
        >>> truth, observed = tensor_completion((6, 5), rank=2, fraction=0.5)
        >>> int(torch.linalg.matrix_rank(truth)), int(observed.sum())
        (2, 15)
    """
    if len(shape) < 2:
        raise ValueError(f"shape must have at least two axes, got {tuple(shape)}.")
    whole(1, **{f"shape[{k}]": d for k, d in enumerate(shape)}, rank=rank)
    if len(shape) == 2 and rank > min(shape):
        raise ValueError(f"rank must be at most min(shape) = {min(shape)} for a matrix, got {rank}.")
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must lie in (0, 1], got {fraction}.")
    factors = _normal(seed, sum(shape) * rank).split([d * rank for d in shape])
    truth = factors[0].view(shape[0], rank)
    for factor in factors[1:]:
        truth = truth.unsqueeze(-2) * factor.view(-1, rank)  # (..., d, rank)
    truth = truth.sum(-1)
    truth = truth / truth.square().mean().sqrt()
    order = torch.randperm(truth.numel(), generator=torch.Generator().manual_seed(seed), device="cpu")
    chosen = order[: round(fraction * truth.numel())]
    observed = torch.zeros(truth.numel(), dtype=torch.bool, device="cpu").index_fill_(0, chosen, True).view(shape)
    return Completion(truth.to(dtype), observed)


def random_labels(n: int, d: int, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> Dataset:
    """Standard normal inputs with independent labels 0 and 1, each with probability 1/2.

    Args:
        n: Rows.
        d: Inputs.
        seed: Of inputs and labels.
        dtype: Of both tensors.

    Returns:
        ``x`` (n, d) and ``y`` (n,), of the same dtype.

    Raises:
        ValueError: ``n`` or ``d`` below 1.

    Example:
        >>> x, y = random_labels(100, 5, seed=1)
        >>> x.shape, sorted(set(y.tolist()))
        (torch.Size([100, 5]), [0.0, 1.0])
    """
    whole(1, n=n, d=d)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64, device="cpu")
    y = torch.randint(2, (n,), generator=generator, device="cpu")
    return Dataset(x.to(dtype), y.to(dtype))


def quadratic_sign(n: int, d: int, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> Dataset:
    r"""Which half is longer: :math:`y = \mathrm{sign}(\sum_{i \le d} x_i^2 - \sum_{i > d} x_i^2)` for standard normal x of 2d entries.

    Args:
        n: Rows.
        d: Half of the inputs.
        seed: Of the inputs.
        dtype: Of both tensors.

    Returns:
        ``x`` (n, 2d) and ``y`` (n,) of ±1.

    Raises:
        ValueError: ``n`` or ``d`` below 1.

    Example:
        >>> x, y = quadratic_sign(3, 1, seed=0)
        >>> bool(((x[:, 0].abs() > x[:, 1].abs()) == (y > 0)).all())
        True

    Source: Li et al. 2021, arXiv:2010.08515, Section 1 (the distribution that separates convolutional from fully connected nets).
    """
    whole(1, n=n, d=d)
    x = _normal(seed, n, 2 * d)
    first, second = x.square().unflatten(1, (2, d)).sum(2).unbind(1)
    return Dataset(x.to(dtype), torch.where(first > second, 1.0, -1.0).to(dtype))
