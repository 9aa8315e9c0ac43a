"""A device, ``far``, for machines without one: its tensors lie in main memory, as far from the CPU's operations as a GPU's are.

An operation on tensors of both, a generator of the other's, or a tensor of it given to NumPy is an error, as it is on a GPU; what PyTorch
allows there, numbers without a dimension and indices from the CPU, is allowed here. Arithmetic is the CPU's, so that results must be the
same. Importing this file registers the device in the process for good: tests do it in a process of their own.

Made of `__torch_dispatch__` and PyTorch's experimental Python backend (`torch.utils.backend_registration`).
"""

# pyright: reportAttributeAccessIssue=false, reportIncompatibleMethodOverride=false, reportAssignmentType=false

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._mode_utils import no_dispatch
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend as register

aten = torch.ops.aten


class _Guard(torch._C._acc.DeviceGuard):
    def type_(self) -> Any:
        return torch._C._autograd.DeviceType.PrivateUse1


class _Hooks(torch._C._acc.PrivateUse1Hooks):
    def is_available(self) -> bool:
        return True

    def is_built(self) -> bool:
        return True

    def has_primary_context(self, index: int) -> bool:
        return True


class _Module:
    """What ``torch.far`` offers; random numbers are those of the CPU."""

    is_initialized = is_available = staticmethod(lambda: True)
    current_device = staticmethod(lambda: 0)
    device_count = staticmethod(lambda: 1)
    _is_in_bad_fork = staticmethod(lambda: False)
    get_rng_state = staticmethod(lambda device=None: torch.get_rng_state())
    set_rng_state = staticmethod(lambda state, device=None: torch.set_rng_state(state))
    manual_seed = manual_seed_all = staticmethod(lambda seed: None)
    get_amp_supported_dtype = staticmethod(lambda: [torch.float16, torch.bfloat16])


register("far", backend_module=_Module(), hook=_Hooks(), device_guard=_Guard())
FAR = torch.device("far:0")


class Far(Tensor):
    """A tensor whose numbers only `_run` reaches."""

    raw: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, raw: Tensor) -> Far:
        far = Tensor._make_wrapper_subclass(
            cls, raw.shape, strides=raw.stride(), storage_offset=raw.storage_offset(), dtype=raw.dtype, device=FAR
        )
        far.raw = raw
        return far

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        return _run(func, args, kwargs or {})

    # what PyTorch reads from memory, past the dispatcher

    @property
    def data(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.detach()

    @data.setter
    def data(self, value: Tensor) -> None:
        assert isinstance(value, Far)
        assert value.shape == self.shape
        self.raw = value.raw

    def untyped_storage(self) -> Any:
        return self.raw.untyped_storage()

    def data_ptr(self) -> int:
        return self.raw.data_ptr()

    def tolist(self) -> Any:
        return self.raw.tolist()

    def new_tensor(self, data: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
        return torch.tensor(data, dtype=dtype or self.dtype, device=device or FAR, requires_grad=requires_grad)

    def __deepcopy__(self, memo: dict[int, Any]) -> Far:
        if id(self) not in memo:
            memo[id(self)] = Far(self.raw.detach().clone()).requires_grad_(self.requires_grad)
            if getattr(self, "_is_param", False):  # how PyTorch marks a parameter of another class
                memo[id(self)]._is_param = True
        return memo[id(self)]

    def __repr__(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        return f"Far({self.raw})"


TRANSFERS = {aten.copy_.default, aten._to_copy.default}
INDEXING = {
    aten.index.Tensor,
    aten._unsafe_index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
}
JOINING = {aten.cat.default, aten.stack.default}
"""Operations that take no number of the other device either."""


def _forbidden(func: Any, args: Any, far: list[Far], near: list[Tensor]) -> bool:
    """Whether a GPU would refuse these tensors together: all but numbers without a dimension, and the CPU's indices into a far tensor."""
    if not far or not near or func in TRANSFERS:
        return False
    if func in INDEXING:
        indexed, _, *values = args
        return not isinstance(indexed, Far) or any(isinstance(v, Tensor) and not isinstance(v, Far) and v.ndim for v in values)
    return func in JOINING or any(t.ndim for t in near)


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """An operation on the numbers themselves; what it returns is far where an argument was, or where it was asked for."""
    far: list[Far] = []
    near: list[Tensor] = []

    def numbers(value: Any) -> Any:
        kind = type(value)
        if kind is Far:
            far.append(value)
            return value.raw
        if kind is list or kind is tuple:
            return kind([numbers(v) for v in value])
        if isinstance(value, Tensor):
            near.append(value)
        return value

    taken, options = numbers(args), {k: numbers(v) for k, v in kwargs.items()}
    if _forbidden(func, args, far, near):
        shapes = ", ".join(f"{t.device.type}{list(t.shape)}" for t in (*far, *near))
        raise RuntimeError(f"Expected all tensors to be on the same device, {func} got {shapes}")
    wanted = options.get("device")
    stays = bool(far) if wanted is None else torch.device(wanted).type == "far"
    if wanted is not None:
        options["device"] = torch.device("cpu")
    if func is aten.copy_.default:
        stays = isinstance(args[0], Far)
    result = func(*taken, **options)
    own = {}  # what was changed in place is returned itself
    for t in far:
        own[id(t.raw)] = t
        if t.shape != t.raw.shape or t.stride() != t.raw.stride():  # squeezed, transposed or the like in place
            _reshape(t)

    def back(value: Any) -> Any:
        if isinstance(value, Tensor):
            return own[id(value)] if id(value) in own else Far(value) if stays else value
        return type(value)([back(v) for v in value]) if type(value) in (list, tuple) else value

    return back(result)


def _reshape(far: Far) -> None:
    """Give a tensor the shape that its numbers have got."""
    before = torch._C._meta_in_tls_dispatch_include()
    with no_dispatch():
        torch._C._set_meta_in_tls_dispatch_include(True)
        try:
            aten.as_strided_.default(far, far.raw.shape, far.raw.stride(), far.raw.storage_offset())
        finally:
            torch._C._set_meta_in_tls_dispatch_include(before)


def _made(op: Any) -> Callable[..., Any]:
    return lambda *args, **kwargs: _run(op, args, kwargs)


FALLBACK = torch.library.Library("_", "IMPL")
FALLBACK.fallback(lambda op, *args, **kwargs: _run(op, args, kwargs), "PrivateUse1")
OWN = torch.library.Library("aten", "IMPL")
GROWN = {"arange": ("default", "start", "start_step"), "eye": ("default", "m"), "randperm": ("default", "generator")}
"""Overloads of what would fill an empty tensor that it makes larger."""
for _name, _overloads in GROWN.items():
    for _overload in _overloads:
        _op = getattr(getattr(aten, _name), _overload)
        OWN.impl(_name if _overload == "default" else f"{_name}.{_overload}", _made(_op), "PrivateUse1")


class Generator(torch._C.Generator):
    """Of the CPU's numbers, for the device that was asked for."""

    far: bool

    def __new__(cls, device: Any = "cpu") -> Generator:
        generator = super().__new__(cls)
        generator.far = torch.device(device).type == "far"
        return generator

    def __init__(self, device: Any = "cpu") -> None:
        pass

    @property
    def device(self) -> torch.device:  # pyright: ignore[reportIncompatibleVariableOverride]
        return FAR if self.far else torch.device("cpu")


def _device(value: Any) -> str | None:
    """The kind of device of the first tensor among arguments."""
    if isinstance(value, Tensor):
        return value.device.type
    return next((d for v in value if (d := _device(v))), None) if isinstance(value, list | tuple) else None


def _from_list(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`torch.tensor` and the like, which the Python backend does not know: made on the CPU and moved."""

    def made(*args: Any, device: Any = None, requires_grad: bool = False, **kwargs: Any) -> Tensor:
        t = make(*args, **kwargs)
        t = t if device is None else t.to(device)
        return t.requires_grad_() if requires_grad else t

    return made


def _drawn(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A random number's generator must be of its device."""

    def checked(*args: Any, generator: Any = None, **kwargs: Any) -> Tensor:
        if generator is not None:
            place = _device([*args, *kwargs.values()]) or torch.device(kwargs.get("device") or "cpu").type
            if place != generator.device.type:
                raise RuntimeError(f"Expected a '{place}' device type for generator but found '{generator.device.type}'")
            kwargs["generator"] = generator
        return draw(*args, **kwargs)

    return checked


torch.Generator = Generator  # pyright: ignore[reportAttributeAccessIssue]
for _name in ("tensor", "as_tensor", "tril_indices", "triu_indices"):
    setattr(torch, _name, _from_list(getattr(torch, _name)))
for _name in ("randn", "rand", "randint", "randperm", "normal", "bernoulli", "multinomial", "poisson"):
    setattr(torch, _name, _drawn(getattr(torch, _name)))
for _name in ("normal_", "uniform_", "bernoulli_", "random_", "exponential_", "bernoulli", "multinomial"):
    setattr(Tensor, _name, _drawn(getattr(Tensor, _name)))
