"""Derived seeds: fixed for ever, apart from each other, and apart from the seed that they come from."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch

from theorylab.core.seeds import derived_seed
from theorylab.studies.convolution.cntk import CntkConfig, drawn_images
from theorylab.studies.generalization.kernels import KernelsConfig, on_sphere, targets
from theorylab.studies.implicit_bias.balancedness import BalancednessConfig, dense, tasks

LABELS = (("data",), ("test rows",), ("batch", 1), ("batch", 11), ("batch", "1"))


def test_a_stream_is_the_same_on_every_machine_and_in_every_version() -> None:
    assert derived_seed(0, "data") == 7429019527356134817  # records of a run are to be had again


def test_no_two_streams_of_small_seeds_share_a_number() -> None:
    seeds = [derived_seed(s, *label) for s in range(200) for label in LABELS]
    assert len({*seeds, *range(10_000)}) == len(seeds) + 10_000
    drawn = torch.stack([torch.randn(50, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in (0, *seeds[:20])])
    assert not any(bool(torch.isin(a, b).any()) for a, b in combinations(drawn, 2))


def test_every_bit_is_fair_and_no_neighbour_is_correlated() -> None:
    """4000 seeds: the share of ones in a bit has standard deviation 0.008, and five of these are 0.04."""
    seeds = np.array([derived_seed(s, "data") for s in range(4000)], dtype=np.uint64)
    bits = (seeds[:, None] >> np.arange(63, dtype=np.uint64)) & np.uint64(1)
    assert np.abs(bits.mean(0) - 0.5).max() < 0.04
    assert np.abs((bits[1:] == bits[:-1]).mean(0) - 0.5).max() < 0.04


@pytest.mark.parametrize("take", [lambda s: torch.Generator().manual_seed(s), np.random.default_rng, torch.manual_seed])
def test_generators_take_them(take) -> None:
    with torch.random.fork_rng(devices=[]):
        take(max(derived_seed(s, "data") for s in range(100)))


@pytest.mark.parametrize(("seed", "stream", "message"), [(0, (), "stream must name"), (-1, ("data",), "seed must be at least 0")])
def test_bad_input(seed: int, stream: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        derived_seed(seed, *stream)


def test_weights_of_a_replica_are_not_numbers_of_its_data() -> None:
    """One seed in two generators gives one stream: here weights were entries of the inputs."""
    config = BalancednessConfig(seeds=3, n=20, width=5)
    x, _ = tasks(config)
    for k, w in enumerate(dense(config, [5, 5, 1], bias=False)["w0"]):
        assert not bool(torch.isin(w * 5**0.5 / config.gain, x[k]).any())


def test_targets_of_the_first_replica_are_not_its_inputs() -> None:
    """Here the first targets were the entries of the first input, up to the length to which that is brought."""
    config = KernelsConfig()
    x, y = on_sphere(config.rows, config.inputs, config)[0], targets(config, config.seed)[: config.inputs, 0]
    assert float(torch.cosine_similarity(x, y, dim=0).abs()) < 0.99


def test_images_of_neighbouring_replicas_differ() -> None:
    one, other = (drawn_images(CntkConfig(), seed, 2, 4) for seed in (0, 1))
    assert not bool(torch.isin(one, other).any())
