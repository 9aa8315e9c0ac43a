"""Does a rule for larger batches leave the result of training where it was? Networks trained with it and without it, and a verdict."""

from __future__ import annotations

import math
import operator
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from theorylab.core.arguments import kind_of
from theorylab.core.claim import Verdict
from theorylab.core.estimate import LEVEL, mean_interval
from theorylab.core.seeds import several_seeds
from theorylab.learning.optimizers.base import Optimizer
from theorylab.learning.population import Population
from theorylab.learning.risk import Loss
from theorylab.learning.scaling_rules import Recipe, Rule, linear_rule, same_settings, square_root_rule

RULES: dict[str, Rule] = {"linear": linear_rule, "square_root": square_root_rule}
TRIAL = 3
"""Steps by which the time of a run is estimated."""


@dataclass(frozen=True)
class Rescaled:
    """A run at k times the batch size, against the one at k = 1.

    Attributes:
        k: By what the batch grew.
        recipe: Its settings.
        losses: Final mean loss over all rows, of each seed; infinite or NaN where training diverged.
        change: Mean change of the final loss, relative to the mean at k = 1; infinite where a seed diverged.
        interval: Its confidence interval.
        verdict: Whether the interval lies within the margin, outside of it, or across its border. A run that diverged fails.
    """

    k: int
    recipe: Recipe
    losses: tuple[float, ...]
    change: float
    interval: tuple[float, float]
    verdict: Verdict


@dataclass(frozen=True)
class ScalingCheck:
    """What `scaling_check` found.

    Attributes:
        base: The recipe at k = 1.
        losses: Its final losses, of each seed.
        margin: By what a final loss may change, as a share of the mean at k = 1.
        with_rule: Runs under the rule, one for each k.
        without: The same with every setting but batch size and number of steps left alone: where these hold too, the runs at hand tell
            nothing about the rule.
    """

    base: Recipe
    losses: tuple[float, ...]
    margin: float
    with_rule: tuple[Rescaled, ...]
    without: tuple[Rescaled, ...]

    def __str__(self) -> str:
        mean = sum(self.losses) / len(self.losses)
        lines = [f"final loss {mean:.4g} at batch size {self.base.batch_size}; changes, to be within ±{self.margin:.0%}"]
        for name, runs in (("with the rule", self.with_rule), ("without", self.without)):
            for run in runs:
                low, high = run.interval
                lines.append(f"  {name}, k = {run.k}: {run.change:+.1%} [{low:+.1%}, {high:+.1%}]: {run.verdict}")
        return "\n".join(lines)


@dataclass(frozen=True)
class ScalingPlan:
    """What a `scaling_check` would train and what that costs, before it is done; `run` does it.

    Attributes:
        base: The recipe at k = 1.
        ks: By what the batch grows.
        scaled, unscaled: Recipes with the rule and without, one for each k.
        seeds: Replicas of each run.
        rows: Gradients of rows, over all runs and seeds.
        seconds: Estimated from a few steps of each run.
    """

    base: Recipe
    ks: tuple[int, ...]
    scaled: tuple[Recipe, ...]
    unscaled: tuple[Recipe, ...]
    seeds: tuple[int, ...]
    rows: int
    seconds: float
    margin: float
    level: float
    make: Callable[[Recipe], Population]

    def __str__(self) -> str:
        runs = 1 + len(self.scaled) + len(self.unscaled)
        return f"{runs} runs of {len(self.seeds)} seeds: gradients of {self.rows:.3g} rows, about {self.seconds:.2g} s"

    def run(self) -> ScalingCheck:
        """Train every run and compare.

        Raises:
            FloatingPointError: the run at k = 1 diverged, so that there is nothing to compare with.
            ValueError: its loss is zero or negative, so that no change can be relative to it.
        """
        base = final_losses(self.make, self.base)
        if not bool(base.isfinite().all()):
            raise FloatingPointError(f"training diverged at k = 1 already, with {self.base}: lower its step size.")
        if not float(base.mean()) > 0:
            raise ValueError(
                f"the mean loss at k = 1 must be positive for changes relative to it, got {float(base.mean()):g} with {self.base}: "
                "stop before the data are fitted exactly, or use a loss that is not negative."
            )

        def compare(recipes: tuple[Recipe, ...]) -> tuple[Rescaled, ...]:
            return tuple(
                _compared(k, r, base, final_losses(self.make, r), self.margin, self.level) for k, r in zip(self.ks, recipes, strict=True)
            )

        return ScalingCheck(self.base, tuple(base.tolist()), self.margin, compare(self.scaled), compare(self.unscaled))


def final_losses(make: Callable[[Recipe], Population], recipe: Recipe) -> Tensor:
    """Mean loss over all rows after the recipe's steps, (replica,); not finite where training diverged."""
    population = make(recipe)
    population.train(recipe.steps, check=False)
    return population.losses()


def relative_change(losses: Tensor, base: Tensor) -> Tensor:
    """Change of each seed's loss against the same seed's at k = 1, in units of the latter's mean over seeds, (replica,)."""
    return (losses - base) / base.mean()


def _compared(k: int, recipe: Recipe, base: Tensor, losses: Tensor, margin: float, level: float) -> Rescaled:
    if bool(losses.isfinite().all()):
        change = relative_change(losses, base)
        mean, interval = float(change.mean()), mean_interval(change.cpu().double().numpy(), level)
    else:
        mean, interval = math.inf, (math.inf, math.inf)
    return Rescaled(k, recipe, tuple(losses.tolist()), mean, interval, Verdict.of(interval, (-margin, margin)))


def scaling_plan(
    make_model: Callable[[], nn.Module],
    loss: Loss,
    data: tuple[Tensor, Tensor],
    *,
    optimizer: Callable[[Recipe], Optimizer],
    base: Recipe,
    ks: Iterable[int],
    rule: str | Rule,
    seeds: int | Iterable[int] = 16,
    margin: float = 0.15,
    level: float = LEVEL,
    dtype: torch.dtype = torch.float64,
    device: str | torch.device = "cpu",
) -> ScalingPlan:
    """What `scaling_check` with the same arguments would train and cost; its ``run`` does it.

    Raises:
        ValueError: as `scaling_check`.

    Example:
        >>> from theorylab.learning.optimizers.sgd import sgd
        >>> rows = torch.linspace(-1, 1, 32)[:, None]
        >>> plan = scaling_plan(lambda: nn.Linear(1, 1), nn.functional.mse_loss, (rows, 2 * rows), optimizer=lambda r: sgd(r.lr),
        ...                     base=Recipe(lr=0.01, batch_size=2, steps=64), ks=[2, 4], rule="linear")
        >>> plan.rows  # 5 runs of 16 seeds, each of 128 rows
        10240
    """
    rescale = RULES.get(rule) if isinstance(rule, str) else rule
    if rescale is None:
        raise ValueError(f"rule must be one of {', '.join(RULES)} or a function of recipe and k, got {rule!r}.")
    if isinstance(optimizer, Optimizer) or not callable(optimizer):
        raise TypeError(f"optimizer must be a function of a Recipe, as lambda recipe: sgd(recipe.lr), got {kind_of(optimizer)}.")
    if not isinstance(base, Recipe):
        raise TypeError(f"base must be a Recipe(lr=..., batch_size=..., steps=...), got {kind_of(base)}.")
    try:
        factors = tuple(map(operator.index, ks))
    except TypeError:
        raise TypeError(f"ks must be a list of factors of the batch size, whole numbers, as [2, 4], got {ks!r}.") from None
    if not factors:
        raise ValueError("ks must name at least one factor of the batch size, got none.")
    chosen = several_seeds(seeds)
    if not margin > 0:
        raise ValueError(f"margin must be positive, got {margin}.")
    scaled, unscaled = (tuple(f(base, k) for k in factors) for f in (rescale, same_settings))

    def make(recipe: Recipe) -> Population:
        return Population(
            make_model,
            loss,
            data,
            optimizer=optimizer(recipe),
            seeds=chosen,
            batch_size=recipe.batch_size,
            dtype=dtype,
            device=device,
        )

    runs = (base, *scaled, *unscaled)
    rows = len(chosen) * sum(r.batch_size * r.steps for r in runs)
    seconds = sum(_seconds(make(r), r) for r in runs)
    return ScalingPlan(base, factors, scaled, unscaled, chosen, rows, seconds, margin, level, make)


def _seconds(population: Population, recipe: Recipe) -> float:
    """Of a whole run, from a few steps after the one that settles how to train."""
    population.train(1, check=False)
    start = time.perf_counter()
    population.train(TRIAL, check=False)
    population.losses().sum().item()  # waits for a device that works ahead
    return (time.perf_counter() - start) * recipe.steps / TRIAL


def scaling_check(
    make_model: Callable[[], nn.Module],
    loss: Loss,
    data: tuple[Tensor, Tensor],
    *,
    optimizer: Callable[[Recipe], Optimizer],
    base: Recipe,
    ks: Iterable[int],
    rule: str | Rule,
    seeds: int | Iterable[int] = 16,
    margin: float = 0.15,
    level: float = LEVEL,
    dtype: torch.dtype = torch.float64,
    device: str | torch.device = "cpu",
    announce: Callable[[ScalingPlan], object] = print,
) -> ScalingCheck:
    r"""Whether a scaling rule keeps the final loss of your model as the batch grows, by an equivalence test over seeds.

    Trains one population at the base recipe, and for every k one under the rule and one with only batch size and number of steps changed;
    all see the same number of rows, and share initial networks seed by seed. The measurement is the mean relative change of the final loss
    over all rows, :math:`(L_k - L_1)/\bar L_1`; the rule holds at k where its interval lies within ``margin`` of zero, fails where it lies
    outside, and is inconclusive across the border: then more seeds are needed, not a wider margin.

    Args:
        make_model: Builds one network.
        loss: ``loss(outputs, targets)``, the mean over rows or one number a row.
        data: Inputs and targets (n, ...).
        optimizer: Recipe → optimizer, which must use all that the rule changes: ``lambda r: sgd(r.lr)``, or
            ``lambda r: adam(r.lr, r.betas, r.eps)``.
        base: Settings at k = 1.
        ks: By what the batch grows; each divides the number of steps, and k·B is at most n.
        rule: "linear" (of SGD), "square_root" (of Adam and RMSProp), or a function of recipe and k.
        seeds: Of initial networks and minibatches: how many, at least 2, or which; fix them before looking.
        margin: By what a final loss may change, as a share of the mean at k = 1.
        level: Confidence of the intervals.
        dtype: Of parameters and data.
        device: Where to train.
        announce: Told the plan, with its cost, before training begins; `scaling_plan` makes it without training.

    Returns:
        Verdicts and losses for each k, with the rule and without. Where all of the latter hold as well, the check says nothing.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument out of its range, a seed that is repeated; k(1 − β) ≥ 1 under the square-root rule, which leaves no memory
            to scale.
        FloatingPointError: training at k = 1 diverged.

    Cost: (1 + 2·len(ks))·len(seeds)·B·T gradients of rows; a population trains its seeds together.

    Example:
        >>> from theorylab.learning.optimizers.sgd import sgd
        >>> x = torch.randn(256, 4, generator=torch.Generator().manual_seed(0))
        >>> found = scaling_check(lambda: nn.Linear(4, 1), nn.functional.mse_loss, (x, x @ torch.ones(4, 1) + 1), ks=[8], rule="linear",
        ...                       optimizer=lambda r: sgd(r.lr), base=Recipe(lr=0.002, batch_size=2, steps=256), announce=lambda plan: None)
        >>> str(found.with_rule[0].verdict), str(found.without[0].verdict)
        ('holds', 'fails')

    Source: Goyal et al. 2017, arXiv:1706.02677, Section 2.1 (linear); Malladi et al. 2022, arXiv:2205.10287, Section 5 (square root).
    """
    plan = scaling_plan(
        make_model,
        loss,
        data,
        optimizer=optimizer,
        base=base,
        ks=ks,
        rule=rule,
        seeds=seeds,
        margin=margin,
        level=level,
        dtype=dtype,
        device=device,
    )
    announce(plan)
    return plan.run()
