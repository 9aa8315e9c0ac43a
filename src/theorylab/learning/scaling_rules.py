"""How the settings of a run change with its batch size: rules that are to leave the result of training alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Recipe:
    """Settings of a run that a scaling rule may change.

    Args:
        lr: Step size η.
        batch_size: Rows of a minibatch B.
        steps: Optimizer steps T.
        betas: Memories (β₁, β₂) of an adaptive optimizer; (β₁,) or () where it has fewer.
        eps: ε of an adaptive optimizer.

    Raises:
        ValueError: a value out of range.
    """

    lr: float
    batch_size: int
    steps: int
    betas: tuple[float, ...] = ()
    eps: float = 0.0

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.steps < 1:
            raise ValueError(f"batch_size and steps must be at least 1, got {self.batch_size} and {self.steps}.")
        if any(not 0 <= b < 1 for b in self.betas):
            raise ValueError(f"betas must lie in [0, 1), got {self.betas}.")
        if not self.lr >= 0 or not self.eps >= 0:
            raise ValueError(f"lr and eps must not be negative, got {self.lr} and {self.eps}.")


Rule = Callable[[Recipe, int], Recipe]
"""``rule(recipe, k)``: the recipe at k times the batch size, over as many rows."""


def same_settings(recipe: Recipe, k: int) -> Recipe:
    r"""What a rule is compared with: (B, T) → (kB, T/k), and everything else as it was.

    Raises:
        ValueError: ``k`` < 1, or it does not divide the number of steps.

    Example:
        >>> same_settings(Recipe(lr=0.1, batch_size=4, steps=800), 16)
        Recipe(lr=0.1, batch_size=64, steps=50, betas=(), eps=0.0)
    """
    if k < 1 or recipe.steps % k:
        raise ValueError(f"k must be at least 1 and divide the number of steps, {recipe.steps}, got {k}.")
    return replace(recipe, batch_size=k * recipe.batch_size, steps=recipe.steps // k)


def linear_rule(recipe: Recipe, k: int) -> Recipe:
    r"""Of SGD: :math:`(\eta, B, T) \to (k\eta, kB, T/k)`.

    A step η along the gradient of B rows has covariance η²Σ/B. k of them move by kη and have covariance kη²Σ/B, as one step kη along the
    gradient of kB rows has, if the gradient hardly changes meanwhile. Memories are left alone.

    Raises:
        ValueError: as `same_settings`.

    Example:
        >>> linear_rule(Recipe(lr=0.1, batch_size=4, steps=800), 16).lr
        1.6

    Source: Goyal et al. 2017, arXiv:1706.02677, Section 2.1.
    """
    return replace(same_settings(recipe, k), lr=k * recipe.lr)


def square_root_rule(recipe: Recipe, k: int) -> Recipe:
    r"""Of Adam and RMSProp: the step grows as √k, and memories are as long in rows as before.

    .. math:: B \to kB, \quad \eta \to \sqrt k\,\eta, \quad 1-\beta_i \to k(1-\beta_i), \quad \epsilon \to \epsilon/\sqrt k, \quad T \to T/k

    Where noise dominates the gradient, an adaptive step divides by the noise's standard deviation σ/√B. So the step's length does not
    depend on B, and its direction carries √B times more signal: √k larger steps, k times fewer, go equally far, with equal noise.

    Args:
        recipe: The settings at the smaller batch.
        k: By what the batch grows.

    Raises:
        ValueError: as `same_settings`; or k(1 − β) ≥ 1, which leaves no memory that could be as long in rows as before.

    Example:
        >>> root = square_root_rule(Recipe(lr=0.1, batch_size=4, steps=800, betas=(0.99, 0.999), eps=1e-8), 16)
        >>> root.lr, [round(b, 4) for b in root.betas], root.eps
        (0.4, [0.84, 0.984], 2.5e-09)

    Source: Malladi et al. 2022, arXiv:2205.10287, Section 5 (the square root scaling rules of RMSprop and Adam).
    """
    for i, beta in enumerate(recipe.betas, 1):
        if k * (1 - beta) >= 1:
            raise ValueError(
                f"k(1 − β) must be below 1 for the square root rule, got {k}·(1 − {beta:g}) = {k * (1 - beta):g} for β{i}: "
                "scale by less, or start from a longer memory."
            )
    betas = tuple(1 - k * (1 - beta) for beta in recipe.betas)
    return replace(same_settings(recipe, k), lr=math.sqrt(k) * recipe.lr, betas=betas, eps=recipe.eps / math.sqrt(k))
