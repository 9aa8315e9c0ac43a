"""Completions of minimum nuclear norm: known solutions, optimality by the dual problem, and another solver."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from theorylab.data.synthetic import tensor_completion
from theorylab.linalg.nuclear import complete, shrink_singular_values


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tasks(size: int, rank: int, fraction: float, seeds: range) -> tuple[Tensor, Tensor]:
    parts = zip(*[tensor_completion((size, size + 2), rank=rank, fraction=fraction, seed=seed) for seed in seeds], strict=True)
    matrix, mask = (torch.stack(part) for part in parts)
    return matrix, mask


def test_shrinking_is_the_proximal_operator() -> None:
    """X minimises τ‖X‖_* + ½‖X − A‖² if and only if A − X is τ times a subgradient of the norm at X."""
    a, tau = normal(3, 5, 4), torch.tensor([0.3, 1.0, 100.0], dtype=torch.float64)
    x = shrink_singular_values(a, tau)
    y = (a - x) / tau[:, None, None]
    assert float(torch.linalg.matrix_norm(y, 2).max()) <= 1 + 1e-12
    torch.testing.assert_close((y * x).sum((1, 2)), torch.linalg.matrix_norm(x, "nuc"), rtol=0, atol=1e-12)
    assert float(x[2].abs().max()) == 0


@pytest.mark.parametrize(
    ("observed", "mask", "expected"),
    [
        # singular values of [[w, 1], [1, 0]] have the product 1, so their sum is least where w² + 2 is
        ([[5.0, 1.0], [1.0, 0.0]], [[0, 1], [1, 1]], [[0.0, 1.0], [1.0, 0.0]]),
        ([[2.0, 9.0], [9.0, 0.5]], [[1, 0], [0, 1]], None),  # trace of what the diagonal fixes: any |w| ≤ 1 with w = w′, of norm 2.5
        ([[1.0, 7.0], [7.0, -1.0]], [[1, 0], [0, 1]], [[1.0, 0.0], [0.0, -1.0]]),
        ([[3.0, 4.0, 9.0]], [[1, 1, 0]], [[3.0, 4.0, 0.0]]),  # of a row the nuclear norm is the Euclidean norm
        ([[0.0, 3.0], [0.0, 3.0]], [[1, 0], [1, 0]], [[0.0, 0.0], [0.0, 0.0]]),
    ],
)
def test_known_solutions(observed: list, mask: list, expected: list | None) -> None:
    found = complete(torch.tensor(observed, dtype=torch.float64), torch.tensor(mask), tol=1e-10)
    assert bool(found.converged)
    if expected is None:
        assert float(found.norm) == pytest.approx(2.5, rel=1e-9)
    else:
        torch.testing.assert_close(found.matrix, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-4)


def test_everything_observed_is_the_matrix_and_few_missing_entries_are_recovered() -> None:
    matrix, mask = tasks(12, 1, 0.8, range(4))
    whole = complete(matrix, torch.ones_like(mask))
    assert torch.equal(whole.matrix, matrix)
    assert bool(whole.converged.all())
    found = complete(matrix, mask, tol=1e-9)
    torch.testing.assert_close(found.matrix, matrix, rtol=0, atol=1e-5)


def test_the_bound_holds_for_every_completion_and_closes_the_gap() -> None:
    matrix, mask = tasks(8, 2, 0.5, range(6))
    found = complete(matrix, mask, tol=1e-8)
    assert bool(found.converged.all())
    assert bool((found.norm - found.bound <= 1e-8 * found.norm).all())
    assert torch.equal(found.matrix[mask], matrix[mask])
    torch.testing.assert_close(found.norm, torch.linalg.matrix_norm(found.matrix, "nuc"), rtol=1e-12, atol=0)
    for seed, size in itertools.product(range(10), (1e-3, 0.1, 1.0)):
        other = found.matrix + torch.where(mask, 0.0, size * normal(*matrix.shape, seed=seed))
        assert bool((torch.linalg.matrix_norm(other, "nuc") >= found.bound).all())
    assert bool((found.bound <= torch.linalg.matrix_norm(matrix, "nuc")).all())  # the truth is a completion too


def test_agrees_with_a_search_over_the_free_entries() -> None:
    """The slow, obvious version: two entries are free, and the norm, convex in both, is minimised over one within the other."""
    matrix, mask = tasks(3, 2, 13 / 15, range(4))
    found = complete(matrix, mask, tol=1e-10)
    for truth, seen, norm in zip(matrix.numpy(), mask.numpy(), found.norm.tolist(), strict=True):

        def least(*fixed: float, truth: np.ndarray = truth, seen: np.ndarray = seen) -> float:
            if len(fixed) == (~seen).sum():
                full = truth.copy()
                full[~seen] = fixed
                return float(np.linalg.svd(full, compute_uv=False).sum())
            return minimize_scalar(lambda w: least(*fixed, w), bounds=(-10, 10), method="bounded", options={"xatol": 1e-8}).fun

        assert least() == pytest.approx(norm, rel=1e-7)


def test_a_batch_is_its_members_one_by_one() -> None:
    matrix, mask = tasks(6, 1, 0.5, range(3))
    together = complete(matrix[:, None], mask[:, None])
    assert together.matrix.shape == (3, 1, 6, 8)
    for k in range(3):
        alone = complete(matrix[k], mask[k])
        torch.testing.assert_close(together.matrix[k, 0], alone.matrix, rtol=0, atol=1e-10)


def test_single_precision_stays_single() -> None:
    truth = torch.outer(torch.arange(1.0, 6.0), torch.arange(1.0, 5.0))
    mask = torch.ones(5, 4, dtype=torch.bool)
    mask[1, 2] = mask[3, 0] = False
    found = complete(truth, mask, tol=1e-4)
    assert found.matrix.dtype == found.norm.dtype == found.bound.dtype == torch.float32
    assert bool(found.converged)
    assert float((found.matrix - truth).norm() / truth.norm()) < 1e-2


def test_a_run_cut_short_says_so_and_its_bound_still_holds() -> None:
    matrix, mask = tasks(8, 2, 0.5, range(2))
    short, full = complete(matrix, mask, max_iterations=3), complete(matrix, mask, tol=1e-8)
    assert not bool(short.converged.any())
    assert short.iterations == 3
    assert bool((short.bound <= full.norm).all())
    assert bool((short.norm >= full.bound).all())


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"mask": torch.ones(2, 3)}, "of one shape"),
        ({"mask": torch.zeros(2, 2)}, "at least one entry"),
        ({"observed": torch.tensor([[1.0, torch.nan], [0.0, 0.0]])}, "finite wherever"),
        ({"tol": 0.0}, "tol must be positive"),
        ({"max_iterations": 0}, "max_iterations at least 1"),
    ],
)
def test_refuses_what_has_no_answer(options: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        complete(**{"observed": torch.eye(2), "mask": torch.ones(2, 2), **options})
