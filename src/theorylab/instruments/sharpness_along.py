"""Sharpness along the path of a full-batch optimizer, and how near it is to the edge of stability."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from theorylab.core.estimate import Estimate
from theorylab.core.problem import Params, Problem
from theorylab.core.ranges import whole
from theorylab.instruments.curvature import adam_diagonal, hessian, sharpness
from theorylab.learning.torch_optimizers import MakeOptimizer, check_make_optimizer, made_optimizer
from theorylab.linalg.lanczos import length

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from theorylab.learning.population import Population

BLOCKS = 8


@dataclass(frozen=True)
class SharpnessPath:
    """Sharpness on the way.

    Attributes:
        steps: Where it was measured, (t,).
        sharpness: λ₁ there, (t,); of the preconditioned Hessian where the optimizer is an Adam.
        losses: The risk there, (t,).
        edge: The stability threshold that it is compared with.
        ratio: Mean of λ₁ / edge over the late part. Neighbouring measurements are alike, so the standard error is that of the means of
            at most eight blocks.
        params: The parameters at the end, by name.
    """

    steps: Tensor
    sharpness: Tensor
    losses: Tensor
    edge: float
    ratio: Estimate
    params: Params

    def plot(self, ax: Axes | None = None) -> Axes:
        """λ₁ over the edge against steps, with the loss on an axis of its own."""
        if ax is None:
            import matplotlib.pyplot as plt

            ax = plt.subplots()[1]
        ax.axhline(1, color="0.5", linestyle="--", linewidth=1)
        ax.plot(self.steps, self.sharpness / self.edge, marker=".", color="C0", label="λ₁ / edge")
        ax.set(xlabel="step", ylabel="λ₁ / edge of stability", ylim=(0, None))
        other = ax.twinx()
        other.plot(self.steps, self.losses, color="C1", label="loss")
        other.set(ylabel="loss", yscale="log" if bool((self.losses > 0).all()) else "linear")
        return ax


def replica_sharpness(
    *, tol: float = 3e-2, precondition: Callable[[Population], Params] | None = None
) -> Callable[[Population], dict[str, Tensor]]:
    """A measure for `Population.train`: ``"sharpness"`` λ₁ and ``"loss"`` of every replica, (replica,) each.

    Each search starts from the eigenvector that it found before.

    Args:
        tol: Relative residual at which to stop; the eigenvalue's error is of the order of its square.
        precondition: ``precondition(population)`` returns the diagonals d > 0 by parameter name, (replica, ...), as of `sharpness`.
    """
    vectors: dict[int, Tensor] = {}

    def measure(population: Population) -> dict[str, Tensor]:
        values = []
        diagonals = None if precondition is None else precondition(population)
        for k, problem in enumerate(population.problems()):
            diagonal = None if diagonals is None else {name: d[k] for name, d in diagonals.items()}
            found = sharpness(problem, tol=tol, start=vectors.get(k), precondition=diagonal)
            vectors[k] = found.vector
            values.append(found.value)
        return {"sharpness": torch.tensor(values, dtype=torch.float64, device="cpu"), "loss": population.losses().double()}

    return measure


def replica_descent() -> Callable[[Population], dict[str, Tensor]]:
    r"""A measure for `Population.train` of how each replica descends, (replica,) each.

    ``"loss"`` L; ``"gradient norm"`` ‖g‖; ``"directional curvature"`` :math:`g^\top H g/\|g\|^2`, which times half the step size says
    how much of the first-order decrease a step along the gradient gives back: at 1 the loss does not change to second order, and above it
    rises. It is zero where the gradient is. One Hessian product a replica. Changes of the loss from step to step are
    ``run["loss"].diff(dim=0)`` of a run with ``every=1``.

    Example:
        >>> from theorylab.learning.optimizers.sgd import sgd
        >>> from theorylab.learning.population import Population
        >>> line, x = lambda: torch.nn.Linear(1, 1, bias=False), torch.tensor([[3.0]])
        >>> trained = Population(line, torch.nn.functional.mse_loss, (x, x), optimizer=sgd(0.01), seeds=[0, 1])
        >>> run = trained.train(5, every=1, measure=replica_descent())  # the loss is (3w − 3)², of curvature 18
        >>> run["directional curvature"][-1].tolist(), bool((run["loss"].diff(dim=0) < 0).all())
        ([18.0, 18.0], True)

    Source: Cohen et al. 2021, arXiv:2103.00065, Section 2 (the quadratic Taylor approximation along the gradient).
    """

    def measure(population: Population) -> dict[str, Tensor]:
        losses, grads = population.gradients()
        norms, along = [], []
        for k, problem in enumerate(population.problems()):
            g = problem.flatten({name: grads[name][k] for name in problem.params})
            norm = length(g)
            unit = g / norm if norm > 0 else g
            norms.append(norm)
            along.append((unit * (hessian(problem) @ unit)).double().sum())
        return {
            "loss": losses.double().cpu(),
            "gradient norm": torch.tensor(norms, dtype=torch.float64, device="cpu"),
            "directional curvature": torch.stack(along).cpu(),
        }

    return measure


def _plain_edge(optimizer: torch.optim.Optimizer, edge: float | None) -> float:
    if edge is not None:
        if not (edge > 0 and math.isfinite(edge)):
            raise ValueError(f"edge must be positive and finite, got {edge}.")
        return edge
    groups = optimizer.param_groups
    if any(g.get("maximize") for g in groups):
        raise ValueError("optimizer must descend, got maximize=True: going up has no edge of stability.")
    settings = {(float(g["lr"]), float(g["weight_decay"])) for g in groups}
    if isinstance(optimizer, torch.optim.SGD) and len(settings) == 1 and not any(g["momentum"] for g in groups):
        ((lr, decay),) = settings
        if 2 / lr > decay:
            return 2 / lr - decay  # decay adds λ to every eigenvalue of what is descended, and not to the risk's
    raise ValueError(
        "edge must be given for an optimizer other than torch.optim.SGD without momentum, with one step size and one weight decay below "
        f"2/η, got {type(optimizer).__name__}: its stability threshold, e.g. stability_threshold(lr, momentum) of "
        "theorylab.theory.edges."
    )


def _check_holds(optimizer: torch.optim.Optimizer, leaves: Mapping[str, Tensor]) -> None:
    """The optimizer must move the copy that is measured, and nothing else."""
    held = [p for group in optimizer.param_groups for p in group["params"]]
    if {id(p) for p in held} != {id(p) for p in leaves.values()}:
        raise ValueError(
            f"optimizer must hold exactly the {len(leaves)} parameters that it is called with, got {len(held)}, of which "
            f"{sum(any(p is leaf for leaf in leaves.values()) for p in held)} are among them: a copy is trained, never the model. "
            "Write lambda p: torch.optim.SGD(p, lr=...)."
        )


@torch.inference_mode(False)
def sharpness_along(
    problem: Problem,
    optimizer: MakeOptimizer,
    *,
    steps: int = 1000,
    every: int | None = None,
    edge: float | None = None,
    late: float = 0.5,
    tol: float = 1e-2,
    seed: int = 0,
) -> SharpnessPath:
    r"""Train a copy on the whole of the data, and follow the largest eigenvalue λ₁ of its Hessian.

    Full-batch gradient descent with step η sharpens until :math:`\lambda_1 = 2/\eta` and stays there; a ratio near 1 late in training says
    that the step size, not the loss, decides how curved the solution is. Every step uses all rows of the problem, for with minibatches
    λ₁ settles lower and obeys no such law. The problem and its model are left as they are.

    Args:
        problem: The risk and the point at which training starts.
        optimizer: ``optimizer(parameters)`` makes the `torch.optim.Optimizer`: ``lambda p: torch.optim.SGD(p, lr=0.1)``. For Adam and
            AdamW the Hessian is preconditioned as the optimizer does.
        steps: Optimizer steps, at least 2.
        every: Steps between measurements; by default a fortieth. One costs some twelve Hessian products, fewer where λ₁ moves slowly.
        edge: The stability threshold; by default 2/η, for plain SGD, less its weight decay.
        late: Part of training, counted from its end, over which the ratio is taken, in (0, 1].
        tol: Relative residual of the eigenvector; the eigenvalue's error is of the order of its square.
        seed: Of the first search.

    Raises:
        ValueError: an argument out of range; an optimizer that holds other parameters than it was given, or needs a closure (LBFGS); an
            ``edge`` that must be given; or the loss is not finite, as where training diverges.
        TypeError: ``optimizer`` is no function, or makes no optimizer.

    Example:
        >>> x = torch.diag(torch.tensor([1.0, 2.0]))
        >>> quadratic = Problem(torch.nn.Linear(2, 1, bias=False), torch.nn.functional.mse_loss, (x, torch.ones(2, 1)))
        >>> path = sharpness_along(quadratic, lambda p: torch.optim.SGD(p, lr=0.1), steps=8)
        >>> round(path.ratio.value, 4)  # a quadratic stays as curved as it is: λ₁ = 4 of 2/0.1
        0.2

    Source: Cohen et al. 2021, arXiv:2103.00065, Section 3; adaptive optimizers: Cohen et al. 2022, arXiv:2207.14484, Section 2.
    """
    check_make_optimizer(optimizer)
    whole(2, steps=steps)
    every = max(1, steps // 40) if every is None else every
    if not (1 <= every <= steps and every == int(every)):
        raise ValueError(f"every must lie in 1..{steps} (steps) and be whole, got {every}.")
    if not 0 < late <= 1:
        raise ValueError(f"late must lie in (0, 1], got {late}.")
    measured = {*range(0, steps + 1, every), steps}
    if len([t for t in measured if t >= max((1 - late) * steps, 1)]) < 2:
        raise ValueError(
            f"every and late must leave at least two measurements for an interval, got every={every} and late={late:g} of {steps} steps."
        )
    leaves = {k: torch.nn.Parameter(p.clone()) for k, p in problem.params.items()}
    chosen = made_optimizer(optimizer, leaves.values())
    _check_holds(chosen, leaves)
    threshold = _plain_edge(chosen, edge)
    adaptive = isinstance(chosen, torch.optim.Adam | torch.optim.AdamW)
    at, values, losses, start = [], [], [], None
    for t in range(steps + 1):
        here = problem.at({k: p.detach() for k, p in leaves.items()})
        if t in measured and not (adaptive and t == 0):  # Adam has no second moment before its first step
            precondition = adam_diagonal(chosen, leaves) if adaptive else None
            found = sharpness(here, precondition=precondition, tol=tol, seed=seed, start=start)
            at.append(t)
            values.append(found.value)
            losses.append(float(here.loss()))
            start = found.vector
        if t < steps:
            for name, g in here.unflatten(here.gradient()).items():
                leaves[name].grad = g.reshape(leaves[name].shape)
            chosen.step()
    when, path = torch.tensor(at, device="cpu"), torch.tensor(values, dtype=torch.float64, device="cpu")
    tail = path[when >= (1 - late) * steps] / threshold
    ratio = Estimate.over([float(b.mean()) for b in tail.tensor_split(min(BLOCKS, len(tail)))])
    return SharpnessPath(
        when, path, torch.tensor(losses, dtype=torch.float64, device="cpu"), threshold, ratio, {k: p.detach() for k, p in leaves.items()}
    )
