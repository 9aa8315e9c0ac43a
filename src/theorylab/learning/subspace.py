"""A network trained in a random subspace: its parameters are where they began plus a fixed random map of a few numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from theorylab.core.seeds import derived_seed
from theorylab.core.substitution import places_of, substituted


class RandomSubspace(nn.Module):
    r"""A model at :math:`\theta_0 + Pz`, of whose parameters only z (d,) is trained; at the start z = 0, and it is the model itself.

    P (p, d) assigns every one of the model's p parameters to one of d groups, as evenly as it goes, and gives it a sign, both at random; a
    group of m parameters moves by :math:`\pm z_j/\sqrt m`. So the columns of P are orthonormal, z moves as far as the parameters do, and
    P takes memory and time of order p, where a dense one takes p·d. The sources' P are dense or less sparse.

    θ₀ is frozen in ``model``; P and θ₀ are in the ``state_dict`` beside z. A `Problem` of this model, a measure of it and a population see
    the d numbers only.

    Args:
        model: Taken over. What requires a gradient moves in the subspace, the rest stays: of a model with adapters, these alone.
        d: Numbers that are trained, 1 ... p.
        seed: Of P, drawn on the CPU: the same on every device and in every precision.

    Raises:
        ValueError: no parameter requires a gradient, their dtypes or devices differ, or ``d`` is out of range.

    Example:
        >>> net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        >>> small = RandomSubspace(net, 100, seed=0)
        >>> [k for k, p in small.named_parameters() if p.requires_grad], sum(p.numel() for p in net.parameters())
        (['z'], 2410)
        >>> x = torch.randn(5, 64)
        >>> bool((small(x) == net(x)).all())
        True

    Source: Li et al. 2018, arXiv:1804.08838, Section 2; groups with random signs: Chen et al. 2015, arXiv:1504.04788, Section 4.
    """

    index: Tensor
    counts: Tensor

    def __init__(self, model: nn.Module, d: int, *, seed: int) -> None:
        super().__init__()
        moving = {k: p for k, p in model.named_parameters() if p.requires_grad}
        kinds = {(p.dtype, p.device) for p in moving.values()}
        if len(kinds) != 1:
            got = ", ".join(f"{dtype} on {device}" for dtype, device in sorted(kinds, key=str)) or "none"
            raise ValueError(f"model must have parameters that require a gradient, of one dtype and on one device, got {got}.")
        p = sum(t.numel() for t in moving.values())
        if not 1 <= d <= p:
            raise ValueError(f"d must lie in 1 ... {p}, the number of parameters that require a gradient, got {d}.")
        (dtype, device), names = kinds.pop(), list(moving)
        generator = torch.Generator().manual_seed(derived_seed(seed, "subspace"))
        group = torch.randperm(p, generator=generator, device="cpu") % d
        sign = torch.randint(0, 2, (p,), generator=generator, device="cpu")
        for t in moving.values():
            t.requires_grad_(False)
        self.model, self.names, self.places = model, names, places_of(model)
        self.z = nn.Parameter(torch.zeros(d, dtype=dtype, device=device))
        self.register_buffer("index", (group + d * sign).to(device))  # into z and −z, (p,)
        self.register_buffer("counts", torch.bincount(group, minlength=d).to(device))  # parameters of each group, (d,)

    def moved(self) -> dict[str, Tensor]:
        """The model's parameters at z, by their names within ``model``: those that move."""
        held = dict(self.model.named_parameters())
        steps = self.z / self.counts.to(self.z.dtype).sqrt()
        parts = torch.cat([steps, -steps])[self.index].split([held[k].numel() for k in self.names])
        return {k: held[k] + part.view(held[k].shape) for k, part in zip(self.names, parts, strict=True)}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model at θ₀ + P z."""
        with substituted(self.model, self.moved(), self.places):
            return self.model(*args, **kwargs)
