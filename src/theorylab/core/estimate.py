"""What a stochastic measurement returns: a value, its standard error or interval, and how many samples made it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # numpy is imported where it is used: the syllabus lists claims without paying for it
    import numpy as np

LEVEL = 0.99
"""Two-sided confidence of every interval: at 95 %, a ledger of 200 claims would raise ten false alarms."""


def as_samples(samples: Any, *, name: str = "samples") -> np.ndarray:
    """A float64 vector from a tensor, array or sequence; refuses non-finite entries.

    Raises:
        ValueError: nothing in it, or an entry is NaN or infinite.
    """
    import numpy as np

    if hasattr(samples, "detach"):  # a tensor, without importing torch here
        samples = samples.detach().cpu().double().numpy()
    x = np.asarray(samples, dtype=np.float64).reshape(-1)
    if x.size == 0:
        raise ValueError(f"{name} must hold at least one number, got none.")
    bad = np.flatnonzero(~np.isfinite(x))
    if bad.size:
        raise ValueError(
            f"{name} must be finite, got {x[bad[0]]} at position {bad[0]} ({bad.size} of {x.size} are not finite). "
            "A measurement that diverged has no value: find out why, do not average over it."
        )
    return x


def mean_interval(samples: Sequence[float] | np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    r"""Confidence interval for the mean that stays honest for skewed and heavy-tailed samples.

    The hull of Student's interval :math:`\bar x \pm t\, s/\sqrt n` and of Hall's, which corrects it for skewness by a monotone cubic
    transformation. Where one sample stands out more than a normal sample would allow in one case of a thousand (Grubbs), the mean is
    ruled by a tail that the sample does not describe, and the interval is widened to hold every sample as well.

    Args:
        samples: At least two finite numbers.
        level: Two-sided confidence, in (0, 1).

    Raises:
        ValueError: fewer than two samples, a non-finite one, or a level outside (0, 1).

    Example:
        >>> low, high = mean_interval([1.0, 2.0, 3.0, 4.0])
        >>> round(low, 2), round(high, 2)
        (-1.27, 6.27)

    Source: Hall 1992, doi:10.1111/j.2517-6161.1992.tb01876.x, Section 2 (the cubic transformation); Grubbs 1950,
    doi:10.1214/aoms/1177729885.
    """
    import numpy as np
    from scipy.special import stdtrit

    x = as_samples(samples)
    n = x.size
    if n < 2:
        raise ValueError(f"samples must hold at least 2 numbers to give an interval, got {n}: run more seeds.")
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1), got {level}.")
    mean, spread = float(x.mean()), float(x.std(ddof=1))
    if spread == 0.0:
        return mean, mean
    t = float(stdtrit(n - 1, 0.5 + level / 2))
    stderr = spread / math.sqrt(n)
    low, high = mean - t * stderr, mean + t * stderr

    skewness = float(np.mean(((x - mean) / spread) ** 3))
    a = skewness / math.sqrt(n)
    if abs(a) > 1e-8:

        def untransform(z: float) -> float:
            return 3 / a * (math.copysign(abs(1 + a * (z - a / 6)) ** (1 / 3), 1 + a * (z - a / 6)) - 1)

        low, high = min(low, mean - untransform(t) * stderr), max(high, mean - untransform(-t) * stderr)

    if n > 2:
        q = float(stdtrit(n - 2, 1 - 1e-3 / (2 * n))) ** 2
        if np.abs(x - mean).max() / spread > (n - 1) / math.sqrt(n) * math.sqrt(q / (n - 2 + q)):
            low, high = min(low, float(x.min())), max(high, float(x.max()))
    return low, high


@dataclass(frozen=True)
class Estimate:
    """A measured number with its uncertainty.

    Args:
        value: The estimate itself.
        stderr: Its standard error, in the units of ``value``; 0 for an exact result.
        n: Independent samples behind it.

    Raises:
        ValueError: a non-finite value, or a negative or non-finite standard error.

    Example:
        >>> Estimate.over([1.0, 2.0, 3.0])
        Estimate(value=2.0, stderr=0.5773502691896258, n=3)
    """

    value: float
    stderr: float
    n: int

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise ValueError(f"Estimate.value must be finite, got {self.value}.")
        if not (math.isfinite(self.stderr) and self.stderr >= 0):
            raise ValueError(f"Estimate.stderr must be finite and not negative, got {self.stderr}.")
        if self.n < 1:
            raise ValueError(f"Estimate.n must be at least 1, got {self.n}.")

    @classmethod
    def over(cls, samples: Any) -> Estimate:
        """Mean and standard error of independent samples (at least two)."""
        x = as_samples(samples)
        if x.size < 2:
            raise ValueError(f"samples must hold at least 2 numbers to give a standard error, got {x.size}: draw more.")
        return cls(float(x.mean()), float(x.std(ddof=1)) / math.sqrt(x.size), x.size)

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """Student's interval with n − 1 degrees of freedom; a point where ``stderr`` is 0."""
        if not 0 < level < 1:
            raise ValueError(f"level must lie in (0, 1), got {level}.")
        if self.stderr == 0.0:
            return self.value, self.value
        if self.n < 2:
            raise ValueError("an interval needs n of at least 2, got 1.")
        from scipy.special import stdtrit

        half = float(stdtrit(self.n - 1, 0.5 + level / 2)) * self.stderr
        return self.value - half, self.value + half

    def __str__(self) -> str:
        return f"{self.value:.6g} ± {self.stderr:.2g} (n={self.n})"


@dataclass(frozen=True)
class Interval:
    """A measured number with an interval that no mean and spread describe: exact limits of a proportion, or all that is known of it.

    Args:
        value: The estimate itself.
        low: Lower end, at most ``value``.
        high: Upper end, at least ``value``.
        n: Independent samples behind it.

    Raises:
        ValueError: a non-finite number, a value outside of its interval, or n below 1.

    Example:
        >>> Interval(0.0, low=0.0, high=0.05, n=100)  # none of a hundred
        Interval(value=0.0, low=0.0, high=0.05, n=100)
    """

    value: float
    low: float
    high: float
    n: int

    def __post_init__(self) -> None:
        for name in ("value", "low", "high"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"Interval.{name} must be finite, got {getattr(self, name)}.")
        if not self.low <= self.value <= self.high:
            raise ValueError(f"Interval needs low ≤ value ≤ high, got {self.low}, {self.value} and {self.high}.")
        if self.n < 1:
            raise ValueError(f"Interval.n must be at least 1, got {self.n}.")
