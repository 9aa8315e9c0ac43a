r"""How lengths, correlations and gradients travel through the depth of a wide random network: maps, fixed points, depth scales, phases.

A layer is :math:`h_{l+1} = W\phi(h_l) + \beta` with independent normal entries of variance :math:`\sigma_w^2/m` over m inputs and
:math:`\sigma_b^2`. In the limit of infinite width everything follows from two recursions, of the squared length
:math:`q_l = \lVert h_l\rVert^2/m` and of the correlation :math:`c_l` of two inputs. Activations are names in
`theorylab.theory.activations.DUALS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from scipy.optimize import brentq
from scipy.special import digamma

from theorylab.core.ranges import nonnegative, positive, whole
from theorylab.theory.activations import DUALS


def _expectations(activation: str, q: float, c: float = 1.0) -> tuple[float, float]:
    """E[φ(u)φ(v)] and E[φ'(u)φ'(v)] of normal u, v of variance q and correlation c."""
    if activation not in DUALS:
        raise ValueError(f"activation must be one of {', '.join(sorted(DUALS))}, got {activation!r}.")
    variance = torch.tensor([q], dtype=torch.float64, device="cpu")
    values, slopes = DUALS[activation](c * variance, variance, variance)
    return float(values), float(slopes)


def length_map(q: float, weight_variance: float, bias_variance: float = 0.0, activation: str = "tanh") -> float:
    r"""The squared length a layer later: :math:`q' = \sigma_w^2\, E\,\phi(\sqrt q z)^2 + \sigma_b^2`.

    Args:
        q: Squared length over the width, at least 0.
        weight_variance: :math:`\sigma_w^2 > 0`.
        bias_variance: :math:`\sigma_b^2 \ge 0`.
        activation: φ.

    Raises:
        ValueError: an argument out of range.

    Example:
        >>> length_map(3.0, 2.0, activation="relu")  # the variance 2 of He et al. keeps the length
        3.0

    Source: Poole et al. 2016, arXiv:1606.05340, Section 2 (the length map).
    """
    _check(q, weight_variance, bias_variance)
    return weight_variance * _expectations(activation, q)[0] + bias_variance


def correlation_map(c: float, q: float, weight_variance: float, bias_variance: float = 0.0, activation: str = "tanh") -> float:
    r"""The correlation a layer later of two inputs of equal length: :math:`c' = (\sigma_w^2\, E\,\phi(u)\phi(v) + \sigma_b^2) / q'`.

    Args:
        c: Correlation now, in [−1, 1].
        q: Squared length of both now; q' is that of `length_map`.
        weight_variance: As `length_map`.
        bias_variance: As `length_map`.
        activation: φ.

    Raises:
        ValueError: an argument out of range.

    Example:
        >>> round(correlation_map(0.0, 1.0, 2.0, activation="relu"), 4)  # orthogonal inputs: 1/π
        0.3183

    Source: Poole et al. 2016, arXiv:1606.05340, Section 2 (the correlation map).
    """
    _check_correlation(c)
    after = length_map(q, weight_variance, bias_variance, activation)
    if after == 0:
        raise ValueError("q must be positive where bias_variance is 0: signals of length zero have no correlation. Raise one of them.")
    return (weight_variance * _expectations(activation, q, c)[0] + bias_variance) / after


def fixed_length(weight_variance: float, bias_variance: float = 0.0, activation: str = "tanh") -> float:
    r"""q*, the stable fixed point of the length map; 0 where all lengths shrink to nothing.

    Of the ReLU :math:`\sigma_b^2/(1 - \sigma_w^2/2)`; for others where lengths settle that start from :math:`1 + \sigma_b^2 + \sigma_w^2`,
    for tanh and erf the largest root of q' = q. A GELU of a variance near 2 may have another, larger one.

    Raises:
        ValueError: an argument out of range, lengths that grow without bound (or, for a ReLU of variance 2 without bias, that all stay),
            or a bias that is lost in rounding, at a weight variance that keeps small lengths.

    Example:
        >>> round(fixed_length(1.3, 0.1, "tanh"), 4), fixed_length(1.0, 0.5, "relu")
        (0.4198, 1.0)

    Source: Poole et al. 2016, arXiv:1606.05340, Section 2.
    """
    _check(0.0, weight_variance, bias_variance)
    gain = {"relu": 0.5, "identity": 1.0}.get(activation)  # E φ² = gain · q of homogeneous activations
    if gain is not None:
        if gain * weight_variance >= 1:
            raise ValueError(
                f"weight_variance must be below {1 / gain:g} for {activation} lengths to settle, got {weight_variance}: at that value "
                "they keep their start or grow by the bias, above it they grow by a factor a layer."
            )
        return bias_variance / (1 - gain * weight_variance)

    def excess(q: float) -> float:
        return length_map(q, weight_variance, bias_variance, activation) - q

    top = 1.0 + bias_variance + weight_variance  # above every root for activations bounded by one
    limit = 1e17 * top  # above every root for those that become a ReLU far away, as 1 − σ_w²/2 is no less than 1e-16 where it is positive
    while excess(top) > 0:
        top *= 2
        if top > limit:
            raise ValueError(f"lengths grow without bound at weight_variance {weight_variance} with {activation}: lower it.")
    low = top
    while excess(low) <= 0:
        low /= 2
        if bias_variance == 0 and low < 1e-12:  # of smaller ones the map leaves only rounding; with a bias none is smaller than that
            return 0.0
    q = low * _root(lambda part: excess(low * part) / low, 1.0, 2.0)  # in parts of low, which may be as small as a bias
    if q < 1e-12 and 1e10 * bias_variance < q:
        raise ValueError(
            f"bias_variance must be 0, or about 1e-24 at least, at weight_variance {weight_variance}, at which {activation} keeps small "
            f"lengths as they are, got {bias_variance}: rounding would decide where they settle."
        )
    return q


def chi(q: float, weight_variance: float, activation: str = "tanh", c: float = 1.0) -> float:
    r""":math:`\chi = \sigma_w^2\, E\,\phi'(u)\phi'(v)`, with u and v of variance q and correlation c.

    At c = 1 and q = q* it is :math:`\chi_1`: the factor by which squared gradient norms change a layer on their way back, and the slope
    of the correlation map at 1.

    Raises:
        ValueError: an argument out of range.

    Example:
        >>> round(chi(fixed_length(1.3, 0.1), 1.3), 4), chi(5.0, 2.0, "relu")
        (0.8125, 1.0)

    Source: Schoenholz et al. 2017, arXiv:1611.01232, Section 3; of gradients Section 4.
    """
    _check(q, weight_variance, 0.0)
    _check_correlation(c)
    return weight_variance * _expectations(activation, q, c)[1]


def fixed_correlation(weight_variance: float, bias_variance: float = 0.0, activation: str = "tanh") -> float:
    """c*, where correlations of any two different inputs end: 1 in the ordered phase (χ₁ ≤ 1), less in the chaotic one.

    Raises:
        ValueError: as `fixed_length`, or lengths that shrink to nothing.

    Example:
        >>> fixed_correlation(1.3, 0.1), round(fixed_correlation(3.0, 0.1), 3)
        (1.0, 0.478)

    Source: Poole et al. 2016, arXiv:1606.05340, Section 2.
    """
    q = _positive_length(weight_variance, bias_variance, activation)
    if chi(q, weight_variance, activation) <= 1:
        return 1.0

    def excess(c: float) -> float:
        return correlation_map(c, q, weight_variance, bias_variance, activation) - c

    near = 1 - 1e-6  # the map is convex on [0, 1], and below the diagonal between its root and 1
    return 1.0 if excess(near) >= 0 else _root(excess, 0.0, near)


def depth_scale(weight_variance: float, bias_variance: float = 0.0, activation: str = "tanh") -> float:
    r"""ξ, the number of layers in which correlations come nearer to c* by a factor e: :math:`-1/\ln\chi` at c*; infinite at the boundary.

    Raises:
        ValueError: as `fixed_correlation`.

    Example:
        >>> round(depth_scale(1.3, 0.1), 3)
        4.815

    Source: Schoenholz et al. 2017, arXiv:1611.01232, Section 3 (depth scales).
    """
    c = fixed_correlation(weight_variance, bias_variance, activation)
    slope = chi(_positive_length(weight_variance, bias_variance, activation), weight_variance, activation, c)
    return math.inf if slope >= 1 else -1 / math.log(slope)


def critical_weight_variance(bias_variance: float = 0.0, activation: str = "tanh") -> float:
    r"""The boundary between order and chaos: :math:`\sigma_w^2` at which :math:`\chi_1 = 1`.

    Of the ReLU 2, whatever the biases. Otherwise found along the curve of q*, on which :math:`\sigma_w^2 = 1/E\,\phi'^2` and
    :math:`\sigma_b^2 = q^* - \sigma_w^2\, E\,\phi^2`.

    Raises:
        ValueError: an argument out of range, or an activation whose boundary is not such a curve.

    Example:
        >>> round(critical_weight_variance(0.0, "tanh"), 9), critical_weight_variance(0.3, "relu")
        (1.0, 2.0)

    Source: Poole et al. 2016, arXiv:1606.05340, Section 2 (the phase diagram); Schoenholz et al. 2017, arXiv:1611.01232, Section 3.
    """
    nonnegative(bias_variance=bias_variance)
    if activation in ("relu", "identity"):
        return 1 / _expectations(activation, 1.0)[1]
    if activation not in ("tanh", "erf"):
        raise ValueError(f"activation must be relu, identity, tanh or erf for a boundary between two phases, got {activation!r}.")
    if bias_variance == 0:
        return 1 / _expectations(activation, 0.0)[1]

    def excess(q: float) -> float:
        values, slopes = _expectations(activation, q)
        return q - values / slopes - bias_variance

    top = 1.0
    while excess(top) < 0:
        top *= 2
    return 1 / _expectations(activation, _root(excess, 0.0, top))[1]


def signal_path(
    layers: int, weight_variance: float, bias_variance: float = 0.0, activation: str = "tanh", *, q: float = 1.0, c: float = 0.0
) -> tuple[list[float], list[float]]:
    """Squared lengths and correlations after each of ``layers`` linear layers, of two inputs with squared length q and correlation c.

    The first layer acts on the inputs themselves, the others on φ of what came before.

    Raises:
        ValueError: an argument out of range.

    Example:
        >>> lengths, correlations = signal_path(2, 2.0, activation="relu", q=1.0, c=0.0)
        >>> lengths, [round(c, 4) for c in correlations]
        ([2.0, 2.0], [0.0, 0.3183])
    """
    whole(1, layers=layers)
    after = length_map(q, weight_variance, bias_variance, "identity")
    lengths, correlations = [after], [correlation_map(c, q, weight_variance, bias_variance, "identity")]
    for _ in range(layers - 1):
        here, now = lengths[-1], min(1.0, correlations[-1])  # rounding may carry it beyond 1
        lengths.append(length_map(here, weight_variance, bias_variance, activation))
        correlations.append(correlation_map(now, here, weight_variance, bias_variance, activation))
    return lengths, correlations


def gaussian_product_exponents(width: int) -> list[float]:
    r"""Growth a layer of ln s_i, the singular values of a long product of square normal matrices of variance 1/width, descending.

    Lyapunov exponents :math:`\frac12(\ln\frac2m + \psi(\frac{m - i + 1}2))`, ψ the digamma function. Their sum, times the depth, is the
    expected logarithm of the determinant at any depth. Orthogonal factors have exponents zero.

    Raises:
        ValueError: ``width`` below 1.

    Example:
        >>> [round(v, 3) for v in gaussian_product_exponents(3)]
        [-0.184, -0.491, -1.184]

    Source: Newman 1986, doi:10.1007/BF01464284 (the distribution of Lyapunov exponents: exact results for random matrices).
    """
    whole(1, width=width)
    return [0.5 * (math.log(2 / width) + float(digamma((width - i) / 2))) for i in range(width)]


def _root(f: Callable[[float], float], low: float, high: float) -> float:
    return float(brentq(f, low, high, xtol=1e-15, rtol=1e-14))  # pyright: ignore[reportArgumentType]  the stub's full_output


def _positive_length(weight_variance: float, bias_variance: float, activation: str) -> float:
    q = fixed_length(weight_variance, bias_variance, activation)
    if q == 0:
        raise ValueError(
            f"lengths shrink to nothing at weight_variance {weight_variance} and bias_variance {bias_variance} with {activation}: "
            "there is no correlation at the end. Raise one of them."
        )
    return q


def _check(q: float, weight_variance: float, bias_variance: float) -> None:
    nonnegative(q=q, bias_variance=bias_variance)
    positive(weight_variance=weight_variance)


def _check_correlation(c: float) -> None:
    if not -1 <= c <= 1:
        raise ValueError(f"c must lie in [-1, 1], got {c}.")
