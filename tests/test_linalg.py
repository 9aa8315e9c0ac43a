"""Lanczos, spectral density, traces and solves: exact identities, error bounds that hold, and what breaks them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Literal

import pytest
import torch
from torch import Tensor
from zoo import make

from theorylab.core.operator import Operator
from theorylab.instruments.curvature import dense_hessian, hessian
from theorylab.linalg import trace as trace_module
from theorylab.linalg.approximate import neumann_solve, truncated_solve
from theorylab.linalg.diagonal import diag
from theorylab.linalg.lanczos import Krylov, eigs, lanczos, length, products
from theorylab.linalg.logdet import logdet
from theorylab.linalg.solve import solve
from theorylab.linalg.spectrum import spectrum
from theorylab.linalg.trace import trace


def operator(matrix: Tensor, *, symmetric: bool = True) -> Operator:
    return Operator.from_matrix(matrix, symmetric=symmetric)


def symmetric(n: int, seed: int = 0) -> Tensor:
    a = torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (a + a.T) / math.sqrt(2 * n)


def with_spectrum(values: Tensor, seed: int = 0) -> Tensor:
    n = len(values)
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
    return (q * values.double()) @ q.T


def outliers() -> Tensor:
    bulk = torch.rand(297, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.cat([torch.tensor([100.0, 50.0, 20.0], dtype=torch.float64), bulk])


def quadrature_error(m: int, k: int = 8) -> float:
    matrix = symmetric(120)
    v = torch.randn(120, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    v /= v.norm()
    nodes, vectors = torch.linalg.eigh(lanczos(operator(matrix), v, k).matrix())
    exact = v @ torch.linalg.matrix_power(matrix, m) @ v
    return float((vectors[0].square() @ nodes**m - exact).abs() / max(1.0, float(exact.abs())))


DERIVED: dict[str, Callable[[Operator, Operator], Operator]] = {
    "sum": lambda A, B: A + B,
    "multiple": lambda A, B: -2.5 * A,
    "shift": lambda A, B: A.shift(0.7),
    "block": lambda A, B: A.block(["c", "a"]),
}


@pytest.mark.parametrize(("name", "rows"), [(name, rows) for name in DERIVED for rows in (5, 7) if (name, rows) != ("shift", 7)])
def test_the_transpose_of_a_derived_operator_is_that_of_its_matrix(name: str, rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    layout = {"a": slice(0, 2), "b": slice(2, 3), "c": slice(3, 5)}
    matrices = (torch.randn(rows, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    derived = DERIVED[name](*(Operator.from_matrix(m, layout=layout) for m in matrices))
    dense = derived.to_dense()
    assert not torch.equal(dense, dense.T)
    assert torch.equal(derived.T.to_dense(), dense.T)  # products with unit vectors do not round
    assert torch.equal(derived.T.T.to_dense(), dense)


@pytest.mark.parametrize("m", range(16))
def test_lanczos_is_a_gauss_quadrature(m: int) -> None:
    assert quadrature_error(m) < 1e-10


def test_the_quadrature_ends_at_degree_2k() -> None:
    assert quadrature_error(16) > 1e-4


def test_the_basis_is_orthonormal_and_tridiagonalizes() -> None:
    matrix = with_spectrum(outliers())
    T = lanczos(operator(matrix), torch.ones(300, dtype=torch.float64), 100)
    assert torch.allclose(T.basis.T @ T.basis, torch.eye(100, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(T.basis.T @ matrix @ T.basis, T.matrix(), atol=1e-11)


@pytest.mark.parametrize(("reorthogonalize", "copies"), [(True, 1), (False, 2)])
def test_simple_eigenvalues_come_once_and_ghosts_come_without_reorthogonalization(reorthogonalize: bool, copies: int) -> None:
    values = outliers()
    T = lanczos(
        Operator((300, 300), lambda v: values * v, symmetric=True),
        torch.ones(300, dtype=torch.float64),
        150,
        reorthogonalize=reorthogonalize,
    )
    found = int(((torch.linalg.eigvalsh(T.matrix()) - 100).abs() < 1e-6).sum())
    assert found == 1 if copies == 1 else found >= copies


@functools.cache
def transformer() -> tuple[Operator, Tensor]:
    """The Hessian of a transformer layer, and all its eigenvalues."""
    problem = make("TransformerEncoderLayer")
    return hessian(problem), torch.linalg.eigvalsh(dense_hessian(problem).to_dense())


@pytest.mark.parametrize("which", ["LM", "LA", "SA"])
@pytest.mark.parametrize("tol", [1e-2, 1e-6, 1e-12])
def test_every_residual_bounds_the_error(which: str, tol: float) -> None:
    H, exact = transformer()
    found = eigs(H, k=6, which=which, tol=tol)  # pyright: ignore[reportArgumentType]
    distance = (found.values[:, None] - exact).abs().min(1).values
    assert (distance <= found.residuals).all()
    assert found.converged
    key = {"LM": exact.abs(), "LA": exact, "SA": -exact}[which]
    assert torch.allclose(found.values, exact[key.argsort(descending=True)[:6]], atol=float(found.residuals.max()) + 1e-12)


def test_residuals_are_those_of_the_returned_pairs() -> None:
    matrix = symmetric(200)
    found = eigs(operator(matrix), k=5, tol=1e-3)
    true = (matrix @ found.vectors - found.vectors * found.values).norm(dim=0)
    assert torch.allclose(true, found.residuals, rtol=1e-6, atol=1e-12)
    assert torch.allclose(found.vectors.T @ found.vectors, torch.eye(5, dtype=torch.float64), atol=1e-12)


def test_a_float32_operator_reports_a_residual_that_holds_its_rounding() -> None:
    matrix = with_spectrum(outliers())
    found = eigs(operator(matrix.float()), k=3, tol=1e-9)
    distance = (found.values.double()[:, None] - torch.linalg.eigvalsh(matrix)).abs().min(1).values
    assert (distance <= found.residuals.double() * 1.01).all()


def test_too_few_products_are_reported_as_not_converged() -> None:
    found = eigs(operator(symmetric(300)), k=5, tol=1e-8, max_matvecs=12)
    assert not found.converged
    assert found.n_matvecs == 12


@pytest.mark.parametrize(
    ("values", "k", "expected"),
    [
        ([5.0, 5.0, 5.0, 1.0] + [0.0] * 16, 4, [5.0, 5.0, 5.0, 1.0]),
        ([2.0] * 20, 3, [2.0, 2.0, 2.0]),
        ([0.0] * 20, 2, [0.0, 0.0]),
        ([3.0, -7.0] + [0.0] * 18, 1, [3.0]),
    ],
)
def test_multiple_eigenvalues_are_found_where_the_space_is_invariant(values: list[float], k: int, expected: list[float]) -> None:
    A = operator(with_spectrum(torch.tensor(values)))
    found = eigs(A, k=k, which="LA")
    assert found.converged
    assert found.values.tolist() == pytest.approx(expected, abs=1e-10)


def test_a_start_saves_products_and_does_not_hide_a_larger_eigenvalue() -> None:
    matrix = with_spectrum(outliers())
    A = operator(matrix)
    cold = eigs(A, k=1, which="LA", tol=1e-3)
    warm = eigs(A, k=1, which="LA", tol=1e-3, start=cold.vectors[:, 0])
    assert warm.n_matvecs <= cold.n_matvecs
    second = eigs(A, k=2, which="LA", tol=1e-10).vectors[:, 1]
    assert float(eigs(A, k=1, which="LA", tol=1e-3, start=second).values[0]) == pytest.approx(100, rel=1e-4)


@pytest.mark.parametrize("which", ["LM", "LA", "SA"])
@pytest.mark.parametrize("k", [1, 3, 20])
def test_a_restarted_basis_finds_the_same_pairs_in_little_memory(which: Literal["LM", "LA", "SA"], k: int) -> None:
    M = symmetric(300, seed=7)
    values, vectors = torch.linalg.eigh(M)
    key = {"LM": values.abs(), "LA": values, "SA": -values}[which]
    wanted = key.argsort(descending=True)[:k]
    found = eigs(operator(M), k=k, which=which, tol=1e-9, max_matvecs=5000, memory=0)  # the fewest vectors that it takes
    assert found.converged
    assert torch.allclose(found.values, values[wanted], rtol=1e-12)
    overlap = (found.vectors * vectors[:, wanted]).sum(0).abs()
    assert torch.allclose(overlap, torch.ones(k, dtype=torch.float64), atol=1e-12)
    residuals = (M @ found.vectors - found.vectors * found.values).norm(dim=0)
    assert bool((residuals <= found.residuals).all())
    assert torch.allclose(found.vectors.T @ found.vectors, torch.eye(k, dtype=torch.float64), atol=1e-12)


def test_a_basis_keeps_to_its_size_and_restarts_in_place() -> None:
    M = symmetric(200)
    krylov = Krylov(operator(M), torch.ones(200, dtype=torch.float64), torch.Generator().manual_seed(0), most=9)
    for _ in range(4):
        while len(krylov) < 9:
            krylov.step()
        storage = krylov._basis.data_ptr()
        T, Q = krylov.matrix(), krylov.tridiagonal().basis
        assert torch.allclose(Q.T @ M @ Q, T, atol=1e-13)
        values, coefficients = torch.linalg.eigh(T)
        krylov.restart(values[-4:], coefficients[:, -4:])
        assert (len(krylov), len(krylov._basis), krylov._basis.data_ptr()) == (4, 10, storage)
    assert krylov.products == 9 + 3 * 5


def test_asymmetry_is_found_after_a_restart_too() -> None:
    M = symmetric(60)
    calls = 0

    def product(v: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return (M + (torch.triu(M, 1) if calls > 12 else 0)) @ v

    with pytest.raises(ValueError, match="must be symmetric"):
        eigs(Operator((60, 60), product, symmetric=True, dtype=torch.float64), k=2, tol=1e-12, max_matvecs=200, memory=0)


@pytest.mark.parametrize("memory", [0, 2**32])
def test_low_rank_and_zero_operators_in_a_small_basis(memory: int) -> None:
    low = with_spectrum(torch.cat([torch.tensor([3.0, 3.0, -2.0]), torch.zeros(97)]))
    found = eigs(operator(low), k=2, which="LA", tol=1e-8, memory=memory)
    assert found.values.tolist() == pytest.approx([3.0, 3.0])
    assert eigs(operator(torch.zeros(50, 50, dtype=torch.float64)), k=2, memory=memory).values.tolist() == [0.0, 0.0]


def test_all_eigenvalues_of_a_small_operator() -> None:
    matrix = symmetric(30)
    found = eigs(operator(matrix), k=30, which="LA", tol=1e-10)
    assert torch.allclose(found.values.flip(0), torch.linalg.eigvalsh(matrix), atol=1e-12)


def test_asymmetric_operators_are_refused_even_when_they_claim_symmetry() -> None:
    matrix = symmetric(40)
    skewed = matrix.clone()
    skewed[0, 1] += 0.1
    with pytest.raises(ValueError, match="must be symmetric"):
        eigs(operator(skewed), k=2)
    with pytest.raises(ValueError, match="must be a symmetric operator"):
        eigs(operator(matrix, symmetric=False), k=2)


def test_spectrum_matches_the_moments_and_the_interval_of_the_dense_matrix() -> None:
    matrix = symmetric(300)
    exact = torch.linalg.eigvalsh(matrix)
    S = spectrum(operator(matrix), probes=16, steps=40)
    assert torch.allclose(S.weights.sum(1), torch.ones(16, dtype=torch.float64))
    for m in (1, 2, 3, 4):
        low, high = S.moment(m).interval(0.999)
        assert low <= float((exact**m).mean()) <= high
    assert S.interval[0] <= float(exact[0]) + 1e-6
    assert S.interval[1] >= float(exact[-1]) - 1e-6
    x = torch.linspace(-3, 3, 2001, dtype=torch.float64)
    assert float(torch.trapezoid(S.density(x), x)) == pytest.approx(1, abs=1e-6)


def test_spectrum_of_a_matrix_with_few_eigenvalues_is_exact() -> None:
    S = spectrum(operator(with_spectrum(torch.tensor([4.0] * 10 + [1.0] * 10))), probes=3, steps=15)
    inside = S.weights > 1e-12
    assert torch.allclose(((S.nodes - 1) * (S.nodes - 4))[inside], torch.zeros(1, dtype=torch.float64), atol=1e-10)
    assert torch.equal(
        spectrum(operator(symmetric(50)), probes=5, steps=9).nodes[:3], spectrum(operator(symmetric(50)), probes=3, steps=9).nodes
    )


def test_hutchinson_variance_is_its_formula() -> None:
    matrix = symmetric(200)
    estimate = trace(operator(matrix), n=20_000, method="hutchinson")
    expected = 2 * float(matrix.square().sum() - matrix.diagonal().square().sum())
    assert estimate.stderr**2 * estimate.n / expected == pytest.approx(1, abs=0.05)  # its own relative error is √(2/20000) = 1 %
    low, high = estimate.interval(0.999)
    assert low <= float(matrix.trace()) <= high


def squared_errors(matrix: Tensor, method: str, n: int, seeds: int = 60) -> Tensor:
    A, exact = operator(matrix), float(matrix.trace())
    return torch.tensor([(trace(A, n=n, method=method, seed=s).value - exact) ** 2 for s in range(seeds)])  # pyright: ignore[reportArgumentType]


def test_xtrace_beats_hutchinson_on_a_decaying_spectrum_and_not_on_a_flat_one() -> None:
    decaying = with_spectrum(torch.arange(1, 201).double() ** -2)
    gain = squared_errors(decaying, "xtrace", 30).mean() / squared_errors(decaying, "hutchinson", 30).mean()
    assert gain < 0.05
    flat = with_spectrum(torch.tensor([1.0, -1.0]).repeat(100))
    gain = squared_errors(flat, "xtrace", 30).mean() / squared_errors(flat, "hutchinson", 30).mean()
    assert gain > 0.5


def test_xtrace_is_unbiased_and_its_standard_error_is_of_the_right_size() -> None:
    matrix = with_spectrum(torch.arange(1, 101).double() ** -1)
    estimates = [trace(operator(matrix), n=20, seed=s) for s in range(200)]
    errors = torch.tensor([e.value for e in estimates]) - float(matrix.trace())
    assert abs(float(errors.mean())) < 4 * float(errors.std()) / math.sqrt(200)
    stated = torch.tensor([e.stderr for e in estimates]).square().mean().sqrt()
    assert 0.5 < float(stated / errors.std()) < 2


def test_xtrace_is_exact_for_low_rank_zero_and_small_operators() -> None:
    low_rank = with_spectrum(torch.tensor([3.0, 2.0] + [0.0] * 98))
    assert trace(operator(low_rank), n=20).value == pytest.approx(5, rel=1e-10)
    assert trace(operator(torch.zeros(50, 50, dtype=torch.float64)), n=10).value == 0
    assert trace(operator(symmetric(10)), n=10).value == pytest.approx(float(symmetric(10).trace()), rel=1e-12)


def test_xtrace_takes_operators_that_are_not_symmetric() -> None:
    matrix = with_spectrum(torch.arange(1, 61).double() ** -2) @ with_spectrum(torch.linspace(1, 2, 60), seed=1)
    estimates = torch.tensor([trace(operator(matrix, symmetric=False), n=20, seed=s).value for s in range(100)])
    assert abs(float(estimates.mean() - matrix.trace())) < 4 * float(estimates.std()) / 10


def test_hutchpp_lies_between_hutchinson_and_xtrace_and_gains_nothing_on_a_flat_spectrum() -> None:
    decaying = with_spectrum(torch.arange(1, 201).double() ** -1.5)
    errors = {method: float(squared_errors(decaying, method, 30).mean()) for method in ("xtrace", "hutchpp", "hutchinson")}
    assert 1.5 * errors["xtrace"] < errors["hutchpp"] < errors["hutchinson"] / 2
    flat = with_spectrum(torch.tensor([1.0, -1.0]).repeat(100))
    assert squared_errors(flat, "hutchpp", 30).mean() > 0.5 * squared_errors(flat, "hutchinson", 30).mean()


def test_hutchpp_is_unbiased_with_its_stated_error_and_exact_for_low_rank() -> None:
    matrix = with_spectrum(torch.arange(1, 61).double() ** -2) @ with_spectrum(torch.linspace(1, 2, 60), seed=1)  # not symmetric
    estimates = [trace(operator(matrix, symmetric=False), n=30, method="hutchpp", seed=s) for s in range(200)]
    errors = torch.tensor([e.value for e in estimates]) - float(matrix.trace())
    assert abs(float(errors.mean())) < 4 * float(errors.std()) / math.sqrt(200)
    stated = torch.tensor([e.stderr for e in estimates]).square().mean().sqrt()
    assert 0.8 < float(stated / errors.std()) < 1.25
    low_rank = with_spectrum(torch.tensor([3.0, 2.0] + [0.0] * 98))
    assert trace(operator(low_rank), n=12, method="hutchpp").value == pytest.approx(5, rel=1e-10)
    assert trace(operator(symmetric(10)), n=10, method="hutchpp").value == pytest.approx(float(symmetric(10).trace()), rel=1e-12)


def test_diagonal_is_unbiased_with_its_stated_error() -> None:
    matrix = symmetric(300)
    estimate = diag(operator(matrix), n=200)
    z = (estimate.value - matrix.diagonal()) / estimate.stderr
    assert float(z.abs().max()) < 5  # of 300 nearly normal entries
    variance = (matrix.square().sum(1) - matrix.diagonal().square()) / 200
    assert float((estimate.stderr.square() / variance).mean()) == pytest.approx(1, abs=0.03)  # √(2/200/300) is 0.6 %
    huge = 1e8 * torch.eye(300, dtype=torch.float64) + matrix
    assert torch.allclose(diag(operator(huge), n=200).stderr, estimate.stderr, rtol=1e-5)
    exact = diag(operator(matrix), n=300)
    assert torch.equal(exact.value, matrix.diagonal())
    assert not exact.stderr.any()


@pytest.mark.parametrize("estimate", [diag, functools.partial(trace, method="hutchinson")], ids=["diagonal", "trace"])
def test_random_signs_are_drawn_in_blocks_that_memory_bounds_and_that_change_nothing(estimate, monkeypatch: pytest.MonkeyPatch) -> None:
    matrix, drawn = symmetric(30), []
    whole = estimate(operator(matrix), n=20)
    draw = torch.randint
    monkeypatch.setattr(torch, "randint", lambda *args, **options: drawn.append(draw(*args, **options)) or drawn[-1])
    monkeypatch.setattr(trace_module, "ENTRIES", 3 * 30)
    parts = estimate(operator(matrix), n=20)
    assert [len(block) for block in drawn] == [3, 3, 3, 3, 3, 3, 2]
    assert {block.dtype for block in drawn} == {torch.int8}
    for a, b in ((whole.value, parts.value), (whole.stderr, parts.stderr)):
        torch.testing.assert_close(torch.as_tensor(b), torch.as_tensor(a), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("steps", [3, 12, 40])
def test_the_interval_of_logdet_holds_the_logarithm_of_the_determinant(steps: int) -> None:
    matrix = with_spectrum(torch.logspace(-6, 2, 120))
    exact = float((torch.linalg.eigvalsh(matrix) + 1e-3).log().sum())
    estimate = logdet(operator(matrix), shift=1e-3, n=20, steps=steps)
    low, high = estimate.interval(0.999)
    assert low <= exact <= high
    converged = logdet(operator(matrix), shift=1e-3, n=20, steps=60)
    assert converged.stderr < estimate.stderr * (1 + 1e-9)
    if steps == 3:  # the quadrature's error rules, and the vectors' own error alone would not hold the truth
        assert abs(estimate.value - exact) > 4 * converged.stderr


def test_logdet_is_exact_for_a_multiple_of_the_identity_and_knows_a_lower_bound() -> None:
    A = operator(with_spectrum(torch.tensor([2.0] * 30)))
    assert logdet(A, shift=1.0).value == pytest.approx(30 * math.log(3), rel=1e-12)
    assert logdet(A, lower=1.0).value == pytest.approx(30 * math.log(2), rel=1e-12)
    indefinite = with_spectrum(torch.linspace(-1, 5, 60))
    exact = float((torch.linspace(-1, 5, 60).double() + 2).log().sum())
    low, high = logdet(operator(indefinite), shift=2.0, lower=-1.5).interval(0.999)
    assert low <= exact <= high


def test_logdet_in_float32_holds_what_rounding_adds() -> None:
    matrix = with_spectrum(torch.cat([torch.tensor([100.0]), torch.full((99,), 1e-4)]))
    exact = float((torch.linalg.eigvalsh(matrix) + 1e-4).log().sum())
    estimate = logdet(operator(matrix.float()), shift=1e-4)
    low, high = estimate.interval(0.999)
    assert low <= exact <= high


def test_the_density_has_an_error() -> None:
    matrix = symmetric(100)
    x = torch.linspace(-1, 1, 9, dtype=torch.float64)
    estimates = [spectrum(operator(matrix), probes=6, steps=12, seed=s) for s in range(20)]
    spread = torch.stack([S.density(x, width=0.2) for S in estimates]).std(0)
    stated = torch.stack([S.density_stderr(x, width=0.2) for S in estimates]).square().mean(0).sqrt()
    assert float((spread / stated).log().mean().exp()) == pytest.approx(1, abs=0.2)


def test_scipy_takes_an_operator_and_finds_the_same_eigenvalues() -> None:
    from scipy.sparse.linalg import eigsh

    H = hessian(make("mlp"))
    values = eigsh(H.to_scipy(), k=3, which="LA", return_eigenvectors=False, tol=1e-12)
    assert torch.allclose(torch.as_tensor(values), torch.linalg.eigvalsh(H.to_dense())[-3:], rtol=0, atol=1e-9)


def test_scipy_gets_the_transpose_of_an_operator_that_is_not_symmetric() -> None:
    matrix = torch.arange(6.0, dtype=torch.float64).reshape(2, 3)
    A = Operator((2, 3), lambda v: matrix @ v, rmatvec=lambda v: matrix.T @ v).to_scipy()
    assert torch.equal(torch.as_tensor(A.rmatvec([1.0, 2.0])), matrix.T @ torch.tensor([1.0, 2.0], dtype=torch.float64))
    assert torch.equal(torch.as_tensor(A @ torch.eye(3, dtype=torch.float64).numpy()), matrix)


@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_solve_agrees_with_cholesky_and_reports_its_residual(damping: float) -> None:
    matrix = with_spectrum(torch.logspace(-2, 1, 80))
    b = torch.randn(80, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = solve(operator(matrix), b, damping=damping, tol=1e-10)
    damped = matrix + damping * torch.eye(80, dtype=torch.float64)
    assert found.converged
    assert torch.allclose(found.x, torch.cholesky_solve(b[:, None], torch.linalg.cholesky(damped))[:, 0], rtol=1e-6, atol=1e-8)
    assert found.residual == pytest.approx(float((damped @ found.x - b).norm() / b.norm()), rel=1e-6)
    assert not solve(operator(matrix), b, damping=damping, tol=1e-10, max_matvecs=5).converged
    assert solve(operator(matrix), 0 * b).n_matvecs == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda A: eigs(A, k=0), "k must lie in"),
        (lambda A: eigs(A, k=9), "k must lie in"),
        (lambda A: eigs(A, k=1, which="XX"), "which must be"),
        (lambda A: eigs(A, k=1, tol=0), "tol must be positive"),
        (lambda A: eigs(A, k=3, max_matvecs=2), "max_matvecs must be at least"),
        (lambda A: eigs(A, k=1, start=torch.ones(3)), "start must have shape"),
        (lambda A: eigs(A * math.nan, k=1), "not finite"),
        (lambda A: lanczos(A, torch.zeros(8).double(), 2), "other than zero"),
        (lambda A: lanczos(A, torch.ones(8).double(), 9), "steps must lie in"),
        (lambda A: spectrum(A, probes=0), "probes must be at least 1"),
        (lambda A: spectrum(A).moment(-1), "m must be"),
        (lambda A: spectrum(A, probes=1).density_stderr(torch.zeros(1)), "probes must be at least 2"),
        (lambda A: logdet(A), "shift \\+ lower must be positive"),
        (lambda A: logdet(A, shift=1.0, n=1), "n must be at least 2"),
        (lambda A: logdet(A, shift=1.0, steps=0), "steps must be at least 1"),
        (lambda A: logdet(A, shift=9.0), "has an eigenvalue of -"),
        (lambda A: spectrum(A).density(torch.zeros(1), width=0.0), "width must be positive"),
        (lambda A: trace(A, n=1, method="hutchinson"), "n must be at least 2"),
        (lambda A: trace(A, n=3), "n must be at least 4"),
        (lambda A: trace(A, n=5, method="hutchpp"), "n must be at least 6"),
        (lambda A: trace(A, method="other"), "method must be one of"),
        (lambda A: diag(A, n=1), "n must be at least 2"),
        (lambda A: solve(A, torch.ones(3).double()), "b must have shape"),
        (lambda A: solve(A, torch.ones(8).double(), damping=-1), "damping must be"),
        (lambda A: solve(A, torch.ones(8).double(), tol=0), "tol must be"),
        (lambda A: solve(A, torch.ones(8).double(), max_matvecs=1), "max_matvecs must be"),
        (lambda A: solve(-1 * A * 1.0 + -1 * A.shift(5.0), torch.ones(8).double()), "raise damping"),
    ],
)
def test_wrong_input_is_refused(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(operator(symmetric(8)))


@pytest.mark.parametrize("solver", [lambda A: eigs(A, k=1), trace, diag, spectrum, lambda A: solve(A, torch.ones(3).double()), logdet])
def test_what_is_no_operator_is_named(solver) -> None:
    with pytest.raises(TypeError, match=r"A must be an Operator, such as tl\.hessian\(problem\), got Tensor: wrap a matrix"):
        solver(torch.eye(3).double())
    for v in ([1.0, 2.0], torch.ones(2).double().numpy()):
        with pytest.raises(TypeError, match=f"multiplies tensors, got {type(v).__name__}"):
            operator(symmetric(2)) @ v  # pyright: ignore


def test_a_matrix_is_an_operator() -> None:
    matrix = torch.arange(6.0, dtype=torch.float64).reshape(2, 3)
    A = Operator.from_matrix(matrix)
    assert (A.shape, A.symmetric, A.n_matvecs) == ((2, 3), False, 0)
    assert torch.equal(A.to_dense(), matrix)
    assert torch.equal(A.T.to_dense(), matrix.T)
    assert Operator.from_matrix(matrix @ matrix.T).symmetric
    for wrong, kind, message in (
        (matrix.tolist(), TypeError, "matrix must be a tensor of real floating-point numbers, got list"),
        (matrix.int(), TypeError, "matrix must be .* got torch.int32"),
        (matrix[0], ValueError, r"matrix must have shape \(rows, columns\), got \(3,\)"),
    ):
        with pytest.raises(kind, match=message):
            Operator.from_matrix(wrong)  # pyright: ignore
    with pytest.raises(ValueError, match="must be square"):
        Operator.from_matrix(matrix, symmetric=True)


def test_sums_over_long_vectors_keep_the_digits_of_single_precision() -> None:
    """Summed in single precision, a norm over ten million entries is wrong by a thousandth, and Lanczos sees an asymmetric operator."""
    w = torch.randn(2**23, generator=torch.Generator().manual_seed(0))
    exact = float(w.double().norm())
    assert length(w) == pytest.approx(exact, rel=1e-9)
    assert products(torch.stack([w, -w]), w).tolist() == pytest.approx([exact**2, -(exact**2)], rel=1e-5)  # single within a piece
    p = len(w)
    A = Operator((p, p), lambda v: w * v, symmetric=True, dtype=torch.float32)
    assert len(lanczos(A, torch.ones(p), 5).alpha) == 5


def test_solve_takes_columns_side_by_side() -> None:
    generator = torch.Generator().manual_seed(0)
    b = torch.randn(60, 4, generator=generator, dtype=torch.float64)
    b[:, 1] = 0.0
    root = torch.randn(60, 60, generator=generator, dtype=torch.float64)
    A = operator(root @ root.T)
    together = solve(A, b, damping=1.0, tol=1e-10)
    assert together.converged
    assert together.n_matvecs == A.n_matvecs
    for j, column in enumerate(b.T):
        torch.testing.assert_close(together.x[:, j], solve(A, column, damping=1.0, tol=1e-10).x, rtol=1e-7, atol=1e-9)


def spd(p: int, seed: int, rank: int | None = None) -> torch.Tensor:
    root = torch.randn(p, rank or p, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return root @ root.T / p


def test_truncated_solve_is_exact_on_what_it_keeps() -> None:
    A, b = spd(30, 0, rank=6), torch.randn(30, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    values, vectors = torch.linalg.eigh(A)
    kept = vectors[:, -4:]
    expected = kept @ ((kept.T @ b) / (values[-4:, None] + 0.1))
    torch.testing.assert_close(truncated_solve(operator(A), b, 4, 0.1, tol=1e-10), expected, rtol=1e-6, atol=1e-9)
    inside = A @ b  # in the span of its six eigenvectors nothing is dropped
    exact = torch.cholesky_solve(inside, torch.linalg.cholesky(A + 0.1 * torch.eye(30)))
    torch.testing.assert_close(truncated_solve(operator(A), inside, 6, 0.1, tol=1e-10), exact, rtol=1e-6, atol=1e-9)
    with pytest.raises(ValueError, match="positive definite"):
        truncated_solve(operator(-A), b, 2, 0.01)


def test_neumann_series_errs_as_its_depth_says_and_is_unbiased_over_draws() -> None:
    halves = [spd(12, 2), spd(12, 3)]
    mean, b, damping = (halves[0] + halves[1]) / 2, torch.ones(12).double(), 0.5
    exact = torch.cholesky_solve(b[:, None], torch.linalg.cholesky(mean + damping * torch.eye(12)))[:, 0]
    scale = 1.05 * float(torch.linalg.eigvalsh(mean)[-1]) + damping
    for depth in (5, 20, 80):
        error = float((neumann_solve([operator(mean)], b, depth, damping) - exact).norm())
        assert error <= 1.01 * (1 - damping / scale) ** depth * float(exact.norm()) + 1e-12
    drawn = torch.stack([neumann_solve([operator(h) for h in halves], b, 60, damping, seed=s) for s in range(400)])
    spread = drawn.std(0) / 400**0.5
    assert float(((drawn.mean(0) - exact).abs() / spread).max()) < 4.5  # of twelve normal numbers, below 4.5 but once in ten thousand
    for call, message in (
        (lambda: neumann_solve([], b, 5, 0.1), "at least one operator"),
        (lambda: neumann_solve([operator(mean)], b, 0, 0.1), "depth must be"),
        (lambda: neumann_solve([operator(mean)], b, 5, 0.0), "damping must be positive"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
