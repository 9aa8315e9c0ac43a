"""How replicas come to be: their initial networks, their rows, and the checks made once before training."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from theorylab.core.arguments import check_loss_kind, given, kind_of
from theorylab.core.generators import seed_others, seeded_others
from theorylab.learning.group import Group, Rows, random_stream, tree_map
from theorylab.learning.label_noise import LabelNoise
from theorylab.learning.minibatches import DataOrder
from theorylab.learning.optimizers.base import Hyper, Optimizer, Params
from theorylab.learning.risk import LoopGradient, Loss, StackedGradient, check_loss
from theorylab.learning.unregistered import plain_values, refuse_unlike, unlike


def check_arguments(make_model: Any, loss: Any, data: Any, optimizer: Any, seeds: Any, dtype: Any) -> tuple[int, ...]:
    """Refuse what no population can be made of; returns the seeds.

    Raises:
        TypeError: an argument of the wrong kind; the message says what to give instead.
        ValueError: no seed.
    """
    if isinstance(make_model, nn.Module) or not callable(make_model):
        raise TypeError(
            f"make_model must be a function that builds one network, as lambda: nn.Linear(1, 1), got {kind_of(make_model)}: every replica "
            "is a network of its own, drawn by its seed."
        )
    check_loss_kind(loss)
    if not (isinstance(data, list | tuple) and len(data) == 2 and all(isinstance(t, Tensor) for t in data)):
        got = f"({', '.join(map(kind_of, data))})" if isinstance(data, list | tuple) and len(data) < 5 else kind_of(data)
        raise TypeError(f"data must be two tensors, inputs and targets of all rows, got {got}: convert arrays by torch.as_tensor.")
    if not isinstance(optimizer, Optimizer):
        name = getattr(optimizer, "__name__", type(optimizer).__name__)
        example = f"{name}(...)" if callable(optimizer) and not isinstance(optimizer, type) else "sgd(lr=0.1)"
        raise TypeError(
            f"optimizer must be one of theorylab.learning.optimizers, got {name}: pass {example}. Those of torch train one network."
        )
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"dtype must be a floating-point type such as torch.float64, got {dtype!r}.")
    try:
        found = tuple(operator.index(s) for s in seeds)
    except TypeError:
        raise TypeError(f"seeds must be whole numbers, one a replica, as range(3), got {seeds!r}.") from None
    if not found:
        raise ValueError("seeds must name at least one replica, got none.")
    return found


@dataclass
class Template:
    """The network of the first seed, whose structure all replicas share, and where others hold plain attributes unlike its own."""

    module: nn.Module
    unlike: dict[str, tuple[int, int]] = field(default_factory=dict)

    def __call__(self, x: Tensor) -> Any:
        """Its outputs; call it once, before training.

        Raises:
            ValueError: it holds something that replicas would share and must not, or makes a buffer that was not there before.
        """
        plain, buffers = plain_values(self.module) if self.unlike else {}, _buffer_names(self.module)
        outputs = self.module(x)
        refuse_unlike(plain, plain_values(self.module) if self.unlike else {}, self.unlike)
        made = sorted(_buffer_names(self.module) - buffers)
        if made:
            raise ValueError(
                f"buffers must be there before the forward pass, which makes {made[0]}, one for all replicas: register it "
                "with its values at the start, in place of None."
            )
        return outputs


def _buffer_names(module: nn.Module) -> set[str]:
    return {name for name, _ in module.named_buffers(remove_duplicate=False)}


def initialize(
    make_model: Callable[[], nn.Module], seeds: Sequence[int], dtype: torch.dtype, device: torch.device
) -> tuple[Template, Params, Params, list[Tensor]]:
    """One network a seed: a template, parameters and buffers stacked (replica, ...), and each seed's random stream after the making.

    The global generators are left as they were.

    Raises:
        TypeError: ``make_model()`` is not a module.
        ValueError: the networks of two seeds differ in names or shapes.
    """
    template: Template | None = None
    params: dict[str, list[Tensor]] = {}
    buffers: dict[str, list[Tensor]] = {}
    plain: dict[str, Any] = {}
    noise = []
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices), seeded_others(0):
        for seed in seeds:
            torch.manual_seed(seed)
            seed_others(seed)
            module = make_model()
            if not isinstance(module, nn.Module):
                raise TypeError(f"make_model must return a torch.nn.Module, got {type(module).__name__}.")
            noise.append(torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state())
            module = module.to(device=device, dtype=dtype)
            named = {k: p.detach() for k, p in module.named_parameters()}
            held = dict(module.named_buffers())
            if template is None:
                template, params, buffers, plain = Template(module), {k: [] for k in named}, {k: [] for k in held}, plain_values(module)
            elif any(
                new.keys() != old.keys() or any(t.shape != old[k][0].shape for k, t in new.items())
                for new, old in ((named, params), (held, buffers))
            ):
                raise ValueError(f"make_model must build the same shapes for every seed; seed {seed} differs from seed {seeds[0]}.")
            elif seed != seeds[0]:
                for path in unlike(plain, plain_values(module)):
                    template.unlike.setdefault(path, (seeds[0], seed))
            for k, p in named.items():
                params[k].append(p)
            for k, b in held.items():
                buffers[k].append(b)
    assert template is not None
    stacked = {k: torch.stack(p) for k, p in params.items()}
    return template, stacked, {k: torch.stack(b) for k, b in buffers.items()}, noise


def make_rows(
    data: tuple[Tensor, Tensor],
    seeds: Sequence[int],
    batch_size: int | None,
    row_weights: Tensor | None,
    data_per_replica: bool,
    label_noise: Hyper,
    dtype: torch.dtype,
    device: torch.device,
) -> Rows:
    """The rows of each replica, checked.

    Raises:
        ValueError: shapes, weights, ``batch_size`` or ``label_noise`` that do not fit; the message says which.
    """
    size = len(seeds)
    x, y = (t.to(device=device, dtype=dtype if t.is_floating_point() else t.dtype) for t in data)
    lead = 2 if data_per_replica else 1
    if x.ndim < lead or y.ndim < lead or x.shape[:lead] != y.shape[:lead] or x.numel() == 0:
        want = "(replica, n, ...)" if data_per_replica else "(n, ...)"
        raise ValueError(f"data must be inputs and targets {want} with the same n >= 1, got {tuple(x.shape)} and {tuple(y.shape)}.")
    if data_per_replica and len(x) != size:
        raise ValueError(f"data_per_replica needs one data set for each of the {size} seeds, got {len(x)}.")
    n = x.shape[lead - 1]
    weights = batch_weights = None
    available = [torch.arange(n, device="cpu")] * size
    if row_weights is not None:
        w = given(row_weights).detach().to(device=device, dtype=dtype)
        if w.shape != (size, n):
            raise ValueError(f"row_weights must be (replica, n) = ({size}, {n}), got {tuple(w.shape)}.")
        if not bool((w.isfinite() & (w >= 0)).all()):
            raise ValueError("row_weights must be finite and at least 0.")
        total = w.sum(1, keepdim=True)
        if bool((total == 0).any()):
            raise ValueError(f"row_weights of replica {int((total == 0).flatten().nonzero()[0])} sum to zero: give it at least one row.")
        available = [row.nonzero().flatten().cpu() for row in w]
        weights = w * (n / total)
        scaled = w * ((w > 0).sum(1, keepdim=True) / total)
        batch_weights = None if torch.allclose(scaled[w > 0], torch.ones((), dtype=dtype, device=device), rtol=1e-12) else scaled
    fewest = min(map(len, available))
    if batch_size is not None and not (isinstance(batch_size, Integral) and 1 <= batch_size <= fewest):
        raise ValueError(f"batch_size must be in 1..{fewest} (the rows that every replica has), got {batch_size}; None for full batches.")
    orders = None if batch_size is None else [DataOrder(rows, batch_size, s) for rows, s in zip(available, seeds, strict=True)]
    return Rows(x, y, not data_per_replica, weights, batch_weights, orders, _label_noise(label_noise, y, seeds))


def _label_noise(scale: Hyper, y: Tensor, seeds: Sequence[int]) -> LabelNoise | None:
    each = given(scale, torch.float64)
    if each.shape not in ((), (len(seeds),)) or not bool((each.isfinite() & (each >= 0)).all()):
        raise ValueError(f"label_noise must be a number or one a replica ({len(seeds)},), finite and at least 0, got {scale}.")
    if not bool(each.any()):
        return None
    if not y.is_floating_point():
        raise ValueError(f"label_noise is added to the targets, which must be floating-point numbers, got {y.dtype}.")
    return LabelNoise(each.expand(len(seeds)), seeds)


def check_batch(template: Template, group: Group, loss: Loss, row_weights: Tensor | None) -> tuple[bool, str]:
    """Run the forward pass of the first replica: check the loss, say whether the model draws random numbers, and why vmap cannot run it.

    Returns:
        Whether it draws; and the reason why vmap fails, empty where it does not.

    Raises:
        TypeError: the loss is not a tensor.
        ValueError: the loss has a wrong shape, batch norm would mix rows of weight zero into its statistics, or the model keeps or writes
            what replicas could not have each as their own.
    """
    norms = [
        m for m in group.module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and (m.training or not m.track_running_stats)
    ]
    if norms and row_weights is not None:
        raise ValueError("row_weights do not go with batch norm in training, whose statistics have no weights; use another norm or eval().")
    x, y = (group.rows.x, group.rows.y) if group.rows.shared else (group.rows.x[0], group.rows.y[0])
    few = slice(0, group.rows.orders[0].batch_size if group.rows.orders else len(x))
    one = group.part(slice(0, 1), group.optimizer, False, group.device)
    loop = LoopGradient(one.module, one.risk)
    own = loop._load(one.params, one.frozen, tree_map(torch.clone, one.buffers), 0)
    streams = [s.clone() for s in one.noise or []]
    before = streams[0].clone()
    with torch.no_grad(), random_stream(streams, 0, one.device):
        outputs = template(x[few])
    loop.buffer_slots.reassigned(own)
    draws = not torch.equal(before, streams[0])
    check_loss(loss, outputs, y[few], row_weights is not None)
    if draws:
        return True, "its forward pass draws random numbers (dropout?)"
    stacked = StackedGradient(one.module, one.risk)
    try:
        with torch.no_grad():
            stacked.losses(one.params, one.frozen, tree_map(torch.clone, one.buffers), x[few], y[few], None, True)
    except RuntimeError as error:  # what vmap has no rule for
        return False, str(error).split("\n")[0]
    return False, ""
