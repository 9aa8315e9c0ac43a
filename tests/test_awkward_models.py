"""Models and losses that are compiled, checkpointed, sparse, wrapped, or write where they should not: measured rightly, or refused."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_problem import assert_same, direction, moved, snapshot
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from zoo import labels, mlp, oscillator, places, vectors

import theorylab as tl
from theorylab.core import safe
from theorylab.core.instrument import Inapplicable
from theorylab.core.problem import Problem
from theorylab.instruments.curvature import ggn, hessian
from theorylab.instruments.kfac import kfac
from theorylab.instruments.rows import per_example_grads


class Checkpointed(nn.Module):
    """A hidden layer whose activations are recomputed in the backward pass."""

    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        self.inner, self.outer, self.reentrant = nn.Linear(5, 6), nn.Linear(6, 3), reentrant

    def hidden(self, x: Tensor) -> Tensor:
        return torch.tanh(self.inner(x))

    def forward(self, x: Tensor) -> Tensor:
        h = self.hidden(x) if self.reentrant is None else checkpoint(self.hidden, x, use_reentrant=self.reentrant)
        assert isinstance(h, Tensor)
        return self.outer(h)


class Halving(nn.Module):
    """Halves its input, in place or not."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.layer, self.in_place = nn.Linear(5, 3), in_place

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.mul_(0.5) if self.in_place else 0.5 * x)


class Graph(nn.Module):
    """Sums over neighbours: ``edges`` (2, edge) refer to rows."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        h = torch.tanh(self.inner(x))
        return self.outer(h.index_add(0, edges[1], h[edges[0]]))


class Once(torch.autograd.Function):
    """A square whose backward pass cannot be differentiated, as that of a fused kernel."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * g


class Fused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = Once.apply(self.inner(x))
        assert isinstance(h, Tensor)
        return self.outer(h)


class Several(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.net(x), "more": x}


class Cut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).detach()


def words(n: int = 8) -> tuple[Tensor, Tensor]:
    return torch.arange(4 * n).reshape(n, 4) % 7, labels(n)


def embedded(*, sparse: bool = False, **options: Any) -> nn.Module:
    return nn.Sequential(nn.Embedding(7, 3, sparse=sparse, **options), nn.Flatten(), nn.Linear(12, 3))


PAIRS: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module], Callable[[], tuple[Tensor, Tensor]]]] = {
    "checkpointed": (lambda: Checkpointed(False), lambda: Checkpointed(None), vectors),
    "checkpointed, reentrant": (lambda: Checkpointed(True), lambda: Checkpointed(None), vectors),
    "compiled": (lambda: torch.compile(mlp(), backend="eager"), mlp, vectors),  # pyright: ignore[reportReturnType]
    "compiled part": (lambda: nn.Sequential(torch.compile(mlp(), backend="eager")), lambda: nn.Sequential(mlp()), vectors),  # pyright: ignore
    "sparse embedding": (lambda: embedded(sparse=True), embedded, words),
    "data parallel": (lambda: nn.DataParallel(mlp()), mlp, vectors),
    "writes into its inputs": (lambda: Halving(True), lambda: Halving(False), vectors),
}
"""Name → how to make an awkward model, the plain one that it equals, and data."""


def twins(name: str) -> tuple[nn.Module, nn.Module, tuple[Tensor, Tensor]]:
    awkward, plain, data = PAIRS[name]
    models = []
    for make in (awkward, plain):
        torch.manual_seed(0)
        models.append(make().double())
    x, y = data()
    return (*models, (x.double() if x.is_floating_point() else x, y))


@pytest.mark.parametrize("name", PAIRS)
def test_an_awkward_model_is_measured_as_the_plain_one_also_away_from_its_point(name: str) -> None:
    awkward, plain, data = twins(name)
    first, second = Problem(awkward, F.cross_entropy, data), Problem(plain, F.cross_entropy, data)
    v = direction(second)
    for step in (0.0, 0.3):  # a model that is recomputed sees its own parameters instead of these
        one, other = (p.at(moved(p, v, step)) for p in (first, second))
        for measure in (
            Problem.gradient,
            lambda p: hessian(p) @ v,
            lambda p: hessian(p, memory=0) @ v,
            lambda p: ggn(p) @ v,
            per_example_grads,
        ):
            assert torch.allclose(measure(one), measure(other), rtol=1e-10, atol=1e-13)


def test_checkpointing_that_cannot_be_switched_off_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a PyTorch that has other names for its parts: silently, derivatives would be those at the model's own parameters."""
    known = {name: part for name, part in safe._CHECKPOINTING.items() if name == "_checkpoint_hook"}
    monkeypatch.setattr(safe, "_CHECKPOINTING", known)
    awkward, plain, data = twins("checkpointed")
    assert Problem(plain, F.cross_entropy, data).gradient().isfinite().all()
    with pytest.raises(RuntimeError, match="checkpointing cannot be switched off in torch"):
        Problem(awkward, F.cross_entropy, data).gradient()


@pytest.mark.parametrize("name", PAIRS)
def test_an_awkward_model_and_its_data_are_left_as_they_were(name: str) -> None:
    model, _, (x, y) = twins(name)
    before, kept = snapshot(model), x.clone()
    flags = [getattr(m, "sparse", None) for m in model.modules()]
    problem = Problem(model, F.cross_entropy, (x, y))
    assert float((hessian(problem) @ direction(problem)).norm()) > 0
    assert_same(model, before)
    assert torch.equal(x, kept)
    assert flags == [getattr(m, "sparse", None) for m in model.modules()]


def in_the_older_form(layer: nn.Linear) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(layer)


@pytest.mark.parametrize("normalize", [nn.utils.parametrizations.weight_norm, in_the_older_form])
def test_weight_normalization_has_its_second_derivative(normalize: Callable[[nn.Linear], nn.Module]) -> None:
    """That of PyTorch's fused kernel fails gradgradcheck, by a third of this product."""
    torch.manual_seed(0)
    problem = Problem(
        nn.Sequential(normalize(nn.Linear(5, 6)), nn.Tanh(), nn.Linear(6, 3)), F.cross_entropy, vectors(), dtype=torch.float64
    )
    v, h = direction(problem), 1e-5
    reference = (problem.gradient(moved(problem, v, h)) - problem.gradient(moved(problem, v, -h))) / (2 * h)
    assert float((hessian(problem) @ v - reference).norm() / reference.norm()) < 1e-6
    with pytest.raises(Inapplicable, match="Leave these out"):
        kfac(problem)


def test_pytorch_recomputes_again_afterwards() -> None:
    model, _, (x, y) = twins("checkpointed")
    Problem(model, F.cross_entropy, (x, y)).gradient()
    calls = []
    model.inner.register_forward_hook(lambda *_: calls.append(1))  # pyright: ignore
    F.cross_entropy(model(x), y).backward()
    assert len(calls) == 2


def test_parameters_of_a_data_parallel_model_have_their_own_names() -> None:
    assert list(Problem(nn.DataParallel(mlp()), F.cross_entropy, vectors(), params="0.*").params) == ["0.weight", "0.bias"]


def test_a_loss_may_ask_for_derivatives_in_the_data_themselves() -> None:
    def in_place(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        batch["t"].requires_grad_()
        return oscillator(model, batch)

    torch.manual_seed(0)
    model, data = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1)), places()
    problem = Problem(model, in_place, data, dtype=torch.float64)
    v = direction(problem)
    assert torch.allclose(hessian(problem) @ v, hessian(Problem(model, oscillator, data, dtype=torch.float64)) @ v, rtol=1e-12, atol=1e-14)
    assert not data["t"].requires_grad
    assert not any(t.requires_grad for t in problem.batches[0].content.values())


def test_tensors_that_were_made_in_inference_mode_are_measured() -> None:
    with torch.inference_mode():
        model, data = mlp(), vectors()
    plain = Problem(mlp(), F.cross_entropy, tuple(t.clone() for t in data))
    same = plain.at({k: p.clone() for k, p in model.named_parameters()})
    assert torch.allclose(Problem(model, F.cross_entropy, data).gradient(), same.gradient(), rtol=1e-5, atol=1e-7)


def test_rows_that_refer_to_each_other_are_measured_together_and_refused_one_by_one() -> None:
    x, y = vectors()
    edges = torch.tensor([[0, 3, 11, 7], [11, 1, 2, 0]])

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(model(batch["x"], batch["edges"]), batch["y"])

    as_pairs = Problem(Graph(), F.cross_entropy, ((x, edges), y), dtype=torch.float64)
    whole = Problem(as_pairs.model, loss, {"x": x, "edges": edges, "y": y}, dtype=torch.float64)
    v = direction(whole)
    assert torch.allclose(hessian(whole) @ v, hessian(as_pairs) @ v, rtol=1e-12)
    for problem in (whole, as_pairs):
        with pytest.raises(Inapplicable, match="rows depend on each other"):
            per_example_grads(problem)
    card = tl.measure(whole, only="hessian,per_example_grad_norms", progress=False)
    assert {e.instrument: e.state for e in card.entries} == {"hessian": "measured", "per_example_grad_norms": "inapplicable"}
    assert card.entries[1].why.startswith("rows depend on each other: the first cannot be evaluated alone (IndexError: ")


def test_the_gauss_newton_matrix_of_several_outputs_asks_which_count() -> None:
    data = vectors()
    problem = Problem(Several(), lambda out, y: F.cross_entropy(out["logits"], y), data)
    with pytest.raises(Inapplicable, match=r"returns a dict, not one tensor\. Give read="):
        ggn(problem)
    read = Problem(problem.model, F.cross_entropy, data, read=lambda out: out["logits"])
    assert torch.equal(read.gradient(), problem.gradient())
    assert ggn(read).shape == (read.P, read.P)


class Spectrum(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.fft(super().forward(x))


def test_complex_outputs_are_measured_by_their_real_and_imaginary_parts() -> None:
    x, y = vectors()
    y = torch.complex(x[:, :3], y[:, None] - x[:, 2:])

    def real(outputs: Tensor, y: Tensor) -> Tensor:
        return (outputs - torch.view_as_real(y)).square().sum((1, 2))

    net = mlp()
    problem = Problem(Spectrum(net), lambda f, y: (f - y).abs().square().sum(1), (x, y), dtype=torch.float64)
    parts = Problem(Spectrum(net), real, (x, y), dtype=torch.float64, read=torch.view_as_real)
    for measure in (tl.empirical_fisher, ggn, tl.jacobian, tl.ntk, tl.kfac, tl.equivariance):
        with pytest.raises(Inapplicable, match=r"outputs are complex, .* Give read=torch\.view_as_real"):
            measure(problem)
        measure(parts)
    assert torch.allclose(per_example_grads(problem), per_example_grads(parts), rtol=1e-12)  # of a real loss
    rows = per_example_grads(parts)
    assert torch.allclose(tl.empirical_fisher(parts) @ torch.eye(parts.P, dtype=torch.float64), rows.T @ rows / 12, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("measure", [lambda p: hessian(p), lambda p: hessian(p, memory=0) @ torch.ones(p.P), ggn, tl.jacobian])
def test_a_function_that_can_be_differentiated_once_has_no_curvature(measure: Callable[[Problem], Any]) -> None:
    problem = Problem(Fused(), F.cross_entropy, vectors())
    assert per_example_grads(problem).shape == (12, problem.P)  # first derivatives it has
    with pytest.raises(ValueError, match="differentiated only once"):
        measure(problem)


def test_an_operation_without_a_second_derivative_says_what_to_take_instead() -> None:
    bags = Problem(nn.Sequential(nn.EmbeddingBag(7, 3), nn.Tanh(), nn.Linear(3, 3)), F.cross_entropy, words())
    with pytest.raises(NotImplementedError, match=r"take nn\.Embedding and a mean"):
        assert hessian(bags) @ torch.ones(bags.P) is None


class Overwriting(nn.Sequential):
    """Halves in place what the derivative of tanh reads: in evaluation alone, so that training it goes well."""

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self[0](x))
        return self[1](h * 0.5 if self.training else h.mul_(0.5))


OVERWRITTEN = [Problem.gradient, hessian, ggn, tl.jacobian, tl.empirical_fisher, tl.sharpness, tl.ntk, per_example_grads]


@pytest.mark.parametrize("measure", OVERWRITTEN, ids=lambda f: f.__name__)
def test_a_derivative_of_what_was_written_over_is_refused(measure: Callable[[Problem], Any]) -> None:
    problem = Problem(Overwriting(nn.Linear(5, 8), nn.Linear(8, 3)), F.cross_entropy, vectors())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        measure(problem)


class LastState(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return self[1](self[0](x[:, None])[0][:, -1])


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True), nn.Linear(8, 3)),
        lambda: LastState(nn.LSTM(5, 5, batch_first=True), nn.Linear(5, 3)),
    ],
    ids=["BatchNorm and ReLU in place", "LSTM"],
)
def test_what_is_written_in_place_and_not_needed_is_no_matter(make: Callable[[], nn.Module]) -> None:
    problem = Problem(make(), F.cross_entropy, vectors(), dtype=torch.float64, train=True)
    v = torch.linspace(-1, 1, problem.P, dtype=torch.float64)
    assert torch.allclose(hessian(problem) @ v, hessian(problem, memory=0) @ v, rtol=1e-10)  # kept, and by PyTorch's own rules


@pytest.mark.parametrize("measure", [Problem.gradient, hessian, tl.sharpness])
def test_a_loss_without_a_graph_is_no_zero(measure: Callable[[Problem], Any]) -> None:
    with pytest.raises(ValueError, match="does not depend on the selected parameters: the model or the loss cuts the graph"):
        measure(Problem(Cut(), F.cross_entropy, vectors()))


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(3))


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (lambda: embedded(max_norm=0.1), ValueError, "writes into its parameter 0.weight in the forward pass"),
        (lazy, ValueError, "0.weight has no shape yet"),
        (lambda: mlp().to("meta"), ValueError, 'on the device "meta", where it holds no values'),
    ],
)
def test_models_that_cannot_be_measured_are_refused(model: Callable[[], nn.Module], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Problem(model(), F.cross_entropy, words())


def test_torchscript_is_refused_wherever_it_is() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated, differently in every PyTorch
        part = torch.jit.trace(mlp(), vectors()[0])
    assert isinstance(part, nn.Module)
    for model, where in ((part, "model is a TorchScript"), (nn.Sequential(part), "its part '0' is a TorchScript")):
        with pytest.raises(TypeError, match=where):
            Problem(model, F.cross_entropy, vectors())


def test_measuring_does_not_import_the_compiler() -> None:
    """It takes seconds to import, which PyTorch does for a dispatch mode that does not forbid it."""
    code = """
import sys, torch, theorylab as tl
problem = tl.Problem(torch.nn.Linear(2, 2), torch.nn.functional.cross_entropy, (torch.eye(2), torch.arange(2)))
H = tl.hessian(problem)
for _ in range(20):
    H @ torch.ones(problem.P)
tl.measure(problem, only="sharpness", progress=False)
print("torch._dynamo" in sys.modules)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"
