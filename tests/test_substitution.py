"""Other tensors in the place of a model's own: what `torch.func.functional_call` computes, and nothing left behind."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call

from theorylab.core.substitution import places_of, substituted


class Tied(nn.Module):
    """One matrix in two places, one layer in two, and a buffer that the forward pass replaces."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.again = self.first
        self.last = nn.Linear(3, 3, bias=False)
        self.last.weight = self.first.weight
        self.register_buffer("seen", torch.zeros((), dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Uses every name."""
        self.seen = self.seen + len(x)
        return self.last(self.again(self.first(x).tanh()))


def values(model: nn.Module, seed: int) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {
        k: torch.randn(t.shape, generator=g, dtype=torch.float64).to(t.dtype)
        for k, t in model.state_dict(keep_vars=True).items()
        if k in names(model)
    }


def names(model: nn.Module) -> set[str]:
    return {k for k, _ in [*model.named_parameters(), *model.named_buffers()]}


@pytest.mark.parametrize(
    "model",
    [Tied(), nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)), nn.LSTM(3, 4)],
    ids=["tied", "buffers", "parametrized", "recurrent"],
)
def test_agrees_with_functional_call_and_puts_everything_back(model: nn.Module) -> None:
    model = model.double().eval()
    before = {k: (t, t.clone()) for k, t in model.state_dict(keep_vars=True).items()}
    parameters = dict(model.named_parameters())
    others = {k: v.abs().requires_grad_(k in parameters) for k, v in values(model, 1).items()}
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def of(out: torch.Tensor | tuple) -> list[torch.Tensor]:
        out = out[0] if isinstance(out, tuple) else out
        grads = torch.autograd.grad(out.sum(), [others[k] for k in parameters], allow_unused=True)
        return [out, *(g for g in grads if g is not None)]

    expected = of(functional_call(copy.deepcopy(model), others, (x,)))  # in a copy: it leaves a layer with two names changed
    with substituted(model, others, places_of(model)):
        found = of(model(x))
    assert len(found) == len(expected)
    assert all(map(torch.equal, found, expected))
    after = model.state_dict(keep_vars=True)
    assert all(after[k] is t and torch.equal(t, own) for k, (t, own) in before.items())


def test_an_error_puts_everything_back() -> None:
    layer = nn.Linear(2, 2)
    own = layer.weight
    with pytest.raises(RuntimeError, match="shapes"), substituted(layer, {"weight": torch.zeros(2, 2)}, places_of(layer)):
        layer(torch.zeros(1, 3))
    assert layer.weight is own
    with pytest.raises(KeyError), substituted(layer, {"weight": torch.zeros(2, 2), "none": torch.zeros(1)}, places_of(layer)):
        pass
    assert layer.weight is own


def test_a_part_that_was_replaced_since_is_the_one_that_counts() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    places = places_of(model)
    model[1] = nn.Linear(2, 2)
    x, zero = torch.ones(1, 2), {"1.weight": torch.zeros(2, 2), "1.bias": torch.tensor([3.0, 4.0])}
    with substituted(model, zero, places):
        assert model(x).tolist() == [[3.0, 4.0]]
