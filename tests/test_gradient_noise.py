"""The gradient noise scale: unbiased, with errors of the right size, the same from rows and from minibatches."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import make, mlp, vectors

from theorylab.core.estimate import Estimate
from theorylab.core.instrument import Inapplicable
from theorylab.core.problem import Problem
from theorylab.instruments.gradient_noise import GradientNoise, dense_gradient_noise, gradient_noise
from theorylab.instruments.rows import per_example_grads

SIGMA2, NORM2, WIDTH = 4.0, 1.0, 8  # of each entry's noise, and ‖G‖²


def normal_rows(n: int, seed: int, norm2: float = NORM2) -> Problem:
    """A loss linear in its parameters: the gradient of a row is the row itself, normal around a mean of squared norm ``norm2``."""
    generator = torch.Generator().manual_seed(seed)
    x = SIGMA2**0.5 * torch.randn(n, WIDTH, generator=generator, dtype=torch.float64) + math.sqrt(norm2 / WIDTH)
    return Problem(nn.Linear(WIDTH, 1, bias=False), lambda o, y: o[:, 0], (x, torch.zeros(n)), dtype=torch.float64)


@pytest.mark.parametrize("size", [1, 4])
def test_estimates_are_unbiased_with_errors_of_the_right_size(size: int) -> None:
    found = [gradient_noise(normal_rows(48, seed), batch_size=size) for seed in range(200)]
    for truth, estimates in ((SIGMA2 * WIDTH, [f.trace for f in found]), (NORM2, [f.squared_norm for f in found])):
        values = torch.tensor([e.value for e in estimates], dtype=torch.float64)
        assert abs(float(values.mean()) - truth) < 4 * float(values.std()) / math.sqrt(len(values))
        stated = torch.tensor([e.stderr for e in estimates]).square().mean().sqrt()
        assert 0.8 < float(stated / values.std()) < 1.3
    covariance = torch.cov(torch.tensor([[f.trace.value, f.squared_norm.value] for f in found]).T)
    stated = sum(f.covariance for f in found) / len(found)
    assert stated == pytest.approx(float(covariance[0, 1]), abs=0.25 * float((covariance[0, 0] * covariance[1, 1]).sqrt()))


def test_the_biased_ratio_that_ignores_the_noise_of_the_mean_is_seen_to_be_wrong() -> None:
    """A control: ‖ḡ‖² itself is too large by tr Σ / n."""
    found = [gradient_noise(normal_rows(48, seed)) for seed in range(200)]
    naive = torch.tensor([f.squared_norm.value + f.trace.value / 48 for f in found], dtype=torch.float64)
    assert float(naive.mean()) - NORM2 > 8 * float(naive.std()) / math.sqrt(200)


@pytest.mark.parametrize("norm2", [1.0, 0.0])
def test_the_interval_covers_the_noise_scale_also_where_it_has_no_upper_end(norm2: float) -> None:
    truth = SIGMA2 * WIDTH / norm2 if norm2 else math.inf
    covered, unbounded = 0, 0
    for seed in range(200):
        low, high = gradient_noise(normal_rows(48, seed, norm2)).interval(0.9)
        covered += low <= truth <= high
        unbounded += math.isinf(high)
    assert covered >= 165  # of 180 ± 4 expected; the test is not exact, for squares of normal means are skewed
    assert unbounded > (100 if norm2 == 0 else 0)


def test_rows_are_taken_in_parts_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = gradient_noise(make("cnn, BatchNorm eval"))
    monkeypatch.setattr("theorylab.instruments.gradient_noise.ENTRIES", 1)
    parts = gradient_noise(make("cnn, BatchNorm eval", batch_size=5))
    assert parts.trace.value == pytest.approx(whole.trace.value, rel=1e-12)
    assert parts.squared_norm.stderr == pytest.approx(whole.squared_norm.stderr, rel=1e-10)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_errors_agree_with_the_oracle_also_for_uneven_minibatches(size: int) -> None:
    fast, slow = (measure(make("mlp"), batch_size=size) for measure in (gradient_noise, dense_gradient_noise))
    for a, b in ((fast.trace, slow.trace), (fast.squared_norm, slow.squared_norm)):
        assert a.value == pytest.approx(b.value, rel=1e-10)
        assert a.stderr == pytest.approx(b.stderr, rel=1e-9)
        assert a.n == b.n
    assert fast.covariance == pytest.approx(slow.covariance, rel=1e-8)


def masked(n: int = 24) -> Problem:
    """A mean over tokens, of which rows hold none to three; batches weigh by their tokens."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, 4, (n, 3), generator=generator)
    y[torch.rand(n, 3, generator=generator) < 0.6] = -100
    y[::2, 0] = 1  # something in every two rows
    model = nn.Sequential(nn.Linear(5, 12), nn.Unflatten(1, (4, 3)))
    x = torch.randn(n, 5, generator=generator)
    return Problem(model, F.cross_entropy, (x, y), dtype=torch.float64, count=lambda content: float((content[1] >= 0).sum()))


@pytest.mark.parametrize("size", [2, 4, 5])
@pytest.mark.parametrize("measure", [gradient_noise, dense_gradient_noise])
def test_minibatches_of_a_mean_over_tokens_are_means_of_their_rows(measure: Callable[..., GradientNoise], size: int) -> None:
    """The gradients of rows, which share the mean over tokens, averaged by minibatch."""
    problem = masked()
    groups = per_example_grads(problem).split(size)
    b, g = torch.tensor([float(len(group)) for group in groups]).double(), torch.stack([group.mean(0) for group in groups])
    trace = float((b[:, None] * (g - problem.gradient()).square()).sum()) / (len(groups) - 1)
    found = measure(problem, batch_size=size)
    assert found.trace.value == pytest.approx(trace, rel=1e-10)
    assert found.squared_norm.value == pytest.approx(float(problem.gradient().square().sum()) - trace / problem.n, rel=1e-9)


WEIGHTED = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 0.2], dtype=torch.float64))


@pytest.mark.parametrize("own", [None, 3])
@pytest.mark.parametrize("loss", [WEIGHTED, lambda o, y: F.mse_loss(o[:-1], o[1:]), lambda o, y: (o @ o.T).logsumexp(1).mean()])
def test_minibatches_of_a_loss_that_is_no_mean_of_rows_are_refused(loss: Callable[..., Tensor], own: int | None) -> None:
    problem = Problem(mlp(), loss, vectors(), dtype=torch.float64, batch_size=own)
    with pytest.raises(Inapplicable, match="not the mean of the losses of its rows"):
        gradient_noise(problem, batch_size=3)


def test_dropout_is_part_of_the_noise() -> None:
    assert gradient_noise(make("dropout"), batch_size=2).trace.value > 0


def test_the_ratio_has_the_error_of_a_ratio() -> None:
    noise = GradientNoise(Estimate(8.0, 0.4, 1000), Estimate(2.0, 0.02, 1000), 0.0)
    assert noise.critical_batch_size.value == 4
    assert noise.simple_noise_scale.stderr == pytest.approx(4 * math.hypot(0.4 / 8, 0.02 / 2))
    low, high = noise.interval(0.95)
    half = 1.962 * noise.simple_noise_scale.stderr
    assert low == pytest.approx(4 - half, rel=5e-3)
    assert high == pytest.approx(4 + half, rel=5e-3)
    doubtful = GradientNoise(Estimate(8.0, 0.4, 50), Estimate(-0.1, 0.3, 50), 0.0)
    with pytest.raises(ValueError, match="must be positive for a noise scale"):
        _ = doubtful.simple_noise_scale
    low, high = doubtful.interval(0.95)
    assert low == pytest.approx(8 / (-0.1 + 2.01 * 0.3), rel=0.02)
    assert math.isinf(high)


@pytest.mark.parametrize(("level", "t"), [(0.68, 1.0527), (0.95, 2.2622)])
def test_at_the_ends_of_the_interval_the_difference_is_as_many_errors_as_students_law_says(level: float, t: float) -> None:
    T, S, covariance = Estimate(8.0, 0.4, 10), Estimate(2.0, 0.3, 10), 0.05
    for r in GradientNoise(T, S, covariance).interval(level):
        error = math.sqrt(T.stderr**2 - 2 * r * covariance + r**2 * S.stderr**2)
        assert abs(T.value - r * S.value) == pytest.approx(t * error, rel=1e-3)


def test_wrong_input_is_refused() -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        gradient_noise(make("mlp"), batch_size=0)
    with pytest.raises(ValueError, match="at least 3 minibatches"):
        gradient_noise(make("mlp"), batch_size=6)
    with pytest.raises(ValueError, match="data must hold at least 3 rows to give an error, got 2"):
        gradient_noise(Problem(mlp(), F.cross_entropy, vectors(2)))
    silent = masked()
    silent.batches[0].content[1][:2] = -100
    with pytest.raises(ValueError, match="something that counts in every minibatch, 2 rows hold nothing"):
        gradient_noise(silent, batch_size=2)
    with pytest.raises(Inapplicable, match="couples the rows"):
        gradient_noise(make("cnn, BatchNorm train"))
