"""Which instruments does a card call, or read, in a way of their own? Kernels on some of the rows, landscapes as curves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from theorylab.core.problem import Problem
from theorylab.core.reading import Reading
from theorylab.core.series import Series
from theorylab.measuring.readings import LEVEL, Shown

KERNEL_ROWS = 300
"""Rows of which a kernel is measured, which has as many entries as pairs of them, and a margin, whose programs have a constraint each."""


@dataclass(frozen=True)
class Tailored:
    """How the card uses one instrument: ``options`` it passes, ``rows`` it is content with, and how it reads the result."""

    options: Mapping[str, Any] = field(default_factory=dict)
    rows: int | None = None
    read: Callable[[Any], Shown] | None = None


def fewer_rows(problem: Problem, rows: int | None) -> tuple[Problem, str]:
    """The problem on about ``rows`` of its rows, evenly taken from each batch, and a remark that says so; "" where it has no more."""
    if rows is None or problem.n <= rows:
        return problem, ""
    step = -(-problem.n // rows)
    parts = [b.part(slice(0, None, step)) for b in problem.batches]
    return problem.on(parts), f"of every {step}th row" if step > 3 else f"of every {('second', 'third')[step - 2]} row"


def _kernel(K: Any) -> Shown:
    return _eigenvalues(torch.linalg.eigvalsh(K.detach().cpu().double()))


def _eigenvalues(values: Any) -> Shown:
    """A kernel's eigenvalues: how long, and how many directions it knows well."""
    x = np.sort(np.asarray(values.detach().cpu().double()))[::-1]
    if not np.isfinite(x).all():
        raise ValueError("the kernel's eigenvalues must be finite.")
    total, square = float(x.sum()), float((x**2).sum())
    readings = [Reading("NTK trace", total, "measure"), Reading("NTK largest eigenvalue", float(x[0]), "measure")]
    if square > 0:
        readings.append(Reading("NTK effective rank", total**2 / square, "measure", note="(tr K)² / tr K²"))
    positive = x[x > np.finfo(np.float32).eps * max(x[0], 0.0)]
    figures = []
    if positive.size > 1:
        curve = Series("kernel-spectrum", "Eigenvalues of the NTK", "rank of the eigenvalue", "eigenvalue", x_scale="log", y_scale="log")
        figures.append(curve.line(f"{positive.size} of {x.size}, those above rounding", np.arange(1, positive.size + 1), positive))
    return Shown(readings, figures)


def _landscape(result: Any) -> Shown:
    """The loss along each direction through the point, and how far it rises."""
    t, losses = result.coordinates.cpu().double().numpy(), result.losses.cpu().double().numpy()
    middle = len(t) // 2
    cuts = [losses] if losses.ndim == 1 else [losses[:, middle], losses[middle]]
    rise = float(losses.max()) / float(losses[(middle,) * losses.ndim]) if losses.min() > 0 else 0.0
    curve = Series("slices", "The loss along directions through the point", "coordinate along the direction", "mean loss")
    curve.y_scale = "log" if rise > 30 else "linear"
    for k, cut in enumerate(cuts, 1):
        curve.line(f"direction {k}", t, cut)
    readings = [Reading("largest loss nearby", float(losses.max()), "measure", note=f"within ±{t[-1]:g} along {len(cuts)} directions")]
    return Shown(readings, [curve])


def _noise(result: Any) -> Shown:
    """The two parts of a minibatch's squared gradient, and their ratio, of which the upper end may be open."""
    readings = [
        Reading("trace of the gradients' covariance", result.trace.value, "measure", result.trace.interval(LEVEL)),
        Reading("squared norm of the gradient", result.squared_norm.value, "measure", result.squared_norm.interval(LEVEL)),
    ]
    low, high = result.interval(LEVEL)
    if result.squared_norm.value > 0:
        scale = result.simple_noise_scale.value
        bounded = np.isfinite(high)
        note = "rows; also the critical batch size" + ("" if bounded else f"; at least {low:.3g}, without an upper end")
        readings.append(Reading("gradient noise scale", scale, "measure", (low, high) if bounded else None, note=note))
    else:
        readings.append(Reading("gradient noise scale, lower end", low, "measure", note="rows; the gradient drowns in the noise"))
    return Shown(readings)


def _regression(result: Any) -> Shown:
    """How far the kernel's prediction is from the network's own."""
    ours, theirs = result.prediction.detach().cpu().double(), result.start.detach().cpu().double()
    distance = float((ours - theirs).norm() / theirs.norm()) if float(theirs.norm()) > 0 else float((ours - theirs).norm())
    readings = [Reading("kernel regression, distance from the outputs", distance, "measure", note="relative to the outputs' norm")]
    if ours.ndim == 2 and ours.shape[1] > 1:
        same = float((ours.argmax(1) == theirs.argmax(1)).double().mean())
        readings.append(Reading("kernel regression, same class as the network", same, "measure", note="share of rows"))
    return Shown(readings)


TAILORED: Mapping[str, Tailored] = {
    "ntk": Tailored({"trace_outputs": True}, KERNEL_ROWS, _kernel),
    "kernel_spectrum": Tailored({"trace_outputs": True}, KERNEL_ROWS, _eigenvalues),
    "kernel_alignment": Tailored(rows=KERNEL_ROWS),
    "kernel_regression": Tailored({"trace_outputs": True}, KERNEL_ROWS, _regression),
    "margin_geometry": Tailored(rows=KERNEL_ROWS),
    "landscape": Tailored(read=_landscape),
    "gradient_noise": Tailored(read=_noise),
    "influence": Tailored(rows=KERNEL_ROWS),
    "tracin": Tailored(rows=KERNEL_ROWS),
    "trak": Tailored(rows=KERNEL_ROWS),
}
"""By instrument; a result that has ``readings()`` of its own is read by them."""
