"""How private was a run? ε, δ and the noise they need, from the ledger that the run left."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from scipy.optimize import brentq

from theorylab.core.privacy_ledger import Adjacency, PrivacyLedger, Sampling
from theorylab.theory.gaussian_privacy import gaussian_delta, gaussian_epsilon
from theorylab.theory.privacy_loss import composed
from theorylab.theory.renyi_privacy import rdp_curve, rdp_to_delta, rdp_to_epsilon

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Method = Literal["pld", "rdp", "gaussian"]
Ledgers = PrivacyLedger | Sequence[PrivacyLedger]


def epsilon(ledger: Ledgers, delta: float, *, method: Method = "pld") -> float:
    r"""The ε for which a run is (ε, δ)-differentially private: an upper bound, never below 0.

    Args:
        ledger: Of the run; several are composed, one run after the other on the same rows.
        delta: δ in (0, 1); less than one over the number of rows, or publishing a random row would pass as private.
        method: ``"pld"``: privacy-loss distributions, at most about 10⁻⁵ above the least; ``"rdp"``: Rényi orders, looser, for any
            δ; ``"gaussian"``: exact without sampling, and where there is sampling, the bound that does not count on it.

    Returns:
        ε ≥ 0, in nats. 0 where the total variation is below δ, and where nothing was released.

    Raises:
        ValueError: δ out of range; noise of zero; for ``"pld"`` a δ below about T·10⁻²¹, the tails that its grid leaves out; for
            ``"rdp"`` batches of fixed size; ledgers of different adjacency.

    Example:
        >>> run = PrivacyLedger(q=0.01, sigma=4.0, steps=1000)
        >>> [round(epsilon(run, 1e-5, method=m), 3) for m in ("pld", "rdp", "gaussian")]
        [0.272, 0.301, 64.169]

    Source: Koskela, Jälkö and Honkela 2020, arXiv:1906.03049; Doroshenko et al. 2022, arXiv:2207.04380 (connecting the dots); Mironov,
    Talwar and Zhang 2019, arXiv:1908.10530; Balle and Wang 2018, arXiv:1805.06530, Theorem 8.
    """
    runs = _runs(ledger, method)
    if not 0 < delta < 1:
        raise ValueError(f"delta must lie in (0, 1), got {delta}.")
    if not runs:
        return 0.0
    if method == "gaussian":
        return gaussian_epsilon(_mu(runs), delta)
    if method == "rdp":
        return rdp_to_epsilon(_divergences(runs), delta)
    directions = composed(runs, delta=delta)
    least = max(losses.infinite for losses in directions)
    if delta <= least:
        raise ValueError(
            f'delta must be above {least:.1g} for method="pld", the tails that its grid leaves out, got {delta:g}; use method="rdp".'
        )
    return max(losses.epsilon(delta) for losses in directions)


def delta(ledger: Ledgers, epsilon: float, *, method: Method = "pld") -> float:
    r"""The δ for which a run is (ε, δ)-differentially private: an upper bound, in [0, 1].

    Args:
        ledger: Of the run; several are composed.
        epsilon: ε ≥ 0, in nats.
        method: As in `epsilon`. ``"pld"`` adds about T·10⁻²¹ for the tails that its grid leaves out.

    Raises:
        ValueError: ε negative or infinite, noise of zero, or what ``method`` refuses.

    Example:
        >>> run = PrivacyLedger(q=0.01, sigma=4.0, steps=1000)
        >>> round(delta(run, 0.272), 7)
        1.01e-05
    """
    runs = _runs(ledger, method)
    if not 0 <= epsilon < math.inf:
        raise ValueError(f"epsilon must be finite and not negative, got {epsilon}.")
    if not runs:
        return 0.0
    if method == "gaussian":
        return gaussian_delta(_mu(runs), epsilon)
    if method == "rdp":
        return rdp_to_delta(_divergences(runs), epsilon)
    return max(losses.delta(epsilon) for losses in composed(runs, epsilon=epsilon))


def calibrate(
    epsilon: float,
    delta: float,
    q: float,
    steps: int,
    *,
    sampling: Sampling = "poisson",
    adjacency: Adjacency = "add_remove",
    method: Method = "pld",
) -> float:
    """The least noise multiplier σ, to a ten-thousandth and rounded up, at which a run is (ε, δ)-differentially private.

    Args:
        epsilon: Target ε > 0.
        delta: Target δ in (0, 1).
        q: Sampling rate, in (0, 1].
        steps: T ≥ 1.
        sampling: How batches are drawn, as of `PrivacyLedger`.
        adjacency: Which data sets are neighbours.
        method: As in `epsilon`.

    Raises:
        ValueError: an argument out of its range.

    Example:
        >>> import theorylab as tl
        >>> sigma = calibrate(1.0, 1e-5, q=0.01, steps=1000)
        >>> round(sigma, 3), tl.epsilon(PrivacyLedger(0.01, sigma, 1000), 1e-5) <= 1.0
        (1.415, True)
    """
    if not 0 < epsilon < math.inf:
        raise ValueError(f"epsilon must be positive and finite, got {epsilon}.")
    run = PrivacyLedger(q, 1.0, steps, sampling, adjacency)
    if run.participations < 1:
        raise ValueError(f"steps must be at least 1, got {steps}: without a step no noise is needed.")

    def excess(log_sigma: float) -> float:
        # in logarithms ε is nearly a line; where it is 0, so is the excess's last word
        found = _epsilon(dataclasses.replace(run, sigma=math.exp(log_sigma)), delta, method=method)
        return math.log(max(found, 1e-12) / epsilon)

    low = high = 0.0
    while excess(high) > 0:
        low, high = high, high + 1
    while low == high or excess(low) <= 0:
        high, low = low, low - 1
        if low < math.log(0.02):
            return math.exp(high)  # hardly any noise is enough: δ is nearly the chance of being sampled at all
    root = float(brentq(excess, low, high, xtol=2e-5))  # pyright: ignore[reportArgumentType]
    while excess(root) > 0:
        root += 2e-5
    return math.exp(root)


_epsilon = epsilon  # the name is an argument of its neighbours


@dataclass(frozen=True)
class EpsilonPath:
    """ε on the way.

    Attributes:
        steps: Where it was computed, (t,).
        epsilon: ε after so many steps by each method, (t,) each.
        delta: At which δ.
    """

    steps: np.ndarray
    epsilon: dict[str, np.ndarray]
    delta: float

    def plot(self, ax: Axes | None = None) -> Axes:
        """ε against steps, a line a method."""
        if ax is None:
            import matplotlib.pyplot as plt

            ax = plt.subplots()[1]
        for method, values in self.epsilon.items():
            ax.plot(self.steps, values, label=method)
        ax.set(xlabel="step", ylabel=f"ε at δ = {self.delta:g}", ylim=(0, None))
        ax.legend()
        return ax


def epsilon_path(ledger: PrivacyLedger, delta: float, *, methods: Sequence[Method] = ("pld", "rdp"), points: int = 25) -> EpsilonPath:
    """ε after every part of a run: what has been spent when, and where a budget runs out.

    Args:
        ledger: Of the run as planned or done, with at least one step.
        delta: δ in (0, 1).
        methods: As in `epsilon`, one line each.
        points: How many numbers of steps, evenly spaced, at least 2 where the run has as many.

    Returns:
        Steps and ε, with ``plot()``.

    Raises:
        ValueError: an argument out of its range, or what `epsilon` refuses.

    Example:
        >>> path = epsilon_path(PrivacyLedger(q=0.01, sigma=1.0, steps=1000), 1e-5, points=3)
        >>> path.steps.tolist(), path.epsilon["pld"].round(2).tolist()
        ([1, 500, 1000], [0.2, 1.33, 1.83])
    """
    if ledger.steps < 1 or points < 2:
        raise ValueError(f"a path needs a run of at least 1 step and 2 points, got steps={ledger.steps}, points={points}.")
    steps = np.unique(np.linspace(1, ledger.steps, points).astype(int))
    runs = [dataclasses.replace(ledger, steps=int(t)) for t in steps]
    return EpsilonPath(steps, {m: np.array([epsilon(run, delta, method=m) for run in runs]) for m in methods}, delta)


def _runs(ledger: Ledgers, method: str) -> list[PrivacyLedger]:
    """The runs that released anything, checked."""
    if method not in get_args(Method):
        raise ValueError(f"method must be one of {', '.join(get_args(Method))}, got {method!r}: a central limit theorem gives no bound.")
    runs = [ledger] if isinstance(ledger, PrivacyLedger) else list(ledger)
    if wrong := [type(run).__name__ for run in runs if not isinstance(run, PrivacyLedger)]:
        raise TypeError(f"ledger must be a PrivacyLedger or several, got a {wrong[0]}.")
    runs = [run for run in runs if run.steps > 0]
    if len({run.adjacency for run in runs}) > 1:
        raise ValueError(
            "ledger: all runs must have one adjacency, got add_remove and replace_one; a guarantee is about one kind of neighbour."
        )
    if any(run.sigma == 0 for run in runs):
        raise ValueError("ledger: sigma must be positive for a guarantee, got 0: without noise no epsilon is large enough.")
    if method == "rdp" and any(run.sampling == "fixed_size" and run.q < 1 for run in runs):
        raise ValueError('method="rdp" knows Poisson sampling only, got batches of fixed size; use method="pld".')
    return runs


def _mu(runs: list[PrivacyLedger]) -> float:
    return math.sqrt(sum(run.participations * (run.sensitivity / run.sigma) ** 2 for run in runs))


def _divergences(runs: list[PrivacyLedger]) -> np.ndarray:
    return np.sum([run.participations * rdp_curve(run.rate, run.sigma, run.adjacency) for run in runs], axis=0)
