"""How large a network's layers are: products of norms, spectral complexity, distance from initialization, margins. All are measures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from theorylab.core.instrument import instrument
from theorylab.core.problem import Params, Problem, finite
from theorylab.core.reading import Reading
from theorylab.core.source import Source
from theorylab.instruments.layer_spectrum import singular_values
from theorylab.instruments.linear_layers import LinearLayer, is_no_chain, linear_layers
from theorylab.instruments.path_norm import path_norm
from theorylab.instruments.predictions import not_classification, scores_and_classes, signed_margins

QUANTILES = (0.0, 0.1, 0.5)
"""Of the margins: the smallest, the lower tenth, the median."""


@dataclass(frozen=True)
class LayerNorms:
    """Norms of one layer's full matrix W, and of its difference D from the reference.

    Attributes:
        name: Of the module.
        spectral: ‖W‖₂.
        frobenius: ‖W‖_F, of the matrix that acts on all pixels for a convolution.
        distance: ‖D‖_F of the weights as stored, each kernel entry once.
        distance_21: Sum over output units of the Euclidean norm of their row of D.
    """

    name: str
    spectral: float
    frobenius: float
    distance: float
    distance_21: float


@dataclass(frozen=True)
class Norms:
    """Measures of a network's size; logarithms are natural.

    Attributes:
        layers: Norms of each layer.
        log_spectral: Σ ln‖W‖₂. For a chain of layers with activations of slope at most one, e to its power bounds the Lipschitz constant.
        log_frobenius: Σ ln‖W‖_F, never below ``log_spectral``.
        log_spectral_complexity: Logarithm of the spectral complexity.
        log_path_norm: See `path_norm`; None off ReLU networks, and where no path has weights other than zero.
        distance: Euclidean distance of all selected parameters from the reference.
        margins: Quantile → margin of the right class, negative where rows are wrong; None where there are no classes.
        reference: ``"initialization"`` where it was given, else ``"zero"``.
        converged: Whether every spectral norm reached its tolerance.
    """

    layers: tuple[LayerNorms, ...]
    log_spectral: float
    log_frobenius: float
    log_spectral_complexity: float
    log_path_norm: float | None
    distance: float
    margins: Mapping[float, float] | None
    reference: str
    converged: bool

    def readings(self) -> tuple[Reading, ...]:
        """Every number as a measure."""
        named = {
            "log product of spectral norms": self.log_spectral,
            "log product of Frobenius norms": self.log_frobenius,
            f"log spectral complexity from {self.reference}": self.log_spectral_complexity,
            **({} if self.log_path_norm is None else {"log path norm": self.log_path_norm}),
            f"distance from {self.reference}": self.distance,
            **{f"margin, quantile {q:g}": m for q, m in (self.margins or {}).items()},
        }
        note = "" if self.converged else "a spectral norm has not converged: raise tol or allow more"
        return tuple(Reading(k, v, "measure", note=note) for k, v in named.items())


def _assemble(
    problem: Problem, init: Params | None, layers: tuple[LayerNorms, ...], margins: Mapping[float, float] | None, converged: bool
) -> Norms:
    for layer in layers:
        if not 0 < layer.spectral < math.inf:
            raise ValueError(f"the norm of layer {layer.name} must be positive and finite to have a logarithm, got {layer.spectral}.")
    log_spectral = math.fsum(math.log(layer.spectral) for layer in layers)
    correction = math.fsum((layer.distance_21 / layer.spectral) ** (2 / 3) for layer in layers)
    if correction == 0:
        raise ValueError("init equals the present parameters: the spectral complexity is zero and has no logarithm. Leave init out.")
    start = {} if init is None else init
    moved = {k: p.double() - start[k].to(p).double() if k in start else p.double() for k, p in problem.params.items()}
    return Norms(
        layers,
        log_spectral,
        math.fsum(math.log(layer.frobenius) for layer in layers),
        log_spectral + 1.5 * math.log(correction),
        _log_path_norm(problem),
        float(problem.flatten(moved).norm()),
        margins,
        "zero" if init is None else "initialization",
        converged,
    )


def _log_path_norm(problem: Problem) -> float | None:
    try:
        return path_norm(problem)
    except ValueError:  # no ReLU network, or one without a path from input to output; the other norms are defined
        return None


def _layer_pairs(problem: Problem, init: Params | None) -> list[tuple[LinearLayer, Tensor]]:
    """Each layer with the difference of its weight from the reference."""
    if init is None:
        return [(layer, layer.weight) for layer in linear_layers(problem)]
    reference = linear_layers(problem.at(init))
    return [(layer, layer.weight - start.weight) for layer, start in zip(linear_layers(problem), reference, strict=True)]


def _margins(problem: Problem) -> dict[float, float] | None:
    if not_classification(problem) is not None:
        return None
    found = signed_margins(*scores_and_classes(problem)).double()
    return {q: float(torch.quantile(found, q)) for q in QUANTILES}


def dense_norms(problem: Problem, *, init: Params | None = None, tol: float = 1e-4) -> Norms:
    """From singular values and rows of every layer's full matrix, made column by column: the oracle of `norms`."""
    layers = []
    for layer, difference in _layer_pairs(problem, init):
        shape = layer.input_shape
        basis = torch.eye(math.prod(shape), dtype=torch.float64, device=problem.device).reshape(-1, *shape)
        W, D = (torch.stack([layer(e[None], w).reshape(-1) for e in basis], dim=1) for w in (layer.weight, difference))
        rows = sum(math.sqrt(sum(v * v for v in row)) for row in D.tolist())
        layers.append(
            LayerNorms(layer.name, float(torch.linalg.svdvals(W)[0]), float(W.square().sum().sqrt()), float(difference.norm()), rows)
        )
    margins = None
    if not_classification(problem) is None:
        scores, classes = (t.tolist() for t in scores_and_classes(problem))
        each = sorted(row[c] - max(s for j, s in enumerate(row) if j != c) for row, c in zip(scores, classes, strict=True))
        margins = {}
        for q in QUANTILES:
            i, part = divmod(q * (len(each) - 1), 1)
            margins[q] = (1 - part) * each[int(i)] + part * each[min(int(i) + 1, len(each) - 1)]
    return _assemble(problem, init, tuple(layers), margins, True)


@instrument(
    oracle=dense_norms,
    source=Source("Bartlett et al. 2017", "Equation (1.2) (spectral complexity)", "arXiv:1706.08498"),
    refuses=is_no_chain,
)
def norms(problem: Problem, *, init: Params | None = None, tol: float = 1e-4) -> Norms:
    r"""Products of layer norms, spectral complexity, distance from initialization, and quantiles of the signed margin.

    The spectral complexity is :math:`\prod_i \|W_i\|_2 \left(\sum_i (\|W_i - M_i\|_{2,1}/\|W_i\|_2)^{2/3}\right)^{3/2}`, row norms
    summed in ‖·‖₂,₁, M the initialization (or zero) and activations of slope at most one. A convolution is the matrix that it applies to
    its real input, with stride and padding; its norm comes from Lanczos iteration through the layer. BatchNorm in evaluation mode is a
    diagonal layer. Everything is computed in float64, products as sums of logarithms.

    These are measures, not bounds: a rescaling of ReLU layers that leaves the function as it is moves all of them but the path norm and
    the margins.

    Args:
        problem: A network whose selected matrices are weights of dense layers and convolutions.
        init: Parameters before training, by name as in ``problem.params``; those left out count as unmoved.
        tol: Relative residual at which a convolution's iteration stops.

    Raises:
        Inapplicable: other kinds of weights, layers that make weights scale-free (LayerNorm, BatchNorm in training mode), layers that a
            forward pass calls more than once, or whose class computes with another weight than they hold.
        ValueError: the loss is not finite, a layer is zero, or ``init`` does not fit.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False), torch.nn.ReLU(), torch.nn.Linear(2, 2, bias=False))
        >>> problem = Problem(net, torch.nn.functional.cross_entropy, (torch.eye(2), torch.tensor([0, 1])))
        >>> problem = problem.at({"0.weight": torch.diag(torch.tensor([2.0, 1.0])), "2.weight": 3 * torch.eye(2)})
        >>> found = norms(problem)
        >>> round(math.exp(found.log_spectral), 6), round(math.exp(found.log_frobenius), 6), found.margins[0.0]
        (6.0, 9.486833, 3.0)

    Source: Bartlett et al. 2017, arXiv:1706.08498, Equation (1.2).
    """
    finite(problem.loss())
    layers, converged = [], True
    for layer, difference in _layer_pairs(problem, init):
        top = singular_values(layer, 1, tol)
        converged &= top.converged
        frobenius = float(layer.row_norms(layer.weight).norm())
        layers.append(
            LayerNorms(layer.name, float(top.values[0]), frobenius, float(difference.norm()), float(layer.row_norms(difference).sum()))
        )
    return _assemble(problem, init, tuple(layers), _margins(problem), converged)
