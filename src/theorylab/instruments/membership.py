"""Was a row in the training set? Attacks that compare a network with others trained with and without the row, and their error rates."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from theorylab.core.arguments import given
from theorylab.core.estimate import LEVEL, Estimate, as_samples
from theorylab.stats.binomial import proportion


@dataclass(frozen=True)
class Rate:
    """A share of successes with its interval.

    Attributes:
        value: Successes over trials.
        low, high: The exact (Clopper-Pearson) interval.
        n: Trials.
        level: Its confidence.
    """

    value: float
    low: float
    high: float
    n: int
    level: float

    @classmethod
    def of(cls, successes: int, n: int, level: float = LEVEL) -> Rate:
        """The share of ``successes`` in ``n`` independent trials."""
        found = proportion(successes, n, level)
        return cls(found.value, found.low, found.high, n, level)


def logit_confidence(logits: Tensor, targets: Tensor) -> Tensor:
    r"""The score of an attack: :math:`\log\frac{p_y}{1 - p_y}` of the true class, which is nearly normal where p_y is squeezed at 1.

    Computed as :math:`z_y - \log\sum_{j\ne y} e^{z_j}`, so that a confidence of one by rounding does not become infinite.

    Args:
        logits: (..., n, classes).
        targets: Classes, (n,).

    Returns:
        (..., n).

    Raises:
        ValueError: fewer than two classes, or shapes that do not match.

    Example:
        >>> logit_confidence(torch.tensor([[0.0, 100.0]]), torch.tensor([1])).tolist()
        [100.0]

    Source: Carlini et al. 2022, arXiv:2112.03570, the logit scaling of the online attack and the remark on its stable computation.
    """
    if logits.ndim < 2 or logits.shape[-1] < 2 or targets.shape != logits.shape[-2:-1]:
        raise ValueError(
            f"logits must be (..., n, classes) with two classes or more, and targets (n,), got {tuple(logits.shape)} and "
            f"{tuple(targets.shape)}."
        )
    own = targets[:, None] == torch.arange(logits.shape[-1], device=logits.device)  # `one_hot` has no rule for vmap
    rest = logits.masked_fill(own, -math.inf).logsumexp(-1)
    return logits.gather(-1, targets.expand(logits.shape[:-1])[..., None])[..., 0] - rest


def _models(scores: Any, membership: Any, least: int) -> tuple[Tensor, Tensor]:
    """Scores and membership as float64 and bool (model, row), with ``least`` other models on either side of every row."""
    values, inside = given(scores, torch.float64), given(membership).bool()
    if values.ndim != 2 or values.shape != inside.shape:
        raise ValueError(f"scores and membership must both be (models, rows), got {tuple(values.shape)} and {tuple(inside.shape)}.")
    if not bool(values.isfinite().all()):
        raise ValueError("scores must be finite: use logit_confidence, which does not overflow.")
    counts = inside.sum(0)
    fewest = min(int(counts.min()), int((len(inside) - counts).min()))
    if fewest < least + 1:  # the model under attack is left out
        raise ValueError(
            f"every row must be in the training set of at least {least + 1} models and out of that of as many, got a row with {fewest}. "
            "Train more models, on random halves of the rows."
        )
    return values, inside


def lira(scores: Any, membership: Any, *, variance: Literal["row", "pooled"] = "row") -> Tensor:
    r"""Log-likelihood ratio of membership, each model judged by all *others*.

    It is :math:`\log\frac{p(\phi\mid\mathrm{in})}{p(\phi\mid\mathrm{out})}`. For every row two normal laws are
    fitted, to the scores of the models that were trained on it and of those that were not. The model under attack is left out of both: with
    it, its own score would pull the law of its side towards itself, and the attack would look better than it is.

    Compare rows within a model, or all pairs together. Among the models of *one* row the ratio is biased against the attack where there is
    little to see: leaving a model out moves the law of its side away from it.

    Args:
        scores: (models, rows), of every model at every row; from `logit_confidence`.
        membership: (models, rows), which rows each model was trained on.
        variance: ``"row"``: a variance for every row and side. ``"pooled"``: one for each side, right with few models.

    Returns:
        (models, rows): large where the row looks like a member.

    Raises:
        ValueError: shapes that do not match, scores that are not finite or do not vary, or too few models in or out of a row.

    Example:
        >>> inside = torch.tensor([[1, 0], [1, 0], [1, 1], [0, 1], [0, 0], [0, 1]]).bool()
        >>> noise = torch.linspace(-0.3, 0.3, 12).reshape(6, 2)
        >>> bool(((lira(3.0 * inside + noise, inside) > 0) == inside).all())
        True

    Source: Carlini et al. 2022, arXiv:2112.03570, Algorithm 1 (online attack); the pooled variance is its remedy for few models.
    """
    if variance not in ("row", "pooled"):
        raise ValueError(f'variance must be "row" or "pooled", got {variance!r}.')
    values, inside = _models(scores, membership, 2)
    phi = values - values.mean(0)  # centred, so that the variances below lose no digits
    ratio = torch.zeros_like(phi)
    for side, sign in ((inside, 1.0), (~inside, -1.0)):
        own = side.double()  # 1 where the model would be among the statistics of this side
        count = own.sum(0) - own
        mean = ((own * phi).sum(0) - own * phi) / count
        squares = (own * phi.square()).sum(0) - own * phi.square()
        spread = (squares - count * mean.square()).clamp(min=0) / (count - 1)
        if variance == "pooled":
            spread = spread.mean(1, keepdim=True).expand_as(spread)
        if not bool((spread > 0).all()):
            raise ValueError('scores of a row must vary over models, got equal ones: use variance="pooled", or another score.')
        ratio += sign * (-0.5 * spread.log() - (phi - mean).square() / (2 * spread))
    return ratio


def rmia(probabilities: Any, membership: Any, reference: Any, *, gamma: float = 1.0) -> Tensor:
    r"""The share of reference rows z that a row x outdoes, each relative to what other models say of it.

    It is :math:`\Pr_z\Bigl[\frac{p(x\mid\theta)/p(x)}{p(z\mid\theta)/p(z)} \ge \gamma\Bigr]`. p(x) is the mean probability over
    other models, in and out of x alike; p(z) that over other models. The model under attack is in neither.

    Args:
        probabilities: Of the true class, in (0, 1], (models, rows).
        membership: (models, rows), which rows each model was trained on.
        reference: Probabilities of the true class of rows that no model was trained on, (models, reference rows).
        gamma: γ, positive.

    Returns:
        (models, rows), in [0, 1]: large where the row looks like a member.

    Raises:
        ValueError: shapes that do not match, probabilities outside (0, 1], γ ≤ 0, or too few models in or out of a row.

    Source: Zarifzadeh et al. 2024, arXiv:2312.03262, the definition of the score, and the online estimate of p(x).
    """
    if not gamma > 0:
        raise ValueError(f"gamma must be positive, got {gamma}.")
    p, inside = _models(probabilities, membership, 1)
    z = given(reference, torch.float64)
    if z.ndim != 2 or len(z) != len(p) or z.shape[1] == 0:
        raise ValueError(f"reference must be ({len(p)}, reference rows), got {tuple(z.shape)}.")
    for name, t in (("probabilities", p), ("reference", z)):
        if not bool(((t > 0) & (t <= 1)).all()):
            raise ValueError(f"{name} must lie in (0, 1], got {float(t.min())} to {float(t.max())}: clamp what rounding made zero.")
    sides = []
    for side in (inside.double(), (~inside).double()):
        sides.append(((side * p).sum(0) - side * p) / (side.sum(0) - side))
    x_ratio = p / (0.5 * (sides[0] + sides[1]))
    z_ratio = z / ((z.sum(0) - z) / (len(z) - 1))
    ordered = z_ratio.sort(1).values  # gamma z ≤ x counts how many are outdone
    return torch.searchsorted(gamma * ordered, x_ratio.contiguous(), right=True).double() / z.shape[1]


def roc_at(fpr: float, scores_in: Any, scores_out: Any, *, level: float = LEVEL) -> Rate:
    """True positive rate of "score above a threshold" where at most a share ``fpr`` of non-members is above it.

    The threshold is the score of a non-member; equal scores count as below. The interval is exact given the threshold, for independent
    trials: rows of one model, or models of one row.

    Args:
        fpr: False positive rate, in [0, 1).
        scores_in: Of members, any shape.
        scores_out: Of non-members, any shape.
        level: Confidence of the interval.

    Raises:
        ValueError: a rate out of range, no scores, scores that are not finite, or too few non-members to see such a rate.

    Example:
        >>> roc_at(0.25, [3.0, 2.5, 0.0, 4.0], [0.0, 1.0, 2.0, 3.5]).value  # one of four non-members may lie above
        0.75
    """
    members, others = as_samples(scores_in, name="scores_in"), as_samples(scores_out, name="scores_out")
    if not 0 <= fpr < 1:
        raise ValueError(f"fpr must lie in [0, 1), got {fpr}.")
    allowed = math.floor(fpr * others.size + 1e-9)
    if fpr > 0 and allowed == 0:
        raise ValueError(
            f"scores_out must hold at least {math.ceil(1 / fpr)} scores to see a false positive rate of {fpr}, got {others.size}."
        )
    threshold = np.sort(others)[::-1][allowed]
    return Rate.of(int((members > threshold).sum()), members.size, level)


def auc(scores_in: Any, scores_out: Any) -> Estimate:
    """The chance that a member scores above a non-member, equal scores counting half; its standard error is DeLong's.

    Raises:
        ValueError: fewer than two scores on a side, or scores that are not finite.

    Example:
        >>> auc([3.0, 2.0], [1.0, 2.0]).value
        0.875

    Source: DeLong, DeLong and Clarke-Pearson 1988, doi:10.2307/2531595 (placement values).
    """
    from scipy.stats import rankdata

    members, others = as_samples(scores_in, name="scores_in"), as_samples(scores_out, name="scores_out")
    m, n = members.size, others.size
    if min(m, n) < 2:
        raise ValueError(f"scores must hold at least two members and two non-members, got {m} and {n}.")
    joint = rankdata(np.concatenate([members, others]))
    placed = (joint[:m] - rankdata(members)) / n  # the share of non-members below each member
    beaten = 1 - (joint[m:] - rankdata(others)) / m
    return Estimate(float(placed.mean()), math.sqrt(placed.var(ddof=1) / m + beaten.var(ddof=1) / n), m + n)
