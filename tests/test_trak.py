"""TRAK: its limits are known influences, its projection is the same everywhere, and what has no answer is refused."""

from __future__ import annotations

import pytest
import torch
from test_attribution import language, probes, sequences, small
from torch.nn import functional as F

from theorylab.core.instrument import Inapplicable
from theorylab.core.problem import Problem
from theorylab.core.seeds import derived_seed
from theorylab.instruments.attributed import token_losses
from theorylab.instruments.attribution import influence
from theorylab.instruments.trak import formed_trak, margin, pull, trak
from theorylab.linalg.projection import BLOCK, Signs


def test_without_projection_it_is_the_influence_of_the_fisher_matrix() -> None:
    problem = small()
    found = trak(problem, probes(), k="all", ridge=0.03)
    torch.testing.assert_close(found, influence(problem, probes(), curvature="fisher", damping=0.03), rtol=1e-8, atol=1e-12)


def test_margins_pull_as_one_minus_the_probability() -> None:
    problem = small()
    with problem.safe():
        outputs = problem.outputs(0)
    y = problem.batches[0].content[1]
    p = outputs.softmax(1).gather(1, y[:, None])[:, 0]
    torch.testing.assert_close(margin(outputs, y), (p / (1 - p)).log())
    each = torch.func.vmap(lambda out, label: margin(out[None], label[None])[0])(outputs, y)  # as gradients of rows are taken elsewhere
    torch.testing.assert_close(each, margin(outputs, y))
    torch.testing.assert_close(pull(problem, margin), 1 - p)


@pytest.mark.parametrize(
    "options", [{"k": 5}, {"k": 20, "ridge": 0.1}, {"k": "all", "ridge": 0.01}, {"k": 4, "output": margin}, {"target": margin}]
)
@pytest.mark.parametrize("targets", [None, [3, 1], "probes"])
def test_is_its_formed_version(options: dict[str, object], targets: object) -> None:
    problem = small(n=30)
    members = [problem.at({k: 1.1 * p for k, p in problem.params.items()})]
    given = probes() if targets == "probes" else targets
    expected = formed_trak(problem, given, ensemble=members, seed=3, **options)  # pyright: ignore[reportArgumentType]
    found = trak(problem, given, ensemble=members, seed=3, memory=1000, **options)  # pyright: ignore[reportArgumentType]
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("options", [{"k": 5}, {"k": "all", "ridge": 0.1}])
def test_tokens_of_a_target_are_attributed_one_by_one(options: dict) -> None:
    problem, targets = language(), sequences(3, 2, padded=2)
    found = trak(problem, targets, target=token_losses, **options)
    assert found.shape == (8, 3, 5)
    assert bool((found[:, 0, -2:] == 0).all())
    torch.testing.assert_close(found, formed_trak(problem, targets, target=token_losses, **options), rtol=1e-7, atol=1e-10)
    with pytest.raises(ValueError, match=r"output must return one number a row, \(8,\)"):
        trak(problem, targets, output=token_losses, k=2)


def test_an_invertible_projection_changes_nothing_and_a_shorter_one_does() -> None:
    torch.manual_seed(0)
    x, wanted = torch.randn(40, 5), torch.randn(40, 4)
    problem = Problem(torch.nn.Linear(5, 4), F.mse_loss, (x, wanted), dtype=torch.float64)  # of 24 signs a side few matrices are singular
    targets, whole = (x[:3], wanted[:3] + 1), trak(problem, k="all")
    for seed in range(3):
        torch.testing.assert_close(trak(problem, k=problem.P, seed=seed), whole, rtol=1e-7, atol=1e-10)
    whole = trak(problem, targets, k="all")
    torch.testing.assert_close(trak(problem, targets, k=problem.P), whole, rtol=1e-7, atol=1e-10)
    assert float((trak(problem, targets, k=problem.P // 2) - whole).norm() / whole.norm()) > 0.3


def test_more_members_average_the_projection() -> None:
    problem = small(n=60)
    exact = trak(problem, probes(), k="all", ridge=0.1)

    def off(members: int) -> float:
        return float((trak(problem, probes(), k=20, ridge=0.1, ensemble=[problem] * (members - 1)) - exact).norm())

    assert off(16) < 0.7 * off(1)  # of the same parameters with signs of their own


def test_signs_are_of_the_right_law_and_depend_on_the_seed_alone() -> None:
    p = BLOCK + 10
    eye = torch.eye(p, dtype=torch.float64)[[0, 1, BLOCK - 1, BLOCK, p - 1]]
    for memory in (0, 2**28):
        P = Signs(p, 64, seed=1, memory=memory)
        assert torch.equal(P(eye), P(eye))
        assert torch.equal(P(eye), Signs(p, 64, seed=1)(eye))
        assert torch.equal(P(eye).abs(), torch.full((5, 64), 0.125, dtype=torch.float64))
    assert not torch.equal(Signs(p, 64, seed=2)(eye), Signs(p, 64, seed=1)(eye))
    members = [derived_seed(1, "member", k) for k in range(2)]
    assert not torch.equal(Signs(p, 64, seed=members[0])(eye), Signs(p, 64, seed=members[1])(eye))
    gram = Signs(100, 40_000, seed=0)(torch.eye(100, dtype=torch.float64))
    assert float((gram @ gram.T - torch.eye(100)).abs().max()) < 5 / 200  # independent signs: an error of 1/√k off the diagonal
    # pinned, so that a stored score can be computed again on any machine
    assert Signs(8, 4, seed=0)(torch.eye(8))[:3].mul(2).int().tolist() == [[-1, -1, 1, 1], [-1, -1, 1, 1], [1, 1, 1, -1]]


def test_bad_arguments_are_refused() -> None:
    problem = small()
    for options, message in (
        ({"k": 12}, "k must be below the number of rows, 12, or ridge positive, got 12 features"),
        ({"k": "all"}, "k must be below the number of rows"),
        ({"k": 0}, "k must be at least 1"),
        ({"k": "some"}, "k must be a number"),
        ({"ridge": -1.0}, "ridge must be at least 0"),
        ({"output": lambda o, y: o[:, 0]}, "output must be a number of which each row's loss is a function"),
        ({"ensemble": [small(n=10)]}, r"ensemble\[0\] must have the 12 rows"),
    ):
        with pytest.raises(ValueError, match=message):
            trak(problem, probes(), **options)  # pyright: ignore[reportArgumentType]
    twice = small(n=6)
    x, y = twice.batches[0].content
    same = Problem(twice.model, F.cross_entropy, (x[[0] * 8], y[[0] * 8]), dtype=torch.float64)
    with pytest.raises(ValueError, match="ridge must be positive: the rows' projected gradients"):
        trak(same, k=2)
    hidden = Problem(
        twice.model, lambda model, batch: F.cross_entropy(model(batch["x"]), batch["y"]), {"x": x, "y": y}, dtype=torch.float64
    )
    with pytest.raises(Inapplicable, match="output does not apply"):
        trak(hidden, output=margin)
