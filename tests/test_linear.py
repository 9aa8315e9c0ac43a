"""Linear models on many weightings at once: against scikit-learn one fit at a time, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge

from theorylab.data.digits import digits
from theorylab.data.tabular import breast_cancer
from theorylab.learning import linear
from theorylab.learning.linear import logistic, ridge

PRECISE = {"tol": 1e-12, "max_iter": 10_000}


def members(P: int, n: int, seed: int = 0, low: int = 0) -> torch.Tensor:
    """Subsets, and weights that are not whole numbers."""
    generator = torch.Generator().manual_seed(seed)
    subsets = (torch.rand(P, n, generator=generator) < 0.5).double()
    weights = torch.rand(P, n, generator=generator, dtype=torch.float64)
    return torch.cat([subsets, subsets * weights])


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("l2", [0.1, 10.0])
def test_ridge_is_that_of_scikit_learn(intercept: bool, l2: float) -> None:
    x, y = breast_cancer(60)
    targets, c = torch.stack([y.double(), x[:, 0] * 3 + 100], 1), members(4, 60)
    fits = ridge(x, targets, c, l2=l2, intercept=intercept)
    for k, w in enumerate(c):
        reference = Ridge(alpha=l2, fit_intercept=intercept, solver="cholesky").fit(x, targets, sample_weight=w)
        np.testing.assert_allclose(fits.outputs(x)[k], reference.predict(x), atol=1e-9)


@pytest.mark.parametrize("intercept", [True, False])
def test_binary_logistic_is_that_of_scikit_learn(intercept: bool) -> None:
    x, y = breast_cancer(60)
    c = members(4, 60)
    fits = logistic(x, y, c, l2=0.5, intercept=intercept)
    for k, w in enumerate(c):
        reference = LogisticRegression(C=2.0, fit_intercept=intercept, solver="newton-cholesky", **PRECISE).fit(x, y, sample_weight=w)
        np.testing.assert_allclose(fits.outputs(x)[k, :, 0], reference.decision_function(x), atol=1e-7)


@pytest.mark.parametrize("intercept", [True, False])
def test_multinomial_logistic_is_that_of_scikit_learn_on_the_classes_present(intercept: bool) -> None:
    x, y = digits(60)
    x, y = x[:, 20:26], y % 4
    c = members(3, 60)
    c[0, y == 2] = 0.0  # a class that one member never sees
    fits = logistic(x, y, c, l2=0.5, intercept=intercept)
    for k, w in enumerate(c):
        seen = w > 0
        reference = LogisticRegression(C=2.0, fit_intercept=intercept, **PRECISE).fit(x[seen], y[seen], sample_weight=w[seen])
        own = torch.softmax(fits.outputs(x)[k], 1)
        np.testing.assert_allclose(own[:, reference.classes_], reference.predict_proba(x), atol=2e-5)  # of their solver
        np.testing.assert_array_equal(fits.classes(x)[k], reference.predict(x))
    assert not bool((fits.classes(x)[0] == 2).any())


@pytest.mark.parametrize("l2", [1e-7, 1e-3, 1.0, 1e3])
def test_many_coefficients_are_solved_by_products_to_the_same_fit(l2: float, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = digits(80)
    x = x[:, 20:44]
    c = members(2, 80)
    c[0, y == 2] = 0.0  # a class that one member never sees
    assert linear._Logistic(x, y, 10, l2, True).by_products
    fits = logistic(x, y, c, l2=l2)
    assert gradient_norm(x, y, torch.ones(80, dtype=torch.float64), l2, 10) < 1e-8  # also where gradients give up and factors take over
    monkeypatch.setattr(linear, "DENSE", 10**9)
    factored = logistic(x, y, c, l2=l2)
    # both end when a step is below 1e-5; what is left is that step times the residual of 1e-4, or its square
    torch.testing.assert_close(fits.weights, factored.weights, rtol=0, atol=1e-7)
    torch.testing.assert_close(fits.intercept, factored.intercept, rtol=0, atol=1e-6)
    assert bool((fits.intercept[0, 2] == -torch.inf) & (fits.weights[0, :, 2] == 0).all())
    with monkeypatch.context() as patch:
        patch.setattr(linear, "DENSE", 200)
        patch.setattr(linear._Logistic, "_by_products", lambda *_: None)  # where the gradients take too long
        patch.setattr(linear, "WORKING", 1)  # one member at a time
        torch.testing.assert_close(logistic(x, y, c, l2=l2).weights, factored.weights, rtol=0, atol=1e-8)


def test_many_coefficients_without_an_intercept_and_in_single_precision() -> None:
    x, y = digits(80)
    ones = torch.ones(1, 80, dtype=torch.float64)
    reference = LogisticRegression(C=1.0, fit_intercept=False, **PRECISE).fit(x, y)
    fits = logistic(x, y, ones, l2=1.0, intercept=False)
    np.testing.assert_allclose(torch.softmax(fits.outputs(x)[0], 1), reference.predict_proba(x), atol=2e-5)  # of their solver
    single = logistic(x.float(), y, ones.float(), l2=1.0, intercept=False)
    torch.testing.assert_close(single.weights.double(), fits.weights, rtol=0, atol=1e-4)


@pytest.mark.parametrize("intercept", [True, False])
def test_more_inputs_than_rows_are_fitted_in_the_span_of_the_rows(intercept: bool) -> None:
    wide, y = digits(24)
    c = members(2, 24)
    targets = wide[:, :2] + 3
    fits = ridge(wide, targets, c, l2=0.5, intercept=intercept)
    for k, w in enumerate(c):
        reference = Ridge(alpha=0.5, fit_intercept=intercept, solver="cholesky").fit(wide, targets, sample_weight=w)
        np.testing.assert_allclose(fits.weights[k].T, reference.coef_, atol=1e-9)
    for labels, count in ((y % 2, 2), (y % 3, 3)):
        options = {"l2": 0.5, "intercept": intercept, "classes": count}
        fits = logistic(wide, labels, c, **options)  # type: ignore[arg-type]
        padded = torch.cat([wide, torch.zeros(41, 64).double()])  # rows of no weight, which leave the span and the order as they are
        whole = logistic(padded, torch.cat([labels, labels[:1].repeat(41)]), torch.cat([c, torch.zeros(4, 41)], 1), **options)  # type: ignore[arg-type]
        torch.testing.assert_close(fits.weights, whole.weights, rtol=0, atol=1e-8)
        torch.testing.assert_close(fits.intercept, whole.intercept, rtol=0, atol=1e-7)
    with pytest.raises(ValueError, match="singular"):
        ridge(wide, targets, c, l2=0.0, intercept=intercept)  # without a penalty there is still no unique optimum


def gradient_norm(x: torch.Tensor, y: torch.Tensor, c: torch.Tensor, l2: float, k: int) -> float:
    """Largest entry of the gradient at the fit, by autograd of the objective written out."""
    fits = logistic(x, y, c[None], l2=l2, classes=k)
    w, b = fits.weights[0].clone().requires_grad_(), fits.intercept[0].clone().requires_grad_()
    z = x @ w + b
    z = torch.cat([torch.zeros_like(z), z], 1) if k == 2 else z
    loss = (c * torch.nn.functional.cross_entropy(z, y, reduction="none")).sum() + l2 / 2 * w.square().sum()
    return max(float(g.abs().max()) for g in torch.autograd.grad(loss, [w, b]))


@pytest.mark.parametrize("l2", [1e-8, 1e-3, 1.0, 1e3])
@pytest.mark.parametrize("k", [2, 3])
def test_the_gradient_vanishes_also_where_rows_are_separable_or_the_penalty_is_large(l2: float, k: int) -> None:
    x, y = breast_cancer(20)
    y = y if k == 2 else (y + (x[:, 3] > 0)).long()
    assert gradient_norm(x, y, torch.ones(20, dtype=torch.float64), l2, k) < 1e-8


def test_members_do_not_depend_on_each_other_or_on_how_they_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = breast_cancer(40)
    c = members(8, 40)
    whole, square = logistic(x, y, c, l2=0.1), ridge(x, y, c, l2=0.1)
    monkeypatch.setattr(linear, "WORKING", 3000)  # also without the table of outer products
    torch.testing.assert_close(logistic(x, y, c, l2=0.1).weights, whole.weights, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(ridge(x, y, c, l2=0.1).weights, square.weights, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(logistic(x, y, c[5:6], l2=0.1).weights[0], whole.weights[5], rtol=1e-7, atol=1e-9)


def test_a_member_of_one_class_predicts_it() -> None:
    x, y = breast_cancer(30)
    c = torch.stack([(y == 0), (y == 1), torch.ones_like(y)]).double()
    labels = logistic(x, y, c, l2=1.0).classes(x)
    assert labels[0].eq(0).all()
    assert labels[1].eq(1).all()
    assert labels[2].unique().numel() == 2
    labels = logistic(x, y, c, l2=1.0, classes=3).classes(x)
    assert labels[0].eq(0).all()
    assert labels[1].eq(1).all()
    assert not labels.eq(2).any()


def test_a_weight_of_two_is_a_row_twice() -> None:
    x, y = breast_cancer(30)
    c = torch.ones(1, 30, dtype=torch.float64)
    c[0, :5] = 2
    twice = logistic(torch.cat([x, x[:5]]), torch.cat([y, y[:5]]), torch.ones(1, 35), l2=0.3)
    torch.testing.assert_close(logistic(x, y, c, l2=0.3).weights, twice.weights, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"l2": -1.0}, "l2 must be"),
        ({"l2": 0.0}, "l2 must be positive"),
        ({"row_weights": torch.zeros(1, 20)}, "member 0 sum to zero"),
        ({"row_weights": -torch.ones(1, 20)}, "not negative"),
        ({"row_weights": torch.ones(20)}, "shape"),
        ({"row_weights": torch.ones(0, 20)}, "P ≥ 1"),
        ({"y": torch.zeros(20, dtype=torch.int64)}, "at least two"),
        ({"y": torch.zeros(20)}, "integer"),
        ({"y": torch.zeros(19, dtype=torch.int64)}, "one entry"),
        ({"x": torch.full((20, 30), torch.nan, dtype=torch.float64)}, "finite"),
    ],
)
def test_what_is_refused(change: dict, message: str) -> None:
    x, y = breast_cancer(20)
    with pytest.raises(ValueError, match=message):
        logistic(**{"x": x, "y": y, "row_weights": torch.ones(1, 20, dtype=torch.float64), "l2": 1.0} | change)


def test_ridge_without_a_penalty_says_which_member_is_singular() -> None:
    x, y = breast_cancer(40)
    c = torch.ones(2, 40, dtype=torch.float64)
    c[1, 3:] = 0
    with pytest.raises(ValueError, match="singular"):
        ridge(torch.cat([x[:, :3], x[:, :1]], 1), y, c[:1], l2=0.0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("n", "intercept"), [(12, True), (12, False), (2000, True)])
def test_ridge_without_a_penalty_refuses_inputs_that_depend_on_each_other_but_for_rounding(
    n: int, intercept: bool, dtype: torch.dtype
) -> None:
    """Rounding leaves the last pivot positive in about half of the draws."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        x = torch.randn(n, 4, generator=generator, dtype=torch.float64).to(dtype)
        dependent = torch.cat([x, x @ torch.randn(4, 1, generator=generator, dtype=torch.float64).to(dtype)], 1)
        with pytest.raises(ValueError, match="member 0 are singular"):
            ridge(dependent, x[:, 0], torch.ones(1, n), l2=0.0, intercept=intercept)
        assert ridge(dependent, x[:, 0], torch.ones(1, n), l2=1.0, intercept=intercept).weights.isfinite().all()


def test_ridge_without_a_penalty_takes_inputs_in_any_units() -> None:
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    units = torch.tensor([1e-12, 1.0, 1e9], dtype=torch.float64)
    y, ones = x.sum(1), torch.ones(1, 50)
    found = ridge(x * units, y, ones, l2=0.0).weights[0, :, 0] * units
    torch.testing.assert_close(found, torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-10)


def test_no_convergence_is_said() -> None:
    x, y = breast_cancer(40)
    with pytest.raises(ArithmeticError, match="max_steps"):
        logistic(x, y, torch.ones(1, 40), l2=1e-3, max_steps=2)
