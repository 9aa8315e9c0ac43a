"""The empirical NTK against the dense Jacobian: every way in which a parameter can enter a network, blocks of rows, and other inputs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import make

from theorylab.core.instrument import Inapplicable
from theorylab.core.problem import Problem
from theorylab.instruments import gram
from theorylab.instruments.factors import Lookup, Outer
from theorylab.instruments.kernels import dense_ntk, ntk
from theorylab.instruments.rowwise import Block


def assert_kernel(problem: Problem, **options: int) -> None:
    """Both kernels agree with the dense Jacobian's to rounding."""
    for trace in (False, True):
        expected = dense_ntk(problem, trace_outputs=trace)
        assert torch.allclose(ntk(problem, trace_outputs=trace, **options), expected, rtol=0, atol=1e-12 * float(expected.abs().max()))


def by_rows(problem: Problem) -> set[str]:
    """Parameters that no record of an operation explains, so that they are differentiated row by row."""
    with problem.safe():
        block = Block(problem, 0)
        seen: list[str] = []
        block._row_by_row = lambda names: seen.extend(names) or Block._row_by_row(block, names)  # type: ignore[method-assign]
        assert block.factors
        return set(seen)


class Convolutions(nn.Module):
    """Strides, dilation, groups, words for the padding, one, two and three axes."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv1d(2, 4, 3, dilation=2, padding="same", groups=2)
        self.two = nn.Conv2d(1, 4, (3, 2), stride=(2, 1), padding=(1, 0), padding_mode="circular")
        self.three = nn.Conv3d(2, 4, 2, groups=2, bias=False)
        self.prelu = nn.Conv2d(4, 4, 2, padding="valid", groups=4)

    def forward(self, x: Tensor) -> Tensor:  # (n, 36)
        a = self.one(x.view(-1, 2, 18)).tanh().mean(2)
        b = self.prelu(self.two(x.view(-1, 1, 6, 6)).tanh()).mean((2, 3))
        c = self.three(x.view(-1, 2, 2, 3, 3)).tanh().mean((2, 3, 4))
        return a * b + c


class Plain(nn.Module):
    """Parameters without modules: products, sums, scales, a table of positions, a class token, in-place activations."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 4, padding_idx=1)
        self.weight = nn.Parameter(torch.randn(4, 6))
        self.bias = nn.Parameter(torch.randn(6))
        self.position = nn.Parameter(torch.randn(3, 4))
        self.token = nn.Parameter(torch.randn(1, 1, 4))
        self.scale = nn.Parameter(torch.randn(4))
        self.gain = nn.Parameter(torch.randn(()))
        self.rms = nn.RMSNorm(6)

    def forward(self, x: Tensor) -> Tensor:  # (n, 3) tokens
        h = self.scale * (self.embed(x) + self.position) + self.token
        h = torch.addmm(self.bias, h.reshape(-1, 4), self.weight).view(len(x), 3, 6)  # as Conv1D of GPT-2
        h = F.relu(h, inplace=True) ** 2
        h = self.rms(h) @ self.weight.T @ self.weight
        h = torch.add(h, self.bias, alpha=0.5)
        return (h * self.gain).sum(1)[:, :3] + self.embed(x[:, 0])[:, :3] @ self.weight[:3, :3]


class Shared(nn.Module):
    """One layer used again and again, a head tied to the embedding, and tokens before rows."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.cell = nn.RNNCell(4, 4)
        self.mix = nn.Linear(4, 4)
        self.head = nn.Linear(4, 5)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:  # (n, 3) tokens
        h = torch.zeros(len(x), 4, dtype=self.mix.weight.dtype)
        first = self.mix(self.embed(x).transpose(0, 1))  # (token, n, width)
        for token in first:
            h = self.mix(self.cell(token, h)).tanh()
        return self.head(h)


def problem_of(model: Callable[[], nn.Module], x: Tensor, **options: object) -> Problem:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = model()
    c = net(x if x.dtype == torch.long else x.float()).shape[1]
    return Problem(net, F.mse_loss, (x, torch.zeros(len(x), c)), dtype=torch.float64, **options)  # type: ignore[arg-type]


def tokens(n: int, vocabulary: int) -> Tensor:
    return torch.randint(0, vocabulary, (n, 3), generator=torch.Generator().manual_seed(1))


def vectors(n: int, d: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(1))


class Positions(nn.Module):
    """Adds a row of a table to every token, by numbers that all rows of the batch share in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.place, self.head = nn.Embedding(4, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((x + self.place(torch.arange(x.shape[1]).expand(len(x), -1))).tanh().mean(1))


def test_numbers_of_positions_may_be_expanded_over_the_rows() -> None:
    """PyTorch warns, once a process, of a search for numbers that are not contiguous."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        problem = Problem(Positions(), F.cross_entropy, (torch.randn(5, 4, 3), torch.arange(5) % 2), dtype=torch.float64)
    torch.set_warn_always(True)
    try:
        found = ntk(problem)
    finally:
        torch.set_warn_always(False)
    assert torch.allclose(found, dense_ntk(problem), rtol=1e-10, atol=1e-12)


def test_convolutions_of_every_kind_are_read_from_their_structure() -> None:
    problem = problem_of(Convolutions, vectors(6, 36))
    assert not by_rows(problem)
    assert_kernel(problem)


def test_parameters_without_modules() -> None:
    problem = problem_of(Plain, tokens(6, 9))
    # seen at their operations; only what is sliced or transposed first is not
    assert by_rows(problem) == {"weight"}
    assert_kernel(problem)


def test_layers_used_again_and_tied_weights() -> None:
    problem = problem_of(Shared, tokens(7, 5))
    assert_kernel(problem)
    assert_kernel(problem, memory=2000)
    with problem.safe():
        kinds = {type(part) for part in Block(problem, 0).factors["embed.weight",]}
    assert kinds == {Lookup, Outer}


@pytest.mark.parametrize(
    "name", ["mlp", "attention", "attention, tied", "cnn, BatchNorm eval", "GroupNorm, LayerNorm", "frozen and trainable"]
)
def test_common_networks_need_no_row_by_row(name: str) -> None:
    assert not by_rows(make(name))


@pytest.mark.parametrize("name", ["mlp, minibatches", "attention, tied", "LSTM"])
def test_blocks_of_rows_and_other_inputs(name: str) -> None:
    problem = make(name)
    with problem.safe():
        whole = Block(problem, 0).nbytes
    assert_kernel(problem, memory=whole // 2)  # no batch fits as it is
    x = problem.batches[0].content[0]
    for inputs in ({"X2": x[:2]}, {"X1": x[1:4], "X2": x[:1]}, {"X1": x[1:3]}):
        assert torch.allclose(ntk(problem, **inputs), dense_ntk(problem, **inputs), rtol=1e-10, atol=1e-12)


def test_is_symmetric_bit_by_bit_where_only_half_is_computed() -> None:
    theta = ntk(make("mlp"))
    assert torch.equal(theta, theta.T)


@pytest.mark.parametrize(("width", "positions"), [(2, 1), (2, 9), (40, 9)])
def test_both_orders_of_contraction_agree(width: int, positions: int) -> None:
    """Few positions: Grams over pairs of them; many: slices of the Jacobian. Both in pieces when memory is short."""
    net = nn.Sequential(nn.Conv1d(1, width, 1), nn.Tanh(), nn.Conv1d(width, 2, 1), nn.AdaptiveAvgPool1d(1), nn.Flatten())
    x = vectors(9, positions)[:, None]
    problem = Problem(net, F.mse_loss, (x, torch.zeros(9, 2)), dtype=torch.float64)
    for memory in (2**30, 10**5, 5000):
        assert_kernel(problem, memory=memory)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("memory", [2**30, 3000])
def test_every_order_of_contraction_gives_the_same(transposed: bool, memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two blocks of unlike sizes, and of one with itself in strips; in one piece and in many."""
    monkeypatch.setattr(gram, "PAIRS", memory)
    draw = torch.Generator().manual_seed(1)
    c, o, d = 3, 5, 4
    sides = [
        Outer(torch.randn(n, c, s, 1, o, generator=draw).double(), torch.randn(n, s, 1, d, generator=draw).double(), transposed)
        for n, s in ((7, 6), (5, 2))
    ]
    for a, b in (sides, sides[::-1], (sides[0], sides[0])):
        n, m = a.n, b.n
        strips = [(slice(0, 4), slice(0, m)), (slice(4, n), slice(4 if a is b else 0, m))]
        wanted = torch.zeros(n, m, dtype=torch.bool)
        for rows, columns in strips:
            wanted[rows, columns] = True
        expected = torch.einsum("iatgo,itgd,jbsgo,jsgd->iajb", a.left, a.right, b.left, b.right)
        expected = expected * wanted[:, None, :, None]
        for way in (gram._add_by_positions, gram._add_by_pairs):
            total = torch.zeros(n, c, m, c, dtype=torch.float64)
            way(total, a, b, False, strips, memory)
            assert torch.allclose(total, expected, rtol=1e-12, atol=1e-12)
        total = torch.zeros(n, c, m, c, dtype=torch.float64)
        gram._add_by_slices(total, [a], [b], False, strips, memory)
        assert torch.allclose(total, expected, rtol=1e-12, atol=1e-12)


def test_the_order_with_the_fewest_operations_is_taken() -> None:
    def way(n: int, c: int, positions: int, o: int, d: int, *, trace: bool = False) -> object:
        side = Outer(torch.empty(()).expand(n, c, positions, 1, o), torch.empty(()).expand(n, positions, 1, d))
        return gram._cheapest(side, side, trace)

    assert way(64, 10, 1, 128, 129) is gram._add_by_positions  # a linear layer
    assert way(1000, 10, 16, 64, 289) is gram._add_by_pairs  # the narrow maps at the end of a convolutional network
    assert way(64, 10, 1024, 16, 10) is None  # the wide ones at its beginning
    assert way(1000, 10, 16, 64, 289, trace=True) is None


def test_rows_that_depend_on_each_other_are_found_and_differentiated_as_they_are() -> None:
    class Centered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = self.layer(x).tanh()
            return h - h.mean(0)

    problem = problem_of(Centered, vectors(5, 3))
    assert by_rows(problem) == {"layer.weight", "layer.bias"}
    assert_kernel(problem)
    with pytest.raises(ValueError, match="cannot be taken apart"):
        ntk(problem, memory=100)


@pytest.mark.parametrize(("name", "vmapped"), [("TransformerEncoderLayer", True), ("LSTM", False)])
def test_parameters_without_a_record_are_differentiated_at_once_or_row_by_row(name: str, vmapped: bool) -> None:
    """All three ways to a dense Jacobian agree; `torch.func` has no rule for an LSTM."""
    problem = make(name)
    with problem.safe():
        block = Block(problem, 0)
        names = sorted(k for k in problem.params if "attn" in k or "lstm" in k)
        plain = block._looped(names, True, False)
        ways = [block._looped(names, True, True), block._looped(names, False, False)]
        if vmapped:
            ways.append(block._vmapped(names))
        else:
            with pytest.raises(RuntimeError):
                block._vmapped(names)
        for way in ways:
            assert block._agree(way)
            assert all(torch.allclose(way[k], plain[k], rtol=1e-10, atol=1e-12) for k in names)
        assert not block._agree({k: 1.01 * J for k, J in plain.items()})


def test_refuses_what_has_no_kernel() -> None:
    with pytest.raises(Inapplicable, match="couples the rows"):
        ntk(make("cnn, BatchNorm train"))
    with pytest.raises(Inapplicable, match="hides the model's outputs"):
        ntk(make("dict batches, custom loss"))
    two = Problem(nn.LSTM(3, 2), lambda out, y: out[0].mean((1, 2)), (torch.randn(4, 2, 3), torch.zeros(4)))
    with pytest.raises(Inapplicable, match="a tuple, not one tensor"):
        ntk(two)
    problem = make("mlp")
    with pytest.raises(ValueError, match="outputs must be finite"):
        ntk(problem, torch.full((2, 5), float("inf")))


def test_dropout_keeps_the_masks_of_its_batch() -> None:
    problem = make("dropout")
    assert_kernel(problem)
    with pytest.raises(ValueError, match="cannot be taken apart"):
        ntk(problem, memory=500)


def test_float32_and_a_parameter_that_rounding_alone_moves() -> None:
    """The bias of the keys does not change attention: its gradient is rounding, which must not send it through every row."""

    class Keys(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v = (nn.Linear(4, 4) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x)).mean(1)

    x = vectors(6, 12).view(6, 3, 4)
    for dtype in (torch.float32, torch.float64):
        problem = Problem(Keys(), F.mse_loss, (x, torch.zeros(6, 4)), dtype=dtype)
        assert not by_rows(problem)
