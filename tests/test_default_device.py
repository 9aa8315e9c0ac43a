"""A default device that users chose for their models is for these alone: tensors of ours name theirs.

``meta`` stands for it here: a tensor without values that went where it should not is found wherever one is needed.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_instruments import accurate, assert_agree
from torch.nn import functional as F
from zoo import make, mlp, vectors

import theorylab as tl
from theorylab.core.instrument import Instrument, instruments
from theorylab.core.operator import Operator
from theorylab.core.scale import Scale
from theorylab.core.study import load_study
from theorylab.data.digits import digits
from theorylab.data.synthetic import gaussian_mixture
from theorylab.learning.optimizers.sgd import sgd
from theorylab.learning.population import Population
from theorylab.learning.retraining import half_subsets

SOURCE = Path(tl.__file__).parent
FACTORIES = "zeros ones empty full rand randn randint randperm normal arange linspace logspace eye tensor as_tensor"
LAYERS = ["core", "linalg", "stats", "data", "models", "theory", "learning", "instruments", "measuring"]
"""Studies are run on a default device of their own. Modules make parameters where PyTorch's do, on the user's."""


def placeless(path: Path) -> Iterator[int]:
    """Lines that make a tensor without saying where."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    modules = [n for n in ast.walk(tree) if isinstance(n, ast.ClassDef) and any(ast.unparse(b).endswith("Module") for b in n.bases)]
    own = {id(n) for module in modules for n in ast.walk(module)}
    for n in ast.walk(tree):
        if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute) and ast.unparse(n.func.value) == "torch":
            made = n.func.attr in FACTORIES.split() and not any(k.arg == "device" for k in n.keywords)
            if made and (id(n) not in own or any(k.arg == "generator" for k in n.keywords)):
                yield n.lineno


@pytest.mark.parametrize("layer", LAYERS)
def test_every_tensor_is_made_in_a_place(layer: str) -> None:
    assert [f"{path}:{line}" for path in sorted((SOURCE / layer).rglob("*.py")) for line in placeless(path)] == []


def said(result: Any) -> Any:
    """An operator's products are taken later than it: here, at once."""
    return result.to_dense() if isinstance(result, Operator) else result


@pytest.mark.parametrize("tool", instruments().values(), ids=lambda tool: tool.name)
@pytest.mark.parametrize("name", ["mlp, minibatches", "cnn, BatchNorm eval"])
def test_an_instrument_says_the_same(tool: Instrument, name: str) -> None:
    first, second = make(name), make(name)
    if tool.why_not(first) is not None:
        return
    expected = said(tool.measure(first, **accurate(tool)))
    with torch.device("meta"):
        found = said(tool.measure(second, **accurate(tool)))
    assert_agree(found, expected, 1e-9)


def near(make: Callable[[], Any]) -> Any:
    """Made on the CPU whatever the default device, as the model and data of users are on a device of their choice."""
    with torch.device("cpu"):
        return make()


def trained() -> torch.Tensor:
    population = Population(lambda: near(mlp), F.cross_entropy, (X.double(), Y), optimizer=sgd(lr=0.1), seeds=[0, 1], batch_size=4)
    population.train(3)
    return population.losses()


X, Y = vectors()
SADDLE = load_study("optimization/saddle")
A = Operator((30, 30), lambda v: torch.linspace(1, 2, 30, dtype=torch.float64, device="cpu") * v, symmetric=True)
ELSEWHERE: dict[str, Callable[[], Any]] = {
    "eigs": lambda: tl.eigs(A, k=3),
    "trace": lambda: tl.trace(A),
    "logdet": lambda: tl.logdet(A, lower=1.0),
    "spectrum": lambda: tl.spectrum(A, probes=2, steps=5),
    "solve": lambda: tl.solve(A, torch.ones(30, dtype=torch.float64, device="cpu")).x,
    "a population": trained,
    "digits": lambda: digits(50),
    "a mixture": lambda: gaussian_mixture(10, 3),
    "half_subsets": lambda: half_subsets(6, 2),
    "a study": lambda: SADDLE.execute(SADDLE.scales[Scale.TINY]).findings,
    "shapley of a game": lambda: tl.shapley(lambda masks: masks.double().sum(1), 4).values,
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_other_results_are_the_same(name: str) -> None:
    expected = ELSEWHERE[name]()
    with torch.device("meta"):
        found = ELSEWHERE[name]()
    assert repr(found) == repr(expected)
