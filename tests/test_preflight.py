"""Preflight: every trap is named on a problem that has it, and on no other."""

from __future__ import annotations

import random
import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from test_problem import direction, moved
from torch import nn
from torch.nn import functional as F
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, Sampler, SubsetRandomSampler, TensorDataset
from zoo import as_dict, cnn, half_frozen, images, make, mlp, vectors

from theorylab.core.problem import Problem
from theorylab.instruments.curvature import ggn, hessian
from theorylab.instruments.preflight import preflight


class Drifting(nn.Module):
    """A model that counts its calls: nothing that a seed could freeze."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.calls = nn.Linear(5, 3), 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.layer(x) * self.calls


def log_probabilities() -> Problem:
    problem = Problem(nn.Sequential(mlp(), nn.LogSoftmax(1)), nn.NLLLoss(), vectors())
    assert float(ggn(problem).to_dense().abs().max()) == 0  # what the notice warns of
    return problem


class Cut(nn.Module):
    """Its outputs have no graph."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    @torch.no_grad()
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


def with_data(x: torch.Tensor, **options: object) -> Problem:
    return Problem(mlp(), F.cross_entropy, (x, vectors()[1]), **options)  # pyright: ignore[reportArgumentType]


def trained_statistics() -> Problem:
    """A network whose BatchNorm saw the data that it is measured on."""
    model, (x, y) = cnn(), images()
    model.train()
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.momentum = None  # the plain average
    with torch.no_grad():
        model(x)
    return Problem(model, F.cross_entropy, (x, y))


def unlike_training() -> Problem:
    problem = trained_statistics()
    x, y = problem.batches[0].content
    return Problem(problem.model, F.cross_entropy, (5 * x + 3, y))


class NormByKeyword(nn.Sequential):
    """A network that passes its BatchNorm's input by name."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, norm, last = self
        return last(norm(input=first(x)))


def normalized_by_keyword() -> Problem:
    x, y = vectors()
    return Problem(NormByKeyword(), F.cross_entropy, (x + 9, y))


def broken(value: float) -> Problem:
    x, _ = vectors()
    x[3, 2], x[7, 0] = value, value
    return with_data(x)


def repeated() -> Problem:
    x, _ = vectors()
    x[5] = x[2]
    return with_data(x)


def loader(shuffle: bool, **options: Any) -> Problem:
    return Problem(mlp(), F.cross_entropy, DataLoader(TensorDataset(*vectors()), batch_size=5, shuffle=shuffle, **options))


class Scattered(Sampler[int]):
    """Rows in an order that Python's generator gives."""

    def __iter__(self) -> Iterator[int]:
        return iter(random.sample(range(12), 12))

    def __len__(self) -> int:
        return 12


class AsTensors(Sampler[torch.Tensor]):
    """Batches of row numbers in tensors."""

    def __init__(self, *options: Any) -> None:
        self.batches = BatchSampler(*options)

    def __iter__(self) -> Iterator[torch.Tensor]:
        return map(torch.tensor, self.batches)


def by_batches(sampler: Any, drop_last: bool = False, whole: bool = False) -> Problem:
    batches: Any = AsTensors(sampler, 5, drop_last) if whole else BatchSampler(sampler, 5, drop_last)
    return Problem(mlp(), F.cross_entropy, DataLoader(TensorDataset(*vectors()), batch_sampler=batches))


def ignored_tokens() -> Problem:
    """A mean over predictions, by which its batches weigh."""
    y = torch.arange(12).reshape(6, 2) % 3
    y[0], y[4, 1] = -100, -100
    model = nn.Sequential(nn.Linear(5, 6), nn.Unflatten(1, (3, 2)))
    return Problem(model, F.cross_entropy, (torch.randn(6, 5), y), batch_size=3, count=lambda content: float((content[1] >= 0).sum()))


def broadcast() -> Problem:
    return Problem(nn.Linear(2, 1), lambda o, y: (o - y).square().mean(), (torch.randn(6, 2), torch.randn(6)))


def padded() -> Problem:
    model = nn.Sequential(nn.Embedding(4, 3, padding_idx=1), nn.Flatten(), nn.Linear(6, 3))
    return Problem(model, F.cross_entropy, (torch.tensor([[0, 1], [2, 3], [1, 2]]), torch.arange(3)))


def spectral(layer: nn.Module) -> nn.Module:
    return nn.utils.parametrizations.spectral_norm(layer)


def spectral_by_hook(layer: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.spectral_norm(layer)


def normalized(normalize: Callable[[nn.Module], nn.Module], **options: Any) -> Problem:
    torch.manual_seed(0)
    return Problem(
        nn.Sequential(normalize(nn.Linear(5, 6)), nn.Tanh(), nn.Linear(6, 3)), F.cross_entropy, vectors(), dtype=torch.float64, **options
    )


WEIGHTED, IGNORING = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 0.2])), nn.CrossEntropyLoss(ignore_index=2)

TRAPS: dict[str, tuple[Callable[[], Problem], str, str]] = {
    "BatchNorm train": (lambda: make("cnn, BatchNorm train"), "statistics of the batch", "warning"),
    "spectral norm": (lambda: normalized(spectral, train=True), r"iterates in training mode \(0\.weight\)", "warning"),
    "spectral norm, hook": (lambda: normalized(spectral_by_hook, train=True), r"iterates in training mode \(0\.weight\)", "warning"),
    "log-probabilities": (log_probabilities, "nll_loss is linear in the outputs", "warning"),
    "class weights": (lambda: Problem(mlp(), WEIGHTED, vectors()), "not the mean of its rows' losses", "info"),
    "class weights, rows": (lambda: Problem(mlp(), WEIGHTED, vectors(), batch_size=1), "not the mean of its rows' losses", "warning"),
    "ignored labels": (lambda: Problem(mlp(), IGNORING, vectors(), batch_size=4), "not the mean of its rows' losses", "warning"),
    "a sum": (lambda: Problem(mlp(), lambda m, b: m(b["x"]).square().sum(), as_dict()), "not the mean of its rows' losses", "info"),
    "no graph": (lambda: Problem(Cut(), F.cross_entropy, vectors()), "no graph back to the selected parameters", "warning"),
    "dropout": (lambda: make("dropout"), r"random numbers \(Dropout\)", "warning"),
    "not deterministic": (lambda: Problem(Drifting(), F.cross_entropy, vectors()), "otherwise the second time", "warning"),
    "shuffling loader": (lambda: loader(True), "the loader shuffles", "info"),
    "shuffling batches": (lambda: by_batches(RandomSampler(range(12))), "the loader shuffles", "info"),
    "shuffling subset": (lambda: by_batches(SubsetRandomSampler(range(6, 12))), "the loader shuffles", "info"),
    "own sampler": (lambda: by_batches(Scattered()), "the loader shuffles", "info"),
    "own sampler of tensors": (lambda: by_batches(Scattered(), whole=True), "the loader shuffles", "info"),
    "dropped rows": (lambda: loader(False, drop_last=True), r"leaves 2 of 12 rows off \(drop_last=True\)", "info"),
    "dropped rows, batches": (lambda: by_batches(range(12), drop_last=True), "leaves 2 of 12 rows off", "info"),
    "normalized otherwise": (unlike_training, r"inputs of \d", "warning"),
    "normalized by keyword": (
        lambda: Problem(NormByKeyword(), F.cross_entropy, (vectors()[0] + 9, vectors()[1])),
        r"inputs of 1",
        "warning",
    ),
    "NaN rows": (lambda: broken(float("nan")), "rows 3, 7 hold numbers", "warning"),
    "infinite rows": (lambda: broken(float("inf")), "rows 3, 7 hold numbers", "warning"),
    "NaN loss": (lambda: broken(float("nan")), "the loss is NaN or infinite on batches 0", "warning"),
    "raw inputs": (lambda: with_data(255 * torch.rand(12, 5)), "root mean square", "warning"),
    "repeated rows": (repeated, "1 of 12 rows repeat", "info"),
    "broadcast": (broadcast, r"outputs are \(6, 1\), targets \(6,\)", "warning"),
    "padding": (padded, r"row 1 of 0.weight is for padding", "info"),
    "tied": (lambda: make("attention, tied"), "tied: embed.weight = head.weight", "info"),
    "frozen": (lambda: Problem(half_frozen(), F.cross_entropy, vectors()), "36 of 99 parameters are left out", "info"),
    "bfloat16": (lambda: with_data(vectors()[0], dtype=torch.bfloat16), "parameters are torch.bfloat16", "warning"),
}


@pytest.mark.parametrize("name", TRAPS)
def test_every_trap_is_named_with_its_level(name: str) -> None:
    build, what, level = TRAPS[name]
    problem = build()
    matches = [n for n in preflight(problem) if re.search(what, n.what)]
    assert [n.level for n in matches] == [level]
    assert matches[0].what in str(matches[0])


@pytest.mark.parametrize("normalize", [spectral, spectral_by_hook])
def test_a_spectral_norm_spoils_curvature_in_training_mode_alone(normalize: Callable[[nn.Module], nn.Module]) -> None:
    """Differences of the gradient see the vectors move with the weights; the graph, on which products go, does not."""
    errors = []
    for train in (False, True):
        problem = normalized(normalize, train=train)
        buffers = {k: b.clone() for k, b in problem.model.named_buffers()}
        v, h = direction(problem), 1e-5
        reference = (problem.gradient(moved(problem, v, h)) - problem.gradient(moved(problem, v, -h))) / (2 * h)
        errors.append(float((hessian(problem) @ v - reference).norm() / reference.norm()))
        assert all(torch.equal(b, buffers[k]) for k, b in problem.model.named_buffers())
    assert errors[0] < 1e-6
    assert errors[1] > 1e-3


NOTHING = {
    "mlp": lambda: make("mlp"),
    "loader": lambda: loader(False),
    "batches in order": lambda: by_batches(range(12)),
    "full batches": lambda: Problem(mlp(), F.cross_entropy, DataLoader(TensorDataset(*vectors()), batch_size=4, drop_last=True)),
    "minibatches": lambda: make("mlp, minibatches"),
    "weight decay": lambda: make("dict batches, custom loss"),
    "ignored tokens": ignored_tokens,
    "statistics": trained_statistics,
    "LSTM": lambda: make("LSTM"),
    "spectral norm": lambda: normalized(spectral),
    "spectral norm, hook": lambda: normalized(spectral_by_hook),
}


@pytest.mark.parametrize("build", NOTHING.values(), ids=NOTHING)
def test_a_problem_without_traps_gets_no_notice(build: Callable[[], Problem]) -> None:
    assert preflight(build()) == ()


def test_warnings_come_first_and_nothing_is_changed() -> None:
    model = half_frozen()
    before = {k: t.clone() for k, t in model.state_dict().items()}
    notices = preflight(Problem(model, F.cross_entropy, (100 * vectors()[0], vectors()[1])))
    assert [n.level for n in notices] == ["warning", "info"]
    assert all(torch.equal(t, before[k]) for k, t in model.state_dict().items())
    assert not any(m._forward_pre_hooks for m in model.modules())
