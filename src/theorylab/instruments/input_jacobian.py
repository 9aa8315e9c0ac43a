"""How much every activation moves with the network's inputs: the mean squared singular value of its Jacobian."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from theorylab.core.batches import map_tensors
from theorylab.core.estimate import Estimate
from theorylab.core.problem import Problem
from theorylab.core.seeds import derived_seed
from theorylab.instruments.activations import Key, watched
from theorylab.instruments.products import refuse_once_differentiable

Modules = str | Sequence[str] | None
Along = Callable[[list[Tensor], list[Tensor], list[list[Tensor]]], list[list[float]]]
"""(activations h, inputs x, directions u of these) → ‖∂h/∂x u‖² of every direction and activation."""


@contextmanager
def _differentiable_inputs(model: nn.Module) -> Iterator[list[Tensor]]:
    """Fills a list with the model's floating-point inputs, as leaves on which all that it computes depends."""
    leaves: list[Tensor] = []

    def lift(t: Tensor) -> Tensor:
        if not t.is_floating_point():
            return t
        leaves.append(t.detach().requires_grad_())
        return leaves[-1].clone()  # which the model may write into

    def replace(module: nn.Module, args: Any, kwargs: Any) -> Any:
        return map_tensors(lift, args), map_tensors(lift, kwargs)

    handle = model.register_forward_pre_hook(replace, with_kwargs=True)
    try:
        yield leaves
    finally:
        handle.remove()


def _along(activations: list[Tensor], inputs: list[Tensor], directions: list[list[Tensor]]) -> list[list[float]]:
    """J u of all activations at once, as the derivative of v → Jᵀv, which is linear: two more passes a direction."""
    cotangents = [torch.zeros_like(h, requires_grad=True) for h in activations]
    try:
        pulled = torch.autograd.grad(activations, inputs, cotangents, create_graph=True, allow_unused=True)
        refuse_once_differentiable([g for g in pulled if g is not None])
    except (RuntimeError, ValueError) as error:  # such a function, or a model that takes a derivative itself and frees the graph of it
        raise ValueError(f"the Jacobian of activations needs second derivatives. Pass probes=0 to leave it out. {error}") from error
    used = [(g, i) for i, g in enumerate(pulled) if g is not None and g.requires_grad]
    if not used:
        return [[0.0] * len(activations) for _ in directions]
    slopes = [g for g, _ in used]
    found = []
    for u in directions:
        pushed = torch.autograd.grad(slopes, cotangents, [u[i] for _, i in used], retain_graph=True, allow_unused=True)
        found.append([0.0 if p is None else float(p.double().square().sum()) for p in pushed])
    return found


def dense_along(activations: list[Tensor], inputs: list[Tensor], directions: list[list[Tensor]]) -> list[list[float]]:
    """From dense Jacobians, of one backward pass for each entry of an activation: the oracle."""
    stacked = [torch.cat([t.flatten() for t in u]).double() for u in directions]
    found: list[list[float]] = [[] for _ in directions]
    for h in activations:
        basis = torch.eye(h.numel(), dtype=h.dtype, device=h.device).unflatten(1, h.shape)
        grads = torch.autograd.grad(h, inputs, basis, retain_graph=True, allow_unused=True, is_grads_batched=True)
        columns = [t.new_zeros(h.numel(), t.numel()) if g is None else g.flatten(1) for g, t in zip(grads, inputs, strict=True)]
        jacobian = torch.cat(columns, dim=1).double()
        for numbers, u in zip(found, stacked, strict=True):
            numbers.append(float((jacobian @ u).square().sum()))
    return found


def mean_squared_singular_values(problem: Problem, modules: Modules, probes: int, seed: int, along: Along = _along) -> dict[Key, Estimate]:
    r"""An estimate of :math:`\lVert\partial h/\partial x\rVert_F^2` over the entries of h for each activation h of all rows.

    The mean over ``probes`` directions u of independent random signs of ‖J u‖² (Hutchinson's estimator of tr JᵀJ). Empty where the model
    has no floating-point input.

    Raises:
        ValueError: a part of the model that cannot be differentiated in its inputs, or not twice.
    """
    generator = torch.Generator().manual_seed(derived_seed(seed, "input directions"))
    sums: dict[Key, list[float]] = {}
    entries: dict[Key, int] = {}
    for k in range(len(problem.batches)):
        kept: dict[Key, Tensor] = {}

        def keep(key: Key, activation: Tensor, kept: dict[Key, Tensor] = kept) -> Tensor:
            kept[key] = activation.clone()  # what follows may overwrite it
            return activation

        with _differentiable_inputs(problem.model) as inputs, watched(problem, k, modules, keep):
            problem.outputs(k)
        if not inputs:
            return {}
        directions = [[_signs(t, generator) for t in inputs] for _ in range(probes)]
        moving = {key: h for key, h in kept.items() if h.requires_grad}
        squares = along(list(moving.values()), inputs, directions) if moving else []
        for key, h in kept.items():
            entries[key] = entries.get(key, 0) + h.numel()
            sums.setdefault(key, [0.0] * probes)
        for probe, values in enumerate(squares):
            for key, value in zip(moving, values, strict=True):
                sums[key][probe] += value
    return {key: Estimate.over([value / entries[key] for value in values]) for key, values in sums.items()}


def _signs(like: Tensor, generator: torch.Generator) -> Tensor:
    return (2 * torch.randint(0, 2, like.shape, generator=generator, device="cpu") - 1).to(like)
