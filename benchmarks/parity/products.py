"""Products with curvature matrices, against curvlinops and hessian-eigenthings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks.parity import Comparison, Measure
from benchmarks.parity.problems import Case, case
from theorylab.core.operator import Operator
from theorylab.core.problem import Problem
from theorylab.instruments.curvature import ggn, hessian
from theorylab.instruments.fisher import empirical_fisher
from theorylab.instruments.jacobian import jacobian

SPLIT = 8  # minibatches, where there are several


def _minibatches(at: Case, split: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    size = -(-len(at.x) // split)
    return list(zip(at.x.split(size), at.y.split(size), strict=True))


def _curvlinops(name: str) -> Callable[[Case, int], Any]:
    def make(at: Case, split: int) -> Any:
        import curvlinops

        operator = getattr(curvlinops, name)(at.net, nn.CrossEntropyLoss(), at.params, _minibatches(at, split), check_deterministic=False)
        return lambda v: operator @ v

    return make


def _eigenthings(at: Case, split: int) -> Any:
    from hessian_eigenthings.loss_fns.standard import supervised_loss
    from hessian_eigenthings.operators.hessian import HessianOperator

    return HessianOperator(at.net, _minibatches(at, split), supervised_loss(nn.functional.cross_entropy)).matvec


def _eigenthings_ggn(at: Case, split: int) -> Any:
    from hessian_eigenthings.loss_fns.standard import supervised_forward, supervised_loss_of_output
    from hessian_eigenthings.operators.ggn import GGNOperator

    loss = supervised_loss_of_output(nn.functional.cross_entropy)
    return GGNOperator(at.net, _minibatches(at, split), supervised_forward, loss).matvec


def _product(
    n: int, net: str, instrument: Callable[[Problem], Operator], peer: Callable[[Case, int], Any], split: int = 1
) -> Callable[[torch.dtype], tuple[Measure, Measure]]:
    def prepare(dtype: torch.dtype) -> tuple[Measure, Measure]:
        at = case(net, n, dtype)
        problem = Problem(at.net, nn.functional.cross_entropy, _minibatches(at, split))
        A, B, v = instrument(problem), peer(at, split), at.vector()
        return lambda: A @ v, lambda: B(v)

    return prepare


def _jacobian(n: int) -> Callable[[torch.dtype], tuple[Measure, Measure]]:
    def prepare(dtype: torch.dtype) -> tuple[Measure, Measure]:
        import curvlinops

        at = case("MLP", n, dtype)
        J, v = jacobian(at.problem), at.vector()
        theirs = curvlinops.JacobianLinearOperator(at.net, at.params, [(at.x, at.y)], check_deterministic=False)
        return lambda: J @ v, lambda: theirs @ v

    return prepare


def rows(n: int) -> list[Comparison]:
    """One a matrix, a network and a peer."""
    linops, things = "curvlinops-for-pytorch", "hessian-eigenthings"
    H, G = _curvlinops("HessianLinearOperator"), _curvlinops("GGNLinearOperator")
    found = []
    for net, goal in (("MLP", 0.5), ("CNN", 0.6)):
        found += [
            Comparison("hessian", f"{net}, a product", linops, _product(n, net, hessian, H), goal=goal),
            Comparison("hessian", f"{net}, a product, {SPLIT} minibatches", linops, _product(n, net, hessian, H, SPLIT), goal=0.3),
            Comparison("hessian", f"{net}, a product", things, _product(n, net, hessian, _eigenthings)),
            Comparison("ggn", f"{net}, a product", linops, _product(n, net, ggn, G), goal=0.5),
            Comparison("ggn", f"{net}, a product", things, _product(n, net, ggn, _eigenthings_ggn)),
        ]
    empirical = _curvlinops("EFLinearOperator")
    return [
        *found,
        Comparison("empirical_fisher", "MLP, a product", linops, _product(n, "MLP", empirical_fisher, empirical)),
        Comparison("jacobian", "MLP, a product", linops, _jacobian(n)),
    ]
