"""How a Hugging Face model is measured as it is: its batches as pairs (inputs, labels), its logits, and the loss that is its own.

Nothing of `transformers` is imported: the model is called as its own trainer calls it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from theorylab.core.autograd_graph import nodes_before
from theorylab.core.batches import Batch, drain, map_tensors
from theorylab.core.loss_form import naming
from theorylab.core.safe import safe

TAKES = "Check that labels are what its own loss takes (classes are whole numbers from 0 to num_labels − 1), and that rows come first."
"""What to look at where a model raises on a batch."""
IGNORED = -100
"""The label of a token that is not predicted."""


@dataclass(frozen=True)
class Way:
    """One way to read a loss from logits: what to take from the outputs, the targets that belong to it, and the loss of PyTorch."""

    read: Callable[[Any], Tensor]
    targets: Callable[[Tensor], Tensor]
    loss: Callable[[Tensor, Tensor], Tensor]


def _same(t: Tensor) -> Tensor:
    return t


WAYS = {
    "next token": Way(lambda out: out.logits[:, :-1].transpose(1, 2), lambda y: y[:, 1:].contiguous(), F.cross_entropy),
    "every token": Way(lambda out: out.logits.transpose(1, 2), _same, F.cross_entropy),
    "class": Way(lambda out: out.logits, lambda y: y.view(-1), F.cross_entropy),
    "number": Way(lambda out: out.logits.squeeze(-1), lambda y: y.view(-1), F.mse_loss),
    "numbers": Way(lambda out: out.logits, _same, F.mse_loss),
    "bits": Way(lambda out: out.logits, _same, F.binary_cross_entropy_with_logits),
}
"""How the losses of Hugging Face models come from logits (n, token, k) or (n, k), classes on axis 1."""


def predicted(targets: Tensor) -> int:
    """How many predictions a batch's mean runs over: labels that are not masked, or rows where labels are not classes."""
    return len(targets) if targets.is_floating_point() else int((targets != IGNORED).sum())


def arguments(model: Any, batches: Any, *, train: bool, seed: int) -> tuple[Callable[..., Tensor], list[Any], dict[str, Any]]:
    """Loss, data and options with which a Problem measures the model's own loss on dict batches; see `Problem.from_hf`."""
    if not isinstance(model, nn.Module) or not hasattr(model, "config"):
        raise TypeError(f"model must be a model of transformers, with a config, got {type(model).__name__}: use Problem itself for others.")
    if train and any(getattr(m, "gradient_checkpointing", False) for m in model.modules()):
        # Recomputed in the backward pass, its layers would see the model's own parameters instead of the problem's.
        raise ValueError("model recomputes activations (gradient checkpointing), which cannot be differentiated twice: disable it first.")
    pairs = split_batches(model, batches, seed)
    if not pairs:
        raise ValueError("batches must hold at least one batch, got none.")
    device = next(model.parameters()).device
    way = way_of(model, map_tensors(lambda t: t.to(device), pairs[0][0]), pairs[0][1].to(device), device=device)
    if way is None:
        return own_loss, [{**x, "labels": y} for x, y in pairs], {}
    data = [(x, way.targets(y)) for x, y in pairs]
    if not all(predicted(y) for _, y in data):
        raise ValueError(f"every batch must hold a label that is predicted, got one in which all are {IGNORED}: leave it out.")
    return way.loss, data, {"read": way.read, "count": lambda content: predicted(content[1])}


def own_loss(model: nn.Module, batch: dict[str, Any]) -> Tensor:
    """The loss that the model computes itself."""
    return model(**batch).loss


def split_batches(model: Any, batches: Any, seed: int) -> list[tuple[dict[str, Any], Tensor]]:
    """Dicts (or a loader of dicts) as pairs (keyword arguments of the model, labels), with the options that measuring needs.

    Raises:
        TypeError: a batch that is not a dict.
        ValueError: a batch without labels.
    """
    items = [batches] if isinstance(batches, Mapping) else batches
    if not isinstance(items, Iterable):
        raise TypeError(f"batches must be a dict, a list of dicts or a DataLoader of dicts, got {type(batches).__name__}.")
    core = model.get_base_model() if hasattr(model, "get_base_model") else model
    accepted = inspect.signature(core.forward).parameters
    # A cache of keys and values is for generation, and its tensors have no place in a differentiated forward pass.
    options = {name: value for name, value in {"use_cache": False, "return_dict": True}.items() if name in accepted}
    pairs = []
    for item in drain(items, seed, next(model.parameters()).device):
        if not isinstance(item, Mapping):
            raise TypeError(f"every batch must be a dict of tensors, got {type(item).__name__}: use a tokenizer's collator.")
        if not isinstance(item.get("labels"), Tensor):
            got = f"'labels' of type {type(item['labels']).__name__}" if "labels" in item else ", ".join(map(str, item))
            raise ValueError(
                f"every batch must hold a tensor 'labels', got {got}. For a causal language model they are the input_ids, with {IGNORED} "
                "where nothing is predicted."
            )
        inputs = {k: v for k, v in item.items() if k != "labels"}
        if getattr(core.config, "is_encoder_decoder", False) and "decoder_input_ids" not in inputs:
            inputs["decoder_input_ids"] = core.prepare_decoder_input_ids_from_labels(item["labels"])
        pairs.append(({**inputs, **options}, item["labels"]))
    return pairs


def way_of(model: Any, inputs: dict[str, Any], labels: Tensor, *, device: torch.device) -> Way | None:
    """The way in `WAYS` whose value and derivative in the logits are those of the model's own loss on one batch; None where none is."""
    dtype = next(model.parameters()).dtype
    with safe(model, train=False, seed=0, device=device):
        with naming(Batch({**inputs, "labels": labels}, len(labels) if labels.ndim else 1), dtype, "model(**batch)", TAKES):
            out = model(**inputs, labels=labels)
        if _goes_around(out.loss, out.logits):
            return None
        (slope,) = torch.autograd.grad(out.loss, [out.logits]) if out.loss.requires_grad else (None,)
        loss, logits = out.loss.detach(), out.logits.detach().requires_grad_()
        for way in WAYS.values():
            try:
                ours = _loss(way, type(out)(logits=logits), labels)
            except (RuntimeError, ValueError, IndexError):
                continue  # shapes or dtypes of another task
            if ours.ndim == 0 and _close(ours.detach(), loss):
                (own,) = torch.autograd.grad(ours, [logits])
                if slope is None or _close(own, slope):
                    return way
    return None


def _goes_around(loss: Tensor, logits: Tensor) -> bool:
    """Whether parameters enter the loss otherwise than through the logits, as those of a router whose load is balanced.

    The graph says so whatever the weight of that part, which may be less than what `_close` sees.
    """
    return any(hasattr(node, "variable") for node in nodes_before([loss], beyond=[logits.grad_fn]))


def _loss(way: Way, out: Any, labels: Tensor) -> Tensor:
    values, targets = way.read(out), way.targets(labels)
    if way.loss is not F.cross_entropy and values.shape != targets.shape:
        raise ValueError("shapes of another task, which PyTorch would broadcast.")
    return way.loss(values, targets)


def _close(a: Tensor, b: Tensor) -> bool:
    # To half of the digits: the order of summation differs, and models compute their loss in float32 whatever the dtype of the logits.
    eps = max(torch.finfo(a.dtype).eps, torch.finfo(torch.float32).eps)
    return bool((a.double() - b.double()).abs().max() <= eps**0.5 * b.double().abs().max())
