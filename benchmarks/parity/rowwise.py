"""Gradients of rows, against BackPACK and a loop."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.parity import Comparison, Measure
from benchmarks.parity.problems import Case, case
from theorylab.core.problem import Problem
from theorylab.instruments.rows import per_example_grad_norms, per_example_grads


def _loop(at: Case) -> Tensor:
    found = []
    for x, y in zip(at.x, at.y, strict=True):
        grads = torch.autograd.grad(nn.functional.cross_entropy(at.net(x[None]), y[None]), at.params)
        found.append(torch.cat([g.reshape(-1) for g in grads]))
    return torch.stack(found)


def _backpack(at: Case, what: str) -> Callable[[], Tensor]:
    from backpack import backpack, extend
    from backpack.extensions import BatchGrad, BatchL2Grad

    net, loss = extend(copy.deepcopy(at.net)), extend(nn.CrossEntropyLoss())

    def measure() -> Tensor:
        net.zero_grad()
        with backpack(BatchGrad() if what == "grads" else BatchL2Grad()):
            loss(net(at.x), at.y).backward()
        if what == "grads":  # of the mean, a row's share of it
            return len(at.x) * torch.cat([p.grad_batch.flatten(1) for p in net.parameters()], dim=1)  # pyright: ignore
        return len(at.x) * torch.stack([p.batch_l2 for p in net.parameters()]).sum(0).sqrt()  # pyright: ignore

    return measure


def _rows(n: int, net: str, ours: Callable[[Problem], Tensor], theirs: Callable[[Case], Callable[[], Tensor]]):
    def prepare(dtype: torch.dtype) -> tuple[Measure, Measure]:
        at = case(net, n, dtype)
        problem = at.problem
        return lambda: ours(problem), theirs(at)

    return prepare


def rows(n: int) -> list[Comparison]:
    """One a network and a peer."""
    found = []
    for net, goal in (("MLP", 1 / 6), ("CNN", 1 / 10)):
        packed = _rows(n, net, per_example_grads, lambda at: _backpack(at, "grads"))
        norms = _rows(n, net, per_example_grad_norms, lambda at: _backpack(at, "norms"))
        looped = _rows(n, net, per_example_grads, lambda at: lambda: _loop(at))
        found += [
            Comparison("per_example_grads", net, "torch", looped, goal=round(goal, 3), note="a loop of one backward pass a row"),
            Comparison("per_example_grads", net, "backpack-for-pytorch", packed),
            Comparison("per_example_grad_norms", net, "backpack-for-pytorch", norms),
        ]
    return found
