"""A schedule changes nothing but the step, and has the shape of PyTorch's where that has one."""

from __future__ import annotations

import pytest
import torch
from torch.optim import lr_scheduler as theirs

from theorylab.learning.optimizers.adam import adam
from theorylab.learning.optimizers.sgd import sgd
from theorylab.learning.optimizers.steepest import sign_descent
from theorylab.learning.schedule import cosine, exponential_decay, power_decay, scheduled, warmup_stable_decay


def gradient(seed: int) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {k: torch.randn(3, *shape, generator=g, dtype=torch.float64) for k, shape in (("w", (4, 2)), ("b", (4,)))}


@pytest.mark.parametrize("make", [sgd, adam, sign_descent])
def test_a_scheduled_optimizer_is_the_optimizer_with_each_step_its_own_size(make) -> None:
    lr, power = (torch.tensor(v, dtype=torch.float64) for v in ([0.1, 0.2, 0.3], [0.7, 0.5, 0.0]))
    optimizer = scheduled(make, lr, power_decay(power))
    params = reference = gradient(1)
    state, inner = optimizer.init(params), make(lr).init(params)
    for t in range(1, 6):
        params, state = optimizer.update(gradient(t), state, params)
        reference, inner = make(lr * t**-power).update(gradient(t), inner, reference)
    for k, p in params.items():
        torch.testing.assert_close(p, reference[k], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(
    ("schedule", "make"),
    [
        (cosine(12), lambda o: theirs.CosineAnnealingLR(o, 12)),
        (cosine(12, floor=0.1), lambda o: theirs.CosineAnnealingLR(o, 12, eta_min=0.1)),
        (exponential_decay(0.9), lambda o: theirs.ExponentialLR(o, 0.9)),
        (warmup_stable_decay(12, 0, 12), lambda o: theirs.LinearLR(o, 1.0, 0.0, 12)),
    ],
)
def test_equals_torch(schedule, make) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    reference = make(optimizer)
    for t in range(13):
        assert float(schedule(torch.tensor(float(t), dtype=torch.float64))) == pytest.approx(reference.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        reference.step()


def test_schedules_stay_at_their_ends() -> None:
    late = torch.tensor([100.0])
    assert cosine(10, floor=0.2)(late).item() == pytest.approx(0.2)
    assert warmup_stable_decay(10, 2, 3, floor=0.2)(late).item() == pytest.approx(0.2)
    assert warmup_stable_decay(10, 4, 0)(late).item() == 1


def test_a_floor_is_where_decay_ends_not_where_warmup_begins() -> None:
    factors = warmup_stable_decay(100, 9, 10, floor=0.5)(torch.arange(101.0))
    assert factors[:11].tolist() == pytest.approx([*(k / 10 for k in range(1, 11)), 1.0])
    assert factors[-11:].tolist() == pytest.approx([1 - k / 20 for k in range(11)])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_time_does_not_stop_in_half_precision(dtype: torch.dtype) -> None:
    """256 + 1 is 256 in bfloat16; a schedule that counted so would never end."""
    optimizer = scheduled(sgd, 1.0, warmup_stable_decay(600, 0, 600))
    x = {"x": torch.zeros(1, 1, dtype=dtype)}
    state = optimizer.init(x)
    for _ in range(600):
        x, state = optimizer.update({"x": torch.zeros(1, 1, dtype=dtype)}, state, x)
    assert x["x"].dtype == dtype
    moved, _ = optimizer.update({"x": torch.ones(1, 1, dtype=dtype)}, state, x)
    assert moved["x"].item() == 0.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cosine(0), "steps must be at least 1"),
        (lambda: cosine(5, floor=2.0), "floor must lie in"),
        (lambda: power_decay(-1.0), "power must be at least 0"),
        (lambda: exponential_decay(torch.tensor([0.5, -0.5])), "factor must be at least 0 and finite, got -0.5"),
        (lambda: warmup_stable_decay(5, 3, 3), "nor together more than steps = 5, got 3 and 3"),
    ],
)
def test_wrong_input_is_refused(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
