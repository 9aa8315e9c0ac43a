"""The predictions of implicit bias against brute force: searches in the plane, other solvers, and autograd where a gradient is meant."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from theorylab.linalg.margin import max_margin
from theorylab.theory import implicit_bias as theory


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labelled(n: int, d: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows on both sides of a hyperplane with a gap of 0.4."""
    x, w = normal(n, d, seed=seed), normal(d, seed=seed + 1000)
    w = w / w.norm()
    y = torch.where(x @ w > 0, 1.0, -1.0).double()
    return x + 0.2 * y[:, None] * w, y


# minimum norm


def test_min_norm_is_the_pseudo_inverse_of_each_replica():
    x, y = normal(3, 5, 9), normal(3, 5, seed=1)
    expected = torch.stack([torch.linalg.pinv(x[k]) @ y[k] for k in range(3)])
    torch.testing.assert_close(theory.minimum_norm_solution(x, y), expected, rtol=0, atol=1e-12)


def test_min_norm_is_the_smallest_interpolant():
    x, y = normal(4, 10), normal(4, seed=1)
    best = theory.minimum_norm_solution(x, y)
    torch.testing.assert_close(x @ best, y, rtol=0, atol=1e-12)
    null = torch.linalg.svd(x).Vh[4:]  # adding any part of the null space keeps the fit and raises the norm
    for seed in range(20):
        other = best + 0.1 * normal(6, seed=seed) @ null
        torch.testing.assert_close(x @ other, y, rtol=0, atol=1e-12)
        assert other.norm() > best.norm()


def test_nearest_interpolant_to_a_start():
    x, y, start = normal(4, 10), normal(4, seed=1), normal(10, seed=2)
    w = theory.minimum_norm_solution(x, y, start)
    torch.testing.assert_close(x @ w, y, rtol=0, atol=1e-12)
    null = torch.linalg.svd(x).Vh[4:]
    torch.testing.assert_close(null @ w, null @ start, rtol=0, atol=1e-12)  # the part that no gradient reaches


def test_min_norm_refuses_what_it_cannot_solve():
    with pytest.raises(ValueError, match="underdetermined"):
        theory.minimum_norm_solution(normal(5, 3), normal(5))
    repeated = normal(1, 6).expand(2, 6)
    with pytest.raises(ValueError, match="independent"):
        theory.minimum_norm_solution(repeated, normal(2))


@pytest.mark.parametrize("solution", [theory.minimum_norm_solution, theory.minimum_l1_solution])
def test_numbers_that_are_not_finite_are_named(solution):
    bad = torch.tensor([[1.0, float("nan"), 2.0]], dtype=torch.float64)
    with pytest.raises(ValueError, match="x must be finite, got 1 entries"):
        solution(bad, torch.ones(1, dtype=torch.float64))
    with pytest.raises(ValueError, match="y must be finite"):
        solution(normal(1, 3), bad[:, 1])
    with pytest.raises(ValueError, match="start must be finite"):
        theory.minimum_norm_solution(normal(1, 3), normal(1), bad[0])


# minimum ℓ1 norm


def test_min_l1_has_a_dual_certificate():
    """Strong duality: ⟨y, ν⟩ ≤ ‖w‖₁ for every ν with ‖Xᵀν‖_∞ ≤ 1 and every interpolant w; equal at one ν only where w is the least."""
    x, y = normal(5, 14), normal(5, seed=1)
    w = theory.minimum_l1_solution(x, y)
    torch.testing.assert_close(x @ w, y, rtol=0, atol=1e-9)
    support = w.abs() > 1e-9
    assert int(support.sum()) == 5  # as many as rows, in general position
    nu = torch.linalg.solve(x[:, support].T, w[support].sign())
    assert float((x.T @ nu).abs().max()) <= 1 + 1e-9
    assert float(y @ nu) == pytest.approx(float(w.abs().sum()), rel=1e-9)


def test_min_l1_finds_a_planted_sparse_vector_and_no_smaller_interpolant():
    x, planted = normal(12, 30), torch.zeros(30, dtype=torch.float64)
    planted[:2] = torch.tensor([1.0, -2.0])
    w = theory.minimum_l1_solution(x, x @ planted)
    torch.testing.assert_close(w, planted, rtol=0, atol=1e-8)
    null = torch.linalg.svd(x).Vh[12:]
    for seed in range(20):
        assert (w + 0.1 * normal(18, seed=seed) @ null).abs().sum() > w.abs().sum()


def test_min_l1_of_integers_is_no_integer():
    assert theory.minimum_l1_solution(torch.tensor([[3, 4]]), torch.tensor([10])).tolist() == pytest.approx([0.0, 2.5])


def test_min_l1_refuses_a_system_without_solution():
    with pytest.raises(ValueError, match="interpolant"):
        theory.minimum_l1_solution(torch.ones(2, 3), torch.tensor([0.0, 1.0]))


# margins


def test_norm_growth_is_the_norm_of_the_svm_of_unit_functional_margin():
    x, y = labelled(10, 3, seed=5)
    margin, w = max_margin(x * y[:, None], 2)
    unit_functional = w / margin
    assert abs(float((y * (x @ unit_functional)).min()) - 1) < 1e-9
    assert abs(float(unit_functional.norm()) - theory.norm_growth_slope(margin)) < 1e-9
    with pytest.raises(ValueError, match="positive"):
        theory.norm_growth_slope(0.0)
    with pytest.raises(ValueError, match="positive"):
        theory.norm_growth_slope(float("nan"))


# balance


def layered_gradients(widths: list[int], activation, seed: int, bias: bool) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Parameters and gradients, weights first and biases after them, of a dense network on a quartic loss, by autograd."""
    weights = [normal(k, d, seed=seed + j) / d**0.5 for j, (d, k) in enumerate(pairwise(widths))]
    biases = [normal(len(w), seed=seed + 50 + j) if bias else torch.zeros(len(w), dtype=torch.float64) for j, w in enumerate(weights)]
    leaves = [p.clone().requires_grad_() for p in (*weights, *biases)]
    depth = len(weights)
    h = normal(7, widths[0], seed=seed + 99)
    for j in range(depth):
        h = h @ leaves[j].T + leaves[depth + j]
        h = activation(h) if j < depth - 1 else h
    loss = ((h - 0.3) ** 4).sum()
    return [*weights, *biases], list(torch.autograd.grad(loss, leaves))


@pytest.mark.parametrize("lr", [1e-3, 0.1])
def test_balance_increment_is_the_exact_change_of_one_step(lr):
    params, grads = layered_gradients([4, 6, 3, 2], torch.nn.Identity(), seed=0, bias=False)
    before, after = params[:3], [p - lr * g for p, g in zip(params[:3], grads[:3], strict=True)]
    for j in range(2):
        change = [w[j + 1].T @ w[j + 1] - w[j] @ w[j].T for w in (before, after)]
        predicted = theory.balance_increment(lr, grads[j], grads[j + 1])
        torch.testing.assert_close(change[1] - change[0], predicted, rtol=1e-9, atol=1e-12)
    params, grads = layered_gradients([4, 6, 3, 2], torch.tanh, seed=0, bias=False)
    change = [w[1].T @ w[1] - w[0] @ w[0].T for w in (params, [p - lr * g for p, g in zip(params, grads, strict=True)])]
    assert (change[1] - change[0] - theory.balance_increment(lr, grads[0], grads[1])).abs().max() > 1e-3 * lr


@pytest.mark.parametrize("lr", [1e-3, 0.1])
def test_unit_balance_increment_is_the_exact_change_of_one_step(lr):
    def imbalance(p: list[torch.Tensor], j: int) -> torch.Tensor:
        return p[j].square().sum(1) + p[3 + j].square() - p[j + 1].square().sum(0)

    for activation, exact in ((torch.relu, True), (torch.tanh, False)):
        params, grads = layered_gradients([4, 6, 5, 2], activation, seed=1, bias=True)
        after = [p - lr * g for p, g in zip(params, grads, strict=True)]
        for j in (0, 1):
            predicted = theory.unit_balance_increment(lr, grads[j], grads[3 + j], grads[j + 1])
            residual = (imbalance(after, j) - imbalance(params, j) - predicted).abs().max()
            assert residual < 1e-9 * max(1.0, float(predicted.abs().max())) if exact else residual > 1e-3 * lr


def test_balance_increment_refuses_layers_that_do_not_meet():
    with pytest.raises(ValueError, match="columns"):
        theory.balance_increment(0.1, normal(3, 2), normal(4, 5))


# singular values of a product


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_singular_value_speed_is_the_derivative_of_the_balanced_flow(depth):
    """The end-to-end flow of balanced factors, Ẇ = −Σ_j (WWᵀ)^{(N−j)/N} G (WᵀW)^{(j−1)/N}, by matrix powers, and a central difference."""
    w, gradient = normal(5, 5, seed=3), normal(5, 5, seed=4)
    u, s, vh = torch.linalg.svd(w)

    def power(basis: torch.Tensor, exponent: float) -> torch.Tensor:
        return basis @ (s**2).pow(exponent).diag() @ basis.T

    flow = -sum(power(u, (depth - j) / depth) @ gradient @ power(vh.T, (j - 1) / depth) for j in range(1, depth + 1))
    h = 1e-6
    difference = (torch.linalg.svdvals(w + h * flow) - torch.linalg.svdvals(w - h * flow)) / (2 * h)
    torch.testing.assert_close(theory.singular_value_speed(w, gradient, depth), difference, rtol=1e-6, atol=1e-6)


def test_singular_value_speed_refuses_bad_input():
    with pytest.raises(ValueError, match="depth"):
        theory.singular_value_speed(normal(2, 2), normal(2, 2), 0)
    with pytest.raises(ValueError, match="shape"):
        theory.singular_value_speed(normal(2, 2), normal(2, 3), 2)


# the bound of the unobserved entry


def test_the_unobserved_entry_is_at_least_its_bound_where_the_determinant_is_positive():
    matrices = normal(200_000, 2, 2) * torch.tensor([[5.0, 0.4], [0.4, 0.4]]) + torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    loss = ((matrices[:, 0, 1] - 1) ** 2 + (matrices[:, 1, 0] - 1) ** 2 + matrices[:, 1, 1] ** 2) / 2
    determinant = matrices[:, 0, 0] * matrices[:, 1, 1] - matrices[:, 0, 1] * matrices[:, 1, 0]
    speaks = 2 * loss < 1
    ratio = matrices[speaks, 0, 0].abs() / theory.unobserved_entry_bound(loss[speaks])
    positive = determinant[speaks] > 0
    assert int(positive.sum()) > 1000
    assert ratio[positive].min() >= 1
    assert ratio[~positive].min() < 1  # without the sign of the determinant there is no bound


def test_the_bound_is_approached_at_the_worst_residuals():
    """With one residual carrying the whole loss the entry is w₀₁w₁₀/|w₁₁| = 1/√(2ℓ), and the bound tends to it as ℓ → 0."""
    loss = torch.tensor([1e-2, 1e-4, 1e-8], dtype=torch.float64)
    ratio = theory.unobserved_entry_bound(loss) * (2 * loss).sqrt()
    assert bool((ratio < 1).all())
    assert bool((ratio.diff() > 0).all())
    assert ratio[-1] > 0.999


@pytest.mark.parametrize("loss", [0.0, 0.5, -1.0])
def test_the_bound_refuses_losses_at_which_it_says_nothing(loss):
    with pytest.raises(ValueError, match="loss must lie"):
        theory.unobserved_entry_bound(torch.tensor([0.1, loss]))


# components of a tensor


def components(dims: list[int], rank: int, *, balanced: bool) -> list[torch.Tensor]:
    """Vectors of one length in each component, or of lengths that differ by factors and have the same product."""
    factors = [normal(2, d, rank, seed=k) for k, d in enumerate(dims)]
    size = torch.stack([f.norm(dim=1, keepdim=True) for f in factors]).prod(0) ** (1 / len(dims))
    factors = [f / f.norm(dim=1, keepdim=True) * size for f in factors]
    return factors if balanced else [2 * factors[0], factors[1] / 2, *factors[2:]]


def flow_of_component_norms(factors: list[torch.Tensor], target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Time derivative of the norms by autograd, when all vectors follow the flow of ½‖W − target‖², and the gradient in W."""
    leaves = [f.clone().requires_grad_() for f in factors]
    letters = "abcd"[: len(leaves)]
    whole = torch.einsum(",".join(f"n{c}r" for c in letters) + f"->n{letters}", *leaves)
    grads = torch.autograd.grad((whole - target).square().sum() / 2, leaves)
    slopes = torch.autograd.grad(torch.stack([f.norm(dim=1) for f in leaves]).prod(0).sum(), leaves)  # of each norm in its own column
    speed = -torch.stack([(g * slope).sum(1) for g, slope in zip(grads, slopes, strict=True)]).sum(0)
    return speed, (whole - target).detach()


@pytest.mark.parametrize("dims", [[3, 4], [3, 4, 2], [2, 3, 2, 3]])
def test_balanced_components_grow_as_the_flow_has_it_and_others_do_not(dims):
    target = normal(2, *dims, seed=9)
    factors = components(dims, 3, balanced=True)
    speed, gradient = flow_of_component_norms(factors, target)
    torch.testing.assert_close(theory.component_speed(factors, gradient), speed, rtol=1e-10, atol=1e-10)
    uneven = components(dims, 3, balanced=False)
    speed, gradient = flow_of_component_norms(uneven, target)
    assert float((theory.component_speed(uneven, gradient) - speed).norm() / speed.norm()) > 0.05


def test_component_speed_is_that_of_the_singular_values_for_matrices():
    u, s, vh = torch.linalg.svd(normal(4, 3))
    factors, gradient = [u[:, :3] * s.sqrt(), vh.mT * s.sqrt()], normal(4, 3, seed=1)
    torch.testing.assert_close(theory.component_speed(factors, gradient), theory.singular_value_speed(normal(4, 3), gradient, depth=2))


def test_component_speed_refuses_a_gradient_of_another_shape():
    with pytest.raises(ValueError, match="shape of the tensor"):
        theory.component_speed([torch.ones(2, 1), torch.ones(3, 1)], torch.ones(3, 2))
