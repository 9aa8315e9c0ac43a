"""The loss along lines and planes through the parameters, for looking at."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from theorylab.core.instrument import instrument
from theorylab.core.problem import Problem, finite
from theorylab.core.source import Source
from theorylab.instruments.curvature import dense_hessian, hessian
from theorylab.linalg.lanczos import eigs

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Along = Literal["filters", "eigenvectors"]


@dataclass(frozen=True)
class Landscape:
    """The loss at θ + Σ coordinate · vector.

    ``coordinates`` (points,) run along each of the ``vectors`` (p, d), d of 1 or 2, and hold 0, the point itself, in the middle.
    ``losses`` is (points,) on a line, and (points, points) on a plane, the first axis along the first vector.
    """

    coordinates: Tensor
    losses: Tensor
    vectors: Tensor

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw a curve, or contours that are even in the loss, or in its logarithm where it ranges over more than a factor of 30.

        Args:
            ax: Axes to draw in; new ones by default.

        Returns:
            The axes.
        """
        import matplotlib.pyplot as plt
        import numpy as np

        ax = plt.subplots(figsize=(5, 4), layout="constrained")[1] if ax is None else ax
        x, z = self.coordinates.cpu().double().numpy(), self.losses.cpu().double().numpy()
        low, high = float(z.min()), float(z.max())
        wide = low > 0 and high > 30 * low
        ax.set_xlabel("coordinate along the first direction" if z.ndim == 2 else "coordinate along the direction")
        if z.ndim == 1:
            ax.plot(x, z)
            ax.plot(0.0, z[len(z) // 2], "o", color="black", markersize=4)
            ax.set_ylabel("loss")
            if wide:
                ax.set_yscale("log")
            return ax
        levels = np.geomspace(low, high, 16) if wide else np.linspace(low, high, 16) if high > low else np.array([low - 0.5, low + 0.5])
        norm = "log" if wide else "linear"
        filled = ax.contourf(x, x, z.T, levels=levels, cmap="viridis", norm=norm)
        ax.contour(x, x, z.T, levels=levels, colors="white", linewidths=0.4)
        ax.plot(0.0, 0.0, "o", color="white", markersize=4)
        ax.set_ylabel("coordinate along the second direction")
        ax.set_aspect("equal")
        bar = ax.figure.colorbar(filled, ax=ax, label="loss", ticks=levels[::3])
        bar.ax.yaxis.set_major_formatter("{x:.3g}")
        return ax


def losses_at(problem: Problem, points: Iterable[Tensor]) -> Tensor:
    """The mean loss at each of several flat parameter vectors (p,), taken one by one, without gradients.

    Raises:
        ValueError: it is not finite at one of them.
    """
    found = []
    with problem.safe(), torch.no_grad():
        for point in points:
            params = problem.unflatten(point)
            parts = [w * finite(problem.batch_loss(k, params)) for k, w in enumerate(problem.weights)]
            found.append(torch.stack(parts).sum())
    return torch.stack(found)


def filter_directions(problem: Problem, count: int, seed: int) -> Tensor:
    r"""Random directions (p, count) in which every filter moves by its own length.

    A filter is what makes one output: a row of a Linear's weight, a channel's kernel of a convolution, a row of an embedding. Each is a
    Gaussian vector scaled to the filter's norm, so that rescaling the filters of a ReLU net does not change the picture. Vectors, that is
    biases and the parameters of normalization layers, stay where they are, unless nothing else is selected: then each is a filter.

    Source: Li et al. 2018, arXiv:1712.09913, Section 4.
    """
    only_vectors = all(p.ndim < 2 for p in problem.params.values())
    generator = torch.Generator().manual_seed(seed)
    directions = []
    for _ in range(count):
        parts = {}
        for name, p in problem.params.items():
            drawn = torch.randn(p.shape, generator=generator, dtype=torch.float64, device="cpu")
            noise = drawn.to(p).reshape(len(p) if p.ndim > 1 else 1, -1)
            lengths = p.reshape(noise.shape).norm(dim=1, keepdim=True) / noise.norm(dim=1, keepdim=True)
            parts[name] = noise * lengths if p.ndim > 1 or only_vectors else torch.zeros_like(noise)
        directions.append(problem.flatten(parts))
    return torch.stack(directions, dim=1)


def _signed(vectors: Tensor) -> Tensor:
    """Unit vectors with their largest entry made positive, for an eigenvector's sign is arbitrary."""
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    return vectors * largest.sign()


def _directions(problem: Problem, directions: int | Tensor, along: str, seed: int) -> Tensor:
    if isinstance(directions, Tensor):
        vectors = directions[:, None] if directions.ndim == 1 else directions
        if vectors.ndim != 2 or vectors.shape[0] != problem.P or vectors.shape[1] not in (1, 2):
            raise ValueError(
                f"directions must have shape ({problem.P},), ({problem.P}, 1) or ({problem.P}, 2), got {tuple(directions.shape)}."
            )
        return vectors.to(problem.device, problem.dtype)
    if directions not in (1, 2):
        raise ValueError(f"directions must be 1, 2 or a tensor of vectors, got {directions}.")
    if along == "filters":
        return filter_directions(problem, directions, seed)
    if along == "eigenvectors":
        return _signed(eigs(hessian(problem), k=directions, which="LM", tol=1e-6, seed=seed).vectors)
    raise ValueError(f'along must be "filters" or "eigenvectors", got {along!r}.')


def _check(span: float, points: int) -> None:
    if not span > 0:
        raise ValueError(f"span must be positive, got {span}.")
    if points < 3 or points % 2 == 0:
        raise ValueError(f"points must be odd and at least 3, so that the middle one is the point itself, got {points}.")


def looped_landscape(
    problem: Problem, *, directions: int | Tensor = 2, along: Along = "filters", span: float = 1.0, points: int = 11, seed: int = 0
) -> Landscape:
    """One evaluation of the whole loss for each point, eigenvectors from the dense Hessian: the oracle of `landscape`."""
    if along == "eigenvectors" and isinstance(directions, int):
        values, vectors = torch.linalg.eigh(dense_hessian(problem).to_dense())
        directions = _signed(vectors[:, values.abs().argsort(descending=True)[:directions]])
    vectors = _directions(problem, directions, along, seed)
    coordinates = torch.linspace(-span, span, points, dtype=problem.dtype, device=problem.device)
    theta, shape = problem.flatten(problem.params), (points,) * vectors.shape[1]
    losses = torch.empty(shape, dtype=problem.dtype, device=problem.device)
    for place in torch.cartesian_prod(*[torch.arange(points, device="cpu")] * len(shape)).reshape(-1, len(shape)).tolist():
        losses[tuple(place)] = problem.loss(problem.unflatten(theta + vectors @ coordinates[place]))
    return Landscape(coordinates, losses, vectors)


@instrument(
    oracle=looped_landscape,
    source=Source("Li et al. 2018", "Section 4 (random directions, normalized filter by filter)", "arXiv:1712.09913"),
)
def landscape(
    problem: Problem, *, directions: int | Tensor = 2, along: Along = "filters", span: float = 1.0, points: int = 11, seed: int = 0
) -> Landscape:
    r"""The loss on a grid of the plane :math:`\theta + a\,d_1 + b\,d_2`, or on a line.

    What the picture means depends on the directions. ``"filters"`` are random ones scaled to the weights, in which 1 is a change of every
    filter by its own length: pictures of different nets can be compared. ``"eigenvectors"`` of the Hessian show the directions of the
    largest curvature, in units of the parameters; almost all others are flat in comparison. A plane of a p-dimensional space hides the
    rest in either case: what looks convex may have descending directions elsewhere.

    Args:
        problem: The risk and the point.
        directions: 1 or 2, how many to choose; or vectors (p,) or (p, 2), e.g. the difference to another solution.
        along: What to choose: random directions normalized by "filters", or the "eigenvectors" with the largest eigenvalues in magnitude.
        span: The coordinates run from −span to span.
        points: Along each direction, odd and at least 3; costs as many losses, on a plane squared.
        seed: Of random directions, or of the eigenvectors' start.

    Returns:
        The losses with their coordinates; ``.plot(ax=None)`` draws them.

    Raises:
        ValueError: an argument out of range, or a loss that is not finite at some point of the grid.

    Example:
        >>> x = torch.diag(torch.tensor([1.0, 3.0]))
        >>> quadratic = Problem(torch.nn.Linear(2, 1, bias=False), torch.nn.functional.mse_loss, (x, torch.zeros(2, 1)))
        >>> quadratic = quadratic.at({"weight": torch.zeros(1, 2)})
        >>> landscape(quadratic, directions=1, along="eigenvectors", points=3).losses.round(decimals=4).tolist()
        [4.5, 0.0, 4.5]

    Source: Li et al. 2018, arXiv:1712.09913, Section 4.
    """
    _check(span, points)
    (start,) = losses_at(problem, [problem.flatten(problem.params)])
    vectors = _directions(problem, directions, along, seed)
    coordinates = torch.linspace(-span, span, points, dtype=problem.dtype, device=problem.device)
    axes = [coordinates] * vectors.shape[1]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, len(axes))
    theta = problem.flatten(problem.params)
    try:
        losses = losses_at(problem, (theta + vectors @ place for place in grid))
    except ValueError as error:
        raise ValueError(
            f"{error} It is {float(start):.4g} in the middle and not finite within span={span:g}: make span smaller."
        ) from error
    return Landscape(coordinates, losses.reshape([points] * len(axes)), vectors)
