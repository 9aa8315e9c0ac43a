"""In which norm has a classifier's last layer nearly the largest margin? Margins in three geometries against their optima."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linprog, minimize
from torch import Tensor, nn

from theorylab.core.instrument import instrument
from theorylab.core.problem import Problem, finite
from theorylab.core.reading import Reading
from theorylab.core.source import Source
from theorylab.instruments.linear_layers import another_weight, plain_outputs, same_outputs
from theorylab.instruments.predictions import not_classification, scores_and_classes
from theorylab.instruments.refusals import too_few_digits
from theorylab.instruments.traced import is_computed
from theorylab.linalg.margin import max_margin

MOST = 20_000_000
"""Entries of the programs' matrix, rows times wrong classes times weights, beyond which a linear program is no measurement any more."""
NORMS = {"l1": 1, "l2": 2, "linf": math.inf}


@dataclass(frozen=True)
class Margin:
    """The margin of a linear head in one norm.

    Attributes:
        norm: ``"l1"``, ``"l2"`` or ``"linf"``, of all weights of the head as one vector.
        present: Smallest score difference over rows and wrong classes, per unit of the norm; negative where a row is wrong.
        largest: That of the best head on the same features; 0 where no head separates them.
    """

    norm: str
    present: float
    largest: float


@dataclass(frozen=True)
class MarginGeometry:
    """Margins of a linear head in three norms.

    Attributes:
        head: Name of the layer.
        separable: Whether some head classifies every row rightly from these features.
        margins: One for each norm.
    """

    head: str
    separable: bool
    margins: tuple[Margin, ...]

    def readings(self) -> tuple[Reading, ...]:
        """Each margin as a share of the largest; the margin itself where there is no larger one to compare with."""
        if not self.separable:
            note = f"no weights of {self.head or 'the model'} separate these features"
            return tuple(Reading(f"{m.norm} margin", m.present, "measure", note=note) for m in self.margins)
        return tuple(Reading(f"{m.norm} margin over the largest", m.present / m.largest, "measure") for m in self.margins)


@dataclass(frozen=True)
class _Head:
    """A last layer, with the features (n, d) that enter it and its weights (k, d), a bias being the weight of a feature 1."""

    name: str
    features: Tensor
    weight: Tensor


def _head(problem: Problem) -> _Head | str:
    """The linear layer that makes the model's outputs, or why there is none."""
    seen: list[tuple[nn.Module, Tensor, Tensor]] = []

    def note(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], output: Tensor) -> None:
        x = args[0] if args else kwargs["input"]
        seen[:] = [(module, x.detach().clone(), output.detach().clone())]  # what follows may work in place on them

    names = {module: name for name, module in problem.model.named_modules() if isinstance(module, nn.Linear)}
    hooks = [module.register_forward_hook(note, with_kwargs=True) for module in names]
    features, scores, last = [], [], None
    try:
        with problem.safe(), torch.no_grad():
            for k in range(len(problem.batches)):
                seen.clear()
                outputs = problem.outputs(k)
                if (
                    not seen
                    or seen[-1][2].shape != outputs.shape
                    or not torch.allclose(seen[-1][2], outputs, rtol=0, atol=0, equal_nan=True)
                ):
                    return (
                        "the model's outputs are not those of a Linear layer. Measure a model that ends in one, without softmax or pooling."
                    )
                last = seen[-1][0]
                features.append(seen[-1][1])
                scores.append(outputs)
    finally:
        for hook in hooks:
            hook.remove()
    assert isinstance(last, nn.Linear)
    tensors = problem._tensors(None)
    by_tensor = {id(t): k for k, t in problem.model.named_parameters()}
    for name in ("weight", "bias"):
        if is_computed(last, name):
            return (
                f"the {name} of {names[last]} is computed (a parametrization). Remove it: "
                "torch.nn.utils.parametrize.remove_parametrizations."
            )
    w, b = (None if t is None else tensors[by_tensor[id(t)]].detach() for t in (last.weight, last.bias))
    assert w is not None  # every Linear has a weight
    if not all(same_outputs(out, plain_outputs(last, x, w, b)) for x, out in zip(features, scores, strict=True)):
        return another_weight(names[last], last)
    x, w = torch.cat(features).double(), w.double()
    if b is not None:
        x = torch.cat([x, x.new_ones(len(x), 1)], 1)
        w = torch.cat([w, b.double()[:, None]], 1)
    return _Head(names[last], x, w)


def has_no_linear_head(problem: Problem) -> str | None:
    """Margins are compared with the best of all heads, which is a linear program only for a linear one."""
    head = _head(problem)
    return head if isinstance(head, str) else None


def _rows(head: _Head, classes: Tensor) -> Tensor:
    """Rows z whose inner products with the head's weights are the score differences: (n, d), or (n·(k−1), k·d) for k > 1 scores."""
    x, k = head.features, len(head.weight)
    if k == 1:  # one score a row, of the class whose sign it has
        return x * (2 * classes.to(x) - 1)[:, None]
    eye = torch.eye(k, dtype=x.dtype, device=x.device)
    rows = (eye[classes][:, None, :, None] - eye[None, :, :, None]) * x[:, None, None, :]  # (n, wrong class, class, d)
    wrong = torch.ones(len(x), k, dtype=torch.bool, device=x.device).scatter_(1, classes[:, None], False)
    return rows[wrong].flatten(1)


def _measured(problem: Problem) -> tuple[_Head, Tensor]:
    finite(problem.loss())
    head = _head(problem)
    assert isinstance(head, _Head)
    if not bool(head.weight.any()):
        raise ValueError(f"the weights of {head.name or 'the model'} are zero and have no margin: train it first.")
    entries = len(head.features) * max(1, len(head.weight) - 1) * head.weight.numel()
    if entries > MOST:
        raise ValueError(
            f"the programs would have {entries:.1g} entries, rows · wrong classes · weights, over {MOST:g}. Measure fewer rows."
        )
    return head, _rows(head, scores_and_classes(problem)[1])


def dual_margin_geometry(problem: Problem) -> MarginGeometry:
    """From score differences one by one, and the dual problems: the smallest dual norm in the convex hull of the rows."""
    head, rows = _measured(problem)
    z = rows.cpu().numpy()
    n, d = z.shape
    w = head.weight.flatten().cpu().numpy()
    least = min(float(np.dot(row, w)) for row in z)
    hull = {"A_eq": None, "b_eq": [1.0]}
    largest = {}
    # ℓ1: least t with |Σ qᵢzᵢ| ≤ t in every coordinate; ℓ∞: least Σ tⱼ with the same for each tⱼ
    for name, spread in (("l1", np.ones((d, 1))), ("linf", np.eye(d))):
        m = spread.shape[1]
        hull["A_eq"] = np.hstack([np.ones((1, n)), np.zeros((1, m))])
        box = np.vstack([np.hstack([z.T, -spread]), np.hstack([-z.T, -spread])])
        largest[name] = float(linprog([0.0] * n + [1.0] * m, A_ub=box, b_ub=np.zeros(2 * d), bounds=(0, None), **hull).fun)
    gram = z @ z.T
    start = np.full(n, 1 / n)
    found = minimize(
        lambda q: float(q @ gram @ q) / 2,
        start,
        jac=lambda q: gram @ q,
        bounds=[(0.0, 1.0)] * n,
        constraints={"type": "eq", "fun": lambda q: q.sum() - 1, "jac": lambda q: np.ones(n)},
        method="SLSQP",
        options={"ftol": 1e-16, "maxiter": 2000},
    ).x
    kept = found > 1e-5  # the support vectors; given them, the nearest point of their plane solves a linear system
    weights = np.linalg.lstsq(gram[np.ix_(kept, kept)], np.ones(kept.sum()), rcond=None)[0]
    nearest = z[kept].T @ (weights / weights.sum())
    largest["l2"] = float(np.linalg.norm(nearest)) if np.linalg.norm(z.T @ found) > 1e-6 else 0.0
    separable = largest["l1"] > 1e-9
    return MarginGeometry(
        head.name,
        separable,
        tuple(Margin(name, least / float(np.linalg.norm(w, p)), largest[name] if separable else 0.0) for name, p in NORMS.items()),
    )


@instrument(
    oracle=dual_margin_geometry,
    source=Source("Gunasekar et al. 2018", "Theorem 5 (steepest descent and its margin)", "arXiv:1802.08246"),
    refuses=(not_classification, too_few_digits, has_no_linear_head),
    family="norms",
)
def margin_geometry(problem: Problem) -> MarginGeometry:
    r"""Margins of a classifier's linear head in the ℓ1, ℓ2 and ℓ∞ geometry, each against the largest that any head has. A measure.

    .. math:: \gamma_p(w) = \min_{i,\, j \ne y_i} \frac{\langle w_{y_i} - w_j,\, h_i\rangle}{\|w\|_p}, \qquad
        \gamma_p^\star = \max_w \gamma_p(w)

    Once the features h are separated, the optimizer's own geometry decides which margin training goes on to maximize: gradient descent ℓ2,
    sign descent and Adam ℓ∞, coordinate descent ℓ1. The largest are found by linear programs and, for ℓ2, the hard-margin support vector
    machine. The norm is of all weights as one vector; a bias counts as the weight of a feature that is 1. With one score a row, for
    targets ±1, the score difference is y⟨w, h⟩.

    Args:
        problem: A classifier that ends in a Linear layer, which is measured whether or not its weights are selected. The programs have
            n(k−1) constraints and a variable for each weight: some thousand of each take seconds.

    Raises:
        Inapplicable: no classification, a model that does not end in a Linear layer which applies its own weight, or half precision.
        ValueError: the loss is not finite, the head is zero, or rows, classes and weights are too many for the programs.
        ArithmeticError: the largest margin is too small against the features to be found; see `theorylab.linalg.margin.max_margin`.

    Example:
        >>> x, y = torch.tensor([[3.0, 4.0], [-3.0, -4.0]]), torch.tensor([[1.0], [-1.0]])
        >>> problem = Problem(nn.Linear(2, 1, bias=False), nn.functional.soft_margin_loss, (x, y))
        >>> for m in margin_geometry(problem.at({"weight": torch.tensor([[1.0, 1.0]])})).margins:
        ...     print(m.norm, round(m.present, 4), round(m.largest, 4))
        l1 3.5 4.0
        l2 4.9497 5.0
        linf 7.0 7.0

    Source: Gunasekar et al. 2018, arXiv:1802.08246, Theorem 5.
    """
    head, rows = _measured(problem)
    w = head.weight.flatten()
    least = float((rows @ w).min())
    present = {name: least / float(torch.linalg.vector_norm(w, p)) for name, p in NORMS.items()}
    # the head is one of those that are compared, and shows what it separates even where rounding hides that from the programs
    largest = {name: max(0.0, present[name], max_margin(rows, p)[0]) for name, p in NORMS.items()}
    separable = all(v > 0 for v in largest.values())
    return MarginGeometry(head.name, separable, tuple(Margin(k, present[k], largest[k] if separable else 0.0) for k in NORMS))
