"""Digests of computations: the same in any process, and other where anything that is computed is another."""

from __future__ import annotations

import enum
import importlib
import subprocess
import sys
import sysconfig
import threading
import types
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import theorylab as tl
from theorylab.core import fingerprint as described
from theorylab.core.fingerprint import fingerprint
from theorylab.learning.optimizers.adam import adam
from theorylab.learning.optimizers.sgd import sgd
from theorylab.learning.schedule import scheduled

MODULE = """
import functools
import torch
from torch import nn
WIDTH = {width}
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, WIDTH)
    def forward(self, x):
        return {act}(self.layer(x))  # {comment}
def helper(x):
    return x {sign} 1
def make(): return Net()
@functools.cache
def cached(x):
    return x {sign} 1
def calls_cached(x): return cached(x)
class Kept:
    @functools.lru_cache
    def method(self): return 1 {sign} 1
    @functools.cached_property
    def value(self): return 1 {sign} 1
class Named:
    def __reduce__(self): return "named"
    def __call__(self, x): return x {sign} 1
named = Named()
def calls_named(x): return named(x)
def loss(out, y):
    return helper(out).square().mean()
names = {{"a", "b", "c", "d"}}
def uses_a_set(): return names
"""


def module(**change: Any) -> types.ModuleType:
    """A module of the user's, with some of its text changed."""
    made = types.ModuleType("somewhere")
    exec(MODULE.format(**{"width": 4, "act": "torch.tanh", "comment": "", "sign": "+"} | change), made.__dict__)
    return made


def test_what_does_the_same_has_the_same_digest() -> None:
    for name in ("make", "loss", "uses_a_set", "cached", "Kept", "calls_named"):
        first, again = (getattr(module(comment=c), name) for c in ("", "another comment\n\n"))
        assert fingerprint(first) == fingerprint(again)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("make", {"width": 5}),
        ("make", {"act": "torch.relu"}),
        ("loss", {"sign": "-"}),
        ("cached", {"sign": "-"}),
        ("calls_cached", {"sign": "-"}),
        ("Kept", {"sign": "-"}),
        ("calls_named", {"sign": "-"}),
    ],
    ids=["a value", "a method", "a function", "cached", "cached, called", "cached, of a class", "pickled by its name"],
)
def test_what_a_function_names_counts_however_deep(name: str, change: dict) -> None:
    assert fingerprint(getattr(module(), name)) != fingerprint(getattr(module(**change), name))


def test_functions_of_a_notebook_count_by_their_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """There ``__main__`` has the file of an installed package."""
    launcher = str(Path(sysconfig.get_path("purelib")) / "ipykernel_launcher.py")
    monkeypatch.setattr(sys.modules["__main__"], "__file__", launcher, raising=False)
    made = []
    for change in ({}, {"width": 5}):
        cell = {"__name__": "__main__"}
        exec(MODULE.format(**{"width": 4, "act": "torch.tanh", "comment": "", "sign": "+"} | change), cell)
        made.append(cell["make"])
    assert made[0].__module__ == "__main__"
    assert fingerprint(made[0]) != fingerprint(made[1])


def test_a_module_that_a_function_reaches_into_counts_by_its_source_as_it_is_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "theorylab_test_nets.py"
    found = []
    for width in (4, 5):
        file.write_text(f"def make(): return {width}")
        nets = importlib.import_module("theorylab_test_nets")
        found.append(fingerprint(lambda: nets.make()))  # noqa: B023 described at once
    assert found[0] != found[1]


WAYS = {
    "import": ("theorylab_test_{0}", "def f():\n    import theorylab_test_{0}_in.deep as d\n    return d.make()"),
    "from": ("theorylab_test_{0}", "def f():\n    from theorylab_test_{0}_in.deep import make\n    return make()"),
    "from a package": ("theorylab_test_{0}", "def f():\n    from theorylab_test_{0}_in import deep\n    return deep.make()"),
    "relative": (
        "theorylab_test_{0}_in.main",
        "def f():\n    def g():\n        from .deep import make\n        return make()\n    return g()",
    ),
    "attribute": ("theorylab_test_{0}", "import theorylab_test_{0}_in.deep\ndef f(): return theorylab_test_{0}_in.deep.make()"),
    "neighbour": ("theorylab_test_{0}", "def f():\n    import theorylab_test_{0}_by\n    return theorylab_test_{0}_by.make()"),
}
"""How a function may come to a file that it does not name itself: the module of the function, and its text."""


@pytest.mark.parametrize("way", WAYS)
def test_a_module_that_a_function_imports_when_it_runs_counts(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "".join(filter(str.isalpha, way))  # modules and their imports are remembered for the life of a process
    where, text = (part.format(name) for part in WAYS[way])
    package = tmp_path / f"theorylab_test_{name}_in"
    package.mkdir()
    (package / "__init__.py").touch()
    (tmp_path / f"theorylab_test_{name}_by.py").write_text(f"from theorylab_test_{name}_in.deep import make")
    (tmp_path / f"{where.replace('.', '/')}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    (package / "deep.py").write_text("def make(): return 1")
    f = importlib.import_module(where).f
    first = fingerprint(f)
    assert fingerprint(f) == first
    (package / "deep.py").write_text("def make(): return 2")
    assert fingerprint(f) != first


def test_nothing_is_imported_to_be_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "theorylab_test_loud.py").write_text("raise SystemExit('imported')")

    def f() -> None:
        import theorylab_test_loud  # noqa: F401  # pyright: ignore[reportMissingImports]
        import theorylab_test_that_is_not_there  # noqa: F401  # pyright: ignore[reportMissingImports]

    assert fingerprint(f) == fingerprint(f)


def test_what_theorylab_has_itself_counts_by_the_module_that_defines_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: set[str] = set()
    monkeypatch.setattr(described, "source_digest", lambda module, _: asked.add(module) or "0")
    monkeypatch.setattr(described, "_version", described._version.__wrapped__)

    def imports(problem: Any) -> Any:
        from theorylab import sharpness

        return sharpness(problem)

    for use in (lambda problem: tl.sharpness(problem), imports):
        asked.clear()
        fingerprint(use)
        assert "theorylab.sharpness" in asked


def test_the_version_of_an_installed_package_is_that_of_its_distribution() -> None:
    assert described._release("PIL") == f"pillow {metadata.version('pillow')}"
    assert described._release("torch") == metadata.version("torch")


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


@dataclass
class Settings:
    rate: float = 0.1
    tags: list[str] = field(default_factory=list)


def add(k: int) -> Callable[[int], int]:
    return lambda x: x + k


def early(x: int, by: int = 1) -> int:
    return x + by


def late(x: int, by: int = 2) -> int:
    return x + by


def keyword_order(*, a: int, b: int) -> int:
    return a - b


def keyword_disorder(*, b: int, a: int) -> int:
    return b - a


def any_name(a: int = 0, **more: int) -> dict[str, int]:
    return {"first": a, **more}


def any_place(a: int = 0, /, **more: int) -> dict[str, int]:
    return {"first": a, **more}


TANH, RELU = nn.Tanh(), nn.ReLU()

PAIRS: dict[str, tuple[Any, Any]] = {
    "numbers": (torch.arange(3), torch.tensor([0, 1, 3])),
    "precision": (torch.arange(3.0), torch.arange(3.0, dtype=torch.float64)),
    "shape": (torch.zeros(2, 3), torch.zeros(3, 2)),
    "array": (np.arange(3), np.arange(4)),
    "1 and 1.0": (1, 1.0),
    "nesting": ([1, [2]], [[1], 2]),
    "order of a dict": ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
    "order of layers": (
        nn.Sequential(OrderedDict(tanh=TANH, relu=RELU)),
        nn.Sequential(OrderedDict(relu=RELU, tanh=TANH)),
    ),
    "arguments by place or by name": (lambda *a: len(a), lambda **a: len(a)),
    "arguments by name alone": (keyword_order, keyword_disorder),
    "arguments by place alone": (any_name, any_place),
    "closure": (add(1), add(2)),
    "defaults": (early, late),
    "partial": (partial(add, 1), partial(add, 2)),
    "step size": (sgd(0.1), sgd(0.2)),
    "momentum": (sgd(0.1), sgd(0.1, momentum=0.5)),
    "optimizer": (sgd(0.1), adam(0.1)),
    "schedule, later": (scheduled(sgd, 0.1, lambda t: (t < 100) * 1.0), scheduled(sgd, 0.1, lambda t: (t < 200) * 1.0)),
    "option of a module": (nn.CrossEntropyLoss(), nn.CrossEntropyLoss(label_smoothing=0.1)),
    "enum": (Colour.RED, Colour.BLUE),
    "dataclass": (Settings(0.1), Settings(0.2)),
    "builtin": (torch.tanh, torch.sin),
    "builtin of a tensor": (torch.arange(3).dot, torch.arange(1, 4).dot),
    "attribute of a module": (lambda x: torch.tanh(x), lambda x: torch.sin(x)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_other_content_has_another_digest(name: str) -> None:
    one, other = PAIRS[name]
    assert fingerprint(one) == fingerprint(one)
    assert fingerprint(one) != fingerprint(other)


def test_the_order_in_which_an_optimizer_is_given_its_options_does_not_count() -> None:
    assert fingerprint(adam(lr=0.1, eps=1e-4)) == fingerprint(adam(eps=1e-4, lr=0.1))


def test_it_is_the_same_in_another_process(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MODULE.format(width=4, act="torch.tanh", comment="", sign="+"))
    program = (
        "import mine; from theorylab.core.fingerprint import fingerprint as f; from theorylab.learning.optimizers.sgd import sgd; "
        "print(f(mine.make, mine.loss, mine.uses_a_set, sgd(0.1, momentum=0.9), {'b', 'a', 'c'}))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=tmp_path,
            env={"PATH": "", "PYTHONHASHSEED": seed, "PYTHONPATH": ":".join([str(tmp_path), *sys.path])},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1


def test_cycles_end_and_a_copy_of_one_is_the_same() -> None:
    def cycle(end: int) -> list:
        inner: list = [1, end]
        inner.append([inner])
        return inner

    assert fingerprint(cycle(2)) == fingerprint(cycle(2)) != fingerprint(cycle(3))


def test_what_cannot_be_described_is_refused() -> None:
    with pytest.raises(TypeError, match="cannot be told from others of its kind"):
        fingerprint(partial(early, by=threading.Lock()))
