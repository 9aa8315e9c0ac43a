"""Occam's bound: the bits are those of a message that can be decoded, and the bound covers."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from theorylab.core.instrument import Inapplicable
from theorylab.core.problem import Problem
from theorylab.data.digits import digits
from theorylab.instruments.coded import END_BITS
from theorylab.instruments.occam import occam
from theorylab.learning.compression import SCALE_BITS, adaptive_code_bits, quantize
from theorylab.learning.subspace import RandomSubspace
from theorylab.models.seeded import seeded
from theorylab.stats.binomial import kl_inverse


def probability(counts: list[Fraction], symbol: int) -> tuple[Fraction, Fraction]:
    """Where the symbol's share of the unit interval begins, and how long it is."""
    return sum(counts[:symbol], Fraction(0)) / sum(counts), counts[symbol] / sum(counts)


def encode(symbols: list[int], levels: int) -> str:
    """Arithmetic coding in exact fractions."""
    low, size, counts = Fraction(0), Fraction(1), [Fraction(1, 2)] * levels
    for s in symbols:
        start, share = probability(counts, s)
        low, size = low + size * start, size * share
        counts[s] += 1
    bits = 0
    while Fraction(1, 2**bits) > size / 2:  # an interval of this length, all of whose continuations lie inside
        bits += 1
    return format(math.ceil(low * 2**bits), f"0{bits}b") if bits else ""


def decode(message: str, count: int, levels: int) -> list[int]:
    point, counts, symbols = Fraction(int(message or "0", 2), 2 ** len(message)), [Fraction(1, 2)] * levels, []
    for _ in range(count):
        for s in range(levels):
            start, share = probability(counts, s)
            if start <= point < start + share:
                symbols.append(s)
                point = (point - start) / share
                counts[s] += 1
                break
    return symbols


@pytest.mark.parametrize(("levels", "width"), [(3, 2.0), (5, 0.7), (9, 0.3)])
def test_the_bits_that_are_counted_carry_the_message(levels: int, width: float) -> None:
    weights = torch.randn(60, generator=torch.Generator().manual_seed(levels))
    symbols, _ = quantize(weights, levels, width)
    message = encode((symbols + (levels - 1) // 2).tolist(), levels)
    assert decode(message + "1011", 60, levels) == (symbols + (levels - 1) // 2).tolist()  # whatever follows it
    ideal = adaptive_code_bits(symbols, levels)
    assert ideal <= len(message) <= ideal + END_BITS


def test_the_code_is_a_distribution() -> None:
    """Kraft's sum over all messages of four symbols is one: no more is claimed than can be told apart."""
    every = torch.cartesian_prod(*[torch.tensor([-1, 0, 1])] * 4)
    assert sum(2 ** -adaptive_code_bits(s, 3) for s in every) == pytest.approx(1, rel=1e-12)


def test_rounding() -> None:
    w = torch.randn(500, generator=torch.Generator().manual_seed(0))
    symbols, scale = quantize(w, 33, 0.25)
    assert float((w - symbols * scale).abs().max()) <= float(scale) / 2 + 1e-6
    assert float(scale.to(torch.bfloat16)) == float(scale)
    assert quantize(torch.zeros(3), 3, 1.0)[0].tolist() == [0, 0, 0]
    for levels, width in ((4, 1.0), (1, 1.0), (3, 0.0)):
        with pytest.raises(ValueError, match="must be"):
            quantize(w, levels, width)
    w[[3, 5]] = torch.tensor([math.nan, math.inf])
    with pytest.raises(ValueError, match="weights must be finite to be rounded, got 2 that are not"):
        quantize(w, 33, 0.25)


@pytest.mark.parametrize(
    ("symbols", "levels", "message"),
    [([2, 0], 3, r"must lie in -1\.\.1.*got 0\.\.2"), ([-2], 3, r"got -2\.\.-2"), ([0], 4, "levels must be odd")],
)
def test_a_code_refuses_what_it_has_no_words_for(symbols: list[int], levels: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        adaptive_code_bits(torch.tensor(symbols), levels)


def test_symbols_of_few_bits_cost_what_others_cost() -> None:
    """100 + 127, the word of the code, is beyond int8."""
    symbols = torch.tensor([100, -3, 0])
    assert adaptive_code_bits(symbols.to(torch.int8), 255) == adaptive_code_bits(symbols, 255)
    with pytest.raises(TypeError, match=r"symbols must be integers, got torch\.float32"):
        adaptive_code_bits(symbols.float(), 255)


def linear_problem() -> Problem:
    """Rows of two classes of digits: enough of them for so small a network."""
    x, y = digits(dtype=torch.float32)
    torch.manual_seed(0)
    net = nn.Linear(64, 2)
    problem = Problem(net, F.cross_entropy, (x, (y < 5).long()))
    for _ in range(60):
        problem = problem.at(problem.unflatten(problem.flatten(problem.params) - 0.1 * problem.gradient()))
    return problem


def test_every_bit_is_counted_and_the_bound_follows_from_them() -> None:
    problem = linear_problem()
    bound = occam(problem)
    terms = bound.terms
    ideal = sum(
        adaptive_code_bits(quantize(p, int(terms["levels"]), terms["width"])[0], int(terms["levels"])) for p in problem.params.values()
    )
    assert terms["bits"] == pytest.approx(ideal + 2 * (SCALE_BITS + END_BITS) + 3)  # two tensors, one of five numbers of levels
    assert bound.value == kl_inverse(terms["empirical error"], (terms["bits"] * math.log(2) + math.log(20)) / problem.n)
    assert terms["empirical error"] < bound.value < 0.45  # says something about 1797 rows
    finer, coarser = (occam(problem, levels=[L]) for L in (33, 3))
    assert finer.terms["bits"] > coarser.terms["bits"]
    assert min(finer.value, coarser.value) >= bound.value - 0.01  # naming one of five numbers costs three bits, no more


def test_a_difference_from_the_start_is_shorter_and_needs_the_start() -> None:
    problem = linear_problem()
    start = {k: p + 0.01 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)) for k, p in problem.params.items()}
    near = occam(problem, coding="difference", init=start)
    assert near.terms["empirical error"] <= occam(problem).terms["empirical error"]
    assert near.value < occam(problem).value
    assert "init does not depend on the rows" in near.assumptions
    for options, match in (
        ({"coding": "difference"}, "init must be given"),
        ({"init": start}, "init must be given"),
        ({"coding": "difference", "init": {"weight": start["weight"]}}, "bias is missing"),
        ({"coding": "lora"}, "coding must be"),
        ({"levels": []}, "levels must name"),
        ({"delta": 0.0}, "delta lie in"),
    ):
        with pytest.raises(ValueError, match=match):
            occam(problem, **options)


def test_a_network_trained_in_a_random_subspace_has_a_short_message() -> None:
    """Ten classes of digits, by a network of 4810 parameters that is trained whole, or in a subspace of 200 numbers, to the same error."""
    x, y = digits(dtype=torch.float32)

    def trained(net: nn.Module) -> Problem:
        optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=0.05)
        for _ in range(300):
            optimizer.zero_grad()
            outputs = net(x)
            if float((outputs.argmax(1) != y).float().mean()) < 0.06:
                break
            F.cross_entropy(outputs, y).backward()
            optimizer.step()
        return Problem(net, F.cross_entropy, (x, y))

    def network() -> nn.Module:
        return seeded(lambda: nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)), 0, dtype=torch.float32)

    small, every, start = occam(trained(RandomSubspace(network(), 200, seed=0))), trained(network()), dict(network().named_parameters())
    whole = occam(every)
    assert max(b.terms["empirical error before coding"] for b in (small, whole)) < 0.06
    assert small.terms["bits"] < whole.terms["bits"] / 4
    assert small.value < 0.5 < min(whole.value, occam(every, coding="difference", init=start).value)
    assert "architecture and frozen parameters do not depend on the rows" in small.assumptions
    assert "buffers do not depend on the rows" in small.assumptions
    assert "buffers do not depend on the rows" not in whole.assumptions


def test_a_test_set_is_read_beside_it_and_random_labels_get_no_bound() -> None:
    problem = linear_problem()
    assert [r.delta for r in occam(problem, test=problem).readings()] == [0.05, 0.05]
    noise = torch.randint(2, (problem.n,), generator=torch.Generator().manual_seed(0))
    random = Problem(problem.model, F.cross_entropy, (problem.batches[0].content[0], noise))
    assert occam(random).value > 0.5


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(3), nn.InstanceNorm1d(3, track_running_stats=True)])
def test_running_statistics_are_not_passed_over(norm: nn.Module) -> None:
    net = nn.Sequential(nn.Unflatten(1, (3, 2)), norm, nn.Flatten())
    problem = Problem(nn.Sequential(nn.Linear(6, 6), net, nn.Linear(6, 3)), F.cross_entropy, (torch.randn(6, 6), torch.arange(6) % 3))
    with pytest.raises(Inapplicable, match=f"running statistics of {type(norm).__name__} were computed from rows"):
        occam(problem)


class Centred(nn.Module):
    """A linear map of inputs less their mean, which is a buffer."""

    def __init__(self, mean: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.head = nn.Linear(len(mean), 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x - self.mean)


def test_buffers_that_are_not_sent_are_assumed_to_be_free_of_the_rows() -> None:
    x, y = torch.randn(6, 2, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 3
    said = "buffers do not depend on the rows"
    assert said in occam(Problem(Centred(x.mean(0)), F.cross_entropy, (x, y))).assumptions
    assert said not in occam(Problem(nn.Linear(2, 3), F.cross_entropy, (x, y))).assumptions
