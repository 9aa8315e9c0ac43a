"""Polar factors, Newton-Schulz and inverse roots against what defines them, and the optimizers made of them against each other."""

from __future__ import annotations

import pytest
import torch

from theorylab.learning.optimizers.muon import muon
from theorylab.learning.optimizers.shampoo import shampoo, soap
from theorylab.linalg.orthogonalize import COEFFICIENTS, inverse_root, newton_schulz, polar_factor


def matrix(m: int, n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(m, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("m", "n"), [(4, 4), (7, 3), (3, 7)])
def test_the_polar_factor_is_orthogonal_and_leaves_a_positive_remainder(m: int, n: int) -> None:
    G = matrix(m, n)
    Q = polar_factor(G)
    small = Q @ Q.T if m <= n else Q.T @ Q
    assert torch.allclose(small, torch.eye(min(m, n), dtype=torch.float64), atol=1e-13)
    rest = Q.T @ G  # √(GᵀG)
    assert torch.allclose(rest, rest.T, atol=1e-12)
    assert float(torch.linalg.eigvalsh(rest).min()) > -1e-12


def test_the_polar_factor_of_a_singular_matrix_is_zero_on_its_null_space() -> None:
    G = torch.outer(matrix(4, 1)[:, 0], matrix(3, 1, 1)[:, 0])
    assert torch.allclose(polar_factor(G), G / torch.linalg.matrix_norm(G), atol=1e-13)
    assert float(polar_factor(torch.zeros(3, 2)).abs().max()) == 0


@pytest.mark.parametrize(("m", "n"), [(4, 4), (7, 3), (3, 7)])
def test_newton_schulz_acts_on_the_singular_values_alone(m: int, n: int) -> None:
    G = matrix(m, n)
    U, S, Vh = torch.linalg.svd(G, full_matrices=False)
    a, b, c = COEFFICIENTS
    s = S / S.norm()
    for _ in range(5):
        s = a * s + b * s**3 + c * s**5
    assert torch.allclose(newton_schulz(G), (U * s) @ Vh, atol=1e-12)
    assert torch.allclose(newton_schulz(torch.stack([G, 3 * G]))[1], newton_schulz(G), atol=1e-12)


def test_an_inverse_root_is_one() -> None:
    A = matrix(5, 8) @ matrix(5, 8).T
    root = inverse_root(A, 4)
    assert torch.allclose(torch.linalg.matrix_power(root, 4) @ A, torch.eye(5, dtype=torch.float64), atol=1e-9)
    singular, eps = torch.diag(torch.tensor([4.0, 0.0])), torch.finfo(torch.float32).eps
    assert inverse_root(singular, 2).diagonal().tolist() == pytest.approx([0.5, (2 * eps * 4) ** -0.5])
    assert not inverse_root(torch.zeros(2, 2), 2).any()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: polar_factor(torch.ones(3)), "at least two axes"),
        (lambda: newton_schulz(torch.eye(2), steps=-1), "steps must not be negative"),
        (lambda: inverse_root(torch.ones(2, 3), 2), "must be square"),
        (lambda: inverse_root(torch.eye(2), 0), "power must be positive"),
        (lambda: muon(0.1, scale="none"), "scale must be"),  # type: ignore[arg-type]
    ],
)
def test_wrong_input_is_refused(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_without_a_past_shampoo_soap_and_exact_muon_take_the_same_step() -> None:
    G, W = {"w": torch.stack([matrix(6, 4), matrix(6, 4, 1)])}, {"w": torch.zeros(2, 6, 4, dtype=torch.float64)}
    expected = -polar_factor(G["w"])
    methods = (shampoo(1.0, eps=0.0, decay=0.0), soap(1.0, eps=0.0, floor=1e-10), muon(1.0, 0.0, steps=None))
    for method, gain in zip(methods, (1.0, 1.0, 1.5**0.5), strict=True):
        moved, _ = method.update(G, method.init(W), W)
        assert torch.allclose(moved["w"], gain * expected, atol=1e-10), method.name


@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_is_that_of_torch_but_for_its_bfloat16(nesterov: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = pytest.importorskip("torch.optim._muon")  # from torch 2.9

    monkeypatch.setattr(theirs, "_zeropower_via_newtonschulz", lambda g, coefficients, steps, eps: newton_schulz(g, steps, coefficients))
    start = torch.stack([matrix(6, 4), matrix(6, 4, 1)])
    lr = torch.tensor([0.02, 0.05], dtype=torch.float64)
    ours, params = muon(lr, 0.9, nesterov=nesterov, weight_decay=0.1), {"w": start.clone()}
    state = ours.init(params)
    for _ in range(50):
        params, state = ours.update({"w": params["w"] ** 3 + params["w"] - 0.3}, state, params)
    for k in range(2):
        p = start[k].clone().requires_grad_()
        reference = torch.optim.Muon([p], lr=float(lr[k]), momentum=0.9, nesterov=nesterov, weight_decay=0.1)
        for _ in range(50):
            p.grad = p.detach() ** 3 + p.detach() - 0.3
            reference.step()
        assert torch.allclose(params["w"][k], p, rtol=0, atol=1e-6)


def test_shampoo_moves_weak_directions_in_single_precision_too() -> None:
    """Singular values from 1 to 10⁻³: squared, the lowest are below the rounding of the highest."""
    U, V = (torch.linalg.qr(matrix(128, 128, seed))[0] for seed in (0, 1))
    G = (U * torch.logspace(0, -3, 128, dtype=torch.float64)) @ V.T
    moved = []
    for dtype in (torch.float64, torch.float32):
        W = {"w": torch.zeros(1, 128, 128, dtype=dtype)}
        method = shampoo(1.0)
        step = -method.update({"w": G[None].to(dtype)}, method.init(W), W)[0]["w"][0].double()
        moved.append((U.T @ step @ V).diagonal())
    assert moved[0].min() > 0.5
    assert (moved[1] / moved[0]).min() > 0.2  # the smallest by what rounding leaves of it, not by nothing
    assert (moved[1] / moved[0])[:80].sub(1).abs().max() < 1e-2


def test_soap_is_the_published_algorithm() -> None:
    """Adam between the bases of the gradients before, step by step; of the first gradient where there are none."""
    generator = torch.Generator().manual_seed(0)
    b1, b2, b, lr, decay, eps = 0.9, 0.8, 0.7, 0.1, 0.2, 1e-3
    W = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    method, params = soap(lr, (b1, b2), shampoo_beta=b, eps=eps, weight_decay=decay), {"w": W[None].clone()}
    state = method.init(params)
    L, R, M, V = torch.zeros(5, 5).double(), torch.zeros(3, 3).double(), torch.zeros(5, 3).double(), torch.zeros(5, 3).double()
    for t in range(1, 13):
        G = W + torch.randn(5, 3, generator=generator, dtype=torch.float64)
        left, right = (G @ G.T, G.T @ G) if t == 1 else (L, R)
        Q, P = torch.linalg.eigh(left)[1], torch.linalg.eigh(right)[1]
        M = b1 * M + (1 - b1) * G
        V = b2 * V + (1 - b2) * (Q.T @ G @ P) ** 2
        N = (Q.T @ M @ P) / (1 - b1**t) / ((V / (1 - b2**t)).sqrt() + eps)
        W = (1 - lr * decay) * W - lr * Q @ N @ P.T
        L, R = b * L + (1 - b) * G @ G.T, b * R + (1 - b) * G.T @ G
        params, state = method.update({"w": G[None]}, state, params)
        assert torch.allclose(params["w"][0], W, atol=1e-9), t


def test_shampoo_accumulates_as_published() -> None:
    """Two steps by the formulas, with the fourth roots from a dense eigendecomposition of each sum."""
    grads = [matrix(3, 2), matrix(3, 2, 1)]
    W, L, R = torch.zeros(3, 2, dtype=torch.float64), 0.1 * torch.eye(3).double(), 0.1 * torch.eye(2).double()
    method, params = shampoo(0.5, eps=0.1), {"w": torch.zeros(1, 3, 2, dtype=torch.float64)}
    state = method.init(params)

    def root(A: torch.Tensor) -> torch.Tensor:
        values, vectors = torch.linalg.eigh(A)
        return vectors @ torch.diag(values**-0.25) @ vectors.T

    for g in grads:
        L, R = L + g @ g.T, R + g.T @ g
        W = W - 0.5 * root(L) @ g @ root(R)
        params, state = method.update({"w": g[None]}, state, params)
    assert torch.allclose(params["w"][0], W, atol=1e-12)
