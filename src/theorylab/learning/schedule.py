"""Step sizes that change with time, around any optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from theorylab.core.ranges import nonnegative, unchecked
from theorylab.learning.optimizers.base import Hyper, Optimizer, Params, counting_type, pick, spread

Schedule = Callable[[Tensor], Tensor]
"""Steps already taken t = 0, 1, ... → the factor of the step size in the next one, of the same shape (replica,)."""


@dataclass(frozen=True)
class OfReplicas:
    """A schedule with a hyper-parameter that may differ between replicas: ``factor(t, hyper)``, both of one shape."""

    factor: Callable[[Tensor, Hyper], Tensor]
    hyper: Hyper

    def __call__(self, t: Tensor) -> Tensor:
        """Factors (replica,) after so many steps."""
        return self.factor(t, spread(self.hyper, t))

    def select(self, index: slice) -> OfReplicas:
        """The same for some of the replicas only."""
        return OfReplicas(self.factor, pick(self.hyper, index))


def scheduled(make: Callable[[Hyper], Optimizer], lr: Hyper, schedule: Schedule) -> Optimizer:
    r"""The optimizer that ``make`` builds, with step size :math:`\eta\, s(t)` after t steps.

    Args:
        make: Step size → optimizer; its state must not depend on the step size.
        lr: η, a number or one a replica.
        schedule: s, one of this file's or any function that is the same for all replicas.

    Returns:
        An optimizer over tensors with a leading replica axis, whose state holds the time and the inner state. It can be cut by
        `Optimizer.select` where what ``make`` builds can.

    Example:
        >>> from theorylab.learning.optimizers.sgd import sgd
        >>> optimizer = scheduled(sgd, 1.0, power_decay(0.5))
        >>> x = {"x": torch.zeros(1, 1)}
        >>> state = optimizer.init(x)
        >>> for _ in range(4):
        ...     x, state = optimizer.update({"x": torch.ones(1, 1)}, state, x)
        >>> round(-x["x"].item(), 4)  # 1 + 1/√2 + 1/√3 + 1/√4
        2.7845
    """

    def at(time: Tensor) -> Optimizer:
        with unchecked():
            return make(lr * schedule(time))

    def init(params: Params) -> Any:
        first = next(iter(params.values()))
        spread(lr, first)  # refuses a wrong number of step sizes
        return {"time": first.new_zeros(first.shape[:1], dtype=counting_type(first)), "inner": make(lr).init(params)}

    def update(grads: Params, state: Any, params: Params) -> tuple[Params, Any]:
        params, inner = at(state["time"]).update(grads, state["inner"], params)
        return params, {"time": state["time"] + 1, "inner": inner}

    def part(rate: Hyper, index: slice) -> Optimizer:
        # ``make`` may hold hyper-parameters of all replicas: it is given as many step sizes as reach to this part, which is then cut out
        whole = torch.cat([rate.new_ones(index.start or 0), rate]) if isinstance(rate, Tensor) and rate.ndim else rate
        select = make(whole).select
        assert select is not None
        return select(index)

    def select(index: slice) -> Optimizer:
        ours = schedule.select(index) if isinstance(schedule, OfReplicas) else schedule
        return scheduled(lambda rate: part(rate, index), pick(lr, index), ours)

    def probe(grads: Params, state: Any, params: Params) -> Params:
        inner = at(state["time"]).probe
        assert inner is not None
        return inner(grads, state["inner"], params)

    whole = make(lr)
    return Optimizer(
        f"scheduled {whole.name}", init, update, None if whole.select is None else select, None if whole.probe is None else probe
    )


def constant() -> Schedule:
    """:math:`s(t) = 1`.

    Example:
        >>> constant()(torch.tensor([0.0, 3.0])).tolist()
        [1.0, 1.0]
    """
    return torch.ones_like


def power_decay(power: Hyper) -> Schedule:
    r""":math:`s(t) = (t+1)^{-a}`; 1/2 is the schedule of online learning and of margin maximization.

    Args:
        power: a ≥ 0, a number or one a replica.

    Raises:
        ValueError: ``power`` is negative or not finite.

    Example:
        >>> power_decay(0.5)(torch.tensor([0.0, 3.0])).tolist()
        [1.0, 0.5]
    """
    nonnegative(power=power)
    return OfReplicas(lambda t, a: (t + 1) ** -a, power)


def exponential_decay(factor: Hyper) -> Schedule:
    r""":math:`s(t) = \rho^t`; where a momentum buffer begins parallel to the weights, `exponential_sgd` takes the same steps.

    Args:
        factor: ρ ≥ 0, a number or one a replica; above one it grows.

    Raises:
        ValueError: ``factor`` is negative or not finite.

    Example:
        >>> exponential_decay(0.5)(torch.tensor([0.0, 3.0])).tolist()
        [1.0, 0.125]
    """
    nonnegative(factor=factor)
    return OfReplicas(lambda t, rho: torch.as_tensor(rho, dtype=t.dtype, device=t.device) ** t, factor)


def cosine(steps: int, floor: float = 0.0) -> Schedule:
    r"""From one down to ``floor`` along half a cosine, :math:`s(t) = f + (1-f)\,\tfrac12(1 + \cos(\pi t/T))`; then it stays there.

    Args:
        steps: T ≥ 1.
        floor: f in [0, 1].

    Raises:
        ValueError: an argument out of its range.

    Example:
        >>> cosine(4)(torch.tensor([0.0, 2.0, 4.0])).round(decimals=4).tolist()
        [1.0, 0.5, 0.0]

    Source: Loshchilov and Hutter 2017, arXiv:1608.03983, Equation 5.
    """
    _check(steps, floor)
    return lambda t: floor + (1 - floor) * 0.5 * (1 + torch.cos(math.pi * (t / steps).clamp(max=1)))


def warmup_stable_decay(steps: int, warmup: int, decay: int, floor: float = 0.0) -> Schedule:
    r"""Up in equal increments, level, and down in equal decrements: the trapezoid of warmup, stable phase and decay.

    The first step has size 1/(w + 1), whatever the floor; after w steps the factor is one; it falls over the last d steps and would be
    ``floor`` after T.

    Args:
        steps: T, of the whole run.
        warmup: w ≥ 0.
        decay: d ≥ 0, with w + d ≤ T. With w = 0 and d = T it is linear decay.
        floor: f in [0, 1].

    Raises:
        ValueError: an argument out of its range.

    Example:
        >>> warmup_stable_decay(8, warmup=1, decay=4)(torch.arange(9.0)).tolist()
        [0.5, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]

    Source: Hu et al. 2024, arXiv:2404.06395, Section 4, with a linear decay.
    """
    _check(steps, floor)
    if warmup < 0 or decay < 0 or warmup + decay > steps:
        raise ValueError(f"warmup and decay must not be negative, nor together more than steps = {steps}, got {warmup} and {decay}.")

    def factor(t: Tensor) -> Tensor:
        up = (t + 1) / (warmup + 1)
        down = (floor + (1 - floor) * (steps - t) / decay).clamp(min=floor) if decay else up
        return torch.minimum(up, down).clamp(max=1)

    return factor


def _check(steps: int, floor: float) -> None:
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}.")
    if not 0 <= floor <= 1:
        raise ValueError(f"floor must lie in [0, 1], got {floor}.")
