"""The noise scale with curvature: unbiased, with errors of the right size, from all rows and from some."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import make, mlp, vectors

import theorylab as tl
from theorylab.core.estimate import Estimate
from theorylab.core.problem import Problem
from theorylab.instruments.noise_scale import NoiseScale, dense_noise_scale, noise_scale
from theorylab.theory.optimizers import gradient_noise_scale

CURVATURE = torch.tensor([4.0, 1.0, 0.5, 0.2, 0.1, 0.1], dtype=torch.float64)
SPREAD = torch.tensor([1.0, 2.0, 1.0, 3.0, 1.0, 2.0], dtype=torch.float64)
TRACE = float((CURVATURE * SPREAD**2).sum())


class Bowl(nn.Module):
    """Output x·θ + ½ θᵀHθ: at θ = 0 the gradient of a row is the row, and the Hessian is H."""

    def __init__(self, curvature: Tensor) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros_like(curvature))
        self.register_buffer("curvature", curvature)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.theta + 0.5 * (self.get_buffer("curvature") * self.theta**2).sum()


def bowl(n: int, seed: int, size: float, curvature: Tensor = CURVATURE) -> Problem:
    """Rows are normal around a gradient whose entries are ``size``."""
    x = size + SPREAD * torch.randn(n, len(SPREAD), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Problem(Bowl(curvature), lambda o, y: o, (x, torch.zeros(n)), dtype=torch.float64)


@pytest.mark.parametrize(("rows", "size"), [(60, 1.0), (20, 1.0), (20, 0.0)])
def test_estimates_are_unbiased_with_errors_of_the_right_size(rows: int, size: float) -> None:
    found = [noise_scale(bowl(60, seed, size), rows=rows, seed=seed) for seed in range(150)]
    along = size**2 * float(CURVATURE.sum())
    for truth, estimates in ((TRACE, [f.trace for f in found]), (along, [f.along for f in found])):
        values = torch.tensor([e.value for e in estimates], dtype=torch.float64)
        assert abs(float(values.mean()) - truth) < 4 * float(values.std()) / math.sqrt(len(values))
        stated = torch.tensor([e.stderr for e in estimates]).square().mean().sqrt()
        assert 0.8 < float(stated / values.std()) < 1.3  # of 150 the standard deviation errs by 5 % and more, for squares are skewed
    covariance = torch.cov(torch.tensor([[f.trace.value, f.along.value] for f in found]).T)
    stated = sum(f.covariance for f in found) / len(found)
    assert stated == pytest.approx(float(covariance[0, 1]), abs=0.25 * float((covariance[0, 0] * covariance[1, 1]).sqrt()))


def test_the_interval_covers_the_noise_scale() -> None:
    truth = TRACE / (0.5**2 * float(CURVATURE.sum()))
    found = [noise_scale(bowl(60, seed, 0.5), rows=30, seed=seed) for seed in range(150)]
    inside = [low <= truth <= high for low, high in (f.interval(0.9) for f in found if f.along.interval(0.9)[1] > 0)]
    assert sum(inside) >= 124  # of 135 ± 4 expected; where the interval is refused it counts as a miss


def test_the_sample_errs_as_it_says_and_its_oracle_takes_the_same_rows() -> None:
    problem = make("mlp, minibatches")
    some, oracle = noise_scale(problem, rows=5, seed=3), dense_noise_scale(problem, rows=5, seed=3)
    for a, b in ((some.trace, oracle.trace), (some.along, oracle.along)):
        assert a.value == pytest.approx(b.value, rel=1e-9)
        assert a.stderr == pytest.approx(b.stderr, rel=1e-8)
        assert a.n == b.n
    assert some.covariance == pytest.approx(oracle.covariance, rel=1e-8)
    assert some.trace.n == 5
    assert some.along.n == problem.n
    assert some.trace.value != noise_scale(problem, rows=5, seed=4).trace.value


def test_the_size_of_all_rows_makes_the_estimate_from_some_more_exact() -> None:
    """With equal curvature the size tells all: twenty rows are as good as sixty."""
    equal = torch.full_like(CURVATURE, 2.0)
    some, every = (noise_scale(bowl(60, 0, 1.0, equal), rows=rows).trace for rows in (20, 60))
    assert some.value == pytest.approx(every.value, rel=1e-9)
    assert some.stderr == pytest.approx(every.stderr, rel=1e-6)


def test_it_is_the_theorys_on_the_matrices_of_least_squares_up_to_the_bias_of_a_sample() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 5, generator=generator, dtype=torch.float64) * torch.tensor([1.0, 1.0, 0.5, 0.2, 0.1])
    y = x @ torch.tensor([[0.0], [0.0], [0.0], [3.0], [6.0]], dtype=torch.float64) + torch.randn(
        400, 1, generator=generator, dtype=torch.float64
    )
    problem = Problem(nn.Linear(5, 1, bias=False), nn.functional.mse_loss, (x, y), dtype=torch.float64)
    problem = problem.at({"weight": torch.zeros(1, 5)})
    g = 2 * (x @ torch.zeros(5, 1, dtype=torch.float64) - y) * x
    H, mean = (2 * x.T @ x / 400).numpy(), g.mean(0).numpy()
    found = noise_scale(problem, rows=400)
    expected = gradient_noise_scale(H, np.cov(g.numpy().T), mean)
    assert found.noise_scale.value == pytest.approx(1 / (1 / expected - 1 / 400), rel=1e-9)  # ḡᵀHḡ is too large by tr(HΣ)/n
    assert found.proxy.trace.value == pytest.approx(np.trace(np.cov(g.numpy().T)), rel=1e-9)
    assert abs(found.noise_scale.value / found.proxy.simple_noise_scale.value - 1) > 0.2  # the gradient lies where the loss is flat


def test_with_equal_curvature_it_is_the_proxy() -> None:
    found = noise_scale(bowl(60, 0, 1.0, torch.full_like(CURVATURE, 3.0)), rows=60)
    assert found.noise_scale.value == pytest.approx(found.proxy.simple_noise_scale.value, rel=1e-10)


def test_where_there_is_no_scale_it_says_why_and_the_card_shows_the_parts() -> None:
    concave = noise_scale(bowl(60, 0, 3.0, -CURVATURE))
    with pytest.raises(ValueError, match="GᵀHG must be positive for a noise scale"):
        _ = concave.noise_scale
    with pytest.raises(ValueError, match="GᵀHG must be positive for a noise scale"):
        concave.interval()
    mixed = NoiseScale(Estimate(-1.0, 0.1, 50), Estimate(2.0, 0.1, 50), 0.0, concave.proxy)
    with pytest.raises(ValueError, match="tr\\(HΣ\\) must be positive"):
        _ = mixed.noise_scale
    assert [r.name for r in concave.readings()] == ["curvature along the gradient, GᵀHG", "curvature along the noise, tr(HΣ)"]


def test_the_card_reads_the_scale_with_its_interval_and_leaves_an_upper_end_open() -> None:
    (reading,) = noise_scale(bowl(60, 0, 2.0)).readings()
    assert reading.interval is not None
    assert reading.interval[0] < reading.value < reading.interval[1]
    drowned = NoiseScale(Estimate(8.0, 0.4, 50), Estimate(0.1, 0.3, 50), 0.0, noise_scale(bowl(60, 0, 2.0)).proxy)
    (reading,) = drowned.readings()
    assert reading.interval is None
    assert "without an upper end" in reading.note


def test_wrong_input_is_refused() -> None:
    with pytest.raises(ValueError, match="rows must be at least 3"):
        noise_scale(make("mlp"), rows=2)
    with pytest.raises(ValueError, match="data must hold at least 3 rows to give an error, got 2"):
        noise_scale(tl.Problem(mlp(), F.cross_entropy, vectors(2)))
    with pytest.raises(tl.Inapplicable, match="couples the rows"):
        noise_scale(make("cnn, BatchNorm train"))
    with pytest.raises(tl.Inapplicable, match="too few digits"):
        noise_scale(make("mlp", dtype=torch.bfloat16))
