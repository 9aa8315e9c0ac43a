"""Privacy accountants against those of dp-accounting, on the runs of well-known examples."""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks.parity import Comparison, Measure
from theorylab.core.privacy_ledger import PrivacyLedger
from theorylab.theory.privacy import calibrate, epsilon
from theorylab.theory.renyi_privacy import _divergence, sampled_rdp

DELTA = 1e-5
RUNS = {
    "q=0.01, σ=4, T=1000": PrivacyLedger(0.01, 4.0, 1000),
    "q=0.1, σ=1, T=100": PrivacyLedger(0.1, 1.0, 100),
    "q=256/60000, σ=1.1, T=14062": PrivacyLedger(256 / 60_000, 1.1, 14_062),
    "q=0.01, σ=0.5, T=1000": PrivacyLedger(0.01, 0.5, 1000),
    "no sampling, σ=4, T=1000": PrivacyLedger(1.0, 4.0, 1000),
    "q=0.01, σ=4, T=1000, a row replaced": PrivacyLedger(0.01, 4.0, 1000, adjacency="replace_one"),
}
ORDERS = [4.0, 7.5, 20.0, 64.0]


def _numbers(make: Callable[[], list[float]]) -> Measure:
    return lambda: torch.tensor(make(), dtype=torch.float64)


def _loss_distribution(run: PrivacyLedger) -> Callable[[torch.dtype], tuple[Measure, Measure]]:
    def prepare(dtype: torch.dtype) -> tuple[Measure, Measure]:
        from dp_accounting import NeighboringRelation
        from dp_accounting.pld import privacy_loss_distribution

        relation = {"add_remove": NeighboringRelation.ADD_OR_REMOVE_ONE, "replace_one": NeighboringRelation.REPLACE_ONE}[run.adjacency]

        def theirs() -> list[float]:
            one = privacy_loss_distribution.from_gaussian_mechanism(
                run.sigma, sampling_prob=run.q, neighboring_relation=relation, value_discretization_interval=1e-4
            )
            return [float(one.self_compose(run.steps).get_epsilon_for_delta(DELTA))]

        return _numbers(lambda: [epsilon(run, DELTA)]), _numbers(theirs)

    return prepare


def _orders(dtype: torch.dtype) -> tuple[Measure, Measure]:
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
    from dp_accounting.rdp import RdpAccountant

    def theirs() -> list[float]:
        accountant = RdpAccountant(ORDERS)
        accountant.compose(PoissonSampledDpEvent(0.05, GaussianDpEvent(2.0)))
        return [float(d) for d in accountant._rdp]

    def ours() -> list[float]:
        _divergence.cache_clear()  # what is remembered is not the work
        return [sampled_rdp(0.05, 2.0, order) for order in ORDERS]

    return _numbers(ours), _numbers(theirs)


def _calibration(dtype: torch.dtype) -> tuple[Measure, Measure]:
    import dp_accounting
    from dp_accounting.pld import PLDAccountant

    def event(sigma: float) -> object:
        return dp_accounting.SelfComposedDpEvent(dp_accounting.PoissonSampledDpEvent(0.01, dp_accounting.GaussianDpEvent(sigma)), 1000)

    def theirs() -> list[float]:
        return [float(dp_accounting.calibrate_dp_mechanism(PLDAccountant, event, 1.0, DELTA, tol=1e-4))]

    return _numbers(lambda: [calibrate(1.0, DELTA, 0.01, 1000)]), _numbers(theirs)


def rows(n: int) -> list[Comparison]:
    """One a run, and the orders and a calibration; nothing depends on the data."""
    peer = "dp-accounting"
    note = "its grid is of 1e-4"
    pld = [Comparison("epsilon", name, peer, _loss_distribution(run), tolerance=2e-4, goal=1.0, note=note) for name, run in RUNS.items()]
    return [
        *pld,
        Comparison("sampled_rdp", "q=0.05, σ=2, four orders", peer, _orders, tolerance=1e-9),
        Comparison("calibrate", "ε=1, q=0.01, T=1000", peer, _calibration, tolerance=3e-4, note="to 1e-4 in σ, both"),
    ]
