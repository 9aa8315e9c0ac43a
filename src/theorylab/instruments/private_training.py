"""Private training of any module: clipped sums plus noise, and the ledger of what was done."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from theorylab.core.batches import Batch, map_tensors, tensors_of
from theorylab.core.privacy_ledger import PrivacyLedger
from theorylab.core.problem import Params, Problem
from theorylab.core.seeds import derived_seed
from theorylab.instruments.clipping import Method, clipped_sum
from theorylab.learning.optimizers.base import Optimizer
from theorylab.learning.private import AdaptiveClip, check_mechanism, gaussian, noise_generator
from theorylab.learning.private_batches import PrivateBatches


@dataclass(frozen=True)
class PrivateRun:
    """What `dp_sgd` and `dp_ftrl` leave.

    Attributes:
        problem: At the parameters that training ended at.
        ledger: What an accountant must know.
        clips: The clipping norm of every step. Released: under `AdaptiveClip` it is private as the parameters are.
    """

    problem: Problem
    ledger: PrivacyLedger
    clips: tuple[float, ...]

    def load_into(self, model: nn.Module) -> nn.Module:
        """Write the trained parameters into a model of the same names, and return it."""
        tensors = dict(model.named_parameters())
        with torch.no_grad():
            for name, p in self.problem.params.items():
                tensors[name].copy_(p)
        return model


def _whole(problem: Problem, batches: PrivateBatches) -> Batch:
    """All rows of a problem as one batch.

    Raises:
        ValueError: they are several batches, or not as many rows as are drawn from.
    """
    if len(problem.batches) != 1:
        raise ValueError(
            f"problem must hold its rows as one batch, from which batches are drawn, got {len(problem.batches)}. Give tensors, and bound "
            "memory by microbatch."
        )
    if batches.n != problem.n:
        raise ValueError(f"batches must be drawn from the problem's {problem.n} rows, got a sampler of {batches.n}.")
    for t in tensors_of(problem.batches[0].content):
        if t.ndim == 0 or len(t) != problem.n:
            raise ValueError(f"every tensor of the data must have one entry a row ({problem.n}), got shape {tuple(t.shape)}.")
    return problem.batches[0]


def _summed(
    problem: Problem, whole: Batch, rows: Tensor, params: Params, clip: float, microbatch: int | None, method: Method, seed: int
) -> tuple[Tensor, float]:
    """The clipped sum (p,) of some rows at ``params``, and how many of them were within the norm."""
    total, within = torch.zeros(problem.P, dtype=problem.dtype, device=problem.device), 0.0
    for part in rows.split(microbatch or max(1, len(rows))):
        if len(part) == 0:  # Poisson sampling may draw nobody
            continue
        chosen = Batch(map_tensors(lambda t, part=part: t[part.to(t.device)], whole.content), len(part))
        here = problem.on([chosen])
        here.params, here.seed = params, seed
        found = clipped_sum(here, clip, method=method)
        total += found.total
        within += len(part) * (1 - found.shrunk)
    return total, within


def dp_sgd(
    problem: Problem,
    batches: PrivateBatches,
    *,
    optimizer: Optimizer,
    clip: float | AdaptiveClip,
    sigma: float,
    steps: int,
    seed: int,
    microbatch: int | None = None,
    method: Method = "auto",
) -> PrivateRun:
    r"""Train by noisy sums of clipped gradients, :math:`\hat g = \frac1{qn}\Bigl(\sum_{i\in B}\bar g_i + \sigma C\,\mathcal N(0, I)\Bigr)`.

    Any optimizer may use the noisy gradient: what is computed from it costs no further privacy. The sum is divided by the *expected* batch
    size. The ledger's rate is the sampler's own. Noise comes from a seeded generator, which is right for research and repeatable; a release
    needs a cryptographic one, and a secret seed.

    Args:
        problem: The model, loss and rows, at the starting point; rows in one batch.
        batches: From `poisson_batches`, `fixed_size_batches`, ...
        optimizer: From `theorylab.learning.optimizers`.
        clip: The largest norm C of a row's gradient, or an `AdaptiveClip`.
        sigma: Noise multiplier: the noise's standard deviation is σC. Zero clips and adds nothing; such a run is not private.
        steps: Noisy sums to release.
        seed: Of the noise, and of dropout.
        microbatch: Rows taken at once, to bound memory; the sum is the same.
        method: How rows are clipped, see `clipped_sum`.

    Returns:
        The trained problem, the ledger, and the clipping norms used. The problem given is not changed.

    Raises:
        ValueError: an argument out of its range, rows in several batches, or a sampler of another number of rows.
        Inapplicable: rows depend on each other, see `clipped_sum`.

    Example:
        >>> from theorylab.learning.optimizers.sgd import sgd
        >>> from theorylab.learning.private_batches import poisson_batches
        >>> x = torch.linspace(-1, 1, 200)[:, None]
        >>> problem = Problem(nn.Linear(1, 1), nn.functional.mse_loss, (x, 2 * x), dtype=torch.float64)
        >>> run = dp_sgd(problem, poisson_batches(200, 0.2, seed=0), optimizer=sgd(0.5), clip=1.0, sigma=0.5, steps=60, seed=1)
        >>> bool(run.problem.loss() < 0.05), run.ledger
        (True, PrivacyLedger(q=0.2, sigma=0.5, steps=60, sampling='poisson', adjacency='add_remove'))

    Source: Abadi et al. 2016, arXiv:1607.00133, Algorithm 1.
    """
    check_mechanism(clip, sigma, steps, optimizer)
    if microbatch is not None and microbatch < 1:
        raise ValueError(f"microbatch must be at least 1, got {microbatch}.")
    whole, size = _whole(problem, batches), batches.expected_size
    adaptive = clip if isinstance(clip, AdaptiveClip) else None
    on_sum, on_count = adaptive.split(sigma, size) if adaptive else (sigma, 0.0)
    norm = adaptive.start if adaptive else float(clip)  # type: ignore[arg-type]
    generator = noise_generator(seed)
    params = {k: p.clone() for k, p in problem.params.items()}
    state, clips = optimizer.init(params), []
    for t in range(steps):
        rows = next(batches)
        total, within = _summed(problem, whole, rows, params, norm, microbatch, method, derived_seed(seed, "dropout", t))
        clips.append(norm)
        noisy = (total + on_sum * norm * gaussian(problem.P, generator, total)) / size
        params, state = optimizer.update(problem.unflatten(noisy), state, params)
        if adaptive:
            extra = float(torch.randn((), generator=generator, dtype=torch.float64, device="cpu")) * on_count
            norm = adaptive.next(norm, within, len(rows), size, extra)
    return PrivateRun(problem.at(params), batches.ledger(sigma, steps), tuple(clips))


def visit_sensitivity(factor: Tensor, separation: int) -> float:
    r"""By how much a row of norm 1 moves CG if it takes part every ``separation`` steps: :math:`\max_j \bigl(\sum_{i,k\in j+b\mathbb Z}
    |\langle C_{\cdot i}, C_{\cdot k}\rangle|\bigr)^{1/2}`.

    Attained where no two of those columns have a negative inner product, by a row whose gradient stays the same; else an upper bound.

    Args:
        factor: C, (steps, steps).
        separation: b, at least 1; the number of steps for a row that takes part once.

    Example:
        >>> C = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
        >>> round(visit_sensitivity(C, 2) ** 2, 6), round(visit_sensitivity(C, 1) ** 2, 6)
        (2.0, 5.0)

    Source: Choquette-Choo et al. 2023, arXiv:2211.06530, Section 3 (sensitivity under several participations).
    """
    products = (factor.T @ factor).abs()
    return max(float(products[j::separation, j::separation].sum()) for j in range(min(separation, len(factor)))) ** 0.5


def _correlated(C: Tensor, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """The rows (size,) of C⁻¹Z in turn, by forward substitution; Z drawn as `dp_sgd` draws it."""
    asked = [int(column.nonzero()[-1]) for column in C.T]  # the last step whose noise depends on each step's
    kept: dict[int, Tensor] = {}
    for t in range(len(C)):
        row = gaussian(size, generator, C)
        for k, earlier in kept.items():
            row -= C[t, k] * earlier
        row /= C[t, t]
        kept = {k: earlier for k, earlier in (*kept.items(), (t, row)) if asked[k] > t}
        yield row


def dp_ftrl(
    problem: Problem,
    batches: PrivateBatches,
    factor: Tensor,
    *,
    optimizer: Optimizer,
    clip: float,
    sigma: float,
    seed: int,
    microbatch: int | None = None,
    method: Method = "auto",
) -> PrivateRun:
    r"""Train by clipped sums whose noise is correlated over steps, so that it cancels in the running sum of gradients.

    Step t uses the t-th row of :math:`\mathrm{sens}(C)\,\sigma\,C_{\mathrm{clip}}\,C^{-1}Z` as its noise, where C is lower triangular, Z
    standard normal (steps, p), and sens(C) what one row, wherever it takes part, moves CG by, see `visit_sensitivity`. The whole run is
    *one* Gaussian release with noise multiplier σ, whatever the order of the rows: there is no sampling to count on. Of the noise of
    earlier steps only what C still asks for is kept: of a banded one as many as it has bands.

    Args:
        problem: As for `dp_sgd`.
        batches: From `shuffled_batches` for one epoch, of n / size steps, in which every row takes part once; from `cyclic_batches` for
            more.
        factor: C, (steps, steps), lower triangular with a positive diagonal. The identity gives independent noise; the square root of the
            matrix of prefix sums is the classical choice for one epoch, cut to at most n / size bands for several.
        optimizer: From `theorylab.learning.optimizers`; the noise is shaped for plain steps, and for momentum.
        clip: The largest norm of a row's gradient.
        sigma: Noise multiplier of the release.
        seed: Of the noise, and of dropout.
        microbatch: Rows taken at once, as for `dp_sgd`.
        method: How rows are clipped, see `clipped_sum`.

    Returns:
        As `dp_sgd`; the ledger holds one unamplified release.

    Raises:
        ValueError: as `dp_sgd`, or an `AdaptiveClip`; a factor that is not lower triangular and invertible, or batches in which a row may
            come back sooner than is accounted for.

    Example:
        >>> from theorylab.learning.optimizers.sgd import sgd
        >>> from theorylab.learning.private_batches import cyclic_batches
        >>> x = torch.linspace(-1, 1, 200)[:, None]
        >>> problem = Problem(nn.Linear(1, 1), nn.functional.mse_loss, (x, 2 * x), dtype=torch.float64)
        >>> C = sum(c * torch.diag(torch.ones(60 - k), -k) for k, c in enumerate([1.0, 0.5, 0.375, 0.3125]))  # four bands, six epochs
        >>> run = dp_ftrl(problem, cyclic_batches(200, 20, seed=0), C, optimizer=sgd(0.5), clip=1.0, sigma=0.5, seed=1)
        >>> bool(run.problem.loss() < 0.05), run.ledger.participations
        (True, 1)

    Source: Kairouz et al. 2021, arXiv:2103.00039, Section 3 (the algorithm); Denisov et al. 2022, arXiv:2202.08312, Section 2 (the
    factorization); Choquette-Choo et al. 2023, arXiv:2306.08153 (banded matrices over several epochs).
    """
    if isinstance(clip, AdaptiveClip):
        raise ValueError("clip must be a number: the noise of all steps is made for one clipping norm, which AdaptiveClip would change.")
    check_mechanism(clip, sigma, len(factor), optimizer)
    steps = len(factor)
    if factor.shape != (steps, steps) or steps == 0 or not bool((factor.triu(1) == 0).all()) or not bool((factor.diagonal() > 0).all()):
        raise ValueError(f"factor must be square, lower triangular and with a positive diagonal, got shape {tuple(factor.shape)}.")
    epoch = round(1 / batches.q)
    once = batches.drawn % epoch + steps <= epoch
    if batches.sampling != "shuffled" or not (once or batches.separation == epoch):
        raise ValueError(
            f"batches must be of cyclic_batches, or of shuffled_batches with the {steps} steps within one epoch of {epoch}, got "
            f'sampling="{batches.sampling}" with {batches.drawn % epoch} batches of an epoch drawn. Make a new sampler for every run.'
        )
    whole, size = _whole(problem, batches), batches.expected_size
    C = factor.double().cpu()
    scale = sigma * clip * visit_sensitivity(C, steps if once else epoch)
    noise = _correlated(C, problem.P, noise_generator(seed))
    params = {k: p.clone() for k, p in problem.params.items()}
    state = optimizer.init(params)
    for t in range(steps):
        total, _ = _summed(problem, whole, next(batches), params, clip, microbatch, method, derived_seed(seed, "dropout", t))
        params, state = optimizer.update(problem.unflatten((total + scale * next(noise).to(total)) / size), state, params)
    return PrivateRun(problem.at(params), PrivacyLedger(1.0, sigma, 1, "unamplified"), (clip,) * steps)
