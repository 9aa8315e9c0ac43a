"""How much faster the empirical neural tangent kernel is than the contraction of Jacobians by `torch.func.jacrev`."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from benchmarks.timing import interleaved, ratio
from theorylab.core.problem import Problem
from theorylab.instruments.kernels import ntk

ROWS = 64
GOALS = {("MLP", "full"): 20.0, ("CNN", "full"): 1.5}


def networks() -> dict[str, tuple[nn.Module, Tensor]]:
    """Name → network of ten outputs and its inputs."""
    generator = torch.Generator().manual_seed(0)
    mlp = nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 128), nn.Tanh(), nn.Linear(128, 10))
    features = [nn.Conv2d(1, 16, 3, padding=1), nn.Tanh(), nn.Conv2d(16, 32, 3, padding=1, stride=2), nn.Tanh(), nn.AdaptiveAvgPool2d(2)]
    cnn = nn.Sequential(*features, nn.Flatten(), nn.Linear(128, 10))
    return {"MLP": (mlp, torch.randn(ROWS, 64, generator=generator)), "CNN": (cnn, torch.randn(ROWS, 1, 8, 8, generator=generator))}


def contraction(net: nn.Module, x: Tensor, trace_outputs: bool) -> Tensor:
    """Jacobians of every row by vmap over jacrev, parameter by parameter, and the sum of their products: PyTorch's own recipe."""
    params = {k: p.detach() for k, p in net.named_parameters()}

    def one(p: dict[str, Tensor], row: Tensor) -> Tensor:
        return functional_call(net, p, (row[None],))[0]

    jacobians = [J.flatten(2) for J in vmap(jacrev(one), (None, 0))(params, x).values()]
    equation = "nap,map->nm" if trace_outputs else "nap,mbp->namb"
    return torch.stack([torch.einsum(equation, J, J) for J in jacobians]).sum(0)


def rows(rounds: int = 7) -> list[dict]:
    """One row a network and a kernel: the time of the contraction over that of `ntk`, the median over rounds."""
    table = []
    for name, (net, x) in networks().items():
        y = torch.zeros(ROWS, dtype=torch.long)
        problem = Problem(net, nn.functional.cross_entropy, (x, y))
        for what, trace in (("full", False), ("trace of outputs", True)):
            seconds = interleaved(
                {
                    "jacrev": lambda net=net, x=x, trace=trace: contraction(net, x, trace),
                    "ntk": lambda problem=problem, trace=trace: ntk(problem, trace_outputs=trace),
                },
                rounds=rounds,
                warmup=1,
            )
            table.append(
                {
                    "name": f"ntk, {what}",
                    "setting": f"{name}, P={problem.P}, n={ROWS}, 10 outputs",
                    "ratio": ratio(seconds["jacrev"], seconds["ntk"]),
                    "goal": GOALS.get((name, what)),
                    "better": "higher",
                    "unit": "times the jacrev contraction",
                }
            )
    return table
