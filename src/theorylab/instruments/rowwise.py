"""The Jacobian of every row's outputs in all parameters, as checked factors: from the layers' structure, else row by row."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from theorylab.core.batches import Batch
from theorylab.core.problem import Params, Problem, finite
from theorylab.instruments.factors import Dense, Factor, Factors, split
from theorylab.instruments.operations import Recorder
from theorylab.instruments.uses import matrix_shape

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
        """What the factors will hold, with a Jacobian for each parameter that no known operation uses."""
        known = {k for u in self.uses for k in u.names}
        rest = sum(p.numel() for k, p in self.leaves.items() if k not in known)
        return (sum(u.entries + self.c * u.shape.numel() for u in self.uses) + self.n * self.c * rest) * self.outputs.element_size()

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

    @cached_property
    def cotangent(self) -> Tensor:
        """Random numbers (n, c), always the same."""
        generator = torch.Generator().manual_seed(0)
        return torch.randn(self.n, self.c, generator=generator, dtype=torch.float64, device="cpu").to(self.outputs)

    @cached_property
    def exact(self) -> Params:
        """The gradient of the outputs along `cotangent` in every parameter, by an ordinary backward pass."""
        leaves = list(self.leaves.values())
        grads = torch.autograd.grad(self.outputs, leaves, self.cotangent, retain_graph=True, allow_unused=True)
        return {k: _dense(g, p) for (k, p), g in zip(self.leaves.items(), grads, strict=True)}

    def _disagree(self, factors: Factors) -> list[str]:
        """Parameters whose gradient along a random cotangent is not that of their factors.

        Both are linear in the cotangent, so that they agree for a random one only if they agree for all of them. What is found here:
        operations without a record, activations changed in place, rows that depend on each other, and rows that lie along another axis.
        """
        v = self.cotangent
        true = {k: g.reshape(matrix_shape(g)) for k, g in self.exact.items()}
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
        """Dense Jacobians (n, c, lead, width) of some parameters: the first that agrees with `exact`, of three ways from fast to plain."""
        alone = self.separable
        ways = [lambda: self._vmapped(names)] if alone else []
        ways += [lambda: self._looped(names, alone, True), lambda: self._looped(names, alone, False)]
        for way in ways[:-1]:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of operations that are batched by a loop
                    found = way()
            except (RuntimeError, NotImplementedError, ValueError):  # some operation has no rule for many rows or cotangents at once
                continue
            if self._agree(found):
                break
        else:
            found = ways[-1]()
        return {k: J.reshape(self.n, self.c, *matrix_shape(self.leaves[k])) for k, J in found.items()}

    def _agree(self, jacobians: Params) -> bool:
        eps = torch.finfo(self.outputs.dtype).eps
        errors = {k: torch.einsum("na,na...->...", self.cotangent, J) - self.exact[k] for k, J in jacobians.items()}
        return all(float(errors[k].norm()) <= eps**0.5 * float(J.norm()) for k, J in jacobians.items())

    def _looped(self, names: list[str], alone: bool, batched: bool) -> Params:
        """Jacobians (n, c, *shape) row after row, each from a graph of its own if ``alone``, of all outputs at once if ``batched``."""
        leaves = [self.leaves[k] for k in names]
        found = [torch.zeros(self.n, self.c, *p.shape, dtype=p.dtype, device=p.device) for p in leaves]
        eye = torch.eye(self.c, dtype=self.outputs.dtype, device=self.outputs.device)
        for i in range(self.n):
            outputs = self._of(slice(i, i + 1)).outputs(0, self.leaves).reshape(-1) if alone else self.outputs[i]
            if not outputs.requires_grad:
                continue
            if batched:
                grads = torch.autograd.grad(outputs, leaves, eye, retain_graph=True, allow_unused=True, is_grads_batched=True)
                for J, g in zip(found, grads, strict=True):
                    if g is not None:
                        J[i] = g
                continue
            for a, entry in enumerate(outputs.unbind()):
                grads = torch.autograd.grad(entry, leaves, retain_graph=True, allow_unused=True)
                for J, p, g in zip(found, leaves, grads, strict=True):
                    J[i, a] = _dense(g, p)
        return dict(zip(names, found, strict=True))

    def _vmapped(self, names: list[str]) -> Params:
        """Jacobians (n, c, *shape) of rows that do not depend on each other, all at once by `torch.func`."""
        batch = self.problem.batches[self.k]
        x = batch.content[0]
        if not isinstance(x, Tensor):
            raise NotImplementedError("inputs of several tensors are taken row by row.")

        def outputs(selected: Params, row: Tensor) -> Tensor:
            part = self.problem.on([Batch((row[None], batch.content[1]), 1)])
            return part.outputs(0, {**self.problem.params, **selected}).reshape(-1)

        found = torch.func.vmap(torch.func.jacrev(outputs), (None, 0))({k: self.problem.params[k] for k in names}, x)
        return {k: J.detach() for k, J in found.items()}

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
