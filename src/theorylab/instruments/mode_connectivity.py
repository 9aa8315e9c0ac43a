"""How high the loss rises between two solutions: on the straight line, and on a curve trained to stay low."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase

from theorylab.core.problem import Params, Problem
from theorylab.instruments.landscape import losses_at

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Connection:
    """Losses at ``t`` (points,) from solution a, t = 0, to b, t = 1: on the ``line``, and on the ``curve`` with its middle point ``bend``.

    A barrier is the most by which a path's loss exceeds the straight interpolation of its ends' losses, at least 0.
    """

    t: Tensor
    line: Tensor
    curve: Tensor
    bend: Tensor

    @property
    def line_barrier(self) -> float:
        """That of the straight line."""
        return _barrier(self.t, self.line)

    @property
    def curve_barrier(self) -> float:
        """That of the trained curve: an upper bound of the least over all such curves."""
        return _barrier(self.t, self.curve)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the loss along both paths in ``ax`` or new axes, and return them."""
        import matplotlib.pyplot as plt

        ax = plt.subplots(figsize=(5, 3.5), layout="constrained")[1] if ax is None else ax
        t = self.t.cpu().numpy()
        ax.plot(t, self.line.cpu().numpy(), label=f"line, barrier {self.line_barrier:.3g}")
        ax.plot(t, self.curve.cpu().numpy(), label=f"Bézier curve, barrier {self.curve_barrier:.3g}")
        ax.plot(t[[0, -1]], self.line[[0, -1]].cpu().numpy(), "o", color="black", markersize=4)
        ax.set_xlabel("t, from the first solution to the second")
        ax.set_ylabel("loss")
        ax.legend()
        return ax


def _barrier(t: Tensor, losses: Tensor) -> float:
    chord = (1 - t) * losses[0] + t * losses[-1]
    return max(0.0, float((losses - chord).max()))


def mode_connectivity(
    problem: Problem, other: Problem | Mapping[str, Tensor], *, points: int = 25, steps: int = 300, lr: float = 0.01, seed: int = 0
) -> Connection:
    r"""Barriers of the loss between two solutions of one problem.

    The line is (1−t)a + tb. The curve is the quadratic Bézier curve :math:`\phi(t) = (1-t)^2 a + 2t(1-t)\,\theta + t^2 b`, whose middle
    point θ starts half-way and is trained by Adam on :math:`\mathbb E_{t\sim U(0,1)} L(\phi(t))`: each step draws one t from an equal share
    of [0, 1] in turn, and takes the gradient of the whole loss there.

    Two nets that differ by a permutation of hidden units are far apart for the line, without being different functions.

    Args:
        problem: The risk, at the first solution; both paths are evaluated on its data.
        other: The second solution: a problem of the same model, or its parameters by name.
        points: Of each path, ends included, at least 3.
        steps: Of training the curve; each costs one gradient. 0 leaves it straight.
        lr: Adam's learning rate.
        seed: Of the draws of t.

    Returns:
        The losses along both paths with ``line_barrier`` and ``curve_barrier``; ``.plot(ax=None)`` draws them.

    Raises:
        ValueError: other parameters in the second solution, an argument out of range, a loss that is not finite, or running
            statistics (BatchNorm): those of one solution are wrong on the way to another, so the problem must be one with train=True.

    Example:
        >>> net = torch.nn.Linear(1, 1, bias=False)
        >>> well = Problem(net, lambda o, y: (o.square() - y).square().mean(), (torch.ones(4, 1), torch.ones(4, 1)))
        >>> left, right = (well.at({"weight": torch.tensor([[w]])}) for w in (-1.0, 1.0))
        >>> mode_connectivity(left, right, steps=0).line_barrier
        1.0

    Source: Garipov et al. 2018, arXiv:1802.10026, Section 3 (the curve and its training); Entezari et al. 2022, arXiv:2110.06296,
    Section 2 (the barrier).
    """
    for name, value, least in (("points", points, 3), ("steps", steps, 0)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}.")
    if not lr > 0:
        raise ValueError(f"lr must be positive, got {lr}.")
    if not problem.train and any(isinstance(m, _NormBase) and m.running_mean is not None for m in problem.model.modules()):
        raise ValueError("running statistics, as of BatchNorm, belong to one solution only: make the problem with train=True.")
    if not isinstance(other, Problem | Mapping):
        raise TypeError(
            f"other must be a Problem of the same model or its parameters by name, got {type(other).__name__}: of a module pass "
            "dict(module.named_parameters())."
        )
    params: Params = dict(other.params if isinstance(other, Problem) else other)
    missing = [k for k in problem.params if k not in params]
    if missing:
        raise ValueError(f"the other solution must have the same parameters, it lacks {', '.join(missing)}.")
    a, b = problem.flatten(problem.params), problem.flatten(problem.at(params).params)
    t = torch.linspace(0, 1, points, dtype=problem.dtype, device=problem.device)
    line = losses_at(problem, ((1 - s) * a + s * b for s in t))
    bend = ((a + b) / 2).clone().requires_grad_()
    adam = torch.optim.Adam([bend], lr=lr)
    generator = torch.Generator().manual_seed(seed)
    strata = torch.randperm(max(steps, 1), generator=generator, device="cpu").double()
    for stratum in strata[:steps]:
        s = float((stratum + torch.rand((), generator=generator, device="cpu")) / steps)
        point = (1 - s) ** 2 * a + 2 * s * (1 - s) * bend.detach() + s**2 * b
        bend.grad = 2 * s * (1 - s) * problem.gradient(problem.unflatten(point))
        adam.step()
    middle = bend.detach()
    curve = losses_at(problem, ((1 - s) ** 2 * a + 2 * s * (1 - s) * middle + s**2 * b for s in t))
    return Connection(t, line, curve, middle)
