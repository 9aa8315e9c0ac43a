"""A deep linear network lowers the rank of its product, at the price of any norm.

The singular values of a product of N balanced factors move at a speed proportional to σ^{2−2/N}: the small ones stay behind, the more so
the deeper the product. That is a preference for low rank, and it is no preference for a small norm. Of a 2×2 matrix let three entries be
observed, w₀₁ = w₁₀ = 1 and w₁₁ = 0, and the fourth be free. Balanced factors keep the sign of the determinant under gradient flow; where it
is positive, the observations can be fitted only in the limit |w₀₀| → ∞, and training goes there, although matrices of small norm fit too.
Steps must be small for gradient descent to keep the sign as the flow does, and at the step size used here the depth at least 3.

Low rank is often the better guess. From about a third of the entries of a matrix of rank 2 the completion of minimum nuclear norm, the
convex relaxation of least rank, is off by several per cent; a product of three full factors, started small and trained on the same
entries, is nearer to the truth. Neither depth nor the small start is dispensable: a start of the size of the matrix leaves the unobserved
entries where they were, and two factors would need a far smaller start to come near the nuclear norm. Four factors are nearer still in
most runs, but of twenty one or so ends, with the loss at zero, in a wrong completion of rank 3 that half the step size does not
change: over such a tail a mean of few runs decides nothing, so four factors are shown in the figure and not claimed. The
completion of minimum nuclear norm comes with a lower bound from the dual problem, and their gap is said with the result. Step size and
numbers of steps and replicas were chosen on other seeds: four factors need a third of the step that three bear.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from theorylab.core.claim import AtLeast, Claim, Finding, Orders, Scales
from theorylab.core.config import Config, setting
from theorylab.core.seeds import derived_seed
from theorylab.core.series import Series, Stage
from theorylab.core.source import Source
from theorylab.core.study import study
from theorylab.data.synthetic import tensor_completion
from theorylab.learning.optimizers.base import Params
from theorylab.learning.optimizers.sgd import sgd
from theorylab.learning.population import Population
from theorylab.linalg.nuclear import complete
from theorylab.models.deep_linear import DeepLinear, balanced, end_to_end
from theorylab.stats.fits import power_law
from theorylab.theory.implicit_bias import singular_value_speed, unobserved_entry_bound

SINGULAR_VALUE_FLOW = Claim(
    "implicit_bias/matrix/singular_value_flow",
    "One step of gradient descent on balanced factors moves the singular values of their product by η times the speed of the flow, "
    "−N(σ²)^{1−1/N}⟨∇ℓ, uvᵀ⟩, up to a relative error of order η.",
    formula=r"\dot\sigma_r = -N\,(\sigma_r^2)^{1 - 1/N}\,\langle \nabla\ell(W), u_r v_r^\top\rangle",
    source=Source("Arora et al. 2019", "Theorem 3", "arXiv:1905.13655"),
    kind="asymptotic",
    relation=Scales(1.0, 0.1),
    control="unbalanced factors of the same product: the error does not vanish with η",
    reading="Depth gives every singular value a step size of its own, which grows with the value: the large are learned first and the "
    "small hardly at all. The law needs balanced factors, which small starts provide and a rescaled layer destroys.",
)

NORMS_DIVERGE = Claim(
    "implicit_bias/matrix/norms_diverge",
    "Completing a 2×2 matrix with balanced factors and positive determinant, the unobserved entry is at least (1 − √(2ℓ))²/√(2ℓ) at loss "
    "ℓ, so every norm diverges as the loss vanishes.",
    formula=r"|w_{00}| \ge \frac{\left(1 - \sqrt{2\ell}\right)^2}{\sqrt{2\ell}} \qquad \text{while } 2\ell < 1",
    source=Source("Razin and Cohen 2020", "Theorem 1 and the lower bound on the unobserved entry in its proof", "arXiv:2005.06398"),
    kind="inequality",
    relation=AtLeast(),
    control="independent, unbalanced factors of the same size: the determinant changes its sign",
    reading="Among the matrices that fit there are some of small norm, and training runs away from all of them; it lowers the rank "
    "instead. So no norm is what depth minimizes in general. Unbalanced factors let the determinant cross zero, and a small completion "
    "is found.",
)

DEPTH_BEATS_NUCLEAR = Claim(
    "implicit_bias/matrix/depth_beats_nuclear",
    "From few entries of a matrix of low rank, gradient descent on three factors from a small start recovers the others better than the "
    "completion of minimum nuclear norm.",
    formula=r"\|W_3W_2W_1 - W^\star\|_F < \|\hat X - W^\star\|_F, \qquad "
    r"\hat X = \arg\min\left\{\|X\|_* : X_{ij} = W^\star_{ij},\ (i, j) \in \Omega\right\}",
    source=Source("Arora et al. 2019", "Figure 2 (against the minimum nuclear norm, few observations)", "arXiv:1905.13655"),
    kind="statistical",
    relation=Orders(),
    control="a start of the size of the matrix itself; two factors in place of three",
    reading="The nuclear norm charges for large singular values as for small ones, and shrinks what it should keep; depth holds back the "
    "small ones only. With more observations both recover the matrix exactly, with a larger start training hardly moves what it does not "
    "see, and a matrix that is not of low rank has nothing to gain.",
)

OBSERVED = ((0.0, 1.0), (1.0, 1.0))  # mask
TARGET = ((0.0, 1.0), (1.0, 0.0))


@dataclass(frozen=True, kw_only=True)
class MatrixConfig(Config):
    """Gradient descent on the factors of a 2×2 matrix with one free entry, single steps on a larger one, completion of a still larger."""

    seeds: int = setting(24, "replicas, each with its own random numbers", low=1)
    depth: int = setting(3, "factors", low=3)
    scale: float = setting(0.3, "standard deviation of the initial end-to-end entries", low=0.01, high=1.0)
    lr: float = setting(0.01, "step size η", low=1e-4, high=0.05)
    steps: int = setting(20_000, "steps", low=100)
    size: int = setting(6, "rows and columns of the matrix of the singular-value flow", low=2)
    depths: tuple[int, ...] = setting((2, 3, 4), "factors in the singular-value flow", low=2, high=8)
    flow_lrs: tuple[float, ...] = setting((4e-4, 2e-4, 1e-4), "step sizes η of the singular-value flow", low=1e-6, high=1e-2)
    complete_size: int = setting(30, "rows and columns of the matrix that is completed", low=4)
    complete_rank: int = setting(2, "its rank", low=1)
    fraction: float = setting(0.35, "share of its entries that is observed", low=0.05, high=1.0)
    complete_depths: tuple[int, ...] = setting((2, 3, 4), "factors that complete it: three are claimed, two a control", low=2, high=6)
    starts: tuple[float, ...] = setting(
        (1e-3, 0.03, 1.0), "standard deviation of the initial end-to-end entries, those of the matrix being 1", low=1e-6, high=1.0
    )
    complete_lr: float = setting(0.12, "step size η on half the squared residuals, summed over a row, in the mean over rows", low=1e-3)
    complete_steps: int = setting(1000, "steps of the completion", low=100)

    def __post_init__(self) -> None:
        super().__post_init__()
        if 3 not in self.complete_depths:
            raise ValueError(f"complete_depths must hold 3, of which the claim is, got {self.complete_depths}.")
        if 2 not in self.complete_depths and len(self.starts) == 1:
            raise ValueError(f"complete_depths must hold 2, or starts several values, for a control; got {self.complete_depths} and one.")


def flow_error(factors: Params, target: Tensor, lr: float) -> Tensor:
    """Relative error of the predicted speed of the singular values in one step on ½‖W − target‖²; (replica,)."""
    product = end_to_end(list(factors.values()))
    gd = sgd(lr=lr)
    after, _ = gd.update(gradients(factors, product - target), gd.init(factors), factors)
    moved = (torch.linalg.svdvals(end_to_end(list(after.values()))) - torch.linalg.svdvals(product)) / lr
    speed = singular_value_speed(product, product - target, len(factors))
    return (moved - speed).norm(dim=1) / speed.norm(dim=1)


def flow_factors(config: MatrixConfig, depth: int) -> tuple[Params, Params, Tensor]:
    """Balanced factors, unbalanced ones of the same product, and a target, (replica, size, size) each."""
    even, uneven, targets = [], [], []
    for seed in config.replica_seeds:
        generator = torch.Generator().manual_seed(seed)
        factors = balanced([config.size] * (depth + 1), config.size**-0.5, generator)
        stretch, target = torch.randn(2, config.size, config.size, generator=generator, dtype=torch.float64)
        basis, scales = torch.linalg.qr(stretch).Q, torch.linspace(-1, 1, config.size, dtype=torch.float64).exp()
        even.append(torch.stack(factors))
        # W₁ → AW₁ and W₂ → W₂A⁻¹ with A = diag(scales)·basis leave the product as it is
        uneven.append(torch.stack([scales[:, None] * (basis @ factors[0]), factors[1] @ basis.T / scales, *factors[2:]]))
        targets.append(target)
    stacks = [torch.stack(part).to(device=config.device, dtype=config.torch_dtype) for part in (even, uneven, targets)]
    balanced_, unbalanced = ({f"w{j}": stack[:, j] for j in range(depth)} for stack in stacks[:2])
    return balanced_, unbalanced, stacks[2]


def determinant(matrix: Tensor) -> Tensor:
    """Of 2×2 matrices (..., 2, 2)."""
    return matrix[..., 0, 0] * matrix[..., 1, 1] - matrix[..., 0, 1] * matrix[..., 1, 0]


def initial(config: MatrixConfig) -> Params:
    """Factors (2·replica, 2, 2) with positive determinant: balanced ones of each seed first, then independent ones."""
    runs = []
    for unbalanced in (False, True):
        for seed in config.replica_seeds:
            generator = torch.Generator().manual_seed(seed)
            factors = balanced([2] * (config.depth + 1), config.scale, generator)
            if unbalanced:  # entries of each factor so that those of the product have the same variance
                size = (config.scale**2 / 2 ** (config.depth - 1)) ** (1 / (2 * config.depth))
                factors = [size * torch.randn(2, 2, generator=generator, dtype=torch.float64) for _ in factors]
            if float(determinant(end_to_end(factors))) < 0:
                factors[0] = factors[0] * factors[0].new_tensor([-1.0, 1.0])  # reflects the inputs, which keeps W₁W₁ᵀ and the balance
            runs.append(torch.stack(factors))
    stacked = torch.stack(runs).to(device=config.device, dtype=config.torch_dtype)
    return {f"w{j}": stacked[:, j] for j in range(config.depth)}


def gradients(params: Params, residual: Tensor) -> Params:
    """Of a function of the product W_L⋯W₁ whose gradient in the product is ``residual``: (W_L⋯W_{j+1})ᵀ R (W_{j−1}⋯W₁)ᵀ."""
    weights = list(params.values())
    left, lefts = residual, [residual]  # (W_L⋯W_{j+1})ᵀ R, from the last factor down
    for w in reversed(weights[1:]):
        left = w.mT @ left
        lefts.append(left)
    grads = {"w0": lefts.pop()}
    below = weights[0]
    for j, w in enumerate(weights[1:], start=1):
        grads[f"w{j}"] = lefts.pop() @ below.mT
        below = w @ below
    return grads


@study(
    "implicit_bias/matrix",
    claims=[SINGULAR_VALUE_FLOW, NORMS_DIVERGE, DEPTH_BEATS_NUCLEAR],
    tiny=MatrixConfig(seeds=8, steps=3000, size=4, complete_size=20, fraction=0.45, complete_depths=(3,), starts=(1e-3, 1.0)),
    small=MatrixConfig(),
    large=MatrixConfig(
        seeds=256,
        depth=4,
        lr=0.002,
        steps=500_000,
        size=12,
        depths=(2, 3, 4, 6),
        flow_lrs=(4e-5, 2e-5, 1e-5),
        complete_size=100,
        complete_rank=5,
        fraction=0.2,
        complete_lr=0.05,
        complete_steps=50_000,
    ),
)
def matrix(config: MatrixConfig) -> Iterator[Finding | Series | Stage]:
    """Single steps against the flow of the singular values, the free entry against its bound, completions against the nuclear norm's."""
    yield Stage("singular values in one step")
    yield from singular_value_flow(config)
    yield Stage(f"{config.steps} steps, balanced and unbalanced")
    yield from norms_diverge(config)

    yield Stage("completion by depth and by the nuclear norm")
    yield from depth_beats_nuclear(config)


def singular_value_flow(config: MatrixConfig) -> Iterator[Finding | Series]:
    """Order in η of the error of the predicted speed, for each depth."""
    figure = Series("flow", "Error of the predicted speed of the singular values", x="step size η", y="relative error of one step")
    figure.claim, figure.x_scale, figure.y_scale = SINGULAR_VALUE_FLOW.key, "log", "log"
    for depth in config.depths:
        even, uneven, target = flow_factors(config, depth)
        for factors, check, name in (
            (even, SINGULAR_VALUE_FLOW.check, "balanced"),
            (uneven, SINGULAR_VALUE_FLOW.control_check, "unbalanced"),
        ):
            errors = torch.stack([flow_error(factors, target, lr) for lr in config.flow_lrs])  # (lr, replica)
            orders = [power_law(config.flow_lrs, column) for column in errors.T]
            yield check(measured=orders, setting=f"{name} factors, depth {depth}")
            role = "measured" if factors is even else "control"
            figure.line(f"{name}, depth {depth}", config.flow_lrs, errors.log().mean(1).exp(), role=role, mark="points")
    first = figure.lines[0].y[0]
    yield figure.line("∝ η", config.flow_lrs, [first * lr / config.flow_lrs[0] for lr in config.flow_lrs], role="predicted")


def norms_diverge(config: MatrixConfig) -> Iterator[Finding | Series]:
    """Loss and entry along the training of balanced and of unbalanced factors."""
    params = initial(config)
    mask, target = (params["w0"].new_tensor(entries) for entries in (OBSERVED, TARGET))
    gd = sgd(lr=config.lr)
    state, kept = gd.init(params), []
    record = {round(t) for t in np.geomspace(1, config.steps, 60)}

    for t in range(1, config.steps + 1):
        residual = (end_to_end(list(params.values())) - target) * mask
        params, state = gd.update(gradients(params, residual), state, params)
        if t in record:
            kept.append(end_to_end(list(params.values())))
    path = torch.stack(kept).unflatten(1, (2, config.seeds))  # (time, start, replica, 2, 2)
    losses = ((path - target) * mask).square().sum((3, 4)) / 2
    determinants = determinant(path)
    entries = path[..., 0, 0].abs()

    figure = Series("entry", "The smaller the loss, the larger the entry", x="loss ℓ", y="|w₀₀|", claim=NORMS_DIVERGE.key)
    figure.x_scale = figure.y_scale = "log"
    for start, (name, check) in enumerate((("balanced", NORMS_DIVERGE.check), ("unbalanced", NORMS_DIVERGE.control_check))):
        loss, entry = losses[:, start], entries[:, start]
        speaks = (loss > 0) & (2 * loss < 1)
        bound = unobserved_entry_bound(loss[speaks])
        kept_sign = int((determinants[:, start] > 0).all(0).sum())
        singular = torch.linalg.svdvals(path[-1, start])
        note = (
            f"determinant positive throughout in {kept_sign} of {config.seeds}; at the end |w₀₀| is {float(entry[-1].mean()):.3g} and "
            f"σ₂/σ₁ {float((singular[:, 1] / singular[:, 0]).mean()):.2g} in the mean"
        )
        yield check(predicted=bound, measured=entry[speaks], setting=f"{name} factors, depth {config.depth}", note=note)
        role = "measured" if start == 0 else "control"
        shown = speaks & (loss > losses[:, 0].min() / 10)  # unbalanced factors fit to rounding, far off the figure
        figure.line(name, loss[shown], entry[shown], role=role, mark="points")
    grid = torch.logspace(np.log10(float(losses[:, 0].min())), np.log10(0.45), 100, dtype=losses.dtype)
    yield figure.line("lower bound", grid, unobserved_entry_bound(grid), role="predicted")


def observed_risk(columns: Tensor, targets: Tensor) -> Tensor:
    """Half the squared residuals of each row, over observed entries; the targets hold entries and mask (row, entry, 2)."""
    entries, mask = targets.unbind(-1)
    return ((columns - entries) * mask).square().sum(1) / 2


def factorized(config: MatrixConfig, depth: int, truth: Tensor, mask: Tensor) -> Tensor:
    """Products of ``depth`` factors, each trained from each start on the observed entries; (start, replica, size, size)."""
    n, starts = config.complete_size, len(config.starts)
    inputs = torch.eye(n, dtype=truth.dtype).expand(starts * config.seeds, n, n)  # whose outputs are the columns of the product
    targets = torch.stack([truth, mask.to(truth)], -1).transpose(1, 2).repeat(starts, 1, 1, 1)
    population = Population(
        lambda: DeepLinear([n] * (depth + 1)),
        observed_risk,
        (inputs, targets),
        optimizer=sgd(lr=config.complete_lr),
        seeds=[derived_seed(seed, "start") for seed in config.replica_seeds] * starts,  # other numbers than those of the matrix
        data_per_replica=True,
        dtype=config.torch_dtype,
        device=config.device,
    )
    # entries of the product have the standard deviation s^depth/√n where each factor is made with init_scale s
    scales = torch.tensor([(start * n**0.5) ** (1 / depth) for start in config.starts for _ in config.replica_seeds])
    population.params = {k: w * scales.to(w)[:, None, None] for k, w in population.params.items()}
    population.train(config.complete_steps)
    return end_to_end(list(population.params.values())).unflatten(0, (starts, config.seeds))


def depth_beats_nuclear(config: MatrixConfig) -> Iterator[Finding | Series]:
    """Error of products of each depth from each start, paired with that of the completion of minimum nuclear norm."""
    tasks = [
        tensor_completion((config.complete_size,) * 2, rank=config.complete_rank, fraction=config.fraction, seed=seed)
        for seed in config.replica_seeds
    ]
    truth, mask = (torch.stack(part).to(config.device) for part in zip(*tasks, strict=True))

    def error(completed: Tensor) -> Tensor:
        return (completed - truth).norm(dim=(-2, -1)) / truth.norm(dim=(-2, -1))

    convex = complete(truth, mask, tol=1e-5)
    nuclear = error(convex.matrix)
    gap = float(((convex.norm - convex.bound) / convex.norm).max())

    title, x = "Error of completions, by depth and by the size of the start", "standard deviation of initial entries"
    figure = Series("completion", title, x=x, y="relative error (geometric mean)", claim=DEPTH_BEATS_NUCLEAR.key)
    figure.x_scale = figure.y_scale = "log"

    for depth in config.complete_depths:
        errors = error(factorized(config, depth, truth, mask))  # (start, replica)
        role = "measured" if depth > 2 else "control"
        figure.means(f"depth {depth}", config.starts, errors, geometric=True, role=role, mark="line")
        for start, each in zip(config.starts, errors, strict=True):
            claimed = depth == 3 and start == min(config.starts)
            if depth > 3 or not (claimed or start == max(config.starts) or depth == 2):
                continue
            note = (
                f"relative error {float(each.mean()):.3g} against {float(nuclear.mean()):.3g} of the minimum nuclear norm, smaller in "
                f"{int((each < nuclear).sum())} of {config.seeds}; duality gap at most {gap:.1g} of the norm"
            )
            check = DEPTH_BEATS_NUCLEAR.check if claimed else DEPTH_BEATS_NUCLEAR.control_check
            yield check(measured=nuclear - each, setting=f"depth {depth}, start {start:g}", note=note)
    convex_errors = nuclear.expand(len(config.starts), -1)
    yield figure.means("minimum nuclear norm", config.starts, convex_errors, geometric=True, mark="line")
