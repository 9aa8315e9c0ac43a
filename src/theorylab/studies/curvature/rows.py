"""The gradients of single rows add up to the gradient, and their norms can be had without forming them, where rows do not see each other.

A layer's gradient for one row is a sum of outer products of what goes in and what comes back; its norm follows from their inner products
alone. So the gradient of every row, or its norm, costs little more than one gradient of all. That holds for whatever treats rows apart.
Batch normalization in training does not: a row's output depends on its batch, and what a row would contribute alone is another thing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from theorylab.core.claim import Claim, Equals, Finding
from theorylab.core.config import Config, setting
from theorylab.core.problem import Problem
from theorylab.core.series import Series, Stage
from theorylab.core.source import Source
from theorylab.core.study import study
from theorylab.data.digits import digits
from theorylab.instruments.rows import per_example_grad_norms, per_example_grads
from theorylab.models.cnn import cnn
from theorylab.models.mlp import mlp
from theorylab.models.seeded import seeded

SUM = Claim(
    "curvature/rows/sum",
    "The mean of the rows' gradients is the gradient of the mean loss, and the norms computed without forming them are their norms.",
    formula=r"\frac1n\sum_i \nabla\ell_i(\theta) = \nabla L(\theta), \qquad "
    r"\|\nabla_W\ell_i\|^2 = \sum_{t,t'}\langle g_t, g_{t'}\rangle\langle a_t, a_{t'}\rangle",
    source=Source(
        "Goodfellow 2015", "Section 4; over several places of a row Li et al. 2022, arXiv:2110.05679, Section 4", "arXiv:1510.01799"
    ),
    kind="identity",
    relation=Equals(atol=1e-10),
    control="batch normalization in training, with every row's gradient taken as if the row were alone",
    reading="Per-row gradients are what privacy clips, what influence compares, and what tells the noise of a minibatch. They exist only "
    "where the loss is a mean of losses that each see one row: not with batch statistics, nor with losses that contrast rows.",
)


@dataclass(frozen=True, kw_only=True)
class RowsConfig(Config):
    """A seed is an initial network of each kind; the digits are the same for all."""

    seeds: int = setting(4, "replicas, each with its own random numbers", low=1)
    rows: int = setting(64, "digits", low=4, high=1797)
    width: int = setting(16, "hidden units, channels, or twice the attention's feed-forward units", low=4)
    alone: int = setting(16, "rows whose gradients are taken one by one in the control", low=2)


def attention(width: int) -> nn.Sequential:
    """A transformer's layer on the eight rows of pixels as tokens, and a linear head on all of them."""
    layer = nn.TransformerEncoderLayer(8, 2, dim_feedforward=2 * width, dropout=0.0, activation="gelu", batch_first=True)
    return nn.Sequential(layer, nn.Flatten(), nn.Linear(64, 10))


def errors(problem: Problem) -> tuple[float, Tensor, Tensor]:
    """Error of the mean gradient relative to its norm; and every row's norm, from its gradient and without it."""
    grads, whole = per_example_grads(problem), problem.gradient()
    return float((grads.mean(0) - whole).norm() / whole.norm()), grads.norm(dim=1), per_example_grad_norms(problem)


def one_by_one(problem: Problem, data: tuple[Tensor, Tensor]) -> float:
    """The same error where each row's gradient is that of a batch of the row alone, in training mode."""
    x, y = data
    alone = [Problem(problem.model, problem.criterion, (x[i : i + 1], y[i : i + 1]), train=True).gradient() for i in range(len(y))]
    whole = problem.gradient()
    return float((torch.stack(alone).mean(0) - whole).norm() / whole.norm())


@study(
    "curvature/rows",
    claims=[SUM],
    tiny=RowsConfig(seeds=1, rows=12, width=4, alone=6),
    small=RowsConfig(),
    large=RowsConfig(seeds=16, rows=512, width=64, alone=64),
)
def rows(config: RowsConfig) -> Iterator[Finding | Series | Stage]:
    """Row gradients of three kinds of network against the gradient and against their norms."""
    x, y = (t.to(config.device) for t in digits(config.rows, dtype=config.torch_dtype))
    images, tokens = x.reshape(-1, 1, 8, 8), x.reshape(-1, 8, 8)
    width = config.width
    kinds: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
        "MLP": (partial(mlp, [64, width, width, 10]), x),
        "CNN": (partial(cnn, [1, width, width], 10, norm="group"), images),
        "attention": (partial(attention, width), tokens),
    }
    figure = Series("norms", "Norms without gradients", x="‖∇ℓᵢ‖ of the formed gradient", y="‖∇ℓᵢ‖ without it", claim=SUM.key)
    longest = 0.0
    for name, (make, inputs) in kinds.items():
        yield Stage(name)
        sums, norms = [], []
        for seed in config.replica_seeds:
            net = seeded(make, seed, dtype=config.torch_dtype).to(config.device)
            gap, formed, ghost = errors(Problem(net, nn.functional.cross_entropy, (inputs, y)))
            sums.append(gap)
            norms.append(float(((ghost - formed).abs() / formed).max()))
            if seed == config.seed:
                figure.line(name, formed, ghost, mark="points")
                longest = max(longest, float(formed.max()))
        yield SUM.check(predicted=0.0, measured=sums, setting=f"{name}, ‖mean of rows − gradient‖ / ‖gradient‖")
        yield SUM.check(predicted=0.0, measured=norms, setting=f"{name}, largest relative error of a norm")

    yield Stage("batch normalization")
    data = images[: config.alone], y[: config.alone]
    apart = []
    for seed in config.replica_seeds:
        net = seeded(partial(cnn, [1, width, width], 10, norm="batch"), seed, dtype=config.torch_dtype).to(config.device)
        apart.append(one_by_one(Problem(net, nn.functional.cross_entropy, data, train=True), data))
    yield SUM.control_check(predicted=0.0, measured=apart, setting="BatchNorm in training, rows one by one")
    yield figure.line("equal", [0.0, longest], [0.0, longest], role="predicted")
