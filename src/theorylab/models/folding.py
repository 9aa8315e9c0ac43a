"""The same network without its BatchNorm: in evaluation mode it is an affine map a channel, which the linear map before it can absorb."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

M = TypeVar("M", bound=nn.Module)

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
INPUT_AXES: dict[type[nn.Module], int] = {
    nn.Linear: 2,
    nn.Conv1d: 3,
    nn.Conv2d: 4,
    nn.Conv3d: 5,
    nn.ConvTranspose1d: 3,
    nn.ConvTranspose2d: 4,
    nn.ConvTranspose3d: 5,
}
"""Linear maps whose output channels are on axis 1, where BatchNorm looks for them, of inputs with so many axes."""


class Folded(nn.Module):
    """Stands where a BatchNorm was folded away: the identity.

    Of inputs with fewer or more axes the linear map and the BatchNorm mean different axes by channels; they are refused.

    Args:
        axes: Of the tensors that pass.
    """

    def __init__(self, axes: int) -> None:
        super().__init__()
        self.axes = axes

    def forward(self, x: Tensor) -> Tensor:
        """The input itself."""
        check_axes(x, self.axes)
        return x

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"axes={self.axes}"


def check_axes(x: Tensor, axes: int) -> None:
    """Raise a ValueError unless ``x`` has as many axes."""
    if x.ndim != axes:
        raise ValueError(
            f"the folded BatchNorm must see inputs of {axes} axes, the channels on axis 1, got shape {tuple(x.shape)}: "
            "there it would have normalized another axis than the layer before it maps to."
        )


fx.wrap("check_axes")  # a call in a traced graph, so that folded networks can be traced again


def fold_batchnorm(model: M, layers: str | Sequence[str] | None = None) -> M:
    r"""A copy of the model in which every BatchNorm in evaluation mode is part of the linear map before it; the outputs are the same.

    With running mean μ and variance v, gain g and shift s, :math:`g\,(Wx + b - \mu)/\sqrt{v + \epsilon} + s = W'x + b'` where
    :math:`W' = g W/\sqrt{v + \epsilon}` and :math:`b' = g\,(b - \mu)/\sqrt{v + \epsilon} + s`, channel by channel. Linear layers and
    convolutions and transposed convolutions of one to three dimensions are folded, with or without bias, whatever their stride, padding,
    dilation and groups. Equality is up to rounding. In training mode it does not hold: there the scale depends on the batch.

    What comes before what is read from a trace of the forward pass, not from the order of modules. The copy is of the model's own class;
    its folded layers have a bias, and `Folded` stands in place of each BatchNorm.

    Args:
        model: In evaluation mode; its forward pass can be traced by `torch.fx` (no branches that depend on values), with optional
            arguments at their defaults. It is not changed.
        layers: Names of the BatchNorm layers to fold; by default all, of which there may be none.

    Raises:
        ValueError: a BatchNorm that is in training mode, keeps no running statistics, is called never or more than once, or is not
            directly after a linear map whose output nothing else uses; a layer that is shared, parametrized, or hooked; a name that is
            no BatchNorm's; or a forward pass that cannot be traced. To fold only those that can be, name them.
        TypeError: not a module.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        >>> x = torch.randn(8, 1, 5, 5)
        >>> _ = net(x)  # in training mode, which moves the running statistics
        >>> folded = fold_batchnorm(net.eval())
        >>> folded[0].bias is not None, torch.allclose(folded(x), net(x), atol=1e-6)
        (True, True)

    Source: Jacob et al. 2018, arXiv:1712.05877, Section 3.2 (batch normalization folding).
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}.")
    norms = {name: m for name, m in model.named_modules() if isinstance(m, _BatchNorm)}
    if layers is not None:
        wanted = [layers] if isinstance(layers, str) else list(layers)
        for name in wanted:
            if name not in norms:
                raise ValueError(f"layers must name BatchNorm layers of the model ({', '.join(norms) or 'it has none'}), got {name!r}.")
        norms = {name: norms[name] for name in wanted}
    graph = _Graph(model) if norms else None
    pairs = [(graph.layer_before(name), name) for name in norms] if graph else []
    folded = copy.deepcopy(model)
    for layer, norm in pairs:
        _fold(folded, layer, norm)
    return folded


class _Tracer(fx.Tracer):
    """Does not look into linear maps and BatchNorm, also where a package derives its own from them."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, (_BatchNorm, *INPUT_AXES)) or super().is_leaf_module(m, module_qualified_name)


class _Graph:
    """Who calls whom in the forward pass of a model."""

    def __init__(self, model: nn.Module) -> None:
        traced = copy.deepcopy(model)  # a tracer may leave constants on what it traces
        signature = inspect.signature(traced.forward).parameters.values()
        defaults = {p.name: p.default for p in signature if p.default is not p.empty}
        try:
            with torch.random.fork_rng(devices=[]):
                self.nodes = list(_Tracer().trace(traced, concrete_args=defaults or None).nodes)
        except Exception as error:  # the model's own code runs on a stand-in, and may raise anything
            raise ValueError(
                "model must have a forward pass that torch.fx can trace, to see which layer feeds which BatchNorm; tracing "
                f"{type(model).__name__} raised {type(error).__name__}: {error}"
            ) from error
        self.modules = dict(traced.named_modules(remove_duplicate=False))
        self.owners: dict[int, set[int]] = {}  # parameter → modules that hold it
        for m in self.modules.values():
            for p in m.parameters(recurse=False):
                self.owners.setdefault(id(p), set()).add(id(m))

    def layer_before(self, name: str) -> str:
        """Name of the linear map that feeds a BatchNorm and nothing else; a ValueError that says what stands in the way."""
        norm = cast(_BatchNorm, self.modules[name])
        if type(norm).forward not in (_BatchNorm.forward, nn.SyncBatchNorm.forward):
            raise ValueError(f"BatchNorm {name} is a {type(norm).__name__} with a forward pass of its own, which may be another map.")
        if norm.training:
            raise ValueError(f"BatchNorm {name} is in training mode, where its scale depends on the batch. Call model.eval() first.")
        if norm.running_mean is None:
            raise ValueError(f"BatchNorm {name} keeps no running statistics (track_running_stats=False), so it depends on the batch.")
        (before,) = self._only_call(name, "BatchNorm").all_input_nodes
        while self._is_identity(before):
            (before,) = before.all_input_nodes
        source = str(before.target)
        layer = self.modules.get(source) if before.op == "call_module" else None
        step = self._only_call(source, "layer") if isinstance(layer, tuple(INPUT_AXES)) else before
        if layer is None or type(layer) not in INPUT_AXES:
            what = before.name if layer is None else f"{source} ({type(layer).__name__})"
            raise ValueError(f"BatchNorm {name} must come directly after a linear layer or a convolution to be folded, it follows {what}.")
        while step.target != name:
            if len(step.users) > 1:
                raise ValueError(f"layer {source} feeds more than BatchNorm {name}: folding would change what else reads its output.")
            (step,) = step.users
        channels = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
        if channels != norm.num_features:
            raise ValueError(
                f"BatchNorm {name} normalizes {norm.num_features} channels, and layer {source} has {channels}: it normalizes another axis "
                "than the layer maps to, and cannot be folded."
            )
        return source

    def _is_identity(self, node: fx.Node) -> bool:
        return node.op == "call_module" and isinstance(self.modules[str(node.target)], nn.Identity)

    def _only_call(self, name: str, kind: str) -> fx.Node:
        """The one place where a layer is called; a ValueError where it has several, or where folding would not stay within it."""
        module = self.modules[name]
        nodes = [n for n in self.nodes if n.op == "call_module" and self.modules[str(n.target)] is module]
        if not nodes:
            raise ValueError(f"{kind} {name} is not called in the traced forward pass, so that what feeds it is unknown.")
        if len(nodes) > 1:
            raise ValueError(f"{kind} {name} is shared: it is called {len(nodes)} times, and one set of weights cannot fold them all.")
        if parametrize.is_parametrized(module) or "weight" not in module._parameters:
            raise ValueError(f"{kind} {name} is parametrized: remove the parametrization of its weight first.")
        if any(len(self.owners[id(p)]) > 1 for p in module.parameters(recurse=False)) or self._read_directly(module):
            raise ValueError(f"{kind} {name} is shared: its parameters are used elsewhere too, where folding would change them.")
        if module._forward_hooks or module._forward_pre_hooks:
            raise ValueError(f"{kind} {name} has forward hooks, which may change what passes: remove them first.")
        return nodes[0]

    def _read_directly(self, module: nn.Module) -> bool:
        """Whether the forward pass reads the module's tensors other than by calling it."""
        tensors = {id(t) for t in (*module.parameters(recurse=False), *module.buffers(recurse=False))}
        return any(n.op == "get_attr" and id(self._attribute(str(n.target))) in tensors for n in self.nodes)

    def _attribute(self, path: str) -> object:
        owner, _, name = path.rpartition(".")
        return getattr(self.modules[owner], name, None)


@torch.no_grad()
def _fold(model: nn.Module, source: str, name: str) -> None:
    """Put the affine map of BatchNorm ``name`` into the layer ``source``, computed in double precision, and `Folded` in its place."""
    layer, norm = cast(Any, model.get_submodule(source)), cast(Any, model.get_submodule(name))
    weight: Tensor = layer.weight
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    bias = -norm.running_mean.double() * scale
    if layer.bias is not None:
        bias = bias + layer.bias.double() * scale
    if norm.bias is not None:
        bias = bias + norm.bias.double()
    if isinstance(layer, TRANSPOSED):  # weight (in, out/groups, ...): the output channels of one group after those of another
        by_group = scale.reshape(layer.groups, 1, -1, *(1 for _ in weight.shape[2:]))
        new = (weight.double().unflatten(0, (layer.groups, -1)) * by_group).flatten(0, 1)
    else:
        new = weight.double() * scale.reshape(-1, *(1 for _ in weight.shape[1:]))
    layer.weight = nn.Parameter(new.to(weight), requires_grad=weight.requires_grad)
    layer.bias = nn.Parameter(bias.to(weight), requires_grad=weight.requires_grad)
    stand_in = Folded(INPUT_AXES[type(layer)]).eval()
    for parent in list(model.modules()):
        for key, child in parent._modules.items():
            if child is norm:  # also under another name
                parent._modules[key] = stand_in
