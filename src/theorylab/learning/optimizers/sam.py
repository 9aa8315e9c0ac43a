"""Sharpness-aware minimization: steps by the gradient at a point uphill."""

from __future__ import annotations

from typing import Any

from theorylab.core.ranges import nonnegative
from theorylab.learning.optimizers.base import Hyper, Optimizer, Params, add_scaled, selectable, unit


@selectable
def sam(base: Optimizer, rho: Hyper = 0.05) -> Optimizer:
    r"""Steps of ``base`` by the gradient at :math:`\theta + \rho\, g/\|g\|`, the norm taken over all parameters of a replica together.

    The gradient is taken twice a step, on the same batch; weight decay and momentum of ``base`` see the second one, at θ itself.

    Args:
        base: The optimizer that steps; one whose gradients are taken at the parameters.
        rho: ρ ≥ 0.

    Raises:
        ValueError: ``base`` takes its own gradients elsewhere, as this one does; or a negative ``rho``.

    Example:
        >>> import torch
        >>> from theorylab.learning.optimizers.base import take
        >>> from theorylab.learning.optimizers.sgd import sgd
        >>> quartic = lambda p: {"x": p["x"] ** 3}
        >>> method, x = sam(sgd(lr=1.0), rho=1.0), {"x": torch.ones(1, 1)}
        >>> take(method, quartic, method.init(x), x)[0]["x"].item()  # 1 − (1 + 1)³
        -7.0

    Source: Foret et al. 2021, arXiv:2010.01412, Section 2, Equations 2 and 3, and Algorithm 1 (p = 2).
    """
    if base.probe is not None:
        raise ValueError(f"base must take its gradient at the parameters, got {base.name}: give the optimizer within it.")
    nonnegative(rho=rho)

    def probe(grads: Params, state: Any, params: Params) -> Params:
        uphill = unit(grads)  # zero where the gradient is: there is no uphill then, and none is needed
        return {k: add_scaled(p, rho, uphill[k]) for k, p in params.items()}

    return Optimizer(f"sam {base.name}", base.init, base.update, probe=probe)
