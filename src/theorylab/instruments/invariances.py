"""What training may change without changing the function: scale invariance, the rate and angle it really moves at, balancedness."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from theorylab.core.instrument import Inapplicable, instrument
from theorylab.core.problem import Params, Problem, finite
from theorylab.core.reading import Reading
from theorylab.core.source import Source
from theorylab.instruments.path_norm import RELUS, traced
from theorylab.instruments.refusals import too_few_digits

FACTORS = (0.5, 2.0)
"""What a tensor is multiplied by to see whether the loss notices."""


@dataclass(frozen=True)
class Invariances:
    """One entry a parameter tensor, in the order of ``names``; float64 tensors (t,). All are measures.

    Attributes:
        names: Of the tensors.
        norm: ‖θ‖.
        cosine: Of the angle between θ and its gradient g; zero for a scale-invariant tensor, and where either vanishes.
        change: Largest |L(cθ) − L(θ)| / |L(θ)| over c in `FACTORS`.
        invariant: Whether that is at most the threshold, of tensors that are matrices or more and not zero; true at this norm: the ε of a
            normalization layer spoils it for small weights.
        effective_rate: lr/‖θ‖², the step size that matters for an invariant tensor; zero where θ is zero.
        angle: Radians between θ and its earlier value; zeros where none was given.
    """

    names: tuple[str, ...]
    norm: Tensor
    cosine: Tensor
    change: Tensor
    invariant: Tensor
    effective_rate: Tensor
    angle: Tensor

    def readings(self) -> tuple[Reading, ...]:
        """How many tensors are invariant, and the median rate of these."""
        count = int(self.invariant.sum())
        which = ", ".join(name for name, yes in zip(self.names, self.invariant.tolist(), strict=True) if yes)
        found = [Reading("scale-invariant tensors", float(count), "measure", note=f"of {len(self.names)}: {which or 'none'}")]
        if count:
            rates = self.effective_rate[self.invariant]
            found.append(Reading("effective learning rate, median of the invariant", float(rates.median()), "measure"))
        return tuple(found)


def _summary(
    problem: Problem, gradient: Params, losses: list[list[float]], loss: float, lr: float, threshold: float, before: Params | None
) -> Invariances:
    if loss == 0:
        raise ValueError("the loss is zero, so that no relative change of it can be measured. Use other rows or another loss.")
    params = {k: p.double() for k, p in problem.params.items()}
    norm = torch.stack([p.norm() for p in params.values()])
    slope = torch.stack([(p * gradient[k].double()).sum() for k, p in params.items()])
    size = norm * torch.stack([gradient[k].double().norm() for k in params])
    change = torch.tensor([max(abs(at - loss) for at in each) / abs(loss) for each in losses], dtype=torch.float64, device=norm.device)
    alive = size > torch.finfo(problem.dtype).eps * abs(loss)  # the gradient of a bias before BatchNorm is rounding alone
    matrices = torch.tensor([p.ndim > 1 for p in params.values()], device=norm.device)
    return Invariances(
        tuple(params),
        norm,
        torch.where(alive, slope / size.where(alive, torch.ones_like(size)), 0.0),
        change,
        (change <= threshold) & matrices & (norm > 0),
        torch.where(norm > 0, lr / norm.where(norm > 0, torch.ones_like(norm)).square(), 0.0),
        torch.zeros_like(norm) if before is None else torch.stack(list(angular_update(before, problem.params).values())),
    )


def angular_update(before: Params, after: Params) -> Params:
    """Angle in radians, in [0, π], between each tensor of ``after`` and the same of ``before``; exact for small angles too.

    Raises:
        ValueError: a tensor of ``after`` is missing from ``before``, has another shape, or is zero in either.

    Example:
        >>> angles = angular_update({"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([0.0, 5.0])})
        >>> round(float(angles["w"]), 6)
        1.570796
    """
    angles = {}
    for k, b in after.items():
        if k not in before or before[k].shape != b.shape:
            raise ValueError(
                f"before must hold {k!r} of shape {tuple(b.shape)}, got {tuple(before[k].shape) if k in before else 'nothing'}."
            )
        u, v = before[k].double().to(b.device), b.double()
        if float(u.norm()) == 0 or float(v.norm()) == 0:
            raise ValueError(f"{k!r} is zero, so that it has no direction: leave it out.")
        u, v = u / u.norm(), v / v.norm()
        angles[k] = 2 * torch.atan2((u - v).norm(), (u + v).norm())  # an inverse cosine loses half of the digits near zero
    return angles


def slow_invariances(
    problem: Problem, *, lr: float = 1.0, before: Params | None = None, factors: Sequence[float] = FACTORS, threshold: float = 1e-3
) -> Invariances:
    """A problem of its own for every scaled tensor: the oracle of `invariances`."""
    with torch.no_grad():
        losses = [[float(problem.at({k: c * p}).loss().detach()) for c in factors] for k, p in problem.params.items()]
    return _summary(problem, problem.unflatten(problem.gradient()), losses, float(problem.loss().detach()), lr, threshold, before)


@instrument(
    oracle=slow_invariances,
    source=Source("Li and Arora 2020", "Section 2 (scale invariance, effective learning rate)", "arXiv:1910.07454"),
    refuses=too_few_digits,
)
def invariances(
    problem: Problem, *, lr: float = 1.0, before: Params | None = None, factors: Sequence[float] = FACTORS, threshold: float = 1e-3
) -> Invariances:
    r"""Which weight tensors the loss does not feel the size of, and how fast these turn.

    If :math:`L(c\theta) = L(\theta)` for c > 0, as for weights that feed a normalization layer, then ⟨θ, ∇L⟩ = 0 and the gradient shrinks
    as 1/‖θ‖: only the direction of θ matters, and it turns as if with learning rate :math:`\eta/\|\theta\|^2` at norm one. The cost is a
    gradient and one loss a tensor and factor.

    Tensors are scaled one at a time: a weight with a bias that feeds LayerNorm or GroupNorm is invariant only together with that bias, and
    not by itself.

    Args:
        problem: The risk and the point. BatchNorm in training mode is meaningful here.
        lr: η, of the training.
        before: Earlier parameters, for the angle turned since.
        factors: Positive numbers c.
        threshold: Relative change of the loss up to which a tensor counts as invariant.

    Raises:
        ValueError: the loss is not finite or zero, or a factor that is not positive.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 4, bias=False), nn.LayerNorm(4), nn.Linear(4, 2))
        >>> x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
        >>> found = invariances(Problem(net, nn.functional.cross_entropy, (x, torch.arange(8) % 2)))
        >>> dict(zip(found.names, found.invariant.tolist()))
        {'0.weight': True, '1.weight': False, '1.bias': False, '2.weight': False, '2.bias': False}

    Source: Li and Arora 2020, arXiv:1910.07454, Section 2; van Laarhoven 2017, arXiv:1706.05350.
    """
    if not factors or not all(c > 0 for c in factors):
        raise ValueError(f"factors must be positive numbers, got {tuple(factors)}.")
    gradient = problem.unflatten(problem.gradient())

    def loss_at(params: Params) -> float:
        return sum(w * float(finite(problem.batch_loss(k, params)).detach()) for k, w in enumerate(problem.weights))

    with problem.safe(), torch.no_grad():
        losses = [[loss_at({**problem.params, k: c * p}) for c in factors] for k, p in problem.params.items()]
        return _summary(problem, gradient, losses, loss_at(problem.params), lr, threshold, before)


@dataclass(frozen=True)
class Balance:
    """Two weight matrices in sequence, with h hidden units between them.

    Attributes:
        first: Name of the inner layer's weight W, (h, d); its bias b counts as one more input.
        second: Name of the outer layer's weight V, (k, h).
        through_relu: Whether a ReLU lies between, so that only the diagonal is conserved.
        difference: VᵀV − (WWᵀ + bbᵀ), (h, h), or its diagonal (h,) through a ReLU.
        imbalance: Frobenius norm of the difference, over ‖V‖² + ‖W‖² + ‖b‖².
        drift: Frobenius norm of what the difference changed by since ``before``; None where that was not given.
    """

    first: str
    second: str
    through_relu: bool
    difference: Tensor
    imbalance: float
    drift: float | None


def balancedness(problem: Problem, *, before: Params | None = None) -> tuple[Balance, ...]:
    r"""How far consecutive layers are from balanced, :math:`W_{l+1}^\top W_{l+1} = W_l W_l^\top`, and how far that moved. A measure.

    Gradient flow conserves the difference of the two sides exactly, for linear layers in sequence, and its diagonal through a ReLU: a
    drift is due to the step size, to weight decay, or to an optimizer other than gradient descent, whose own is of order η² a step.

    Args:
        problem: A model whose graph can be traced; pairs are dense layers with nothing between them but ReLU, identity or dropout.
        before: Earlier parameters, by name, for the drift.

    Raises:
        Inapplicable: no two dense layers follow each other so, with both weights selected.

    Example:
        >>> net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
        >>> problem = Problem(net, nn.functional.mse_loss, (torch.ones(1, 1), torch.ones(1, 1)))
        >>> problem = problem.at({"0.weight": torch.tensor([[3.0]]), "1.weight": torch.tensor([[5.0]])})
        >>> balancedness(problem)[0].difference.tolist()  # 5² − 3²
        [[16.0]]

    Source: Arora et al. 2018, arXiv:1802.06509, Theorem 1; Du et al. 2018, arXiv:1806.00900, Theorem 2.1.
    """
    graph = traced(problem)
    if isinstance(graph, str):
        raise Inapplicable(f"balancedness does not apply: {graph}")
    found = []
    for inner, outer, relu in layer_pairs(graph):
        first, second = f"{inner}.weight", f"{outer}.weight"
        if first not in problem.params or second not in problem.params:
            continue
        bias = f"{inner}.bias"
        now = _difference(problem.params, first, second, bias, relu)
        named = {k: problem.params[k] if before is None else before.get(k, problem.params[k]) for k in problem.params}
        size = math.fsum(float(problem.params[k].double().square().sum()) for k in (first, second, bias) if k in problem.params)
        drift = None if before is None else float((now - _difference(named, first, second, bias, relu)).norm())
        found.append(Balance(first, second, relu, now, float(now.norm()) / size if size else 0.0, drift))
    if not found:
        raise Inapplicable(
            "balancedness does not apply: no two dense layers follow each other with nothing but ReLU, identity or dropout between them. "
            "Through other activations no such quantity is conserved."
        )
    return tuple(found)


def _difference(params: Params, first: str, second: str, bias: str, relu: bool) -> Tensor:
    W, V = params[first].double(), params[second].double()
    b = params[bias].double() if bias in params else W.new_zeros(len(W))
    whole = V.T @ V - W @ W.T - torch.outer(b, b)
    return whole.diagonal().clone() if relu else whole


def layer_pairs(graph: fx.GraphModule) -> list[tuple[str, str, bool]]:
    """(inner, outer, whether a ReLU lies between) of dense layers in sequence."""
    modules, pairs = dict(graph.named_modules()), []
    for node in graph.graph.nodes:
        if node.op != "call_module" or not isinstance(modules[node.target], nn.Linear):
            continue
        relu, step = False, node
        while len(step.users) == 1:
            step = next(iter(step.users))
            module = modules.get(str(step.target)) if step.op == "call_module" else None
            if isinstance(module, nn.Linear):
                pairs.append((str(node.target), str(step.target), relu))
                break
            if isinstance(module, nn.ReLU) or (step.op != "call_module" and step.target in RELUS):
                relu = True
            elif not isinstance(module, nn.Identity | nn.modules.dropout._DropoutNd):
                break
    return pairs
