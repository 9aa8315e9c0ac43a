"""Gradients of rows are clipped without being formed, and one row then moves their sum by no more than the clipping norm.

The gradient of a row in a weight that is used at several places is a sum of outer products of inputs and slopes. Its norm follows from the
inner products of both at all pairs of places; the pairs of different places must not be left out, and a weight that two layers share is one
parameter with one norm. Ghost clipping takes the norms so, and weighs the rows before they are summed.

The sum of clipped rows moves by at most C when a row comes or goes, whatever is in the row. That is all that the noise of private training
rests on. It is lost where the sum is clipped and not its rows, and where a row reaches the gradients of others, as through batch
normalization. Rows here are digits, some of them scaled up a thousand times and given a wrong label.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from theorylab.core.claim import AtMost, Claim, Equals, Finding
from theorylab.core.config import Config, setting
from theorylab.core.problem import Problem
from theorylab.core.series import Series, Stage
from theorylab.core.source import Source
from theorylab.core.study import study
from theorylab.data.digits import digits
from theorylab.instruments.clipping import clipped_sum
from theorylab.instruments.rows import per_example_grad_norms
from theorylab.models.cnn import cnn
from theorylab.models.mlp import mlp
from theorylab.models.seeded import seeded

GHOST_NORM = Claim(
    "private_learning/clipping/ghost_norm",
    "The norm of a row's gradient in a weight follows from inner products of the layer's inputs and of the slopes of its outputs at all "
    "pairs of places, without the gradient.",
    formula=r"\|\nabla_W \ell_b\|^2 = \sum_{t,t'} \langle g_{bt}, g_{bt'}\rangle\, \langle a_{bt}, a_{bt'}\rangle",
    source=Source(
        "Goodfellow 2015",
        "Section 4 (one place); for sequences Li et al. 2022, arXiv:2110.05679, Section 4 (ghost clipping)",
        "arXiv:1510.01799",
    ),
    kind="identity",
    relation=Equals(atol=1e-10),
    control="only the terms of equal places; a tied weight taken for two, without the cross term",
    reading="Clipping every row costs hardly more than one gradient of all rows, because a gradient of a layer is a product whose factors "
    "the backward pass has anyway. With T places and few units the T² pairs cost more than the gradient itself, which is then formed.",
)

SENSITIVITY = Claim(
    "private_learning/clipping/sensitivity",
    "Adding or removing one row changes the sum of clipped gradients by at most the clipping norm.",
    formula=r"\Bigl\|\sum_{b\in D} \bar g_b - \sum_{b\in D\setminus\{i\}} \bar g_b\Bigr\| \le C, "
    r"\qquad \bar g_b = g_b \min\bigl(1, C/\|g_b\|\bigr)",
    source=Source("Abadi et al. 2016", "Algorithm 1 and Section 3.1 (norm clipping)", "arXiv:1607.00133"),
    kind="inequality",
    relation=AtMost(rtol=1e-6),
    control="the summed gradient clipped in place of the rows'; batch normalization in training mode",
    reading="However strange a row is, it cannot be seen by more than C in the sum, and noise of that size hides it. The bound needs every "
    "row's gradient to be its own: with batch normalization one row changes the gradients of all others.",
)


@dataclass(frozen=True, kw_only=True)
class ClippingConfig(Config):
    """A seed is an initial network; the digits are the same for all."""

    seeds: int = setting(3, "replicas, each with its own random numbers", low=1)
    rows: int = setting(200, "digits", low=8, high=1700)
    scaled: int = setting(20, "further rows with pixels scaled up and a wrong label", low=2, high=90)
    clip: float = setting(1.0, "clipping norm C", low=1e-3)
    scale: float = setting(1000.0, "by what those rows are scaled", low=1.0)


class Sequence(nn.Module):
    """A digit as eight rows of pixels: a linear layer on each, a norm, another layer, the mean over places."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(8, 64), nn.LayerNorm(64), nn.Linear(64, 64)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Scores (n, 10)."""
        h = torch.tanh(self.norm(self.first(x.unflatten(1, (8, 8)))))
        return self.head(torch.tanh(self.second(h)).mean(1))


class Tied(nn.Module):
    """A digit as words, its rounded pixels in the middle row: embedded, mixed, and scored by the embedding itself."""

    def __init__(self, tied: bool = True) -> None:
        super().__init__()
        self.embed, self.mix = nn.Embedding(20, 32), nn.Linear(32, 32)
        self.head = nn.Linear(32, 20, bias=False)
        if tied:
            self.head.weight = self.embed.weight
        else:
            self.head.weight.data = self.embed.weight.data.clone()

    def forward(self, x: Tensor) -> Tensor:
        """Scores of the twenty words (n, 20), of which ten are digits."""
        words = (3 * x.unflatten(1, (8, 8))[:, 3] + 10).round().clamp(0, 19).long()  # (n, place)
        return self.head(torch.tanh(self.mix(self.embed(words))).mean(1))


class Images(nn.Module):
    """A network on digits as images of one channel."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """Scores (n, 10)."""
        return self.net(x.unflatten(1, (1, 8, 8)))


ENTROPY = nn.functional.cross_entropy
FLOOR = 1e-3
"""Of the figure: a row that is fitted exactly moves nothing, and zero has no place on a logarithmic axis."""
KINDS: dict[str, Callable[[], nn.Module]] = {
    "dense": partial(mlp, [64, 32, 10]),
    "sequence, layer norm": Sequence,
    "convolutions, group norm": lambda: Images(cnn([1, 16, 32], 10, norm="group", activation="tanh")),
    "tied embedding": Tied,
}


def formed_norms(net: nn.Module, x: Tensor, y: Tensor, params: list[Tensor] | None = None) -> Tensor:
    """Norms of the rows' gradients in some parameters (all by default), (n,): one backward pass a row."""
    params, norms = params or list(net.parameters()), []
    for i in range(len(x)):
        grads = torch.autograd.grad(ENTROPY(net(x[i : i + 1]), y[i : i + 1]), params)
        norms.append(torch.stack([g.square().sum() for g in grads]).sum().sqrt())
    return torch.stack(norms)


def place_by_place(net: Sequence, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Norms (n,) of the gradients in the second layer's weight, by all pairs of places, and by the equal ones alone."""
    a = torch.tanh(net.norm(net.first(x.unflatten(1, (8, 8)))))
    out = net.second(a)
    (g,) = torch.autograd.grad(ENTROPY(net.head(torch.tanh(out).mean(1)), y, reduction="sum"), [out])
    pairs = torch.einsum("nto,nso->nts", g, g) * torch.einsum("ntd,nsd->nts", a, a)
    return pairs.sum((1, 2)).sqrt().detach(), pairs.diagonal(dim1=1, dim2=2).sum(1).sqrt().detach()


def gap(measured: Tensor, true: Tensor) -> float:
    """Largest relative difference of the rows' norms."""
    return float(((measured - true).abs() / true).max())


def moves(total: Callable[[Tensor], Tensor], kept: Tensor, rows: Tensor) -> Tensor:
    """By how much a sum over the ``kept`` rows moves when one of ``rows`` leaves them, or joins them where it is not among them."""
    whole = total(kept)
    return torch.stack([(whole - total(kept[kept != i] if bool((kept == i).any()) else torch.cat([kept, i[None]]))).norm() for i in rows])


def without_own_statistics(net: nn.Module, x: Tensor, y: Tensor, clip: float) -> Tensor:
    """The sum of clipped gradients of the rows' losses in a network with batch normalization, as if they were the rows' own."""
    params = list(net.parameters())
    losses = ENTROPY(net(x), y, reduction="none")
    total = x.new_zeros(sum(p.numel() for p in params))
    for loss in losses:
        g = torch.cat([t.reshape(-1) for t in torch.autograd.grad(loss, params, retain_graph=True)])
        total += g * (clip / g.norm()).clamp(max=1.0)
    return total


@study(
    "private_learning/clipping",
    claims=[GHOST_NORM, SENSITIVITY],
    tiny=ClippingConfig(seeds=1, rows=30, scaled=4),
    small=ClippingConfig(),
    large=ClippingConfig(seeds=16, rows=1500, scaled=90),
)
def clipping(config: ClippingConfig) -> Iterator[Finding | Series | Stage]:
    """Compare norms with those of formed gradients, then leave out every row in turn."""
    x, y = (t.to(config.device) for t in digits(config.rows + config.scaled, dtype=config.torch_dtype))
    yield Stage("ghost norms")
    yield from check_norms(config, x[: config.rows], y[: config.rows])
    yield Stage("sensitivity")
    strange = torch.arange(len(x), device=config.device) >= config.rows
    x = torch.where(strange[:, None], config.scale * x, x)
    y = torch.where(strange, (y + 1) % 10, y)
    yield from check_sensitivity(config, x, y)


def check_norms(config: ClippingConfig, x: Tensor, y: Tensor) -> Iterator[Finding | Series]:
    """Every kind of layer by the instrument and by formed gradients; then with terms left out."""
    figure = Series("ghost", "Norms without gradients", x="norm of the formed gradient", y="norm by inner products", claim=GHOST_NORM.key)
    figure.x_scale = figure.y_scale = "log"
    for kind, make in KINDS.items():
        gaps, true, ghost = [], x.new_zeros(0), x.new_zeros(0)
        for seed in config.replica_seeds:
            net = seeded(make, seed, dtype=config.torch_dtype).to(config.device)
            true, ghost = formed_norms(net, x, y), per_example_grad_norms(Problem(net, ENTROPY, (x, y)))
            gaps.append(gap(ghost, true))
        figure.line(kind, true, ghost, mark="points")
        yield GHOST_NORM.check(predicted=0.0, measured=gaps, setting=f"{kind}, largest relative gap")

    pairs, equal, apart, shown = [], [], [], []
    for seed in config.replica_seeds:
        net = seeded(Sequence, seed, dtype=config.torch_dtype).to(config.device)
        all_pairs, same = place_by_place(net, x, y)
        true = formed_norms(net, x, y, [net.second.weight])
        pairs.append(gap(all_pairs, true))
        equal.append(gap(same, true))
        shown = shown or [true, same]
        tied, untied = (seeded(partial(Tied, t), seed, dtype=config.torch_dtype).to(config.device) for t in (True, False))
        untied.load_state_dict(tied.state_dict())
        apart.append(gap(per_example_grad_norms(Problem(untied, ENTROPY, (x, y))), formed_norms(tied, x, y)))
    yield GHOST_NORM.check(predicted=0.0, measured=pairs, setting="one weight, the formula itself")
    yield GHOST_NORM.control_check(predicted=0.0, measured=equal, setting="equal places alone")
    yield GHOST_NORM.control_check(predicted=0.0, measured=apart, setting="tied weight as two")
    yield figure.line("equal places alone", *shown, role="control", mark="points")


def check_sensitivity(config: ClippingConfig, x: Tensor, y: Tensor) -> Iterator[Finding | Series]:
    """How far the sum moves with each row: clipped by rows, clipped as a whole, and through batch normalization."""
    usual, strange = torch.arange(config.rows), torch.arange(config.rows, len(x))
    last = len(usual) + 1 + torch.arange(len(strange))  # where the figure has them: of all rows they move the sum most
    title = "One row moves the sum by C at most"
    figure = Series("sensitivity", title, x="row, by how far it moves the sum", y="movement / C", claim=SENSITIVITY.key, y_scale="log")
    nets: dict[str, Callable[[], nn.Module]] = {
        "MLP": partial(mlp, [64, 32, 10], activation="relu"),
        "CNN": lambda: Images(cnn([1, 8, 16], 10, activation="relu")),
    }
    for name, make in nets.items():
        rows_clipped, sum_clipped = [], []
        for seed in config.replica_seeds:
            net = seeded(make, seed, dtype=config.torch_dtype).to(config.device)

            def by_rows(rows: Tensor, net: nn.Module = net) -> Tensor:
                return clipped_sum(Problem(net, ENTROPY, (x[rows], y[rows])), config.clip).total

            def as_whole(rows: Tensor, net: nn.Module = net) -> Tensor:
                total = len(rows) * Problem(net, ENTROPY, (x[rows], y[rows])).gradient()
                return total * (config.clip / total.norm()).clamp(max=1.0)

            leaving = usual if name == "MLP" else usual[:: max(1, len(usual) // 20)]
            rows_clipped.append(moves(by_rows, usual, torch.cat([leaving, strange])) / config.clip)
            sum_clipped.append(moves(as_whole, usual, strange) / config.clip)
        yield SENSITIVITY.check(predicted=1.0, measured=torch.cat(rows_clipped), setting=f"{name}, movement / C")
        yield SENSITIVITY.control_check(predicted=1.0, measured=torch.cat(sum_clipped), setting=f"{name}, the sum clipped as a whole")
        if name == "MLP":
            figure.line("rows clipped", torch.arange(len(x)) + 1, rows_clipped[0].sort().values.clamp(min=FLOOR))
            figure.line("the sum clipped as a whole", last, sum_clipped[0].sort().values.clamp(min=FLOOR), role="control")

    def normalized() -> nn.Module:
        return nn.Sequential(nn.Linear(64, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 10))

    net = seeded(normalized, config.seed, dtype=config.torch_dtype).to(config.device)
    some = strange[:4]
    joint = moves(lambda rows: without_own_statistics(net, x[rows], y[rows], config.clip), usual, some) / config.clip
    yield SENSITIVITY.control_check(predicted=1.0, measured=joint, setting="batch normalization in training mode")
    figure.line("batch normalization", last[-len(some) :], joint.sort().values, role="control", mark="points")
    yield figure.line("C", [1, len(x)], [1.0, 1.0], role="predicted")
