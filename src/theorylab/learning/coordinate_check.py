"""Does a step of training change features by an amount that does not depend on width? The coordinate check of a parametrization."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from theorylab.core.arguments import check_loss_kind, kind_of
from theorylab.core.batches import as_call, map_tensors, tensors_of
from theorylab.core.estimate import Estimate
from theorylab.core.generators import seed_generators, seeded_generators
from theorylab.core.layers import has_parts, named_layers
from theorylab.core.loss_form import reduction_of, without_broadcast
from theorylab.core.ranges import whole
from theorylab.core.seeds import derived_seed, several_seeds
from theorylab.learning.parametrization import check_make_model
from theorylab.learning.torch_optimizers import MakeOptimizer, check_make_optimizer, made_optimizer
from theorylab.models.seeded import seeded
from theorylab.stats.fits import power_law

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class CoordinateCheck:
    """How much activations changed in some steps, by width.

    Attributes:
        widths: In increasing order.
        changes: By module name: root mean square over rows and coordinates of h_T − h_0, (width, seed).
        slopes: By module name: exponent of the change in the width, a mean over seeds. 0 in muP; above 0 activations blow up as the
            network gets wider, below 0 the layer stops learning.
    """

    widths: tuple[int, ...]
    changes: Mapping[str, Tensor]
    slopes: Mapping[str, Estimate]

    def each_slope(self, name: str) -> np.ndarray:
        """The exponent of one module's change in the width, one a seed, (seed,)."""
        return np.array([power_law(np.array(self.widths), column) for column in self.changes[name].T])

    def plot(self, ax: Axes | None = None) -> Axes:
        """Change against width on logarithmic axes, a line a module."""
        if ax is None:
            import matplotlib.pyplot as plt

            ax = plt.subplots()[1]
        for name, change in self.changes.items():
            mean = change.log().mean(1).exp()
            ax.plot(self.widths, mean, marker="o", label=f"{name}: {self.slopes[name].value:+.2f}")
            ax.fill_between(self.widths, change.amin(1), change.amax(1), alpha=0.15, linewidth=0)
        ax.set(xscale="log", yscale="log", xlabel="width", ylabel="change of the activation")
        ax.legend(title="slope")
        return ax


def _activations(model: nn.Module, x: Any) -> dict[str, Tensor]:
    """Outputs of all modules without children of their own, by name, in the order of the pass: of several the first, at the last use."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            first = next(iter(tensors_of(output)), None)  # of a recurrent layer's outputs and states
            if first is not None and first.is_floating_point():
                seen.pop(name, None)
                seen[name] = first.detach().clone()

        return hook

    handles = [m.register_forward_hook(keep(name or "model")) for name, m in named_layers(model) if not has_parts(m)]
    try:
        with torch.no_grad():
            _called(model, x)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _called(model: nn.Module, x: Any) -> Any:
    args, kwargs = as_call(x)
    return model(*args, **kwargs)


def _mean_loss(loss: Callable[[Any, Any], Tensor], outputs: Any, y: Any) -> Tensor:
    value = without_broadcast(loss, outputs, y)
    reduction_of(value, next((len(t) for t in tensors_of(y) if t.ndim), 1))
    return value.mean()


def _random_batch(model: nn.Module, seed: int) -> tuple[Tensor, Tensor]:
    """Normal rows and random classes that fit a model which begins with a linear layer."""
    first = next((m for _, m in named_layers(model) if not has_parts(m) and any(True for _ in m.parameters())), None)
    generator = torch.Generator().manual_seed(seed)
    if not isinstance(first, nn.Linear):
        raise ValueError(f"data must be given: one batch (x, y); the model's first layer is {type(first).__name__}, not nn.Linear.")
    x = torch.randn(256, first.in_features, generator=generator, dtype=torch.float64, device="cpu").to(first.weight.dtype)
    with torch.no_grad():
        outputs = model(x)
    return x, torch.randint(max(2, outputs.shape[-1]), (len(x),), generator=generator, device="cpu")


@torch.inference_mode(False)
@torch.enable_grad()
def coordinate_check(
    make_model: Callable[[int], nn.Module],
    widths: Iterable[int],
    loss: Callable[[Tensor, Tensor], Tensor] = nn.functional.cross_entropy,
    data: tuple[Any, Tensor] | None = None,
    *,
    optimizer: MakeOptimizer = lambda p: torch.optim.Adam(p, lr=1e-3),
    steps: int = 5,
    seeds: int | Iterable[int] = 4,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> CoordinateCheck:
    r"""How the change of every activation in a few steps of training scales with width.

    Models of all widths take the same steps on the same batch, as they are made (in training mode); dropout has the same masks before
    and after. In the maximal-update parametrization every activation changes by
    :math:`\Theta(1)` in each coordinate, so that the slope of :math:`\log \|\Delta h\|_{\mathrm{rms}}` in the logarithm of the width is 0;
    in the standard one, hidden activations and outputs blow up under Adam, with slopes of 1 and 3/2 in the limit of
    small steps and large widths, and less before.

    Args:
        make_model: ``make_model(width)``, any module; its leaf modules' outputs are what is followed.
        widths: At least three, different.
        loss: ``loss(outputs, targets)``, the mean over rows or one number a row.
        data: One batch (x, y), of the same ``dtype`` as the models, which are called as a `Problem` calls them: ``model(x)``,
            ``model(*x)`` for a tuple or list, ``model(**x)`` for a dict. By default 256 normal rows, as long as the first linear layer
            takes them, with random classes: enough to check a parametrization.
        optimizer: ``optimizer(parameters)`` makes a `torch.optim.Optimizer`; the same settings for all widths, and no closure.
        steps: At least 1. A few: after many the loss is fitted and the slopes say something else.
        seeds: How many initial networks a width, at least 2; or which, all different.
        seed: Of the batch, and with the number of each network of that network.
        dtype: Of the models.
        device: Where they are trained; the batch is sent there. Initial values are those of the CPU.

    Raises:
        ValueError: an argument out of range, a seed that is repeated, an optimizer that needs a closure (LBFGS), a loss of another shape,
            models of one size at two widths or whose modules differ by name, or an activation that is not finite.
        TypeError: an argument of the wrong kind.

    Example:
        >>> net = lambda width: nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))
        >>> x = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
        >>> found = coordinate_check(net, [64, 128, 256], nn.functional.mse_loss, (x, x[:, :1]))
        >>> found.slopes["4"].value > 0.6  # standard parametrization: the outputs of wider networks change more
        True

    Source: Yang et al. 2022, arXiv:2203.03466, Section D.1 (the coordinate check); Yang and Hu 2021, arXiv:2011.14522.
    """
    check_make_model(make_model)
    widths = tuple(widths) if isinstance(widths, Iterable) else widths
    if not isinstance(widths, tuple) or not all(isinstance(w, Integral) for w in widths):
        raise TypeError(f"widths must be a list of whole numbers, as [64, 128, 256], got {widths!r}.")
    if len(set(widths)) != len(widths) or len(widths) < 3 or min(widths) < 1:
        raise ValueError(f"widths must be at least three different positive numbers, got {widths}.")
    if data is not None and not (isinstance(data, list | tuple) and len(data) == 2):
        raise TypeError(f"data must be one batch (x, y), got {kind_of(data)}.")
    check_loss_kind(loss)
    check_make_optimizer(optimizer)
    chosen = several_seeds(seeds)
    whole(1, steps=steps)
    widths = tuple(sorted(widths))
    smallest, next_one = (seeded(lambda width=width: make_model(width), seed, dtype=dtype) for width in widths[:2])
    if [p.shape for p in smallest.parameters()] == [p.shape for p in next_one.parameters()]:
        raise ValueError(
            f"make_model must build wider networks of larger widths, got one of the same shapes at {widths[0]} and {widths[1]}."
        )
    batch = _random_batch(smallest, seed) if data is None else data
    x, y = map_tensors(lambda t: t.clone().to(device), batch)  # autograd refuses what was made in inference mode
    rows: list[list[dict[str, float]]] = []
    for width in widths:
        rows.append([])
        for s in chosen:
            model = seeded(lambda width=width: make_model(width), derived_seed(seed, "network", s), dtype=dtype).to(device)
            noise = derived_seed(seed, "noise", s)
            # the same dropout before and after, or what changed would be its masks
            with seeded_generators(noise, torch.device(device)):
                before, trained = _activations(model, x), made_optimizer(optimizer, model.parameters())
                for _ in range(int(steps)):
                    trained.zero_grad(set_to_none=True)
                    _mean_loss(loss, _called(model, x), y).backward()
                    trained.step()
                seed_generators(noise, torch.device(device))
                after = _activations(model, x)
            rows[-1].append({k: float((after[k] - h).double().square().mean().sqrt()) for k, h in before.items()})
    names = list(rows[0][0])
    if any(list(r) != names for row in rows for r in row):
        raise ValueError("make_model must give the same modules at every width, got different names.")
    changes = {k: torch.tensor([[r[k] for r in row] for row in rows], dtype=torch.float64, device="cpu") for k in names}
    bad = [k for k, change in changes.items() if not bool(change.isfinite().all())]
    if bad:
        raise ValueError(f"the change of activation {bad[0]} is not finite: lower the step size.")
    moved = {k: change for k, change in changes.items() if bool((change > 0).all())}  # what only reshapes the input never changes
    found = CoordinateCheck(widths, moved, {})
    return replace(found, slopes={name: Estimate.over(found.each_slope(name)) for name in moved})
