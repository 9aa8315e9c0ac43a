"""Clipped sums: the same by every method and for every layer, short whatever a row does, and refused where a row is not alone."""

from __future__ import annotations

import logging

import pytest
import torch
from test_rows import LAYERS, Centred, Outside, Tagger, Twice
from torch import nn
from torch.nn import functional as F
from zoo import make, mlp, vectors

from theorylab.core.instrument import Inapplicable
from theorylab.core.problem import Problem
from theorylab.instruments.clipping import clipped_sum, looped_clipped_sum
from theorylab.instruments.rows import looped_grads


def by_hand(problem: Problem, clip: float) -> torch.Tensor:
    rows = looped_grads(problem)
    return torch.stack([g if g.norm() <= clip else g * (clip / g.norm()) for g in rows]).sum(0)


def middle(problem: Problem) -> float:
    """A clipping norm that some rows exceed and others do not."""
    return float(looped_grads(problem).norm(dim=1).median()) * 1.01


@pytest.mark.parametrize("name", LAYERS)
def test_ghost_clipping_is_the_loop_for_every_layer(name: str) -> None:
    problem = LAYERS[name]()
    clip = middle(problem)
    found, expected = clipped_sum(problem, clip, method="ghost"), by_hand(problem, clip)
    assert torch.allclose(found.total, expected, rtol=0, atol=1e-12 * float(expected.abs().max()))
    assert found.formed == ()


@pytest.mark.parametrize("method", ["auto", "vmap", "loop"])
@pytest.mark.parametrize("name", ["mlp", "attention", "attention, tied", "GroupNorm, LayerNorm", "dict batches, custom loss"])
def test_all_methods_agree(name: str, method: str) -> None:
    problem = make(name)
    clip = middle(problem)
    found, expected = clipped_sum(problem, clip, method=method), by_hand(problem, clip)  # type: ignore[arg-type]
    assert torch.allclose(found.total, expected, rtol=0, atol=1e-11 * float(expected.abs().max()))
    norms = looped_grads(problem).norm(dim=1)
    assert found.shrunk == pytest.approx(float((norms > clip).double().mean()))
    assert 0 < found.shrunk < 1


@pytest.mark.parametrize("embedded", [True, False])
def test_tied_weights_are_one_parameter(embedded: bool) -> None:
    torch.manual_seed(0)
    problem = Problem(Twice(embedded), F.cross_entropy, (torch.randint(0, 30, (6, 4)), torch.arange(6)), dtype=torch.float64)
    assert torch.allclose(clipped_sum(problem, middle(problem), method="ghost").total, by_hand(problem, middle(problem)), atol=1e-13)


def test_what_no_operation_explains_is_formed_and_named(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    problem = Problem(Outside(), F.cross_entropy, vectors(), dtype=torch.float64)
    clip = middle(problem)
    with caplog.at_level(logging.INFO, "theorylab"):
        found = clipped_sum(problem, clip)
    assert found.formed == ("layer.weight",)
    assert "layer.weight are formed row by row" in caplog.text
    assert torch.allclose(found.total, by_hand(problem, clip), atol=1e-13)
    with pytest.raises(Inapplicable, match=r"method='ghost': no known operation explains the gradients of layer\.weight"):
        clipped_sum(problem, clip, method="ghost")


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_chunks_change_nothing(chunk: int) -> None:
    problem = make("attention")
    for method in ("ghost", "vmap"):
        parts = clipped_sum(problem, 0.1, method=method, chunk=chunk).total
        assert torch.allclose(parts, clipped_sum(problem, 0.1).total, atol=1e-13)


def test_no_row_moves_the_sum_by_more_than_the_clipping_norm() -> None:
    net, (x, y) = mlp().double(), vectors()
    x = x.double() * torch.logspace(-3, 6, len(x), dtype=torch.float64)[:, None]  # gradients of very different length
    whole = clipped_sum(Problem(net, F.cross_entropy, (x, y)), 0.3).total
    for i in range(len(x)):
        rest = [k for k in range(len(x)) if k != i]
        without = clipped_sum(Problem(net, F.cross_entropy, (x[rest], y[rest])), 0.3).total
        assert float((whole - without).norm()) <= 0.3 * (1 + 1e-9)


def test_a_row_without_a_gradient_adds_nothing() -> None:
    net = nn.Linear(2, 1, bias=False).double()
    problem = Problem(net, F.mse_loss, (torch.tensor([[0.0, 0.0], [1.0, 0.0]]).double(), torch.zeros(2, 1).double()))
    assert torch.equal(clipped_sum(problem, 1e-3).total, looped_clipped_sum(problem, 1e-3).total)
    assert bool(clipped_sum(problem, 1e-3).total.isfinite().all())


@pytest.mark.parametrize("clip", [0.0, -1.0, float("inf"), float("nan")])
def test_refuses_a_norm_that_clips_nothing_or_everything(clip: float) -> None:
    with pytest.raises(ValueError, match="clip must be positive and finite"):
        clipped_sum(make("mlp"), clip)


def test_refuses_rows_that_depend_on_each_other() -> None:
    x, y = vectors()
    norm = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    with pytest.raises(Inapplicable, match="BatchNorm in training mode"):
        clipped_sum(Problem(norm, F.cross_entropy, (x, y), train=True))
    weighted = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 5.0]))
    torch.manual_seed(0)
    net = mlp()
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(4)  # losses of rows that differ: of equal ones every weighted mean is the same
    with pytest.raises(Inapplicable, match="not the mean of the losses of its rows"):
        clipped_sum(Problem(net, weighted, (x, y)))


def test_refuses_a_mean_over_tokens_of_which_rows_hold_different_numbers() -> None:
    """There a row more changes the gradients of all others, so that clipping each bounds nothing."""
    torch.manual_seed(0)
    words, tags = torch.randint(0, 7, (5, 4)), torch.randint(0, 3, (5, 4))
    tags[1, 2:] = -100
    with pytest.raises(Inapplicable, match="a row more changes the gradients of all others"):
        clipped_sum(Problem(Tagger(), F.cross_entropy, (words, tags)))
    own = Problem(Tagger(), lambda o, t: F.cross_entropy(o, t, reduction="none").sum(1), (words, tags), dtype=torch.float64)
    assert torch.allclose(clipped_sum(own, 0.5).total, by_hand(own, 0.5), atol=1e-13)


def test_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ValueError, match='method must be "auto", "ghost", "vmap" or "loop"'):
        clipped_sum(make("mlp"), method="fast")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="chunk must be at least 1"):
        clipped_sum(make("mlp"), chunk=0)


def test_a_gradient_that_overflows_is_an_error_and_not_a_zero() -> None:
    net = nn.Linear(2, 1, bias=False)
    with pytest.raises(ValueError, match="gradients of rows must be finite"):
        clipped_sum(Problem(net, lambda o, y: 3e38 * (o[:, 0] * 1e5).tanh() * 1e-2, (torch.ones(2, 2) * 1e-12, torch.zeros(2))))


@pytest.mark.parametrize("method", ["auto", "ghost", "vmap", "loop"])
def test_refuses_a_coupling_of_its_own_making(method: str) -> None:
    with pytest.raises(Inapplicable):
        clipped_sum(Problem(Centred(), F.cross_entropy, vectors(), dtype=torch.float64), method=method)  # type: ignore[arg-type]
