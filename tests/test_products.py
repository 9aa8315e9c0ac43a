"""Gauss-Newton, Fisher and Jacobian operators beyond the battery: identities, samples, blocks, and the losses with closed forms."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import Attention, make, mlp, vectors

from theorylab.core.instrument import Inapplicable
from theorylab.core.operator import Operator
from theorylab.core.problem import Problem
from theorylab.instruments.curvature import adam_preconditioner, dense_ggn, dense_sharpness, ggn, hessian, sharpness
from theorylab.instruments.fisher import empirical_fisher, enumerated_fisher, fisher, true_fisher
from theorylab.instruments.jacobian import jacobian


def close(a: Tensor, b: Tensor, tolerance: float = 1e-10) -> bool:
    return bool((a - b).abs().max() <= tolerance * b.abs().max())


class Tokens(nn.Module):
    """Logits (n, class, token) for every token."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).transpose(1, 2)


def token_problem(loss: object, *, soft: bool = False, **options: object) -> Problem:
    torch.manual_seed(0)
    x, y = torch.randn(6, 4, 4), torch.arange(24).reshape(6, 4) % 3
    if soft:
        y = torch.rand(6, 3, 4).softmax(1)
    else:
        y[0, 1] = y[2, 3] = -100
    return Problem(Tokens(), loss, (x, y), dtype=torch.float64, **options)  # pyright: ignore[reportArgumentType]


WEIGHT = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
CROSS_ENTROPIES = {
    "plain": F.cross_entropy,
    "module": nn.CrossEntropyLoss(),
    "class weights": nn.CrossEntropyLoss(weight=WEIGHT),
    "smoothed, weights": functools.partial(F.cross_entropy, label_smoothing=0.2, weight=WEIGHT),
    "smoothed": nn.CrossEntropyLoss(label_smoothing=0.3),
}


@pytest.mark.parametrize("name", CROSS_ENTROPIES)
@pytest.mark.parametrize("soft", [False, True])
def test_the_softmax_hessian_in_closed_form_is_that_of_the_loss(name: str, soft: bool) -> None:
    """Tokens that are ignored, class weights, smoothing and soft labels all change how much a prediction counts."""
    problem = token_problem(CROSS_ENTROPIES[name], soft=soft)
    assert close(ggn(problem).to_dense(), dense_ggn(problem).to_dense())


def test_an_ignored_label_and_a_loss_a_row_in_closed_form() -> None:
    problem = make("mlp", batch_size=5)
    for loss in (nn.CrossEntropyLoss(ignore_index=1), nn.CrossEntropyLoss(reduction="none", ignore_index=1)):
        problem = Problem(mlp(), loss, vectors(), dtype=torch.float64, batch_size=5)
        assert close(ggn(problem).to_dense(), dense_ggn(problem).to_dense())


@pytest.mark.parametrize("loss", [F.mse_loss, nn.MSELoss(), F.binary_cross_entropy_with_logits, nn.BCEWithLogitsLoss()])
def test_squared_and_binary_losses_in_closed_form(loss: object) -> None:
    x, y = vectors()
    problem = Problem(mlp(), loss, (x, F.one_hot(y, 3).float()), dtype=torch.float64, batch_size=7)  # pyright: ignore[reportArgumentType]
    assert close(ggn(problem).to_dense(), dense_ggn(problem).to_dense())
    assert close(ggn(problem).to_dense(), enumerated_fisher(problem).to_dense())


def test_a_large_vocabulary_makes_no_graph_of_the_loss() -> None:
    """A wrapped loss is differentiated twice, which keeps several tensors of the logits' size; the closed form keeps two."""
    net = Attention(tied=False, vocabulary=2000)
    data = torch.randint(0, 2000, (4, 3)), torch.arange(4)
    closed = Problem(net, F.cross_entropy, data, dtype=torch.float64)
    generic = Problem(net, lambda o, t: F.cross_entropy(o, t), data, dtype=torch.float64)
    v = torch.randn(closed.P, dtype=torch.float64)
    assert close(ggn(closed) @ v, ggn(generic) @ v, 1e-9)


SAMPLED = {
    "softmax": (F.cross_entropy, False),
    "squared": (F.mse_loss, True),
    "binary": (F.binary_cross_entropy_with_logits, True),
    "unknown": (lambda o, t: F.cross_entropy(o, t), False),
}


@pytest.mark.parametrize("name", SAMPLED)
def test_samples_are_unbiased(name: str) -> None:
    """The mean over independent operators lies within its own standard error, in every entry of a random projection."""
    loss, one_hot = SAMPLED[name]
    x, y = vectors()
    problem = Problem(mlp(), loss, (x, F.one_hot(y, 3).float() if one_hot else y), dtype=torch.float64, batch_size=7)
    W = torch.randn(problem.P, 4, dtype=torch.float64)
    exact = W.T @ (dense_ggn(problem) @ W)
    draws = torch.stack([W.T @ (ggn(problem, mc=2, seed=seed) @ W) for seed in range(40)])
    spread = draws.std(0) / len(draws) ** 0.5
    assert float(((draws.mean(0) - exact) / spread).abs().max()) < 4.5  # ten distinct entries: once in ten thousand
    assert float(spread.max() / exact.abs().max()) < 0.12  # else the line above would say nothing


@pytest.mark.parametrize("loss", [F.mse_loss, F.binary_cross_entropy_with_logits, lambda o, t: F.mse_loss(o, t)])
def test_samples_of_one_output_a_row_do_not_couple_rows(loss: Any) -> None:
    """Of outputs (n,) every number is a block of its own; coupled they gave matrices of three to nine times the size."""
    torch.manual_seed(0)
    net, data = nn.Sequential(nn.Linear(5, 1), nn.Flatten(0)), (torch.randn(12, 5), torch.rand(12).round())
    problem = Problem(net, loss, data, dtype=torch.float64)
    exact = dense_ggn(problem).to_dense()
    draws = torch.stack([ggn(problem, mc=50, seed=seed).to_dense() for seed in range(40)])
    # A row's share of the trace is off by √2 of itself in one sample of a Gaussian, the other samples less: √(2 / (12 · 50 · 40)) = 0.9 %.
    assert float((draws.mean(0) - exact).norm() / exact.norm()) < 0.05


def test_samples_are_fixed_by_the_seed_and_do_not_need_the_graph() -> None:
    problem = make("mlp", batch_size=5)
    v = torch.randn(problem.P, dtype=torch.float64)
    first = ggn(problem, mc=1, seed=3) @ v
    assert torch.equal(first, ggn(problem, mc=1, seed=3) @ v)
    assert close(ggn(problem, mc=1, seed=3, memory=0) @ v, first)
    assert not close(ggn(problem, mc=1, seed=4) @ v, first, 1e-3)


def test_samples_of_a_loss_that_is_not_convex_in_the_outputs_are_refused() -> None:
    problem = Problem(mlp(), lambda o, t: o.sin().mean() + 0 * t.sum(), vectors(), dtype=torch.float64)
    with pytest.raises(ValueError, match="convex in the outputs"):
        ggn(problem, mc=1)
    with pytest.raises(ValueError, match="got -1"):
        ggn(problem, mc=-1)


def test_the_true_fisher_is_the_gauss_newton_matrix_and_the_empirical_one_is_not() -> None:
    problem = make("mlp")
    gauss_newton = dense_ggn(problem).to_dense()
    assert close(fisher(problem).to_dense(), gauss_newton)
    assert close(enumerated_fisher(token_problem(F.cross_entropy)).to_dense(), ggn(token_problem(F.cross_entropy)).to_dense())
    assert not close(fisher(problem, kind="empirical").to_dense(), gauss_newton, 0.1)


def test_the_fisher_refuses_what_it_cannot_mean() -> None:
    with pytest.raises(Inapplicable, match="negative log-likelihood"):
        true_fisher(make("mlp, row losses"))
    with pytest.raises(Inapplicable, match="negative log-likelihood"):
        true_fisher(token_problem(nn.CrossEntropyLoss(weight=WEIGHT)))
    with pytest.raises(Inapplicable, match="couples the rows"):
        empirical_fisher(make("cnn, BatchNorm train"))
    with pytest.raises(ValueError, match="kind must be"):
        fisher(make("mlp"), kind="observed")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="mc draws labels"):
        fisher(make("mlp"), kind="empirical", mc=3)


@pytest.mark.parametrize("memory", [0, 2**30])
@pytest.mark.parametrize("name", ["mlp, minibatches", "cnn, BatchNorm eval", "dropout"])
def test_the_jacobian_and_its_transpose_are_adjoint(name: str, memory: int) -> None:
    J = jacobian(make(name), memory=memory)
    v, u = torch.randn(J.shape[1], dtype=torch.float64), torch.randn(J.shape[0], dtype=torch.float64)
    assert float(u @ (J @ v)) == pytest.approx(float((J.T @ u) @ v), rel=1e-10)
    assert close(J @ torch.stack([v, 2 * v], 1), torch.stack([J @ v, 2 * (J @ v)], 1))


def test_jacobians_of_squared_loss_make_the_gauss_newton_matrix() -> None:
    x, y = vectors()
    problem = Problem(mlp(), F.mse_loss, (x, F.one_hot(y, 3).float()), dtype=torch.float64)
    J = jacobian(problem).to_dense()
    assert close(2 / len(J) * J.T @ J, ggn(problem).to_dense())


def test_a_block_is_the_operator_of_a_problem_with_those_parameters() -> None:
    names = ["0.*", "4.bias"]
    problem, part = make("mlp"), make("mlp", params=names)
    for measure in (hessian, ggn):
        block = measure(problem).block(names)
        assert block.symmetric
        assert list(block.layout) == ["0.weight", "0.bias", "4.bias"]
        assert close(block.to_dense(), measure(part).to_dense())
    columns = jacobian(problem).block(names)
    assert close(columns.to_dense(), jacobian(part).to_dense())
    u = torch.randn(columns.shape[0], dtype=torch.float64)
    assert close(columns.T @ u, jacobian(part).T @ u)
    assert close(
        (2 * hessian(problem).shift(1.0)).block("0.*").block("*.bias").to_dense().diagonal() - 2,
        2 * hessian(problem).to_dense().diagonal()[30:36],
    )


def test_blocks_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ValueError, match="'9\\.\\*' matches no parameter"):
        hessian(make("mlp")).block("9.*")
    with pytest.raises(ValueError, match="empty list"):
        hessian(make("mlp")).block([])
    with pytest.raises(ValueError, match="no named parameters"):
        Operator((2, 2), lambda v: v, symmetric=True).block("0.weight")


def test_preconditioning_keeps_the_eigenvalues_of_the_product_with_the_inverse() -> None:
    H = hessian(make("mlp"))
    d = torch.rand(H.shape[0], dtype=torch.float64) + 0.1
    expected = torch.linalg.eigvals(H.to_dense() / d[:, None]).real.sort().values
    assert close(torch.linalg.eigvalsh(H.precondition(d).to_dense()), expected, 1e-9)
    block, whole = H.precondition(d).block("2.*"), H.block("2.*").precondition(d[H.layout["2.weight"].start : H.layout["2.bias"].stop])
    assert close(block.to_dense(), whole.to_dense())
    with pytest.raises(ValueError, match="positive and finite"):
        H.precondition(d - 0.5)
    with pytest.raises(ValueError, match="must have shape"):
        H.precondition(d[1:])
    with pytest.raises(ValueError, match="needs a symmetric"):
        jacobian(make("mlp")).precondition(d)


def test_preconditioned_sharpness_of_adam_is_that_of_the_step_it_makes() -> None:
    """The preconditioner turns the momentum of the first step, (1 − β₁)·gradient, into Adam's own step."""
    net, (x, y) = mlp().double(), vectors()
    before = Problem(net, F.cross_entropy, (x, y), dtype=torch.float64)
    adam = torch.optim.Adam(net.parameters(), lr=0.1, betas=(0.8, 0.95))
    F.cross_entropy(net(x.double()), y).backward()
    adam.step()
    after = Problem(net, F.cross_entropy, (x, y), dtype=torch.float64)
    d = adam_preconditioner(before, adam)
    assert close(after.flatten(after.params), before.flatten(before.params) - 0.1 * 0.2 * before.gradient() / before.flatten(d), 1e-7)
    found = sharpness(after, precondition=d, tol=1e-9)
    assert found.value == pytest.approx(dense_sharpness(after, precondition=d).value, rel=1e-9)
    assert found.value == pytest.approx(sharpness(after, precondition=after.flatten(d), tol=1e-9).value, rel=1e-9)
    assert found.value != pytest.approx(sharpness(after).value, rel=0.5)


def test_preconditioners_that_do_not_fit_are_refused() -> None:
    problem = make("mlp")
    with pytest.raises(ValueError, match=r"wrong or missing: 2\.weight"):
        sharpness(problem, precondition={"0.weight": torch.ones(6, 5), "0.bias": torch.ones(6)})
    with pytest.raises(TypeError, match=r"must be torch\.optim\.Adam or AdamW, got RAdam"):
        adam_preconditioner(problem, torch.optim.RAdam(problem.model.parameters()))
    with pytest.raises(ValueError, match="keeps no second moment of 0"):
        adam_preconditioner(problem, torch.optim.Adam(problem.model.parameters()))
    with pytest.raises(ValueError, match="must have shape"):
        sharpness(problem, precondition=torch.ones(3))
