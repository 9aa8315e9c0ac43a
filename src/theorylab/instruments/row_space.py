"""In which geometry a linear model was trained: the part of its mirrored weights that no gradient could have moved."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def row_space_residual(mirror_map: Callable[[Tensor], Tensor], w: Tensor, x: Tensor, start: Tensor | None = None) -> Tensor:
    r"""Relative distance of what training changed in the mirrored weights from the row space of the data.

    .. math:: \frac{\lVert (I - P)\,\Delta \rVert_2}{\lVert \Delta \rVert_2}, \qquad
        \Delta = \phi(w) - \phi(w_0), \quad P = \text{projection on the rows of } X

    Any loss of the predictions Xw has its gradient in the row space of X, and mirror descent subtracts it from φ(w). So the residual is
    zero, at every step, for the map φ whose geometry the optimizer works in: the identity for gradient descent, the logarithm for
    exponentiated gradient. It is of order η where the geometry comes from a parametrization, such as arcsinh(w/2α²) for w = u² − v², and
    between 0 and 1 for other maps. It is not a function of a `Problem`, for it needs the model to be linear in ``w`` and the rows as they
    enter it: the last layer of a network, on fixed features, is such a model.

    Args:
        mirror_map: φ, entry by entry or of the last axis, of tensors shaped as ``w``.
        w: Weights after training, (..., d).
        x: Rows, (..., n, d), of any rank below d; with as many independent rows as entries every residual is zero.
        start: w₀, of the shape of ``w``; where left out φ(w₀) is taken as 0, as from w₀ = 0 with an odd map.

    Returns:
        (...), in [0, 1]. The cost is one singular value decomposition of each ``x``.

    Raises:
        ValueError: shapes that do not fit, a mirrored weight that is not finite (a logarithm of what is not positive), or nothing moved.

    Example:
        >>> x = torch.tensor([[1.0, 1.0, 0.0]], dtype=torch.float64)
        >>> w = torch.tensor([4.0, 4.0, 1.0], dtype=torch.float64)
        >>> round(row_space_residual(torch.log, w, x).item(), 6)  # log w = (ln 4, ln 4, 0)
        0.0
        >>> round(row_space_residual(torch.Tensor.square, w, x).item(), 3)  # (16, 16, 1)
        0.044

    Source: Gunasekar et al. 2018, arXiv:1802.08246, Theorem 1 and its proof (the optimality condition of mirror descent's limit).
    """
    if x.ndim < 2 or x.shape[-1] != w.shape[-1]:
        raise ValueError(f"x must be rows (..., n, d) with d = {w.shape[-1]}, the last axis of w, got {tuple(x.shape)}.")
    if start is not None and start.shape != w.shape:
        raise ValueError(f"start must have the shape of w, {tuple(w.shape)}, got {tuple(start.shape)}.")
    moved = mirror_map(w) if start is None else mirror_map(w) - mirror_map(start)
    if not bool(moved.isfinite().all()):
        raise ValueError("mirror_map must be finite at w and start, and is not: they may lie outside its domain (a logarithm needs w > 0).")
    size = moved.norm(dim=-1)
    if bool((size == 0).any()):
        raise ValueError("w must differ from its start: nothing moved, so that the residual has no direction.")
    _, s, vh = torch.linalg.svd(x, full_matrices=False)
    independent = s > torch.finfo(x.dtype).eps * max(x.shape[-2:]) * s.amax(-1, keepdim=True)
    basis = vh * independent.unsqueeze(-1)  # zero rows where rows of x repeat each other
    unit = (moved / size.unsqueeze(-1)).unsqueeze(-1)
    return (unit - basis.mT @ (basis @ unit)).squeeze(-1).norm(dim=-1)
