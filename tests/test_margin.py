"""The largest margin in three norms, against searches, duality and a support vector machine."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.svm import SVC

from theorylab.linalg.margin import max_margin


def labelled(n: int, d: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows on both sides of a hyperplane with a gap of 0.4."""
    draws = torch.randn(n + 1, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x, w = draws[:n], draws[n] / draws[n].norm()
    y = torch.where(x @ w > 0, 1.0, -1.0).double()
    return x + 0.2 * y[:, None] * w, y


@pytest.mark.parametrize("p", [1, 2, math.inf])
@pytest.mark.parametrize("seed", range(3))
def test_max_margin_against_a_search_over_directions(p, seed):
    x, y = labelled(12, 2, seed)
    margin, w = max_margin(x * y[:, None], p)
    angles = torch.linspace(0, 2 * math.pi, 200_001, dtype=torch.float64)
    directions = torch.stack([angles.cos(), angles.sin()])
    values = (y[:, None] * (x @ directions)).amin(0) / torch.linalg.vector_norm(directions, p, dim=0)
    # the margin is Lipschitz in the angle, with a constant below the largest row times √2
    assert values.max() <= margin + 1e-9
    assert margin - values.max() < 1e-4 * float(x.norm(dim=1).max())
    assert abs(float(torch.linalg.vector_norm(w, p)) - 1) < 1e-9
    assert abs(float((y * (x @ w)).min()) - margin) < 1e-9


@pytest.mark.parametrize("p", [1, 2, math.inf])
def test_max_margin_is_at_least_any_feasible_one_and_has_a_dual_certificate(p):
    x, y = labelled(8, 20, seed=3)
    margin, _ = max_margin(x * y[:, None], p)
    z = (y[:, None] * x).numpy()
    dual = {1: np.inf, 2: 2, np.inf: 1}[p]
    # weak duality: the dual norm of any convex combination of the rows is at least the margin, and equals it at the optimum
    start = np.full(8, 1 / 8)
    assert np.linalg.norm(start @ z, dual) >= margin
    if p == 2:
        found = minimize(
            lambda q: float(np.sum((q @ z) ** 2)),
            start,
            jac=lambda q: 2 * z @ (q @ z),
            bounds=[(0, 1)] * 8,
            constraints={"type": "eq", "fun": lambda q: q.sum() - 1, "jac": lambda q: np.ones(8)},
            method="SLSQP",
            options={"ftol": 1e-15, "maxiter": 500},
        )
        assert abs(math.sqrt(found.fun) - margin) < 1e-6 * margin


def test_max_margin_in_l2_is_the_hard_margin_svm():
    x, y = labelled(30, 5, seed=4)
    mirrored = np.vstack([(x * y[:, None]).numpy(), -(x * y[:, None]).numpy()])  # symmetric data have an SVM of zero intercept
    svm = SVC(C=1e8, kernel="linear", tol=1e-10).fit(mirrored, [1] * 30 + [-1] * 30)
    margin, w = max_margin(x * y[:, None], 2)
    assert abs(1 / np.linalg.norm(svm.coef_) - margin) < 1e-6 * margin
    np.testing.assert_allclose(svm.coef_[0] / np.linalg.norm(svm.coef_), w.numpy(), atol=1e-5)


def test_data_that_no_hyperplane_separates_have_margin_zero():
    rows = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    for p in (1, 2, math.inf):
        margin, w = max_margin(rows, p)
        assert margin == 0
        assert not w.any()
        assert max_margin(0 * rows, p)[0] == 0


@pytest.mark.parametrize("p", [1, 2, math.inf])
@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_the_margin_is_in_units_of_the_rows(p, scale):
    x, y = labelled(12, 4, seed=2)
    rows = x * y[:, None]
    assert max_margin(scale * rows, p)[0] == pytest.approx(scale * max_margin(rows, p)[0], rel=1e-8)


@pytest.mark.parametrize("gap", [1e-1, 1e-2, 1e-4, 1e-6])
def test_a_margin_far_below_the_rows_has_its_digits(gap):
    """Points 1000 ± gap on a line, and a bias: the hull of their rows is a segment, whose nearest point in each norm is known."""
    above, below = 1000 + gap, 1000 - gap
    rows = torch.tensor([[above, 1.0], [-below, -1.0]], dtype=torch.float64)
    apart, total = above - below, above + below
    expected = {1: apart / (total + 2), 2: apart / math.hypot(total, 2), math.inf: apart / total}
    for p, largest in expected.items():
        margin, w = max_margin(rows, p)
        assert margin == pytest.approx(largest, rel=1e-12 / gap)  # the gap itself is a difference of digits
        assert float((rows @ w).min()) == pytest.approx(margin, rel=1e-12 / gap)


@pytest.mark.parametrize("size", [1e7, 1e8, 1e9, 1e12])
def test_a_long_row_does_not_hide_a_short_one(size):
    rows = torch.tensor([[size, 0.0], [0.0, 1.0]], dtype=torch.float64)
    found = [max_margin(rows, p)[0] for p in (1, 2, math.inf)]
    assert found == pytest.approx([size / (1 + size), size / math.hypot(1, size), 1.0], rel=1e-12)


@pytest.mark.parametrize("offset", [0.0, 1e2, 1e4])
@pytest.mark.parametrize("separable", [True, False])
def test_features_far_from_zero_are_separable_or_not_as_they_are_at_zero(offset, separable):
    """A bias takes up the offset, so that with one the data are separable where they were."""
    x, y = labelled(30, 4, seed=5)
    y = y if separable else torch.where(torch.arange(30) % 2 > 0, 1.0, -1.0).double()
    at_zero, far = (torch.cat([x + c, torch.ones(30, 1)], 1) * y[:, None] for c in (0.0, offset))
    for p in (1, 2, math.inf):
        margin, w = max_margin(far, p)
        assert (margin > 0) is (max_margin(at_zero, p)[0] > 0) is separable
        assert float((far @ w).min()) == pytest.approx(margin, rel=1e-7)


def test_a_margin_that_rounding_hides_is_refused_and_not_guessed():
    rows = torch.tensor([[1e200, 0.0], [0.0, 1e-200]], dtype=torch.float64)  # the ratio of their lengths is no float64
    for p in (1, 2, math.inf):
        with pytest.raises(ArithmeticError, match=f"for p = {p} that float64 can tell from 0"):
            max_margin(rows, p)


def test_integer_rows_have_classifiers_that_are_no_integers():
    margin, w = max_margin(torch.tensor([[3, 4]]), 2)
    assert (margin, w.tolist()) == (pytest.approx(5.0), pytest.approx([0.6, 0.8]))


def test_max_margin_refuses_other_norms_and_rows():
    with pytest.raises(ValueError, match="p must be"):
        max_margin(torch.eye(2), 3)
    with pytest.raises(ValueError, match="rows must be"):
        max_margin(torch.ones(3), 2)
    with pytest.raises(ValueError, match="rows must be"):
        max_margin(torch.tensor([[1.0, math.nan]]), 2)
    with pytest.raises(ValueError, match="rows must be"):
        max_margin(torch.zeros(0, 3), 2)
