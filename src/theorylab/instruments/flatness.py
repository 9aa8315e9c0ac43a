"""How flat the loss is around a point: the size of a random perturbation of the weights that it survives. A measure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from torch import Tensor

from theorylab.core.estimate import Estimate
from theorylab.core.instrument import Inapplicable, instrument
from theorylab.core.problem import Params, Problem, finite
from theorylab.core.seeds import derived_seed
from theorylab.core.source import Source
from theorylab.instruments.predictions import not_classification, predictions, row_errors

Kind = Literal["isotropic", "magnitude", "adaptive"]
Risk = Literal["loss", "error"]
START, LIMIT = 2.0**-7, 2.0**10
"""Standard deviations at which the search begins, and up to which it doubles them."""
UNITS = 4
"""Of rounding of the loss that its rise must be worth: that of the start alone then moves σ by a few percent at most."""


def noise_shape(params: Params, kind: Kind) -> Params:
    """What one standard normal number is multiplied by, entry by entry."""
    if kind == "isotropic":
        return {k: torch.ones_like(p) for k, p in params.items()}
    if kind == "magnitude":
        return {k: p.abs() for k, p in params.items()}

    def unit(p: Tensor) -> Tensor:
        if p.ndim < 2:
            return p.abs()
        return p.flatten(1).square().mean(1).sqrt().reshape(-1, *(1 for _ in p.shape[1:])).expand_as(p)

    return {k: unit(p) for k, p in params.items()}


def _draws(problem: Problem, scale: Tensor, draws: int, seed: int) -> Iterator[Tensor]:
    """Perturbations (p,) of unit size; each of a generator of its own, made anew at every pass, so that they are never all held."""
    for i in range(draws):
        generator = torch.Generator().manual_seed(derived_seed(seed, "draw", i))
        yield scale * torch.randn(problem.P, generator=generator, dtype=torch.float64, device="cpu").to(scale)


def _check(problem: Problem, drop: float, kind: str, risk: str, draws: int) -> None:
    for name, value, known in (("kind", kind, get_args(Kind)), ("risk", risk, get_args(Risk))):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}.")
    if not drop > 0 or draws < 2:
        raise ValueError(f"drop must be positive and draws at least 2, got drop={drop}, draws={draws}.")
    if risk == "error" and (reason := not_classification(problem)) is not None:
        raise Inapplicable(f"flatness does not apply: {reason} Or measure risk='loss'.")


def _finest(problem: Problem, scale: Tensor, centre: Tensor) -> float:
    """σ below which the steps σDε are shorter than the unit of rounding of the parameters, and land where rounding takes them."""
    kind, noise = torch.finfo(problem.dtype), float(scale.double().norm())
    return max(kind.tiny, kind.eps * float(centre.double().norm()) / noise) if noise else kind.tiny


def _check_digits(problem: Problem, drop: float, loss: float) -> None:
    unit = torch.finfo(problem.dtype).eps * abs(loss)
    if drop < UNITS * unit:
        raise ValueError(
            f"drop must be at least {UNITS} units of rounding of the loss to be seen, {UNITS * unit:g} for a loss of {loss:g} in "
            f"{problem.dtype}, got {drop:g}. Use dtype=torch.float64 or a larger drop."
        )


def _root(tol: float) -> Callable[[Callable[[float], float], float, float], float]:
    from scipy.optimize import brentq

    return lambda f, low, high: cast(float, brentq(f, low, high, xtol=tol * low, rtol=cast(Any, max(tol, 1e-14))))


def _crossing(
    rise: Callable[[float], np.ndarray], drop: float, least: float, root: Callable[[Callable[[float], float], float, float], float]
) -> Estimate:
    """σ at which the mean of ``rise(σ)`` first reaches ``drop``, above ``least``, with the standard error that its draws leave."""

    def excess(s: float) -> float:
        return float(rise(s).mean()) - drop

    high = START
    while excess(high) >= 0:
        high /= 2
        if high < least:
            raise ValueError(
                f"drop must be more than the rise of the risk under the least noise that rounding of the parameters leaves as it is, got "
                f"drop={drop:g} and a rise of {excess(2 * high) + drop:g} at σ={2 * high:g}: the risk jumps, or is too steep for these "
                "digits. Use dtype=torch.float64, a larger drop, or smaller inputs."
            )
    while excess(high) < 0:
        high *= 2
        if high > LIMIT:
            raise ValueError(
                f"the risk must rise by drop to be measured, got a rise below {drop:g} at every σ up to {LIMIT:g}: it does not depend on "
                "the selected parameters, or drop is larger than they can do. Lower drop."
            )
    sigma = root(excess, high / 2, high)
    h = 0.05 * sigma  # wide enough that a risk of steps has a slope
    slope = float((rise(sigma + h) - rise(sigma - h)).mean()) / (2 * h)
    each = rise(sigma)
    spread = float(each.std(ddof=1)) / math.sqrt(len(each))
    return Estimate(sigma, spread / abs(slope) if slope else sigma, len(each))


def slow_flatness(
    problem: Problem,
    *,
    drop: float = 0.1,
    kind: Kind = "isotropic",
    risk: Risk = "loss",
    draws: int = 8,
    tol: float = 1e-10,
    seed: int = 0,
) -> Estimate:
    """A problem of its own for every draw: the oracle of `flatness`."""
    _check(problem, drop, kind, risk, draws)
    scale, centre = problem.flatten(noise_shape(problem.params, kind)), problem.flatten(problem.params)

    def risk_at(point: Tensor) -> float:
        moved = problem.at(problem.unflatten(point))
        return float(moved.loss().detach()) if risk == "loss" else float(row_errors(*predictions(moved)).double().mean())

    start = risk_at(centre)
    if risk == "loss":
        _check_digits(problem, drop, start)

    @cache
    def rise(s: float) -> np.ndarray:
        with torch.no_grad():
            pairs = [(risk_at(centre + s * noise), risk_at(centre - s * noise)) for noise in _draws(problem, scale, draws, seed)]
        return np.array([(up + down) / 2 - start for up, down in pairs])

    return _crossing(rise, drop, _finest(problem, scale, centre), _root(tol))


def never_rises(problem: Problem) -> str | None:
    """A loss that is linear in the parameters, or does not depend on them, rises under no noise, taken in pairs."""
    centre = problem.flatten(problem.params)
    step = LIMIT * next(_draws(problem, torch.ones_like(centre), 1, seed=0))
    with problem.safe(), torch.no_grad():

        def loss_at(point: Tensor) -> float:
            parts = (w * problem.batch_loss(k, problem.unflatten(point)).detach() for k, w in enumerate(problem.weights))
            return float(sum(parts, start=torch.zeros((), device=problem.device)))

        start = loss_at(centre)
        try:
            up, down = (loss_at(centre + sign * step) for sign in (1, -1))
        except Exception:  # of the model or the loss, which a loss that rises does not keep from raising so far away
            return None
    small = torch.finfo(problem.dtype).eps ** 0.5 * max(abs(start), abs(up), abs(down))
    if math.isfinite(start) and abs((up + down) / 2 - start) <= small:
        return "noise of any size leaves the loss as it is, on average: it is linear in the selected parameters, or free of them."
    return None


@instrument(
    oracle=slow_flatness,
    source=Source("Jiang et al. 2020", "Appendix C (PAC-Bayesian and magnitude-aware sharpness)", "arXiv:1912.02178"),
    refuses=never_rises,
)
def flatness(
    problem: Problem, *, drop: float = 0.1, kind: Kind = "isotropic", risk: Risk = "loss", draws: int = 8, tol: float = 1e-4, seed: int = 0
) -> Estimate:
    r"""The *standard deviation* σ of weight noise at which the mean risk has risen by ``drop``: larger is flatter.

    The smallest σ found with :math:`\mathbb{E}\,L(\theta + \sigma D\varepsilon) - L(\theta) = \text{drop}`, for standard normal ε, taken in
    pairs ±ε so that the gradient drops out. D depends on ``kind``, and with it what σ does not see:

    - ``"isotropic"``: D = 1. Every rescaling of layers moves σ.
    - ``"magnitude"``: D = ``|θ|`` entry by entry. Multiplying a ReLU unit's incoming weights and bias by c > 0 and its outgoing weights
      by 1/c leaves σ as it is.
    - ``"adaptive"``: D is the root mean square of the unit's incoming weights (the filter's), ``|θ|`` for vectors. Multiplying a whole
      layer of weights by one number, and undoing it elsewhere, leaves σ as it is; multiplying single units does not.

    The same draws serve every σ, so that the equation is solved exactly for them; the standard error is what other draws would change.

    Args:
        problem: The risk and the point.
        drop: Rise of the risk, positive: nats of loss, or a share of wrong rows.
        kind: Of the noise.
        risk: The problem's own loss, or the error of a classification.
        draws: Pairs ±ε, at least 2; each is evaluated at some fifteen values of σ, and one more for every halving below the start of the
            search.
        tol: Relative accuracy of σ for these draws.
        seed: Of the draws.

    Raises:
        Inapplicable: ``risk="error"`` of no classification, or a loss that is linear in the parameters.
        ValueError: the loss is not finite, or does not rise by ``drop``; or σ, or ``drop`` beside the loss, is too small for the digits of
            the parameters' type.

    Example:
        >>> x = torch.ones(1, 1)
        >>> quadratic = Problem(torch.nn.Linear(1, 1, bias=False), torch.nn.functional.mse_loss, (x, x))
        >>> sigma = flatness(quadratic, drop=0.04, draws=50)  # the loss rises by E(σε)² = σ²
        >>> abs(sigma.value - 0.2) < 4 * sigma.stderr, sigma.stderr < 0.03
        (True, True)

    Source: Jiang et al. 2020, arXiv:1912.02178, Appendix C; Kwon et al. 2021, arXiv:2102.11600, Section 3 (adaptive, by filters);
    Dziugaite et al. 2020, arXiv:2010.11924.
    """
    _check(problem, drop, kind, risk, draws)
    finite(problem.loss())
    scale, centre = problem.flatten(noise_shape(problem.params, kind)), problem.flatten(problem.params)

    def risk_at(point: Tensor) -> float:
        params = problem.unflatten(point)
        if risk == "error":
            return float(row_errors(*predictions(problem, params)).double().mean())
        return sum(w * float(finite(problem.batch_loss(k, params)).detach()) for k, w in enumerate(problem.weights))

    with problem.safe(), torch.no_grad():
        start = risk_at(centre)
        if risk == "loss":
            _check_digits(problem, drop, start)

        @cache
        def rise(s: float) -> np.ndarray:
            each = []
            for noise in _draws(problem, scale, draws, seed):
                step = s * noise
                each.append((risk_at(centre + step) + risk_at(centre - step)) / 2 - start)
            return np.array(each)

        return _crossing(rise, drop, _finest(problem, scale, centre), _root(tol))
