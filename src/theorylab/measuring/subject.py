"""What does ``FILE.py:name`` mean? A user's file, run as Python runs it, and the problem that an object in it is or makes."""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from theorylab.core.problem import Problem


class SubjectError(Exception):
    """What the user names cannot be measured; the message says where, what and what to do."""


def load(target: str, *, device: str | None = None, dtype: torch.dtype | None = None) -> Problem:
    """The problem that ``FILE.py:name`` means.

    The object is a `Problem`, a tuple (model, loss, data), or a function without arguments that returns one of these. The file is imported,
    not run as a script; files beside it can be imported from it. What it prints goes to stderr.

    Args:
        target: ``"my_model.py:problem"``.
        device: Move the problem there.
        dtype: Convert it.

    Raises:
        SubjectError: no such file, no such name (with those that there are), the file or the function raises, or something else than a
            problem comes back.
    """
    path, name = _split(target)
    with contextlib.redirect_stdout(sys.stderr):
        module = _module(path)
        if not name:
            raise SubjectError(f"{target} names no object in the file: write {target}:NAME{_candidates(module)}")
        if not hasattr(module, name):
            raise SubjectError(f"{path} has no {name!r}{_candidates(module)}")
        found, how = getattr(module, name), f"{path}:{name}"
        if callable(found) and not isinstance(found, nn.Module | Problem):
            _no_arguments(found, how)
            found, how = _guarded(path, f"{name}()", found), f"{how}()"
        return _problem(path, found, how, device, dtype)


def _split(target: str) -> tuple[Path, str]:
    head, _, name = target.rpartition(":")
    if not head or "/" in name or "\\" in name:  # no colon, or that of a drive
        head, name = target, ""
    path = Path(head)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise SubjectError(f"{head} {what}; give a Python file and an object in it, as in my_model.py:problem.")
    return path, name


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise SubjectError(f"{path} is not a Python file (.py); give one, as in my_model.py:problem.")
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)  # as for a script, for imports of the files beside it
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(path.stem)
    sys.modules[path.stem] = module  # dataclasses and pickles of the file look for it here
    try:
        _guarded(path, "importing it", lambda: spec.loader.exec_module(module))  # type: ignore[union-attr]
    except SubjectError:
        sys.modules.pop(path.stem)
        if before is not None:
            sys.modules[path.stem] = before
        raise
    return module


def _guarded(path: Path, what: str, call: Callable[[], Any]) -> Any:
    """Call the user's code; what it raises is told by its last line and the last place in the user's own file."""
    try:
        return call()
    except (Exception, SystemExit) as error:
        raise SubjectError(f"{path}: {what} raised {_last_line(error)}{_where(path, error)}") from error


def _last_line(error: BaseException) -> str:
    """The error's kind and message, and what was noted beside it, in one line without a full stop."""
    kind, message = type(error).__name__, str(error.msg if isinstance(error, SyntaxError) else error)
    text = [f"{kind}: {message}" if message else kind, *getattr(error, "__notes__", [])]
    return ". ".join(" ".join(part.split()).removesuffix(".") for part in text)


def _where(path: Path, error: BaseException) -> str:
    if isinstance(error, SyntaxError):
        return f" (line {error.lineno})."
    frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).resolve() == path.resolve()]
    return f" (line {frames[-1].lineno}, in {frames[-1].name}: {frames[-1].line})." if frames else "."


def _no_arguments(function: Callable[..., Any], how: str) -> None:
    try:
        needed = [
            p.name
            for p in inspect.signature(function).parameters.values()
            if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        ]
    except (TypeError, ValueError):
        return  # a callable that does not tell its signature: calling it will
    if needed:
        raise SubjectError(f"{how} must be callable without arguments, but needs {', '.join(needed)}: give them defaults.")


def _candidates(module: ModuleType) -> str:
    """The objects of the file that could be meant."""
    names = list(_possible(module))
    return f"; it has {', '.join(names[:12])}." if names else ": define a function there that returns a theorylab.Problem."


def _possible(module: ModuleType) -> Iterator[str]:
    for name, value in vars(module).items():
        if name.startswith("_") or inspect.isclass(value) or inspect.ismodule(value):
            continue
        if isinstance(value, Problem) or _is_triple(value):
            yield name
        elif inspect.isfunction(value) and value.__module__ == module.__name__:
            with contextlib.suppress(SubjectError):
                _no_arguments(value, name)
                yield name


def _is_triple(value: Any) -> bool:
    return isinstance(value, tuple | list) and len(value) == 3 and isinstance(value[0], nn.Module) and callable(value[1])


def _problem(path: Path, found: Any, how: str, device: str | None, dtype: torch.dtype | None) -> Problem:
    if isinstance(found, Problem):
        return _guarded(path, f"moving {how}", lambda: found.to(device=device, dtype=dtype))
    if _is_triple(found):
        model, loss, data = found
        return _guarded(path, f"the problem of {how}", lambda: Problem(model, loss, data, device=device, dtype=dtype))
    kind = f"{type(found).__name__} of {len(found)}" if isinstance(found, tuple | list) else type(found).__name__
    raise SubjectError(f"{how} must be a theorylab.Problem, or a tuple (model, loss, data), or a function that returns one; got {kind}.")
