r"""Correlated noise for running sums: factorizations A = BC of the prefix-sum matrix, and the error that each implies.

A mechanism that releases :math:`Ag + Bz` at a privacy level needs noise z in proportion to the largest column norm of C, and its error at
step t is then the norm of B's row t. Their product compares factorizations at equal privacy.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.linalg import solve_triangular, toeplitz
from scipy.signal import lfilter

from theorylab.core.ranges import whole


def prefix_sums(n: int) -> np.ndarray:
    """A, the lower-triangular matrix of ones, (n, n)."""
    return np.tri(_size(n))


def power_coefficients(n: int, power: float = 0.5) -> np.ndarray:
    r"""First column of :math:`A^p`, (n,): the coefficients of :math:`(1-x)^{-p}`, at p = ½ :math:`\binom{2k}k/4^k`.

    Args:
        n: At least 1.
        power: p, of any sign; −p inverts.

    Raises:
        ValueError: an argument out of its range.

    Example:
        >>> power_coefficients(4).tolist()
        [1.0, 0.5, 0.375, 0.3125]
    """
    if not math.isfinite(power):
        raise ValueError(f"power must be finite, got {power}.")
    k = np.arange(1, _size(n))
    return np.concatenate([[1.0], np.cumprod((k - 1 + power) / k)])


def sqrt_factor(n: int) -> np.ndarray:
    r"""C with :math:`C^2 = A`, lower triangular and constant along diagonals, (n, n): the mechanism B = C.

    Example:
        >>> C = sqrt_factor(3)
        >>> (C @ C).tolist()
        [[1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [1.0, 1.0, 1.0]]

    Source: Fichtenberger, Henzinger and Upadhyay 2023, arXiv:2202.11205, Section 1 (the factorization and its coefficients).
    """
    return _lower(power_coefficients(n))


def banded(n: int, bands: int) -> tuple[np.ndarray, np.ndarray]:
    r"""B and C with BC = A, C the square root cut to its first diagonals, each (n, n).

    Columns of C that are ``bands`` or more apart are orthogonal, so that the visits of a row that takes part no more often add up as
    independent ones do, and noise can be made from the last ``bands`` draws alone. One band is independent noise.

    Args:
        n: Steps, at least 1.
        bands: Diagonals kept, in 1 ... n.

    Raises:
        ValueError: an argument out of its range.

    Example:
        >>> B, C = banded(3, 1)
        >>> C.tolist(), error(B, C) == 3**0.5
        ([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], True)

    Source: Kalinin and Lampert 2024, arXiv:2405.13763 (banded square root); Choquette-Choo et al. 2023, arXiv:2306.08153 (banded matrices
    and participation).
    """
    if not 1 <= bands <= _size(n) or bands != int(bands):
        raise ValueError(f"bands must be a whole number in 1 ... n = {n}, got {bands}.")
    c = np.where(np.arange(n) < bands, power_coefficients(n), 0.0)
    return _lower(np.cumsum(_inverse(c))), _lower(c)


def power_split(n: int, power: float) -> tuple[np.ndarray, np.ndarray]:
    """B = A^(1 − p) and C = A^p, (n, n) each; at p = ½ the square root.

    Args:
        n: At least 1.
        power: p in [0, 1].

    Example:
        >>> B, C = power_split(50, 0.4)
        >>> bool(np.allclose(B @ C, prefix_sums(50)))
        True
    """
    if not 0 <= power <= 1:
        raise ValueError(f"power must lie in [0, 1], got {power}.")
    return _lower(power_coefficients(n, 1 - power)), _lower(power_coefficients(n, power))


def error(B: np.ndarray, C: np.ndarray) -> float:
    r"""Largest standard deviation of a release at unit privacy: :math:`\max_t\|B_{t\cdot}\|\,\max_j\|C_{\cdot j}\|`.

    Args:
        B: (n, m).
        C: (m, n).

    Raises:
        ValueError: shapes that do not chain.

    Example:
        >>> A = prefix_sums(4)
        >>> error(A, np.eye(4)), error(np.eye(4), A)  # noise in the steps; noise in the sums
        (2.0, 2.0)

    Source: Henzinger, Upadhyay and Upadhyay 2023, arXiv:2211.05006, Section 2 (the factorization mechanism and its error).
    """
    _chain(B, C)
    return float(np.sqrt((B**2).sum(1).max()) * np.sqrt((C**2).sum(0).max()))


def mean_error(B: np.ndarray, C: np.ndarray) -> float:
    r"""Root of the mean squared error over steps at unit privacy: :math:`\|B\|_F/\sqrt n\,\max_j\|C_{\cdot j}\|`.

    Example:
        >>> A = prefix_sums(3)
        >>> round(mean_error(A, np.eye(3)), 6)
        1.414214
    """
    _chain(B, C)
    return float(np.sqrt((B**2).sum() / len(B)) * np.sqrt((C**2).sum(0).max()))


def sqrt_error(n: int) -> float:
    r"""`error` of the square root without forming it: :math:`\sum_{k<n}c_k^2`.

    Example:
        >>> round(sqrt_error(1000), 5)
        3.265
    """
    return float((power_coefficients(n) ** 2).sum())


def sqrt_error_asymptotic(n: int) -> float:
    r"""What `sqrt_error` tends to: :math:`(\ln n + \gamma + 4\ln 2)/\pi`, off by O(1/n).

    Example:
        >>> round(sqrt_error_asymptotic(1000), 5)
        3.26508

    Source: Fichtenberger et al. 2023, arXiv:2202.11205, Section 1 (the leading term); the constant is that of the partial sums of the
    complete elliptic integral's series, Landau's constants.
    """
    return (math.log(_size(n)) + np.euler_gamma + 4 * math.log(2)) / math.pi


def independent_error(n: int) -> float:
    """`error` of noise added to every step's term anew, B = A and C = I: √n.

    Raises:
        ValueError: ``n`` is no whole number of at least 1.

    Example:
        >>> independent_error(9)
        3.0
    """
    return math.sqrt(_size(n))


def sensitivity(C: np.ndarray, participations: int, separation: int) -> float:
    r"""By how much a row moves Cg that takes part several times, at least ``separation`` steps apart.

    For C with entries of at least 0 the worst row gives the same gradient each time, so that it is the largest norm of a sum of columns. It
    is the least number that is safe where columns decrease down and along the matrix, as those here do: visits are then as early and as
    close as allowed.

    Args:
        C: (n, n), no negative entry, entries constant or falling along its lower diagonals.
        participations: At least 1.
        separation: Steps between visits, at least 1.

    Raises:
        ValueError: negative or rising entries, or counts below 1.

    Example:
        >>> C = banded(6, 2)[1]
        >>> round(sensitivity(C, 1, 6) ** 2, 4), round(sensitivity(C, 3, 2) ** 2, 4)  # visits two apart do not meet
        (1.25, 3.75)

    Source: Choquette-Choo et al. 2023, arXiv:2211.06530, Section 3; Kalinin and Lampert 2024, arXiv:2405.13763 (which visits are worst).
    """
    if not (C >= 0).all():
        raise ValueError(f"C must have no negative entry, got {float(C.min()):g}: the worst row's signs would differ between visits.")
    down, along = np.tril(np.diff(C, axis=0)), np.tril(C[1:, 1:] - C[:-1, :-1])
    slack = 1e-12 * C.max()  # of rounding in a column that should be constant
    if np.triu(C, 1).any() or (down > slack).any() or (along > slack).any():
        raise ValueError(
            "C must be lower triangular, its entries falling down every column and along every diagonal, or other visits than the earliest "
            "and closest may be the worst. For one visit take the largest norm of a column."
        )
    whole(1, participations=participations, separation=separation)
    visits = np.arange(0, C.shape[1], separation)[:participations]
    return float(np.linalg.norm(C[:, visits].sum(1)))


def noise_weights(C: np.ndarray) -> np.ndarray:
    """C⁻¹, (n, n): the noise of step t is its row t times independent draws, so that running sums receive Bz = AC⁻¹z.

    Example:
        >>> noise_weights(sqrt_factor(3)).tolist()
        [[1.0, 0.0, 0.0], [-0.5, 1.0, 0.0], [-0.125, -0.5, 1.0]]
    """
    return np.asarray(solve_triangular(C, np.eye(len(C)), lower=True))


def _lower(column: np.ndarray) -> np.ndarray:
    return toeplitz(column, np.zeros(len(column)))


def _inverse(column: np.ndarray) -> np.ndarray:
    """First column of the inverse of the lower-triangular Toeplitz matrix with this one."""
    return np.asarray(lfilter([1.0], column, np.eye(1, len(column))[0]))


def _chain(B: np.ndarray, C: np.ndarray) -> None:
    if B.ndim != 2 or C.ndim != 2 or B.shape[1] != C.shape[0]:
        raise ValueError(f"B must be (n, m) and C (m, n), got shapes {B.shape} and {C.shape}.")


def _size(n: int) -> int:
    whole(1, n=n)
    return int(n)
