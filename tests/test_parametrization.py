"""Parametrizations: the multipliers of the tables, training that is the table's, and coordinate checks whose slopes are known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from theorylab.learning.coordinate_check import coordinate_check
from theorylab.learning.optimizers.adam import adam
from theorylab.learning.optimizers.sgd import sgd
from theorylab.learning.parametrization import Multipliers, Parametrized, base_shapes, mup, tangent_kernel
from theorylab.learning.population import Population
from theorylab.models.seeded import seeded
from theorylab.models.transformer import Transformer
from theorylab.theory.optimizers import mup_exponents

BASE, WIDE = 8, 32
M = WIDE / BASE


class Zoo(nn.Module):
    """Embedding, attention-like projections, a convolution, a norm, and a head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(7, width)
        self.hidden = nn.Linear(width, width)
        self.mix = nn.Conv1d(width, 2 * width, 3, padding=1)
        self.norm = nn.LayerNorm(2 * width)
        self.head = nn.Linear(2 * width, 5)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.hidden(self.table(tokens)))
        h = self.norm(self.mix(h.mT).mT)
        return self.head(h).mean(1) * self.scale


TABLE = {  # name: (init, step with Adam, step with SGD), from Table 3 of Yang et al., by hand
    "table.weight": (1, 1, M),
    "hidden.weight": (1, 1 / M, 1),
    "hidden.bias": (M**0.5, 1, M),
    "mix.weight": (1, 1 / M, 1),
    "mix.bias": (M**0.5, 1, M),
    "norm.weight": (1, 1, M),
    "norm.bias": (1, 1, M),
    "head.weight": (M**-0.5, 1 / M, 1 / M),
    "head.bias": (M**0.5, 1, 1),
    "scale": (1, 1, 1),
}


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_multipliers_are_those_of_the_table(optimizer: Literal["adam", "sgd"]) -> None:
    found = base_shapes(Zoo, BASE, WIDE, optimizer=optimizer)
    assert {k: (m.init, m.step) for k, m in found.items()} == {
        k: (init, a if optimizer == "adam" else b) for k, (init, a, b) in TABLE.items()
    }


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_multipliers_are_the_exponents_of_the_theory(optimizer: Literal["adam", "sgd"]) -> None:
    """Modules draw weights with a standard deviation of fan-in^(-1/2) already; the multiplier does the rest."""
    found = base_shapes(Zoo, BASE, WIDE, optimizer=optimizer)
    roles: dict[str, tuple[Literal["input", "hidden", "output"], float]] = {
        "table.weight": ("input", 0.0),
        "hidden.weight": ("hidden", -0.5),
        "head.weight": ("output", -0.5),
    }
    for name, (role, drawn) in roles.items():
        init, step = mup_exponents(role, optimizer)
        assert found[name].init == pytest.approx(M ** (init - drawn))
        assert found[name].step == pytest.approx(M**step)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_training_is_the_tables_with_a_step_size_a_parameter(optimizer: Literal["adam", "sgd"]) -> None:
    """p = a·v with one step size equals p with its own: torch.optim with parameter groups, as muP is usually written."""
    tokens = torch.randint(0, 7, (6, 4), generator=torch.Generator().manual_seed(0))
    y = torch.randn(6, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ours = seeded(lambda: mup(Zoo, BASE, optimizer=optimizer)(WIDE), 3)
    theirs = seeded(lambda: Zoo(WIDE), 3)
    multipliers = base_shapes(Zoo, BASE, WIDE, optimizer=optimizer)
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            p.mul_(multipliers[name].init)
    lr = 1e-2
    groups = [{"params": [p], "lr": lr * multipliers[k].step} for k, p in theirs.named_parameters()]
    make: Callable[..., torch.optim.Optimizer] = torch.optim.Adam if optimizer == "adam" else torch.optim.SGD
    options: dict[str, Any] = {"eps": 1e-30} if optimizer == "adam" else {"momentum": 0.9}
    pairs = [(ours, make(ours.parameters(), lr=lr, **options)), (theirs, make(groups, lr=lr, **options))]
    for _ in range(20):
        for model, step in pairs:
            step.zero_grad()
            nn.functional.mse_loss(model(tokens), y).backward()
            step.step()
        assert torch.allclose(ours(tokens), theirs(tokens), rtol=1e-8, atol=1e-10)


def test_at_the_base_width_nothing_changes_and_populations_train_it() -> None:
    def net(width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 1))

    x = torch.randn(10, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    runs = []
    for make in (mup(net, BASE), net):
        run = Population(
            lambda make=make: make(BASE), nn.functional.mse_loss, (x, x[:, :1]), optimizer=adam(1e-2), seeds=[0, 1], mode="vmap"
        )
        run.train(5)
        runs.append(run.losses())
    assert torch.equal(*runs)
    wide = Population(lambda: mup(net, BASE)(WIDE), nn.functional.mse_loss, (x, x[:, :1]), optimizer=sgd(0.1), seeds=[0, 1], mode="vmap")
    alone = Population(lambda: mup(net, BASE)(WIDE), nn.functional.mse_loss, (x, x[:, :1]), optimizer=sgd(0.1), seeds=[0, 1], mode="loop")
    before = wide.losses()
    wide.train(20)
    alone.train(20)
    assert torch.allclose(wide.losses(), alone.losses(), rtol=1e-10)
    assert bool((wide.losses() < before).all())


def test_the_tangent_kernel_parametrization_keeps_the_network_and_divides_its_steps() -> None:
    ours, theirs = seeded(lambda: tangent_kernel(Zoo, BASE)(WIDE), 3), seeded(lambda: Zoo(WIDE), 3)
    tokens = torch.randint(0, 7, (6, 4), generator=torch.Generator().manual_seed(0))
    assert torch.allclose(ours(tokens), theirs(tokens), rtol=1e-12)
    assert ours.factors == {"hidden.weight": M**-0.5, "mix.weight": M**-0.5, "head.weight": M**-0.5}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda width: nn.Linear(3, 2), "must use its width"),
        (lambda width: nn.Sequential(*(nn.Linear(2, 2) for _ in range(width))), "same parameters at every width"),
        (lambda width: nn.Conv1d(width, width, width), "grows along 3 axes"),
        (lambda width: nn.Conv1d(2, 2, width), "neither its outputs nor its inputs"),
    ],
)
def test_modules_that_do_not_fit_are_refused(make: Callable[[int], nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        base_shapes(make, BASE, WIDE)
    with pytest.raises(ValueError, match="optimizer must be"):
        base_shapes(Zoo, BASE, WIDE, optimizer="muon")  # type: ignore[arg-type]


def test_a_coordinate_check_of_one_linear_layer_is_known_in_closed_form() -> None:
    """h = w·x with x = 1 in d coordinates: sign steps move h by η·d·steps, so the slope is 1; with steps divided by d, 0."""

    class Sum(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.line = nn.Linear(width, 1, bias=False)
            self.width = width

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.line(x.expand(-1, self.width))

    batch = torch.ones(1, 1), torch.full((1, 1), 100.0)
    free = coordinate_check(Sum, [4, 8, 16], nn.functional.mse_loss, batch, optimizer=lambda p: torch.optim.Adam(p, lr=1e-3, eps=0.0))
    assert free.slopes["line"].value == pytest.approx(1.0, abs=1e-3)
    tamed = coordinate_check(
        mup(Sum, 4), [4, 8, 16], nn.functional.mse_loss, batch, optimizer=lambda p: torch.optim.Adam(p, lr=1e-3, eps=0.0)
    )
    assert tamed.slopes["model.line"].value == pytest.approx(0.0, abs=1e-3)
    assert tamed.changes["model.line"].shape == (3, 4)
    assert tamed.plot().get_xscale() == "log"


def test_the_check_leaves_the_global_generator_alone_and_repeats_itself() -> None:
    def net(width: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 1))

    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    state = torch.get_rng_state()
    first, second = (coordinate_check(net, [4, 6, 8], nn.functional.mse_loss, (x, x[:, :1]), seeds=2) for _ in range(2))
    assert torch.equal(state, torch.get_rng_state())
    assert first.slopes == second.slopes
    assert set(first.slopes) == {"1", "2", "3"}  # a reshaped input does not change


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widths": [4, 8]}, "at least three different"),
        ({"widths": [4, 8, 8]}, "at least three different"),
        ({"seeds": 1}, "seeds must be at least 2"),
        ({"seeds": [3, 5, 3]}, r"seeds must be different, .* got \(3, 5, 3\)"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"steps": 2.5}, "steps must be at least 1 and whole, got 2.5"),
        ({"optimizer": lambda p: torch.optim.LBFGS(p)}, "optimizer must step from a gradient alone, got LBFGS"),
        ({"loss": lambda out, y: (out - y)[:1]}, r"loss must return a scalar, or one loss a row \(2,\), got shape \(1, 1\)"),
        ({"data": (torch.ones(2, 3), torch.ones(2))}, r"outputs and targets of one shape, got \(2, 1\) and \(2,\)"),
        ({"optimizer": lambda p: torch.optim.SGD(p, lr=1e30), "steps": 4}, "is not finite"),
    ],
)
def test_bad_input(options: dict[str, Any], message: str) -> None:
    def net(width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(3, width), nn.Linear(width, 1))

    arguments = {"widths": [4, 6, 8], "loss": nn.functional.mse_loss, "data": (torch.ones(2, 3), torch.ones(2, 1))} | options
    with pytest.raises(ValueError, match=message):
        coordinate_check(net, **arguments)


def test_a_loss_of_each_row_is_averaged_and_widths_may_come_one_by_one() -> None:
    def net(width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(3, width), nn.Linear(width, 1))

    def rows(out: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (out - y).square().mean(1)

    data = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), torch.ones(6, 1)
    mean = coordinate_check(net, [4, 6, 8], lambda out, y: rows(out, y).mean(), data, seeds=2)
    assert coordinate_check(net, (w for w in (8, 4, 6)), rows, data, seeds=(s for s in (0, 1))).slopes == mean.slopes


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"make_model": nn.Linear(3, 1)}, TypeError, r"make_model must be a function make_model\(width\) .* got Linear"),
        ({"make_model": lambda _: nn.Linear(3, 1)}, ValueError, "wider networks of larger widths, got one of the same shapes at 4 and 6"),
        ({"widths": 8}, TypeError, "widths must be a list of whole numbers"),
        ({"widths": [4.5, 6, 8]}, TypeError, "widths must be a list of whole numbers"),
        ({"data": torch.ones(2, 3)}, TypeError, r"data must be one batch \(x, y\), got Tensor"),
    ],
)
def test_what_is_no_argument_is_named(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"make_model": lambda width: nn.Sequential(nn.Linear(3, width), nn.Linear(width, 2)), "widths": [4, 6, 8]} | change
    with pytest.raises(error, match=message):
        coordinate_check(**arguments)


def test_factors_divide_the_parameters_that_are_trained() -> None:
    net = Parametrized(nn.Linear(2, 2), {"weight": 4.0, "bias": 1.0})
    assert net.factors == {"weight": 4.0}
    assert [n for n, _ in net.named_parameters()] == ["model.weight", "model.bias"]


def test_an_embedding_that_is_tied_to_the_readout_is_refused() -> None:
    """As one parameter it would get one of two multipliers, and the outputs would blow up with the width."""

    def tied(width: int) -> nn.Module:
        net = nn.Sequential(nn.Embedding(10, width), nn.Linear(width, width), nn.Linear(width, 10, bias=False))
        net[2].weight = net[0].weight
        return net

    with pytest.raises(ValueError, match=r"parameter 0\.weight must be used in one way.*weight of a Linear"):
        mup(tied, 8)(32)


def test_the_tables_of_a_transformer_are_embeddings() -> None:
    found = base_shapes(lambda width: Transformer(11, width, 11, layers=1, context=5), 16, 64)
    assert found["embed.weight"] == found["position.weight"] == Multipliers(1.0, 1.0)
    assert found["head.weight"] == Multipliers(0.5, 0.25)


@pytest.mark.parametrize(("heads", "power", "expected"), [(False, 0.5, 0.5), (False, 1.0, 0.0), (True, 0.5, 0.0)])
def test_scores_of_attention_need_heads_of_one_size_or_another_scale(heads: bool, power: float, expected: float) -> None:
    """What mup cannot rewrite: with 1/√d the change of the scores grows as √d."""

    class Attention(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.inputs, self.query, self.key = nn.Linear(4, width), nn.Linear(width, width), nn.Linear(width, width)
            self.value, self.out, self.scores = nn.Linear(width, width), nn.Linear(width, 2), nn.Identity()
            self.d = 16 if heads else width

        def forward(self, x: Tensor) -> Tensor:
            h = self.inputs(x)
            query, key, value = (f(h).unflatten(-1, (-1, self.d)).transpose(1, 2) for f in (self.query, self.key, self.value))
            scores = self.scores(query @ key.mT / self.d**power)
            return self.out((scores.softmax(-1) @ value).transpose(1, 2).flatten(-2)[:, -1])

    generator = torch.Generator().manual_seed(0)
    data = torch.randn(32, 6, 4, generator=generator), torch.randn(32, 2, generator=generator)
    found = coordinate_check(mup(Attention, 64), [64, 128, 256], nn.functional.mse_loss, data)
    assert found.slopes["model.scores"].value == pytest.approx(expected, abs=0.15)


def test_what_may_be_a_readout_or_an_embedding_is_refused() -> None:
    class Table(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.words = nn.Parameter(torch.randn(7, width))

    for make in (mup, tangent_kernel):
        with pytest.raises(ValueError, match=r"parameter words grows along its second axis alone, \(7, 8\) to \(7, 32\)"):
            make(Table, BASE)(WIDE)


TRANSPOSED = {  # name: (growth of what PyTorch's draw takes for the fan-in, initial value, step with Adam)
    "0.weight": (M, M**0.5, 1),
    "1.weight": (M, 1, 1 / M),
    "2.weight": (1, 1 / M, 1 / M),
}


def test_transposed_convolutions_have_their_axes_the_other_way_round() -> None:
    """Their weight is (inputs, outputs, ...), and PyTorch draws it by the outputs."""

    def net(width: int) -> nn.Module:
        return nn.Sequential(nn.ConvTranspose2d(3, width, 3), nn.ConvTranspose2d(width, width, 3), nn.ConvTranspose2d(width, 1, 3))

    found = base_shapes(net, BASE, WIDE)
    for name, (drawn, init, step) in TRANSPOSED.items():
        assert (found[name].init, found[name].step) == pytest.approx((init, step))
        narrow, wide = (seeded(lambda w=w: net(w), 0).get_parameter(name).detach().abs().max() for w in (BASE, WIDE))
        assert float(narrow / wide) == pytest.approx(drawn**0.5, rel=0.1)  # they are uniform, so that the largest is at the bound
    depthwise = base_shapes(lambda w: nn.ConvTranspose2d(w, w, 3, groups=w), BASE, WIDE)["weight"]
    assert (depthwise.init, depthwise.step) == (1, 1)
    kernel = tangent_kernel(net, BASE)(WIDE)
    assert isinstance(kernel, Parametrized)
    assert kernel.factors == {"1.weight": M**-0.5, "2.weight": M**-0.5}


def test_mup_of_transposed_convolutions_passes_the_check() -> None:
    def net(width: int) -> nn.Module:
        return nn.Sequential(
            nn.ConvTranspose2d(3, width, 3), nn.ReLU(), nn.ConvTranspose2d(width, width, 3), nn.ReLU(), nn.ConvTranspose2d(width, 1, 3)
        )

    x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    found = coordinate_check(mup(net, 8), [8, 16, 32, 64], lambda out, y: (out - y).square().mean(), (x, torch.ones(4, 1, 11, 11)))
    assert all(abs(slope.value) < 0.3 for slope in found.slopes.values()), found.slopes


class Gated(nn.Module):
    """A recurrent layer, whose output is a tuple, and an input that scales."""

    def __init__(self, width: int):
        super().__init__()
        self.recurrent, self.out = nn.GRU(3, width, batch_first=True), nn.Linear(width, 2)

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return self.out(scale * self.recurrent(x)[0][:, -1])


def cells(kind: type[nn.RNNCellBase], width: int) -> nn.Module:
    class Unrolled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell: nn.Module = kind(3, width)  # type: ignore[call-arg]

        def forward(self, x: Tensor) -> tuple[Tensor]:
            state = None
            for row in x.unbind(1):
                state = self.cell(row, state)
            return (state[0] if isinstance(state, tuple) else state,)  # type: ignore[return-value]

    return Unrolled()


RECURRENT: dict[str, Callable[[int], nn.Module]] = {
    "LSTM": lambda width: nn.LSTM(3, width, batch_first=True),
    "GRU, two layers": lambda width: nn.GRU(3, width, 2, batch_first=True),
    "RNN, both ways": lambda width: nn.RNN(3, width, batch_first=True, bidirectional=True),
    "LSTM, projected": lambda width: nn.LSTM(3, 2 * width, proj_size=width, batch_first=True),
    "LSTM, wider inputs": lambda width: nn.Sequential(nn.Linear(3, width), nn.LSTM(width, width, batch_first=True)),
    "LSTMCell": lambda width: cells(nn.LSTMCell, width),
    "GRUCell": lambda width: cells(nn.GRUCell, width),
    "RNNCell": lambda width: cells(nn.RNNCell, width),
}


@pytest.mark.parametrize("make", [mup, tangent_kernel])
@pytest.mark.parametrize("kind", RECURRENT)
def test_states_of_recurrent_layers_keep_their_size_at_every_width(kind: str, make: Callable[..., Any]) -> None:
    """PyTorch draws all of their weights by the hidden units, so that what they take from few inputs would vanish."""
    x = torch.randn(64, 8, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sizes = []
    for width in (64, 512):
        net = seeded(lambda width=width: make(RECURRENT[kind], 64)(width), 0).double()
        with torch.no_grad():
            for name, p in net.named_parameters():
                if make is tangent_kernel and "bias" in name:
                    p.zero_()  # they vanish with the width, as those of any layer there
            sizes.append(float(net(x)[0].square().mean().sqrt()))
    assert sizes[1] == pytest.approx(sizes[0], rel=0.15)  # a mean over 64 units is known to 1/8 of its spread; without it, 0.35 is left


def test_multipliers_of_recurrent_layers() -> None:
    def found(make_model: Callable[[int], nn.Module]) -> dict[str, tuple[float, float]]:
        return {k: (m.init, m.step) for k, m in base_shapes(make_model, BASE, WIDE).items()}

    hidden, kept, bias = (1, 1 / M), (M**0.5, 1), (M**0.5, 1)
    layer = {"weight_ih_l0": kept, "weight_hh_l0": hidden, "bias_ih_l0": bias, "bias_hh_l0": bias}
    assert found(lambda width: nn.GRU(3, width)) == layer
    assert found(lambda width: nn.GRU(width, width)) == layer | {"weight_ih_l0": hidden}
    assert found(lambda width: nn.LSTM(3, 2 * width, proj_size=width)) == layer | {"weight_hr_l0": hidden}
    assert found(lambda width: nn.GRU(width, 5)) == {
        "weight_ih_l0": (1 / M, 1 / M),  # an output of the growing layer before it, drawn by the five units
        "weight_hh_l0": (1, 1),
        "bias_ih_l0": (1, 1),
        "bias_hh_l0": (1, 1),
    }


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_a_check_calls_models_as_a_problem_does(context: Callable[[], Any]) -> None:
    x, scale, y = torch.randn(6, 4, 3), torch.ones(6, 1), torch.arange(6) % 2
    wanted = coordinate_check(Gated, [4, 8, 16], data=((x, scale), y))
    assert set(wanted.slopes) == {"recurrent", "out"}
    with context():
        data = {"x": x.clone(), "scale": scale.clone()}, y.clone()
        found = coordinate_check(Gated, [4, 8, 16], data=data)
    assert all(torch.equal(found.changes[name], wanted.changes[name]) for name in wanted.changes)


def test_dropout_has_the_same_masks_before_and_after() -> None:
    """With a step of zero size nothing changes; and the check repeats itself."""

    def net(width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(3, width), nn.Dropout(0.5), nn.Linear(width, 1))

    batch = torch.ones(4, 3), torch.ones(4, 1)
    still = coordinate_check(net, [4, 8, 16], nn.functional.mse_loss, batch, optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
    assert still.slopes == {}
    first, second = (coordinate_check(net, [4, 8, 16], nn.functional.mse_loss, batch) for _ in range(2))
    assert first.slopes == second.slopes


def test_a_weight_that_is_computed_is_no_layer() -> None:
    def net(width: int) -> nn.Module:
        return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, width)), nn.ReLU(), nn.Linear(width, 3))

    assert list(coordinate_check(net, [8, 16, 32]).slopes) == ["0", "1", "2"]


def test_models_and_widths_are_enough_for_a_check() -> None:
    def net(width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 3))

    plain, maximal = coordinate_check(net, [64, 128, 256]), coordinate_check(mup(net, 64), [64, 128, 256])
    assert plain.slopes["4"].value > 0.6
    assert abs(maximal.slopes["model.2"].value) < 0.2
    with pytest.raises(ValueError, match="data must be given"):
        coordinate_check(lambda width: nn.Sequential(nn.Conv1d(1, width, 3), nn.Flatten()), [4, 6, 8])
