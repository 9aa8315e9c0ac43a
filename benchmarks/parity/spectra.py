"""Eigenvalues, spectral densities, traces, diagonals and solves, against curvlinops, hessian-eigenthings and SciPy."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.parity import Comparison, Measure
from benchmarks.parity.problems import Case, case
from theorylab.instruments.curvature import ggn, hessian
from theorylab.linalg.diagonal import diag
from theorylab.linalg.lanczos import eigs
from theorylab.linalg.solve import solve
from theorylab.linalg.spectrum import spectrum
from theorylab.linalg.trace import trace

TOP = 10
RESIDUAL = 1e-4  # relative, at which both sides stop; an eigenvalue's own error is of the order of its square
PROBES, STEPS = 4, 50
PRODUCTS = 30
DAMPING = 1e-2


@functools.cache
def _dense(net: str, n: int) -> Tensor:
    """The whole Hessian of a network, in float64."""
    return hessian(case(net, n, torch.float64).problem).to_dense()


def _curvlinops(at: Case, name: str = "HessianLinearOperator") -> Any:
    import curvlinops

    return getattr(curvlinops, name)(at.net, nn.CrossEntropyLoss(), at.params, [(at.x, at.y)], check_deterministic=False)


def _eigenthings(at: Case) -> Any:
    from hessian_eigenthings.loss_fns.standard import supervised_loss
    from hessian_eigenthings.operators.hessian import HessianOperator

    return HessianOperator(at.net, [(at.x, at.y)], supervised_loss(nn.functional.cross_entropy))


def _eigsh(at: Case) -> Tensor:
    from scipy.sparse.linalg import eigsh

    values = eigsh(_curvlinops(at).to_scipy(), k=TOP, which="LM", tol=RESIDUAL, return_eigenvectors=True)[0]
    return _by_magnitude(torch.tensor(values))


def _lanczos(at: Case) -> Tensor:
    from hessian_eigenthings.algorithms.lanczos import lanczos

    return _by_magnitude(lanczos(_eigenthings(at), k=TOP, max_iter=70, tol=RESIDUAL, reorthogonalize=True, seed=0).eigenvalues)


def _by_magnitude(values: Tensor) -> Tensor:
    return values[values.abs().argsort(descending=True)]


def _top(n: int, theirs: Callable[[Case], Tensor]) -> Callable[[torch.dtype], tuple[Measure, Measure]]:
    def prepare(dtype: torch.dtype) -> tuple[Measure, Measure]:
        at = case("MLP of width 32", n, dtype)
        problem = at.problem
        return lambda: eigs(hessian(problem), k=TOP, which="LM", tol=RESIDUAL).values, lambda: theirs(at)

    return prepare


def _distance(nodes: Tensor, weights: Tensor, exact: Tensor) -> float:
    """Wasserstein-1 distance of a weighted sum of point masses from the eigenvalues, relative to their range."""
    from scipy.stats import wasserstein_distance

    keep = weights.reshape(-1) > 0
    found = wasserstein_distance(nodes.reshape(-1)[keep].numpy(), exact.numpy(), weights.reshape(-1)[keep].numpy())
    return found / float(exact[-1] - exact[0])


def _repeats(seeds: int, dtype: torch.dtype) -> int:
    """Times, taken in float32, need fewer seeds than errors."""
    return seeds if dtype == torch.float64 else 2


def _density(n: int, seeds: int) -> Callable[[torch.dtype], tuple[Measure, Measure]]:
    def prepare(dtype: torch.dtype) -> tuple[Measure, Measure]:
        from hessian_eigenthings.algorithms.spectral_density import spectral_density

        repeats = _repeats(seeds, dtype)
        at = case("MLP of width 16", n, dtype)
        problem, exact = at.problem, _eigenvalues(n)

        def ours() -> Tensor:
            H = hessian(problem)
            found = [spectrum(H, probes=PROBES, steps=STEPS, seed=100 * s) for s in range(repeats)]
            return torch.tensor([_distance(S.nodes, S.weights, exact) for S in found])

        def theirs() -> Tensor:
            H = _eigenthings(at)
            found = [spectral_density(H, num_runs=PROBES, lanczos_steps=STEPS, num_grid_points=2, seed=100 * s) for s in range(repeats)]
            return torch.tensor([_distance(S.raw_eigenvalues.double(), S.raw_weights.double(), exact) for S in found])

        return ours, theirs

    return prepare


@functools.cache
def _eigenvalues(n: int) -> Tensor:
    return torch.linalg.eigvalsh(_dense("MLP of width 16", n))


def _seeded(seeds: int, estimate: Callable[[int], Any], truth: Tensor) -> Measure:
    """Relative errors of an estimate over several seeds, which peers take from the global generator."""

    def measure() -> Tensor:
        found = []
        with torch.random.fork_rng():
            for seed in range(seeds):
                torch.manual_seed(seed)
                found.append(torch.as_tensor(estimate(seed)).double())
        return torch.stack([(f - truth).norm() / truth.norm() for f in found])

    return measure


def _estimates(
    n: int, seeds: int, ours: Callable[[Any, int], Any], theirs: Callable[[Any], Any], truth: Callable[[Tensor], Tensor]
) -> Callable[[torch.dtype], tuple[Measure, Measure]]:
    def prepare(dtype: torch.dtype) -> tuple[Measure, Measure]:
        at = case("MLP of width 16", n, dtype)
        H, G, exact = hessian(at.problem), _curvlinops(at), truth(_dense("MLP of width 16", n))
        repeats = _repeats(seeds, dtype)
        return _seeded(repeats, lambda seed: ours(H, seed), exact), _seeded(repeats, lambda seed: theirs(G), exact)

    return prepare


def _solve(n: int) -> Callable[[torch.dtype], tuple[Measure, Measure]]:
    def prepare(dtype: torch.dtype) -> tuple[Measure, Measure]:
        import numpy as np
        from scipy.sparse.linalg import LinearOperator, cg

        at = case("MLP of width 32", n, dtype)
        problem, b = at.problem, at.vector()

        def theirs() -> Tensor:
            G = _curvlinops(at, "GGNLinearOperator").to_scipy()
            damped = LinearOperator(G.shape, matvec=lambda v: G @ v + DAMPING * v, dtype=G.dtype)
            return torch.tensor(cg(damped, np.asarray(b), rtol=1e-5, atol=0.0)[0])

        return lambda: solve(ggn(problem), b, damping=DAMPING, tol=1e-5).x, theirs

    return prepare


def rows(n: int) -> list[Comparison]:
    """One an algorithm and a peer. Random estimates are repeated over seeds, fewer where few rows say that it is a test."""
    linops, things = "curvlinops-for-pytorch", "hessian-eigenthings"
    seeds = 30 if n >= 512 else 8
    allowed = 1 + 3 / math.sqrt(seeds)  # three standard errors of a ratio of two root mean squares over so many seeds

    def estimate(name: str, theirs: str, **options: Any) -> Comparison:
        def peer(A: Any) -> Any:
            import curvlinops

            return getattr(curvlinops, theirs)(A, PRODUCTS)

        if name == "diag":
            prepare = _estimates(n, seeds, lambda H, s: diag(H, PRODUCTS, seed=s).value, peer, torch.diagonal)
        else:
            prepare = _estimates(n, seeds, lambda H, s: trace(H, PRODUCTS, seed=s, **options).value, peer, torch.trace)
        setting = ", ".join([*options.values(), f"MLP of width 16, {PRODUCTS} products"])
        return Comparison(name, setting, linops, prepare, tolerance=allowed, errors=True)

    return [
        Comparison(
            "eigs",
            f"MLP of width 32, top {TOP} of the Hessian",
            linops,
            _top(n, _eigsh),
            tolerance=1e-5,
            goal=0.5,
            note="its eigsh is SciPy's",
        ),
        Comparison(
            "eigs",
            f"MLP of width 32, top {TOP} of the Hessian",
            things,
            _top(n, _lanczos),
            tolerance=1e-5,
            note="with reorthogonalize=True",
        ),
        Comparison(
            "spectrum",
            f"MLP of width 16, {PROBES} probes of {STEPS} steps, W1 distance",
            things,
            _density(n, 24 if n >= 512 else 2),
            tolerance=allowed,
            goal=0.6,
            errors=True,
        ),
        estimate("trace", "xtrace", method="xtrace"),
        estimate("trace", "hutchpp_trace", method="hutchpp"),
        estimate("trace", "hutchinson_trace", method="hutchinson"),
        estimate("diag", "hutchinson_diag"),
        Comparison(
            "solve",
            "MLP of width 32, Gauss-Newton matrix and 0.01 times the identity",
            linops,
            _solve(n),
            tolerance=1e-4,
            note="its cg is SciPy's",
        ),
    ]
