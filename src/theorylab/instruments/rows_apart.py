"""A problem's rows kept apart: which train a prior, which a bound counts, and a start that depends on neither."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from theorylab.core.arguments import row_numbers
from theorylab.core.batches import Batch, map_tensors
from theorylab.core.generators import seeded_generators
from theorylab.core.instrument import Inapplicable
from theorylab.core.problem import Params, Problem
from theorylab.instruments.merging import joined

ROWS_AT_ONCE = 256


def fresh_start(problem: Problem, seed: int) -> tuple[Params, Params]:
    """Parameters and buffers as the model's own layers draw them, which depend on no data.

    Raises:
        Inapplicable: a module with selected parameters has no ``reset_parameters``.
    """
    fresh = copy.deepcopy(problem.model).cpu()  # one stream of random numbers, and none of a GPU is touched
    owners = {id(p): m for m in fresh.modules() for p in m.parameters(recurse=False)}
    with seeded_generators(seed, torch.device("cpu")):
        for module in fresh.modules():
            reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
            if callable(reset):
                reset()
            owned = [k for k, p in fresh.named_parameters() if k in problem.params and owners[id(p)] is module]
            if owned and not callable(reset):
                raise Inapplicable(
                    f"certify does not apply: {owned[0]} belongs to a {type(module).__name__} without reset_parameters(), so that no "
                    "initialization free of the data is known. Pass init=, values that do not depend on the rows."
                )
    named, buffers = dict(fresh.named_parameters()), dict(fresh.named_buffers())
    params = {k: named[k].detach().to(p) for k, p in problem.params.items()}
    return params, {k: buffers[k].to(b) for k, b in problem._buffers.items()}


def take_rows(problem: Problem, rows: Tensor, buffers: Params, size: int = ROWS_AT_ONCE) -> Problem:
    """The same problem on some rows of its first batch, in order."""
    part = copy.copy(problem)
    whole = problem.batches[0].content
    part.batches = [
        Batch(map_tensors(lambda t, i=i: t[i] if t.ndim and t.shape[0] == problem.n else t, whole), len(i)) for i in rows.split(size)
    ]
    part.n, part._buffers = len(rows), buffers
    return part


def in_one_batch(problem: Problem) -> Problem:
    """All rows in one batch.

    Raises:
        Inapplicable: batches whose tensors differ in more than their number of rows.
    """
    whole = joined(problem)
    if whole is None:
        raise Inapplicable(
            "certify does not apply: rows are drawn from all batches, and these cannot be put into one, as their tensors differ in more "
            "than the number of rows. Pad them to one length."
        )
    return whole


def split_rows(
    n: int, prior: str, prior_rows: Tensor | Sequence[int] | float | None, bound_rows: Tensor | Sequence[int] | None, seed: int
) -> tuple[Tensor, Tensor]:
    """Row numbers of the prior and of the bound, none of them twice: an inequality for n independent rows counts each once.

    Raises:
        ValueError: rows that do not exist, are given twice or serve both, or none left to one of them.
    """
    counted = None if bound_rows is None else _different(bound_rows, n, "bound_rows")
    if prior == "data_free":
        if prior_rows is not None:
            raise ValueError("prior_rows must be left out for a prior that is free of data.")
        return torch.empty(0, dtype=torch.long, device="cpu"), torch.arange(n, device="cpu") if counted is None else counted
    if prior_rows is None or isinstance(prior_rows, int | float):
        share = 0.5 if prior_rows is None else prior_rows
        if not 1 <= round(share * n) < n:
            raise ValueError(f"prior_rows must leave rows to the prior and to the bound, got the share {share} of {n}.")
        chosen = torch.randperm(n, generator=torch.Generator().manual_seed(seed), device="cpu")[: round(share * n)]
    else:
        chosen = _different(prior_rows, n, "prior_rows")
        if len(chosen) == n:
            raise ValueError(f"prior_rows must leave rows to the prior and to the bound, got all {n} of them.")
    if counted is None:
        rest = torch.ones(n, dtype=torch.bool, device="cpu")
        rest[chosen] = False
        return chosen, rest.nonzero()[:, 0]
    shared = set(counted.tolist()) & set(chosen.tolist())
    if shared:
        raise ValueError(f"bound_rows must not hold rows that the prior was trained on, got {len(shared)} of them, e.g. row {min(shared)}.")
    return chosen, counted


def _different(rows: Tensor | Sequence[int], n: int, name: str) -> Tensor:
    found = row_numbers(rows, n, name)
    each, counts = found.unique(return_counts=True)
    if len(each) < len(found):
        raise ValueError(f"{name} must hold each row once, got row {int(each[counts.argmax()])} {int(counts.max())} times.")
    return found
