"""The exponential step size and the observed optimizer against torch.optim and plain geometry."""

import pytest
import torch

from theorylab.learning.optimizers.exponential import exponential_sgd
from theorylab.learning.optimizers.observed import observed
from theorylab.learning.optimizers.sgd import sgd
from theorylab.learning.schedule import exponential_decay, scheduled


def targets(replicas: int) -> torch.Tensor:
    return torch.randn(replicas, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_exponential_steps_equal_torch_with_a_scheduler() -> None:
    growth, momentum, start = torch.tensor([1.02, 0.97]), torch.tensor([0.0, 0.9]), torch.ones(2, 4, dtype=torch.float64)
    optimizer = exponential_sgd(lr=0.05, growth=growth, momentum=momentum)
    x = {"x": start}
    state = optimizer.init(x)
    for _ in range(20):
        x, state = optimizer.update({"x": x["x"] - targets(2)}, state, x)
    for k in range(2):
        alone = start[k].clone().requires_grad_()
        reference = torch.optim.SGD([alone], lr=0.05, momentum=float(momentum[k]))
        schedule = torch.optim.lr_scheduler.ExponentialLR(reference, float(growth[k]))
        for _ in range(20):
            reference.zero_grad()
            (0.5 * (alone - targets(2)[k]).square().sum()).backward()
            reference.step()
            schedule.step()
        torch.testing.assert_close(x["x"][k], alone.detach(), rtol=1e-6, atol=1e-8)  # growth and momentum came in float32


def test_without_a_buffer_they_are_steps_on_a_schedule() -> None:
    growth, momentum = torch.tensor([1.1, 0.5, 0.0], dtype=torch.float64), 0.9
    ways = (
        exponential_sgd(lr=0.05, growth=growth, momentum=momentum),
        scheduled(lambda rate: sgd(rate, momentum=momentum), 0.05, exponential_decay(growth)),
    )
    ends = []
    for optimizer in ways:
        x = {"x": torch.ones(3, 4, dtype=torch.float64)}
        state = optimizer.init(x)
        for _ in range(20):
            x, state = optimizer.update({"x": x["x"] - targets(3)}, state, x)
        ends.append(x["x"])
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-12, atol=1e-12)


def test_initial_buffer_is_parallel_to_the_parameters() -> None:
    optimizer = exponential_sgd(lr=0.5, growth=1.0, momentum=0.5, buffer=-2.0)
    x = {"x": targets(3)}
    new, _ = optimizer.update({"x": torch.zeros(3, 4, dtype=torch.float64)}, optimizer.init(x), x)
    torch.testing.assert_close(new["x"], 1.5 * x["x"])  # x − 0.5·(0.5·(−2) x)


@pytest.mark.parametrize("inner", [sgd(lr=0.1, weight_decay=0.3), exponential_sgd(lr=0.1, growth=1.1, momentum=0.9)])
def test_observation_changes_no_step(inner) -> None:
    plain, seen = {"x": targets(3)}, {"x": targets(3)}
    optimizer = observed(inner)
    state, watched = inner.init(plain), optimizer.init(seen)
    assert torch.isnan(watched["last"]["angle x"]).all()
    angles = torch.zeros(3, dtype=torch.float64)
    for t in range(5):
        before, g = seen["x"], torch.sin(t + seen["x"])
        plain, state = inner.update({"x": torch.sin(t + plain["x"])}, state, plain)
        seen, watched = optimizer.update({"x": g}, watched, seen)
        last = watched["last"]
        assert torch.equal(plain["x"], seen["x"])
        torch.testing.assert_close(last["norm x"], before.norm(dim=1))
        torch.testing.assert_close(last["gradient x"], g.norm(dim=1))
        torch.testing.assert_close(last["after x"], seen["x"].norm(dim=1))
        torch.testing.assert_close(last["angle x"].cos(), torch.nn.functional.cosine_similarity(before, seen["x"]))
        angles = angles + last["angle x"]
    torch.testing.assert_close(watched["total"]["angle x"], angles)


def test_small_angles_survive_single_precision() -> None:
    x = {"x": torch.tensor([[1.0, 0.0]])}
    optimizer = observed(sgd(lr=1.0))
    _, state = optimizer.update({"x": torch.tensor([[0.0, 1e-5]])}, optimizer.init(x), x)
    assert float(state["last"]["angle x"]) == pytest.approx(1e-5, rel=1e-4)  # acos of a float32 cosine would say 0


def test_observed_replicas_can_be_selected() -> None:
    lrs = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    x, g = {"x": targets(3)}, {"x": targets(3).cos()}
    optimizer = observed(sgd(lr=lrs))
    whole, _ = optimizer.update(g, optimizer.init(x), x)
    part = optimizer.select(slice(1, 3))
    some = {"x": x["x"][1:]}
    new, _ = part.update({"x": g["x"][1:]}, part.init(some), some)
    assert torch.equal(new["x"], whole["x"][1:])
