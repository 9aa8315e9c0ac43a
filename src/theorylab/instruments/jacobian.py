"""The Jacobian of a model's outputs on all the data, as a rectangular operator with its transpose."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from theorylab.core.instrument import instrument
from theorylab.core.operator import Operator
from theorylab.core.problem import Problem, finite
from theorylab.core.source import Source
from theorylab.instruments.products import (
    MEMORY_BUDGET,
    Kept,
    Linearization,
    columns_at_once,
    dense_jacobian,
    dense_operator,
    fitting,
    kept,
    layout,
    repeated,
)
from theorylab.instruments.refusals import hides_outputs


def stacked_jacobian(problem: Problem) -> Operator:
    """The Jacobian entry by entry, batch by batch: the oracle of `jacobian`."""
    with problem.safe():
        blocks = [dense_jacobian(problem, k)[1].reshape(-1, problem.P) for k in range(len(problem.batches))]
    return dense_operator(problem, torch.cat(blocks), "dense jacobian")


@instrument(
    oracle=stacked_jacobian,
    source=Source("Griewank and Walther 2008", "Chapter 3 (forward and reverse products of a Jacobian)", "doi:10.1137/1.9780898717761"),
    refuses=hides_outputs,
    family="curvature",
    row_axes=(0,),
)
def jacobian(problem: Problem, *, memory: int = MEMORY_BUDGET) -> Operator:
    r"""The Jacobian :math:`J = \partial f / \partial\theta` of all outputs on all rows, (rows × outputs a row, p).

    Outputs come in the order of the data, each row's flattened. ``J @ v`` is how the outputs move along v, ``J.T @ u`` a backward pass;
    :math:`JJ^\top` is the neural tangent kernel. Neither loss nor targets enter, except that a loss that is not finite is refused.

    Args:
        problem: The model, the point and the data; its batches are pairs (x, y), and the model's output is one tensor.
        memory: Bytes that the kept graph may take; beyond it, every product computes the graph anew, batch by batch.

    Raises:
        Inapplicable: the loss has the form loss(model, batch), which hides the outputs.
        ValueError: the loss is not finite.
        TypeError: the output is not one tensor.

    Example:
        >>> data = torch.tensor([[1.0, 3.0]]), torch.zeros(1, 1)
        >>> linear = Problem(torch.nn.Linear(2, 1, bias=False), torch.nn.functional.mse_loss, data)
        >>> jacobian(linear).to_dense().tolist()
        [[1.0, 3.0]]

    Source: Griewank and Walther 2008, doi:10.1137/1.9780898717761, Chapter 3.
    """
    finite(problem.loss())
    with problem.safe(), torch.no_grad():
        first = problem.outputs(0)
    if not isinstance(first, Tensor):
        raise TypeError(f"the model's output must be one tensor, got {type(first).__name__}: return the logits alone.")
    each = first.numel() // problem.batches[0].rows

    def on_all(problem: Problem) -> list[Linearization]:
        return [Linearization.of(problem, k) for k in range(len(problem.batches))]

    def push_through(pieces: Iterable[Linearization], v: Tensor, many: bool = False) -> Tensor:
        lead = (len(v), -1) if many else (-1,)
        return torch.cat([piece.push(v, many).reshape(lead) for piece in pieces], dim=-1)

    def pull_through(pieces: Iterable[Linearization], sizes: list[int], u: Tensor) -> Tensor:
        parts = zip(pieces, u.split(sizes), strict=True)
        return functools.reduce(torch.add, (piece.pull(part.reshape(piece.outputs.shape)) for piece, part in parts))

    graph = kept(problem, on_all, memory)
    few = problem if graph is not None else fitting(problem, on_all, memory)

    def one_by_one() -> Iterator[Linearization]:
        return (Linearization.of(few, k) for k in range(len(few.batches)))

    def push_anew(v: Tensor) -> Tensor:
        with problem.safe():
            return push_through(one_by_one(), v).detach()

    def pull_anew(u: Tensor) -> Tensor:
        with problem.safe():
            return pull_through(one_by_one(), [b.rows * each for b in few.batches], u).detach()

    push, pull, columns = push_anew, pull_anew, None
    if graph is not None:
        pieces, sizes = graph.built, [piece.outputs.numel() for piece in graph.built]
        push = repeated(problem, lambda v: push_through(pieces, v), graph.bytes, memory)
        pull = repeated(problem, lambda u: pull_through(pieces, sizes, u), graph.bytes, memory)
        columns = columns_at_once(Kept(lambda v, many: push_through(pieces, v, many), graph.problem, graph.bytes))
    return Operator(
        (problem.n * each, problem.P),
        lambda v: push(v.detach()),
        matmat=columns,
        rmatvec=lambda u: pull(u.detach()),
        dtype=problem.dtype,
        device=problem.device,
        name="jacobian",
        layout=layout(problem),
    )
