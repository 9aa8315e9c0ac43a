"""Estimators of semivalues from sampled coalitions: permutations, cyclic windows, the multilinear extension, reuse, and regression.

Each returns values and standard errors. All randomness is from one generator of the seed, drawn a sample at a time, so that a larger budget
continues a smaller one (but for the strata of `multilinear`, which move).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from theorylab.instruments.games import BLOCK, MOST, Worth, coalitions, ends, evaluate


class Sampled(NamedTuple):
    """Values and standard errors (n,), how many independent samples made them, and how many coalitions were asked for."""

    values: Tensor
    stderr: Tensor
    samples: int
    evaluations: int


def _mean(replicates: Tensor, evaluations: int) -> Sampled:
    """Of independent unbiased estimates (M, n)."""
    M = len(replicates)
    return Sampled(replicates.mean(0), replicates.std(0) / M**0.5, M, evaluations)


def _enough(count: int, budget: int, cost: int, fixed: int) -> None:
    if count < 2:
        raise ValueError(
            f"budget must allow two samples, at least {2 * cost + fixed} coalitions here, or there is no standard error, got {budget}."
        )


def orders(n: int, count: int, generator: torch.Generator) -> Tensor:
    """Random orders of the players, (count, n), drawn one at a time."""
    orders = [torch.randperm(n, generator=generator, device="cpu") for _ in range(count)]
    return torch.stack(orders) if count else torch.empty(0, n, dtype=torch.long, device="cpu")


def prefixes(order: Tensor) -> Tensor:
    """Coalitions of the first 1 ... n − 1 players of each order, bool (M, n − 1, n)."""
    n = order.shape[1]
    return order.argsort(1)[:, None, :] < torch.arange(1, n, device="cpu")[:, None]


def permutations(value: Worth, n: int, law: Tensor, budget: int, seed: int, *, truncation: float = 0.0, tol: float = 0.0) -> Sampled:
    """Marginal contributions along random orders, each weighted by n times the law of the size of the coalition that is joined, (n,).

    ``tol`` > 0 stops once all standard errors are at most that; ``truncation`` > 0 gives up an order once its worth is that near to that of
    all players, in which case the rest of the order is given nothing but the remainder, to the player that comes next.
    """
    generator = torch.Generator().manual_seed(seed)
    limits = ends(value, n)
    count, found, used = (budget - 2) // max(n - 1, 1), [], 2
    _enough(count, budget, max(n - 1, 1), 2)
    block = max(2, min(count, BLOCK // n)) if not tol else max(2, min(count, 32))
    while count >= 1:
        order = orders(n, min(block, count), generator)
        worths, asked = _walk(value, order, limits, truncation)
        marginal = worths.diff(dim=1) * (n * law)
        found.append(torch.zeros_like(marginal).scatter_(1, order, marginal))
        used, count = used + asked, count - len(order)
        if tol and sum(map(len, found)) >= 32 and float(_mean(torch.cat(found), used).stderr.max()) <= tol:
            break
    return _mean(torch.cat(found), used)


def _walk(value: Worth, order: Tensor, limits: Tensor, truncation: float) -> tuple[Tensor, int]:
    """Worths of all prefixes, (M, n + 1), and the coalitions asked for."""
    M, n = order.shape
    if not truncation or n == 1:
        inner = evaluate(value, prefixes(order).flatten(0, 1)).view(M, n - 1)
        return torch.cat([limits[0].expand(M, 1), inner, limits[1].expand(M, 1)], 1), M * (n - 1)
    worths, masks = limits[1].expand(M, n + 1).clone(), torch.zeros(M, n, dtype=torch.bool, device="cpu")
    live, asked = torch.arange(M, device="cpu"), 0
    worths[:, 0] = limits[0]
    for k in range(1, n):  # orders side by side, so that each step asks for one block
        live = live[(worths[live, k - 1] - limits[1]).abs() > truncation]
        if not len(live):
            break
        masks[live, order[live, k - 1]] = True
        worths[live, k] = evaluate(value, masks[live])
        asked += len(live)
    return worths, asked


def windows(value: Worth, n: int, law: Tensor, budget: int, seed: int) -> Sampled:
    """Every size a stratum: the windows of all lengths of random orders laid in circles.

    Each circle has, of every size, as many coalitions with as without a player as that size implies, so that one circle gives an unbiased
    estimate of the mean worth with and without, for all players and sizes, from n(n − 1) coalitions.
    """
    generator = torch.Generator().manual_seed(seed)
    limits = ends(value, n)
    cost = n * (n - 1)
    count, found = (budget - 2) // max(cost, 1), []
    if n == 1:
        return Sampled(limits[1:] - limits[:1], torch.zeros(1, dtype=torch.float64, device="cpu"), 1, 2)
    _enough(count, budget, cost, 2)
    place, start = torch.arange(n, device="cpu"), torch.arange(n, device="cpu")[:, None]
    circle = torch.stack([(place - start) % n < size for size in range(1, n)])  # (n - 1, n windows, n places)
    sizes = torch.arange(1, n, dtype=torch.float64, device="cpu")[:, None]
    for order in orders(n, count, generator):
        masks = circle[:, :, order.argsort()]
        worths = evaluate(value, masks.flatten(0, 1)).view(n - 1, n, 1)
        inside = (masks * worths).sum(1)  # (n - 1, n players)
        with_, without = inside / sizes, (worths.sum(1) - inside) / (n - sizes)
        joined, left = torch.cat([with_, limits[1].expand(1, n)]), torch.cat([limits[0].expand(1, n), without])
        found.append(law @ (joined - left))
    return _mean(torch.stack(found), count * cost + 2)


def multilinear(value: Worth, n: int, budget: int, seed: int) -> Sampled:
    r"""Shapley as :math:`\int_0^1 \partial_i f(t, \dots, t)\,dt` (Owen): a sample draws t, a coalition of chance t, and flips all in turn.

    The t are stratified, one in each of as many equal parts of [0, 1] as there are samples, which can only lower the variance; the standard
    errors, those of independent t, are then on the safe side.
    """
    generator = torch.Generator().manual_seed(seed)
    count = budget // (n + 1)
    _enough(count, budget, n + 1, 0)
    draws = torch.stack([torch.rand(n + 1, generator=generator, dtype=torch.float64, device="cpu") for _ in range(count)])
    t = (torch.arange(count, device="cpu") + draws[:, n]) / count
    base = draws[:, :n] < t[:, None]  # (M, n)
    masks = torch.cat([base[:, None], base[:, None] ^ torch.eye(n, dtype=torch.bool, device="cpu")], 1)
    worths = evaluate(value, masks.flatten(0, 1)).view(count, n + 1)
    change = worths[:, 1:] - worths[:, :1]
    return _mean(torch.where(base, -change, change), count * (n + 1))


def reuse(value: Worth, n: int, p: float, budget: int, seed: int) -> Sampled:
    """Banzhaf by maximum sample reuse: mean worth of the sampled coalitions with a player less that of those without.

    Raises:
        ValueError: some player is in fewer than two samples, or in all but fewer than two.
    """
    if budget < 4:
        raise ValueError(f"budget must be at least 4 coalitions, two with and two without a player, got {budget}: raise budget.")
    generator = torch.Generator().manual_seed(seed)
    masks = torch.stack([torch.rand(n, generator=generator, device="cpu") < p for _ in range(budget)])
    worths, inside = evaluate(value, masks), masks.double()
    worths = worths - worths.mean()  # changes no difference, and keeps the variances from cancelling
    counts = torch.stack([inside.sum(0), (1 - inside).sum(0)])
    if int(counts.min()) < 2:
        i = int(counts.amin(0).argmin())
        raise ValueError(f"player {i} is in {int(counts[0, i])} of {budget} sampled coalitions: raise budget, or move p towards 1/2.")
    sums = torch.stack([worths @ inside, worths @ (1 - inside)])
    squares = torch.stack([worths.square() @ inside, worths.square() @ (1 - inside)])
    means = sums / counts
    variance = (squares / counts - means.square()).clamp(min=0) * counts / (counts - 1)
    return Sampled(means[0] - means[1], (variance / counts).sum(0).sqrt(), int(counts.min()), budget)


def regression(value: Worth, n: int, budget: int, seed: int) -> Sampled:
    """Shapley by weighted least squares over coalitions with its sum imposed (KernelSHAP); coalitions come with their complements.

    All coalitions are used, once each and exactly, where the budget allows it. Otherwise the size is drawn by the kernel and standard
    errors are those of the regression's linearization over pairs; the bias is of the order of the inverse of the number of pairs. Nothing
    is regularized and no player is dropped.
    """
    empty, full = ends(value, n).tolist()
    if n == 1:
        alone = torch.tensor([full - empty], dtype=torch.float64, device="cpu")
        return Sampled(alone, torch.zeros_like(alone), 1, 2)
    everything = n <= MOST and budget >= 2**n
    if everything:
        masks = coalitions(n)[1:-1]
        weights = kernel_weights(n)[masks.sum(1)]
    else:
        generator = torch.Generator().manual_seed(seed)
        pairs = (budget - 2) // 2
        if pairs < 2 * n:
            raise ValueError(f"budget must be at least {4 * n + 2}, two pairs of coalitions a player, for a regression, got {budget}.")
        sizes = torch.arange(1, n, dtype=torch.float64, device="cpu")
        law = 1 / (sizes * (n - sizes))
        half = []
        for _ in range(pairs):
            size = 1 + int(torch.multinomial(law, 1, generator=generator))
            half.append(torch.randperm(n, generator=generator, device="cpu") < size)
        masks = torch.stack(half)
        masks = torch.cat([masks, ~masks])
        weights = torch.ones(len(masks), dtype=torch.float64, device="cpu")
    z, worths = masks.double(), evaluate(value, masks) - empty
    values, basis, factor = constrained_least_squares(z, worths, weights, full - empty)
    if everything:
        return Sampled(values, torch.zeros_like(values), 1, 2**n)
    residual = worths - z @ values
    scores = (residual[:, None] * z).view(2, -1, n).sum(0)  # one a pair
    influence = torch.cholesky_solve((scores @ basis).T, factor).T @ basis.T  # (pairs, n)
    m = len(influence)
    return Sampled(values, influence.square().sum(0).mul(m / (m - (n - 1))).sqrt(), m - (n - 1), len(masks) + 2)


def kernel_weights(n: int) -> Tensor:
    """Of coalitions of each size 0 ... n, (n + 1,): (n − 1) / (C(n, s) s (n − s)), and 0 at the ends, which are imposed."""
    s = torch.arange(1, n, dtype=torch.float64, device="cpu")
    log_binomial = torch.lgamma(torch.tensor(n + 1.0, dtype=torch.float64, device="cpu")) - torch.lgamma(s + 1) - torch.lgamma(n - s + 1)
    inner = (n - 1) * torch.exp(-log_binomial) / (s * (n - s))
    return F.pad(inner, (1, 1))


def constrained_least_squares(z: Tensor, worths: Tensor, weights: Tensor, total: float) -> tuple[Tensor, Tensor, Tensor]:
    """Min Σ w (v − zφ)² subject to Σφ = total: φ, an orthonormal basis (n, n − 1) of sum zero, and the Cholesky factor there."""
    n = z.shape[1]
    ones, units = torch.ones(n, 1, dtype=torch.float64, device="cpu"), torch.eye(n, n - 1, dtype=torch.float64, device="cpu")
    basis = torch.linalg.qr(torch.cat([ones, units], 1)).Q[:, 1:]
    even = torch.full((n,), total / n, dtype=torch.float64, device="cpu")
    design = z @ basis
    factor, info = torch.linalg.cholesky_ex(design.T @ (weights[:, None] * design))
    if int(info):
        raise ValueError("the sampled coalitions do not tell all players apart: raise budget.")
    right = design.T @ (weights * (worths - z @ even))
    return even + basis @ torch.cholesky_solve(right[:, None], factor)[:, 0], basis, factor
