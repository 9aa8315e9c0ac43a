"""What gradients of rows cost against a loop over rows, and their norms against one gradient of all rows."""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.curvature import ROWS, networks
from benchmarks.timing import interleaved, ratio
from theorylab.core.problem import Problem
from theorylab.instruments.rows import per_example_grad_norms, per_example_grads

EVERY = 8  # the loop visits one row in so many, and is scaled up
GOALS = {("MLP", "speed-up"): 6.0, ("CNN", "speed-up"): 10.0, ("MLP", "norms"): 1.3, ("CNN", "norms"): 2.2}


def rows(rounds: int = 7) -> list[dict]:
    """Two rows a network: speed-up of the gradients over a loop by plain PyTorch, and the cost of the norms in gradients."""
    table = []
    for name, (net, x) in networks().items():
        y = torch.randint(0, 10, (ROWS,), generator=torch.Generator().manual_seed(1))
        problem, parameters = Problem(net, nn.functional.cross_entropy, (x, y)), list(net.parameters())

        def gradient(part: slice, net=net, x=x, y=y, parameters=parameters) -> torch.Tensor:
            grads = torch.autograd.grad(nn.functional.cross_entropy(net(x[part]), y[part]), parameters)
            return torch.cat([g.reshape(-1) for g in grads])

        # two by two: a hundred megabytes of gradients would leave the caches cold for whoever comes next
        seconds = interleaved(
            {
                "loop": lambda gradient=gradient: torch.stack([gradient(slice(i, i + 1)) for i in range(0, ROWS, EVERY)]),
                "rows": lambda problem=problem: per_example_grads(problem),
            },
            rounds=rounds,
        )
        seconds |= interleaved(
            {
                "gradient": lambda gradient=gradient: gradient(slice(None)),
                "norms": lambda problem=problem: per_example_grad_norms(problem),
            },
            rounds=5 * rounds,
        )
        kind, setting = name.partition(",")[0], f"{name}, P={problem.P}, n={ROWS}"
        faster, cost = EVERY * ratio(seconds["loop"], seconds["rows"]), ratio(seconds["norms"], seconds["gradient"])
        goals = GOALS[kind, "speed-up"], GOALS[kind, "norms"]
        table += [
            {
                "name": "rows: gradients",
                "setting": setting,
                "ratio": faster,
                "goal": goals[0],
                "better": "higher",
                "unit": "a loop over rows",
            },
            {"name": "rows: norms", "setting": setting, "ratio": cost, "goal": goals[1], "better": "lower", "unit": "gradients"},
        ]
    return table
