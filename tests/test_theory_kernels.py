"""Kernels of infinite width against quadrature, finite nets drawn at random, and each other."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from theorylab.core.problem import Problem
from theorylab.instruments.kernels import ntk
from theorylab.models.wide import wide_cnn, wide_mlp, wide_residual
from theorylab.theory import kernels
from theorylab.theory.activations import DUALS
from theorylab.theory.kernels import conv_kernel, dense_kernel, linearized_residual, residual_kernel
from theorylab.theory.wide_layers import Kernel, activate, convolve, dense, flatten, images, inputs, pool

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "erf": torch.erf,
    "gelu": F.gelu,
    "tanh": torch.tanh,
    "identity": lambda x: x,
}


def by_quadrature(f: Callable[[Tensor], Tensor], a: float, b: float, c: float, nodes: int = 120) -> float:
    """E[f(u) f(v)] by Gauss-Hermite quadrature along both axes."""
    x, w = (torch.from_numpy(t) for t in np.polynomial.hermite_e.hermegauss(nodes))
    w = w / math.sqrt(2 * math.pi)
    u = math.sqrt(a) * x[:, None].expand(nodes, nodes)
    v = b / math.sqrt(a) * x[:, None] + math.sqrt(max(c - b * b / a, 0.0)) * x[None]
    return float((w[:, None] * w[None] * f(u) * f(v)).sum())


def slope(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The derivative of an elementwise function."""

    def derivative(u: Tensor) -> Tensor:
        u = u.clone().requires_grad_()
        return torch.autograd.grad(f(u).sum(), u)[0]

    return derivative


@pytest.mark.parametrize("name", DUALS)
@pytest.mark.parametrize(("a", "b", "c"), [(1.0, 0.5, 1.0), (0.3, -0.4, 2.0), (1.5, 1.2, 1.0), (0.5, 0.0, 0.2)])
def test_duals_are_the_gaussian_expectations(name: str, a: float, b: float, c: float) -> None:
    """Smooth activations to rounding; at the kink of the ReLU the quadrature itself errs by a percent or so."""
    found = [v.item() for v in DUALS[name](*torch.tensor([[b], [a], [c]], dtype=torch.float64))]
    expected = [by_quadrature(f, a, b, c) for f in (FUNCTIONS[name], slope(FUNCTIONS[name]))]
    assert found == pytest.approx(expected, abs=2e-2 if name == "relu" else 1e-9)


def by_trapezoids(a: float, c: float, correlation: float) -> list[float]:
    """E[φ(u)φ(v)] and E[φ'(u)φ'(v)] of tanh, densely: the rule's error is exp(−2π · (π/2) / 0.25), of the nearest poles at any variance."""

    def nodes(scale: float) -> Tensor:
        step = 0.25 / max(scale, 1.0)
        return torch.arange(-math.ceil(9 / step), math.ceil(9 / step) + 1, dtype=torch.float64) * step

    rest = math.sqrt(1 - correlation**2)
    x, y = nodes(math.sqrt(max(a, c))), nodes(rest * math.sqrt(c))
    p, r = (torch.exp(-z * z / 2) * (z[1] - z[0]) / math.sqrt(2 * math.pi) for z in (x, y))
    total = torch.zeros(2, dtype=torch.float64)
    for z, weight in zip(x.split(500), p.split(500), strict=True):
        u, v = torch.tanh(math.sqrt(a) * z), torch.tanh(math.sqrt(c) * (correlation * z[:, None] + rest * y))
        total += torch.stack([(weight * u) @ (v @ r), (weight * (1 - u * u)) @ ((1 - v * v) @ r)])
    return total.tolist()


@pytest.mark.parametrize(
    ("a", "c", "correlation"),
    [(q, q, rho) for q in (0.01, 1.0, 2.0, 20.0, 100.0) for rho in (1.0, 1 - 1e-6, 0.5, -0.99, -1.0)]
    + [(1e4, 1e4, 1.0), (1e4, 1e4, -1.0), (1e4, 1e4, 0.5), (0.3, 50.0, 0.8), (1e-3, 1e3, 1.0)],
)
def test_the_dual_of_tanh_is_exact_at_any_variance_and_correlation(a: float, c: float, correlation: float) -> None:
    covariance = correlation * (a if a == c else math.sqrt(a * c))
    found = [v.item() for v in DUALS["tanh"](*torch.tensor([[covariance], [a], [c]], dtype=torch.float64))]
    assert found == pytest.approx(by_trapezoids(a, c, correlation), rel=1e-12)


@pytest.mark.parametrize("name", DUALS)
def test_the_dual_of_the_slope_is_the_derivative_in_the_covariance(name: str) -> None:
    b = torch.linspace(-0.9, 0.9, 7, dtype=torch.float64, requires_grad=True)
    a, c = torch.full_like(b, 0.8).detach(), torch.full_like(b, 1.3).detach()
    covariance, slopes = DUALS[name](b, a, c)
    (derivative,) = torch.autograd.grad(covariance.sum(), b)
    assert torch.allclose(slopes, derivative, rtol=1e-12)


@pytest.mark.parametrize("correlation", [1.0, 0.999, 0.5, 0.0, -0.5, -1.0])
@pytest.mark.parametrize("name", ["relu", "gelu", "identity"])
def test_duals_of_activations_that_grow_keep_their_digits_in_float32_at_any_variance(name: str, correlation: float) -> None:
    """And the exact ones of GELU tend to those of the ReLU."""
    a, ratio = torch.meshgrid(10.0 ** torch.arange(-4, 17, dtype=torch.float64), torch.tensor([1.0, 3.0]).double(), indexing="ij")
    c = ratio * a
    short = [(correlation * (a * c).sqrt()).float(), a.float(), c.float()]
    found, exact = DUALS[name](*short), DUALS[name](*(v.double() for v in short))
    size, eps = (a * c).sqrt(), torch.finfo(torch.float32).eps
    assert bool(((found[0] - exact[0]).abs() <= 2 * eps * size).all())
    assert bool(((found[1] - exact[1]).abs() <= 0.5 * eps**0.5).all())  # the angle of nearly parallel inputs is the root of their gap
    if name == "gelu":
        limit, far = DUALS["relu"](*(v.double() for v in short)), a > 1e5
        assert bool(((exact[0] - limit[0]).abs() <= size.sqrt())[far].all())
        assert bool(((exact[1] - limit[1]).abs() <= a**-0.5)[far].all())


def test_the_kernel_of_raw_pixels_in_float32_is_that_in_float64() -> None:
    pixels = torch.randint(0, 256, (8, 64), generator=torch.Generator().manual_seed(0)).double()
    for variance in (2.0, 100.0):
        short, exact = (dense_kernel(x, depth=3, activation="gelu", weight_variance=variance) for x in (pixels.float(), pixels))
        torch.testing.assert_close(short.nngp.double(), exact.nngp, rtol=1e-5, atol=0)
        torch.testing.assert_close(short.ntk.double(), exact.ntk, rtol=1e-4, atol=0)  # as its slopes, those of nearly parallel inputs


@pytest.mark.parametrize("name", DUALS)
def test_the_diagonal_is_exact_and_finite_also_at_zero_and_at_equal_or_opposite_inputs(name: str) -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(50, 7, generator=g, dtype=torch.float64)
    x = torch.cat([x, x[:3], -x[:3], 1e-9 * x[:1], torch.zeros(1, 7, dtype=torch.float64)])
    k = dense_kernel(x, depth=5, activation=name, weight_variance=2.0)
    assert all(bool(torch.isfinite(t).all()) for t in (k.nngp, k.ntk))
    assert torch.allclose(k.nngp.diagonal(), k.own, rtol=1e-12)
    assert float(torch.linalg.eigvalsh(k.ntk)[0]) > -1e-12 * float(k.ntk.diagonal().max())
    if name == "relu":  # variance 2 keeps the norm, and each of the six layers adds as much to the tangent kernel
        assert torch.allclose(k.ntk.diagonal(), 6 * 2 * x.square().mean(1), rtol=1e-12)


OUTPUTS = 4


def draws(make: Callable[[], nn.Sequential], x: Tensor, kind: dict[str, float]) -> tuple[Tensor, Tensor]:
    """Of 24 finite nets: the covariance of an output, and the tangent kernel's mean over outputs, (seed, n, n) each.

    The covariance is that over the last layer's parameters alone, given the features before it: the rest of the mean is over nets.
    """
    covariances, tangents = [], []
    for seed in range(24):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            net = make().double()
        with torch.no_grad():
            features = net[:-1](x)
        covariances.append(kind["weight_variance"] * features @ features.T / features.shape[1] + kind["bias_variance"])
        problem = Problem(net, F.mse_loss, (x, torch.zeros(len(x), OUTPUTS)), dtype=torch.float64)
        tangents.append(ntk(problem, trace_outputs=True) / OUTPUTS)
    return torch.stack(covariances), torch.stack(tangents)


def assert_mean(samples: Tensor, expected: Tensor, bias: float) -> None:
    """Within four standard errors, and a finite width's bias relative to the largest entry: of the order of depth over width."""
    error, size = samples.std(0) / math.sqrt(len(samples)), float(expected.abs().max())
    assert float(error.max()) < 0.05 * size, "too noisy to tell"
    assert bool(((samples.mean(0) - expected).abs() <= 4 * error + bias * size).all())


@pytest.mark.parametrize(("activation", "depth"), [("relu", 1), ("relu", 3), ("erf", 2), ("gelu", 2), ("tanh", 2)])
def test_dense_kernels_are_those_of_wide_nets(activation: str, depth: int) -> None:
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kind = {"depth": depth, "activation": activation, "weight_variance": 1.7, "bias_variance": 0.3}
    covariance, tangent = draws(lambda: wide_mlp(3, 256, OUTPUTS, **kind), x, kind)
    k = dense_kernel(x, **kind)
    assert_mean(covariance, k.nngp, 0.01)
    assert_mean(tangent, k.ntk, 0.01)


def test_residual_kernels_are_those_of_wide_nets() -> None:
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kind = {"blocks": 2, "activation": "gelu", "weight_variance": 1.2, "bias_variance": 0.2}
    covariance, tangent = draws(lambda: wide_residual(3, 256, OUTPUTS, **kind), x, kind)
    k = residual_kernel(x, **kind)
    assert_mean(covariance, k.nngp, 0.01)
    assert_mean(tangent, k.ntk, 0.01)


@pytest.mark.parametrize(("padding", "readout"), [("circular", "pool"), ("zeros", "pool"), ("zeros", "flatten")])
def test_convolutional_kernels_are_those_of_wide_nets(padding: str, readout: str) -> None:
    x = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kind = {"depth": 2, "weight_variance": 1.8, "bias_variance": 0.2, "padding": padding, "readout": readout}
    covariance, tangent = draws(lambda: wide_cnn(2, 96, 4, OUTPUTS, **kind), x, kind)
    k = conv_kernel(x, **kind)
    assert_mean(covariance, k.nngp, 0.02)
    assert_mean(tangent, k.ntk, 0.02)


def test_a_wrong_prediction_is_told_from_a_wide_net() -> None:
    """The control of the three tests above: another activation, or one layer less, is far outside their tolerance."""
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kind = {"weight_variance": 1.0, "bias_variance": 0.0}
    _, tangent = draws(lambda: wide_mlp(3, 256, OUTPUTS, depth=2, activation="gelu"), x, kind)
    assert_mean(tangent, dense_kernel(x, depth=2, activation="gelu").ntk, 0.01)
    for wrong in ({"depth": 2, "activation": "relu"}, {"depth": 1, "activation": "gelu"}):
        with pytest.raises(AssertionError):
            assert_mean(tangent, dense_kernel(x, **wrong).ntk, 0.01)


def test_blocks_of_a_kernel_are_the_kernel_of_blocks() -> None:
    g = torch.Generator().manual_seed(0)
    x, z = (torch.randn(n, 5, generator=g, dtype=torch.float64) for n in (3, 4))
    whole, block = dense_kernel(torch.cat([x, z]), depth=3), dense_kernel(x, z, depth=3)
    assert torch.allclose(block.ntk, whole.ntk[:3, 3:], rtol=1e-12)
    assert torch.allclose(block.nngp, whole.nngp[:3, 3:], rtol=1e-12)
    x, z = (torch.randn(n, 2, 3, 3, generator=g, dtype=torch.float64) for n in (2, 3))
    whole, block = conv_kernel(torch.cat([x, z]), depth=2, padding="zeros"), conv_kernel(x, z, depth=2, padding="zeros")
    assert torch.allclose(block.ntk, whole.ntk[:2, 2:], rtol=1e-12)


@pytest.mark.parametrize(("readout", "block"), [("pool", 81 * 4), ("pool", 1), ("flatten", 9 * 4)])
def test_a_kernel_in_blocks_of_images_is_the_kernel(monkeypatch: pytest.MonkeyPatch, readout: str, block: int) -> None:
    g = torch.Generator().manual_seed(0)
    x, z = (torch.randn(n, 2, 3, 3, generator=g, dtype=torch.float64) for n in (3, 5))
    options = {"depth": 2, "padding": "zeros", "readout": readout, "bias_variance": 0.1}
    whole, alone = conv_kernel(x, z, **options), conv_kernel(x, **options)
    sizes = []

    def counted(k: Kernel, *args) -> Kernel:
        sizes.append(k.nngp.numel())
        return convolve(k, *args)

    monkeypatch.setattr(kernels, "convolve", counted)
    monkeypatch.setattr(kernels, "BLOCK", block)
    for before, after in ((whole, conv_kernel(x, z, **options)), (alone, conv_kernel(x, **options))):
        for name in ("nngp", "ntk", "own", "other"):
            torch.testing.assert_close(getattr(after, name), getattr(before, name), rtol=1e-13, atol=0)
    assert max(sizes) == max(block, 81 if readout == "pool" else 9)  # a pair of images is the least


def test_pooling_a_convolutional_kernel_does_not_see_shifts_and_flattening_does() -> None:
    x = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shifted = torch.roll(x, (1, 2), (2, 3))
    same = conv_kernel(x, shifted, depth=2).ntk - conv_kernel(x, depth=2).ntk
    assert float(same.abs()) < 1e-12
    other = conv_kernel(x, shifted, depth=2, readout="flatten").ntk / conv_kernel(x, depth=2, readout="flatten").ntk
    assert float(other) < 0.9


def test_units_of_images_after_pooling_may_be_activated_again() -> None:
    """`own` follows pooling: a layer after it agrees with the same kernel computed on the diagonal."""
    x = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for kernel in (pool(activate(convolve(images(x)), "relu")), flatten(activate(convolve(images(x, pairs=False)), "relu"))):
        again = activate(dense(kernel), "relu")
        assert torch.allclose(again.nngp.diagonal(), again.own, rtol=1e-10)


def test_linearized_descent_is_the_power_of_one_step() -> None:
    g = torch.Generator().manual_seed(0)
    J, r = torch.randn(5, 9, generator=g, dtype=torch.float64), torch.randn(5, generator=g, dtype=torch.float64)
    theta, after = J @ J.T, r.clone()
    for _ in range(30):
        after = after - 0.1 * theta @ after / 5
    assert torch.allclose(linearized_residual(theta, r, 0.1, 30), after, rtol=1e-10)


def test_wrong_arguments_are_named() -> None:
    x, image = torch.zeros(2, 3), torch.zeros(2, 1, 4, 4)
    k = inputs(x)
    for wrong, words in (
        (lambda: dense_kernel(x, depth=-1), "depth must be at least 0 and whole, got -1"),
        (lambda: dense_kernel(x, activation="step"), "activation must be one of erf, gelu, identity, relu, tanh, got 'step'"),
        (lambda: dense_kernel(x, weight_variance=0.0), "weight_variance must be positive"),
        (lambda: dense_kernel(x, bias_variance=-1.0), "bias_variance must be at least 0"),
        (lambda: inputs(x, torch.zeros(2, 4)), r"must be \(n, d\) and \(m, d\)"),
        (lambda: images(x), "images must be"),
        (lambda: conv_kernel(image, depth=0), "depth must be at least 1"),
        (lambda: conv_kernel(image, filter_size=2), "filter_size must be odd"),
        (lambda: conv_kernel(image, padding="same"), "padding must be"),  # type: ignore[arg-type]
        (lambda: conv_kernel(image, readout="max"), "readout must be"),  # type: ignore[arg-type]
        (lambda: residual_kernel(x, blocks=-1), "blocks must be at least 0"),
        (lambda: convolve(k), "kernel of images"),
        (lambda: pool(images(image, pairs=False)), "all pairs of places"),
        (lambda: flatten(images(image)), "equal places"),
        (lambda: linearized_residual(torch.eye(3), torch.zeros(2), 0.1, 1), r"theta must be \(n, n\)"),
        (lambda: linearized_residual(torch.eye(2), torch.zeros(2), 0.1, -1), "steps must be at least 0"),
        (lambda: linearized_residual(torch.tensor([[1.0, 0.5], [0.0, 1.0]]), torch.zeros(2), 0.1, 1), "theta must be symmetric"),
        (lambda: linearized_residual(torch.full((2, 2), math.nan), torch.zeros(2), 0.1, 1), "theta must be symmetric"),
        (lambda: dense_kernel(x, weight_variance=math.inf), "weight_variance must be positive and finite"),
        (lambda: conv_kernel(image, bias_variance=math.inf), "bias_variance must be at least 0 and finite"),
        (lambda: dense_kernel(x * math.nan), "x1 must hold finite numbers only, got 6"),
        (lambda: conv_kernel(image, image / 0), "x2 must hold finite numbers only"),
    ):
        with pytest.raises(ValueError, match=words):
            wrong()
    assert isinstance(k, Kernel)


def test_numbers_of_other_types_are_refused_before_their_products_overflow() -> None:
    x, image = torch.zeros(2, 3), torch.zeros(2, 1, 4, 4)
    for wrong, words in (
        (lambda: dense_kernel(x.byte()), "x1 must hold floating-point numbers, got torch.uint8"),
        (lambda: conv_kernel(image, image.long()), "x2 must hold floating-point numbers, got torch.int64"),
        (lambda: dense_kernel(x, x.double()), "x2 must have the type of x1, torch.float32, got torch.float64"),
        (lambda: conv_kernel(image, image.double()), "x2 must have the type of x1"),
    ):
        with pytest.raises(TypeError, match=words):
            wrong()
