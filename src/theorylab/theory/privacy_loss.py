"""Privacy-loss distributions: one step's on an even grid of losses, many steps' by the Fourier transform, and the ε and δ they give.

Three ways to put a continuous loss on a grid. *Connecting the dots* keeps both masses of every cell, P's and Q's, by splitting them between
the cell's ends: the curve of δ over e^ε is then the polygon through exact values, above the curve and off by the square of the cell.
Rounding all losses *up* is an upper bound as well, and rounding *down* a lower one, but each step then drifts by half a cell, and a run by
that many times its steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.signal import lfilter

from theorylab.core.privacy_ledger import PrivacyLedger
from theorylab.theory.loss_pairs import Pair, step_pairs

Rounding = Literal["connect", "up", "down"]

ACCURACY = 1e-5
"""By how much the grid may move ε, about: sets the cell where none is given."""
CUT = 1e-15
"""Mass outside of the composed grid, added to every δ of an upper bound."""
ROUNDING = 0.25 * float(np.finfo(float).eps)
"""Added as well, once a step: the Fourier transform's rounding, whose T-th power is T times as wrong. Measured: 0.15 of the machine's."""
MOST_CELLS = 1 << 20
"""Of a grid; where losses spread farther, as with little noise, the cell grows and the bound loosens in proportion to ε."""


@dataclass(frozen=True)
class Losses:
    """Masses of P at losses (start + k)·cell, and at infinity; the latter with what a bound adds or takes for cuts and rounding."""

    cell: float
    start: int
    mass: np.ndarray
    infinite: float

    @property
    def values(self) -> np.ndarray:
        """The losses of the masses."""
        return (self.start + np.arange(len(self.mass))) * self.cell

    def _suffix(self) -> tuple[np.ndarray, np.ndarray]:
        """At each loss ℓ: P's mass at or above it, and the sum of those masses weighted by e^(ℓ − loss)."""
        above = np.cumsum(self.mass[::-1])[::-1]
        weighted = np.asarray(lfilter([1.0], [1.0, -math.exp(-self.cell)], self.mass[::-1]))[::-1]
        return above, weighted

    def delta(self, epsilon: float) -> float:
        """δ at ε, in [0, 1]."""
        loss = self.values
        first = int(np.searchsorted(loss, epsilon, side="right"))
        return min(1.0, max(0.0, float(self.mass[first:] @ -np.expm1(epsilon - loss[first:]))) + self.infinite)

    def epsilon(self, delta: float) -> float:
        """The least ε ≥ 0 whose δ is at most ``delta``; infinite where the mass at infinity alone exceeds it."""
        if self.delta(0.0) <= delta:
            return 0.0
        if self.infinite > delta:
            return math.inf
        above, weighted = self._suffix()
        reached = np.nonzero(above - weighted + self.infinite <= delta)[0]  # δ at each loss; it decreases
        last = int(reached[0]) if len(reached) else len(self.mass) - 1
        # between the loss before and this one the curve is a line in e^ε: above − e^(ε − loss)·weighted + infinite = δ
        room = above[last] + self.infinite - delta
        if room <= 0 or weighted[last] <= 0:
            return max(0.0, float(self.values[max(last - 1, 0)]))
        return max(0.0, float(self.values[last] + math.log(room / weighted[last])))


def on_grid(pair: Pair, cell: float, rounding: Rounding = "connect") -> Losses:
    """One step's losses on the grid of multiples of ``cell``.

    Args:
        pair: The pair whose loss it is.
        cell: Distance of neighbouring losses, in nats.
        rounding: ``"connect"``, an upper bound, ``"up"``, a worse one, or ``"down"``, a lower bound.
    """
    low, high = pair.span()
    start, stop = (0 if pair.symmetrized else math.floor(low / cell)), math.floor(high / cell) + 1
    edges = np.arange(start, stop + 1) * cell
    p, q = pair.masses(edges)
    lowest, infinite, mirrored_lowest = float(p[0]), float(p[-1]), float(q[-1])
    p, q = p[1:-1], q[1:-1]
    mass = np.zeros(len(edges))
    _place(mass, p, q, edges, rounding)
    if not pair.symmetrized:
        mass[0] += lowest
        if rounding == "down":
            mass[-1] += infinite
            infinite = 0.0
        return Losses(cell, start, mass, infinite)
    mirrored = np.zeros(len(edges))  # the cell (−b, −a) has the masses of (a, b), exchanged
    _place(mirrored, q[::-1], p[::-1], -edges[::-1], rounding)
    mirrored[0] += mirrored_lowest
    both = np.concatenate([mirrored[:-1], [mirrored[-1] + mass[0]], mass[1:]])
    both[len(edges) - 1] += max(0.0, 1 - both.sum() - infinite)
    return Losses(cell, -stop, both, infinite)


def _place(mass: np.ndarray, p: np.ndarray, q: np.ndarray, edges: np.ndarray, rounding: Rounding) -> None:
    """Add the masses p of cells to those at their ends."""
    if rounding == "up":
        mass[1:] += p
    elif rounding == "down":
        mass[:-1] += p
    else:
        # u at the upper end and p − u at the lower: (p − u)e^(−a) + ue^(−b) = q keeps Q's mass
        with np.errstate(over="ignore", invalid="ignore"):
            weighted = np.where(q > 0, q * np.exp(edges[:-1]), 0.0)
        upper = np.clip((p - weighted) / -math.expm1(-(edges[1] - edges[0])), 0.0, p)
        mass[1:] += upper
        mass[:-1] += p - upper


def compose(
    parts: Sequence[tuple[Losses, int]], support: tuple[float, float] | None = None, bound: Literal["upper", "lower"] = "upper"
) -> Losses:
    """Losses of all steps together: (one step's losses, number of such steps), all of one cell.

    The grid holds all but ``CUT`` of the mass, by Chernoff's bound (``support``, where it is known already); the rest wraps around. That
    and the transform's rounding are added to the mass at infinity, or for a lower bound taken from it.
    """
    cell = parts[0][0].cell
    low, high = _support(parts) if support is None else support
    start = math.floor(low / cell)
    size = _fast_size(math.ceil(high / cell) - start + 1)
    log_finite, offset, spectrum = 0.0, 0, np.ones(size // 2 + 1, dtype=complex)
    for losses, count in parts:
        folded = np.zeros(size)
        for begin in range(0, len(losses.mass), size):
            piece = losses.mass[begin : begin + size]
            folded[: len(piece)] += piece
        spectrum *= np.fft.rfft(folded) ** count
        offset += count * losses.start
        log_finite += count * math.log1p(-losses.infinite)
    mass = np.roll(np.fft.irfft(spectrum, size), (offset - start) % size)
    slack = CUT + ROUNDING * sum(count for _, count in parts)
    infinite = -slack if bound == "lower" else -math.expm1(log_finite) + slack
    return Losses(cell, start, np.maximum(mass, 0.0), infinite)


def _fast_size(n: int) -> int:
    """The least 2ᵏ or 3·2ᵏ of at least n, for which the Fourier transform is fast."""
    power = 1 << (n - 1).bit_length()
    return 3 * power // 4 if power >= 4 and n <= 3 * power // 4 else power


def _support(parts: Sequence[tuple[Losses, int]]) -> tuple[float, float]:
    """An interval outside of which the sum of all losses has mass at most ``CUT``, by Chernoff's bound.

    The bound as a function of its exponent falls and then rises, so the best of a doubling sequence is searched from the exponent that is
    best for a normal. A heavy tail, as of rare rows under little noise, has its best far below.
    """
    spread = math.sqrt(sum(n * float(part.mass @ part.values**2 - (part.mass @ part.values) ** 2) for part, n in parts))
    ends = [float(sum(n * part.values[k] for part, n in parts)) for k in (0, -1)]

    def bound(sign: float, tilt: float) -> float:
        total = 0.0
        for part, n in parts:
            exponent = sign * tilt * part.values
            top = float(exponent[-1 if sign > 0 else 0])
            moment = float(part.mass @ np.exp(exponent - top))
            if moment <= 0:  # all that has mass is too far below the top to be seen: the exponent is too large to be the best
                return math.inf
            total += n * (top + math.log(moment))
        return (total - math.log(CUT / 2)) / tilt

    for side, sign in enumerate((-1.0, 1.0)):
        tilt = 8 / max(spread, 1e-300)
        best = bound(sign, tilt)
        for factor in (0.5, 2.0):
            other = tilt * factor
            while (found := bound(sign, other)) < best:
                best, other = found, other * factor
        ends[side] = sign * min(best, sign * ends[side])
    return ends[0], ends[1]


def cell_for(pairs: Sequence[tuple[Pair, int]]) -> float:
    """A cell at which connecting the dots moves ε by about ``ACCURACY``, or the finest that fits.

    Splitting a cell's mass between its ends adds at most a quarter of its square to a step's variance, and half of that to its mean.
    """
    steps = sum(n for _, n in pairs)
    moments = [(n, *pair.moments()) for pair, n in pairs]
    spread = math.sqrt(sum(n * variance for n, _, variance in moments))
    fine = math.sqrt(8 * ACCURACY / steps * min(1.0, spread / 5))
    width = max(high - low for low, high in (pair.span() for pair, _ in pairs))
    return max(fine, width / MOST_CELLS)


def composed(ledgers: Sequence[PrivacyLedger], cell: float | None = None, rounding: Rounding = "connect") -> list[Losses]:
    """Losses of whole runs, one after the other, in each direction.

    Args:
        ledgers: Runs on the same rows, all of one adjacency and each with steps.
        cell: In nats; by default from `cell_for`.
        rounding: See `on_grid`.
    """
    found = []
    pairs = [step_pairs(ledger) for ledger in ledgers]
    for direction in range(max(map(len, pairs))):
        chosen = [(p[min(direction, len(p) - 1)], run.participations) for p, run in zip(pairs, ledgers, strict=True)]
        step = cell_for(chosen) if cell is None else cell
        parts = [(on_grid(pair, step, rounding), n) for pair, n in chosen]
        support = _support(parts)
        if cell is None and (excess := (support[1] - support[0]) / step / MOST_CELLS) > 1:
            parts = [(on_grid(pair, step * excess, rounding), n) for pair, n in chosen]
            support = _support(parts)
        found.append(compose(parts, support, "lower" if rounding == "down" else "upper"))
    return found
