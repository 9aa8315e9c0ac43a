"""Every closed form refuses what is no number: fed to each argument of each public function of ``theorylab.theory``, in turn."""

from __future__ import annotations

import contextlib
import doctest
import functools
import importlib
import inspect
import io
import math
import pkgutil
import types
import typing
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest

import theorylab.theory as package
from theorylab.core.privacy_ledger import PrivacyLedger
from theorylab.theory import privacy_loss
from theorylab.theory.loss_pairs import step_pairs

RUN = PrivacyLedger(q=0.5, sigma=1.0, steps=2)
(PAIR, _) = step_pairs(RUN)
WITHOUT_EXAMPLE: dict[Callable[..., Any], dict[str, Any]] = {
    privacy_loss.on_grid: {"pair": PAIR, "cell": 0.1},
    privacy_loss.compose: {"parts": [(privacy_loss.on_grid(PAIR, 0.1), 2)]},
    privacy_loss.composed: {"ledgers": [RUN]},
}
"""Arguments of functions whose docstring does not call them."""


def examples(module: ModuleType) -> dict[str, inspect.BoundArguments]:
    """The arguments of the first call of each public function in the module's docstrings."""
    calls: dict[str, inspect.BoundArguments] = {}

    def recorded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            calls.setdefault(name, inspect.signature(function).bind(*args, **kwargs))
            return function(*args, **kwargs)

        return call

    functions = {
        name: f
        for name, f in vars(module).items()
        if inspect.isfunction(inspect.unwrap(f)) and f.__module__ == module.__name__ and not name.startswith("_")
    }
    names = vars(module) | {name: recorded(name, f) for name, f in functions.items()}
    for test in doctest.DocTestFinder().find(module, globs=names):
        with contextlib.redirect_stdout(io.StringIO()):
            doctest.DocTestRunner().run(test)
    for name, f in functions.items():
        if name not in calls and f in WITHOUT_EXAMPLE:
            calls[name] = inspect.signature(f).bind(**WITHOUT_EXAMPLE[f])
        assert name in calls or not numeric(f), f"{module.__name__}.{name} takes a number and has no example: add one"
    return {name: call for name, call in calls.items() if numeric(functions[name])}


def numeric(function: Callable[..., Any]) -> dict[str, tuple[float, ...]]:
    """Of each argument that is a number by its annotation what it must refuse: NaN, and where it counts what is not whole."""
    found: dict[str, tuple[float, ...]] = {}
    for name, hint in typing.get_type_hints(inspect.unwrap(function)).items():
        kinds = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
        if name != "return" and (float in kinds or int in kinds):
            found[name] = (math.nan,) if float in kinds else (math.nan, 2.5)
    return found


def cases() -> Iterator[Any]:
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        for name, call in examples(module).items():
            for argument, values in numeric(getattr(module, name)).items():
                for value in values:
                    yield pytest.param(getattr(module, name), call, argument, value, id=f"{info.name}.{name}({argument}={value})")


@pytest.mark.parametrize(("function", "call", "argument", "value"), [*cases()])
def test_what_is_no_number_or_no_count_is_refused(
    function: Callable[..., Any], call: inspect.BoundArguments, argument: str, value: float
) -> None:
    arguments = {**call.arguments, argument: value}
    with pytest.raises((ValueError, TypeError)):
        function(**arguments)
