"""Balancedness: what gradient descent conserves up to its step, and pairs of layers for which it does not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import hooked

from theorylab.core.instrument import Inapplicable
from theorylab.core.problem import Problem
from theorylab.instruments.balancedness import balancedness, layer_pairs


def descend(problem: Problem, lr: float, steps: int) -> Problem:
    for _ in range(steps):
        problem = problem.at(problem.unflatten(problem.flatten(problem.params) - lr * problem.gradient()))
    return problem


def regression(net: nn.Module, **options: object) -> Problem:
    draw = torch.Generator().manual_seed(1)
    x, y = torch.randn(30, 5, generator=draw), torch.randn(30, 2, generator=draw)
    return Problem(net, F.mse_loss, (x, y), dtype=torch.float64, **options)  # pyright: ignore[reportArgumentType]


def chain(*middle: nn.Module, inputs: int = 5) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(inputs, 5), *middle, nn.Linear(5, 5), *middle, nn.Linear(5, 2))


def drifts(problem: Problem) -> list[tuple[float, float]]:
    """Over one time, with a step and with a tenth of it: gradient flow conserves what drifts by the order of the step."""
    ends = [balancedness(descend(problem, lr, round(0.5 / lr)), before=problem.params) for lr in (1e-2, 1e-3)]
    return [(a.drift or 0.0, b.drift or 0.0) for a, b in zip(*(end.pairs for end in ends), strict=True)]


@pytest.mark.parametrize("middle", [nn.Identity(), nn.ReLU()], ids=["identity", "relu"])
def test_steps_change_the_balance_by_squares_of_the_step_and_gradients_alone(middle: nn.Module) -> None:
    """Δ(VᵀV − WWᵀ − bbᵀ) = Σ η²(G_VᵀG_V − G_W G_Wᵀ − g_b g_bᵀ) over the steps, exactly; the diagonal through a ReLU."""
    start, lr = regression(chain(middle)), 0.1
    problem, added = start, {}
    for _ in range(3):
        g = problem.unflatten(problem.gradient())
        for first, second in (("0", "2"), ("2", "4")):
            W, b, V = g[f"{first}.weight"], g[f"{first}.bias"], g[f"{second}.weight"]
            added[first] = added.get(first, 0) + lr**2 * (V.T @ V - W @ W.T - torch.outer(b, b))
        problem = descend(problem, lr, 1)
    before, after = balancedness(start).pairs, balancedness(problem, before=start.params).pairs
    assert [(p.first, p.second) for p in after] == [("0.weight", "2.weight"), ("2.weight", "4.weight")]
    for old, new in zip(before, after, strict=True):
        whole = added[new.first[0]]
        expected = whole.diagonal() if isinstance(middle, nn.ReLU) else whole
        assert new.diagonal is isinstance(middle, nn.ReLU)
        torch.testing.assert_close(new.difference - old.difference, expected, rtol=1e-9, atol=1e-14)
        assert new.drift == pytest.approx(float(expected.norm()), rel=1e-8)
        assert old.drift is None


@pytest.mark.parametrize(
    ("net", "options"),
    [
        (chain(nn.Identity()), {}),
        (chain(nn.ReLU()), {}),
        (chain(nn.Identity()), {"params": ["*.weight", "[02].bias"]}),
        (chain(nn.Dropout(0.4)), {"train": True}),
        (chain(nn.ReLU(), nn.Dropout(0.4)), {"train": True}),
        (chain(nn.Dropout(0.0)), {"train": True}),
        (chain(nn.AlphaDropout(0.4)), {}),
    ],
    ids=["identity", "relu", "outer bias held", "dropout", "relu, dropout", "dropout of nothing", "alpha dropout, eval"],
)
def test_the_drift_of_what_is_measured_falls_with_the_step(net: nn.Module, options: dict) -> None:
    for coarse, fine in drifts(regression(net, **options)):
        assert 0 < fine < 0.2 * coarse


def test_a_mask_leaves_the_diagonal_alone_and_none_the_whole() -> None:
    assert [p.diagonal for p in balancedness(regression(chain(nn.Dropout(0.4)), train=True)).pairs] == [True, True]
    assert [p.diagonal for p in balancedness(regression(chain(nn.Dropout(0.4)))).pairs] == [False, False]
    assert [p.diagonal for p in balancedness(regression(chain(nn.Dropout(0.0)), train=True)).pairs] == [False, False]


class Tied(nn.Module):
    """Two layers in sequence, the second of which is ``used`` in another way too."""

    def __init__(self, used: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.used = nn.Linear(5, 5), nn.Linear(5, 5), used
        self.head = nn.Sequential(nn.Tanh(), nn.Linear(5, 2))
        self.twin = nn.Linear(5, 5)
        if used == "by another layer":
            self.twin.weight = self.second.weight

    def forward(self, x: Tensor) -> Tensor:
        h = self.second(self.first(x))
        if self.used == "twice":
            h = self.second(torch.tanh(h))
        elif self.used == "by another layer":
            h = self.twin(torch.tanh(h))
        elif self.used == "as a matrix":
            h = F.linear(torch.tanh(h), self.second.weight)
        return self.head(h)


@pytest.mark.parametrize("used", ["twice", "by another layer", "as a matrix"])
def test_a_layer_that_is_used_again_is_not_balanced(used: str) -> None:
    with pytest.raises(Inapplicable, match=r"of first and second, second\.weight is used more than once"):
        balancedness(regression(Tied(used)))
    assert len(balancedness(regression(Tied("once"))).pairs) == 1


def test_other_pairs_of_the_network_are_still_measured() -> None:
    tied = nn.Linear(5, 5)
    torch.manual_seed(0)
    net = nn.Sequential(tied, nn.ReLU(), tied, nn.Tanh(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))
    found = layer_pairs(regression(net))
    assert [(p.inner, p.outer, bool(p.why_not)) for p in found if not isinstance(p, str)] == [("0", "0", True), ("4", "6", False)]
    assert [(p.first, p.second) for p in balancedness(regression(net)).pairs] == [("4.weight", "6.weight")]


def test_a_bias_that_is_there_and_held_breaks_the_balance() -> None:
    """What d/dt of VᵀV − WWᵀ lacks is then (VᵀĜ)bᵀ, of first order: the pair is left out, and said to be."""
    net = chain(nn.Identity())
    held = regression(net, params=["*.weight", "2.bias"])
    assert [p.first for p in balancedness(held).pairs] == ["2.weight"]
    with pytest.raises(Inapplicable, match=r"'0' and '2': 0\.bias is not selected"):
        balancedness(held, pairs=[("0", "2")])
    with pytest.raises(Inapplicable, match=r"of 0 and 2, 0\.bias is not selected; of 2 and 4, 2\.bias is not selected"):
        balancedness(regression(net, params="*.weight"))


def test_pairs_are_chosen_by_name() -> None:
    problem = regression(chain(nn.ReLU()))
    every = balancedness(problem).pairs
    (one,) = balancedness(problem, pairs=[("2", "4")]).pairs
    assert one.imbalance == every[1].imbalance
    with pytest.raises(Inapplicable, match=r"'0' and '4': not two dense layers in sequence.* \('0', '2'\), \('2', '4'\)"):
        balancedness(problem, pairs=[("0", "4")])


@pytest.mark.parametrize(
    ("net", "options", "match"),
    [
        (chain(nn.Tanh()), {}, "through other activations no such quantity"),
        (chain(nn.AlphaDropout(0.4)), {"train": True}, "no layers are two dense layers in sequence"),
        (chain(nn.ReLU()), {"params": "2.*"}, r"0\.weight is not selected"),
        (nn.Sequential(nn.Linear(5, 4), hooked(nn.Linear(4, 2))), {}, "of 0 and 1, a hook changes what 1 puts out"),
    ],
)
def test_where_nothing_is_conserved_it_is_refused(net: nn.Module, options: dict, match: str) -> None:
    with pytest.raises(Inapplicable, match=match):
        balancedness(regression(net, **options))


def test_the_mode_decides_which_graph_is_meant() -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(5, 5), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.tanh(self.first(x)) if self.training else self.first(x))

    net = Branch()
    assert len(balancedness(regression(net)).pairs) == 1
    with pytest.raises(Inapplicable, match="through other activations"):
        balancedness(regression(net, train=True))


def test_earlier_parameters_must_be_there_and_readings_are_measures() -> None:
    problem = regression(chain(nn.ReLU()))
    assert [(r.name, r.label, r.note) for r in balancedness(problem, before=problem.params, pairs=[("0", "2")]).readings()] == [
        ("imbalance of 0.weight and 2.weight", "measure", "unit by unit"),
        ("drift of 0.weight and 2.weight", "measure", "unit by unit"),
    ]
    for before in ({}, {**problem.params, "2.weight": torch.ones(2, 2)}):
        with pytest.raises(ValueError, match=r"before must hold '2\.weight' of shape \(5, 5\)"):
            balancedness(problem, before=before)
