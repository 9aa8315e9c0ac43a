"""Derived seeds: fixed for ever, apart from each other, and apart from the seed that they come from."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from zoo import make

import theorylab as tl
from theorylab.core.instrument import Instrument, instruments
from theorylab.core.operator import Operator
from theorylab.core.seeds import derived_seed
from theorylab.learning.memorizing import memorizing_population
from theorylab.learning.optimizers.sgd import sgd
from theorylab.studies.convolution.cntk import CntkConfig, drawn_images
from theorylab.studies.generalization.kernels import KernelsConfig, on_sphere, targets
from theorylab.studies.implicit_bias.balancedness import BalancednessConfig, dense, tasks

LABELS = (("data",), ("test rows",), ("batch", 1), ("batch", 11), ("batch", "1"))


def test_a_stream_is_the_same_on_every_machine_and_in_every_version() -> None:
    assert derived_seed(0, "data") == 7429019527356134817  # records of a run are to be had again


@pytest.mark.parametrize("count", [np.int64(3), np.uint8(3), torch.tensor(3)])
def test_a_stream_does_not_depend_on_the_type_of_its_number(count: Any) -> None:
    assert derived_seed(0, "network", count) == derived_seed(0, "network", 3)
    assert derived_seed(0, np.str_("network"), 3) == derived_seed(0, "network", 3)


def test_a_part_that_is_no_word_and_no_whole_number_is_refused() -> None:
    with pytest.raises(TypeError, match=r"stream must hold words and whole numbers, got 0\.5"):
        derived_seed(0, "share", 0.5)  # type: ignore[arg-type]


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


def test_weights_of_a_memorizing_network_are_not_numbers_of_its_data() -> None:
    class Drawn(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(16, dtype=torch.float64))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.weight

    population = memorizing_population(Drawn, rows=3, inputs=16, optimizer=sgd(0.1), seeds=[0], batch_size=None)
    weights, x = population.params["weight"], population.problem(0).batches[0][0][0]
    assert float(torch.cosine_similarity(weights, x, dim=-1).abs().max()) < 0.99


def test_targets_of_the_first_replica_are_not_its_inputs() -> None:
    """Here the first targets were the entries of the first input, up to the length to which that is brought."""
    config = KernelsConfig()
    x, y = on_sphere(config.rows, config.inputs, config)[0], targets(config, config.seed)[: config.inputs, 0]
    assert float(torch.cosine_similarity(x, y, dim=0).abs()) < 0.99


def test_images_of_neighbouring_replicas_differ() -> None:
    one, other = (drawn_images(CntkConfig(), seed, 2, 4) for seed in (0, 1))
    assert not bool(torch.isin(one, other).any())


def wide(width: int) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(2, width), torch.nn.ReLU(), torch.nn.Linear(width, 2))


SEEDED = [t for t in instruments().values() if not t.trains and "seed" in inspect.signature(t.measure).parameters]
DRAWING = {"mc": 2, "rows": 5, "solver": "arnoldi"}
"""Options under which instruments draw that otherwise need not."""
FEW = torch.linspace(-1, 1, 16, dtype=torch.float64).sin().reshape(8, 2), torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
IDENTITY = Operator((6, 6), lambda v: v, dtype=torch.float64, symmetric=True)
SEEDED_ROUTINES: dict[str, Callable[..., Any]] = {
    "spectrum": partial(tl.spectrum, IDENTITY, probes=3, steps=2),
    "logdet": partial(tl.logdet, IDENTITY, lower=1.0, n=3, steps=2),
    "class_wise_shapley": partial(tl.class_wise_shapley, *FEW, *FEW, contexts=3, budget=8, learner="ridge"),
}


def seeds_of(monkeypatch: pytest.MonkeyPatch, run: Callable[[], Any]) -> set[int]:
    """The seeds that generators are given meanwhile."""
    seen: set[int] = set()

    class Recorder(torch.Generator):
        def manual_seed(self, seed: int) -> torch.Generator:
            seen.add(int(seed))
            return super().manual_seed(seed)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "Generator", Recorder)
        run()
    return seen


def assert_apart(monkeypatch: pytest.MonkeyPatch, run: Callable[..., Any]) -> None:
    """Neighbouring seeds share no stream, but for those of a fixed seed, which a distant seed has too."""
    one, other, distant = (seeds_of(monkeypatch, partial(run, seed=seed)) for seed in (5, 6, 10**6))
    assert one - distant, "nothing was drawn from the seed"
    assert not (one & other) - distant


@pytest.mark.parametrize("tool", SEEDED, ids=lambda tool: tool.name)
def test_instruments_of_neighbouring_seeds_share_no_stream(tool: Instrument, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "mlp" if tool.why_not(make("mlp")) is None else "deep linear"
    options = {k: v for k, v in DRAWING.items() if k in inspect.signature(tool.measure).parameters}
    assert_apart(monkeypatch, lambda seed: tool.measure(make(name), seed=seed, **options))


@pytest.mark.parametrize("run", SEEDED_ROUTINES.values(), ids=SEEDED_ROUTINES)
def test_routines_of_neighbouring_seeds_share_no_stream(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert_apart(monkeypatch, run)


def test_shadow_models_of_neighbouring_seeds_have_no_network_in_common() -> None:
    train = partial(tl.shadow_models, lambda: torch.nn.Linear(2, 2), F.cross_entropy, FEW, optimizer=sgd(0.1), models=4, steps=1)
    one, other = (set(train(seed=seed).population.seeds) for seed in (0, 1))
    assert len(one | other) == 8


def test_checks_of_neighbouring_seeds_have_no_network_in_common() -> None:
    x, y = FEW
    one, other = (tl.coordinate_check(wide, [4, 6, 8], data=(x.float(), y), seeds=2, seed=seed).changes["2"] for seed in (0, 1))
    assert not bool(torch.isin(one, other).any())
