"""Products that repeat a record, and minibatches in one, are those of the graph; where they cannot be, they are not used."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import ZOO, Attention, make, mlp, vectors

from theorylab.core.problem import Problem
from theorylab.instruments import products
from theorylab.instruments.curvature import ggn, hessian
from theorylab.instruments.fisher import empirical_fisher
from theorylab.instruments.jacobian import jacobian
from theorylab.instruments.merging import merged
from theorylab.instruments.recorded import Repeated, record


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> list[Repeated]:
    """Products are recorded from the first; all that were made are in the list."""
    made: list[Repeated] = []

    def keeping(*args: Any, **kwargs: Any) -> Repeated:
        made.append(Repeated(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(products, "RECORD_AFTER", 0)
    monkeypatch.setattr(products, "Repeated", keeping)
    return made


@pytest.mark.parametrize("name", ZOO)
def test_a_record_repeats_the_product(name: str, at_once: list[Repeated]) -> None:
    problem = make(name)
    measures = [hessian, ggn, jacobian] if problem.batches[0].is_pair else [hessian]
    for measure in measures:
        A = measure(problem)
        for v in torch.randn(3, A.shape[1], dtype=torch.float64):  # recorded, checked, repeated
            result = A @ v
        expected = measure(problem, memory=0) @ v
        assert torch.allclose(result, expected, rtol=1e-9, atol=1e-10 * float(expected.abs().max()))
    used = [r for r in at_once if r.checked]
    assert len(used) == (0 if name.endswith("torch.func") else len(measures))  # whose graph cannot be counted, and is not kept
    assert all(r.record is not None for r in used)  # checked, and found to repeat


def test_a_record_leaves_out_what_double_backward_does_in_vain() -> None:
    """Fewer operations than autograd's engine runs, and sums that accumulate in place."""
    problem = Problem(mlp(act=nn.ReLU), F.cross_entropy, vectors(), dtype=torch.float64)
    graph = products.kept(problem, lambda whole: hessian(whole), 2**30)
    assert graph is not None
    v = torch.randn(problem.P, dtype=torch.float64)
    with torch.profiler.profile() as engine:
        expected = graph.built @ v
    out, repeat = record(lambda u: graph.built @ u, v, 2**30)
    assert repeat is not None
    assert torch.equal(out, expected)
    with torch.profiler.profile() as quick:
        assert torch.allclose(repeat(v), expected, rtol=1e-12)
    counts = [{e.key: e.count for e in p.key_averages() if e.key.startswith("aten::")} for p in (engine, quick)]
    assert "aten::zeros_like" in counts[0]
    assert "aten::zeros_like" not in counts[1]
    assert "aten::addmm_" in counts[1]
    assert sum(counts[1].values()) < 0.8 * sum(counts[0].values())


CONVOLUTIONS = {
    "padded": lambda: nn.Conv2d(2, 6, 3, padding=1),
    "no bias": lambda: nn.Conv2d(2, 6, 3, bias=False),
    "strides that leave a rest": lambda: nn.Conv2d(2, 6, 3, stride=(2, 3), padding=1),
    "dilated": lambda: nn.Conv2d(2, 6, (2, 3), dilation=2, padding="same"),
    "grouped": lambda: nn.Conv2d(2, 6, 3, groups=2, stride=2),
    "transposed": lambda: nn.ConvTranspose2d(2, 6, 3, stride=2, padding=1),
}


def hessian_products(net: nn.Module, at_once: list[Repeated]) -> dict[str, int]:
    """Asserts that a recorded product with the Hessian is the product, and counts its operations."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(5, 1, 9, 8, generator=generator), torch.randint(0, 6, (5,), generator=generator)
    problem = Problem(net, F.cross_entropy, (x, y), dtype=torch.float64)
    H = hessian(problem)
    for v in torch.randn(3, problem.P, dtype=torch.float64, generator=generator):
        result = H @ v
    expected = hessian(problem, memory=0) @ v
    assert torch.allclose(result, expected, rtol=1e-10, atol=1e-12 * float(expected.abs().max()))
    assert [r.record is not None for r in at_once] == [True]
    with torch.profiler.profile() as quick:
        H @ v
    return {e.key: e.count for e in quick.key_averages()}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_slopes_of_filters_go_through_the_kernel_made_for_them(name: str, at_once: list[Repeated]) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), CONVOLUTIONS[name](), nn.Softplus(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    counts = hessian_products(net, at_once)
    second = 2 if name == "grouped" else 3  # the slopes of both layers' filters, and of the second's along v
    assert counts["aten::convolution_backward"] == second
    if name in ("padded", "no bias", "strides that leave a rest", "dilated"):
        # along v forth: one in the first layer, two in the second; back: one for both of the second's
        assert counts["aten::convolution"] == 4


class Residual(nn.Module):
    """Two convolutions whose slopes meet in one sum with those of what is carried past them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.head = nn.Linear(3 * 6, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).tanh()
        h = h + self.second(h).tanh() * self.third(h)
        return self.head(F.adaptive_avg_pool2d(h, (2, 3)).flatten(1))


def test_slopes_of_branches_are_summed_by_fewer_convolutions(at_once: list[Repeated]) -> None:
    torch.manual_seed(0)
    counts = hessian_products(Residual(), at_once)
    assert counts["aten::convolution"] == 1 + 2 * 2 + 2


@pytest.mark.parametrize("places", [(2, 3), (3, 8), (9, 8)])
def test_pooling_to_few_places_is_a_product(places: tuple[int, int], at_once: list[Repeated]) -> None:
    """Also where windows overlap; more places than pay stay with the kernel."""
    torch.manual_seed(0)
    pooled = places[0] * places[1]
    net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Tanh(), nn.AdaptiveAvgPool2d(places), nn.Flatten(), nn.Linear(2 * pooled, 6))
    counts = hessian_products(net, at_once)
    assert ("aten::_adaptive_avg_pool2d" in counts) == (pooled > 64)


class LooksAtValues(torch.autograd.Function):
    """The identity, whose derivative is doubled where the cotangent's first entry is negative: no linear map, and none to record."""

    generate_vmap_rule = False

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (g,) = grads
        return g * 2 if g.detach().numpy().reshape(-1)[0] < 0 else g * 1.5


def test_a_map_that_looks_at_values_is_found_out_and_goes_on_unrecorded() -> None:
    x = torch.ones(3, dtype=torch.float64, requires_grad=True)
    y = LooksAtValues.apply(x)
    quick = Repeated(lambda v: torch.autograd.grad(y, x, v, retain_graph=True)[0], wait=0, budget=2**20)
    ones = torch.ones(3, dtype=torch.float64)
    assert [float(quick(s * ones)[0]) for s in (1, -1, 1, -1)] == [1.5, -2.0, 1.5, -2.0]
    assert quick.record is None


def test_numbers_read_from_a_tensor_random_numbers_and_too_much_memory_are_not_recorded() -> None:
    v = torch.ones(4)
    assert record(lambda v: v * float(v.sum()), v, 2**20)[1] is None
    assert record(lambda v: v * torch.rand_like(v), v, 2**20)[1] is None
    assert record(lambda v: v.add_(1), v.clone(), 2**20)[1] is None
    out, repeat = record(lambda v: v * 2, v, 8)
    assert repeat is None
    assert torch.equal(out, 2 * v)
    out, repeat = record(lambda v: torch.zeros(3), v, 2**20)
    assert repeat is None
    assert torch.equal(out, torch.zeros(3))


def test_a_record_never_writes_into_what_is_read_again() -> None:
    a, b = torch.randn(3, 3), torch.randn(3, 3)

    def product(v: Tensor) -> Tensor:
        V = v.view(3, 3)
        first = a @ V
        return (first + b @ V) @ V.new_ones(3) + first.sum(1) + (V + a @ V).sum(1)

    v, w = torch.randn(9), torch.randn(9)
    _, repeat = record(product, v, 2**20)
    assert repeat is not None
    kept = w.clone()
    for _ in range(2):
        assert torch.allclose(repeat(w), product(w), rtol=1e-5, atol=1e-5)
    assert torch.equal(w, kept)


def test_writing_in_place_is_recorded_where_nothing_else_sees_it() -> None:
    v, w, c = torch.randn(6), torch.randn(6), torch.randn(6)

    def harmless(v: Tensor) -> Tensor:
        total = torch.zeros_like(v)
        total += v
        total *= c
        return total.view(2, 3).t().add(1.0).div_(2)

    out, repeat = record(harmless, v, 2**20)
    assert repeat is not None
    assert torch.equal(repeat(w), harmless(w))

    def seen_by_a_view(v: Tensor) -> Tensor:
        x = v * 2
        half = x[:3]
        x.mul_(c)
        return half

    def part_of_a_constant(v: Tensor) -> Tensor:
        x = torch.zeros(6)
        x[:3].add_(v[:3])
        return x * 2

    def whole_of_a_constant(v: Tensor) -> Tensor:
        x = torch.zeros(6)
        x.view(2, 3).add_(v.view(2, 3))
        return x[:2] * v[:2]

    def after_it_was_read(v: Tensor) -> Tensor:
        x = torch.ones(6)
        y = x * v
        x.mul_(3)
        return y + x * v

    for product in (seen_by_a_view, part_of_a_constant, whole_of_a_constant, after_it_was_read):
        out, repeat = record(product, v, 2**20)
        assert torch.equal(out, product(v))
        assert repeat is None


COUPLED = {
    "BatchNorm, train": lambda: make("cnn, BatchNorm train", batch_size=4),
    "dropout": lambda: make("dropout", batch_size=4),
    "a loss of pairs": lambda: Problem(mlp(), lambda o, t: (o @ o.T).logsumexp(1).mean() + 0 * t.sum(), vectors(), batch_size=4),
    "labels ignored": lambda: Problem(mlp(), nn.CrossEntropyLoss(ignore_index=0), vectors(), batch_size=5),
    "other shapes": lambda: Problem(
        Attention(tied=False), F.cross_entropy, [(torch.zeros(2, k, dtype=torch.long), torch.ones(2, dtype=torch.long)) for k in (3, 4)]
    ),
}


@pytest.mark.parametrize("name", COUPLED)
def test_batches_whose_rows_are_coupled_stay_apart(name: str) -> None:
    problem = COUPLED[name]()
    with problem.safe():
        assert merged(problem) is problem


@pytest.mark.parametrize("name", [name for name in ZOO if "train" not in name and "dropout" not in name])
def test_other_batches_are_merged_and_measure_the_same(name: str) -> None:
    parts, whole = make(name, batch_size=5), make(name, batch_size=None)
    with parts.safe():
        together = merged(parts)
    assert len(parts.batches) > 1
    assert len(together.batches) == 1
    v = torch.randn(parts.P, dtype=torch.float64)
    for measure in [hessian, ggn, empirical_fisher, jacobian] if parts.batches[0].is_pair else [hessian]:
        expected = measure(whole, memory=0) @ v
        assert torch.allclose(measure(parts) @ v, expected, rtol=1e-9, atol=1e-11)
        assert torch.allclose(measure(parts, memory=0) @ v, expected, rtol=1e-9, atol=1e-11)


def test_what_is_the_same_in_every_batch_and_has_no_rows_stays_as_it_is() -> None:
    """A temperature, a name, nothing at all; and where it differs there is no one batch."""

    def batches(*temperatures: float) -> Problem:
        x, y = vectors()
        parts = zip(x.split(4), y.split(4), temperatures, strict=True)
        content = [{"x": a, "y": b, "t": torch.tensor(t), "of": "rows", "mask": None} for a, b, t in parts]
        return Problem(mlp(), lambda m, b: F.cross_entropy(m(b["x"]) / b["t"], b["y"]), content)

    alike, apart = batches(2.0, 2.0, 2.0), batches(2.0, 2.0, 3.0)
    with alike.safe():
        (whole,) = merged(alike).batches
        assert merged(apart) is apart
    assert whole.content["x"].shape[0] == whole.rows == 12
    assert float(whole.content["t"]) == 2
    assert (whole.content["of"], whole.content["mask"]) == ("rows", None)


def test_single_precision_merges_too_also_near_a_minimum() -> None:
    """There the batches' gradients cancel, and rounding is to be measured by theirs, not by the sum's."""
    torch.manual_seed(0)
    net, (x, y) = mlp(), vectors(60)
    descent = torch.optim.LBFGS(net.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> float:
        descent.zero_grad()
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        return float(loss.detach())

    descent.step(closure)
    problem = Problem(net, F.cross_entropy, (x, y), batch_size=13)
    with problem.safe():
        assert len(merged(problem).batches) == 1


def test_what_does_not_fit_is_parted_by_rows_where_that_changes_nothing() -> None:
    """A budget of two rows' graphs: six batches of two rows instead of one of twelve, and the same product."""
    problem = make("attention")
    with problem.safe(), products._counted(problem, float("inf")) as one:
        problem.batch_loss(0, problem.leaves())
    small = products.fitting(problem, lambda single: single.batch_loss(0, single.leaves()), 2 * one.used // 12 + one.used // 24)
    assert 1 <= small.batches[0].rows < 12
    assert small.n == problem.n
    v = torch.randn(problem.P, dtype=torch.float64)
    for measure in (hessian, ggn, empirical_fisher, jacobian):
        expected = measure(problem) @ v
        assert torch.allclose(measure(small, memory=0) @ v, expected, rtol=1e-9, atol=1e-11)
        assert torch.allclose(measure(problem, memory=20_000) @ v, expected, rtol=1e-9, atol=1e-11)
    with problem.safe():
        assert len(products.parted(problem, 5).batches) == 3
        ignoring = Problem(mlp(), nn.CrossEntropyLoss(ignore_index=0), vectors(), batch_size=None)
        assert products.parted(ignoring, 5) is ignoring
