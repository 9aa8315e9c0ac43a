"""What training may change without changing the function: scale invariance, and the rate and angle that it really moves at."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from theorylab.core.estimate import Estimate
from theorylab.core.instrument import instrument
from theorylab.core.problem import Params, Problem, finite
from theorylab.core.reading import Reading
from theorylab.core.source import Source
from theorylab.instruments.radial import Radial, Sample, dense_of_outputs, of_loss, of_outputs, radial, slow_of_loss
from theorylab.instruments.refusals import hides_outputs, too_few_digits

FACTORS = (0.5, 2.0)
"""What a tensor is multiplied by to see whether the network notices."""
THRESHOLD = 3e-3
"""Up to which a tensor counts as invariant: above what the usual ε of normalization layers makes of weights of the usual size."""


@dataclass(frozen=True)
class Invariances:
    """One entry a parameter tensor, in the order of ``names``; float64 tensors (t,). All are measures.

    Attributes:
        names: Of the tensors.
        norm: ‖θ‖.
        cosine: Of the angle between θ and its gradient g; zero for a scale-invariant tensor, and where either vanishes.
        change: Largest ‖f(cθ) − f(θ)‖ / ‖f(θ)‖ of the outputs or |L(cθ) − L(θ)| / |L(θ)|, whichever is less, over c in `FACTORS`.
        share: How steep the network is along θ, as a share of how steep it is along other directions: √p|⟨θ, g⟩|/(‖θ‖‖g‖), mean over the
            gradients g of random sums of outputs, or where that is not small or there are none, of the loss around θ. About one for
            tensors whose size matters as much as anything else about them. None where a tensor is zero, or moves nothing but rounding.
        invariant: Whether ``change`` and ``share`` are at most the threshold, of tensors that are matrices or more and not zero; true at
            this norm: the ε of a normalization layer spoils it for small weights.
        channels: By the name of each matrix, the ``share`` of which output channels is at most the threshold, as of those that feed
            BatchNorm; bool (c,).
        blocks: Into how many equal blocks of consecutive output channels an invariant tensor can be cut, so that each is so by itself: as
            many as channels before BatchNorm, as groups before GroupNorm, 1 before LayerNorm; 0 for tensors that are not invariant.
        effective_rate: lr/‖θ‖², the step size that matters for an invariant tensor; zero where θ is zero.
        angle: Radians between θ and its earlier value; zeros where none was given.
    """

    names: tuple[str, ...]
    norm: Tensor
    cosine: Tensor
    change: Tensor
    share: tuple[Estimate | None, ...]
    invariant: Tensor
    channels: Mapping[str, Tensor]
    blocks: Tensor
    effective_rate: Tensor
    angle: Tensor

    def readings(self) -> tuple[Reading, ...]:
        """How many tensors are invariant, and the median rate of these."""
        count = int(self.invariant.sum())
        blocks = zip(self.names, self.blocks.tolist(), strict=True)
        which = ", ".join(f"{name} in {n} blocks" if n > 1 else name for name, n in blocks if n)
        found = [Reading("scale-invariant tensors", float(count), "measure", note=f"of {len(self.names)}: {which or 'none'}")]
        if count:
            rates = self.effective_rate[self.invariant]
            found.append(Reading("effective learning rate, median of the invariant", float(rates.median()), "measure"))
        return tuple(found)


@dataclass(frozen=True)
class _Scaled:
    """What multiplying one tensor by each factor does: squared changes of the outputs, if these can be seen, and losses."""

    outputs: list[float] | None
    losses: list[float]


def _summary(
    problem: Problem,
    gradient: Params,
    scaled: Mapping[str, _Scaled],
    here: _Scaled,
    samples: tuple[Iterable[Sample] | None, Iterable[Sample]],
    lr: float,
    threshold: float,
    before: Params | None,
) -> Invariances:
    """``here`` holds the squared length of the outputs, and the loss; ``samples`` those of the outputs, and of the loss."""
    (loss,) = here.losses
    if loss == 0:
        raise ValueError("the loss is zero, so that no relative change of it can be measured. Use other rows or another loss.")
    params = {k: p.double() for k, p in problem.params.items()}
    norm = torch.stack([p.norm() for p in params.values()])
    slope = torch.stack([(p * gradient[k].double()).sum() for k, p in params.items()])
    size = norm * torch.stack([gradient[k].double().norm() for k in params])
    alive = size > torch.finfo(problem.dtype).eps * abs(loss)  # the gradient of a bias before BatchNorm is rounding alone

    change = {}
    for k, found in scaled.items():
        change[k] = max(abs(at - loss) for at in found.losses) / abs(loss)
        if found.outputs is not None and here.outputs is not None and here.outputs[0] > 0:
            change[k] = min(change[k], math.sqrt(max(found.outputs) / here.outputs[0]))

    def small(of: Radial | None) -> bool:
        share = None if of is None else of.share()
        return share is not None and share.value <= threshold

    matrices = [k for k, p in params.items() if p.ndim > 1]
    outputs, losses = samples
    views = {} if outputs is None else radial(problem, outputs)
    if outputs is None or any(change[k] <= threshold and not small(views.get(k)) for k in matrices):  # the loss may normalize outputs
        views |= {k: of for k, of in radial(problem, losses).items() if k not in views or (small(of) and not small(views[k]))}
    invariant = {k: k in matrices and change[k] <= threshold and small(views.get(k)) for k in params}

    def numbers(values: Iterable[float]) -> Tensor:
        return torch.tensor(list(values), dtype=torch.float64, device=norm.device)

    return Invariances(
        tuple(params),
        norm,
        torch.where(alive, slope / size.where(alive, torch.ones_like(size)), 0.0),
        numbers(change.values()),
        tuple(views[k].share() if k in views else None for k in params),
        torch.tensor(list(invariant.values()), device=norm.device),
        {k: views[k].channels(threshold) for k in matrices if k in views},
        torch.tensor([views[k].blocks(threshold) if yes else 0 for k, yes in invariant.items()], device=norm.device),
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
    problem: Problem,
    *,
    lr: float = 1.0,
    before: Params | None = None,
    factors: Sequence[float] = FACTORS,
    threshold: float = THRESHOLD,
    probes: int = 8,
    seed: int = 0,
) -> Invariances:
    """A problem of its own for every scaled tensor and every point, and dense Jacobians: the oracle of `invariances`."""
    visible = hides_outputs(problem) is None

    def outputs(at: Problem) -> Tensor:
        with problem.safe(), torch.no_grad():
            return torch.cat([at.outputs(k).double().flatten() for k in range(len(at.batches))])

    with torch.no_grad():
        scaled = {}
        for k, p in problem.params.items():
            each = [problem.at({k: c * p}) for c in factors]
            apart = [float((outputs(at) - outputs(problem)).square().sum()) for at in each] if visible else None
            scaled[k] = _Scaled(apart, [float(at.loss()) for at in each])
        here = _Scaled([float(outputs(problem).square().sum())] if visible else None, [float(problem.loss())])
    with problem.safe():
        samples = dense_of_outputs(problem, probes, seed) if visible else None, slow_of_loss(problem, probes, seed)
        return _summary(problem, problem.unflatten(problem.gradient()), scaled, here, samples, lr, threshold, before)


@instrument(
    oracle=slow_invariances,
    source=Source("Li and Arora 2020", "Section 2 (scale invariance, effective learning rate)", "arXiv:1910.07454"),
    refuses=too_few_digits,
)
def invariances(
    problem: Problem,
    *,
    lr: float = 1.0,
    before: Params | None = None,
    factors: Sequence[float] = FACTORS,
    threshold: float = THRESHOLD,
    probes: int = 8,
    seed: int = 0,
) -> Invariances:
    r"""Which weight tensors the network does not feel the size of, and how fast these turn.

    If :math:`L(c\theta) = L(\theta)` for c > 0, as for weights that feed a normalization layer, then ⟨θ, ∇L⟩ = 0 and the gradient shrinks
    as 1/‖θ‖: only the direction of θ matters, and it turns as if with learning rate :math:`\eta/\|\theta\|^2` at norm one.

    That the loss hardly changes when a tensor is scaled is not enough: it may hardly depend on the tensor at all, as on a small head or
    the branch of a residual network that starts near zero. So two things are asked. Scaled by each of ``factors`` the tensor must leave
    outputs or loss as they are; and along θ their derivative must be small next to that along other directions, however small both
    are. Of each batch the derivative is taken of sums of all outputs with random signs; of the loss, where outputs are hidden or the loss
    normalizes them itself, at random points around θ, since at a minimum it vanishes along every direction. A tensor that moves
    nothing, as behind a gain of zero, is not called invariant.

    The same derivatives say which output channels, or blocks of these, are invariant by themselves, at no further cost. In all it is a
    gradient, a forward pass a tensor and factor, and ``probes`` backward passes of one batch each, twice that where the loss is asked too.

    Tensors are scaled one at a time: a weight with a bias that feeds LayerNorm or GroupNorm is invariant only together with that bias, and
    not by itself.

    Args:
        problem: The risk and the point. BatchNorm in training mode is meaningful here.
        lr: η, of the training.
        before: Earlier parameters, for the angle turned since.
        factors: Positive numbers c, not all 1.
        threshold: ``change`` and ``share`` up to which a tensor counts as invariant.
        probes: Random sums, or points, from which ``share`` is estimated; at least 2.
        seed: Of these.

    Raises:
        ValueError: the loss is not finite or zero, a factor that is not positive, no factor other than 1, or too few probes.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4, bias=False), torch.nn.LayerNorm(4), torch.nn.Linear(4, 2))
        >>> x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
        >>> found = invariances(Problem(net, torch.nn.functional.cross_entropy, (x, torch.arange(8) % 2)))
        >>> dict(zip(found.names, found.invariant.tolist()))
        {'0.weight': True, '1.weight': False, '1.bias': False, '2.weight': False, '2.bias': False}

    Source: Li and Arora 2020, arXiv:1910.07454, Section 2; van Laarhoven 2017, arXiv:1706.05350.
    """
    if not factors or not all(0 < c < math.inf for c in factors):
        raise ValueError(f"factors must be positive numbers, got {tuple(factors)}.")
    if all(c == 1 for c in factors):
        raise ValueError(f"factors must hold a number other than 1, which leaves every tensor as it is, got {tuple(factors)}.")
    if probes < 2:
        raise ValueError(f"probes must be at least 2 to give a standard error, got {probes}.")
    gradient = problem.unflatten(problem.gradient())
    visible = hides_outputs(problem) is None
    with problem.safe():
        with torch.no_grad():
            scaled, here = _scaled(problem, factors, visible)
        samples = of_outputs(problem, probes, seed) if visible else None, of_loss(problem, probes, seed)
        return _summary(problem, gradient, scaled, here, samples, lr, threshold, before)


def _scaled(problem: Problem, factors: Sequence[float], visible: bool) -> tuple[dict[str, _Scaled], _Scaled]:
    """Each tensor by each factor, batch by batch, and the outputs and the loss as they are; call it within `Problem.safe`."""
    scaled = {k: _Scaled([0.0] * len(factors) if visible else None, [0.0] * len(factors)) for k in problem.params}
    here = _Scaled([0.0] if visible else None, [0.0])

    def run(k: int, params: Params, into: _Scaled, place: int, still: Tensor | None) -> Tensor | None:
        outputs = problem.outputs(k, params) if into.outputs is not None else None
        loss = finite(problem.batch_loss(k, params) if outputs is None else problem.loss_of(k, outputs))
        into.losses[place] += problem.weights[k] * float(loss)
        if outputs is not None and into.outputs is not None:
            into.outputs[place] += float((outputs if still is None else outputs - still).double().square().sum())
        return outputs

    for k in range(len(problem.batches)):
        still = run(k, problem.params, here, 0, None)
        for name, p in problem.params.items():
            for place, c in enumerate(factors):
                run(k, {**problem.params, name: c * p}, scaled[name], place, still)
    return scaled, here
