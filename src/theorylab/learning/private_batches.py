"""Which rows a private step sees, and what of that an accountant may count on: the sampler itself says."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from theorylab.core.arguments import given
from theorylab.core.privacy_ledger import Adjacency, PrivacyLedger, Sampling
from theorylab.learning.minibatches import DataOrder


class PrivateBatches(Iterator[Tensor]):
    """An endless iterator of row numbers that knows by which chance a row is in a batch.

    Made by `poisson_batches`, `fixed_size_batches`, `shuffled_batches`, `cyclic_batches` and `unamplified_batches`, not by hand.

    Attributes:
        n: Rows there are.
        q: Chance of a row to be in a batch; qn is the expected size of one.
        sampling: How batches are drawn, as in `PrivacyLedger`.
        adjacency: What neighbouring data sets the drawing is accounted for.
        drawn: Batches drawn so far.
        separation: A row is in at most one of so many batches that follow each other, whichever they are.
    """

    def __init__(self, n: int, q: float, sampling: Sampling, adjacency: Adjacency, draw: Callable[[], Tensor], separation: int = 1) -> None:
        self.n, self.q, self.separation = n, q, separation
        self.sampling: Sampling = sampling
        self.adjacency: Adjacency = adjacency
        self.drawn = 0
        self._draw = draw

    def __next__(self) -> Tensor:
        rows = self._draw()
        self.drawn += 1
        return rows

    @property
    def expected_size(self) -> float:
        """qn, by which a noisy sum is divided: unlike the size of the batch at hand it tells nothing about who is in it."""
        return self.q * self.n

    def ledger(self, sigma: float, steps: int) -> PrivacyLedger:
        """The record of the last so many noisy sums over these batches, or of as many to come where fewer were drawn.

        A run over shuffled batches that began within an epoch is booked from that epoch's beginning: a row may be in its end and in the
        beginning of the next.
        """
        begun = max(0, self.drawn - steps) % round(1 / self.q) if self.sampling == "shuffled" and steps else 0
        return PrivacyLedger(self.q, sigma, steps + begun, self.sampling, self.adjacency)


def _checked(n: int, size: float, name: str) -> None:
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}.")
    if not 1 <= size <= n:
        raise ValueError(f"{name} must be in 1..{n} (the number of rows), got {size}.")


def _divides(n: int, size: int) -> None:
    _checked(n, size, "size")
    if n % size:
        raise ValueError(f"size must divide the number of rows, so that every epoch visits every row once, got {size} for {n} rows.")


def poisson_batches(n: int, q: float, seed: int) -> PrivateBatches:
    """Batches that every row joins independently with chance q: the sampling that amplifies privacy under add/remove adjacency.

    Sizes vary, and a batch may be empty.

    Args:
        n: Rows, at least 1.
        q: In (0, 1].
        seed: Of the draws.

    Raises:
        ValueError: an argument out of its range.

    Example:
        >>> batches = poisson_batches(1000, 0.05, seed=0)
        >>> sizes = [len(next(batches)) for _ in range(4)]
        >>> len(set(sizes)) > 1, batches.ledger(sigma=1.0, steps=4)
        (True, PrivacyLedger(q=0.05, sigma=1.0, steps=4, sampling='poisson', adjacency='add_remove'))

    Source: Abadi et al. 2016, arXiv:1607.00133, Algorithm 1 and Section 2 (each row independently, with probability q).
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}.")
    if not 0 < q <= 1:
        raise ValueError(f"q must lie in (0, 1], got {q}: it is the chance of a row to be in a batch.")
    generator = torch.Generator().manual_seed(seed)

    def draw() -> Tensor:
        return (torch.rand(n, generator=generator, dtype=torch.float64, device="cpu") < q).nonzero().flatten()

    return PrivateBatches(n, q, "poisson", "add_remove", draw)


def fixed_size_batches(n: int, size: int, seed: int) -> PrivateBatches:
    """Batches that are uniformly random sets of ``size`` rows, drawn anew: amplified under replacement of one row.

    Raises:
        ValueError: ``size`` is not in 1..n.

    Example:
        >>> batches = fixed_size_batches(100, 5, seed=0)
        >>> len(next(batches)), batches.ledger(1.0, 1).adjacency
        (5, 'replace_one')

    Source: Balle et al. 2018, arXiv:1807.01647, Theorem 9 (sampling without replacement).
    """
    _checked(n, size, "size")
    generator = torch.Generator().manual_seed(seed)
    return PrivateBatches(n, size / n, "fixed_size", "replace_one", lambda: torch.randperm(n, generator=generator, device="cpu")[:size])


def shuffled_batches(n: int, size: int, seed: int) -> PrivateBatches:
    """An epoch at a time: permutations cut into disjoint batches, as `theorylab.learning.minibatches.minibatches` draws them.

    A row is in one batch an epoch, and nothing is claimed from the order being random.

    Raises:
        ValueError: ``size`` does not divide n: the rows of a remainder would be left out.
    """
    _divides(n, size)
    order = DataOrder(torch.arange(n, device="cpu"), size, seed)
    return PrivateBatches(n, size / n, "shuffled", "add_remove", lambda: order.take(1)[0])


def cyclic_batches(n: int, size: int, seed: int) -> PrivateBatches:
    """One permutation cut into disjoint batches, the same in every epoch: a row comes back after n / size steps, and no sooner.

    That is what noise which is correlated over less than an epoch needs, see `theorylab.instruments.private_training.dp_ftrl`.

    Raises:
        ValueError: ``size`` does not divide n: the rows of a remainder would be left out.

    Example:
        >>> batches = cyclic_batches(6, 2, seed=0)
        >>> first, second = ([next(batches).tolist() for _ in range(3)] for _ in range(2))
        >>> first == second, batches.separation
        (True, 3)
    """
    _divides(n, size)
    order = itertools.cycle(DataOrder(torch.arange(n, device="cpu"), size, seed).take(n // size))
    return PrivateBatches(n, size / n, "shuffled", "add_remove", lambda: next(order), separation=n // size)


def unamplified_batches(n: int, batches: Iterable[Tensor]) -> PrivateBatches:
    """Row numbers from any other source, as a weighted sampler: a row is taken to be in every batch.

    Sums are divided by n, since nothing is known of the batches' size; scale the step instead.

    Raises:
        ValueError: ``n`` below 1; or, when drawn, a row that does not exist or is twice in a batch, which would count it twice.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}.")
    source = iter(batches)

    def draw() -> Tensor:
        rows = given(next(source)).long()
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < n:
            raise ValueError(f"batches must hold row numbers in 0..{n - 1}, got {int(rows.min())}..{int(rows.max())}.")
        if len(rows.unique()) != len(rows):
            raise ValueError("batches must hold each row at most once: a row that is there twice moves the sum by twice the clipping norm.")
        return rows

    return PrivateBatches(n, 1.0, "unamplified", "add_remove", draw)
