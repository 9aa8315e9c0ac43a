"""An empirical risk at a point: a model, its loss and its data, differentiable to any order and never changed."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from theorylab.core.arguments import check_arguments
from theorylab.core.attributes import written_back
from theorylab.core.batches import Batch, as_batches, as_call, left_off, map_tensors, order_of, tensors_of
from theorylab.core.generators import generator_states, other_states, seed_generators, seed_others, seeded_others
from theorylab.core.loss_form import Reduction, naming, reduction_of, refuse_sum, refuse_sum_of_whole, unread, without_broadcast
from theorylab.core.safe import kernels, needs_plain_kernels, safe
from theorylab.core.selection import select
from theorylab.core.substitution import places_of, substituted

Params = dict[str, Tensor]


class Problem:
    r"""The risk :math:`L(\theta) = \frac1n \sum_i \ell_i(\theta)` of a model on its data, at the model's present parameters.

    A snapshot: parameters and buffers are copied when the problem is made, so that training the model afterwards does not move it. The
    model itself is only read. Parameters, buffers, ``.grad``, ``requires_grad``, training flags and other attributes, and the random
    number generators are bitwise the same after any call, also after one that raises.

    Args:
        model: Any module. Tied parameters count once. Of a data-parallel one the module within.
        loss: For batches that are pairs (x, y): ``loss(outputs, targets)``, with outputs = ``model(x)`` (``model(*x)`` for a tuple or
            list, ``model(**x)`` for a dict). For all other batches (dicts, triples, single tensors): ``loss(model, batch)``, where the
            model may be used in any way. Returns the mean over the batch's rows, or one loss a row; the shape decides, once. A loss that is
            a module has its buffers put back; its own flag, not ``train``, is that of its dropout or BatchNorm.
        data: A tuple (x, y); a dict; a list of batches; or a DataLoader, which is read once and kept. Batches are weighted by rows, which
            are the leading size that most tensors of a batch share.
        params: Names of the parameters that are differentiated, or a glob, or a list of either. Default: those that require a gradient.
        dtype: Convert copies of parameters, buffers and data to this floating-point type.
        device: Move copies there. Default: where the parameters are.
        train: Evaluate in training mode (BatchNorm by batch statistics, dropout on) instead of evaluation mode.
        seed: Freezes dropout: batch k draws from seed + k, at every evaluation the same. Also what a DataLoader draws when it is read.
        batch_size: Split the batches further. In training mode BatchNorm then sees the smaller batches.
        read: What of the model's outputs the loss of pairs and the instruments see: ``lambda out: out.logits``. Default: all.
        count: How much a batch weighs, given its content: predicted tokens, say. Default: its rows.

    Raises:
        ValueError: no data, batches whose rows are not known, nothing to differentiate, a glob that matches nothing, a loss that is a sum
            over rows, or neither a scalar nor (rows,), or a model that writes into its parameters in the forward pass.
        TypeError: not a module, not a callable, or a selected parameter that is not real floating point.

    Example:
        >>> problem = Problem(nn.Linear(2, 1, bias=False), nn.functional.mse_loss, (torch.eye(2), torch.zeros(2, 1)))
        >>> problem = problem.at({"weight": torch.tensor([[1.0, 3.0]])})
        >>> float(problem.loss()), problem.gradient().tolist()
        (5.0, [1.0, 3.0])
    """

    @torch.inference_mode(False)  # what is copied in inference mode can never be differentiated
    def __init__(
        self,
        model: nn.Module,
        loss: Callable[..., Tensor],
        data: Any,
        *,
        params: str | Sequence[str] | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        train: bool = False,
        seed: int = 0,
        batch_size: int | None = None,
        read: Callable[[Any], Any] | None = None,
        count: Callable[[Any], float] | None = None,
    ) -> None:
        check_arguments(model, loss, dtype=dtype, train=train)
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        self.model, self.criterion, self.train, self.seed = model, loss, train, seed
        self._plain, self._places = needs_plain_kernels(model.modules(), train), places_of(model)
        self._read, self._count = read, count
        names = select(model, params)
        tensors = dict(model.named_parameters())
        self.device = _one_device(tensors[names[0]].device if device is None else torch.device(device))

        def copied(t: Tensor) -> Tensor:
            return t.detach().to(self.device, dtype if t.is_floating_point() else None, copy=True)

        self.params: Params = {k: copied(tensors[k]) for k in names}
        self._frozen = {k: copied(t) for k, t in tensors.items() if k not in self.params}
        self._buffers = {k: copied(t) for k, t in model.named_buffers()}
        dtypes = {p.dtype for p in self.params.values()}
        if len(dtypes) > 1:
            raise TypeError(f"the selected parameters must be of one dtype, got {sorted(map(str, dtypes))}: pass dtype=.")
        (self.dtype,) = dtypes
        self.P = sum(p.numel() for p in self.params.values())
        self.batches = as_batches(data, dtype=dtype, device=self.device, seed=seed, batch_size=batch_size)
        self.n = sum(b.rows for b in self.batches)
        self.order, self.left_off = order_of(data, seed), left_off(data, self.n)
        own = {id(b) for b in model.buffers()}  # a loss may hold the model
        self._state_of_loss = [b for b in loss.buffers() if id(b) not in own] if isinstance(loss, nn.Module) else []
        self._copies = False
        self._draws_outside = False  # of Python's and NumPy's generators, which to save and restore takes longer than a small forward pass
        self.output_type: type | None = None  # unknown of loss(model, batch)
        self.complex_outputs = False
        self.reduction = self._try_out()

    @classmethod
    def from_hf(cls, model: nn.Module, batches: Any, **options: Any) -> Problem:
        """The risk of a Hugging Face model as it is, on dict batches that hold ``labels``.

        The loss is the model's own. Where it is the usual one of its task (found by comparing its derivative in the logits with those of
        next-token, token and sequence classification and of regression), batches become pairs and outputs the logits, classes on axis 1:
        (n, k), or (n, k, token) with the shift by one token done already, so that instruments of outputs apply. Labels of −100 are left
        out, and the mean runs over the predicted tokens of all batches together. Any other loss is measured as loss(model, batch), its
        batches weighted by rows.

        Keys and values are not cached. Attention runs in PyTorch's math kernel, or eagerly where the model uses another package.
        Some models compute norms or softmax in float32 whatever their dtype; a problem in float64 keeps that.

        Args:
            model: A model of `transformers`, or one wrapped by `peft`, of which the adapter is trainable.
            batches: A dict of tensors, a list of them, or a DataLoader that yields them.
            options: Of `Problem`, but for ``read`` and ``count``.

        Raises:
            ValueError: a batch without labels, or in which nothing is predicted; gradient checkpointing in training mode.
            TypeError: a batch that is not a dict, or a model of another kind.
        """
        from theorylab.core.huggingface import arguments

        loss, data, own = arguments(model, batches, train=options.get("train", False), seed=options.get("seed", 0))
        return cls(model, loss, data, **own, **options)

    @property
    def weights(self) -> list[float]:
        """Each batch's share of the rows, or of what ``count`` counts."""
        counts = [b.rows if self._count is None else self._count(b.content) for b in self.batches]
        return [c / sum(counts) for c in counts]

    def _tensors(self, params: Params | None) -> dict[str, Tensor]:
        # Buffers are cloned at every evaluation: BatchNorm in training mode writes into them, which torch.func refuses on the originals.
        return {**self._frozen, **{k: b.clone() for k, b in self._buffers.items()}, **(self.params if params is None else params)}

    def held(self) -> list[Tensor]:
        """Every tensor that the problem keeps: parameters, frozen ones, buffers and data."""
        return [*self.params.values(), *self._frozen.values(), *self._buffers.values(), *tensors_of([b.content for b in self.batches])]

    @contextmanager
    def safe(self) -> Iterator[None]:
        """The context in which every derivative is taken: see `theorylab.core.safe`."""
        others = seeded_others(self.seed) if self._draws_outside else nullcontext()
        with safe(self.model, train=self.train, seed=self.seed, device=self.device), others, written_back(self._state_of_loss):
            yield

    @contextmanager
    def kernels(self) -> Iterator[None]:
        """The part of `safe` that products through a kept graph need."""
        with kernels(plain=self._plain, device=self.device):
            yield

    def _seed(self, k: int) -> None:
        """Freeze what evaluating batch ``k`` draws, as dropout does."""
        seed_generators(self.seed + k, self.device)
        if self._draws_outside:
            seed_others(self.seed + k)

    def _given(self, data: Any) -> Any:
        """What the model or the loss gets of the data: copies where they write into them, else views, whose flags they may set."""
        return map_tensors(torch.clone if self._copies else torch.detach, data)

    def outputs(self, k: int, params: Params | None = None) -> Any:
        """Outputs of the model on x of batch ``k``; call it within `safe`.

        Raises:
            ValueError: the loss has the form loss(model, batch), which hides the outputs.
        """
        if not self.batches[k].is_pair:
            raise ValueError("this problem's loss has the form loss(model, batch): its outputs are unknown. Give batches as pairs (x, y).")
        args, kwargs = as_call(self._given(self.batches[k].content[0]))
        self._seed(k)
        with substituted(self.model, self._tensors(params), self._places):
            outputs = self.model(*args, **kwargs)
        return outputs if self._read is None else self._read(outputs)

    def loss_of(self, k: int, outputs: Any) -> Tensor:
        """Mean loss of batch ``k``, of pairs, given the model's outputs."""
        return self.criterion(outputs, self._given(self.batches[k].content[1])).mean()

    def batch_loss(self, k: int, params: Params | None = None) -> Tensor:
        """Mean loss of batch ``k``, a pure function of ``params`` (all that are selected); call it within `safe`."""
        return self._raw_loss(k, params).mean()

    def _raw_loss(self, k: int, params: Params | None = None) -> Tensor:
        if self.batches[k].is_pair:
            return self.criterion(self.outputs(k, params), self._given(self.batches[k].content[1]))
        self._seed(k)
        wanted = torch.is_grad_enabled()
        with torch.enable_grad(), substituted(self.model, self._tensors(params), self._places):
            value = self.criterion(self.model, self._given(self.batches[k].content))  # may take derivatives itself, of a residual say
        return value if wanted or not isinstance(value, Tensor) else value.detach()

    def loss(self, params: Params | None = None) -> Tensor:
        """Mean loss over all rows, a scalar tensor; differentiable in ``params`` where they are given.

        Raises:
            ValueError: the loss is not finite.
        """
        wanted = torch.is_grad_enabled() and params is not None
        with self.safe(), torch.set_grad_enabled(wanted):
            return finite(
                sum((w * self.batch_loss(k, params) for k, w in enumerate(self.weights)), start=torch.zeros((), device=self.device))
            )

    def gradient(self, params: Params | None = None) -> Tensor:
        """Gradient of the mean loss, flat (p,); batch by batch, so that memory is that of one.

        Raises:
            ValueError: the loss is not finite.
        """
        total: Tensor | None = None
        with self.safe():
            leaves = self.leaves(params)
            ordered = [leaves[k] for k in self.params]
            for k, w in enumerate(self.weights):
                loss = dependent(finite(self.batch_loss(k, leaves)))
                part = w * flat_gradient(torch.autograd.grad(loss, ordered, allow_unused=True), ordered)
                total = part if total is None else total + part
        assert total is not None
        return total

    def leaves(self, params: Params | None = None) -> Params:
        """Detached parameters that require a gradient, from which a graph can be built."""
        return {k: p.detach().requires_grad_() for k, p in (self.params if params is None else params).items()}

    @torch.inference_mode(False)
    def at(self, params: Params) -> Problem:
        """The same problem at other values of the selected parameters; those not given keep theirs.

        Raises:
            ValueError: a name that is not selected, or a value of another shape.
        """
        _check_fit("params", params, self.params, "the selected")
        moved = copy.copy(self)
        moved.params = _replaced(self.params, params)
        return moved

    @torch.inference_mode(False)
    def holding(self, tensors: Mapping[str, Tensor]) -> Problem:
        """The same problem of a model that holds other parameters, selected or not, and other buffers; those not given stay.

        Raises:
            ValueError: a name that the model does not hold, or a value of another shape.
        """
        _check_fit("tensors", tensors, {**self.params, **self._frozen, **self._buffers}, "what the model holds")
        moved = copy.copy(self)
        moved.params, moved._frozen, moved._buffers = (_replaced(held, tensors) for held in (self.params, self._frozen, self._buffers))
        return moved

    def only(self, params: str | Sequence[str]) -> Problem:
        """The same problem with fewer parameters selected: one block of its derivatives. The others are held where they are.

        Args:
            params: A name or a glob, or a list of either.

        Raises:
            ValueError: a pattern that matches no parameter, or a parameter that this problem does not select.
        """
        names = select(self.model, params)
        for k in names:
            if k not in self.params:
                raise ValueError(f"params names {k!r}, which is not among the selected: {', '.join(self.params)}.")
        moved = copy.copy(self)
        moved.params = {k: self.params[k] for k in names}
        moved._frozen = {**self._frozen, **{k: p for k, p in self.params.items() if k not in moved.params}}
        moved.P = sum(p.numel() for p in moved.params.values())
        return moved

    def on(self, batches: Sequence[Batch]) -> Problem:
        """The same model and loss, at the same parameters, on other batches: rows of this problem's, say."""
        moved = copy.copy(self)
        moved.batches = list(batches)
        moved.n = sum(b.rows for b in batches)
        return moved

    @torch.inference_mode(False)
    def to(self, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Problem:
        """The same problem on another device, or in another floating-point type; itself where nothing changes."""
        place = self.device if device is None else _one_device(torch.device(device))
        if place == self.device and dtype in (None, self.dtype):
            return self

        def move(t: Tensor) -> Tensor:
            return t.to(place, dtype if t.is_floating_point() else None)

        moved = copy.copy(self)
        moved.device, moved.dtype = place, dtype or self.dtype
        moved.params, moved._frozen, moved._buffers = map_tensors(move, (self.params, self._frozen, self._buffers))
        moved.batches = [Batch(map_tensors(move, b.content), b.rows) for b in self.batches]
        return moved

    def draws(self, k: int) -> bool:
        """Whether evaluating batch ``k`` draws random numbers, as dropout does; call it within `safe`."""
        self._seed(k)
        before = generator_states(self.device)
        with torch.no_grad():
            self.batch_loss(k)
        return self._draws_outside or not all(map(torch.equal, before, generator_states(self.device)))

    def flatten(self, params: Mapping[str, Tensor]) -> Tensor:
        """The selected parameters, or tensors of their shapes, as one vector (p,)."""
        return torch.cat([params[k].reshape(-1) for k in self.params])

    def unflatten(self, vector: Tensor) -> Params:
        """The inverse of `flatten`: views into ``vector`` (p,)."""
        if vector.shape != (self.P,):
            raise ValueError(f"vector must have shape ({self.P},), got {tuple(vector.shape)}.")
        parts = vector.split([p.numel() for p in self.params.values()])
        return {k: part.view(p.shape) for (k, p), part in zip(self.params.items(), parts, strict=True)}

    def _try_out(self) -> Reduction:
        """Evaluate the first batch, in a copy: what the loss makes of it, and what is written into on the way."""
        batch = Batch(map_tensors(torch.clone, self.batches[0].content), self.batches[0].rows)
        trial, tensors = self.on([batch]), {**self.params, **self._frozen}
        before = {k: p._version for k, p in tensors.items()}
        with seeded_others(self.seed):
            others = other_states()
            reduction = trial._detect_reduction(alone=len(self.batches) == 1)
            self._draws_outside = other_states() != others
        self.output_type, self.complex_outputs = trial.output_type, trial.complex_outputs
        self._copies = any(t._version for t in tensors_of(batch.content))
        for k, p in tensors.items():
            if p._version != before[k]:
                raise ValueError(
                    f"the model writes into its parameter {k} in the forward pass, as an embedding with max_norm does, which derivatives "
                    "would ignore: do it once before, and switch it off."
                )
        return reduction

    def _detect_reduction(self, *, alone: bool) -> Reduction:
        (batch,) = self.batches
        with self.safe(), torch.no_grad():
            if not batch.is_pair:
                with naming(batch, self.dtype, "loss(model, batch)"):
                    value = self._raw_loss(0)
                    reduction = reduction_of(value, batch.rows)
                    if reduction == "mean" and not alone:
                        refuse_sum_of_whole(lambda twice: self.on([twice])._raw_loss(0), batch, value)
                    return reduction
            with naming(batch, self.dtype, "model(x)"):
                outputs = self.outputs(0)
            self.output_type, self.complex_outputs = type(outputs), isinstance(outputs, Tensor) and outputs.is_complex()
            with naming(batch, self.dtype, "loss(outputs, y)", unread(outputs)):
                value = without_broadcast(self.criterion, outputs, batch.content[1])
                refuse_sum(self.criterion, outputs, batch, value)
                return reduction_of(value, batch.rows)

    def __repr__(self) -> str:
        loss = getattr(self.criterion, "__name__", type(self.criterion).__name__)
        form = "outputs, targets" if self.batches[0].is_pair else "model, batch"
        return (
            f"Problem({type(self.model).__name__}, {loss}({form}) reduced to {'a mean' if self.reduction == 'mean' else 'rows'}, "
            f"n={self.n} in {len(self.batches)} batches, P={self.P}, {'train' if self.train else 'eval'} mode, {self.dtype}, {self.device})"
        )


def check_problem(measure: str, problem: Any) -> None:
    """Refuse what is no Problem, a bare model for example.

    Raises:
        TypeError: naming what ``measure`` got.
    """
    if not isinstance(problem, Problem):
        raise TypeError(f"{measure} measures a Problem, got {type(problem).__name__}: make one, theorylab.Problem(model, loss, data).")


def _check_fit(name: str, new: Mapping[str, Tensor], held: Params, what: str) -> None:
    for k, t in new.items():
        if k not in held:
            raise ValueError(f"{name} holds {k!r}, which is not among {what}: {', '.join(held)}.")
        if t.shape != held[k].shape:
            raise ValueError(f"{name}[{k!r}] must have shape {tuple(held[k].shape)}, got {tuple(t.shape)}.")


def _replaced(held: Params, new: Mapping[str, Tensor]) -> Params:
    return {k: new[k].detach().to(v, copy=True) if k in new else v for k, v in held.items()}


def _one_device(device: torch.device) -> torch.device:
    """The device with its index, as tensors on it name it: ``cuda`` and ``mps`` are not equal to ``cuda:0`` and ``mps:0``."""
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {device} cannot be used here: this PyTorch sees no GPU.")
    return torch.empty(0, device=device).device


def finite(loss: Tensor) -> Tensor:
    """The loss itself; a ValueError where it is NaN or infinite, which stops a measurement."""
    value = loss.item()
    if not math.isfinite(value):
        raise ValueError(f"the loss must be finite to be measured, got {value}: check the model's parameters and the data.")
    return loss


def dependent(loss: Tensor) -> Tensor:
    """The loss itself; a ValueError where it has no graph back to the parameters, so that there is nothing to differentiate."""
    if not loss.requires_grad:
        raise ValueError(
            "the loss does not depend on the selected parameters: the model or the loss cuts the graph (detach, no_grad, argmax, item), "
            "or does not use them; then select others in params=."
        )
    return loss


def flat_gradient(grads: Iterable[Tensor | None], leaves: Iterable[Tensor]) -> Tensor:
    """What `torch.autograd.grad` gives for leaves that may be unused, as one vector (p,): None is zero."""
    return torch.cat([p.new_zeros(p.numel()) if g is None else g.reshape(-1) for p, g in zip(leaves, grads, strict=True)])
