"""Float32 that is float32: no product, convolution or recurrence in the shorter formats that PyTorch may put in its place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_BACKENDS = {"cpu": "mkldnn", "cuda": "cuda"}
_OPERATIONS = ("matmul", "conv", "rnn")
_SWITCHES = [("generic", "all"), *((b, o) for b in _BACKENDS.values() for o in ("all", *_OPERATIONS))]
"""Each after those that it follows where it is ``"none"``."""
_BY_OPERATION = hasattr(torch._C, "_get_fp32_precision_getter")
"""Whether this PyTorch, from 2.9, has a switch for each operation of each backend; older ones have `torch.set_float32_matmul_precision`
and ``torch.backends.cudnn.allow_tf32`` alone. Both kinds are kept and set, for PyTorch refuses to read the old where the new disagrees."""
Place = tuple[str, str]


def _get(place: Place) -> str:
    return torch._C._get_fp32_precision_getter(*place)


def _set(place: Place, value: str) -> None:
    torch._C._set_fp32_precision_setter(*place, value)


def is_shortened(device: torch.device | None = None) -> bool:
    """Whether PyTorch may calculate in less than float32 what is asked of it in float32.

    That is so by default for convolutions and recurrent layers on CUDA (TF32, of 10 bits), and for products where the user chose
    `torch.set_float32_matmul_precision` (TF32 on CUDA; bfloat16, of 7 bits, on CPUs that have it).

    Args:
        device: Where; by default anywhere.
    """
    if not _BY_OPERATION:
        cuda = device is None or device.type == "cuda"
        return torch.get_float32_matmul_precision() != "highest" or (cuda and torch.backends.cudnn.allow_tf32)
    backends = _BACKENDS.values() if device is None else [_BACKENDS[device.type]] if device.type in _BACKENDS else []
    return any(_get((backend, operation)) not in ("none", "ieee") for backend in backends for operation in _OPERATIONS)


def _taken_down() -> dict[Place, str]:
    """What each switch itself is set to; all are left at ``"none"``, for what they follow is read as theirs."""
    own: dict[Place, str] = {}
    for place in _SWITCHES:
        own[place] = _get(place)
        _set(place, "none")
    return own


def _cudnn_allows_tf32() -> bool:
    """The older switch of cuDNN, which cannot be read where it is on and the newer ones are off."""
    try:
        return torch.backends.cudnn.allow_tf32
    except RuntimeError:
        return True


@contextmanager
def full_float32(device: torch.device | None = None) -> Iterator[None]:
    """Calculate in float32 what is in float32; on leaving, also by an exception, all switches are as they were.

    A measurement in float32 is then that on every machine, whatever a training script has chosen for its speed.

    Args:
        device: Where; by default everywhere.

    Example:
        >>> torch.set_float32_matmul_precision("high")
        >>> with full_float32():
        ...     torch.get_float32_matmul_precision()
        'highest'
        >>> torch.get_float32_matmul_precision()
        'high'
        >>> torch.set_float32_matmul_precision("highest")
    """
    if not is_shortened(device):  # the common case, within products of a millisecond
        yield
        return
    own = _taken_down() if _BY_OPERATION else {}
    matmul, cudnn = torch.get_float32_matmul_precision(), _cudnn_allows_tf32()
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    for place in own:
        _set(place, "ieee")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = cudnn
        for place, value in own.items():
            _set(place, value)
