"""How initial sizes and step sizes of a module's parameters change with its width: standard, tangent-kernel and maximal-update (muP).

A parametrization writes every parameter as p = a·v, with v trained. That changes the size of a step (for an optimizer whose step does not
depend on the gradient's scale, such as Adam, by the factor a; for gradient descent by a²), and with the initial v anything else that a
parametrization asks for. So one step size serves all parameters, with any optimizer and in any population.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.modules.conv import _ConvTransposeNd

from theorylab.core.arguments import kind_of
from theorylab.core.ranges import whole
from theorylab.core.substitution import places_of, substituted

MakeModel = Callable[[int], nn.Module]
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)


def check_make_model(make_model: Any) -> None:
    """Refuse what makes no network of a width."""
    if isinstance(make_model, nn.Module) or not callable(make_model):
        raise TypeError(f"make_model must be a function make_model(width) that builds a network of that width, got {kind_of(make_model)}.")


@dataclass(frozen=True)
class Multipliers:
    """What a width asks of one parameter, relative to the base width, at which both are 1.

    Attributes:
        init: Factor of its initial value, as its module draws it.
        step: Factor of its step size.
    """

    init: float = 1.0
    step: float = 1.0


class Parametrized(nn.Module):
    """A model whose parameters are a·v, the v being parameters of this module, under the model's own names within ``model``.

    Args:
        model: Taken over; its parameters are divided by their factors.
        factors: a > 0 by parameter name; 1 where it is missing.

    Example:
        >>> line = nn.Linear(2, 1, bias=False)
        >>> before = line.weight.detach().clone()
        >>> half = Parametrized(line, {"weight": 0.5})
        >>> bool((half.model.weight == 2 * before).all()), bool(torch.allclose(half(torch.eye(2)), before.T))
        (True, True)
    """

    def __init__(self, model: nn.Module, factors: Mapping[str, float]) -> None:
        super().__init__()
        self.model = model
        self.factors = {k: a for k, a in factors.items() if a != 1.0}
        self.places = places_of(model)
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.div_(self.factors.get(name, 1.0))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model at a·v."""
        held = dict(self.model.named_parameters())
        with substituted(self.model, {k: a * held[k] for k, a in self.factors.items()}, self.places):
            return self.model(*args, **kwargs)


@dataclass(frozen=True)
class _Kind:
    """How a parameter grows: its fan-in over that at the base width, and likewise its fan-out; None where that axis does not grow."""

    fan_in: float | None
    fan_out: float | None
    bias_of: float | None = None  # for the bias of a layer, growth of what its module takes for that layer's fan-in
    redrawn: float = 1.0  # what makes the variance that its module draws proportional to 1/fan-in, where it is not


def _kinds(make_model: MakeModel, base: int, width: int) -> dict[str, _Kind]:
    narrow, wide = (_skeleton(make_model, w) for w in (base, width))
    before, after = ({k: p.shape for k, p in m.named_parameters()} for m in (narrow, wide))
    if before.keys() != after.keys():
        raise ValueError(
            f"make_model must give the same parameters at every width; {sorted(before.keys() ^ after.keys())[0]} is not in both."
        )
    kinds = {}
    tensors = dict(wide.named_parameters())
    for name, shape in after.items():
        uses = {type(m) for m in wide.modules() for p in m.parameters(recurse=False) if p is tensors[name]}
        tables = {kind for kind in uses if issubclass(kind, nn.Embedding | nn.EmbeddingBag)}
        if tables and uses - tables:
            raise ValueError(
                f"parameter {name} must be used in one way, got the table of an embedding that is also the weight of a "
                f"{(uses - tables).pop().__name__}: the two ask for different multipliers. Untie them."
            )
        path, _, leaf = name.rpartition(".")
        owner, first = wide.get_submodule(path), narrow.get_submodule(path)
        ratio = {axis: b / a for axis, (a, b) in enumerate(zip(before[name], shape, strict=True)) if a != b}
        if len(before[name]) != len(shape) or len(ratio) > 2:
            raise ValueError(
                f"parameter {name} grows along {len(ratio)} axes from {tuple(before[name])} to {tuple(shape)}: at most two are known."
            )
        if isinstance(owner, _RECURRENT) and isinstance(first, _RECURRENT):  # all is drawn by the hidden units, also what acts on inputs
            drawn, fan_in = owner.hidden_size / first.hidden_size, ratio.get(1)
            if len(shape) == 1:
                kinds[name] = _Kind(None, ratio.get(0), drawn)
            else:
                kinds[name] = _Kind(fan_in, ratio.get(0), redrawn=(drawn / (fan_in or 1.0)) ** 0.5)
        elif len(shape) == 1 or isinstance(owner, nn.Embedding | nn.EmbeddingBag):  # a vector, or one a row of a table
            weight, before_weight, fed = getattr(owner, "weight", None), getattr(first, "weight", None), None
            if leaf == "bias" and weight is not None and weight.ndim > 1 and before_weight is not None:
                fed = _growth(before_weight.shape[1], weight.shape[1])
            kinds[name] = _Kind(None, next(iter(ratio.values()), None), fed)
        elif ratio.keys() - {0, 1}:
            raise ValueError(f"parameter {name} grows along an axis that is neither its outputs nor its inputs: {tuple(shape)}.")
        elif isinstance(owner, _ConvTransposeNd) and isinstance(first, _ConvTransposeNd):  # (inputs, outputs/groups, ...), drawn by outputs
            fan_in = _growth(first.in_channels // first.groups, owner.in_channels // owner.groups)
            kinds[name] = _Kind(
                fan_in, _growth(first.out_channels, owner.out_channels), redrawn=(ratio.get(1, 1.0) / (fan_in or 1.0)) ** 0.5
            )
        elif ratio.keys() == {1} and leaf != "weight":
            raise ValueError(
                f"parameter {name} grows along its second axis alone, {tuple(before[name])} to {tuple(shape)}, and is no layer's weight: "
                "it may be a readout, (outputs, inputs), or a table with a row a token, which ask for different multipliers. Make it the "
                "weight of an nn.Linear or an nn.Embedding."
            )
        else:
            kinds[name] = _Kind(ratio.get(1), ratio.get(0))
    if width != base and all(k.fan_in is None and k.fan_out is None for k in kinds.values()):
        raise ValueError(f"make_model must use its width: no parameter's shape differs between widths {base} and {width}.")
    return kinds


def _growth(before: int, after: int) -> float | None:
    return None if before == after else after / before


def _skeleton(make_model: MakeModel, width: int) -> nn.Module:
    with torch.device("meta"):
        return make_model(width)


def base_shapes(make_model: MakeModel, base: int, width: int, *, optimizer: Literal["adam", "sgd"] = "adam") -> dict[str, Multipliers]:
    r"""Multipliers of muP for each parameter of a model of ``width``, relative to ``base``.

    With :math:`m` the growth of a parameter's fan-in (or, in the first row, of its fan-out):

    ===================================== ============= ============== =============
    parameter                             initial value step, Adam     step, SGD
    ===================================== ============= ============== =============
    inputs, biases, gains, embeddings     1             1              m (fan-out)
    both axes grow (hidden)               1             1/m            1
    fan-in alone grows (outputs)          1/√m          1/m            1/m
    ===================================== ============= ============== =============

    Initial values are those of modules that draw weights of variance proportional to 1/fan-in, as PyTorch's do (but for transposed
    convolutions and recurrent layers, whose initial values are brought to that first: the latter draw all by their hidden units); a bias
    that they draw with the same bound is multiplied by the root of its growth, so that it does not vanish. A parameter of one axis counts
    as a bias or gain, whatever it does: make a readout that is a vector, ``h @ a``, the weight of an `nn.Linear`.

    Args:
        make_model: ``make_model(width)``, any module; built on the meta device, so that its size costs nothing.
        base: The width at which all multipliers are 1.
        width: Another.
        optimizer: ``"adam"`` for optimizers whose step does not depend on the gradient's scale (Adam, sign descent), ``"sgd"`` for gradient
            descent, with momentum or without.

    Raises:
        ValueError: parameters that differ by name, no shape that changes, one that changes in other axes than outputs and inputs, one
            that is tied between an embedding and another layer, or one that may be a readout or an embedding and is the weight of neither.

    Example:
        >>> net = lambda width: nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2))
        >>> found = base_shapes(net, 64, 256)
        >>> found["0.weight"], found["2.weight"], found["4.weight"]
        (Multipliers(init=1.0, step=1.0), Multipliers(init=1.0, step=0.25), Multipliers(init=0.5, step=0.25))

    Source: Yang et al. 2022, arXiv:2203.03466, Table 3.
    """
    if optimizer not in ("adam", "sgd"):
        raise ValueError(f"optimizer must be 'adam' or 'sgd', got {optimizer!r}.")
    found = {}
    for name, kind in _kinds(make_model, base, width).items():
        m, out = kind.fan_in or 1.0, kind.fan_out or 1.0
        if kind.fan_in is None:
            found[name] = Multipliers(kind.redrawn * (kind.bias_of or 1.0) ** 0.5, out if optimizer == "sgd" else 1.0)
        elif kind.fan_out is not None:
            found[name] = Multipliers(kind.redrawn, 1 / m if optimizer == "adam" else 1.0)
        else:
            found[name] = Multipliers(kind.redrawn * m**-0.5, 1 / m)
    return found


def mup(make_model: MakeModel, base: int, *, optimizer: Literal["adam", "sgd"] = "adam") -> MakeModel:
    """The same model in the maximal-update parametrization: at the base width as it is, at others with the multipliers of `base_shapes`.

    Features of every layer then change by an amount that does not depend on width, and a step size found at one width serves at all.
    Only parameters are rewritten, not what is computed of them: of attention whose heads grow to size d with the width the scores must be
    scaled by 1/d, for with 1/√d they change by √d; heads of one size at all widths may keep either.

    Args:
        make_model: ``make_model(width)``, with every readout the weight of a layer (see `base_shapes`).
        base: The width at which nothing is changed.
        optimizer: As in `base_shapes`.

    Returns:
        ``make(width)``, a `Parametrized` model.

    Example:
        >>> wide = mup(lambda width: nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, 2)), base=32)(128)
        >>> wide.factors
        {'2.weight': 0.25}

    Source: Yang and Hu 2021, arXiv:2011.14522, Section 5; Yang et al. 2022, arXiv:2203.03466, Table 3 and Definition 4.1 (attention).
    """
    check_make_model(make_model)
    whole(1, base=base)

    def make(width: int) -> nn.Module:
        whole(1, width=width)
        multipliers = base_shapes(make_model, base, width, optimizer=optimizer) if width != base else {}
        model = make_model(width)
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.mul_(multipliers.get(name, Multipliers()).init)
        power = 1.0 if optimizer == "adam" else 0.5
        return Parametrized(model, {k: m.step**power for k, m in multipliers.items()})

    return make


def tangent_kernel(make_model: MakeModel, base: int) -> MakeModel:
    """The same model in the tangent-kernel parametrization: weights whose fan-in grows by m are v/√m.

    Initial values are as before, but for weights whose variance is not proportional to 1/fan-in, which are brought to that as in
    `base_shapes`.

    Under gradient descent with one step size the kernel then has a limit, and training is lazy in it.

    Args:
        make_model: ``make_model(width)``.
        base: The width at which nothing is changed.

    Example:
        >>> wide = tangent_kernel(lambda width: nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, 2)), base=32)(128)
        >>> wide.factors
        {'2.weight': 0.5}

    Source: Jacot et al. 2018, arXiv:1806.07572, Section 2; as one of a family: Yang and Hu 2021, arXiv:2011.14522, Section 3.
    """
    check_make_model(make_model)
    whole(1, base=base)

    def make(width: int) -> nn.Module:
        whole(1, width=width)
        kinds = _kinds(make_model, base, width) if width != base else {}
        model = make_model(width)
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.mul_(kinds[name].redrawn if name in kinds else 1.0)
        return Parametrized(model, {k: kind.fan_in**-0.5 for k, kind in kinds.items() if kind.fan_in is not None})

    return make
