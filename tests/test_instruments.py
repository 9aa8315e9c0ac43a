"""A battery over every registered instrument: it agrees with its oracle, and depends on nothing that should not matter.

An instrument returns an `Operator`, an `Estimate`, a tensor, a number, or a frozen dataclass of these. What the battery compares is found
from the result, so that a new instrument is tested by being registered.
"""

from __future__ import annotations

import dataclasses
import gc
import inspect
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from zoo import ZOO, make, mlp, vectors

import theorylab.instruments
from theorylab.core.estimate import Estimate
from theorylab.core.instrument import Inapplicable, Instrument, instruments
from theorylab.core.operator import Operator
from theorylab.core.problem import Problem

assert theorylab.instruments  # its import fills the registry
EVERY = pytest.mark.parametrize("tool", instruments().values(), ids=lambda tool: tool.name)
INSTRUMENTS = pytest.mark.parametrize("tool", [t for t in instruments().values() if not t.trains], ids=lambda tool: tool.name)
HOW_NOT_WHAT = {"converged", "n_matvecs", "residual", "residuals"}
"""Fields that say how a result was reached; an oracle reaches it otherwise."""


def numbers(result: Any) -> dict[str, Tensor]:
    """What a measurement says, as float64 tensors of the CPU by name; the sign of a unit vector is arbitrary and is dropped."""
    if isinstance(result, Operator):
        return {"matrix": result.to_dense().cpu().double()}
    if isinstance(result, Estimate):
        return {"value": torch.tensor(result.value, dtype=torch.float64)}
    if isinstance(result, Tensor):
        return {"tensor": result.detach().cpu().double()}
    if isinstance(result, int | float):
        return {"number": torch.tensor(result, dtype=torch.float64)}
    if result is None or isinstance(result, str):  # a remark
        return {}
    if isinstance(result, Mapping | tuple):
        items = result.items() if isinstance(result, Mapping) else enumerate(result)
        return {f"{k}.{inner}": t for k, v in items for inner, t in numbers(v).items()}
    assert dataclasses.is_dataclass(result), f"an instrument must not return a {type(result).__name__}"
    parts = {f.name: getattr(result, f.name) for f in dataclasses.fields(result) if f.name not in HOW_NOT_WHAT}
    signless = {k: v.abs() if k in ("vector", "vectors") else v for k, v in parts.items()}
    return {f"{k}.{inner}": t for k, v in signless.items() for inner, t in numbers(v).items()}


def accurate(tool: Instrument) -> dict[str, Any]:
    """Options that make an iterative instrument as exact as float64 allows."""
    return {"tol": 1e-10} if "tol" in inspect.signature(tool.measure).parameters else {}


def in_order(t: Tensor, axis: int, order: Tensor) -> Tensor:
    """Rows of the data put in another order along an axis that holds as many entries for each."""
    return t.unflatten(axis, (len(order), -1)).index_select(axis, order).flatten(axis, axis + 1)


def standard_errors(result: Any, name: str = "") -> dict[str, float]:
    """Of every Estimate in a result, under the name that `numbers` gives its value."""
    if isinstance(result, Estimate):
        return {name + "value": result.stderr}
    if isinstance(result, Mapping | tuple):
        items = result.items() if isinstance(result, Mapping) else enumerate(result)
    elif dataclasses.is_dataclass(result):
        items = [(f.name, getattr(result, f.name)) for f in dataclasses.fields(result) if f.name not in HOW_NOT_WHAT]
    else:
        return {}
    return {k: e for inner, part in items for k, e in standard_errors(part, f"{name}{inner}.").items()}


def regular(tool: Instrument) -> dict[str, Any]:
    """Options under which an inverse loses no digits: a small ridge multiplies rounding by the condition number."""
    return {"ridge": 1.0} if "ridge" in inspect.signature(tool.measure).parameters else {}


def assert_agree(a: Any, b: Any, tolerance: float) -> None:
    """The same numbers, relative to the largest of each; eigenvectors are less exact than their values, estimates within five errors."""
    first, second = numbers(a), numbers(b)
    assert first.keys() == second.keys()
    errors = [standard_errors(a), standard_errors(b)]
    for k in first:
        slack = tolerance ** (0.5 if "vector" in k else 1) * max(1e-12, float(second[k].abs().max()))
        slack += 5 * math.hypot(*(e.get(k, 0.0) for e in errors))
        assert torch.allclose(first[k], second[k], rtol=0, atol=slack), k


def takes(tool: Instrument, problem: Problem) -> bool:
    """Whether the instrument measures this problem; where it says why not, it must refuse with that reason."""
    reason = tool.why_not(problem)
    if reason is None:
        return True
    with pytest.raises(Inapplicable, match=re.escape(reason)):
        tool.measure(problem)
    return False


def activation(tool: Instrument) -> type[torch.nn.Module]:
    """Of the small network that a test measures: none for an instrument that has nothing to measure through a tanh."""
    return torch.nn.Tanh if tool.why_not(make("mlp")) is None else torch.nn.Identity


def usual(tool: Instrument, **options: Any) -> Problem:
    """That network on its data."""
    return make("mlp" if activation(tool) is torch.nn.Tanh else "deep linear", **options)


@INSTRUMENTS
@pytest.mark.parametrize("name", ZOO)
def test_agrees_with_its_oracle(tool: Instrument, name: str) -> None:
    problem = make(name)
    if takes(tool, problem):
        assert_agree(tool.measure(problem, **accurate(tool)), tool.oracle(problem), 1e-9)


@EVERY
def test_has_a_source_and_a_docstring_with_an_example(tool: Instrument) -> None:
    text = inspect.getdoc(tool.measure) or ""
    assert ">>>" in text
    assert tool.source.ref in text


@EVERY
def test_is_exported_and_its_family_has_a_page(tool: Instrument) -> None:
    assert getattr(theorylab, tool.name) is tool.measure
    page = Path(__file__).parents[1] / "docs" / "instruments" / f"{tool.family}.md"
    assert f"{{family}} {tool.family}" in page.read_text(encoding="utf-8")


@INSTRUMENTS
def test_does_not_depend_on_how_the_data_are_split(tool: Instrument) -> None:
    whole = tool.measure(usual(tool), **accurate(tool))
    assert_agree(tool.measure(usual(tool, batch_size=5), **accurate(tool)), whole, 1e-10)


@INSTRUMENTS
def test_does_not_depend_on_the_order_of_rows(tool: Instrument) -> None:
    net, (x, y) = mlp(act=activation(tool)).double(), vectors()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    given, mixed = [tool.measure(Problem(net, F.cross_entropy, (x[i].double(), y[i])), **accurate(tool)) for i in (slice(None), order)]
    if tool.row_axes:
        given, mixed = numbers(given), numbers(mixed)
        for axis in tool.row_axes:
            given = {k: in_order(t, axis, order) for k, t in given.items()}
    assert_agree(given, mixed, 1e-10)


@INSTRUMENTS
def test_takes_the_order_of_parameters_from_the_model(tool: Instrument) -> None:
    names = ["4.bias", "0.weight", "2.weight", "0.bias"]
    results = [tool.measure(usual(tool, params=order), **accurate(tool)) for order in (names, names[::-1])]
    assert_agree(*results, 1e-12)


@INSTRUMENTS
def test_a_block_of_parameters_is_measured_as_by_the_oracle(tool: Instrument) -> None:
    problem = make("attention", params=["qkv.*", "head.weight"])
    if takes(tool, problem):
        assert_agree(tool.measure(problem, **accurate(tool)), tool.oracle(problem), 1e-9)


@INSTRUMENTS
def test_float32_agrees_with_float64_to_its_precision(tool: Instrument) -> None:
    single = tool.measure(usual(tool, dtype=torch.float32), **regular(tool))
    if isinstance(single, Operator):
        assert single.dtype == torch.float32
    assert_agree(single, tool.measure(usual(tool), **regular(tool)), 1e-5)


@INSTRUMENTS
def test_bfloat16_is_right_to_its_precision_or_refused(tool: Instrument) -> None:
    low = usual(tool, dtype=torch.bfloat16)
    if not takes(tool, low):
        return
    result = tool.measure(low)
    found, expected = numbers(result), numbers(tool.measure(usual(tool)))
    assert all(bool(torch.isfinite(t).all()) for t in found.values())
    if "seed" in inspect.signature(tool.measure).parameters and not isinstance(result, Operator):
        return  # what draws or trains takes another path after the first rounding
    for k, t in expected.items():  # eight bits: a rounding of 1/256, through three layers forward and back
        assert float((found[k] - t).abs().max()) <= 0.03 * float(t.abs().max()), k


@INSTRUMENTS
def test_is_repeatable_bit_by_bit(tool: Instrument) -> None:
    name = "dropout" if activation(tool) is torch.nn.Tanh else "deep linear"
    first, second = (numbers(tool.measure(make(name))) for _ in range(2))
    assert all(torch.equal(first[k], second[k]) for k in first)


@INSTRUMENTS
def test_leaves_the_model_and_the_generator_as_they_were(tool: Instrument) -> None:
    net, data = mlp(act=activation(tool), dropout=0.2), vectors()
    before, rng = {k: t.clone() for k, t in net.state_dict().items()}, torch.get_rng_state()
    numbers(tool.measure(Problem(net, F.cross_entropy, data, train=True)))
    assert all(torch.equal(t, before[k]) for k, t in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(p.grad is None for p in net.parameters())


@INSTRUMENTS
def test_leaves_no_tensor_behind(tool: Instrument) -> None:
    def living() -> int:
        gc.collect()
        return sum(issubclass(type(o), Tensor) for o in gc.get_objects())

    problem = usual(tool)
    tool.measure(problem)  # what is kept once may stay
    before = living()
    for _ in range(2):
        tool.measure(problem)
    assert living() < before + 2


@INSTRUMENTS
def test_refuses_a_loss_that_is_not_finite(tool: Instrument) -> None:
    x, y = vectors()
    x[3, 2] = float("nan")
    with pytest.raises(ValueError, match="loss must be finite"):
        tool.measure(Problem(mlp(act=activation(tool)), F.cross_entropy, (x, y)))


@INSTRUMENTS
def test_works_where_some_parameters_do_not_matter_or_the_loss_is_linear(tool: Instrument) -> None:
    """Derivatives that vanish identically have no graph: they are zero, not an error."""
    net, (x, y) = mlp(), vectors()
    net.register_parameter("unused", torch.nn.Parameter(torch.ones(3)))
    problem = Problem(net, F.cross_entropy, (x, y), dtype=torch.float64)
    if takes(tool, problem):
        assert_agree(tool.measure(problem, **accurate(tool)), tool.oracle(problem), 1e-9)
    linear = Problem(torch.nn.Linear(5, 1), lambda o, t: (o[:, 0] * t).mean(), (x, y), dtype=torch.float64)
    if tool.family != "curvature" or not takes(tool, linear):  # other quantities need not exist where the risk is unbounded
        return
    first, second = (numbers(measure(linear)) for measure in (tool.measure, tool.oracle))
    for key in (key for key in first if "vector" not in key):  # any unit vector is an eigenvector of zero
        assert torch.allclose(first[key], second[key], rtol=1e-9, atol=1e-12)
