"""Predictions for scale-invariant weights against brute-force simulation of the recurrences they solve."""

import math
from decimal import Decimal, localcontext

import pytest
import torch

from theorylab.theory.activations import DUALS
from theorylab.theory.normalization import (
    batch_norm_gradient_growth,
    equilibrium_angle,
    equilibrium_norm4,
    equilibrium_steps,
    exponential_growth,
    invariant_blocks,
    last_layer_exponent,
    last_layer_gradient,
    matched_buffer,
    squared_norm_after_step,
    summed_second_moment,
)

RATES = [(0.1, 5e-3, 0.0), (0.1, 5e-3, 0.9), (0.4, 1e-2, 0.5)]


def homogeneous_gradient(theta: torch.Tensor) -> torch.Tensor:
    """Gradient of the scale-invariant function x₀x₁/‖x‖² + x₂³/‖x‖³ in closed form."""
    n = theta.norm()
    u = theta / n
    tangent = torch.stack([u[1], u[0], 3 * u[2] ** 2])
    return (tangent - (tangent @ u) * u) / n


@pytest.mark.parametrize(("lr", "decay", "momentum"), RATES)
def test_exponential_step_reproduces_decay(lr: float, decay: float, momentum: float) -> None:
    alpha = exponential_growth(lr, decay, momentum)
    decayed = exponential = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    v, w = torch.zeros(3, dtype=torch.float64), matched_buffer(lr, decay, momentum) * exponential
    for t in range(100):
        v = momentum * v + homogeneous_gradient(decayed) + decay * decayed
        decayed = decayed - lr * v
        w = momentum * w + homogeneous_gradient(exponential)
        exponential = exponential - lr * alpha ** (-2 * t - 1) * w
        difference = (decayed * alpha ** -(t + 1) - exponential).norm() / exponential.norm()
        assert float(difference) < 1e-12  # a hundred steps of rounding


@pytest.mark.parametrize(("lr", "decay", "momentum"), RATES)
def test_growth_is_the_larger_root(lr: float, decay: float, momentum: float) -> None:
    alpha = exponential_growth(lr, decay, momentum)
    other = momentum / alpha  # the product of the roots is γ
    assert alpha + other == pytest.approx(1 + momentum - decay * lr, rel=1e-14)
    assert alpha > other


def test_growth_at_the_border_of_real_roots() -> None:
    momentum = 0.25
    border = (1 - math.sqrt(momentum)) ** 2
    assert exponential_growth(1.0, border, momentum) == pytest.approx(math.sqrt(momentum))
    with pytest.raises(ValueError, match="real α"):
        exponential_growth(1.0, border * 1.001, momentum)


@pytest.mark.parametrize("momentum", [0.0, 0.25, 0.9])
@pytest.mark.parametrize("share", [1e-12, 1e-6, 0.01, 0.5, 0.99])
def test_the_buffer_keeps_its_digits_however_weak_the_decay(momentum: float, share: float) -> None:
    """Against fifty digits, at a share of the largest decay with a real α."""
    decay = share * (1 - math.sqrt(momentum)) ** 2
    with localcontext() as context:
        context.prec = 50
        half = (1 + Decimal(momentum) - Decimal(decay)) / 2
        alpha = half + (half * half - Decimal(momentum)).sqrt()
        expected = -(1 - alpha) / alpha
    assert matched_buffer(1.0, decay, momentum) == pytest.approx(float(expected), rel=1e-13)


def test_norm_of_a_step_orthogonal_to_the_weights() -> None:
    generator = torch.Generator().manual_seed(0)
    theta, g = torch.randn(2, 50, generator=generator, dtype=torch.float64)
    g = g - (g @ theta) / (theta @ theta) * theta
    after = (1 - 0.3 * 0.2) * theta - 0.3 * g
    predicted = squared_norm_after_step(theta @ theta, g @ g, lr=0.3, weight_decay=0.2)
    torch.testing.assert_close(after @ after, predicted, rtol=1e-13, atol=0)


def random_walk(lr: float, decay: float, momentum: float, steps: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """‖θ‖, angle a step and ‖ḡ‖² over the last half of a walk driven by isotropic noise made tangent and divided by the norm."""
    generator = torch.Generator().manual_seed(1)
    theta = torch.randn(200, 100, generator=generator, dtype=torch.float64)  # (replica, p)
    v = torch.zeros_like(theta)
    norms, angles, gradients = [], [], []
    for t in range(steps):
        noise = torch.randn(theta.shape, generator=generator, dtype=torch.float64)
        u = theta / theta.norm(dim=1, keepdim=True)
        unit = noise - (noise * u).sum(1, keepdim=True) * u
        v = momentum * v + unit / theta.norm(dim=1, keepdim=True) + decay * theta
        new = theta - lr * v
        if t >= steps // 2:
            norms.append(theta.norm(dim=1))
            gradients.append(unit.square().sum(1))
            angles.append(torch.nn.functional.cosine_similarity(theta, new).clamp(max=1).acos())
        theta = new
    return torch.stack(norms), torch.stack(angles), torch.stack(gradients)


@pytest.mark.parametrize(("lr", "decay", "momentum"), [(0.2, 0.02, 0.0), (0.1, 0.02, 0.5), (0.05, 0.02, 0.9)])
def test_equilibrium_of_a_random_walk(lr: float, decay: float, momentum: float) -> None:
    steps = math.ceil(20 * equilibrium_steps(lr, decay, momentum))
    norms, angles, gradients = random_walk(lr, decay, momentum, steps)
    # The laws hold to leading order in ηλ/(1 − γ) ≤ 0.01; the sampling error of 200 replicas is below 0.3 %.
    assert float(angles.square().mean().sqrt()) == pytest.approx(equilibrium_angle(lr, decay, momentum), rel=0.02)
    predicted = equilibrium_norm4(lr / (1 - momentum), decay, float(gradients.mean()))  # independent gradients: η/(1 − γ) is right here
    assert float(norms.pow(4).mean()) == pytest.approx(predicted, rel=0.02)


def test_time_constant_of_the_norm() -> None:
    lr, decay = 0.2, 1e-3
    fourth = 10.0 * equilibrium_norm4(lr, decay)  # ten times too large, with ‖ḡ‖ = 1
    steps = round(3 * equilibrium_steps(lr, decay))
    squared = math.sqrt(fourth)
    for _ in range(steps):
        squared = squared_norm_after_step(squared, 1 / squared, lr, decay)
    excess = squared**2 / equilibrium_norm4(lr, decay) - 1
    assert excess == pytest.approx(9 * math.exp(-3), rel=0.01)  # first order in ηλ = 2·10⁻⁴


@pytest.mark.parametrize(("name", "groups", "size"), [("batch", 1, 1), ("weight", 1, 1), ("group", 3, 4), ("layer", 1, 12), ("rms", 1, 12)])
def test_blocks_cover_the_channels_once(name: str, groups: int, size: int) -> None:
    blocks = invariant_blocks(name, 12, groups)
    assert [i for b in blocks for i in range(12)[b]] == list(range(12))
    assert {b.stop - b.start for b in blocks} == {size}
    assert invariant_blocks("none", 12) == []


def normalized(x: torch.Tensor) -> torch.Tensor:
    return (x - x.mean(-1, keepdim=True)) / x.std(-1, keepdim=True, correction=0)


def summed(placement: str, layers: int, tokens: int, width: int = 256, draws: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    """By hand: what the last LayerNorm normalizes, at each token (draw, token, width), and the last hidden units."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(draws, tokens, width, generator=generator, dtype=torch.float64)
    hidden = x
    for layer in range(layers):
        matrices = torch.randn(3, draws, width, width, generator=generator, dtype=torch.float64) / math.sqrt(width)
        read = normalized(x) if placement == "pre" else x
        x = x + read.mean(1, keepdim=True) @ matrices[0]
        x = x if placement == "pre" else normalized(x)
        hidden = ((normalized(x) if placement == "pre" else x) @ matrices[1]).relu()
        x = x + hidden @ matrices[2]
        if placement == "post" and layer < layers - 1:
            x = normalized(x)
    return x, hidden


@pytest.mark.parametrize(("placement", "layers", "tokens"), [("pre", 1, 4), ("pre", 12, 4), ("pre", 6, 1), ("post", 1, 4), ("post", 8, 4)])
def test_second_moments_of_a_wide_transformer(placement, layers: int, tokens: int) -> None:
    x, hidden = summed(placement, layers, tokens)
    # one draw at this width is off by 6 to 8 %, so their mean has a standard error of 1.6 %
    assert float(x.square().mean()) == pytest.approx(summed_second_moment(placement, layers, tokens), rel=0.05)
    # aligned tokens count as one: √(5/(24·256)), the fourth moment of a ReLU unit being six squares of its second
    assert float(hidden.square().mean()) == pytest.approx(0.5, rel=3 * 0.029)


def test_gradient_of_a_wide_transformers_last_layer() -> None:
    """Backwards by hand through the last LayerNorm and a cross-entropy, for labels unrelated to the logits."""
    tokens, layers, outputs, width, draws = 4, 6, 32, 256, 24
    for placement in ("pre", "post"):
        x, hidden = summed(placement, layers, tokens)
        generator = torch.Generator().manual_seed(1)
        head = torch.randn(draws, width, outputs, generator=generator, dtype=torch.float64) / math.sqrt(width)
        last = x.clone().requires_grad_()
        logits = normalized(last) @ head
        labels = torch.randint(outputs, (50, draws, tokens), generator=generator)
        squares = []
        for y in labels:
            loss = -logits.log_softmax(-1).gather(-1, y.unsqueeze(-1)).sum()
            back = torch.autograd.grad(loss, last, retain_graph=True)[0]
            squares.append(back.square().sum(-1) * hidden.square().sum(-1))  # the gradient at one token is an outer product
        predicted = last_layer_gradient(placement, layers, tokens=tokens, hidden=width, outputs=outputs)
        assert float(torch.stack(squares).mean().sqrt()) == pytest.approx(predicted, rel=0.04)  # half the error of a second moment


def test_the_exponent_is_that_of_great_depth() -> None:
    for placement in ("pre", "post"):
        one, ten = (last_layer_gradient(placement, layers, tokens=8, hidden=64, outputs=64) for layers in (1000, 10_000))
        assert math.log10(ten / one) == pytest.approx(last_layer_exponent(placement), abs=0.01)


def test_the_pre_norm_stream_grows_within_its_bounds() -> None:
    for layers in (1, 5, 40):
        for tokens in (1, 3, 50):
            assert 1 + layers / 2 <= summed_second_moment("pre", layers, tokens) <= 1 + 1.5 * layers


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: equilibrium_angle(0.0, 0.1), "lr must be positive"),
        (lambda: equilibrium_angle(0.1, -0.1), "weight_decay must be at least 0"),
        (lambda: equilibrium_angle(0.1, math.inf), "weight_decay must be at least 0 and finite"),
        (lambda: exponential_growth(1.0, 1.0), "below 1 without momentum"),
        (lambda: matched_buffer(1.0, 1.0), "below 1 without momentum"),
        (lambda: equilibrium_norm4(0.1, 0.1, -3.0), "unit_squared_gradient must be at least 0"),
        (lambda: equilibrium_norm4(0.1, 0.1, math.nan), "unit_squared_gradient must be at least 0"),
        (lambda: equilibrium_angle(0.1, 0.1, momentum=1.0), r"momentum must lie in \[0, 1\)"),
        (lambda: equilibrium_norm4(0.1, 0.0), "no equilibrium"),
        (lambda: equilibrium_steps(0.1, 0.0), "no equilibrium"),
        (lambda: last_layer_exponent("middle"), "placement must be"),  # pyright: ignore[reportArgumentType]
        (lambda: summed_second_moment("pre", 0, 4), "layers must be at least 1"),
        (lambda: last_layer_gradient("pre", 1, tokens=4, hidden=5, outputs=1), "outputs must be at least 2"),
        (lambda: invariant_blocks("group", 5, groups=2), "groups must divide width"),
        (lambda: invariant_blocks("instance", 5), "normalization must be one of"),
    ],
)
def test_bad_input(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("batch", [6, 16, 64])
@pytest.mark.parametrize("activation", ["relu", "identity"])
def test_gradients_through_batch_norm_grow_as_in_a_simulated_layer(activation: str, batch: int) -> None:
    """White gradients sent back through φ and BatchNorm by hand, of many units with normal inputs."""
    draw = torch.Generator().manual_seed(0)
    h, u = torch.randn(2, 200_000, batch, generator=draw, dtype=torch.float64)
    h, u = (t - t.mean(1, keepdim=True) for t in (h, u))
    direction = h / h.norm(dim=1, keepdim=True)
    y = math.sqrt(batch) * direction
    active = (y > 0).double() if activation == "relu" else torch.ones_like(y)
    after = active * y
    variance = (after - after.mean(1, keepdim=True)).square().sum(1).mean() / (
        batch - 1
    )  # of the next layer's inputs, a weight variance of 1
    back = active * u
    back = back - back.mean(1, keepdim=True)
    back = back - direction * (back * direction).sum(1, keepdim=True)
    growth = batch / (variance * h.square().sum(1)) * back.square().sum(1) / (batch - 1)
    error = float(growth.std()) / math.sqrt(len(growth))
    assert abs(float(growth.mean()) - batch_norm_gradient_growth(activation, batch)) < 4 * error
    assert error < 0.01


def test_batch_norm_lets_gradients_grow_by_poincares_inequality() -> None:
    factors = {name: batch_norm_gradient_growth(name) for name in DUALS}
    assert factors["relu"] == pytest.approx(math.pi / (math.pi - 1), rel=1e-12)
    assert factors["identity"] == 1
    assert all(f > 1.1 for name, f in factors.items() if name != "identity")
    for name in ("relu", "identity"):  # from above, as 1/B
        gaps = [batch_norm_gradient_growth(name, b) - factors[name] for b in (1000, 2000)]
        assert gaps[0] / gaps[1] == pytest.approx(2, rel=0.01)
    for wrong, message in (
        (lambda: batch_norm_gradient_growth("step"), "one of"),
        (lambda: batch_norm_gradient_growth("tanh", 8), "batch"),
    ):
        with pytest.raises(ValueError, match=message):
            wrong()
    with pytest.raises(ValueError, match="at least 4"):
        batch_norm_gradient_growth(batch=3)
