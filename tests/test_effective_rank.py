"""Effective and stable rank: known spectra, layers of every kind, and what they do not depend on."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune
from zoo import Masked

from theorylab.core.instrument import Inapplicable
from theorylab.core.problem import Problem
from theorylab.instruments.effective_rank import effective_rank, kernel_effective_rank
from theorylab.linalg.rank import entropy_rank, stable_rank


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_equal_singular_values_count_and_unequal_ones_count_less() -> None:
    s = torch.tensor([[1.0, 1.0, 1.0, 1.0], [3.0, 3.0, 0.0, 0.0], [7.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(entropy_rank(s), torch.tensor([4.0, 2.0, 1.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(stable_rank(s), torch.tensor([4.0, 2.0, 1.0, 0.0], dtype=torch.float64))
    uneven = torch.tensor([3.0, 1.0], dtype=torch.float64)  # entropy of (3/4, 1/4)
    assert float(entropy_rank(uneven)) == pytest.approx(math.exp(2 * math.log(2) - 0.75 * math.log(3)), rel=1e-12)
    assert float(stable_rank(uneven)) == pytest.approx(10 / 9, rel=1e-12)


def test_the_order_of_the_measures() -> None:
    """Stable rank ≤ Σσ/σ₁ ≤ effective rank ≤ rank: with q = σ/σ₁ ≤ 1 and Q = Σq, Σq² ≤ Q and ln erank = ln Q − Σ q ln q/Q."""
    s = torch.linalg.svdvals(normal(50, 6, 9) * normal(50, 6, 1, seed=1).exp())
    assert bool((stable_rank(s) <= entropy_rank(s) + 1e-12).all())
    assert bool((entropy_rank(s) <= 6 + 1e-12).all())
    assert bool((stable_rank(s) >= 1 - 1e-12).all())


@pytest.mark.parametrize("bad", [[1.0, -1.0], [1.0, math.nan]])
def test_no_singular_values(bad: list[float]) -> None:
    for measure in (entropy_rank, stable_rank):
        with pytest.raises(ValueError, match="finite and at least 0"):
            measure(torch.tensor(bad))


KERNELS = {
    "conv": lambda: nn.Conv2d(4, 6, 3, padding=1),
    "grouped": lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2),
    "depthwise": lambda: nn.Conv2d(4, 4, 3, padding=1, groups=4),
    "dilated, strided": lambda: nn.Conv2d(4, 3, 2, stride=2, dilation=2),
    "transposed": lambda: nn.ConvTranspose2d(4, 3, 2),
    "transposed, grouped": lambda: nn.ConvTranspose2d(4, 6, 2, groups=2),
}


@pytest.mark.parametrize("kind", KERNELS)
def test_a_kernel_is_the_matrix_of_one_patch(kind: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(KERNELS[kind](), nn.Flatten(), nn.LazyLinear(3))
    net(torch.zeros(1, 4, 6, 6))
    problem = Problem(net, F.cross_entropy, (normal(5, 4, 6, 6), torch.arange(5) % 3), dtype=torch.float64)
    for fast, slow in zip(effective_rank(problem).matrices, kernel_effective_rank(problem).matrices, strict=True):
        assert (fast.name, fast.full) == (slow.name, slow.full)
        assert (fast.effective, fast.stable) == pytest.approx((slow.effective, slow.stable), rel=1e-10)


def linear(weight: Tensor) -> Problem:
    data = (normal(5, weight.shape[1]), normal(5, weight.shape[0]))
    return Problem(nn.Linear(weight.shape[1], weight.shape[0]), F.mse_loss, data, dtype=torch.float64).at({"weight": weight})


def test_does_not_depend_on_scale_or_basis_and_sees_low_rank() -> None:
    low = normal(8, 2) @ normal(2, 6, seed=1)
    left, right = torch.linalg.qr(normal(8, 8, seed=2)).Q, torch.linalg.qr(normal(6, 6, seed=3)).Q
    (first,), (second,) = effective_rank(linear(low)).matrices, effective_rank(linear(1e-3 * left @ low @ right)).matrices
    assert (first.effective, first.stable) == pytest.approx((second.effective, second.stable), rel=1e-6)
    assert 1 < first.effective < 2 + 1e-6
    assert first.full == 6
    (full,) = effective_rank(linear(normal(8, 6))).matrices
    assert full.effective > 4  # the control: an unstructured matrix is not of low rank


def test_zeros_have_rank_zero_as_a_fresh_adapter_has() -> None:
    (matrix,) = effective_rank(linear(torch.zeros(3, 4))).matrices
    assert (matrix.effective, matrix.stable) == (0.0, 0.0)


def test_readings_name_the_extremes() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    problem = Problem(net, F.mse_loss, (torch.ones(5, 4), torch.ones(5, 4))).at({"0.weight": torch.eye(4), "1.weight": torch.ones(4, 4)})
    read = {r.name: r for r in effective_rank(problem).readings()}
    least, most = (read[f"effective rank as a share of full rank, {word}"] for word in ("smallest", "largest"))
    assert (least.note, most.note) == ("1.weight", "0.weight")
    assert (least.value, most.value) == pytest.approx((0.25, 1.0), rel=1e-5)


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.Parameter(torch.ones(2, 4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("hij,nj->ni", self.heads, x)


class Doubling(nn.Linear):
    """Of inputs of half the width that its weight is for."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(torch.cat([input, -input], 1))


class Pair(nn.Linear):
    def forward(self, input: Tensor) -> tuple[Tensor, int]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().forward(input), 0


def test_refuses_what_is_no_matrix() -> None:
    data = (torch.ones(5, 4), torch.ones(5, 4))
    with pytest.raises(Inapplicable, match="heads of a Stack has 3 axes"):
        effective_rank(Problem(Stack(), F.mse_loss, data))
    with pytest.raises(Inapplicable, match="parametrization"):
        effective_rank(Problem(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)), F.mse_loss, data))
    with pytest.raises(Inapplicable, match=r"weight_orig is what a Linear computes its weight from"):
        effective_rank(Problem(prune.l1_unstructured(nn.Linear(4, 4), "weight", 0.5), F.mse_loss, data))
    with pytest.raises(Inapplicable, match="a Masked, are not those of its weight"):
        effective_rank(Problem(Masked(4, 4), F.mse_loss, data))
    with pytest.raises(Inapplicable, match="a Pair, are not those of its weight"):
        effective_rank(Problem(Pair(4, 4), F.mse_loss, data, read=lambda outputs: outputs[0]))
    with pytest.raises(Inapplicable, match="a Doubling, are not those of its weight"):
        effective_rank(Problem(Doubling(8, 4), F.mse_loss, data))
    with pytest.raises(Inapplicable, match="none of the selected"):
        effective_rank(Problem(nn.Linear(4, 4), F.mse_loss, data, params=["bias"]))
