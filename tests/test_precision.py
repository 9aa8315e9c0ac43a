"""Measurements in float32 are that, whatever a training script chose for its speed; and its choice stays as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import theorylab as tl
from theorylab.core.precision import full_float32, is_shortened
from theorylab.core.scale import Scale
from theorylab.core.study import load_study

OPERATIONS = [(backend, operation) for backend in ("cuda", "mkldnn") for operation in ("matmul", "conv", "rnn")]
PLACES = [("generic", "all"), ("cuda", "all"), ("mkldnn", "all"), *OPERATIONS]
by_operation = hasattr(torch._C, "_get_fp32_precision_getter")


def switch(place: tuple[str, str], value: str) -> None:
    if not by_operation:
        pytest.skip("this PyTorch has no switch for each operation")
    torch._C._set_fp32_precision_setter(*place, value)


def outcome(read: Callable[[], Any]) -> Any:
    """What is read, or that PyTorch refuses to."""
    try:
        return read()
    except RuntimeError:
        return "refused"


def switches() -> list[Any]:
    """Everything that can be read of them, followed or not: also with what they follow taken away."""
    older = [outcome(torch.get_float32_matmul_precision), outcome(lambda: torch.backends.cudnn.allow_tf32)]
    older.append(outcome(lambda: torch.backends.cuda.matmul.allow_tf32))
    if not by_operation:
        return older
    get, set_ = torch._C._get_fp32_precision_getter, torch._C._set_fp32_precision_setter
    newer = {place: get(*place) for place in PLACES}
    above = {place: newer[place] for place in PLACES[:3]}
    set_(*PLACES[0], "none")
    above |= {place: get(*place) for place in PLACES[1:3]}
    for place in PLACES[1:3]:
        set_(*place, "none")
    own = {place: get(*place) for place in OPERATIONS}
    for place, value in above.items():
        set_(*place, value)
    return [*older, newer, above, own]


CHOICES: dict[str, Callable[[], None]] = {
    "as PyTorch begins": lambda: None,
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "no TF32 in cuDNN": lambda: setattr(torch.backends.cudnn, "allow_tf32", False),
    "one operation full": lambda: switch(("cuda", "conv"), "ieee"),
    "one operation shortened": lambda: switch(("cuda", "matmul"), "tf32"),
    "everything shortened": lambda: switch(("generic", "all"), "tf32"),
    "a backend shortened": lambda: switch(("mkldnn", "all"), "bf16"),
    "a backend other than its operation": lambda: (switch(("cuda", "all"), "tf32"), switch(("cuda", "matmul"), "ieee"))[0],
    "old and new": lambda: (torch.set_float32_matmul_precision("high"), switch(("mkldnn", "matmul"), "ieee"))[0],
}


@pytest.fixture(autouse=True)
def put_back() -> Iterator[None]:
    yield
    for place in PLACES if by_operation else ():
        switch(place, "none")
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("device", [None, torch.device("cpu"), torch.device("cuda")])
def test_within_nothing_is_shortened_and_afterwards_every_switch_is_as_it_was(choice: str, device: torch.device | None) -> None:
    CHOICES[choice]()
    before = switches()
    with full_float32(device):
        assert not is_shortened(device)
        if device is None or device.type == "cuda":
            assert not torch.backends.cuda.matmul.allow_tf32
            with torch.backends.cudnn.flags(enabled=False):
                pass  # as models do around recurrent layers: it reads and sets the older switch
        assert not is_shortened(device)
    assert switches() == before


def test_an_exception_leaves_the_switches_as_they_were() -> None:
    torch.set_float32_matmul_precision("high")
    before = switches()
    with pytest.raises(KeyError), full_float32():
        raise KeyError
    assert switches() == before


def test_what_is_shortened_is_seen() -> None:
    assert not is_shortened(torch.device("cpu"))
    assert is_shortened(torch.device("cuda"))  # convolutions, as PyTorch begins
    torch.backends.cudnn.allow_tf32 = False
    assert not is_shortened(torch.device("cuda"))
    torch.set_float32_matmul_precision("high")
    assert is_shortened(torch.device("cuda"))
    assert is_shortened(torch.device("cpu"))


class Noting(nn.Module):
    """A linear layer that notes the precision of products in its passes, elsewhere than on itself, where it would be put back."""

    def __init__(self, seen: set[str]) -> None:
        super().__init__()
        self.layer, self.note = nn.Linear(4, 2), seen.add

    def forward(self, x: Tensor) -> Tensor:
        self.note(torch.get_float32_matmul_precision())
        return self.layer(x)


def test_instruments_and_operators_measure_in_full_precision() -> None:
    seen: set[str] = set()
    model, x = Noting(seen), torch.randn(6, 4)
    problem = tl.Problem(model, nn.functional.mse_loss, (x, torch.randn(6, 2)))
    torch.set_float32_matmul_precision("medium")
    assert (tl.hessian(problem) @ torch.ones(problem.P)).isfinite().all()
    problem.gradient()
    tl.equivariance(problem, "permutation")
    assert seen == {"highest"}
    assert torch.get_float32_matmul_precision() == "medium"


def test_a_study_runs_in_full_precision() -> None:
    study, seen = load_study("optimization/saddle"), []
    torch.set_float32_matmul_precision("high")
    study.execute(study.scales[Scale.TINY], lambda stage: seen.append(torch.get_float32_matmul_precision()))
    assert set(seen) == {"highest"}
    assert torch.get_float32_matmul_precision() == "high"
