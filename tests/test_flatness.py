"""Flatness: σ is a standard deviation with a closed form on quadratics, and each kind forgets the rescaling that it says."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import make

from theorylab.core.instrument import Inapplicable
from theorylab.core.problem import Problem
from theorylab.core.seeds import derived_seed
from theorylab.instruments.flatness import Kind, flatness, never_rises, slow_flatness
from theorylab.instruments.predictions import predictions


def relu_problem() -> Problem:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    return Problem(net, F.cross_entropy, (torch.randn(30, 4), torch.arange(30) % 3), dtype=torch.float64)


def rescaled(problem: Problem, c: Tensor) -> Problem:
    """The same function: hidden unit j's inputs times c_j, its outputs over c_j."""
    p = problem.params
    moved = problem.at({"0.weight": c[:, None] * p["0.weight"], "0.bias": c * p["0.bias"], "2.weight": p["2.weight"] / c})
    assert float(moved.loss()) == pytest.approx(float(problem.loss()), rel=1e-12)
    return moved


def right(problem: Problem) -> Problem:
    """The same network on labels that it gets right, so that its error can rise."""
    scores, _ = predictions(problem)
    batches = [
        (b.content[0], part) for b, part in zip(problem.batches, scores.argmax(1).split([b.rows for b in problem.batches]), strict=True)
    ]
    return Problem(problem.model, F.cross_entropy, batches, dtype=torch.float64, train=problem.train)


WHOLE = torch.full((6,), 7.0, dtype=torch.float64)
UNITS = torch.tensor([0.2, 1.0, 5.0, 0.5, 3.0, 9.0], dtype=torch.float64)


@pytest.mark.parametrize(("kind", "layer", "unit"), [("isotropic", False, False), ("magnitude", True, True), ("adaptive", True, False)])
def test_each_kind_forgets_the_rescaling_that_it_says_and_no_other(kind: Kind, layer: bool, unit: bool) -> None:
    problem = relu_problem()
    options = {"kind": kind, "drop": 0.3, "draws": 8, "tol": 1e-10}
    before = flatness(problem, **options).value
    for c, same in ((WHOLE, layer), (UNITS, unit)):
        after = flatness(rescaled(problem, c), **options).value
        assert (abs(after / before - 1) < 1e-8) is same
        assert same or abs(after / before - 1) > 0.05


def test_is_a_standard_deviation_on_a_quadratic() -> None:
    """E L(θ + σε) − L(θ) = σ² tr(H)/2 where L is quadratic."""
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    problem = Problem(nn.Linear(4, 2), F.mse_loss, (x, torch.zeros(50, 2)), dtype=torch.float64)
    design = torch.cat([x.double(), torch.ones(50, 1).double()], 1)
    trace = 2 * float((design.T @ design).trace()) / 50 / 2 * 2  # two outputs, each with the Hessian 2 XᵀX/(2·50)
    for drop in (0.01, 1.0):
        found = flatness(problem, drop=drop, draws=60)
        assert abs(found.value - math.sqrt(2 * drop / trace)) < 5 * found.stderr
        assert found.stderr < 0.1 * found.value


def line(size: float, dtype: torch.dtype) -> Problem:
    """A linear net on inputs of this size, at its minimum."""
    torch.manual_seed(0)
    net, x = nn.Linear(3, 2, bias=False), size * torch.randn(50, 3, dtype=torch.float64)
    return Problem(net, F.mse_loss, (x.to(dtype), F.linear(x.to(dtype), net.weight.detach().to(dtype))), dtype=dtype)


@pytest.mark.parametrize("size", [1e6, 1e7, 1e9])
def test_the_sharpest_minimum_is_found_where_the_digits_reach_and_refused_where_not(size: float) -> None:
    """Inputs c times as large make the loss c² times as curved, and σ is 1/c of what it was."""
    gentle, steep = (flatness(line(c, torch.float64), drop=0.01) for c in (1.0, size))
    assert steep.value * size == pytest.approx(gentle.value, rel=1e-3)  # its tol, and rounding by 1e-16 of steps of 1e-11 and more
    assert steep.stderr * size == pytest.approx(gentle.stderr, rel=1e-2)
    with pytest.raises(ValueError, match=r"too steep for these digits\. Use dtype=torch\.float64"):
        flatness(line(size, torch.float32), drop=0.01)


def test_a_rise_that_rounding_of_the_loss_hides_is_refused() -> None:
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    far = Problem(nn.Linear(3, 1), F.mse_loss, (x, torch.full((50, 1), 1e4)))
    for measure in (flatness, slow_flatness):
        with pytest.raises(ValueError, match="units of rounding of the loss"):
            measure(far)
    assert flatness(far, drop=1e4).value > 0


def test_a_risk_that_jumps_has_no_flatness() -> None:
    x = torch.ones(4, 1)
    net = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        net.weight.fill_(1.0)
    jump = Problem(net, lambda o, y: (o != y).double().mean() + 0 * o.sum(), (x, x), dtype=torch.float64)
    with pytest.raises(ValueError, match="the risk jumps"):
        flatness(jump)


def test_the_standard_error_is_that_of_other_draws() -> None:
    problem = relu_problem()
    found = [flatness(problem, draws=4, seed=s) for s in range(30)]
    spread = torch.tensor([f.value for f in found]).std()
    claimed = sum(f.stderr for f in found) / len(found)
    assert 0.5 < claimed / float(spread) < 2  # thirty values give their spread to 13 %, four draws their own to 40 %


@pytest.mark.parametrize("risk", ["loss", "error"])
def test_agrees_with_its_oracle_to_the_tolerance_of_the_root(risk: str) -> None:
    for name in ("mlp, minibatches",):
        problem = right(make(name))
        options = {"risk": risk, "kind": "adaptive", "drop": 0.11, "draws": 5}
        fast, slow = flatness(problem, tol=1e-11, **options), slow_flatness(problem, **options)  # type: ignore[arg-type]
        assert fast.value == pytest.approx(slow.value, rel=1e-8)


def test_the_mean_rise_at_sigma_is_the_drop() -> None:
    problem = relu_problem()
    sigma, centre, start = flatness(problem, drop=0.2, draws=3, tol=1e-11).value, problem.flatten(problem.params), float(problem.loss())
    generators = [torch.Generator().manual_seed(derived_seed(0, "draw", i)) for i in range(3)]
    noise = [torch.randn(problem.P, generator=generator, dtype=torch.float64) for generator in generators]
    rises = [float(problem.at(problem.unflatten(centre + sign * sigma * z)).loss()) - start for z in noise for sign in (1, -1)]
    assert sum(rises) / 6 == pytest.approx(0.2, rel=1e-9)


def test_flatter_where_more_drop_is_allowed_and_with_the_error_instead_of_the_loss() -> None:
    problem = relu_problem()
    assert flatness(problem, drop=0.5).value > flatness(problem, drop=0.05).value
    assert flatness(right(problem), risk="error", drop=0.05).value > 0


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"drop": 0.0}, "drop must be positive"),
        ({"draws": 1}, "draws at least 2"),
        ({"kind": "flat"}, "kind must"),
        ({"risk": "r"}, "risk must"),
    ],
)
def test_refuses(options: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        flatness(relu_problem(), **options)


@pytest.mark.parametrize("constant", [0.0, 5.0])
def test_a_linear_loss_never_rises_whatever_it_is_at_the_start(constant: float) -> None:
    x = torch.randn(9, 3, generator=torch.Generator().manual_seed(0))
    reason = never_rises(Problem(nn.Linear(3, 1), lambda o, t: o.mean() + constant, (x, torch.zeros(9))))
    assert reason is not None
    assert "linear in the selected parameters" in reason
    assert never_rises(Problem(nn.Linear(3, 1), lambda o, t: o.square().mean() + constant, (x, torch.zeros(9)))) is None


def test_says_so_where_the_risk_cannot_rise() -> None:
    x = torch.randn(9, 3, generator=torch.Generator().manual_seed(0))
    flat = Problem(nn.Linear(3, 1), lambda o, t: o.sigmoid().mean(), (x, torch.zeros(9)))
    with pytest.raises(ValueError, match="must rise by drop"):
        flatness(flat, drop=2.0)
    with pytest.raises(Inapplicable, match="risk='loss'"):
        flatness(flat, risk="error")
