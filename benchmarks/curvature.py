"""What a product with the Hessian or the Gauss-Newton matrix costs, in gradients by plain PyTorch and against curvlinops.

Operators record their product after some (`theorylab.instruments.recorded`): they are timed after that, and once before.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.timing import interleaved, ratio
from theorylab.core.problem import Problem
from theorylab.instruments.curvature import ggn, hessian
from theorylab.instruments.products import RECORD_AFTER

ROWS, PARTS, COLUMNS = 1024, 8, 10
GRADIENTS = {
    ("MLP", "hessian"): 1.7,
    ("CNN", "hessian"): 2.3,
    ("MLP", "ggn"): 1.4,
    ("CNN", "ggn"): 1.4,
    ("MLP", f"hessian, {PARTS} minibatches"): 1.5,
}
"""(kind of network, product) → goal in gradients of the same data in one batch."""
PEER = {"hessian": 0.5, "ggn": 0.5, f"hessian, {PARTS} minibatches": 0.3}
"""Product → goal as a part of curvlinops' time; on a CNN a Hessian product in one batch may take PEER_CNN of it."""
PEER_CNN = 0.6


def networks() -> dict[str, tuple[nn.Module, Tensor]]:
    """Name → network and inputs; the goals of the MLP hold for either activation."""
    generator = torch.Generator().manual_seed(0)

    def mlp(act: type[nn.Module]) -> nn.Module:
        return nn.Sequential(nn.Linear(64, 128), act(), nn.Linear(128, 128), act(), nn.Linear(128, 10))

    cnn = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.Tanh(),
        nn.Conv2d(16, 32, 3, padding=1, stride=2),
        nn.Tanh(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 10),
    )
    vectors, images = torch.randn(ROWS, 64, generator=generator), torch.randn(ROWS, 1, 8, 8, generator=generator)
    return {"MLP": (mlp(nn.Tanh), vectors), "MLP, ReLU": (mlp(nn.ReLU), vectors), "CNN": (cnn, images)}


def peers(net: nn.Module, x: Tensor, y: Tensor, v: Tensor) -> dict[str, Callable[[], object]]:
    """Products of curvlinops under our names; empty where it is not installed."""
    if importlib.util.find_spec("curvlinops") is None:
        return {}
    import curvlinops

    def product(kind: Any, parts: int) -> Callable[[], object]:
        data = list(zip(x.chunk(parts), y.chunk(parts), strict=True))
        operator = kind(net, nn.CrossEntropyLoss(), list(net.parameters()), data, check_deterministic=False)
        return lambda: operator @ v

    return {
        "hessian": product(curvlinops.HessianLinearOperator, 1),
        "ggn": product(curvlinops.GGNLinearOperator, 1),
        f"hessian, {PARTS} minibatches": product(curvlinops.HessianLinearOperator, PARTS),
    }


def rows(rounds: int = 15) -> list[dict]:
    """One row a network and a product: its time over that of a gradient, or of curvlinops' product, the median over rounds."""
    table = []
    for name, (net, x) in networks().items():
        y = torch.randint(0, 10, (ROWS,), generator=torch.Generator().manual_seed(1))
        problem = Problem(net, nn.functional.cross_entropy, (x, y))
        parts = Problem(net, nn.functional.cross_entropy, (x, y), batch_size=ROWS // PARTS)
        v, block = torch.randn(problem.P), torch.randn(problem.P, COLUMNS)
        H, G, H8 = hessian(problem), ggn(problem), hessian(parts)
        for operator in (H, G, H8):
            for _ in range(RECORD_AFTER + 2):
                operator @ v
        young, rebuilt = (hessian(problem), ggn(problem)), hessian(problem, memory=0)

        def gradient(net: nn.Module = net, x: Tensor = x, y: Tensor = y) -> object:
            return torch.autograd.grad(nn.functional.cross_entropy(net(x), y), list(net.parameters()))

        contestants: dict[str, Callable[[], object]] = {
            "hessian": lambda H=H, v=v: H @ v,
            "ggn": lambda G=G, v=v: G @ v,
            f"hessian, {PARTS} minibatches": lambda H=H8, v=v: H @ v,
            "hessian, before it is recorded": lambda H=young[0], v=v: H @ v,
            "ggn, before it is recorded": lambda G=young[1], v=v: G @ v,
            "hessian, graph rebuilt": lambda H=rebuilt, v=v: H @ v,
            f"hessian, {COLUMNS} vectors, each": lambda H=H, V=block: H @ V,
            f"ggn, {COLUMNS} vectors, each": lambda G=G, V=block: G @ V,
        }
        theirs = peers(net, x, y, v)
        all_of_them = {"gradient": gradient, **contestants, **{f"curvlinops {k}": run for k, run in theirs.items()}}
        seconds = interleaved(all_of_them, rounds=rounds, warmup=1)
        kind, setting = name.partition(",")[0], f"{name}, P={problem.P}, n={ROWS}"

        def row(what: str, value: float, goal: float | None, unit: str, setting: str = setting) -> dict:
            return {"name": f"product: {what}", "setting": setting, "ratio": value, "goal": goal, "better": "lower", "unit": unit}

        for what in contestants:
            each = COLUMNS if "vectors" in what else 1
            table.append(row(what, ratio(seconds[what], seconds["gradient"]) / each, GRADIENTS.get((kind, what)), "gradients"))
        for what in theirs:
            goal = PEER_CNN if (kind, what) == ("CNN", "hessian") else PEER[what]
            table.append(row(what, ratio(seconds[what], seconds[f"curvlinops {what}"]), goal, "curvlinops"))
    return table
