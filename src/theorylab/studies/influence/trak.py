"""A random projection changes nothing in TRAK as long as it loses nothing.

TRAK regresses on gradients that are projected to a few dimensions. As with any regression, the scores depend on the space that the features
span and not on their basis: projected to as many dimensions as there are parameters, by any invertible matrix, they are those of the
gradients themselves. Projected to half as many they are not, and what the projection costs is what it blurs.

The features are gradients in the first layer of a small network, which span all of its dimensions: those of a softmax's last layer never
do, for adding the same to all logits changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from theorylab.core.claim import Claim, Equals, Finding
from theorylab.core.config import Config, setting
from theorylab.core.problem import Problem
from theorylab.core.series import Series, Stage
from theorylab.core.source import Source
from theorylab.core.study import study
from theorylab.instruments.rows import per_example_grads
from theorylab.instruments.trak import margin
from theorylab.instruments.trak import trak as measure
from theorylab.models.mlp import mlp
from theorylab.models.seeded import seeded
from theorylab.theory.influence import regression_scores

PROJECTION_INVARIANCE = Claim(
    "influence/trak/projection_invariance",
    "TRAK's scores do not depend on the projection, if it is invertible.",
    formula=r"\phi_j^\top P\,(P^\top\Phi^\top\Phi P)^{-1} P^\top\phi_i = \phi_j^\top (\Phi^\top\Phi)^{-1}\phi_i",
    source=Source(
        "Park et al. 2023",
        "Section 3 (the TRAK estimator); the identity is that of least squares under a change of basis",
        "arXiv:2303.14186",
    ),
    kind="identity",
    relation=Equals(atol=1e-9),
    control="a projection to half as many dimensions",
    reading="The projection is there to make a regression on millions of gradients' entries possible, and it regularizes: with at least as "
    "many dimensions as rows the regression fits noise, with few it cannot tell alike rows apart. In between it must be tuned.",
)


@dataclass(frozen=True, kw_only=True)
class TrakConfig(Config):
    """A seed is a network with its data, normal inputs with random labels, and a projection."""

    rows: int = setting(80, "rows n", low=10)
    targets: int = setting(10, "rows that are attributed", low=1)
    inputs: int = setting(4, "inputs d", low=1)
    hidden: int = setting(4, "hidden units; the first layer has hidden · (d + 1) parameters, fewer than the rows", low=1)


def setup(config: TrakConfig, seed: int) -> tuple[Problem, tuple[Tensor, Tensor]]:
    """A network in its first layer's parameters on the training rows, and other rows."""
    generator = torch.Generator().manual_seed(seed)
    n = config.rows + config.targets
    x = torch.randn(n, config.inputs, generator=generator, dtype=torch.float64).to(config.device)
    y = torch.randint(0, 3, (n,), generator=generator).to(config.device)
    net = seeded(partial(mlp, [config.inputs, config.hidden, 3]), seed).to(config.device)
    names = [name for name, _ in net.named_parameters()][:2]
    train = Problem(net, cross_entropy, (x[: config.rows], y[: config.rows]), params=names)
    return train, (x[config.rows :], y[config.rows :])


def direct(problem: Problem, test: tuple[Tensor, Tensor]) -> Tensor:
    """The scores without a projection, from the gradients of the margins."""
    features, targets = (
        per_example_grads(Problem(problem.model, margin, data, params=list(problem.params))) for data in (problem.batches[0].content, test)
    )
    with problem.safe(), torch.no_grad():
        p = problem.outputs(0).softmax(1)
    misses = 1 - p[torch.arange(problem.n), problem.batches[0].content[1]]
    return torch.from_numpy(regression_scores(*(t.cpu().numpy() for t in (features, targets, misses)))).to(p)


@study(
    "influence/trak",
    claims=[PROJECTION_INVARIANCE],
    tiny=TrakConfig(seeds=2, rows=30, inputs=3, hidden=3),
    small=TrakConfig(),
    large=TrakConfig(seeds=32, rows=2000, inputs=20, hidden=20),
)
def trak(config: TrakConfig) -> Iterator[Finding | Series | Stage]:
    """Project to all dimensions, and to fewer."""
    yield Stage("projections")
    fractions = (0.125, 0.25, 0.5, 0.75, 1.0)
    errors: dict[float, list[float]] = {fraction: [] for fraction in fractions}
    for seed in config.replica_seeds:
        problem, test = setup(config, seed)
        expected = direct(problem, test)
        for fraction, kept in errors.items():
            found = measure(problem, test, k=max(1, round(fraction * problem.P)), seed=seed)
            kept.append(float((found - expected).norm() / expected.norm()))
    yield PROJECTION_INVARIANCE.check(predicted=0.0, measured=errors[1.0], setting="k = p, relative distance of the scores")
    yield PROJECTION_INVARIANCE.control_check(predicted=0.0, measured=errors[0.5], setting="k = p / 2")

    means = [sum(kept) / len(kept) for kept in errors.values()]
    title = "A projection changes the scores until it loses nothing"
    figure = Series("dimensions", title, x="k / p", y="relative distance", claim=PROJECTION_INVARIANCE.key, y_scale="log")
    figure.line("fewer dimensions", fractions[:-1], means[:-1], role="control", mark="points")
    yield figure.line("k = p", fractions[-1:], [max(means[-1], 1e-16)], mark="points")
