"""Closed-form predictions of what normalization does: norms and step sizes of scale-invariant weights, gradients through the depth."""

from __future__ import annotations

import math
from typing import Literal, TypeVar

import torch

from theorylab.core.ranges import below_one, nonnegative, positive, whole
from theorylab.theory.activations import DUALS, relu

Placement = Literal["pre", "post"]
Number = TypeVar("Number", float, torch.Tensor)
Normalization = Literal["none", "batch", "layer", "group", "rms", "weight"]


def exponential_growth(lr: float, weight_decay: float, momentum: float = 0.0) -> float:
    r"""The rate α at which weight decay shrinks scale-invariant weights: training at constant step equals training with η_t = η α^{−2t−1}.

    α is the larger root of x² − (1 + γ − λη) x + γ = 0. Without momentum α = 1 − λη.

    Args:
        lr: Step size η > 0.
        weight_decay: Coupled decay λ ≥ 0.
        momentum: γ in [0, 1).

    Returns:
        α in [√γ, 1], and positive; the equivalent step grows by α^{−2} a step.

    Raises:
        ValueError: an argument out of range; λη > (1 − √γ)², where the roots are complex and no exponential schedule is equivalent; or
            λη = 1 without momentum, where α = 0: a step forgets the weights.

    Example:
        >>> round(exponential_growth(0.1, 0.1), 12)
        0.99
        >>> round(exponential_growth(0.4, 0.01, momentum=0.5), 5)
        0.99193

    Source: Li and Arora 2020, arXiv:1910.07454, Section 2 (constant step size, weight decay and momentum).
    """
    return 1 - _shrinkage(lr, weight_decay, momentum)


def matched_buffer(lr: float, weight_decay: float, momentum: float = 0.0) -> float:
    r"""The initial momentum buffer, in units of θ_0, that makes the exponential run start as the decayed one does: −(1 − α) / (ηα).

    With weight decay and v_0 = 0 the first iterate forgets that θ would have shrunk before; in rescaled coordinates that is a velocity,
    (γ/α²)(θ_0 − αθ_0), which the exponential run must be given as v_0 = −(1 − α) θ_0 / (ηα).

    Args:
        lr: Step size η > 0 of the run with decay.
        weight_decay: Its coupled decay λ ≥ 0.
        momentum: Its momentum γ in [0, 1); at γ = 0 the buffer plays no part.

    Raises:
        ValueError: as `exponential_growth`.

    Example:
        >>> round(matched_buffer(0.1, 0.1), 6)
        -0.10101

    Source: derived from the three-term recurrence of Li and Arora 2020, arXiv:1910.07454, Section 2.
    """
    shrinkage = _shrinkage(lr, weight_decay, momentum)
    return -shrinkage / (lr * (1 - shrinkage))


def _shrinkage(lr: float, weight_decay: float, momentum: float) -> float:
    """1 − α, the smaller root of x² − (1 − γ + λη) x + λη = 0, without a difference of nearly equal numbers; λη at γ = 0."""
    _check_rates(lr, weight_decay, momentum)
    product, root = weight_decay * lr, math.sqrt(momentum)
    border = (1 - root) ** 2
    if not product <= border:
        raise ValueError(
            f"weight_decay·lr must be at most (1 − √momentum)² = {border:.4g} for a real α, got {product:.4g}: lower one of them."
        )
    shrinkage = 2 * product / (1 - momentum + product + math.sqrt((border - product) * ((1 + root) ** 2 - product)))
    if shrinkage == 1:
        raise ValueError(f"weight_decay·lr must be below 1 without momentum, or α is 0 and a step forgets the weights, got {product:.4g}.")
    return shrinkage


def squared_norm_after_step(squared_norm: Number, squared_gradient: Number, lr: float, weight_decay: float = 0.0) -> Number:
    r"""‖θ⁺‖² = (1 − ηλ)² ‖θ‖² + η² ‖g‖²: a step of plain SGD on scale-invariant weights, whose gradient is orthogonal to them.

    Args:
        squared_norm: ‖θ‖² before the step; also a tensor.
        squared_gradient: ‖g‖²; also a tensor. A sum over steps gives, without decay, the norm after all of them.
        lr: Step size η.
        weight_decay: Coupled decay λ ≥ 0.

    Raises:
        ValueError: a rate that is negative or not finite.

    Example:
        >>> squared_norm_after_step(4.0, 9.0, lr=1.0, weight_decay=0.5)
        10.0

    Source: van Laarhoven 2017, arXiv:1706.05350, effective learning rate; without decay Arora, Li and Lyu 2019, arXiv:1812.03981.
    """
    nonnegative(lr=lr, weight_decay=weight_decay)
    return (1 - lr * weight_decay) ** 2 * squared_norm + lr**2 * squared_gradient


def equilibrium_angle(lr: float, weight_decay: float, momentum: float = 0.0) -> float:
    r"""Root-mean-square angle a step [radians] at which scale-invariant weights turn in equilibrium: √(2ηλ / (1 + γ)).

    Without momentum it is also the relative update η‖g‖/‖θ‖. To leading order in ηλ.

    Args:
        lr: Step size η > 0.
        weight_decay: Coupled decay λ ≥ 0.
        momentum: Heavy-ball γ in [0, 1).

    Raises:
        ValueError: an argument out of range.

    Example:
        >>> round(equilibrium_angle(0.2, 0.01), 4), round(equilibrium_angle(0.05, 0.02, momentum=0.9), 5)
        (0.0632, 0.03244)

    Source: Wan et al. 2021, arXiv:2006.08419, theorem on the angular update in equilibrium.
    """
    _check_rates(lr, weight_decay, momentum)
    return math.sqrt(2 * lr * weight_decay / (1 + momentum))


def equilibrium_norm4(lr: float, weight_decay: float, unit_squared_gradient: float = 1.0) -> float:
    r"""E‖θ‖⁴ in equilibrium of plain SGD: (η / 2λ) E‖ḡ‖², with ḡ = ‖θ‖ g the gradient at unit norm.

    With momentum γ the argument ``lr`` is often replaced by η/(1 − γ). That needs gradients that are independent from one step to the
    next, and is off where they are not.

    Args:
        lr: Step size η > 0.
        weight_decay: Coupled decay λ > 0.
        unit_squared_gradient: E‖ḡ‖² ≥ 0; left at 1, the ratio E‖θ‖⁴ / E‖ḡ‖².

    Raises:
        ValueError: an argument out of range.

    Example:
        >>> round(equilibrium_norm4(0.2, 0.01, unit_squared_gradient=3.0), 9)
        30.0

    Source: Li, Lyu and Arora 2020, arXiv:2010.02916, equilibrium of the effective learning rate; the stationary point of
    d‖θ‖⁴ = (−4ηλ‖θ‖⁴ + 2η²‖ḡ‖²) dt.
    """
    _check_rates(lr, weight_decay, 0.0)
    nonnegative(unit_squared_gradient=unit_squared_gradient)
    if weight_decay == 0:
        raise ValueError("weight_decay must be positive: without decay the norm grows for ever, and there is no equilibrium.")
    return lr / (2 * weight_decay) * unit_squared_gradient


def equilibrium_steps(lr: float, weight_decay: float, momentum: float = 0.0) -> float:
    r"""Time constant, in steps, with which ‖θ‖⁴ approaches its equilibrium: (1 − γ) / (4ηλ).

    An initial excess of ‖θ‖⁴ decays as e^{−t/τ}; a norm c times too large is forgotten after about τ ln c⁴ steps.

    Args:
        lr: Step size η > 0.
        weight_decay: Coupled decay λ > 0.
        momentum: γ in [0, 1).

    Raises:
        ValueError: an argument out of range.

    Example:
        >>> round(equilibrium_steps(0.2, 0.01), 6)
        125.0

    Source: Li, Lyu and Arora 2020, arXiv:2010.02916; the homogeneous solution of the equation in `equilibrium_norm4`.
    """
    _check_rates(lr, weight_decay, momentum)
    if weight_decay == 0:
        raise ValueError("weight_decay must be positive: without decay there is no equilibrium to approach.")
    return (1 - momentum) / (4 * lr * weight_decay)


def invariant_blocks(normalization: Normalization, width: int, groups: int = 1) -> list[slice]:
    """The output channels whose incoming weights, scaled together by a positive number, leave a normalized layer's output unchanged.

    BatchNorm and weight normalization divide each channel by its own scale, GroupNorm each group of channels, LayerNorm and RMSNorm all
    channels at once. Exact at ``eps = 0``, and for a linear map without bias wherever channels share a scale.

    Args:
        normalization: What stands between the linear map and what follows; ``"weight"`` normalizes the rows of the matrix itself.
        width: Output channels of the linear map, at least 1.
        groups: Groups of GroupNorm, a divisor of ``width``.

    Returns:
        Disjoint slices of the rows, empty without normalization. A proper part of a block is not invariant.

    Raises:
        ValueError: ``groups`` does not divide ``width``, or an unknown normalization.

    Example:
        >>> invariant_blocks("group", 4, groups=2)
        [slice(0, 2, None), slice(2, 4, None)]

    Source: Li and Arora 2020, arXiv:1910.07454 (BatchNorm, LayerNorm and GroupNorm); the rest by definition.
    """
    whole(1, width=width, groups=groups)
    if width % groups:
        raise ValueError(f"groups must divide width, got {groups} groups of {width} channels.")
    sizes = {"none": 0, "batch": 1, "weight": 1, "group": width // groups, "layer": width, "rms": width}
    if normalization not in sizes:
        raise ValueError(f"normalization must be one of {', '.join(sizes)}, got {normalization!r}.")
    size = sizes[normalization]
    return [slice(start, start + size) for start in range(0, width, size)] if size else []


def batch_norm_gradient_growth(activation: str = "relu", batch: int | None = None) -> float:
    r"""Factor by which BatchNorm before each activation makes squared gradients grow a layer, on their way back through wide random layers.

    In the limit of large batches :math:`E\,\phi'(z)^2 / \operatorname{Var}\phi(z)` with z standard normal: BatchNorm divides by the
    standard deviation of what the layer's weights make of φ(z), and the weights' variance cancels. By the Gaussian Poincaré inequality the
    factor is at least 1, and is 1 for linear φ only: no initialization avoids it. Of the ReLU it is π/(π − 1).

    Args:
        activation: φ, a name in `theorylab.theory.activations.DUALS`.
        batch: Rows B of a batch, at least 4; in closed form for ``"relu"`` and ``"identity"`` only, where it is (B − 2)/(B − 3).
            Default: the limit.

    Raises:
        ValueError: an unknown activation, or a finite batch with one that has no closed form.

    Example:
        >>> round(batch_norm_gradient_growth(), 4), round(batch_norm_gradient_growth(batch=32), 4)
        (1.4669, 1.522)
        >>> batch_norm_gradient_growth("identity")
        1.0

    Source: Yang et al. 2019, arXiv:1902.08129, the gradient explosion of ReLU with BatchNorm. Derived here: by permutation symmetry the
    gradients' covariance over rows is that of centred white noise, which one layer multiplies by the factor.
    """
    if activation not in DUALS:
        raise ValueError(f"activation must be one of {', '.join(sorted(DUALS))}, got {activation!r}.")
    if batch is not None:
        whole(4, batch=batch)
        if activation not in ("relu", "identity"):
            raise ValueError(f"activation must be relu or identity where a batch is finite, got {activation!r}: leave batch out.")
    rho = 0.0 if batch is None else -1 / (batch - 1)  # of two entries of a normalized batch, whose sum is zero
    one = torch.ones(2, dtype=torch.float64, device="cpu")
    values, slopes = (t.tolist() for t in DUALS[activation](torch.tensor([1.0, rho], dtype=torch.float64, device="cpu"), one, one))
    variance = values[0] - values[1]  # E φ(y_i)² − E φ(y_i)φ(y_j): what is left after centring
    if batch is None:
        return slopes[0] / variance
    if activation == "identity":
        return (batch - 2) / (batch - 3)
    # White gradients u, centred by G; the slopes are 0 or 1, on the diagonal D and in the vector d; P removes the mean and the direction
    # of y. Then E ‖P D G u‖² = E tr(P D) − E dᵀP d / B, and E B/‖Gh‖² = B / ((B − 3) · variance), for the norm is independent of the rest.
    kept = (batch - 2) / 2
    lost = batch / 2 - 1 - (batch - 1) * (slopes[1] + values[1])
    return batch / (variance * (batch - 3)) * (kept - lost / batch) / (batch - 1)


def last_layer_exponent(placement: Placement) -> float:
    r"""Exponent of the depth L in the gradient norm of a transformer's last feed-forward matrix at initialization: −1/2 pre-LN, 0 post-LN.

    Raises:
        ValueError: an unknown placement.

    Example:
        >>> last_layer_exponent("pre"), last_layer_exponent("post")
        (-0.5, 0.0)

    Source: Xiong et al. 2020, arXiv:2002.04745, Theorem 1 (upper bounds of these orders).
    """
    _check_placement(placement)
    return -0.5 if placement == "pre" else 0.0


def summed_second_moment(placement: Placement, layers: int, tokens: int) -> float:
    r"""Mean square of a coordinate of what a transformer's last LayerNorm divides by its scale, at initialization and large width.

    For uniform attention over ``tokens`` independent tokens, ReLU feed-forward layers, and matrices with variance 1/fan-in. Attention adds
    the mean of the normalized tokens, of second moment :math:`(1 + (n-1)\rho)/n`, where ρ is the correlation of two tokens; the
    feed-forward layer adds 1/2. Post-LN forgets both at every layer, which leaves 3/2; pre-LN keeps the sum, which grows linearly in
    depth, by between 1/2 and 3/2 a layer as the tokens align.

    Args:
        placement: ``"pre"`` or ``"post"``.
        layers: Depth L, at least 1.
        tokens: n, at least 1.

    Raises:
        ValueError: an argument out of range.

    Example:
        >>> summed_second_moment("post", 12, tokens=8)
        1.5
        >>> summed_second_moment("pre", 1, tokens=8)  # 1 + 1/8 + 1/2
        1.625

    Source: Xiong et al. 2020, arXiv:2002.04745, lemma on the norm of hidden vectors (3d/2 post-LN; between (1 + l/2)d and (1 + 3l/2)d
    pre-LN); the correlation follows from the arc-cosine kernel.
    """
    _check_placement(placement)
    whole(1, layers=layers, tokens=tokens)
    if placement == "post":
        return 1.5
    one = torch.ones((), dtype=torch.float64, device="cpu")
    moment, shared = 1.0, 0.0  # of one token's coordinate, and of two tokens' product
    for _ in range(layers):
        attention = (1 + (tokens - 1) * shared / moment) / tokens
        moment, shared = moment + attention, shared + attention
        moment, shared = moment + 0.5, shared + float(relu(one * shared / moment, one, one)[0])
    return moment


def last_layer_gradient(placement: Placement, layers: int, *, tokens: int, hidden: int, outputs: int) -> float:
    r"""Root-mean-square Frobenius norm of the gradient of the last feed-forward matrix, for the cross-entropy at one token, in nats.

    At initialization and large width: the product of the hidden units' norm, :math:`\sqrt{h/2}`, and of what the loss sends back through
    the last LayerNorm, :math:`\sqrt{\mathbb{E}\|p - e_y\|^2 / q}`, where q is the `summed_second_moment`. For logits of variance one and
    labels unrelated to them :math:`\mathbb{E}\|p - e_y\|^2 = 1 + (e - 2)/k` up to terms of order 1/k².

    Args:
        placement: ``"pre"`` or ``"post"``.
        layers: Depth L, at least 1.
        tokens: Independent tokens that attention averages, at least 1.
        hidden: Units h of the feed-forward layer.
        outputs: Classes k, at least 2.

    Raises:
        ValueError: an argument out of range.

    Example:
        >>> [round(last_layer_gradient(p, 32, tokens=8, hidden=64, outputs=64), 2) for p in ("pre", "post")]
        [0.88, 4.64]

    Source: Xiong et al. 2020, arXiv:2002.04745, Theorem 1, with the constants of large width in place of bounds.
    """
    whole(1, hidden=hidden)
    whole(2, outputs=outputs)
    error = 1 + (math.e - 2) / outputs
    return math.sqrt(hidden / 2 * error / summed_second_moment(placement, layers, tokens))


def _check_placement(placement: str) -> None:
    if placement not in ("pre", "post"):
        raise ValueError(f"placement must be 'pre' or 'post', got {placement!r}.")


def _check_rates(lr: float, weight_decay: float, momentum: float) -> None:
    positive(lr=lr)
    below_one(momentum=momentum)
    nonnegative(weight_decay=weight_decay)
