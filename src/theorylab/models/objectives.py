r"""Which functions witness the theory of first-order methods: each with its gradient, smoothness, minimum and minimizer in closed form.

Every objective maps points (..., d) to values (...), so that many starts are evaluated at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from theorylab.core.ranges import positive


@dataclass(frozen=True)
class Objective:
    """A function R^d → R with what the theory needs to know of it.

    Args:
        name: What it is called in figures.
        value: (..., d) → (...).
        gradient: (..., d) → (..., d); of a nonsmooth function, the subgradient that a resisting oracle returns.
        minimum: The least value f*.
        minimizer: (d,), a point where it is attained (of several, one).
        smoothness: L, the Lipschitz constant of the gradient; infinite where there is none.
        curvature: μ, the constant of strong convexity or of the Polyak-Łojasiewicz inequality ½‖∇f‖² ≥ μ(f − f*); 0 where neither holds.
    """

    name: str
    value: Callable[[Tensor], Tensor]
    gradient: Callable[[Tensor], Tensor]
    minimum: float
    minimizer: Tensor
    smoothness: float = math.inf
    curvature: float = 0.0

    def gap(self, x: Tensor) -> Tensor:
        """The suboptimality f(x) − f*, (...,)."""
        return self.value(x) - self.minimum


def huber(threshold: float, smoothness: float = 1.0) -> Objective:
    r"""The Huber function of the norm on the line: L x²/2 for \|x\| ≤ τ, then Lτ\|x\| − Lτ²/2; convex and L-smooth.

    Args:
        threshold: τ > 0, where the parabola turns into a line.
        smoothness: L > 0.

    Raises:
        ValueError: either is not positive.

    Example:
        >>> f = huber(0.5)
        >>> f.value(torch.tensor([[0.5], [2.0]])).tolist()
        [0.125, 0.875]

    Source: Drori and Teboulle 2014, arXiv:1206.3209, Theorem 3.2 (as the worst case of gradient descent).
    """
    positive(threshold=threshold, smoothness=smoothness)

    def value(x: Tensor) -> Tensor:
        r = torch.linalg.vector_norm(x, dim=-1)
        return smoothness * torch.where(r <= threshold, r**2 / 2, threshold * r - threshold**2 / 2)

    def gradient(x: Tensor) -> Tensor:
        r = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return smoothness * x * (threshold / r.clamp(min=threshold))

    return Objective(f"Huber, τ = {threshold:.3g}", value, gradient, 0.0, torch.zeros(1, dtype=torch.float64, device="cpu"), smoothness)


def quadratic(eigenvalues: Tensor) -> Objective:
    r"""Σ λ_i x_i²/2; L and μ are the largest and the smallest of the positive eigenvalues.

    Args:
        eigenvalues: (d,), all positive.

    Raises:
        ValueError: an eigenvalue is not positive.

    Example:
        >>> quadratic(torch.tensor([1.0, 4.0])).value(torch.tensor([2.0, 1.0])).item()
        4.0
    """
    low, high = float(eigenvalues.min()), float(eigenvalues.max())
    positive(eigenvalues=low)
    return Objective(
        "quadratic",
        lambda x: (eigenvalues * x**2).sum(-1) / 2,
        lambda x: eigenvalues * x,
        0.0,
        torch.zeros_like(eigenvalues),
        high,
        low,
    )


def resisting_maximum(dimension: int, radius: float = 1.0, lipschitz: float = 1.0) -> Objective:
    r"""The nonsmooth function M max(max_i x_i, ‖x‖ − R(1 + 1/√d)), which reveals one coordinate to each subgradient.

    Convex and M-Lipschitz. Its minimum −MR/√d is attained at distance R from the start 0, at −(R/√d)·(1, ..., 1). The oracle answers with
    the unit vector of the *first* largest coordinate, so that d − 1 steps from 0 leave one coordinate untouched, and the value at 0.

    Args:
        dimension: d ≥ 1.
        radius: R > 0, the distance of the minimizer from the start 0.
        lipschitz: M > 0.

    Raises:
        ValueError: an argument out of its range.

    Example:
        >>> f = resisting_maximum(4)
        >>> f.minimum, f.gradient(torch.tensor([-1.0, 0.0, 0.0, -1.0])).tolist()
        (-0.5, [0.0, 1.0, 0.0, 0.0])

    Source: Drori and Teboulle 2016, arXiv:1409.2636, Appendix A.
    """
    positive(dimension=dimension, radius=radius, lipschitz=lipschitz)
    side = radius / math.sqrt(dimension)

    def value(x: Tensor) -> Tensor:
        far = torch.linalg.vector_norm(x, dim=-1) - (radius + side)
        return lipschitz * torch.maximum(x.amax(-1), far)

    def gradient(x: Tensor) -> Tensor:
        r = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        unit = torch.zeros_like(x).scatter(-1, x.argmax(-1, keepdim=True), 1.0)
        return lipschitz * torch.where(r - (radius + side) > x.amax(-1, keepdim=True), x / r.clamp(min=1e-300), unit)

    minimizer = torch.full((dimension,), -side, dtype=torch.float64, device="cpu")
    return Objective("resisting maximum", value, gradient, -lipschitz * side, minimizer)


def tridiagonal(dimension: int, smoothness: float = 1.0) -> Objective:
    r"""Nesterov's quadratic (L/4)(½(x₁² + Σ (x_i − x_{i+1})² + x_d²) − x₁), whose gradients from 0 open one coordinate a step.

    Convex and L-smooth. The minimizer is x_i = 1 − i/(d+1), the minimum (L/8)(−1 + 1/(d+1)).

    Args:
        dimension: d ≥ 1.
        smoothness: L > 0; the largest eigenvalue is a little below it.

    Raises:
        ValueError: an argument out of its range.

    Example:
        >>> f = tridiagonal(3)
        >>> f.minimizer.tolist(), f.minimum == f.value(f.minimizer).item()
        ([0.75, 0.5, 0.25], True)

    Source: Nesterov 2004, Introductory Lectures on Convex Optimization, Section 2.1.2.
    """
    positive(dimension=dimension, smoothness=smoothness)

    def value(x: Tensor) -> Tensor:
        squares = x[..., 0] ** 2 + (x.diff(dim=-1) ** 2).sum(-1) + x[..., -1] ** 2
        return smoothness / 4 * (squares / 2 - x[..., 0])

    def gradient(x: Tensor) -> Tensor:
        padded = torch.nn.functional.pad(x, (1, 1))
        g = 2 * x - padded[..., :-2] - padded[..., 2:]
        return smoothness / 4 * torch.cat([g[..., :1] - 1, g[..., 1:]], -1)

    minimizer = 1 - torch.arange(1, dimension + 1, dtype=torch.float64, device="cpu") / (dimension + 1)
    return Objective("tridiagonal quadratic", value, gradient, smoothness / 8 * (-1 + 1 / (dimension + 1)), minimizer, smoothness)


def lessard() -> Objective:
    r"""A strongly convex function on the line on which Polyak's tuning of the heavy ball cycles: f' = 25x, x + 24, 25x − 24.

    The pieces meet at 1 and 2; L = 25, μ = 1, minimum 0 at 0.

    Example:
        >>> lessard().gradient(torch.tensor([[-1.0], [1.5], [3.0]])).flatten().tolist()
        [-25.0, 25.5, 51.0]

    Source: Lessard, Recht and Packard 2016, arXiv:1408.3595, Section 4.6.
    """

    def value(x: Tensor) -> Tensor:
        v = torch.where(x < 1, 12.5 * x**2, torch.where(x < 2, x**2 / 2 + 24 * x - 12, 12.5 * x**2 - 24 * x + 36))
        return v.sum(-1)

    def gradient(x: Tensor) -> Tensor:
        return torch.where(x < 1, 25 * x, torch.where(x < 2, x + 24, 25 * x - 24))

    return Objective("Lessard's function", value, gradient, 0.0, torch.zeros(1, dtype=torch.float64, device="cpu"), 25.0, 1.0)


def pl_least_squares(rows: int, columns: int, *, condition: float = 15.0, seed: int = 0, dtype: torch.dtype = torch.float64) -> Objective:
    r"""½‖Ax − b‖² with fewer rows than columns: not strongly convex, but Polyak-Łojasiewicz with μ the least eigenvalue of AAᵀ.

    A = U diag(√λ) Vᵀ with random orthogonal factors and λ evenly spaced from 1 to ``condition``, so that μ = 1 and L = ``condition``
    exactly.

    Args:
        rows: n ≥ 2.
        columns: d ≥ n.
        condition: L/μ > 1.
        seed: Of U, V and b.
        dtype: Of the data.

    Raises:
        ValueError: ``rows`` < 2, ``columns`` < ``rows`` (an unattained minimum other than 0), or ``condition`` ≤ 1.

    Example:
        >>> f = pl_least_squares(3, 5)
        >>> bool(f.value(f.minimizer) < 1e-25)
        True

    Source: Karimi, Nutini and Schmidt 2016, arXiv:1608.04636, Section 2.3 (a strongly convex function of a linear map).
    """
    if rows < 2 or columns < rows:
        raise ValueError(f"rows must be at least 2 and at most columns, got {rows} and {columns}.")
    if not condition > 1:
        raise ValueError(f"condition must exceed 1, got {condition}.")
    generator = torch.Generator().manual_seed(seed)
    left = torch.linalg.qr(torch.randn(rows, rows, generator=generator, dtype=dtype, device="cpu"))[0]
    right = torch.linalg.qr(torch.randn(columns, rows, generator=generator, dtype=dtype, device="cpu"))[0]
    singular = torch.linspace(1.0, condition, rows, dtype=dtype, device="cpu").sqrt()
    a = left * singular @ right.T
    b = torch.randn(rows, generator=generator, dtype=dtype, device="cpu")
    minimizer = right @ ((left.T @ b) / singular)
    return Objective(
        "least squares",
        lambda x: ((x @ a.T - b) ** 2).sum(-1) / 2,
        lambda x: (x @ a.T - b) @ a,
        0.0,
        minimizer,
        condition,
        1.0,
    )


def quartic() -> Objective:
    r"""Σ x_i⁴: convex and flat at its minimum, where no Polyak-Łojasiewicz constant exists (‖∇f‖²/f → 0).

    Example:
        >>> quartic().gradient(torch.tensor([2.0])).tolist()
        [32.0]
    """
    return Objective("x⁴", lambda x: (x**4).sum(-1), lambda x: 4 * x**3, 0.0, torch.zeros(1, dtype=torch.float64, device="cpu"))


def cosine_sum() -> Objective:
    r"""Σ (1 − cos x_i): nonconvex, 1-smooth, minimum 0.

    Example:
        >>> round(cosine_sum().value(torch.tensor([math.pi, 0.0])).item(), 6)
        2.0
    """
    return Objective("Σ 1 − cos x", lambda x: (1 - x.cos()).sum(-1), torch.sin, 0.0, torch.zeros(1, dtype=torch.float64, device="cpu"), 1.0)


def strict_saddle(curvature: float = -1.0) -> Objective:
    r"""\|λ\| cos x + y²/2: at 0 a strict saddle, of curvature λ along x, from which it falls to a minimum at x = π; smooth, not convex.

    Args:
        curvature: λ < 0.

    Raises:
        ValueError: ``curvature`` is not negative.

    Example:
        >>> strict_saddle(-2.0).value(torch.tensor([[0.0, 0.0], [math.pi, 1.0]])).tolist()
        [2.0, -1.5]
    """
    positive(**{"−curvature": -curvature})
    size = -curvature
    return Objective(
        f"strict saddle, λ = {curvature:.3g}",
        lambda x: size * x[..., 0].cos() + x[..., 1] ** 2 / 2,
        lambda x: torch.stack([-size * x[..., 0].sin(), x[..., 1]], -1),
        -size,
        torch.tensor([math.pi, 0.0], dtype=torch.float64, device="cpu"),
        max(size, 1.0),
    )


def saturating_sum() -> Objective:
    r"""Σ x_i²/(1 + x_i²): nonconvex with plateaus, 2-smooth (the curvature at 0), minimum 0.

    Example:
        >>> saturating_sum().value(torch.tensor([1.0, -1.0])).item()
        1.0
    """
    return Objective(
        "Σ x²/(1+x²)",
        lambda x: (x**2 / (1 + x**2)).sum(-1),
        lambda x: 2 * x / (1 + x**2) ** 2,
        0.0,
        torch.zeros(1, dtype=torch.float64, device="cpu"),
        2.0,
    )


def scalar_factorization() -> Objective:
    r"""½(w₁w₂ − 1)² on pairs (..., 2): the smallest model with a curve of minima, and a curvature that varies along it.

    Example:
        >>> scalar_factorization().gradient(torch.tensor([2.0, 1.0])).tolist()
        [1.0, 2.0]
    """
    return Objective(
        "½(w₁w₂ − 1)²",
        lambda w: (w[..., 0] * w[..., 1] - 1) ** 2 / 2,
        lambda w: (w[..., :1] * w[..., 1:] - 1) * w.flip(-1),
        0.0,
        torch.ones(2, dtype=torch.float64, device="cpu"),
    )
