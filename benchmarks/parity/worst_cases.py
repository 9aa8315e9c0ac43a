"""Worst cases of first-order methods in closed form, against PEPit's own programs for them."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from benchmarks.parity import Comparison, Measure
from theorylab.theory.worst_case import FunctionClass, worst_case

STEPS = 8


def _program(module: str, name: str, **options: Any) -> Tensor:
    wc = getattr(importlib.import_module(f"PEPit.examples.{module}"), name)
    return torch.tensor([wc(n=STEPS, verbose=-1, **options)[0]], dtype=torch.float64)


def _against(method: str, function_class: FunctionClass, module: str, name: str, **options: Any):
    def prepare(dtype: torch.dtype) -> tuple[Measure, Measure]:
        def ours() -> Tensor:
            return torch.tensor([worst_case(method, function_class, STEPS, closed_form=True).value], dtype=torch.float64)

        return ours, lambda: _program(module, name, **options)

    return prepare


def rows(n: int) -> list[Comparison]:
    """One row a method; nothing depends on the data."""
    convex, nonconvex = "unconstrained_convex_minimization", "nonconvex_optimization"
    settings: list[tuple[str, FunctionClass, str, str, dict[str, Any]]] = [
        ("gradient_descent", "convex", convex, "wc_gradient_descent", {"L": 1.0, "gamma": 1.0}),
        ("ogm", "convex", convex, "wc_optimized_gradient", {"L": 1.0}),
        ("subgradient", "nonsmooth", convex, "wc_subgradient_method", {"M": 1.0, "gamma": 1 / (STEPS + 1) ** 0.5}),
        ("gradient_descent", "nonconvex", nonconvex, "wc_gradient_descent", {"L": 1.0, "gamma": 1.0}),
    ]
    return [
        Comparison("worst_case", f"{method}, {kind}, n={STEPS}", "PEPit", _against(method, kind, module, name, **options), tolerance=1e-4)
        for method, kind, module, name, options in settings
    ]
