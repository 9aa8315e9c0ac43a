"""How many rows a batch should have, with the curvature taken into account: the noise scale of the best step."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from theorylab.core.estimate import LEVEL, Estimate
from theorylab.core.instrument import instrument
from theorylab.core.problem import Problem
from theorylab.core.reading import Reading
from theorylab.core.source import Source
from theorylab.instruments.curvature import dense_hessian, hessian
from theorylab.instruments.gradient_noise import ENTRIES, GradientNoise, dense_gradient_noise, gradient_noise, ratio, ratio_interval
from theorylab.instruments.products import COLUMNS, MEMORY_BUDGET
from theorylab.instruments.refusals import couples_rows, too_few_digits
from theorylab.instruments.rows import looped_grads, per_example_grads

ROWS = 64
"""Of which the gradients are multiplied by the Hessian, where not asked otherwise."""


@dataclass(frozen=True)
class NoiseScale:
    r"""What limits a step along a minibatch's gradient: :math:`B_n = \mathrm{tr}(H\Sigma) / (G^\top H G)`.

    G is the expected gradient of a row, Σ the covariance of the rows' gradients, H the Hessian of the mean loss.

    Attributes:
        trace: tr(HΣ), by which the noise of one row bends a step upwards.
        along: GᵀHG, the curvature along the gradient times its squared norm. It may come out negative where the gradient is small against
            the noise, and it is negative where the loss is concave along G.
        covariance: That of the errors of the two estimates.
        proxy: The same with the identity for H: what `gradient_noise` measures. A proxy, not an estimate of B_n.
    """

    trace: Estimate
    along: Estimate
    covariance: float
    proxy: GradientNoise

    @property
    def noise_scale(self) -> Estimate:
        """B_n in rows, with the standard error of a ratio; `interval` is the better guide where that error is large.

        Raises:
            ValueError: the estimate of tr(HΣ) or of GᵀHG is not positive, so that no step or no batch is best.
        """
        self._check(self.along.value)
        return ratio(self.trace, self.along, self.covariance)

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """Confidence interval of B_n, without an upper end where GᵀHG may be 0.

        Raises:
            ValueError: tr(HΣ) is not positive, or GᵀHG is negative beyond doubt.
        """
        self._check(self.along.interval(level)[1])
        return ratio_interval(self.trace, self.along, self.covariance, level)

    def _check(self, along: float) -> None:
        for name, value, estimate in (("GᵀHG", along, self.along), ("tr(HΣ)", self.trace.value, self.trace)):
            if not value > 0:
                raise ValueError(
                    f"{name} must be positive for a noise scale, its estimate is {estimate}: the loss has no positive curvature there, or "
                    "the gradient drowns in the noise. The proxy, trΣ/‖G‖², needs no curvature."
                )

    def readings(self) -> tuple[Reading, ...]:
        """For a report card: the scale with its interval where there is one, else its two parts."""
        if self.along.value > 0 and self.trace.value > 0:
            low, high = self.interval()
            note = "rows; with the curvature" + ("" if math.isfinite(high) else f"; at least {low:.3g}, without an upper end")
            return (
                Reading(
                    "noise scale of the best step",
                    self.noise_scale.value,
                    "measure",
                    (low, high) if math.isfinite(high) else None,
                    note=note,
                ),
            )
        parts = {"curvature along the gradient, GᵀHG": self.along, "curvature along the noise, tr(HΣ)": self.trace}
        return tuple(Reading(name, part.value, "measure", part.interval(), note="no noise scale") for name, part in parts.items())


def _sample(problem: Problem, rows: int, seed: int) -> Tensor:
    """Numbers of the rows whose gradients are multiplied by the Hessian, in order."""
    if problem.n < 3:
        raise ValueError(f"data must hold at least 3 rows to give an error, got {problem.n}.")
    if rows < 3:
        raise ValueError(f"rows must be at least 3 to give an error, got {rows}.")
    if rows >= problem.n:
        return torch.arange(problem.n, device="cpu")
    return torch.randperm(problem.n, generator=torch.Generator().manual_seed(seed), device="cpu")[:rows].sort().values


def dense_noise_scale(problem: Problem, *, rows: int = ROWS, seed: int = 0, memory: int = 0) -> NoiseScale:
    """From the matrices: the dense Hessian, the rows' gradients and their covariance: the oracle of `noise_scale`."""
    chosen, n = _sample(problem, rows, seed), problem.n
    H, g = dense_hessian(problem).to_dense().double(), looped_grads(problem).double()
    centred = g - g.mean(0)
    bent = centred[chosen] @ H @ centred[chosen].T
    sigma = n / (n - 1) * centred[chosen].T @ centred[chosen] / len(chosen)
    slopes, sizes = centred @ H @ g.mean(0), (centred @ centred.T).diagonal()
    return _result(n, chosen, (H * sigma).sum(), bent, slopes, sizes, g.mean(0) @ H @ g.mean(0), dense_gradient_noise(problem))


@instrument(
    oracle=dense_noise_scale,
    source=Source("McCandlish et al. 2018", "Section 2.2, equations 2.7 and 2.8; the proxy is equation 2.9", "arXiv:1812.06162"),
    refuses=(couples_rows, too_few_digits),
    family="gradient_noise",
)
def noise_scale(problem: Problem, *, rows: int = ROWS, seed: int = 0, memory: int = MEMORY_BUDGET) -> NoiseScale:
    r"""Noise scale :math:`B_n = \mathrm{tr}(H\Sigma)/(G^\top H G)`: the batch size at which the best step gains half of the most.

    On the quadratic model of the loss a step along the gradient of B rows, its length the best for that B, lowers the loss by
    :math:`\Delta L_{\max}/(1 + B_n/B)` on average. `gradient_noise` measures :math:`\mathrm{tr}\,\Sigma/\|G\|^2`, which leaves H out;
    here it is beside the estimate, as a ``proxy``.

    The rows are taken as a sample, as by `gradient_noise`: from their gradients :math:`g_i` with mean :math:`\bar g`,

    .. math:: \mathrm{tr}(H\Sigma) = \frac{n}{n-1}\,\overline{(g_i-\bar g)^\top H (g_i-\bar g)}, \qquad
        G^\top H G = \bar g^\top H \bar g - \mathrm{tr}(H\Sigma)/n

    both unbiased given H, which is that of all rows. Where ``rows`` are fewer than all, the first mean is over these and corrected by
    regression on :math:`\|g_i-\bar g\|^2`, whose mean over all rows is known; its bias is of the order of 1/``rows``. Errors follow from
    the spread of the terms over rows, and are too small where a few rows that the sample misses rule the mean; that of
    :math:`\bar g^\top H\bar g` has a part that remains where G is zero.

    Args:
        problem: The risk and the point.
        rows: Of which the gradients are multiplied by the Hessian, at least 3; all where there are no more.
        seed: Of their choice.
        memory: Bytes that the Hessian's kept graph may take.

    Returns:
        ``trace``, ``along`` and ``proxy``, and from them ``noise_scale`` and ``interval(level)``.

    Raises:
        Inapplicable: rows depend on each other, through the model (BatchNorm in training mode) or through the loss (class weights); or
            half precision.
        ValueError: fewer than three rows, or a loss that is not finite.

    Cost: ``rows`` + 1 Hessian products and the gradients of all rows twice; memory of ``rows`` gradients.

    Example:
        >>> x, y = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 2.0], [2.0, 0.0]]), torch.tensor([[0.0], [1.0], [2.0], [3.0]])
        >>> line = Problem(torch.nn.Linear(2, 1, bias=False), torch.nn.functional.mse_loss, (x, y))
        >>> noise = noise_scale(line.at({"weight": torch.tensor([[3.0, 1.0]])}))
        >>> round(noise.noise_scale.value, 3), round(noise.proxy.simple_noise_scale.value, 3)
        (1.057, 1.474)

    Source: McCandlish et al. 2018, arXiv:1812.06162, Section 2.2, equations 2.7-2.9.
    """
    chosen, proxy = _sample(problem, rows, seed), gradient_noise(problem)
    H, mean = hessian(problem, memory=memory), problem.gradient()
    push = H @ mean
    slopes, sizes = [], []
    for part in torch.arange(problem.n, device="cpu").split(max(1, ENTRIES // problem.P)):
        apart = per_example_grads(problem, rows=part) - mean
        slopes.append((apart @ push).double())
        sizes.append(apart.square().sum(1).double())
    centred = per_example_grads(problem, rows=chosen) - mean  # (m, p)
    bent = torch.cat([centred @ (H @ block.T) for block in centred.split(COLUMNS)], 1)
    trace = problem.n / (problem.n - 1) * bent.double().diagonal().mean()
    return _result(problem.n, chosen, trace, bent.double(), torch.cat(slopes), torch.cat(sizes), (mean @ push).double(), proxy)


def _result(
    n: int, chosen: Tensor, trace: Tensor, bent: Tensor, slopes: Tensor, sizes: Tensor, raw: Tensor, proxy: GradientNoise
) -> NoiseScale:
    """Estimates and their errors.

    Args:
        n: All rows.
        chosen: Those of the sample, (m,).
        trace: tr(HΣ), from the sample alone.
        bent: (g_i − ḡ)ᵀH(g_j − ḡ) for rows of the sample, (m, m).
        slopes: (g_i − ḡ)ᵀHḡ of all rows, (n,).
        sizes: ‖g_i − ḡ‖² of all rows, (n,).
        raw: ḡᵀHḡ.
        proxy: Beside it.
    """
    m, bent, slopes, sizes = len(chosen), bent.cpu(), slopes.cpu(), sizes.cpu()
    bends, known = bent.diagonal(), sizes[chosen]
    weight = float(torch.cov(torch.stack([bends, known]))[0, 1] / known.var()) if float(known.var()) > 0 else 0.0
    rest = bends - weight * known  # what the sizes do not tell; in the sample it is not correlated with them
    T = float(trace) + n / (n - 1) * weight * float(sizes.mean() - known.mean())
    var_trace = float(rest.var()) * (m - 1) / (m - 2) / m + weight**2 * float(sizes.var()) / n
    # 2 tr((HΣ)²)/n², from pairs of different rows: the variance of ḡᵀHḡ where G = 0; twice that is in the slopes', whose ḡ errs, too
    pairs = 2 * float(bent.square().sum() - bends.square().sum()) / (m * (m - 1)) / n**2
    var_raw = max(4 * float(slopes.var()) / n - pairs, pairs)
    paired = [torch.cov(torch.stack(both))[0, 1] for both in ((rest, slopes[chosen]), (sizes, slopes))]
    shared = 2 * float(paired[0] + weight * paired[1]) / n
    S = float(raw) - T / n
    var_along = max(var_raw - 2 * shared / n + var_trace / n**2, 0.0)
    return NoiseScale(Estimate(T, math.sqrt(var_trace), m), Estimate(S, math.sqrt(var_along), n), shared - var_trace / n, proxy)
