"""Whether attribution scores predict retraining: the linear datamodeling score, its interval, and the ceiling that noise sets to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from theorylab.core.estimate import Estimate

BLOCKS = 20
"""Groups of subsets that the jackknife leaves out one after another."""


def _array(values: Any, name: str) -> np.ndarray:
    if hasattr(values, "detach"):
        values = values.detach().cpu().double().numpy()
    array = np.asarray(values, dtype=np.float64)
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite: a retraining that diverged has no value.")
    return array


def _ranked(columns: np.ndarray) -> np.ndarray:
    """Centred ranks along the first axis, of unit length; zero for a constant."""
    from scipy.stats import rankdata

    ranks = rankdata(columns, axis=0)
    ranks -= ranks.mean(0)
    length = np.sqrt((ranks**2).sum(0))
    return ranks / np.where(length > 0, length, 1.0)


def spearman(x: Any, y: Any) -> np.ndarray:
    """Spearman's rank correlation of two matrices column by column, (columns,); 0 where one of them is constant, for it orders nothing.

    Example:
        >>> spearman([[1.0], [2.0], [3.0]], [[1.0], [4.0], [9.0]]).round(6).tolist()
        [1.0]

    Source: Spearman 1904, doi:10.2307/1412159.
    """
    return (_ranked(_array(x, "x")) * _ranked(_array(y, "y"))).sum(0)


def jackknife(count: int, statistic: Callable[[np.ndarray], float]) -> Estimate:
    """A statistic of ``count`` things, given which are kept (count,), with the standard error of the jackknife over blocks of them.

    Source: Efron and Stein 1981, doi:10.1214/aos/1176345462, for blocks of one.
    """
    blocks = min(BLOCKS, count)
    owner = np.arange(count) % blocks
    whole = statistic(np.ones(count, dtype=bool))
    left_out = np.array([statistic(owner != b) for b in range(blocks)])
    return Estimate(float(whole), float(np.sqrt((blocks - 1) * left_out.var())), blocks)


def lds(scores: Any, masks: Any, outputs: Any) -> Estimate:
    r"""The linear datamodeling score: how well sums of scores order the outcomes of real retraining.

    For each target j the rank correlation, over subsets S, of :math:`\sum_{i\in S} \tau_{ij}` with the mean output :math:`f_j(S)` of the
    models trained on S; averaged over targets. The interval is over subsets (jackknife), for the targets and the seeds at hand.

    Args:
        scores: τ, (n, target): positive where adding the row raises the output.
        masks: Subsets (subset, n), booleans or weights, of at least 8 subsets.
        outputs: (subset, target), or (subset, seed, target) as `retrain` returns them, averaged over seeds.

    Raises:
        ValueError: shapes that do not fit, fewer than eight subsets, or numbers that are not finite.

    Example:
        >>> masks = np.array([[i >> k & 1 for k in range(4)] for i in range(16)])
        >>> effects = np.array([[1.0], [2.0], [4.0], [8.0]])
        >>> lds(effects, masks, masks @ effects).value, round(lds(effects[::-1], masks, masks @ effects).value, 3)
        (1.0, 0.376)

    Source: Ilyas et al. 2022, arXiv:2202.00622 (the idea); Park et al. 2023, arXiv:2303.14186, Section 2 (the linear datamodeling score).
    """
    scores, masks, outputs = _array(scores, "scores"), _array(masks, "masks"), _array(outputs, "outputs")
    outputs = outputs.mean(1) if outputs.ndim == 3 else outputs
    if scores.ndim != 2 or masks.ndim != 2 or masks.shape[1] != len(scores):
        raise ValueError(f"masks must be (subset, {len(scores)}), one entry for each row of scores, got {masks.shape} for {scores.shape}.")
    if outputs.shape != (len(masks), scores.shape[1]):
        raise ValueError(f"outputs must be ({len(masks)}, {scores.shape[1]}) or have an axis of seeds between, got {outputs.shape}.")
    if len(masks) < 8:
        raise ValueError(f"masks must hold at least 8 subsets to correlate anything, got {len(masks)}.")
    predicted = masks @ scores
    return jackknife(len(masks), lambda kept: spearman(predicted[kept], outputs[kept]).mean())


def noise_ceiling(outputs: Any) -> Estimate:
    r"""The score that the exact expected output would reach: the square root of the reliability of the measured one.

    With s seeds a subset and mean rank correlation r between two of them, the mean over seeds has reliability
    :math:`\varrho = s r / (1 + (s - 1) r)` (Spearman and Brown), and a predictor without noise correlates with it as
    :math:`\sqrt\varrho`. One retraining as a predictor of another only reaches r.

    Args:
        outputs: (subset, seed, target), of at least 8 subsets and 2 seeds.

    Raises:
        ValueError: fewer than two seeds, which do not tell signal from noise, or fewer than eight subsets.

    Example:
        >>> signal = np.arange(16.0)[:, None, None]
        >>> noise_ceiling(signal + np.zeros((16, 2, 1))).value
        1.0

    Source: Spearman 1910, doi:10.1111/j.2044-8295.1910.tb00206.x; Brown 1910, doi:10.1111/j.2044-8295.1910.tb00207.x.
    """
    outputs = _array(outputs, "outputs")
    if outputs.ndim != 3 or outputs.shape[1] < 2:
        raise ValueError(f"outputs must be (subset, seed, target) with at least 2 seeds to tell signal from noise, got {outputs.shape}.")
    if len(outputs) < 8:
        raise ValueError(f"outputs must hold at least 8 subsets, got {len(outputs)}.")
    s = outputs.shape[1]

    def ceiling(kept: np.ndarray) -> float:
        pairs = [spearman(outputs[kept][:, a], outputs[kept][:, b]) for a in range(s) for b in range(a)]
        r = max(float(np.mean(pairs)), 0.0)
        return float(np.sqrt(s * r / (1 + (s - 1) * r)))

    return jackknife(len(outputs), ceiling)
