"""K-FAC and EKFAC, against curvlinops and nngeometry."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.parity import Comparison, Measure
from benchmarks.parity.problems import Case, case, default_dtype
from theorylab.instruments.kfac import ekfac, kfac


def _curvlinops(name: str, approx: str) -> Callable[[Case], Tensor]:
    def product(at: Case) -> Tensor:
        import curvlinops

        options: dict[str, Any] = {"fisher_type": "type-2", "kfac_approx": approx, "separate_weight_and_bias": False}
        make = getattr(curvlinops, name)
        operator = make(at.net, nn.CrossEntropyLoss(), at.params, [(at.x, at.y)], check_deterministic=False, **options)
        return operator @ at.vector()

    return product


def _nngeometry(name: str) -> Callable[[Case], Tensor]:
    def product(at: Case) -> Tensor:
        import nngeometry.object
        from nngeometry.metrics import FIM

        loader = DataLoader(TensorDataset(at.x, at.y), batch_size=len(at.x))
        with default_dtype(at.x.dtype):
            F = FIM(at.net, loader, getattr(nngeometry.object, name), variant="classif_logits")
            if name == "PMatEKFAC":
                F.update_diag(loader)
            v = nngeometry.object.PVector(F.generator.layer_collection, vector_repr=at.vector())
            return F.mv(v).to_torch()

    return product


def _from_scratch(n: int, net: str, instrument: Callable[..., Any], peer: Callable[[Case], Tensor], **options: Any):
    def prepare(dtype: torch.dtype) -> tuple[Measure, Measure]:
        at = case(net, n, dtype)
        problem, v = at.problem, at.vector()
        return lambda: instrument(problem, **options) @ v, lambda: peer(at)

    return prepare


def rows(n: int) -> list[Comparison]:
    """Making the factors and one product: one row a network, a kind and a peer."""
    linops = "curvlinops-for-pytorch"
    found = []
    for net in ("MLP", "CNN"):
        for approx in ("expand", "reduce") if net == "CNN" else ("expand",):
            theirs = _curvlinops("KFACLinearOperator", approx)
            found.append(Comparison("kfac", f"{net}, {approx}", linops, _from_scratch(n, net, kfac, theirs, approx=approx)))
        found.append(Comparison("ekfac", net, linops, _from_scratch(n, net, ekfac, _curvlinops("EKFACLinearOperator", "expand"))))
    return [
        *found,
        Comparison("kfac", "MLP, expand", "nngeometry", _from_scratch(n, "MLP", kfac, _nngeometry("PMatKFAC")), tolerance=1e-6),
        Comparison("ekfac", "MLP", "nngeometry", _from_scratch(n, "MLP", ekfac, _nngeometry("PMatEKFAC")), tolerance=1e-6),
    ]
