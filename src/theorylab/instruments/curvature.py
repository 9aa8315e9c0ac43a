"""Exact second-order measurement of a Problem: Hessian, generalized Gauss-Newton, sharpness."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from theorylab.core.instrument import instrument
from theorylab.core.operator import Operator
from theorylab.core.problem import Problem, finite
from theorylab.core.source import Source
from theorylab.instruments.refusals import hides_outputs
from theorylab.linalg.lanczos import eigs

MEMORY_BUDGET = 2**30
"""Bytes that the kept graph of one operator may hold; beyond it, every product computes the graph anew, batch by batch."""

# Layers through which several vectors go at once by vmap as fast as one after the other; convolutions and recurrences take twice as long.
BATCHABLE = (nn.Linear, nn.Flatten, nn.Identity, nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.Softplus, nn.ELU, nn.LeakyReLU)
COLUMNS = 32  # vectors at once, to bound memory


class _OverBudget(Exception):
    pass


def _batches_well(model: nn.Module) -> bool:
    leaves = [m for m in model.modules() if not list(m.children())]
    return all(isinstance(m, BATCHABLE) for m in leaves)


class _Budget:
    """Counts the bytes of distinct tensors that graphs save, and stops their construction when they are too many."""

    def __init__(self, limit: int, free: list[Tensor]) -> None:
        self.limit, self.used = limit, 0
        self.seen = {t.untyped_storage().data_ptr() for t in free}  # parameters and data are held anyway

    def pack(self, t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in self.seen:
            self.seen.add(storage.data_ptr())
            self.used += storage.nbytes()
            if self.used > self.limit:
                raise _OverBudget
        return t

    def hooks(self) -> torch.autograd.graph.saved_tensors_hooks:
        return torch.autograd.graph.saved_tensors_hooks(self.pack, lambda t: t)


Product = Callable[[Tensor, bool], Tensor]
"""(v, many) → product; v is (p,), or (k, p) where many."""


def _grad(outputs: list[Tensor], inputs: list[Tensor], cotangents: list[Tensor], many: bool) -> list[Tensor]:
    """Vector-Jacobian products through a kept graph; zeros where an output does not depend on an input."""
    used = [i for i, o in enumerate(outputs) if o.requires_grad]
    lead = cotangents[0].shape[:1] if many else ()
    grads: tuple[Tensor | None, ...] = (None,) * len(inputs)
    if used:
        grads = torch.autograd.grad(
            [outputs[i] for i in used],
            inputs,
            [cotangents[i] for i in used],
            retain_graph=True,
            allow_unused=True,
            is_grads_batched=many,
        )
    return [x.new_zeros(lead + x.shape) if g is None else g for x, g in zip(inputs, grads, strict=True)]


def _split(problem: Problem, v: Tensor, many: bool) -> list[Tensor]:
    if not many:
        return list(problem.unflatten(v).values())
    parts = v.split([p.numel() for p in problem.params.values()], dim=1)
    return [part.reshape(len(v), *p.shape) for part, p in zip(parts, problem.params.values(), strict=True)]


def _join(parts: list[Tensor], many: bool) -> Tensor:
    return torch.cat([g.reshape(len(g), -1) if many else g.reshape(-1) for g in parts], dim=-1)


def _hessian_graph(problem: Problem, batches: list[int], keep: bool) -> Product:
    leaves = problem.leaves()
    inputs = list(leaves.values())
    total = sum((problem.weights[k] * finite(problem.batch_loss(k, leaves)) for k in batches), start=torch.zeros((), device=problem.device))
    slopes = torch.autograd.grad(total, inputs, create_graph=True, allow_unused=True)
    gradient = [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, slopes, strict=True)]

    def product(v: Tensor, many: bool) -> Tensor:
        return _join(_grad(gradient, inputs, _split(problem, v, many), many), many)

    return product


def _ggn_graph(problem: Problem, batches: list[int], keep: bool) -> Product:
    leaves = problem.leaves()
    inputs = list(leaves.values())
    pieces = []
    for k in batches:
        outputs = problem.outputs(k, leaves)
        if not isinstance(outputs, Tensor):
            raise TypeError(f"ggn needs a model whose output is one tensor, got {type(outputs).__name__}.")
        # J v as the derivative of u → Jᵀu, which is linear: one more pass through the kept graph, and right with dropout,
        # whose masks torch.func.linearize would draw again.
        u = torch.zeros_like(outputs, requires_grad=True)
        pulled = torch.autograd.grad(outputs, inputs, u, create_graph=True, allow_unused=True)
        pulled = [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, pulled, strict=True)]
        head = outputs.detach().requires_grad_()
        loss = problem.weights[k] * finite(problem.loss_of(k, head))
        (slope,) = torch.autograd.grad(loss, [head], create_graph=True)
        pieces.append((outputs, u, pulled, head, slope, _linearized(problem, k, u, pulled) if keep else None))

    def product(v: Tensor, many: bool) -> Tensor:
        parts = _split(problem, v, many)
        total: Tensor | None = None
        for outputs, u, pulled, head, slope, forward in pieces:
            pushed = _grad(pulled, [u], parts, many) if forward is None or many else [forward(parts)]
            curved = _grad([slope], [head], pushed, many)
            piece = _join(_grad([outputs], inputs, curved, many), many)
            total = piece if total is None else total + piece
        assert total is not None
        return total

    return product


def _linearized(problem: Problem, k: int, u: Tensor, pulled: list[Tensor]) -> Callable[[list[Tensor]], Tensor] | None:
    """J v by `torch.func.linearize` for convolutions, where it takes half the time; None where it does not agree with the kept graph."""
    if not any(isinstance(m, nn.modules.conv._ConvNd) for m in problem.model.modules()):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer warns of its own constants
        try:
            _, push = torch.func.linearize(lambda p: problem.outputs(k, p), problem.params)
        except (RuntimeError, NotImplementedError):  # no forward derivative of some layer
            return None

    def forward(parts: list[Tensor]) -> Tensor:
        return push(dict(zip(problem.params, parts, strict=True)))

    generator = torch.Generator().manual_seed(0)
    test = [torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p) for p in problem.params.values()]
    (expected,) = _grad(pulled, [u], test, False)
    agree = float((forward(test) - expected).norm()) <= torch.finfo(u.dtype).eps ** 0.5 * float(expected.norm())
    return forward if agree else None


def _operator(problem: Problem, build: Callable[[Problem, list[int], bool], Product], name: str, memory: int) -> Operator:
    """The operator of a sum over batches: from one kept graph where it fits ``memory``, else built for every product."""
    every = list(range(len(problem.batches)))
    kept: Product | None = None
    with problem.safe():
        try:
            with _Budget(memory, problem.held()).hooks():
                kept = build(problem, every, True)
        except _OverBudget:
            problem.loss()  # refuses a loss that is not finite now, not at the first product

    def product(v: Tensor, many: bool) -> Tensor:
        if kept is not None:
            with problem.kernels():
                return kept(v, many).detach()
        with problem.safe():
            total = torch.zeros_like(v)
            for k in every:
                total += build(problem, [k], False)(v, many).detach()
            return total

    def matvec(v: Tensor) -> Tensor:
        return product(v.detach(), False)

    def matmat(V: Tensor) -> Tensor:
        return torch.cat([product(part, True) for part in V.detach().T.contiguous().split(COLUMNS)]).T

    return Operator(
        (problem.P, problem.P),
        matvec,
        matmat=matmat if _batches_well(problem.model) else None,
        symmetric=True,
        dtype=problem.dtype,
        device=problem.device,
        name=name,
    )


def _dense(problem: Problem, matrix: Tensor, name: str) -> Operator:
    return Operator((problem.P, problem.P), lambda v: matrix @ v, symmetric=True, dtype=matrix.dtype, device=matrix.device, name=name)


def dense_hessian(problem: Problem) -> Operator:
    """The Hessian row by row, each the gradient of one entry of the gradient, batch by batch: the oracle of `hessian`."""
    rows = torch.zeros(problem.P, problem.P, dtype=problem.dtype, device=problem.device)
    with problem.safe():
        for k, w in enumerate(problem.weights):
            leaves = problem.leaves()
            inputs = list(leaves.values())
            slopes = torch.autograd.grad(problem.batch_loss(k, leaves), inputs, create_graph=True, allow_unused=True)
            flat = _join([torch.zeros_like(x) if g is None else g for x, g in zip(inputs, slopes, strict=True)], False)
            for i, entry in enumerate(flat):
                if entry.requires_grad:
                    row = torch.autograd.grad(entry, inputs, retain_graph=True, allow_unused=True)
                    rows[i] += w * _join([torch.zeros_like(x) if g is None else g for x, g in zip(inputs, row, strict=True)], False)
    return _dense(problem, rows, "dense hessian")


def dense_ggn(problem: Problem) -> Operator:
    """JᵀHJ from the dense Jacobian of all outputs and the dense Hessian of the loss in them: the oracle of `ggn`."""
    total = torch.zeros(problem.P, problem.P, dtype=problem.dtype, device=problem.device)
    with problem.safe():
        for k, w in enumerate(problem.weights):
            leaves = problem.leaves()
            inputs = list(leaves.values())
            outputs = problem.outputs(k, leaves)
            rows = [torch.autograd.grad(entry, inputs, retain_graph=True, allow_unused=True) for entry in outputs.reshape(-1)]
            J = torch.stack(
                [_join([torch.zeros_like(x) if g is None else g for x, g in zip(inputs, row, strict=True)], False) for row in rows]
            )
            head = outputs.detach()
            curve = torch.autograd.functional.hessian(lambda o, k=k: problem.loss_of(k, o), head)
            assert isinstance(curve, Tensor)
            total += w * J.T @ curve.reshape(len(J), len(J)) @ J
    return _dense(problem, total, "dense ggn")


@instrument(
    oracle=dense_hessian,
    source=Source("Pearlmutter 1994", "Section 3 (exact multiplication by the Hessian)", "doi:10.1162/neco.1994.6.1.147"),
)
def hessian(problem: Problem, *, memory: int = MEMORY_BUDGET) -> Operator:
    r"""The Hessian :math:`\nabla^2 L(\theta)` of the mean loss, (p, p).

    The graph of the gradient is kept, so that a product costs one backward pass through it, about the work of one and a half gradients.
    Where it would exceed ``memory``, it is built anew for every product, batch by batch.

    Args:
        problem: The risk and the point.
        memory: Bytes that the kept graph may take.

    Raises:
        ValueError: the loss is not finite.

    Example:
        >>> quadratic = Problem(nn.Linear(2, 1, bias=False), nn.functional.mse_loss, (torch.eye(2), torch.zeros(2, 1)))
        >>> hessian(quadratic).to_dense().tolist()
        [[1.0, 0.0], [0.0, 1.0]]

    Source: Pearlmutter 1994, doi:10.1162/neco.1994.6.1.147, Section 3.
    """
    return _operator(problem, _hessian_graph, "hessian", memory)


@instrument(
    oracle=dense_ggn,
    source=Source("Schraudolph 2002", "Section 3 (fast curvature matrix-vector products)", "doi:10.1162/08997660260028683"),
    refuses=hides_outputs,
)
def ggn(problem: Problem, *, memory: int = MEMORY_BUDGET) -> Operator:
    r"""The generalized Gauss-Newton matrix :math:`\frac1n\sum_i J_i^\top \nabla^2_f\ell_i\, J_i`, (p, p).

    J is the Jacobian of the model's outputs, and the inner matrix the Hessian of the loss in them. Positive semidefinite for a convex loss,
    and equal to the Hessian where the model is linear in its parameters.

    Args:
        problem: The risk and the point; its batches are pairs (x, y), and the model's output is one tensor.
        memory: Bytes that the kept graph may take.

    Raises:
        Inapplicable: the loss has the form loss(model, batch), which hides the outputs.
        ValueError: the loss is not finite.
        TypeError: the output is not one tensor.

    Example:
        >>> quadratic = Problem(nn.Linear(2, 1, bias=False), nn.functional.mse_loss, (torch.eye(2), torch.zeros(2, 1)))
        >>> ggn(quadratic).to_dense().tolist()
        [[1.0, 0.0], [0.0, 1.0]]

    Source: Schraudolph 2002, doi:10.1162/08997660260028683, Section 3.
    """
    return _operator(problem, _ggn_graph, "ggn", memory)


@dataclass(frozen=True)
class Sharpness:
    """The largest Hessian eigenvalue: an eigenvalue lies within ``residual`` of ``value``; ``vector`` (p,) has length one."""

    value: float
    vector: Tensor
    residual: float
    converged: bool
    n_matvecs: int


def dense_sharpness(problem: Problem, *, tol: float = 1e-3, seed: int = 0, start: Tensor | None = None) -> Sharpness:
    """The last eigenpair of the dense Hessian: the oracle of `sharpness`."""
    values, vectors = torch.linalg.eigh(dense_hessian(problem).to_dense())
    return Sharpness(float(values[-1]), vectors[:, -1], 0.0, True, problem.P)


@instrument(
    oracle=dense_sharpness,
    source=Source("Cohen et al. 2021", "Section 2 (sharpness, the largest eigenvalue of the training Hessian)", "arXiv:2103.00065"),
)
def sharpness(problem: Problem, *, tol: float = 1e-3, seed: int = 0, start: Tensor | None = None) -> Sharpness:
    r"""The largest eigenvalue of the Hessian, :math:`\lambda_{\max}(\nabla^2 L)`, by Lanczos.

    Args:
        problem: The risk and the point.
        tol: Relative residual at which to stop. The eigenvalue's own error is of the order of its square.
        seed: Of the starting vector.
        start: The ``vector`` of a nearby measurement, e.g. some steps earlier in training; saves products.

    Raises:
        ValueError: the loss is not finite.

    Example:
        >>> x = torch.diag(torch.tensor([1.0, 3.0]))
        >>> quadratic = Problem(nn.Linear(2, 1, bias=False), nn.functional.mse_loss, (x, torch.zeros(2, 1)))
        >>> round(sharpness(quadratic).value, 4)
        9.0

    Source: Cohen et al. 2021, arXiv:2103.00065, Section 2.
    """
    found = eigs(hessian(problem), k=1, which="LA", tol=tol, seed=seed, start=start)
    return Sharpness(float(found.values[0]), found.vectors[:, 0], float(found.residuals[0]), found.converged, found.n_matvecs)
