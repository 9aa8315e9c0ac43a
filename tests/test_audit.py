"""The audit of measures: what it flags, what it lets pass, and the rank correlation under it."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import kendalltau
from torch import nn
from torch.nn import functional as F

from theorylab.core.problem import Problem
from theorylab.instruments.audit import Run, audit, rescaled, runs_of, standard_measures
from theorylab.instruments.path_norm import path_norm
from theorylab.learning.optimizers.sgd import sgd
from theorylab.learning.population import Population
from theorylab.stats.rank_correlation import kendall_tau


def test_tau_is_that_of_scipy_with_ties_and_its_interval_tells_order_from_none() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 6, (25,), generator=generator).double()
    y = x + 3 * torch.randn(25, generator=generator, dtype=torch.float64)
    tau, low, high = kendall_tau(x, y)
    assert tau == pytest.approx(kendalltau(x.numpy(), y.numpy()).statistic, abs=1e-12)
    assert 0 < low < tau < high
    assert kendall_tau(x, -x)[:2] == (pytest.approx(-1), pytest.approx(-1))
    shuffled = kendall_tau(x, y[torch.randperm(25, generator=generator)])
    assert shuffled[1] < 0 < shuffled[2]  # a measure of nothing
    for a, b, match in (([1, 2], [1, 2], "at least three"), ([1, 1, 1], [1, 2, 3], "x must not be constant"), ([1, 2, 3], [1, 2], "pairs")):
        with pytest.raises(ValueError, match=match):
            kendall_tau(a, b)
    with pytest.raises(ValueError, match="resamples"):
        kendall_tau([1, 2, 3], [1, 3, 2], resamples=0)


def problem(seed: int = 0) -> Problem:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    return Problem(net, F.cross_entropy, (torch.randn(20, 4), torch.arange(20) % 3), dtype=torch.float64)


def test_rescaling_leaves_the_function_and_the_path_norm_alone() -> None:
    one = problem()
    other = rescaled(one, seed=3)
    assert other is not None
    assert float((one.params["0.weight"] - other.params["0.weight"]).abs().max()) > 0.1
    assert float(other.loss()) == pytest.approx(float(one.loss()), rel=1e-12)
    assert path_norm(other) == pytest.approx(path_norm(one), abs=1e-10)
    tanh = Problem(nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3)), F.cross_entropy, (torch.randn(6, 4), torch.arange(6) % 3))
    assert rescaled(tanh) is None


def test_a_layer_that_is_used_twice_or_whose_bias_is_held_is_not_rescaled() -> None:
    torch.manual_seed(0)
    tied = nn.Linear(4, 4)
    data = torch.randn(20, 4), torch.arange(20) % 3
    net = nn.Sequential(tied, nn.ReLU(), tied, nn.ReLU(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    one = Problem(net, F.cross_entropy, data, dtype=torch.float64)
    other = rescaled(one)
    assert other is not None
    assert [k for k in one.params if not torch.equal(one.params[k], other.params[k])] == ["4.weight", "4.bias", "6.weight"]
    assert rescaled(Problem(net, F.cross_entropy, data, params="*.weight")) is None
    assert rescaled(Problem(net[:4], F.cross_entropy, data)) is None


def grid(gap) -> list[Run]:
    """Two learning rates, true and random labels, three seeds."""
    settings = [{"seed": s, "lr": lr, "labels": labels} for s in range(3) for lr in (0.1, 1.0) for labels in ("true", "random")]
    return [Run(problem(i), gap(**given), given) for i, given in enumerate(settings)]


def test_flags_what_is_fragile_and_lets_pass_what_is_not() -> None:
    runs = grid(lambda seed, lr, labels: lr + 2 * (labels == "random") + 0.01 * seed)
    gaps = {id(run.problem.model): run for run in runs}

    def measures(p: Problem) -> dict[str, float]:
        run = gaps[id(p.model)]
        lr, wild = float(run.settings["lr"]), run.settings["labels"] == "random"  # type: ignore[arg-type]
        return {
            "the gap itself": run.gap,
            "blind to labels": run.gap - 4.0 * wild,
            "fickle in lr": run.gap + (-1) ** int(run.settings["seed"]) * 3 * lr,  # type: ignore[call-overload]
            "scaled": run.gap + float(p.params["0.weight"].norm()) - float(p.model[0].weight.detach().norm()),  # type: ignore[index]
        }

    table = {m.name: m for m in audit(runs, measures).measures}
    assert table["the gap itself"].flags == ()
    assert table["the gap itself"].tau == pytest.approx(1)
    assert table["the gap itself"].rescaling == 0
    assert "wrong way under labels: agrees in 0%" in table["blind to labels"].flags
    assert any("lr changes sign with the seed" in flag for flag in table["fickle in lr"].flags)
    assert any("rescaling that changes nothing" in flag for flag in table["scaled"].flags)
    assert next(iter(audit(runs, measures).measures)).name == "the gap itself"


def test_the_seed_is_no_setting_to_be_worst_in() -> None:
    """Runs that differ in their seed alone differ by chance, and a measure is not worse for ordering them otherwise."""
    settings = [{"lr": lr, "seed": seed} for seed in range(3) for lr in (0.1, 1.0)]
    runs = [Run(problem(i), float(given["lr"] + 0.01 * given["seed"]), given) for i, given in enumerate(settings)]
    gaps = {id(run.problem.model): run.gap for run in runs}
    right = {id(run.problem.model): run.settings["lr"] - 0.01 * run.settings["seed"] for run in runs}  # type: ignore[operator]
    wrong = dict(zip(gaps, (0.0, 5.0, 3.0, 1.0, 4.0, 2.0), strict=True))
    table = audit(runs, lambda p: {"wrong under lr": wrong[id(p.model)], "right under lr": right[id(p.model)]}, resamples=50)
    first, second = table.measures
    assert (first.name, first.agreement) == ("right under lr", {"lr": 1.0, "seed": 0.0})
    assert second.agreement == {"lr": pytest.approx(1 / 3), "seed": pytest.approx(2 / 3)}
    assert (first.worst_setting, second.worst_setting) == ("lr", "lr")
    assert ["lr 1.00" in line for line in str(table).splitlines()] == [False, True, False]
    alone = [Run(run.problem, run.gap, {"seed": i}) for i, run in enumerate(runs)]
    assert audit(alone, lambda p: {"gap": gaps[id(p.model)]}, resamples=50).measures[0].worst_setting is None


def test_the_standard_measures_are_told_apart_by_rescaling() -> None:
    runs = grid(lambda seed, lr, labels: lr + 2 * (labels == "random") + 0.01 * seed)[:3]
    table = audit(runs, resamples=50)
    moved = {m.name: m.rescaling for m in table.measures}
    assert moved["log path norm"] < 1e-9
    assert moved["loss"] < 1e-12
    assert moved["sharpness, magnitude"] < 1e-3
    assert min(moved["log spectral product"], moved["sharpness, isotropic"], moved["distance from zero"]) > 0.01
    assert "rescaling that changes nothing" in str(table)
    assert {r.label for r in table.readings()} == {"measure"}
    assert set(moved) == set(standard_measures(runs[0].problem))


def test_a_population_gives_its_replicas_as_runs() -> None:
    x, y = torch.randn(12, 4, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3
    lrs = torch.tensor([0.01, 0.1, 0.5])

    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 3))

    population = Population(make, F.cross_entropy, (x, y), optimizer=sgd(lrs), seeds=[0, 0, 0], mode="vmap")
    population.train(5)
    whole = Problem(make(), F.cross_entropy, (x, y), dtype=torch.float64)
    runs = runs_of(population, whole, gaps=[0.3, 0.2, 0.1], settings=[{"lr": float(lr)} for lr in lrs])
    assert [float(run.problem.loss()) for run in runs] == pytest.approx(population.losses().tolist(), rel=1e-10)
    assert audit(runs, lambda p: {"loss": float(p.loss())}, resamples=20).measures[0].tau == pytest.approx(1)
    with pytest.raises(ValueError, match="one a replica"):
        runs_of(population, whole, gaps=[0.1], settings=[{}])


def test_runs_have_the_buffers_and_the_frozen_parameters_of_their_replicas() -> None:
    x, y = torch.randn(12, 4, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3

    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))

    population = Population(
        make, F.cross_entropy, (x, y), optimizer=sgd(0.3), seeds=[0, 1, 2], trainable=lambda name: not name.startswith("0.")
    )
    population.train(50)
    own = [float(Problem(population.replica(k)[0], F.cross_entropy, (x.double(), y)).loss()) for k in range(3)]
    for names in (None, ["1.*", "3.*"]):
        runs = runs_of(
            population,
            Problem(make(), F.cross_entropy, (x, y), dtype=torch.float64, params=names),
            [1, 2, 3],
            [{"seed": k} for k in range(3)],
        )
        assert [float(run.problem.loss()) for run in runs] == pytest.approx(own, rel=1e-12)
        assert list(runs[1].problem.params) == list(Problem(make(), F.cross_entropy, (x.float(), y), params=names).params)
    other = Problem(nn.Sequential(nn.Linear(4, 3)), F.cross_entropy, (x, y))
    with pytest.raises(ValueError, match=r"tensors\[.*\] must have shape|which is not among what the model holds"):
        runs_of(population, other, [1, 2, 3], [{}] * 3)


def test_refuses_runs_that_cannot_be_compared() -> None:
    runs = grid(lambda seed, lr, labels: lr)
    with pytest.raises(ValueError, match="at least three"):
        audit(runs[:2])
    with pytest.raises(ValueError, match="run 2 has"):
        audit([*runs[:2], Run(runs[2].problem, 0.1, {"lr": 3})])
    with pytest.raises(ValueError, match="finite gaps"):
        audit([*runs[:2], Run(runs[2].problem, float("nan"), runs[2].settings)])
