"""A fully connected network trained by gradient descent cannot tell a basis of its inputs from another.

Rotate all inputs, and rotate the first layer's initial weights with them: every gradient step rotates along, and the two networks agree
on every input at every step. So what such a learner finds out about images it would find out as well about images whose pixels were mixed
by a fixed rotation. Adam looks at coordinates and loses the symmetry, but for permutations, which only rename them. A convolution fixes the
order of pixels in its architecture, and is the learner that a permutation does harm: two convolutional networks that start as one function,
by a readout of zeros, come apart with the first step that they take.

The initial weights must be rotated with the data. For weights drawn from a normal law that makes no difference in distribution.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from theorylab.core.claim import Claim, Equals, Finding
from theorylab.core.config import Config, setting
from theorylab.core.seeds import derived_seed
from theorylab.core.series import Series, Stage
from theorylab.core.source import Source
from theorylab.core.study import study
from theorylab.data.synthetic import teacher_student
from theorylab.learning.equivariance import learner_equivariance
from theorylab.learning.optimizers.adam import adam
from theorylab.learning.optimizers.base import Optimizer
from theorylab.learning.optimizers.sgd import sgd
from theorylab.models.mlp import mlp

ROTATION = Claim(
    "convolution/equivariance/sgd_rotation",
    "Trained by gradient descent with momentum on rotated inputs from a first layer rotated with them, a fully connected network is at "
    "every step the rotated network: f_R(Rx) = f(x).",
    formula=r"f_R(R x;\, W_t^R) = f(x;\, W_t) \quad \text{for all } t, \text{ if } W_0^R = W_0 R^\top",
    source=Source("Li et al. 2021", "Section 3 (equivariant algorithms), and the theorem for gradient descent", "arXiv:2010.08515"),
    kind="identity",
    relation=Equals(atol=1e-10),
    control="Adam",
    reading="What an algorithm cannot distinguish it cannot exploit: a fully connected network has no notion of neighbouring pixels. The "
    "symmetry ends with the first step that looks at single coordinates (Adam, sign descent, ℓ1 penalties), and with any architecture that "
    "orders them. Rounding, which training amplifies, breaks it in long runs.",
)

PERMUTATION = Claim(
    "convolution/equivariance/adam_permutation",
    "The same holds for permutations of the inputs with Adam, and with every method that treats coordinates alike.",
    formula=r"f_P(P x;\, W_t^P) = f(x;\, W_t) \quad \text{for all } t",
    source=Source("Li et al. 2021", "Section 3 (equivariance under permutations of coordinatewise methods)", "arXiv:2010.08515"),
    kind="identity",
    relation=Equals(atol=1e-10),
    control="a rotation, with Adam; and a convolutional first layer under a readout that starts at zero",
    reading="Shuffling the pixels of all images by one permutation changes nothing for a fully connected network, whatever the optimizer; "
    "a convolutional network must learn another task. That is the difference which the shuffled-pixels experiment makes visible.",
)


@dataclass(frozen=True, kw_only=True)
class EquivarianceConfig(Config):
    """Each seed has its own data, network and rotation."""

    inputs: int = setting(20, "inputs d", low=4)
    width: int = setting(32, "hidden units", low=1)
    rows: int = setting(100, "training rows", low=10)
    steps: int = setting(300, "full-batch steps", low=30)


CHANNELS, KERNEL = 8, 3


def convolutional(inputs: int) -> nn.Module:
    """One circular convolution over the inputs as a line of pixels, tanh, and a linear layer over all its outputs that starts at zero.

    So both networks of a pair start as the function zero, and what sets them apart later is what they learn.
    """
    layers = [nn.Unflatten(1, (1, inputs)), nn.Conv1d(1, CHANNELS, KERNEL, padding="same", padding_mode="circular"), nn.Tanh()]
    readout = nn.Linear(CHANNELS * inputs, 1)
    nn.init.zeros_(readout.weight)
    nn.init.zeros_(readout.bias)
    return nn.Sequential(*layers, nn.Flatten(), readout)


def rotations(config: EquivarianceConfig) -> Tensor:
    """One random orthogonal matrix a seed, (replica, d, d)."""
    draws = [torch.Generator().manual_seed(derived_seed(s, "rotation")) for s in config.replica_seeds]
    normal = [torch.randn(config.inputs, config.inputs, generator=g, dtype=config.torch_dtype) for g in draws]
    return torch.linalg.qr(torch.stack(normal))[0].to(config.device)


def permutations(config: EquivarianceConfig) -> Tensor:
    """One random permutation matrix a seed, (replica, d, d)."""
    generators = [torch.Generator().manual_seed(derived_seed(s, "permutation")) for s in config.replica_seeds]
    draws = [torch.randperm(config.inputs, generator=generator) for generator in generators]
    return torch.eye(config.inputs, dtype=config.torch_dtype)[torch.stack(draws)].to(config.device)


def disagreement(config: EquivarianceConfig, make: Callable[[], nn.Module], method: Optimizer, change: Tensor) -> tuple[Tensor, Tensor]:
    """How far networks trained on x and on Rx are apart, thirty times along the way: steps (t,) and values (t, replica).

    Args:
        config: Sizes and seeds.
        make: Builds a network whose first parameter, where it is a matrix on the inputs, is changed with them.
        method: The optimizer.
        change: Orthogonal matrices R, (replica, d, d).
    """
    drawn = [teacher_student(config.rows, config.inputs, noise=0.1, seed=s, dtype=config.torch_dtype) for s in config.replica_seeds]
    x, y = (torch.stack(part).to(config.device) for part in zip(*drawn, strict=True))
    found = learner_equivariance(
        make,
        nn.functional.mse_loss,
        (x, y),
        change,
        optimizer=method,
        steps=config.steps,
        seeds=config.replica_seeds,
        data_per_replica=True,
        device=config.device,
        mode="vmap",
    )
    return found.steps, found.gap


@study(
    "convolution/equivariance",
    claims=[ROTATION, PERMUTATION],
    tiny=EquivarianceConfig(seeds=3, steps=60),
    small=EquivarianceConfig(seeds=8),
    large=EquivarianceConfig(seeds=64, inputs=100, width=256, rows=1000),
)
def equivariance(config: EquivarianceConfig) -> Iterator[Finding | Series | Stage]:
    """Train pairs of networks on data and on transformed data, and compare them along the way."""
    rotated, permuted = rotations(config), permutations(config)

    def dense() -> nn.Module:
        return mlp([config.inputs, config.width, 1])

    momentum, adaptive = sgd(0.05, momentum=0.9), adam(0.01)
    gentler = sgd(1 / config.inputs, momentum=0.9)  # the curvature of a last layer that reads all places grows with their number
    figure = Series("gap", "How far the two networks are apart", x="step", y="largest difference / largest output", y_scale="log")
    runs = [
        (ROTATION.check, "rotation, momentum", dense, momentum, rotated),
        (ROTATION.control_check, "rotation, Adam", dense, adaptive, rotated),
        (PERMUTATION.check, "permutation, Adam", dense, adaptive, permuted),
        (PERMUTATION.check, "permutation, momentum", dense, momentum, permuted),
        (PERMUTATION.control_check, "rotation, Adam", dense, adaptive, rotated),
        (PERMUTATION.control_check, "permutation, convolution, momentum", lambda: convolutional(config.inputs), gentler, permuted),
    ]
    done: dict[str, tuple[Tensor, Tensor]] = {}
    for check, label, make, method, change in runs:
        if label not in done:
            yield Stage(label)
            done[label] = disagreement(config, make, method, change)
            steps, gaps = done[label]
            role = "measured" if check in (ROTATION.check, PERMUTATION.check) else "control"
            figure.line(label, steps, gaps.mean(1).clamp_min(1e-17), role=role)
        yield check(predicted=0.0, measured=done[label][1].amax(0), setting=label)
    yield figure
