"""What rows and their labels must look like to be valued, checked before any work."""

from __future__ import annotations

from torch import Tensor


def check_rows(x: Tensor, y: Tensor, x_name: str = "x", y_name: str = "y", *, real: bool = False) -> None:
    """Refuse rows (n, d) that are no finite floating-point matrix, or targets (n,) that are not one class a row.

    Args:
        x: Rows.
        y: Classes, of an integer type; where ``real``, finite numbers as well.
        x_name: What the caller calls them.
        y_name: And these.
        real: Whether targets may be real numbers.

    Raises:
        TypeError: something else than a tensor.
        ValueError: names the argument, what it must be and what it is.
    """
    for name, given in ((x_name, x), (y_name, y)):
        if not isinstance(given, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(given).__name__}.")
    if x.ndim != 2 or len(x) == 0 or not x.is_floating_point():
        raise ValueError(f"{x_name} must be a floating-point matrix (rows, d) with a row, got {x.dtype} of shape {tuple(x.shape)}.")
    if not x.isfinite().all():
        raise ValueError(f"{x_name} must be finite.")
    what = "class or number" if real else "integer class"
    if y.shape != x.shape[:1] or y.is_complex() or (y.is_floating_point() and not real):
        raise ValueError(f"{y_name} must hold one {what} a row, ({len(x)},), got {y.dtype} of shape {tuple(y.shape)}.")
    if not y.isfinite().all():
        raise ValueError(f"{y_name} must be finite.")


def check_split(x: Tensor, y: Tensor, x_test: Tensor, y_test: Tensor, *, real: bool = False) -> None:
    """The same of training rows ``x, y`` and test rows, and that they have as many columns and targets of one kind."""
    check_rows(x, y, real=real)
    check_rows(x_test, y_test, "x_test", "y_test", real=real)
    if x.shape[1] != x_test.shape[1]:
        raise ValueError(f"x and x_test must have as many columns, got {x.shape[1]} and {x_test.shape[1]}.")
    if y.is_floating_point() != y_test.is_floating_point():
        raise ValueError(f"y and y_test must both be classes or both real numbers, got {y.dtype} and {y_test.dtype}.")


def check_classes(y: Tensor, y_test: Tensor | None = None) -> None:
    """Refuse classes that do not count from 0, or training rows of a single one, which no model can learn to tell apart."""
    if bool((y == y[0]).all()) or int(y.min()) < 0:
        raise ValueError(f"y must hold at least two classes, integers from 0, got {y.unique().tolist()}.")
    if y_test is not None and int(y_test.min()) < 0:
        raise ValueError(f"y_test must hold classes, integers from 0, got {y_test.unique().tolist()}.")
