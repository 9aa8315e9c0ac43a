"""The report card: what becomes a reading, what an instrument may do to it, and that it says the same on every face."""

from __future__ import annotations

import dataclasses
import html.parser
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import ZOO, make, mlp, vectors

import theorylab as tl
from theorylab.core import instrument as registry
from theorylab.core.estimate import Estimate
from theorylab.core.instrument import instrument
from theorylab.core.operator import Operator
from theorylab.core.reading import Reading
from theorylab.core.series import Series
from theorylab.core.source import Source
from theorylab.measuring import costs, operators
from theorylab.measuring.families import BY_NAME_ALONE, choose, families
from theorylab.measuring.measure import prepare
from theorylab.measuring.progress import Watch
from theorylab.measuring.readings import Shown, shown
from theorylab.measuring.tailored import KERNEL_ROWS, TAILORED, fewer_rows
from theorylab.report.card_page import render

SOURCE = Source("Nobody 1900", "Section 1", "A book")


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A family ``toy`` of instruments that say, refuse, raise and draw."""
    monkeypatch.setattr(registry, "_registry", {})

    def register(function, **options) -> None:
        instrument(oracle=function, source=SOURCE, family="toy", **options)(function)

    def says(problem: tl.Problem) -> Estimate:
        return Estimate(2.0, 0.1, 50)

    def refuses(problem: tl.Problem) -> float:
        raise AssertionError("measured, although it does not apply")

    def breaks(problem: tl.Problem) -> float:
        raise RuntimeError("first line\nsecond line")

    def draws(problem: tl.Problem, *, seed: int = 0, memory: int = 7) -> tuple[Reading, ...]:
        bound = Reading("error", 0.25, "bound", delta=0.05, assumptions=("rows are independent",), note="<script>")
        return bound, Reading("seed", float(seed), "measure"), Reading("memory", float(memory), "measure")

    register(says)
    register(refuses, refuses=lambda problem: "there is no such thing. Take another.")
    register(breaks)
    register(draws)
    return


@pytest.fixture(scope="module")
def card() -> tl.ReportCard:
    return tl.measure(make("mlp"), "curvature", only=["hessian", "ggn", "sharpness", "jacobian"], progress=False, title="zoo.py:mlp")


def reading(card: tl.ReportCard, name: str) -> Reading:
    (found,) = [r for r in card.readings if r.name == name]
    return found


# --- what the numbers say


def test_curvature_of_a_small_problem_is_that_of_the_dense_matrices(card: tl.ReportCard) -> None:
    problem = make("mlp")
    H, G = (torch.linalg.eigvalsh(f(problem).to_dense()) for f in (tl.hessian, tl.ggn))
    for name, values in (("Hessian", H), ("GGN", G)):
        for what, exact in (("trace", values.sum()), ("largest eigenvalue", values[-1]), ("smallest eigenvalue", values[0])):
            r = reading(card, f"{name} {what}")
            low, high = r.interval or (r.value, r.value)
            slack = 1e-9 * float(H[-1])  # rounding, beside the interval
            assert low - slack <= float(exact) <= high + slack, r
    rank = reading(card, "GGN effective rank")
    low, high = rank.interval or (rank.value, rank.value)
    assert low - 1e-6 <= float(G.sum() ** 2 / G.square().sum()) <= high + 1e-6
    assert reading(card, "sharpness").value == pytest.approx(float(H[-1]), rel=1e-3)
    J = tl.jacobian(problem).to_dense()
    assert reading(card, "Jacobian largest singular value").value == pytest.approx(float(torch.linalg.matrix_norm(J, 2)), rel=1e-3)
    assert reading(card, "Jacobian Frobenius norm").value == pytest.approx(float(J.norm()), rel=0.2)


def test_a_hessian_with_negative_curvature_has_no_effective_rank(card: tl.ReportCard) -> None:
    assert reading(card, "Hessian smallest eigenvalue").value < 0
    assert not [r for r in card.readings if r.name == "Hessian effective rank"]


def test_the_density_integrates_to_one(card: tl.ReportCard) -> None:
    (figure,) = card.entries[0].figures
    (line,) = figure.lines
    assert float(torch.trapezoid(torch.as_tensor(line.y), torch.as_tensor(line.x))) == pytest.approx(1.0, abs=0.02)
    assert line.low is not None
    assert line.high is not None
    assert (line.low <= line.y + 1e-12).all()
    assert (line.y <= line.high + 1e-12).all()


def test_entries_carry_cost_source_and_seed(card: tl.ReportCard) -> None:
    assert [e.instrument for e in card.entries] == ["hessian", "ggn", "sharpness", "jacobian"]
    for e in card.entries:
        assert (e.state, e.family, e.seed) == ("measured", "curvature", 0)
        assert e.seconds > 0
        assert e.matvecs
        assert e.source.locator
    assert card.entries[0].matvecs <= operators.products("hessian", make("mlp").P)


def test_provenance_says_what_was_measured(card: tl.ReportCard) -> None:
    problem = make("mlp")
    config = card.provenance.config
    expected = {"model": "Sequential", "parameters": problem.P, "rows": 12, "loss": "cross_entropy", "dtype": "float64", "device": "cpu"}
    assert expected.items() <= config.items()
    assert config["mean loss"] == pytest.approx(float(problem.loss()))
    assert card.provenance.versions["torch"] == torch.__version__.split("+")[0] or "+" in card.provenance.versions["torch"]
    assert card.title == "zoo.py:mlp"


def test_the_same_seed_gives_the_same_card_and_the_model_stays(card: tl.ReportCard) -> None:
    again = tl.measure(make("mlp"), "curvature", only=["hessian", "ggn", "sharpness", "jacobian"], progress=False, title="zoo.py:mlp")
    assert again.readings == card.readings
    assert again.provenance == card.provenance
    net, data = mlp(dropout=0.2), vectors()
    before, rng = {k: t.clone() for k, t in net.state_dict().items()}, torch.get_rng_state()
    tl.measure(tl.Problem(net, F.cross_entropy, data, train=True), only="sharpness", progress=False)
    assert all(torch.equal(t, before[k]) for k, t in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), rng)


# --- results become readings


@dataclass(frozen=True)
class Fitted:
    value: float
    residual: float
    converged: bool
    n_matvecs: int
    vector: Tensor
    spread: Estimate


@dataclass(frozen=True)
class Own:
    secret: Tensor
    n_matvecs: int = 3

    def readings(self) -> tuple[Reading, ...]:
        return (Reading("what it says", 1.0, "measure"),)

    def figures(self) -> tuple[Series, ...]:
        return (Series("curve", "A curve", "x", "y").line("a", [0, 1], [1, 2]),)


def no_operator(A: Operator) -> Shown:
    raise AssertionError("there is no operator here")


def test_fields_of_a_result_are_read_by_their_kind() -> None:
    result = Fitted(2.0, 0.5, False, 9, torch.ones(50), Estimate(1.0, 0.1, 100))
    found = shown("fitted", result, no_operator)
    assert [(r.name, r.value) for r in found.readings] == [("fitted", 2.0), ("fitted, spread", 1.0)]
    assert found.readings[0].interval == (1.5, 2.5)
    assert found.readings[1].interval == Estimate(1.0, 0.1, 100).interval(0.99)
    assert all("stopped before it converged" in r.note for r in found.readings)
    assert found.matvecs == 9


def test_a_result_with_readings_decides_itself() -> None:
    found = shown("own", Own(torch.ones(9)), no_operator)
    assert ([r.name for r in found.readings], [s.key for s in found.figures], found.matvecs) == (["what it says"], ["curve"], 3)


def test_a_tensor_is_read_by_its_quantiles() -> None:
    x = torch.linspace(1, 100, 100)
    found = shown("row_norms", x, no_operator)
    assert [(r.name, r.value) for r in found.readings] == [
        ("row norms, smallest", 1.0),
        ("row norms, median", pytest.approx(50.5)),
        ("row norms, largest", 100.0),
    ]
    assert found.figures[0].y_scale == "log"
    assert not shown("three", torch.tensor([1.0, 2.0, 4.0]), no_operator).figures
    assert shown("one", torch.tensor([[3.0]]), no_operator).readings[0].value == 3.0


@pytest.mark.parametrize(
    ("result", "error", "words"),
    [
        (float("nan"), ValueError, "must be finite"),
        (torch.tensor([1.0, float("inf")]), ValueError, "got 1 of 2 numbers"),
        ("words", TypeError, "returned a str in which there is nothing to read"),
        (None, TypeError, "needs a method readings"),
    ],
)
def test_what_cannot_be_read_is_refused(result: object, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        shown("tool", result, no_operator)


# --- instruments that do not do what they should


@pytest.mark.parametrize("name", ZOO)
def test_on_every_kind_of_model_an_instrument_measures_or_says_why_not(name: str) -> None:
    for entry in tl.measure(make(name), only=["sharpness", "norms", "kfac"], progress=False).entries:
        assert entry.state != "failed", entry.traceback
        assert entry.readings if entry.state == "measured" else entry.why


@pytest.mark.usefixtures("toy")
def test_an_instrument_that_refuses_or_raises_is_a_row_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")  # no cell is wrapped
    card = tl.measure(make("mlp"), "toy", seed=5, progress=False)
    states = {e.instrument: e.state for e in card.entries}
    assert states == {"says": "measured", "refuses": "inapplicable", "breaks": "failed", "draws": "measured"}
    by_name = {e.instrument: e for e in card.entries}
    assert by_name["refuses"].why == "there is no such thing. Take another."
    assert by_name["breaks"].why == "RuntimeError: first line"
    assert "second line" in by_name["breaks"].traceback
    assert reading(card, "seed").value == 5
    assert (by_name["draws"].seed, by_name["says"].seed) == (5, None)
    assert reading(card, "memory").value == 7
    text = str(card)
    for words in ("there is no such thing", "RuntimeError: first line", "δ = 0.05; rows are independent", "not applicable", "failed"):
        assert words in " ".join(text.split())


class Gaussian(nn.Linear):
    """A mean and a standard deviation a row; far away the latter overflows, which its density refuses."""

    @staticmethod
    def loss(outputs: Tensor, y: Tensor) -> Tensor:
        return -torch.distributions.Normal(outputs[:, 0], outputs[:, 1].exp()).log_prob(y)


class RealParts(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.view_as_real(x).flatten(1)


class WithNothing(nn.Linear):
    """Holds a matrix without rows."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.nothing = nn.Parameter(torch.empty(0, 4))

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + self.nothing.sum()


def ctc(outputs: Tensor, y: Tensor) -> Tensor:
    steps, labels = torch.full((12,), 6), torch.full((12,), 2)
    return F.ctc_loss(outputs.unflatten(1, (6, 5)).transpose(0, 1).log_softmax(2), y, steps[: len(y)], labels[: len(y)], reduction="none")


def odd(model: nn.Module, loss: object, y: Tensor | None = None, x: Tensor | None = None) -> tl.Problem:
    some, classes = vectors()
    return tl.Problem(model, loss, (some if x is None else x, classes if y is None else y))  # pyright: ignore[reportArgumentType]


ODD = {  # a problem, an instrument that applies to it, and one that does not
    "bool targets": (
        lambda: odd(nn.Sequential(nn.Linear(5, 1), nn.Flatten(0)), lambda o, y: (o - y.float()).square(), vectors()[1] == 1),
        "norms",
        "test_bound",
    ),
    "one-hot bool targets": (
        lambda: odd(nn.Linear(5, 3), lambda o, y: F.cross_entropy(o, y.float()), F.one_hot(vectors()[1], 3).bool()),
        "margin_geometry",
        "balancedness",
    ),
    "a loss that raises far away": (lambda: odd(Gaussian(5, 2), Gaussian.loss, vectors()[0][:, 0]), "flatness", "test_bound"),
    "complex inputs": (
        lambda: odd(nn.Sequential(RealParts(), nn.Linear(10, 3)), F.cross_entropy, x=vectors()[0] * 1j),
        "norms",
        "balancedness",
    ),
    "bags": (
        lambda: odd(nn.Sequential(nn.EmbeddingBag(7, 4), nn.Linear(4, 3)), F.cross_entropy, x=torch.arange(60).reshape(12, 5) % 7),
        "margin_geometry",
        "norms",
    ),
    "connectionist labels": (lambda: odd(nn.Linear(5, 30), ctc, torch.arange(24).reshape(12, 2) % 4 + 1), "norms", "true_fisher"),
    "a margin loss": (lambda: odd(nn.Linear(5, 3), nn.MultiMarginLoss()), "norms", "true_fisher"),
    "an empty parameter": (lambda: odd(WithNothing(5, 3), F.cross_entropy), "effective_rank", "balancedness"),
}


@pytest.mark.parametrize("name", ODD)
def test_what_one_part_cannot_take_does_not_take_the_card_with_it(name: str) -> None:
    build, applies, not_so = ODD[name]
    card = tl.measure(build(), only=[applies, not_so], progress=False)
    assert {e.instrument: e.state for e in card.entries} == {applies: "measured", not_so: "inapplicable"}, card.entries


@pytest.mark.usefixtures("toy")
def test_a_refusal_that_raises_is_a_row_too() -> None:
    def asks(problem: tl.Problem) -> float:
        raise AssertionError("measured, although it is not known to apply")

    def raises(problem: tl.Problem) -> str:
        raise RuntimeError("cannot tell")

    instrument(oracle=asks, source=SOURCE, family="toy", refuses=raises)(asks)
    card = tl.measure(make("mlp"), "toy", progress=False)
    states = {e.instrument: (e.state, e.why) for e in card.entries}
    assert states["asks"] == ("failed", "RuntimeError: cannot tell")
    assert states["says"][0] == "measured"


def test_a_loss_that_is_not_finite_is_refused_before_any_work() -> None:
    x, y = vectors()
    problem = tl.Problem(mlp(), lambda o, t: F.cross_entropy(o, t) * float("nan"), (x, y))
    with pytest.raises(ValueError, match="loss must be finite"):
        tl.measure(problem, progress=False)


@pytest.mark.parametrize(
    ("wanted", "only", "words"),
    [
        ("curvatur", None, "no family of instruments is called 'curvatur'; did you mean 'curvature'"),
        (["nonsense!"], None, "Families: .*curvature"),
        (None, "sharpnes", "no instrument is called 'sharpnes'; did you mean 'sharpness'"),
        ("hessian", "sharpness", "sharpness belongs to the family 'curvature', which is not among hessian"),
    ],
)
def test_unknown_names_are_refused_with_those_that_there_are(wanted: object, only: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        choose(wanted, only)  # pyright: ignore[reportArgumentType]


def test_something_else_than_a_problem_is_refused() -> None:
    with pytest.raises(TypeError, match=r"must be a theorylab\.Problem, got Linear"):
        tl.measure(nn.Linear(1, 1))  # pyright: ignore[reportArgumentType]


def test_every_instrument_has_a_family_and_every_family_can_be_chosen() -> None:
    every = families()
    assert {tool.name for tools in every.values() for tool in tools} == set(registry.instruments())
    for name, tools in every.items():
        assert choose(name) == tuple(tool for tool in tools if tool.name not in BY_NAME_ALONE)
    assert {tool.name for tool in choose()} == set(registry.instruments()) - set(BY_NAME_ALONE)
    for name in BY_NAME_ALONE:
        assert [tool.name for tool in choose(only=name)] == [tool.name for tool in choose(name)] == [name]
    assert [tool.name for tool in choose(["sharpness", "hessian"])] == ["sharpness", "hessian"]
    assert choose("sharpness,hessian") == choose(["sharpness", "hessian"])


# --- memory and cost


def test_a_memory_budget_splits_batches_and_changes_no_number() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        data = (torch.randn(160, 5), torch.arange(160) % 3)
        problem = tl.Problem(mlp(), F.cross_entropy, data, dtype=torch.float64)
    known = costs.footing(problem)
    budget = known.held + round(4 * costs.SLACK * known.product(40))
    card = tl.measure(problem, only=["sharpness", "ggn"], memory=budget, progress=False)
    free = tl.measure(problem, only=["sharpness", "ggn"], progress=False)
    assert card.provenance.config["batches"] >= 3
    assert reading(card, "sharpness").value == pytest.approx(reading(free, "sharpness").value, rel=1e-9)
    assert "products" in reading(card, "GGN trace").note


JOINT: dict[str, Callable[..., torch.Tensor]] = {
    "class weights": lambda out, y: F.cross_entropy(out, y, weight=torch.tensor([1.0, 5.0, 0.2], dtype=torch.float64)),
    "ignored labels": lambda out, y: F.cross_entropy(out, y, ignore_index=0),
    "contrasts": lambda out, y: F.cross_entropy(out @ out.T, torch.arange(len(out))),
    "a sum": lambda model, batch: F.cross_entropy(model(batch["x"]), batch["y"], reduction="sum"),
}


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("name", JOINT)
def test_a_memory_budget_leaves_batches_whole_where_their_parts_have_another_risk(name: str, zero: bool) -> None:
    """Also where the last layer is zero: a mean of class weights has the loss of its parts there, and another gradient."""
    model, (x, y) = mlp(), vectors(160)
    if zero:
        nn.init.zeros_(model[-1].weight)
        nn.init.zeros_(model[-1].bias)
    problem = tl.Problem(model, JOINT[name], {"x": x, "y": y} if name == "a sum" else (x, y), dtype=torch.float64)
    known = costs.footing(problem)
    budget = known.held + round(4 * costs.SLACK * known.product(20))
    assert costs.share_out(problem, known, budget).problem is problem
    plain = tl.Problem(model, F.cross_entropy, (x, y), dtype=torch.float64)
    assert len(costs.share_out(plain, known, budget).problem.batches) > 1


def test_budgets_that_are_no_sizes_or_too_small_are_refused() -> None:
    problem = make("mlp")
    for bad in ("4 gallons", "-1", 0, "GiB"):
        with pytest.raises(ValueError, match="memory must be a size such as 4GiB"):
            tl.measure(problem, memory=bad, progress=False)
    with pytest.raises(ValueError, match="of the problem's own parameters and data, got 10 bytes"):
        tl.measure(problem, memory=10, progress=False)


def test_batchnorm_in_training_mode_is_never_split() -> None:
    problem = make("cnn, BatchNorm train")
    known = costs.footing(problem)
    assert costs.share_out(problem, known, known.held + 2).problem is problem
    other = make("cnn, BatchNorm eval")
    assert len(costs.share_out(other, costs.footing(other), costs.footing(other).held + 2).problem.batches) == other.n


def test_the_bytes_of_all_rows_are_foreseen_from_a_few(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net, data = nn.Sequential(nn.Linear(5, 64), nn.Tanh(), nn.Linear(64, 3)), (torch.randn(512, 5), torch.arange(512) % 3)
    problem = tl.Problem(net, F.cross_entropy, data)
    timed = {2: 0.001, 8: 0.004, 32: 0.016, 128: 0.064}
    monkeypatch.setattr(costs, "_seconds", lambda call: timed[call.__self__.n] if hasattr(call, "__self__") else 0.0)
    known = costs.footing(problem)  # stops at 128 rows, whose gradient takes long enough
    assert known.gradient == pytest.approx(0.0005 * 512)
    assert known.product(512) == pytest.approx(costs._product_bytes(problem), rel=0.1)


def test_few_free_vectors_mean_few_products(monkeypatch: pytest.MonkeyPatch) -> None:
    assert costs.free_vectors(make("mlp")) > 1000
    monkeypatch.setattr(costs, "free_vectors", lambda problem: 24)
    card = tl.measure(make("mlp"), only=["hessian", "kfac"], progress=False)
    assert reading(card, "Hessian trace").note == "XTrace, 8 products"
    assert "8 steps" in reading(card, "Hessian largest eigenvalue").note
    exact = torch.linalg.eigvalsh(tl.hessian(make("mlp")).to_dense())
    low, high = reading(card, "Hessian largest eigenvalue").interval or (0.0, 0.0)
    assert low - 1e-12 <= float(exact[-1]) <= high + 1e-12


def test_costs_grow_with_the_work_and_name_what_is_unknown() -> None:
    problem = make("mlp")
    known = costs.Footing(gradient=2.0, call=0.0, vector=0.0, held=100, base=0.0, row=1000.0)
    (sharp,), (hessian,) = choose("sharpness"), choose("hessian")
    assert costs.expect(sharp, problem, known).seconds == pytest.approx(2.0 * costs.PRODUCT * 30)
    assert (costs.expect(hessian, problem, known).seconds or 0) > (costs.expect(sharp, problem, known).seconds or 0)
    tight = costs.expect(hessian, problem, known, memory=200)
    assert (tight.seconds or 0) > (costs.expect(hessian, problem, known).seconds or 0)
    assert "rebuilt" in tight.basis
    stranger = dataclasses.replace(sharp, name="stranger")
    assert costs.expect(stranger, problem, known).seconds is None


def test_operators_in_half_precision_are_on_a_card_with_the_reason_why_not() -> None:
    card = tl.measure(make("mlp", dtype=torch.bfloat16), only="hessian,ggn,jacobian,per_example_grad_norms", progress=False)
    assert {e.instrument: e.state for e in card.entries} == {
        "hessian": "inapplicable",
        "ggn": "inapplicable",
        "jacobian": "inapplicable",
        "per_example_grad_norms": "measured",
    }
    assert all("Pass dtype=torch.float32" in e.why for e in card.entries if e.state == "inapplicable")


def test_the_cost_of_every_instrument_is_foreseen() -> None:
    tools, known = [tool for tools in families().values() for tool in tools], costs.Footing(0.1, 0.01, 1e-4, 100, 0.0, 1000.0)
    for name in ("mlp", "cnn, BatchNorm eval", "attention, tied", "dict batches, custom loss"):
        expected = {tool.name: costs.expect(tool, make(name), known) for tool in tools}
        assert [k for k, cost in expected.items() if not cost.seconds or not cost.bytes] == []


def test_decompositions_and_margins_cost_more_for_wider_layers() -> None:
    known = costs.Footing(gradient=0.0, call=0.0, vector=1.0, held=0, base=0.0, row=0.0)  # passes alone
    (ranks,), (margins,) = choose("effective_rank"), choose("margin_geometry")
    for width in (50, 500):
        net = nn.Sequential(nn.Linear(5, width), nn.Tanh(), nn.Linear(width, 3))
        problem = tl.Problem(net, F.cross_entropy, vectors(12))
        numbers = max(costs.SMALL, problem.P)
        assert costs.expect(ranks, problem, known).seconds == pytest.approx(costs.SVD * width * (5 * 5 + 3 * 3) / numbers)
        assert costs.expect(margins, problem, known).seconds == pytest.approx(costs.PROGRAMS * 12 * 2 * (3 * width) ** 2 / numbers)
        assert "passes of 1 s" in costs.expect(ranks, problem, known).basis


def test_what_is_said_of_single_instruments_is_of_some_that_there_are() -> None:
    for named in (costs.WORK, TAILORED, BY_NAME_ALONE, operators.IN_FULL):
        assert set(named) <= set(registry.instruments())


def test_preparing_measures_nothing(toy: None) -> None:
    session = prepare(make("mlp"), "toy")
    assert list(session.expected) == ["says", "refuses", "breaks", "draws"]
    assert session.card([]).unfinished == ("says", "refuses", "breaks", "draws")


# --- instruments that a card calls or reads in a way of their own


def test_kernels_are_measured_on_some_of_the_rows_and_say_so() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        n = 2 * KERNEL_ROWS + 1
        problem = tl.Problem(mlp(), F.cross_entropy, (torch.randn(n, 5), torch.arange(n) % 3), batch_size=400)
    few, remark = fewer_rows(problem, KERNEL_ROWS)
    assert few.n <= KERNEL_ROWS
    assert remark == "of every third row"
    assert torch.equal(few.batches[1].content[0], problem.batches[1].content[0][::3])
    assert fewer_rows(few, KERNEL_ROWS) == (few, "")
    card = tl.measure(problem, only="kernel_spectrum", progress=False)
    values = torch.linalg.eigvalsh(tl.ntk(few, trace_outputs=True).double())
    assert reading(card, "NTK largest eigenvalue").value == pytest.approx(float(values[-1]), rel=1e-5)
    assert reading(card, "NTK effective rank").value == pytest.approx(float(values.sum() ** 2 / values.square().sum()), rel=1e-5)
    assert "of every third row" in reading(card, "NTK trace").note
    assert card.entries[0].figures[0].lines[0].y[0] == pytest.approx(float(values[-1]), rel=1e-5)


def test_a_landscape_is_shown_by_its_cuts_through_the_point() -> None:
    problem = make("mlp")
    card = tl.measure(problem, only="landscape", progress=False)
    found = tl.landscape(problem, seed=0)
    assert reading(card, "largest loss nearby").value == pytest.approx(float(found.losses.max()))
    first, second = card.entries[0].figures[0].lines
    middle = len(found.coordinates) // 2
    assert first.y.tolist() == found.losses[:, middle].tolist()
    assert second.y.tolist() == found.losses[middle].tolist()
    assert first.y[middle] == pytest.approx(float(problem.loss()))


def test_gradient_noise_has_an_open_end_where_the_gradient_drowns() -> None:
    read = TAILORED["gradient_noise"].read
    assert read is not None
    names = {r.name: r for r in read(tl.gradient_noise(make("mlp"))).readings}
    assert "trace of the gradients' covariance" in names
    scale = next(r for k, r in names.items() if k.startswith("gradient noise scale"))
    assert scale.interval is None or scale.interval[0] <= scale.value <= scale.interval[1]


# --- progress


def test_progress_is_silent_at_first_and_says_then_what_runs() -> None:
    quiet, loud = (Console(record=True, file=io.StringIO()) for _ in range(2))
    with Watch(quiet, {"a": 0.0}, quiet=60) as watch:
        watch.begin("a")
        watch.end("a")
    assert quiet.export_text() == ""
    with Watch(loud, {"a": 0.0, "b": 12.0}, quiet=0) as watch:
        watch._timer.join()
        watch.begin("a")
        watch.end("a")
        watch.begin("b")
        watch.end("b")
    assert loud.export_text().splitlines() == ["measuring: a (1 of 2)", "measuring: b (2 of 2, about 12 s)"]


def test_a_terminal_shows_a_bar() -> None:
    terminal = Console(force_terminal=True, file=(shown_to := io.StringIO()), width=120)
    with Watch(terminal, {"a": 3.0, "b": 0.0}, quiet=0) as watch:
        watch._timer.join()
        watch.begin("a")
        watch.end("a")
        watch.begin("b")
    assert "a (1 of 2, about 3 s)" in shown_to.getvalue() or "b (2 of 2)" in shown_to.getvalue()


# --- a problem on another device or in another type


def test_a_problem_moves_with_its_point_and_its_selection() -> None:
    problem = make("mlp", params=["0.*"])
    problem = problem.at({k: v + 1 for k, v in problem.params.items()})
    single = problem.to(dtype=torch.float32)
    assert single.dtype == torch.float32
    assert list(single.params) == list(problem.params)
    assert float(single.loss()) == pytest.approx(float(problem.loss()), rel=1e-5)
    assert problem.to() is problem.to(device="cpu", dtype=torch.float64) is problem


# --- the faces


class Page(html.parser.HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.tags.append(tag)
        self.ids += filter(None, [named.get("id")])
        if tag == "a":
            self.links.append(named.get("href") or "")
        self.loads += [v for k in ("src", "srcset") if (v := named.get(k))]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_page_is_whole_in_itself(card: tl.ReportCard, tmp_path) -> None:
    path = card.to_html(tmp_path / "card.html")
    page = Page(text := path.read_text(encoding="utf-8"))
    assert len(page.ids) == len(set(page.ids))
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert page.loads == []
    assert "@import" not in text
    assert {"curvature/hessian", "curvature/jacobian", "family:curvature"} <= set(page.ids)
    assert page.tags.count("script") == 1
    assert text == card.to_html(tmp_path / "again.html").read_text(encoding="utf-8")


@pytest.mark.usefixtures("toy")
def test_page_shows_refusals_errors_and_bounds_and_runs_no_text() -> None:
    card = tl.measure(make("mlp"), "toy", progress=False, title="<b>x</b>")
    for text, scripts in ((card._repr_html_(), 0), (render(card), 1)):
        page = Page(text)
        words = " ".join(" ".join(page.words).split())
        for said in (
            "bound δ = 0.05",
            "assumes rows are independent",
            "There is no such thing. Take another.",
            "RuntimeError: first line",
        ):
            assert said in words
        assert "second line" in words  # of the traceback
        assert "<script>" in words  # a remark of an instrument, as text
        assert page.tags.count("script") == scripts
        assert "b" not in page.tags


def test_a_notebook_s_styles_stay_within_the_card(card: tl.ReportCard) -> None:
    text = card._repr_html_()
    assert text.startswith('<div class="theorylab-card">')
    style = text.partition("<style>")[2].partition("</style>")[0]
    depth, outside = 0, ""
    for char in style:  # selectors that stand at the top level of the style sheet
        depth += (char == "{") - (char == "}")
        outside += char if depth == 0 and char != "}" else ""
    assert ":root" not in outside
    assert all(".theorylab-card" in part for part in outside.replace("*/", "/*").split("/*")[::2] if part.strip())


def test_json_keeps_every_number(card: tl.ReportCard, tmp_path) -> None:
    text = card.to_json(tmp_path / "card.json")
    assert (tmp_path / "card.json").read_text(encoding="utf-8") == text
    again = tl.ReportCard.from_json(text)
    assert again.readings == card.readings
    assert again.to_json() == text
    assert str(again) == str(card)
    body = json.loads(text)
    for broken in ({**body, "schema": 99}, {k: v for k, v in body.items() if k != "entries"}, {**body, "entries": [{}]}):
        with pytest.raises(ValueError, match="card"):
            tl.ReportCard.from_json(json.dumps(broken))


def test_the_table_has_every_reading_with_its_kind(card: tl.ReportCard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    text = str(card)
    for r in card.readings:
        assert [line for line in text.splitlines() if line.strip().startswith(r.name) and line.endswith(r.label)]
    for e in card.entries:
        assert e.source.ref in text
    wide = Console(width=160, record=True, file=io.StringIO())
    wide.print(card)
    assert "XTrace" in wide.export_text()
