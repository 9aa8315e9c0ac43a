"""How signals and gradients travel through a network's depth: length, correlation and gradient of every activation on the way."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from theorylab.core.autograd_graph import nodes_before
from theorylab.core.estimate import Estimate
from theorylab.core.instrument import Inapplicable, instrument
from theorylab.core.layers import has_matrix, named_layers
from theorylab.core.problem import Problem, finite
from theorylab.core.reading import Reading
from theorylab.core.series import Series
from theorylab.core.source import Source
from theorylab.instruments.refusals import hides_outputs, too_few_digits
from theorylab.stats.fits import growth_rate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Key = tuple[str, int]
"""A module's name, and which of its calls in one forward pass."""
See = Callable[[Key, Tensor], Tensor]
"""(key, activation) → what the network goes on with."""


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
        length_rate: Of ln ``length`` a layer.
        correlation_rate: Of ln(1 − ``correlation``) a layer; negative where rows become alike.
        gradient_rate: Of ln ``gradient`` a layer *towards the input*; positive where gradients explode.
    """

    names: tuple[str, ...]
    layer: Tensor
    length: Tensor
    correlation: Tensor | None
    gradient: Tensor
    length_rate: Estimate | None
    correlation_rate: Estimate | None
    gradient_rate: Estimate | None

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
        named = {"squared length, factor a layer": self.length_rate, "squared gradient, factor a layer backwards": self.gradient_rate}
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


def _matches(name: str, pattern: str) -> bool:
    parts, globs = name.split("."), pattern.split(".")
    return len(parts) == len(globs) and all(map(fnmatchcase, parts, globs))


@contextmanager
def _watched(problem: Problem, k: int, modules: str | Sequence[str] | None, see: See) -> Iterator[None]:
    """While batch ``k`` goes through, ``see`` is given every activation, and its value goes on; the hooks go when it ends."""
    patterns = [modules] if isinstance(modules, str) else modules
    calls: dict[str, int] = {}
    rows = problem.batches[k].rows

    def wanted(name: str) -> bool:
        if patterns is not None:
            return any(_matches(name, p) for p in patterns)
        return not any(other.startswith(f"{name}." if name else "") for other in calls)  # something within it was seen: a container

    def hook(name: str, output: Any) -> Any:
        first = output[0] if isinstance(output, tuple) and output else output
        if not (isinstance(first, Tensor) and first.is_floating_point() and first.ndim and len(first) == rows and wanted(name)):
            return None
        calls[name] = calls.get(name, 0) + 1
        new = see((name, calls[name]), first)
        return (new, *output[1:]) if isinstance(output, tuple) else new

    def watch(name: str, module: nn.Module) -> Any:
        return module.register_forward_hook(lambda _, __, output: hook(name, output))

    handles = [watch(name, module) for name, module in named_layers(problem.model)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


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
    problem: Problem, modules: str | Sequence[str] | None, lengths: dict[Key, float], cosines: dict[Key, float], gradients: dict[Key, float]
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
        _rate(length[layer]),
        _rate(below_one) if problem.n > 1 and bool(visible.all()) else None,
        _rate(gradient[layer].flip(0)),
    )


def _rate(values: Tensor) -> Estimate | None:
    return growth_rate(values) if len(values) > 2 and bool((values > 0).all()) else None


def slow_signal_profile(problem: Problem, *, modules: str | Sequence[str] | None = None) -> SignalProfile:
    """All activations kept, every pair of rows, and one backward pass an activation, through a zero added to it: the oracle."""
    kept: dict[Key, list[Tensor]] = {}
    gradients: dict[Key, float] = {}

    def keep(key: Key, activation: Tensor) -> Tensor:
        kept.setdefault(key, []).extend(activation.detach().double().reshape(len(activation), -1).clone())  # what follows may overwrite it
        return activation

    with problem.safe():
        for k in range(len(problem.batches)):
            with _watched(problem, k, modules, keep), torch.no_grad():
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

                with _watched(problem, k, modules, nudge):
                    loss = problem.loss_of(k, problem.outputs(k))
                grad = torch.autograd.grad(loss, zeros, allow_unused=True)[0] if loss.requires_grad else None
                total += 0.0 if grad is None else float((weight * grad.double()).square().sum())
            gradients[key] = problem.n * total
    lengths = {key: sum(float((h * h).mean()) for h in rows) / len(rows) for key, rows in kept.items()}
    cosines = {}
    for key, rows in kept.items():
        alive = [h / h.norm() for h in rows if float(h.norm()) > 0]
        pairs = [float(u @ v) for i, u in enumerate(alive) for v in alive[:i]]
        cosines[key] = math.fsum(pairs) / len(pairs) if pairs else 0.0
    return _summary(problem, modules, lengths, cosines, gradients)


@instrument(
    oracle=slow_signal_profile,
    source=Source("Schoenholz et al. 2017", "Sections 3 and 4 (depth scales of signals and of gradients)", "arXiv:1611.01232"),
    refuses=(hides_outputs, too_few_digits),
)
def signal_profile(problem: Problem, *, modules: str | Sequence[str] | None = None) -> SignalProfile:
    r"""Length, correlation and gradient of every activation along the forward pass, and their rates of growth a layer.

    Of each module's output h, (n, m): the mean square of its entries; the mean cosine of two rows; and
    :math:`n\,\lVert\partial L/\partial h\rVert^2`. In a deep network all three change by a factor a layer. Where that of gradients is not
    near one, the first layers learn far faster or far slower than the last; where correlations come near one, the network cannot tell its
    inputs apart.

    One forward pass and one backward pass without the parameters' gradients; activations are reduced as they come, so that beside the graph
    one vector each is kept. BatchNorm in training mode is meaningful here, batch by batch.

    Args:
        problem: The risk and the point.
        modules: Names or globs of modules, in which * stands for one part between dots ("blocks.*"); each counts as a layer. Default: all
            modules that contain no other that was called, of which those with a weight matrix, their own or computed, count as layers.
            Outputs whose first axis is not the rows are left out; of a tuple the first tensor is taken.

    Raises:
        ValueError: the loss is not finite, or activations differ in size between batches.
        Inapplicable: the loss hides the model's outputs, or no module qualifies.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
        >>> problem = Problem(net, lambda f, y: (f[:, 0] - y).square() / 2, (torch.eye(2), torch.tensor([3.0, 3.0])))
        >>> problem = problem.at({"0.weight": 2 * torch.eye(2), "2.weight": torch.tensor([[1.0, 1.0]])})
        >>> found = signal_profile(problem)  # outputs are 2, and slopes −1
        >>> found.names, found.length.tolist(), found.gradient.tolist()
        (('0', '1', '2'), [2.0, 2.0, 4.0], [1.0, 2.0, 1.0])
        >>> found.correlation.tolist()
        [0.0, 0.0, 1.0]

    Source: Poole et al. 2016, arXiv:1606.05340, Section 2; Schoenholz et al. 2017, arXiv:1611.01232, Sections 3 and 4.
    """
    sums: dict[Key, _Sums] = {}
    with problem.safe():
        for k, weight in enumerate(problem.weights):
            gathering = _Gathering(sums, weight)
            with _watched(problem, k, modules, gathering.see):
                loss = finite(problem.loss_of(k, problem.outputs(k)))
            gathering.gradients_of(loss)
    lengths = {key: s.squares / s.entries for key, s in sums.items()}
    cosines = {key: s.correlation for key, s in sums.items()}
    return _summary(problem, modules, lengths, cosines, {key: problem.n * s.gradient for key, s in sums.items()})


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
