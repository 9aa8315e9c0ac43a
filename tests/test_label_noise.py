"""Fresh label noise in a population: each replica equals a lone run on its own noisy targets, however the population is cut."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from theorylab.learning import group as group_module
from theorylab.learning import population as population_module
from theorylab.learning.label_noise import BLOCK, ENTRIES, LabelNoise
from theorylab.learning.minibatches import minibatches
from theorylab.learning.optimizers.sgd import sgd
from theorylab.learning.population import Population
from theorylab.models.diagonal import DiagonalLinear
from theorylab.models.mlp import mlp

SEEDS = [3, 1, 4, 1]
SCALES = torch.tensor([0.0, 0.5, 1.0, 2.0], dtype=torch.float64)
STEPS = BLOCK + 20  # past the block of steps that is drawn at once


def data() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(12, 5, generator=g, dtype=torch.float64), torch.randn(12, 2, generator=g, dtype=torch.float64)


def make() -> nn.Module:
    return mlp([5, 6, 2])


def population(**kwargs) -> Population:
    given = {"label_noise": SCALES, "optimizer": sgd(0.05), "seeds": SEEDS, "data": data(), **kwargs}
    return Population(make, mse_loss, **given)


def lone(seed: int, scale: float, steps: int, batch_size: int | None) -> nn.Module:
    """An ordinary PyTorch run on targets with the replica's noise added."""
    x, y = data()
    torch.manual_seed(seed)
    net = make().double()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    batches, noise = minibatches(len(x), batch_size or len(x), seed), LabelNoise(torch.tensor([scale]), [seed])
    for _ in range(steps):
        rows = slice(None) if batch_size is None else next(batches)
        optimizer.zero_grad()
        mse_loss(net(x[rows]), y[rows] + noise.take(y[rows])[0]).backward()
        optimizer.step()
    return net


def assert_same(a: Population, b: Population) -> None:
    for name, p in a.params.items():
        torch.testing.assert_close(p, b.params[name], rtol=0, atol=1e-10)


@pytest.mark.parametrize("mode", ["vmap", "loop", "auto"])
@pytest.mark.parametrize("batch_size", [None, 5])
def test_each_replica_equals_a_lone_run_on_its_noisy_targets(mode, batch_size):
    pop = population(mode=mode, batch_size=batch_size)
    pop.train(100)
    pop.train(STEPS - 100)
    for k, seed in enumerate(SEEDS):
        for name, p in lone(seed, float(SCALES[k]), STEPS, batch_size).named_parameters():
            torch.testing.assert_close(pop.params[name][k], p.detach(), rtol=0, atol=1e-10)


def test_data_of_each_replica_take_noise_too():
    x, y = data()
    stacked = population(data=(x.expand(4, *x.shape), y.expand(4, *y.shape)), data_per_replica=True, mode="vmap")
    shared = population(mode="vmap")
    for pop in (stacked, shared):
        pop.train(20)
    assert_same(stacked, shared)


def test_shards_regrouped_in_the_middle_go_on_with_the_same_noise():
    whole, cut = population(mode="vmap"), population(mode="vmap")
    whole.train(STEPS)
    cut.train(10)
    cut.shard(["cpu", "cpu"])
    cut.train(50)
    cut.shard(["cpu"])
    cut.train(STEPS - 60)
    assert_same(whole, cut)


def test_recording_and_timing_a_step_take_no_noise_away(monkeypatch):
    plain = population(mode="vmap")
    plain.train(STEPS)
    monkeypatch.setattr(population_module, "RECORD_FROM", 0)
    for mode in ("vmap", "auto"):
        pop = population(mode=mode)
        pop.train(STEPS)
        assert_same(plain, pop)


def test_noise_is_normal_fresh_and_not_the_replicas_other_random_numbers():
    noise, like = LabelNoise(torch.tensor([2.0, 0.5]), [7, 8]), torch.zeros(50)
    drawn = torch.stack([noise.take(like) for _ in range(400)]).double()  # (step, replica, row)
    for k, scale in enumerate((2.0, 0.5)):
        sample = drawn[:, k].flatten() / scale  # 20000 numbers: standard errors 0.007 of the mean, 0.01 of the square, 0.035 of the fourth
        assert abs(float(sample.mean())) < 0.03
        assert abs(float(sample.square().mean()) - 1) < 0.04
        assert abs(float(sample.pow(4).mean()) - 3) < 0.3
    steps = drawn[1:, 0].flatten() @ drawn[:-1, 0].flatten() / drawn[1:, 0].square().sum()
    replicas = torch.corrcoef(torch.stack([drawn[:, 0].flatten(), drawn[:, 1].flatten()]))[0, 1]
    own = torch.randn(BLOCK, 50, generator=torch.Generator().manual_seed(7), dtype=torch.float64).flatten()
    data_of_seed = torch.corrcoef(torch.stack([own, drawn[:BLOCK, 0].flatten()]))[0, 1]
    assert max(abs(float(c)) for c in (steps, replicas, data_of_seed)) < 0.05


def test_noise_of_many_labels_is_drawn_in_blocks_that_do_not_depend_on_the_number_of_replicas():
    many, one = LabelNoise(torch.ones(3), [7, 8, 9]), LabelNoise(torch.ones(1), [8])
    for rows, steps in ((3000, BLOCK - 1), (ENTRIES, 1), (ENTRIES + 1, 1)):
        for noise in (many, one):
            noise.left = None
        for _ in range(steps + 1):  # into the next block
            drawn, alone = (noise.take(torch.zeros(rows)) for noise in (many, one))
            assert torch.equal(drawn[1], alone[0])
            assert many.left is not None
            assert (len(many.left) + 1) * rows <= max(ENTRIES, rows)


def test_only_training_sees_the_noise():
    noisy, clean = population(), population(label_noise=0.0)
    torch.testing.assert_close(noisy.losses(), clean.losses())
    assert float(noisy.problem(3).loss()) == pytest.approx(float(noisy.losses()[3]), rel=1e-12)
    assert torch.equal(noisy.replica(3)[2], data()[1])


def test_no_noise_is_the_population_without_it():
    quiet = population(label_noise=torch.zeros(4), mode="vmap")
    plain = Population(make, mse_loss, data(), optimizer=sgd(0.05), seeds=SEEDS, mode="vmap")
    for pop in (quiet, plain):
        pop.train(30)
    assert all(torch.equal(p, plain.params[name]) for name, p in quiet.params.items())
    assert group_module.Rows.label_noise is None


def test_noise_too_large_for_the_step_is_noticed():
    """On u² − v² the noise multiplies the parameters: large steps times noise diverge, and the replica is named."""
    x = data()[0]
    pop = Population(
        lambda: DiagonalLinear(5, 0.3),
        mse_loss,
        (x, x[:, 0]),
        optimizer=sgd(0.05),
        seeds=[0, 1],
        label_noise=torch.tensor([0.1, 100.0]),
    )
    with pytest.raises(FloatingPointError, match=r"replica 1 \(seed 1\) diverged"):
        pop.train(2000)
    assert bool(torch.isfinite(pop.losses()[0]))  # the other one did not


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"label_noise": -1.0}, "at least 0"),
        ({"label_noise": float("nan")}, "finite"),
        ({"label_noise": torch.ones(3)}, r"one a replica \(4,\)"),
        ({"data": (data()[0], torch.zeros(12, dtype=torch.int64))}, "floating-point"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises((ValueError, TypeError), match=message):
        population(**kwargs)
