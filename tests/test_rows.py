"""Gradients of rows: right for every layer and every way of using one, and refused where a row has no gradient of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import make, mlp, vectors

from theorylab.core.instrument import Inapplicable
from theorylab.core.problem import Problem
from theorylab.instruments.rows import _explained, looped_grads, per_example_grad_norms, per_example_grads


def pooled(layer: nn.Module, *shape: int) -> Problem:
    """A problem of six rows whose model is the layer, a tanh, and the mean over all that is left."""
    torch.manual_seed(0)
    model = nn.Sequential(layer, nn.Tanh(), nn.Flatten())
    return Problem(model, lambda o, y: (o.mean(1) - y).pow(2), (torch.randn(6, *shape), torch.randn(6)), dtype=torch.float64)


def indices(layer: nn.Module) -> Problem:
    torch.manual_seed(0)
    tokens = torch.randint(0, 5, (6, 4))
    return Problem(nn.Sequential(layer, nn.Flatten()), lambda o, y: (o.mean(1) - y).pow(2), (tokens, torch.randn(6)), dtype=torch.float64)


LAYERS: dict[str, Callable[[], Problem]] = {
    "linear": lambda: pooled(nn.Linear(3, 4), 3),
    "linear over places": lambda: pooled(nn.Linear(3, 4), 2, 5, 3),
    "wide linear over places": lambda: pooled(nn.Linear(20, 30), 2, 20),  # few places: ghost norms
    "conv1d": lambda: pooled(nn.Conv1d(4, 6, 3, stride=2, dilation=2, padding=2, groups=2), 4, 9),
    "conv2d": lambda: pooled(nn.Conv2d(2, 3, (3, 2), stride=(1, 2), padding=(1, 0)), 2, 5, 6),
    "conv2d, same, circular": lambda: pooled(nn.Conv2d(2, 3, (3, 2), padding="same", padding_mode="circular"), 2, 5, 6),
    "depthwise conv2d": lambda: pooled(nn.Conv2d(3, 3, 3, groups=3, bias=False, padding_mode="reflect", padding=1), 3, 5, 5),
    "conv2d of few places": lambda: pooled(nn.Conv2d(20, 30, 2), 20, 2, 3),
    "conv3d": lambda: pooled(nn.Conv3d(1, 2, 2), 1, 3, 4, 3),
    "embedding": lambda: indices(nn.Embedding(5, 3)),
    "embedding with padding": lambda: indices(nn.Embedding(5, 3, padding_idx=1)),
    "large embedding": lambda: indices(nn.Embedding(200, 30)),
    "layer norm": lambda: pooled(nn.LayerNorm(4), 4),
    "layer norm of two axes over places": lambda: pooled(nn.LayerNorm((3, 4)), 2, 3, 4),
    "rms norm": lambda: pooled(nn.RMSNorm(4), 2, 4),
    "group norm": lambda: pooled(nn.GroupNorm(2, 4), 4, 3),
    "batch norm of vectors": lambda: pooled(nn.BatchNorm1d(4), 4),
    "batch norm of images": lambda: pooled(nn.BatchNorm2d(2), 2, 3, 3),
}


def assert_right(problem: Problem) -> None:
    rows = looped_grads(problem)
    scale = float(rows.abs().max())
    assert torch.allclose(per_example_grads(problem), rows, rtol=0, atol=1e-12 * scale)
    assert torch.allclose(per_example_grad_norms(problem), rows.norm(dim=1), rtol=1e-9, atol=1e-12 * scale)
    assert torch.allclose(per_example_grads(problem).mean(0), problem.gradient(), rtol=0, atol=1e-12 * scale)


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_is_explained_by_its_formula(name: str) -> None:
    problem = LAYERS[name]()
    assert_right(problem)
    with problem.safe():
        assert _explained(problem, 0).rest == []


class Twice(nn.Module):
    """A layer that is called twice, and a head that may share the weight of the embedding."""

    def __init__(self, embedded: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, 20)
        self.mix = nn.Linear(20, 20)
        self.head = nn.Linear(20, 30, bias=False)
        if embedded:
            self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.embed(tokens)
        return self.head(torch.tanh(self.mix(torch.tanh(self.mix(h))))).mean(1)


class Outside(nn.Module):
    """A layer's weight that is used beside the layer too, by an operation on a view of it, and a parameter that belongs to no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 5)
        self.scale = nn.Parameter(torch.tensor([0.5, 1.5, 1.0, 2.0, 0.3]))
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.layer(x) * self.scale) @ self.layer.weight.T)


class InPlace(nn.Module):
    """What goes into one layer, and what comes out of another, is overwritten later."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        h.tanh_()
        return self.second(h)


@pytest.mark.parametrize("embedded", [True, False])
def test_uses_of_one_parameter_are_added_before_the_norm_is_taken(embedded: bool) -> None:
    torch.manual_seed(0)
    problem = Problem(Twice(embedded), F.cross_entropy, (torch.randint(0, 30, (6, 4)), torch.arange(6)), dtype=torch.float64)
    assert_right(problem)
    with problem.safe():
        assert _explained(problem, 0).rest == []


class Tagger(nn.Module):
    """Scores of three tags for every word, (n, tag, word); a scale that belongs to no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head, self.scale = nn.Embedding(7, 4), nn.Linear(4, 3), nn.Parameter(torch.ones(4))

    def forward(self, words: Tensor) -> Tensor:
        return self.head(torch.tanh(self.scale * self.embed(words))).transpose(1, 2)


def test_rows_share_a_mean_over_predictions_of_which_some_are_masked() -> None:
    torch.manual_seed(0)
    words, tags = torch.randint(0, 7, (5, 4)), torch.randint(0, 3, (5, 4))
    tags[1, 2:] = tags[4, 1:] = -100
    parts = [(words[:3], tags[:3]), (words[3:], tags[3:])]
    problem = Problem(Tagger(), F.cross_entropy, parts, dtype=torch.float64, count=lambda pair: float((pair[1] != -100).sum()))
    assert_right(problem)
    alone = Problem(problem.model, F.cross_entropy, (words[1:2], tags[1:2]), dtype=torch.float64)
    share = 5 * 2 / 15  # n times two predictions of fifteen
    assert torch.allclose(per_example_grads(problem)[1], share * alone.gradient(), rtol=1e-10, atol=1e-14)


def test_a_parameter_used_beside_its_layer_is_not_mistaken_for_explained() -> None:
    torch.manual_seed(0)
    problem = Problem(Outside(), F.cross_entropy, vectors(), dtype=torch.float64)
    with problem.safe():
        assert _explained(problem, 0).rest == ["layer.weight"]
    assert_right(problem)


class Bare(nn.Module):
    """Parameters of no layer: one table looked up, applied and applied transposed; a product with a bias; a scale and a shift."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(30, 20))
        self.mix, self.bias = nn.Parameter(torch.randn(20, 20)), nn.Parameter(torch.randn(20))
        self.scale, self.shift = nn.Parameter(torch.randn(20)), nn.Parameter(torch.randn(1, 2, 20))

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.scale * F.embedding(tokens, self.table) + self.shift  # (n, token, 20)
        h = torch.addmm(self.bias, h.view(-1, 20), self.mix).view(h.shape)
        back = torch.tanh(F.linear(torch.tanh(h), self.table)) @ self.table
        return F.linear(torch.tanh(back), self.table).mean(1)


def test_parameters_of_no_layer_are_explained_by_the_operations_that_use_them() -> None:
    torch.manual_seed(0)
    problem = Problem(Bare(), F.cross_entropy, (torch.randint(0, 30, (6, 2)), torch.arange(6)), dtype=torch.float64)
    assert_right(problem)
    with problem.safe():
        assert _explained(problem, 0).rest == []


class Slope(nn.Module):
    """A model that takes a derivative of a layer itself, which reads the layer's weight a second time."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(torch.tanh(self.layer(x)).sum(), x, create_graph=True)
        return self.head(slope)


class Scaled(nn.Module):
    """Cosines times a temperature that is learned, a parameter without axes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.logit_scale = nn.Linear(5, 3), nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.layer(x)) * self.logit_scale.exp()


def test_a_parameter_without_axes_has_gradients_of_rows() -> None:
    torch.manual_seed(0)
    problem = Problem(Scaled(), F.cross_entropy, vectors(), dtype=torch.float64)
    assert_right(problem)
    assert_right(problem.only("logit_scale"))


def test_a_weight_that_a_derivative_within_the_model_reads_is_not_mistaken_for_explained() -> None:
    torch.manual_seed(0)
    problem = Problem(Slope(), F.cross_entropy, vectors(), dtype=torch.float64)
    assert_right(problem)
    with problem.safe():
        assert _explained(problem, 0).rest == ["layer.weight"]


class Frames(nn.Module):
    """A convolution of every frame of a film: rows times frames come first."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 4, 2, groups=2), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.conv(x.flatten(0, 1))).mean((2, 3))  # (n · frame, channel)
        return self.head(h).view(len(x), -1, 3).mean(1)


def test_positions_that_share_the_first_axis_with_the_rows_are_explained() -> None:
    torch.manual_seed(0)
    problem = Problem(Frames(), F.cross_entropy, (torch.randn(12, 3, 2, 4, 3), vectors()[1]), dtype=torch.float64)
    assert_right(problem)
    with problem.safe():
        assert _explained(problem, 0).rest == []


def test_writing_in_place_after_a_layer_does_not_change_its_gradient() -> None:
    torch.manual_seed(0)
    assert_right(Problem(InPlace(), F.cross_entropy, vectors(), dtype=torch.float64))


class Batched(nn.Module):
    """A first axis that is not that of the rows, though it is as long: the second layer sees (token, n, width)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x)).transpose(0, 1)  # (token, n, width)
        return self.second(h).mean(0)


@pytest.mark.parametrize("tokens", [12, 7])
def test_a_layer_whose_first_axis_is_not_the_rows_is_found_out(tokens: int) -> None:
    torch.manual_seed(0)
    problem = Problem(Batched(), F.cross_entropy, (torch.randn(12, tokens, 3), vectors()[1]), dtype=torch.float64)
    with problem.safe():
        assert set(_explained(problem, 0).rest) == {"second.weight", "second.bias"}
    assert_right(problem)


def test_a_users_hooks_stay_and_what_they_change_is_seen() -> None:
    model = mlp()
    handle = model[0].register_forward_hook(lambda m, args, out: 2 * out)  # pyright: ignore
    problem = Problem(model, F.cross_entropy, vectors(), dtype=torch.float64)
    before = [len(m._forward_hooks) for m in model.modules()]
    assert_right(problem)
    assert [len(m._forward_hooks) for m in model.modules()] == before
    handle.remove()


@pytest.mark.parametrize("name", ["mlp, minibatches", "attention, tied", "dict batches, custom loss", "dropout"])
def test_some_rows_and_any_chunk_give_the_same_numbers(name: str) -> None:
    problem = make(name)
    every = per_example_grads(problem)
    chosen = [7, 0, 11, 7]
    assert torch.allclose(per_example_grads(problem, rows=chosen), every[chosen], rtol=1e-12, atol=1e-15)
    assert torch.allclose(per_example_grads(problem, chunk=2), every, rtol=1e-12, atol=1e-15)
    assert torch.allclose(per_example_grad_norms(problem, chunk=5), every.norm(dim=1), rtol=1e-12)


class OwnBatchNorm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(0)) / (x.std(0, correction=0) + 1.0)


def weighted(outputs: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(outputs, y, weight=torch.tensor([1.0, 2.0, 3.0], dtype=outputs.dtype))


def contrast(outputs: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(outputs @ outputs.T, torch.arange(len(outputs)), reduction="none")


def spread(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return model(batch["x"]).std(0, correction=0).sum()


@dataclass
class Scores:
    logits: Tensor


class Scored(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def forward(self, x: Tensor) -> Scores:
        return Scores(self.net(x))


class Centred(nn.Module):
    """Takes the mean over the batch away ahead of its only layer: a coupling that no layer's uses give away."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x - x.mean(0))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Problem(mlp(), weighted, vectors()), "not the mean of the losses of its rows"),
        (lambda: Problem(mlp(), contrast, vectors()), "not the mean of the losses of its rows"),
        (lambda: Problem(mlp(), lambda o, y: (o[:6] - o[6:]).square().mean(), vectors()), r"on some of them \(RuntimeError"),
        (lambda: Problem(Scored(), lambda o, y: F.cross_entropy(o.logits, y), vectors()), "no tensor of rows. The model returns a Scores"),
        (lambda: Problem(nn.Sequential(nn.Linear(5, 4), OwnBatchNorm(), nn.Linear(4, 3)), F.cross_entropy, vectors()), "rows depend"),
        (
            lambda: Problem(nn.Sequential(nn.Linear(5, 4), nn.Dropout(), OwnBatchNorm()), F.cross_entropy, vectors(), train=True),
            "rows depend",
        ),
        (lambda: Problem(Centred(), F.cross_entropy, vectors()), "rows depend"),
        (lambda: Problem(nn.Sequential(Centred(), nn.Dropout()), F.cross_entropy, vectors(), train=True), "rows depend"),
        (lambda: Problem(Centred(), F.cross_entropy, vectors(), batch_size=5), "rows depend"),
        (lambda: Problem(mlp(), spread, {"x": torch.randn(6, 5)}), "rows depend"),
        (lambda: make("cnn, BatchNorm train"), "training mode couples"),
        (lambda: pooled(nn.BatchNorm1d(4, track_running_stats=False), 4), "without running statistics"),
    ],
)
@pytest.mark.parametrize("measure", [per_example_grads, per_example_grad_norms])
def test_rows_that_depend_on_each_other_are_refused(measure: Callable[[Problem], Tensor], build: Any, message: str) -> None:
    with pytest.raises(Inapplicable, match=message):
        measure(build())


class Cell(nn.Module):
    """A cell that `torch.func.vmap` takes with derivatives and not without."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTMCell(5, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = self.cell(x)
        return self.head(self.cell(x, state)[0])


def test_a_cell_without_a_batching_rule_is_taken_row_by_row() -> None:
    problem = Problem(Cell(), F.cross_entropy, vectors(), dtype=torch.float64)
    assert torch.allclose(per_example_grads(problem), looped_grads(problem), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": []}, "at least one row number"),
        ({"rows": [0, 12]}, r"rows must lie in 0..11, got 0..12"),
        ({"rows": [0.0, 1.0]}, r"row number, or a mask that marks one, got torch\.float32"),
        ({"rows": [True, False]}, "one entry for each of the 12 rows"),
        ({"chunk": 0}, "chunk must be"),
    ],
)
def test_wrong_rows_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        per_example_grads(make("mlp"), **options)
