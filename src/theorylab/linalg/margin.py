"""The largest margin that a linear classifier can have, in the geometry of a norm: linear and quadratic programs."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.optimize import linprog, nnls
from torch import Tensor


def max_margin(rows: Tensor, p: float) -> tuple[float, Tensor]:
    r"""The largest margin over classifiers of unit p-norm, and one that has it.

    .. math:: \gamma_p = \max_{\|w\|_p \le 1} \min_i \langle w, z_i\rangle

    The rows are :math:`z_i = y_i x_i` for labels ±1, and :math:`(e_{y_i} - e_j) \otimes x_i`, one for every wrong class j, for several
    classes. p = 1 and p = ∞ are linear programs. p = 2 is the hard-margin support vector machine without intercept, solved as the
    least-distance problem min ‖v‖₂ subject to :math:`\langle v, z_i\rangle \ge 1` by non-negative least squares, an active-set method
    that is exact.

    Args:
        rows: z, (n, d).
        p: 1, 2 or ``math.inf``.

    Returns:
        The margin, in units of ``rows``, and w (d,) with ‖w‖_p = 1, in the dtype of ``rows``. Where no classifier has a positive margin,
        that is where no hyperplane through 0 separates the data, 0 and zeros.

    Raises:
        ValueError: another p, or rows that are not (n, d), none, or not finite.

    Example:
        >>> [round(max_margin(torch.tensor([[3.0, 4.0]]), p)[0], 9) for p in (1, 2, math.inf)]
        [4.0, 5.0, 7.0]

    Source: Gunasekar et al. 2018, Theorem 5 (the limit of steepest descent), arXiv:1802.08246; Lawson and Hanson 1974, "Solving Least
    Squares Problems", Chapter 23 (least distance by non-negative least squares).
    """
    if p not in (1, 2, math.inf):
        raise ValueError(f"p must be 1, 2 or math.inf, got {p}.")
    if rows.ndim != 2 or rows.numel() == 0 or not bool(rows.isfinite().all()):
        raise ValueError(f"rows must be (n, d), not empty, and finite, got {tuple(rows.shape)}.")
    z = rows.double().cpu().numpy()
    n, d = z.shape
    scale = float(np.abs(z).max())
    if scale == 0:
        return 0.0, torch.zeros_like(rows[0])
    z = z[np.lexsort(z.T)] / scale  # in one order: where a solver stops may depend on it
    if p == 2:
        w = _least_distance(z)
    elif p == 1:  # w = u − v with u, v ≥ 0 and Σ(u + v) ≤ 1
        constraints = np.block([[-z, z, np.ones((n, 1))], [np.ones((1, 2 * d)), np.zeros((1, 1))]])
        bounds = [(0.0, None)] * (2 * d) + [(None, None)]
        solution = _solved(linprog([0.0] * (2 * d) + [-1.0], A_ub=constraints, b_ub=[0.0] * n + [1.0], bounds=bounds))
        w = solution[:d] - solution[d : 2 * d]
    else:
        bounds = [(-1.0, 1.0)] * d + [(None, None)]
        w = _solved(linprog([0.0] * d + [-1.0], A_ub=np.hstack([-z, np.ones((n, 1))]), b_ub=[0.0] * n, bounds=bounds))[:d]
    size = float(np.linalg.norm(w, p))
    margin = float((z @ w).min()) / size if size > 0 else 0.0
    if margin <= 1e-9:
        return 0.0, torch.zeros_like(rows[0])
    return margin * scale, torch.from_numpy(w / size).to(rows)


def _solved(result: object) -> np.ndarray:
    x = getattr(result, "x", None)
    if x is None:  # the programs are feasible and bounded, so this is the solver's own failure
        raise RuntimeError(f"the linear program was not solved: {getattr(result, 'message', result)}")
    return np.asarray(x)


def _least_distance(rows: np.ndarray) -> np.ndarray:
    """Min ‖v‖₂ with rows @ v ≥ 1, or 0 where no v satisfies it (Lawson and Hanson 1974, Chapter 23)."""
    target = np.zeros(rows.shape[1] + 1)
    target[-1] = 1.0
    matrix = np.vstack([rows.T, np.ones(len(rows))])
    dual, distance = nnls(matrix, target)
    if distance < 1e-9:
        return np.zeros(rows.shape[1])
    residual = matrix @ dual - target
    return -residual[:-1] / residual[-1]
