"""Private training: the mechanism to the letter, a ledger that says what happened, and refusal of what would void it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from test_clipping import Centred
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import mlp

from theorylab.core.instrument import Inapplicable
from theorylab.core.privacy_ledger import PrivacyLedger
from theorylab.core.problem import Problem
from theorylab.instruments.clipping import clipped_sum
from theorylab.instruments.privacy_audit import audit_gdp
from theorylab.instruments.private_training import dp_ftrl, dp_sgd, visit_sensitivity
from theorylab.instruments.rows import looped_grads
from theorylab.learning.optimizers.adam import adam
from theorylab.learning.optimizers.sgd import sgd
from theorylab.learning.private import AdaptiveClip, gaussian, noise_generator
from theorylab.learning.private_batches import cyclic_batches, fixed_size_batches, poisson_batches, shuffled_batches, unamplified_batches
from theorylab.learning.private_population import dp_sgd_population
from theorylab.models.seeded import seeded

N = 40


def data() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(N, 5, generator=g, dtype=torch.float64), torch.randint(0, 3, (N,), generator=g)


def problem(seed: int = 0) -> Problem:
    return Problem(seeded(mlp, seed), F.cross_entropy, data())


def literal(start: Problem, batches: list[Tensor], *, lr: float, clip: float, sigma: float, size: float, seed: int) -> Tensor:
    """Algorithm 1 of Abadi et al., row by row."""
    x, y = data()
    point, generator = start, noise_generator(seed)
    for rows in batches:
        total = torch.zeros(start.P, dtype=torch.float64)
        for i in rows.tolist():
            here = Problem(start.model, F.cross_entropy, (x[i : i + 1], y[i : i + 1])).at(point.params)
            g = here.gradient()
            total += g / max(1.0, float(g.norm()) / clip)
        noisy = (total + sigma * clip * gaussian(start.P, generator, total)) / size
        point = point.at({k: p - lr * s for (k, p), s in zip(point.params.items(), point.unflatten(noisy).values(), strict=True)})
    return point.flatten(point.params)


@pytest.mark.parametrize("microbatch", [None, 3])
@pytest.mark.parametrize("method", ["auto", "vmap", "loop"])
def test_dp_sgd_is_algorithm_1(microbatch: int | None, method: str) -> None:
    start, drawn = problem(), poisson_batches(N, 0.2, 7)
    batches = [next(drawn) for _ in range(5)]
    expected = literal(start, batches, lr=0.5, clip=0.7, sigma=0.3, size=0.2 * N, seed=3)
    run = dp_sgd(
        start,
        poisson_batches(N, 0.2, 7),
        optimizer=sgd(0.5),
        clip=0.7,
        sigma=0.3,
        steps=5,
        seed=3,
        microbatch=microbatch,
        method=method,  # type: ignore[arg-type]
    )
    assert torch.allclose(run.problem.flatten(run.problem.params), expected, rtol=0, atol=1e-12)
    assert run.ledger == PrivacyLedger(0.2, 0.3, 5, "poisson", "add_remove")
    assert run.clips == (0.7,) * 5
    assert torch.equal(start.flatten(start.params), problem().flatten(problem().params))  # the problem given is as it was


def test_a_population_trains_as_each_replica_alone() -> None:
    seeds, sigma = [4, 9, 11], torch.tensor([0.0, 0.5, 2.0], dtype=torch.float64)
    found = dp_sgd_population(mlp, F.cross_entropy, data(), optimizer=adam(0.05), seeds=seeds, q=0.3, clip=0.5, sigma=sigma, steps=6)
    for k, seed in enumerate(seeds):
        run = dp_sgd(
            problem(seed), poisson_batches(N, 0.3, seed), optimizer=adam(0.05), clip=0.5, sigma=float(sigma[k]), steps=6, seed=seed
        )
        for name, p in run.problem.params.items():
            assert torch.allclose(found.params[name][k], p, rtol=0, atol=1e-11)
        assert found.ledgers[k] == run.ledger
        with torch.no_grad():
            assert torch.allclose(found.outputs(data()[0])[k], run.load_into(seeded(mlp, 0))(data()[0]), atol=1e-10)


def frozen_first(seed: int | None = None) -> nn.Module:
    model = mlp() if seed is None else seeded(mlp, seed)
    next(model.parameters()).requires_grad_(False)
    return model


def test_a_population_leaves_frozen_parameters_alone_and_out_of_the_norm() -> None:
    options = {"optimizer": sgd(0.5), "clip": 0.5, "sigma": 0.5, "steps": 6}
    found = dp_sgd_population(frozen_first, F.cross_entropy, data(), seeds=[4, 9], q=0.3, **options)
    for k, seed in enumerate([4, 9]):
        start = Problem(frozen_first(seed), F.cross_entropy, data())
        trained = dp_sgd(start, poisson_batches(N, 0.3, seed), seed=seed, **options).load_into(frozen_first(seed))
        for name, p in trained.named_parameters():
            assert torch.allclose(found.params[name][k], p, rtol=0, atol=1e-11)
        with torch.no_grad():
            assert torch.allclose(found.outputs(data()[0])[k], trained(data()[0]), atol=1e-10)


def test_a_population_with_nothing_to_train_is_refused() -> None:
    with pytest.raises(ValueError, match="are frozen"):
        dp_sgd_population(
            lambda: mlp().requires_grad_(False), F.cross_entropy, data(), optimizer=sgd(0.5), seeds=[0], q=0.3, clip=1.0, sigma=1.0, steps=1
        )


def test_a_population_takes_tokens() -> None:
    tokens, y = torch.arange(N) % 7, torch.arange(N) % 3
    found = dp_sgd_population(
        lambda: nn.Embedding(7, 3), F.cross_entropy, (tokens, y), optimizer=sgd(0.5), seeds=[0, 1], q=0.3, clip=1.0, sigma=0.0, steps=2
    )
    assert torch.equal(found.outputs(tokens), found.params["weight"][:, tokens])


def test_a_population_trains_on_its_members_only() -> None:
    x, y = data()
    members = torch.zeros(2, N, dtype=torch.bool)
    members[:, : N // 2] = True
    options = {"optimizer": sgd(0.5), "seeds": [0, 1], "q": 0.4, "clip": 1.0, "sigma": 0.1, "steps": 4}
    found = dp_sgd_population(mlp, F.cross_entropy, (x, y), members=members, **options)
    x[N // 2 :] = 100.0
    again = dp_sgd_population(mlp, F.cross_entropy, (x, y), members=members, **options)
    assert all(torch.equal(found.params[k], again.params[k]) for k in found.params)
    with pytest.raises(ValueError, match=r"members must be boolean \(2, 40\)"):
        dp_sgd_population(mlp, F.cross_entropy, (x, y), members=torch.zeros(2, N), **options)


def test_poisson_sizes_are_binomial_and_rows_independent() -> None:
    batches, draws = poisson_batches(50, 0.1, 1), 4000
    hit = torch.stack([torch.zeros(50).index_fill_(0, next(batches), 1.0) for _ in range(draws)])
    assert float((hit.mean(0) - 0.1).abs().max()) < 4.5 * math.sqrt(0.09 / draws)  # 50 rows, 4.5 deviations
    assert float(hit.sum(1).var()) == pytest.approx(50 * 0.09, rel=5 * math.sqrt(2 / draws))
    covariance = torch.cov(hit.T) - torch.diag(hit.var(0))
    assert float(covariance.abs().max()) < 5.5 * 0.09 / math.sqrt(draws)


def test_fixed_size_batches_are_uniform_sets() -> None:
    batches, draws = fixed_size_batches(10, 3, 2), 6000
    sets = [tuple(sorted(next(batches).tolist())) for _ in range(draws)]
    assert all(len(set(s)) == 3 for s in sets)
    counts = np.array([sets.count(s) for s in set(sets)])
    assert len(counts) == 120
    chi = ((counts - draws / 120) ** 2).sum() / (draws / 120)
    assert chi < 119 + 5 * math.sqrt(2 * 119)


def test_the_ledger_is_the_samplers_and_not_the_users_word() -> None:
    start = problem()
    common = {"optimizer": sgd(0.1), "clip": 1.0, "sigma": 1.0, "steps": 2, "seed": 0}
    assert dp_sgd(start, fixed_size_batches(N, 8, 0), **common).ledger == PrivacyLedger(0.2, 1.0, 2, "fixed_size", "replace_one")
    assert dp_sgd(start, shuffled_batches(N, 8, 0), **common).ledger == PrivacyLedger(0.2, 1.0, 2, "shuffled", "add_remove")
    weighted = unamplified_batches(N, iter([torch.tensor([0, 1]), torch.tensor([1, 5])]))
    assert dp_sgd(start, weighted, **common).ledger == PrivacyLedger(1.0, 1.0, 2, "unamplified", "add_remove")
    with pytest.raises(ValueError, match="each row at most once"):
        dp_sgd(start, unamplified_batches(N, iter([torch.tensor([3, 3])])), **common)


def test_a_run_that_begins_within_an_epoch_is_booked_from_its_beginning() -> None:
    """Two batches an epoch: the second of one and the first of the next may hold the same row."""
    options = {"optimizer": sgd(0.1), "clip": 1.0, "sigma": 1.0, "seed": 0}
    batches = shuffled_batches(N, N // 2, 0)
    assert dp_sgd(problem(), batches, steps=1, **options).ledger.participations == 1
    assert dp_sgd(problem(), batches, steps=2, **options).ledger.participations == 2
    assert dp_sgd(problem(), batches, steps=1, **options).ledger.participations == 1
    assert dp_sgd(problem(), batches, steps=2, **options).ledger.participations == 1
    assert shuffled_batches(N, N // 2, 0).ledger(1.0, 3).participations == 2  # of a run to come


def test_an_empty_batch_releases_noise_alone() -> None:
    start = problem()
    run = dp_sgd(start, poisson_batches(N, 1e-9, 0), optimizer=sgd(1.0), clip=2.0, sigma=0.5, steps=1, seed=5)
    moved = start.flatten(start.params) - run.problem.flatten(run.problem.params)
    noise = gaussian(start.P, noise_generator(5), moved)
    assert torch.allclose(moved, 2.0 * 0.5 * noise / (1e-9 * N), rtol=1e-10)


def test_noise_and_sampling_of_one_seed_are_of_different_streams() -> None:
    same = torch.randn(1000, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    noise = gaussian(1000, noise_generator(3), same)
    assert abs(float(torch.corrcoef(torch.stack([same, noise]))[0, 1])) < 0.15


def test_adaptive_clipping_finds_the_quantile() -> None:
    start = problem()
    norms = looped_grads(start).norm(dim=1)
    clip = AdaptiveClip(start=20.0, quantile=0.3, rate=0.3, count_noise=0.1)
    run = dp_sgd(start, poisson_batches(N, 1.0, 0), optimizer=sgd(0.0), clip=clip, sigma=0.0, steps=80, seed=0)
    assert len(set(run.clips)) > 10
    last = sum(run.clips[-20:]) / 20
    assert float(norms.quantile(0.2)) < last < float(norms.quantile(0.4))


def test_adaptive_clipping_is_as_private_as_its_sigma() -> None:
    """Sum and count together move by (C, 1/2) of noise (σ_Δ C, σ_b): the lengths of the two add to 1/σ."""
    on_sum, on_count = AdaptiveClip(count_noise=0.1).split(1.3, 64.0)
    assert 1 / on_sum**2 + (0.5 / on_count) ** 2 == pytest.approx(1 / 1.3**2, rel=1e-12)
    assert on_count == 6.4
    with pytest.raises(ValueError, match="count_noise must be above"):
        AdaptiveClip(count_noise=0.01).split(1.3, 64.0)


def test_dp_ftrl_adds_correlated_noise_of_one_release() -> None:
    start, steps = problem(), 5
    factor = torch.linalg.cholesky(torch.ones(steps, steps).double() + torch.eye(steps).double())
    run = dp_ftrl(start, shuffled_batches(N, 8, 1), factor, optimizer=sgd(1.0), clip=0.5, sigma=2.0, seed=4)
    generator = noise_generator(4)
    z = torch.stack([gaussian(start.P, generator, factor) for _ in range(steps)])
    noise = 2.0 * 0.5 * float(factor.norm(dim=0).max()) * torch.linalg.inv(factor) @ z
    point, order = start, shuffled_batches(N, 8, 1)
    x, y = data()
    for t in range(steps):
        rows = next(order)
        g = looped_grads(Problem(start.model, F.cross_entropy, (x[rows], y[rows])).at(point.params))
        total = (g * (0.5 / g.norm(dim=1)).clamp(max=1.0)[:, None]).sum(0) + noise[t]
        point = point.at({k: p - s / 8 for (k, p), s in zip(point.params.items(), point.unflatten(total).values(), strict=True)})
    assert torch.allclose(run.problem.flatten(run.problem.params), point.flatten(point.params), atol=1e-10)
    assert run.ledger == PrivacyLedger(1.0, 2.0, 1, "unamplified", "add_remove")


def test_dp_ftrl_with_the_identity_is_dp_sgd_on_an_epoch() -> None:
    start = problem()
    ftrl = dp_ftrl(start, shuffled_batches(N, 8, 1), torch.eye(5), optimizer=sgd(0.5), clip=0.5, sigma=1.0, seed=4)
    dp = dp_sgd(start, shuffled_batches(N, 8, 1), optimizer=sgd(0.5), clip=0.5, sigma=1.0, steps=5, seed=4)
    assert torch.allclose(ftrl.problem.flatten(ftrl.problem.params), dp.problem.flatten(dp.problem.params), atol=1e-12)


@pytest.mark.parametrize(
    ("factor", "sampler", "words"),
    [
        (torch.ones(3, 3), shuffled_batches(N, 8, 0), "lower triangular and with a positive diagonal"),
        (torch.eye(6), shuffled_batches(N, 8, 0), "within one epoch"),
        (torch.eye(3), poisson_batches(N, 0.2, 0), "within one epoch"),
    ],
)
def test_dp_ftrl_refuses_what_its_sensitivity_does_not_cover(factor: Tensor, sampler: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        dp_ftrl(problem(), sampler, factor, optimizer=sgd(0.1), clip=1.0, sigma=1.0, seed=0)  # type: ignore[arg-type]


def test_dp_ftrl_over_epochs_pays_for_every_visit_and_keeps_a_band_of_noise() -> None:
    start, steps, coefficients = problem(), 13, [1.0, 0.5, 0.375]
    factor = torch.stack([c * torch.diag(torch.ones(steps - k).double(), -k) for k, c in enumerate(coefficients)]).sum(0)
    run = dp_ftrl(start, cyclic_batches(N, 8, 1), factor, optimizer=sgd(1.0), clip=1e-9, sigma=2e9, seed=4)  # noise alone
    generator = noise_generator(4)
    z = torch.stack([gaussian(start.P, generator, factor) for _ in range(steps)])
    # three visits, five steps apart: three bands do not meet
    noise = 2.0 * 3**0.5 * sum(c * c for c in coefficients) ** 0.5 * torch.linalg.inv(factor) @ z / 8
    moved = start.flatten(start.params) - run.problem.flatten(run.problem.params)
    assert torch.allclose(moved, noise.sum(0), rtol=0, atol=1e-6)
    assert run.ledger == PrivacyLedger(1.0, 2e9, 1, "unamplified", "add_remove")


@pytest.mark.parametrize("separation", [1, 2, 3, 7])
def test_visit_sensitivity_is_the_worst_of_all_signs(separation: int) -> None:
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(7, 7, generator=generator).double().tril()
    for factor, attained in ((mixed.abs(), True), (mixed, False)):
        worst = 0.0
        for j in range(separation):
            columns = factor[:, j::separation]
            for signs in itertools.product((-1.0, 1.0), repeat=columns.shape[1]):
                worst = max(worst, float((columns @ torch.tensor(signs).double()).norm()))
        found = visit_sensitivity(factor, separation)
        assert found == pytest.approx(worst, rel=1e-12) if attained else found >= worst * (1 - 1e-12)


def test_dp_ftrl_refuses_a_clipping_norm_that_moves() -> None:
    with pytest.raises(ValueError, match="clip must be a number"):
        dp_ftrl(problem(), shuffled_batches(N, 8, 0), torch.eye(3), optimizer=sgd(0.1), clip=AdaptiveClip(), sigma=1.0, seed=0)  # type: ignore[arg-type]


def test_dp_ftrl_refuses_a_sampler_in_the_middle_of_an_epoch() -> None:
    batches = shuffled_batches(N, 8, 0)
    for _ in range(3):
        next(batches)
    with pytest.raises(ValueError, match="with 3 batches of an epoch drawn"):
        dp_ftrl(problem(), batches, torch.eye(5), optimizer=sgd(0.1), clip=1.0, sigma=1.0, seed=0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"clip": 0.0}, "clip must be positive"),
        ({"sigma": -1.0}, "sigma must be finite and not negative"),
        ({"sigma": float("nan")}, "sigma must be finite and not negative"),
        ({"steps": -1}, "steps must be at least 0"),
        ({"microbatch": 0}, "microbatch must be at least 1"),
    ],
)
def test_arguments_out_of_range(change: dict, words: str) -> None:
    options = {"optimizer": sgd(0.1), "clip": 1.0, "sigma": 1.0, "steps": 1, "seed": 0, **change}
    with pytest.raises(ValueError, match=words):
        dp_sgd(problem(), poisson_batches(N, 0.5, 0), **options)


def test_refuses_samplers_and_data_that_do_not_fit() -> None:
    options = {"optimizer": sgd(0.1), "clip": 1.0, "sigma": 1.0, "steps": 1, "seed": 0}
    with pytest.raises(ValueError, match=r"drawn from the problem's 40 rows, got a sampler of 39"):
        dp_sgd(problem(), poisson_batches(39, 0.5, 0), **options)
    with pytest.raises(ValueError, match="as one batch"):
        dp_sgd(Problem(mlp().double(), F.cross_entropy, data(), batch_size=10), poisson_batches(N, 0.5, 0), **options)
    for make, words in [
        (lambda: poisson_batches(N, 0.0, 0), r"q must lie in \(0, 1\]"),
        (lambda: fixed_size_batches(N, 41, 0), "size must be in 1..40"),
        (lambda: shuffled_batches(N, 7, 0), "size must divide"),
    ]:
        with pytest.raises(ValueError, match=words):
            make()


def test_dp_sgd_refuses_a_model_that_couples_rows() -> None:
    coupled = Problem(Centred().double(), F.cross_entropy, data())
    with pytest.raises(Inapplicable, match="the first has other outputs alone"):
        dp_sgd(coupled, poisson_batches(N, 0.2, 0), optimizer=sgd(0.1), clip=1.0, sigma=1.0, steps=1, seed=0)


def test_a_population_refuses_what_couples_rows() -> None:
    options = {"optimizer": sgd(0.1), "seeds": [0], "q": 0.5, "clip": 1.0, "sigma": 1.0, "steps": 1}
    with pytest.raises(ValueError, match="batch normalization in training mode"):
        dp_sgd_population(lambda: nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3)), F.cross_entropy, data(), **options)
    with pytest.raises(ValueError, match="dropout"):
        dp_sgd_population(lambda: mlp(dropout=0.1), F.cross_entropy, data(), **options)


class Averaging(nn.Module):
    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        out = self.net(x)
        self.mean = 0.9 * self.mean + 0.1 * out.detach().mean(0)
        return out - self.mean


def drawn() -> nn.Module:
    net = mlp()
    vars(net)["W"] = torch.randn(2)
    return net


@pytest.mark.parametrize(
    ("make", "message"), [(Averaging, "buffer mean must not change"), (drawn, "got the plain attribute W, which seeds 0 and 1")]
)
def test_a_population_refuses_what_replicas_or_rows_would_share(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dp_sgd_population(make, F.cross_entropy, data(), optimizer=sgd(0.1), seeds=[0, 1], q=0.5, clip=1.0, sigma=1.0, steps=1)


def test_what_a_step_releases_is_as_private_as_its_ledger_says() -> None:
    """Many runs with and without one row, told apart along that row's gradient: the audit reaches close to μ = 1/σ, and not above."""
    x, y = data()
    x, y, sigma, clip, runs = x[:6], y[:6], 0.5, 0.4, 300
    net = seeded(mlp, 0)
    whole, without = (Problem(net, F.cross_entropy, (x[k:], y[k:])) for k in (0, 1))
    g = looped_grads(whole)[0]
    assert float(g.norm()) > clip  # the row moves the sum by all of C

    def released(start: Problem, seed: int) -> float:
        run = dp_sgd(start, poisson_batches(start.n, 1.0, seed), optimizer=sgd(1.0), clip=clip, sigma=sigma, steps=1, seed=seed)
        total = start.n * (start.flatten(start.params) - run.problem.flatten(run.problem.params))
        return float(total @ g / g.norm()) / clip

    inside, outside = ([released(p, k + seed) for k in range(runs)] for p, seed in ((whole, 0), (without, 10_000)))
    middle = float(clipped_sum(without, clip).total @ g / g.norm()) / clip + 0.5  # half way between the two means
    bound = audit_gdp(inside, outside, threshold=middle, level=0.99).mu
    # with both rates at Φ(1) and 300 runs a side the bound is 1.54 on average, with a deviation of 0.12
    assert 0.5 / sigma < bound <= 1 / sigma
    deviation = float(np.std(np.array(inside) - np.mean(inside)))
    assert deviation == pytest.approx(sigma, rel=5 / math.sqrt(2 * runs))
    assert np.mean(inside) - np.mean(outside) == pytest.approx(1.0, abs=5 * sigma * math.sqrt(2 / runs))


def test_losses_of_whole_batches_train_too() -> None:
    """A dict batch, and a loss that calls the model itself: the same sums as from pairs."""
    x, y = data()

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(model(batch["x"]), batch["y"], reduction="none")

    common = {"optimizer": sgd(0.5), "clip": 0.5, "sigma": 0.2, "steps": 3, "seed": 1}
    pairs = dp_sgd(problem(), poisson_batches(N, 0.3, 0), **common)
    dicts = dp_sgd(Problem(seeded(mlp, 0), loss, {"x": x, "y": y}), poisson_batches(N, 0.3, 0), **common)
    assert torch.allclose(pairs.problem.flatten(pairs.problem.params), dicts.problem.flatten(dicts.problem.params), atol=1e-12)


def test_dropout_draws_anew_at_every_step_and_repeats_with_the_seed() -> None:
    x, y = data()
    start = Problem(seeded(lambda: mlp(dropout=0.5), 0), F.cross_entropy, (x, y), train=True)
    common = {"clip": 0.5, "sigma": 0.0, "seed": 1}
    runs = [dp_sgd(start, poisson_batches(N, 1.0, 0), optimizer=sgd(0.0), steps=2, **common) for _ in range(2)]
    assert torch.equal(*(r.problem.flatten(r.problem.params) for r in runs))
    one = dp_sgd(start, poisson_batches(N, 1.0, 0), optimizer=sgd(1e-9), steps=1, **common).problem
    two = dp_sgd(start, poisson_batches(N, 1.0, 0), optimizer=sgd(1e-9), steps=2, **common).problem
    zero, first, second = (p.flatten(p.params) for p in (start, one, two))
    assert float(((second - first) - (first - zero)).norm() / (first - zero).norm()) > 0.1
