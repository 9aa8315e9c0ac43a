"""The safe context: a model evaluated in it has exact derivatives of every order, and is left bitwise as it was."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
import torch.utils.checkpoint
from torch import nn
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

from theorylab.core.attributes import attributes_kept
from theorylab.core.generators import seeded_generators
from theorylab.core.precision import full_float32, is_shortened

BATCH_COUPLED = (nn.modules.batchnorm._BatchNorm,)
"""Layers whose training-mode output of one row depends on the other rows."""
_set = object.__setattr__
"""`nn.Module`'s own looks for parameters and buffers first, at four times the cost."""


def needs_plain_kernels(modules: Iterable[nn.Module], train: bool) -> bool:
    """Whether a fused CPU or cuDNN kernel of one of a model's modules has no second derivative.

    True for recurrent layers, and for BatchNorm in training mode. Elsewhere oneDNN stays on: without it a convolution's Hessian product
    costs twice as much.
    """
    return any(isinstance(m, nn.RNNBase) or (train and isinstance(m, BATCH_COUPLED)) for m in modules)


@contextmanager
def _without(backend: Any) -> Iterator[None]:
    """A library of kernels switched off. The ``flags`` that come with it set the precision too, and fail where that is set by operation."""
    enabled = backend.enabled
    backend.enabled = False
    try:
        yield
    finally:
        backend.enabled = enabled


@contextmanager
def kernels(*, plain: bool, device: torch.device) -> Iterator[None]:
    """The kernels of `safe` that matter to products through a kept graph, which neither call the model nor draw random numbers.

    Args:
        plain: What `needs_plain_kernels` says of the model.
        device: Where it runs.
    """
    if not plain and not torch.is_autocast_enabled(device.type) and not is_shortened(device):
        yield  # the common case, within products of a millisecond
        return
    with ExitStack() as stack:
        stack.enter_context(torch.autocast(device.type, enabled=False))
        stack.enter_context(full_float32(device))
        if plain:
            stack.enter_context(_without(torch.backends.mkldnn))
            if device.type == "cuda":
                stack.enter_context(_without(torch.backends.cudnn))
        yield


@contextmanager
def math_attention() -> Iterator[None]:
    """PyTorch's own attention by its plain formula: `torch.nn.attention.sdpa_kernel`, which takes five times as long to enter."""
    cuda = torch.backends.cuda  # by name and place of the switches, which serve the CPU as well
    kept = cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.cudnn_sdp_enabled(), cuda.math_sdp_enabled()

    def choose(flash: bool, efficient: bool, cudnn: bool, math: bool) -> None:
        cuda.enable_flash_sdp(flash)
        cuda.enable_mem_efficient_sdp(efficient)
        cuda.enable_cudnn_sdp(cudnn)
        cuda.enable_math_sdp(math)

    choose(False, False, False, True)
    try:
        yield
    finally:
        choose(*kept)


_TWICE_DIFFERENTIABLE = {"_attn_implementation": ("eager", "sdpa", None), "_experts_implementation": ("eager", "batched_mm", None)}
"""By the attribute of a configuration of `transformers` that names a kernel, of attention and of mixtures of experts, those kept here."""


@contextmanager
def _configured(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Models of `transformers` choose kernels by name: others than PyTorch's own run eagerly. Their configurations are restored.

    Also from what a forward pass sets there: a classifier notes the kind of its labels.
    """
    configs: dict[int, Any] = {id(c): c for m in modules if hasattr(c := m.__dict__.get("config"), "_attn_implementation")}
    configs |= {id(part): part for c in configs.values() for part in vars(c).values() if hasattr(part, "_attn_implementation")}
    held = [(vars(c), dict(vars(c))) for c in configs.values()]
    try:
        for c in configs.values():
            for kind, names in _TWICE_DIFFERENTIABLE.items():
                if getattr(c, kind, None) not in names:
                    setattr(c, kind, "eager")
        yield
    finally:
        for now, before in held:
            now.clear()
            now.update(before)


class _ExactWeightNorm(TorchFunctionMode):
    """Weight normalization by its definition: the second derivative of PyTorch's fused kernel takes the norm for a constant."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch._weight_norm:  # pyright: ignore[reportPrivateImportUsage]
            return _weight_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _weight_norm(v: torch.Tensor, g: torch.Tensor, dim: int = 0) -> torch.Tensor:
    return v * (g / torch.norm_except_dim(v, 2, dim))


def _has_weight_norm(modules: Sequence[nn.Module]) -> bool:
    """Whether PyTorch's weight normalization, as a parametrization or in its older form of a hook, is on some module."""
    hooks = [hook for m in modules if m._forward_pre_hooks for hook in m._forward_pre_hooks.values()]
    return any(type(part).__name__ in ("WeightNorm", "_WeightNorm") for part in [*modules, *hooks])


class _NotRecomputed:
    """In place of PyTorch's checkpointing with ``use_reentrant=True``: the function itself."""

    @staticmethod
    def apply(function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
        return function(*args)


def _nothing_around(*args: Any, **kwargs: Any) -> Iterator[None]:
    """In place of what PyTorch's checkpointing does before and after the function, with ``use_reentrant=False``: nothing."""
    yield


def _refused_recomputation(*args: Any) -> Any:
    """In place of what saves a checkpointed part for later: never reached where the ways to it are replaced."""
    raise RuntimeError(f"checkpointing cannot be switched off in torch {torch.__version__}, and would spoil derivatives: measure without.")


_CHECKPOINTING: dict[str, Any] = {
    "CheckpointFunction": _NotRecomputed,
    "_checkpoint_without_reentrant_generator": _nothing_around,
    "_checkpoint_without_reentrant_generator_impl": _nothing_around,  # its name from torch 2.14
    "_checkpoint_hook": _refused_recomputation,
}
"""What PyTorch's checkpointing looks up in its own module at every call, and what stands there instead in a measurement."""


@contextmanager
def _without_recomputation() -> Iterator[None]:
    """Checkpointed parts of a model keep their activations.

    Recomputed in a backward pass they would see the model's own parameters instead of the problem's, and lose the second derivative.
    PyTorch has no switch for it, and the function that users import by name looks these up in its own module at every call.
    """
    module: Any = torch.utils.checkpoint
    kept = {name: getattr(module, name) for name in _CHECKPOINTING if hasattr(module, name)}
    try:
        for name in kept:
            setattr(module, name, _CHECKPOINTING[name])
        yield
    finally:
        for name, own in kept.items():
            setattr(module, name, own)


@contextmanager
def _uncached() -> Iterator[None]:
    """Weights of parametrizations are computed at every use: one kept by `parametrize.cached` is that of other parameters."""
    module: Any = parametrize
    kept = module._cache_enabled, module._cache
    module._cache_enabled, module._cache = 0, {}
    try:
        yield
    finally:
        module._cache_enabled, module._cache = kept


@contextmanager
def _eager() -> Iterator[None]:
    """Compiled models and functions run as they were written: compiled code has no second derivative, and is made anew for every shape."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and importing the compiler takes seconds
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


@contextmanager
def safe(model: nn.Module, *, train: bool, seed: int, device: torch.device) -> Iterator[None]:
    """Evaluate ``model`` with twice differentiable kernels and frozen random numbers; restore everything afterwards.

    Inside, attention runs the math kernel, attention and mixtures of experts of other packages run eagerly, the fast path of
    `nn.MultiheadAttention` and autocasting are off, float32 is not shortened (`full_float32`), oneDNN and cuDNN are off where
    `needs_plain_kernels`, nothing is compiled, checkpointed or cached by `parametrize.cached`, weight normalization is not fused,
    gradients of embeddings are dense, all modules are in training or evaluation mode as ``train`` says, gradients are enabled, and the
    random number generators are forked and seeded. All of it is undone on leaving, also by an exception, and so is what a forward pass
    stores on modules (`attributes_kept`).
    """
    modules = list(model.modules())
    fast_path = torch.backends.mha.get_fastpath_enabled()
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        kernels(plain=needs_plain_kernels(modules, train), device=device),
        math_attention(),
        attributes_kept(modules),
        _configured(modules),
        _ExactWeightNorm() if _has_weight_norm(modules) else nullcontext(),
        _without_recomputation(),
        _uncached(),
        _eager(),
        seeded_generators(seed, device),
    ):
        try:
            torch.backends.mha.set_fastpath_enabled(False)
            for module in modules:
                _set(module, "training", train)
                if isinstance(module, nn.Embedding | nn.EmbeddingBag):
                    module.sparse = False
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast_path)
