"""The linear maps inside a network: dense layers, convolutions as they act on their real inputs, BatchNorm in evaluation mode."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from theorylab.core.operator import Operator
from theorylab.core.problem import Problem
from theorylab.linalg.lanczos import eigs

CHAIN = (nn.Linear, _ConvNd, _BatchNorm)
SCALE_FREE = (nn.LayerNorm, nn.GroupNorm, nn.modules.instancenorm._InstanceNorm, nn.RMSNorm)
"""Layers whose output does not change when the layer before them is multiplied by a number."""
DENSE_UP_TO = 1024
"""Smaller side of a dense layer up to which its singular values are computed exactly."""


@dataclass(frozen=True)
class LinearLayer:
    """One linear map of a network, without its bias, in float64.

    ``weight`` is that of the module, or BatchNorm's scale a channel; ``shape`` is that of one input row.
    """

    name: str
    module: nn.Module
    weight: Tensor
    shape: tuple[int, ...]

    def __call__(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """The map of inputs (n, *shape), with another weight where given."""
        w = self.weight if weight is None else weight
        if isinstance(self.module, _ConvNd):
            return self.module._conv_forward(x, w, None)
        if isinstance(self.module, _BatchNorm):
            return x * w.reshape(-1, *(1 for _ in self.shape[1:]))
        return nn.functional.linear(x, w)

    def row_norms(self, weight: Tensor) -> Tensor:
        """Euclidean norms of the rows of the full matrix with ``weight``: one an output unit, whatever stride and padding."""
        shape = self.shape[-1:] if isinstance(self.module, nn.Linear) else self.shape
        ones = torch.ones(1, *shape, dtype=weight.dtype, device=weight.device)
        return self(ones, weight.square()).reshape(-1).sqrt()  # a row's squared entries, summed over the inputs that it sees

    def spectral_norm(self, tol: float) -> tuple[float, bool]:
        """Largest singular value, and whether the iteration reached ``tol``."""
        if isinstance(self.module, _BatchNorm):
            return float(self.weight.abs().max()), True
        if isinstance(self.module, nn.Linear) and min(self.weight.shape) <= DENSE_UP_TO:
            return float(torch.linalg.matrix_norm(self.weight, 2)), True
        shape = self.shape[-1:] if isinstance(self.module, nn.Linear) else self.shape
        size = math.prod(shape)

        def gram(v: Tensor) -> Tensor:
            with torch.enable_grad():
                x = v.detach().reshape(1, *shape).requires_grad_()
                y = self(x)
                return torch.autograd.grad(y, x, y.detach())[0].reshape(-1)

        A = Operator((size, size), gram, symmetric=True, dtype=self.weight.dtype, device=self.weight.device, name=f"gram of {self.name}")
        found = eigs(A, k=1, which="LA", tol=tol)
        return math.sqrt(max(0.0, float(found.values[0]))), found.converged


def is_no_chain(problem: Problem) -> str | None:
    """Norms of layers describe networks whose selected matrices are all dense layers or convolutions, and whose scale matters."""
    if problem.train and any(isinstance(m, _BatchNorm) for m in problem.model.modules()):
        return "BatchNorm in training mode makes the weights before it scale-free, so that their norms say nothing. Use train=False."
    for name, module in problem.model.named_modules():
        if isinstance(module, SCALE_FREE):
            return (
                f"{name} is a {type(module).__name__}: the layer before it can be multiplied by any number without changing the network, "
                "so that its norm says nothing. Measure nets without it, or fold it."
            )
        if isinstance(module, _ConvNd) and module.padding_mode != "zeros":
            return f"{name} pads by {module.padding_mode}, so that its matrix is not the unrolled kernel. Pad with zeros."
        if isinstance(module, nn.Linear | _ConvNd) and "weight" not in dict(module.named_parameters(recurse=False)):
            return f"the weight of {name} is computed (a parametrization). Remove it: torch.nn.utils.parametrize.remove_parametrizations."
    owners = {id(p): m for m in problem.model.modules() for p in m.parameters(recurse=False)}
    named = dict(problem.model.named_parameters())
    known = 0
    for k in problem.params:
        owner = owners[id(named[k])]
        chain = isinstance(owner, CHAIN) and not isinstance(owner, _ConvTransposeNd)
        if named[k].ndim > 1 and not chain:
            return f"{k} belongs to a {type(owner).__name__}; norms are of dense layers and convolutions. Leave it out of params=."
        known += chain and named[k].ndim > 1
    return None if known else "none of the selected parameters is the weight of a dense layer or a convolution. Select one in params=."


def linear_layers(problem: Problem) -> list[LinearLayer]:
    """The layers that a forward pass calls and whose weight is selected, in the order of the model's modules; BatchNorm always."""
    tensors = problem._tensors(None)
    names = {id(t): k for k, t in [*problem.model.named_parameters(), *problem.model.named_buffers()]}

    def value(t: Tensor | None, default: float) -> Tensor:
        return torch.tensor(default, dtype=torch.float64, device=problem.device) if t is None else tensors[names[id(t)]].detach().double()

    with _input_shapes(problem) as shapes, problem.safe(), torch.no_grad():
        problem.batch_loss(0)
    layers = []
    for name, module in problem.model.named_modules():
        if module not in shapes:
            continue
        if isinstance(module, _BatchNorm) and module.running_var is not None:
            scale = value(module.weight, 1.0) / (value(module.running_var, 1.0) + module.eps).sqrt()
            layers.append(LinearLayer(name, module, scale, shapes[module]))
        elif isinstance(module, nn.Linear | _ConvNd) and names[id(module.weight)] in problem.params:
            layers.append(LinearLayer(name, module, value(module.weight, 1.0), shapes[module]))
    return layers


@contextmanager
def _input_shapes(problem: Problem) -> Iterator[dict[nn.Module, tuple[int, ...]]]:
    """Fills a dictionary with the shape of one input row of every linear layer that is called within; the hooks go when it ends."""
    shapes: dict[nn.Module, tuple[int, ...]] = {}

    def note(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        shapes[module] = tuple(args[0].shape[1:])

    hooks = [m.register_forward_pre_hook(note) for m in problem.model.modules() if isinstance(m, CHAIN)]
    try:
        yield shapes
    finally:
        for hook in hooks:
            hook.remove()
