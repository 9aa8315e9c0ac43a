"""The Jacobian of every row's outputs in all parameters, as checked factors: from the layers' structure, else row by row."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from theorylab.core.problem import Params, Problem, finite
from theorylab.instruments.factors import Dense, Factor, Factors, split
from theorylab.instruments.uses import Recorder, matrix_shape

COLUMNS = 32  # outputs differentiated at once


class Block:
    """One forward pass of a batch, and what the Jacobian of its rows' outputs is made of; use it within ``problem.safe()``.

    Args:
        problem: The model at its point.
        k: The batch.
        check_loss: Refuse a loss that is not finite.

    Raises:
        TypeError: the model's output is not one tensor with a row for each of the data.
        ValueError: the outputs, or the loss, are not finite.
    """

    def __init__(self, problem: Problem, k: int, *, check_loss: bool = True) -> None:
        self.problem, self.k, self.n = problem, k, problem.batches[k].rows
        self.leaves = problem.leaves()
        with Recorder(self.leaves, self.n) as recorder:
            outputs = problem.outputs(k, self.leaves)
        if not isinstance(outputs, Tensor) or outputs.ndim == 0 or outputs.shape[0] != self.n:
            came = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
            raise TypeError(f"the model must return one tensor with a row for each of the {self.n} of the data, got {came}.")
        if check_loss:
            finite(problem.loss_of(k, outputs.detach()))
        if not bool(torch.isfinite(outputs.detach()).all()):
            raise ValueError("the model's outputs must be finite to be measured: check its parameters and the data.")
        self.outputs = outputs.reshape(self.n, -1)  # (n, c)
        self.c = self.outputs.shape[1]
        self.uses = recorder.uses
        self.batches_outputs = True

    @property
    def nbytes(self) -> int:
        """What the factors will hold, where all parameters are used by operations that are known."""
        return sum(u.entries + self.c * u.shape.numel() for u in self.uses) * self.outputs.element_size()

    @cached_property
    def factors(self) -> Factors:
        """Parameters → factors of their Jacobian; parameters that do not matter are left out."""
        if not self.outputs.requires_grad:
            return {}
        found: dict[tuple[str, ...], list[Factor]] = {}
        slopes = self._slopes()
        for use, g in zip(self.uses, slopes, strict=True):
            if g is not None:
                found.setdefault(use.names, []).append(use.factor(g))
        factors = _ununited(found)
        wrong = self._disagree(factors)
        if wrong:
            factors = {names: parts for names, parts in split(factors).items() if names[0] not in wrong}
            factors.update({(k,): [Dense(J)] for k, J in self._row_by_row(wrong).items()})
        return factors

    def _slopes(self) -> list[Tensor | None]:
        """Gradients of every output in the outputs of all recorded operations, (n, c, ...); None where there is no dependence.

        A backward pass an output, over all rows at once: the gradients of the weights themselves are never computed.
        """
        edges = [u.edge for u in self.uses]
        if not edges:
            return []
        found: list[list[Tensor | None]] = [[] for _ in edges]
        for outputs in torch.eye(self.c, dtype=self.outputs.dtype, device=self.outputs.device).split(COLUMNS):
            for g, parts in zip(self._pulled_back(edges, outputs), found, strict=True):
                parts.append(g)
        return [self._rows_first([g for g in parts if g is not None]) for parts in found]

    def _pulled_back(self, edges: Sequence[GradientEdge], v: Tensor) -> Sequence[Tensor | None]:
        """Gradients of v · outputs, for each of several v (k, c), in the outputs of operations: (k, ...)."""
        cotangents = v[:, None].expand(len(v), self.n, self.c)
        if self.batches_outputs:
            try:
                return torch.autograd.grad(self.outputs, edges, cotangents, retain_graph=True, allow_unused=True, is_grads_batched=True)
            except RuntimeError:  # some operation has no rule for many cotangents at once
                self.batches_outputs = False
        each = [torch.autograd.grad(self.outputs, edges, u, retain_graph=True, allow_unused=True) for u in cotangents.unbind()]
        return [None if g[0] is None else torch.stack(g) for g in zip(*each, strict=True)]

    def _rows_first(self, parts: list[Tensor]) -> Tensor | None:
        """(c, n, ...) or (c, n · positions, ...), in parts → (n, c, ...)."""
        if not parts:
            return None
        g = parts[0] if len(parts) == 1 else torch.cat(parts)
        return (g if g.shape[1] == self.n else g.unflatten(1, (self.n, -1))).transpose(0, 1).contiguous()

    def _disagree(self, factors: Factors) -> list[str]:
        """Parameters whose gradient along a random cotangent is not that of their factors.

        Both are linear in the cotangent, so that they agree for a random one only if they agree for all of them. What is found here:
        operations without a record, activations changed in place, rows that depend on each other, and rows that lie along another axis.
        """
        generator = torch.Generator().manual_seed(0)
        v = torch.randn(self.n, self.c, generator=generator, dtype=torch.float64).to(self.outputs)
        exact = torch.autograd.grad(self.outputs, list(self.leaves.values()), v, retain_graph=True, allow_unused=True)
        true = {k: _dense(g, p).reshape(matrix_shape(p)) for (k, p), g in zip(self.leaves.items(), exact, strict=True)}
        error = dict(true)
        for names, parts in factors.items():
            pulled = parts[0].pull(v) if len(parts) == 1 else torch.stack([part.pull(v) for part in parts]).sum(0)
            for k, ours in zip(names, pulled.split([true[k].shape[1] for k in names], dim=1), strict=True):
                error[k] = true[k] - ours
        eps = torch.finfo(v.dtype).eps
        # Rounding of the whole gradient: a key's bias before a softmax has a gradient of zero, of which rounding is all that is left.
        rounding = 100 * eps * float(torch.stack([g.norm() for g in true.values()]).norm())
        return [k for k, g in true.items() if not float(error[k].norm()) <= max(rounding, eps**0.5 * float(g.norm()))]

    def _row_by_row(self, names: list[str]) -> Params:
        """Dense Jacobians (n, c, lead, width) of some parameters, each row from its own graph where rows do not depend on each other."""
        leaves = [self.leaves[k] for k in names]
        found = [torch.zeros(self.n, self.c, *matrix_shape(p), dtype=p.dtype, device=p.device) for p in leaves]
        alone = self.separable
        for i in range(self.n):
            outputs = self._of(slice(i, i + 1)).outputs(0, self.leaves).reshape(-1) if alone else self.outputs[i]
            for a, entry in enumerate(outputs.unbind()):
                grads = torch.autograd.grad(entry, leaves, retain_graph=True, allow_unused=True) if entry.requires_grad else []
                for J, p, g in zip(found, leaves, grads, strict=False):
                    J[i, a] = _dense(g, p).reshape(J.shape[2:])
        return dict(zip(names, found, strict=True))

    def _of(self, rows: slice) -> Problem:
        return self.problem.on([self.problem.batches[self.k].part(rows)])

    @cached_property
    def separable(self) -> bool:
        """Whether rows taken out of the batch have the outputs that they have in it: not so with dropout, or statistics over rows."""
        if self.n == 1:
            return True
        half = self.n // 2
        with torch.no_grad():
            parts = [self._of(rows).outputs(0) for rows in (slice(half), slice(half, self.n))]
            apart = torch.cat([p.reshape(len(p), -1) for p in parts])
        error = float((apart - self.outputs.detach()).norm())
        return error <= torch.finfo(apart.dtype).eps ** 0.5 * float(self.outputs.detach().norm())


def _ununited(found: dict[tuple[str, ...], list[Factor]]) -> Factors:
    """Weights and biases share factors only where neither is used without the other."""
    every = [k for names in found for k in names]
    return found if len(every) == len(set(every)) else split(found)


def _dense(g: Tensor | None, p: Tensor) -> Tensor:
    return torch.zeros_like(p) if g is None else g.to_dense() if g.is_sparse else g
