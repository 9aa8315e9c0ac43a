"""Which symmetries does a network have? How far its outputs, or those of each layer, are from moving as its inputs are moved."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from theorylab.core.batches import Batch
from theorylab.core.estimate import Estimate
from theorylab.core.instrument import Inapplicable, instrument
from theorylab.core.layers import has_parts, named_layers
from theorylab.core.problem import Problem, finite
from theorylab.core.source import Source
from theorylab.instruments.group_actions import Group, Map, actions, check_map, places_of, strides_on
from theorylab.instruments.refusals import couples_rows, hides_outputs

Outputs = Literal["fixed", "moved"]


def not_one_tensor(problem: Problem) -> str | None:
    """Only one tensor (n, ...) of inputs can be moved."""
    for batch in problem.batches:
        x = batch.content[0]
        if not isinstance(x, Tensor) or x.ndim < 2:
            got = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
            return f"the inputs must be one tensor (n, ...) with something to move in a row, got {got}. Wrap the model to take that alone."
    return None


REFUSALS = (hides_outputs, couples_rows, not_one_tensor)


def _run(problem: Problem, k: int, change: Map | None = None) -> Tensor:
    """Outputs on batch k, its inputs changed; random layers draw the same numbers each time."""
    if change is not None:
        batches = list(problem.batches)
        x, y = batches[k].content
        batches[k] = Batch((change(x), y), batches[k].rows)
        problem = problem.on(batches)
    with problem.safe(), torch.no_grad():
        found = problem.outputs(k)
    if not isinstance(found, Tensor):
        raise TypeError(f"the model's output must be one tensor, got {type(found).__name__}: return the logits alone.")
    return found[:, None] if found.ndim == 1 else found  # one number a row


def _pairs(
    problem: Problem, group: Group | Map, outputs: Outputs | Map, axes: Sequence[int] | None, inverse: Map | None, elements: int, seed: int
) -> list[tuple[Map, Map]]:
    """(T, T') of every element, checked."""
    x = problem.batches[0].content[0]
    if outputs not in ("fixed", "moved") and not callable(outputs):
        raise ValueError(f"outputs must be 'fixed', 'moved' or a map, got {outputs!r}.")
    if callable(group):
        check_map(group, inverse, x)
        return [(group, group if outputs == "moved" else outputs if callable(outputs) else _as_it_is)]
    if callable(outputs):
        raise ValueError("outputs can be a map only where group is one: of a named group, it would differ from element to element.")
    where = places_of(x, None if axes is None else tuple(axes))
    sizes = tuple(x.shape[a] for a in where)
    strides = (1,) * len(where)
    if outputs == "moved":
        f = _run(problem, 0)
        acts = strides_on(f, where, sizes, group)
        if acts is None:
            raise ValueError(
                f"outputs='moved' needs outputs on which {group} acts as on the inputs {tuple(x.shape)}, along axes {where}, got "
                f"{tuple(f.shape)}. Use outputs='fixed' to measure invariance."
            )
        strides = acts
    found = actions(group, where, sizes, strides=strides, count=elements, seed=seed)
    return [(action, action if outputs == "moved" else _as_it_is) for action in found]


def _as_it_is(t: Tensor) -> Tensor:
    return t


def _estimate(gaps: Tensor, norms: Tensor) -> Estimate:
    """From ‖f(Tx) − T'f(x)‖ (n, element) and ‖f(x)‖ (n,)."""
    scale = float(norms.square().mean().sqrt())
    if not scale > 0:
        raise ValueError("the outputs are zero on all rows: a distance relative to them is not defined.")
    return Estimate.over(gaps.mean(1) / scale)


def _enough_rows(problem: Problem) -> None:
    if problem.n < 2:
        raise ValueError(f"data must hold at least 2 rows to give a standard error, got {problem.n}.")


def equivariance_by_entry(
    problem: Problem,
    group: Group | Map = "shift",
    *,
    outputs: Outputs | Map = "fixed",
    axes: Sequence[int] | None = None,
    inverse: Map | None = None,
    elements: int = 8,
    seed: int = 0,
) -> Estimate:
    """Number by number, with sums in exact arithmetic: the oracle of `equivariance`."""
    pairs = _pairs(problem, group, outputs, axes, inverse, elements, seed)
    means, norms = [], []
    for k in range(len(problem.batches)):
        f = _run(problem, k).flatten(1).double().tolist()
        norms += [math.hypot(*row) for row in f]
        rows = [[] for _ in f]
        for move, follow in pairs:
            there = _run(problem, k, move).flatten(1).double().tolist()
            back = follow(_run(problem, k)).flatten(1).double().tolist()
            for row, a, b in zip(rows, there, back, strict=True):
                row.append(math.dist(a, b))
        means += [math.fsum(row) / len(row) for row in rows]
    scale = math.sqrt(math.fsum(v * v for v in norms) / len(norms))
    return Estimate.over([m / scale for m in means])


@instrument(
    oracle=equivariance_by_entry,
    source=Source("Cohen and Welling 2016", "Section 2 (the definition of equivariance)", "arXiv:1602.07576"),
    refuses=REFUSALS,
    family="architecture",
)
def equivariance(
    problem: Problem,
    group: Group | Map = "shift",
    *,
    outputs: Outputs | Map = "fixed",
    axes: Sequence[int] | None = None,
    inverse: Map | None = None,
    elements: int = 8,
    seed: int = 0,
) -> Estimate:
    r"""How far a network is from a symmetry: the mean of :math:`\lVert f(Tx) - T'f(x)\rVert` over rows and elements T of a group.

    In units of the root mean square of ‖f(x)‖ over the rows, since a single row's may be near zero. 0 is exact symmetry (measure it in
    float64, where rounding is 1e-16), and about √2 what two unrelated outputs differ by.

    T' = 1 is invariance, which a classifier is asked for; with ``outputs="moved"`` the outputs must move as the inputs do, which
    a segmentation is asked for. `equivariance_by_layer` says where a symmetry is lost. One forward pass an element.

    Args:
        problem: The model and its inputs, one tensor (n, ...); targets and loss play no part.
        group: ``"shift"`` (cyclic), ``"rotation90"``, ``"flip"`` (all combinations of axes) or ``"permutation"`` (of all places together,
            channels alike), or one map T of inputs (n, ...) to inputs of the same shape.
        outputs: T' is the identity (``"fixed"``), the same element on the outputs' axes (``"moved"``; where outputs have fewer places, as
            behind a stride, only shifts by multiples of it are drawn), or a map of your own that goes with a map T.
        axes: Of the inputs, along which places lie. Default: the last two of images (n, c, h, w), the last of all others.
        inverse: Undoes a map T; needed where T does more than to rearrange the entries of a row.
        elements: Of a larger group so many are drawn.
        seed: Of the drawing.

    Returns:
        The mean; its standard error is that over rows, the elements being given.

    Raises:
        Inapplicable: the loss hides the outputs, BatchNorm in training mode couples rows, or inputs that are not one tensor.
        ValueError: a map that changes the shape, mixes rows or is not known to be invertible, a group that does not act on inputs or
            outputs, fewer than two rows, outputs that are zero, or a loss that is not finite.
        TypeError: the model's output is not one tensor.

    Example:
        >>> mean = nn.Sequential(nn.Linear(4, 1, bias=False))
        >>> _ = nn.init.ones_(mean[0].weight)
        >>> x = torch.tensor([[1.0, 2.0, 3.0, 4.0], [4.0, 0.0, 0.0, 0.0]])
        >>> problem = Problem(mean, nn.functional.mse_loss, (x, torch.zeros(2, 1)))
        >>> equivariance(problem, "permutation").value
        0.0
        >>> round(equivariance(problem, lambda x: -x, inverse=lambda x: -x).value, 2)  # f(−x) = −f(x), twice f(x) away
        1.84

    Source: Cohen and Welling 2016, arXiv:1602.07576, Section 2.
    """
    finite(problem.loss())
    _enough_rows(problem)
    pairs = _pairs(problem, group, outputs, axes, inverse, elements, seed)
    gaps, norms = [], []
    for k in range(len(problem.batches)):
        f = _run(problem, k)
        norms.append(f.double().flatten(1).norm(dim=1))
        gaps.append(torch.stack([(_run(problem, k, T) - follow(f)).double().flatten(1).norm(dim=1) for T, follow in pairs], dim=1))
    return _estimate(torch.cat(gaps), torch.cat(norms))


@dataclass(frozen=True)
class LayerSymmetry:
    """Of the network up to and including one layer.

    Attributes:
        name: Of the module.
        kind: Its class.
        invariance: How far the layer's outputs move, as `equivariance` with ``outputs="fixed"``.
        equivariance: How far from moving with the inputs, as with ``outputs="moved"``; None where the group does not act on their shape.
        strides: By how many places of the inputs one place of the outputs moves, where the group acts: only such shifts were measured.
    """

    name: str
    kind: str
    invariance: Estimate
    equivariance: Estimate | None
    strides: tuple[int, ...] | None


def equivariance_by_layer(
    problem: Problem, group: Group = "shift", *, axes: Sequence[int] | None = None, elements: int = 8, seed: int = 0
) -> tuple[LayerSymmetry, ...]:
    """Where a symmetry is lost, or gained: that of what every layer computes from the network's inputs, in the order of the calls.

    Layers are the modules without parts, whose output is one tensor with a row for each row of inputs; of a module that is called several
    times, the last call counts. What only computes a weight, as weight normalization does, is no part. Arguments as in `equivariance`.

    Raises:
        Inapplicable: as `equivariance`.
        ValueError: as `equivariance`.

    Example:
        >>> conv = nn.Conv1d(1, 2, 3, padding=1, padding_mode="circular")
        >>> net = nn.Sequential(conv, nn.AdaptiveAvgPool1d(1), nn.Flatten())
        >>> x = torch.randn(3, 1, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> for layer in equivariance_by_layer(Problem(net, nn.functional.mse_loss, (x, torch.zeros(3, 2)), dtype=torch.float64)):
        ...     moved = None if layer.equivariance is None else layer.equivariance.value < 1e-12
        ...     print(layer.kind, layer.invariance.value < 1e-12, moved)
        Conv1d False True
        AdaptiveAvgPool1d True None
        Flatten True None
    """
    reason = next((r for refuses in REFUSALS if (r := refuses(problem)) is not None), None)
    if reason is not None:
        raise Inapplicable(f"equivariance_by_layer does not apply: {reason}")
    if callable(group):
        raise ValueError("group must be a named group: how a map of inputs acts on a layer's outputs is not known.")
    finite(problem.loss())
    _enough_rows(problem)
    x = problem.batches[0].content[0]
    where = places_of(x, None if axes is None else tuple(axes))
    sizes = tuple(x.shape[a] for a in where)

    def gaps(names: set[str] | None, elements: Sequence[Map], follow: bool) -> dict[str, tuple[list[Tensor], list[Tensor]]]:
        """‖f(Tx) − T'f(x)‖ (n, element) and ‖f(x)‖ of the layers' outputs f, by batches."""
        found: dict[str, tuple[list[Tensor], list[Tensor]]] = {}
        for k in range(len(problem.batches)):
            still = _layer_outputs(problem, k)
            each: dict[str, list[Tensor]] = {}
            for T in elements:
                for name, moved in _layer_outputs(problem, k, T).items():
                    if names is None or name in names:
                        other = T(still[name]) if follow else still[name]
                        each.setdefault(name, []).append((moved - other).double().flatten(1).norm(dim=1))
            for name, columns in each.items():
                parts = found.setdefault(name, ([], []))
                parts[0].append(torch.stack(columns, dim=1))
                parts[1].append(still[name].double().flatten(1).norm(dim=1))
        return found

    def estimates(found: dict[str, tuple[list[Tensor], list[Tensor]]]) -> dict[str, Estimate]:
        whole = {name: (torch.cat(g), torch.cat(n)) for name, (g, n) in found.items()}
        dead = Estimate(0.0, 0.0, problem.n)  # a layer of zeros has every symmetry
        return {name: _estimate(g, n) if bool(n.any()) or bool(g.any()) else dead for name, (g, n) in whole.items()}

    first = _layer_outputs(problem, 0)
    strides = {name: strides_on(f, where, sizes, group) if f.ndim == x.ndim else None for name, f in first.items()}
    draw = {"count": elements, "seed": seed}
    fixed = estimates(gaps(None, actions(group, where, sizes, strides=(1,) * len(where), **draw), follow=False))
    moved: dict[str, Estimate] = {}
    for step in {s for s in strides.values() if s is not None}:
        if group == "shift" and step == sizes:
            continue  # one place is left, on which nothing acts
        same = {name for name, s in strides.items() if s == step}
        moved |= estimates(gaps(same, actions(group, where, sizes, strides=step, **draw), follow=True))
    modules = dict(problem.model.named_modules())
    return tuple(
        LayerSymmetry(name, type(modules[name]).__name__, fixed[name], moved.get(name), strides[name] if name in moved else None)
        for name in first
    )


def _layer_outputs(problem: Problem, k: int, change: Map | None = None) -> dict[str, Tensor]:
    """Outputs of the modules without parts on batch k, in the order of the calls."""
    rows = problem.batches[k].rows
    with _listening(problem.model) as heard:
        _run(problem, k, change)
    return {name: t for name, t in heard.items() if isinstance(t, Tensor) and t.is_floating_point() and t.ndim > 1 and len(t) == rows}


@contextmanager
def _listening(model: nn.Module) -> Iterator[dict[str, object]]:
    heard: dict[str, object] = {}

    def note(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(module: nn.Module, args: object, output: object) -> None:
            heard[name] = output.clone() if isinstance(output, Tensor) else output  # an activation may work in place on it

        return hook

    hooks = [m.register_forward_hook(note(name)) for name, m in named_layers(model) if not has_parts(m)]
    try:
        yield heard
    finally:
        for hook in hooks:
            hook.remove()
