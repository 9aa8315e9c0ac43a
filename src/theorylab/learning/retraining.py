"""Retraining on many subsets of the data: the ground truth of every claim about which rows a prediction owes to."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from theorylab.core.arguments import given, kind_of
from theorylab.core.generators import seeded_others
from theorylab.core.layers import has_parts, named_layers
from theorylab.learning.members import CHUNK, Found, Progress, Training, train_members
from theorylab.learning.optimizers.base import Optimizer
from theorylab.learning.population import Population
from theorylab.learning.replicas import check_arguments
from theorylab.learning.risk import Loss

COPIES = 6
"""Tensors of the parameters' size that a member in training holds: itself, a gradient, the optimizer's state, and what the update makes."""


def footprint(make_model: Callable[[], nn.Module], x: Tensor, rows: int) -> tuple[int, int]:
    """Parameters of a network, and numbers that its modules put out at so many rows like those of ``x``; global generators stay."""
    with torch.random.fork_rng(devices=[]), seeded_others(0), torch.no_grad():
        model, seen = make_model(), []
        hooks = [m.register_forward_hook(lambda _m, _i, out: seen.append(out)) for _, m in named_layers(model) if not has_parts(m)]
        parameter = next(model.parameters())
        few = x[:2]  # one row alone is refused by batch norm in training
        model(few.to(parameter) if x.is_floating_point() else few.to(parameter.device))
        for hook in hooks:
            hook.remove()
    each = sum(out.numel() for out in seen if isinstance(out, Tensor)) // len(few)
    return sum(p.numel() for p in model.parameters()), rows * (each + x[0].numel())


def half_subsets(n: int, count: int, *, fraction: float = 0.5, seed: int = 0) -> Tensor:
    """Random subsets of n rows, each of ``round(fraction · n)`` rows drawn without replacement: booleans (count, n).

    Raises:
        ValueError: a subset that would hold no row, or all of them, or fewer than one subset.

    Example:
        >>> half_subsets(6, 2).sum(1).tolist()
        [3, 3]
    """
    size = round(fraction * n)
    if not 0 < size < n:
        raise ValueError(f"fraction must leave between 1 and {n - 1} of the {n} rows, got {fraction}.")
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}.")
    generator = torch.Generator().manual_seed(seed)
    masks = torch.zeros(count, n, dtype=torch.bool, device="cpu")
    for mask in masks:
        mask[torch.randperm(n, generator=generator, device="cpu")[:size]] = True
    return masks


@dataclass(frozen=True)
class TargetRows:
    """What is kept of trained members: a number for each target row, (member, m), under the name ``"outcomes"``.

    Attributes:
        inputs: Of the target rows, (m, ...).
        labels: Their targets, (m, ...).
        target: What is measured, a function (outputs, labels) → one number a row (m,), or their mean.
    """

    inputs: Tensor
    labels: Tensor
    target: Loss

    def __call__(self, population: Population) -> Found:
        """Measure every member."""
        return {"outcomes": torch.stack([by_row(self.target, out, self.labels) for out in population.outputs(self.inputs)])}


def retrain(
    make_model: Callable[[], nn.Module],
    loss: Loss,
    data: tuple[Tensor, Tensor],
    masks: Tensor,
    seeds: Sequence[int],
    *,
    optimizer: Optimizer,
    steps: int,
    targets: tuple[Tensor, Tensor],
    target: Loss | None = None,
    batch_size: int | None = None,
    memory: int = 2**29,
    chunk: int = CHUNK,
    jobs: int = 1,
    folder: str | os.PathLike[str] | None = None,
    progress: Progress = True,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    mode: Literal["auto", "vmap", "loop"] = "auto",
) -> Tensor:
    r"""Train one network for each subset and seed, and measure it on the target rows: (subset, seed, target).

    A member minimizes :math:`\sum_i w_i \ell_i / \sum_i w_i` over its own row weights w; its initial parameters and order of minibatches
    come from its seed alone, as of a `Population`, so that member (S, s) is what a lone run on the rows of S with seed s gives. Members are
    trained together in chunks that fit into ``memory``. How much faster that is than a loop depends on how far one member fills a core:
    an order of magnitude for networks of a few thousand parameters, little for large ones.

    With a ``folder``, every chunk is kept as it is done, under a digest of all that its numbers depend on: data, weights, seeds, options,
    the code of the model, loss, target and optimizer, and versions. The same call again continues where the first was killed, and loses
    the chunks that were in training. What belongs to another configuration is never found, a damaged file is trained again with a warning,
    and several retrainings may share a folder.

    The numbers are the same for any ``jobs``. What changes rounding, and what training makes of it: the size of the chunks, the number of
    threads (a worker has one, this process its own), and the choice of ``mode="auto"``, which goes by the clock.

    Args:
        make_model: Builds one network.
        loss: ``loss(outputs, targets)``, the mean over rows or one number a row.
        data: Inputs and targets (n, ...) of the training set.
        masks: One subset a row, (subset, n): booleans, or row weights that are not negative.
        seeds: Trainings of each subset. Two or more tell how much of what is measured is noise.
        optimizer: From `theorylab.learning.optimizers`, with hyper-parameters that are numbers.
        steps: Optimizer steps of each member.
        targets: Inputs and targets (m, ...) of the rows on which members are measured.
        target: What is measured: a function (outputs, targets) → one number a row (m,). By default the loss of each row.
        batch_size: Rows of a minibatch; None for full batches.
        memory: Bytes that a chunk may take, counting parameters, optimizer state and what the modules put out; of each process.
        chunk: Members that are trained together, where they fit. To be of use, ``jobs`` needs as many chunks.
        jobs: Processes, each of one thread. Models, losses, targets and optimizers may be closures, which are sent by value; what
            they hold must be picklable, and a function of a module goes by name, so that workers must be able to import it. A program that
            uses more than one must keep what it runs under ``if __name__ == "__main__":``, as always with spawned processes.
        folder: Where to keep what is trained, to continue from; made where it is not there.
        progress: Whether to show on stderr, after two seconds, how many members are done; or a function that is told so instead, and of
            how many.
        dtype: Of parameters and data.
        device: Where to train.
        mode: As of `Population`.

    Raises:
        ValueError: masks of the wrong shape or with negative weights, a subset without rows, no seed, targets of unequal length, a chunk or
            jobs below 1, or a folder that cannot be written.
        TypeError: something that cannot be sent to a process, or (with a folder) told from others of its kind, such as an open file.
        FloatingPointError: a member diverges; names its seed.
        RuntimeError: a worker process died; says of what.

    Example:
        >>> from theorylab.learning.optimizers.sgd import sgd
        >>> x = torch.tensor([[1.0], [1.0]])
        >>> masks = torch.tensor([[True, False], [False, True]])
        >>> net, mse = lambda: nn.Linear(1, 1, bias=False), nn.functional.mse_loss
        >>> data, probe = (x, torch.tensor([[0.0], [2.0]])), (x[:1], torch.zeros(1, 1))
        >>> found = retrain(net, mse, data, masks, [0], optimizer=sgd(0.25), steps=50, targets=probe)
        >>> found.round(decimals=3).flatten().tolist()  # the squared error at 0 of a net that learnt 0, and of one that learnt 2
        [0.0, 4.0]

    Source: Ilyas et al. 2022, arXiv:2202.00622, Section 2 (datamodels are fitted to, and judged by, models trained on random subsets).
    """
    trainings = check_arguments(make_model, loss, data, optimizer, seeds, dtype)
    if not (isinstance(targets, list | tuple) and len(targets) == 2):
        raise TypeError(f"targets must be inputs and targets of the rows to predict, got {kind_of(targets)}.")
    x, masks = data[0], given(masks)
    n = len(x)
    if masks.ndim != 2 or masks.shape[1] != n or len(masks) == 0:
        raise ValueError(f"masks must have shape (subset, {n}), one entry for each row of data, got {tuple(masks.shape)}.")
    weights = masks.to(dtype)
    if not bool((weights.isfinite() & (weights >= 0)).all()):
        raise ValueError("masks must be booleans, or finite row weights that are not negative.")
    empty = (weights.sum(1) == 0).nonzero()
    if len(empty):
        raise ValueError(f"masks: subset {int(empty[0])} has no row to train on.")
    probes, labels = targets
    if len(probes) != len(labels):
        raise ValueError(f"targets must be inputs and targets of the same rows, got {len(probes)} and {len(labels)}.")
    labels = labels.to(device, dtype if labels.is_floating_point() else None)
    parameters, put_out = footprint(make_model, x, batch_size or n)
    measured = put_out * len(probes) // (batch_size or n)
    held = COPIES * parameters + 2 * n + max(2 * put_out, measured)  # forward and backward
    fitting = max(1, memory // (held * weights.element_size()))
    read = TargetRows(probes, labels, loss if target is None else target)
    training = Training(make_model, loss, data, optimizer, steps, read, batch_size, dtype, str(device), mode)
    members = weights.repeat_interleave(len(trainings), 0), trainings * len(masks)
    found = train_members(training, members, chunk=min(chunk, fitting), jobs=jobs, folder=folder, progress=progress)
    return found["outcomes"].view(len(masks), len(trainings), -1)


def by_row(function: Loss, outputs: Tensor, targets: Tensor) -> Tensor:
    """The function's value at each row (m,); one that returns a mean is asked row by row.

    Raises:
        ValueError: it returns neither a scalar nor one number a row.
    """
    value = function(outputs, targets)
    if value.ndim == 0:
        value = torch.func.vmap(lambda o, t: function(o[None], t[None]))(outputs, targets)
    if value.shape != (len(targets),):
        raise ValueError(f"target must return one number a row, ({len(targets)},), got shape {tuple(value.shape)}.")
    return value
