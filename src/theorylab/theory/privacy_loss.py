"""Privacy-loss distributions: one step's on an even grid of losses, many steps' by the Fourier transform, and the ε and δ they give.

Three ways to put a continuous loss on a grid. *Connecting the dots* keeps both masses of every cell, P's and Q's, by splitting them between
the cell's ends: the curve of δ over e^ε is then the polygon through exact values, above the curve and off by the square of the cell.
Rounding all losses *up* is an upper bound as well, and rounding *down* a lower one, but each step then drifts by half a cell, and a run by
that many times its steps.

The Fourier transform rounds to about 10⁻¹⁶ of the *largest* mass, which would hide small δ. Where it is known which δ or ε is asked for,
the masses are first tilted, multiplied by e^(θ·loss) and normalized, so that the losses asked for become the likely ones; the tilt is taken
off the sum. What is rounded or cut is then a share of δ, and not a number to add to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.signal import lfilter

from theorylab.core.privacy_ledger import PrivacyLedger
from theorylab.core.ranges import nonnegative, positive
from theorylab.theory.loss_pairs import Pair, step_pairs

Rounding = Literal["connect", "up", "down"]

ACCURACY = 1e-5
"""By how much the grid may move ε, about: sets the cell where none is given."""
CUT = 1e-15
"""Tilted mass outside of the composed grid, which an upper bound adds."""
ROUNDING = 0.25 * float(np.finfo(float).eps)
"""Added as well, once a step: the Fourier transform's rounding, whose T-th power is T times as wrong. Measured: 0.15 of the machine's."""
MOST_CELLS = 1 << 20
"""Of a grid; where losses spread farther, as with little noise, the cell grows and the bound loosens in proportion to ε."""


@dataclass(frozen=True)
class Losses:
    """Masses of P at losses (start + k)·cell, and at infinity.

    Attributes:
        cell: Distance of neighbouring losses, in nats.
        start: The least loss, in cells.
        mass: At each loss. Where tilted, no more than rounding far below the losses asked for.
        infinite: At infinity.
        slack: Tilted mass that a bound adds for cuts and rounding, wherever it harms most; negative for a lower bound.
        tilt: θ ≥ 0, by which it was tilted.
        log_moment: ln E e^(θ·loss), which turns tilted masses into those of P.
    """

    cell: float
    start: int
    mass: np.ndarray
    infinite: float
    slack: float = 0.0
    tilt: float = 0.0
    log_moment: float = 0.0

    @property
    def values(self) -> np.ndarray:
        """The losses of the masses."""
        return (self.start + np.arange(len(self.mass))) * self.cell

    def _beyond(self, epsilon: np.ndarray | float) -> Any:
        """δ at ε of what is not on the grid: the mass at infinity, and the slack at the loss above ε where it weighs most."""
        # a tilted mass at ε + u adds to δ e^(log_moment − θ(ε + u))·(1 − e^(−u)), which is largest at u = ln(1 + 1/θ)
        worst = self.tilt * math.log(self.tilt) - (1 + self.tilt) * math.log1p(self.tilt) if self.tilt else 0.0
        return self.infinite + self.slack * np.exp(np.minimum(self.log_moment - self.tilt * epsilon + worst, 700.0))

    def _suffix(self) -> tuple[np.ndarray, np.ndarray]:
        """At each loss ℓ: P's mass at or above it, and the sum of those masses weighted by e^(ℓ − loss)."""
        above = np.cumsum(self.mass[::-1])[::-1]
        weighted = np.asarray(lfilter([1.0], [1.0, -math.exp(-self.cell)], self.mass[::-1]))[::-1]
        return above, weighted

    def delta(self, epsilon: float) -> float:
        """δ at ε, in [0, 1]."""
        loss = self.values
        first = int(np.searchsorted(loss, epsilon, side="right"))
        return min(1.0, max(0.0, float(self.mass[first:] @ -np.expm1(epsilon - loss[first:])) + float(self._beyond(epsilon))))

    def epsilon(self, delta: float) -> float:
        """The least ε ≥ 0 from which on δ is at most ``delta``; infinite where what lies beyond the grid alone exceeds it."""
        loss, (above, weighted) = self.values, self._suffix()
        # the last and not the first loss of too large a δ: far below the losses asked for, a tilted lower bound takes too much
        over = np.flatnonzero(above - weighted + self._beyond(loss) > delta)
        last = int(over[-1]) + 1 if len(over) else 0
        if last == len(loss):
            return math.inf
        # between the loss before and this one the curve is a line in e^ε, above − e^(ε − loss)·weighted = δ, less what lies beyond
        room = above[last] + self._beyond(loss[last] - self.cell) - delta
        if room <= 0 or weighted[last] <= 0:
            return max(0.0, float(loss[max(last - 1, 0)]))
        return max(0.0, float(loss[last] + min(0.0, math.log(room / weighted[last]))))


def on_grid(pair: Pair, cell: float, rounding: Rounding = "connect") -> Losses:
    """One step's losses on the grid of multiples of ``cell``.

    Args:
        pair: The pair whose loss it is.
        cell: Distance of neighbouring losses, in nats.
        rounding: ``"connect"``, an upper bound, ``"up"``, a worse one, or ``"down"``, a lower bound.

    Raises:
        ValueError: ``cell`` is not positive and finite.
    """
    positive(cell=cell)
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


Parts = Sequence[tuple[Losses, int]]
"""(one step's losses, number of such steps), all of one cell."""


def compose(parts: Parts, tilt: float = 0.0, support: tuple[float, float] | None = None, lower: bool = False) -> Losses:
    """Losses of all steps together.

    Args:
        parts: One step's losses, and the number of such steps.
        tilt: θ ≥ 0, see the head of this file.
        support: Of the tilted losses where it is known already; the grid holds all but ``CUT`` of their mass, the rest wraps around.
        lower: Take what is cut or rounded off as for a lower bound, instead of adding it.

    Raises:
        ValueError: ``tilt`` is negative or not finite.
    """
    nonnegative(tilt=tilt)
    cell = parts[0][0].cell
    tilted, log_moment = _tilted(parts, tilt)
    low, high = _support(tilted) if support is None else support
    start = math.floor(low / cell)
    size = _fast_size(math.ceil(high / cell) - start + 1)
    offset, spectrum = 0, np.ones(size // 2 + 1, dtype=complex)
    for losses, count in tilted:
        folded = np.zeros(size)
        for begin in range(0, len(losses.mass), size):
            piece = losses.mass[begin : begin + size]
            folded[: len(piece)] += piece
        spectrum *= np.fft.rfft(folded) ** count
        offset += count * losses.start
    mass = np.maximum(np.roll(np.fft.irfft(spectrum, size), (offset - start) % size), 0.0)
    exponent = log_moment - tilt * (start + np.arange(size)) * cell
    mass = np.minimum(mass * np.exp(np.minimum(exponent, 700.0)), 1.0)  # far below the losses asked for only rounding is left
    infinite = -math.expm1(sum(count * math.log1p(-losses.infinite) for losses, count in parts))
    slack = CUT + ROUNDING * sum(count for _, count in parts)
    return Losses(cell, start, mass, 0.0 if lower else infinite, -slack if lower else slack, tilt, log_moment)


def _fast_size(n: int) -> int:
    """The least 2ᵏ or 3·2ᵏ of at least n, for which the Fourier transform is fast."""
    power = 1 << (n - 1).bit_length()
    return 3 * power // 4 if power >= 4 and n <= 3 * power // 4 else power


def _spread(parts: Parts) -> float:
    """Standard deviation of the sum of all losses."""
    return math.sqrt(sum(n * max(0.0, float(part.mass @ part.values**2 - (part.mass @ part.values) ** 2)) for part, n in parts))


def _log_moment(parts: Parts, tilt: float) -> float:
    """The logarithm of E e^(θ·loss) of the sum of all losses, θ of any sign; infinite where all mass is too far below the top."""
    total = 0.0
    for part, n in parts:
        exponent = tilt * part.values
        top = float(exponent[-1 if tilt > 0 else 0])
        moment = float(part.mass @ np.exp(exponent - top))
        if moment <= 0:
            return math.inf
        total += n * (top + math.log(moment))
    return total


def _tilted(parts: Parts, tilt: float) -> tuple[Parts, float]:
    """One step's losses multiplied by e^(θ·loss) and normalized, each with its count; and `_log_moment`."""
    found, log_moment = [], 0.0
    for part, n in parts:
        exponent = tilt * part.values
        mass = part.mass * np.exp(exponent - exponent[-1])
        total, seen = float(mass.sum()), np.flatnonzero(mass)
        found.append((Losses(part.cell, part.start + int(seen[0]), mass[seen[0] : seen[-1] + 1] / total, 0.0), n))
        log_moment += n * (float(exponent[-1]) + math.log(total))
    return found, log_moment


def _doubled(objective: Callable[[float], float], start: float, least: float, most: float) -> float:
    """The best of start·2ᵏ in (least, most] for a function that falls and then rises, and may be too large to be seen at the start."""
    best = min(start, most)
    value = objective(best)
    while value == math.inf and best > least:
        best /= 2
        value = objective(best)
    for factor in (0.5, 2.0):
        other = best * factor
        while least < other <= most and (found := objective(other)) < value:
            best, value, other = other, found, other * factor
    return best


def _support(parts: Parts) -> tuple[float, float]:
    """An interval outside of which the sum of all losses has mass at most ``CUT``, by Chernoff's bound.

    The exponent is searched from the one that is best for a normal. A heavy tail, as of rare rows under little noise, has its best far
    below.
    """
    ends = [float(sum(n * part.values[k] for part, n in parts)) for k in (0, -1)]
    start, most = 8 / max(_spread(parts), 1e-300), 1 / parts[0][0].cell
    for side, sign in enumerate((-1.0, 1.0)):

        def bound(tilt: float, sign: float = sign) -> float:
            return (_log_moment(parts, sign * tilt) - math.log(CUT / 2)) / tilt

        best = bound(_doubled(bound, start, 0.0, most))
        ends[side] = sign * min(best, sign * ends[side])
    return ends[0], ends[1]


def _tilt_at(parts: Parts, delta: float | None, epsilon: float | None) -> float:
    """About the tilt of the best Chernoff bound on ε at ``delta``, or on δ at ``epsilon``; 0 where neither is in the tail.

    Three quarters of it: nearly as good, and a heavy tail, tilted less, needs fewer cells.
    """
    spread = max(_spread(parts), 1e-300)
    if delta is not None:
        goal = math.log(delta)

        def bound(tilt: float) -> float:
            return (_log_moment(parts, tilt) - goal) / tilt

        start, least = math.sqrt(-2 * goal) / spread, 0.0
    elif epsilon is not None:

        def bound(tilt: float) -> float:
            return _log_moment(parts, tilt) - tilt * epsilon

        start, least = 5 / spread, 0.1 / spread
    else:
        return 0.0
    best = _doubled(bound, start, least, 1 / parts[0][0].cell)  # a cell's own masses must not be torn apart
    best = min((best * math.sqrt(0.5), best, best * math.sqrt(2)), key=bound)
    return 0.0 if epsilon is not None and bound(best) > -1 else 0.75 * best


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


def composed(
    ledgers: Sequence[PrivacyLedger],
    cell: float | None = None,
    rounding: Rounding = "connect",
    *,
    delta: float | None = None,
    epsilon: float | None = None,
) -> list[Losses]:
    """Losses of whole runs, one after the other, in each direction.

    Args:
        ledgers: Runs on the same rows, all of one adjacency and each with steps.
        cell: In nats; by default from `cell_for`.
        rounding: See `on_grid`.
        delta: The δ whose ε is asked for. Without it and ``epsilon``, a δ below about T·10⁻¹⁶ is lost in rounding.
        epsilon: The ε whose δ is asked for.

    Raises:
        ValueError: an argument out of its range.
    """
    if delta is not None and not 0 < delta < 1:
        raise ValueError(f"delta must lie in (0, 1), got {delta}.")
    if epsilon is not None and not math.isfinite(epsilon):
        raise ValueError(f"epsilon must be finite, got {epsilon}.")
    found = []
    pairs = [step_pairs(ledger) for ledger in ledgers]
    for direction in range(max(map(len, pairs))):
        chosen = [(p[min(direction, len(p) - 1)], run.participations) for p, run in zip(pairs, ledgers, strict=True)]
        step = cell_for(chosen) if cell is None else cell
        parts = [(on_grid(pair, step, rounding), n) for pair, n in chosen]
        tilt = _tilt_at(parts, delta, epsilon)
        support = _support(_tilted(parts, tilt)[0])
        if cell is None and (excess := (support[1] - support[0]) / step / MOST_CELLS) > 1:
            parts = [(on_grid(pair, step * excess, rounding), n) for pair, n in chosen]
            support = _support(_tilted(parts, tilt)[0])
        found.append(compose(parts, tilt, support, lower=rounding == "down"))
    return found
