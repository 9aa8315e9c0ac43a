"""TracIn: the sum over all steps is what training did, and checkpoints of another model are refused."""

from __future__ import annotations

import pytest
import torch
from test_attribution import probes, small
from torch import nn
from torch.nn import functional as F
from zoo import cnn, images, mlp, vectors

from theorylab.core.problem import Problem
from theorylab.instruments.attribution import influence
from theorylab.instruments.tracin import looped_tracin, tracin


def descent(problem: Problem, rate: float, steps: int) -> list[Problem]:
    """The problem at each step of gradient descent, the end included."""
    path = [problem]
    for _ in range(steps):
        gradient = path[-1].unflatten(path[-1].gradient())
        path.append(path[-1].at({k: p - rate * gradient[k] for k, p in path[-1].params.items()}))
    return path


@pytest.mark.parametrize("targets", [None, [4, 0], "probes"])
def test_is_the_sum_of_products(targets: object) -> None:
    path = descent(small(), 0.1, 3)
    given = probes() if targets == "probes" else targets
    rates = [0.1, 0.2, 0.0, 0.7]
    expected = looped_tracin(path[0], path, rates, given)
    torch.testing.assert_close(tracin(path[0], path, rates, given, memory=1000), expected, rtol=1e-10, atol=1e-13)


def test_over_all_steps_it_sums_to_what_training_did() -> None:
    x, y = probes()
    for rate, slack in ((0.02, 0.05), (0.002, 0.005)):  # the error is of first order in the step
        path = descent(small(), rate, 20)
        moved = tracin(path[0], [p.params for p in path[:-1]], rate, (x, y)).sum(0).mean()
        losses = [float(F.cross_entropy(_outputs(p, x), y)) for p in (path[0], path[-1])]
        assert float(moved) == pytest.approx(losses[1] - losses[0], rel=slack)


def _outputs(problem: Problem, x: torch.Tensor) -> torch.Tensor:
    return torch.func.functional_call(problem.model, problem.params, (x.double(),))


def test_at_one_checkpoint_it_is_influence_without_curvature() -> None:
    problem = small()
    torch.testing.assert_close(tracin(problem, targets=probes()), influence(problem, probes(), curvature="identity"))


def test_a_state_dict_is_a_checkpoint() -> None:
    net = mlp().double()
    problem = Problem(net, F.cross_entropy, vectors(), dtype=torch.float64)
    torch.testing.assert_close(tracin(problem, [net.state_dict()]), tracin(problem))


def test_checkpoints_of_another_model_are_refused() -> None:
    problem, params = small(), dict(small().params)
    first = next(iter(params))
    other = Problem(nn.Linear(5, 3), F.cross_entropy, vectors(), dtype=torch.float64)
    for checkpoints, message in (
        ([params, {k: p for k, p in params.items() if k != first}], rf"checkpoints\[1\] is of another model, or not whole: .*'{first}'"),
        ([{**params, "extra": torch.zeros(1)}], r"checkpoints\[0\] is of another model: it holds 'extra'"),
        ([{**params, first: torch.zeros(2)}], "has shape"),
        ([{**params, first: params[first] * float("nan")}], "is not finite"),
        ([other], "is of another model: its parameters are"),
        ([small(n=10)], "must have the 12 rows"),
        ([], "at least one checkpoint"),
        (params, "at least one checkpoint"),
    ):
        with pytest.raises(ValueError, match=message):
            tracin(problem, checkpoints)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match=r"checkpoints\[0\] must map"):
        tracin(problem, [3.0])  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="rates must be a number, or one for each of the 1"):
        tracin(problem, [params], [0.1, 0.2])
    with pytest.raises(ValueError, match="rates must be finite"):
        tracin(problem, [params], -0.1)


def test_statistics_of_batch_norm_that_moved_need_a_problem() -> None:
    torch.manual_seed(0)
    net, data = cnn().double(), images()
    data = data[0].double(), data[1]
    problem, early = Problem(net, F.cross_entropy, data), {k: t.clone() for k, t in net.state_dict().items()}
    net.train()(data[0])
    late = Problem(net, F.cross_entropy, data)
    assert tracin(problem, [early]).shape == (12, 12)
    with pytest.raises(ValueError, match="which is no selected parameter"):
        tracin(late, [early])
    torch.testing.assert_close(tracin(late, [problem, late]), tracin(problem) + tracin(late))
