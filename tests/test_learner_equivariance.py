"""Equivariance of learning algorithms: pairs of runs by hand, symmetries of the optimizer and of the architecture, and their failure."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from theorylab.learning.equivariance import learner_equivariance
from theorylab.learning.optimizers.adam import adam
from theorylab.learning.optimizers.sgd import sgd
from theorylab.models.seeded import seeded
from theorylab.studies.convolution.equivariance import EquivarianceConfig, convolutional, disagreement, permutations


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(d: int, *replicas: int) -> Tensor:
    return torch.linalg.qr(drawn(*replicas, d, d, seed=9))[0]


def dense() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))


def run(transform: Any, **options: Any) -> Any:
    x = drawn(16, 4)
    settings = {"optimizer": sgd(0.2, momentum=0.9), "steps": 40, "seeds": [0, 1], "times": 4, "mode": "vmap"}
    return learner_equivariance(dense, F.mse_loss, (x, x[:, :2].sin()), transform, **{**settings, **options})


def test_the_gap_is_that_of_two_runs_by_hand() -> None:
    R, x = rotation(4), drawn(16, 4)
    y = x[:, :2].sin()
    found = run(R, optimizer=adam(0.05), seeds=[3], steps=20)
    outputs = []
    for inputs, turn in ((x, torch.eye(4, dtype=torch.float64)), (x @ R.T, R)):
        net = seeded(dense, 3)
        with torch.no_grad():
            net[0].weight.copy_(net[0].weight @ turn.T)  # pyright: ignore
        opt = torch.optim.Adam(net.parameters(), lr=0.05)
        for _ in range(20):
            opt.zero_grad()
            F.mse_loss(net(inputs), y).backward()
            opt.step()
        outputs.append(net(inputs).detach())
    expected = (outputs[0] - outputs[1]).abs().max() / outputs[0].abs().max()
    assert found.steps.tolist() == [0, 5, 10, 15, 20]
    assert float(found.gap[-1, 0]) == pytest.approx(float(expected), rel=1e-6)
    assert float(found.gap[0, 0]) < 1e-15  # alike at the start
    assert found.apart_from == 5


@pytest.mark.parametrize("batch_size", [None, 4])
@pytest.mark.parametrize("per_replica", [False, True])
def test_descent_does_not_see_a_rotation_whatever_the_minibatches_and_adam_does(batch_size: int | None, per_replica: bool) -> None:
    R = rotation(4, 2) if per_replica else rotation(4)
    exact = run(R, batch_size=batch_size)
    assert float(exact.gap.max()) < 1e-13
    assert exact.apart_from is None
    assert run(R, batch_size=batch_size, optimizer=adam(0.05)).apart_from == 10
    still = run(R, batch_size=batch_size, carry=lambda params: params)  # the initial weights are not rotated along
    assert still.apart_from == 0


def test_rotating_every_token_of_a_sequence_is_the_same_symmetry() -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Flatten(), nn.Linear(24, 1))

    data = drawn(2, 10, 3, 4), drawn(2, 10, 1, seed=1)
    for inputs, targets, own in ((*data, True), (data[0][0], data[1][0], False)):
        options = {"optimizer": sgd(0.1), "steps": 30, "seeds": [0, 1], "data_per_replica": own}
        assert learner_equivariance(make, F.mse_loss, (inputs, targets), rotation(4, 2), **options).apart_from is None


def test_a_shift_is_invisible_to_circular_convolutions_with_any_optimizer_and_not_to_zero_padding() -> None:
    x = drawn(10, 1, 8)
    for padding, apart in (("circular", None), ("zeros", 0)):

        def make(mode: Any = padding) -> nn.Module:
            conv = nn.Conv1d(1, 6, 3, padding=1, padding_mode=mode)
            return nn.Sequential(conv, nn.Tanh(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(6, 1))

        data = (x, x.square().mean(2))
        options = {"optimizer": adam(0.02), "steps": 20, "seeds": [0]}
        assert learner_equivariance(make, F.mse_loss, data, lambda t: t.roll(3, -1), **options).apart_from == apart


def test_a_map_of_ones_own_comes_with_its_initialization() -> None:
    half = run(lambda t: t / 2, carry=lambda p: {**p, "0.weight": 2 * p["0.weight"]})
    assert float(half.gap[0].max()) < 1e-14
    assert half.apart_from == 10  # gradient descent sees the scale of its inputs


def test_a_first_layer_that_is_no_matrix_needs_its_initialization_to_be_said() -> None:
    x = drawn(16, 4)

    def make() -> nn.Module:
        return nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 2))

    def both(params: dict[str, Tensor]) -> dict[str, Tensor]:
        return {**params, "1.weight": params["1.weight"].flip(-1)}

    options = {"optimizer": adam(0.05), "steps": 5, "seeds": [0, 1]}
    swap = torch.eye(4, dtype=torch.float64).flip(0)  # a permutation, which LayerNorm lets through
    with pytest.raises(ValueError, match=r"carry must say .* 0\.weight \(4,\), is no matrix"):
        learner_equivariance(make, F.mse_loss, (x, x[:, :2]), swap, **options)
    assert learner_equivariance(make, F.mse_loss, (x, x[:, :2]), swap, carry=both, **options).apart_from is None


def test_the_convolutional_control_of_the_study_starts_as_one_function_and_its_training_breaks_the_symmetry() -> None:
    config = EquivarianceConfig(seeds=2, steps=30)
    steps, gap = disagreement(config, lambda: convolutional(config.inputs), sgd(1 / config.inputs, momentum=0.9), permutations(config))
    assert steps[:2].tolist() == [0, 1]
    assert gap[0].tolist() == [0.0, 0.0]
    assert float(gap[1].min()) > 0.01  # one step, and they are apart


def test_there_are_no_more_comparisons_than_asked_for() -> None:
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    options = {"optimizer": sgd(0.01), "steps": 7, "seeds": [0], "times": 4}
    found = learner_equivariance(lambda: nn.Linear(3, 1), nn.functional.mse_loss, (x, x[:, :1]), torch.eye(3), **options)
    assert found.steps.tolist() == [0, 2, 4, 6, 7]  # one before, and four


def test_arguments_are_checked() -> None:
    for transform, options, words in (
        (2 * torch.eye(4), {}, "transform must be orthogonal"),
        (torch.eye(3), {}, r"transform must be \(4, 4\) or \(2, 4, 4\), got \(3, 3\)"),
        (lambda t: t[:, :2], {}, "transform must keep the shape of the inputs"),
        (torch.eye(4), {"steps": 0}, "steps must be at least 1, got 0"),
        (torch.eye(4), {"times": 0}, "times must be at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=words):
            run(transform, **options)
