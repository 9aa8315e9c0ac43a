"""What a private run did, as its accountant must know it: the one record that training writes and every accountant reads."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

Sampling = Literal["poisson", "fixed_size", "shuffled", "unamplified"]
Adjacency = Literal["add_remove", "replace_one"]


@dataclass(frozen=True)
class PrivacyLedger:
    r"""A run of noisy sums of clipped rows: how rows were drawn, how much noise was added, how often.

    Every step adds :math:`\mathcal N(0, \sigma^2 C^2 I)` to a sum of rows clipped to norm C. The training loop writes it, from the sampler
    that drew the batches, so that the rate is what happened and not what was meant.

    Args:
        q: Sampling rate, in (0, 1]: the chance of a row to be in a batch, or the batch's share of the rows.
        sigma: Noise multiplier σ ≥ 0: the noise's standard deviation over the clipping norm. Zero records a run without noise, of which
            no accountant says anything.
        steps: Noisy sums released, T ≥ 0.
        sampling: How batches were drawn. ``"poisson"``: every row joins every batch independently with chance q. ``"fixed_size"``: every
            batch is a uniformly random set of qn rows, drawn anew. ``"shuffled"``: an epoch is a permutation cut into disjoint batches, so
            that a row takes part once in 1/q steps, and no chance is claimed. ``"unamplified"``: anything else; a row is taken to be in
            every batch.
        adjacency: What a neighbouring data set is. ``"add_remove"``: one row more or fewer (for ``"shuffled"``, a row whose gradient is
            zeroed); the sum moves by C at most. ``"replace_one"``: another row in its place; it moves by 2C at most.

    Raises:
        ValueError: an argument out of its range, an unknown word, or fixed-size batches under add/remove adjacency, where a row more
            changes the rate of all others.

    Example:
        >>> run = PrivacyLedger(q=0.01, sigma=1.1, steps=1000)
        >>> run.rate, run.participations, run.sensitivity
        (0.01, 1000, 1)
        >>> shuffled = PrivacyLedger(q=0.01, sigma=1.1, steps=1000, sampling="shuffled")
        >>> shuffled.rate, shuffled.participations  # ten epochs
        (1.0, 10)

    Source: Abadi et al. 2016, arXiv:1607.00133, Algorithm 1, for the mechanism.
    """

    q: float
    sigma: float
    steps: int
    sampling: Sampling = "poisson"
    adjacency: Adjacency = "add_remove"

    def __post_init__(self) -> None:
        if not 0 < self.q <= 1:
            raise ValueError(f"q must lie in (0, 1], got {self.q}: it is the chance of a row to be in a batch.")
        if not 0 <= self.sigma < math.inf:
            raise ValueError(f"sigma must be finite and not negative, got {self.sigma}: it is the noise over the clipping norm.")
        if isinstance(self.steps, bool) or not float(self.steps).is_integer() or self.steps < 0:
            raise ValueError(f"steps must be a whole number, at least 0, got {self.steps}.")
        for name, words in (("sampling", get_args(Sampling)), ("adjacency", get_args(Adjacency))):
            if getattr(self, name) not in words:
                raise ValueError(f"{name} must be one of {', '.join(words)}, got {getattr(self, name)!r}.")
        if self.sampling == "fixed_size" and self.adjacency == "add_remove":
            raise ValueError(
                'sampling="fixed_size" needs adjacency="replace_one", got "add_remove": with a row more the chance of every other row '
                "changes as well. Account for replacement, or draw Poisson batches."
            )

    @property
    def rate(self) -> float:
        """The chance of a row that an accountant may count on: q where batches are drawn anew, else 1."""
        return float(self.q) if self.sampling in ("poisson", "fixed_size") else 1.0

    @property
    def participations(self) -> int:
        """Steps in which a row may take part."""
        return math.ceil(self.steps * self.q * (1 - 1e-12)) if self.sampling == "shuffled" else int(self.steps)

    @property
    def sensitivity(self) -> int:
        """By how many clipping norms two neighbouring data sets move a sum in which the row takes part."""
        return 2 if self.adjacency == "replace_one" else 1
