"""Leaving one row out of a ridge regression needs no refit: its residual is divided by what is left of its leverage.

The row's own pull on the fit is its leverage h. Without the row, the fit misses it by r / (1 − h), an identity, and the parameters move by
a formula of the same kind. Both are compared here with all the refits. The leverage is that of the penalized fit: with the
textbook's leverage of plain least squares the formula is wrong, the more so the larger the penalty.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from theorylab.core.claim import Claim, Equals, Finding
from theorylab.core.config import Config, setting
from theorylab.core.series import Series, Stage
from theorylab.core.source import Source
from theorylab.core.study import study
from theorylab.learning.linear import ridge as fit
from theorylab.theory.influence import hat_values, press_residuals, ridge_leave_one_out

LEAVE_ONE_OUT = Claim(
    "influence/ridge/leave_one_out",
    "Without row i, ridge regression misses it by its residual over one minus its leverage.",
    formula=r"y_i - \hat y_{-i} = \frac{r_i}{1 - h_i},\quad h_i = x_i^\top (X^\top X + \lambda I)^{-1} x_i",
    source=Source(
        "Allen 1974",
        "the prediction sum of squares (PRESS); deletion formulas of regression: Cook 1977, doi:10.1080/00401706.1977.10489493",
        "doi:10.1080/00401706.1974.10489157",
    ),
    kind="identity",
    relation=Equals(atol=1e-10),
    control="the leverage of least squares without the penalty",
    reading="Leave-one-out error costs one fit, not n, and a row that pulls the fit towards itself hides its own error: with h near 1 the "
    "residual is nearly zero whatever the row says. The identity needs a quadratic loss and a penalty that does not change with n; "
    "for any other loss it is an approximation.",
)


@dataclass(frozen=True, kw_only=True)
class RidgeConfig(Config):
    """A seed is a data set: normal inputs, a linear signal, normal noise."""

    rows: int = setting(60, "rows n", low=3)
    inputs: int = setting(5, "inputs d", low=1)
    penalties: tuple[float, ...] = setting((0.07, 0.7, 10.0), "penalties λ of the sum of squares", low=0.0)


def regression(config: RidgeConfig, seed: int) -> tuple[Tensor, Tensor]:
    """Inputs (n, d) and targets (n,)."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(config.rows, config.inputs, generator=generator, dtype=torch.float64)
    signal = torch.randn(config.inputs, generator=generator, dtype=torch.float64)
    return x.to(config.device), (x @ signal + torch.randn(config.rows, generator=generator, dtype=torch.float64)).to(config.device)


def refits(x: Tensor, y: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """What each refit without a row misses at that row (n,), and how far its parameters are from those of all rows (n, d)."""
    without = torch.cat([torch.ones_like(y)[None], 1 - torch.eye(len(y)).to(y)])
    fits = fit(x, y, without, l2=penalty, intercept=False)
    theta = fits.weights[..., 0]
    return y - (x * theta[1:]).sum(1), theta[1:] - theta[0]


@study(
    "influence/ridge",
    claims=[LEAVE_ONE_OUT],
    tiny=RidgeConfig(seeds=2, rows=20),
    small=RidgeConfig(),
    large=RidgeConfig(seeds=32, rows=1000, inputs=50),
)
def ridge(config: RidgeConfig) -> Iterator[Finding | Series | Stage]:
    """Refit without each row in turn."""
    shown: list[Tensor] = []
    for penalty in config.penalties:
        yield Stage(f"λ = {penalty:g}")
        misses, moves, wrong = [], [], []
        for seed in config.replica_seeds:
            x, y = regression(config, seed)
            missed, moved = refits(x, y, penalty)
            X, Y = x.cpu().numpy(), y.cpu().numpy()
            predicted = torch.from_numpy(press_residuals(X, Y, penalty)).to(missed)
            misses.append(float((missed - predicted).abs().max()))
            moves.append(float((moved - torch.from_numpy(ridge_leave_one_out(X, Y, penalty)).to(moved)).abs().max()))
            h, plain = (torch.from_numpy(hat_values(X, value)).to(missed) for value in (penalty, 0.0))
            textbook = predicted * (1 - h) / (1 - plain)
            wrong.append(float((missed - textbook).abs().max()))
            shown = [t[missed.argsort()] for t in (missed, predicted, textbook, predicted * (1 - h))]
        yield LEAVE_ONE_OUT.check(predicted=0.0, measured=misses, setting=f"λ = {penalty:g}, largest difference over rows")
        yield LEAVE_ONE_OUT.check(predicted=0.0, measured=moves, setting=f"λ = {penalty:g}, of the parameters")
        if penalty > 0:
            yield LEAVE_ONE_OUT.control_check(predicted=0.0, measured=wrong, setting=f"λ = {penalty:g}, leverage without it")
    missed, predicted, textbook, residual = shown  # at the last penalty, of the last seed
    title = "One fit tells what every refit misses"
    axes: dict[str, Any] = {"x": "y − ŷ of the refit without the row", "y": "by formula, from one fit"}
    figure = Series("press", title, claim=LEAVE_ONE_OUT.key, **axes)
    figure.line("r / (1 − h)", missed, predicted, role="predicted")
    figure.line("leverage without λ", missed, textbook, role="control", mark="points")
    yield figure.line("residual of the one fit", missed, residual, mark="points")
