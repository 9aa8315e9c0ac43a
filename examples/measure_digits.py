"""A small network trained on the handwritten digits of scikit-learn, for a first report card.

theorylab measure examples/measure_digits.py:problem --with curvature
"""

from __future__ import annotations

import torch
from torch import nn

import theorylab as tl
from theorylab.data.digits import digits


def problem(steps: int = 100, step_size: float = 0.5) -> tl.Problem:
    """Train for a moment by full-batch gradient descent, then measure there: the training set, its loss and the trained network."""
    x, y = digits(1000, dtype=torch.float32)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 48), nn.Tanh(), nn.Linear(48, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=step_size)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return tl.Problem(model, nn.functional.cross_entropy, (x, y))


if __name__ == "__main__":
    card = tl.measure(problem(), ["curvature"], title="digits")
    print(card)
    card.to_html("digits.html")
