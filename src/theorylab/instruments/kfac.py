"""Kronecker-factored curvature: K-FAC and EKFAC, operators with a closed-form inverse."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from theorylab.core.instrument import instrument
from theorylab.core.operator import Operator
from theorylab.core.problem import Params, Problem
from theorylab.core.source import Source
from theorylab.instruments.curvature import dense_ggn
from theorylab.instruments.loss_root import loss_root
from theorylab.instruments.matrix_layers import Layer, forward, layers, unsupported
from theorylab.instruments.refusals import couples_rows, hides_outputs
from theorylab.linalg.kronecker import Block, Factors, Kronecker

Approx = Literal["expand", "reduce"]
ENTRIES = 2**22
"""Of the rows' gradients in one layer, how many are held at once where weights are shared."""


Roots = Callable[[int, Tensor], Iterator[Tensor]]
"""(batch, its outputs) → vectors of a root of the loss's curvature."""


def _roots(problem: Problem, mc: int, seed: int) -> Roots:
    if mc < 0:
        raise ValueError(f"mc must be at least 0, got {mc}.")
    generator = torch.Generator().manual_seed(seed)
    return lambda k, outputs: loss_root(problem, k, outputs, mc=mc, generator=generator)


def _index(problem: Problem, layer: Layer) -> Tensor:
    """Where each entry of the layer's matrix lies in the flat vector, (out, in)."""
    return layer.matrix(problem.unflatten(torch.arange(problem.P, device=problem.device)))


def _blocks(problem: Problem, which: list[Layer], approx: Approx, roots: Roots) -> list[Factors]:
    index = [_index(problem, layer) for layer in which]

    def zeros(size: int) -> Tensor:
        return torch.zeros(size, size, dtype=torch.float64, device=problem.device)

    inner = {layer.name: zeros(where.shape[1]) for layer, where in zip(which, index, strict=True)}  # (in, in), of the inputs
    outer = {layer.name: zeros(where.shape[0]) for layer, where in zip(which, index, strict=True)}  # (out, out), of the slopes

    def add(sums: dict[str, Tensor], name: str, vectors: Tensor, scale: float = 1.0) -> None:
        flat = vectors.flatten(0, -2)
        sums[name] += scale * (flat.T @ flat).double()

    for k in range(len(problem.batches)):
        done = forward(problem, k, which)
        for name, a in done.inputs.items():
            # A mean over the positions of each row and then over rows, also where batches have different numbers of positions.
            add(inner, name, a.mean(1) if approx == "reduce" else a, 1 / (problem.n * (1 if approx == "reduce" else a.shape[1])))
        for vector in roots(k, done.outputs):
            for name, g in done.slopes(vector).items():
                add(outer, name, g.sum(1) if approx == "reduce" else g)
    return [Factors(outer[layer.name], inner[layer.name], where) for layer, where in zip(which, index, strict=True)]


def _second_moments(problem: Problem, which: list[Layer], blocks: list[Block], roots: Roots) -> list[Block]:
    """The blocks with the exact diagonal of the Gauss-Newton matrix in their eigenbasis as eigenvalues."""
    bases = {layer.name: (b.left.to(problem.dtype), b.right.to(problem.dtype)) for layer, b in zip(which, blocks, strict=True)}
    values = {layer.name: torch.zeros_like(b.values) for layer, b in zip(which, blocks, strict=True)}
    for k in range(len(problem.batches)):
        done = forward(problem, k, which)
        rotated = {name: a @ bases[name][1] for name, a in done.inputs.items()}
        for vector in roots(k, done.outputs):
            for name, g in done.slopes(vector).items():
                values[name] += _square_sum(g @ bases[name][0], rotated[name])
    return [Block(b.left, b.right, values[layer.name], b.index) for layer, b in zip(which, blocks, strict=True)]


def _square_sum(g: Tensor, a: Tensor) -> Tensor:
    """Σ over rows of (Σ over positions of g aᵀ)², entry by entry, (out, in); float64."""
    if a.shape[1] == 1:  # one position: the square of a product is the product of squares, and no row's gradient is formed
        return (g[:, 0].square().T @ a[:, 0].square()).double()
    total = torch.zeros(g.shape[-1], a.shape[-1], dtype=torch.float64, device=g.device)
    rows = max(1, ENTRIES // total.numel())
    for some_g, some_a in zip(g.split(rows), a.split(rows), strict=True):
        total += (some_g.mT @ some_a).square().sum(0).double()
    return total


def _operator(problem: Problem, blocks: Sequence[Block | Factors], name: str) -> Kronecker:
    return Kronecker(blocks, problem.P, dtype=problem.dtype, device=problem.device, name=name)


def _called_once(problem: Problem, k: int, layer: Layer) -> tuple[Params, Tensor, Tensor]:
    """Leaves, the layer's output and the model's outputs, of one pass."""
    seen = []

    def record(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        seen.append(output)
        return output.clone()  # an activation that works in place must not change what is recorded

    leaves, handle = problem.leaves(), layer.module.register_forward_hook(record)
    try:
        outputs = problem.outputs(k, leaves)
    finally:
        handle.remove()
    (output,) = seen
    return leaves, output, outputs


def _dense_factors(problem: Problem, approx: Approx) -> list[tuple[Tensor, Tensor, Tensor]]:
    """(outer factor, inner factor, index) of each layer from derivatives of single numbers, row by row and position by position."""
    factors = []
    for layer in layers(problem):
        index = _index(problem, layer)
        outer, inner = (torch.zeros(size, size, dtype=problem.dtype, device="cpu") for size in index.shape)
        for k, w in enumerate(problem.weights):
            leaves, node, outputs = _called_once(problem, k, layer)
            z, f = layer.outputs(node), outputs.reshape(len(outputs), -1)
            curve = torch.autograd.functional.hessian(lambda o, k=k: problem.loss_of(k, o), outputs.detach())
            assert isinstance(curve, Tensor)
            curve = curve.reshape(*f.shape, *f.shape)
            for i in range(len(f)):
                # A position's input is the derivative of what leaves it, in the weights of one channel.
                own = [torch.autograd.grad(z[i, r, 0], [leaves[p] for p in layer.parameters], retain_graph=True) for r in range(z.shape[1])]
                a = torch.stack([layer.matrix(dict(zip(layer.parameters, grads, strict=True)))[0] for grads in own])
                a = a.mean(0, keepdim=True) if approx == "reduce" else a
                inner += a.T @ a / (problem.n * len(a))
                values, vectors = torch.linalg.eigh(w * curve[i, :, i])
                for s in (vectors * values.clamp(min=0).sqrt()).unbind(1):
                    g = layer.outputs(torch.autograd.grad(f[i], node, s, retain_graph=True)[0])[i]
                    g = g.sum(0, keepdim=True) if approx == "reduce" else g
                    outer += g.T @ g
        factors.append((outer, inner, index))
    return factors


def _dense(problem: Problem, parts: list[tuple[Tensor, Tensor]], name: str) -> Operator:
    matrix = torch.zeros(problem.P, problem.P, dtype=problem.dtype, device="cpu")
    for block, index in parts:
        where = index.reshape(-1)
        matrix[where[:, None], where] = block
    return Operator.from_matrix(matrix, symmetric=True, name=name)


def dense_kfac(problem: Problem, *, approx: Approx = "expand") -> Operator:
    """The Kronecker products themselves: the oracle of `kfac`."""
    with problem.safe():
        return _dense(problem, [(torch.kron(B, A), index) for B, A, index in _dense_factors(problem, approx)], "dense kfac")


def dense_ekfac(problem: Problem) -> Operator:
    """The diagonal of the dense Gauss-Newton matrix in the Kronecker-factored eigenbasis: the oracle of `ekfac`."""
    G, parts = dense_ggn(problem).to_dense(), []
    with problem.safe():
        for B, A, index in _dense_factors(problem, "expand"):
            basis = torch.kron(torch.linalg.eigh(B)[1], torch.linalg.eigh(A)[1])
            where = index.reshape(-1)
            values = (basis * (G[where[:, None], where] @ basis)).sum(0)
            parts.append(((basis * values) @ basis.T, index))
    return _dense(problem, parts, "dense ekfac")


@instrument(
    oracle=dense_kfac,
    source=Source("Martens and Grosse 2015", "Section 3 (the approximation by Kronecker products)", "arXiv:1503.05671"),
    refuses=(hides_outputs, couples_rows, unsupported),
)
def kfac(problem: Problem, *, approx: Approx = "expand", mc: int = 0, seed: int = 0) -> Kronecker:
    r"""The Kronecker-factored approximation of the generalized Gauss-Newton matrix, block-diagonal by layers.

    A layer maps inputs a, with 1 appended for its bias, to Wa, and :math:`g_{ic}` is the gradient, in the layer's output, of the c-th
    vector of a root of the loss's curvature in row i. The block of the layer is

    .. math:: \Bigl(\sum_{i,c} g_{ic} g_{ic}^\top\Bigr) \otimes \Bigl(\frac1n \sum_i a_i a_i^\top\Bigr).

    The root is exact: for a softmax cross-entropy it holds the gradient of every class, weighted by its probability, none is sampled. The
    blocks are those of the Gauss-Newton matrix itself where g does not depend on the row: in a deep linear net under a squared loss.

    Where the layer's weights are shared over R positions, such as a convolution's patches or tokens, ``"expand"`` sums both factors over
    all positions and divides one by R, as if positions were rows, and ``"reduce"`` first averages the inputs and sums the gradients of a
    row over its positions. The first suits losses at every position, the second a model that averages over them.

    Args:
        problem: The risk and the point. All selected parameters are weights or biases of Linear or Conv layers, or of GPT-2's Conv1D.
        approx: How shared weights are treated; no matter without them.
        mc: Random mixtures of the root's vectors a row, each costing one backward pass, instead of all, which are as many as a row has
            outputs; the first factor is then right in expectation. For large vocabularies. 0 takes all.
        seed: Of the mixtures.

    Returns:
        An operator (p, p) with ``inverse(damping)``, ``logdet(damping)``, ``trace()``, ``eigenvalues()`` and ``map(function)``.

    Raises:
        Inapplicable: the loss hides the outputs or couples rows, parameters of other layers, tied ones, or ones that are used outside
            of their layer, a loss that is not convex in the outputs.
        ValueError: the loss is not finite, or an argument out of range.

    Example:
        >>> x = torch.diag(torch.tensor([1.0, 3.0]))
        >>> quadratic = Problem(torch.nn.Linear(2, 1, bias=False), torch.nn.functional.mse_loss, (x, torch.zeros(2, 1)))
        >>> K = kfac(quadratic)
        >>> K.to_dense().round(decimals=4).tolist(), round(K.inverse(damping=1.0).trace(), 4)
        ([[1.0, 0.0], [0.0, 9.0]], 0.6)

    Source: Martens and Grosse 2015, arXiv:1503.05671, Section 3; for shared weights Eschenhagen et al. 2023, arXiv:2311.00636, Section 3.
    """
    if approx not in ("expand", "reduce"):
        raise ValueError(f'approx must be "expand" or "reduce", got {approx!r}.')
    roots = _roots(problem, mc, seed)
    with problem.safe():
        return _operator(problem, _blocks(problem, layers(problem), approx, roots), "kfac")


@instrument(
    oracle=dense_ekfac,
    source=Source("George et al. 2018", "Section 3 (eigenvalue-corrected Kronecker factorization)", "arXiv:1806.03884"),
    refuses=(hides_outputs, couples_rows, unsupported),
)
def ekfac(problem: Problem, *, mc: int = 0, seed: int = 0) -> Kronecker:
    r"""K-FAC in its own eigenbasis with the eigenvalues that fit the Gauss-Newton matrix G best.

    With U the eigenvectors of `kfac`, this is U diag(UᵀGU) Uᵀ on each layer's block: of all operators with these eigenvectors the nearest
    to G in Frobenius norm, with G's own trace. The diagonal is the second moment, in the basis, of the gradients of the vectors of the
    loss's root; as in `kfac` these are exact, none is sampled.

    Args:
        problem: The risk and the point. All selected parameters are weights or biases of Linear or Conv layers, or of GPT-2's Conv1D.
        mc: As in `kfac`; the eigenvalues take mixtures of their own.
        seed: Of the mixtures.

    Returns:
        An operator (p, p) with ``inverse(damping)``, ``logdet(damping)``, ``trace()``, ``eigenvalues()`` and ``map(function)``.

    Raises:
        Inapplicable: as `kfac`.
        ValueError: the loss is not finite, or a negative ``mc``.

    Example:
        >>> x = torch.diag(torch.tensor([1.0, 3.0]))
        >>> quadratic = Problem(torch.nn.Linear(2, 1, bias=False), torch.nn.functional.mse_loss, (x, torch.zeros(2, 1)))
        >>> round(ekfac(quadratic).logdet(damping=1.0), 4)
        2.9957

    Source: George et al. 2018, arXiv:1806.03884, Section 3.
    """
    roots = _roots(problem, mc, seed)
    with problem.safe():
        which = layers(problem)
        eigen = [factors.eigen for factors in _blocks(problem, which, "expand", roots)]
        return _operator(problem, _second_moments(problem, which, eigen, roots), "ekfac")
