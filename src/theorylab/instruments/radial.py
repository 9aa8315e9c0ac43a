"""How steep a network is along each of its own tensors, and along each of their output channels, next to all other directions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from theorylab.core.estimate import Estimate
from theorylab.core.problem import Params, Problem
from theorylab.core.seeds import derived_seed
from theorylab.instruments.matrix_layers import is_transposed

SPREAD = 0.5
"""Relative size of the changes of all parameters that lead to the points at which gradients of the loss are taken."""


class Sample(NamedTuple):
    """A number that depends on all parameters θ, and its gradient; gradients below ``rounding``/‖θ‖ are none."""

    theta: Params
    gradient: Params
    rounding: float


@dataclass(frozen=True)
class Radial:
    """Of one tensor: its samples' ⟨θ, g⟩, ‖θ‖² and ‖g‖², split over its output channels, (sample, channel) each, float64."""

    along: Tensor
    length: Tensor
    slope: Tensor
    rounding: Tensor  # (sample, 1)
    entries: int

    def shares(self, blocks: int = 1) -> Tensor:
        r"""Slope along θ over the root mean square over all directions, :math:`\sqrt p\,|\langle\theta, g\rangle|/(\|\theta\|\|g\|)`.

        For each of as many equal blocks of consecutive channels, (sample, block); NaN where a block moves nothing.
        """
        along, length, slope = (t.unflatten(1, (blocks, -1)).sum(2) for t in (self.along, self.length, self.slope))
        size = (length * slope).sqrt()
        alive = size.mean(0) > self.rounding.mean(0)
        return torch.where(alive, math.sqrt(self.entries / blocks) * along.abs() / torch.where(size > 0, size, 1.0), math.nan)

    def share(self) -> Estimate | None:
        """Of the whole tensor; None where it moves nothing, or too few samples say."""
        shares = self.shares()[:, 0]
        return Estimate.over(shares) if len(shares) > 1 and not bool(shares.isnan().any()) else None

    def channels(self, threshold: float) -> Tensor:
        """Which channels have a share of at most the threshold by themselves, bool (channel,); not those that move nothing."""
        return self.shares(self.along.shape[1]).mean(0) <= threshold

    def blocks(self, threshold: float) -> int:
        """The most blocks of which all that move anything have a share of at most the threshold by themselves, at least 1."""
        channels = self.along.shape[1]
        for blocks in (channels // size for size in range(1, channels) if channels % size == 0):
            shares = self.shares(blocks).mean(0)
            if bool(((shares <= threshold) | shares.isnan()).all()):
                return blocks
        return 1


def by_channel(module: nn.Module, weight: Tensor) -> Tensor:
    """The weight with its output channels as the only axis before the others', (channel, rest)."""
    if isinstance(module, _ConvTransposeNd) and weight.ndim > 1:  # (in, out/groups, ...)
        return weight.unflatten(0, (module.groups, -1)).transpose(1, 2).flatten(0, 1).flatten(1)
    if weight.ndim == 2 and (isinstance(module, nn.Embedding | nn.EmbeddingBag) or is_transposed(module)):  # (in, out)
        return weight.T
    return weight.reshape(len(weight), -1) if weight.ndim else weight.reshape(1, 1)


def radial(problem: Problem, samples: Iterable[Sample]) -> dict[str, Radial]:
    """What the samples say of each selected tensor."""
    tensors = dict(problem.model.named_parameters())
    owners = {id(p): m for m in reversed(list(problem.model.modules())) for p in m.parameters(recurse=False)}
    parts: dict[str, list[Tensor]] = {k: [] for k in problem.params}
    rounding = []
    for sample in samples:
        rounding.append(sample.rounding)
        for k, found in parts.items():
            theta, g = (by_channel(owners[id(tensors[k])], t[k]).double() for t in (sample.theta, sample.gradient))
            found.append(torch.stack([(theta * g).sum(1), theta.square().sum(1), g.square().sum(1)]))
    floor = torch.tensor(rounding, dtype=torch.float64, device=problem.device)[:, None]
    whole = {k: torch.stack(found, dim=1) for k, found in parts.items() if found}  # (3, sample, channel)
    return {k: Radial(along, length, slope, floor, problem.params[k].numel()) for k, (along, length, slope) in whole.items()}


def of_outputs(problem: Problem, probes: int, seed: int) -> Iterator[Sample]:
    """Sums of all outputs of a batch with random signs: as many as ``probes``, the batches taking turns. Call it within `Problem.safe`.

    Signs are independent from row to row, so that nothing adds up that all rows have in common.
    """
    batches = len(problem.batches)
    for k in range(min(probes, batches)):
        leaves = problem.leaves()
        outputs = problem.outputs(k, leaves)
        rounding = torch.finfo(problem.dtype).eps * float(outputs.detach().double().norm())
        for probe in range(k, probes, batches):
            yield Sample(problem.params, _pulled(outputs, leaves, signs(outputs, probe, seed)), rounding)


def signs(like: Tensor, probe: int, seed: int) -> Tensor:
    """Random signs, in the shape of the outputs."""
    generator = torch.Generator().manual_seed(derived_seed(seed, "signs", probe))
    return (2 * torch.randint(0, 2, like.shape, generator=generator, device="cpu") - 1).to(like.detach())


def of_loss(problem: Problem, probes: int, seed: int) -> Iterator[Sample]:
    """Losses of batches at points around the parameters, where gradients do not vanish as at a minimum. Call it within `Problem.safe`.

    Every entry is changed by a random factor, which keeps its sign. Points at which the loss is not finite are left out.
    """
    for probe in range(probes):
        leaves = problem.leaves(nearby(problem, probe, seed))
        loss = problem.batch_loss(probe % len(problem.batches), leaves)
        if math.isfinite(value := float(loss.detach())):
            yield Sample(
                {k: p.detach() for k, p in leaves.items()}, _pulled(loss, leaves, None), torch.finfo(problem.dtype).eps * abs(value)
            )


def nearby(problem: Problem, probe: int, seed: int) -> Params:
    """The parameters, each entry times a factor drawn from [1 − SPREAD, 1 + SPREAD]."""

    def moved(name: str, p: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(derived_seed(seed, "nearby", probe, name))
        return p * (1 + SPREAD * (2 * torch.rand(p.shape, generator=generator, dtype=torch.float64, device="cpu") - 1)).to(p)

    return {k: moved(k, p) for k, p in problem.params.items()}


def dense_of_outputs(problem: Problem, probes: int, seed: int) -> Iterator[Sample]:
    """As `of_outputs`, from the dense Jacobian of each batch: its oracle."""
    batches = len(problem.batches)
    for k in range(min(probes, batches)):
        leaves = problem.leaves()
        outputs = problem.outputs(k, leaves)
        rows = [_pulled(entry, leaves, None) for entry in outputs.flatten()]
        jacobian = {name: torch.stack([row[name] for row in rows]) for name in leaves}  # (entry, ...)
        rounding = torch.finfo(problem.dtype).eps * float(outputs.detach().double().norm())
        for probe in range(k, probes, batches):
            w = signs(outputs, probe, seed).flatten()
            yield Sample(problem.params, {name: torch.tensordot(w, j, dims=1) for name, j in jacobian.items()}, rounding)


def slow_of_loss(problem: Problem, probes: int, seed: int) -> Iterator[Sample]:
    """As `of_loss`, from a problem of its own for each point and tensor: its oracle."""
    for probe in range(probes):
        at, k = problem.at(nearby(problem, probe, seed)), probe % len(problem.batches)
        value = float(at.batch_loss(k).detach())
        if math.isfinite(value):
            parts = {name: at.only(name) for name in problem.params}
            gradient = {name: _pulled(part.batch_loss(k, leaves := part.leaves()), leaves, None)[name] for name, part in parts.items()}
            yield Sample(at.params, gradient, torch.finfo(problem.dtype).eps * abs(value))


def _pulled(value: Tensor, leaves: Params, cotangent: Tensor | None) -> Params:
    if not value.requires_grad:
        return {k: torch.zeros_like(p) for k, p in leaves.items()}
    grads = torch.autograd.grad(value, list(leaves.values()), cotangent, retain_graph=True, allow_unused=True)
    return {k: torch.zeros_like(p) if g is None else g for (k, p), g in zip(leaves.items(), grads, strict=True)}
