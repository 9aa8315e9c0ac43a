"""The gradient of stacked replicas as a recorded list of tensor operations, which costs no vmap and no autograd to repeat.

For small networks the dispatch through vmap and autograd takes longer than the arithmetic. Recording takes a few tenths of a second, so it
pays in long runs only.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from theorylab.learning.optimizers.base import Params
from theorylab.learning.risk import StackedGradient

log = logging.getLogger(__name__)
_SAME_SHAPE = {"aten.expand.default", "aten.view.default", "aten._unsafe_view.default"}
_RANDOM = ("rand", "dropout", "bernoulli", "normal", "multinomial")


class TracedGradient:
    """A `StackedGradient` for fixed shapes: same arguments, same results, from the recorded operations; made by `trace`."""

    def __init__(self, graph: fx.GraphModule, names: list[str]):
        self.run, self.names = graph.forward, names

    def __call__(
        self, params: Params, frozen: Params, buffers: Params, x: Tensor, y: Tensor, weights: Tensor | None, shared: bool
    ) -> tuple[Tensor, Params]:
        """Losses (replica,) and the gradients of ``params``."""
        with torch.no_grad():
            losses, *grads = self.run(*_flat(params, frozen, buffers, x, y, weights))
        return losses, dict(zip(self.names, grads, strict=True))


def trace(
    gradient: StackedGradient, params: Params, frozen: Params, buffers: Params, x: Tensor, y: Tensor, weights: Tensor | None, shared: bool
) -> TracedGradient | None:
    """Record a gradient at example values; None where it cannot be repeated faithfully.

    That is so for a model that writes to its buffers or draws random numbers, that recording does not support, or whose record, run on
    other values than the recorded ones, differs from the gradient itself.
    """
    names = list(params)

    def flat(*tensors: Tensor) -> list[Tensor]:
        given = iter(tensors)
        first, second, third = ({k: next(given) for k in tree} for tree in (params, frozen, buffers))
        losses, grads = gradient(first, second, third, next(given), next(given), None if weights is None else next(given), shared)
        return [losses, *grads.values()]

    try:
        graph = make_fx(flat)(*_flat(params, frozen, buffers, x, y, weights))
    except Exception as error:  # recording fails in as many ways as there are models; training does not need it
        log.info("population: the step cannot be recorded and runs through vmap: %s", str(error).split("\n")[0])
        return None
    targets = [n.target for n in graph.graph.nodes if n.op == "call_function"]
    if any(isinstance(t, torch._ops.OpOverload) and (t._schema.is_mutable or any(r in str(t) for r in _RANDOM)) for t in targets):
        return None
    simplify(graph)
    recorded = TracedGradient(graph, names)
    other = {k: 0.9 * p for k, p in params.items()}
    flip = 0 if shared else 1
    check = (other, frozen, buffers, x.flip(flip), y.flip(flip), weights, shared)
    tolerance = 1e-9 if x.dtype == torch.float64 else 1e-4
    for a, b in zip(_flat(recorded(*check)[1]), _flat(gradient(*check)[1]), strict=True):
        if not torch.allclose(a, b, rtol=tolerance, atol=tolerance * float(b.abs().max()), equal_nan=True):
            log.info("population: the recorded step differs from the step itself, which runs through vmap.")
            return None
    return recorded


def _flat(*trees: Any) -> list[Tensor]:
    out: list[Tensor] = []
    for tree in trees:
        if isinstance(tree, dict):
            out += tree.values()
        elif tree is not None:
            out.append(tree)
    return out


def simplify(graph: fx.GraphModule) -> None:
    """Drop operations that change nothing (detach, × 1, a view of the same shape) and repeat none that was done already, in place."""
    seen: dict[Any, fx.Node] = {}
    for node in list(graph.graph.nodes):
        if node.op != "call_function":
            continue
        first, target = node.args[0] if node.args else None, str(node.target)
        idle = target == "aten.detach.default" or (target == "aten.mul.Scalar" and node.args[1] == 1)
        if target in _SAME_SHAPE and isinstance(first, fx.Node):
            idle = list(first.meta["val"].shape) == list(node.args[1])
        key = (node.target, str(node.args), str(node.kwargs))
        same = first if idle and isinstance(first, fx.Node) else seen.get(key)
        if same is None:
            seen[key] = node
        else:
            node.replace_all_uses_with(same)
            graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()
    graph.recompile()
