"""The largest margin that a linear classifier can have, in the geometry of a norm: linear and quadratic programs."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy import sparse
from scipy.optimize import linprog, nnls
from torch import Tensor

GAP = 1e-2
"""Share of the margin, at most, between the classifier found and the bound that its dual gives; they mostly agree to nine digits."""
EPS = float(np.finfo(np.float64).eps)
ROUNDING = 64 * EPS
"""Length up to which a combination of rows with entries up to one may be 0, a unit of weight."""


def max_margin(rows: Tensor, p: float) -> tuple[float, Tensor]:
    r"""The largest margin over classifiers of unit p-norm, and one that has it.

    .. math:: \gamma_p = \max_{\|w\|_p \le 1} \min_i \langle w, z_i\rangle

    The rows are :math:`z_i = y_i x_i` for labels ±1, and :math:`(e_{y_i} - e_j) \otimes x_i`, one for every wrong class j, for several
    classes. With :math:`v = w/\gamma_p` it is the least-distance problem min ‖v‖_p subject to :math:`\langle v, z_i\rangle \ge 1`: a
    linear program for p = 1 and p = ∞; for p = 2 the hard-margin support vector machine without intercept, solved by non-negative least
    squares, an active-set method. What comes back is verified: the classifier has its margin, and a convex combination q of the rows shows
    by weak duality, :math:`\gamma_p \le \|\sum_i q_i z_i\|_{p^*}`, that none has a larger one, or none a positive one.

    Args:
        rows: z, (n, d). Their sizes may differ by many orders. Margins down to 1e-12 of a row are found for p = 2, to 1e-9 for p = 1 and ∞
            (of a row whose features are scaled alike).
        p: 1, 2 or ``math.inf``.

    Returns:
        The margin, in units of ``rows``, and w (d,) with ‖w‖_p = 1, in the dtype of ``rows``, float64 for integers. Where no classifier has
        a positive margin beyond rounding, that is where no hyperplane through 0 separates the data, 0 and zeros.

    Raises:
        ValueError: another p, or rows that are not (n, d), none, or not finite.
        ArithmeticError: the margin is too small against the rows to be told from 0, or from a larger one, in float64.

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
    rows = rows if rows.is_floating_point() else rows.double()
    z = rows.double().cpu().numpy()
    d = z.shape[1]
    z = z[np.lexsort(z.T)]  # in one order: where a solver stops may depend on it
    size = np.abs(z).max(1)
    unit = float(size.min())
    if unit == 0:  # a row of zeros has margin 0 for every w
        return 0.0, torch.zeros_like(rows[0])
    # rows of size one whose margins must be at least ``least``, so that a long row does not hide a short one
    z, least = z / size[:, None], unit / size
    dual = {1: math.inf, 2: 2, math.inf: 1}[p]
    lowest, highest = 0.0, math.inf
    for norm in dict.fromkeys((p, 2)):
        found = _nearest(z, least) if norm == 2 else _program(z, least, norm)
        if found is None:  # there is none, says the program; the nearest point of the hull must confirm it
            continue
        v, q = found
        bound = float(np.linalg.norm(q @ z, dual))  # no classifier has a larger margin
        separates = bool((z @ v > d * EPS * (np.abs(z) @ np.abs(v))).all())
        length = float(np.linalg.norm(v, p))
        margin = float((z @ v / least).min()) / length if separates else 0.0
        if separates and margin >= (1 - GAP) * bound:
            return margin * unit, torch.from_numpy(v / length).to(rows)
        if not separates and _is_zero(q, z):
            return 0.0, torch.zeros_like(rows[0])
        lowest, highest = max(lowest, margin), min(highest, bound)
    raise ArithmeticError(
        f"rows must have a margin for p = {p} that float64 can tell from 0 and from a larger one, got one between {lowest * unit:.3g} and "
        f"{highest * unit:.3g} for entries up to {float(size.max()):.3g}. Center the features, and scale them to one size."
    )


def _program(z: np.ndarray, least: np.ndarray, p: float) -> tuple[np.ndarray, np.ndarray] | None:
    """Min ‖v‖_p with z @ v ≥ least, for p = 1 or ∞, and the dual variables q, with q @ least = 1; None where the solver finds no such v."""
    n, d = z.shape
    # the solver's tolerances are absolute: v = column · u, with columns and then rows of size one again
    top = np.abs(z).max(0)
    column = 1 / np.where(top > 0, top, 1.0)
    z = z * column
    row = np.abs(z).max(1)
    z, cost = z / row[:, None], column / column.max()
    if p == 1:  # u = a − b with a, b ≥ 0
        result = linprog(np.concatenate([cost, cost]), A_ub=np.hstack([-z, z]), b_ub=-least / row)
    else:  # least t with |v| ≤ t
        ones, scaled = np.ones((d, 1)), sparse.diags(cost)
        constraints = sparse.bmat([[sparse.csr_matrix(-z), None], [scaled, -ones], [-scaled, -ones]], format="csr")
        limits = np.concatenate([-least / row, np.zeros(2 * d)])
        result = linprog([0.0] * d + [1.0], A_ub=constraints, b_ub=limits, bounds=[(None, None)] * d + [(0.0, None)])
    if not result.success:
        return None
    u = result.x[:d] - result.x[d:] if p == 1 else result.x[:d]
    q = np.maximum(-result.ineqlin.marginals[:n], 0.0) / row
    return column * u, q / (q @ least)


def _is_zero(q: np.ndarray, z: np.ndarray) -> bool:
    return float(np.linalg.norm(q @ z)) <= ROUNDING * float(q.sum())


def _nearest(z: np.ndarray, least: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Min ‖v‖₂ with z @ v ≥ least, and the dual variables q ≥ 0, with q @ least = 1 (Lawson and Hanson 1974, Chapter 23).

    The nearest point to 0 of the hull of z/least is q @ z, along v. Where that is 0 there is no such v.
    """
    target = np.zeros(z.shape[1] + 1)
    target[-1] = 1.0

    def nearest(unit: float) -> np.ndarray:
        q, _ = nnls(np.vstack([z.T, unit * least]), target)
        return q / (q @ least)

    def distance(q: np.ndarray) -> float:
        return float(np.linalg.norm(q @ z))

    q, unit = nearest(1.0), 1.0
    # the same problem in any unit of length, but without digits where the distance is far from one
    while distance(q) < unit / 2 and not _is_zero(q, z):
        unit = distance(q)
        closer = nearest(unit)
        if distance(closer) > distance(q):
            break
        q = closer
    # v is along q @ z, whose terms cancel; the rows that it rests on say it to more digits
    on, v = q > 0, np.zeros(z.shape[1])
    for _ in range(2):
        v = v + np.linalg.lstsq(z[on], least[on] - z[on] @ v, rcond=None)[0]
    return v, q
