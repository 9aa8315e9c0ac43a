"""Pictures of values: bars, waterfall, beeswarm, interactions, and curves of what is lost, gained or found. matplotlib is loaded late."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from theorylab.instruments.mislabels import MislabelDetection
    from theorylab.instruments.values import Values

POSITIVE, NEGATIVE = "#c2410c", "#1d4ed8"


def _axes(ax: Axes | None, height: float) -> Axes:
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(5.5, height), layout="constrained")[1] if ax is None else ax


def _names(n: int, names: list[str] | None) -> list[str]:
    if names is not None and len(names) != n:
        raise ValueError(f"names must hold one name for each of the {n} players, got {len(names)}.")
    return [str(i) for i in range(n)] if names is None else names


def bars(found: Values, ax: Axes | None = None, *, names: list[str] | None = None, most: int = 20) -> Axes:
    """Values with 99 % intervals, the largest in absolute value on top."""
    names = _names(len(found), names)
    first = found.values.abs().argsort(descending=True)[:most].flip(0)
    low, high = found.interval()
    ax = _axes(ax, 1 + 0.25 * len(first))
    v = found.values[first]
    ax.barh(range(len(first)), v.tolist(), color=[POSITIVE if x >= 0 else NEGATIVE for x in v.tolist()])
    if not found.exact:
        ax.errorbar(
            v.tolist(),
            range(len(first)),
            xerr=torch.stack([v - low[first], high[first] - v]).numpy(),
            fmt="none",
            color="black",
            elinewidth=0.8,
        )
    ax.set_yticks(range(len(first)), [names[int(i)] for i in first])
    ax.axvline(0, color="black", linewidth=0.6)
    ax.set_xlabel(found.method)
    return ax


def waterfall(values: Tensor, base: float, ax: Axes | None = None, *, names: list[str] | None = None, most: int = 12) -> Axes:
    """From the worth of nobody up to that of all, one step a player; small ones are merged into the lowest step."""
    names = _names(len(values), names)
    order = values.abs().argsort(descending=True).tolist()
    steps = [(names[i], float(values[i])) for i in order[:most]]
    if len(order) > most:
        steps.append((f"{len(order) - most} others", float(values[order[most:]].sum())))
    ax = _axes(ax, 1 + 0.28 * len(steps))
    at = base
    for k, (_, v) in enumerate(reversed(steps)):
        ax.barh(k, v, left=at, color=POSITIVE if v >= 0 else NEGATIVE)
        ax.annotate(f"{v:+.3g}", (at + max(v, 0.0), k), xytext=(3, 0), textcoords="offset points", va="center", fontsize=8)
        at += v
    ax.set_yticks(range(len(steps)), [name for name, _ in reversed(steps)])
    ax.axvline(base, color="grey", linewidth=0.6, linestyle=":")
    ax.axvline(at, color="black", linewidth=0.6, linestyle=":")
    ax.set_xlabel(f"from {base:.3g} to {at:.3g}")
    ax.margins(x=0.15)
    return ax


def beeswarm(values: Tensor, features: Tensor, ax: Axes | None = None, *, names: list[str] | None = None, most: int = 15) -> Axes:
    """One point a row and feature at its value, (rows, d) each, coloured by the feature's rank; features by mean absolute value."""
    if values.ndim != 2 or values.shape != features.shape:
        raise ValueError(f"values and features must have one shape (rows, d), got {tuple(values.shape)} and {tuple(features.shape)}.")
    from scipy.stats import rankdata

    names = _names(values.shape[1], names)
    first = values.abs().mean(0).argsort(descending=True)[:most].flip(0).tolist()
    ax = _axes(ax, 1 + 0.35 * len(first))
    width = float(values.max() - values.min()) or 1.0
    for k, i in enumerate(first):
        v = values[:, i]
        bins = ((v - v.min()) / width * 60).round().long()
        place, seen = torch.zeros(len(v), device="cpu"), {}
        for row, b in enumerate(bins.tolist()):  # points of one bin stack up, in turn above and below
            c = seen[b] = seen.get(b, -1) + 1
            place[row] = (c + 1) // 2 * (1 if c % 2 else -1)
        spread = 0.4 * place / max(float(place.abs().max()), 8.0)
        rank = (rankdata(features[:, i].numpy(force=True)) - 1) / max(len(v) - 1, 1)  # equal features share a colour
        ax.scatter(v.tolist(), (k + spread).tolist(), c=rank.tolist(), cmap="coolwarm", s=8, vmin=0, vmax=1)
    ax.set_yticks(range(len(first)), [names[i] for i in first])
    ax.axvline(0, color="grey", linewidth=0.6)
    ax.set_xlabel("value (colour: the feature, low to high)")
    return ax


def interaction_matrix(matrix: Tensor, ax: Axes | None = None, *, names: list[str] | None = None) -> Axes:
    """A symmetric matrix (n, n) of interactions in colours symmetric about zero."""
    names = _names(len(matrix), names)
    ax = _axes(ax, 4.5)
    top = float(matrix.abs().max()) or 1.0
    image = ax.imshow(matrix.numpy(), cmap="RdBu_r", vmin=-top, vmax=top)
    ax.set_xticks(range(len(matrix)), names, rotation=90)
    ax.set_yticks(range(len(matrix)), names)
    ax.figure.colorbar(image, ax=ax, label="interaction (diagonal: single players)")
    return ax


def curve(
    moved: Tensor, worths: Tensor, random: Tensor, direction: Literal["removed", "added"], ax: Axes | None = None, *, label: str = ""
) -> Axes:
    """Worth over the number of players removed or added; random orders (baseline, m) as their mean and one standard deviation."""
    ax = _axes(ax, 3.5)
    ax.plot(moved.tolist(), worths.tolist(), label=label or None)
    if len(random):
        mean, spread = random.mean(0), random.std(0, correction=min(len(random) - 1, 1))
        ax.plot(moved.tolist(), mean.tolist(), color="grey", linestyle="--", label="random orders")
        ax.fill_between(moved.tolist(), (mean - spread).tolist(), (mean + spread).tolist(), color="grey", alpha=0.2, linewidth=0)
    ax.set_xlabel(f"players {direction}")
    ax.set_ylabel("worth of the rest" if direction == "removed" else "worth of those added")
    ax.legend()
    return ax


def detection(found: MislabelDetection, ax: Axes | None = None, *, label: str = "") -> Axes:
    """Part of the wrong labels found over the part of the rows inspected, beside perfect and random inspection."""
    ax = _axes(ax, 3.5)
    x, spread = found.inspected, found.random_spread
    ax.plot([0.0, *x.tolist()], [0.0, *found.found.tolist()], label=label or None)
    share = found.wrong / len(x)
    ax.plot([0.0, share, 1.0], [0.0, 1.0, 1.0], color="black", linewidth=0.6, linestyle=":", label="perfect")
    ax.plot([0.0, 1.0], [0.0, 1.0], color="grey", linestyle="--", label="random orders")
    ax.fill_between(x.tolist(), (x - spread).tolist(), (x + spread).tolist(), color="grey", alpha=0.2, linewidth=0)
    ax.set_xlabel("part of the rows inspected, lowest value first")
    ax.set_ylabel("part of the wrong labels found")
    ax.legend()
    return ax
