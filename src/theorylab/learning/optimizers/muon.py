"""Muon: momentum whose matrices are orthogonalized, steepest descent in the spectral norm."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from theorylab.core.ranges import below_one, nonnegative, whole
from theorylab.learning.matrix_steps import for_matrices
from theorylab.learning.optimizers.base import Hyper, Optimizer, selectable, spread
from theorylab.linalg.orthogonalize import newton_schulz, polar_factor


@selectable
def muon(
    lr: Hyper,
    momentum: Hyper = 0.95,
    *,
    nesterov: bool = True,
    weight_decay: Hyper = 0.0,
    steps: int | None = 5,
    scale: Literal["original", "match_rms_adamw"] = "original",
) -> Optimizer:
    r"""Momentum, orthogonalized: each matrix moves by :math:`\eta\,c\,O`, O near the polar factor :math:`UV^\top` of its momentum.

    .. math:: M \leftarrow \mu M + (1-\mu) G, \qquad O = \mathrm{orthogonalize}(\mu M + (1-\mu) G), \qquad
        W \leftarrow (1 - \eta\lambda) W - \eta\, c\, O

    Vectors and scalars are left to Adam with the same step size. Equal to `torch.optim.Muon` with the same arguments (nothing decays
    unless asked to, as that one's does), which orthogonalizes in bfloat16.

    Args:
        lr: Step size η.
        momentum: μ in [0, 1).
        nesterov: Look ahead, as written; else O is made of M itself.
        weight_decay: λ, decoupled.
        steps: Newton-Schulz iterations; None takes the exact polar factor.
        scale: c: "original" √max(1, m/n), or "match_rms_adamw" 0.2 √max(m, n).

    Raises:
        ValueError: an unknown ``scale``, or another argument out of its range.

    Example:
        >>> exact = muon(lr=1.0, momentum=0.0, steps=None)
        >>> W = {"W": torch.zeros(1, 2, 2)}
        >>> exact.update({"W": torch.tensor([[[3.0, 0.0], [0.0, -2.0]]])}, exact.init(W), W)[0]["W"].round(decimals=4).tolist()
        [[[-1.0, 0.0], [0.0, 1.0]]]

    Source: Jordan 2024, Muon: An optimizer for hidden layers in neural networks; the scales as in Liu et al. 2025, arXiv:2502.16982,
    Section 2.
    """
    if scale not in ("original", "match_rms_adamw"):
        raise ValueError(f'scale must be "original" or "match_rms_adamw", got {scale!r}.')
    nonnegative(lr=lr, weight_decay=weight_decay)
    if steps is not None:
        whole(0, steps=steps)
    below_one(momentum=momentum)

    def factor(p: Tensor) -> float:
        m, n = p.shape[-2:]
        return math.sqrt(max(1.0, m / n)) if scale == "original" else 0.2 * math.sqrt(max(m, n))

    def step(g: Tensor, buffer: Any, p: Tensor) -> tuple[Tensor, Any]:
        mu, eta = spread(momentum, p), spread(lr, p)
        buffer = mu * buffer + (1 - mu) * g
        direction = mu * buffer + (1 - mu) * g if nesterov else buffer
        orthogonal = polar_factor(direction) if steps is None else newton_schulz(direction, steps)
        return p * (1 - eta * spread(weight_decay, p)) - eta * factor(p) * orthogonal, buffer

    return for_matrices("muon", lr, torch.zeros_like, step)
