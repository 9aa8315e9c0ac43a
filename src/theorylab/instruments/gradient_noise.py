"""How noisy the gradient of a minibatch is, and the batch size from which larger batches stop paying."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from theorylab.core.batches import split
from theorylab.core.estimate import LEVEL, Estimate
from theorylab.core.instrument import Inapplicable, instrument
from theorylab.core.problem import Problem, finite, flat_gradient
from theorylab.core.source import Source
from theorylab.instruments.merging import same_risk, weighing
from theorylab.instruments.refusals import couples_rows
from theorylab.instruments.rows import looped_grads, per_example_grads

ENTRIES = 2**26
"""Of the rows' gradients that are held at once."""


@dataclass(frozen=True)
class GradientNoise:
    r"""What a minibatch's gradient is made of, estimated from minibatches: :math:`\mathbb E\|g_B\|^2 = \|G\|^2 + \mathrm{tr}\,\Sigma / B`.

    G is the expected gradient of a row and Σ the covariance of the rows' gradients, both over the distribution that rows are drawn from.

    Attributes:
        trace: tr Σ.
        squared_norm: ‖G‖², which may come out negative where G is small against the noise.
        covariance: That of the errors of the two estimates.
    """

    trace: Estimate
    squared_norm: Estimate
    covariance: float

    @property
    def simple_noise_scale(self) -> Estimate:
        """Tr Σ / ‖G‖² in rows, with the standard error of a ratio; `interval` is the better guide where that error is large.

        Raises:
            ValueError: the estimate of ‖G‖² is not positive: the gradient drowns in the noise of the rows at hand.
        """
        if not self.squared_norm.value > 0:
            raise ValueError(
                f"the squared norm of the gradient must be positive for a noise scale, its estimate is {self.squared_norm}: measure more "
                "rows, or a point farther from a minimum. interval() gives a lower bound."
            )
        return ratio(self.trace, self.squared_norm, self.covariance)

    @property
    def critical_batch_size(self) -> Estimate:
        """The simple noise scale by another name: at this batch size a step makes half the progress of one with the exact gradient.

        So it does where the curvature is the same in all directions; elsewhere `noise_scale` says at which.
        """
        return self.simple_noise_scale

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """Confidence interval of the simple noise scale, without an upper end where ‖G‖² may be 0."""
        return ratio_interval(self.trace, self.squared_norm, self.covariance, level)


def ratio(T: Estimate, S: Estimate, covariance: float) -> Estimate:
    """T/S with the standard error of a ratio, to first order; ``covariance`` is that of their errors."""
    scale = T.value / S.value
    variance = T.stderr**2 - 2 * scale * covariance + scale**2 * S.stderr**2
    return Estimate(scale, math.sqrt(max(variance, 0.0)) / S.value, T.n)


def ratio_interval(T: Estimate, S: Estimate, covariance: float, level: float) -> tuple[float, float]:
    """Confidence interval of a ratio of quantities that are not negative, without an upper end where S may be 0.

    The values r for which T − rS = 0 is not rejected (Fieller 1954), which is honest also where the ratio is not normal.
    """
    from scipy.special import stdtrit

    t = float(stdtrit(T.n - 1, 0.5 + level / 2))
    # (T − rS)² ≤ t² Var(T − rS) is a r² − 2 b r + c ≤ 0
    a = S.value**2 - t**2 * S.stderr**2
    b = T.value * S.value - t**2 * covariance
    c = T.value**2 - t**2 * T.stderr**2
    root = math.sqrt(max(b**2 - a * c, 0.0))
    if S.value > 0 and a > 0:
        return max(0.0, (b - root) / a), (b + root) / a
    if a == 0 or c <= 0:
        return 0.0, math.inf
    return c / (b + root) if b + root > 0 else 0.0, math.inf


def _minibatches(problem: Problem, size: int) -> Problem:
    """The same rows in batches of at most ``size``."""
    return problem.on(split(problem.batches, size))


def _gradient_of(problem: Problem, k: int) -> Tensor:
    """Mean gradient (p,) of the rows of batch ``k``, whose losses are n times their shares of the risk, with the batch's own dropout."""
    with problem.safe():
        leaves = problem.leaves()
        loss = finite(problem.batch_loss(k, leaves))
        grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    share = problem.n * problem.weights[k] / problem.batches[k].rows  # of what `count` counts; 1 where that is rows
    return share * flat_gradient(grads, leaves.values())


def _gradients(problem: Problem, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Gradients of the minibatches (some, p) and their rows (some,), as many at once as fit."""
    if size == 1:
        for rows in torch.arange(problem.n, device="cpu").split(max(1, ENTRIES // problem.P)):
            yield per_example_grads(problem, rows=rows), torch.ones(len(rows), dtype=torch.float64, device="cpu")
    else:
        for k, batch in enumerate(problem.batches):
            yield _gradient_of(problem, k)[None], torch.tensor([batch.rows], dtype=torch.float64, device="cpu")


def _check(problem: Problem, size: int) -> None:
    if size < 1:
        raise ValueError(f"batch_size must be at least 1, got {size}.")
    count = sum(-(-b.rows // size) for b in problem.batches)
    if problem.n < 3:
        raise ValueError(f"data must hold at least 3 rows to give an error, got {problem.n}.")
    if count < 3:
        raise ValueError(
            f"batch_size must leave at least 3 minibatches to give an error, got {count} of {problem.n} rows: make it smaller."
        )


def _check_mean(problem: Problem, size: int) -> None:
    """Minibatches say something of their rows where the risk is the mean over rows, and so the weighted mean over parts of minibatches."""
    problem.loss()
    if not min(_minibatches(problem, size).weights) > 0:
        raise ValueError(f"batch_size must leave something that counts in every minibatch, {size} rows hold nothing: make it larger.")
    why, still = "", copy.copy(problem)
    still.train = False  # where dropout is off: parts draw other numbers
    with still.safe():
        try:
            if still.draws(0) or same_risk(weighing(_minibatches(still, -(-size // 2))), still, digits=0.5):
                return
        except Exception as error:  # of the model or the loss, which took the whole batch
            why = f" ({type(error).__name__}: {error})"
    raise Inapplicable(
        "gradient_noise does not apply: the loss of a batch is not the mean of the losses of its rows, as with class weights, ignored "
        f'labels or contrasts between rows{why}. Give a loss of each row, e.g. by reduction="none".'
    )


def dense_gradient_noise(problem: Problem, *, batch_size: int = 1) -> GradientNoise:
    """Every minibatch's gradient at once, and every estimate without one of them computed anew: the oracle of `gradient_noise`."""
    if batch_size == 1:
        g, rows = looped_grads(problem).double(), torch.ones(problem.n, dtype=torch.float64, device="cpu")
    else:
        parts = _minibatches(problem, batch_size)
        g = torch.stack([_gradient_of(parts, k) for k in range(len(parts.batches))]).double()
        rows = torch.tensor([float(batch.rows) for batch in parts.batches], dtype=torch.float64, device="cpu")

    def estimate(chosen: Tensor) -> tuple[Tensor, Tensor]:
        own, b = g[chosen], rows[chosen, None]
        mean = (b * own).sum(0) / b.sum()
        trace = (b * (own - mean).square()).sum() / (len(own) - 1)
        return trace, mean.square().sum() - trace / b.sum()

    count = len(g)
    every = torch.arange(count, device="cpu")
    left_out = torch.tensor([estimate(every[every != i]) for i in range(count)], dtype=torch.float64, device="cpu")
    error = torch.cov(left_out.T) * (count - 1) ** 2 / count
    (T, S), (tt, ss, ts) = estimate(every), (float(error[i, j]) for i, j in ((0, 0), (1, 1), (0, 1)))
    return GradientNoise(Estimate(float(T), tt**0.5, count), Estimate(float(S), ss**0.5, count), ts)


@instrument(
    oracle=dense_gradient_noise,
    source=Source("McCandlish et al. 2018", "Section 2.2, equation 2.9 (the simple noise scale), and Appendix A.1", "arXiv:1812.06162"),
    refuses=couples_rows,
)
def gradient_noise(problem: Problem, *, batch_size: int = 1) -> GradientNoise:
    r"""Gradient noise scale :math:`\mathcal B = \mathrm{tr}(\Sigma) / \|G\|^2`, the critical batch size of stochastic gradient descent.

    Below :math:`\mathcal B` rows a batch, doubling the batch nearly halves the steps that are needed; above, it hardly saves any. It is a
    proxy, exact where the curvature is the same in all directions; `noise_scale` takes the curvature into account, at the price of Hessian
    products.

    The rows are taken as a sample: from K minibatches of b rows with gradients g_k and their mean ḡ,
    :math:`\mathrm{tr}\,\Sigma = \frac{b}{K-1}\sum_k \|g_k - \bar g\|^2` and :math:`\|G\|^2 = \|\bar g\|^2 - \mathrm{tr}(\Sigma)/n`, both
    unbiased; with two sizes of batch, b and n, this is the estimator of the source. Errors are the jackknife's over the minibatches.

    Args:
        problem: The risk and the point.
        batch_size: Rows a minibatch. 1 takes the gradients of rows, some at a time, and gives the least error; larger ones save work and
            memory where the model is large, and take the given batches apart in order, so that rows should be shuffled.

    Returns:
        ``trace`` and ``squared_norm``, and from them ``simple_noise_scale``, ``critical_batch_size`` and ``interval(level)``.

    Raises:
        Inapplicable: rows depend on each other, through the model (BatchNorm in training mode) or through the loss (class weights).
        ValueError: fewer than three minibatches, one in which nothing counts, or a loss that is not finite.

    Example:
        >>> x = torch.tensor([[1.0], [1.0], [1.0], [1.0]])
        >>> line = Problem(torch.nn.Linear(1, 1, bias=False), torch.nn.functional.mse_loss, (x, torch.tensor([[0.0], [1.0], [2.0], [3.0]])))
        >>> noise = gradient_noise(line.at({"weight": torch.tensor([[3.0]])}))  # the rows' gradients are 6, 4, 2 and 0
        >>> round(noise.trace.value, 4), round(noise.squared_norm.value, 4), round(noise.critical_batch_size.value, 4)
        (6.6667, 7.3333, 0.9091)

    Source: McCandlish et al. 2018, arXiv:1812.06162, Section 2.2, equation 2.9, and Appendix A.1.
    """
    _check(problem, batch_size)
    if batch_size > 1:
        _check_mean(problem, batch_size)
    parts = problem if batch_size == 1 else _minibatches(problem, batch_size)  # rows need no batches of their own
    mean = parts.gradient().double()
    squares, products, sizes = [], [], []
    for gradients, rows in _gradients(parts, batch_size):
        squares.append(gradients.square().sum(1).double())
        products.append((gradients @ mean.to(gradients)).double())
        sizes.append(rows)
    q, c, b = torch.cat(squares).cpu(), torch.cat(products).cpu(), torch.cat(sizes)
    n, count, G2 = float(b.sum()), len(b), float(mean.square().sum())
    # Everything without minibatch k follows from its |g_k|² = q, g_k·ḡ = c, and the mean of all.
    rest = n - b
    without = (n**2 * G2 - 2 * n * b * c + b**2 * q) / rest**2  # ‖ḡ without k‖²
    traces = ((b * q).sum() - b * q - rest * without) / (count - 2)
    norms = without - traces / rest
    error = torch.cov(torch.stack([traces, norms])) * (count - 1) ** 2 / count
    trace = float((b * q).sum() - n * G2) / (count - 1)
    (tt, ts), (_, ss) = error.tolist()
    return GradientNoise(Estimate(trace, tt**0.5, count), Estimate(G2 - trace / n, ss**0.5, count), ts)
