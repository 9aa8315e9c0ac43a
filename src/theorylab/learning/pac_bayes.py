"""PAC-Bayes: bounds on the risk of a randomized predictor, and training a Gaussian by them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, cast, get_args

import torch
from torch import Tensor

from theorylab.learning.optimizers.adam import adam
from theorylab.stats.binomial import kl_inverse

Kind = Literal["kl", "quad", "lambda", "catoni"]
CATONI_BETS = tuple(2.0 ** (j / 2) for j in range(-8, 7))
"""Values of Catoni's C, chosen before any data; the best may be taken at the price of δ over their number."""
FLAT = 0.95
"""Value from which on a bound's derivative is too small to train by."""
SIGMA_SPEED = 10.0
"""How much faster than the means the logarithms of the standard deviations are trained: theirs is the flatter direction."""


@dataclass(frozen=True)
class Gaussian:
    """Independent normal parameters: ``mean`` and ``std``, (p,) each."""

    mean: Tensor
    std: Tensor

    def draw(self, seed: int) -> Tensor:
        """One sample (p,): noise of its own generator, drawn in float64, so that it depends on nothing but the seed."""
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(self.mean.shape, generator=generator, dtype=torch.float64, device="cpu")
        return self.mean + self.std * noise.to(self.mean)

    def kl(self, prior: Gaussian) -> Tensor:
        r"""Relative entropy of this to the prior N(m, s²), in nats, in float64.

        :math:`\sum_i \ln\frac{s_i}{\sigma_i} + \frac{\sigma_i^2 + (\mu_i-m_i)^2}{2 s_i^2} - \frac12`.
        """
        ratio = (self.std / prior.std).double().square()
        moved = ((self.mean - prior.mean) / prior.std).double().square()
        return 0.5 * (ratio - 1 - ratio.log() + moved).sum().clamp(min=0)  # rounding may leave less


def complexity(kl: float | Tensor, n: int, delta: float) -> float | Tensor:
    r"""K = (KL + ln(2√n/δ)) / (2n), the slack of the PAC-Bayes-kl inequality kl(e ‖ risk) ≤ 2k.

    Raises:
        ValueError: KL below 0, n below 1, or δ outside (0, 1).

    Source: Maurer 2004, arXiv:cs/0411099, Theorem 5.
    """
    if kl < 0 or not (n >= 1 and 0 < delta < 1):  # NaN is left as it is: training says in which step it came
        raise ValueError(f"kl must be at least 0, n at least 1 and delta in (0, 1), got kl={float(kl):g}, {n=}, {delta=}.")
    return (kl + math.log(2 * math.sqrt(n) / delta)) / (2 * n)


def pac_bayes_bound(kind: Kind, error: float, kl: float, n: int, delta: float) -> float:
    r"""Upper bound on the risk, in [0, 1], of a predictor drawn from the posterior, with probability at least 1 − δ over n rows.

    With k from `complexity`: ``"kl"`` is the inverse kl⁻¹(e, 2k); ``"quad"`` is (√(e+k) + √k)²; ``"lambda"`` is the least of
    e/(1−λ/2) + 2k/(λ(1−λ/2)) over λ in (0, 2), which holds for all λ at once; ``"catoni"`` is the least of
    (1 − exp(−Ce − (KL + ln(J/δ))/n)) / (1 − exp(−C)) over J values of C fixed beforehand, by a union bound.

    Args:
        kind: Which inequality; ``"kl"`` is never above ``"quad"``, which equals ``"lambda"``.
        error: e, the posterior's mean empirical risk, in [0, 1].
        kl: KL(posterior ‖ prior), not negative; the prior must not depend on the n rows.
        n: Rows.
        delta: Probability of failure, in (0, 1).

    Raises:
        ValueError: an argument out of its range.

    Example:
        >>> [round(pac_bayes_bound(kind, 0.05, 10.0, 1000, 0.05), 4) for kind in ("kl", "quad", "lambda", "catoni")]
        [0.1008, 0.112, 0.112, 0.0982]

    Source: Maurer 2004, arXiv:cs/0411099, Theorem 5; Thiemann et al. 2017, arXiv:1608.05610 (the PAC-Bayes-λ inequality); Pérez-Ortiz et
    al. 2021, arXiv:2007.12911, Section 4; Catoni 2007, arXiv:0712.0248, Theorem 1.2.6.
    """
    if kind not in get_args(Kind):
        raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, got {kind!r}.")
    if not (0 <= error <= 1 and kl >= 0 and n >= 1 and 0 < delta < 1):
        raise ValueError(f"error and delta must lie in [0, 1] and (0, 1), kl ≥ 0, n ≥ 1, got {error=}, {delta=}, {kl=}, {n=}.")
    k = float(complexity(kl, n, delta))
    if kind == "kl":
        return kl_inverse(error, 2 * k)
    if kind == "catoni":
        price = (kl + math.log(len(CATONI_BETS) / delta)) / n
        return min(1.0, *(-math.expm1(-c * error - price) / -math.expm1(-c) for c in CATONI_BETS))
    if kind == "quad":
        return min(1.0, (math.sqrt(error + k) + math.sqrt(k)) ** 2)
    lam = 2 / (math.sqrt(1 + error / k) + 1)
    return min(1.0, error / (1 - lam / 2) + 2 * k / (lam * (1 - lam / 2)))


def differentiable_bound(kind: Kind, error: Tensor, kl: Tensor, n: int, delta: float) -> Tensor:
    """The same bound as a function of tensors, to train by; its free parameter (λ, C) is held at its best.

    The inverse of kl has no formula: its value is returned with its derivatives, ∂p/∂c = p(1−p)/(p−e) and
    ∂p/∂e = p(1−p)/(p−e)·ln(p(1−e)/(e(1−p))). Near one the inverse and Catoni's bound are flat and would teach nothing: above `FLAT` the
    quadratic bound, which grows without limit, takes their place.

    Raises:
        TypeError: ``error`` or ``kl`` is no tensor.
        ValueError: as `pac_bayes_bound` and `complexity` do.
    """
    for name, value in (("error", error), ("kl", kl)):
        if not isinstance(value, Tensor):
            raise TypeError(
                f"{name} must be a tensor, to be differentiated by, got {type(value).__name__}: use pac_bayes_bound for numbers."
            )
    k = cast(Tensor, complexity(kl, n, delta))
    e = error.double()
    if kind == "lambda":
        lam = 2 / ((1 + e / k).detach().sqrt() + 1)
        return e / (1 - lam / 2) + 2 * k / (lam * (1 - lam / 2))
    at, c = float(e.detach()), 2 * float(k.detach())
    p = 1.0 if kind == "quad" else pac_bayes_bound(kind, min(at, 1.0), float(kl.detach()), n, delta)
    if p > FLAT:
        return ((e + k).sqrt() + k.sqrt()).square()
    if kind == "catoni":
        price = (kl + math.log(len(CATONI_BETS) / delta)) / n
        bets = torch.tensor(CATONI_BETS, dtype=e.dtype, device=e.device)
        return (torch.expm1(-bets * e - price) / torch.expm1(-bets)).min()
    q = max(at, 1e-12)
    slope = p * (1 - p) / (p - q)
    return p + slope * (2 * k - c) + slope * math.log(p * (1 - q) / (q * (1 - p))) * (e - at)


def fit_gaussian(
    objective: Callable[[Tensor, Gaussian, int], Tensor], start: Gaussian, *, steps: int, lr: float, seed: int, learn_std: bool = True
) -> Gaussian:
    """The Gaussian that Adam finds from ``start``, with one fresh draw of the parameters a step.

    Args:
        objective: (a draw (p,), the Gaussian that it is from, step) → scalar to be minimized.
        start: Where training begins.
        steps: At least 0.
        lr: Step size of the means; `SIGMA_SPEED` times larger for the logarithms of the standard deviations.
        seed: Of the draws.
        learn_std: Otherwise the standard deviations stay as they are.

    Raises:
        FloatingPointError: the objective is not finite.

    Example:
        >>> start = Gaussian(torch.zeros(2), 0.1 * torch.ones(2))
        >>> found = fit_gaussian(lambda w, q, step: (w - 1).square().sum(), start, steps=300, lr=0.05, seed=0)
        >>> bool((found.mean - 1).abs().max() < 0.05), bool(found.std.max() < 0.1)
        (True, True)
    """
    mean, log_std = {"x": start.mean[None].clone()}, {"x": start.std.log()[None].clone()}
    means, stds = adam(lr), adam(SIGMA_SPEED * lr)
    mean_state, std_state = means.init(mean), stds.init(log_std)
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        leaves = [mean["x"].requires_grad_(), log_std["x"].requires_grad_(learn_std)]
        current = Gaussian(leaves[0][0], leaves[1][0].exp())
        noise = torch.randn(start.mean.shape, generator=generator, dtype=torch.float64, device="cpu").to(start.mean)
        value = objective(current.mean + current.std * noise, current, step)
        if not bool(torch.isfinite(value.detach())):
            raise FloatingPointError(f"the objective is {value.item()} in step {step}: lower lr, got {lr}.")
        grads = torch.autograd.grad(value, [leaf for leaf in leaves if leaf.requires_grad], materialize_grads=True)
        with torch.no_grad():
            mean, mean_state = means.update({"x": grads[0]}, mean_state, {"x": leaves[0].detach()})
            if learn_std:
                log_std, std_state = stds.update({"x": grads[1]}, std_state, {"x": leaves[1].detach()})
    return Gaussian(mean["x"][0].detach(), log_std["x"][0].detach().exp())
