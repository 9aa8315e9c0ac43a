"""Matrices without their singular values: the polar factor, Muon's quick approximation of it, and roots of inverses."""

from __future__ import annotations

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic that Muon iterates: Jordan 2024, Muon: An optimizer for hidden layers in neural networks."""


def polar_factor(matrix: Tensor) -> Tensor:
    r"""The orthogonal factor :math:`UV^\top` of :math:`G = USV^\top`: the nearest matrix to G whose singular values are one.

    Args:
        matrix: G, (..., m, n); of full rank, or the factor is not unique on the null space and is taken as zero there.

    Raises:
        ValueError: fewer than two axes.

    Example:
        >>> polar_factor(torch.tensor([[3.0, 0.0], [0.0, -2.0]])).round(decimals=4).tolist()
        [[1.0, 0.0], [0.0, -1.0]]

    Source: Higham 2008, Functions of Matrices, Section 8.1, doi:10.1137/1.9780898717778.
    """
    _check(matrix)
    U, S, Vh = torch.linalg.svd(matrix, full_matrices=False)
    kept = S.amax(-1, keepdim=True) * max(matrix.shape[-2:]) * torch.finfo(matrix.dtype).eps < S
    return (U * kept[..., None, :]) @ Vh


def newton_schulz(matrix: Tensor, steps: int = 5, coefficients: tuple[float, float, float] = COEFFICIENTS) -> Tensor:
    r"""Muon's orthogonalization: an odd quintic applied to all singular values at once, by products of matrices alone.

    G is scaled to Frobenius norm one, and :math:`X \leftarrow aX + b\,XX^\top X + c\,(XX^\top)^2X` sends each singular value s to
    :math:`as + bs^3 + cs^5`. With the default coefficients it does not converge to one: it stays in a band around it.

    Args:
        matrix: G, (..., m, n). A zero matrix stays zero.
        steps: Iterations, at least 0.
        coefficients: (a, b, c).

    Raises:
        ValueError: fewer than two axes, or negative ``steps``.

    Example:
        >>> orthogonal = newton_schulz(torch.diag(torch.tensor([5.0, 1.0])))
        >>> bool((orthogonal.diagonal() > 0.68).all() and (orthogonal.diagonal() < 1.21).all())
        True

    Source: Jordan 2024, Muon: An optimizer for hidden layers in neural networks, https://kellerjordan.github.io/posts/muon/.
    """
    _check(matrix)
    if steps < 0:
        raise ValueError(f"steps must not be negative, got {steps}.")
    a, b, c = coefficients
    wide = matrix.shape[-2] <= matrix.shape[-1]
    X = matrix if wide else matrix.mT  # the Gram matrix is then the smaller of the two
    X = X / torch.linalg.matrix_norm(X, keepdim=True).clamp_min(1e-7)
    for _ in range(steps):
        gram = X @ X.mT
        X = a * X + (b * gram + c * gram @ gram) @ X
    return X if wide else X.mT


def inverse_root(matrix: Tensor, power: float) -> Tensor:
    r"""The root :math:`A^{-1/p}` of a positive semidefinite matrix, by eigenvalues.

    Eigenvalues below n·ε of the largest, ε the precision, are lost in its rounding: they are raised to that, so that a direction which
    the matrix hardly has is neither blown up nor left out. The root of a zero matrix is zero.

    Args:
        matrix: A, (..., n, n), symmetric.
        power: p > 0.

    Raises:
        ValueError: fewer than two axes, not square, or ``power`` not positive.

    Example:
        >>> inverse_root(torch.diag(torch.tensor([16.0, 81.0])), 4).diagonal().tolist()
        [0.5, 0.3333333432674408]

    Source: Higham 2008, Functions of Matrices, Section 7, doi:10.1137/1.9780898717778.
    """
    _check(matrix)
    if matrix.shape[-1] != matrix.shape[-2]:
        raise ValueError(f"matrix must be square, got shape {tuple(matrix.shape)}.")
    if power <= 0:
        raise ValueError(f"power must be positive, got {power}.")
    values, vectors = torch.linalg.eigh(matrix)
    largest = values.amax(-1, keepdim=True)
    raised = torch.maximum(values, largest * (matrix.shape[-1] * torch.finfo(matrix.dtype).eps))
    roots = torch.where(raised > 0, raised.clamp_min(torch.finfo(matrix.dtype).tiny) ** (-1 / power), 0.0)
    return (vectors * roots[..., None, :]) @ vectors.mT


def _check(matrix: Tensor) -> None:
    if matrix.ndim < 2:
        raise ValueError(f"matrix must have at least two axes, got shape {tuple(matrix.shape)}.")
