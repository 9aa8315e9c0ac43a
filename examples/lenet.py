"""LeNet-5 on the handwritten digits of scikit-learn, four times enlarged to the 32 × 32 pixels that it was made for.

theorylab measure examples/lenet.py:trained --with curvature,gradient_noise,norms
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

import theorylab as tl
from theorylab.data.digits import digits


class LeNet5(nn.Sequential):
    """LeCun et al. 1998, doi:10.1109/5.726791, with a softmax in place of its Gaussian connections: 61,706 parameters."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 6, 5),
            nn.Tanh(),
            nn.AvgPool2d(2),
            nn.Conv2d(6, 16, 5),
            nn.Tanh(),
            nn.AvgPool2d(2),
            nn.Conv2d(16, 120, 5),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(120, 84),
            nn.Tanh(),
            nn.Linear(84, 10),
        )


def data(n: int = 256) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (n, 1, 32, 32) and labels (n,)."""
    x, y = digits(n, dtype=torch.float32)
    return F.interpolate(x.reshape(-1, 1, 8, 8), scale_factor=4), y


def trained(epochs: int = 10, seed: int = 0) -> tl.Problem:
    """Train for some seconds by Adam, and measure there on the training rows."""
    x, y = data()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LeNet5()
        optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
        for _ in range(epochs):
            for rows in torch.randperm(len(x)).split(32):
                optimizer.zero_grad()
                F.cross_entropy(model(x[rows]), y[rows]).backward()
                optimizer.step()
    return tl.Problem(model, F.cross_entropy, (x, y))


if __name__ == "__main__":
    card = tl.measure(trained(), ["curvature", "gradient_noise", "norms"], title="LeNet-5")
    print(card)
    print(card.to_html("lenet.html"))
