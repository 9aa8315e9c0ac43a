"""How far apart two arrays are, by the size of one of them."""

from __future__ import annotations

from torch import Tensor


def relative_distance(found: Tensor, truth: Tensor) -> float:
    """‖found − truth‖ / ‖truth‖ over all entries (Frobenius); not finite where the truth is zero.

    Example:
        >>> import torch
        >>> relative_distance(torch.tensor([3.0, 5.0]), torch.tensor([3.0, 4.0]))
        0.2...
    """
    return float((found - truth).norm() / truth.norm())
