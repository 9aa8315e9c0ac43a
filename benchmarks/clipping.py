"""What a clipped sum costs against one gradient of all rows, and against Opacus where it is installed."""

from __future__ import annotations

import importlib.util
import warnings
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


def opacus(net: nn.Module, x: Tensor, y: Tensor) -> Callable[[], Tensor] | None:
    """The same clipped sum by Opacus' ghost clipping; None where it is not installed."""
    if importlib.util.find_spec("opacus") is None:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import copy

        from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import (  # pyright: ignore[reportMissingImports]
            GradSampleModuleFastGradientClipping,
        )

        model = GradSampleModuleFastGradientClipping(
            copy.deepcopy(net), batch_first=True, loss_reduction="sum", max_grad_norm=CLIP, use_ghost_clipping=True
        )

    def run() -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.zero_grad()
            model.enable_hooks()
            losses = nn.functional.cross_entropy(model(x), y, reduction="none")
            losses.sum().backward(retain_graph=True)
            factors = model.get_clipping_coef()
            model.zero_grad()
            model.disable_hooks()
            (factors * losses).sum().backward()
            return torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.grad is not None])

    return run


def rows(rounds: int = 9) -> list[dict]:
    """For each network: the cost in gradients, the speed-up over gradients formed by vmap, and over Opacus' ghost clipping."""
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
        peer = opacus(net, x, y)
        if peer is not None:
            assert torch.allclose(peer(), clipped_sum(problem, CLIP).total, rtol=1e-3, atol=1e-4), "the peer sums something else"
            contestants["opacus"] = peer
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
        for other in [k for k in ("vmap", "opacus") if k in seconds]:
            unit = "gradients formed by vmap" if other == "vmap" else "Opacus' ghost clipping"
            faster = ratio(seconds[other], seconds["ghost"])
            goal = 1.0 if other == "opacus" else None
            table.append(
                {
                    "name": f"clipping: ghost against {other}",
                    "setting": setting,
                    "ratio": faster,
                    "goal": goal,
                    "better": "higher",
                    "unit": unit,
                }
            )
    return table
