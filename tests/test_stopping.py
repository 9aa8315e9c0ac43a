"""Replicas stopped at a common loss, against each of them trained alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

from theorylab.learning.optimizers.sgd import sgd
from theorylab.learning.population import Population
from theorylab.learning.stopping import train_to_loss


def population(seeds: list[int], lr: torch.Tensor) -> Population:
    x = torch.randn(12, 3, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return Population(lambda: nn.Linear(3, 1), mse_loss, (x, x.sum(1, keepdim=True)), optimizer=sgd(lr), seeds=seeds)


def test_each_replica_is_put_back_to_its_own_first_look_at_the_loss() -> None:
    lrs = torch.tensor([0.2, 0.05, 0.02], dtype=torch.float64)
    together = population([0, 1, 2], lrs)
    steps = train_to_loss(together, 0.01, every=3, limit=1000)
    assert len(set(steps.tolist())) == 3
    assert all(int(s) % 3 == 0 for s in steps)
    for k, s in enumerate(steps.tolist()):
        alone = population([k], lrs[k : k + 1])
        seen = alone.train(s, every=3)["loss"][:, 0]
        assert bool((seen[:-1] > 0.01).all())
        assert float(seen[-1]) <= 0.01
        for name, p in alone.params.items():  # a linear model, so that rounding does not grow
            torch.testing.assert_close(together.params[name][k], p[0], rtol=1e-10, atol=1e-12)


def test_who_does_not_arrive_is_left_at_the_limit() -> None:
    lrs = torch.tensor([0.2, 1e-6], dtype=torch.float64)
    both = population([0, 0], lrs)
    assert train_to_loss(both, 0.01, every=4, limit=50)[1] == -1
    slow = population([0], lrs[1:])
    slow.train(50)
    torch.testing.assert_close(both.params["weight"][1], slow.params["weight"][0])


def test_who_is_there_already_does_not_move() -> None:
    p = population([0, 1], torch.tensor([0.1, 0.1], dtype=torch.float64))
    before = p.params["weight"].clone()
    assert train_to_loss(p, 1e6, every=1, limit=10).tolist() == [0, 0]
    assert torch.equal(p.params["weight"], before)


def test_what_cannot_be_put_back_is_refused() -> None:
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    normed = Population(
        lambda: nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Linear(2, 1)), mse_loss, (x, x[:, :1]), optimizer=sgd(0.1), seeds=[0]
    )
    with pytest.raises(ValueError, match="no buffers"):
        train_to_loss(normed, 0.1, every=1, limit=1)
    with pytest.raises(ValueError, match="every and limit"):
        train_to_loss(population([0], torch.tensor([0.1], dtype=torch.float64)), 0.1, every=0, limit=1)
