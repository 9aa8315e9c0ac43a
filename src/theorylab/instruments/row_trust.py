"""Which recorded uses of parameters tell the gradients of rows: those where a row of the batch is a row of what goes in and comes out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from theorylab.core.batches import rows_of, tensors_of
from theorylab.core.instrument import Inapplicable
from theorylab.core.problem import Params, Problem
from theorylab.core.safe import BATCH_COUPLED
from theorylab.instruments.operations import Recorder
from theorylab.instruments.rows_alone import close, refuse_coupled_outputs
from theorylab.instruments.uses import Use

ACTIVATIONS = (nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.Softplus, nn.ELU, nn.LeakyReLU, nn.Identity, nn.Dropout)
POOLS = (nn.AvgPool2d, nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
PARAMETRIC = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
ROW_WISE = (nn.Sequential, *ACTIVATIONS, *POOLS, *PARAMETRIC, *BATCH_NORMS)
FEW = 8
"""Rows among which the first is compared with itself alone."""


def trusted(problem: Problem, k: int, uses: Sequence[Use], outputs: Any) -> list[Use]:
    """Those of the ``uses``, in the pass of batch ``k`` that gave ``outputs``, that treat every row by itself.

    Raises:
        Inapplicable: as of `refuse_coupled_rows`.
    """
    known: set[int] | None = set(range(len(uses))) if row_wise(problem.model) else _alike_alone(problem, k, uses, outputs)
    if known is None:
        refuse_coupled_rows(problem, k)  # or is it dropout, of which a row alone gets other numbers?
        known = set()
    if len(known) < len(uses):
        known |= _separate(uses, outputs, problem.batches[k].rows)
    return [uses[i] for i in sorted(known)]


def refuse_coupled_rows(problem: Problem, k: int) -> None:
    """Refuse a model in which a row's outputs depend on other rows of batch ``k``, also where that is so before its first parameter.

    Each row would have a gradient all the same, but a row more would change all of them.

    Raises:
        Inapplicable: the first row has other outputs alone than among a few.
    """
    if problem.batches[k].is_pair and not row_wise(problem.model):
        few = problem.on([problem.batches[k].part(slice(FEW))])
        few.seed += k
        refuse_coupled_outputs(few, 0)


def couples_outputs(problem: Problem) -> str | None:
    """A row's outputs depend on other rows, so that rows are not independent: as of `refuse_coupled_rows`, on the first batch."""
    try:
        refuse_coupled_rows(problem, 0)
    except Inapplicable as refusal:
        return str(refusal)
    return None


def row_wise(model: nn.Module) -> bool:
    """Whether the structure alone shows that every layer treats every row by itself: a chain of layers that do."""

    def safe(m: nn.Module) -> bool:
        flat = type(m) is nn.Flatten and m.start_dim == 1
        joint = isinstance(m, BATCH_COUPLED) and (m.training or m.running_mean is None)
        return (type(m) in ROW_WISE or flat) and not joint and not m._forward_hooks and not m._forward_pre_hooks

    return all(safe(m) for m in model.modules())


def _alike_alone(problem: Problem, k: int, uses: Sequence[Use], outputs: Any) -> set[int] | None:
    """Uses that see the first row as they would if it were alone; None where the outputs are not those of the row alone."""
    batch = problem.batches[k]
    single = problem.on([batch.part(slice(1))])
    leaves = single.leaves()
    with Recorder(leaves, 1, united=False) as alone:
        out = single.outputs(0, leaves)
    if not all(map(close, tensors_of(out), tensors_of(rows_of(outputs, slice(1), batch.rows)))):
        return None
    found = set()
    for names in {use.names for use in uses}:
        here, there = [i for i, use in enumerate(uses) if use.names == names], [use for use in alone.uses if use.names == names]
        if len(here) == len(there):  # more of them alone are uses whose first axis is not that of the rows
            found |= {i for i, use in zip(here, there, strict=True) if close(use.x, uses[i].x[:1])}
    return found


def _separate(uses: Sequence[Use], outputs: Any, rows: int) -> set[int]:
    """Uses through which the first row's outputs depend on their first row only: dearer than to run it alone, but right under dropout."""
    first = [t[:1] for t in tensors_of(outputs) if t.requires_grad]
    if not first:
        return set(range(len(uses)))
    generator = torch.Generator().manual_seed(0)
    cotangents = [torch.randn(t.shape, generator=generator, device="cpu").to(t) for t in first]
    grads = torch.autograd.grad(first, [use.edge for use in uses], cotangents, retain_graph=True, allow_unused=True)
    return {i for i, g in enumerate(grads) if g is None or not bool(g[len(g) // rows :].any())}


def entries_of(value: Tensor, leaves: Params, uses: Sequence[Use]) -> Counter[str]:
    """How often each parameter enters the graph of ``value``, directly or by a view of it, such as its transpose.

    A derivative that the model takes itself reads the same transpose as the layer does: a second edge to the view, not to the parameter.
    """
    names, counts, seen = {id(p): k for k, p in leaves.items()}, Counter[str](), set()
    heads = {use.edge.node for use in uses}  # an operation with one argument, as a look-up, is no view
    ends: dict[Any, str | None] = {}

    def end(node: Any) -> str | None:
        """The parameter at the end of a chain of views; None where there is none."""
        chain = []
        while node not in ends:
            chain.append(node)
            leaf = getattr(node, "variable", None)
            if leaf is not None:
                ends[node] = names.get(id(leaf), "")
            elif node in heads or len(node.next_functions) != 1 or node.next_functions[0][0] is None:
                ends[node] = None
            else:
                node = node.next_functions[0][0]
        ends.update(dict.fromkeys(chain, ends[node]))
        return ends[node]

    todo: list[Any] = [value.grad_fn]
    while todo:
        node = todo.pop()
        name = end(node)
        if name is not None:
            counts[name] += 1
        elif node not in seen:
            seen.add(node)
            todo += [following for following, _ in node.next_functions if following is not None]
    return counts
