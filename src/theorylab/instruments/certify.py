"""A certificate for a randomized network: a PAC-Bayes bound on its risk, for any module, with every source of failure itemized."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from theorylab.core.instrument import Inapplicable, instrument
from theorylab.core.problem import Params, Problem, finite
from theorylab.core.seeds import derived_seed
from theorylab.core.source import Source
from theorylab.instruments.bounds import INDEPENDENT, Bound, test_bound
from theorylab.instruments.predictions import as_classification, not_classification, row_errors
from theorylab.instruments.refusals import couples_rows, hides_outputs, too_few_digits
from theorylab.instruments.row_trust import couples_outputs
from theorylab.instruments.rows_apart import fresh_start, in_one_batch, split_rows, take_rows
from theorylab.learning.minibatches import minibatches
from theorylab.learning.pac_bayes import CATONI_BETS, Gaussian, Kind, differentiable_bound, fit_gaussian, pac_bayes_bound
from theorylab.stats.betting import betting_upper_bound

PROBABILITY_FLOOR = 1e-4
"""Cross-entropy is cut where the right class has this probability, and divided by its value there, to lie in [0, 1]."""
MONTE_CARLO_SHARE = 0.2
"""Part of δ that pays for estimating the empirical risk by draws from the posterior."""
DRAWS_AT_ONCE = 25


@dataclass(frozen=True)
class Certificate(Bound):
    """A bound on the risk of a network whose parameters are drawn anew from ``posterior`` for every prediction.

    Attributes:
        posterior: Of the selected parameters, flat as `Problem.flatten` has them.
        prior: To which the KL is.
        buffers: That the certified network uses.
        rows: The numbers of the rows that the bound counts.
    """

    posterior: Gaussian = field(kw_only=True, repr=False, compare=False)
    prior: Gaussian = field(kw_only=True, repr=False, compare=False)
    buffers: Params = field(kw_only=True, repr=False, compare=False)
    rows: Tensor = field(kw_only=True, repr=False, compare=False)


@dataclass(frozen=True)
class Training:
    """How prior and posterior are trained.

    Attributes:
        epochs: Of each.
        batch_size: Rows of a minibatch; all where there are fewer.
        lr: Adam's step size for the means.
        prior_std: Standard deviation of every parameter under the prior.
    """

    epochs: int = 120
    batch_size: int = 100
    lr: float = 1e-3
    prior_std: float = 0.03

    def __post_init__(self) -> None:
        if self.epochs < 0 or self.batch_size < 1 or not self.lr > 0 or not self.prior_std > 0:
            raise ValueError(f"training needs epochs ≥ 0, batch_size ≥ 1, lr > 0 and prior_std > 0, got {self}.")


def _unsuited(problem: Problem) -> str | None:
    reason = hides_outputs(problem) or couples_rows(problem) or couples_outputs(problem)
    reason = reason or too_few_digits(problem)  # its steps would round to none
    if reason is not None:
        return reason
    if problem.train and any(isinstance(m, nn.modules.dropout._DropoutNd) for m in problem.model.modules()):
        return "dropout adds random numbers to those of the posterior. Use train=False."
    return None if problem.n >= 4 else f"a prior and a bound need rows of their own, and there are {problem.n}. Give at least 4."


Row = Callable[[Tensor, Tensor], Tensor]
"""(outputs, targets) → one number in [0, 1] a row."""


def _bounded_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    scores, classes = as_classification(outputs, targets)
    worst = -math.log(PROBABILITY_FLOOR)
    return F.cross_entropy(scores, classes, reduction="none").clamp(max=worst) / worst


def _errors(outputs: Tensor, targets: Tensor) -> Tensor:
    return row_errors(*as_classification(outputs, targets)).double()


def _clamped(problem: Problem, clamp: float) -> Row:
    def one(outputs: Tensor, targets: Tensor) -> Tensor:
        each = problem.criterion(outputs, problem._given(targets))
        if problem.reduction == "mean":
            each = torch.func.vmap(lambda o, t: problem.criterion(o[None], t[None]))(outputs, problem._given(targets))
        return each.clamp(0, clamp) / clamp

    return one


def draw_seed(seed: int, i: int) -> int:
    """The seed of draw ``i`` of a certificate: of another stream than training, whose noise the posterior has seen."""
    return derived_seed(seed, "draw", i)


def _draw_risks(problem: Problem, posterior: Gaussian, row: Row, mc: int, seed: int) -> np.ndarray:
    """The empirical risk of each of ``mc`` draws, several draws at once by vmap where the model allows it."""

    def risk(draws: Tensor) -> Tensor:
        def outputs(v: Tensor, k: int) -> Tensor:
            return problem.outputs(k, problem.unflatten(v))

        total = torch.zeros(len(draws), dtype=torch.float64, device=problem.device)
        for k, batch in enumerate(problem.batches):
            try:
                all_outputs = torch.func.vmap(outputs, in_dims=(0, None))(draws, k)
            except (RuntimeError, NotImplementedError):  # a layer without a batching rule: the same numbers, one draw after another
                all_outputs = torch.stack([outputs(v, k) for v in draws])
            total += torch.stack([row(o, batch.content[1]).double().sum() for o in all_outputs])
        return total / problem.n

    with problem.safe(), torch.no_grad():
        parts = [
            risk(torch.stack([posterior.draw(draw_seed(seed, i)) for i in range(start, min(mc, start + DRAWS_AT_ONCE))]))
            for start in range(0, mc, DRAWS_AT_ONCE)
        ]
    return torch.cat(parts).cpu().numpy()


def _train(
    problem: Problem, start: Gaussian, row: Row, how: Training, seed: int, bound: Callable[[Tensor, Gaussian], Tensor] | None = None
) -> Gaussian:
    """Minimize ``bound(mean of row, Gaussian)`` over Gaussians; without ``bound`` the mean of ``row`` over their means alone."""
    size = min(how.batch_size, problem.n)
    batches = minibatches(problem.n, size, seed)

    def objective(v: Tensor, current: Gaussian, step: int) -> Tensor:
        some = take_rows(problem, next(batches), problem._buffers)
        risk = row(some.outputs(0, some.unflatten(v)), some.batches[0].content[1]).mean()
        return risk if bound is None else bound(risk, current)

    with problem.safe():
        steps = how.epochs * (problem.n // size)
        return fit_gaussian(objective, start, steps=steps, lr=how.lr, seed=seed, learn_std=bound is not None)


def certify_slowly(problem: Problem, **options: Any) -> Certificate:
    """The certificate of the same posterior by independent means: the oracle of `certify`.

    One draw after another and one row after another, KL from torch.distributions, inverses by root finding.
    """
    from scipy.optimize import brentq
    from torch.distributions import Independent, Normal, kl_divergence

    from theorylab.stats.betting import log_capital
    from theorylab.stats.binomial import bernoulli_kl

    def root(f: Callable[[float], float], low: float) -> float:
        return cast(float, brentq(f, max(low, 1e-300), 1 - 1e-15, xtol=1e-15)) if f(1 - 1e-15) > 0 else 1.0

    fast = certify(problem, **options)
    mc, seed, clamp = options.get("mc", 400), options.get("seed", 0), options.get("clamp")
    row = _errors if options.get("risk", "error") == "error" else _clamped(problem, cast(float, clamp))
    some, risks = take_rows(in_one_batch(problem), fast.rows, fast.buffers), []
    for i in range(mc):
        params = some.unflatten(fast.posterior.draw(draw_seed(seed, i)))
        with some.safe(), torch.no_grad():
            one_by_one = [take_rows(some, r[None], fast.buffers) for r in torch.arange(some.n, device="cpu")] if some.n < 50 else [some]
            risks.append(
                sum(float(row(p.outputs(k, params), b.content[1]).sum()) for p in one_by_one for k, b in enumerate(p.batches)) / some.n
            )
    normal = [Independent(Normal(g.mean.double(), g.std.double()), 1) for g in (fast.posterior, fast.prior)]
    kl, n, delta = float(kl_divergence(*normal)), some.n, fast.delta["PAC-Bayes"]
    x, kind = np.array(risks), options.get("kind", "kl")
    e = root(lambda m: log_capital(x, m) - math.log(1 / fast.delta["Monte Carlo"]), float(x.mean()))
    c = (kl + math.log(2 * math.sqrt(n) / delta)) / n
    if kind == "kl":
        value = root(lambda p: bernoulli_kl(e, p) - c, e)
    elif kind == "catoni":
        price = (kl + math.log(len(CATONI_BETS) / delta)) / n
        value = min(1.0, *((1 - math.exp(-bet * e - price)) / (1 - math.exp(-bet)) for bet in CATONI_BETS))
    else:  # both come from kl(e, p) ≥ (p − e)²/(2p), of which the bound is the larger root
        value = root(lambda p: (p - e) ** 2 / (2 * p) - c, e)
    terms = {**fast.terms, "empirical risk": float(x.mean()), "empirical risk, Monte Carlo bound": e, "KL": kl}
    return replace(fast, value=value * (1.0 if clamp is None else clamp), terms=terms)


@instrument(
    oracle=certify_slowly,
    source=Source("Pérez-Ortiz et al. 2021", "Sections 4-6 (training by bounds, split priors, certificates)", "arXiv:2007.12911"),
    refuses=_unsuited,
    family="bounds",
    trains=True,
)
def certify(
    problem: Problem,
    *,
    prior: Literal["split", "data_free"] = "split",
    kind: Kind = "kl",
    delta: float = 0.05,
    mc: int = 400,
    risk: Literal["error", "loss"] = "error",
    clamp: float | None = None,
    prior_rows: Tensor | Sequence[int] | float | None = None,
    bound_rows: Tensor | Sequence[int] | None = None,
    init: Params | None = None,
    training: Training = Training(),  # frozen
    seed: int = 0,
) -> Certificate:
    r"""A bound on the risk of a randomized network of the model's architecture, trained by that bound on the problem's rows.

    The parameters are independent normal. The *prior* is centred at a fresh initialization (``"data_free"``), or at what training from it
    on rows of its own gives (``"split"``). The *posterior* is trained on the bound's rows by the bound itself, with the cross-entropy cut
    to [0, 1] in place of the error. Its empirical risk is estimated from ``mc`` draws, and bounded from above in turn. The parameters that
    the problem is at play no part: trained on these rows, they could be no centre of a prior.

    Args:
        problem: Rows with classes (or any rows, for ``risk="loss"``), independent; half of them go to a split prior.
        prior: Where the prior's centre comes from.
        kind: Which inequality, see `theorylab.learning.pac_bayes.pac_bayes_bound`; Catoni's pays for its grid by a union bound.
        delta: Probability in all with which the certificate may fail; a fifth of it pays for Monte Carlo.
        mc: Draws from the posterior, at least 2.
        risk: ``"error"``, the probability of a wrong class, or ``"loss"``, the problem's own loss a row, cut at ``clamp``.
        clamp: Upper end of the loss, which must not be negative.
        prior_rows: Numbers of the rows that train a split prior, each once, or a mask (n,), or their share; default: half, drawn by
            ``seed``.
        bound_rows: Numbers of the rows that the bound counts, each once, or a mask (n,); default: all others.
        init: Initial parameters instead of fresh ones, by name; they must not depend on the bound's rows.
        training: How long and how fast.
        seed: Of the split, the initialization, the minibatches and the draws.

    Returns:
        The certificate. For a split prior a test-set bound is beside it: of the prior's centre, on the bound's rows.

    Raises:
        Inapplicable: no rows of their own (BatchNorm in training mode), dropout, half precision, no classes, or no initialization free of
            the data.
        ValueError: rows that serve both prior and bound, do not exist or are given twice, a loss without ``clamp``, or an argument out of
            its range.
        FloatingPointError: training diverged.

    Example:
        >>> x = torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
        >>> problem = Problem(nn.Linear(2, 2), F.cross_entropy, (x, (x[:, 0] > 0).long()))
        >>> certificate = certify(problem, training=Training(epochs=40, lr=0.05), mc=100)
        >>> certificate.value < 0.2, round(certificate.total_delta, 12), list(certificate.delta)
        (True, 0.05, ['PAC-Bayes', 'Monte Carlo'])

    Source: Pérez-Ortiz et al. 2021, arXiv:2007.12911, Sections 4-6; Dziugaite and Roy 2017, arXiv:1703.11008, Section 3.
    """
    _check(prior, kind, delta, mc, risk, clamp)
    if risk == "error" and (reason := not_classification(problem)) is not None:
        raise Inapplicable(f"certify does not apply: {reason} Or bound the loss: risk='loss', clamp=...")
    trained_on, counted = split_rows(problem.n, prior, prior_rows, bound_rows, seed)
    finite(problem.loss())
    start, buffers = (init, problem._buffers) if init is not None else fresh_start(problem, seed)
    whole = in_one_batch(problem.at(start))
    ours = take_rows(whole, counted, buffers)
    row, surrogate = (_errors, _bounded_cross_entropy) if clamp is None else (_clamped(problem, clamp),) * 2
    parts = {"PAC-Bayes": (1 - MONTE_CARLO_SHARE) * delta, "Monte Carlo": MONTE_CARLO_SHARE * delta}

    centre = whole.flatten(whole.params)
    before = Gaussian(centre, torch.full_like(centre, training.prior_std))
    learner = take_rows(whole, trained_on if prior == "split" else counted, buffers, size=problem.n)
    warm = _train(learner, before, surrogate, training, seed)
    before = warm if prior == "split" else before
    posterior = _train(
        take_rows(whole, counted, buffers, size=problem.n),
        warm,
        surrogate,
        training,
        derived_seed(seed, "posterior"),
        lambda e, q: differentiable_bound(kind, e, q.kl(before), ours.n, parts["PAC-Bayes"]),
    )

    risks, kl = _draw_risks(ours, posterior, row, mc, seed), max(0.0, float(posterior.kl(before)))  # rounding may leave −1e-12
    upper = betting_upper_bound(risks, parts["Monte Carlo"])
    value = pac_bayes_bound(kind, upper, kl, ours.n, parts["PAC-Bayes"])
    terms = {"empirical risk": float(risks.mean()), "empirical risk, Monte Carlo bound": upper, "KL": kl, "rows": float(ours.n)}
    beside = None
    if prior == "split" and risk == "error":
        beside = test_bound(ours.at(ours.unflatten(before.mean)), delta=delta)
        beside = replace(beside, quantity="error of the prior's centre")
    quantity = "error" if clamp is None else f"loss cut at {clamp:g}"
    return Certificate(
        value * (1.0 if clamp is None else clamp),
        parts,
        terms,
        _assumptions(problem, init, buffers),
        f"PAC-Bayes-{kind}",
        f"{quantity} of the randomized network",
        beside,
        posterior=posterior,
        prior=before,
        buffers=buffers,
        rows=counted,
    )


def _check(prior: str, kind: str, delta: float, mc: int, risk: str, clamp: float | None) -> None:
    for name, value, known in (
        ("prior", prior, ("split", "data_free")),
        ("kind", kind, get_args(Kind)),
        ("risk", risk, ("error", "loss")),
    ):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}.")
    if not 0 < delta < 1 or mc < 2:
        raise ValueError(f"delta must lie in (0, 1) and mc be at least 2, got delta={delta}, mc={mc}.")
    if risk == "loss" and (clamp is None or not clamp > 0):
        raise ValueError(f"clamp must be given for a loss, which is unbounded without it: a positive number, got {clamp}.")
    if risk == "error" and clamp is not None:
        raise ValueError("clamp belongs to risk='loss'; an error is 0 or 1.")


def _assumptions(problem: Problem, init: Params | None, buffers: Params) -> tuple[str, ...]:
    said = [INDEPENDENT, "architecture and settings were not chosen by looking at the rows"]
    if init is not None:
        said.append("init does not depend on the bound's rows")
    if problem._frozen:
        said.append("the frozen parameters do not depend on the bound's rows")
    if buffers:
        said.append("the buffers do not depend on the bound's rows")
    return tuple(said)
