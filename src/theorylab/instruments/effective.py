"""What scale-invariant weights really train at: their effective rate, the angle a step against that of equilibrium, and their curvature."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from theorylab.core.instrument import instrument
from theorylab.core.problem import Params, Problem
from theorylab.core.reading import Reading
from theorylab.core.source import Source
from theorylab.instruments.curvature import Sharpness, dense_hessian, sharpness
from theorylab.instruments.invariances import angular_update, invariances
from theorylab.instruments.products import MEMORY_BUDGET
from theorylab.instruments.refusals import too_few_digits


@dataclass(frozen=True)
class EffectiveRates:
    r"""One entry a parameter tensor, in the order of ``names``; float64 tensors (t,). All are measures.

    What holds for scale-invariant tensors under SGD is NaN where the optimizer is another.

    Attributes:
        names: Of the tensors.
        invariant: Whether the loss does not feel the tensor's size, as `invariances` finds.
        rate: The effective learning rate :math:`\eta/\|\theta\|^2` [SGD]; infinite where θ is zero.
        update: Relative length of the next step, :math:`\|\theta^+ - \theta\|/\|\theta\|`, root mean square over the minibatches; infinite
            where θ is zero.
        angle: By how many radians the next step turns θ, root mean square over the minibatches.
        equilibrium: The angle of equilibrium, :math:`\sqrt{2\eta\lambda/(1+\gamma)}` [SGD]; zero without decay.
        ratio: ``angle`` over ``equilibrium`` [SGD]: above 1 the norm grows and the angle falls, below 1 decay shortens θ until it turns
            fast enough. Infinite without decay.
        time_constant: Steps, (1 − γ)/(2ηλ) [SGD], in which decay alone shortens the squared norm by e; infinite without decay.
    """

    names: tuple[str, ...]
    invariant: Tensor
    rate: Tensor
    update: Tensor
    angle: Tensor
    equilibrium: Tensor
    ratio: Tensor
    time_constant: Tensor

    def readings(self) -> tuple[Reading, ...]:
        """The medians over the invariant tensors of what is known."""
        found = []
        for label, values in (
            ("effective learning rate", self.rate),
            ("relative update a step", self.update),
            ("angle a step", self.angle),
            ("angle a step / equilibrium", self.ratio),
        ):
            known = values[self.invariant & values.isfinite()]
            if len(known):
                found.append(Reading(f"{label}, median of the invariant", float(known.median()), "measure"))
        return (Reading("scale-invariant tensors", float(self.invariant.sum()), "measure", note=f"of {len(self.names)}"), *found)


def effective_rates(problem: Problem, optimizer: torch.optim.Optimizer) -> EffectiveRates:
    r"""How fast an optimizer turns each weight tensor, and whether weight decay has brought that to equilibrium.

    The length of scale-invariant weights is a step size: they turn as if with rate :math:`\eta/\|\theta\|^2` at norm one. Gradients
    lengthen them and decay shortens them, until they turn by :math:`\sqrt{2\eta\lambda/(1+\gamma)}` a step under SGD with momentum γ and
    coupled decay λ, whatever the loss. A ``ratio`` near 1 says that this equilibrium is reached. It means nothing for tensors that are not
    ``invariant``.

    The next step is taken, on copies, with the optimizer's own momenta and each of the problem's batches as its minibatch: give the
    problem the batch size of the training, or the gradient noise that drives the equilibrium is missing. Of optimizers other than
    `torch.optim.SGD`, and of SGD with Nesterov's momentum, the step is measured, and the laws are left out, which are SGD's. SGD's
    ``dampening`` τ multiplies η by 1 − τ.

    Args:
        problem: Its model is the one that ``optimizer`` trains; BatchNorm in training mode is meaningful here.
        optimizer: Of `torch.optim`, with a learning rate and a weight decay for each group of parameters. It is not changed.

    Raises:
        TypeError: not an optimizer of `torch.optim`, or one whose groups have no ``weight_decay`` that could be read.
        ValueError: a parameter of the problem that the optimizer does not train, or a loss that is not finite or zero.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 4, bias=False), nn.LayerNorm(4), nn.Linear(4, 2))
        >>> x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
        >>> sgd = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
        >>> found = effective_rates(Problem(net, nn.functional.cross_entropy, (x, torch.arange(8) % 2), batch_size=4), sgd)
        >>> round(float(found.equilibrium[0]), 4), round(float(found.time_constant[0]))
        (0.0324, 50)

    The cost is that of `invariances`, and a gradient and a step of the optimizer for each batch.

    Source: Wan et al. 2021, arXiv:2006.08419 (angular update in equilibrium, also with momentum); Li and Arora 2020, arXiv:1910.07454,
    Section 2 (effective learning rate).
    """
    groups = _groups(problem, optimizer)
    norm = torch.stack([p.double().norm() for p in problem.params.values()])
    updates, angles = [], []
    for batch in problem.batches:
        part = problem.on([batch])
        after = _step(problem, optimizer, problem.unflatten(part.gradient()))
        updates.append(torch.stack([(after[k].double() - p.double()).norm() for k, p in problem.params.items()]) / norm)
        turned = {k: p for k, p in after.items() if float(p.norm()) and float(problem.params[k].norm())}  # zero has no direction
        angle = angular_update(problem.params, turned)
        angles.append(torch.stack([angle.get(k, norm.new_zeros(())) for k in problem.params]))
    update, angle = (torch.stack(v).square().mean(0).sqrt() for v in (updates, angles))
    lr, decay, momentum = (norm.new_tensor([_sgd(g, optimizer)[i] for g in groups]) for i in range(3))
    equilibrium = (2 * lr * decay / (1 + momentum)).sqrt()
    return EffectiveRates(
        tuple(problem.params),
        invariances(problem).invariant,
        lr / norm.square(),
        torch.where(norm > 0, update, math.inf),
        angle,
        equilibrium,
        torch.where(equilibrium == 0, math.inf, angle / equilibrium),
        (1 - momentum) / (2 * lr * decay),
    )


def _groups(problem: Problem, optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """The optimizer's settings for each parameter of the problem."""
    if not isinstance(optimizer, torch.optim.Optimizer) or not f"{type(optimizer).__module__}.".startswith("torch.optim."):
        raise TypeError(f"optimizer must be one of torch.optim, whose settings and steps are known, got {type(optimizer).__name__}.")
    if any("lr" not in g or "weight_decay" not in g for g in optimizer.param_groups):
        raise TypeError(
            f"optimizer must keep lr and weight_decay in its parameter groups, where they can be read; {type(optimizer).__name__} does not."
        )
    settings = {id(p): g for g in optimizer.param_groups for p in g["params"]}
    tensors = dict(problem.model.named_parameters())
    strangers = [k for k in problem.params if id(tensors[k]) not in settings]
    if strangers:
        raise ValueError(
            f"optimizer must train every parameter of the problem; {strangers[0]} is none of its own. Select others by params=."
        )
    return [settings[id(tensors[k])] for k in problem.params]


def _sgd(group: dict[str, Any], optimizer: torch.optim.Optimizer) -> tuple[float, float, float]:
    """(η, λ, γ) of a group under SGD, NaN where the laws of SGD do not apply."""
    if type(optimizer) is not torch.optim.SGD or group["nesterov"]:
        return math.nan, math.nan, math.nan
    lr, momentum = float(group["lr"]), float(group["momentum"])
    return lr * (1 - group["dampening"] if momentum else 1.0), float(group["weight_decay"]), momentum


def _step(problem: Problem, optimizer: torch.optim.Optimizer, gradient: Params) -> Params:
    """The problem's parameters after one step of a copy of the optimizer."""
    tensors = dict(problem.model.named_parameters())
    new = {k: nn.Parameter(p.clone()) for k, p in problem.params.items()}
    for k, p in new.items():
        p.grad = gradient[k].to(p).clone()
    copied = copy.deepcopy(optimizer, {id(tensors[k]): p for k, p in new.items()})  # its other parameters have no gradient, and stay
    for p in new.values():  # the problem may have another dtype or device than the training
        state = copied.state.get(p, {})
        state.update({name: v.to(p) for name, v in state.items() if isinstance(v, Tensor) and v.shape == p.shape})
    copied.step()
    return {k: p.detach() for k, p in new.items()}


def _squared_norm(problem: Problem) -> float:
    return math.fsum(float(p.double().square().sum()) for p in problem.params.values())


def _at_unit_norm(found: Sharpness, problem: Problem) -> Sharpness:
    squared = _squared_norm(problem)
    return dataclasses.replace(found, value=squared * found.value, residual=squared * found.residual)


def dense_spherical_sharpness(problem: Problem, names: str | Sequence[str] | None = None, *, tol: float = 1e-3, seed: int = 0) -> Sharpness:
    """From the whole dense Hessian, of which the block is cut out: the oracle of `spherical_sharpness`."""
    block = problem if names is None else problem.only(names)
    flags = {k: torch.full_like(p, float(k in block.params)) for k, p in problem.params.items()}
    chosen = problem.flatten(flags).bool()
    values, vectors = torch.linalg.eigh(dense_hessian(problem).to_dense()[chosen][:, chosen])
    return _at_unit_norm(Sharpness(float(values[-1]), vectors[:, -1], 0.0, True, problem.P), block)


@instrument(
    oracle=dense_spherical_sharpness,
    source=Source("Lyu, Li and Arora 2022", "definition of spherical sharpness", "arXiv:2206.07085"),
    refuses=too_few_digits,
    family="invariances",
)
def spherical_sharpness(
    problem: Problem, names: str | Sequence[str] | None = None, *, tol: float = 1e-3, seed: int = 0, memory: int = MEMORY_BUDGET
) -> Sharpness:
    r"""Sharpness of scale-invariant weights as it is at norm one: :math:`\|\theta\|^2\,\lambda_{\max}(\nabla^2_\theta L)`.

    The Hessian of a scale-invariant loss is of degree −2 in the length of θ, so that its largest eigenvalue says little: longer weights
    look flat. At norm one it does not depend on the length any more. Gradient descent with step η turns θ as if with rate
    :math:`\eta/\|\theta\|^2` at norm one, and is stable where that is below 2 over this number.

    Args:
        problem: The risk and the point; BatchNorm in training mode is meaningful here.
        names: Of the tensors that together are θ, or globs; by default all that the problem selects. The number depends on their size
            unless the loss does not, which `invariances` tells tensor by tensor.
        tol: Relative residual at which to stop.
        seed: Of the starting vector.
        memory: Bytes that the kept graph may take, as of `sharpness`.

    Raises:
        ValueError: a name that the problem does not select, or a loss that is not finite.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 4, bias=False), nn.LayerNorm(4, eps=0.0), nn.Linear(4, 2))
        >>> x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
        >>> problem = Problem(net, nn.functional.cross_entropy, (x, torch.arange(8) % 2), dtype=torch.float64)
        >>> longer = problem.at({"0.weight": 10 * problem.params["0.weight"]})
        >>> one, other = (spherical_sharpness(p, "0.weight", tol=1e-8).value for p in (problem, longer))
        >>> abs(one - other) < 1e-9 * one
        True

    The cost is that of `sharpness`: some thirty Hessian products.

    Source: Lyu, Li and Arora 2022, arXiv:2206.07085, definition of spherical sharpness.
    """
    block = problem if names is None else problem.only(names)
    return _at_unit_norm(sharpness(block, tol=tol, seed=seed, memory=memory), block)
