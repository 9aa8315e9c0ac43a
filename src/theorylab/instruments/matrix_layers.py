"""Linear and convolutional layers as matrices on positions: what enters them, what leaves them, and where their weights lie."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from theorylab.core.instrument import Inapplicable
from theorylab.core.problem import Problem
from theorylab.instruments.layers import patches

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
SUPPORTED = (nn.Linear, *CONVOLUTIONS)
ROWS_FIRST = "The first axis of every layer's input must be that of the rows (batch_first=True)."


@dataclass(frozen=True)
class Layer:
    """A module that multiplies every position of its input, with 1 appended where the bias counts, by one matrix (out, in).

    ``weight`` and ``bias`` are the names of its selected parameters, or None.
    """

    name: str
    module: nn.Linear | nn.modules.conv._ConvNd
    weight: str | None
    bias: str | None

    @property
    def parameters(self) -> list[str]:
        """The names of its selected parameters."""
        return [k for k in (self.weight, self.bias) if k is not None]

    def matrix(self, tensors: dict[str, Tensor]) -> Tensor:
        """Tensors of the parameters' shapes as one matrix (out, in): the weight, and the bias as the last column."""
        return torch.cat([tensors[k].flatten(1) if tensors[k].ndim > 1 else tensors[k][:, None] for k in self.parameters], dim=1)

    def inputs(self, x: Tensor) -> Tensor:
        """What the matrix multiplies, (leading, position, in): features or patches, and 1 where the bias is selected."""
        a = _channels_last(self.module, x) if isinstance(self.module, nn.Linear) else patches(self.module, x)[:, 0]
        ones = a.new_ones(*a.shape[:2], 1)
        return torch.cat([part for part, name in ((a, self.weight), (ones, self.bias)) if name is not None], dim=-1)

    def outputs(self, z: Tensor) -> Tensor:
        """An output of the layer or its gradient as (leading, position, out)."""
        return _channels_last(self.module, z)


def _channels_last(module: nn.Module, x: Tensor) -> Tensor:
    if isinstance(module, nn.Linear):
        return x.reshape(len(x), -1, x.shape[-1]) if x.ndim > 1 else x[None, None]
    return x.flatten(2).transpose(1, 2)


def layers(problem: Problem) -> list[Layer]:
    """The layers that own the selected parameters, in the order of the model; call it where `unsupported` has no objection."""
    found = []
    for name, module in problem.model.named_modules():
        own = {k: f"{name}.{k}" if name else k for k, _ in module.named_parameters(recurse=False)}
        chosen = {k: full for k, full in own.items() if full in problem.params}
        if chosen and type(module) in SUPPORTED:
            found.append(Layer(name, module, chosen.get("weight"), chosen.get("bias")))  # pyright: ignore[reportArgumentType]
    return found


def unsupported(problem: Problem) -> str | None:
    """Parameters that are not the weight or bias of one Linear or ungrouped Conv layer alone."""
    owners: dict[int, list[tuple[str, nn.Module]]] = {}
    for name, module in problem.model.named_modules():
        for k, p in module.named_parameters(recurse=False):
            owners.setdefault(id(p), []).append((f"{name}.{k}" if name else k, module))
    reasons = []
    for names_and_modules in owners.values():
        names = [name for name, _ in names_and_modules]
        if not any(name in problem.params for name in names):
            continue
        (_, module), *others = names_and_modules
        if others:
            reasons.append(f"{' = '.join(names)} (tied)")
        elif type(module) not in SUPPORTED:
            reasons.append(f"{names[0]} (of {type(module).__name__})")
        elif getattr(module, "groups", 1) > 1:
            reasons.append(f"{names[0]} (of a convolution in {module.groups} groups)")
    if not reasons:
        return None
    return (
        f"it supports weights and biases of Linear and Conv layers, used once, and not {', '.join(reasons)}. Leave these out with params=."
    )


@dataclass(frozen=True)
class Pass:
    """One batch through the model: what entered each layer, and the graph that leads from what left it to the model's outputs.

    ``inputs`` holds a (row, position, in) for each layer: several calls of a layer, and axes between rows and features, are positions.
    """

    layers: list[Layer]
    leaves: dict[str, Tensor]
    outputs: Tensor
    inputs: dict[str, Tensor]
    nodes: dict[str, list[Tensor]]

    def slopes(self, cotangent: Tensor) -> dict[str, Tensor]:
        """Pull back a ``cotangent`` of the model's outputs to g (row, position, out) of each layer; Σ g aᵀ is that of its matrix."""
        flat = [node for nodes in self.nodes.values() for node in nodes]
        grads = iter(_pulled(self.outputs, flat, cotangent))
        return {
            layer.name: _by_row(layer, [layer.outputs(next(grads)) for _ in self.nodes[layer.name]], len(cotangent))
            for layer in self.layers
        }


def forward(problem: Problem, k: int, which: list[Layer]) -> Pass:
    """Evaluate batch ``k`` and record the layers; call it within `Problem.safe`.

    Raises:
        TypeError: the model's output is not one tensor.
        Inapplicable: rows do not come first in a layer, or a parameter is used outside the layer that owns it.
    """
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {layer.name: [] for layer in which}

    def hook(name: str) -> Callable[..., Tensor]:
        def record(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], output: Tensor) -> Tensor:
            seen[name].append(((args[0] if args else kwargs["input"]).detach(), output))
            return output.clone()  # an activation that works in place must not change what is recorded

        return record

    leaves = problem.leaves()
    handles = [layer.module.register_forward_hook(hook(layer.name), with_kwargs=True) for layer in which]
    try:
        outputs = problem.outputs(k, leaves)
    finally:
        for handle in handles:
            handle.remove()
    if not isinstance(outputs, Tensor):
        raise TypeError(f"layers can be followed where the model's output is one tensor, got {type(outputs).__name__}.")
    used = [layer for layer in which if seen[layer.name]]
    inputs = {layer.name: _by_row(layer, [layer.inputs(x) for x, _ in seen[layer.name]], len(outputs)) for layer in used}
    done = Pass(used, leaves, outputs, inputs, {layer.name: [z for _, z in seen[layer.name]] for layer in used})
    _check(done, which)
    return done


def _by_row(layer: Layer, parts: list[Tensor], rows: int) -> Tensor:
    if any(len(part) % rows for part in parts):
        raise Inapplicable(
            f"layer {layer.name or 'at the top'} sees {len(parts[0])} leading rows, where the batch has {rows}. {ROWS_FIRST}"
        )
    return torch.cat([part.reshape(rows, -1, part.shape[-1]) for part in parts], dim=1)


def _pulled(outputs: Tensor, inputs: list[Tensor], cotangent: Tensor) -> list[Tensor]:
    if not outputs.requires_grad:
        return [torch.zeros_like(x) for x in inputs]
    grads = torch.autograd.grad(outputs, inputs, cotangent, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, grads, strict=True)]


def _check(done: Pass, which: list[Layer]) -> None:
    """The slopes of the first row lie in the first row of every layer, and with the inputs they make up the parameters' gradient."""
    cotangent = torch.zeros_like(done.outputs)
    generator = torch.Generator().manual_seed(0)
    cotangent[0] = torch.randn(cotangent[0].shape, generator=generator, dtype=torch.float64).to(cotangent)
    slopes = done.slopes(cotangent)
    slack = torch.finfo(cotangent.dtype).eps ** 0.5
    for layer in which:
        pulled = _pulled(done.outputs, [done.leaves[k] for k in layer.parameters], cotangent)
        truth = layer.matrix(dict(zip(layer.parameters, pulled, strict=True)))
        if layer not in done.layers:
            made = torch.zeros_like(truth)
        else:
            g = slopes[layer.name]
            if float(g[1:].norm()) > slack * float(g.norm()):
                raise Inapplicable(f"the output of the first row depends on other rows of layer {layer.name or 'at the top'}. {ROWS_FIRST}")
            made = g[0].T @ done.inputs[layer.name][0]
        if float((made - truth).norm()) > slack * float(truth.norm()):
            raise Inapplicable(
                f"{' and '.join(layer.parameters)} take effect outside of the layer {layer.name!r}. Leave them out with params=."
            )
