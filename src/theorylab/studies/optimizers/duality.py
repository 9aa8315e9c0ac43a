"""Sign descent, Muon and normalized gradient descent are one method in three norms, and Shampoo and SOAP begin as Muon.

Steepest descent asks for the direction D of norm one along which the linearized loss falls fastest, the maximizer of ⟨G, D⟩. In the norm
of the largest entry that is sign(G), in the spectral norm the polar factor UVᵀ, in the Frobenius norm G/‖G‖. What Shampoo and SOAP do
with a single gradient is the polar factor too: their preconditioners remove the singular values. Memory is what makes them differ.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from theorylab.core.claim import Claim, Equals, Finding
from theorylab.core.config import Config, setting
from theorylab.core.series import Series, Stage
from theorylab.core.source import Source
from theorylab.core.study import study
from theorylab.learning.optimizers.adam import adam
from theorylab.learning.optimizers.base import Optimizer
from theorylab.learning.optimizers.shampoo import shampoo, soap
from theorylab.learning.optimizers.steepest import normalized_gd, sign_descent
from theorylab.linalg.orthogonalize import polar_factor
from theorylab.theory.optimizers import Norm, dual_norm

STEEPEST = Claim(
    "optimizers/duality/steepest_descent",
    "Of all directions of norm one, sign(G), UVᵀ and G/‖G‖ have the largest product with G = USVᵀ in the norm of the largest entry, the "
    "spectral and the Frobenius norm: the dual norm of G.",
    formula=r"\max_{\|D\|_\infty \le 1}\langle G, D\rangle = \|G\|_1, \quad \max_{\|D\|_{2} \le 1}\langle G, D\rangle = \|G\|_*, \quad "
    r"\max_{\|D\|_F \le 1}\langle G, D\rangle = \|G\|_F",
    source=Source("Bernstein and Newhouse 2024", "Section 1 (steepest descent under a norm)", "arXiv:2409.20325"),
    kind="identity",
    relation=Equals(rtol=1e-12),
    control="the polar factor, scaled to norm one, in the Frobenius norm",
    reading="An optimizer without memory is a choice of norm: Adam's is that of the largest entry, Muon's the spectral. Which norm suits a "
    "network is not decided by this; that is where layers, widths and data enter.",
)

SHAMPOO = Claim(
    "optimizers/duality/shampoo_is_polar",
    "Without accumulation Shampoo's step is the polar factor of the gradient.",
    formula=r"(GG^\top)^{-1/4}\, G\, (G^\top G)^{-1/4} = UV^\top",
    source=Source("Gupta et al. 2018", "Algorithm 1, with the preconditioners of one gradient", "arXiv:1802.09568"),
    kind="identity",
    relation=Equals(atol=1e-10),
    control="the exponent −1/2 on both sides, and the preconditioners of two gradients",
    reading="The two fourth roots together divide by the singular values once: neither more nor less than Muon. With the sums over past "
    "gradients that Shampoo keeps, the step is no longer orthogonal.",
)

SOAP = Claim(
    "optimizers/duality/soap_first_step",
    "SOAP's first step, Adam's with ε → 0 in Shampoo's eigenbasis, is the polar factor of the gradient.",
    formula=r"Q_L\,\mathrm{sign}(Q_L^\top G\, Q_R)\,Q_R^\top = UV^\top",
    source=Source("Vyas et al. 2024", "Algorithm 3, first step", "arXiv:2409.11321"),
    kind="identity",
    relation=Equals(atol=1e-8),
    control="Adam in the raw basis",
    reading="In the basis of its own singular vectors a gradient is diagonal, and the sign of a diagonal matrix is all that Adam sees. "
    "Entries that are zero but for rounding must be taken as zero: Adam would scale rounding up to a full step.",
)


@dataclass(frozen=True, kw_only=True)
class DualityConfig(Config):
    """Each seed is one random matrix."""

    rows: int = setting(20, "rows of the gradient", low=2)
    columns: int = setting(12, "columns of the gradient", low=2)


NAMES: dict[Norm, str] = {"linf": "ℓ∞ norm", "spectral": "spectral norm", "frobenius": "Frobenius norm"}
DUAL: dict[Norm, Norm] = {"linf": "l1", "spectral": "nuclear", "frobenius": "frobenius"}
"""Of each norm the one whose dual it is."""


def first_step(method: Optimizer, gradients: Tensor) -> Tensor:
    """Minus the first step from zero, (replica, m, n)."""
    start = {"w": torch.zeros_like(gradients)}
    moved, _ = method.update({"w": gradients}, method.init(start), start)
    return -moved["w"]


def second_step(method: Optimizer, first: Tensor, second: Tensor) -> Tensor:
    """Minus the step that a second gradient makes after a first."""
    start = {"w": torch.zeros_like(first)}
    once, state = method.update({"w": first}, method.init(start), start)
    twice, _ = method.update({"w": second}, state, once)
    return once["w"] - twice["w"]


def apart(a: Tensor, b: Tensor) -> Tensor:
    """Largest difference of an entry, (replica,)."""
    return (a - b).abs().amax((1, 2))


def attained(gradients: Tensor, directions: Tensor, norm: Norm) -> Tensor:
    """⟨G, D⟩ over ‖D‖ and over the dual norm of G, (replica,): one where no direction of that norm does better."""
    lengths = [dual_norm(d.numpy(), DUAL[norm]) for d in directions.cpu()]
    best = [dual_norm(g.numpy(), norm) for g in gradients.cpu()]
    return (gradients * directions).sum((1, 2)) / gradients.new_tensor(best) / gradients.new_tensor(lengths)


@study(
    "optimizers/duality",
    claims=[STEEPEST, SHAMPOO, SOAP],
    tiny=DualityConfig(seeds=4),
    small=DualityConfig(seeds=64),
    large=DualityConfig(seeds=256, rows=200, columns=120),
)
def duality(config: DualityConfig) -> Iterator[Finding | Series | Stage]:
    """Compare directions and first steps with the polar factor of random gradients."""
    shape = (config.rows, config.columns)
    draws = [torch.Generator().manual_seed(s) for s in config.replica_seeds]
    G, earlier = (
        torch.stack([torch.randn(shape, generator=g, dtype=config.torch_dtype) for g in draws]).to(config.device) for _ in range(2)
    )
    polar = polar_factor(G)

    yield Stage("steepest descent")
    best: dict[Norm, Tensor] = {"linf": first_step(sign_descent(1.0), G), "spectral": polar, "frobenius": first_step(normalized_gd(1.0), G)}
    for norm, direction in best.items():
        yield STEEPEST.check(predicted=1.0, measured=attained(G, direction, norm), setting=NAMES[norm])
    yield STEEPEST.control_check(predicted=1.0, measured=attained(G, polar, "frobenius"), setting="UVᵀ in the Frobenius norm")

    yield Stage("Shampoo and SOAP")
    plain = {"eps": 0.0, "decay": 0.0}
    yield SHAMPOO.check(predicted=0.0, measured=apart(first_step(shampoo(1.0, **plain), G), polar))
    yield SHAMPOO.control_check(predicted=0.0, measured=apart(first_step(shampoo(1.0, exponent=2.0, **plain), G), polar), setting="−1/2")
    both = second_step(shampoo(1.0, eps=0.0), earlier, G)
    yield SHAMPOO.control_check(predicted=0.0, measured=apart(both, polar), setting="two gradients")
    yield SOAP.check(predicted=0.0, measured=apart(first_step(soap(1.0, eps=0.0, floor=1e-10), G), polar))
    yield SOAP.control_check(predicted=0.0, measured=apart(first_step(adam(1.0, eps=0.0), G), polar), setting="Adam in the raw basis")

    figure = Series("singular", "What is left of the gradient's singular values", x="index", y="singular value", y_scale="log")
    index = torch.arange(1, min(shape) + 1)
    for label, step in (("gradient", G), ("Shampoo, one gradient", first_step(shampoo(1.0, **plain), G))):
        figure.line(label, index, torch.linalg.svdvals(step[0]), mark="points")
    figure.line("Shampoo, two gradients", index, torch.linalg.svdvals(both[0]), role="control", mark="points")
    yield figure.line("polar factor", index, torch.ones(len(index)), role="predicted")
