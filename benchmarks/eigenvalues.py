"""What the leading eigenvalues of a Hessian cost, in gradients of the same data by plain PyTorch."""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.parity.problems import Case, case
from benchmarks.timing import interleaved, ratio
from theorylab.instruments.curvature import hessian
from theorylab.linalg.lanczos import eigs

ROWS = 1024
TOP = 10
WANTED = 1e-5  # relative error of every value
GOAL = 80.0


def trained(at: Case, steps: int) -> Case:
    """The same case after full-batch steps of Adam."""
    adam = torch.optim.Adam(at.params, lr=1e-2)
    for _ in range(steps):
        adam.zero_grad()
        nn.functional.cross_entropy(at.net(at.x), at.y).backward()
        adam.step()
    adam.zero_grad()
    return at


def rows(rounds: int = 5) -> list[dict]:
    """At initialization and after training; the tolerance is the loosest of a few at which all values are as exact as wanted."""
    return [_row(steps, rounds) for steps in (0, 100)]


def _row(steps: int, rounds: int) -> dict:
    at = trained(case("MLP of width 32", ROWS, torch.float64), steps)
    exact = eigs(hessian(at.problem), k=TOP, tol=1e-9).values
    at = Case(at.name, at.net.float(), at.x.float(), at.y)
    problem = at.problem
    for tol in (1e-2, 5e-3, 2e-3, 1e-3, 5e-4, 2e-4, 1e-4):
        found = eigs(hessian(problem), k=TOP, tol=tol)
        error = float(((found.values.double() - exact) / exact).abs().max())
        if error <= WANTED:
            break

    def gradient() -> object:
        return torch.autograd.grad(nn.functional.cross_entropy(at.net(at.x), at.y), at.params)

    seconds = interleaved({"gradient": gradient, "eigs": lambda: eigs(hessian(problem), k=TOP, tol=tol)}, rounds=rounds)
    when = f"after {steps} steps" if steps else "at initialization"
    return {
        "name": f"top {TOP} eigenvalues of the Hessian, to {error:.0e}",
        "setting": f"MLP 64-32-32-10 {when}, P={problem.P}, n={ROWS}, {found.n_matvecs} products",
        "ratio": ratio(seconds["eigs"], seconds["gradient"]),
        "goal": GOAL if error <= WANTED else 0.0,
        "better": "lower",
        "unit": "gradients",
    }
