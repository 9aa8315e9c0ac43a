"""Adam, and with ``decoupled=True`` AdamW."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from theorylab.core.ranges import below_one, nonnegative
from theorylab.learning.optimizers.base import Hyper, Optimizer, Params, replica_ones, selectable, spread


@selectable
def adam(
    lr: Hyper,
    betas: tuple[Hyper, Hyper] = (0.9, 0.999),
    eps: Hyper = 1e-8,
    weight_decay: Hyper = 0.0,
    decoupled: bool = False,
    amsgrad: bool = False,
) -> Optimizer:
    r"""Adam with bias correction; equal to `torch.optim.Adam`, or `torch.optim.AdamW` where ``decoupled``, with the same arguments (nothing
    decays unless asked to, as AdamW's does).

    .. math:: m \leftarrow \beta_1 m + (1-\beta_1) g, \quad v \leftarrow \beta_2 v + (1-\beta_2) g^2, \quad
        \theta \leftarrow \theta - \eta\, \frac{m / (1-\beta_1^t)}{\sqrt{v / (1-\beta_2^t)} + \epsilon}

    Args:
        lr: Step size η.
        betas: β₁ and β₂, each in [0, 1).
        eps: ε, added outside the root, after bias correction.
        weight_decay: λ; added to the gradient as λθ (coupled), or applied to the parameter as θ ← (1 − ηλ)θ before the step (decoupled).
        decoupled: Which of the two.
        amsgrad: Divide by the largest v so far instead of the present one, so that the step size never grows.

    Raises:
        ValueError: a hyper-parameter out of its range.

    Example:
        >>> import torch
        >>> optimizer = adam(lr=torch.tensor([0.1, 0.5]))
        >>> x = {"x": torch.ones(2, 3)}
        >>> new, _ = optimizer.update({"x": torch.full((2, 3), 7.0)}, optimizer.init(x), x)
        >>> [round(v, 4) for v in new["x"][:, 0].tolist()]  # the first step has length η, whatever the gradient's scale
        [0.9, 0.5]

    Source: Kingma and Ba 2015, Algorithm 1, arXiv:1412.6980; Loshchilov and Hutter 2019, Algorithm 2, arXiv:1711.05101 (with the
    schedule multiplier absorbed: the decay of a step is ηλ, as in PyTorch); ``amsgrad``: Reddi, Kale and Kumar 2018, arXiv:1904.09237,
    Algorithm 2, with PyTorch's bias correction.
    """
    beta1, beta2 = betas
    nonnegative(lr=lr, eps=eps, weight_decay=weight_decay)
    below_one(**{"betas[0]": beta1, "betas[1]": beta2})
    decays = not (isinstance(weight_decay, float | int) and weight_decay == 0)

    def init(params: Params) -> Any:
        first = {k: torch.zeros_like(p) for k, p in params.items()}
        second = {k: torch.zeros_like(p) for k, p in params.items()}
        # the running powers of the betas, one a parameter, so that every state tensor has the parameter's replica axis
        one = {k: replica_ones(p) for k, p in params.items()}
        state = {"first": first, "second": second, "power1": one, "power2": dict(one)}
        return state | ({"largest": {k: torch.zeros_like(p) for k, p in params.items()}} if amsgrad else {})

    def update(grads: Params, state: Any, params: Params) -> tuple[Params, Any]:
        new: Params = {}
        out: dict[str, Params] = {k: {} for k in state}
        for k, p in params.items():
            g, eta = grads[k], spread(lr, p)
            if decays and not decoupled:
                g = g + spread(weight_decay, p) * p
            power1, power2 = state["power1"][k], state["power2"][k]
            b1, b2 = spread(beta1, power1), spread(beta2, power2)
            out["power1"][k], out["power2"][k] = power1, power2 = power1 * b1, power2 * b2
            # rounded to the parameter's type once they are far from one
            b1, rest1, b2, rest2 = _as(p, b1), _as(p, 1 - b1), _as(p, b2), _as(p, 1 - b2)
            corrected1, corrected2 = (1 - power1).to(p.dtype), (1 - power2).to(p.dtype)
            out["first"][k] = m = torch.lerp(g, state["first"][k], b1) if isinstance(b1, float) else b1 * state["first"][k] + rest1 * g
            out["second"][k] = v = (b2 * state["second"][k]).addcmul_(g, rest2 * g)
            if amsgrad:
                out["largest"][k] = v = torch.maximum(state["largest"][k], v)
            size = (v / corrected2).sqrt_().add_(spread(eps, p))
            base = p * (1 - eta * spread(weight_decay, p)) if decays and decoupled else p
            new[k] = torch.addcdiv(base, (-eta / corrected1) * m, size)
        return new, out

    return Optimizer("adamw" if decoupled else "adam", init, update)


def _as(p: Tensor, hyper: Hyper) -> Hyper:
    return hyper.to(p.dtype) if isinstance(hyper, Tensor) else hyper


def momentum_divisor(second: Tensor, steps: float, betas: tuple[float, float], eps: float) -> Tensor:
    r"""What Adam divides its momentum by: :math:`(1-\beta_1^t)\,(\sqrt{v_t/(1-\beta_2^t)} + \epsilon)`, the diagonal of its preconditioner.

    The factor of :math:`\beta_1` is the bias correction of the momentum, which tends to 1.

    Args:
        second: The second moment v_t, of any shape.
        steps: t, at least 1.
        betas: β₁ and β₂.
        eps: ε.

    Example:
        >>> momentum_divisor(torch.tensor([0.004]), 1, (0.9, 0.999), 0.5)  # (1 − 0.9)(2 + 0.5)
        tensor([0.2500])

    Source: Cohen et al. 2022, arXiv:2207.14484, Section 2 (the preconditioner of Adam with bias correction).
    """
    return (1 - betas[0] ** steps) * ((second / (1 - betas[1] ** steps)).sqrt() + eps)
