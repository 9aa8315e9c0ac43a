"""What the kernel says of learning, against training itself: predictions, alignment, and how far a network moved."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import make

from theorylab.core.instrument import Inapplicable
from theorylab.core.problem import Problem
from theorylab.instruments.curvature import ggn
from theorylab.instruments.kernel_learning import kernel_alignment, kernel_regression, kernel_spectrum
from theorylab.instruments.kernels import ntk
from theorylab.instruments.lazy import distance_moved


def regression(width: int = 8, *, outputs: int = 1, n: int = 6) -> Problem:
    """A one-hidden-layer net on a regression task, in float64."""
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(n, 3, generator=g), torch.randn(n, outputs, generator=g)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, outputs))
    return Problem(net, F.mse_loss, (x, y), dtype=torch.float64)


def linearized_fit(problem: Problem, x: Tensor, ridge: float) -> Tensor:
    """Outputs at x of the linearized network at its ridge solution, by least squares over its parameters."""

    def features(inputs: Tensor) -> tuple[Tensor, Tensor]:
        def f(p: dict[str, Tensor]) -> Tensor:
            return torch.func.functional_call(problem.model, p, (inputs,)).flatten()

        J = torch.func.jacrev(f)(problem.params)
        return f(problem.params).detach(), torch.cat([j.reshape(len(j), -1) for j in J.values()], 1).detach()

    f0, J = features(problem.batches[0].content[0])
    ends, K = features(x)
    y = problem.batches[0].content[1].flatten()
    penalty = ridge**0.5 * torch.eye(J.shape[1], dtype=J.dtype)
    step = torch.linalg.lstsq(torch.cat([J, penalty]), torch.cat([y - f0, torch.zeros(J.shape[1], dtype=J.dtype)]), driver="gelsd").solution
    return ends + K @ step


@pytest.mark.parametrize(("ridge", "outputs"), [(0.0, 1), (0.1, 1), (0.1, 2)])
def test_kernel_regression_is_the_linearized_network_at_its_minimum(ridge: float, outputs: int) -> None:
    problem = regression(outputs=outputs)
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    absolute = ridge * float(ntk(problem).diagonal().mean())
    found = kernel_regression(problem, x, ridge=ridge).prediction
    assert torch.allclose(found.flatten(), linearized_fit(problem, x, absolute), rtol=1e-7, atol=1e-9)


def test_without_a_ridge_the_fit_interpolates_and_with_one_it_falls_short() -> None:
    problem = regression()
    y = problem.batches[0].content[1]
    assert torch.allclose(kernel_regression(problem, ridge=0.0).prediction, y, atol=1e-9)
    errors = [float((kernel_regression(problem, ridge=r).prediction - y).norm()) for r in (0.01, 0.1, 1.0)]
    assert errors == sorted(errors)
    assert errors[0] > 1e-4


def test_a_kernel_with_equal_rows_needs_a_ridge() -> None:
    problem = regression()
    x, y = problem.batches[0].content
    twice = Problem(problem.model, F.mse_loss, (torch.cat([x, x]), torch.cat([y, y])), dtype=torch.float64)
    with pytest.raises(ValueError, match="singular to rounding"):
        kernel_regression(twice, ridge=0.0)
    with pytest.raises(ValueError, match="ridge must be at least 0, got -1"):
        kernel_regression(problem, ridge=-1.0)


def test_outputs_taken_as_independent_share_the_mean_kernel() -> None:
    problem = make("mlp")
    found = kernel_regression(problem, ridge=0.1, trace_outputs=True)
    K, c = ntk(problem, trace_outputs=True), 3
    target = F.one_hot(problem.batches[0].content[1], c).double()
    mean = K / c  # the ridge is relative, so that the scale of the kernel does not matter
    fit = mean @ torch.linalg.solve(mean + 0.1 * mean.diagonal().mean() * torch.eye(12, dtype=torch.float64), target - found.start)
    assert torch.allclose(found.prediction, found.start + fit, rtol=1e-9)


def test_eigenvalues_are_those_of_the_gauss_newton_matrix() -> None:
    problem = regression()
    half = Problem(problem.model, lambda o, t: 0.5 * (o - t).pow(2).sum(1), problem.batches[0].content, dtype=torch.float64)
    values = torch.linalg.eigvalsh(ggn(half).to_dense()).flip(0)
    assert torch.allclose(kernel_spectrum(half) / half.n, values[:6], rtol=1e-9, atol=1e-12)
    assert float(values[6:].abs().max()) < 1e-12


def test_alignment_is_one_for_the_labels_own_kernel_and_small_for_shuffled_labels() -> None:
    """A linear model on unit-vector inputs by class has the labels' kernel, up to a constant that centering removes."""
    labels = torch.arange(60) % 3
    x = F.one_hot(labels, 3).double()
    net = nn.Linear(3, 3)
    assert kernel_alignment(Problem(net, F.cross_entropy, (x, labels), dtype=torch.float64)) == pytest.approx(1.0)
    g = torch.Generator().manual_seed(0)
    shuffled = [
        kernel_alignment(Problem(net, F.cross_entropy, (x, labels[torch.randperm(60, generator=g)]), dtype=torch.float64))
        for _ in range(40)
    ]
    samples = torch.tensor(shuffled)
    expected = (2 * 2) ** 0.5 / 59  # √((k − 1) r) / (n − 1): this kernel has k − 1 equal eigenvalues
    assert abs(float(samples.mean()) - expected) < 4 * float(samples.std()) / 40**0.5
    assert float(samples.max()) < 0.2


def test_alignment_refuses_what_has_no_direction() -> None:
    x = torch.randn(4, 3)
    with pytest.raises(ValueError, match="targets must not all be equal"):
        kernel_alignment(Problem(nn.Linear(3, 2), F.cross_entropy, (x, torch.zeros(4, dtype=torch.long))))
    with pytest.raises(ValueError, match="centered kernel is zero"):
        kernel_alignment(Problem(nn.Linear(3, 2), F.cross_entropy, (torch.ones(4, 3), torch.arange(4) % 2)))
    sequence = Problem(nn.Linear(3, 2), lambda o, t: o.mean((1, 2)), (torch.randn(4, 5, 3), torch.zeros(4, 5, dtype=torch.long)))
    with pytest.raises(Inapplicable, match="one class a row"):
        kernel_alignment(sequence)


def trained(width: int, scale: float) -> tuple[Problem, Problem]:
    """A net whose outputs are multiplied by ``scale`` and centred at the start, before and after the same fit by gradient descent."""
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(8, 3, generator=g, dtype=torch.float64), torch.randn(8, 1, generator=g, dtype=torch.float64)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 1)).double()
    start = net(x).detach()
    after = before = Problem(net, lambda o, t: 0.5 * (scale * (o - start) - t).pow(2).sum(1), (x, y))
    top = float(kernel_spectrum(before)[0]) * scale**2 / 8
    for _ in range(300):
        step = after.unflatten(after.gradient() / top)
        after = after.at({k: p - step[k] for k, p in after.params.items()})
    return before, after


def test_a_large_output_scale_trains_lazily_and_a_small_one_richly() -> None:
    """Chizat's scaling: the larger the scale, the less parameters move, and the nearer training stays to the linearized network."""
    lazy, rich = (distance_moved(*trained(8, scale)) for scale in (30.0, 1.0))
    for name in ("parameters", "kernel", "rotation", "nonlinearity"):
        assert getattr(lazy, name) < 0.2 * getattr(rich, name), name
    assert lazy.nonlinearity < 0.05


def test_distances_by_hand_and_refusals() -> None:
    problem = regression()
    double = problem.at({k: 2 * p for k, p in problem.params.items()})
    moved = distance_moved(problem, double)
    assert moved.parameters == pytest.approx(1.0)
    assert distance_moved(problem, double.params) == moved
    first, last = ntk(problem), ntk(double)
    assert moved.kernel == pytest.approx(float((first - last).norm() / first.norm()))
    assert moved.rotation == pytest.approx(1 - float((first * last).sum() / first.norm() / last.norm()))
    with pytest.raises(ValueError, match="nothing moved"):
        distance_moved(problem, problem)
    with pytest.raises(ValueError, match="same shapes"):
        distance_moved(problem, regression(width=5))
    with pytest.raises(Inapplicable, match="hides the model's outputs"):
        distance_moved(make("dict batches, custom loss"), make("dict batches, custom loss"))
