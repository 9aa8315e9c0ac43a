"""What a clipped sum costs against one gradient of all rows; `benchmarks.parity.clipping` compares it with Opacus."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.timing import interleaved, ratio
from theorylab.core.problem import Problem
from theorylab.instruments.clipping import clipped_sum

ROWS, CLIP = 256, 1.0
GOALS = {"MLP": 1.6, "CNN": 2.2}
"""Clipped sum in gradients of the same rows by plain PyTorch."""


def networks() -> dict[str, tuple[nn.Module, Tensor]]:
    """A multilayer perceptron of 670 thousand parameters and a convolutional network with group norms, with their inputs."""
    generator = torch.Generator().manual_seed(0)
    perceptron = nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
    features = [nn.Conv2d(1, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.ReLU(), nn.AvgPool2d(2)]
    features += [nn.Conv2d(16, 32, 3, padding=1), nn.GroupNorm(4, 32), nn.ReLU(), nn.AdaptiveAvgPool2d(4)]
    convolutional = nn.Sequential(*features, nn.Flatten(), nn.Linear(512, 10))
    vectors, images = torch.randn(ROWS, 784, generator=generator), torch.randn(ROWS, 1, 14, 14, generator=generator)
    return {"MLP": (perceptron, vectors), "CNN": (convolutional, images)}


def rows(rounds: int = 9) -> list[dict]:
    """For each network: the cost in gradients, and the speed-up over gradients formed by vmap."""
    table = []
    for name, (net, x) in networks().items():
        y = torch.randint(0, 10, (ROWS,), generator=torch.Generator().manual_seed(1))
        problem, parameters = Problem(net, nn.functional.cross_entropy, (x, y)), list(net.parameters())

        def gradient(net=net, x=x, y=y, parameters=parameters) -> tuple[Tensor, ...]:
            return torch.autograd.grad(nn.functional.cross_entropy(net(x), y), parameters)

        contestants: dict[str, Callable[[], object]] = {
            "gradient": gradient,
            "ghost": lambda problem=problem: clipped_sum(problem, CLIP, method="ghost"),
            "vmap": lambda problem=problem: clipped_sum(problem, CLIP, method="vmap"),
        }
        seconds = interleaved(contestants, rounds=rounds)
        setting = f"{name}, P={problem.P}, n={ROWS}"
        table.append(
            {
                "name": "clipping: ghost",
                "setting": setting,
                "ratio": ratio(seconds["ghost"], seconds["gradient"]),
                "goal": GOALS[name],
                "better": "lower",
                "unit": "gradients",
            }
        )
        table.append(
            {
                "name": "clipping: ghost against vmap",
                "setting": setting,
                "ratio": ratio(seconds["vmap"], seconds["ghost"]),
                "goal": None,
                "better": "higher",
                "unit": "gradients formed by vmap",
            }
        )
    return table
