"""Linear and convolutional layers as matrices on positions: what enters them, what leaves them, and where their weights lie."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from theorylab.core.instrument import Inapplicable
from theorylab.core.problem import Problem
from theorylab.instruments.factors import Outer
from theorylab.instruments.operations import Recorder
from theorylab.instruments.uses import Use

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
SUPPORTED = (nn.Linear, *CONVOLUTIONS)
FEW = 5
"""Parameters that a refusal names."""
ROWS_FIRST = "The first axis of every layer's input must be that of the rows (batch_first=True)."


@dataclass(frozen=True)
class Layer:
    """A module that multiplies every position of its input, with 1 appended where the bias counts, by one matrix (out, in).

    ``weight`` and ``bias`` are the names of its selected parameters, or None. GPT-2's layers store the weight as (in, out).
    """

    name: str
    module: nn.Module
    weight: str | None
    bias: str | None

    @property
    def stored_transposed(self) -> bool:
        """Whether the weight is (in, out)."""
        return is_transposed(self.module)

    @property
    def parameters(self) -> list[str]:
        """The names of its selected parameters."""
        return [k for k in (self.weight, self.bias) if k is not None]

    def matrix(self, tensors: dict[str, Tensor]) -> Tensor:
        """Tensors of the parameters' shapes as one matrix (out, in): the weight, and the bias as the last column."""
        columns = [tensors[k].flatten(1) if tensors[k].ndim > 1 else tensors[k][:, None] for k in self.parameters]
        if self.stored_transposed:
            columns[0] = columns[0].T
        return torch.cat(columns, dim=1)

    def outputs(self, z: Tensor) -> Tensor:
        """An output of the layer as (leading, position, out)."""
        return z.flatten(2).transpose(1, 2) if isinstance(self.module, CONVOLUTIONS) else z.reshape(len(z), -1, z.shape[-1])


def is_transposed(module: nn.Module) -> bool:
    """Whether it is the dense layer that `transformers` calls Conv1D, known by its name, as the package need not be there."""
    kind = type(module)
    return kind.__name__ == "Conv1D" and kind.__module__.partition(".")[0] == "transformers"


def _supported(module: nn.Module) -> bool:
    return type(module) in SUPPORTED or is_transposed(module)


def layers(problem: Problem) -> list[Layer]:
    """The layers that own the selected parameters, in the order of the model; call it where `unsupported` has no objection."""
    found = []
    for name, module in problem.model.named_modules():
        own = {k: f"{name}.{k}" if name else k for k, _ in module.named_parameters(recurse=False)}
        chosen = {k: full for k, full in own.items() if full in problem.params}
        if chosen and _supported(module):
            found.append(Layer(name, module, chosen.get("weight"), chosen.get("bias")))
    return found


def unsupported(problem: Problem) -> str | None:
    """Parameters that are not the weight or bias of one Linear or ungrouped Conv layer alone."""
    owners: dict[int, list[tuple[str, nn.Module]]] = {}
    for name, module in problem.model.named_modules():
        for k, p in module.named_parameters(recurse=False):
            owners.setdefault(id(p), []).append((f"{name}.{k}" if name else k, module))
    reasons, fine = [], []
    for names_and_modules in owners.values():
        names = [name for name, _ in names_and_modules]
        if not any(name in problem.params for name in names):
            continue
        (_, module), *others = names_and_modules
        if others:
            reasons.append(f"{' = '.join(names)} (tied)")
        elif names[0].rpartition(".")[2] not in ("weight", "bias"):  # the weight is computed from it, by weight_norm or pruning
            reasons.append(f"{names[0]} (from which {type(module).__name__} computes its weight)")
        elif not _supported(module):
            reasons.append(f"{names[0]} (of {type(module).__name__})")
        elif is_transposed(module) and names[0].removesuffix("bias").removesuffix("weight") + "weight" not in problem.params:
            reasons.append(f"{names[0]} (of a Conv1D whose weight is not selected)")
        elif getattr(module, "groups", 1) > 1:
            reasons.append(f"{names[0]} (of a convolution in {module.groups} groups)")
        else:
            fine.append(names[0])
    if not reasons:
        return None
    more = f" and {len(reasons) - FEW} more" if len(reasons) > FEW else ""
    what = f"it supports weights and biases of Linear and Conv layers, used once, and not {', '.join(reasons[:FEW])}{more}."
    return f"{what} Leave these out: params={_globs(problem, fine)}." if fine else f"{what} It has no other selected parameters."


def _globs(problem: Problem, names: list[str]) -> list[str]:
    """What selects these parameters of the model and no others: globs where the same layer is there several times, else names."""
    others = {k for k, _ in problem.model.named_parameters(remove_duplicate=False)} - set(names)
    found = []
    for name in names:
        glob = "*." + ".".join(name.split(".")[-2:])
        repeated = sum(fnmatchcase(k, glob) for k in names) > 1
        found.append(glob if repeated and not any(fnmatchcase(k, glob) for k in others) else name)
    return list(dict.fromkeys(found))


@dataclass(frozen=True)
class Pass:
    """One batch through the model: what entered each layer, and the graph that leads from what left it to the model's outputs.

    ``inputs`` holds a (row, position, in) for each layer: several uses of a layer, and axes between rows and features, are positions.
    """

    layers: list[Layer]
    leaves: dict[str, Tensor]
    outputs: Tensor
    inputs: dict[str, Tensor]
    uses: dict[str, list[Use]]

    def slopes(self, cotangent: Tensor) -> dict[str, Tensor]:
        """Pull back a ``cotangent`` of the model's outputs to g (row, position, out) of each layer; Σ g aᵀ is that of its matrix."""
        edges = [use.edge for uses in self.uses.values() for use in uses]
        matter = edges and self.outputs.requires_grad
        grads = torch.autograd.grad(self.outputs, edges, cotangent, retain_graph=True, allow_unused=True) if matter else [None] * len(edges)
        following = iter(grads)
        return {
            name: torch.cat([_left(use, self.inputs[name], next(following)) for use in uses], dim=1) for name, uses in self.uses.items()
        }


def _left(use: Use, inputs: Tensor, g: Tensor | None) -> Tensor:
    """Gradients of a use's output as (row, position, out)."""
    if g is None:
        g = inputs.new_zeros(()).expand(use.shape)
    factor = use.build(inputs[:, :, None], g.reshape(len(inputs), 1, *use.row_shape))
    assert isinstance(factor, Outer)
    return factor.left[:, 0, :, 0]


def _right(use: Use, layer: Layer) -> Tensor | None:
    """What the layer's matrix multiplies in this use, (row, position, in); None where it is used otherwise."""
    zeros = use.x.new_zeros((), dtype=torch.get_default_dtype()).expand(len(use.x), 1, *use.row_shape)
    factor = use.factor(zeros)
    if not isinstance(factor, Outer) or factor.transposed != layer.stored_transposed or factor.groups > 1:
        return None
    right = factor.right[:, :, 0]
    return F.pad(right, (0, 1), value=1.0) if layer.stored_transposed and layer.bias else right


def forward(problem: Problem, k: int, which: list[Layer]) -> Pass:
    """Evaluate batch ``k`` and record the layers; call it within `Problem.safe`.

    Raises:
        TypeError: the model's output is not one tensor.
        Inapplicable: rows do not come first in a layer, or a parameter is used otherwise than by the layer that owns it.
    """
    leaves = problem.leaves()
    # The record of a weight that is stored transposed is one of its own, and the bias' is not needed.
    owners = {tuple(layer.parameters[:1] if layer.stored_transposed else layer.parameters): layer for layer in which}
    with Recorder({name: leaves[name] for names in owners for name in names}, problem.batches[k].rows) as recorder:
        outputs = problem.outputs(k, leaves)
    if not isinstance(outputs, Tensor):
        raise TypeError(f"layers can be followed where the model's output is one tensor, got {type(outputs).__name__}.")
    uses: dict[str, list[Use]] = {}
    inputs: dict[str, list[Tensor]] = {}
    for use in recorder.uses:
        layer = owners.get(use.names)
        right = None if layer is None else _right(use, layer)
        if layer is not None and right is not None:
            uses.setdefault(layer.name, []).append(use)
            inputs.setdefault(layer.name, []).append(right)
    used = [layer for layer in which if layer.name in uses]
    done = Pass(used, leaves, outputs, {name: torch.cat(parts, dim=1) for name, parts in inputs.items()}, uses)
    _check(done, which)
    return done


def _check(done: Pass, which: list[Layer]) -> None:
    """The slopes of the first row lie in the first row of every layer, and with the inputs they make up the parameters' gradient."""
    cotangent = torch.zeros_like(done.outputs)
    generator = torch.Generator().manual_seed(0)
    cotangent[0] = torch.randn(cotangent[0].shape, generator=generator, dtype=torch.float64, device="cpu").to(cotangent)
    if not done.outputs.requires_grad:
        return  # no layer matters
    slopes = done.slopes(cotangent)
    slack = torch.finfo(cotangent.dtype).eps ** 0.5
    for layer in which:
        leaves = [done.leaves[k] for k in layer.parameters]
        pulled = torch.autograd.grad(done.outputs, leaves, cotangent, retain_graph=True, allow_unused=True)
        given = {k: torch.zeros_like(p) if g is None else g for k, p, g in zip(layer.parameters, leaves, pulled, strict=True)}
        truth = layer.matrix(given)
        made = torch.zeros_like(truth)
        if layer in done.layers:
            g = slopes[layer.name]
            if float(g[1:].norm()) > slack * float(g.norm()):
                raise Inapplicable(f"the output of the first row depends on other rows of layer {layer.name or 'at the top'}. {ROWS_FIRST}")
            made = g[0].T @ done.inputs[layer.name][0]
        if float((made - truth).norm()) > slack * float(truth.norm()):
            raise Inapplicable(
                f"{' and '.join(layer.parameters)} take effect outside of the layer {layer.name!r}, or where rows do not come first. "
                f"{ROWS_FIRST} Or leave them out with params=."
            )
