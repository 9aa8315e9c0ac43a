r"""TRAK's scores do not change when the gradients are multiplied by an invertible matrix, and do when the matrix is narrower.

TRAK replaces a network by the linear model of its gradients, projects these onto few random directions, and takes one Newton step. The
Newton step is equivariant under changes of basis, so that the projection would cost nothing were it invertible: the scores of a linear
model are those of the closed form whatever the signs of P. What a projection really costs is all in the directions that it leaves out,
and no scaling of the kept ones makes up for them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from theorylab.core.claim import Claim, Equals, Finding
from theorylab.core.config import Config, setting
from theorylab.core.problem import Problem
from theorylab.core.series import Series, Stage
from theorylab.core.source import Source
from theorylab.core.study import study
from theorylab.data.digits import digits
from theorylab.instruments.trak import trak
from theorylab.models.seeded import seeded
from theorylab.theory.influence import regression_scores

INVARIANCE = Claim(
    "influence/trak/projection_invariance",
    "TRAK's scores do not depend on the projection of the gradients as long as it is invertible.",
    formula=r"\psi^\top P\,(P^\top \Phi^\top \Phi P)^{-1} P^\top \phi_i = \psi^\top (\Phi^\top \Phi)^{-1} \phi_i",
    source=Source("Park et al. 2023", "Section 3 (the projected estimator; invariance is linear algebra)", "arXiv:2303.14186"),
    kind="identity",
    relation=Equals(atol=1e-9),
    control="a projection on half as many directions as there are parameters",
    reading="The random matrix is not what makes the scores work: it only makes the solve affordable. What is lost depends on how much of "
    "the gradients lies outside the kept directions, so a score with few of them needs averaging over projections or models. "
    "A ridge breaks the invariance, for it prefers some directions to others.",
)


@dataclass(frozen=True, kw_only=True)
class TrakConfig(Config):
    """A linear regression with normal inputs, and a network of one hidden layer on principal components of digits, odd against even."""

    n: int = setting(80, "rows of the regression", low=10)
    p: int = setting(20, "its inputs", low=2)
    rows: int = setting(400, "digits", low=100)
    components: int = setting(6, "their principal components", low=2, high=64)
    width: int = setting(4, "hidden units", low=1)
    targets: int = setting(10, "targets whose scores are compared", low=1)


def regression(config: TrakConfig, seed: int) -> tuple[Problem, tuple[Tensor, Tensor]]:
    """A linear model at random parameters, and target rows."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(config.n + config.targets, config.p, generator=generator, dtype=torch.float64)
    y = torch.randn(len(x), 1, generator=generator, dtype=torch.float64)
    model = seeded(lambda: nn.Linear(config.p, 1, bias=False), seed)
    data = x[: config.n].to(config.device), y[: config.n].to(config.device)
    problem = Problem(model, nn.functional.mse_loss, data, dtype=torch.float64, device=config.device)
    return problem, (x[config.n :].to(config.device), y[config.n :].to(config.device))


def network(config: TrakConfig, seed: int) -> tuple[Problem, tuple[Tensor, Tensor]]:
    """A network at initialization, of one logit; the identity holds at any parameters."""
    x, label = digits(config.rows + config.targets, seed=seed)
    x = x @ torch.linalg.svd(x, full_matrices=False).Vh[: config.components].T
    x, y = (x / x.std(0)).to(config.device), (label % 2).double()[:, None].to(config.device)
    model = seeded(lambda: nn.Sequential(nn.Linear(config.components, config.width), nn.Tanh(), nn.Linear(config.width, 1)), seed)
    loss, n = nn.functional.binary_cross_entropy_with_logits, config.rows
    return Problem(model, loss, (x[:n], y[:n]), dtype=torch.float64, device=config.device), (x[n:], y[n:])


def prediction(outputs: Tensor, targets: Tensor) -> Tensor:
    """What the linear model predicts."""
    return outputs[:, 0]


def logit(outputs: Tensor, targets: Tensor) -> Tensor:
    """Of the right class, of which the loss is a function."""
    return (outputs * (2 * targets - 1))[:, 0]


@study(
    "influence/trak",
    claims=[INVARIANCE],
    tiny=TrakConfig(seeds=3, rows=120),
    small=TrakConfig(),
    large=TrakConfig(seeds=32, n=1000, p=200, rows=1700, components=20, width=8, targets=90),
)
def invariance(config: TrakConfig) -> Iterator[Finding | Series | Stage]:
    """Square projections of several seeds against the closed form and against none; then narrower ones."""
    figure = Series("narrower", "What a narrower projection costs", x="directions / parameters", y="relative change of the scores")
    figure.claim = INVARIANCE.key
    shares = np.array([0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 1.0])
    for name, make, output in (("linear regression", regression, prediction), ("network on digits", network, logit)):
        yield Stage(name)
        square, half, curves = [], [], []
        for seed in config.replica_seeds:
            problem, targets = make(config, seed)
            whole = trak(problem, targets, k="all", output=output)
            expected, size = whole, float(whole.norm())
            if name == "linear regression":
                x, y = (t.cpu().numpy() for t in problem.batches[0].content)
                theta = problem.params["weight"].cpu().numpy()[0]
                expected = torch.as_tensor(regression_scores(x, targets[0].cpu().numpy(), 2 * (y[:, 0] - x @ theta))).to(whole)

            def changed(k: int) -> float:
                return float((trak(problem, targets, k=k, output=output, seed=seed) - expected).norm()) / size  # noqa: B023 called at once

            square.append(changed(problem.P))
            half.append(changed(problem.P // 2))
            curves.append([changed(max(1, round(s * problem.P))) for s in shares])
        yield INVARIANCE.check(predicted=0.0, measured=np.array(square), setting=f"P square, {name}")
        yield INVARIANCE.control_check(predicted=0.0, measured=np.array(half), setting=f"half of the columns, {name}")
        figure.line(name, shares, np.median(curves, 0), mark="points")
    # of a vector in the whitened space, a random subspace leaves out the share 1 − k/p of the square
    yield figure.line("√(1 − k/p): isotropic features", np.linspace(0.1, 1, 91), np.sqrt(1 - np.linspace(0.1, 1, 91)), role="predicted")
