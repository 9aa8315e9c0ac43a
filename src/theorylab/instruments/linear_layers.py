"""The linear maps inside a network: dense layers, convolutions as they act on their real inputs, BatchNorm in evaluation mode."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch._C._functorch import get_unwrapped, is_functorch_wrapped_tensor
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrize

from theorylab.core.problem import Problem
from theorylab.instruments.rows_alone import close

CHAIN = (nn.Linear, _ConvNd, _BatchNorm)
SCALE_FREE = (nn.LayerNorm, nn.GroupNorm, nn.modules.instancenorm._InstanceNorm, nn.RMSNorm)
"""Layers whose output does not change when the layer before them is multiplied by a number."""
NAMED_SO = ("LayerNorm", "RMSNorm")
"""How the names of such layers end that other packages bring."""


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
        ones = torch.ones(1, *self.input_shape, dtype=weight.dtype, device=weight.device)
        return self(ones, weight.square()).reshape(-1).sqrt()  # a row's squared entries, summed over the inputs that it sees

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of what the map is applied to: a dense layer sees the last axis alone."""
        return self.shape[-1:] if isinstance(self.module, nn.Linear) else self.shape


def is_no_chain(problem: Problem) -> str | None:
    """Norms of layers describe networks whose selected matrices are all dense layers or convolutions, and whose scale matters."""
    if problem.train and any(isinstance(m, _BatchNorm) for m in problem.model.modules()):
        return "BatchNorm in training mode makes the weights before it scale-free, so that their norms say nothing. Use train=False."
    for name, module in problem.model.named_modules():
        if isinstance(module, SCALE_FREE) or type(module).__name__.endswith(NAMED_SO):
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
    if not known:
        return "none of the selected parameters is the weight of a dense layer or a convolution. Select one in params=."
    calls = _forward(problem)
    for name, module in problem.model.named_modules():
        if module in calls and calls[module].times > 1:
            return (
                f"{name} is called {calls[module].times} times in a forward pass, and a product over layers has its norm once. "
                "Give each call a layer of its own, which may share the weight."
            )
    return _other_weight(problem, with_selected_weight(problem), calls)


def with_another_weight(problem: Problem) -> set[nn.Module]:
    """The layers of which `uses_another_weight` speaks."""
    return {module for module, call in _forward(problem).items() if not call.plain}


def uses_another_weight(problem: Problem, modules: Collection[nn.Module]) -> str | None:
    """A class derived from a layer may compute with another weight, standardized or masked; its own then says nothing of the map."""
    return _other_weight(problem, modules, _forward(problem))


def _other_weight(problem: Problem, modules: Collection[nn.Module], calls: dict[nn.Module, _Call]) -> str | None:
    named = problem.model.named_modules()
    return next((another_weight(name, m) for name, m in named if m in modules and m in calls and not calls[m].plain), None)


def another_weight(name: str, module: nn.Module) -> str:
    """The reason, of one layer."""
    return (
        f"the outputs of {name or 'the model'}, a {type(module).__name__}, are not those of its weight and bias: its class computes with "
        "another weight, standardized or masked perhaps, or a hook changes them. Give a layer that holds the weight that it uses."
    )


def plain_outputs(module: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
    """Of a dense layer or convolution that applies its weight as it is, whatever a derived class does; None where it could not take x."""
    x = x.to(weight.dtype) if x.is_floating_point() else x
    try:
        if isinstance(module, nn.Linear):
            return F.linear(x, weight, bias)
        kind = next(k for k in (nn.Conv1d, nn.Conv2d, nn.Conv3d) if isinstance(module, k))
        return kind._conv_forward(module, x, weight, bias)  # pyright: ignore[reportArgumentType]  module is of that kind
    except RuntimeError:
        return None


def same_outputs(a: object, b: Tensor | None) -> bool:
    """Equal up to rounding where both are finite: what overflows says nothing of a layer."""
    if not isinstance(a, Tensor) or b is None:
        return False
    a, b = _numbers(a), _numbers(b)
    if a.shape != b.shape:
        return False
    known = a.isfinite() & b.isfinite()
    return close(a[known], b[known])


def _numbers(t: Tensor) -> Tensor:
    """The tensor within those by which transforms of `torch.func` stand for it, of which no number can be asked."""
    while is_functorch_wrapped_tensor(t):
        t = get_unwrapped(t)
    return t


def linear_layers(problem: Problem) -> list[LinearLayer]:
    """The layers that a forward pass calls and whose weight is selected, in the order of the model's modules; BatchNorm always."""
    selected = with_selected_weight(problem)
    return [layer for layer in called_layers(problem) if isinstance(layer.module, _BatchNorm) or layer.module in selected]


def with_selected_weight(problem: Problem) -> set[nn.Module]:
    """Dense layers and convolutions whose weight, or a parameter that it is computed from, is selected."""
    selected = {id(p) for name, p in problem.model.named_parameters() if name in problem.params}
    found = set()
    for module in problem.model.modules():
        if isinstance(module, nn.Linear | _ConvNd) and not isinstance(module, _ConvTransposeNd):
            own = (p for name, p in module.named_parameters() if not name.removeprefix("parametrizations.").startswith("bias"))
            if any(id(p) in selected for p in own):
                found.add(module)
    return found


def called_layers(problem: Problem) -> list[LinearLayer]:
    """Every dense layer, convolution and BatchNorm in evaluation mode that a forward pass calls, in the order of the model's modules."""
    tensors = problem._tensors(None)
    names = {id(t): k for k, t in [*problem.model.named_parameters(), *problem.model.named_buffers()]}

    def value(t: Tensor | None, default: float) -> Tensor:
        return torch.tensor(default, dtype=torch.float64, device=problem.device) if t is None else tensors[names[id(t)]].detach().double()

    calls = _forward(problem)
    layers = []
    for name, module in problem.model.named_modules():
        if module not in calls:
            continue
        shape, weight = calls[module][:2]
        if isinstance(module, _BatchNorm):
            if module.running_var is not None:
                scale = value(module.weight, 1.0) / (value(module.running_var, 1.0) + module.eps).sqrt()
                layers.append(LinearLayer(name, module, scale, shape))
        else:
            layers.append(LinearLayer(name, module, weight, shape))
    return layers


class _Call(NamedTuple):
    """The last call of a layer: the shape of one input row, the weight as the layer uses it, and how often it was called by then.

    ``plain`` says whether a dense layer or convolution put out, every time, what its weight and bias make of its input.
    """

    shape: tuple[int, ...]
    weight: Tensor
    times: int
    plain: bool


def _forward(problem: Problem) -> dict[nn.Module, _Call]:
    """The calls of linear layers in a forward pass; a weight that is computed, by a parametrization, is taken as the layer uses it."""
    calls: dict[nn.Module, _Call] = {}
    expected: dict[nn.Module, Tensor | None] = {}

    def note(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        x = args[0] if args else kwargs["input"]
        rank = len(module.kernel_size) + 1 if isinstance(module, _ConvNd) else x.ndim - 1  # an unbatched image has no row axis
        weight: Tensor | None = module.weight  # pyright: ignore[reportAssignmentType]  None in a BatchNorm without scale
        times = calls[module].times + 1 if module in calls else 1
        calls[module] = _Call(
            tuple(x.shape[x.ndim - rank :]),
            x.new_empty(0) if weight is None else weight.detach().double().clone(),
            times,
            module not in calls or calls[module].plain,
        )
        if weight is not None and not isinstance(module, _BatchNorm):  # now, as the layer may work in place on its input
            expected[module] = plain_outputs(module, x, weight, module.bias)  # pyright: ignore[reportArgumentType]

    def compare(module: nn.Module, _: tuple[Tensor, ...], output: object) -> None:
        if module in expected and not same_outputs(output, expected.pop(module)):
            calls[module] = calls[module]._replace(plain=False)

    wanted = [m for m in problem.model.modules() if isinstance(m, CHAIN) and not isinstance(m, _ConvTransposeNd)]
    hooks = [m.register_forward_pre_hook(note, with_kwargs=True) for m in wanted] + [m.register_forward_hook(compare) for m in wanted]
    try:
        with problem.safe(), torch.no_grad(), parametrize.cached():  # some parametrizations draw anew at every look
            problem.batch_loss(0)
    finally:
        for hook in hooks:
            hook.remove()
    return calls
