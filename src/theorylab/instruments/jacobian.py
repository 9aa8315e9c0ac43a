"""The Jacobian of a model's outputs on all the data, as a rectangular operator with its transpose."""

from __future__ import annotations

import torch
from torch import Tensor

from theorylab.core.instrument import instrument
from theorylab.core.operator import Operator
from theorylab.core.problem import Problem, finite
from theorylab.core.source import Source
from theorylab.instruments.products import MEMORY_BUDGET, Linearization, columns_at_once, dense_jacobian, dense_operator, kept, layout
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
    batches = range(len(problem.batches))
    finite(problem.loss())
    with problem.safe(), torch.no_grad():
        first = problem.outputs(0)
    if not isinstance(first, Tensor):
        raise TypeError(f"the model's output must be one tensor, got {type(first).__name__}: return the logits alone.")
    each = first.numel() // problem.batches[0].rows
    sizes = [b.rows * each for b in problem.batches]
    with problem.safe():
        pieces = kept(problem, lambda: [Linearization.of(problem, k, quick=True) for k in batches], memory)

    def push(v: Tensor, many: bool) -> Tensor:
        lead = (len(v), -1) if many else (-1,)
        if pieces is not None:
            with problem.kernels():
                return torch.cat([piece.push(v, many).detach().reshape(lead) for piece in pieces], dim=-1)
        with problem.safe():
            parts = [Linearization.of(problem, k, quick=False).push(v, many).detach().reshape(lead) for k in batches]
            return torch.cat(parts, dim=-1)

    def pull(u: Tensor) -> Tensor:
        total = u.new_zeros(problem.P)
        if pieces is not None:
            with problem.kernels():
                for piece, part in zip(pieces, u.detach().split(sizes), strict=True):
                    total += piece.pull(part.reshape(piece.outputs.shape))
            return total
        with problem.safe():
            for k, part in zip(batches, u.detach().split(sizes), strict=True):
                piece = Linearization.of(problem, k, quick=False)
                total += piece.pull(part.reshape(piece.outputs.shape))
        return total

    return Operator(
        (sum(sizes), problem.P),
        lambda v: push(v.detach(), False),
        matmat=columns_at_once(problem, push),
        rmatvec=pull,
        dtype=problem.dtype,
        device=problem.device,
        name="jacobian",
        layout=layout(problem),
    )
