"""The part of mirrored weights outside the row space: against a dense projector, for any rank, batch and map."""

from __future__ import annotations

import pytest
import torch

from theorylab.instruments.row_space import row_space_residual


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_equals_the_least_squares_residual_on_the_rows():
    x, w, start = normal(3, 4, 9), normal(3, 9, seed=1), normal(3, 9, seed=2)
    found = row_space_residual(torch.tanh, w, x, start)
    for k in range(3):
        moved = torch.tanh(w[k]) - torch.tanh(start[k])
        along = torch.linalg.lstsq(x[k].T, moved[:, None]).solution
        expected = (moved - (x[k].T @ along)[:, 0]).norm() / moved.norm()
        torch.testing.assert_close(found[k], expected, rtol=1e-12, atol=0)


def test_rows_that_repeat_others_change_nothing_in_any_member_of_a_batch():
    x, w = normal(2, 4, 9), normal(2, 9, seed=1)
    x[1, 3] = x[1, 0] - 2 * x[1, 1]  # rank 3 in the second only
    found = row_space_residual(torch.sinh, w, x)
    torch.testing.assert_close(found[0], row_space_residual(torch.sinh, w[0], x[0]))
    torch.testing.assert_close(found[1], row_space_residual(torch.sinh, w[1], x[1, :3]), rtol=1e-10, atol=0)
    torch.testing.assert_close(row_space_residual(torch.sinh, w, torch.cat([x, 3 * x], 1)), found, rtol=1e-10, atol=0)


def test_is_zero_on_rows_one_across_them_and_free_of_scale():
    x = normal(4, 9)
    null = torch.linalg.svd(x).Vh[4:]
    assert float(row_space_residual(torch.clone, normal(4, seed=3) @ x, x)) < 1e-14
    assert float(row_space_residual(torch.clone, null[0], x)) == pytest.approx(1.0)
    mixed = normal(9, seed=4)
    assert float(row_space_residual(torch.clone, 1e-6 * mixed, 1e6 * x)) == pytest.approx(float(row_space_residual(torch.clone, mixed, x)))


def test_a_path_over_shared_rows_is_measured_at_once():
    x, path = normal(3, 4, 9), normal(5, 3, 9, seed=1).exp()
    found = row_space_residual(torch.log, path, x)
    assert found.shape == (5, 3)
    for t in range(5):
        torch.testing.assert_close(found[t], row_space_residual(torch.log, path[t], x))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.log, torch.ones(4), torch.ones(2, 3)), "d = 4"),
        ((torch.log, torch.ones(3), torch.ones(3)), "rows"),
        ((torch.log, torch.ones(3), torch.ones(2, 3), torch.ones(4)), "start must have the shape"),
        ((torch.log, -torch.ones(3), torch.ones(2, 3)), "domain"),
        ((torch.log, torch.ones(3), torch.ones(2, 3), torch.ones(3)), "nothing moved"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        row_space_residual(*arguments)
