"""Muon's five matrix products do not orthogonalize: they bring singular values into a band around one, and how wide it is can be computed.

The quintic's coefficients were chosen for a steep start, which lifts small singular values quickly, at the price of convergence: values
keep oscillating. Following the interval [s, 1] through the five polynomials gives the exact band. It widens as smaller values are let in,
and values below some thousandth do not get there in five steps.
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
from theorylab.linalg.orthogonalize import newton_schulz
from theorylab.theory.optimizers import newton_schulz_band, newton_schulz_value

RANGE = Claim(
    "optimizers/muon/newton_schulz_range",
    "Five steps s → 3.4445s − 4.7750s³ + 2.0315s⁵ send the singular values in [.01, 1] onto [.6818, 1.1344] and those in [.003, 1] onto "
    "[.6818, 1.2024].",
    formula=r"s \mapsto 3.4445\,s - 4.7750\,s^3 + 2.0315\,s^5 \text{ five times}: \quad [0.01, 1] \mapsto [0.6818, 1.1344]",
    source=Source(
        "Jordan 2024",
        "Section on the Newton-Schulz coefficients (values near one, not one)",
        "Muon: An optimizer for hidden layers in neural networks",
    ),
    kind="identity",
    relation=Equals(atol=1e-3),
    control="a singular value of .001, which ends at .4705",
    reading="Muon's update has singular values between two thirds and six fifths, which in practice serves as well as one. What counts is "
    "a singular value's share of the gradient's Frobenius norm: below one and a half thousandths, as in matrices of many columns, it is "
    "not lifted to the band.",
)


@dataclass(frozen=True, kw_only=True)
class MuonConfig(Config):
    """Nothing is random: singular values on a logarithmic grid."""

    points: int = setting(200_000, "grid points of an interval", low=1000)


def orthogonalized(values: Tensor) -> Tensor:
    """What Newton-Schulz makes of a singular value s, as one of the pair (s, √(1−s²)) of a 2×2 matrix, whose Frobenius norm is one."""
    pairs = torch.stack([values, (1 - values.square()).clamp_min(0).sqrt()], dim=1)
    return newton_schulz(torch.diag_embed(pairs))[:, 0, 0]


@study(
    "optimizers/muon",
    claims=[RANGE],
    tiny=MuonConfig(points=20_000),
    small=MuonConfig(),
    large=MuonConfig(points=2_000_000),
)
def muon(config: MuonConfig) -> Iterator[Finding | Series | Stage]:
    """The ends of the image of two intervals, against the interval arithmetic of the quintic."""
    for least in (0.01, 0.003):
        yield Stage(f"[{least}, 1]")
        grid = torch.logspace(0, 1, config.points, base=1 / least, dtype=config.torch_dtype, device=config.device) * least
        image = orthogonalized(grid)
        low, high = newton_schulz_band(least)
        yield RANGE.check(predicted=low, measured=image.min(), setting=f"lower end, s ≥ {least:g}")
        yield RANGE.check(predicted=high, measured=image.max(), setting=f"upper end, s ≥ {least:g}")
    small = orthogonalized(grid.new_tensor([0.001]))
    yield RANGE.control_check(predicted=newton_schulz_band(0.003)[0], measured=small, setting="s = 0.001 against the lower end")

    figure = Series("band", "Singular values after five Newton-Schulz steps", x="s", y="result", claim=RANGE.key, x_scale="log")
    shown = torch.logspace(-3.5, 0, 400, dtype=config.torch_dtype)
    figure.line("measured on matrices", shown[::20], orthogonalized(shown[::20]), mark="points")
    figure.line("the quintic, five times", shown, newton_schulz_value(shown.numpy()), role="predicted")
    low, high = newton_schulz_band(0.01)
    for name, end in (("lower end", low), ("upper end", high)):
        figure.line(name, [1e-2, 1.0], [end, end], role="predicted")
    yield figure
