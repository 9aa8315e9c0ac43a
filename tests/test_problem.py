"""Problem: derivatives of every model in the zoo are right, the model is never changed, and wrong input is refused before any work."""

from __future__ import annotations

import copy
import random
from collections import UserDict, defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, TensorDataset
from zoo import ZOO, as_dict, cnn, dict_loss, labels, make, mlp, vectors

from theorylab.core.problem import Problem
from theorylab.instruments.curvature import ggn, hessian, sharpness
from theorylab.instruments.merging import merged
from theorylab.instruments.preflight import preflight
from theorylab.models.seeded import seeded

EVERY = pytest.mark.parametrize("name", ZOO)


def direction(problem: Problem, seed: int = 1) -> Tensor:
    return torch.randn(problem.P, generator=torch.Generator().manual_seed(seed), dtype=problem.dtype)


def moved(problem: Problem, v: Tensor, step: float) -> dict[str, Tensor]:
    return problem.unflatten(problem.flatten(problem.params) + step * v)


def snapshot(model: nn.Module) -> dict[str, Any]:
    tensors = {k: t.detach().clone() for k, t in model.state_dict().items()}
    other = [(k, p.requires_grad, None if p.grad is None else p.grad.clone(), p._version, id(p)) for k, p in model.named_parameters()]
    return {"tensors": tensors, "other": other, "training": [m.training for m in model.modules()], "rng": torch.get_rng_state()}


def assert_same(model: nn.Module, before: dict[str, Any]) -> None:
    after = snapshot(model)
    assert all(torch.equal(t, after["tensors"][k]) for k, t in before["tensors"].items())
    for (k, needs, grad, version, identity), now in zip(before["other"], after["other"], strict=True):
        assert (k, needs, version, identity) == (now[0], now[1], now[3], now[4])
        assert (grad is None) == (now[2] is None)
        assert grad is None or torch.equal(grad, now[2])
    assert before["training"] == after["training"]
    assert torch.equal(before["rng"], after["rng"])


@EVERY
def test_gradient_agrees_with_central_differences(name: str) -> None:
    problem = make(name)
    v, h = direction(problem), 1e-5
    with torch.no_grad():
        slope = (problem.loss(moved(problem, v, h)) - problem.loss(moved(problem, v, -h))) / (2 * h)
    assert float(problem.gradient() @ v) == pytest.approx(float(slope), rel=1e-6, abs=1e-7)  # error h²·f''' + ε/h ~ 1e-9


@EVERY
def test_hessian_product_agrees_with_central_differences(name: str) -> None:
    problem = make(name)
    v, h = direction(problem), 1e-5
    reference = (problem.gradient(moved(problem, v, h)) - problem.gradient(moved(problem, v, -h))) / (2 * h)
    kept, rebuilt = hessian(problem), hessian(problem, memory=0)
    for H in (kept, rebuilt):
        assert float((H @ v - reference).norm() / reference.norm()) < 1e-6
    assert torch.allclose(kept @ torch.stack([v, 2 * v], 1), torch.stack([kept @ v, 2 * (kept @ v)], 1), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", [k for k in ZOO if make(k).batches[0].is_pair])
def test_ggn_product_agrees_with_its_definition_by_differences(name: str) -> None:
    problem = make(name)
    v, h = direction(problem), 1e-5

    def surrogate(step: float) -> Tensor:
        """Gradient of the loss of the outputs linearized at the point: its derivative at the point is the GGN."""
        total = torch.zeros(problem.P, dtype=problem.dtype)
        with problem.safe():
            for k, w in enumerate(problem.weights):
                leaves = problem.leaves()
                f0 = problem.outputs(k, leaves)
                with torch.no_grad():
                    slope = (problem.outputs(k, moved(problem, v, h)) - problem.outputs(k, moved(problem, v, -h))) / (2 * h)
                head = (f0.detach() + step * slope).requires_grad_()
                (cotangent,) = torch.autograd.grad(problem.loss_of(k, head), head)
                grads = torch.autograd.grad(f0, list(leaves.values()), cotangent)
                total += w * torch.cat([g.reshape(-1) for g in grads])
        return total

    reference = (surrogate(h) - surrogate(-h)) / (2 * h)
    for G in (ggn(problem), ggn(problem, memory=0)):
        assert float((G @ v - reference).norm() / reference.norm()) < 1e-6


@EVERY
def test_the_model_is_left_bitwise_as_it_was(name: str) -> None:
    maker, loss, data, options = ZOO[name]
    model = maker()
    for k, p in enumerate(q for q in model.parameters() if q.requires_grad):
        if k % 2:
            p.grad = torch.ones_like(p)
    for k, module in enumerate(model.modules()):
        module.training = k % 2 == 0
    content = data()
    before = snapshot(model)
    problem = Problem(model, loss, content, **options)
    problem.loss()
    problem.gradient()
    assert hessian(problem) @ direction(problem) is not None
    if problem.batches[0].is_pair:
        assert ggn(problem) @ direction(problem) is not None
    assert_same(model, before)


@pytest.mark.parametrize("form", ["outputs, targets", "model, batch"])
def test_the_model_is_left_as_it_was_when_the_loss_raises(form: str) -> None:
    model, x = cnn(), torch.randn(4, 1, 6, 6)
    before = snapshot(model)
    calls = []

    def fails(a: Any, b: Any) -> Tensor:
        calls.append(1)
        if form == "model, batch":
            a(b["x"])
        raise RuntimeError("broken loss")

    data = (x, torch.zeros(4)) if form == "outputs, targets" else {"x": x}
    with pytest.raises(RuntimeError, match="broken loss"):
        Problem(model, fails, data, train=True)
    assert calls
    assert_same(model, before)


def test_training_the_model_does_not_move_the_problem() -> None:
    model = mlp()
    problem = Problem(model, F.cross_entropy, vectors())
    before = problem.gradient()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
    assert torch.equal(problem.gradient(), before)


def test_a_loader_that_shuffles_is_read_once_and_keeps_its_generator() -> None:
    x, y = vectors()
    generator = torch.Generator().manual_seed(5)
    loader = DataLoader(TensorDataset(x, y), batch_size=5, shuffle=True, generator=generator)
    model = mlp()
    state, rng = generator.get_state(), torch.get_rng_state()
    problem = Problem(model, F.cross_entropy, loader)
    assert torch.equal(generator.get_state(), state)
    assert [b.rows for b in problem.batches] == [5, 5, 2]
    assert torch.allclose(problem.gradient(), Problem(model, F.cross_entropy, (x, y)).gradient(), atol=1e-6)
    assert torch.equal(torch.get_rng_state(), rng)


class Augmented(Dataset):
    """Rows that every generator there is has a part in."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, k: int) -> tuple[Tensor, Tensor]:
        return torch.randn(5) + random.gauss(0, 1) + float(np.random.standard_normal()), torch.tensor(k % 3)


def loaders() -> dict[str, DataLoader]:
    """Loaders that draw rows or their order, each with what it draws from."""
    rows, plain = Augmented(), TensorDataset(*vectors())
    return {
        "of the data set": DataLoader(rows, batch_size=5),
        "of the loader": DataLoader(plain, batch_size=5, shuffle=True, generator=torch.Generator()),
        "of the sampler": DataLoader(plain, batch_size=5, sampler=RandomSampler(plain, generator=torch.Generator())),
        "of the batches": DataLoader(plain, batch_sampler=BatchSampler(RandomSampler(plain, generator=torch.Generator()), 5, False)),
    }


def generators(loader: DataLoader) -> list[Any]:
    """States of all that a loader may draw from."""
    own = [getattr(holder, "generator", None) for holder in (loader, loader.sampler, getattr(loader.batch_sampler, "sampler", None))]
    states = [torch.get_rng_state(), *(g.get_state() for g in own if g is not None)]
    return [*(s.tolist() for s in states), random.getstate(), str(np.random.get_state())]


@pytest.mark.parametrize("name", loaders())
def test_a_loader_gives_the_data_of_the_seed_and_leaves_every_generator(name: str) -> None:
    model, loader = mlp(), loaders()[name]
    for g in (loader.generator, getattr(loader.sampler, "generator", None)):
        if g is not None:
            g.manual_seed(int(torch.randint(100, ())))  # wherever the user's generators are
    before = generators(loader)
    first = Problem(model, F.cross_entropy, loader, seed=1)
    assert generators(loader) == before
    list(loader)  # moves them all on
    np.random.random(), random.random()
    again, other = (Problem(model, F.cross_entropy, loader, seed=s) for s in (1, 2))
    assert all(torch.equal(a.content[0], b.content[0]) for a, b in zip(first.batches, again.batches, strict=True))
    assert not torch.equal(first.batches[0].content[0], other.batches[0].content[0])


def test_a_problem_on_the_cpu_leaves_the_generators_of_gpus_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seeded_there: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded_there.append)
    Problem(mlp(), F.cross_entropy, [vectors()]).gradient()
    Problem(mlp(), F.cross_entropy, loaders()["of the loader"]).gradient()
    seeded(lambda: nn.Linear(3, 1), 5)
    assert not seeded_there
    torch.manual_seed(0)
    assert seeded_there  # a call that this test would have seen


def test_minibatches_are_weighted_by_rows() -> None:
    x, y = vectors()
    model = mlp().double()
    whole = Problem(model, F.cross_entropy, (x.double(), y))
    parts = Problem(model, F.cross_entropy, [(x[:1].double(), y[:1]), (x[1:].double(), y[1:])])
    assert float(parts.loss()) == pytest.approx(float(whole.loss()), rel=1e-12)
    assert torch.allclose(parts.gradient(), whole.gradient(), rtol=1e-10, atol=1e-14)


def test_parameters_are_chosen_by_name_glob_or_tied_alias() -> None:
    model, data = mlp(), vectors()
    assert list(Problem(model, F.cross_entropy, data, params="0.*").params) == ["0.weight", "0.bias"]
    assert list(Problem(model, F.cross_entropy, data, params=["4.bias", "0.w*"]).params) == ["0.weight", "4.bias"]
    tied = make("attention, tied", params="head.weight")
    assert list(tied.params) == ["embed.weight"]
    assert tied.P == 28


def test_tied_weights_count_once() -> None:
    assert make("attention").P - make("attention, tied").P == 28


def test_flatten_and_unflatten_are_inverse() -> None:
    problem = make("mlp")
    v = direction(problem)
    assert torch.equal(problem.flatten(problem.unflatten(v)), v)
    other = problem.at(problem.unflatten(v))
    assert torch.equal(other.flatten(other.params), v)
    assert not torch.equal(problem.flatten(problem.params), v)


def test_loss_is_differentiable_in_given_parameters() -> None:
    problem = make("mlp, minibatches")
    leaves = problem.leaves()
    grads = torch.autograd.grad(problem.loss(leaves), list(leaves.values()))
    assert torch.allclose(torch.cat([g.reshape(-1) for g in grads]), problem.gradient(), rtol=1e-12, atol=1e-14)
    assert not problem.loss().requires_grad
    assert not make("differential equation").loss().requires_grad  # though its loss differentiates in the data


def test_gradient_keeps_the_order_of_the_problem_whatever_that_of_the_parameters_given() -> None:
    problem = make("mlp")
    reordered = dict(reversed(problem.params.items()))
    assert list(reordered) != list(problem.params)
    assert torch.equal(problem.gradient(reordered), problem.gradient())


def test_gradient_works_under_no_grad_and_autocast() -> None:
    problem = make("mlp", dtype=torch.float32)
    expected = problem.gradient()
    with torch.no_grad():
        assert torch.equal(problem.gradient(), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(problem.gradient(), expected)


def test_dropout_is_frozen_by_the_seed_and_independent_across_batches() -> None:
    same, other = make("dropout"), make("dropout", seed=1)
    assert torch.equal(same.gradient(), same.gradient())
    assert not torch.allclose(same.gradient(), other.gradient())
    x = torch.ones(4, 5)
    twice = Problem(mlp(dropout=0.5), F.cross_entropy, [(x, torch.zeros(4).long())] * 2, train=True)
    with twice.safe():
        assert not torch.equal(twice.outputs(0), twice.outputs(1))


def test_inputs_may_be_a_dict_or_a_tuple() -> None:
    class TwoInputs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 1)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.linear(a) * b

    model, a, b, y = TwoInputs(), torch.randn(6, 2), torch.randn(6, 1), torch.zeros(6, 1)
    gradients = [Problem(model, F.mse_loss, (x, y), batch_size=4).gradient() for x in ((a, b), {"b": b, "a": a})]
    assert torch.equal(*gradients)


def test_the_loss_sees_of_the_outputs_what_read_says() -> None:
    class Several(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp()

        def forward(self, x: Tensor) -> tuple[Tensor, str]:
            return self.net(x), "something else"

    model, data = Several(), vectors()
    problem = Problem(model, F.cross_entropy, data, read=lambda out: out[0])
    plain = Problem(model.net, F.cross_entropy, data)
    assert torch.equal(problem.gradient(), plain.gradient())
    v = direction(plain)
    assert torch.allclose(ggn(problem) @ v, ggn(plain) @ v)


@pytest.mark.parametrize(
    "other",
    [
        {"scale": torch.ones(1)},
        {"edges": torch.zeros(2, 7, dtype=torch.long)},
        {"positions": torch.arange(5)[None]},
        {"edges": torch.ones(12)},
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_rows_are_what_most_tensors_share_in_whatever_order(other: dict[str, Tensor], first: bool) -> None:
    def batch(n: int) -> dict[str, Tensor]:
        return {**other, **as_dict(n)} if first else {**as_dict(n), **other}

    problem = Problem(mlp(), lambda model, b: F.cross_entropy(model(b["x"]), b["y"]), [batch(10), batch(2)])
    assert [b.rows for b in problem.batches] == [10, 2]


def test_a_graph_has_the_rows_of_its_targets() -> None:
    x, y = vectors()
    model = Wired()
    assert Problem(model, F.cross_entropy, ([torch.zeros(2, 7, dtype=torch.long), x], y)).n == 12
    assert Problem(mlp(), over_areas, areas()).n == 12  # alone, nothing is weighed by its rows


class Wired(nn.Module):
    """Takes edges before the features of the nodes."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def forward(self, edges: Tensor, x: Tensor) -> Tensor:
        return self.net(x.index_add(0, edges[0], x[edges[1]]))


class Step(NamedTuple):
    obs: Tensor
    act: Tensor
    weight: Tensor


class Encoding(UserDict[str, Tensor]):
    """As tokenizers of `transformers` return it: a mapping whose entries are attributes too."""

    def __getattr__(self, name: str) -> Tensor:
        if name == "data" or name not in self.data:
            raise AttributeError(name)
        return self.data[name]


@pytest.mark.parametrize("kind", [Step, lambda *parts: Encoding(zip(Step._fields, parts, strict=True))])
@pytest.mark.parametrize("form", ["alone", "list", "loader"])
def test_names_within_a_batch_stay(kind: Callable[..., Any], form: str) -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        return (batch.weight * F.cross_entropy(model(batch.obs), batch.act, reduction="none")).mean()

    parts = *vectors(), torch.rand(12)
    rows = [kind(*row) for row in zip(*parts, strict=True)]
    collated = DataLoader(rows, batch_size=12) if kind is Step else [kind(*parts)]  # pyright: ignore[reportArgumentType]
    data = {"alone": kind(*parts), "list": [kind(*parts)], "loader": collated}[form]
    problem, plain = Problem(mlp(), loss, data, dtype=torch.float64, batch_size=5), Step(*parts)
    expected = loss(problem.model.double(), Step(*(t.double() if t.is_floating_point() else t for t in plain)))
    assert float(problem.loss()) == pytest.approx(float(expected.detach()), rel=1e-6)
    assert len(problem.batches) == 3
    with problem.safe():
        assert len(merged(problem).batches) == 1


def test_a_mapping_that_is_made_of_something_else_becomes_a_dict() -> None:
    data = defaultdict(list, as_dict())
    assert type(Problem(mlp(), dict_loss, data).batches[0].content) is dict


def test_batches_weigh_what_count_says() -> None:
    (x, y), model = vectors(), mlp()
    parts = [(x[:4], y[:4]), (x[4:], y[4:])]
    problem = Problem(model, F.cross_entropy, parts, count=lambda pair: 3.0 if len(pair[0]) == 4 else 1.0)
    assert problem.weights == [0.75, 0.25]
    losses = [float(Problem(model, F.cross_entropy, part).loss()) for part in parts]
    assert float(problem.loss()) == pytest.approx(0.75 * losses[0] + 0.25 * losses[1], rel=1e-6)


def test_repr_states_the_reduction_and_the_form_of_the_loss() -> None:
    assert "cross_entropy(outputs, targets) reduced to a mean" in repr(make("mlp"))
    assert "per_row(outputs, targets) reduced to rows" in repr(make("mlp, row losses"))
    assert "dict_loss(model, batch)" in repr(make("dict batches, custom loss"))


def summed(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch["x"]), batch["y"], reduction="sum")


class Pair(nn.Module):
    """Returns its logits in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.net(x), "x": x}


def areas() -> dict[str, Tensor]:
    """Points of two kinds, in other numbers."""
    return {"border": torch.randn(2, 5), "interior": torch.randn(12, 5)}


def over_areas(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return sum((model(x).square().mean() for x in batch.values()), start=torch.zeros(()))


WEIGHTED = nn.CrossEntropyLoss(weight=torch.ones(3))


class Heads(nn.Module):
    """Returns the logits of two tasks."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 3), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.a(x), self.b(x)


def heads_summed(outputs: tuple[Tensor, Tensor], y: Tensor) -> Tensor:
    return sum((F.cross_entropy(o, y.clamp(max=1), reduction="sum") for o in outputs), start=torch.zeros(()))


def named_targets() -> tuple[Tensor, dict[str, Tensor]]:
    return vectors()[0], {"a": torch.randn(12, 3)}


def empty_loader() -> DataLoader:
    return DataLoader(TensorDataset(*vectors(3)), batch_size=5, drop_last=True)


def integer_parameters() -> nn.Module:
    model = mlp()
    model.register_parameter("count", nn.Parameter(torch.zeros(3, dtype=torch.long), requires_grad=False))
    return model


def mixed() -> nn.Module:
    model = mlp()
    model[0].double()  # pyright: ignore[reportIndexIssue]
    return model


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: Problem(lambda x: x, F.cross_entropy, vectors()), TypeError, "model must be a torch.nn.Module"),  # pyright: ignore
        (lambda: Problem(mlp(), "ce", vectors()), TypeError, "loss must be callable"),  # pyright: ignore
        (lambda: Problem(nn.Linear, F.cross_entropy, vectors()), TypeError, r"got the class Linear: make an instance"),  # pyright: ignore
        (lambda: Problem(mlp(), nn.CrossEntropyLoss, vectors()), TypeError, r"the class CrossEntropyLoss: make an instance"),  # pyright: ignore
        (lambda: Problem(mlp(), F.cross_entropy, vectors(), dtype="float64"), TypeError, "dtype must be a torch.dtype"),  # pyright: ignore
        (lambda: Problem(mlp(), F.cross_entropy, vectors(), train="eval"), TypeError, "train must be True"),  # pyright: ignore
        (lambda: Problem(mlp(), F.cross_entropy, vectors(), batch_size=2.5), ValueError, "and whole, got 2.5"),  # pyright: ignore
        (lambda: Problem(mlp(), F.cross_entropy, list(vectors())), TypeError, r"a single tensor; .* give them as a tuple \(x, y\)"),
        (lambda: Problem(mlp(), F.cross_entropy, as_dict()), TypeError, r"called so because .* but a dict of x, y"),
        (lambda: Problem(mlp(), F.cross_entropy, [(*vectors(), 1)]), TypeError, r"but a list of 3"),
        (lambda: Problem(mlp(), F.cross_entropy, tuple(t.numpy() for t in vectors())), TypeError, "got NumPy arrays: convert them"),
        (lambda: Problem(mlp(), F.cross_entropy, (vectors()[0], [0, 1])), TypeError, "got plain numbers: convert them by torch.as_tensor"),
        (lambda: Problem(mlp(), F.cross_entropy, TensorDataset(*vectors())), TypeError, "TensorDataset: put it into a DataLoader"),
        (lambda: Problem(mlp(), F.cross_entropy, "rows.csv"), TypeError, "got str"),
        (lambda: Problem(mlp(), F.cross_entropy, vectors(), params="0"), ValueError, r"write '0\.\*' for all of that module"),
        (lambda: Problem(mlp(), F.cross_entropy, vectors(), params=mlp().parameters()), TypeError, "got Parameter: names are in"),  # pyright: ignore
        (lambda: Problem(mlp(), F.cross_entropy, vectors(), params=3), TypeError, "a name or a glob, or a list of either, got int"),  # pyright: ignore
        (
            lambda: Problem(Pair(), F.cross_entropy, vectors()),
            TypeError,
            r"returns a dict of logits, x: .* read=lambda outputs: outputs\['logits'\]",
        ),
        (lambda: Problem(mlp(), F.cross_entropy, []), ValueError, "at least one batch"),
        (lambda: Problem(mlp(), F.cross_entropy, vectors(0)), ValueError, "at least one row"),
        (lambda: Problem(mlp(), F.cross_entropy, vectors()[0]), TypeError, r"tuple \(x, y\)"),
        (lambda: Problem(mlp(), F.cross_entropy, (vectors(4)[0], vectors(6)[1])), ValueError, "as many rows, got 4 and 6"),
        (lambda: Problem(mlp(), F.cross_entropy, list(TensorDataset(*vectors()))), ValueError, "y of a batch .* by a DataLoader"),
        (lambda: Problem(mlp(), over_areas, [areas(), areas()]), ValueError, r"must agree on its rows, .* got leading sizes \[2, 12\]"),
        (lambda: Problem(mlp(), over_areas, areas(), batch_size=3), ValueError, "must agree on its rows"),
        (lambda: Problem(mlp(), F.cross_entropy, [vectors(), {"x": 1}]), TypeError, "row axis"),
        (lambda: Problem(mlp(), F.cross_entropy, [vectors(), {"x": torch.ones(2)}]), TypeError, "mixes pairs"),
        (lambda: Problem(mlp(), F.cross_entropy, vectors(), params="nothing*"), ValueError, "matches no parameter"),
        (lambda: Problem(mlp(), F.cross_entropy, vectors(), params=[]), ValueError, "at least one parameter"),
        (lambda: Problem(mlp().requires_grad_(False), F.cross_entropy, vectors()), ValueError, "all parameters are frozen"),
        (lambda: Problem(nn.ReLU(), F.cross_entropy, vectors()), ValueError, "no parameters"),
        (lambda: Problem(integer_parameters(), F.cross_entropy, vectors(), params="count"), TypeError, "real floating point"),
        (lambda: Problem(mixed(), lambda o, t: o.sum(), vectors()), TypeError, "of one dtype"),
        (lambda: Problem(mlp(), F.cross_entropy, vectors(), dtype=torch.long), TypeError, "dtype must be"),
        (lambda: Problem(mlp(), F.cross_entropy, vectors(), batch_size=0), ValueError, "batch_size must be at least 1"),
        (lambda: Problem(mlp(), lambda o, t: F.cross_entropy(o, t, reduction="sum"), vectors()), ValueError, "sum over rows"),
        (lambda: Problem(mlp(), WEIGHTED, vectors(), dtype=torch.float64), RuntimeError, "not tensors within the loss, as weights of cla"),
        (lambda: Problem(mlp(), summed, as_dict(), batch_size=5), ValueError, "sum over rows"),
        (lambda: Problem(Heads(), heads_summed, vectors(), batch_size=6), ValueError, "sum over rows"),
        (lambda: Problem(Pair(), lambda o, y: o["logits"].square().sum(), vectors()), ValueError, "sum over rows"),
        (lambda: Problem(mlp(), lambda o, y: F.mse_loss(o, y["a"], reduction="sum"), named_targets()), ValueError, "sum over rows"),
        (lambda: Problem(mlp(), lambda o, t: o, vectors()), ValueError, r"one loss a row \(12,\), got shape \(12, 3\)"),
        (lambda: Problem(mlp(), lambda o, t: 1.0, vectors()), TypeError, "loss must return a tensor"),  # pyright: ignore
        (lambda: Problem(mlp(), F.cross_entropy, empty_loader()), ValueError, "at least one batch, got none: the data set is empty"),
        (lambda: Problem(mlp(), F.cross_entropy, (torch.randn(4, 7), labels(4))), RuntimeError, r"on a batch of float32 \(4, 7\), int64"),
        (lambda: Problem(mlp(), F.cross_entropy, (vectors()[0].double(), labels(12))), RuntimeError, "with parameters of float32"),
        (lambda: Problem(mlp(), F.cross_entropy, (vectors()[0], labels(12) + 7)), IndexError, "Check that the model takes such inputs"),
        (lambda: Problem(nn.Linear(5, 1), F.mse_loss, (vectors()[0], torch.zeros(12))), ValueError, "every pair of rows"),
        (lambda: Problem.from_hf(mlp(), as_dict()), TypeError, "model must be a model of transformers"),
        (lambda: make("mlp").at({"9.weight": torch.ones(1)}), ValueError, "not among the selected"),
        (lambda: make("mlp").at({"0.bias": torch.ones(1)}), ValueError, "must have shape"),
        (lambda: make("mlp").unflatten(torch.ones(3)), ValueError, "vector must have shape"),
        (lambda: ggn(make("dict batches, custom loss")), ValueError, "hides the model's outputs"),
    ],
)
def test_wrong_input_is_refused(build: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build()


def test_a_sum_over_the_only_batch_is_the_risk_that_was_asked_for() -> None:
    model, data = mlp(), as_dict()
    assert float(Problem(model, summed, data).loss()) == pytest.approx(float(summed(model, data).detach()), rel=1e-6)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match="device cuda cannot be used here"):
        Problem(mlp(), F.cross_entropy, vectors(), device="cuda")


@pytest.mark.parametrize("measure", [hessian, ggn, sharpness, preflight])
def test_a_bare_model_is_no_problem(measure: Any) -> None:
    with pytest.raises(TypeError, match=f"{measure.__name__} measures a Problem, got Sequential: make one"):
        measure(mlp())


def test_a_loss_that_is_not_finite_stops_every_measurement() -> None:
    model = mlp()
    with torch.no_grad():
        model[0].weight[0, 0] = float("nan")  # pyright: ignore
    problem = Problem(copy.deepcopy(model), F.cross_entropy, vectors())
    for measure in (problem.loss, problem.gradient, lambda: hessian(problem), lambda: ggn(problem), lambda: hessian(problem, memory=0)):
        with pytest.raises(ValueError, match="must be finite"):
            measure()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["mlp, minibatches", "cnn, BatchNorm train", "attention, tied", "LSTM", "differential equation"])
def test_a_problem_moves_to_the_gpu(name: str) -> None:
    here, there = make(name), make(name, device="cuda")
    v = direction(here)
    assert there.gradient().device.type == "cuda"
    assert torch.allclose(there.gradient().cpu(), here.gradient(), rtol=1e-9, atol=1e-12)
    assert torch.allclose((hessian(there) @ v.to(there.device)).cpu(), hessian(here) @ v, rtol=1e-8, atol=1e-11)


def test_only_holds_the_other_parameters_where_they_are() -> None:
    problem = make("mlp")
    moved = problem.at({"0.bias": problem.params["0.bias"] + 1})
    block = moved.only(["4.bias", "0.weight"])
    assert list(block.params) == ["0.weight", "4.bias"]
    assert block.P == 33
    assert float(block.loss()) == float(moved.loss())  # the moved bias is frozen at where it was moved to
    whole = moved.unflatten(moved.gradient())
    assert all(torch.equal(g, whole[k]) for k, g in block.unflatten(block.gradient()).items())
    assert list(moved.params) == list(problem.params)
    with pytest.raises(ValueError, match=r"'2\.weight', which is not among the selected: 0\.weight, 4\.bias"):
        block.only("2.*")
