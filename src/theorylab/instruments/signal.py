"""How signals and gradients travel through a network's depth: length, correlation and gradient of every activation on the way."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from theorylab.core.autograd_graph import nodes_before
from theorylab.core.estimate import Estimate
from theorylab.core.instrument import Inapplicable, instrument
from theorylab.core.layers import has_matrix
from theorylab.core.problem import Problem, finite
from theorylab.core.reading import Reading
from theorylab.core.series import Series
from theorylab.core.source import Source
from theorylab.instruments.activations import Key, watched
from theorylab.instruments.input_jacobian import Modules, dense_along, mean_squared_singular_values
from theorylab.instruments.refusals import hides_outputs, too_few_digits
from theorylab.stats.fits import growth_rate

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class SignalProfile:
    """One entry an activation, in the order in which they were computed; float64 tensors (a,). All are measures.

    Rates are means over consecutive layers of the change of a logarithm, None with fewer than three layers or where a logarithm does not
    exist. Where weights of different layers are independent, so are the changes, and the rate's interval is honest.

    Attributes:
        names: Of the modules; "name#2" is the second call of one.
        layer: Which activations count as layers (bool).
        length: Mean square of the entries.
        correlation: Mean cosine over pairs of rows, without centring; rows of zeros are left out. None with a single row.
        gradient: n‖∂L/∂h‖², with h of all n rows: the mean over rows of a row's squared gradient norm, where rows do not interact.
        jacobian: ‖∂h/∂x‖² over the number of entries of h, both of all rows: the mean squared singular value of a row's Jacobian with
            respect to its input, where that has as many entries as h. None where it was left out or no input is floating-point.
        length_rate: Of ln ``length`` a layer.
        correlation_rate: Of ln(1 − ``correlation``) a layer; negative where rows become alike.
        gradient_rate: Of ln ``gradient`` a layer *towards the input*; positive where gradients explode.
        jacobian_rate: Of ln ``jacobian`` a layer; of wide random networks ln χ, as of gradients.
    """

    names: tuple[str, ...]
    layer: Tensor
    length: Tensor
    correlation: Tensor | None
    gradient: Tensor
    jacobian: tuple[Estimate, ...] | None
    length_rate: Estimate | None
    correlation_rate: Estimate | None
    gradient_rate: Estimate | None
    jacobian_rate: Estimate | None

    @property
    def depth_scale(self) -> tuple[float, tuple[float, float]] | None:
        """Layers in which 1 − correlation falls by a factor e, with its interval; None where it is not sure to fall."""
        rate = self.correlation_rate
        if rate is None or rate.interval()[1] >= 0:
            return None
        low, high = rate.interval()
        return -1 / rate.value, (-1 / low, -1 / high)

    def readings(self) -> tuple[Reading, ...]:
        """Factors a layer with their intervals, the depth scale, and how far the gradients of the first and last layer are apart."""
        named = {
            "squared length, factor a layer": self.length_rate,
            "squared gradient, factor a layer backwards": self.gradient_rate,
            "squared Jacobian, factor a layer": self.jacobian_rate,
        }
        found = []
        for name, rate in named.items():
            if rate is not None:
                low, high = rate.interval()
                found.append(Reading(name, math.exp(rate.value), "measure", (math.exp(low), math.exp(high))))
        if self.depth_scale is not None:
            found.append(Reading("depth scale of correlations, in layers", self.depth_scale[0], "measure", self.depth_scale[1]))
        gradient = self.gradient[self.layer] if bool(self.layer.any()) else self.gradient
        if float(gradient[-1]) > 0:
            found.append(Reading("squared gradient, first over last layer", float(gradient[0] / gradient[-1]), "measure"))
        return tuple(found)

    def figures(self) -> tuple[Series, ...]:
        """Squared lengths and gradients over the activations, in their order."""
        at = torch.arange(1, len(self.names) + 1, device="cpu")
        made = []
        for key, values in (("length", self.length), ("gradient", self.gradient)):
            scale = "log" if bool((values > 0).all()) else "linear"
            series = Series(f"signal-{key}", f"Squared {key} through the depth", x="activation", y=f"squared {key}", y_scale=scale)
            made.append(series.line("all activations", at, values))
        return tuple(made)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw squared lengths and gradients, and 1 − correlation, over the layers in ``ax`` or new axes, and return them."""
        import matplotlib.pyplot as plt

        ax = plt.subplots(figsize=(5.5, 3.5), layout="constrained")[1] if ax is None else ax
        kept = self.layer if bool(self.layer.any()) else torch.ones_like(self.layer)
        curves = {"squared length": self.length, "squared gradient": self.gradient}
        if self.correlation is not None:
            curves["1 − correlation"] = 1 - self.correlation
        for label, values in curves.items():
            ax.plot(range(1, int(kept.sum()) + 1), values[kept].cpu().clamp_min(1e-300), "o-", markersize=3, label=label)
        ax.set_yscale("log")
        ax.set_xlabel("layer")
        ax.legend()
        return ax


@dataclass
class _Sums:
    """What is gathered of one activation, batch by batch."""

    rows: int = 0
    entries: int = 0
    squares: float = 0.0
    alive: int = 0  # rows that are not zero
    units: Tensor | None = None  # the sum of the rows' directions
    gradient: float = 0.0

    def add(self, activation: Tensor) -> None:
        h = activation.detach().reshape(len(activation), -1).double()
        if self.units is not None and self.units.shape != h.shape[1:]:
            raise ValueError(
                f"activations must be of one size in all batches for rows to be compared, got {len(self.units)} and {h.shape[1]} numbers a "
                "row. Pad the inputs to one length."
            )
        norms = h.norm(dim=1)
        total = (h / norms.where(norms > 0, torch.ones_like(norms))[:, None]).sum(0)
        self.units = total if self.units is None else self.units + total
        self.rows, self.entries, self.alive = self.rows + len(h), self.entries + h.numel(), self.alive + int((norms > 0).sum())
        self.squares += float(h.square().sum())

    @property
    def correlation(self) -> float:
        """Mean cosine over pairs of different rows, from ‖Σ u‖² = m + Σ_{i≠j} ⟨u_i, u_j⟩ of m unit vectors; 0 with fewer than two."""
        assert self.units is not None
        return float(self.units.square().sum() - self.alive) / (self.alive * (self.alive - 1)) if self.alive > 1 else 0.0


def _summary(
    problem: Problem,
    modules: Modules,
    lengths: dict[Key, float],
    cosines: dict[Key, float],
    gradients: dict[Key, float],
    jacobians: dict[Key, Estimate],
) -> SignalProfile:
    if not lengths:
        which = "of the model" if modules is None else f"named by modules={modules!r}"
        raise Inapplicable(f"signal_profile does not apply: no module {which} was called with a tensor of one row an example as output.")
    owners = dict(problem.model.named_modules())

    def counts(name: str) -> bool:
        return modules is not None or has_matrix(owners[name])

    def tensor(values: dict[Key, float]) -> Tensor:
        return torch.tensor([values[key] for key in lengths], dtype=torch.float64, device="cpu")

    layer = torch.tensor([counts(name) for name, _ in lengths], device="cpu")
    length, correlation, gradient = map(tensor, (lengths, cosines, gradients))
    below_one = 1 - correlation[layer]
    visible = below_one > 100 * torch.finfo(problem.dtype).eps  # what is left of 1 − c is not rounding
    names = [(name or type(problem.model).__name__) + (f"#{call}" if call > 1 else "") for name, call in lengths]
    return SignalProfile(
        tuple(names),
        layer,
        length,
        correlation if problem.n > 1 else None,
        gradient,
        tuple(jacobians[key] for key in lengths) if jacobians else None,
        _rate(length[layer]),
        _rate(below_one) if problem.n > 1 and bool(visible.all()) else None,
        _rate(gradient[layer].flip(0)),
        _sampled_rate([jacobians[key] for key, counted in zip(lengths, layer.tolist(), strict=True) if counted]) if jacobians else None,
    )


def _rate(values: Tensor) -> Estimate | None:
    return growth_rate(values) if len(values) > 2 and bool((values > 0).all()) else None


def _sampled_rate(values: Sequence[Estimate]) -> Estimate | None:
    """`_rate` of what is known to some error itself: the mean change of the logarithm is that from the first to the last."""
    rate = _rate(torch.tensor([v.value for v in values], dtype=torch.float64, device="cpu"))
    if rate is None:
        return None
    sampling = math.hypot(*(v.stderr / v.value for v in (values[0], values[-1]))) / (len(values) - 1)
    return Estimate(rate.value, math.hypot(rate.stderr, sampling), rate.n)


def slow_signal_profile(problem: Problem, *, modules: Modules = None, probes: int = 8, seed: int = 0) -> SignalProfile:
    """All activations kept, every pair of rows, a backward pass an activation, through a zero added to it, dense Jacobians: the oracle."""
    kept: dict[Key, list[Tensor]] = {}
    gradients: dict[Key, float] = {}

    def keep(key: Key, activation: Tensor) -> Tensor:
        kept.setdefault(key, []).extend(activation.detach().double().reshape(len(activation), -1).clone())  # what follows may overwrite it
        return activation

    with problem.safe():
        for k in range(len(problem.batches)):
            with watched(problem, k, modules, keep), torch.no_grad():
                finite(problem.loss_of(k, problem.outputs(k)))
        for key in kept:
            total = 0.0
            for k, weight in enumerate(problem.weights):
                zeros: list[Tensor] = []

                def nudge(now: Key, activation: Tensor, key: Key = key, zeros: list[Tensor] = zeros) -> Tensor:
                    if now != key:
                        return activation
                    zeros.append(torch.zeros_like(activation, requires_grad=True))
                    return activation + zeros[0]

                with watched(problem, k, modules, nudge):
                    loss = problem.loss_of(k, problem.outputs(k))
                grad = torch.autograd.grad(loss, zeros, allow_unused=True)[0] if loss.requires_grad else None
                total += 0.0 if grad is None else float((weight * grad.double()).square().sum())
            gradients[key] = problem.n * total
        jacobians = mean_squared_singular_values(problem, modules, probes, seed, dense_along) if probes else {}
    lengths = {key: sum(float((h * h).mean()) for h in rows) / len(rows) for key, rows in kept.items()}
    cosines = {}
    for key, rows in kept.items():
        alive = [h / h.norm() for h in rows if float(h.norm()) > 0]
        pairs = [float(u @ v) for i, u in enumerate(alive) for v in alive[:i]]
        cosines[key] = math.fsum(pairs) / len(pairs) if pairs else 0.0
    return _summary(problem, modules, lengths, cosines, gradients, jacobians)


@instrument(
    oracle=slow_signal_profile,
    source=Source("Schoenholz et al. 2017", "Sections 3 and 4 (depth scales of signals and of gradients)", "arXiv:1611.01232"),
    refuses=(hides_outputs, too_few_digits),
)
def signal_profile(problem: Problem, *, modules: Modules = None, probes: int = 8, seed: int = 0) -> SignalProfile:
    r"""Length, correlation, gradient and Jacobian of every activation along the forward pass, and their rates of growth a layer.

    Of each module's output h, (n, m): the mean square of its entries; the mean cosine of two rows;
    :math:`n\,\lVert\partial L/\partial h\rVert^2`; and :math:`\lVert\partial h/\partial x\rVert_F^2/(nm)`, the mean squared singular value
    of the Jacobian with respect to the inputs x. In a deep network all four change by a factor a layer. Where that of gradients is not near
    one, the first layers learn far faster or far slower than the last; where correlations come near one, the network cannot tell its inputs
    apart. The Jacobian grows forwards as gradients grow backwards, whatever the loss: by χ in wide random networks.

    One forward pass and one backward pass without the parameters' gradients; activations are reduced as they come, so that beside the graph
    one vector each is kept. The Jacobian is estimated from its products with ``probes`` random directions, for all activations at once: it
    takes another forward and backward pass, and two more for each direction, and keeps all activations of a batch. BatchNorm in training
    mode is meaningful here, batch by batch.

    Args:
        problem: The risk and the point.
        modules: Names or globs of modules, in which * stands for one part between dots ("blocks.*"); each counts as a layer. Default: all
            modules that contain no other that was called, of which those with a weight matrix, their own or computed, count as layers.
            Outputs whose first axis is not the rows are left out; of a tuple the first tensor is taken.
        probes: Random directions for the Jacobian; 0 leaves it out.
        seed: Of the directions.

    Raises:
        ValueError: the loss is not finite, activations differ in size between batches, one probe, or a part of the model that cannot be
            differentiated twice (``probes=0`` does without).
        Inapplicable: the loss hides the model's outputs, or no module qualifies.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False), torch.nn.ReLU(), torch.nn.Linear(2, 1, bias=False))
        >>> problem = Problem(net, lambda f, y: (f[:, 0] - y).square() / 2, (torch.eye(2), torch.tensor([3.0, 3.0])))
        >>> problem = problem.at({"0.weight": 2 * torch.eye(2), "2.weight": torch.tensor([[1.0, 1.0]])})
        >>> found = signal_profile(problem)  # outputs are 2, and slopes −1
        >>> found.names, found.length.tolist(), found.gradient.tolist()
        (('0', '1', '2'), [2.0, 2.0, 4.0], [1.0, 2.0, 1.0])
        >>> found.correlation.tolist()
        [0.0, 0.0, 1.0]
        >>> [round(j.value, 12) for j in found.jacobian[:2]]  # of 2I, and of its open half
        [4.0, 2.0]

    Source: Poole et al. 2016, arXiv:1606.05340, Section 2; Schoenholz et al. 2017, arXiv:1611.01232, Sections 3 and 4; Pennington et al.
    2017, arXiv:1711.04735 (the mean squared singular value of the Jacobian).
    """
    if probes < 0 or probes == 1:
        raise ValueError(f"probes must be at least 2 to give a standard error, or 0 to leave the Jacobian out, got {probes}.")
    sums: dict[Key, _Sums] = {}
    with problem.safe():
        for k, weight in enumerate(problem.weights):
            gathering = _Gathering(sums, weight)
            with watched(problem, k, modules, gathering.see):
                loss = finite(problem.loss_of(k, problem.outputs(k)))
            gathering.gradients_of(loss)
        jacobians = mean_squared_singular_values(problem, modules, probes, seed) if probes else {}
    lengths = {key: s.squares / s.entries for key, s in sums.items()}
    cosines = {key: s.correlation for key, s in sums.items()}
    gradients = {key: problem.n * s.gradient for key, s in sums.items()}
    return _summary(problem, modules, lengths, cosines, gradients, jacobians)


@dataclass
class _Gathering:
    """Adds what passes in one batch to ``sums``, and its gradient, times the batch's weight, when that comes."""

    sums: dict[Key, _Sums]
    weight: float
    backward: bool = False  # a model may take derivatives itself on its way forward: they are not the loss's

    def see(self, key: Key, activation: Tensor) -> Tensor:
        mine = self.sums.setdefault(key, _Sums())
        mine.add(activation)
        if not activation.requires_grad:  # parameters do not: the graph is of activations alone, and starts here
            activation = activation.detach().requires_grad_()
        # A copy: what follows may write in place, and derivatives that the model takes itself read what an operation kept of its result
        activation = activation.clone()

        def receive(gradient: Tensor) -> None:
            if self.backward:
                mine.gradient += self.weight**2 * float(gradient.double().square().sum())

        activation.register_hook(receive)  # also before an operation in place: it gets the gradient of the value of now
        return activation

    def gradients_of(self, loss: Tensor) -> None:
        """Back to all leaves: those made here, and what the model itself asked gradients for, its inputs, say."""
        leaves = _leaves(loss)
        self.backward = True
        if leaves:
            torch.autograd.grad(loss, leaves, allow_unused=True)


def _leaves(value: Tensor) -> list[Tensor]:
    """The leaves of a tensor's graph, so that a backward pass to them goes through all of it."""
    return [node.variable for node in nodes_before([value]) if hasattr(node, "variable")]
