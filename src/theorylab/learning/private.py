"""The mechanism of private training: a sum of clipped rows plus Gaussian noise, its clipping norm fixed or following a quantile."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from theorylab.core.seeds import derived_seed
from theorylab.learning.optimizers.base import Optimizer


@dataclass(frozen=True)
class AdaptiveClip:
    r"""A clipping norm that follows a quantile of the gradients' norms, privately.

    Every step also releases the noisy share b of rows within the norm, and :math:`C \leftarrow C\,e^{-\eta(b - \gamma)}`. The count is of
    sensitivity ½ once ½ is taken off every row, so that with noise :math:`\sigma_b` on it and :math:`\sigma_\Delta =
    (\sigma^{-2} - (2\sigma_b)^{-2})^{-1/2}` on the sum both together are as private as noise σ on the sum alone.

    Args:
        start: The first norm, positive.
        quantile: γ in (0, 1): the share of rows that should not be clipped.
        rate: η, positive.
        count_noise: :math:`\sigma_b` as a share of the expected batch size; positive.

    Raises:
        ValueError: an argument out of its range.

    Source: Andrew et al. 2021, arXiv:1905.03871, Algorithm 1 and Theorem 1.
    """

    start: float = 1.0
    quantile: float = 0.5
    rate: float = 0.2
    count_noise: float = 0.05

    def __post_init__(self) -> None:
        for name in ("start", "rate", "count_noise"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)}.")
        if not 0 < self.quantile < 1:
            raise ValueError(f"quantile must lie in (0, 1), got {self.quantile}.")

    def split(self, sigma: float, expected_size: float) -> tuple[float, float]:
        """Noise multipliers of the sum and of the count, which together are as private as ``sigma``.

        Raises:
            ValueError: the count has so little noise that it alone tells more than ``sigma`` allows.
        """
        count = self.count_noise * expected_size
        if sigma == 0:
            return 0.0, 0.0
        if 2 * count <= sigma:
            raise ValueError(
                f"count_noise must be above {sigma / (2 * expected_size):.3g} (half of sigma over the expected batch size), got "
                f"{self.count_noise}: with less the count alone tells more than sigma = {sigma} allows."
            )
        return (sigma**-2 - (2 * count) ** -2) ** -0.5, count

    def next(self, clip: float, within: Tensor | float, rows: int, expected_size: float, noise: float) -> float:
        """The next norm, given how many of the batch's rows were within it, and normal noise of the count's deviation."""
        share = (float(within) - rows / 2 + noise) / expected_size + 0.5
        return clip * math.exp(-self.rate * (share - self.quantile))


def check_mechanism(clip: float | AdaptiveClip, sigma: float, steps: int, optimizer: Optimizer) -> None:
    """Refuse what a mechanism of noisy sums cannot be run with.

    Raises:
        ValueError: a clipping norm, noise multiplier or number of steps out of its range, or an optimizer that asks for two gradients a
            step, of which the ledger would count one.
    """
    if not isinstance(clip, AdaptiveClip) and not 0 < clip < math.inf:
        raise ValueError(f"clip must be positive and finite, or an AdaptiveClip, got {clip}.")
    if not 0 <= sigma < math.inf:
        raise ValueError(f"sigma must be finite and not negative, got {sigma}: it is the noise over the clipping norm.")
    if steps < 0:
        raise ValueError(f"steps must be at least 0, got {steps}.")
    if optimizer.probe is not None:
        raise ValueError(f"optimizer {optimizer.name} takes two gradients of the same rows a step; a private step releases one noisy sum.")


def noise_generator(seed: int) -> torch.Generator:
    """The generator of a run's noise: of another stream than that of the rows' sampling, should both be given one seed."""
    return torch.Generator().manual_seed(derived_seed(seed, "noise"))


def gaussian(size: int, generator: torch.Generator, like: Tensor) -> Tensor:
    """Standard normal numbers (size,) in the dtype and on the device of ``like``; drawn in float64, so that dtypes see the same."""
    return torch.randn(size, generator=generator, dtype=torch.float64, device="cpu").to(like)
