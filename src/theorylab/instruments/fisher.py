"""Fisher matrices of a model's predictions: the true one, over labels that the model draws, and the empirical one, over those observed."""

from __future__ import annotations

import functools
from typing import Literal

import torch
from torch import Tensor

from theorylab.core.instrument import instrument
from theorylab.core.operator import Operator
from theorylab.core.problem import Problem, finite
from theorylab.core.source import Source
from theorylab.instruments.curvature import ggn
from theorylab.instruments.output_hessian import has_no_likelihood, known_loss
from theorylab.instruments.products import MEMORY_BUDGET, Linearization, Product, dense_jacobian, dense_operator, symmetric_operator
from theorylab.instruments.refusals import couples_rows, hides_outputs
from theorylab.instruments.rows import looped_grads


def enumerated_fisher(problem: Problem, *, mc: int = 0, seed: int = 0) -> Operator:
    """Outer products of the score at every label that a prediction can take, weighted by its probability: the oracle of `true_fisher`."""
    loss = known_loss(problem)
    assert loss is not None
    total = torch.zeros(problem.P, problem.P, dtype=problem.dtype, device=problem.device)
    with problem.safe():
        for k, w in enumerate(problem.weights):
            outputs, J = dense_jacobian(problem, k)
            targets = problem.batches[k].content[1]
            if loss.name == "cross_entropy":
                classes = outputs.shape[1]
                rows, J = outputs.movedim(1, -1).reshape(-1, classes), J.movedim(1, -2).reshape(-1, classes, problem.P)
                ignored = targets == loss.options.get("ignore_index", -100)
                hard = not targets.is_floating_point()
                predictions = [i for i in range(len(rows)) if not (hard and ignored.reshape(-1)[i])]
                count = len(predictions) if loss.options.get("reduction", "mean") == "mean" else len(rows)
                for i in predictions:
                    p = rows[i].softmax(0)
                    scores = (p - torch.eye(classes, device="cpu").to(p)) @ J[i]  # (label, p)
                    total += w / count * scores.T @ (p[:, None] * scores)
                continue
            J = J.reshape(-1, problem.P)
            for f, row in zip(outputs.reshape(-1), J, strict=True):  # every output is a prediction of its own
                if loss.name == "binary":
                    p = f.sigmoid()
                    scores, probabilities = torch.stack([p, p - 1]), torch.stack([1 - p, p])
                else:  # a Gaussian of variance 1/2, whose score at f ± σ has the variance of the score: 2(f − y) = ∓ √2
                    scores, probabilities = f.new_tensor([2**0.5, -(2**0.5)]), f.new_full((2,), 0.5)
                total += w / len(J) * (probabilities @ scores.square()) * torch.outer(row, row)
    return dense_operator(problem, (total + total.T) / 2, "dense true fisher")


@instrument(
    oracle=enumerated_fisher,
    source=Source("Martens 2020", "Sections 5 and 9 (the Fisher, and its equality with the Gauss-Newton matrix)", "arXiv:1412.1193"),
    refuses=(hides_outputs, has_no_likelihood),
    family="curvature",
)
def true_fisher(problem: Problem, *, mc: int = 0, seed: int = 0, memory: int = MEMORY_BUDGET) -> Operator:
    r"""The Fisher information :math:`\frac1N\sum_i E_{y\sim p_\theta(y|x_i)}[g g^\top]` with :math:`g=-\nabla\log p_\theta(y|x_i)`.

    The mean runs over predictions: rows, or tokens where a row holds several. For a softmax, a Bernoulli and a Gaussian likelihood with the
    model's outputs as natural parameters it is the generalized Gauss-Newton matrix, and is computed as that.

    Args:
        problem: Its loss is ``cross_entropy`` (without class weights), ``binary_cross_entropy_with_logits`` or ``mse_loss``, a Gaussian
            whose variance makes that loss its negative log-likelihood; or their modules.
        mc: Labels drawn a prediction; 0 is the exact expectation.
        seed: Of the labels, which stay the same for all products.
        memory: Bytes that the kept graph may take.

    Raises:
        Inapplicable: the loss hides the outputs, or is not known as a likelihood.
        ValueError: the loss is not finite, or ``mc`` is negative.

    Example:
        >>> data = torch.ones(2, 1), torch.ones(2, 1)
        >>> bits = Problem(torch.nn.Linear(1, 1, bias=False), torch.nn.functional.binary_cross_entropy_with_logits, data)
        >>> true_fisher(bits.at({"weight": torch.zeros(1, 1)})).to_dense().tolist()
        [[0.25]]

    Source: Martens 2020, arXiv:1412.1193, Sections 5 and 9.
    """
    operator = ggn(problem, mc=mc, seed=seed, memory=memory)
    operator.name = "fisher" if mc == 0 else f"fisher with {mc} labels"
    return operator


def looped_fisher(problem: Problem) -> Operator:
    """The second moment of the rows' gradients, from one backward pass each: the oracle of `empirical_fisher`."""
    rows = looped_grads(problem)
    return dense_operator(problem, rows.T @ rows / problem.n, "dense empirical fisher")


@instrument(
    oracle=looped_fisher,
    source=Source("Kunstner, Balles and Hennig 2019", "Section 2, equation 3 (the empirical Fisher)", "arXiv:1905.12558"),
    refuses=(hides_outputs, couples_rows),
    family="curvature",
)
def empirical_fisher(problem: Problem, *, memory: int = MEMORY_BUDGET) -> Operator:
    r"""The second moment of the rows' gradients at the observed labels, :math:`\frac1n\sum_i \nabla\ell_i \nabla\ell_i^\top`, (p, p).

    Not the Fisher information, from which it can be arbitrarily far: its labels are the data's, not the model's. A row's gradient is its
    share of the mean loss's, times n.

    Args:
        problem: The risk and the point; its batches are pairs (x, y), and the model's output is one tensor, a row for each of x.
        memory: Bytes that the kept graph may take.

    Raises:
        Inapplicable: the loss hides the outputs, or the model couples rows.
        ValueError: the loss is not finite, or the outputs have no axis of rows.

    Example:
        >>> data = torch.ones(2, 1), torch.tensor([[1.0], [3.0]])
        >>> line = Problem(torch.nn.Linear(1, 1, bias=False), torch.nn.functional.mse_loss, data)
        >>> empirical_fisher(line.at({"weight": torch.zeros(1, 1)})).to_dense().tolist()
        [[20.0]]

    Source: Kunstner, Balles and Hennig 2019, arXiv:1905.12558, Section 2.
    """

    def build(problem: Problem, batches: list[int]) -> Product:
        pieces = []
        for k in batches:
            linear, rows = Linearization.of(problem, k), problem.batches[k].rows
            if linear.outputs.ndim == 0 or linear.outputs.shape[0] != rows:
                raise ValueError(
                    f"the outputs must have one row for each of the {rows} rows of x, got shape {tuple(linear.outputs.shape)}."
                )
            head = linear.outputs.detach().requires_grad_()
            (slope,) = torch.autograd.grad(finite(problem.loss_of(k, head)), head)
            pieces.append((linear, problem.n * problem.weights[k] * slope, tuple(range(1 - head.ndim, 0))))

        def product(v: Tensor, many: bool) -> Tensor:
            parts = []
            for linear, slope, axes in pieces:
                along = slope * linear.push(v, many)
                parts.append(linear.pull(slope * (along.sum(axes, keepdim=True) if axes else along) / problem.n, many))
            return functools.reduce(torch.add, parts)

        return product

    return symmetric_operator(problem, build, "empirical fisher", memory)


def fisher(
    problem: Problem, *, kind: Literal["true", "empirical"] = "true", mc: int = 0, seed: int = 0, memory: int = MEMORY_BUDGET
) -> Operator:
    """`true_fisher`, over labels that the model draws, or `empirical_fisher`, over the observed ones, which is no Fisher information.

    Args:
        problem: The risk and the point.
        kind: Which of the two.
        mc: Of the true one: labels drawn a prediction; 0 is the exact expectation.
        seed: Of those labels.
        memory: Bytes that the kept graph may take.

    Raises:
        ValueError: an unknown kind, or ``mc`` for the empirical one, which draws nothing.
        Inapplicable: see the two.

    Example:
        >>> data = torch.ones(2, 1), torch.tensor([[1.0], [3.0]])
        >>> line = Problem(torch.nn.Linear(1, 1, bias=False), torch.nn.functional.mse_loss, data)
        >>> fisher(line).to_dense().tolist()
        [[2.0]]
    """
    if kind == "true":
        return true_fisher(problem, mc=mc, seed=seed, memory=memory)
    if kind != "empirical":
        raise ValueError(f'kind must be "true" or "empirical", got {kind!r}.')
    if mc:
        raise ValueError(f'mc draws labels for kind="true"; the empirical Fisher takes those observed, got mc={mc}.')
    return empirical_fisher(problem, memory=memory)
