"""How many directions a network's weight matrices really use: effective and stable rank, layer by layer."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from theorylab.core.instrument import instrument
from theorylab.core.problem import Problem, finite
from theorylab.core.reading import Reading
from theorylab.core.source import Source
from theorylab.instruments.linear_layers import uses_another_weight
from theorylab.linalg.rank import entropy_rank, stable_rank


@dataclass(frozen=True)
class MatrixRank:
    """Ranks of one weight matrix.

    Attributes:
        name: Of the parameter.
        full: The largest rank that its shape allows.
        effective: Exponential of the entropy of the normalized singular values, in [1, full]; 0 for a matrix of zeros.
        stable: Squared Frobenius over squared spectral norm, in [1, full]; 0 for a matrix of zeros.
    """

    name: str
    full: int
    effective: float
    stable: float


@dataclass(frozen=True)
class Ranks:
    """Ranks of the selected weight matrices, in the order of the model."""

    matrices: tuple[MatrixRank, ...]

    def readings(self) -> tuple[Reading, ...]:
        """The least, the median and the greatest share of full rank, by either measure."""
        found = []
        for kind in ("effective", "stable"):
            shares = {m.name: getattr(m, kind) / m.full for m in self.matrices}
            low, high = min(shares, key=shares.__getitem__), max(shares, key=shares.__getitem__)
            label = f"{kind} rank as a share of full rank"
            found.append(Reading(f"{label}, smallest", shares[low], "measure", note=low))
            found.append(Reading(f"{label}, median", statistics.median(shares.values()), "measure", note=f"of {len(shares)} matrices"))
            found.append(Reading(f"{label}, largest", shares[high], "measure", note=high))
        return tuple(found)


def _owners(problem: Problem) -> dict[str, nn.Module]:
    """The module of every selected parameter of two axes or more, by the parameter's name."""
    owners = {id(p): module for module in reversed(list(problem.model.modules())) for p in module.parameters(recurse=False)}
    named = dict(problem.model.named_parameters())
    return {k: owners[id(named[k])] for k, p in problem.params.items() if p.ndim > 1 and p.numel()}


def has_no_matrices(problem: Problem) -> str | None:
    """Ranks are those of matrices and of convolution kernels; other tensors are no linear maps by themselves."""
    owners = _owners(problem)
    for name, owner in owners.items():
        if isinstance(owner, nn.utils.parametrize.ParametrizationList):
            return f"{name} belongs to a parametrization. Remove it: torch.nn.utils.parametrize.remove_parametrizations."
        if isinstance(owner, nn.Linear | _ConvNd) and name.rpartition(".")[2] != "weight":  # by pruning, or normalization in its older form
            return f"{name} is what a {type(owner).__name__} computes its weight from. Make that permanent, or leave it out of params=."
        if problem.params[name].ndim > 2 and not isinstance(owner, _ConvNd):
            return f"{name} of a {type(owner).__name__} has {problem.params[name].ndim} axes and is no matrix. Leave it out of params=."
    if not owners:
        return "none of the selected parameters is a matrix or a convolution kernel. Select one in params=."
    return uses_another_weight(problem, set(owners.values()))


def kernel_effective_rank(problem: Problem) -> Ranks:
    """Each layer applied to one basis vector after another, and the singular values in plain arithmetic: the oracle of `effective_rank`."""
    found = []
    for name, module in _owners(problem).items():
        weight = problem.params[name].detach().double().cpu()
        if isinstance(module, _ConvNd):  # on one patch of the size of the kernel, or for a transposed one on one pixel
            channels = module.in_channels
            patch = (1,) * len(module.kernel_size) if isinstance(module, _ConvTransposeNd) else module.kernel_size
            basis = torch.eye(channels * int(np.prod(patch)), dtype=torch.float64, device="cpu").reshape(-1, channels, *patch)
            prefix = "conv_transpose" if isinstance(module, _ConvTransposeNd) else "conv"
            apply = getattr(nn.functional, f"{prefix}{len(module.kernel_size)}d")
            columns = apply(basis, weight, groups=module.groups).flatten(1).T
        else:
            columns = torch.stack([weight @ e for e in torch.eye(weight.shape[1], dtype=torch.float64, device="cpu")], dim=1)
        s = np.linalg.svd(columns.numpy(), compute_uv=False)
        p = [float(v / s.sum()) for v in s if v > 0]
        effective = float(np.exp(-sum(q * np.log(q) for q in p))) if p else 0.0
        stable = float(sum((v / s[0]) ** 2 for v in s)) if p else 0.0
        found.append(MatrixRank(name, min(columns.shape), effective, stable))
    return Ranks(tuple(found))


@instrument(
    oracle=kernel_effective_rank,
    source=Source("Roy and Vetterli 2007", "the definition of the effective rank", "EUSIPCO 2007, pages 606-610"),
    refuses=has_no_matrices,
    family="norms",
)
def effective_rank(problem: Problem) -> Ranks:
    r"""How many directions each weight matrix uses: :math:`\exp(-\sum_i p_i\ln p_i)`, :math:`p_i = \sigma_i/\sum_j\sigma_j`.

    With it the stable rank :math:`\|W\|_F^2/\|W\|_2^2`, which small singular values hardly move. Both are between 1 and the full rank, do
    not depend on the scale of the weights, and need no threshold. Training from a small start tends to lower them.

    A convolution's matrix is its kernel unfolded to (out, in · patch), the map of one patch to one position, and not that of the image as
    a whole; of a grouped one, the block-diagonal matrix of its groups. Weights in recurrent cells and attention that hold several gates or
    projections in one tensor are one matrix.

    Args:
        problem: A network; every selected parameter of two axes, and every convolution kernel, is measured, in float64. The cost is one
            singular value decomposition each.

    Raises:
        Inapplicable: no matrix is selected; one that is computed (a parametrization, or a layer whose class computes with another weight
            than it holds); a tensor that is no matrix and no kernel.
        ValueError: the loss or a weight is not finite.

    Example:
        >>> problem = Problem(torch.nn.Linear(3, 3), torch.nn.functional.mse_loss, (torch.eye(3), torch.eye(3)))
        >>> found = effective_rank(problem.at({"weight": torch.diag(torch.tensor([4.0, 4.0, 0.0]))})).matrices[0]
        >>> found.full, round(found.effective, 6), found.stable
        (3, 2.0, 2.0)

    Source: Roy and Vetterli 2007, "The effective rank: a measure of effective dimensionality", EUSIPCO 2007, pages 606-610.
    """
    finite(problem.loss())
    found = []
    for name, module in _owners(problem).items():
        groups = module.groups if isinstance(module, _ConvNd) else 1
        s = _singular_values(problem.params[name].detach().double(), groups)
        found.append(MatrixRank(name, len(s), float(entropy_rank(s)), float(stable_rank(s))))
    return Ranks(tuple(found))


def _singular_values(weight: Tensor, groups: int) -> Tensor:
    """Of the block-diagonal matrix of the groups, each flattened after its first axis."""
    return torch.linalg.svdvals(weight.reshape(groups, weight.shape[0] // groups, -1)).flatten()
