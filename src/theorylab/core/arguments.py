"""What a Problem asks of a model, a loss and its options, and an instrument of numbers and rows, before any work."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter


def check_arguments(model: Any, loss: Any, *, dtype: Any, train: Any) -> None:
    """Refuse what no Problem can be made of.

    Raises:
        TypeError: an argument of the wrong kind, or a TorchScript module, whose parameters cannot be replaced.
        ValueError: parameters that hold no values.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {kind_of(model)}.")
    check_loss_kind(loss)
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype must be a torch.dtype such as torch.float64, got {dtype!r}.")
    if dtype is not None and not dtype.is_floating_point:
        raise TypeError(f"dtype must be a real floating-point type, got {dtype}.")
    if not isinstance(train, bool):
        raise TypeError(f"train must be True (training mode) or False (evaluation mode), got {train!r}.")
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            where = f"its part {name!r}" if name else "model"
            raise TypeError(f"{where} is a TorchScript module, whose parameters cannot be replaced: give the nn.Module it was made of.")
    for name, p in model.named_parameters():
        if isinstance(p, UninitializedParameter):
            raise ValueError(f"parameter {name} has no shape yet, because its layer is lazy: call the model on a batch once.")
        if p.is_meta:
            raise ValueError(f'parameter {name} is on the device "meta", where it holds no values: load them first.')


def check_loss_kind(loss: Any) -> None:
    """Refuse a loss that is no function, such as the class of a loss module."""
    if isinstance(loss, type) or not callable(loss):
        raise TypeError(f"loss must be callable, got {kind_of(loss)}.")


def given(values: Any, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor where it is; numbers, lists and arrays on the CPU. `torch.as_tensor` alone takes all to the user's default device.

    Example:
        >>> with torch.device("meta"):
        ...     given([1, 2]).tolist()
        [1, 2]
    """
    return torch.as_tensor(values, dtype=dtype, device=values.device if isinstance(values, Tensor) else "cpu")


def row_numbers(rows: Any, n: int, name: str) -> Tensor:
    """Which of ``n`` rows are meant, (k,) on the CPU: their numbers in the order given, or those that a mask marks.

    A mask read as numbers would be rows 0 and 1 over and over, and a negative number a row by another name.

    Args:
        rows: Integers, in any order and with repetitions, or booleans, one for each of the n rows.
        n: How many rows there are.
        name: What the caller calls ``rows``.

    Raises:
        ValueError: no row, numbers that are not whole, a row that does not exist, or a mask of another length.

    Example:
        >>> row_numbers([2, 0], 3, "rows").tolist(), row_numbers([False, True, True], 3, "rows").tolist()
        ([2, 0], [1, 2])
    """
    chosen = given(rows).cpu()
    if chosen.dtype == torch.bool:
        if chosen.shape != (n,):
            raise ValueError(f"{name}, as a mask, must have one entry for each of the {n} rows, got shape {tuple(chosen.shape)}.")
        chosen = chosen.nonzero()[:, 0]
    if chosen.ndim != 1 or len(chosen) == 0 or chosen.dtype not in (torch.int64, torch.int32):
        raise ValueError(
            f"{name} must be a list of at least one row number, or a mask that marks one, got {chosen.dtype} of shape "
            f"{tuple(chosen.shape)}."
        )
    if not 0 <= int(chosen.min()) <= int(chosen.max()) < n:
        raise ValueError(f"{name} must lie in 0..{n - 1}, got {int(chosen.min())}..{int(chosen.max())}.")
    return chosen.long()


def kind_of(value: Any) -> str:
    """What a value is, and of a class how to make an instance."""
    return f"the class {value.__name__}: make an instance, {value.__name__}(...)" if isinstance(value, type) else type(value).__name__
