"""The neural tangent kernel, against the contraction of two Jacobians and nngeometry."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import functional_call, jacrev, vmap
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.parity import Comparison, Measure
from benchmarks.parity.problems import Case, case, default_dtype
from theorylab.instruments.kernels import ntk

POINTS = 64


def _jacobians(at: Case) -> Tensor:
    params = {k: p.detach() for k, p in at.net.named_parameters()}

    def outputs(p: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(at.net, p, (x[None],))[0]

    J = vmap(jacrev(outputs), (None, 0))(params, at.x)
    flat = [j.flatten(2) for j in J.values()]
    return torch.stack([torch.einsum("iap,jbp->iajb", j, j) for j in flat]).sum(0)


def _nngeometry(at: Case) -> Tensor:
    from nngeometry.gram import GramMatrix
    from nngeometry.layercollection import LayerCollection

    loader = DataLoader(TensorDataset(at.x, at.y), batch_size=len(at.x))
    with default_dtype(at.x.dtype):
        gram = GramMatrix(at.net, loader, function=lambda *d: at.net(d[0]), layer_collection=LayerCollection.from_model(at.net))
    return gram.to_torch().permute(1, 0, 3, 2)


def _kernel(n: int, net: str, theirs: Callable[[Case], Tensor]):
    def prepare(dtype: torch.dtype) -> tuple[Measure, Measure]:
        at = case(net, min(n, POINTS), dtype)
        problem = at.problem

        def ours() -> Tensor:
            return ntk(problem).reshape(len(at.x), 10, len(at.x), 10)

        return ours, lambda: theirs(at)

    return prepare


def rows(n: int) -> list[Comparison]:
    """One a network and a peer."""
    found = []
    for net, goal in (("MLP", 1 / 20), ("CNN", 1 / 1.5)):
        setting = f"{net}, {POINTS} points, 10 outputs"
        found += [
            Comparison("ntk", setting, "torch", _kernel(n, net, _jacobians), goal=round(goal, 3), note="vmap(jacrev), then einsum"),
            Comparison("ntk", setting, "nngeometry", _kernel(n, net, _nngeometry)),
        ]
    return found
