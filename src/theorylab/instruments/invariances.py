"""What training may change without changing the function: scale invariance, and the rate and angle that it really moves at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from theorylab.core.instrument import instrument
from theorylab.core.problem import Params, Problem, finite
from theorylab.core.reading import Reading
from theorylab.core.source import Source
from theorylab.instruments.refusals import too_few_digits

FACTORS = (0.5, 2.0)
"""What a tensor is multiplied by to see whether the loss notices."""


@dataclass(frozen=True)
class Invariances:
    """One entry a parameter tensor, in the order of ``names``; float64 tensors (t,). All are measures.

    Attributes:
        names: Of the tensors.
        norm: ‖θ‖.
        cosine: Of the angle between θ and its gradient g; zero for a scale-invariant tensor, and where either vanishes.
        change: Largest |L(cθ) − L(θ)| / |L(θ)| over c in `FACTORS`.
        invariant: Whether that is at most the threshold, of tensors that are matrices or more and not zero; true at this norm: the ε of a
            normalization layer spoils it for small weights.
        effective_rate: lr/‖θ‖², the step size that matters for an invariant tensor; zero where θ is zero.
        angle: Radians between θ and its earlier value; zeros where none was given.
    """

    names: tuple[str, ...]
    norm: Tensor
    cosine: Tensor
    change: Tensor
    invariant: Tensor
    effective_rate: Tensor
    angle: Tensor

    def readings(self) -> tuple[Reading, ...]:
        """How many tensors are invariant, and the median rate of these."""
        count = int(self.invariant.sum())
        which = ", ".join(name for name, yes in zip(self.names, self.invariant.tolist(), strict=True) if yes)
        found = [Reading("scale-invariant tensors", float(count), "measure", note=f"of {len(self.names)}: {which or 'none'}")]
        if count:
            rates = self.effective_rate[self.invariant]
            found.append(Reading("effective learning rate, median of the invariant", float(rates.median()), "measure"))
        return tuple(found)


def _summary(
    problem: Problem, gradient: Params, losses: list[list[float]], loss: float, lr: float, threshold: float, before: Params | None
) -> Invariances:
    if loss == 0:
        raise ValueError("the loss is zero, so that no relative change of it can be measured. Use other rows or another loss.")
    params = {k: p.double() for k, p in problem.params.items()}
    norm = torch.stack([p.norm() for p in params.values()])
    slope = torch.stack([(p * gradient[k].double()).sum() for k, p in params.items()])
    size = norm * torch.stack([gradient[k].double().norm() for k in params])
    change = torch.tensor([max(abs(at - loss) for at in each) / abs(loss) for each in losses], dtype=torch.float64, device=norm.device)
    alive = size > torch.finfo(problem.dtype).eps * abs(loss)  # the gradient of a bias before BatchNorm is rounding alone
    matrices = torch.tensor([p.ndim > 1 for p in params.values()], device=norm.device)
    return Invariances(
        tuple(params),
        norm,
        torch.where(alive, slope / size.where(alive, torch.ones_like(size)), 0.0),
        change,
        (change <= threshold) & matrices & (norm > 0),
        torch.where(norm > 0, lr / norm.where(norm > 0, torch.ones_like(norm)).square(), 0.0),
        torch.zeros_like(norm) if before is None else torch.stack(list(angular_update(before, problem.params).values())),
    )


def angular_update(before: Params, after: Params) -> Params:
    """Angle in radians, in [0, π], between each tensor of ``after`` and the same of ``before``; exact for small angles too.

    Raises:
        ValueError: a tensor of ``after`` is missing from ``before``, has another shape, or is zero in either.

    Example:
        >>> angles = angular_update({"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([0.0, 5.0])})
        >>> round(float(angles["w"]), 6)
        1.570796
    """
    angles = {}
    for k, b in after.items():
        if k not in before or before[k].shape != b.shape:
            raise ValueError(
                f"before must hold {k!r} of shape {tuple(b.shape)}, got {tuple(before[k].shape) if k in before else 'nothing'}."
            )
        u, v = before[k].double().to(b.device), b.double()
        if float(u.norm()) == 0 or float(v.norm()) == 0:
            raise ValueError(f"{k!r} is zero, so that it has no direction: leave it out.")
        u, v = u / u.norm(), v / v.norm()
        angles[k] = 2 * torch.atan2((u - v).norm(), (u + v).norm())  # an inverse cosine loses half of the digits near zero
    return angles


def slow_invariances(
    problem: Problem, *, lr: float = 1.0, before: Params | None = None, factors: Sequence[float] = FACTORS, threshold: float = 1e-3
) -> Invariances:
    """A problem of its own for every scaled tensor: the oracle of `invariances`."""
    with torch.no_grad():
        losses = [[float(problem.at({k: c * p}).loss().detach()) for c in factors] for k, p in problem.params.items()]
    return _summary(problem, problem.unflatten(problem.gradient()), losses, float(problem.loss().detach()), lr, threshold, before)


@instrument(
    oracle=slow_invariances,
    source=Source("Li and Arora 2020", "Section 2 (scale invariance, effective learning rate)", "arXiv:1910.07454"),
    refuses=too_few_digits,
)
def invariances(
    problem: Problem, *, lr: float = 1.0, before: Params | None = None, factors: Sequence[float] = FACTORS, threshold: float = 1e-3
) -> Invariances:
    r"""Which weight tensors the loss does not feel the size of, and how fast these turn.

    If :math:`L(c\theta) = L(\theta)` for c > 0, as for weights that feed a normalization layer, then ⟨θ, ∇L⟩ = 0 and the gradient shrinks
    as 1/‖θ‖: only the direction of θ matters, and it turns as if with learning rate :math:`\eta/\|\theta\|^2` at norm one. The cost is a
    gradient and one loss a tensor and factor.

    Tensors are scaled one at a time: a weight with a bias that feeds LayerNorm or GroupNorm is invariant only together with that bias, and
    not by itself.

    Args:
        problem: The risk and the point. BatchNorm in training mode is meaningful here.
        lr: η, of the training.
        before: Earlier parameters, for the angle turned since.
        factors: Positive numbers c.
        threshold: Relative change of the loss up to which a tensor counts as invariant.

    Raises:
        ValueError: the loss is not finite or zero, or a factor that is not positive.

    Example:
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(3, 4, bias=False), nn.LayerNorm(4), nn.Linear(4, 2))
        >>> x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
        >>> found = invariances(Problem(net, nn.functional.cross_entropy, (x, torch.arange(8) % 2)))
        >>> dict(zip(found.names, found.invariant.tolist()))
        {'0.weight': True, '1.weight': False, '1.bias': False, '2.weight': False, '2.bias': False}

    Source: Li and Arora 2020, arXiv:1910.07454, Section 2; van Laarhoven 2017, arXiv:1706.05350.
    """
    if not factors or not all(c > 0 for c in factors):
        raise ValueError(f"factors must be positive numbers, got {tuple(factors)}.")
    gradient = problem.unflatten(problem.gradient())

    def loss_at(params: Params) -> float:
        return sum(w * float(finite(problem.batch_loss(k, params)).detach()) for k, w in enumerate(problem.weights))

    with problem.safe(), torch.no_grad():
        losses = [[loss_at({**problem.params, k: c * p}) for c in factors] for k, p in problem.params.items()]
        return _summary(problem, gradient, losses, loss_at(problem.params), lr, threshold, before)
