"""The empirical neural tangent kernel of a Problem, Θ = J Jᵀ, without its Jacobian."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from theorylab.core.batches import as_batches, tensors_of
from theorylab.core.instrument import instrument
from theorylab.core.problem import Problem
from theorylab.core.source import Source
from theorylab.instruments.factors import Factors, split
from theorylab.instruments.gram import add_gram
from theorylab.instruments.refusals import couples_rows, hides_outputs
from theorylab.instruments.rowwise import Block

MEMORY_BUDGET = 2**30
"""Bytes that the factors of one block of rows, and the temporary tensors of a product of two, may take each."""


STRIPS = 4  # of a symmetric product, each from the diagonal on: five eighths of the work, in pieces large enough to be fast


def on_inputs(problem: Problem, X: Any) -> Problem:
    """The problem with inputs ``X`` in place of its data; the targets are never read."""
    rows = next((len(t) for t in tensors_of(X) if t.ndim), 0)
    data = (X, torch.zeros(rows, device="cpu"))
    return problem.on(as_batches(data, dtype=problem.dtype, device=problem.device, seed=problem.seed, batch_size=None))


class _Blocks:
    """The rows of a problem in blocks whose factors take at most ``memory``; kept where all of them together do not take more."""

    def __init__(self, problem: Problem, memory: int, *, check_loss: bool) -> None:
        self.makers: list[Callable[[], Block]] = []
        self.rows: list[int] = []
        self.kept: dict[int, Factors] = {}
        held = 0
        for k, batch in enumerate(problem.batches):
            whole = Block(problem, k, check_loss=check_loss)
            self.c = whole.c
            size = batch.rows if whole.nbytes <= memory else max(1, batch.rows * memory // whole.nbytes)
            held += whole.nbytes
            if size < batch.rows and not whole.separable:
                raise ValueError(
                    f"the factors of a batch of {batch.rows} rows take {whole.nbytes:.2g} bytes, more than memory={memory:.2g}, and "
                    "they cannot be taken apart (dropout, or a model that couples them): raise memory, or give the problem a batch_size."
                )
            for low in range(0, batch.rows, size):
                part = problem.on([batch.part(slice(low, low + size))])
                at = (problem, k) if size == batch.rows else (part, 0)  # dropout is drawn by the number of the batch
                self.makers.append(lambda at=at: Block(*at, check_loss=False))
                self.rows.append(part.n)
            if size == batch.rows and held <= memory:
                self.kept[len(self.rows) - 1] = whole.factors

    def __getitem__(self, i: int) -> Factors:
        return self.kept[i] if i in self.kept else self.makers[i]().factors

    def __len__(self) -> int:
        return len(self.rows)


def dense_ntk(problem: Problem, X1: Any = None, X2: Any = None, trace_outputs: bool = False) -> Tensor:
    """J Jᵀ from the dense Jacobian, one backward pass an output of a row: the oracle of `ntk`."""

    def jacobian(at: Problem) -> tuple[Tensor, int]:
        rows, c = [], 1
        for k in range(len(at.batches)):
            leaves = at.leaves()
            outputs = at.outputs(k, leaves)
            c = outputs[0].numel()
            for entry in outputs.reshape(-1):
                grads = torch.autograd.grad(entry, list(leaves.values()), retain_graph=True, materialize_grads=True)
                rows.append(torch.cat([g.reshape(-1) for g in grads]))
        return torch.stack(rows), c

    with problem.safe():
        J, c = jacobian(problem if X1 is None else on_inputs(problem, X1))
        K = J if X2 is None else jacobian(on_inputs(problem, X2))[0]
    theta = J @ K.T
    return theta.view(len(J) // c, c, len(K) // c, c).diagonal(dim1=1, dim2=3).sum(-1) if trace_outputs else theta


@instrument(
    oracle=dense_ntk,
    source=Source("Jacot et al. 2018", "Section 4 (neural tangent kernel)", "arXiv:1806.07572"),
    refuses=(hides_outputs, couples_rows),
    row_axes=(0, 1),
)
def ntk(problem: Problem, X1: Any = None, X2: Any = None, trace_outputs: bool = False, *, memory: int = MEMORY_BUDGET) -> Tensor:
    r"""The empirical neural tangent kernel :math:`\Theta_{(ia),(jb)} = \langle \nabla_\theta f_a(x_i), \nabla_\theta f_b(x'_j) \rangle`.

    Over the selected parameters, without the Jacobian: a layer's share comes from the gradients in its outputs and from its inputs, e.g.
    :math:`\langle g_{ia}, g_{jb}\rangle \langle x_i, x_j\rangle` for a linear layer. That takes one backward pass an output, over all
    rows at once, and one more that checks every parameter's share. The Jacobian in parameters whose operation is not known, or fails the
    check (the weights of `nn.LSTM`, and those inside `nn.MultiheadAttention`), is formed, for these alone.

    Args:
        problem: The model and the point; its batches are pairs (x, y), and the output is one tensor with a row for each of the data.
        X1: Inputs of n rows, of the kind that the model takes; default: the problem's own data, all batches in order.
        X2: Inputs of m rows; default: those of the rows, so that the kernel is symmetric.
        trace_outputs: Sum over equal outputs, :math:`\sum_a \Theta_{(ia),(ja)}`.
        memory: Bytes that a block of rows may take; more rows are taken in blocks.

    Returns:
        (n c, m c), the c outputs of a row side by side, or (n, m) where ``trace_outputs``.

    Raises:
        Inapplicable: the loss hides the outputs, or BatchNorm in training mode couples the rows.
        ValueError: the loss or an output is not finite, or a batch with dropout takes more than ``memory``.
        TypeError: the output is not one tensor with a row for each of the data.

    Example:
        >>> line = Problem(torch.nn.Linear(2, 1), torch.nn.functional.mse_loss, (torch.eye(2), torch.zeros(2, 1)))
        >>> ntk(line).tolist()  # of a linear model: ⟨x, x'⟩, and 1 for the bias
        [[2.0, 1.0], [1.0, 2.0]]

    Source: Jacot et al. 2018, arXiv:1806.07572, Section 4; the layers' shares are the structured derivatives of Novak et al. 2022,
    arXiv:2206.08720.
    """
    with problem.safe():
        first = _Blocks(problem if X1 is None else on_inputs(problem, X1), memory, check_loss=X1 is None)
        second = first if X2 is None else _Blocks(on_inputs(problem, X2), memory, check_loss=False)
        if first.c != second.c:
            raise ValueError(f"X1 and X2 must give as many outputs a row, got {first.c} and {second.c}.")
        width = 1 if trace_outputs else first.c
        n, m = sum(first.rows), sum(second.rows)
        theta = torch.empty(n * width, m * width, dtype=problem.dtype, device=problem.device)
        ends = [[width * sum(blocks.rows[:i]) for i in range(len(blocks) + 1)] for blocks in (first, second)]
        for i in range(len(first)):
            left = first[i]
            for j in range(i if X2 is None else 0, len(second)):
                at = slice(*ends[0][i : i + 2]), slice(*ends[1][j : j + 2])
                right = left if first is second and i == j else second[j]
                theta[at] = _product(problem, left, right, (first.rows[i], second.rows[j]), first.c, trace_outputs, memory)
                if first is second and i < j:
                    theta[at[::-1]] = theta[at].T
        return theta


def _product(problem: Problem, a: Factors, b: Factors, rows: tuple[int, int], c: int, trace: bool, memory: int) -> Tensor:
    """J J'ᵀ of two blocks; where they are the same, half of the work and the mirror image of it."""
    n, m = rows
    total = torch.zeros((n, m) if trace else (n, c, m, c), dtype=problem.dtype, device=problem.device)
    step = -(-n // STRIPS) if a is b else n
    strips = [(slice(low, min(low + step, n)), slice(low if a is b else 0, m)) for low in range(0, n, step)]
    if a.keys() != b.keys():  # a parameter was differentiated row by row in one of them
        a, b = split(a), split(b)
    for names in a.keys() & b.keys():
        add_gram(total, a[names], b[names], trace=trace, strips=strips, memory=memory)
    flat = total if trace else total.view(n * c, m * c)
    if a is b:  # the strips reach from the diagonal on
        for strip, _ in strips:
            low, high = (end * flat.shape[0] // n for end in (strip.start, strip.stop))
            flat[high:, low:high] = flat[low:high, high:].T
            block = flat[low:high, low:high]
            block.copy_(block.triu() + block.triu(1).T)
    return flat
