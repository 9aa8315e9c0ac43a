"""Influence: every curvature by every solver is the dense formula, with the sign of real refits, and what has no answer is refused."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import make, mlp, vectors

from theorylab.core.instrument import Inapplicable
from theorylab.core.problem import Problem
from theorylab.instruments.attributed import gradient_blocks, token_losses
from theorylab.instruments.attribution import dense_influence, influence, root_rows
from theorylab.instruments.attribution_quality import evaluate_attribution
from theorylab.instruments.curvature import dense_ggn
from theorylab.instruments.rows import per_example_grads
from theorylab.instruments.tracin import tracin
from theorylab.learning.linear import ridge


def probes(m: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(m, 5, generator=generator), torch.arange(m) % 3


def small(seed: int = 0, n: int = 12) -> Problem:
    torch.manual_seed(seed)
    return Problem(mlp(), F.cross_entropy, vectors(n), dtype=torch.float64)


@pytest.mark.parametrize("curvature", ["ggn", "kfac", "ekfac", "fisher", "identity"])
@pytest.mark.parametrize("damping", [None, 0.03])
def test_every_curvature_is_its_dense_formula(curvature: str, damping: float | None) -> None:
    problem = small()
    found = influence(problem, probes(), curvature=curvature, damping=damping)
    torch.testing.assert_close(found, dense_influence(problem, probes(), curvature=curvature, damping=damping), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("solver", ["dense", "dual", "cg"])
@pytest.mark.parametrize("curvature", ["ggn", "fisher"])
def test_solvers_agree(curvature: str, solver: str) -> None:
    problem = small()
    found = influence(problem, probes(), curvature=curvature, damping=0.05, solver=solver, tol=1e-12)
    expected = dense_influence(problem, probes(), curvature=curvature, damping=0.05)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("name", ["mlp", "mlp, minibatches", "mlp, row losses", "dropout", "attention, tied"])
def test_the_root_is_a_root_of_the_gauss_newton_matrix(name: str) -> None:
    problem = make(name)
    G = torch.zeros(problem.P, problem.P, dtype=torch.float64)
    for R in root_rows(problem, memory=200 * problem.P):  # in small blocks
        G += R.T @ R
    torch.testing.assert_close(G, dense_ggn(problem).to_dense(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("curvature", ["ggn", "fisher"])
def test_approximate_solvers_tend_to_the_exact_one(curvature: str) -> None:
    problem = small()
    expected = influence(problem, probes(), curvature=curvature, damping=0.1)

    def error(**options: object) -> float:
        found = influence(problem, probes(), curvature=curvature, damping=0.1, **options)
        return float((found - expected).norm() / expected.norm())

    assert error(solver="arnoldi", rank=30) < error(solver="arnoldi", rank=3)
    assert error(solver="arnoldi", rank=problem.P) < 1e-5
    assert error(solver="lissa", depth=300) < 1e-6 < error(solver="lissa", depth=5)
    batches = problem.on([batch.part(rows) for batch in problem.batches for rows in (slice(0, 5), slice(5, 12))])
    drawn = [influence(batches, probes(), curvature=curvature, damping=0.1, solver="lissa", depth=300, seed=s) for s in range(30)]
    assert float((torch.stack(drawn).mean(0) - expected).norm() / expected.norm()) < 0.1  # uneven batches weigh by their rows
    assert not torch.allclose(drawn[0], drawn[1])


@pytest.mark.parametrize("curvature", ["ggn", "fisher"])
def test_the_default_damping_is_that_of_every_solver(curvature: str) -> None:
    problem = small()
    dense, dual, cg = (influence(problem, probes(), curvature=curvature, solver=s, tol=1e-12) for s in ("dense", "dual", "cg"))
    torch.testing.assert_close(dual, dense, rtol=1e-7, atol=1e-10)
    torch.testing.assert_close(cg, dense, rtol=1e-7, atol=1e-10)


def test_memory_bounds_the_blocks_and_not_the_result() -> None:
    problem = small()
    expected = influence(problem, probes(), damping=0.05)
    torch.testing.assert_close(influence(problem, probes(), damping=0.05, memory=1), expected, rtol=1e-6, atol=1e-9)  # one row, and cg


@pytest.mark.parametrize(
    "build",
    [*(partial(make, name) for name in ("mlp, minibatches", "dropout", "attention, tied", "dict batches, custom loss")),
     lambda: Problem(Causal(), F.cross_entropy, [sequences(4, 1, padded=3), sequences(3, 2)], dtype=torch.float64)],
)  # fmt: skip
def test_blocks_of_gradients_are_those_of_the_rows_at_any_memory(build: Callable[[], Problem]) -> None:
    problem = build()
    every = per_example_grads(problem)
    for rows in (1, 3, 5, 100):
        memory = 16 * problem.P * rows
        torch.testing.assert_close(torch.cat(list(gradient_blocks(problem, None, memory))), every, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(torch.cat(list(gradient_blocks(problem, [6, 0, 6], memory))), every[[6, 0, 6]], rtol=1e-9, atol=1e-12)


def test_a_block_of_gradients_passes_through_its_own_rows_alone() -> None:
    seen = 0

    class Counting(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            nonlocal seen
            seen += len(input)
            return super().forward(input)

    problem = Problem(Counting(5, 3), F.cross_entropy, vectors(64))
    seen = 0
    blocks = list(gradient_blocks(problem, None, memory=16 * problem.P * 2))
    assert len(blocks) == 32
    assert seen < 8 * 64  # the whole batch for each block would be 32 · 64 rows


def test_a_positive_score_says_that_adding_the_row_raises_the_target() -> None:
    """Ridge regression, where refits with a changed weight are exact: 1/n Σ w (x·θ − y)² + λ/2 ‖θ‖²."""
    generator = torch.Generator().manual_seed(0)
    x, noise = (torch.randn(s, generator=generator, dtype=torch.float64) for s in ((15, 3), (15,)))
    y, decay, test = x.sum(1) + noise, 0.1, torch.randn(4, 3, generator=generator, dtype=torch.float64)
    eps = 1e-5
    weights = 1 + eps * torch.cat([torch.eye(15), -torch.eye(15)]).double()
    outputs = ridge(x, y, weights, l2=15 * decay / 2, intercept=False).outputs(test)[..., 0]
    slopes = (outputs[:15] - outputs[15:]) / (2 * eps)
    theta = ridge(x, y, torch.ones(1, 15), l2=15 * decay / 2, intercept=False).weights[0]
    problem = Problem(nn.Linear(3, 1, bias=False), F.mse_loss, (x, y[:, None]), dtype=torch.float64).at({"weight": theta.T})
    scores = influence(problem, (test, torch.zeros(4, 1)), target=lambda out, _: out[:, 0], damping=decay)
    torch.testing.assert_close(scores, slopes, rtol=1e-6, atol=1e-8)


def test_the_damping_is_read_from_the_optimizer() -> None:
    problem = small()
    parameters = list(problem.model.parameters())
    expected = influence(problem, probes(), damping=0.02)
    torch.testing.assert_close(influence(problem, probes(), damping=torch.optim.SGD(parameters, 0.1, weight_decay=0.02)), expected)
    with pytest.raises(ValueError, match="decoupled"):
        influence(problem, damping=torch.optim.AdamW(parameters))
    groups = [{"params": parameters[:1], "weight_decay": 0.1}, {"params": parameters[1:]}]
    with pytest.raises(ValueError, match="different weight decays"):
        influence(problem, damping=torch.optim.SGD(groups, 0.1))


def test_targets_by_row_number_and_all_rows() -> None:
    problem = small()
    every = influence(problem, damping=0.1)
    torch.testing.assert_close(influence(problem, [3, 0], damping=0.1), every[:, [3, 0]])
    late = torch.arange(problem.n) > 7  # a mask, not rows 0 and 1 over and over
    torch.testing.assert_close(influence(problem, late, damping=0.1), every[:, late])
    torch.testing.assert_close(every, every.T)  # a symmetric form
    assert bool((every.diagonal() < 0).all())  # a row lowers its own loss


class Causal(nn.Module):
    """A language model of one causal attention: words (n, token) → logits (n, k, token)."""

    def __init__(self, words: int = 7, width: int = 4) -> None:
        super().__init__()
        self.embed, self.mix, self.head = nn.Embedding(words, width), nn.Linear(width, 3 * width), nn.Linear(width, words)

    def forward(self, tokens: Tensor) -> Tensor:
        q, k, v = self.mix(self.embed(tokens)).chunk(3, -1)
        return self.head(F.scaled_dot_product_attention(q, k, v, is_causal=True)).transpose(1, 2)


def sequences(n: int, seed: int, padded: int = 0) -> tuple[Tensor, Tensor]:
    """Words and the words that follow; the last ones of the first sequence are padding."""
    words = torch.randint(0, 7, (n, 6), generator=torch.Generator().manual_seed(seed))
    x, y = words[:, :-1], words[:, 1:].clone()
    if padded:
        y[0, -padded:] = -100
    return x, y


def language(**options: object) -> Problem:
    torch.manual_seed(0)
    return Problem(Causal(), F.cross_entropy, sequences(8, 1), dtype=torch.float64, **options)


@pytest.mark.parametrize("options", [{}, {"solver": "cg", "tol": 1e-12}, {"solver": "dual"}, {"curvature": "fisher"}, {"memory": 1}])
def test_every_token_of_a_target_has_scores_of_its_own(options: dict) -> None:
    problem, targets = language(), [sequences(3, 2, padded=2), sequences(2, 3)]
    found = influence(problem, targets, target=token_losses, damping=0.1, **options)
    slow = {k: v for k, v in options.items() if k == "curvature"}
    expected = dense_influence(problem, targets, target=token_losses, damping=0.1, **slow)
    assert found.shape == (8, 5, 5)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
    assert bool((found[:, 0, -2:] == 0).all())  # of padding
    assert bool((found[:, 0, :-2] != 0).all())
    some = influence(problem, [5, 2], target=token_losses, damping=0.1, curvature=slow.get("curvature", "ggn"))
    every = dense_influence(problem, target=token_losses, damping=0.1, **slow)
    torch.testing.assert_close(some, every[:, [5, 2]], rtol=1e-6, atol=1e-9)
    turns = influence(language(batch_size=3), [5, 0, 7, 1], target=token_losses, damping=0.1, curvature=slow.get("curvature", "ggn"))
    torch.testing.assert_close(turns, every[:, [5, 0, 7, 1]], rtol=1e-6, atol=1e-9)


def test_scores_of_tokens_sum_to_that_of_their_sequence() -> None:
    problem, targets = language(), [sequences(3, 2, padded=2), sequences(2, 3)]

    def sums(outputs: Tensor, labels: Tensor) -> Tensor:
        return token_losses(outputs, labels).sum(1)

    for score in (partial(influence, damping=0.1), partial(tracin, checkpoints=None, rates=0.3)):
        tokens, whole = score(problem, targets=targets, target=token_losses), score(problem, targets=targets, target=sums)
        torch.testing.assert_close(tokens.sum(2), whole, rtol=1e-8, atol=1e-12)


def test_a_target_is_that_of_its_row_whatever_the_loss_is_a_mean_over() -> None:
    """Where batches weigh by their tokens, those of the targets must not: each number a row is attributed as it is."""
    x, y = sequences(4, 1, padded=3)
    batches = [(x[:1], y[:1]), (x[1:], y[1:])]
    torch.manual_seed(0)
    weighted = Problem(Causal(), F.cross_entropy, batches, dtype=torch.float64, count=lambda content: int((content[1] != -100).sum()))
    right = torch.cat([influence(weighted, [b], target=lambda o, y: token_losses(o, y).sum(1), damping=0.1) for b in batches], 1)
    torch.testing.assert_close(influence(weighted, batches, target=lambda o, y: token_losses(o, y).sum(1), damping=0.1), right)
    torch.testing.assert_close(influence(weighted, target=lambda o, y: token_losses(o, y).sum(1), damping=0.1), right)


def test_targets_of_several_numbers_that_have_no_scores_are_refused() -> None:
    problem = language()
    short = tuple(t[:, :3] for t in sequences(2, 3))
    with pytest.raises(ValueError, match=r"as many numbers a row for every batch, got \(3,\), \(5,\)"):
        influence(problem, [sequences(3, 2), short], target=token_losses, damping=0.1)
    noisy = Problem(nn.Sequential(nn.Embedding(7, 3), nn.Dropout(), nn.Linear(3, 7)), lambda o, y: spread(o, y).mean(1), sequences(4, 1),
                    train=True)  # fmt: skip
    with pytest.raises(ValueError, match="one number a row where the model draws random numbers"):
        influence(noisy, target=spread, damping=0.1, curvature="fisher")


def spread(outputs: Tensor, labels: Tensor) -> Tensor:
    return token_losses(outputs.transpose(1, 2), labels)


def test_an_ensemble_is_the_mean_of_its_members() -> None:
    problem = small()
    others = [problem.at({k: p * c for k, p in problem.params.items()}) for c in (0.5, 2.0)]
    alone = [influence(p, probes(), damping=0.1) for p in (problem, *others)]
    torch.testing.assert_close(influence(problem, probes(), damping=0.1, ensemble=others), torch.stack(alone).mean(0))
    with pytest.raises(ValueError, match="must have the 12 rows"):
        influence(problem, ensemble=[small(n=9)])
    with pytest.raises(TypeError, match="must hold problems"):
        influence(problem, ensemble=[nn.Linear(1, 1)])


def test_an_indefinite_hessian_is_refused_or_damped_aloud() -> None:
    problem = small()
    least = float(torch.linalg.eigvalsh(dense_ggn(problem).to_dense())[0])
    assert least > -1e-12
    with pytest.raises(ValueError, match=r"least eigenvalue is -.*above 0\.\d+"):
        influence(problem, probes(), curvature="hessian", damping=1e-3)
    with pytest.raises(ValueError, match="raise damping"):
        influence(problem, probes(), curvature="hessian", damping=1e-3, solver="cg")
    with pytest.warns(UserWarning, match="indefinite"):
        found = influence(problem, probes(), curvature="hessian", damping=2.0)
    torch.testing.assert_close(found, dense_influence(problem, probes(), curvature="hessian", damping=2.0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": [12]}, "lie in 0..11"),
        ({"targets": torch.tensor([-1])}, "lie in 0..11"),
        ({"targets": torch.tensor([True, False])}, "one entry for each of the 12 rows"),
        ({"damping": -1.0}, "damping must be at least 0"),
        ({"damping": 0.0, "solver": "dense"}, "singular"),
        ({"damping": 0.0, "solver": "dual"}, "damping must be positive"),
        ({"curvature": "hessian", "solver": "cg"}, "damping must be given"),
        ({"curvature": "hessian", "solver": "dual"}, "sum over rows"),
        ({"curvature": "kfac", "solver": "cg"}, "closed form"),
        ({"curvature": "identity", "solver": "dual"}, "closed form"),
        ({"curvature": "none"}, "curvature must be one of"),
        ({"solver": "lu"}, "solver must be"),
    ],
)
def test_bad_requests_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        influence(small(), **options)


def test_a_damping_that_would_be_a_share_of_a_negative_trace_is_asked_for() -> None:
    concave = Problem(nn.Linear(5, 1), lambda o, y: -(o - y).square().mean(1), (vectors()[0], torch.zeros(12, 1)), dtype=torch.float64)
    with pytest.raises(ValueError, match="damping must be given: the mean eigenvalue, -"):
        influence(concave, curvature="hessian")


def test_layers_without_kronecker_factors_are_refused() -> None:
    with pytest.raises(Inapplicable):
        influence(make("attention"), curvature="ekfac", damping=0.1)


def test_a_large_damping_leaves_the_product_of_gradients() -> None:
    problem = small()
    plain = influence(problem, probes(), curvature="identity")
    for curvature, solver in itertools.product(("ggn", "fisher"), ("dense", "dual")):
        damped = influence(problem, probes(), curvature=curvature, damping=1e6, solver=solver)
        torch.testing.assert_close(1e6 * damped, plain, rtol=1e-4, atol=1e-8)


def test_evaluation_ranks_good_scores_above_bad_ones() -> None:
    """Outcomes that are additive with noise: the true effects reach the ceiling, permuted ones do not."""
    generator = torch.Generator().manual_seed(2)
    effects = torch.randn(60, 5, generator=generator, dtype=torch.float64)

    def train(masks: Tensor) -> Tensor:
        return (masks.double() @ effects)[:, None] + 0.5 * torch.randn(len(masks), 3, 5, generator=generator, dtype=torch.float64)

    good = evaluate_attribution(effects, train, subsets=128)
    bad = evaluate_attribution(effects[torch.randperm(60, generator=generator)], train, subsets=128)
    assert abs(good.lds.value - good.ceiling.value) < 0.02
    assert good.leave_one_out.value > 0.7
    assert bool((good.removed > 3 * good.at_random.abs()).all())
    low, high = bad.lds.interval()
    assert low < 0.2
    assert high < good.lds.interval()[0]
    assert bool((bad.removed < 0.5 * good.removed).all())
    assert "of at most" in str(good)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"subsets": 4}, "subsets must be at least 8"),
        ({"left_out": 100}, "left_out must lie in 8..20"),
        ({"removals": [1.0]}, "removals must each leave"),
        ({"train": lambda masks: torch.zeros(len(masks), 1, 2)}, "at least 2 seeds"),
        ({"scores": torch.full((20, 2), float("nan"))}, "scores must be finite"),
    ],
)
def test_evaluation_refuses_bad_requests(options: dict, message: str) -> None:
    given = {"scores": torch.zeros(20, 2), "train": lambda masks: torch.zeros(len(masks), 2, 2)} | options
    with pytest.raises(ValueError, match=message):
        evaluate_attribution(given.pop("scores"), given.pop("train"), **given)
