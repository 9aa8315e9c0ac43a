"""Margins of a linear head in three geometries: known optima, the optimizer's own geometry, and heads of every kind."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import Masked

from theorylab.core.instrument import Inapplicable
from theorylab.core.problem import Problem
from theorylab.data.synthetic import gaussian_mixture, separable
from theorylab.instruments.margin_geometry import MarginGeometry, dual_margin_geometry, margin_geometry
from theorylab.instruments.norms import norms
from theorylab.learning.optimizers.base import Hyper, Optimizer
from theorylab.learning.optimizers.steepest import greedy_coordinate, normalized_gd, sign_descent
from theorylab.learning.schedule import power_decay, scheduled


class Cosine(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return 10 * F.linear(F.normalize(input), F.normalize(self.weight))


def linear(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None = None) -> Problem:
    net = nn.Linear(x.shape[1], len(weight), bias=bias is not None)
    loss = F.soft_margin_loss if len(weight) == 1 else F.cross_entropy
    problem = Problem(net, loss, (x, y), dtype=torch.float64)
    return problem.at({"weight": weight} | ({} if bias is None else {"bias": bias}))


def shares(found: MarginGeometry) -> dict[str, float]:
    return {m.norm: m.present / m.largest for m in found.margins}


@pytest.mark.parametrize(
    ("make", "own", "dual"), [(normalized_gd, "l2", 2), (sign_descent, "linf", 1), (greedy_coordinate, "l1", math.inf)]
)
def test_the_geometry_of_the_optimizer_shows(make: Callable[[Hyper], Optimizer], own: str, dual: float) -> None:
    """Steepest descents with steps ∝ 1/√t, as in the theorem; the other two norms are the control."""
    x, y = separable(15, 30, seed=1)
    z = x * y[:, None]
    optimizer = scheduled(make, 2 / float(torch.linalg.vector_norm(z, dual, dim=1).max()), power_decay(0.5))
    params = {"w": torch.zeros(1, 30, dtype=torch.float64)}  # (replica, d), which is also the shape of a head with one score
    state = optimizer.init(params)
    for _ in range(6000):
        params, state = optimizer.update({"w": -torch.softmax(-(params["w"] @ z.T), 1) @ z}, state, params)
    found = shares(margin_geometry(linear(x, y[:, None], params["w"])))
    assert found.pop(own) > 0.9
    assert max(found.values()) < 0.9


@pytest.mark.parametrize("k", [2, 3, 4])
def test_several_classes_against_score_differences_and_the_dual(k: int) -> None:
    x, y = gaussian_mixture(14, 6, classes=k, distance=6.0, seed=3)
    weight = torch.randn(k, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    problem = linear(x, y, weight, torch.arange(k).double())
    found, slow = margin_geometry(problem), dual_margin_geometry(problem)
    everything = torch.cat([weight, torch.arange(k).double()[:, None]], 1)
    smallest = norms(problem).margins
    assert smallest is not None
    assert found.separable
    for fast, dual, p in zip(found.margins, slow.margins, (1, 2, math.inf), strict=True):
        assert fast.present == pytest.approx(smallest[0.0] / float(torch.linalg.vector_norm(everything, p)), rel=1e-12)
        assert (fast.present, fast.largest) == pytest.approx((dual.present, dual.largest), rel=1e-9)


def test_two_classes_with_one_score_or_two_have_the_same_hyperplane() -> None:
    """Best weights of two scores are ±v/2 each: the difference is v, and the l2 norm of both is that of v over √2."""
    x, y = separable(12, 5, seed=2)
    one = margin_geometry(linear(x, y[:, None], torch.ones(1, 5)))
    two = margin_geometry(linear(x, (y > 0).long(), torch.ones(2, 5)))
    largest = [{m.norm: m.largest for m in found.margins} for found in (one, two)]
    assert largest[1]["l2"] == pytest.approx(math.sqrt(2) * largest[0]["l2"], rel=1e-9)
    assert largest[1]["l1"] == pytest.approx(largest[0]["l1"], rel=1e-9)
    assert largest[1]["linf"] == pytest.approx(2 * largest[0]["linf"], rel=1e-9)
    assert [m.present for m in two.margins] == pytest.approx([0, 0, 0], abs=1e-12)  # equal scores


def test_does_not_depend_on_the_size_of_the_weights_and_a_bias_is_a_weight() -> None:
    x, y = separable(12, 5, seed=4)
    x = x + 3 * y.mean()
    weight, bias = torch.randn(1, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64), torch.ones(1).double()
    found = margin_geometry(linear(x, y[:, None], weight, bias))
    longer = margin_geometry(linear(x, y[:, None], 7 * weight, 7 * bias))
    extended = margin_geometry(linear(torch.cat([x, torch.ones(12, 1)], 1), y[:, None], torch.cat([weight, bias[:, None]], 1)))
    for a, b, c in zip(found.margins, longer.margins, extended.margins, strict=True):
        assert (a.present, a.largest) == pytest.approx((b.present, b.largest), rel=1e-9)
        assert (a.present, a.largest) == pytest.approx((c.present, c.largest), rel=1e-9)


def test_a_deep_network_is_measured_on_its_own_features() -> None:
    torch.manual_seed(0)
    head = nn.Linear(30, 3).double()
    body = nn.Sequential(nn.Linear(5, 30), nn.Tanh()).double()
    net = nn.Sequential(*body, head)
    x = torch.randn(12, 5, dtype=torch.float64)
    y = torch.arange(12) % 3
    found = margin_geometry(Problem(net, F.cross_entropy, (x, y), params=["0.*"]))
    alone = margin_geometry(linear(body(x).detach(), y, head.weight.detach(), head.bias.detach()))
    assert found.head == "2"
    assert found.margins == alone.margins


def test_inseparable_features_are_said_to_be_so() -> None:
    x = torch.ones(2, 3, dtype=torch.float64)
    problem = linear(x, torch.tensor([0, 1]), torch.randn(2, 3, generator=torch.Generator().manual_seed(0)))
    found = margin_geometry(problem)
    assert not found.separable
    assert [m.largest for m in found.margins] == [0, 0, 0]
    assert all(m.present < 0 for m in found.margins)
    assert {"no weights of the model separate these features"} == {r.note for r in found.readings()}
    x, y = separable(6, 3, seed=0)
    assert {r.name for r in margin_geometry(linear(x, y[:, None], torch.ones(1, 3))).readings()} == {
        f"{norm} margin over the largest" for norm in ("l1", "l2", "linf")
    }


@pytest.mark.parametrize("gap", [1e-1, 1e-2, 1e-6, 1e-11])
def test_a_head_that_separates_shows_that_the_features_are_separable(gap: float) -> None:
    """Points 1000 ± gap with a bias; the smallest gap is below what the programs see, and the head is then its own witness."""
    x = torch.tensor([[1000 + gap], [1000 - gap]], dtype=torch.float64)
    found = margin_geometry(linear(x, torch.tensor([[1.0], [-1.0]]), torch.ones(1, 1), torch.tensor([-1000.0])))
    assert found.separable
    for m in found.margins:
        assert 0 < m.present <= m.largest
        assert m.norm != "l2" or m.present == pytest.approx(m.largest, rel=1e-2)


@pytest.mark.parametrize(
    ("net", "y", "match"),
    [
        (nn.Sequential(nn.Linear(3, 2), nn.Softmax(1)), torch.tensor([0, 1]), "ends in one"),
        (nn.Sequential(nn.Linear(3, 2), nn.ReLU(inplace=True)), torch.tensor([0, 1]), "ends in one"),
        (nn.Sequential(nn.Conv1d(1, 2, 3), nn.Flatten()), torch.tensor([0, 1]), "ends in one"),
        (nn.Linear(3, 2), torch.tensor([[0.3, 0.1], [0.2, 0.0]]), "no one-hot classes"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)), torch.tensor([0, 1]), "parametrization"),
        (Masked(3, 2), torch.tensor([0, 1]), "outputs of the model, a Masked, are not those of its weight"),
        (Cosine(3, 2), torch.tensor([0, 1]), "outputs of the model, a Cosine, are not those of its weight"),
    ],
)
def test_refuses_what_has_no_linear_head(net: nn.Module, y: Tensor, match: str) -> None:
    x = torch.eye(3)[:2]
    x = x[:, None] if isinstance(net, nn.Sequential) and isinstance(net[0], nn.Conv1d) else x
    if isinstance(net, nn.Sequential) and isinstance(net[0], nn.Linear):  # outputs of either sign, of which an activation takes one
        with torch.no_grad():
            net[0].weight.copy_(torch.tensor([[1.0, -1.0, 0.5], [-1.0, 1.0, 0.5]]))
            net[0].bias.zero_()
    with pytest.raises(Inapplicable, match=match):
        margin_geometry(Problem(net, F.cross_entropy, (x, y)))


def test_a_head_may_be_called_by_keyword() -> None:
    class Keyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(input=x)

    net, data = Keyword(), (torch.eye(3)[:2], torch.tensor([0, 1]))
    assert margin_geometry(Problem(net, F.cross_entropy, data)).margins == margin_geometry(Problem(net.head, F.cross_entropy, data)).margins


def test_refuses_a_head_of_zeros() -> None:
    with pytest.raises(ValueError, match="are zero and have no margin"):
        margin_geometry(linear(torch.eye(2), torch.tensor([0, 1]), torch.zeros(2, 2)))


def test_refuses_programs_that_would_not_end() -> None:
    with pytest.raises(ValueError, match="Measure fewer rows"):
        margin_geometry(linear(torch.ones(60, 20), torch.arange(60), torch.ones(300, 20)))
