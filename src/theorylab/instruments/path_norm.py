"""The path norm of a ReLU network: the sum over all its paths of squared products of weights, which rescaling cannot change."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from theorylab.core.instrument import Inapplicable
from theorylab.core.problem import Problem, finite
from theorylab.instruments.linear_layers import uses_another_weight
from theorylab.instruments.refusals import hides_outputs
from theorylab.instruments.traced import is_computed, traced

RESHAPING: tuple[Any, ...] = (torch.flatten, torch.reshape, "flatten", "reshape", "view", "contiguous", "squeeze", "unsqueeze")
ADDING: tuple[Any, ...] = (operator.add, operator.iadd, torch.add, "add", "add_")
RELUS: tuple[Any, ...] = (F.relu, torch.relu, torch.relu_, "relu", "relu_")
POOLS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)


class _Scaled(NamedTuple):
    """The tensor ``x``·e^log, with entries of x of order one: sums over paths overflow in deep nets."""

    x: Tensor
    log: float


def _settled(x: Tensor, log: float) -> _Scaled:
    top = float(x.abs().max())
    if top == 0:
        return _Scaled(x, -math.inf)
    return _Scaled(x / top, log + math.log(top))


def _sum(a: _Scaled, b: _Scaled) -> _Scaled:
    log = max(a.log, b.log)
    if log == -math.inf:  # both are zero
        return a
    return _settled(a.x * math.exp(a.log - log) + b.x * math.exp(b.log - log), log)


def _weight(problem: Problem) -> Callable[[Tensor | None], Tensor | None]:
    tensors = problem._tensors(None)
    names = {id(t): k for k, t in [*problem.model.named_parameters(), *problem.model.named_buffers()]}
    return lambda t: None if t is None else tensors[names[id(t)]].detach().double()


class _Squared(fx.Interpreter):
    """Runs a traced network on an input of ones with every weight squared; outputs sum squared products over paths."""

    def __init__(self, graph: fx.GraphModule, weight: Callable[[Tensor | None], Tensor | None]) -> None:
        super().__init__(graph)
        self.weight = weight

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self.layer(self.fetch_attr(target), args[0])

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if target in ADDING:
            return _sum(*args)
        if target in RELUS:
            return args[0]
        x, log = args[0]
        return _Scaled(getattr(x, target)(*args[1:], **kwargs) if isinstance(target, str) else target(x, *args[1:], **kwargs), log)

    call_method = call_function

    def layer(self, module: nn.Module, value: _Scaled) -> _Scaled:
        x, log = value
        if isinstance(module, nn.Flatten):
            return _Scaled(module(x), log)
        if isinstance(module, POOLS):
            return _settled(_squared_average(module, x), log)
        if isinstance(module, _BatchNorm):
            mean, var = self.weight(module.running_mean), self.weight(module.running_var)
            assert mean is not None
            assert var is not None
            scale = (var + module.eps).rsqrt()
            gain, shift = self.weight(module.weight), self.weight(module.bias)
            scale = scale if gain is None else scale * gain
            bias = -mean * scale if shift is None else shift - mean * scale
            spread = (-1, *(1 for _ in x.shape[2:]))
            return self.affine(lambda t: t * scale.square().reshape(spread), bias.reshape(spread), x, log)
        if isinstance(module, nn.Linear | _ConvNd):
            w, b = self.weight(module.weight), self.weight(module.bias)
            assert w is not None  # every such layer has a weight
            if isinstance(module, nn.Linear):
                return self.affine(lambda t: F.linear(t, w.square()), b, x, log)
            shape = None if b is None else b.reshape(-1, *(1 for _ in module.kernel_size))
            return self.affine(lambda t: module._conv_forward(t, w.square(), None), shape, x, log)
        return value  # ReLU, identity, dropout in evaluation

    @staticmethod
    def affine(linear: Callable[[Tensor], Tensor], bias: Tensor | None, x: Tensor, log: float) -> _Scaled:
        """A bias is the weight of one more input, which is always one."""
        y = linear(x)
        if bias is None or not bool(bias.any()):
            return _settled(y, log)
        if log == -math.inf:
            return _settled(bias.square().expand_as(y), 0.0)
        # both parts at the larger of their scales, so that neither overflows
        scale = max(log, 2 * math.log(float(bias.abs().max())))
        return _settled(y * math.exp(log - scale) + (bias * math.exp(-scale / 2)).square(), scale)


def _squared_average(pool: Any, x: Tensor) -> Tensor:
    """The pool with its weights squared: 1/k² for each of the k inputs that it takes the mean of, fewer perhaps at a border."""
    ones = torch.ones_like(x)
    return pool(x) * pool(ones) / _window_sums(pool, ones)


def _window_sums(pool: Any, x: Tensor) -> Tensor:
    """What the pool divides."""
    kernel, stride, padding = pool.kernel_size, pool.stride, pool.padding
    if isinstance(pool, nn.AvgPool1d):  # has no divisor to set, as planes of one row have
        planes = F.avg_pool2d(x.unsqueeze(-2), (1, *kernel), (1, *stride), (0, *padding), pool.ceil_mode, pool.count_include_pad, 1)
        return planes.squeeze(-2)
    sums: Any = F.avg_pool2d if isinstance(pool, nn.AvgPool2d) else F.avg_pool3d
    return sums(x, kernel, stride, padding, pool.ceil_mode, pool.count_include_pad, 1)


def off_relu_graph(problem: Problem) -> str | None:
    """Paths are counted in graphs of linear layers, ReLU, averages and sums; elsewhere a product of weights along a path has no meaning."""
    if problem.train:
        return "the problem is in training mode, where dropout and BatchNorm change the paths. Use train=False."
    hidden = hides_outputs(problem)
    if hidden is not None:
        return hidden
    if not isinstance(problem.batches[0].content[0], Tensor):
        return "the model takes several inputs; paths are counted from one tensor. Wrap it."
    graph = traced(problem)
    if isinstance(graph, str):
        return graph
    modules = dict(graph.named_modules())
    for node in graph.graph.nodes:
        first = node.args[0] if node.args else None
        if node.op in ("call_module", "call_function", "call_method", "output") and not isinstance(first, fx.Node):
            reason = "no single tensor" if node.op == "output" else "given its input by keyword or as a constant"
        elif node.op == "call_module":
            reason = _no_path_through(modules[node.target])
        elif node.op in ("call_function", "call_method"):
            plain = len(node.args) == 2 and all(isinstance(a, fx.Node) for a in node.args) and not node.kwargs  # alpha= is a weight
            known = node.target in RESHAPING or node.target in RELUS or (node.target in ADDING and plain)
            reason = None if known else "no linear layer, ReLU, reshaping or plain sum of two tensors"
        else:
            reason = None if node.op in ("placeholder", "output") else "a parameter used outside a layer"
        if reason is not None:
            return f"{node.target} is {reason}: path norms are of ReLU networks. Measure norms() instead."
    return uses_another_weight(problem, set(modules.values()))


def _no_path_through(module: nn.Module) -> str | None:
    if isinstance(module, (nn.Linear, _ConvNd, _BatchNorm)) and (is_computed(module, "weight") or is_computed(module, "bias")):
        return f"a {type(module).__name__} whose weight or bias is computed"
    if isinstance(module, _ConvNd):
        if isinstance(module, _ConvTransposeNd) or module.padding_mode != "zeros":
            return "a convolution that is transposed or not padded with zeros"
        return None
    if isinstance(module, _BatchNorm):
        return None if module.running_var is not None else "a BatchNorm without running statistics"
    fine = isinstance(module, (nn.Linear, nn.ReLU, nn.Identity, nn.Flatten, nn.modules.dropout._DropoutNd, *POOLS))
    return None if fine else f"a {type(module).__name__}"


def path_norm(problem: Problem) -> float:
    r"""Natural logarithm of the path norm, :math:`\frac12\ln\sum_{\text{paths}}\prod_{e}w_e^2`, of a ReLU network. A measure.

    A path leads from an input, or from a bias's constant one, to an output. Multiplying a ReLU unit's incoming weights and bias by c > 0
    and its outgoing weights by 1/c changes neither the function nor the path norm. Computed as one forward pass of ones through the graph
    with every weight squared, its scale kept as a logarithm. BatchNorm in evaluation mode is a linear layer; a residual sum adds paths.

    Raises:
        Inapplicable: something other than linear layers, ReLU, averages, reshaping and sums is in the network's graph.
        ValueError: the loss is not finite, or no path has a weight other than zero.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False))
        >>> problem = Problem(net, nn.functional.mse_loss, (torch.eye(2), torch.zeros(2, 1)))
        >>> problem = problem.at({"0.weight": torch.tensor([[3.0, 4.0]]), "2.weight": torch.tensor([[2.0]])})
        >>> round(math.exp(path_norm(problem)), 4)  # √(3²·2² + 4²·2²)
        10.0

    Source: Neyshabur et al. 2015, arXiv:1506.02617, Section 3.
    """
    reason = off_relu_graph(problem)
    if reason is not None:
        raise Inapplicable(f"path_norm does not apply: {reason}")
    finite(problem.loss())
    graph = traced(problem)
    assert isinstance(graph, fx.GraphModule)
    ones = torch.ones(1, *problem.batches[0].content[0].shape[1:], dtype=torch.float64, device=problem.device)
    with torch.no_grad():
        out = _Squared(graph, _weight(problem)).run(_Scaled(ones, 0.0), enable_io_processing=False)
    total = float(out.x.sum())
    if total <= 0:
        raise ValueError("no path from an input to an output has weights other than zero: the path norm has no logarithm.")
    return 0.5 * (out.log + math.log(total))
