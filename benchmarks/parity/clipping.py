"""Clipped sums against the ghost clipping of Opacus."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from benchmarks.clipping import CLIP
from benchmarks.parity import Comparison, Measure
from benchmarks.parity.problems import Case, case
from theorylab.instruments.clipping import clipped_sum


def _opacus(at: Case) -> Measure:
    from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import (  # pyright: ignore[reportMissingImports]
        GradSampleModuleFastGradientClipping,
    )

    model = GradSampleModuleFastGradientClipping(copy.deepcopy(at.net), loss_reduction="sum", max_grad_norm=CLIP, use_ghost_clipping=True)

    def measure() -> Tensor:
        """Two backward passes, as its own training loop takes them."""
        model.zero_grad()
        model.enable_hooks()
        losses = nn.functional.cross_entropy(model(at.x), at.y, reduction="none")
        losses.sum().backward(retain_graph=True)
        factors = model.get_clipping_coef()
        model.zero_grad()
        model.disable_hooks()
        (factors * losses).sum().backward()
        return torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.grad is not None])

    return measure


def rows(n: int) -> list[Comparison]:
    """One a network."""

    def prepared(net: str):
        def prepare(dtype: torch.dtype) -> tuple[Measure, Measure]:
            at = case(net, n, dtype)
            problem = at.problem
            return lambda: clipped_sum(problem, CLIP, method="ghost").total, _opacus(at)

        return prepare

    # it divides by the norm plus 1e-6, so that its rows are shorter than asked by that share
    return [Comparison("clipped_sum", net, "opacus", prepared(net), tolerance=3e-6, goal=1.0) for net in ("MLP", "CNN")]
