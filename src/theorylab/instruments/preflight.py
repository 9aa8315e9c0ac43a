"""What would silently spoil a measurement of a problem: things that are allowed, and worth a look before a number is believed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm

from theorylab.core.batches import Batch, rows_of, tensors_of
from theorylab.core.notice import Notice
from theorylab.core.precision import full_float32
from theorylab.core.problem import Problem, check_problem
from theorylab.core.safe import BATCH_COUPLED
from theorylab.instruments.merging import in_parts, joined, same_risk, weighing

STATISTICS_APART = 1.0
"""Running standard deviations by which the data's mean may lie from a BatchNorm's running mean, on average over channels."""
VARIANCE_RATIO = 4.0
"""Factor by which the data's variance may differ from a BatchNorm's running variance, on average (geometric) over channels."""
FEW = 8
"""Rows, at the least, whose joint loss is compared with that of parts of them."""
INPUT_SCALE = 20.0
"""Root mean square of the inputs above which they look like raw values, pixels of 0 to 255, say."""


def preflight(problem: Problem) -> tuple[Notice, ...]:
    """What may spoil measurements of ``problem``, warnings first; nothing of it is changed.

    A problem refuses what cannot be measured rightly. This looks for what can be, but may not be what was meant: BatchNorm by batch
    statistics, active dropout, spectral norms that move, a loss that is no mean over rows, a loader that shuffles or drops rows, a loss
    that comes out otherwise the second time, inputs normalized unlike in training, rows that are not finite or come twice, tied and frozen
    parameters, a dtype of few digits, a loss cut off from the parameters. Costs a few evaluations of the loss.

    Raises:
        TypeError: not a Problem.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 4), nn.Dropout(0.1), nn.Linear(4, 1))
        >>> problem = Problem(model, nn.functional.mse_loss, (torch.eye(2), torch.zeros(2, 1)), train=True)
        >>> for notice in preflight(problem): print(notice.what)
        the model draws random numbers (Dropout)
    """
    check_problem("preflight", problem)
    found = [
        n
        for look in (
            _batch_norm,
            _spectral_norm,
            _graph,
            _log_probabilities,
            _joint,
            _randomness,
            _loader,
            _shapes,
            _statistics,
            _rows,
            _scale,
            _repeated,
            _parameters,
        )
        for n in look(problem)
    ]
    return tuple(sorted(found, key=lambda n: n.level != "warning"))


def _names(model: nn.Module, kinds: Any) -> str:
    return ", ".join(sorted({type(m).__name__ for m in model.modules() if isinstance(m, kinds)}))


def _batch_norm(problem: Problem) -> Iterator[Notice]:
    norms = [m for m in problem.model.modules() if isinstance(m, BATCH_COUPLED)]
    if norms and (problem.train or any(m.running_mean is None for m in norms)):
        yield Notice(
            f"{_names(problem.model, BATCH_COUPLED)} normalizes by the statistics of the batch",
            "A row's output then depends on the other rows, the risk on how the data are split, and nothing is a row's own",
            "Use train=False and running statistics, unless this is what you study; then keep one batch",
            "warning",
        )


def _spectral_norm(problem: Problem) -> Iterator[Notice]:
    """PyTorch's spectral normalization, as a parametrization or in its older form of a hook."""
    names = []
    for name, m in problem.model.named_modules():
        if type(m) is _SpectralNorm:
            names.append(name.replace("parametrizations.", "").rpartition(".")[0])
        names += [f"{name}.{hook.name}".removeprefix(".") for hook in m._forward_pre_hooks.values() if isinstance(hook, SpectralNorm)]
    if problem.train and names:
        yield Notice(
            f"spectral normalization iterates in training mode ({_listed(names)})",
            "Every evaluation goes on from the kept vectors by a power iteration, to another network than that of evaluation mode, and "
            "derivatives hold the vectors constant, so that curvature is not that of the loss",
            "Use train=False, which holds the vectors where they are",
            "warning",
        )


def _randomness(problem: Problem) -> Iterator[Notice]:
    with problem.safe(), torch.no_grad():
        draws = problem.draws(0)
        first, second = (problem.batch_loss(0) for _ in range(2))
    if draws:
        kinds = _names(problem.model, nn.modules.dropout._DropoutNd) or "inside the model or the loss"
        yield Notice(
            f"the model draws random numbers ({kinds})",
            f"They are frozen by seed={problem.seed}, so that one network of many is measured",
            "Use train=False for the network without dropout, or repeat over seeds",
            "warning",
        )
    if not torch.equal(first, second) and bool(torch.isfinite(first)):
        yield Notice(
            f"the loss comes out otherwise the second time ({first:.9g}, then {second:.9g})",
            "It depends on something that PyTorch's seed does not rule, and derivatives of it mean nothing",
            "Draw from torch's generators, or take the randomness out of the model and the loss",
            "warning",
        )


def _graph(problem: Problem) -> Iterator[Notice]:
    with problem.safe():
        loss = problem.batch_loss(0, problem.leaves())
    if not loss.requires_grad:
        yield Notice(
            "the loss has no graph back to the selected parameters",
            "All derivatives are zero or refused: the model or the loss cuts the graph (detach, no_grad, argmax), or uses other parameters",
            "Take out what cuts it, or select other parameters in params=",
            "warning",
        )


def _log_probabilities(problem: Problem) -> Iterator[Notice]:
    if problem.criterion is nn.functional.nll_loss or type(problem.criterion) is nn.NLLLoss:
        yield Notice(
            "nll_loss is linear in the outputs, which are log-probabilities",
            "The Gauss-Newton matrix, which leaves out the curvature of the outputs, is zero, and so is all that is made of it",
            "Leave LogSoftmax out of the model, and use cross_entropy",
            "warning",
        )


def _joint(problem: Problem) -> Iterator[Notice]:
    """A mean over rows is the weighted mean of its parts, also over rows of several batches."""
    if problem.train or any(isinstance(m, BATCH_COUPLED) and m.running_mean is None for m in problem.model.modules()):
        return  # of BatchNorm and dropout there are notices of their own
    whole = joined(_few(problem)) or _few(problem.on([max(problem.batches, key=lambda b: b.rows)]))  # or else lengths differ
    try:
        with problem.safe(), full_float32():
            told = not whole.draws(0) and same_risk(whole, whole, digits=0.5)  # neither NaN nor another number each time
            if not told or same_risk(weighing(whole.on(in_parts(whole.batches[0]))), whole, digits=0.5):
                return
    except Exception:  # of a model or a loss that does not take rows apart, as the nodes of a graph; instruments of rows refuse it
        return
    several = len(problem.batches) > 1
    yield Notice(
        "the loss of a batch is not the mean of its rows' losses",
        "So it is with class weights, ignored labels, sums and contrasts: "
        + ("the risk depends on how the rows are put into batches" if several else "batches of fewer rows would have another risk"),
        ("Give all rows in one batch, or " if several else "Keep one batch, which memory= does not split either, or ")
        + 'a loss of each row, e.g. by reduction="none"; count= where batches weigh by their predictions',
        "warning" if several else "info",
    )


def _few(problem: Problem) -> Problem:
    """Rows drawn from all batches, `FEW` or as many as the largest holds: no more than are evaluated at once anyway."""
    wanted = max(FEW, max(b.rows for b in problem.batches))
    rows = torch.randperm(problem.n, generator=torch.Generator().manual_seed(0), device="cpu")[:wanted].sort().values
    chosen, start = [], 0
    for batch in problem.batches:
        own = (rows[(rows >= start) & (rows < start + batch.rows)] - start).to(problem.device)
        if len(own):
            chosen.append(Batch(rows_of(batch.content, own, batch.rows), len(own)))
        start += batch.rows
    return problem.on(chosen)


def _loader(problem: Problem) -> Iterator[Notice]:
    if problem.order == "shuffled":
        yield Notice(
            "the loader shuffles",
            f"It was read once, in an order fixed by seed={problem.seed}; random augmentation was drawn once too",
            "Pass a loader with shuffle=False where rows or batches matter one by one",
            "info",
        )
    if problem.left_off:
        yield Notice(
            f"the loader leaves {problem.left_off} of {problem.n + problem.left_off} rows off (drop_last=True)",
            "The risk is that of the other rows, which are others in another order",
            "Pass a loader with drop_last=False",
            "info",
        )


def _shapes(problem: Problem) -> Iterator[Notice]:
    if not problem.batches[0].is_pair:
        return
    targets = problem.batches[0].content[1]
    with problem.safe(), torch.no_grad():
        outputs = problem.outputs(0)
    if not (isinstance(outputs, Tensor) and isinstance(targets, Tensor) and targets.is_floating_point()):
        return
    if outputs.numel() == targets.numel() > 1 and outputs.squeeze().shape == targets.squeeze().shape and outputs.ndim != targets.ndim:
        yield Notice(
            f"outputs are {tuple(outputs.shape)}, targets {tuple(targets.shape)}",
            "A loss that subtracts one from the other compares every pair of rows",
            "Give both one shape, unless the loss itself does",
            "warning",
        )


def _statistics(problem: Problem) -> Iterator[Notice]:
    """BatchNorm's running statistics against those of the first batch at the same place."""
    if problem.train:
        return
    worst: list[tuple[float, str]] = []

    def look(name: str, m: Any, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        x = args[0] if args else kwargs["input"]
        axes = [0, *range(2, x.ndim)]
        if m.running_mean is None or x.numel() // x.shape[1] < 8:
            return
        mean, variance = x.double().mean(axes), x.double().var(axes, correction=0)
        shift = float(((mean - m.running_mean) / (m.running_var + m.eps).sqrt()).abs().mean())
        ratio = float(((variance + m.eps) / (m.running_var + m.eps)).log().mean().exp())
        excess = max(shift / STATISTICS_APART, max(ratio, 1 / max(ratio, 1e-300)) / VARIANCE_RATIO)
        if excess > 1:
            text = f"inputs of {name} lie {shift:.2g} standard deviations from its running mean, with {ratio:.2g} times its variance"
            worst.append((excess, text))

    norms = {name: m for name, m in problem.model.named_modules() if isinstance(m, BATCH_COUPLED)}
    handles = [m.register_forward_pre_hook(partial(look, name), with_kwargs=True) for name, m in norms.items()]
    try:
        with problem.safe(), torch.no_grad():
            problem.batch_loss(0)
    finally:
        for handle in handles:
            handle.remove()
    if worst:
        yield Notice(
            max(worst)[1],
            "The data are normalized unlike those that BatchNorm saw in training, or the running statistics were never trained",
            "Apply the training's normalization to the inputs, or let the running statistics see the data",
            "warning",
        )


def _listed(rows: Sequence[object]) -> str:
    return ", ".join(map(str, rows[:10])) + (f" and {len(rows) - 10} more" if len(rows) > 10 else "")


def _rows(problem: Problem) -> Iterator[Notice]:
    bad, start = [], 0
    for batch in problem.batches:
        wrong = torch.zeros(batch.rows, dtype=torch.bool, device=problem.device)
        for t in tensors_of(batch.content):
            if t.is_floating_point() and t.ndim and len(t) == batch.rows:
                wrong |= ~torch.isfinite(t).flatten(1).all(1) if t.ndim > 1 else ~torch.isfinite(t)
        bad += [start + i for i in wrong.nonzero().flatten().tolist()]
        start += batch.rows
    if bad:
        yield Notice(
            f"rows {_listed(bad)} hold numbers that are NaN or infinite",
            "One such row makes the risk, and every number derived from it, NaN",
            "Leave these rows out, or repair them",
            "warning",
        )
    with problem.safe(), torch.no_grad():
        losses = torch.stack([problem.batch_loss(k).double() for k in range(len(problem.batches))])
    broken = (~torch.isfinite(losses)).nonzero().flatten().tolist()
    if broken:
        yield Notice(
            f"the loss is NaN or infinite on batches {_listed(broken)}",
            "Instruments refuse a loss that is not finite",
            "Check the parameters, the labels and the rows of these batches",
            "warning",
        )


def _inputs(problem: Problem) -> list[Tensor]:
    """The first tensor with a row axis of every batch: x."""
    return [next(t for t in tensors_of(b.content) if t.ndim and len(t) == b.rows) for b in problem.batches]


def _scale(problem: Problem) -> Iterator[Notice]:
    x = [t.double() for t in _inputs(problem) if t.is_floating_point()]
    size = sum(float(t.square().sum()) for t in x) / max(1, sum(t.numel() for t in x))
    if size**0.5 > INPUT_SCALE:
        yield Notice(
            f"the inputs have a root mean square of {size**0.5:.3g}",
            "Networks are trained on inputs near unit scale; raw pixels or features measure another point of the function",
            "Apply the training's normalization, if it is not part of the model",
            "warning",
        )


def _repeated(problem: Problem) -> Iterator[Notice]:
    inputs = [(torch.view_as_real(t) if t.is_complex() else t).reshape(len(t), -1) for t in _inputs(problem)]
    if len({t.shape[1] for t in inputs}) > 1:
        return
    flat = torch.cat(inputs)
    copies = len(flat) - len(torch.unique(flat, dim=0))
    if copies:
        yield Notice(
            f"{copies} of {problem.n} rows repeat an earlier one",
            "Error bars and bounds take rows for independent, and so are too narrow",
            "Leave repeated rows out, unless they were drawn so",
            "info",
        )


def _parameters(problem: Problem) -> Iterator[Notice]:
    every = list(problem.model.named_parameters(remove_duplicate=False))
    shared: dict[int, list[str]] = {}
    for name, p in every:
        shared.setdefault(id(p), []).append(name)
    tied = [" = ".join(names) for names in shared.values() if len(names) > 1]
    if tied:
        yield Notice(
            f"parameters are tied: {'; '.join(tied[:5])}", "They count once, under the first name", "Nothing, if this is meant", "info"
        )
    for name, m in problem.model.named_modules():
        if isinstance(m, nn.Embedding) and m.padding_idx is not None:
            yield Notice(
                f"row {m.padding_idx} of {name}.weight is for padding",
                "PyTorch takes its derivative for zero, also where the loss depends on it",
                "Mask padding in the model and in the labels, so that it does not",
                "info",
            )
    left = sum(p.numel() for _, p in problem.model.named_parameters()) - problem.P
    if left:
        yield Notice(
            f"{left} of {left + problem.P} parameters are left out",
            "They are frozen (requires_grad=False) or not selected; curvature and norms are those of the others alone",
            'Pass params="*" for all',
            "info",
        )
    if torch.finfo(problem.dtype).bits < 32:
        yield Notice(
            f"parameters are {problem.dtype}",
            "Two or three digits are left of a gradient, and fewer of a second derivative",
            "Pass dtype=torch.float32",
            "warning",
        )
