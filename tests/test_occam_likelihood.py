"""The bound on a language model's likelihood covers where the truth is known, and counts what it says it counts."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from theorylab.core.instrument import Inapplicable
from theorylab.core.problem import Problem
from theorylab.instruments.coded import describe
from theorylab.instruments.occam import occam
from theorylab.instruments.occam_likelihood import SMOOTHING, Unit, interval, occam_likelihood, slow_occam_likelihood, upper
from theorylab.stats.binomial import kl_inverse

UNITS = pytest.mark.parametrize("unit", ["document", "token"])


class Markov:
    """A stationary Markov source over V tokens, and tables of its last ``order`` tokens that are fitted to documents of it."""

    def __init__(self, transition: list[list[float]], order: int = 1) -> None:
        self.T = torch.tensor(transition, dtype=torch.float64)
        self.V, self.order = len(transition), order
        self.pi = torch.linalg.matrix_power(self.T, 200)[0]
        self.digits = torch.tensor([self.V**i for i in range(order)]).flip(0)
        pasts = torch.cartesian_prod(*[torch.arange(self.V)] * order).reshape(-1, order)
        steps = self.T[pasts[:, :-1], pasts[:, 1:]].prod(1)
        self.frequency = self.pi[pasts[:, 0]] * steps  # of every context
        self.after = self.T[pasts[:, -1]]  # (contexts, V)

    def documents(self, n: int, length: int, seed: int) -> tuple[Tensor, Tensor]:
        """Contexts and the tokens that follow, (n, token) each."""
        generator = torch.Generator().manual_seed(seed)
        text = [torch.multinomial(self.pi, n, replacement=True, generator=generator)]
        for _ in range(self.order + length - 1):
            text.append(torch.multinomial(self.T[text[-1]], 1, generator=generator)[:, 0])
        tokens = torch.stack(text, 1)
        windows = tokens.unfold(1, self.order, 1)[:, :-1] @ self.digits
        return windows, tokens[:, self.order :]

    def fitted(self, contexts: Tensor, tokens: Tensor, **options: Any) -> Problem:
        """A table of log-frequencies, each context's counts begun at one half."""
        counts = torch.full((len(self.frequency), self.V), 0.5, dtype=torch.float64)
        counts.index_put_((contexts.flatten(), tokens.flatten()), torch.ones((), dtype=torch.float64), accumulate=True)
        logits = (counts / counts.sum(1, keepdim=True)).log()
        table = nn.Embedding.from_pretrained(logits - logits.mean(1, keepdim=True), freeze=False)
        return Problem(table, F.cross_entropy, (contexts, tokens), read=lambda outputs: outputs.transpose(1, 2), **options)

    def truth(self, logits: Tensor, alpha: float, contexts: Tensor | None = None) -> float:
        """What a smoothed table costs a token: on a new document, or on average in the contexts that are given."""
        smoothed = (1 - alpha) * logits.softmax(1) + alpha / self.V
        cost = -(self.after * smoothed.log2()).sum(1)
        return float(self.frequency @ cost if contexts is None else cost[contexts].mean())


SHORT = Markov([[0.9, 0.05, 0.05], [0.1, 0.8, 0.1], [0.02, 0.02, 0.96]])
LONG = Markov([[0.6, 0.4], [0.4, 0.6]], order=11)
"""Of whose 2048 contexts a document shows few, so that a fitted table has learnt its documents by heart."""


def coded_logits(problem: Problem, terms: Any) -> Tensor:
    return describe(problem.params, None, int(terms["levels"]), terms["width"])[0]["weight"]


@UNITS
def test_it_covers_in_every_draw_and_says_something(unit: Unit) -> None:
    values = []
    for seed in range(200):
        contexts, tokens = SHORT.documents(300, 6, seed)
        problem = SHORT.fitted(contexts, tokens)
        bound = occam_likelihood(problem, unit=unit, levels=(5,), smoothing=(0.1, 0.02))
        alpha = bound.terms["smoothing"]
        assert bound.value >= SHORT.truth(coded_logits(problem, bound.terms), alpha, contexts if unit == "token" else None)
        values.append(bound.value)
    entropy = float(-(SHORT.pi[:, None] * SHORT.T * SHORT.T.log2()).sum())
    assert entropy < max(values) < math.log2(3)  # less than a uniform guess costs


@UNITS
def test_without_the_length_of_the_message_it_would_fail(unit: Unit) -> None:
    for seed in range(10):
        contexts, tokens = LONG.documents(300, 6, seed)
        problem = LONG.fitted(contexts, tokens)
        bound = occam_likelihood(problem, unit=unit, smoothing=(0.25, 0.05))
        count, alpha = bound.terms["rows" if unit == "document" else "tokens"], bound.terms["smoothing"]
        truth = LONG.truth(coded_logits(problem, bound.terms), alpha, contexts if unit == "token" else None)
        assert bound.value >= truth
        # the network as it was fitted, of which no message is counted
        logits = problem.params["weight"]
        mean = -float(((1 - alpha) * logits.softmax(1)[contexts, tokens] + alpha / 2).log2().mean())
        fitted = LONG.truth(logits, alpha, contexts if unit == "token" else None)
        assert upper(mean, alpha, 2, math.log(20) / count, unit, kl_inverse) < fitted


@UNITS
def test_the_bound_is_what_its_terms_make(unit: Unit) -> None:
    contexts, tokens = SHORT.documents(50, 5, 0)
    bound = occam_likelihood(SHORT.fitted(contexts, tokens), unit=unit)
    t = bound.terms
    _, width = interval(t["smoothing"], 3)
    n = {"document": 50, "token": 250}[unit]
    epsilon = (t["bits"] * math.log(2) + math.log(20)) / n
    assert t["rows" if unit == "document" else "tokens"] == n
    root = t["empirical"] + width * math.sqrt(epsilon / 2)
    assert bound.value == pytest.approx(root) if unit == "token" else bound.value <= root
    one = occam_likelihood(SHORT.fitted(contexts, tokens), unit=unit, smoothing=[t["smoothing"]], levels=[int(t["levels"])])
    assert one.terms["bits"] == pytest.approx(t["bits"] - 3 - 3)  # of eight smoothings and of five numbers of levels
    assert t["uniform guess"] == pytest.approx(math.log2(3))
    assert ("rows are independent draws of one distribution" in bound.assumptions) == (unit == "document")


def test_a_smoothed_loss_fills_its_interval() -> None:
    for alpha in SMOOTHING:
        least, width = interval(alpha, 5)
        assert least == pytest.approx(-math.log2(1 - alpha + alpha / 5))
        assert least + width == pytest.approx(math.log2(5 / alpha))


@UNITS
def test_tokens_that_are_not_predicted_and_batches_of_other_lengths(unit: Unit) -> None:
    """Padding changes nothing, and the oracle sees it the same way; rows weigh the same, or tokens do."""
    torch.manual_seed(0)
    table = nn.Embedding(4, 4, dtype=torch.float64)

    def problem(batches: list[tuple[Tensor, Tensor]]) -> Problem:
        return Problem(table, F.cross_entropy, batches, read=lambda outputs: outputs.transpose(1, 2))

    short, long = (torch.randint(4, (6, length)) for length in (3, 8))
    pairs = [(short[:, :-1], short[:, 1:]), (long[:, :-1], long[:, 1:])]
    apart = problem(pairs)
    padded = problem([(F.pad(pairs[0][0], (0, 5)), F.pad(pairs[0][1], (0, 5), value=-100)), pairs[1]])
    for one in (apart, padded):
        bound, slow = (f(one, unit=unit) for f in (occam_likelihood, slow_occam_likelihood))
        assert bound.value == pytest.approx(slow.value, rel=1e-9)
        assert bound.terms == pytest.approx(slow.terms, rel=1e-9)
        assert bound.terms["rows" if unit == "document" else "tokens"] == (12 if unit == "document" else 6 * 2 + 6 * 7)
    assert occam_likelihood(padded, unit=unit).terms == pytest.approx(occam_likelihood(apart, unit=unit).terms, rel=1e-12)
    # one row of two tokens and one of seven, by hand
    few = problem([(x[:1], y[:1]) for x, y in pairs])
    terms = occam_likelihood(few, unit=unit).terms
    logits = coded_logits(few, terms)
    costs = [-((1 - terms["smoothing"]) * logits.softmax(1)[x[0], y[0]] + terms["smoothing"] / 4).log2() for x, y in pairs]
    by_hand = (costs[0].mean() + costs[1].mean()) / 2 if unit == "document" else torch.cat(costs).mean()
    assert terms["empirical"] == pytest.approx(float(by_hand.detach()))


def test_a_difference_from_a_start_and_unseen_rows() -> None:
    problem = SHORT.fitted(*SHORT.documents(500, 6, 0))
    near = {"weight": problem.params["weight"] + 0.01}
    test = problem.on(SHORT.fitted(*SHORT.documents(400, 6, 1)).batches)
    bound = occam_likelihood(problem, coding="difference", init=near, test=test)
    assert bound.value < occam_likelihood(problem).value
    assert "init does not depend on the rows" in bound.assumptions
    assert bound.beside is not None
    assert bound.beside.value < bound.value
    assert bound.beside.terms["rows"] == 400
    assert [r.delta for r in bound.readings()] == [0.05, 0.05]


def test_what_is_no_likelihood_is_refused() -> None:
    x, y = torch.randint(3, (6, 4)), torch.randint(3, (6, 4))

    def problem(loss: Any = F.cross_entropy, targets: Tensor = y) -> Problem:
        return Problem(nn.Embedding(3, 3), loss, (x, targets), read=lambda outputs: outputs.transpose(1, 2))

    silent = y.clone()
    silent[2] = -100
    for refused, match in (
        (problem(nn.CrossEntropyLoss(label_smoothing=0.1)), "label smoothing"),
        (problem(lambda outputs, targets: F.cross_entropy(outputs, targets)), "not known as the cross-entropy"),
        (problem(nn.CrossEntropyLoss(ignore_index=0)), "ignore_index"),
        (problem(targets=silent), "row predicts no token"),
        (problem(targets=F.one_hot(y, 3).transpose(1, 2).float()), "predicts no tokens"),
        (Problem(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)), F.cross_entropy, (torch.randn(6, 2), y[:, 0])), "running statistics"),
    ):
        with pytest.raises(Inapplicable, match=match):
            occam_likelihood(refused)
        with pytest.raises(Inapplicable, match=f"test rows: .*{match}"):
            occam_likelihood(problem(), test=refused)
    for options, match in (
        ({"unit": "page"}, "unit must be"),
        ({"smoothing": []}, "smoothing must name"),
        ({"smoothing": [0.1, 1.0]}, "smoothing must name"),
        ({"coding": "lora"}, "coding must be"),
    ):
        with pytest.raises(ValueError, match=match):
            occam_likelihood(problem(), **options)


def test_a_code_that_makes_no_network_has_no_bound() -> None:
    """Where a parameter whose logarithm is taken is rounded below zero, no number comes out."""

    class Log(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.chances = nn.Parameter(torch.tensor([0.001, 10.0], dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return (self.chances - 0.0005).log().expand(len(x), 2)

    problem = Problem(Log(), F.cross_entropy, (torch.zeros(40, 1), torch.ones(40, dtype=torch.long)))
    assert occam_likelihood(problem, levels=[3]).value == math.inf
    assert occam(problem, levels=[3]).value == 1
