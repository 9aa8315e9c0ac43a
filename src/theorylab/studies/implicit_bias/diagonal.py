"""A diagonal linear network picks among interpolants by the size of its start and by the noise of its labels.

The coefficients β = u² − v² are trained through u and v, both starting at α. Gradient flow then is mirror descent: arcsinh(β/2α²) moves
along the rows of the data only, and the limit is the interpolant that minimizes the hyperbolic entropy Σ q(β_i/α²). Gradient descent does
so up to a relative error of the order of its step size. From a large start the entropy is a square and the limit the solution of minimum ℓ2
norm, as for a linear model (the kernel regime); from a small one it is nearly a modulus and the limit the solution of minimum ℓ1 norm (the
rich regime). The general guarantee for the difference is 1/ln(1/α); of these problems it falls as a power of α, between .1 and 1 from one
problem to the next, which is small where an unused coefficient is nearly as good as a used one.

Fresh noise on the labels of each step goes further, whatever the start: its variance in u and v grows with them, and on average it drives
the parameters to where it is least, which is where u² + v² is small and β sparse. Noise and step must be small together, or the iterates
diverge; the population stops at the first value that is not finite and names the replica. The paper draws one row a step, which takes
smaller steps: here all rows are used and each has its own noise. The size of the steps and noise were chosen on other seeds.

The rows are orthogonal and span a space drawn uniformly. That changes neither the row space nor the interpolants of standard normal rows,
and shortens training: from a small start directions without large coefficients are fitted slowly, and a relative residual of some 1e-3 is
left in the rich regime. In the kernel regime a step as large as used here leaves the trained norm even below that of the flow's limit, for
the first step, β = −8ηα² times the gradient, lies in the row space itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from theorylab.core.claim import Claim, Equals, Finding, Orders, Scales
from theorylab.core.config import Config, setting
from theorylab.core.series import Series, Stage
from theorylab.core.source import Source
from theorylab.core.study import study
from theorylab.instruments.row_space import row_space_residual
from theorylab.learning.optimizers.adam import adam
from theorylab.learning.optimizers.base import Optimizer
from theorylab.learning.optimizers.sgd import sgd
from theorylab.learning.population import Population
from theorylab.models.diagonal import DiagonalLinear, coefficients
from theorylab.stats.fits import power_law
from theorylab.theory.implicit_bias import minimum_l1_solution, minimum_norm_solution
from theorylab.theory.mirror import Potential, bregman_projection, hyperbolic_entropy

HYPERBOLIC_ROW_SPACE = Claim(
    "implicit_bias/diagonal/hyperbolic_row_space",
    "Gradient descent on β = u² − v² from u = v = α keeps arcsinh(β/2α²) in the row space of the data, and so ends at the interpolant that "
    "minimizes Σ q(β_i/α²), up to an error proportional to the step size.",
    formula=r"\mathrm{arcsinh}\frac{\beta}{2\alpha^2} \in \mathrm{row}(X) + O(\eta), \qquad "
    r"\beta_\infty \to \arg\min_{X\beta = y} \sum_i q\left(\frac{\beta_i}{\alpha^2}\right), \quad "
    r"q(z) = 2 - \sqrt{4 + z^2} + z\,\mathrm{arcsinh}\frac{z}{2}",
    source=Source(
        "Woodworth et al. 2020", "Section 4 (the potential Q_α of gradient flow; a step errs in first order)", "arXiv:2002.09277"
    ),
    kind="asymptotic",
    relation=Scales(1.0, 0.1),
    control="Adam in place of gradient descent",
    reading="Depth changes the geometry, not the functions: the same linear model, trained through squares, measures distance by another "
    "potential. The potential belongs to gradient flow on u and v; Adam, weight decay or large steps end elsewhere.",
)

KERNEL_LIMIT = Claim(
    "implicit_bias/diagonal/kernel_limit",
    "From a large start a diagonal linear network ends at the interpolant of minimum ℓ2 norm.",
    formula=r"\lim_{\alpha\to\infty} \|\beta_\infty(\alpha)\|_2 = \min_{X\beta = y} \|\beta\|_2",
    source=Source("Woodworth et al. 2020", "Section 4 (the kernel regime as α → ∞)", "arXiv:2002.09277"),
    kind="asymptotic",
    relation=Equals(atol=1e-8),
    control="a small start",
    reading="A large start hardly moves relative to its size, so the network trains as its linearization does and forgets that it has two "
    "layers. The excess of the norm falls as the eighth power of 1/α: α of a few times the coefficients is large already.",
)

RICH_LIMIT = Claim(
    "implicit_bias/diagonal/rich_limit",
    "From a small start a diagonal linear network ends near the interpolant of minimum ℓ1 norm.",
    formula=r"\lim_{\alpha\to 0} \|\beta_\infty(\alpha)\|_1 = \min_{X\beta = y} \|\beta\|_1",
    source=Source("Woodworth et al. 2020", "Section 4 (the rich regime as α → 0)", "arXiv:2002.09277"),
    kind="asymptotic",
    relation=Equals(atol=0.05),
    control="a large start",
    reading="Small starts find sparse solutions without any penalty: each coefficient grows in proportion to itself, and the first to grow "
    "leave nothing to fit. The approach is slow in α where an unused coefficient is nearly as good as a used one, and training takes "
    "the longer the smaller the start.",
)

LABEL_NOISE = Claim(
    "implicit_bias/diagonal/label_noise",
    "On u² − v² gradient descent with fresh label noise ends nearer to a planted sparse vector than without.",
    formula=r"\mathbb{E}\,\|\beta_T^{\text{noise}} - \beta^\star\|_2 < \|\beta_T - \beta^\star\|_2",
    source=Source(
        "HaoChen et al. 2020",
        "main theorem (label noise recovers a sparse truth from any start); its regularizer: Blanc et al. 2019, arXiv:1904.09080",
        "arXiv:2006.08680",
    ),
    kind="statistical",
    relation=Orders(),
    control="the same noise on a linear model",
    reading="Labels are equally noisy everywhere, parameters are not: the noise reaches them through the network's gradient, and training "
    "drifts to where that is small. So noise is a regularizer whose form the parametrization decides; on a linear model, whose gradient is "
    "the same everywhere, it only shakes the solution.",
)


@dataclass(frozen=True, kw_only=True)
class DiagonalConfig(Config):
    """Orthogonal rows of length √d, targets of a vector whose first entries are ±1 and the others 0."""

    seeds: int = setting(16, "replicas, each with its own random numbers", low=1)
    n: int = setting(10, "rows", low=1)
    d: int = setting(30, "inputs, more than rows", low=2)
    nonzero: int = setting(3, "planted entries", low=1)
    lrs: tuple[float, ...] = setting((2e-3, 1e-3, 5e-4), "step sizes η of the hyperbolic entropy, at α = 1", low=1e-5, high=1e-2)
    flow_steps: int = setting(3000, "steps at each of these", low=100)
    alphas: tuple[float, ...] = setting(
        (1e-3, 1e-2, 0.1, 0.3, 1.0, 3.0, 10.0), "initial scales α, in rising order", low=1e-6, high=100.0, rising=True
    )
    rich_steps: int = setting(10_000, "steps from each initial scale", low=100)
    noise_n: int = setting(20, "rows under label noise", low=1)
    noise_d: int = setting(40, "inputs under label noise", low=2)
    noise_nonzero: int = setting(2, "planted entries under label noise", low=1)
    noise_alpha: float = setting(0.3, "initial scale α under label noise", low=1e-3, high=10.0)
    noise_lr: float = setting(0.05, "step size η under label noise", low=1e-4, high=0.2)
    noises: tuple[float, ...] = setting((0.3, 0.6), "standard deviations of the label noise", low=1e-3, high=10.0)
    noise_steps: int = setting(12_000, "steps under label noise", low=100)

    def __post_init__(self) -> None:
        super().__post_init__()
        for part in ("", "noise_"):
            n, d, nonzero = (getattr(self, part + k) for k in ("n", "d", "nonzero"))
            if n >= d:
                raise ValueError(f"{part}n must be less than {part}d for an underdetermined problem, got {n} rows and {d} inputs.")
            if nonzero > d:
                raise ValueError(f"{part}nonzero must be at most {part}d = {d}, got {nonzero}.")
        if len(set(self.lrs)) < 2:
            raise ValueError(f"lrs must hold at least two step sizes to give an order, got {self.lrs}.")


class Planted(NamedTuple):
    """Rows (replica, n, d), targets (replica, n), and the vectors (replica, d) that they are made of."""

    x: Tensor
    y: Tensor
    truth: Tensor


def planted(config: DiagonalConfig, n: int, d: int, nonzero: int) -> Planted:
    """One problem a seed."""
    rows, truths = [], []
    for seed in config.replica_seeds:
        generator = torch.Generator().manual_seed(seed)
        rows.append(d**0.5 * torch.linalg.qr(torch.randn(d, n, generator=generator, dtype=torch.float64)).Q.T)
        signs = 2.0 * torch.randint(0, 2, (nonzero,), generator=generator, dtype=torch.float64) - 1
        truths.append(nn.functional.pad(signs, (0, d - nonzero)))
    x, truth = (torch.stack(part).to(config.device, config.torch_dtype) for part in (rows, truths))
    return Planted(x, (x @ truth.unsqueeze(2)).squeeze(2), truth)


def population(
    problem: Planted, optimizer: Optimizer, alpha: Tensor, config: DiagonalConfig, *, depth: int = 2, noise: Tensor | float = 0.0
) -> Population:
    """Every problem once for each of several settings, the problems of one setting after another: ``alpha`` is (setting · replica,)."""
    settings = len(alpha) // config.seeds
    d = problem.x.shape[2]
    made = Population(
        lambda: DiagonalLinear(d, depth=depth),
        nn.functional.mse_loss,
        (problem.x.repeat(settings, 1, 1), problem.y.repeat(settings, 1)),
        optimizer=optimizer,
        seeds=config.replica_seeds * settings,
        data_per_replica=True,
        label_noise=noise,
        dtype=config.torch_dtype,
        device=config.device,
    )
    start = alpha.to(problem.x).unsqueeze(1).expand(-1, d)
    made.params = {"u": start, "v": start}
    return made


def beta(trained: Population, depth: int = 2) -> Tensor:
    """Coefficients (setting · replica, d)."""
    return coefficients(trained.params["u"], trained.params["v"], depth)


def each(values: tuple[float, ...], config: DiagonalConfig) -> Tensor:
    """One value a setting, for all its replicas: (setting · replica,)."""
    return torch.tensor(values, dtype=torch.float64, device=config.device).repeat_interleave(config.seeds)


def minimizers(problem: Planted, potential: Potential) -> Tensor:
    """Of the potential among the interpolants, (replica, d)."""
    zero = torch.zeros_like(problem.truth[0])
    return torch.stack([bregman_projection(potential, x, y, zero) for x, y in zip(problem.x, problem.y, strict=True)])


def misfit(coefficient: Tensor, problem: Planted) -> Tensor:
    """‖Xβ − y‖ / ‖y‖ of coefficients (..., replica, d)."""
    fitted = (problem.x @ coefficient.unsqueeze(-1)).squeeze(-1)
    return (fitted - problem.y).norm(dim=-1) / problem.y.norm(dim=-1)


@study(
    "implicit_bias/diagonal",
    claims=[HYPERBOLIC_ROW_SPACE, KERNEL_LIMIT, RICH_LIMIT, LABEL_NOISE],
    tiny=DiagonalConfig(
        seeds=10,
        n=4,
        d=12,
        nonzero=1,
        flow_steps=500,
        lrs=(4e-3, 2e-3, 1e-3),
        alphas=(1e-3, 10.0),
        rich_steps=1500,
        noise_n=8,
        noise_d=16,
        noise_nonzero=1,
        noises=(0.6,),
        noise_steps=1000,
    ),
    small=DiagonalConfig(),
    large=DiagonalConfig(
        seeds=32,
        n=40,
        d=100,
        nonzero=5,
        flow_steps=20_000,
        lrs=(4e-4, 2e-4, 1e-4),
        alphas=(1e-4, 1e-3, 1e-2, 0.1, 0.3, 1.0, 3.0, 10.0),
        rich_steps=200_000,
        noise_n=40,
        noise_d=100,
        noise_nonzero=5,
        noise_steps=200_000,
        noises=(0.1, 0.3, 0.6),
    ),
)
def diagonal(config: DiagonalConfig) -> Iterator[Finding | Series | Stage]:
    """The order of the error in η, the limits in α, and the distance from the planted vector under label noise."""
    problem = planted(config, config.n, config.d, config.nonzero)
    yield Stage("hyperbolic entropy")
    yield from row_space(problem, config)
    yield Stage("from the kernel to the rich regime")
    yield from regimes(problem, config)
    yield Stage("label noise")
    yield from label_noise(config)


def row_space(problem: Planted, config: DiagonalConfig) -> Iterator[Finding | Series]:
    """Residual from the row space, and distance from the minimizer, at three step sizes."""
    potential = hyperbolic_entropy(1.0)
    target = minimizers(problem, potential)
    lr = each(config.lrs, config)
    figure = Series("row_space", "arcsinh(β/2α²) leaves the row space in proportion to the step", x="step size η", y="relative error")
    figure.claim, figure.x_scale, figure.y_scale = HYPERBOLIC_ROW_SPACE.key, "log", "log"
    for name, optimizer, check in (
        ("gradient descent", sgd(lr), HYPERBOLIC_ROW_SPACE.check),
        ("Adam", adam(20 * lr), HYPERBOLIC_ROW_SPACE.control_check),  # twentyfold, to arrive in as many steps
    ):
        run = population(problem, optimizer, torch.ones_like(lr), config)
        run.train(config.flow_steps)
        found = beta(run).unflatten(0, (len(config.lrs), config.seeds))
        note = f"largest relative residual of the fit {float(misfit(found, problem).amax()):.1e}"
        role = "measured" if optimizer.name == "sgd" else "control"
        for what, error in (
            ("distance from the row space", row_space_residual(potential.mirror, found, problem.x)),
            ("distance from the minimizer", (found - target).norm(dim=2) / target.norm(dim=1)),
        ):
            orders = [power_law(config.lrs, column) for column in error.T]
            yield check(measured=orders, setting=f"{name}: {what}", note=note)
            mean = error.log().mean(1).exp()
            figure.line(f"{name}: {what}", config.lrs, mean, role=role, mark="points")
            if role == "measured" and what == "distance from the row space":
                figure.line("∝ η", config.lrs, [float(mean[0]) * lr / config.lrs[0] for lr in config.lrs], role="predicted")
    yield figure


def regimes(problem: Planted, config: DiagonalConfig) -> Iterator[Finding | Series]:
    """Norms of the limit, relative to the least that an interpolant has, against the initial scale."""
    alpha = each(config.alphas, config)
    # The tangent kernel is X diag(4(u² + v²)) Xᵀ with u² + v² = √(β² + 4α⁴), as uv stays at α². XXᵀ is d, and β is taken to be below 1.5.
    sharpness = 2 / config.n * 4 * (1.5**2 + 4 * alpha**4).sqrt() * config.d
    run = population(problem, sgd(0.5 / sharpness), alpha, config)
    run.train(config.rich_steps)
    found = beta(run).unflatten(0, (len(config.alphas), config.seeds))
    l1 = torch.stack([minimum_l1_solution(x, y) for x, y in zip(problem.x, problem.y, strict=True)]).abs().sum(1)
    l2 = minimum_norm_solution(problem.x, problem.y).norm(dim=1)
    ratios = {"ℓ1": found.abs().sum(2) / l1, "ℓ2": found.norm(dim=2) / l2}  # (alpha, replica)
    residual = misfit(found, problem).amax(1)
    rich, kernel = 0, len(config.alphas) - 1
    for claim, norm, right, wrong in ((KERNEL_LIMIT, "ℓ2", kernel, rich), (RICH_LIMIT, "ℓ1", rich, kernel)):
        for check, at in ((claim.check, right), (claim.control_check, wrong)):
            where = f"{norm} norm / least {norm} norm − 1, α = {config.alphas[at]:g}"
            note = f"largest relative residual of the fit {float(residual[at]):.1e}"
            yield check(predicted=0.0, measured=ratios[norm][at] - 1, setting=where, note=note)

    grid = np.geomspace(config.alphas[0], config.alphas[-1], 25)
    limits = [minimizers(problem, hyperbolic_entropy(float(a))) for a in grid]
    predicted = {"ℓ1": torch.stack([b.abs().sum(1) for b in limits]) / l1, "ℓ2": torch.stack([b.norm(dim=1) for b in limits]) / l2}
    norms = Series("norms", "From the rich to the kernel regime", x="initial scale α", y="norm / least norm of an interpolant")
    norms.claim, norms.x_scale = RICH_LIMIT.key, "log"
    for norm, ratio in ratios.items():
        norms.line(f"{norm}: minimizer of Σ q(β/α²)", grid, predicted[norm].mean(1), role="predicted")
        norms.line(f"{norm}: trained", config.alphas, ratio.mean(1), low=ratio.amin(1), high=ratio.amax(1), mark="points")
    yield norms
    excess = Series("excess", "How much longer than the shortest interpolant", x="initial scale α", y="ℓ2 norm / least ℓ2 norm − 1")
    excess.claim, excess.x_scale, excess.y_scale = KERNEL_LIMIT.key, "log", "log"
    floor = torch.finfo(found.dtype).eps
    excess.line("minimizer of Σ q(β/α²)", grid, (predicted["ℓ2"] - 1).clamp(min=floor).mean(1), role="predicted")
    yield excess.line("trained", config.alphas, (ratios["ℓ2"] - 1).clamp(min=floor).mean(1), mark="points")


def label_noise(config: DiagonalConfig) -> Iterator[Finding | Series]:
    """Distance from the planted vector with and without noise, on the diagonal network and on a linear model."""
    problem = planted(config, config.noise_n, config.noise_d, config.noise_nonzero)
    levels = (0.0, *config.noises)
    noise = each(levels, config)
    alpha = torch.full_like(noise, config.noise_alpha)
    figure = Series("label_noise", "Label noise makes u² − v² sparse", x="step", y="‖β − planted‖ / ‖planted‖", claim=LABEL_NOISE.key)
    figure.y_scale = "log"
    for depth, name, check in ((2, "u² − v²", LABEL_NOISE.check), (1, "linear", LABEL_NOISE.control_check)):
        lr = config.noise_lr if depth == 2 else config.noise_lr / 2  # of u − v both terms move, so that it takes steps of 2η
        run = population(problem, sgd(lr), alpha, config, depth=depth, noise=noise)

        def distance(now: Population, depth: int = depth) -> Tensor:
            apart = beta(now, depth).unflatten(0, (len(levels), config.seeds)) - problem.truth
            return (apart.norm(dim=2) / problem.truth.norm(dim=1)).flatten()

        path = run.train(config.noise_steps, every=max(config.noise_steps // 60, 1), measure=distance)
        values = path["value"].unflatten(1, (len(levels), config.seeds))  # (time, level, replica)
        for k, level in enumerate(levels):
            end = values[-1, k]
            if level:
                note = f"mean distance {float(end.mean()):.3f}, without noise {float(values[-1, 0].mean()):.3f}"
                yield check(measured=values[-1, 0] - end, setting=f"{name}, noise {level:g}", note=note)
            role = "measured" if depth == 2 else "control"
            line = values[:, k]
            figure.line(f"{name}, noise {level:g}", path.steps, line.mean(1), low=line.amin(1), high=line.amax(1), role=role)
    yield figure
