"""How much faster a population trains than a loop of ordinary `torch.optim` runs."""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn

from benchmarks.timing import interleaved, ratio
from theorylab.learning.fastest import RECORD_FROM
from theorylab.learning.minibatches import minibatches
from theorylab.learning.optimizers.adam import adam
from theorylab.learning.optimizers.base import Optimizer
from theorylab.learning.optimizers.sgd import sgd
from theorylab.learning.population import Population
from theorylab.models.cnn import cnn
from theorylab.models.mlp import mlp

ROWS = 1024
GOAL = {(32, 32, 32): 6.0}
"""Speed-up that (width, replicas, batch) must reach; every other setting must not be slower than the loop."""


def digits_like(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Inputs (n, 64) and ten classes: the shape of scikit-learn's digits."""
    g = torch.Generator().manual_seed(0)
    return torch.randn(ROWS, 64, generator=g).to(dtype), torch.randint(0, 10, (ROWS,), generator=g)


def compare(make_model, batch: int, replicas: int, dtype: torch.dtype, which: str = "sgd") -> tuple[float, str]:
    """Time of a loop over that of the population, a step of a replica each, and the way that the population chose.

    The loop is the ordinary one: cross entropy, backward, `zero_grad(set_to_none=True)`, and for Adam the ``fused`` update, the fastest of
    PyTorch's three at these sizes (for SGD they are within a few percent); its row numbers are drawn
    beforehand. It trains two replicas a round, for its time does not depend on how many.
    """
    x, y = digits_like(dtype)
    optimizer: Optimizer = sgd(0.05) if which == "sgd" else adam(1e-3)
    population = Population(
        make_model, nn.functional.cross_entropy, (x, y), optimizer=optimizer, seeds=range(replicas), batch_size=batch, dtype=dtype
    )
    population.train(RECORD_FROM // replicas + 1)  # chooses the way and records the step, which long runs do once
    loop_steps, lone = 30, 2
    steps = max(2, 240 // replicas)
    order = minibatches(ROWS, batch, 0)
    index = [next(order) for _ in range(loop_steps)]
    nets = [make_model().to(dtype) for _ in range(lone)]
    make = torch.optim.SGD if which == "sgd" else torch.optim.Adam
    optimizers = [make(net.parameters(), lr=0.05 if which == "sgd" else 1e-3, fused=which == "adam") for net in nets]

    def loop() -> None:
        for net, opt in zip(nets, optimizers, strict=True):
            for rows in index:
                opt.zero_grad(set_to_none=True)
                nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
                opt.step()

    seconds = interleaved({"loop": loop, "population": lambda: population.train(steps, check=False)})
    scale = (steps * replicas) / (loop_steps * lone)
    sizes = sorted({group.size for group in population._groups})
    way = "loop" if population.mode == "loop" else f"vmap of {sizes[-1]}"
    return scale * ratio(seconds["loop"], seconds["population"]), way


def rows() -> list[dict]:
    """One row a setting."""
    out = []
    for dtype in (torch.float32, torch.float64):
        for width in (32, 64, 128):
            for replicas in (32, 256) if dtype == torch.float32 else (32,):
                for batch in (32, 128):
                    speed, way = compare(lambda width=width: mlp([64, width, 10], activation="relu"), batch, replicas, dtype)
                    name = str(dtype).removeprefix("torch.")
                    setting = f"MLP 64-{width}-10, SGD, K={replicas}, batch {batch}, {name}"
                    out.append(row(setting, speed, GOAL.get((width, replicas, batch), 1.0), way))
    speed, way = compare(lambda: mlp([64, 32, 32, 10], activation="tanh"), 32, 32, torch.float64, "adam")
    out.append(row("MLP 64-32-32-10, tanh, Adam, K=32, batch 32, float64", speed, 1.0, way))
    image = nn.Unflatten(1, (1, 8, 8))
    speed, way = compare(lambda: nn.Sequential(image, cnn([1, 8, 16], 10, norm="group")), 32, 32, torch.float32)
    out.append(row("CNN 8-16, group norm, SGD, K=32, batch 32, float32", speed, 1.0, way))
    return out


def row(setting: str, speed: float, goal: float, way: str) -> dict:
    print(f"  {setting}: {speed:.2f} ({way})", file=sys.stderr, flush=True)
    return {
        "name": "population",
        "setting": setting,
        "ratio": round(speed, 2),
        "goal": goal,
        "better": "higher",
        "unit": f"times a loop of torch.optim runs (trained by {way})",
    }
