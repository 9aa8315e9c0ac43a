"""What a product with the Hessian or the Gauss-Newton matrix costs, in gradients of the same data by plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.timing import interleaved, ratio
from theorylab.core.problem import Problem
from theorylab.instruments.curvature import ggn, hessian

ROWS = 1024
COLUMNS = 10
GOALS = {("MLP", "hessian"): 1.7, ("CNN", "hessian"): 2.3, ("MLP", "ggn"): 1.4, ("CNN", "ggn"): 1.4}


def networks() -> dict[str, tuple[nn.Module, Tensor]]:
    """Name → network and inputs; the goals of the MLP hold for either activation.

    A ReLU costs next to nothing in a gradient, so there a Hessian product is ruled by its matrix products alone, of which it has almost
    twice as many as a gradient: the goals are not reached there.
    """
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


def rows(rounds: int = 9) -> list[dict]:
    """One row a network and a product: its time over that of a gradient, the median over rounds."""
    table = []
    for name, (net, x) in networks().items():
        y = torch.randint(0, 10, (ROWS,), generator=torch.Generator().manual_seed(1))
        problem = Problem(net, nn.functional.cross_entropy, (x, y))
        eighths = Problem(net, nn.functional.cross_entropy, (x, y), batch_size=ROWS // 8)
        parameters = list(net.parameters())
        v, block = torch.randn(problem.P), torch.randn(problem.P, COLUMNS)
        H, G, H8, rebuilt = hessian(problem), ggn(problem), hessian(eighths), hessian(problem, memory=0)

        def gradient(net=net, x=x, y=y, parameters=parameters) -> object:
            return torch.autograd.grad(nn.functional.cross_entropy(net(x), y), parameters)

        contestants = {
            "gradient": gradient,
            "hessian": lambda H=H, v=v: H @ v,
            "ggn": lambda G=G, v=v: G @ v,
            "hessian, 8 minibatches": lambda H=H8, v=v: H @ v,
            "hessian, graph rebuilt": lambda H=rebuilt, v=v: H @ v,
            f"hessian, {COLUMNS} vectors, each": lambda H=H, V=block: H @ V,
            f"ggn, {COLUMNS} vectors, each": lambda G=G, V=block: G @ V,
        }
        seconds = interleaved(contestants, rounds=rounds, warmup=1)
        for what in list(contestants)[1:]:
            each = COLUMNS if "vectors" in what else 1
            table.append(
                {
                    "name": f"product: {what}",
                    "setting": f"{name}, P={problem.P}, n={ROWS}",
                    "ratio": ratio(seconds[what], seconds["gradient"]) / each,
                    "goal": GOALS.get((name.partition(",")[0], what)),
                    "better": "lower",
                    "unit": "gradients",
                }
            )
    return table
