"""Which consecutive layers gradient flow keeps balanced, how far from balanced they are, and how far that moved."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn

from theorylab.core.instrument import Inapplicable, instrument
from theorylab.core.problem import Params, Problem, finite
from theorylab.core.reading import Reading
from theorylab.core.source import Source
from theorylab.instruments.linear_layers import with_another_weight
from theorylab.instruments.path_norm import RELUS
from theorylab.instruments.traced import is_computed, traced

SHIFTING = (nn.AlphaDropout, nn.FeatureAlphaDropout)
"""Dropout that adds a constant in training mode, so that it does not commute with a rescaling."""

ONLY_BETWEEN = "two dense layers in sequence with nothing but ReLU, identity or dropout between them"


class LayerPair(NamedTuple):
    """Two dense layers in sequence whose units can be rescaled against each other without changing the function.

    Attributes:
        inner: Name of the first.
        outer: Name of the second.
        diagonal: Whether units can only be rescaled one by one, not mixed, as where a ReLU or a dropout mask lies between.
        why_not: Why the selected parameters do not have this symmetry after all; "" where they do.
    """

    inner: str
    outer: str
    diagonal: bool
    why_not: str


def layer_pairs(problem: Problem) -> tuple[LayerPair, ...] | str:
    """Dense layers in sequence with nothing but ReLU, identity or dropout between them, or why the graph is not known."""
    graph = traced(problem)
    if isinstance(graph, str):
        return graph
    modules, pairs = dict(graph.named_modules()), []
    uses, strange = _uses(graph, modules), with_another_weight(problem)
    for node in graph.graph.nodes:
        if node.op != "call_module" or not isinstance(modules[node.target], nn.Linear):
            continue
        diagonal, step = False, node
        while len(step.users) == 1:
            step = next(iter(step.users))
            module = modules.get(str(step.target)) if step.op == "call_module" else None
            if isinstance(module, nn.Linear):
                inner, outer = str(node.target), str(step.target)
                odd = [name for name in (inner, outer) if modules[name] in strange]
                why_not = f"a hook changes what {odd[0]} puts out" if odd else _why_not(problem, modules, uses, inner, outer)
                pairs.append(LayerPair(inner, outer, diagonal, why_not))
                break
            if isinstance(module, nn.ReLU) or (step.op != "call_module" and step.target in RELUS):
                diagonal = True
            elif isinstance(module, nn.modules.dropout._DropoutNd):
                masks = problem.train and module.p > 0
                if masks and isinstance(module, SHIFTING):
                    break
                diagonal |= masks
            elif not isinstance(module, nn.Identity):
                break
    return tuple(pairs)


def _uses(graph: fx.GraphModule, modules: Mapping[str, nn.Module]) -> Counter[int]:
    """How often a forward pass uses each parameter, by its id."""
    uses: Counter[int] = Counter()
    for node in graph.graph.nodes:
        if node.op == "call_module":
            uses.update(id(p) for p in modules[node.target].parameters())
        elif node.op == "get_attr":
            owner, _, name = str(node.target).rpartition(".")
            uses[id(getattr(modules[owner], name))] += 1
    return uses


def _why_not(problem: Problem, modules: Mapping[str, nn.Module], uses: Counter[int], inner: str, outer: str) -> str:
    for layer, name in ((inner, "weight"), (outer, "weight"), (inner, "bias")):
        full = f"{layer}.{name}"
        if is_computed(modules[layer], name):
            return f"{full} is computed (a parametrization)"
        tensor = modules[layer]._parameters[name]
        if tensor is None:  # a layer without bias
            continue
        if uses[id(tensor)] > 1:
            return f"{full} is used more than once"
        if full not in problem.params:
            return f"{full} is not selected"
    return ""


@dataclass(frozen=True)
class Balance:
    """Two weight matrices in sequence, with h hidden units between them.

    Attributes:
        first: Name of the inner layer's weight W, (h, d); its bias b counts as one more input.
        second: Name of the outer layer's weight V, (k, h).
        diagonal: Whether only the diagonal is conserved, as through a ReLU, or through dropout in training mode.
        difference: VᵀV − (WWᵀ + bbᵀ), (h, h), or its diagonal (h,).
        imbalance: Frobenius norm of the difference, over ‖V‖² + ‖W‖² + ‖b‖².
        drift: Frobenius norm of what the difference changed by since ``before``; None where that was not given.
    """

    first: str
    second: str
    diagonal: bool
    difference: Tensor
    imbalance: float
    drift: float | None


@dataclass(frozen=True)
class Balancedness:
    """The balance of every pair of layers, in the order of the network."""

    pairs: tuple[Balance, ...]

    def readings(self) -> tuple[Reading, ...]:
        """The imbalance of each pair, and its drift where that is known."""
        found = []
        for p in self.pairs:
            note = "unit by unit" if p.diagonal else ""
            found.append(Reading(f"imbalance of {p.first} and {p.second}", p.imbalance, "measure", note=note))
            if p.drift is not None:
                found.append(Reading(f"drift of {p.first} and {p.second}", p.drift, "measure", note=note))
        return tuple(found)


Difference = Callable[[Tensor, Tensor, Tensor, bool], Tensor]
"""V (k, h), W (h, d), b (h,) in float64, and whether only the diagonal counts → VᵀV − WWᵀ − bbᵀ."""


def _difference(V: Tensor, W: Tensor, b: Tensor, diagonal: bool) -> Tensor:
    if diagonal:
        return V.square().sum(0) - W.square().sum(1) - b.square()
    return V.T @ V - W @ W.T - torch.outer(b, b)


def _slow_difference(V: Tensor, W: Tensor, b: Tensor, diagonal: bool) -> Tensor:
    """Entry by entry."""
    v, w, c = V.tolist(), W.tolist(), b.tolist()
    units = range(len(c))

    def entry(i: int, j: int) -> float:
        return sum(row[i] * row[j] for row in v) - sum(a * e for a, e in zip(w[i], w[j], strict=True)) - c[i] * c[j]

    return b.new_tensor([entry(i, i) for i in units] if diagonal else [[entry(i, j) for j in units] for i in units])


def _measured(problem: Problem, before: Params | None, pairs: Sequence[tuple[str, str]] | None, difference: Difference) -> Balancedness:
    finite(problem.loss())
    found = layer_pairs(problem)
    assert not isinstance(found, str)  # which is refused
    return Balancedness(tuple(_balance(problem, before, pair, difference) for pair in _chosen(found, pairs)))


def _chosen(found: tuple[LayerPair, ...], wanted: Sequence[tuple[str, str]] | None) -> list[LayerPair]:
    if wanted is None:
        return [pair for pair in found if not pair.why_not]
    by_name = {(pair.inner, pair.outer): pair for pair in found}
    for inner, outer in wanted:
        known = by_name.get((inner, outer))
        why_not = f"not {ONLY_BETWEEN}. Pairs that are so: {', '.join(map(str, by_name))}" if known is None else known.why_not
        if why_not:
            raise Inapplicable(f"balancedness does not apply to the layers {inner!r} and {outer!r}: {why_not}.")
    return [by_name[inner, outer] for inner, outer in wanted]


def _balance(problem: Problem, before: Params | None, pair: LayerPair, difference: Difference) -> Balance:
    names = [f"{pair.outer}.weight", f"{pair.inner}.weight", f"{pair.inner}.bias"]

    def at(params: Params) -> Tensor:
        for k in names[: 2 + (names[2] in problem.params)]:
            if k not in params or params[k].shape != problem.params[k].shape:
                raise ValueError(
                    f"before must hold {k!r} of shape {tuple(problem.params[k].shape)}, "
                    f"got {tuple(params[k].shape) if k in params else 'nothing'}."
                )
        V, W = (params[k].to(problem.device).double() for k in names[:2])
        b = params[names[2]].to(W) if names[2] in problem.params else W.new_zeros(len(W))
        return difference(V, W, b, pair.diagonal)

    now = at(problem.params)
    size = math.fsum(float(problem.params[k].double().square().sum()) for k in names if k in problem.params)
    drift = None if before is None else float((now - at(before)).norm())
    return Balance(names[1], names[0], pair.diagonal, now, float(now.norm()) / size if size else 0.0, drift)


def no_balanced_pair(problem: Problem) -> str | None:
    """Without a pair of layers whose units can be rescaled against each other nothing is conserved."""
    found = layer_pairs(problem)
    if isinstance(found, str):
        return found
    if not found:
        return f"no layers are {ONLY_BETWEEN}, and through other activations no such quantity is conserved."
    if any(not pair.why_not for pair in found):
        return None
    return f"{'; '.join(f'of {p.inner} and {p.outer}, {p.why_not}' for p in found)}: gradient flow does not conserve their balance then."


def slow_balancedness(problem: Problem, *, before: Params | None = None, pairs: Sequence[tuple[str, str]] | None = None) -> Balancedness:
    """From the weights of two units at a time: the oracle of `balancedness`."""
    return _measured(problem, before, pairs, _slow_difference)


@instrument(
    oracle=slow_balancedness,
    source=Source("Du et al. 2018", "Theorems 2.1 and 2.2 (auto-balancing)", "arXiv:1806.00900"),
    refuses=no_balanced_pair,
    family="invariances",
)
def balancedness(problem: Problem, *, before: Params | None = None, pairs: Sequence[tuple[str, str]] | None = None) -> Balancedness:
    r"""How far consecutive layers are from balanced, :math:`W_{l+1}^\top W_{l+1} = W_l W_l^\top`, and how far that moved. A measure.

    Gradient flow conserves the difference of the two sides exactly, for linear layers in sequence, and its diagonal through a ReLU or a
    dropout mask: a drift is due to the step size, which adds terms of order η² a step, to weight decay, or to an optimizer other than
    gradient descent. This is so for layers that are each used once, with both weights trained, and the inner bias where there is one;
    other pairs are left out.

    Args:
        problem: A model whose graph can be traced.
        before: Earlier parameters, by name, for the drift.
        pairs: Names of the inner and the outer layer of each pair to measure; by default all whose balance is conserved.

    Raises:
        Inapplicable: no two dense layers follow each other so, or not those of ``pairs``; the message says what is between them.
        ValueError: a tensor that is missing from ``before`` or has another shape, or a loss that is not finite.

    Example:
        >>> net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
        >>> problem = Problem(net, nn.functional.mse_loss, (torch.ones(1, 1), torch.ones(1, 1)))
        >>> problem = problem.at({"0.weight": torch.tensor([[3.0]]), "1.weight": torch.tensor([[5.0]])})
        >>> balancedness(problem).pairs[0].difference.tolist()  # 5² − 3²
        [[16.0]]

    Source: Arora et al. 2018, arXiv:1802.06509, Theorem 1; Du et al. 2018, arXiv:1806.00900, Theorems 2.1 (through a ReLU) and 2.2.
    """
    return _measured(problem, before, pairs, _difference)
