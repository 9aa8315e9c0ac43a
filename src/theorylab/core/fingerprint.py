"""Is this the same computation as before? A digest of values, functions and modules by what they hold and do, not by where they live."""

from __future__ import annotations

import dis
import functools
import hashlib
import importlib.util
import sys
import sysconfig
import types
from collections.abc import Collection, Iterator
from importlib import metadata
from typing import Any

import numpy as np
import torch
from torch import Tensor

from theorylab.core.record import OURS, absolute_name, public_names, source_digest

PLAIN = (type(None), bool, int, float, complex, str, bytes, range, slice, type(...), torch.dtype, torch.device, torch.Size)
DESCRIPTORS = (staticmethod, classmethod)
UNTOLD = {"__dict__", "__weakref__", "__module__", "__doc__", "__annotations__", "__firstlineno__", "__static_attributes__", "_abc_impl"}
"""Entries of a class that do nothing, or do not repeat."""


def fingerprint(*things: Any) -> str:
    """Sixteen hex digits that are the same, also in another process, where the things hold the same and do the same.

    Tensors and arrays count by their numbers, containers and objects by what they hold, in its order but for sets. A function counts by its
    code, its defaults, what it closes over, and the functions, classes and values of its module that it names, however deep, and so does a
    class by its methods. Of installed packages names and versions count; of theorylab, and of modules that a function reaches into or
    imports when it runs, their source. Names of functions, comments and line numbers do not count. What differs may do the same all the
    same: the digest errs on that side alone, but for what a function looks up at run time (files, attributes by name).

    Raises:
        TypeError: something that cannot be described, such as an open file or a generator; the message names it.

    Example:
        >>> def power(k): return lambda x: x**k
        >>> fingerprint(power(2)) == fingerprint(power(2)), fingerprint(power(2)) == fingerprint(power(3))
        (True, False)
        >>> fingerprint(torch.tensor([1.0])) == fingerprint(torch.tensor([1.0], dtype=torch.float64))
        False
    """
    return _Digests().of(things)[:16]


class _Digests:
    """Digests of the parts of something, each computed once; a part within itself counts by how far out it is."""

    def __init__(self) -> None:
        self._open: list[int] = []
        self._known: dict[int, tuple[str, Any]] = {}  # with the object itself, so that no other takes its place in memory

    def of(self, thing: Any) -> str:
        if isinstance(thing, PLAIN):
            return _joined(type(thing).__name__, repr(thing))
        key = id(thing)
        if key in self._known:
            return self._known[key][0]
        if key in self._open:
            return _joined("within", str(len(self._open) - self._open.index(key)))
        self._open.append(key)
        try:
            digest = _joined(type(thing).__name__, *self._parts(thing))
        finally:
            self._open.pop()
        self._known[key] = digest, thing
        return digest

    def _parts(self, thing: Any) -> Iterator[str]:
        if isinstance(thing, Tensor):
            yield from self._numbers(thing.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy(), thing.dtype, thing.shape)
        elif isinstance(thing, np.ndarray | np.generic):
            array = np.asarray(thing)
            if array.dtype.hasobject:
                yield self.of(array.tolist())
            else:
                yield from self._numbers(np.ascontiguousarray(array).reshape(-1).view(np.uint8), array.dtype, array.shape)
        elif isinstance(thing, dict | types.MappingProxyType):
            yield from (self.of(k) + self.of(v) for k, v in thing.items())  # in their order, as of the layers of a network
        elif isinstance(thing, set | frozenset):
            yield from sorted(map(self.of, thing))
        elif isinstance(thing, list | tuple):
            yield from map(self.of, thing)
        elif isinstance(thing, types.ModuleType):
            yield _of_module(thing.__name__)
        elif isinstance(thing, types.CodeType):
            # a docstring is a constant like others; whether there are *args and **kwargs is among the flags
            counts = thing.co_posonlyargcount, thing.co_argcount, thing.co_kwonlyargcount, thing.co_flags
            arguments = thing.co_varnames[: thing.co_argcount + thing.co_kwonlyargcount]
            yield from (str(counts), thing.co_code.hex(), *thing.co_names, *arguments, *map(self.of, thing.co_consts))
        elif isinstance(thing, types.FunctionType):
            yield from self._function(thing)
        elif isinstance(thing, types.MethodType):
            yield from (self.of(thing.__func__), self.of(thing.__self__))
        elif isinstance(thing, type):
            yield from self._class(thing)
        elif isinstance(thing, property):
            yield from map(self.of, (thing.fget, thing.fset))
        elif isinstance(thing, functools.cached_property):
            yield self.of(thing.func)
        elif isinstance(thing, DESCRIPTORS):
            yield self.of(thing.__func__)
        elif isinstance(thing, functools.partial):
            yield from map(self.of, (thing.func, thing.args, thing.keywords))
        elif isinstance(thing, types.BuiltinFunctionType | types.WrapperDescriptorType | types.MethodDescriptorType):
            yield f"{getattr(thing, '__module__', '')}.{thing.__qualname__}"
            owner = getattr(thing, "__self__", None)  # of a method of C: a tensor, say
            if owner is not None and not isinstance(owner, types.ModuleType):
                yield self.of(owner)
        else:
            yield from self._object(thing)

    def _numbers(self, data: np.ndarray, dtype: Any, shape: Any) -> Iterator[str]:
        yield from (str(dtype), str(tuple(shape)), hashlib.sha256(data.data).hexdigest())

    def _function(self, function: types.FunctionType) -> Iterator[str]:
        yield from map(self.of, (function.__defaults__, function.__kwdefaults__))
        for cell in function.__closure__ or ():
            yield self.of(cell.cell_contents) if cell != types.CellType() else "empty"
        known = _version(function.__module__)
        if known:
            yield f"{function.__module__}.{function.__qualname__} {known}"
            return
        yield self.of(function.__code__)
        names, within = set(_names(function.__code__)), function.__globals__
        for name in sorted(names & within.keys()):
            yield name + self.of(within[name])
            if isinstance(within[name], types.ModuleType):
                yield from map(_of_module, sorted(_reached(within[name], names)))
        for name in sorted(set(_imports(function.__code__, str(within.get("__package__") or "")))):
            yield _of_module(name)
            yield from map(_of_module, sorted(_lazy(name, names)))

    def _class(self, cls: type) -> Iterator[str]:
        known = _version(cls.__module__)
        if known:
            yield f"{cls.__module__}.{cls.__qualname__} {known}"
            return
        yield cls.__qualname__
        yield from map(self.of, cls.__bases__)
        for name, value in sorted(vars(cls).items()):
            if name not in UNTOLD and not isinstance(value, types.GetSetDescriptorType | types.MemberDescriptorType):
                yield name + self.of(value)

    def _object(self, thing: Any) -> Iterator[str]:
        try:
            reduced = thing.__reduce_ex__(4)
        except TypeError as error:
            raise TypeError(f"{thing!r} cannot be told from others of its kind ({error}): use something else in its place.") from None
        if isinstance(reduced, tuple):
            yield from map(self.of, reduced)
            return
        yield f"{type(thing).__module__} {reduced}"  # a name, by which pickle finds it; what it does is told by what it wraps, or holds
        if hasattr(thing, "__wrapped__"):
            yield self.of(thing.__wrapped__)
        elif not _version(type(thing).__module__):
            yield from map(self.of, (type(thing), getattr(thing, "__dict__", {})))


def _joined(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _names(code: types.CodeType) -> Iterator[str]:
    """Names that a function, and those within it, may look up in its module."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _imports(code: types.CodeType, package: str) -> Iterator[str]:
    """Full names of what a function, and those within it, import when they run, whether modules or parts of them."""
    steps = [step for step in dis.get_instructions(code) if step.opname != "EXTENDED_ARG"]
    for level, parts, step in zip(steps, steps[1:], steps[2:], strict=False):
        if step.opname == "IMPORT_NAME" and (name := absolute_name(step.argval, level.argval, package)):
            yield from (name, *(f"{name}.{part}" for part in parts.argval or ()))
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _imports(constant, package)


def _reached(module: types.ModuleType, names: Collection[str]) -> set[str]:
    """Modules of the user's and of ours that code with these names may reach as attributes of ``module``."""
    found: set[str] = set()
    queue = [module]
    while queue:
        outer = queue.pop()
        if not _looked_into(outer.__name__):
            continue
        inner = [m for name in names if isinstance(m := vars(outer).get(name), types.ModuleType) and m.__name__ not in found]
        queue += inner
        found |= {m.__name__ for m in inner} | _lazy(outer.__name__, names)
    return found


def _lazy(module: str, names: Collection[str]) -> set[str]:
    """What theorylab itself imports when it is asked for it."""
    return {f"{OURS}.{name}" for name in names if name in public_names()} if module == OURS else set()


@functools.cache
def _version(module: str | None) -> str:
    """What stands for the source of an installed module: of theorylab the source itself; empty for one of the user's."""
    top = (module or "__main__").partition(".")[0]
    if top in ("__main__", "__mp_main__"):  # of a notebook, the file of this module is an installed one
        return ""
    if top == OURS:
        return _source(str(module))
    if top in sys.stdlib_module_names:
        return sys.version.split()[0]
    installed = {sysconfig.get_path(name) for name in ("purelib", "platlib")}
    return _release(top) if any(_place(top).startswith(p + "/") for p in installed) else ""


def _place(top: str) -> str:
    """Where a module is, imported or not; empty where that cannot be told."""
    path = getattr(sys.modules.get(top), "__file__", None)
    if path:
        return path
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):  # a module made by hand
        return ""
    return "" if spec is None else spec.origin or next(iter(spec.submodule_search_locations or ()), "")


def _release(top: str) -> str:
    """The version of the distribution that has a module: its own ``__version__`` is there only once it is imported."""
    try:
        return metadata.version(top)
    except metadata.PackageNotFoundError:  # its distribution has another name, which takes half a second to find
        names = metadata.packages_distributions().get(top, [])
    return " ".join(f"{name} {metadata.version(name)}" for name in sorted(set(names))) or "installed"


def _looked_into(module: str) -> bool:
    return module.partition(".")[0] == OURS or not _version(module)


def _of_module(module: str) -> str:
    return module + (_version(module) or _source(module))


def _source(module: str) -> str:
    """Digest of a module's source as it is now, and of what it imports of the user's and of ours; its name where it has none."""
    try:
        found = source_digest(module, _looked_into)
    except (ImportError, SyntaxError, ValueError):
        found = ""
    return found or module
