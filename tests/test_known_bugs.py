"""Defects of our dependencies that the code works around."""

from __future__ import annotations

from pathlib import Path

import torch

import theorylab


def test_factorizations_that_we_use_instead_of_batched_lu_are_right() -> None:
    """Batched LU with two threads returns garbage on some builds; Cholesky, QR and eigh must not."""
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(8, 200, 200, dtype=torch.float64, generator=generator)
    S = A @ A.mT / 200 + torch.eye(200, dtype=torch.float64)
    b = torch.ones(8, 200, 1, dtype=torch.float64)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert (S @ torch.cholesky_solve(b, torch.linalg.cholesky(S)) - b).abs().max() < 1e-10
        Q, R = torch.linalg.qr(A)
        assert (Q @ R - A).abs().max() < 1e-10
        values, vectors = torch.linalg.eigh(S)
        assert (vectors @ (values[:, :, None] * vectors.mT) - S).abs().max() < 1e-10
    finally:
        torch.set_num_threads(threads)


def test_batched_lu_is_not_used() -> None:
    root = Path(str(theorylab.__file__)).parent
    banned = [f"torch.linalg.{name}(" for name in ("solve", "inv", "slogdet", "det", "lu")] + ["torch.inverse(", "torch.logdet("]
    users = [
        f"{path.relative_to(root)}: {word}" for path in root.rglob("*.py") for word in banned if word in path.read_text(encoding="utf-8")
    ]
    assert not users, users
