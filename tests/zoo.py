"""Small smooth models of every kind that a Problem must measure rightly, with float64 data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from theorylab.core.problem import Problem


class Attention(nn.Module):
    """A one-block language model whose attention goes through `scaled_dot_product_attention`."""

    def __init__(self, *, tied: bool, vocabulary: int = 7, width: int = 4) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.qkv = nn.Linear(width, 3 * width)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.embed(tokens)  # (n, token, width)
        q, k, v = (t.unflatten(-1, (2, -1)).transpose(1, 2) for t in self.qkv(self.norm(h)).chunk(3, dim=-1))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.head(h + mixed.transpose(1, 2).flatten(2))[:, -1]


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, dim_feedforward=6, dropout=0.1, activation="gelu", batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x).mean(1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 3, num_layers=2, batch_first=True)
        self.head = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


class Standardized(nn.Conv2d):
    """A convolution by its weight at mean 0 and variance 1 in every channel."""

    def forward(self, input: Tensor) -> Tensor:
        centred = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(input, centred / centred.std((1, 2, 3), keepdim=True), self.bias)


class Masked(nn.Linear):
    """A dense layer by every other of its weights."""

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.linear(input, self.weight * (torch.arange(self.weight.numel()).reshape(self.weight.shape) % 2), self.bias)


def hooked(layer: nn.Module) -> nn.Module:
    """The layer with a hook that adds its outputs to their neighbours."""
    layer.register_forward_hook(lambda _, args, output: output + output.roll(1, 1))
    return layer


def mlp(*, act: type[nn.Module] = nn.Tanh, dropout: float = 0.0) -> nn.Module:
    drop = [nn.Dropout(dropout)] if dropout else []
    return nn.Sequential(nn.Linear(5, 6), act(), *drop, nn.Linear(6, 6), act(), nn.Linear(6, 3))


def cnn() -> nn.Module:
    features = [nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(3, 4, 3), nn.GELU()]
    return nn.Sequential(*features, nn.Flatten(), nn.Linear(4, 3))


def norms() -> nn.Module:
    features = [nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.GELU(), nn.AvgPool2d(2), nn.Flatten()]
    return nn.Sequential(*features, nn.Linear(16, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 3))


def rms_norms() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 4), nn.RMSNorm(4), nn.Tanh(), nn.Linear(4, 3))


def curve() -> nn.Module:
    return nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1))


def half_frozen() -> nn.Module:
    model = mlp()
    model[0].requires_grad_(False)  # pyright: ignore[reportIndexIssue]
    return model


def labels(n: int) -> Tensor:
    return torch.arange(n) % 3


def vectors(n: int = 12) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 5), labels(n)


def images(n: int = 12) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 1, 6, 6), labels(n)


def sequences(n: int = 12) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 4, 4), labels(n)


def tokens(n: int = 12) -> tuple[Tensor, Tensor]:
    return torch.randint(0, 7, (n, 4)), labels(n)


def as_dict(n: int = 12) -> dict[str, Tensor]:
    x, y = vectors(n)
    return {"x": x, "y": y}


def dict_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Cross-entropy plus weight decay, which reads the parameters from the model."""
    decay = torch.stack([(p**2).sum() for p in model.parameters()]).sum()
    return F.cross_entropy(model(batch["x"]), batch["y"]) + 0.01 * decay


def places(n: int = 8) -> dict[str, Tensor]:
    return {"t": torch.linspace(0, 2, n)[:, None]}


def oscillator(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Residual of u'' = −u, with the derivatives taken by autograd."""
    t = batch["t"].clone().requires_grad_()
    u = model(t)
    (slope,) = torch.autograd.grad(u.sum(), t, create_graph=True)
    (bend,) = torch.autograd.grad(slope.sum(), t, create_graph=True)
    return (bend + u).square().mean()


def oscillator_by_transforms(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The same residual, with the derivatives taken by `torch.func`."""

    def value(t: Tensor) -> Tensor:
        return model(t[None])[0]

    bend = torch.func.vmap(torch.func.grad(torch.func.grad(value)))(batch["t"][:, 0])
    return (bend[:, None] + model(batch["t"])).square().mean()


def per_row(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - F.one_hot(targets, 3)).pow(2).sum(1)


ZOO: dict[str, tuple[Callable[[], nn.Module], Callable[..., Tensor], Callable[[], Any], dict[str, Any]]] = {
    "mlp": (mlp, F.cross_entropy, vectors, {}),
    "deep linear": (lambda: mlp(act=nn.Identity), F.cross_entropy, vectors, {}),
    "mlp, minibatches": (mlp, F.cross_entropy, vectors, {"batch_size": 5}),
    "mlp, row losses": (mlp, per_row, vectors, {}),
    "cnn, BatchNorm eval": (cnn, F.cross_entropy, images, {}),
    "cnn, BatchNorm train": (cnn, F.cross_entropy, images, {"train": True}),
    "cnn, dropout": (lambda: nn.Sequential(*cnn()[:-1], nn.Dropout(0.3), nn.Linear(4, 3)), F.cross_entropy, images, {"train": True}),  # pyright: ignore
    "dropout": (lambda: mlp(dropout=0.3), F.cross_entropy, vectors, {"train": True, "batch_size": 6}),
    "attention": (lambda: Attention(tied=False), F.cross_entropy, tokens, {}),
    "attention, tied": (lambda: Attention(tied=True), F.cross_entropy, tokens, {}),
    "TransformerEncoderLayer": (Encoder, F.cross_entropy, sequences, {}),
    "TransformerEncoderLayer, train": (Encoder, F.cross_entropy, sequences, {"train": True}),
    "LSTM": (Recurrent, F.cross_entropy, sequences, {}),
    "GroupNorm, LayerNorm": (norms, F.cross_entropy, images, {}),
    "RMSNorm": (rms_norms, F.cross_entropy, vectors, {}),
    "frozen and trainable": (half_frozen, F.cross_entropy, vectors, {}),
    "block of parameters": (mlp, F.cross_entropy, vectors, {"params": ["0.*", "4.bias"]}),
    "dict batches, custom loss": (mlp, dict_loss, as_dict, {"batch_size": 5}),
    "differential equation": (curve, oscillator, places, {"batch_size": 5}),
    "differential equation, torch.func": (curve, oscillator_by_transforms, places, {}),
}
"""Name → how to make the model, the loss, the data, and the problem's options."""


def make(name: str, **options: Any) -> Problem:
    """The problem ``name`` of the zoo, in float64, seeded."""
    model, loss, data, own = ZOO[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = model()
        content = data()
    return Problem(net, loss, content, **{"dtype": torch.float64, **own, **options})
