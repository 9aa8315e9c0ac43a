"""K-FAC and EKFAC: where they are exact, what weight sharing does, and which parameters they refuse."""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import make, mlp, vectors

from theorylab.core.instrument import Inapplicable
from theorylab.core.problem import Problem
from theorylab.instruments.curvature import dense_ggn, ggn
from theorylab.instruments.kfac import dense_ekfac, dense_kfac, ekfac, kfac
from theorylab.instruments.loss_root import loss_root
from theorylab.instruments.matrix_layers import layers
from theorylab.linalg.kronecker import Factors, Kronecker


def problem_of(model: nn.Module, loss: Callable[..., Tensor], shape: tuple[int, ...], target: str = "labels", **options: Any) -> Problem:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator)
    y = torch.arange(len(x)) % 3 if target == "labels" else torch.zeros(1)
    if target == "like outputs":
        y = torch.randn(model(x).shape, generator=generator)
    return Problem(model, loss, (x, y), dtype=torch.float64, **options)


def seeded(make_model: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make_model()


def blocks_of_ggn(problem: Problem) -> Tensor:
    """The dense Gauss-Newton matrix with everything between layers set to zero."""
    G, owner = dense_ggn(problem).to_dense(), torch.zeros(problem.P)
    numbered = problem.unflatten(torch.arange(problem.P))
    for j, layer in enumerate(layers(problem)):
        owner[layer.matrix(numbered)] = j
    return G * (owner[:, None] == owner)


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("measure", [kfac, ekfac])
def test_is_the_ggn_of_a_deep_linear_net_under_squared_loss(measure: Callable, bias: bool) -> None:
    def net(act: type[nn.Module]) -> nn.Module:
        return nn.Sequential(nn.Linear(6, 5, bias=bias), act(), nn.Linear(5, 5, bias=bias), act(), nn.Linear(5, 4, bias=bias))

    linear = problem_of(seeded(lambda: net(nn.Identity)), F.mse_loss, (12, 6), "like outputs", batch_size=5)
    assert relative(measure(linear).to_dense(), blocks_of_ggn(linear)) < 1e-12
    curved = problem_of(seeded(lambda: net(nn.Tanh)), F.mse_loss, (12, 6), "like outputs")
    assert relative(measure(curved).to_dense(), blocks_of_ggn(curved)) > 1e-2


def linear_cnn() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.Conv2d(3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.mark.parametrize(("approx", "exact"), [("reduce", True), ("expand", False)])
def test_reduce_is_exact_where_a_linear_net_averages_over_positions(approx: Any, exact: bool) -> None:
    # Every position of the first layer enters the mean once, with the same gradient, so that only the mean patch matters.
    problem = problem_of(seeded(linear_cnn), F.mse_loss, (9, 2, 6, 6), "like outputs")
    assert (relative(kfac(problem, approx=approx).to_dense(), blocks_of_ggn(problem)) < 1e-12) == exact


@pytest.mark.parametrize(("approx", "exact"), [("expand", True), ("reduce", False)])
def test_expand_is_exact_where_a_linear_net_has_a_loss_at_every_position(approx: Any, exact: bool) -> None:
    problem = problem_of(seeded(lambda: nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))), F.mse_loss, (9, 5, 4), "like outputs")
    assert (relative(kfac(problem, approx=approx).to_dense(), blocks_of_ggn(problem)) < 1e-12) == exact


CONVOLUTIONS = {
    "padding, stride, dilation": lambda: [nn.Conv2d(1, 2, 3, padding=2, stride=(2, 1), dilation=(1, 2)), nn.Tanh(), nn.Conv2d(2, 2, 2)],
    "same, circular, no bias": lambda: [nn.Conv2d(1, 2, (2, 3), padding="same", padding_mode="circular", bias=False)],
    "in place": lambda: [nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(2, 2, 3), nn.Softplus()],
    "1d": lambda: [nn.Flatten(2), nn.Conv1d(1, 2, 5, stride=3, padding=1, padding_mode="reflect")],
    "3d": lambda: [nn.Unflatten(1, (1, 1)), nn.Conv3d(1, 2, (1, 3, 3), stride=2), nn.Tanh()],
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("approx", ["expand", "reduce"])
def test_convolutions_agree_with_the_oracle(name: str, approx: Any) -> None:
    net = seeded(lambda: nn.Sequential(*CONVOLUTIONS[name](), nn.Flatten(), nn.LazyLinear(3)))
    net(torch.zeros(1, 1, 6, 5))
    problem = problem_of(net, F.cross_entropy, (5, 1, 6, 5), batch_size=3)
    assert relative(kfac(problem, approx=approx).to_dense(), dense_kfac(problem, approx=approx).to_dense()) < 1e-12
    if approx == "expand":
        assert relative(ekfac(problem).to_dense(), dense_ekfac(problem).to_dense()) < 1e-10


def test_ekfac_has_the_trace_of_the_ggn_and_is_nearer_to_it_than_kfac() -> None:
    problem = make("cnn, BatchNorm eval", params=["0.*", "4.*", "7.*"])
    G, K, E = blocks_of_ggn(problem), kfac(problem), ekfac(problem)
    assert E.trace() == pytest.approx(float(G.trace()), rel=1e-12)
    assert K.trace() != pytest.approx(float(G.trace()), rel=1e-2)
    assert relative(E.to_dense(), G) < relative(K.to_dense(), G)


def test_rows_of_shared_weights_are_taken_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = make("attention", params=["qkv.*", "head.weight"])
    whole = ekfac(problem).to_dense()
    monkeypatch.setattr("theorylab.instruments.kfac.ENTRIES", 1)
    assert relative(ekfac(problem).to_dense(), whole) < 1e-12


def test_a_layer_that_is_called_twice_adds_positions() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(torch.tanh(self.layer(x)))

    problem = problem_of(seeded(Twice), F.mse_loss, (7, 4), "like outputs")
    assert ekfac(problem).trace() == pytest.approx(float(dense_ggn(problem).to_dense().trace()), rel=1e-12)


LOSSES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], tuple[int, ...], str]] = {
    "cross-entropy": (F.cross_entropy, (6, 3), "labels"),
    "weighted, smoothed": (
        lambda o, y: F.cross_entropy(o, y, weight=torch.tensor([1.0, 5.0, 0.5]).to(o), label_smoothing=0.1),
        (6, 3),
        "labels",
    ),
    "masked": (lambda o, y: F.cross_entropy(o, y, ignore_index=2), (6, 3), "labels"),
    "classes second": (lambda o, y: F.cross_entropy(o, y[:, None].expand(-1, 2)), (6, 3, 2), "labels"),
    "classes last": (lambda o, y: F.cross_entropy(o.flatten(0, 1), y.repeat_interleave(2)), (6, 2, 3), "labels"),
    "saturated": (lambda o, y: F.cross_entropy(o * torch.tensor([1.0, 50.0, 1.0]), y), (6, 3), "labels"),
    "squared": (F.mse_loss, (6, 2, 3), "like outputs"),
    "logistic": (lambda o, y: F.binary_cross_entropy_with_logits(o, y.sigmoid()), (6, 3), "like outputs"),
    "one logit": (lambda o, y: F.softplus(o[:, 0]).mean(), (6, 1), "labels"),
    "norm": (lambda o, y: (1 + o.square().sum(1)).sqrt().mean(), (6, 3), "labels"),
    "linear": (lambda o, y: o.mean(), (6, 3), "labels"),
}


@pytest.mark.parametrize("name", LOSSES)
def test_the_root_of_the_loss_is_one_of_its_hessian(name: str) -> None:
    loss, shape, target = LOSSES[name]
    problem = problem_of(nn.Linear(shape[-1], shape[-1]), loss, shape, target, batch_size=4)
    for k, batch in enumerate(problem.batches):
        f = problem.outputs(k).detach()
        size = f[0].numel()
        H = torch.autograd.functional.hessian(lambda o, k=k: problem.weights[k] * problem.loss_of(k, o), f)
        H = H.reshape(batch.rows, size, batch.rows, size)  # pyright: ignore
        roots = [s.reshape(batch.rows, size) for s in loss_root(problem, k, f)]
        total = sum((torch.einsum("ni,nj->nij", s, s) for s in roots), start=torch.zeros(batch.rows, size, size).double())
        expected = torch.stack([H[i, :, i] for i in range(batch.rows)])
        assert torch.allclose(total, expected, rtol=0, atol=1e-14 * max(1.0, float(expected.max())))
        if "cross-entropy" in name:
            assert len(roots) == size


@pytest.mark.parametrize("name", ["cross-entropy", "classes last", "squared", "norm"])
def test_random_mixtures_of_the_root_are_right_in_expectation(name: str) -> None:
    loss, shape, target = LOSSES[name]
    problem = problem_of(seeded(lambda: nn.Linear(shape[-1], shape[-1])), loss, shape, target)
    exact = kfac(problem).to_dense()
    estimates = torch.stack([kfac(problem, mc=2, seed=seed).to_dense() for seed in range(60)])
    error = estimates.std(0) / 60**0.5
    assert float(error.max()) > 0
    assert ((estimates.mean(0) - exact).abs() <= 4.5 * error + 1e-12).all()  # of at most 144 nearly normal entries
    assert torch.equal(ekfac(problem, mc=1, seed=3).to_dense(), ekfac(problem, mc=1, seed=3).to_dense())


COUPLED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "the mean": lambda o, y: (o - o.mean(0)).pow(4).mean(),
    "the mean, squared": lambda o, y: (o - o.mean(0)).square().mean(),
    "neighbours": lambda o, y: F.mse_loss(o[::2], o[1::2]),
    "halves": lambda o, y: F.mse_loss(o[: len(o) // 2], o[len(o) // 2 :]),
    "first and last": lambda o, y: o.square().mean() + (o[0] * o[-1]).sum(),
}


@pytest.mark.parametrize("measure", [kfac, ekfac, partial(ggn, mc=2)])
@pytest.mark.parametrize("name", COUPLED)
def test_a_loss_that_couples_rows_is_refused_whichever_they_are(name: str, measure: Callable[[Problem], Any]) -> None:
    with pytest.raises(Inapplicable, match="depends on the outputs of other rows"):
        measure(problem_of(nn.Linear(3, 3), COUPLED[name], (8, 3)))


def test_what_has_no_root_is_refused() -> None:
    net = nn.Linear(3, 3)
    for concave in (lambda o, y: o.sin().mean(), lambda o, y: (o[:, 0] * o[:, 1]).mean()):
        with pytest.raises(Inapplicable, match="must be convex"):
            kfac(problem_of(net, concave, (6, 3)))


class Elsewhere(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) + F.linear(x, self.fc.weight.tanh())


class TimeFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.transpose(0, 1)).tanh().mean(0)


class Normed(nn.Module):
    """Blocks with a name for each layer, as transformers have."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        names = {"up_proj": nn.Linear(4, 4), "norm": nn.LayerNorm(4), "down_proj": nn.Linear(4, 4)}
        self.blocks = nn.ModuleList(nn.ModuleDict(copy.deepcopy(names)) for _ in range(blocks))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            assert isinstance(block, nn.ModuleDict)
            x = x + block["down_proj"](block["norm"](block["up_proj"](x)).tanh())
        return self.head(x)


def test_a_refusal_names_a_few_and_says_what_to_select() -> None:
    problem = problem_of(Normed(4), F.mse_loss, (5, 4), "like outputs")
    with pytest.raises(Inapplicable, match=r"and 3 more\. Leave these out: params=") as caught:
        kfac(problem)
    chosen = ast.literal_eval(str(caught.value).partition("params=")[2].removesuffix("."))
    assert chosen == [*(f"*.{k}.{p}" for k in ("up_proj", "down_proj") for p in ("weight", "bias")), "head.weight", "head.bias"]
    assert kfac(problem.only(chosen)).shape == (4 * 40 + 15, 4 * 40 + 15)
    with pytest.raises(Inapplicable, match="It has no other selected parameters"):
        kfac(problem.only("*norm*"))


def test_unsupported_parameters_are_refused_by_name() -> None:
    with pytest.raises(Inapplicable, match=r"not 1.weight \(of BatchNorm2d\), 1.bias \(of BatchNorm2d\)\. Leave these out"):
        kfac(make("cnn, BatchNorm eval"))
    with pytest.raises(Inapplicable, match=r"embed.weight = head.weight \(tied\)"):
        kfac(make("attention, tied"))
    with pytest.raises(Inapplicable, match=r"self_attn.out_proj.weight \(of NonDynamically"):
        kfac(make("TransformerEncoderLayer", params="layer.*"))
    grouped = problem_of(nn.Sequential(nn.Conv1d(2, 4, 3, groups=2), nn.Flatten()), F.mse_loss, (5, 2, 4), "like outputs")
    with pytest.raises(Inapplicable, match=r"0.weight \(of a convolution in 2 groups\)"):
        ekfac(grouped)
    with pytest.raises(Inapplicable, match=r"fc.weight and fc.bias take effect outside of the layer 'fc'"):
        kfac(problem_of(Elsewhere(), F.mse_loss, (5, 4), "like outputs"))
    for tokens in (5, 3):  # as many tokens as rows, and fewer
        with pytest.raises(Inapplicable, match="batch_first=True"):
            kfac(problem_of(TimeFirst(), F.mse_loss, (5, tokens, 4), "like outputs"))
    with pytest.raises(ValueError, match="mc must be at least 0"):
        kfac(make("mlp"), mc=-1)
    with pytest.raises(ValueError, match="approx must be"):
        kfac(make("mlp"), approx="other")  # pyright: ignore[reportArgumentType]


def test_the_model_is_left_without_hooks_also_after_an_error() -> None:
    net = mlp()
    x, y = vectors()
    kfac(Problem(net, F.cross_entropy, (x, y)))
    problem = Problem(net, F.cross_entropy, (x, y))
    problem.batches[0].content[0].resize_(12, 4)
    with pytest.raises(RuntimeError):
        kfac(problem)
    assert all(not m._forward_hooks for m in net.modules())


def kronecker() -> tuple[Kronecker, Tensor]:
    """Two blocks on 12 of 14 coordinates in mixed order, and the dense matrix on all."""
    generator = torch.Generator().manual_seed(0)
    order, dense, blocks = torch.randperm(14, generator=generator), torch.zeros(14, 14).double(), []
    for index in (order[:6].reshape(2, 3), order[6:12].reshape(3, 2)):
        roots = [torch.randn(size, size, generator=generator, dtype=torch.float64) for size in index.shape]
        left, right = (root @ root.T for root in roots)
        blocks.append(Factors(left, right, index))
        dense[index.reshape(-1)[:, None], index.reshape(-1)] = torch.kron(left, right)
    return Kronecker(blocks, 14), dense


def test_functions_of_a_kronecker_operator_are_those_of_the_dense_matrix() -> None:
    K, dense = kronecker()
    inside = dense.diagonal() > 0
    damped = dense[inside][:, inside] + 0.3 * torch.eye(12).double()
    V = torch.randn(14, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.allclose(K @ V, dense @ V, atol=1e-12)
    assert torch.allclose(K @ V[:, 0], dense @ V[:, 0], atol=1e-12)
    inverse = K.inverse(0.3).to_dense()[inside][:, inside]
    assert torch.allclose(inverse @ damped, torch.eye(12).double(), atol=1e-12)
    root = K.map(torch.sqrt).to_dense()
    assert torch.allclose(root @ root, dense, atol=1e-12)
    assert K.trace() == pytest.approx(float(dense.trace()))
    assert K.logdet(0.3) == pytest.approx(float(torch.linalg.eigvalsh(damped).log().sum()))
    assert torch.allclose(K.eigenvalues(), torch.linalg.eigvalsh(dense[inside][:, inside]), atol=1e-12)


def test_a_singular_kronecker_operator_asks_for_damping() -> None:
    K = Kronecker([Factors(torch.eye(2).double(), torch.zeros(1, 1).double(), torch.arange(2)[:, None])], 2)
    for call in (K.inverse, K.logdet):
        with pytest.raises(ValueError, match="raise damping"):
            call()
        with pytest.raises(ValueError, match="damping must be at least 0"):
            call(-1.0)
