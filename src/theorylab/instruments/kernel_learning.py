"""What the neural tangent kernel says of learning: how fast, whether along the labels, and with what predictions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from theorylab.core.instrument import instrument
from theorylab.core.problem import Problem
from theorylab.core.source import Source
from theorylab.instruments.kernels import dense_ntk, ntk, on_inputs
from theorylab.instruments.refusals import couples_rows, hides_outputs, too_few_digits
from theorylab.instruments.targets import no_target_a_row, numeric_targets


def dense_kernel_spectrum(problem: Problem, *, trace_outputs: bool = False) -> Tensor:
    """Squared singular values of the dense Jacobian, or eigenvalues of its contraction: the oracle of `kernel_spectrum`."""
    theta = dense_ntk(problem, trace_outputs=trace_outputs)
    return torch.linalg.svdvals(theta)


@instrument(
    oracle=dense_kernel_spectrum,
    source=Source("Jacot et al. 2018", "Section 5 (convergence along the kernel's principal components)", "arXiv:1806.07572"),
    refuses=(hides_outputs, couples_rows, too_few_digits),
    family="kernels",
)
def kernel_spectrum(problem: Problem, *, trace_outputs: bool = False) -> Tensor:
    r"""Eigenvalues of the empirical NTK, in descending order.

    Under gradient flow on :math:`\frac{1}{2n}\sum_i \lVert f(x_i) - y_i\rVert^2` with the kernel fixed, the residual along an eigenvector
    decays as :math:`e^{-\lambda t/n}`; :math:`\lambda/n` are also the non-zero eigenvalues of the Gauss-Newton matrix of that loss.

    Args:
        problem: The model, the data and the point.
        trace_outputs: Of the kernel summed over outputs, (n,); otherwise of the full one, (n c,).

    Raises:
        Inapplicable: as `ntk`.

    Example:
        >>> line = Problem(torch.nn.Linear(2, 1), torch.nn.functional.mse_loss, (torch.eye(2), torch.zeros(2, 1)))
        >>> [round(v, 4) for v in kernel_spectrum(line).tolist()]
        [3.0, 1.0]

    Source: Jacot et al. 2018, arXiv:1806.07572, Section 5.
    """
    return torch.linalg.eigvalsh(ntk(problem, trace_outputs=trace_outputs)).flip(0)


def dense_kernel_alignment(problem: Problem) -> float:
    """The definition with the dense Jacobian and explicit centering matrices: the oracle of `kernel_alignment`."""
    theta, y = dense_ntk(problem, trace_outputs=True), numeric_targets(problem)
    center = torch.eye(problem.n, dtype=theta.dtype, device=theta.device) - 1 / problem.n
    K, L = center @ theta @ center, center @ (y @ y.T) @ center
    return float((K * L).sum() / (K.norm() * L.norm()))


@instrument(
    oracle=dense_kernel_alignment,
    source=Source("Cortes et al. 2012", "Definition 4 (alignment of centered kernel matrices)", "arXiv:1203.0550"),
    refuses=(hides_outputs, couples_rows, no_target_a_row),
    family="kernels",
)
def kernel_alignment(problem: Problem) -> float:
    r"""Centered alignment of the NTK with the labels, the cosine between the two kernels.

    .. math:: \langle K_c, (YY^\top)_c\rangle_F \,/\, (\lVert K_c\rVert_F\,\lVert (YY^\top)_c\rVert_F)

    K is the kernel summed over outputs, Y the targets with classes as unit vectors, and :math:`K_c = (I - \frac1n 11^\top) K
    (I - \frac1n 11^\top)`. Between 0 and 1: at 1 the kernel's only direction is that of the labels. For k balanced classes dealt out at
    random it is :math:`\sqrt{(k-1)\,r}/(n-1)` on average, with the kernel's effective rank :math:`r = (\mathrm{tr} K_c)^2 / \lVert
    K_c\rVert_F^2`. Without the centering (kernel-target alignment, Cristianini et al. 2001), a constant added to the kernel would raise it.

    Args:
        problem: The model, the data with one target a row, and the point.

    Raises:
        Inapplicable: as `ntk`, or targets that are not one a row.
        ValueError: all targets are equal, or the centered kernel is zero.

    Example:
        >>> x = torch.tensor([[1.0], [1.0], [-1.0], [-1.0]])
        >>> line = Problem(torch.nn.Linear(1, 2), torch.nn.functional.cross_entropy, (x, torch.tensor([0, 0, 1, 1])))
        >>> round(kernel_alignment(line), 6)
        1.0

    Source: Cortes et al. 2012, arXiv:1203.0550, Definition 4.
    """
    K, Y = _centered(ntk(problem, trace_outputs=True)), numeric_targets(problem)
    Y = Y - Y.mean(0)
    labels = (Y.T @ Y).norm()  # ‖YYᵀ‖_F, from the smaller product
    if not float(labels) > 0:
        raise ValueError("targets must not all be equal: a constant has no direction that a kernel could be aligned with.")
    if not float(K.norm()) > 0:
        raise ValueError("the centered kernel is zero: no parameter moves the outputs of the rows apart.")
    return float((Y * (K @ Y)).sum() / (K.norm() * labels))


def _centered(K: Tensor) -> Tensor:
    return K - K.mean(0) - K.mean(1)[:, None] + K.mean()


@dataclass(frozen=True)
class KernelRegression:
    """Predictions (m, c), and the model's own outputs ``start`` (m, c) that they set out from."""

    prediction: Tensor
    start: Tensor


def dense_kernel_regression(problem: Problem, X_test: Any = None, *, ridge: float = 1e-3, trace_outputs: bool = False) -> KernelRegression:
    """The same formula with the dense Jacobian and a pseudo-inverse: the oracle of `kernel_regression`."""
    theta = dense_ntk(problem, trace_outputs=trace_outputs)
    cross = theta if X_test is None else dense_ntk(problem, None, X_test, trace_outputs).T
    start = _outputs(problem)
    ends = start if X_test is None else _outputs(on_inputs(problem, X_test))
    absolute = ridge * float(theta.diagonal().mean())
    residual = numeric_targets(problem, start.shape[1]) - start
    flat = residual if trace_outputs else residual.reshape(-1, 1)
    moved = cross @ torch.linalg.pinv(theta + absolute * torch.eye(len(theta), dtype=theta.dtype, device=theta.device)) @ flat
    return KernelRegression(ends + moved.reshape(ends.shape), ends)


@instrument(
    oracle=dense_kernel_regression,
    source=Source("Lee et al. 2019", "Section 2.2 (training dynamics of linearized networks)", "arXiv:1902.06720"),
    refuses=(hides_outputs, couples_rows, too_few_digits, no_target_a_row),
    family="kernels",
    row_axes=(0,),
)
def kernel_regression(problem: Problem, X_test: Any = None, *, ridge: float = 1e-3, trace_outputs: bool = False) -> KernelRegression:
    r"""Where training would take the outputs if the kernel stayed as it is: :math:`f_0(x) + \Theta(x, X)(\Theta + r I)^{-1}(y - f_0(X))`.

    The limit of gradient flow on the squared loss of the linearized network, ridge r = 0, or its minimum with an ℓ2 penalty on the distance
    from the present parameters. Targets are the problem's, with classes as unit vectors, whatever its loss. By Cholesky's factorization
    of Θ in float64.

    Args:
        problem: The model, the data with one target a row, and the point.
        X_test: Inputs of m rows; default: the problem's own, whose predictions are its fit.
        ridge: r in units of the mean of Θ's diagonal, at least 0. Without one the fit interpolates, and needs a kernel of full rank.
        trace_outputs: Treat outputs as independent, all with the kernel of their mean: n numbers to factorize, not n c.

    Raises:
        Inapplicable: as `ntk`, or targets that are not one a row.
        ValueError: a negative ridge, a kernel too near to singular for it, or targets unlike the outputs.

    Example:
        >>> x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0], [3.0]])
        >>> line = Problem(torch.nn.Linear(1, 1), torch.nn.functional.mse_loss, (x, y))
        >>> [round(v, 3) for v in kernel_regression(line, torch.tensor([[2.0]]), ridge=0.0).prediction.flatten().tolist()]
        [5.0]

    Source: Lee et al. 2019, arXiv:1902.06720, Section 2.2.
    """
    if not ridge >= 0:
        raise ValueError(f"ridge must be at least 0, got {ridge}.")
    start = _outputs(problem)
    residual = numeric_targets(problem, start.shape[1]) - start
    theta = ntk(problem, trace_outputs=trace_outputs).double()
    absolute = ridge * float(theta.diagonal().mean())
    regular = theta.clone()
    regular.diagonal().add_(absolute)
    factor, failed = torch.linalg.cholesky_ex(regular)
    floor = len(theta) * torch.finfo(problem.dtype).eps * float(theta.diagonal().max())
    if int(failed) or float(factor.diagonal().min()) ** 2 < floor:
        raise ValueError(
            f"the kernel of {len(theta)} outputs is singular to rounding with ridge={ridge:g}: raise ridge, or leave out equal rows."
        )
    flat = residual.double() if trace_outputs else residual.double().reshape(-1, 1)
    weights = torch.cholesky_solve(flat, factor)
    if X_test is None:
        cross, ends = theta, start
    else:
        cross, ends = ntk(problem, None, X_test, trace_outputs).double().T, _outputs(on_inputs(problem, X_test))
    moved = (cross @ weights).reshape(ends.shape)
    return KernelRegression((ends + moved).to(problem.dtype), ends)


def _outputs(problem: Problem) -> Tensor:
    with problem.safe(), torch.no_grad():
        return torch.cat([problem.outputs(k).reshape(b.rows, -1) for k, b in enumerate(problem.batches)])
