"""Symmetries of networks: exact where the architecture has them, of the right size where it has not, and refused where none is meant."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from theorylab.core.instrument import Inapplicable
from theorylab.core.problem import Problem
from theorylab.instruments.equivariance import equivariance, equivariance_by_layer
from theorylab.instruments.group_actions import GROUPS, actions, check_map


def on(net: nn.Module, *shape: int, n: int = 5) -> Problem:
    x = torch.randn(n, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return Problem(net, lambda out, y: out.flatten(1).square().sum(1), (x, torch.zeros(n)), dtype=torch.float64)


def made(make: Callable[[], nn.Module]) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make()


def features(padding: Any = "circular", stride: int = 1) -> list[nn.Module]:
    kind: dict[str, Any] = {"padding": 1, "padding_mode": padding}
    return [nn.Conv2d(2, 6, 3, **kind), nn.Tanh(), nn.Conv2d(6, 4, 3, stride=stride, **kind), nn.Tanh()]


def pooled(**options: Any) -> nn.Module:
    return made(lambda: nn.Sequential(*features(**options), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)))


class Symmetric(nn.Module):
    """A convolution whose kernel looks the same from all four sides."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 2, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        w = sum(torch.rot90(self.weight, turns, (2, 3)) for turns in range(4))
        return F.conv2d(x, w + w.flip(3), padding=1)  # pyright: ignore


class Deep(nn.Module):
    """Sums over places of a function of each place: invariant under their permutations."""

    def __init__(self) -> None:
        super().__init__()
        self.each = nn.Sequential(nn.Conv2d(2, 5, 1), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        return self.each(x).sum((2, 3))


def test_architectures_have_their_symmetries_to_rounding_and_lose_them_by_padding_and_stride() -> None:
    assert equivariance(on(pooled(), 2, 6, 4)).value < 1e-15
    for broken in ({"padding": "zeros"}, {"stride": 2}):
        assert equivariance(on(pooled(**broken), 2, 6, 4)).value > 1e-3
    maps = made(lambda: nn.Sequential(*features()))
    assert equivariance(on(maps, 2, 6, 4), outputs="moved").value < 1e-15
    assert equivariance(on(maps, 2, 6, 4)).value > 0.1  # moving outputs are not fixed ones
    turning = made(Symmetric)
    for group in ("rotation90", "flip"):
        assert equivariance(on(turning, 2, 5, 5), group, outputs="moved").value < 1e-15
        assert equivariance(on(maps, 2, 5, 5), group, outputs="moved").value > 0.1
    assert equivariance(on(turning, 2, 5, 5), "shift", outputs="moved").value > 0.1  # zero padding
    assert equivariance(on(made(Deep), 2, 3, 4), "permutation").value < 1e-15
    assert equivariance(on(pooled(), 2, 3, 4), "permutation").value > 1e-3


def test_behind_a_stride_shifts_by_its_multiples_are_an_exact_symmetry() -> None:
    strided = made(lambda: nn.Sequential(*features(stride=2)))
    assert equivariance(on(strided, 2, 6, 8), outputs="moved").value < 1e-15
    assert equivariance(on(made(lambda: nn.Sequential(*features("zeros", 2))), 2, 6, 8), outputs="moved").value > 0.01


def test_sequences_have_their_places_where_axes_says() -> None:
    net = made(lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)))  # (n, token, d): the same for all tokens
    assert equivariance(on(net, 7, 4), "permutation", axes=(1,), outputs="moved").value < 1e-15
    assert equivariance(on(net, 7, 4), "permutation", axes=(-2,), outputs="moved").value < 1e-15
    assert equivariance(on(net, 7, 4), "shift").value > 0.1
    signal = made(lambda: nn.Conv1d(2, 3, 3, padding=1, padding_mode="circular"))
    assert equivariance(on(signal, 2, 9), outputs="moved").value < 1e-15


def test_the_value_is_the_formula_for_a_map_of_ones_own() -> None:
    net = made(lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)))
    problem = on(net, 4, n=30)
    x = problem.batches[0].content[0]
    R = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64))[0]
    found = equivariance(problem, lambda t: t @ R.T, inverse=lambda t: t @ R, outputs=lambda f: -f)
    f, g = (net.double()(t).detach() for t in (x, x @ R.T))
    each = (g + f).norm(dim=1) / f.norm(dim=1).square().mean().sqrt()
    assert found.value == pytest.approx(float(each.mean()), rel=1e-12)
    assert found.stderr == pytest.approx(float(each.std()) / math.sqrt(30), rel=1e-12)
    assert equivariance(problem, lambda t: t.flip(1)).value > 0  # a rearrangement needs no inverse


@pytest.mark.parametrize(
    ("change", "inverse", "words"),
    [
        (
            lambda t: t[..., :-1],
            None,
            r"keep the shape and type of its input, torch.float64 \(5, 2, 4, 4\), got torch.float64 \(5, 2, 4, 3\)",
        ),
        (lambda t: t.float(), None, r"got torch.float32 \(5, 2, 4, 4\)"),
        (lambda t: F.pad(t, (1, 0))[..., :-1], None, "must be invertible"),  # a shift that fills up with zeros
        (lambda t: 2 * t, None, "Pass inverse="),
        (lambda t: 2 * t, lambda t: t, "inverse must undo group"),
        (torch.abs, None, "must be invertible"),
        (lambda t: t.sort().values, None, "must be invertible"),
        (lambda t: t.roll(1), None, "must do to every row"),  # of all numbers in one line: the last of a row goes to the next
        (lambda t: t.flip(0), None, "must do to every row"),
        (lambda t: t[[0, 2, 1, 3, 4]], None, "must do to every row"),  # the first row stays
        (lambda t: t - t.mean(0), lambda t: t, "must do to every row"),
        (lambda t: t[[0, 2, 1, 3, 4]], lambda t: t[[0, 2, 1, 3, 4]], "must do to every row"),
    ],
)
def test_maps_that_change_the_shape_or_cannot_be_undone_are_refused(change: Any, inverse: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        equivariance(on(pooled(), 2, 4, 4), change, inverse=inverse)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.bool, torch.int64, torch.bfloat16, torch.float16, torch.float32])
def test_rearrangements_are_known_whatever_numbers_the_inputs_have_room_for(dtype: torch.dtype) -> None:
    x = torch.randint(0, 2, (3, 1, 64, 64), generator=torch.Generator().manual_seed(0)).to(dtype)  # 4096 entries a row
    for move in (lambda t: t.flip(-1), lambda t: t.transpose(-1, -2), lambda t: t.roll((1, 2), (-1, -2))):
        check_map(move, None, x)
    order = torch.randperm(4096, generator=torch.Generator().manual_seed(1))
    check_map(lambda t: t.flatten(1)[:, order].reshape(t.shape), None, x)
    order[0] = order[1]  # one entry twice, one never
    with pytest.raises(ValueError, match="must be invertible"):
        check_map(lambda t: t.flatten(1)[:, order].reshape(t.shape), None, x)


def test_a_map_that_rounds_differently_on_fewer_rows_still_treats_each_by_itself() -> None:
    x = torch.randn(300, 50, generator=torch.Generator().manual_seed(0))
    R = torch.linalg.qr(torch.randn(50, 50, generator=torch.Generator().manual_seed(1)))[0]
    check_map(lambda t: t @ R.T, lambda t: t @ R, x)


def test_what_cannot_be_measured_is_named() -> None:
    net = on(pooled(), 2, 4, 6)
    for call, words in (
        (lambda: equivariance(net, "rotation90"), "a quarter turn changes the shape of inputs that are not square"),
        (lambda: equivariance(net, "mirror"), "group must be one of shift, rotation90, flip, permutation, or a map, got 'mirror'"),  # type: ignore[arg-type]
        (lambda: equivariance(net, outputs="moved"), r"outputs on which shift acts .* got \(5, 3\)\. Use outputs='fixed'"),
        (lambda: equivariance(net, outputs="turned"), "outputs must be 'fixed', 'moved' or a map, got 'turned'"),  # type: ignore[arg-type]
        (lambda: equivariance(net, outputs=lambda f: f), "outputs can be a map only where group is one"),
        (lambda: equivariance(net, axes=(0,)), "axes must name different axes"),
        (lambda: equivariance(net, axes=(-1, 3)), "axes must name different axes"),
        (lambda: equivariance(net, axes=()), "axes must name different axes"),
        (lambda: equivariance(net, elements=0), "elements must be at least 1, got 0"),
        (lambda: equivariance(on(pooled(), 2, 4, 4, n=1)), "at least 2 rows"),
        (lambda: equivariance(on(nn.Linear(1, 2), 1)), "leaves everything where it is"),
        (lambda: equivariance_by_layer(net, lambda t: t), "group must be a named group"),  # type: ignore[arg-type]
    ):
        with pytest.raises(ValueError, match=words):
            call()
    silent = made(lambda: nn.Linear(3, 2))
    nn.init.zeros_(silent.weight)
    nn.init.zeros_(silent.bias)
    with pytest.raises(ValueError, match="the outputs are zero"):
        equivariance(on(silent, 3))
    two = Problem(nn.Bilinear(2, 2, 1), F.mse_loss, ((torch.ones(3, 2), torch.ones(3, 2)), torch.zeros(3, 1)))
    for tool in (equivariance, equivariance_by_layer):
        with pytest.raises(Inapplicable, match="the inputs must be one tensor"):
            tool(two)


def test_one_number_a_row_is_an_output() -> None:
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    column = made(lambda: nn.Linear(4, 1))
    row = Problem(nn.Sequential(column, nn.Flatten(0)), F.mse_loss, (x, torch.zeros(5)), dtype=torch.float64)
    assert equivariance(row).value == equivariance(on(column, 4)).value > 0


@pytest.mark.parametrize("group", GROUPS)
def test_elements_are_different_rearrangements_and_none_is_the_identity(group: str) -> None:
    x = torch.arange(9.0).reshape(1, 1, 3, 3)
    few = actions(group, (-2, -1), (3, 3), strides=(1, 1), count=2, seed=3)
    every = actions(group, (-2, -1), (3, 3), strides=(1, 1), count=20, seed=3)
    assert len(few) == 2
    assert len(every) == {"shift": 8, "rotation90": 3, "flip": 3, "permutation": 20}[group]
    images = [action(x).flatten() for action in every]
    assert len({tuple(t.tolist()) for t in [x.flatten(), *images]}) == len(every) + 1
    assert all(torch.equal(t.sort().values, x.flatten()) for t in images)
    assert few == actions(group, (-2, -1), (3, 3), strides=(1, 1), count=2, seed=3)


def test_few_places_have_all_their_permutations() -> None:
    assert len(actions("permutation", (-1,), (8,), strides=(1,), count=50_000, seed=0)) == 40_319  # and comes to an end
    assert len(actions("permutation", (-1,), (3,), strides=(1,), count=100, seed=0)) == 5


def test_layer_by_layer_one_sees_where_a_symmetry_goes_and_comes() -> None:
    layers = [*features(), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)]
    problem = on(made(lambda: nn.Sequential(*layers)), 2, 6, 4)
    found = equivariance_by_layer(problem, elements=30)
    assert [layer.kind for layer in found] == [type(m).__name__ for m in layers]
    for layer in found[:5]:
        assert layer.equivariance is not None
        assert layer.equivariance.value < 1e-15
        assert layer.invariance.value > 0.1
    assert [layer.strides for layer in found] == [(1, 1)] * 4 + [(2, 2)] + [None] * 3
    assert found[-1].invariance.value > 1e-3  # the max over blocks of two, which shifts by one place do not keep
    assert found[-1].invariance.value == pytest.approx(equivariance(problem, elements=30).value, rel=1e-12)
    even = equivariance_by_layer(on(made(lambda: nn.Sequential(*features("zeros"))), 2, 6, 4))
    assert all(layer.equivariance is not None and layer.equivariance.value > 0.01 for layer in even)


def test_what_only_computes_a_weight_is_no_layer_whatever_the_number_of_rows() -> None:
    conv: dict[str, Any] = {"padding": 1, "padding_mode": "circular"}
    net = made(lambda: nn.Sequential(parametrizations.weight_norm(nn.Conv2d(2, 5, 3, **conv)), nn.Tanh(), nn.Flatten(), nn.Linear(80, 2)))
    for rows in (5, 4):  # as many as channels, and fewer
        found = equivariance_by_layer(on(net, 2, 4, 4, n=rows))
        assert [layer.name for layer in found] == ["0", "1", "2", "3"]
        assert found[0].equivariance is not None
        assert found[0].equivariance.value < 1e-14
        assert found[0].invariance.value > 0.1


def test_a_dead_layer_has_every_symmetry_and_work_in_place_is_seen_before() -> None:
    net = made(lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Linear(6, 2)))
    nn.init.constant_(net[0].bias, -100.0)
    first, relu, last = equivariance_by_layer(on(net, 4))
    assert first.invariance.value > 0
    assert (relu.invariance.value, relu.invariance.n, last.invariance.value) == (0.0, 5, 0.0)
