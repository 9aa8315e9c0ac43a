"""The networks and data that every family measures."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from theorylab.core.problem import Problem


@dataclass(frozen=True)
class Case:
    """One network with digits: as a plain module and tensors, which peers take, and as a `Problem`."""

    name: str
    net: nn.Module
    x: Tensor
    y: Tensor

    @property
    def problem(self) -> Problem:
        """Cross-entropy of the network, made anew."""
        return Problem(self.net, nn.functional.cross_entropy, (self.x, self.y))

    @property
    def params(self) -> list[nn.Parameter]:
        """In the order of the flat vector."""
        return list(self.net.parameters())

    def vector(self) -> Tensor:
        """A random direction (p,)."""
        p = sum(p.numel() for p in self.params)
        return torch.randn(p, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(self.x)


def mlp(width: int) -> nn.Module:
    """64-width-width-10 with tanh: 26122 parameters for 128, 3466 for 32, and 1482 for 16, of which all eigenvalues can be computed."""
    return nn.Sequential(nn.Linear(64, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 10))


def cnn() -> nn.Module:
    """Two convolutions of 8 x 8 images and a linear readout."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 16, 3, padding=1),
        nn.Tanh(),
        nn.Conv2d(16, 32, 3, padding=1, stride=2),
        nn.Tanh(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 10),
    )


NETS = {"MLP": lambda: mlp(128), "MLP of width 32": lambda: mlp(32), "MLP of width 16": lambda: mlp(16), "CNN": cnn}


def case(name: str, n: int, dtype: torch.dtype) -> Case:
    """The network ``name`` at its seeded initialization with the first ``n`` digits."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = NETS[name]()
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images[:n] / 16, dtype=dtype), torch.tensor(labels[:n])
    return Case(name, copy.deepcopy(net).to(dtype), x, y)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """For peers whose own tensors have the default type, whatever the model's."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
