"""The graph of a problem's model, as the problem calls it: which operations lead from its inputs to its outputs."""

from __future__ import annotations

import inspect
from itertools import count
from typing import Any

from torch import fx, nn

from theorylab.core.batches import as_call, map_tensors
from theorylab.core.problem import Problem
from theorylab.core.substitution import substituted


class _Tracer(fx.Tracer):
    """Puts a proxy for each tensor that the problem gives its model; what is not given keeps its default, which may choose a branch."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.problem = problem

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        numbers, problem = count(), self.problem

        def proxy(_: Any) -> Any:
            return self.create_proxy("placeholder", f"x{next(numbers)}", (), {})

        batch = problem.batches[0]
        args, kwargs = map_tensors(proxy, as_call(batch.content[0])) if batch.is_pair else _required(problem.model, proxy)
        read = (lambda outputs: outputs) if problem._read is None else problem._read
        return (lambda: read(problem.model.forward(*args, **kwargs))), []


def _required(model: nn.Module, proxy: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a forward pass cannot do without: all that is known of a loss(model, batch), which calls the model in its own way."""
    kinds = inspect.Parameter
    needed = [p for p in inspect.signature(model.forward).parameters.values() if p.default is kinds.empty]
    args = tuple(proxy(p) for p in needed if p.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD))
    return args, {p.name: proxy(p) for p in needed if p.kind is kinds.KEYWORD_ONLY}


def traced(problem: Problem) -> fx.GraphModule | str:
    """The graph of the model in the mode of the problem, or why there is none.

    Tracing runs the forward pass on proxies, and what that does to buffers and attributes is undone. Parameters are the model's own.
    """
    buffers = {k: b.clone() for k, b in problem._buffers.items()}
    try:
        with problem.safe(), substituted(problem.model, buffers, problem._places):
            return fx.GraphModule(problem.model, _Tracer(problem).trace(problem.model))
    except Exception as error:  # control flow that depends on data, or anything that a user's forward pass raises on a proxy
        return f"the network's graph cannot be traced ({type(error).__name__}: {error}). Write it as modules without branches on data."


def is_computed(module: nn.Module, name: str) -> bool:
    """Whether a weight or bias is not a parameter of its own but computed at every use, by a parametrization or a hook.

    To read it would be to compute it: in training mode spectral normalization moves its buffers then.
    """
    return name not in module._parameters
